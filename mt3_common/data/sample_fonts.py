"""Soundfonts (.sf2) built from folders of recorded single notes, and the compass of any soundfont's instruments.

A folder of notes has an index.tsv with a row for each file: program (General MIDI from 0, or 'drums' with the drum's
key), measured pitch, loudness layer, take, loop. Each instrument, articulation and take becomes a font of its own with
one preset, so that drawing among fonts draws among players, instruments and takes.

Source of the file format: SoundFont technical specification 2.01, sections 4 to 8.
"""

import csv
import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from mt3_common.formats.sf2 import (
    BAG,
    GENERATOR,
    GUARD,
    INSTRUMENT,
    INSTRUMENT_HEADER,
    KEYS,
    MODULATOR,
    PRESET_HEADER,
    SAMPLE,
    SAMPLE_HEADER,
    VELOCITIES,
    VORBIS,
    SoundfontError,
    chunk,
    read_tables,
    write,
)
from mt3_common.io import atomic
from mt3_common.io.folders import make_folder
from mt3_common.io.plural import plural

RATE = 24000
# MIDI keys that a recorded note is played up or down by at most, between its neighbours and beyond the last ones
REACH, REACH_BEYOND = 4, 2
# s, of a crossfade that joins the end of a loop to its beginning
CROSSFADE = 0.01
# closed, pedal and open hi-hat: one silences another
HI_HATS = (42, 44, 46)
# s until a note that ends has fallen by 80 dB, by MIDI class of its program; drums ring on
RELEASES = {0: 0.5, 1: 0.6, 2: 0.1, 3: 0.35, 4: 0.25, 5: 0.3, 6: 0.3, 7: 0.2, 8: 0.15, 9: 0.2}
RELEASE, DRUM_RELEASE = 0.25, 6.0
# SoundFont generators: section 8.1.2 of the specification
RELEASE_TIME, LOOPS, EXCLUSIVE, ROOT = 38, 54, 57, 58
DRUM_BANK, NO_DRUM = 128, 127
# samples that are read at a time
BLOCK = 1 << 16
# dB, highest level_db of a drum; 0 is full scale
LOUDEST = 40


# of index.tsv; the last four are empty where they do not apply
COLUMNS = ("path", "split", "program", "key", "velocity", "level_db", "pitch", "articulation", "take")
COLUMNS += ("loop_start", "loop_end")


class NotesError(ValueError):
    """Recorded notes that cannot be made a soundfont, or a file that is none."""


class RecordedNote(NamedTuple):
    """A recorded note, which begins at the start of its samples.

    Attributes:
        samples: (n,) float32 at RATE.
        pitch: MIDI pitch with cents.
        key: of the keyboard; the drum for drums, else the pitch rounded.
        velocity: loudness in 0..1 among the notes of the same key.
        loop: first sample and the one behind the last, or None.
    """

    samples: np.ndarray
    pitch: float
    key: int
    velocity: float
    loop: tuple[int, int] | None


class Zone(NamedTuple):
    """Range in which a recorded note is played: keys and velocities from low to high, both included."""

    note: RecordedNote
    keys: tuple[int, int]
    velocities: tuple[int, int]


class Compass(NamedTuple):
    """Keys that an instrument of a soundfont can play.

    Attributes:
        longest: (128,) s, how long a key sounds while it is held: 0 where it is silent, inf where its sample loops.
    """

    longest: np.ndarray


