"""The whole comparison in one process: `python -m parity CKPT`."""

import ctypes
import gc
import sys

import numpy as np

from parity.compare import decoding, probes, training
from parity.compare.original import compare_with_original
from parity.compare.results import AGAINST, DIFFERENT, ORIGINAL, Report, Row
from parity.compare.taps import excuse_amplified
from parity.compare.traces import compare, compare_weights
from parity.diagnosis import diagnose
from parity.sides import record
from parity.sides.prefetch import Ahead
from parity.sides.side import Side
from parity.trace import inputs
from parity.trace.trace import Trace, fingerprint, weights_digest

# above this many parameters fewer positions are traced, and fewer decoded in float64 (see DECODE_POSITIONS)
LARGE = 10_000_000
# positions of the decode path in float64 for a large network: enough for the cache to grow and its ring to come round
DECODE_POSITIONS = 192


def check(
    reference: Side,
    candidate: Side,
    audio: str | None = None,
    num_segments: int | None = None,
    source: dict[str, np.ndarray] | None = None,
    original: str | None = None,
    precisions: tuple[str, ...] = ("float64", "float32", "bfloat16"),
    positions: int | None = None,
) -> tuple[Report, tuple[Trace, Trace] | None]:
    """The report on two Sides that hold the same checkpoint, and their traces if those differ.

    Args:
        reference, candidate: Sides of parity/sides/jax_side.py and parity/sides/torch_side.py, in any pairing.
        audio: the recording; the bundled one if None.
        num_segments: segments whose tokens and notes are compared; 4 if None, or 1 of a large network.
        source: the checkpoint's own arrays, which both sides must hold bit for bit.
        original: 't5x' to run the published code as a third side, or a file of its activations.
        precisions: of taps and logits; the rest is compared in float64 and float32.
        positions: of the decode path in float64, at most the config's; all if None, or 192 of a large network.
    """
    config = reference.config
    path = inputs.find_audio(audio)
    frames, start_times = inputs.read_segments(path, config, 4)
    large = is_large(reference)
    if num_segments is None:
        num_segments = 1 if large else 4
    if positions is None:
        positions = DECODE_POSITIONS if large else config.max_target_length
    if num_segments > len(frames):
        frames, start_times = inputs.read_segments(path, config, num_segments)
    # the traces of a large network are gigabytes: fewer positions show the same
    segments, length = (1, 128) if large else (2, 256)
    # as many positions as frames where that is enough: encoder and decoder are then compiled once
    length = min(length, config.max_target_length, max(config.input_frames, 64))
    given = inputs.with_tokens(frames[-segments:], config, length)
    decoded, decoded_at = list(frames[:num_segments]), start_times[:num_segments]
    if reference.framework == "jax":
        reference = Ahead(reference)
        # what a large network answers now would need memory beside the traces
        if not large:
            for precision in ("float64", "float32"):
                reference.begin("gradients", given, precision)
            reference.begin("generate", decoded)
    ours = record.record(reference, given, precisions)
    theirs = record.record(candidate, given, precisions, reference=ours)
    found = compare(ours, theirs)
    if source is not None:
        stored = fingerprint(source)
        found.facts["weights"] = weights_digest(stored)
        for side, weights in (("reference", ours.weights), ("candidate", theirs.weights)):
            for row in compare_weights(stored, weights):
                row.name = f"{row.name}{AGAINST}{side}"
                found.rows.append(row)
    # what is the same needs no second look, and the memory is needed
    traces = (ours, theirs) if found.exit_code else None
    del ours, theirs
    if found.refusals and isinstance(reference, Ahead):
        reference.forget()
    if not found.refusals:
        give_back_memory()
        if large and reference.framework == "jax":
            reference.begin("generate", decoded)
        found.rows += decoding_rows(reference, candidate, decoded, decoded_at, positions)
        names, probes_given = probes.make_probes(config, frames, given["decoder_input_tokens"])
        found.rows += probes.compare_probes(reference, candidate, names, probes_given)
        held = np.union1d(given["decoder_input_tokens"], probes_given["decoder_input_tokens"])
        found.facts["ids"] = f"{len(held)} of {config.network.vocab_size} ids were given to the decoder"
        give_back_memory()
        found.rows += training.compare_training(reference, candidate, given)
        excuse_amplified(found.rows)
    if original is not None:
        arrays = reference.arrays() if source is None else source
        try:
            found.rows += compare_with_original(original, reference, candidate, arrays, given)
        except Exception as error:
            # a foreign program's error, after everything else was compared: skipped, which is no verdict of "same"
            note = f"the original failed ({type(error).__name__}: {error})"
            found.rows.append(Row("original", "taps", "skipped", "float32", note=" ".join(note.split())))
    if found.exit_code == DIFFERENT:
        found.causes = name_causes(found, traces, reference, candidate, source)
    found.facts["recording"] = (
        f"{path}: {min(num_segments, len(frames))} segments of {frames.shape[1]} frames for tokens and notes"
    )
    tokens = given["decoder_input_tokens"]
    found.facts["taps"] = (
        f"{given['frames'].shape[0]} segments, {tokens.shape[1]} positions, "
        f"{len(np.unique(tokens))} different ids, {int((given['decoder_target_tokens'] == 0).sum())} masked positions"
    )
    return found, traces


