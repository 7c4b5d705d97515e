"""The order in which segments share a running batch: a row that ends makes room for the next segment.

Framework-free: the twins' decode.py bring the batch, this module fills and empties it.
"""

import concurrent.futures
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.config import Range, check_fields
from mt3_common.notes.vocabulary import EOS_ID, NUM_PROGRAMS

# a smaller batch has so many times fewer rows
FEWER = 4
# temperature and top_p at least: further down float32 has only 0 and infinity
LEAST = 1e-6
# far beyond what a wider beam is good for, and few enough that memory is a matter of the batch
MOST_BEAMS = 64


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Settings of how tokens are chosen.

    Attributes:
        search: 'greedy'; 't5x' for T5X's beam search, which with one beam is not greedy (an EOS ranked second may end
            the segment) and is what the published MT3 uses; or 'sample'.
        num_decodes: beams of 't5x', up to MOST_BEAMS.
        alpha: 't5x' divides a hypothesis' log probability by ((5 + length) / 6) ** alpha.
        max_steps: tokens at most, EOS included.
        temperature: 'sample' divides the logits by it.
        top_k: 'sample' keeps that many of the likeliest tokens; 0 keeps all.
        top_p: 'sample' keeps the likeliest tokens until their probabilities reach it; 1.0 keeps all.
        seed: 'sample' draws from it; a segment's draws depend on the seed and its index alone, and both twins draw the
            same numbers.
        first_program: id of program 0, where 'greedy' records the logits of the 128 programs at every step, so that
            segments come out as SegmentTokens; 0 to record none.
        activations: whether the pre-encoder's activations come out beside the ids, as SegmentTokens.

    Raises:
        ValueError: a setting is out of range, or two of them contradict each other.

    Source: T5X/decoding.py, beam_search; T5X/models.py, DecoderParams.
    """

    search: str = "greedy"
    num_decodes: int = 1
    alpha: float = 0.6
    max_steps: int = 1024
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    first_program: int = 0
    activations: bool = False

    def __post_init__(self):
        if isinstance(self.temperature, (int, float)) and not self.temperature >= LEAST:
            raise ValueError(
                f"temperature must be above 0, at least {LEAST:g}, not {self.temperature}; search 'greedy' is its limit"
            )
        ranges = {
            "alpha": Range(-math.inf),
            "num_decodes": Range(1, MOST_BEAMS, closed=True),
            "top_k": Range(0),
            "top_p": Range(LEAST, 1, closed=True),
            "seed": Range(0, 2**64),
            "first_program": Range(0),
        }
        check_fields(self, ranges, {"search": ("greedy", "t5x", "sample")})
        if self.num_decodes > 1 and self.search != "t5x":
            raise ValueError(f"{self.num_decodes} beams need search 't5x'; {self.search!r} follows one")
        if self.first_program and self.search != "greedy":
            raise ValueError(f"logits of programs are recorded by search 'greedy', not by {self.search!r}")

    @property
    def num_recorded(self) -> int:
        """Count the logits that are recorded at every step."""
        return NUM_PROGRAMS if self.first_program else 0

    def uniforms(self, index: int) -> np.ndarray:
        """The numbers that 'sample' draws for segment index: (max_steps,) float32 in [0, 1); zeros otherwise."""
        if self.search != "sample":
            return np.zeros(self.max_steps, np.float32)
        bits = np.random.Philox(key=np.array([self.seed, index], np.uint64))
        return np.random.Generator(bits).random(self.max_steps, dtype=np.float32)


class PromptedSegment(NamedTuple):
    """A segment whose first tokens are given.

    Attributes:
        segment: its frames and index.
        prompt_ids: (n,) int32, the ids that its tokens begin with, whatever the network would choose; n <= max_steps.
        logit_bias: (vocab_size,) float32, added to the logits of every token behind the prompt.
    """

    segment: Segment
    prompt_ids: np.ndarray
    logit_bias: np.ndarray


class SegmentTokens(NamedTuple):
    """The tokens of a segment, with what the network thought of other instruments, and heard of each pitch.

    Attributes:
        ids: (n,) int32, up to and including EOS, or as many as a segment may have.
        program_logits: (k, 128) float32, of the programs at each of the k program tokens among ids, in order, with mask
            and bias; -inf for one that may not be chosen. Of a token of the prompt, too, they say what the network
            thought. None where they were not recorded.
        activations: (f, PITCH_ROWS, 2) float32, for each frame that the network was given and each pitch of the
            pre-encoder the probabilities that it sounds, and that it begins. None for a network without a pre-encoder,
            or where nobody asked.
    """

    ids: np.ndarray
    program_logits: np.ndarray | None = None
    activations: np.ndarray | None = None


def with_programs(allowed: np.ndarray | None, first_program: int) -> np.ndarray | None:
    """Return the mask that a search takes: tokens that may be chosen, and those of all programs, (2, vocab_size) bool.

    Args:
        allowed: (vocab_size,) bool, tokens that may be chosen. None, for all, stays None.
        first_program: id of program 0.
    """
    if allowed is None:
        return None
    ids = np.arange(len(allowed))
    return np.stack([allowed, (ids >= first_program) & (ids < first_program + NUM_PROGRAMS)])


def program_positions(ids: np.ndarray, first_program: int) -> np.ndarray:
    """Return the indices of the program tokens among ids (n,): (k,) int64."""
    return np.flatnonzero((ids >= first_program) & (ids < first_program + NUM_PROGRAMS))


class RunningBatch(Protocol):
    """Rows that are decoded side by side, as each framework implements them."""

    num_rows: int

    def prefill(
        self,
        rows: list[int],
        segments: list[np.ndarray],
        uniforms: list[np.ndarray],
        prompts: list[PromptedSegment] | None = None,
    ) -> list[np.ndarray]:
        """Begin segments (heard_frames, mel bins) in the given rows, with their prompts if the batch has prompts.

        Returns:
            The pitch activations of each segment, see SegmentTokens, where the settings ask for them; else none.
        """
        ...

    def advance(self) -> np.ndarray:
        """Run some steps; return (num_rows,) bool, true for rows that have ended (or never began)."""
        ...

    def collect(self, rows: list[int]) -> list[np.ndarray]:
        """Return the token ids of ended rows, best hypothesis, each as long as the search left it."""
        ...

    def program_logits(self, rows: list[int]) -> list[np.ndarray]:
        """Return the logits (max_steps, 128) that were recorded of ended rows; see SearchSettings.first_program."""
        ...

    def compact(self, rows: list[int]) -> None:
        """Drop all rows but the given ones, which stay in this order; the others have ended."""
        ...


class TwoThreadBatch:
    """Rows in two RunningBatches, each with a thread of its own: a RunningBatch.

    One half multiplies matrices, which takes the processor's time, while the other reads keys and values, which takes
    the memory's. Neighbouring rows lie in different halves.

    Args:
        make_batch: called with a number of rows, returns a RunningBatch.
        num_rows: of both halves, 2 or more.
        initialize: called first in each of the two threads.

    Attributes:
        halves: the two batches.
    """

    def __init__(self, make_batch: Callable[[int], RunningBatch], num_rows: int, initialize: Callable[[], None]):
        self.num_rows = num_rows
        self._threads = concurrent.futures.ThreadPoolExecutor(2, initializer=initialize)
        self.halves = list(self._threads.map(make_batch, ((num_rows + 1) // 2, num_rows // 2)))
        # of each row: the number of its half, and its row there
        self._halves_and_rows = [(row % 2, row // 2) for row in range(num_rows)]

    def _in_both(self, work: Callable[[int, RunningBatch], Any]) -> list[Any]:
        """Return what work returns for each half; the threads work side by side."""
        return list(self._threads.map(work, range(2), self.halves))

    def _split(self, rows: list[int]) -> list[list[int]]:
        """Return for each half the indices in the list of the rows that lie in it."""
        return [[i for i, row in enumerate(rows) if self._halves_and_rows[row][0] == half] for half in range(2)]

    def prefill(
        self,
        rows: list[int],
        segments: list[np.ndarray],
        uniforms: list[np.ndarray],
        prompts: list[PromptedSegment] | None = None,
    ) -> list[np.ndarray]:
        """See RunningBatch.prefill."""
        split = self._split(rows)

        def prefill(half: int, batch: RunningBatch) -> list[np.ndarray]:
            indices = split[half]
            if not indices:
                return []
            half_rows = [self._halves_and_rows[rows[i]][1] for i in indices]
            arrays, numbers = [segments[i] for i in indices], [uniforms[i] for i in indices]
            return batch.prefill(half_rows, arrays, numbers, [prompts[i] for i in indices] if prompts else None)

        activations: dict[int, np.ndarray] = {}
        for indices, of_half in zip(split, self._in_both(prefill), strict=True):
            activations |= zip(indices, of_half)
        return [activations[i] for i in sorted(activations)]

    def advance(self) -> np.ndarray:
        """See RunningBatch.advance."""
        done = self._in_both(lambda half, batch: batch.advance())
        return np.array([done[half][row] for half, row in self._halves_and_rows])

    def collect(self, rows: list[int]) -> list[np.ndarray]:
        """See RunningBatch.collect."""
        return self._of_rows(rows, lambda batch, half_rows: batch.collect(half_rows))

    def program_logits(self, rows: list[int]) -> list[np.ndarray]:
        """See RunningBatch.program_logits."""
        return self._of_rows(rows, lambda batch, half_rows: batch.program_logits(half_rows))

    def _of_rows(
        self, rows: list[int], results_of: Callable[[RunningBatch, list[int]], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """Return the result of each row, which results_of returns for rows of one half."""
        results: dict[int, np.ndarray] = {}
        for batch, indices in zip(self.halves, self._split(rows), strict=True):
            if indices:
                half_rows = [self._halves_and_rows[rows[i]][1] for i in indices]
                results |= zip(indices, results_of(batch, half_rows), strict=True)
        return [results[i] for i in range(len(rows))]

    def compact(self, rows: list[int]) -> None:
        """See RunningBatch.compact."""
        compacted: dict[int, tuple[int, int]] = {}
        for half, (batch, indices) in enumerate(zip(self.halves, self._split(rows), strict=True)):
            # a half without rows keeps one that has ended
            batch.compact([self._halves_and_rows[rows[i]][1] for i in indices] or [0])
            compacted |= {i: (half, row) for row, i in enumerate(indices)}
        self.num_rows = len(rows)
        self._halves_and_rows = [compacted[i] for i in range(len(rows))]


def batch_size_for(num_rows: int, needed: int) -> int:
    """Return the smallest of num_rows, num_rows / 4, num_rows / 16, … that is at least `needed` (1 or more)."""
    while num_rows // FEWER >= needed:
        num_rows //= FEWER
    return num_rows


def until_eos(ids: np.ndarray) -> np.ndarray:
    """ids (n,) up to and including the first EOS, all of them where there is none."""
    ends = np.flatnonzero(ids == EOS_ID)
    return ids[: ends[0] + 1] if len(ends) else ids


def decode_continuously(
    make_batch: Callable[[int], RunningBatch],
    segments: Iterable[np.ndarray | Segment | PromptedSegment | None],
    settings: SearchSettings,
    batch_size: int,
) -> Iterator[Any]:
    """Token ids of each segment, in the segments' order, whatever order they end in.

    Segments are taken from the iterable only when a row is free, and an ended segment waits only for those before it;
    so memory does not grow with the recording. The result does not depend on how fast segments arrive. Where few may
    begin at a time, as when each needs the ids of the one before, a smaller batch takes them.

    Args:
        make_batch: called with a number of rows, returns a RunningBatch.
        segments: (heard_frames, mel bins) float32 each; or Segments, of several recordings one after the other, of
            which each is numbered by its own index; or all PromptedSegments, and None where the next one
            needs ids that have not come out yet.
        batch_size: rows at most.

    Yields:
        (n,) int32 ids up to and including EOS, or max_steps of them; SegmentTokens where the settings have a
        first_program or activations.
    """
    arriving = iter(segments)
    numbers = itertools.count()
    exhausted = False

    def arrived(at_most: int) -> list[tuple[int, np.ndarray | Segment | PromptedSegment]]:
        nonlocal exhausted
        arrivals: list[tuple[int, np.ndarray | Segment | PromptedSegment]] = []
        for segment in itertools.islice(arriving, at_most):
            if segment is None:
                return arrivals
            arrivals.append((next(numbers), segment))
        exhausted = len(arrivals) < at_most
        return arrivals

    waiting = arrived(batch_size)
    # held segments: there are never more at once than in the beginning
    batch_size = len(waiting)
    if not waiting:
        return
    size = batch_size_for(batch_size, batch_size)
    batch = make_batch(size)
    batches = {size: batch}
    in_row: dict[int, int] = {}
    ended: dict[int, np.ndarray | SegmentTokens] = {}
    activations: dict[int, np.ndarray] = {}
    next_out = 0
    while waiting or in_row:
        if not in_row:
            size = batch_size_for(batch_size, len(waiting))
            batch = batches[size] = batches.get(size) or make_batch(size)
        # those that a smaller batch has no room for wait until it is empty
        if waiting and len(waiting) <= batch.num_rows - len(in_row):
            free = [row for row in range(batch.num_rows) if row not in in_row][: len(waiting)]
            prompts = [segment for _, segment in waiting if isinstance(segment, PromptedSegment)]
            plain = [(number, s.segment if isinstance(s, PromptedSegment) else s) for number, s in waiting]
            known = [(s.heard, s.index) if isinstance(s, Segment) else (s, number) for number, s in plain]
            uniforms = [settings.uniforms(index) for _, index in known]
            arrays = [frames for frames, _ in known]
            heard = batch.prefill(free, arrays, uniforms, prompts or None)
            started = [number for number, _ in waiting]
            in_row.update(zip(free, started, strict=True))
            if heard:
                activations.update(zip(started, heard, strict=True))
            waiting = []
        done = batch.advance()
        rows = [row for row in in_row if done[row]]
        ids_of_rows = [until_eos(ids) for ids in batch.collect(rows)] if rows else []
        tokens: list[Any] = ids_of_rows
        if settings.first_program and rows:
            first = settings.first_program
            tokens = [
                SegmentTokens(ids, logits[program_positions(ids, first)].astype(np.float32))
                for ids, logits in zip(ids_of_rows, batch.program_logits(rows), strict=True)
            ]
        elif settings.activations:
            tokens = [SegmentTokens(ids) for ids in ids_of_rows]
        for row, token in zip(rows, tokens, strict=True):
            number = in_row.pop(row)
            ended[number] = token if number not in activations else token._replace(activations=activations.pop(number))
        while next_out in ended:
            yield ended.pop(next_out)
            next_out += 1
        num_free = batch_size - len(in_row) - len(waiting)
        # encoding a few segments together costs less than one by one
        if not exhausted and num_free >= max(1, batch_size // 16):
            waiting += arrived(num_free)
        if exhausted and not waiting and 0 < len(in_row) <= batch.num_rows // 2:
            live = sorted(in_row)
            batch.compact(live)
            in_row = {new: in_row[old] for new, old in enumerate(live)}
