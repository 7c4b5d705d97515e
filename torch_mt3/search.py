"""Search in PyTorch: how tokens are chosen from logits; jax_mt3/search.py is its twin."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from mt3_common.notes.vocabulary import EOS_ID
from mt3_common.transcription.batching import SearchSettings
from torch_mt3.weights import Weights

# T5X's stand-in for minus infinity
NEG_INF = -1e7


class Hypotheses(NamedTuple):
    """Where the search of every row stands; scores are log probabilities, after T5X's names.

    Attributes:
        tokens: (b, n, max_steps) int64, ids so far, without the start token; the best is the last of n.
        scores: (b, n) float32.
        finished_tokens: (b, n, max_steps) int64, hypotheses that ended ('t5x' only).
        finished_scores: (b, n) float32, divided by the length penalty.
        finished: (b, n) bool, which of those exist.
        uniforms: (b, max_steps) float32, what 'sample' draws.
        forced: (b, max_steps) int32, ids to be chosen, 0 where the choice is free; (b, 0) if it always is.
        bias: (b, vocab_size) float32, added to the logits; (b, 0) likewise.
        done: (b,) bool.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    finished_tokens: torch.Tensor
    finished_scores: torch.Tensor
    finished: torch.Tensor
    uniforms: torch.Tensor
    forced: torch.Tensor
    bias: torch.Tensor
    done: torch.Tensor


def empty_hypotheses(weights: Weights, settings: SearchSettings, num_rows: int, num_biased: int = 0) -> Hypotheses:
    """Hypotheses of rows that have not begun: done, and without tokens; num_biased logits are biased, all or none."""
    device = weights.embedding.device
    shape = (num_rows, settings.num_decodes)
    return Hypotheses(
        tokens=torch.zeros((*shape, settings.max_steps), dtype=torch.int64, device=device),
        scores=torch.zeros(shape, device=device),
        finished_tokens=torch.zeros((*shape, settings.max_steps), dtype=torch.int64, device=device),
        finished_scores=torch.full(shape, NEG_INF, device=device),
        finished=torch.zeros(shape, dtype=torch.bool, device=device),
        uniforms=torch.zeros((num_rows, settings.max_steps), device=device),
        forced=torch.zeros((num_rows, settings.max_steps if num_biased else 0), dtype=torch.int64, device=device),
        bias=torch.zeros((num_rows, num_biased), device=device),
        done=torch.ones(num_rows, dtype=torch.bool, device=device),
    )


def begin(
    hypotheses: Hypotheses, rows: list[int], uniforms: torch.Tensor, forced: torch.Tensor, bias: torch.Tensor
) -> Hypotheses:
    """The hypotheses with the given rows begun anew: only the first of n is alive, as in T5X."""
    index = torch.tensor(rows, device=hypotheses.done.device)
    hypotheses.tokens[index] = 0
    hypotheses.scores[index] = NEG_INF
    hypotheses.scores[index, 0] = 0.0
    hypotheses.finished_tokens[index] = 0
    hypotheses.finished_scores[index] = NEG_INF
    hypotheses.finished[index] = False
    hypotheses.uniforms[index] = uniforms
    hypotheses.forced[index] = forced
    hypotheses.bias[index] = bias
    hypotheses.done[index] = False
    return hypotheses


