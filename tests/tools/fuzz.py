"""Damaged files and odd options, thousands of them: each must lead to notes or to one sentence, never to a traceback.

python tests/tools/fuzz.py [--seconds 300] [--seed 0] [KIND …]
    tries as many cases as the time allows, in processes of their own, and prints those that went wrong
python tests/tools/fuzz.py --seed 0 --only NUMBER KIND
    one of them again, here
"""

import argparse
import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

from fakes import CONFIG, first_segment_only  # noqa: E402

from mt3_common.checkpoint.read import read_checkpoint  # noqa: E402
from mt3_common.checkpoint.write import write_safetensors  # noqa: E402
from mt3_common.cli import infer as cli  # noqa: E402
from mt3_common.cli.resume import Summary, SummaryError  # noqa: E402
from mt3_common.formats import midi, sealed, tables  # noqa: E402
from mt3_common.notes.note import Note  # noqa: E402
from mt3_common.transcription.pipeline import Transcriber  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "model" / "checkpoints"
NOTES = [Note(0.1, 0.6, 60, 127, 0, False), Note(0.5, 0.51, 36, 127, 0, True), Note(0.2, 1.0, 64, 100, 40, False)]
AUDIO = {
    "wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "alaw.wav": ("WAV", "ALAW"),
    "ima.wav": ("WAV", "IMA_ADPCM"),
    "wavex.wav": ("WAVEX", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
# libsndfile's MP3 decoder says on stderr what it stumbles over, and cannot be told not to
DECODER = re.compile(r"^(Note: |Warning: |\[src/libmpg123|\n).*\n", re.MULTILINE)
# s, and MB more than before
LONGEST, LARGEST = 60, 1000
# cases that a process tries
CHUNK = 100


def mutated(random: Random, content: bytes, head: int = 256) -> bytes:
    """The content with one to four damages, half of them among the first bytes."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(min(len(data), head) if random.random() < 0.5 else len(data)) if data else 0
        length = random.choice((1, 2, 4, 8, 64, 1000))
        match random.randrange(8):
            case 0:
                data[place : place + 1] = bytes([random.randrange(256)])
            case 1 if data:
                data[place] ^= 1 << random.randrange(8)
            case 2:
                del data[place:]
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = data[place : place + length]
            case 5:
                data[place : place + length] = bytes(length)
            case 6:
                data[place : place + 4] = random.choice(NUMBERS).to_bytes(4, random.choice(("little", "big")))
            case 7:
                data[place:place] = random.randbytes(length)
    return bytes(data)


def infer(folder: Path, argv: list[str]) -> Iterator[str]:
    """Yield what is wrong with how the command line takes the arguments in a folder."""
    before = set(folder.rglob("*"))
    stderr = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("error")
        status = cli.main("torch_mt3", lambda **settings: Transcriber(CONFIG, first_segment_only), argv)
    message = stderr.getvalue()
    if status not in (cli.SUCCESS, cli.SOME_FAILED, cli.NOT_STARTED):
        yield f"exit status {status}"
    for line in message.splitlines():
        if not line.startswith(("error: ", "note: ")) or "--debug shows where" in line:
            yield f"said: {line}"
    if bool(status) != ("error: " in message):
        yield f"exit status {status}, but said: {message}"
    for path in set(folder.rglob("*")) - before:
        if path.suffix == ".tmp":
            yield f"left {path.name}"
        elif path.suffix == ".mid":
            if not sealed.written_here(path):
                yield f"half-written: {path.name}"
            midi.read_midi(path)


def audio_case(random: Random, folder: Path) -> Iterator[str]:
    """A damaged recording."""
    kind = random.choice(sorted(AUDIO))
    format, subtype = AUDIO[kind]
    rate = random.choice((8000, 16000, 44100, 48000)) if kind != "opus" else 48000
    samples = np.random.default_rng(random.randrange(2**32)).uniform(-0.5, 0.5, (random.choice((1, 500, 30000)), 2))
    whole = folder / f"whole.{kind}"
    with contextlib.suppress(soundfile.LibsndfileError):
        soundfile.write(whole, samples[:, : random.randint(1, 2)], rate, subtype=subtype, format=format)
    path = folder / f"x.{random.choice((kind, kind, 'wav', 'mp3', 'raw', 'bin'))}"
    path.write_bytes(mutated(random, whole.read_bytes()))
    whole.unlink()
    argv = [str(path), "-o", str(folder / "out.mid")]
    if random.random() < 0.3:
        argv += ["--start", str(random.choice((0.0, 0.01, 0.3, 5.0))), "--duration", "0.2"]
    yield from infer(folder, argv)


def refused(action: Callable[[], object], *kinds: type[Exception]) -> Iterator[str]:
    """Yield what is wrong with an action that may raise these, with a one-line text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            action()
    except kinds as error:
        if not str(error) or "\n" in str(error) or len(str(error)) > 1000:
            yield f"{type(error).__name__}: {error}"


def midi_case(random: Random, folder: Path) -> Iterator[str]:
    """A damaged MIDI file."""
    path = folder / "x.mid"
    midi.write_midi(NOTES * random.randint(0, 3), path)
    path.write_bytes(mutated(random, path.read_bytes()))
    sealed.written_here(path)
    yield from refused(lambda: midi.read_midi(path, sustain=random.random() < 0.5), sealed.NoteFileError)


def json_case(random: Random, folder: Path) -> Iterator[str]:
    """A damaged JSON file of notes."""
    path = folder / "x.json"
    tables.write_json(NOTES, path, {"audio": "x"})
    path.write_bytes(mutated(random, path.read_bytes()))
    yield from refused(lambda: tables.read_json(path), sealed.NoteFileError)


def summary_case(random: Random, folder: Path) -> Iterator[str]:
    """A damaged summary, which another run goes on with."""
    soundfile.write(folder / "a.wav", np.zeros(2000), 16000)
    soundfile.write(folder / "b.wav", np.zeros(3000), 16000)
    argv = [str(folder / "a.wav"), str(folder / "b.wav"), "-o", str(folder / "out"), "--resume"]
    yield from infer(folder, argv)
    path = folder / "out" / "summary.jsonl"
    path.write_bytes(mutated(random, path.read_bytes()))
    yield from refused(lambda: Summary(path), SummaryError)
    yield from infer(folder, argv)


def checkpoint_case(random: Random, folder: Path) -> Iterator[str]:
    """A checkpoint with one damaged file."""
    kind = random.choice([*(path.name for path in sorted(GOLDEN.iterdir())), "safetensors"])
    place = folder / "checkpoint"
    if kind == "safetensors":
        checkpoint = read_checkpoint(GOLDEN / "t5x_zarr")
        place = folder / "x.safetensors"
        write_safetensors(place, checkpoint.arrays, checkpoint.config())
        files = [place]
    else:
        shutil.copytree(GOLDEN / kind, place)
        files = sorted(path for path in place.rglob("*") if path.is_file())
    # what describes arrays rather than what is in them, mostly
    small = [path for path in files if path.stat().st_size < 3000]
    path = random.choice(small if small and random.random() < 0.7 else files)
    path.write_bytes(mutated(random, path.read_bytes(), head=2000))

    def read() -> None:
        read_checkpoint(place).config()

    yield from refused(read, ValueError, OSError)


def options_case(random: Random, folder: Path) -> Iterator[str]:
    """Options at random."""
    with contextlib.redirect_stdout(io.StringIO()) as listed, contextlib.suppress(SystemExit):
        cli.main("torch_mt3", lambda **settings: None, ["--help"])
    options = sorted(
        set(re.findall(r"--[a-z-]+", listed.getvalue()))
        - {
            "--help",
            "--list-instruments",
            "--debug",
            "--verbose",
            "--ray",
        }
    )
    soundfile.write(folder / "a.wav", np.zeros(3000), 16000)
    values = [
        "0",
        "1",
        "-1",
        "nan",
        "1e999",
        "",
        "x",
        "mid,json",
        "-",
        "a.wav",
        "é\n",
        "\udcff",
        "t5x",
        "sample",
        "cpu",
        "http://x/y",
        "s3://x/y",
    ]
    values += [
        "cpu,",
        "mt3",
        "http://x/y",
        "s3://x/y",
        "piano",
        "99999999999999999999",
        "csv",
        ".",
        "/dev/null",
        "*",
        "[",
        "0.5",
        "greedy",
    ]
    argv = [str(folder / "a.wav")]
    for _ in range(random.randint(1, 5)):
        argv.append(random.choice(options))
        argv += [random.choice(values)] * (random.random() < 0.7)
    if "--offline" not in argv:
        argv.append("--offline")
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(random.choice((b"", b"a.wav\n", b"\0\xff"))))
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield from infer(folder, argv)
    finally:
        os.chdir(here)
        sys.stdin = stdin


CASES = {
    "audio": audio_case,
    "midi": midi_case,
    "json": json_case,
    "summary": summary_case,
    "checkpoint": checkpoint_case,
    "options": options_case,
}


class TooLong(BaseException):
    """A case that does not end."""


def wrong(kind: str, seed: int, number: int) -> list[str]:
    """Return all that goes wrong in a case."""
    random = Random(f"{kind} {seed} {number}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def too_long(*_):
        raise TooLong

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST)
    try:
        with tempfile.TemporaryDirectory(prefix="mt3-fuzz-") as folder:
            faults = list(CASES[kind](random, Path(folder)))
    except TooLong:
        faults = [f"took more than {LONGEST} s"]
    except BaseException:
        faults = [traceback.format_exc()]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    return faults + [f"took {grown:.0f} MB"] * (grown > LARGEST)


def chunk(kind: str, seed: int, first: int, until: float) -> None:
    """Tries cases and prints a line of JSON before and after each."""
    for number in range(first, first + CHUNK):
        if time.time() > until:
            return
        print(json.dumps([number, None]), flush=True)
        print(json.dumps([number, wrong(kind, seed, number)]), flush=True)


def main() -> int:
    """Exit status: 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    kinds = arguments.kinds or list(CASES)
    if arguments.only is not None:
        print("\n".join(wrong(kinds[0], arguments.seed, arguments.only)))
        return 0
    if arguments.chunk is not None:
        chunk(kinds[0], arguments.seed, arguments.chunk, arguments.until)
        return 0
    tried = dict.fromkeys(kinds, 0)
    failures = 0
    until = time.time() + arguments.seconds
    first = 0
    while time.time() < until:
        for kind in kinds:
            command = [sys.executable, __file__, kind, "--seed", str(arguments.seed), "--chunk", str(first)]
            share = until - (until - time.time()) * (1 - 1 / (len(kinds) - kinds.index(kind)))
            command += ["--until", str(min(until, share))]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace")
            lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
            begun = [number for number, faults in lines if faults is None]
            done = {number: faults for number, faults in lines if faults is not None}
            tried[kind] += len(begun)
            if result.returncode:
                done[begun[-1] if begun else first] = [f"exit status {result.returncode}: {result.stderr[-2000:]}"]
            for number, faults in done.items():
                for text in faults:
                    failures += 1
                    print(f"{kind} --seed {arguments.seed} --only {number}: {text}", flush=True)
            message = DECODER.sub("", result.stderr).strip()
            if message and not result.returncode:
                failures += 1
                print(
                    f"{kind} --seed {arguments.seed}, from {first} on, past the program: {message[:1000]}",
                    flush=True,
                )
        first += CHUNK
    counts = ", ".join(f"{count} {kind}" for kind, count in tried.items())
    print(f"{sum(tried.values())} cases ({counts}), {failures} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