def read_notes(folder: Path, split: str) -> dict[str, tuple[int | None, list[RecordedNote]]]:
    """Recorded notes by instrument, articulation and take: name -> (program, None for drums; notes).

    Args:
        folder: with index.tsv.
        split: 'train' or 'heldout'.

    Raises:
        NotesError: there is no index, no note of the split, or a file that the index names cannot be read.
    """
    try:
        with open(folder / "index.tsv", newline="") as file:
            rows = [row for row in csv.DictReader(file, delimiter="\t") if row.get("split") == split]
    except OSError as error:
        raise NotesError(f"{folder} has no index.tsv of recorded notes: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise NotesError(f"{folder} has no index.tsv of recorded notes: {error}") from error
    try:
        return _grouped(folder, rows, split)
    except NotesError:
        raise
    except KeyError as error:
        raise NotesError(f"{folder / 'index.tsv'} has no column {error}; it has {', '.join(COLUMNS)}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise NotesError(f"{folder / 'index.tsv'}: a line is not as it must be: {str(error)[:200]}") from error


def _grouped(
    folder: Path, rows: Sequence[Mapping[str, str]], split: str
) -> dict[str, tuple[int | None, list[RecordedNote]]]:
    """Return the notes of rows of the index as read_notes does."""
    groups = defaultdict(list)
    for row in rows:
        drums = row["program"] == "drums"
        # takes of a drum are so many hits of it, which are told apart by loudness
        parts = [row["path"].split("/")[0], *([] if drums else [row["articulation"], f"take{row['take']}"])]
        name = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(part for part in parts if part))
        groups[name, None if drums else int(row["program"])].append(row)
    if not groups:
        raise NotesError(f"{folder / 'index.tsv'} has no notes of the split {split!r}")
    return {name: (program, _read_group(folder, rows, program)) for (name, program), rows in sorted(groups.items())}


def _read_group(folder: Path, rows: Sequence[Mapping[str, str]], program: int | None) -> list[RecordedNote]:
    """The notes of rows of the index; each drum as loud beside the others as it was played."""
    loudest: dict[str, float] = {}
    for row in rows:
        loudest[row["key"]] = max(loudest.get(row["key"], -24.0), float(row["level_db"]))
    notes = []
    for row in rows:
        samples = _samples(folder / row["path"])
        key, velocity = int(row["key"]), float(row["velocity"])
        loop = (int(row["loop_start"]), int(row["loop_end"])) if row["loop_start"] else None
        pitch = key if program is None else float(row["pitch"])
        for name, value, high in (("key", key, 127), ("pitch", pitch, 127), ("velocity", velocity, 1)):
            if not 0 <= value <= high:
                raise NotesError(
                    f"{folder / 'index.tsv'}: {row['path']} has {name} {value}, which is not in 0 to {high}"
                )
        if not (program is None or 0 <= program <= 127):
            raise NotesError(f"{folder / 'index.tsv'}: {row['path']} has program {program}, which is not in 0 to 127")
        if loop and not 0 <= loop[0] < loop[1] <= len(samples):
            raise NotesError(
                f"{folder / 'index.tsv'}: {row['path']} has a loop from {loop[0]} to {loop[1]}, and "
                f"{plural(len(samples), 'sample')}"
            )
        if program is None:
            level = loudest[row["key"]]
            if not level <= LOUDEST:
                raise NotesError(f"{folder / 'index.tsv'}: key {key} has level_db {level:g}, which is over {LOUDEST}")
            samples = samples * np.float32(10 ** (level / 20))
        notes.append(RecordedNote(samples, pitch, key, velocity, loop))
    return notes


def _samples(path: Path) -> np.ndarray:
    """Read a recorded note in blocks, so that memory is what is there, not what its header claims."""
    blocks = []
    try:
        with soundfile.SoundFile(path) as file:
            if file.samplerate != RATE or file.channels != 1:
                raise NotesError(f"{path} must be mono at {RATE} Hz")
            while len(block := file.read(BLOCK, dtype="float32")):
                blocks.append(block)
    except (OSError, soundfile.LibsndfileError) as error:
        raise NotesError(f"{path} cannot be read: {error}") from error
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def zones(notes: Sequence[RecordedNote], is_drum: bool = False) -> list[Zone]:
    """The keys and velocities that each note is played at, so that every key of the compass has every velocity.

    A key between two recorded ones takes the nearer one, at most REACH keys away (REACH_BEYOND outside of all).
    """
    by_key: dict[int, list[RecordedNote]] = defaultdict(list)
    for note in notes:
        by_key[note.key].append(note)
    keys = sorted(by_key)
    laid = []
    for index, key in enumerate(keys):
        low = max(key - REACH, (keys[index - 1] + key) // 2 + 1) if index else key - REACH_BEYOND
        high = min(key + REACH, (key + keys[index + 1]) // 2) if index + 1 < len(keys) else key + REACH_BEYOND
        span = (key, key) if is_drum else (max(0, low), min(127, high))
        layers = sorted(by_key[key], key=lambda note: note.velocity)
        # boundaries half-way between the layers' velocities; equal ones share what they have
        middle = [127 * (a.velocity + b.velocity) / 2 for a, b in itertools.pairwise(layers)]
        edges = [0, *(int(np.clip(round(edge), 1, 126)) for edge in middle), 127]
        for note, (below, above) in zip(layers, itertools.pairwise(edges)):
            if above > below:
                laid.append(Zone(note, span, (below + 1, above)))
    return laid


def write_font(path: Path, name: str, program: int | None, notes: Sequence[RecordedNote]) -> None:
    """Writes a soundfont with one preset (program None: a drum kit); the file appears whole or not at all.

    Raises:
        NotesError: there are no notes.
    """
    if not notes:
        raise NotesError(f"{name}: a soundfont needs at least one note")
    laid = zones(notes, program is None)
    release = DRUM_RELEASE if program is None else RELEASES.get(program // 8, RELEASE)
    pieces, headers, generators, bags = [], [], [], []
    position = 0
    for number, zone in enumerate(laid):
        samples, loop = _looped(zone.note)
        root = int(np.clip(round(zone.note.pitch), 0, 127))
        start, end = position, position + len(samples)
        first, last = (start + loop[0], start + loop[1]) if loop else (start, end)
        # cents that the sample has to be raised by to sound as its root key
        correction = round(100 * (root - zone.note.pitch))
        headers.append((f"{number}".encode(), start, end, first, last, RATE, root, correction, 0, 1))
        pieces += [np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2"), np.zeros(GUARD, "<i2")]
        position = end + GUARD
        bags.append((len(generators), 0))
        generators += [(KEYS, *zone.keys), (VELOCITIES, *zone.velocities), _amount(RELEASE_TIME, _timecents(release))]
        if loop:
            generators.append(_amount(LOOPS, 1))
        if program is None and zone.note.key in HI_HATS:
            generators.append(_amount(EXCLUSIVE, 1))
        generators.append(_amount(SAMPLE, number))
    label = name.encode()[:19]
    presets = [(label, program or 0, 128 if program is None else 0, 0, (0, 0, 0)), (b"EOP", 0, 0, 1, (0, 0, 0))]
    pdta = {
        b"phdr": np.array(presets, PRESET_HEADER),
        b"pbag": np.array([(0, 0), (1, 0)], BAG),
        b"pmod": np.zeros(1, MODULATOR),
        b"pgen": np.array([_amount(INSTRUMENT, 0), (0, 0, 0)], GENERATOR),
        b"inst": np.array([(label, 0), (b"EOI", len(bags))], INSTRUMENT_HEADER),
        b"ibag": np.array([*bags, (len(generators), 0)], BAG),
        b"imod": np.zeros(1, MODULATOR),
        b"igen": np.array([*generators, (0, 0, 0)], GENERATOR),
        b"shdr": np.array([*headers, (b"EOS", *[0] * 9)], SAMPLE_HEADER),
    }
    write(path, label, pdta, np.concatenate(pieces))


def _looped(note: RecordedNote) -> tuple[np.ndarray, tuple[int, int] | None]:
    """The samples of a note, up to the end of its loop, which fades over into its beginning; and the loop."""
    if note.loop is None:
        return note.samples, None
    first, end = note.loop
    samples = note.samples[: end + 8].copy()
    fade = min(round(CROSSFADE * RATE), first, end - first)
    rising = np.linspace(0, 1, fade, endpoint=False, dtype=np.float32)
    samples[end - fade : end] += rising * (note.samples[first - fade : first] - samples[end - fade : end])
    # what is read behind the loop's end to interpolate goes on as its beginning does
    samples[end : end + 8] = note.samples[first : first + len(samples) - end]
    return samples, note.loop


def _timecents(seconds: float) -> int:
    return round(1200 * math.log2(seconds))


def _amount(operator: int, value: int) -> tuple[int, int, int]:
    """A generator with a signed number of 16 bits."""
    return operator, value & 0xFF, value >> 8 & 0xFF


def _tables(path: Path) -> dict[bytes, np.ndarray]:
    """Return the tables of a soundfont; NotesError if it is none."""
    try:
        return read_tables(path).tables
    except SoundfontError as error:
        raise NotesError(f"{path} is no soundfont that can be read: {error}") from error


def as_drum_kit(path: Path, leave_out: Sequence[int]) -> None:
    """Move the presets of a soundfont to the bank of drums, where General MIDI has them, and silence some of its keys.

    Args:
        path: of the soundfont, which is replaced.
        leave_out: keys whose sounds are not General MIDI's; they are moved to key 127, where there is no drum.

    Raises:
        NotesError: the file is no soundfont, or cut off.
    """
    tables = _tables(path)
    presets = tables[b"phdr"].copy()
    presets["bank"][:-1] = DRUM_BANK
    content = path.read_bytes().replace(chunk(b"phdr", tables[b"phdr"].tobytes()), chunk(b"phdr", presets.tobytes()))
    for tag in (b"pgen", b"igen"):
        generators = tables[tag].copy()
        silenced = (
            (generators["operator"] == KEYS)
            & (generators["low"] == generators["high"])
            & np.isin(generators["low"], leave_out)
        )
        generators["low"][silenced] = generators["high"][silenced] = NO_DRUM
        content = content.replace(chunk(tag, tables[tag].tobytes()), chunk(tag, generators.tobytes()))
    atomic.write(path, content)


@functools.lru_cache(maxsize=256)
def compasses(path: Path) -> dict[tuple[int, int], Compass]:
    """Return what each preset of a soundfont can play, by bank (128: drums) and program.

    Raises:
        NotesError: the file is no soundfont, or cut off or damaged.
    """
    tables = _tables(path)
    try:
        return _compasses(tables)
    except (IndexError, KeyError, ValueError, OverflowError) as error:
        raise NotesError(f"{path} is damaged: its tables of instruments do not fit each other") from error


def _compasses(tables: Mapping[bytes, np.ndarray]) -> dict[tuple[int, int], Compass]:
    """Return what the presets in the tables of a soundfont can play, as compasses does."""
    presets, instruments, samples = (tables[tag] for tag in (b"phdr", b"inst", b"shdr"))
    bags = {tag: tables[tag]["generator"] for tag in (b"pbag", b"ibag")}

    def zones_of(headers: np.ndarray, index: int, kind: bytes) -> Iterator[dict[int, tuple[int, int]]]:
        """Generators (low and high byte) of each zone but the global one, whose generators hold for all."""
        common: dict[int, tuple[int, int]] = {}
        link = INSTRUMENT if kind == b"p" else SAMPLE
        for bag in range(headers["bag"][index], headers["bag"][index + 1]):
            rows = tables[kind + b"gen"][bags[kind + b"bag"][bag] : bags[kind + b"bag"][bag + 1]]
            zone = {int(row["operator"]): (int(row["low"]), int(row["high"])) for row in rows}
            if link in zone:
                yield common | zone
            elif bag == headers["bag"][index]:
                common = zone

    result = {}
    for index in range(len(presets) - 1):
        longest = np.zeros(128)
        for preset_zone in zones_of(presets, index, b"p"):
            for zone in zones_of(instruments, _number(preset_zone[INSTRUMENT]), b"i"):
                low = max(preset_zone.get(KEYS, (0, 127))[0], zone.get(KEYS, (0, 127))[0])
                high = min(preset_zone.get(KEYS, (0, 127))[1], zone.get(KEYS, (0, 127))[1], 127)
                sample = samples[_number(zone[SAMPLE])]
                root = _number(zone.get(ROOT, (255, 255)))
                keys = np.arange(low, high + 1)
                seconds = _seconds(sample, root if root < 128 else int(sample["pitch"]), keys)
                if zone.get(LOOPS, (0, 0))[0] % 2 or sample["type"] & VORBIS:
                    # a compressed sample does not say how long it is
                    seconds = np.full(len(keys), np.inf)
                longest[keys] = np.maximum(longest[keys], seconds)
        result[int(presets["bank"][index]), int(presets["preset"][index])] = Compass(longest)
    return result


def _number(amount: tuple[int, int]) -> int:
    return amount[0] | amount[1] << 8


def _seconds(sample: np.void, root: int, keys: np.ndarray) -> np.ndarray:
    """Seconds for which a sample sounds when it is played at keys."""
    length = max(0, int(sample["end"]) - int(sample["start"])) / max(1, int(sample["rate"]))
    return length * 2.0 ** ((root - keys) / 12)


def build(notes: Path, output: Path, split: str) -> list[Path]:
    """Writes a soundfont for each instrument, articulation and take of a folder of notes; returns the files.

    Raises:
        NotesError: as read_notes.
    """
    make_folder(output)
    written = []
    for name, (program, recorded) in read_notes(notes, split).items():
        path = output / f"{name}.sf2"
        write_font(path, name, program, recorded)
        written.append(path)
    return written
