"""The whole comparison of two sides with the same checkpoint, in one process."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from mt3_common.config import Config
from mt3_common.io.plural import plural
from parity.check_common import compare_recorded, compare_stored, explain_sides, give_back_memory, is_large
from parity.compare import decoding, probes, training
from parity.compare.conditioning import Questions, excuse_ill_conditioned
from parity.compare.original import compare_with_original
from parity.compare.results import DIFFERENT, ORIGINAL, SAME, THIRD, Report, Row
from parity.compare.taps import excuse_amplified
from parity.compare.third import cause_of_third, compare_decoding_with_third, compare_taps_with_third
from parity.diagnosis import diagnose
from parity.sides import perturbed
from parity.sides.prefetch import Prefetch
from parity.sides.side import Side
from parity.trace import inputs
from parity.trace.trace import Trace

if TYPE_CHECKING:
    from parity.sides.onnx_graphs import OnnxGraphs

# Positions of the decode path in float64 for a large network: enough for the cache to grow and wrap around.
DECODE_POSITIONS = 192


@dataclasses.dataclass
class _Settings:
    """Sizes of a comparison, by the size of the network.

    Attributes:
        num_segments: segments whose tokens and notes are compared.
        traced: segments that are traced, from the end of those read.
        length: decoder positions that are traced.
        positions: positions of the decode path in float64.
    """

    num_segments: int
    traced: int
    length: int
    positions: int


def _settings(config: Config, large: bool, num_segments: int | None, positions: int | None) -> _Settings:
    if num_segments is None:
        num_segments = 1 if large else 4
    if positions is None:
        positions = DECODE_POSITIONS if large else config.max_target_length
    # The traces of a large network take gigabytes, and fewer positions show the same.
    traced, length = (1, 128) if large else (2, 256)
    # As many positions as frames, where that is enough: encoder and decoder are then compiled once.
    length = min(length, config.max_target_length, max(config.input_frames, 64))
    return _Settings(num_segments, traced, length, positions)


def check(
    reference: Side,
    candidate: Side,
    audio: str | None = None,
    num_segments: int | None = None,
    source: dict[str, np.ndarray] | None = None,
    original: str | None = None,
    precisions: tuple[str, ...] = ("float64", "float32", "bfloat16"),
    positions: int | None = None,
    third: bool = False,
    say: Callable[[str], None] = lambda stage: None,
) -> tuple[Report, tuple[Trace, Trace] | None]:
    """Compare two sides that hold the same checkpoint; return the report, and their traces if they differ.

    Args:
        reference, candidate: JAX's or PyTorch's side, in any pairing.
        audio: the recording; the bundled one if None.
        num_segments: segments whose tokens and notes are compared; 4 if None, or 1 of a large network.
        source: the checkpoint's own arrays, which both sides must hold bit for bit.
        original: 't5x' to run the published code as a third side, or a file of its activations.
        precisions: of taps and logits; the rest is compared in float64 and float32.
        positions: of the decode path in float64, at most the config's; all if None, or 192 of a large network.
        third: whether ONNX Runtime is compared with both as well.
        say: is told every stage as it begins.
    """
    config = reference.config
    path = inputs.find_audio(audio)
    frames, start_times = inputs.read_segments(path, config, max(4, num_segments or 0))
    large = is_large(reference)
    settings = _settings(config, large, num_segments, positions)
    traced = inputs.with_tokens(frames[-settings.traced :], config, settings.length)
    segments, start_times = list(frames[: settings.num_segments]), start_times[: settings.num_segments]
    prefetch = Prefetch(reference) if reference.framework == "jax" else None
    if prefetch is not None:
        reference = cast(Side, prefetch)
        # The answers of a large network would take memory beside the traces.
        if not large:
            for precision in ("float64", "float32"):
                prefetch.begin("gradients", traced, precision)
            prefetch.begin("generate", segments)
    graphs = _graphs(reference.arrays() if source is None else source, config) if third else None
    say(f"comparing every module in {', '.join(precisions)}")
    report, traces = _compare_traces(reference, candidate, traced, precisions, source, graphs)
    if report.refusals and prefetch is not None:
        prefetch.forget()
    if not report.refusals:
        give_back_memory()
        if large and prefetch is not None:
            prefetch.begin("generate", segments)
        say("comparing the decode path, tokens and notes")
        decoded, lengths = decode_inputs(config, segments, settings.positions)
        report.rows += decoding_rows(reference, candidate, segments, start_times, decoded, lengths)
        if graphs is not None:
            report.rows += compare_decoding_with_third(graphs, reference, segments, start_times, config)
        say("comparing silence, clipping and other probes")
        names, batch = probes.make_probes(config, frames, traced["decoder_input_tokens"])
        report.rows += probes.compare_probes(reference, candidate, names, batch)
        ids = np.union1d(traced["decoder_input_tokens"], batch["decoder_input_tokens"])
        report.facts["ids"] = f"{len(ids)} of {config.network.vocab_size} ids were given to the decoder"
        give_back_memory()
        say("comparing loss, gradients and steps of optimizers")
        report.rows += training.compare_training(reference, candidate, traced)
        excuse_amplified(report.rows)
        questions = Questions(traced, names, batch, decoded, lengths)
        arrays = reference.arrays() if source is None else source
        excuse_ill_conditioned(
            report.rows, lambda: perturbed.exact(arrays, config), perturbed.Perturbed, questions, traces
        )
    if original is not None:
        say("running the original")
        report.rows += _original_rows(original, reference, candidate, source, traced)
    if report.exit_code == DIFFERENT:
        say("looking for the cause")
        report.causes = name_causes(report, traces, reference, candidate, source)
    report.facts |= _input_facts(path, frames, len(segments), traced)
    return report, traces


def _graphs(arrays: dict[str, np.ndarray], config: Config) -> "OnnxGraphs":
    # imported here: a comparison of the twins alone does without ONNX Runtime
    from parity.sides.onnx_graphs import OnnxGraphs

    return OnnxGraphs(arrays, config)


def _compare_traces(
    reference: Side,
    candidate: Side,
    traced: dict[str, np.ndarray],
    precisions: tuple[str, ...],
    source: dict[str, np.ndarray] | None,
    graphs: "OnnxGraphs | None" = None,
) -> tuple[Report, tuple[Trace, Trace] | None]:
    """Record and compare the traces of both sides, and both with the checkpoint; drop equal traces to save memory."""
    report, traces = compare_recorded(reference, candidate, traced, precisions)
    compare_stored(report, traces, source)
    differ = report.exit_code != SAME
    if graphs is not None and not report.refusals:
        report.rows += compare_taps_with_third(graphs, traces)
        report.sides[THIRD] = {"framework": THIRD, "environment": graphs.environment(), "modes": {}}
    return report, traces if differ else None


def _original_rows(
    original: str,
    reference: Side,
    candidate: Side,
    source: dict[str, np.ndarray] | None,
    traced: dict[str, np.ndarray],
) -> list[Row]:
    arrays = reference.arrays() if source is None else source
    try:
        return compare_with_original(original, reference, candidate, arrays, traced)
    except Exception as error:
        # Whatever a foreign program raises, the results so far are reported; a skipped row rules out "same".
        note = f"the original failed ({type(error).__name__}: {error})"
        return [Row("original", "taps", "skipped", "float32", note=" ".join(note.split()))]


def _input_facts(path: str, frames: np.ndarray, num_segments: int, traced: dict[str, np.ndarray]) -> dict[str, str]:
    tokens, masked = traced["decoder_input_tokens"], int((traced["decoder_target_tokens"] == 0).sum())
    return {
        "recording": f"{path}: {plural(num_segments, 'segment')} of {frames.shape[1]} frames for tokens and notes",
        "taps": f"{plural(len(traced['frames']), 'segment')}, {plural(tokens.shape[1], 'position')}, "
        f"{plural(len(np.unique(tokens)), 'different id')}, {plural(masked, 'masked position')}",
    }


def name_causes(
    report: Report,
    traces: tuple[Trace, Trace] | None,
    reference: Side,
    candidate: Side,
    source: dict[str, np.ndarray] | None = None,
) -> list[str]:
    """Name the causes of the differences in sentences, each with the effect of undoing it, or say why there is none.

    The diagnosis compares the candidate's trace with MT3 in NumPy; if the candidate is right, it compares the
    reference's, which must then be wrong.

    Args:
        report: so far, with a difference.
        traces: of both sides, if modules or weights differ.
        source: the checkpoint's arrays; the reference's if None.
    """
    if traces is None:
        if (cause := cause_of_third(report)) is not None:
            return [cause]
        if report.differing == [ORIGINAL]:
            return [f"both sides are the same as each other: only {ORIGINAL} differs, or could not be compared"]
        sections = ", ".join(report.differing)
        between = f"no module differs on the reference's own inputs: the fault lies between modules, in {sections}"
        return [*decoding.explain_decode_path(report.rows), between]
    arrays = reference.arrays() if source is None else source
    return explain_sides(
        traces,
        reference,
        candidate,
        lambda trace, side: diagnose.name_faults(trace, arrays, reference.config, side.arrays()),
        "MT3",
    )


def decode_inputs(
    config: Config, segments: list[np.ndarray], positions: int
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the inputs of the decode path and how many positions are compared in each precision.

    Args:
        segments: frames (heard_frames, input_depth) each; the first is decoded.
        positions: in float64, at most the config's.
    """
    length = config.max_target_length
    decoded = inputs.with_tokens(np.stack(segments[:1]), config, length, seed=1)
    decoded["decoder_target_tokens"] = np.ones_like(decoded["decoder_target_tokens"])
    return decoded, {"float64": min(length, positions), "float32": length}


def decoding_rows(
    reference: Side,
    candidate: Side,
    segments: list[np.ndarray],
    start_times: list[float],
    decoded: dict[str, np.ndarray],
    lengths: dict[str, int],
) -> list[Row]:
    """Compare the decode path (on inputs of decode_inputs), tokens and notes."""
    config = reference.config
    rows = decoding.compare_decode_path(reference, candidate, decoded, lengths)
    ids = reference.generate(segments), candidate.generate(segments)
    tokens = decoding.compare_tokens(reference, candidate, np.stack(segments), ids, config.max_target_length)
    return rows + tokens + decoding.compare_notes(config, start_times, ids, tokens)
