"""Search in JAX: how tokens are chosen from logits; torch_mt3/search.py is its twin."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mt3.weights import Weights
from mt3_common.notes.vocabulary import EOS_ID
from mt3_common.transcription.batching import SearchSettings

# T5X's stand-in for minus infinity
NEG_INF = -1e7


class Hypotheses(NamedTuple):
    """Where the search of every row stands; scores are log probabilities, after T5X's names.

    Attributes:
        tokens: (b, n, max_steps) int32, ids so far, without the start token; the best is the last of n.
        scores: (b, n) float32.
        finished_tokens: (b, n, max_steps) int32, hypotheses that ended ('t5x' only).
        finished_scores: (b, n) float32, divided by the length penalty.
        finished: (b, n) bool, which of those exist.
        uniforms: (b, max_steps) float32, what 'sample' draws.
        forced: (b, max_steps) int32, ids to be chosen, 0 where the choice is free; (b, 0) if it always is.
        bias: (b, vocab_size) float32, added to the logits; (b, 0) likewise.
        done: (b,) bool.
    """

    tokens: jax.Array
    scores: jax.Array
    finished_tokens: jax.Array
    finished_scores: jax.Array
    finished: jax.Array
    uniforms: jax.Array
    forced: jax.Array
    bias: jax.Array
    done: jax.Array


def empty_hypotheses(weights: Weights, settings: SearchSettings, num_rows: int, num_biased: int = 0) -> Hypotheses:
    """Hypotheses of rows that have not begun: done, and without tokens; num_biased logits are biased, all or none."""
    shape = (num_rows, settings.num_decodes)
    hypotheses = Hypotheses(
        tokens=np.zeros((*shape, settings.max_steps), np.int32),
        scores=np.zeros(shape, np.float32),
        finished_tokens=np.zeros((*shape, settings.max_steps), np.int32),
        finished_scores=np.full(shape, NEG_INF, np.float32),
        finished=np.zeros(shape, bool),
        uniforms=np.zeros((num_rows, settings.max_steps), np.float32),
        forced=np.zeros((num_rows, settings.max_steps if num_biased else 0), np.int32),
        bias=np.zeros((num_rows, num_biased), np.float32),
        done=np.ones(num_rows, bool),
    )
    return jax.device_put(hypotheses, weights.embedding.sharding, may_alias=False)


@functools.partial(jax.jit, donate_argnames="hypotheses")
def begin(
    hypotheses: Hypotheses, rows: jax.Array, uniforms: jax.Array, forced: jax.Array, bias: jax.Array
) -> Hypotheses:
    """The hypotheses with the given rows begun anew: only the first of n is alive, as in T5X. Rows past the last are
    dropped."""
    return Hypotheses(
        tokens=hypotheses.tokens.at[rows].set(0, mode="drop"),
        scores=hypotheses.scores.at[rows].set(NEG_INF, mode="drop").at[rows, 0].set(0.0, mode="drop"),
        finished_tokens=hypotheses.finished_tokens.at[rows].set(0, mode="drop"),
        finished_scores=hypotheses.finished_scores.at[rows].set(NEG_INF, mode="drop"),
        finished=hypotheses.finished.at[rows].set(False, mode="drop"),
        uniforms=hypotheses.uniforms.at[rows].set(uniforms, mode="drop"),
        forced=hypotheses.forced.at[rows].set(forced, mode="drop"),
        bias=hypotheses.bias.at[rows].set(bias, mode="drop"),
        done=hypotheses.done.at[rows].set(False, mode="drop"),
    )


def choose(
    settings: SearchSettings,
    hypotheses: Hypotheses,
    age: jax.Array,
    logits: jax.Array,
    allowed: jax.Array | None = None,
):
    """The hypotheses after one more token, and which old hypothesis each new one continues.

    Args:
        age: (b,) tokens that were chosen before, that is the place of the new one.
        logits: (b, n, vocab_size).
        allowed: (vocab_size,) bool, tokens that may be chosen, as if the others did not exist; None for all.

    Returns:
        (hypotheses, (b, n) int parents).

    Source: T5X/decoding.py, beam_search, for 't5x'.
    """
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    if hypotheses.forced.size:
        place = age.clip(max=settings.max_steps - 1)[:, None]
        forced = jnp.take_along_axis(hypotheses.forced, place, axis=1)[:, :, None]
        only = jnp.where(jnp.arange(logits.shape[-1]) == forced, 0.0, -jnp.inf)
        logits = jnp.where(forced > 0, only, logits + hypotheses.bias[:, None])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if settings.search == "t5x":
        return _choose_t5x(settings, hypotheses, age, log_probs)
    if settings.search == "sample":
        drawn = jnp.take_along_axis(hypotheses.uniforms, age.clip(max=settings.max_steps - 1)[:, None], axis=1)
        token = _sample(settings, logits[:, 0].astype(jnp.float32), drawn)
    else:
        token = log_probs[:, 0].argmax(axis=-1, keepdims=True)
    live = ~hypotheses.done
    gain = jnp.take_along_axis(log_probs[:, 0], token, axis=1)
    place = age.clip(max=settings.max_steps - 1)
    rows = jnp.arange(len(age))
    written = jnp.where(live, token[:, 0].astype(jnp.int32), hypotheses.tokens[rows, 0, place])
    ended = (token[:, 0] == EOS_ID) | (age + 1 >= settings.max_steps)
    chosen = hypotheses._replace(
        tokens=hypotheses.tokens.at[rows, 0, place].set(written),
        scores=jnp.where(live[:, None], hypotheses.scores + gain, hypotheses.scores),
        done=hypotheses.done | ended,
    )
    return chosen, jnp.zeros_like(token)


def _choose_t5x(settings, hypotheses, age, log_probs):
    num_rows, num_decodes, vocab_size = log_probs.shape
    totals = (log_probs + hypotheses.scores[:, :, None]).reshape(num_rows, -1)
    top_scores, top = jax.lax.top_k(totals, 2 * num_decodes)
    parents, tokens = top // vocab_size, top % vocab_size
    rows = jnp.arange(num_rows)[:, None]
    sequences = hypotheses.tokens[rows, parents]
    place = age.clip(max=settings.max_steps - 1)
    sequences = sequences.at[rows[:, 0], :, place].set(tokens)
    ends = tokens == EOS_ID

    # the best that have not ended go on; T5X keeps the best last
    live_scores, live = jax.lax.top_k(top_scores + ends * NEG_INF, num_decodes)
    live_scores, live = jnp.flip(live_scores, 1), jnp.flip(live, 1)

    # those that have ended compete with those that ended before
    penalised = top_scores / _penalty(settings, age + 1)[:, None] + ~ends * NEG_INF
    all_scores = jnp.concatenate([hypotheses.finished_scores, penalised], axis=1)
    all_tokens = jnp.concatenate([hypotheses.finished_tokens, sequences], axis=1)
    finished_scores, finished = jax.lax.top_k(all_scores, num_decodes)
    finished_scores, finished = jnp.flip(finished_scores, 1), jnp.flip(finished, 1)
    finished_flags = jnp.take_along_axis(jnp.concatenate([hypotheses.finished, ends], axis=1), finished, axis=1)

    # the longest length has the weakest penalty: no live hypothesis can end better than this
    bound = live_scores[:, -1] / _penalty(settings, jnp.float32(settings.max_steps))
    worst = jnp.where(finished_flags.any(1), finished_scores.min(1), NEG_INF)
    ended = (worst > bound) | (age + 1 >= settings.max_steps)

    def kept(new, old):
        return jnp.where(hypotheses.done.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    chosen = Hypotheses(
        tokens=kept(sequences[rows, live], hypotheses.tokens),
        scores=kept(live_scores, hypotheses.scores),
        finished_tokens=kept(all_tokens[rows, finished], hypotheses.finished_tokens),
        finished_scores=kept(finished_scores, hypotheses.finished_scores),
        finished=kept(finished_flags, hypotheses.finished),
        uniforms=hypotheses.uniforms,
        forced=hypotheses.forced,
        bias=hypotheses.bias,
        done=hypotheses.done | ended,
    )
    return chosen, jnp.take_along_axis(parents, live, axis=1)


def best(settings: SearchSettings, hypotheses: Hypotheses) -> tuple[np.ndarray, np.ndarray]:
    """(tokens (b, n, max_steps), scores (b, n)) of rows that are done, the best last.

    For 't5x' the finished ones, or the live ones of a row where none finished, as in T5X.
    """
    tokens, scores = np.asarray(hypotheses.tokens), np.asarray(hypotheses.scores)
    if settings.search != "t5x":
        return tokens, scores
    any_finished = np.asarray(hypotheses.finished).any(1)[:, None]
    tokens = np.where(any_finished[:, :, None], np.asarray(hypotheses.finished_tokens), tokens)
    return tokens, np.where(any_finished, np.asarray(hypotheses.finished_scores), scores)


def _penalty(settings, length):
    return ((5.0 + length) / 6.0) ** settings.alpha


def _sample(settings, logits, drawn):
    # likeliest first; the draw falls into one of the kept probabilities laid end to end
    probabilities = jax.nn.softmax(logits / settings.temperature, axis=-1)
    order = jnp.argsort(probabilities, axis=-1, descending=True, stable=True)
    probabilities = jnp.take_along_axis(probabilities, order, axis=-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = before < settings.top_p
    if settings.top_k:
        kept = kept & (jnp.arange(kept.shape[-1]) < settings.top_k)
    ends = (probabilities * kept).cumsum(-1)
    rank = (ends <= drawn * ends[:, -1:]).sum(-1, keepdims=True)
    rank = jnp.minimum(rank, kept.sum(-1, keepdims=True) - 1)
    return jnp.take_along_axis(order, rank, axis=1)
