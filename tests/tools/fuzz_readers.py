"""Damaged files of every kind that is read but checkpoints, by the ten thousand: read, or refused in one sentence.

python tests/tools/fuzz_readers.py [--inputs 100000] [--seed 0] [--memory 2000] [READER …]
    tries as many inputs, spread over the readers, in processes of their own whose memory is limited (Linux); prints
    those that went wrong and how many were read and refused
python tests/tools/fuzz_readers.py --seed 0 --only NUMBER READER
    one of them again, here

Half of the texts (tables, JSON, gin) are damaged by their values rather than by their bytes, half of the soundfonts by
the numbers in their tables. Checkpoints are fuzz_checkpoints.py's.
"""

import argparse
import contextlib
import io
import json
import logging
import math
import os
import re
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
from mt3_common.checkpoint.config_files import read_settings_file, resolve  # noqa: E402
from mt3_common.cli.resume import HEAD, Summary, SummaryError  # noqa: E402
from mt3_common.config import Config, ConfigError  # noqa: E402
from mt3_common.data.corpora import DatasetError, Recording, read_notes, read_tsv  # noqa: E402
from mt3_common.data.sample_fonts import RecordedNote, compasses, write_font  # noqa: E402
from mt3_common.data.shards import Shards, write_shard  # noqa: E402
from mt3_common.data.synthesis import Example  # noqa: E402
from mt3_common.formats import midi, tables  # noqa: E402
from mt3_common.formats.musicxml import write_musicxml  # noqa: E402
from mt3_common.formats.sealed import NoteFileError, written_here  # noqa: E402
from mt3_common.formats.sonify import FontPlayer  # noqa: E402
from mt3_common.training.config import TrainingError, read_config  # noqa: E402

# inputs that a process tries, s of the processor for one of them (ten times as many in all)
CHUNK, LONGEST = 500, 20
# endings of texts, and values that readers of texts meet and do not expect
TEXTS = ("tsv", "json", "jsonl", "gin", "yaml", "csv", "txt")
# files that end with tables of 16-bit words
WORDS = ("sf2",)
VALUES = ("", "0", "-1", "1", "0.5", "1e9", "1e308", "1e999", "-1e-320", "nan", "NaN", "inf", "-Infinity", "null")
VALUES += ("true", "[]", "{}", "[[]]", '"x"', '""', "2147483648", "99999999999999999999", "0x10", "128", "1_0")
VALUES += ('"\\ud800"', "\u0664", "'x'", "()", "10**9", "[" * 10000, '{"x": ' * 3000, "9" * 400)
VALUES += (
    "[" * 90 + "]" * 90,
    "[" * 500 + "]" * 500,
    '{"x": ' * 90 + "0" + "}" * 90,
    "x" * 5000,
    "\0",
    "&a [*a]",
    "!!x y",
)
VALUE = re.compile(r"""-?\d[\d.e+-]*|"[^"]*"|'[^']*'|\b[a-z]\w*""", re.IGNORECASE)


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


def label_files() -> dict[str, bytes]:
    """Return labels of published data sets."""
    jams = {"annotations": [{"namespace": "note_midi", "data": [{"time": 0.1, "duration": 0.5, "value": 52.1}]}]}
    yaml = "stems:\n  S00:\n    audio_rendered: true\n    midi_saved: true\n    is_drum: false\n    program_num: 24\n"
    table = "start_time,end_time,instrument,note,start_beat,end_beat,note_value\n9182,90078,43,53,4.0,1.5,Dotted\n"
    return {
        "guitarset.json": json.dumps(jams).encode(),
        "slakh.yaml": yaml.encode(),
        "musicnet.csv": table.encode(),
        "urmp_vn.txt": b"0.1\t440.0\t0.5\n0.6\t220.5\t0.25\n",
    }


def read_labels(path: Path) -> None:
    """Read the labels of a recording of a published data set."""
    layout = path.name.removeprefix("x.").partition(".")[0].partition("_")[0]
    if layout == "slakh":
        stem = path.with_name("S00.mid")
        midi.write_midi(NOTES, stem)
        files = path, stem
    elif layout == "urmp":
        folder = path.parent / "01_x_vn"
        folder.mkdir(exist_ok=True)
        files = (path.rename(folder / "Notes_1_vn_x.txt"),)
    else:
        files = (path,)
    try:
        read_notes(Recording("x", layout, "train", path, files))
    finally:
        path.touch()