def name_causes(
    found: Report,
    traces: tuple[Trace, Trace] | None,
    reference: Side,
    candidate: Side,
    source: dict[str, np.ndarray] | None = None,
) -> list[str]:
    """Sentences that say what is wrong, each with what undoing it gives, or why nothing could be named.

    The diagnosis compares the candidate's trace with its own MT3 in NumPy, and the reference's too where the candidate
    is right: it is the reference that is wrong then.

    Args:
        found: the report so far, with a difference.
        traces: of both sides, if modules or weights differ.
        source: the checkpoint's arrays; the reference's if None.
    """
    if traces is None:
        if found.differing == [ORIGINAL]:
            return [f"both sides are the same as each other: only {ORIGINAL} differs, or could not be compared"]
        places = ", ".join(found.differing)
        return [f"no module differs on the reference's own inputs: the fault lies between modules, in {places}"]
    arrays = reference.arrays() if source is None else source
    for label, trace, side in (("candidate", traces[1], candidate), ("reference", traces[0], reference)):
        try:
            findings = diagnose.name_faults(trace, arrays, reference.config, side.arrays())
        except Exception as error:
            # a foreign network may break the diagnosis in any way; the report must not be lost
            return [f"the diagnosis could not examine the {label} ({type(error).__name__}: {error})"]
        if findings:
            return [f"{label} ({side.framework}): {finding.sentence()}" for finding in findings]
    return ["the diagnosis found no cause: alone, every module of both sides does what MT3's does"]


def give_back_memory() -> None:
    """Returns to the system what was freed, where the C library can: glibc keeps gigabytes of it in small pieces."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_large(side: Side) -> bool:
    """Whether a Side's network has more than LARGE parameters."""
    return sum(array.size for array in side.arrays().values()) > LARGE


def decoding_rows(
    reference: Side,
    candidate: Side,
    segments: list[np.ndarray],
    start_times: list[float],
    positions: int,
) -> list[Row]:
    """Rows of the decode path (in float64 to so many positions at most), tokens and notes."""
    config = reference.config
    length = config.max_target_length
    frames = np.stack(segments)
    given = inputs.with_tokens(frames[:1], config, length, seed=1)
    given["decoder_target_tokens"] = np.ones_like(given["decoder_target_tokens"])
    lengths = {"float64": min(length, positions), "float32": length}
    rows = decoding.compare_decode_path(reference, candidate, given, lengths)
    ids = tuple(side.generate(segments) for side in (reference, candidate))
    tokens = decoding.compare_tokens(reference, candidate, frames, ids, length)
    return rows + tokens + decoding.compare_notes(config, start_times, ids, tokens)
