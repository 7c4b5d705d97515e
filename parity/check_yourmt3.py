"""The whole comparison of two sides of YourMT3+ with the same checkpoint, in one process; check.py is MT3's."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.io.plural import plural
from mt3_common.yourmt3_config import YourMT3Settings
from parity.check_common import compare_recorded, compare_stored, explain_sides, give_back_memory, is_large
from parity.compare.channels import compare_channel_notes, compare_channels, compare_fast_path
from parity.compare.frontend_yourmt3 import FRONT_END, compare_front_end, cut, labelled
from parity.compare.probes import compare_probes
from parity.compare.results import DIFFERENT, SAME, THIRD, Report, Row
from parity.compare.routing import compare_routing, excuse_ties
from parity.compare.statistics import compare_statistics
from parity.compare.taps import excuse_amplified
from parity.compare.third import cause_of_third, compare_channels_with_third, compare_yourmt3_taps_with_third
from parity.compare.training import compare_yourmt3_training
from parity.diagnosis.yourmt3 import name_faults
from parity.diagnosis.yourmt3_frontend import explain
from parity.sides.side import YourMT3Side
from parity.trace import inputs
from parity.trace.trace import Trace

if TYPE_CHECKING:
    from parity.sides.onnx_yourmt3 import YourMT3Graphs

# positions of the fast path: enough for its caches to grow once
FAST_POSITIONS = 72
# positions that are traced, per channel; of a large network fewer: its traces take gigabytes
TRACED, TRACED_LARGE = 48, 16
# ids of a channel that are searched with a large network
SEARCHED_LARGE = 64


def check_yourmt3(
    reference: YourMT3Side,
    candidate: YourMT3Side,
    audio: str | None = None,
    num_segments: int | None = None,
    source: dict[str, np.ndarray] | None = None,
    precisions: tuple[str, ...] = ("float64", "float32"),
    third: bool = False,
    say: Callable[[str], None] = lambda stage: None,
) -> tuple[Report, tuple[Trace, Trace] | None]:
    """Compare two sides that hold the same checkpoint; return the report, and their traces if they differ.

    Args:
        reference, candidate: JAX's or PyTorch's side, in any pairing.
        audio: the recording; the bundled one if None.
        num_segments: segments whose tokens and notes are compared; 2 if None, or 1 of a large network.
        source: the checkpoint's own arrays, which both sides must hold bit for bit.
        precisions: of taps and logits; the rest is compared in float64 and float32.
        third: whether ONNX Runtime is compared with both, too.
        say: is told every stage as it begins.
    """
    settings = reference.config
    large = is_large(reference)
    count = num_segments if num_segments is not None else 1 if large else 2
    path = inputs.find_audio(audio)
    say("comparing the front end")
    samples, segments = inputs.read_yourmt3_segments(path, reference.family, max(2, count))
    front_end = compare_front_end(reference.family.front_end, samples, (reference, candidate))
    frames = np.stack([segment.frames for segment in segments])
    traced = draw_inputs(settings, frames[-1:] if large else frames[-2:], TRACED_LARGE if large else TRACED)
    say(f"comparing every module in {', '.join(precisions)}")
    graphs = _graphs(reference, source, with_experts=not large) if third else None
    report, traces = _compare_traces(reference, candidate, traced, precisions, source, graphs)
    report.rows += front_end
    if not report.refusals:
        give_back_memory()
        say("comparing the fast path, tokens and notes")
        report.rows += _search_rows(reference, candidate, segments[:count], SEARCHED_LARGE if large else None, graphs)
        say("comparing silence, noise and other probes")
        names, batch = make_probes(settings, frames[0])
        report.rows += compare_probes(reference, candidate, names, batch)
        say("comparing batch norms in training, loss, gradients and steps of the optimizer")
        report.rows += compare_statistics(reference, candidate, traced)
        targets = np.concatenate([traced["decoder_input_tokens"][..., 1:], traced["decoder_input_tokens"][..., :1]], -1)
        report.rows += compare_yourmt3_training(reference, candidate, {**traced, "decoder_target_tokens": targets})
        excuse_amplified(report.rows)
    if report.exit_code == DIFFERENT:
        say("looking for the cause")
        report.causes = _front_end_causes(report, samples, (reference, candidate))
        if report.differing != [FRONT_END] or not report.causes:
            report.causes += _causes(report, traces, reference, candidate, source)
    tokens = traced["decoder_input_tokens"]
    report.facts |= {
        "recording": f"{path}: {plural(count, 'segment')} of {frames.shape[1]} frames for tokens and notes",
        "taps": f"{plural(len(traced['frames']), 'segment')}, {plural(tokens.shape[-1], 'position')} of "
        f"{settings.network.num_channels} "
        f"channels, {plural(len(np.unique(tokens)), 'different id')}, none masked",
        "task": settings.task,
    }
    return report, traces


def draw_inputs(settings: YourMT3Settings, frames: np.ndarray, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return frames (b, t, f) with drawn ids, the start in front: (b, length), or (b, channels, length)."""
    network = settings.network
    channels = (network.num_channels,) if network.decoder == "multi-t5" else ()
    shape = (len(frames), *channels, length)
    random = np.random.default_rng(seed)
    draws = -(-int(np.prod(shape)) // (network.vocab_size - 1))
    ids = np.concatenate([random.permutation(network.vocab_size - 1) + 1 for _ in range(draws)])
    tokens = ids[: int(np.prod(shape))].reshape(shape).astype(np.int32)
    tokens[..., 0] = 0
    return {"frames": np.asarray(frames, np.float32), "decoder_input_tokens": tokens}


def make_probes(settings: YourMT3Settings, frames: np.ndarray) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return inputs that reveal what no recording shows, one per row, with their names.

    Args:
        frames: (t, f) of a recording.
    """
    random = np.random.default_rng(1)
    one_frame = np.zeros_like(frames)
    one_frame[0] = frames[0]
    probes = {
        "silence": np.zeros_like(frames),
        "every bin at its largest": np.ones_like(frames),
        "one frame, the rest silent": one_frame,
        "noise": random.random(frames.shape, np.float32),
        "each bin 0 or 1": random.integers(0, 2, frames.shape).astype(np.float32),
    }
    return list(probes), draw_inputs(settings, np.stack(list(probes.values())), 16, seed=2)


def _compare_traces(
    reference: YourMT3Side,
    candidate: YourMT3Side,
    traced: dict[str, np.ndarray],
    precisions: tuple[str, ...],
    source: dict[str, np.ndarray] | None,
    graphs: "YourMT3Graphs | None" = None,
) -> tuple[Report, tuple[Trace, Trace] | None]:
    """Record and compare the traces of both sides, and both with the checkpoint; drop equal traces to save memory."""
    network = reference.config.network
    report, traces = compare_recorded(reference, candidate, traced, precisions)
    if not report.refusals:
        report.rows += compare_routing(*traces, network)
        excuse_ties(report, *traces, network)
    compare_stored(report, traces, source)
    differ = report.exit_code != SAME
    if graphs is not None and not report.refusals:
        report.rows += compare_yourmt3_taps_with_third(graphs, traces, network)
        report.sides[THIRD] = {"framework": THIRD, "environment": graphs.environment(), "modes": {}}
    return report, traces if differ else None


def _graphs(reference: YourMT3Side, source: dict[str, np.ndarray] | None, with_experts: bool) -> "YourMT3Graphs":
    # imported here: a comparison of the twins alone does without ONNX Runtime
    from parity.sides.onnx_yourmt3 import YourMT3Graphs

    arrays = reference.arrays() if source is None else source
    return YourMT3Graphs(arrays, reference.config, reference.family, with_experts)


def _search_rows(
    reference: YourMT3Side,
    candidate: YourMT3Side,
    segments: list[Segment],
    max_tokens: int | None,
    graphs: "YourMT3Graphs | None",
) -> list[Row]:
    frames = np.stack([segment.frames for segment in segments])
    length = min(FAST_POSITIONS, reference.family.max_tokens)
    rows = compare_fast_path(reference, candidate, draw_inputs(reference.config, frames[:1], length, seed=1))
    ids = tuple(side.generate(list(frames), max_tokens) for side in (reference, candidate))
    tokens = compare_channels(reference, candidate, frames, (ids[0], ids[1]))
    rows += tokens + compare_channel_notes(reference.family, segments, (ids[0], ids[1]), tokens)
    if graphs is not None:
        rows += compare_channels_with_third(graphs, reference, segments, ids[0], max_tokens)
    return rows


def _front_end_causes(report: Report, samples: np.ndarray, sides: tuple[YourMT3Side, YourMT3Side]) -> list[str]:
    """Return a sentence for each side whose own front end differs from the shared one."""
    sentences = []
    wrong = [row for row in report.rows if row.section == FRONT_END and row.verdict != "same"]
    for label, side in labelled(sides):
        if any(row.name.startswith(label) for row in wrong):
            front_end = side.family.front_end
            segments = cut(samples, front_end.config.input_frames)
            cause, text, error = explain(front_end, segments, side.front_end_frames(segments))
            rest = "" if cause == "unknown" else f" (explains it up to {error:.0e})"
            sentences.append(f"front end of {label}: {text}{rest}")
    return sentences


def _causes(
    report: Report,
    traces: tuple[Trace, Trace] | None,
    reference: YourMT3Side,
    candidate: YourMT3Side,
    source: dict[str, np.ndarray] | None,
) -> list[str]:
    """Return the causes of the differences in sentences, or why there is none; as check.name_causes."""
    if traces is None:
        if (cause := cause_of_third(report)) is not None:
            return [cause]
        between = f"no module differs on the reference's own inputs: the fault lies in {', '.join(report.differing)}"
        return [between]
    arrays = reference.arrays() if source is None else source
    return explain_sides(
        traces,
        reference,
        candidate,
        lambda trace, side: name_faults(
            trace.passes["float64"], traces[0].inputs, side.arrays(), arrays, reference.config
        ),
        "YourMT3+",
    )