def choose(
    settings: SearchSettings,
    hypotheses: Hypotheses,
    age: torch.Tensor,
    logits: torch.Tensor,
    allowed: torch.Tensor | None = None,
):
    """The hypotheses after one more token, and which old hypothesis each new one continues.

    Args:
        age: (b,) tokens that were chosen before, that is the place of the new one.
        logits: (b, n, vocab_size).
        allowed: (vocab_size,) bool, tokens that may be chosen, as if the others did not exist; None for all.

    Returns:
        (hypotheses, (b, n) int64 parents).

    Source: T5X/decoding.py, beam_search, for 't5x'.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if hypotheses.forced.shape[1]:
        place = age.clamp(max=settings.max_steps - 1)[:, None]
        forced = hypotheses.forced.gather(1, place)[:, :, None]
        only = torch.where(torch.arange(logits.shape[-1], device=age.device) == forced, 0.0, -torch.inf)
        logits = torch.where(forced > 0, only, logits + hypotheses.bias[:, None])
    log_probs = F.log_softmax(logits.float(), dim=-1)
    if settings.search == "t5x":
        return _choose_t5x(settings, hypotheses, age, log_probs)
    if settings.search == "sample":
        drawn = hypotheses.uniforms.gather(1, age.clamp(max=settings.max_steps - 1)[:, None])
        token = _sample(settings, logits[:, 0].float(), drawn)
    else:
        token = log_probs[:, 0].argmax(dim=-1, keepdim=True)
    live = ~hypotheses.done
    gain = log_probs[:, 0].gather(1, token)
    place = age.clamp(max=settings.max_steps - 1)
    rows = torch.arange(len(age), device=age.device)
    hypotheses.tokens[rows, 0, place] = torch.where(live, token[:, 0], hypotheses.tokens[rows, 0, place])
    ended = (token[:, 0] == EOS_ID) | (age + 1 >= settings.max_steps)
    chosen = hypotheses._replace(
        scores=torch.where(live[:, None], hypotheses.scores + gain, hypotheses.scores), done=hypotheses.done | ended
    )
    return chosen, torch.zeros_like(token)


def _choose_t5x(settings, hypotheses, age, log_probs):
    num_rows, num_decodes, vocab_size = log_probs.shape
    totals = (log_probs + hypotheses.scores[:, :, None]).flatten(1)
    top_scores, top = totals.topk(2 * num_decodes, dim=1)
    parents, tokens = top // vocab_size, top % vocab_size
    rows = torch.arange(num_rows, device=age.device)[:, None]
    sequences = hypotheses.tokens[rows, parents]
    place = age.clamp(max=settings.max_steps - 1)
    sequences[rows[:, 0], :, place] = tokens
    ends = tokens == EOS_ID

    # the best that have not ended go on; T5X keeps the best last
    live_scores, live = (top_scores + ends * NEG_INF).topk(num_decodes, dim=1)
    live_scores, live = live_scores.flip(1), live.flip(1)

    # those that have ended compete with those that ended before
    penalised = top_scores / _penalty(settings, age + 1)[:, None] + ~ends * NEG_INF
    all_scores = torch.cat([hypotheses.finished_scores, penalised], dim=1)
    all_tokens = torch.cat([hypotheses.finished_tokens, sequences], dim=1)
    finished_scores, finished = all_scores.topk(num_decodes, dim=1)
    finished_scores, finished = finished_scores.flip(1), finished.flip(1)
    finished_flags = torch.cat([hypotheses.finished, ends], dim=1).gather(1, finished)

    # the longest length has the weakest penalty: no live hypothesis can end better than this
    bound = live_scores[:, -1] / _penalty(settings, torch.tensor(float(settings.max_steps)))
    worst = torch.where(finished_flags.any(1), finished_scores.amin(1), NEG_INF)
    ended = (worst > bound) | (age + 1 >= settings.max_steps)

    def kept(new, old):
        return torch.where(hypotheses.done.reshape(-1, *[1] * (new.dim() - 1)), old, new)

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
    return chosen, parents.gather(1, live)


def best(settings: SearchSettings, hypotheses: Hypotheses) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (b, n, max_steps), scores (b, n)) of rows that are done, the best last.

    For 't5x' the finished ones, or the live ones of a row where none finished, as in T5X.
    """
    if settings.search != "t5x":
        return hypotheses.tokens, hypotheses.scores
    any_finished = hypotheses.finished.any(1)[:, None]
    tokens = torch.where(any_finished[:, :, None], hypotheses.finished_tokens, hypotheses.tokens)
    return tokens, torch.where(any_finished, hypotheses.finished_scores, hypotheses.scores)


def _penalty(settings, length):
    return ((5.0 + length) / 6.0) ** settings.alpha


def _sample(settings, logits, drawn):
    # likeliest first; the draw falls into one of the kept probabilities laid end to end
    probabilities, order = F.softmax(logits / settings.temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = before < settings.top_p
    if settings.top_k:
        kept[:, settings.top_k :] = False
    ends = (probabilities * kept).cumsum(-1)
    rank = (ends <= drawn * ends[:, -1:]).sum(-1, keepdim=True)
    rank = rank.minimum(kept.sum(-1, keepdim=True) - 1)
    return order.gather(1, rank)
