"""Probes: inputs that reveal faults which no recording shows, such as silence and extreme values."""

import numpy as np

from mt3_common.audio.spectrogram import log_mel_spectrogram
from mt3_common.config import Config
from parity.compare.budget import judge
from parity.compare.results import Row, over
from parity.sides.side import Side, YourMT3Side
from parity.trace.inputs import shift_right
from parity.trace.precision import EPSILON


def probe_frames(config: Config, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Make the probes: name -> frames of one segment (heard_frames, input_depth) float32.

    Args:
        frames: (n, heard_frames, input_depth) of a recording, which some probes modify.
    """
    shape = frames.shape[1:]
    spectrogram = config.spectrogram
    seconds = np.arange(shape[0] * spectrogram.hop_width) / spectrogram.sample_rate
    rng = np.random.default_rng(0)
    one_frame = np.zeros(shape, np.float32)
    one_frame[0] = frames[0, 0]
    probes = {
        "a full segment": frames[0],
        # The spectrogram of zeros is log(1e-5).
        "silence": np.full(shape, np.log(np.float32(1e-5)), np.float32),
        "one frame, the rest missing": one_frame,
        "no frame at all": np.zeros(shape, np.float32),
        # The smallest normal float32, and a value far above full scale.
        "extreme mel values": np.where(rng.random(shape) < 0.5, np.log(np.float32(1.2e-38)), 12.0).astype(np.float32),
    }
    if spectrogram.num_mel_bins == shape[1]:
        clipped = np.sign(np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
        probes["a clipped tone"] = log_mel_spectrogram(clipped, spectrogram)[: shape[0]]
    return probes


def make_probes(config: Config, frames: np.ndarray, seen: np.ndarray) -> tuple[list[str], dict[str, np.ndarray]]:
    """Make a batch of probes, one per row, that together with `seen` has every id of the vocabulary; with their names.

    The target of the last row is EOS alone, as that of a silent segment.

    Args:
        frames: (n, heard_frames, input_depth) of a recording.
        seen: ids in the other inputs of the run.
    """
    probes = probe_frames(config, frames)
    missing = np.setdiff1d(np.arange(1, config.network.vocab_size), seen)
    # Multiples of 32 limit the number of lengths that are compiled.
    length = min(config.max_target_length, max(32, -(-len(missing) // (32 * len(probes))) * 32 + 32))
    if not len(missing):
        missing = np.arange(1, config.network.vocab_size)
    # The last target of a row is no decoder input, so it is EOS.
    ids = np.resize(missing, (len(probes), length - 1))
    targets = np.concatenate([ids, np.ones((len(probes), 1), ids.dtype)], axis=1).astype(np.int32)
    empty = np.zeros((1, length), np.int32)
    empty[0, 0] = 1
    inputs = {
        "frames": np.stack([*probes.values(), frames[-1]]),
        "decoder_target_tokens": np.concatenate([targets, empty]),
    }
    inputs["decoder_input_tokens"] = shift_right(inputs["decoder_target_tokens"])
    return [*probes, "a target of EOS alone"], inputs


def compare_probes(
    reference: Side | YourMT3Side,
    candidate: Side | YourMT3Side,
    names: list[str],
    inputs: dict[str, np.ndarray],
    precisions: tuple[str, ...] = ("float64", "float32"),
) -> list[Row]:
    """Compare the logits of every probe in every precision, at positions that are not masked."""
    low = next(name for name in precisions if name != "float64")
    exact, rough = reference.logits(inputs, "float64"), reference.logits(inputs, low)
    targets = inputs.get("decoder_target_tokens")
    # where nothing is masked, each position counts
    real = np.ones(exact.shape[:-1], bool) if targets is None else targets > 0
    rows = []
    for precision in precisions:
        logits = candidate.logits(inputs, precision)
        for index, name in enumerate(names):
            at = (index, real[index])
            if logits.shape != exact.shape:
                note = f"shape {exact.shape} against {logits.shape}"
                rows.append(Row("probes", name, "different", precision, note=note))
                continue
            noise = (rough[at] - exact[at]) * (EPSILON[precision] / EPSILON[low])
            error = judge(exact[at], logits[at], noise, precision)
            verdict = "different" if over(error) or error.values == 0 else "same"
            rows.append(Row("probes", name, verdict, precision, error))
    return rows
