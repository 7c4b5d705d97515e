"""`parity frontend`: what a front end (audio to log-mel frames) does other than MT3's."""

import argparse
import importlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.config import PRESETS, Config
from mt3_common.io.shown_names import shown_as
from parity.commands.diagnose import print_diagnosis
from parity.diagnosis.frontend import diagnose_frames
from parity.report.files import write_json
from parity.sides.frontend import Recording
from parity.trace.inputs import find_audio

# Seconds of the recording that a function is given, enough to tell all options apart; of a .npy file, MOST are read.
SECONDS, MOST = 4.096, 20.0
# Frames before the end of what was read that are left out where a .npy has more: their windows reach beyond it.
REACH = 32
# Names of a parameter that is given the recording's path in place of its samples.
PATHS = ("path", "file", "filename", "filepath", "audio_path", "audio_file")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity frontend`."""
    parser.description = (
        "Say what a front end does other than MT3's: power for magnitude, centring, window, hop, mel formula and its "
        "edges, log offset and base, normalisation, resampler, mixing of channels, frame shift."
    )
    parser.add_argument(
        "candidate",
        help="its frames of the recording, a .npy of (frames, bins) or (segments, frames, bins); or module:function, "
        "called with the samples (n,) float32 at the model's rate, or with the file's path if its parameter is "
        "called path or file",
    )
    parser.add_argument("--audio", metavar="FILE", help="the recording (default: the bundled one)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of it that are compared (default: %(default)s)")
    parser.add_argument("--model", choices=("mt3", "ismir2021"), default="mt3", help="whose front end is right")
    parser.add_argument("--json", metavar="FILE", help="write the diagnosis as JSON")


def run(args: argparse.Namespace) -> int:
    """Compare a front end with MT3's; return 0 the same, 1 different."""
    if not 0 < args.seconds <= 600:
        raise ValueError(f"--seconds {args.seconds:g}: more than 0 and at most 600")
    config, path = PRESETS[args.model], find_audio(args.audio)
    if args.candidate.endswith(".npy"):
        frames, from_file = _read(args.candidate), True
        recording, is_whole = _recording(path, config, MOST)
        if not is_whole and frames.ndim == 2:
            frames = frames[: len(recording.mel()) - REACH]
    else:
        function, from_file = _function(args.candidate)
        recording, _ = _recording(path, config, args.seconds)
        frames = _called(function, recording if from_file else recording.mono().astype(np.float32), args.candidate)
    if frames.ndim == 3:
        recording.segment = frames.shape[1]
        frames = frames[: len(recording.mel()) // frames.shape[1]]
    diagnosis = diagnose_frames(frames, recording, from_file)
    print_diagnosis(diagnosis, args.candidate, f"the front end of {args.model} on {path}")
    if args.json:
        write_json(args.json, diagnosis.to_dict())
    return diagnosis.exit_code


def _read(path: str) -> np.ndarray:
    try:
        frames = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({error})") from error
    return _checked(frames, path)


def _checked(frames: Any, name: str) -> np.ndarray:
    if hasattr(frames, "detach"):
        frames = frames.detach().cpu().numpy()
    frames = np.asarray(frames)
    if frames.ndim == 3 and frames.shape[0] == 1:
        frames = frames[0]
    if frames.ndim not in (2, 3) or not np.issubdtype(frames.dtype, np.floating) or 0 in frames.shape:
        raise ValueError(f"{name}: frames are floating-point numbers (frames, bins), not {frames.dtype} {frames.shape}")
    return frames


def _function(name: str) -> tuple[Callable[..., Any], bool]:
    """Return the function of 'module:function', and whether it takes a path."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"{name}: a .npy file of frames, or module:function")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: cannot be imported ({error})") from error
    finally:
        sys.path.remove(os.getcwd())
    first = next(iter(inspect.signature(function).parameters), "")
    return function, first in PATHS


def _called(function: Callable[..., Any], argument: Recording | np.ndarray, name: str) -> np.ndarray:
    """Call a front end on samples, or on a file that holds a recording's."""
    import soundfile

    try:
        if isinstance(argument, np.ndarray):
            frames = function(argument)
        else:
            with tempfile.TemporaryDirectory() as folder:
                file = str(Path(folder) / "recording.wav")
                soundfile.write(file, argument.audio.astype(np.float32), argument.rate, subtype="FLOAT")
                with shown_as(file, "recording.wav"):
                    frames = function(file)
    except Exception as error:
        raise ValueError(f"{name} failed on the recording ({type(error).__name__}: {error})") from error
    return _checked(frames, name)


def _recording(path: str, config: Config, seconds: float) -> tuple[Recording, bool]:
    """Read the first seconds of a recording; return it, and whether it ends there."""
    import soundfile

    from mt3_common.audio.files import read_audio

    try:
        with soundfile.SoundFile(path) as file:
            rate, total = file.samplerate, file.frames
            audio = file.read(int(seconds * rate), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        # Only FFmpeg reads it, or nothing does: channels and resampling are those of the project's reader.
        rate = config.spectrogram.sample_rate
        samples = read_audio(path, rate, duration=seconds + 1)
        audio, total = samples[: int(seconds * rate), np.newaxis], len(samples)
    if not len(audio):
        raise ValueError(f"{path}: no audio in it")
    return Recording(audio, rate, config.spectrogram), len(audio) == total
