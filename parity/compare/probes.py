"""Inputs that can see what a recording does not show, and what the given inputs could not have shown."""

import numpy as np

from mt3_common.audio.spectrogram import log_mel_spectrogram
from mt3_common.config import Config
from parity.compare.budget import judge
from parity.compare.results import Row, over
from parity.sides.side import Side
from parity.trace.inputs import shift_right
from parity.trace.precision import EPSILON


def probe_frames(config: Config, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> one segment's frames (input_frames, input_depth) float32.

    Args:
        frames: (n, input_frames, input_depth) of a recording, as what the probes vary.
    """
    shape = frames.shape[1:]
    spectrogram = config.spectrogram
    seconds = np.arange(shape[0] * spectrogram.hop_width) / spectrogram.sample_rate
    rng = np.random.default_rng(0)
    one_frame = np.zeros(shape, np.float32)
    one_frame[0] = frames[0, 0]
    found = {
        "a full segment": frames[0],
        # log(1e-5), what the spectrogram makes of zeros
        "silence": np.full(shape, np.log(np.float32(1e-5)), np.float32),
        "one frame, the rest missing": one_frame,
        "no frame at all": np.zeros(shape, np.float32),
        # the smallest float32 that is not denormal, and far more than full scale can give
        "extreme mel values": np.where(rng.random(shape) < 0.5, np.log(np.float32(1.2e-38)), 12.0).astype(np.float32),
    }
    if spectrogram.num_mel_bins == shape[1]:
        clipped = np.sign(np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
        found["a clipped tone"] = log_mel_spectrogram(clipped, spectrogram)[: shape[0]]
    return found


def make_probes(config: Config, frames: np.ndarray, seen: np.ndarray) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names and inputs of a batch of probes, one per row, that together with `seen` hold every id of the vocabulary.

    The last row has a target of nothing but EOS; its one real position is all that a silent segment has.

    Args:
        frames: (n, input_frames, input_depth) of a recording.
        seen: ids that other inputs of the run already hold.
    """
    found = probe_frames(config, frames)
    missing = np.setdiff1d(np.arange(1, config.network.vocab_size), seen)
    # in multiples of 32 so that few lengths are ever compiled
    length = min(config.max_target_length, max(32, -(-len(missing) // (32 * len(found))) * 32 + 32))
    if not len(missing):
        missing = np.arange(1, config.network.vocab_size)
    # a row's last target is no decoder input, so it is EOS
    ids = np.resize(missing, (len(found), length - 1))
    targets = np.concatenate([ids, np.ones((len(found), 1), ids.dtype)], axis=1).astype(np.int32)
    empty = np.zeros((1, length), np.int32)
    empty[0, 0] = 1
    inputs = {
        "frames": np.stack([*found.values(), frames[-1]]),
        "decoder_target_tokens": np.concatenate([targets, empty]),
    }
    inputs["decoder_input_tokens"] = shift_right(inputs["decoder_target_tokens"])
    return [*found, "a target of EOS alone"], inputs


def compare_probes(
    reference: Side,
    candidate: Side,
    names: list[str],
    inputs: dict[str, np.ndarray],
    precisions: tuple[str, ...] = ("float64", "float32"),
) -> list[Row]:
    """A row per probe and precision: the logits at real positions, in multiples of their budgets."""
    low = next(name for name in precisions if name != "float64")
    exact, rough = reference.logits(inputs, "float64"), reference.logits(inputs, low)
    real = inputs["decoder_target_tokens"] > 0
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
            found = judge(exact[at], logits[at], noise, precision)
            verdict = "different" if over(found) or found.values == 0 else "same"
            rows.append(Row("probes", name, verdict, precision, found))
    return rows
