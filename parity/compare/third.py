"""ONNX Runtime as a third side: every module's output against both twins, a vote on who is wrong, tokens and notes."""

import dataclasses
from typing import TYPE_CHECKING, cast

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.config import Config
from mt3_common.yourmt3_config import YourMT3Config
from parity.compare.budget import judge, real_rows
from parity.compare.channels import compare_channel_notes, compare_channels
from parity.compare.decoding import compare_notes, compare_tokens
from parity.compare.results import THIRD, Measure, Report, Row, over
from parity.compare.routing import flipped
from parity.sides.side import Side, YourMT3Side, labels
from parity.trace.precision import EPSILON
from parity.trace.trace import Trace

if TYPE_CHECKING:
    from parity.sides.onnx_graphs import OnnxGraphs
    from parity.sides.onnx_yourmt3 import YourMT3Graphs

# Rounding of ONNX Runtime beside a twin's, in budgets of the twins: its exp and tanh are its own. Measured: up to 0.87
# budgets in float64 and 0.51 in float32 on the bundled model (make parity).
OWN_ROUNDING = 2.0


def compare_taps_with_third(graphs: "OnnxGraphs", traces: tuple[Trace, Trace]) -> list[Row]:
    """Compare every tap of the graphs with both twins', in execution order; each row says who stands alone.

    Float64 comes first. The first row that differs is where the fault is: later ones may inherit it.

    Args:
        graphs: of the checkpoint that the traces were made with.
        traces: of the reference and the candidate, on the same inputs.
    """
    rows: list[Row] = []
    for precision in ("float64", "float32"):
        if precision in traces[0].passes and "float32" in traces[0].passes:
            rows += _compare_pass(graphs.outputs(traces[0].inputs, precision), traces, precision)
    if not rows:
        rows.append(Row(THIRD, "taps", "skipped", note="float64 and float32 are needed"))
    return rows


def _compare_pass(third: dict[str, np.ndarray], traces: tuple[Trace, Trace], precision: str) -> list[Row]:
    """Compare the outputs of a pass of the graphs with both twins'."""
    reference, candidate = traces
    rows: list[Row] = []
    exact, rough = reference.passes["float64"], reference.passes["float32"]
    scale = EPSILON[precision] / EPSILON["float32"]
    passes = reference.passes[precision], candidate.passes[precision]
    last = "the inputs"
    for tap, output in third.items():
        values = [run.logits if tap == "logits" else run.outputs.get(tap) for run in passes]
        truth, low = (run.logits if tap == "logits" else run.outputs.get(tap) for run in (exact, rough))
        if truth is None or low is None or any(value is None or value.shape != output.shape for value in values):
            rows.append(Row(THIRD, tap, "different", precision, note="a twin has no such output of this shape"))
            continue
        label = "decoder" if tap == "logits" else tap
        targets = reference.inputs.get("decoder_target_tokens")
        truth, low, output, first, second = (
            real_rows(label, array, targets) for array in (truth, low, output, *cast(list[np.ndarray], values))
        )
        noise = (low - truth) * scale
        allowance = noise * OWN_ROUNDING
        errors = [judge(output, first, allowance, precision), judge(output, second, allowance, precision)]
        wrong = standing_alone(*labels(reference, candidate), errors, over(judge(first, second, noise, precision)))
        worst = max(errors, key=lambda error: np.inf if error.ratio is None else error.ratio)
        note = f"{wrong} stands alone; equal up to {last}" if wrong else ""
        rows.append(Row(THIRD, tap, "different" if wrong else "same", precision, worst, note=note))
        last = last if wrong else tap
    return rows


def compare_yourmt3_taps_with_third(
    graphs: "YourMT3Graphs", traces: tuple[Trace, Trace], network: YourMT3Config
) -> list[Row]:
    """Compare every tap of a YourMT3+'s graphs with both twins', as compare_taps_with_third does.

    Rows of float32 behind a tie of experts are the same, as in compare/routing.py, if all of float64 are.
    """
    reference = traces[0]
    exact = _compare_pass(graphs.outputs(reference.inputs, "float64"), traces, "float64")
    third = graphs.outputs(reference.inputs, "float32")
    rows = _compare_pass(third, traces, "float32")
    if all(row.verdict == "same" for row in exact):
        run = dataclasses.replace(reference.passes["float32"], outputs=third, local={}, exact={})
        alone = dataclasses.replace(reference, passes=reference.passes | {"float32": run})
        routers = [flipped(reference, trace, "float32", network) for trace in (traces[1], alone)]
        order = list(third)
        first = min((order.index(tap) for tap in routers if tap is not None), default=len(order))
        for row in rows:
            if row.verdict != "same" and order.index(row.name) > first:
                row.verdict = "same"
                row.note = f"behind a tie of experts at {order[first]}: in float64 everything is within its budget"
    return exact + rows


def compare_channels_with_third(
    graphs: "YourMT3Graphs", reference: YourMT3Side, segments: list[Segment], own: list[np.ndarray], most: int | None
) -> list[Row]:
    """Compare the ids of every channel and the notes of the graph with the search inside with the reference's.

    Args:
        own: ids of the reference.
        most: ids of a channel at most, None for those of the task.
    """
    frames = np.stack([segment.frames for segment in segments])
    ids = own, graphs.generate(list(frames), most)
    tokens = compare_channels(reference, cast(YourMT3Side, graphs), frames, ids)
    rows = tokens + compare_channel_notes(reference.family, segments, ids, tokens)
    return [dataclasses.replace(row, section=f"{THIRD} {row.section}") for row in rows]


def cause_of_third(report: Report) -> str | None:
    """Return the sentence of a report in which the third side alone differs; None of any other."""
    if not all(section.startswith(THIRD) for section in report.differing):
        return None
    row = next(row for row in report.rows if row.section.startswith(THIRD) and row.verdict != "same")
    return f"both twins are the same as each other: only {THIRD} differs, first at {row.name} ({row.note})"


def standing_alone(reference: str, candidate: str, errors: list[Measure], twins_differ: bool) -> str:
    """Return which of three differs from the two others, '' if none differs, or 'each' if all do.

    Args:
        reference, candidate: names of the twins.
        errors: of both against the third.
        twins_differ: from each other.
    """
    first, second = map(over, errors)
    if not first and not second:
        return ""
    if first and second:
        return "each" if twins_differ else THIRD
    return reference if first else candidate


def compare_decoding_with_third(
    graphs: "OnnxGraphs",
    reference: Side,
    segments: list[np.ndarray],
    start_times: list[float],
    config: Config,
) -> list[Row]:
    """Compare the tokens and notes of the graph with the search inside with the reference's."""
    ids = reference.generate(segments), graphs.generate(segments)
    tokens = compare_tokens(reference, cast(Side, graphs), np.stack(segments), ids, config.max_target_length)
    rows = tokens + compare_notes(config, start_times, ids, tokens)
    return [dataclasses.replace(row, section=f"{THIRD} {row.section}") for row in rows]
