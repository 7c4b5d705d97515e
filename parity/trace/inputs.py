"""The inputs of both sides: frames of a recording, and tokens that reach every part of the network."""

from pathlib import Path

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.config import Config
from mt3_common.transcription.family import YourMT3Family

BUNDLED_AUDIO = Path(__file__).parents[2] / "audio" / "example.flac"


def find_audio(path: str | None = None) -> str:
    """Return the path of the recording: the argument, else the bundled one.

    Raises:
        ValueError: there is no argument, and this installation has no bundled recording.
    """
    if path is not None:
        return str(path)
    if not BUNDLED_AUDIO.is_file():
        raise ValueError("this installation has no bundled recording; name one with --audio FILE")
    return str(BUNDLED_AUDIO)


def read_segments(path: str, config: Config, count: int) -> tuple[np.ndarray, list[float]]:
    """Read the first segments of a recording.

    Returns:
        (frames (n, heard_frames, input_depth) float32, start times in s); n is at most count.

    Raises:
        ValueError: the recording cannot be read or is empty.
    """
    from mt3_common.audio.files import read_audio
    from mt3_common.audio.levels import Mix
    from mt3_common.audio.segments import segments

    spectrogram = config.spectrogram
    num_samples = count * config.input_frames * spectrogram.hop_width
    if config.network.context_frames:
        num_samples += config.network.context_frames * spectrogram.hop_width + spectrogram.fft_size
    samples = read_audio(
        path, spectrogram.sample_rate, duration=num_samples / spectrogram.sample_rate, mix=Mix(published=True)
    )
    first = [segment for segment, _ in zip(segments(samples, config), range(count), strict=False)]
    if not first:
        raise ValueError(f"{path}: no audio in it")
    return np.stack([segment.heard for segment in first]), [segment.start_time for segment in first]


def shift_right(targets: np.ndarray) -> np.ndarray:
    """Return the decoder inputs of targets (b, l): the start token 0 in front, the last token dropped."""
    return np.concatenate([np.zeros_like(targets[:, :1]), targets[:, :-1]], axis=1)


def with_tokens(frames: np.ndarray, config: Config, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Add tokens to frames, drawn without repetition from all ids, EOS and the padding of the vocabulary included.

    Two ids inside the first row are 0, so that later positions show whether masks hide them; the last row ends in
    padding.

    Args:
        frames: (b, f, input_depth) float32.
        length: positions of the decoder.
    """
    rng = np.random.default_rng(seed)
    size = len(frames) * length
    num_ids = config.network.vocab_size - 1
    ids = np.concatenate([rng.permutation(num_ids) + 1 for _ in range(-(-size // num_ids))])[:size]
    targets = ids.reshape(len(frames), length).astype(np.int32)
    if length >= 16:
        targets[0, [length // 3, length // 2]] = 0
        if len(frames) > 1:
            targets[-1, -(length // 8) :] = 0
    return {
        "frames": np.asarray(frames, np.float32),
        "decoder_input_tokens": shift_right(targets),
        "decoder_target_tokens": targets,
    }


def choose(config: Config, audio: str | None = None, length: int = 256) -> dict[str, np.ndarray]:
    """Make the inputs of a run: two segments of a recording (the last two of its first four) and drawn tokens."""
    frames, _ = read_segments(find_audio(audio), config, 4)
    return with_tokens(frames[-2:], config, min(length, config.max_target_length))


def read_yourmt3_segments(path: str, family: YourMT3Family, count: int) -> tuple[np.ndarray, list[Segment]]:
    """Read the first segments of a recording for a YourMT3+.

    Returns:
        (samples (n,) float32, the segments): at most count.

    Raises:
        ValueError: the recording cannot be read or is empty.
    """
    from mt3_common.audio.files import read_audio
    from mt3_common.audio.levels import Mix

    config = family.settings.front_end
    seconds = count * config.input_frames / config.sample_rate
    samples = read_audio(path, config.sample_rate, duration=seconds, mix=Mix(published=True))
    segments = list(family.segments([samples]))[:count] if len(samples) else []
    if not segments:
        raise ValueError(f"{path}: no audio in it")
    return samples[: count * config.input_frames], segments
