"""Errors against what the network itself makes of rounding.

Behind a saturated softmax or a large norm scale, a rounding error grows so much that one measurement of the reference's
noise says little of another implementation's. So rows that are over their budget are judged once more, by how far the
float64 network moves when all of its intermediate results are moved by one rounding, up or down at random.

sides/perturbed.py has such a network for MT3 only. Gradients of YourMT3+ are judged once more by compare/training.py,
with the last bits of the weights changed, as those of MT3 are, too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from parity.compare.budget import FACTOR, FLOOR, measure, real_rows
from parity.compare.decoding import CACHED_TAPS
from parity.compare.results import THIRD, Measure, Row, over
from parity.compare.taps import GREW
from parity.sides.side import Side
from parity.trace.precision import EPSILON
from parity.trace.trace import Trace

# Random moves; the largest response counts.
DRAWS = 4
# Errors in float64 that are a larger share of a section's largest value are faults, however the network is conditioned.
LARGEST_SHARE = 1e-5
# What a network answers: name -> array.
Answers = dict[str, np.ndarray]


@dataclasses.dataclass
class Questions:
    """The inputs that sections of a report were compared on.

    Attributes:
        traced: of taps, logits and gradients.
        names, probes: of the probes: the name of each row of the batch, and the batch.
        decoded: of the decode path.
        lengths: precision -> positions of the decode path.
    """

    traced: dict[str, np.ndarray]
    names: list[str] = dataclasses.field(default_factory=list)
    probes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    decoded: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)


def excuse_ill_conditioned(
    rows: list[Row],
    exact: Callable[[], Side],
    perturbed: Callable[[Any, float, int], Side],
    questions: Questions,
    traces: tuple[Trace, Trace] | None,
) -> None:
    """Turn rows to 'same' whose error is within what rounding can make of it; none if a module alone is wrong.

    Args:
        rows: of a report.
        exact: makes the network.
        perturbed: makes one whose results are all off by a share of themselves, with a seed.
        questions: the inputs of the sections.
        traces: of both sides, where a tap differs: their modules' inputs.
    """
    largest: dict[str, float] = {}
    for row in rows:
        if row.free is not None:
            largest[row.section] = max(largest.get(row.section, 0.0), row.free.largest)
    doubtful = [row for row in rows if row.verdict == "different" and _can_be_rounding(row, largest)]
    if not doubtful or len(doubtful) < sum(row.verdict not in ("same", "skipped") for row in rows):
        return
    network = exact()
    sections = {
        "taps": lambda side, precision: _taps(side, questions.traced),
        "logits": lambda side, precision: _taps(side, questions.traced),
        THIRD: lambda side, precision: _taps(side, questions.traced),
        "probes": lambda side, precision: _probes(side, questions),
        "gradients": lambda side, precision: _gradients(side, questions.traced),
        "decode path": lambda side, precision: _decode_path(side, questions, precision),
    }
    for precision in sorted({row.precision for row in doubtful}, key=EPSILON.__getitem__):
        own = [row for row in doubtful if row.precision == precision]
        if any(row.section not in sections for row in own):
            return
        wrong_alone = [row for row in own if over(row.local)]
        if wrong_alone and traces is not None:
            calls = {row.name: traces[0].passes[precision].calls[row.name] for row in wrong_alone}
            targets = questions.traced["decoder_target_tokens"]

            def alone(side: Side, calls=calls, targets=targets) -> Answers:
                return {tap: real_rows(tap, array, targets) for tap, array in side.rerun(calls, "float64").items()}

            response = responses(network, perturbed, alone, precision)
            if not all(_is_explained(row.local, response.get(row.name), precision) for row in wrong_alone):
                return
        for section in dict.fromkeys(row.section for row in own):

            def ask(side: Side, section=section, precision=precision) -> Answers:
                return sections[section](side, precision)

            response = responses(network, perturbed, ask, precision)
            for row in own:
                if row.section == section and _is_explained(row.free, response.get(_answer(row)), precision):
                    row.verdict = "same"
                    row.note = f"{GREW}: the network moves as far when all of its results are off by one rounding"


def responses(
    network: Side, perturbed: Callable[[Any, float, int], Side], ask: Callable[[Side], Answers], precision: str
) -> dict[str, dict[str, float]]:
    """Return how far every answer of a network moves, by root mean square and at most, over DRAWS moves.

    Args:
        network: as it is.
        perturbed: makes one whose results are all off by a share of themselves, with a seed.
        ask: computes the answers of a network, in float64.
        precision: whose spacing of numbers at 1 is the share.
    """
    exact = ask(network)
    response = {name: {"rms": 0.0, "max": 0.0} for name in exact}
    for draw in range(DRAWS):
        for name, array in ask(perturbed(network, 2 * EPSILON[precision], draw)).items():
            error = measure(exact[name], array)
            for kind, value in (("rms", error.rms), ("max", error.max_abs)):
                response[name][kind] = max(response[name][kind], value)
    return response


def _can_be_rounding(row: Row, largest: dict[str, float]) -> bool:
    """Return whether both sides have finite values that are close in float64.

    Args:
        row: of a report.
        largest: section -> the largest value in it.
    """
    measures = [m for m in (row.free, row.local) if m is not None and over(m)]
    if not measures or any(not np.isfinite(m.max_abs) for m in measures):
        return False
    return row.precision != "float64" or all(m.max_abs <= LARGEST_SHARE * largest[row.section] for m in measures)


def _is_explained(error: Measure | None, response: dict[str, float] | None, precision: str) -> bool:
    """Return whether an error is none, or within the same multiples of the response as of the noise in a budget."""
    if not over(error):
        return True
    if error is None or response is None:
        return False
    errors = {"rms": (error.rms, error.size), "max": (error.max_abs, error.largest)}
    return all(
        value <= FACTOR[kind] * response[kind] + FLOOR[kind] * EPSILON[precision] * size
        for kind, (value, size) in errors.items()
    )


def _answer(row: Row) -> str:
    """Return the name of the answer that a row is about: of the decode path, the tap or the logits."""
    if row.section != "decode path":
        return row.name
    last = row.name.split()[-1]
    return last if last.startswith("decoder/") else "logits"


def _taps(side: Side, inputs: dict[str, np.ndarray]) -> Answers:
    targets = inputs["decoder_target_tokens"]
    logits, taps = side.observe(inputs, "float64", "")
    return {tap: real_rows(tap, array, targets) for tap, array in taps.items()} | {"logits": logits[targets > 0]}


def _probes(side: Side, questions: Questions) -> Answers:
    logits = side.logits(questions.probes, "float64")
    real = questions.probes["decoder_target_tokens"] > 0
    return {name: logits[index, real[index]] for index, name in enumerate(questions.names)}


def _gradients(side: Side, inputs: dict[str, np.ndarray]) -> Answers:
    loss, gradients = side.gradients(inputs, "float64")
    return {"loss": loss, **gradients}


def _decode_path(side: Side, questions: Questions, precision: str) -> Answers:
    length = questions.lengths[precision]
    cut = {name: array if name == "frames" else array[:, :length] for name, array in questions.decoded.items()}
    logits, taps = side.observe(cut, "float64", CACHED_TAPS)
    return {"logits": logits, **taps}