def settings_files() -> dict[str, bytes]:
    """Return files of settings as this project, Hugging Face and gin write them."""
    t5 = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6, "num_layers": 8, "num_decoder_layers": 8}
    t5 |= {"vocab_size": 1536, "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6}
    gin = "NUM_VELOCITY_BINS = 1\nPROGRAM_GRANULARITY = 'full'\nUSE_TIES = True\nnetwork.T5Config:\n  num_heads = 6\n"
    gin += "  mlp_activations = ('gelu', 'linear')\nTASK_FEATURE_LENGTHS = {'inputs': 256, 'targets': 1024}\n"
    return {
        "own.json": json.dumps(Config().to_dict()).encode(),
        "t5.json": json.dumps(t5).encode(),
        "x.gin": gin.encode(),
    }


def read_settings(path: Path) -> None:
    """Read a file of settings beside MT3's arrays."""
    sizes = {"emb_dim": 512, "mlp_dim": 1024, "attention_dim": 384, "num_encoder_layers": 8, "num_decoder_layers": 8}
    sizes |= {"vocab_size": 1536, "input_depth": 512}
    resolve(sizes, [read_settings_file(path.read_bytes().decode(errors="replace"), path.name)])


def training_files() -> dict[str, bytes]:
    """Return files of settings of a training run."""
    plan = {"steps": 8, "batch_size": 4, "ema": 0.9, "schedule": "cosine", "arranged": False}
    return {"json": json.dumps({"model": Config().to_dict(), "training": plan}).encode()}


def summaries() -> dict[str, bytes]:
    """Return the summary of a run over a folder."""
    record = {"status": "done", "input": {"sha256": "0"}, "checkpoint": {}, "settings": {"velocity": None}}
    record["outputs"] = {"mid": {"path": "x.mid", "sha256": "0"}}
    line = HEAD + json.dumps(record)[1:] + "\n"
    return {"jsonl": 3 * line.encode()}


def shards() -> dict[str, bytes]:
    """Return segments for training."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        write_shard(path, [Example(np.zeros(70000, np.float32), NOTES, "x")], Config(), [0, 0])
        return {"npz": path.read_bytes()}


def read_shard(path: Path) -> None:
    """Open a shard and read its first segment."""
    Shards([path], Config()).batch([0])


def outputs() -> dict[str, bytes]:
    """Return files of notes, of which it is asked whether they are as this program wrote them."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix, write in (
            ("mid", midi.write_midi), ("csv", tables.write_csv),
            ("json", tables.write_json), ("musicxml", write_musicxml),
        ):  # fmt: skip
            write(NOTES, Path(folder) / f"x.{suffix}")
        return {path.suffix[1:]: path.read_bytes() for path in Path(folder).iterdir()}


def soundfonts() -> dict[str, bytes]:
    """Return a soundfont of two notes."""
    samples = (0.3 * np.sin(np.arange(2000) / 10)).astype(np.float32)
    notes = [RecordedNote(samples, key + 0.1, key, velocity, (100, 1900)) for key, velocity in ((60, 0.5), (64, 1.0))]
    with tempfile.TemporaryDirectory() as folder:
        write_font(Path(folder) / "x.sf2", "x", 40, notes)
        return {"sf2": (Path(folder) / "x.sf2").read_bytes()}


def read_soundfont(path: Path) -> None:
    """Read what a soundfont can play, and play it."""
    compasses.cache_clear()
    compasses(path)
    for block in FontPlayer(path).play(NOTES, 22050, 22050):
        assert len(block)


READERS = {
    "recording": Reader(recordings, read_recording, (AudioError,)),
    "midi": Reader(midi_files, read_midi, (NoteFileError,)),
    "tsv": Reader(tables_of_notes, read_tsv, (DatasetError,)),
    "labels": Reader(label_files, read_labels, (DatasetError, NoteFileError)),
    "json": Reader(json_files, tables.read_json, (NoteFileError,)),
    "settings": Reader(settings_files, read_settings, (ConfigError,)),
    "training": Reader(training_files, read_config, (ConfigError, TrainingError)),
    "summary": Reader(summaries, Summary, (SummaryError,)),
    "shard": Reader(shards, read_shard, (ValueError,)),
    "output": Reader(outputs, written_here, ()),
    "soundfont": Reader(soundfonts, read_soundfont, (ValueError,)),
}


def altered(random: Random, text: str) -> str:
    """Return a text with one to three of its values replaced by odd ones, or by others of the same text."""
    for _ in range(random.randint(1, 3)):
        values = list(VALUE.finditer(text))
        if values:
            match = random.choice(values)
            value = random.choice(VALUES) if random.random() < 0.8 else random.choice(values)[0]
            text = text[: match.start()] + value + text[match.end() :]
    return text


def misled(random: Random, content: bytes) -> bytes:
    """Return a file with one to three of the 16-bit words of its tables, which end it, replaced by odd ones."""
    words = np.frombuffer(content[len(content) % 2 :], "<u2").copy()
    for _ in range(random.randint(1, 3)):
        words[-random.randint(1, 300)] = random.choice((0, 1, 2, 3, 127, 128, 0x7F, 0xFF00, 0x7FFF, 0x8000, 0xFFFF))
    return content[: len(content) % 2] + words.tobytes()


class TooLongError(BaseException):
    """Raised in an input that takes too long."""


def tried(name: str, seeds: dict[str, bytes], seed: int, number: int, folder: Path) -> str:
    """Read an input; return 'read', 'refused', or else what went wrong."""
    random = Random(f"{name} {seed} {number}")
    suffix = random.choice(sorted(seeds))
    path = folder / f"x.{suffix}"
    ending, content = suffix.rpartition(".")[2], seeds[suffix]
    if ending in (*TEXTS, *WORDS) and random.random() < 0.5:
        content = altered(random, content.decode()).encode() if ending in TEXTS else misled(random, content)
    else:
        content = mutated(random, content)
    path.write_bytes(content)
    reader = READERS[name]

    def too_long(*_):
        raise TooLongError

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    signal.alarm(10 * LONGEST)
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
        signal.setitimer(signal.ITIMER_PROF, 0)
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
