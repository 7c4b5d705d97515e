"""Stand-ins that several tests share: a network that answers with known notes, recordings of noise."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from mt3_common.audio.segments import Segment
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.cli import infer as cli
from mt3_common.config import PRESETS
from mt3_common.notes.encoder import encode_segments
from mt3_common.notes.note import Note
from mt3_common.transcription.pipeline import Transcriber

CONFIG = PRESETS["mt3"]
NOTES = [Note(0.1, 0.6, 60, 127, 0, False), Note(0.5, 0.51, 36, 127, 0, True)]
# the same as commands write them: the model says no velocities
WRITTEN = [note._replace(velocity=100) for note in NOTES]
# of a segment with NOTES
IDS = encode_segments(NOTES, 126, CONFIG)[0]


def first_segment_only(segments: Iterable[Segment]) -> Iterator[np.ndarray]:
    """Stand for the network: NOTES in each recording's first segment, nothing later."""
    for segment in segments:
        yield IDS if segment.index == 0 else np.array([1])


def infer(
    *argv: object,
    generate: Callable = first_segment_only,
    load: Callable[..., Transcriber] | None = None,
    checkpoint: NamedCheckpoint | None = None,
) -> int:
    """Return the exit status of infer's command line, with a stand-in for the network."""
    transcriber = Transcriber(CONFIG, generate, checkpoint)
    return cli.main("torch_mt3", load or (lambda **settings: transcriber), [str(argument) for argument in argv])


def names(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def noise(seconds: float, channels: int = 1, rate: int = 16000, amplitude: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return noise, (seconds * rate, channels) in [-amplitude, amplitude], the same for the same arguments."""
    return np.random.default_rng(seed).uniform(-amplitude, amplitude, (round(seconds * rate), channels))


def encode(path: Path, samples: np.ndarray, rate: int, codec: str, container: str, stored: str | None = None) -> Path:
    """Write mono samples (n,) in [-1, 1] with PyAV, which must be there.

    Codings in blocks of a fixed size leave out what is behind the last whole block.

    Args:
        codec, container, stored: FFmpeg's names of the coding, the container and the samples in it.
    """
    import av

    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        context = stream.codec_context
        if stored:
            context.format = stored
        context.open()
        size = context.frame_size or 1024
        resampler = av.AudioResampler(format=context.format, layout="mono", rate=rate)
        length = len(samples) // size * size if context.frame_size else len(samples)
        for start in range(0, length, size):
            block = np.ascontiguousarray(samples[None, start : start + size], np.float64)
            frame = av.AudioFrame.from_ndarray(block, format="dblp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            for converted in resampler.resample(frame):
                file.mux(stream.encode(converted))
        file.mux(stream.encode(None))
    return path


def record(path: str | Path, seconds: float = 1.0, seed: int = 0, subtype: str | None = None) -> Path:
    """Write a recording of noise, and the folders above it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed=seed), 16000, subtype=subtype)
    return path
