"""The published code as a third side, to decide which of two twins is wrong.

The original itself (packages `mt3` and `t5x`, from git) runs on the same checkpoint and inputs, or a file has the
activations that it computed earlier, such as tests/golden/model/activations.npz.
"""

import numpy as np

from parity.compare.budget import judge, real_rows
from parity.compare.results import Row, over
from parity.sides.published import original_name, read_activations, run_original
from parity.sides.side import Side, labels
from parity.trace.trace import Trace


def vote(original: dict[str, np.ndarray], reference: Trace, candidate: Trace) -> list[Row]:
    """Compare both sides with every tap of the original, in execution order; a row names the sides that differ.

    Both sides are measured against the original. The budget is that of the reference's float32 rounding.

    Args:
        original: outputs by the original's names, with 'logits'.
        reference, candidate: traces made on the original's inputs.
    """
    exact, rough, other = reference.passes["float64"], reference.passes["float32"], candidate.passes["float32"]
    targets = reference.inputs["decoder_target_tokens"]
    rows = []
    for tap in [*exact.outputs, "logits"]:
        name = original_name(tap)
        if name not in original:
            continue
        truth, low = (run.logits if tap == "logits" else run.outputs[tap] for run in (exact, rough))
        tested = other.logits if tap == "logits" else other.outputs.get(tap)
        label = "decoder" if tap == "logits" else tap
        third = _reshaped(original[name], truth.shape)
        if third is None:
            note = f"the original has shape {original[name].shape}, the reference {truth.shape}"
            rows.append(Row("original", tap, "different", "float32", note=note))
            continue
        truth, low, third = (real_rows(label, array, targets) for array in (truth, low, third))
        error = judge(third, low, low - truth, "float32")
        names = labels(reference, candidate)
        wrong = [names[0]] if over(error) else []
        if (
            tested is None
            or tested.shape[-1:] != third.shape[-1:]
            or over(judge(third, real_rows(label, tested, targets), low - truth, "float32"))
        ):
            wrong.append(names[1])
        note = f"differs from the original: {' and '.join(wrong)}" if wrong else ""
        if len(wrong) == 2:
            note += " (both: is this the original's checkpoint?)"
        rows.append(Row("original", tap, "different" if wrong else "same", "float32", error, note=note))
    if not rows:
        rows.append(Row("original", "taps", "skipped", "float32", note="the original has none of our taps"))
    return rows


def _reshaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    # The original has (b, l, h, d) where the twins have (b, l, h * d).
    if array.shape == shape:
        return array
    if array.ndim == 4 and (*array.shape[:2], array.shape[2] * array.shape[3]) == shape:
        return array.reshape(shape)
    return None


def compare_with_original(source: str, reference: Side, candidate: Side, arrays: dict[str, np.ndarray], inputs: dict):
    """Run or read the original and return the rows of the vote; source is 't5x' or a file of activations."""
    from parity.sides import record

    if source == "t5x":
        original = run_original(arrays, reference.config, inputs)
    else:
        inputs, original = read_activations(source)
    trace = record.record(reference, inputs)
    return vote(original, trace, record.record(candidate, inputs, reference=trace))
