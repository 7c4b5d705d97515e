"""Damaged recordings, MIDI files, tables and JSON by the ten thousand: each is read or refused in one sentence.

python tests/tools/fuzz_readers.py [--inputs 100000] [--seed 0] [--memory 2000] [READER …]
    tries as many inputs, spread over the readers, in processes of their own whose memory is limited (Linux); prints
    those that went wrong and how many were read and refused
python tests/tools/fuzz_readers.py --seed 0 --only NUMBER READER
    one of them again, here
"""

import argparse
import contextlib
import io
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests" / "tools")) if path not in sys.path]

from fuzz import AUDIO, NOTES, mutated  # noqa: E402

from mt3_common.audio.files import AudioError, audio_duration, stream_audio  # noqa: E402
from mt3_common.data.corpora import DatasetError, read_tsv  # noqa: E402
from mt3_common.formats import midi, tables  # noqa: E402
from mt3_common.formats.sealed import NoteFileError  # noqa: E402

# inputs that a process tries, s for one of them
CHUNK, LONGEST = 500, 20


class Reader(NamedTuple):
    """A reader to try; another one needs a line in READERS.

    Attributes:
        seeds: whole files by suffix.
        read: reads a file.
        refusals: exceptions that say in one sentence what is wrong with a file.
    """

    seeds: Callable[[], dict[str, bytes]]
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]


def recordings() -> dict[str, bytes]:
    """Return small recordings of every format, some joined and some without lengths."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (6000, 2))
    files = {}
    for suffix, (kind, subtype) in AUDIO.items():
        content = io.BytesIO()
        soundfile.write(content, samples, 48000, format=kind, subtype=subtype)
        files[suffix] = content.getvalue()
    for suffix in ("mp3", "ogg", "opus", "wav", "flac", "au", "caf", "aiff"):
        files[f"joined.{suffix}"] = 2 * files[suffix]
    for codec, suffix in (("aac", "m4a"), ("libopus", "webm"), ("aac", "aac")):
        with contextlib.suppress(ImportError):
            files[suffix] = encoded(codec, suffix, samples)
    return files


def encoded(codec: str, suffix: str, samples: np.ndarray) -> bytes:
    """Return samples (n, 2) as FFmpeg encodes them."""
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.{suffix}"
        with av.open(path, "w") as container:
            stream = container.add_stream(codec, rate=48000, layout="stereo")
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.T.astype(np.float32)), format="fltp", layout="stereo"
            )
            frame.sample_rate = 48000
            resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="stereo", rate=48000)
            for block in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(block))
            container.mux(stream.encode(None))
        return Path(path).read_bytes()


def read_recording(path: Path) -> None:
    """Read a recording of up to 20 s, and its duration."""
    audio_duration(path)
    for block in stream_audio(path, duration=20.0):
        assert np.isfinite(block).all()


def midi_files() -> dict[str, bytes]:
    """Return MIDI files as this project writes them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.mid"
        files = {}
        for count in (1, 3):
            moved = [n._replace(onset=n.onset + i, offset=n.offset + i) for i in range(count) for n in NOTES]
            midi.write_midi(moved, path)
            files[f"{count}.mid"] = path.read_bytes()
        return files


def read_midi(path: Path) -> None:
    """Read a MIDI file with its pedal."""
    for note in midi.read_midi(path, sustain=True):
        assert 0 <= note.onset <= note.offset < math.inf


def tables_of_notes() -> dict[str, bytes]:
    """Return tables of notes."""
    lines = ["onset\toffset\tpitch\tprogram\tis_drum", *(f"{n.onset}\t{n.offset}\t{n.pitch}\t0\t1" for n in NOTES)]
    return {"tsv": "\n".join(lines).encode(), "csv.tsv": "\n".join(lines).replace("\t", ",").encode()}


def json_files() -> dict[str, bytes]:
    """Return notes as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        tables.write_json(NOTES, Path(folder) / "x.json", {"audio": "x"})
        return {"json": (Path(folder) / "x.json").read_bytes()}


READERS = {
    "recording": Reader(recordings, read_recording, (AudioError,)),
    "midi": Reader(midi_files, read_midi, (NoteFileError,)),
    "tsv": Reader(tables_of_notes, read_tsv, (DatasetError,)),
    "json": Reader(json_files, tables.read_json, (NoteFileError,)),
}


class TooLongError(BaseException):
    """Raised in an input that takes too long."""


def tried(name: str, seeds: dict[str, bytes], seed: int, number: int, folder: Path) -> str:
    """Read an input; return 'read', 'refused', or else what went wrong."""
    random = Random(f"{name} {seed} {number}")
    suffix = random.choice(sorted(seeds))
    path = folder / f"x.{suffix}"
    path.write_bytes(mutated(random, seeds[suffix]))
    reader = READERS[name]

    def too_long(*_):
        raise TooLongError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST)
    try:
        reader.read(path)
        return "read"
    except reader.refusals as error:
        text = str(error)
        return "refused" if text and "\n" not in text and len(text) < 1000 else f"no sentence: {text!r}"
    except TooLongError:
        return f"took more than {LONGEST} s"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        path.unlink()


def chunk(name: str, seed: int, first: int, count: int, memory: int) -> None:
    """Try inputs in this process, whose address space is limited (MB); print a line of JSON for each."""
    warnings.simplefilter("error")
    logging.getLogger("mt3_common").addHandler(logging.NullHandler())
    logging.getLogger("mt3_common").propagate = False
    seeds = READERS[name].seeds()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = used + memory * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory(prefix="mt3-fuzz-") as folder:
        for number in range(first, first + count):
            print(json.dumps([number, tried(name, seeds, seed, number, Path(folder))]), flush=True)


def run(name: str, seed: int, first: int, count: int, memory: int) -> dict[int, str]:
    """Try inputs in a process of their own; return the outcome of each by number."""
    command = [sys.executable, __file__, name, "--seed", str(seed), "--memory", str(memory)]
    command += ["--chunk", str(first), "--inputs", str(count)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    outcomes = dict(lines)
    if result.returncode:
        outcomes[first + len(outcomes)] = f"exit status {result.returncode}: {result.stderr[-2000:]}"
    return outcomes


def main() -> int:
    """Return the exit status: 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)}; default: all")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=2000, metavar="MB", help="more than at the start; default: 2000")
    parser.add_argument("--only", type=int)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.readers or list(READERS)
    if arguments.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(tried(names[0], READERS[names[0]].seeds(), arguments.seed, arguments.only, Path(folder)))
        return 0
    if arguments.chunk is not None:
        chunk(names[0], arguments.seed, arguments.chunk, arguments.inputs, arguments.memory)
        return 0
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    start, share = time.monotonic(), -(-arguments.inputs // len(names))
    for first in range(0, share, CHUNK):
        for name in names:
            number, stop = first, min(share, first + CHUNK)
            while number < stop:
                outcomes = run(name, arguments.seed, number, stop - number, arguments.memory)
                for number, outcome in outcomes.items():
                    kind = outcome if outcome in ("read", "refused") else "wrong"
                    counts[name][kind] += 1
                    if kind == "wrong":
                        print(f"{name} --seed {arguments.seed} --only {number}: {outcome}", flush=True)
                number += 1
        print(f"{time.monotonic() - start:.0f} s: {sum(map(Counter.total, counts.values()))} inputs", flush=True)
    for name, count in counts.items():
        print(f"{name}: {count['read']} read, {count['refused']} refused, {count['wrong']} wrong")
    return 1 if any(count["wrong"] for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
