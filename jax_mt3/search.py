"""Search in JAX: how tokens are chosen from logits; torch_mt3/search.py is its twin."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, logsumexp, softmax

from jax_mt3.kernels import TOKEN_DTYPE, count_up, device_of, on_device, put, take_along, to_numpy, top_k
from jax_mt3.weights import Weights
from mt3_common.notes.vocabulary import EOS_ID
from mt3_common.transcription.batching import SearchSettings

# T5X's stand-in for minus infinity
NEG_INF = -1e7


class BeamState(NamedTuple):
    """State of the search in every row; scores are log probabilities, and the names are T5X's.

    Attributes:
        tokens: (b, n, max_steps) int, ids so far, without the start token; the best hypothesis is the last of n.
        scores: (b, n) float32.
        finished_tokens: (b, n, max_steps) int, hypotheses that ended ('t5x' only).
        finished_scores: (b, n) float32, divided by the length penalty.
        finished: (b, n) bool, true where finished_tokens has a hypothesis.
        uniforms: (b, max_steps) float32 in [0, 1), the draws of 'sample'.
        prompt_ids: (b, max_steps) int, ids to be chosen, 0 where the choice is free; (b, 0) if no row has a prompt.
        logit_bias: (b, vocab_size) float32, added to the logits; (b, 0) if no row has a prompt.
        program_logits: (b, max_steps, 128) float32, the logits of the programs at each step, with mask and bias, within
            the prompt as behind it; (b, max_steps, 0) if the settings have no first_program.
        done: (b,) bool.
    """

    tokens: jax.Array
    scores: jax.Array
    finished_tokens: jax.Array
    finished_scores: jax.Array
    finished: jax.Array
    uniforms: jax.Array
    prompt_ids: jax.Array
    logit_bias: jax.Array
    program_logits: jax.Array
    done: jax.Array


def empty_state(weights: Weights, settings: SearchSettings, num_rows: int, num_biased: int = 0) -> BeamState:
    """Return the state of rows that have not begun: they are done and without tokens.

    Args:
        num_biased: logits that have a bias: vocab_size where rows have prompts, else 0.
    """
    shape = (num_rows, settings.num_decodes)
    arrays = {
        "tokens": np.zeros((*shape, settings.max_steps), TOKEN_DTYPE),
        "scores": np.zeros(shape, np.float32),
        "finished_tokens": np.zeros((*shape, settings.max_steps), TOKEN_DTYPE),
        "finished_scores": np.full(shape, NEG_INF, np.float32),
        "finished": np.zeros(shape, bool),
        "uniforms": np.zeros((num_rows, settings.max_steps), np.float32),
        "prompt_ids": np.zeros((num_rows, settings.max_steps if num_biased else 0), TOKEN_DTYPE),
        "logit_bias": np.zeros((num_rows, num_biased), np.float32),
        "program_logits": np.zeros((num_rows, settings.max_steps, settings.num_recorded), np.float32),
        "done": np.ones(num_rows, bool),
    }
    device = device_of(weights.embedding)
    return BeamState(**{name: on_device(array, device, copy=True) for name, array in arrays.items()})


@functools.partial(jax.jit, donate_argnames="state")
def reset_rows(
    state: BeamState, rows: jax.Array, uniforms: jax.Array, prompt_ids: jax.Array, logit_bias: jax.Array
) -> BeamState:
    """Return the state with the given rows begun anew: only the first of n hypotheses is alive, as in T5X.

    Args:
        rows: (r,) int; JAX drops rows past the last.
        uniforms, prompt_ids, logit_bias: (r, …), see BeamState.
    """
    return BeamState(
        tokens=put(state.tokens, rows, 0),
        scores=put(put(state.scores, rows, NEG_INF), (rows, 0), 0.0),
        finished_tokens=put(state.finished_tokens, rows, 0),
        finished_scores=put(state.finished_scores, rows, NEG_INF),
        finished=put(state.finished, rows, False),
        uniforms=put(state.uniforms, rows, uniforms),
        prompt_ids=put(state.prompt_ids, rows, prompt_ids),
        logit_bias=put(state.logit_bias, rows, logit_bias),
        program_logits=state.program_logits,
        done=put(state.done, rows, False),
    )


def only_allowed(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """Return logits without refused tokens; allowed programs have the probability of refused ones, too.

    So that some program comes, rather than the end of a segment, is as likely as if none were refused.

    Args:
        logits: (b, n, vocab_size).
        allowed: (2, vocab_size) bool: the tokens that may be chosen; those of all programs.
    """
    tokens, programs = allowed
    all_programs = logsumexp(jnp.where(programs, logits, -jnp.inf), -1)
    allowed_programs = logsumexp(jnp.where(programs & tokens, logits, -jnp.inf), -1)
    # infinite where no program is allowed, and nothing then has it
    gain = (all_programs - allowed_programs)[..., None]
    return jnp.where(tokens, jnp.where(programs, logits + gain, logits), -jnp.inf)


def search_step(
    settings: SearchSettings,
    state: BeamState,
    age: jax.Array,
    logits: jax.Array,
    allowed: jax.Array | None = None,
) -> tuple[BeamState, jax.Array]:
    """Choose one more token for every row that is not done.

    Args:
        age: (b,) int, number of tokens chosen before, which is the index of the new one.
        logits: (b, n, vocab_size).
        allowed: see only_allowed; None for all tokens.

    Returns:
        (state, parents): parents (b, n) int is the old hypothesis that each new one continues.

    Source: T5X/decoding.py, beam_search, for 't5x'.
    """
    index = age.clip(max=settings.max_steps - 1)[:, None]
    if allowed is not None:
        logits = only_allowed(logits, allowed)
    free = logits
    if state.prompt_ids.shape[1]:
        prompt = take_along(state.prompt_ids, index, 1)[:, :, None]
        only = jnp.where(count_up(logits.shape[-1], logits) == prompt, 0.0, -jnp.inf)
        free = logits + state.logit_bias[:, None]
        logits = jnp.where(prompt > 0, only, free)
    logits = logits.astype(jnp.float32)
    log_probs = log_softmax(logits, -1)
    if settings.search == "t5x":
        return beam_step(settings, state, age, log_probs)
    if settings.search == "sample":
        token = sample(settings, logits[:, 0], take_along(state.uniforms, index, 1))
    else:
        token = log_probs[:, 0].argmax(-1)[:, None]
    live = ~state.done[:, None]
    gain = take_along(log_probs[:, 0], token, 1)
    written = jnp.where(live, token.astype(state.tokens.dtype), take_along(state.tokens[:, 0], index, 1))
    ended = (token[:, 0] == EOS_ID) | (age + 1 >= settings.max_steps)
    rows = count_up(len(age), age)
    if settings.first_program:
        end = settings.first_program + settings.num_recorded
        programs = free[:, 0, settings.first_program : end].astype(jnp.float32)
        recorded = jnp.where(live, programs, state.program_logits[rows, index[:, 0]])
        state = state._replace(program_logits=put(state.program_logits, (rows, index[:, 0]), recorded))
    state = state._replace(
        tokens=put(state.tokens, (rows, 0, index[:, 0]), written[:, 0]),
        scores=jnp.where(live, state.scores + gain, state.scores),
        done=state.done | ended,
    )
    return state, jnp.zeros_like(token)


def beam_step(
    settings: SearchSettings, state: BeamState, age: jax.Array, log_probs: jax.Array
) -> tuple[BeamState, jax.Array]:
    """Continue every hypothesis by T5X's beam search: log_probs (b, n, vocab_size); see search_step."""
    num_rows, num_decodes, vocab_size = log_probs.shape
    totals = (log_probs + state.scores[:, :, None]).reshape(num_rows, -1)
    top_scores, top = top_k(totals, 2 * num_decodes)
    parents, tokens = top // vocab_size, top % vocab_size
    rows = count_up(num_rows, age)[:, None]
    index = age.clip(max=settings.max_steps - 1)
    sequences = put(state.tokens[rows, parents], (rows[:, 0], slice(None), index), tokens.astype(state.tokens.dtype))
    ends = tokens == EOS_ID

    # the best hypotheses that have not ended go on; T5X keeps the best last
    live_scores, live = top_k(top_scores + ends * NEG_INF, num_decodes)
    live_scores, live = jnp.flip(live_scores, (1,)), jnp.flip(live, (1,))

    # hypotheses that end now compete with those that ended before
    penalised = top_scores / length_penalty(settings, age + 1)[:, None] + ~ends * NEG_INF
    all_scores = jnp.concatenate([state.finished_scores, penalised], 1)
    all_tokens = jnp.concatenate([state.finished_tokens, sequences], 1)
    finished_scores, finished = top_k(all_scores, num_decodes)
    finished_scores, finished = jnp.flip(finished_scores, (1,)), jnp.flip(finished, (1,))
    finished_flags = take_along(jnp.concatenate([state.finished, ends], 1), finished, 1)

    # the longest length has the weakest penalty: no live hypothesis can end better than this
    longest = jnp.full_like(live_scores[:, -1], settings.max_steps)
    bound = live_scores[:, -1] / length_penalty(settings, longest)
    worst = jnp.where(finished_flags.any(1), jnp.amin(finished_scores, 1), NEG_INF)
    ended = (worst > bound) | (age + 1 >= settings.max_steps)

    def unless_done(new, old):
        return jnp.where(state.done.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    new_state = state._replace(
        tokens=unless_done(sequences[rows, live], state.tokens),
        scores=unless_done(live_scores, state.scores),
        finished_tokens=unless_done(all_tokens[rows, finished], state.finished_tokens),
        finished_scores=unless_done(finished_scores, state.finished_scores),
        finished=unless_done(finished_flags, state.finished),
        done=state.done | ended,
    )
    return new_state, take_along(parents, live, 1)


def finalize(settings: SearchSettings, state: BeamState) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens (b, n, max_steps), scores (b, n)) of rows that are done, the best hypothesis last.

    For 't5x' these are the finished hypotheses, or the live ones of a row in which none finished, as in T5X.
    """
    tokens, scores = to_numpy(state.tokens), to_numpy(state.scores)
    if settings.search != "t5x":
        return tokens, scores
    any_finished = to_numpy(state.finished).any(1)[:, None]
    tokens = np.where(any_finished[:, :, None], to_numpy(state.finished_tokens), tokens)
    return tokens, np.where(any_finished, to_numpy(state.finished_scores), scores)


def length_penalty(settings: SearchSettings, length: jax.Array) -> jax.Array:
    """Return T5X's divisor of the log probability of hypotheses of length tokens."""
    return ((5.0 + length) / 6.0) ** settings.alpha


def sample(settings: SearchSettings, logits: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Draw a token a row: logits (b, vocab_size) float32, uniforms (b, 1) in [0, 1) -> (b, 1) ids.

    The tokens that top_k and top_p leave are laid end to end, likeliest first, each as long as its probability; the
    uniform draw falls into one of them.
    """
    probabilities = softmax(logits / settings.temperature, -1)
    order = jnp.argsort(probabilities, descending=True, stable=True)
    probabilities = take_along(probabilities, order, 1)
    eligible = probabilities.cumsum(-1) - probabilities < settings.top_p
    if settings.top_k:
        eligible = eligible & (count_up(eligible.shape[-1], eligible) < settings.top_k)
    ends = (probabilities * eligible).cumsum(-1)
    rank = (ends <= uniforms * ends[:, -1:]).sum(-1)[:, None]
    rank = jnp.minimum(rank, eligible.sum(-1)[:, None] - 1)
    return take_along(order, rank, 1)
