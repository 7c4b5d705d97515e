"""Choices of experts, compared as choices: which experts a token takes, and whether a difference is a tie.

Two experts of nearly one probability are chosen by rounding. A token that takes another expert has another output, by
far more than any budget, and so has everything behind it: float32 says nothing there, and float64 decides.
"""

import numpy as np

from mt3_common.io.plural import plural
from mt3_common.yourmt3_config import YourMT3Config
from parity.compare.results import Report, Row
from parity.trace.trace import Pass, Trace

# how many times the reference's own noise counts as an excuse, as in compare/decoding.py
ALLOWED = 8
# experts that a token takes in a T5 stack
T5_EXPERTS = 2


def routers(outputs: dict[str, np.ndarray]) -> list[str]:
    """Return the taps of the routers of mixtures of experts, in execution order."""
    return [tap for tap in outputs if tap.endswith("/gate") and f"{tap.removesuffix('gate')}experts_0" in outputs]


def experts_taken(tap: str, network: YourMT3Config) -> int:
    """Return the number of experts that a token takes behind a router."""
    return network.perceiver.experts_per_token if tap.endswith("mlp/gate") else T5_EXPERTS


def chosen_experts(logits: np.ndarray, count: int) -> np.ndarray:
    """Return the experts of each token, the best first: (…, experts) -> (tokens, count)."""
    rows = logits.reshape(-1, logits.shape[-1])
    return np.argsort(-rows, axis=-1, kind="stable")[:, :count]


def margins(logits: np.ndarray, count: int) -> np.ndarray:
    """Return the distance of the last expert that is taken to the next one: (…, experts) -> (tokens,)."""
    rows = np.sort(logits.reshape(-1, logits.shape[-1]), axis=-1)[:, ::-1]
    return rows[:, count - 1] - rows[:, count] if rows.shape[1] > count else np.full(len(rows), np.inf)


def compare_routing(reference: Trace, candidate: Trace, network: YourMT3Config) -> list[Row]:
    """Compare the experts of every token in every precision: a row per router, which says the smallest margin.

    A difference is a tie if the float64 margin of the last expert taken to the next is within the noise of the logits.
    """
    truth = reference.passes["float64"].outputs
    rows = []
    for precision, run in reference.passes.items():
        other = candidate.passes[precision].outputs
        for tap in routers(run.outputs):
            if tap not in other or other[tap].shape != run.outputs[tap].shape:
                note = "no router, or of another shape"
                rows.append(Row("routing", tap, "different", precision, note=note))
                continue
            arrays = truth[tap], run.outputs[tap], other[tap]
            rows.append(_judge(tap, precision, arrays, experts_taken(tap, network)))
    return rows


def _judge(tap: str, precision: str, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], count: int) -> Row:
    exact, own, other = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in arrays)
    sides = [np.sort(chosen_experts(array, count), axis=-1) for array in (own, other)]
    margin = margins(exact, count)
    differing = np.flatnonzero((sides[0] != sides[1]).any(axis=-1))
    noise = [float(np.abs(array - exact).max()) for array in (own, other)]
    # a wrong candidate has any amount of noise
    allowed = 2 * min(max(noise), ALLOWED * max(noise[0], np.spacing(np.abs(exact).max())))
    real = [token for token in differing if not margin[token] <= allowed]
    note = f"{len(exact) - len(differing)} of {plural(len(exact), 'token')} take the same {plural(count, 'expert')}"
    note += f"; smallest margin to the next {margin.min():.2g}"
    if len(differing):
        token = int(real[0] if real else differing[0])
        note += f"; {plural(len(differing) - len(real), 'tie')}, {len(real)} real; first token {token}: experts "
        note += f"{_listed(sides[0][token])} against {_listed(sides[1][token])}, margin {margin[token]:.2g}"
    return Row("routing", tap, "different" if real else "same", precision, note=note)


def _listed(experts: np.ndarray) -> str:
    return ", ".join(str(int(expert)) for expert in experts)


def flipped(reference: Trace, candidate: Trace, precision: str, network: YourMT3Config) -> str | None:
    """Return the first router of a pass that chose otherwise than in float64, on either side or alone; None if none."""
    truth, run, other = reference.passes["float64"], reference.passes[precision], candidate.passes[precision]
    for tap in routers(truth.outputs):
        count = experts_taken(tap, network)
        # on each side's own inputs, then on the inputs of this pass of the reference alone
        groups = (truth.outputs, run.outputs, other.outputs), (run.outputs, run.exact, other.local)
        for group in groups:
            sets = [np.sort(chosen_experts(outputs[tap], count), axis=-1) for outputs in group if tap in outputs]
            if any(choice.shape == sets[0].shape and (choice != sets[0]).any() for choice in sets[1:]):
                return tap
    return None


def excuse_ties(report: Report, reference: Trace, candidate: Trace, network: YourMT3Config) -> None:
    """Turn rows of a lower precision behind a tie of experts to 'same', where float64 is the same throughout.

    Args:
        report: with rows of weights, taps, logits and routing.
    """
    bad = [row for row in report.rows if row.verdict != "same"]
    if any(row.precision in ("", "float64") or row.section not in ("taps", "logits") for row in bad):
        return
    for precision in {row.precision for row in bad}:
        tap = flipped(reference, candidate, precision, network)
        if tap is None:
            continue
        behind = _behind(reference.passes[precision], tap)
        for row in bad:
            if row.precision == precision and (row.section == "logits" or row.name in behind):
                row.verdict = "same"
                row.note = f"behind a tie of experts at {tap}: in float64 everything is within its budget"


def _behind(run: Pass, tap: str) -> set[str]:
    """Return the taps that ran after a router, and the modules around it."""
    order = list(run.outputs)
    return set(order[order.index(tap) + 1 :])
