"""Songs to render: MIDI files with their splits, and random music."""

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mt3_common.formats.midi import MIDI_SUFFIXES, read_midi_stems
from mt3_common.formats.sealed import NoteFileError
from mt3_common.io.notices import LOGGER
from mt3_common.io.plural import plural
from mt3_common.notes.note import Note


class Stem(NamedTuple):
    """The notes of one instrument, with their own program and is_drum, in order of onset."""

    program: int
    is_drum: bool
    notes: tuple[Note, ...]


class Song:
    """A piece of music in a MIDI file, which each process reads when it first needs it.

    Attributes:
        name: decides its split.
        path: the file.
    """

    def __init__(self, name: str, path: str | Path):
        self.name = name
        self.path = Path(path)

    def __getstate__(self):
        return {"name": self.name, "path": self.path}

    @functools.cached_property
    def stems(self) -> tuple[tuple[int, bool, np.ndarray], ...]:
        """The stems: program, is_drum, and (n, 4) onsets, offsets (s), pitches, velocities of each.

        Empty if the file is no MIDI or holds no notes.

        Raises:
            NoteFileError: the file cannot be read; skipping it would change the examples.
        """
        try:
            # What is odd in one song of thousands is no news, and every process of a training run reads them.
            stems = [notes for notes in read_midi_stems(self.path, sustain=True, report=LOGGER.info) if notes]
        except NoteFileError as error:
            if isinstance(error.__cause__, OSError):
                raise
            stems = []
        return tuple((n[0].program, n[0].is_drum, np.array([note[:4] for note in n], np.float64)) for n in stems)


def read_songs(folder: str | Path) -> list[Song]:
    """List the songs of a folder and its subfolders, by path; files that are no MIDI are left out.

    Raises:
        ValueError: there is no MIDI file.
    """
    songs = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in MIDI_SUFFIXES):
        with open(path, "rb") as file:
            if file.read(4) in (b"MThd", b"RIFF"):
                songs.append(Song(path.relative_to(folder).as_posix(), path))
    if not songs:
        raise ValueError(f"{folder} holds no MIDI file (*.mid, *.midi)")
    return songs


def split_of(name: str) -> str:
    """Return the split of a song: 'train' (90 %), 'validation' or 'test' (5 % each), the same on every machine.

    File names that differ only in a final underscore and four hexadecimal digits are versions of one song and share
    its split.
    """
    title = re.sub(r"_[0-9a-f]{4}$", "", str(Path(name).with_suffix("")))
    bucket = int.from_bytes(hashlib.sha256(title.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


def random_notes(seconds: float, rng: np.random.Generator) -> list[Note]:
    """Draw random notes, chords or scales for one instrument, from sparse to dense."""
    style = rng.choice(["random", "chords", "scale"])
    low = int(rng.integers(21, 72))
    high = min(108, low + int(rng.integers(12, 60)))
    rate = float(np.exp(rng.uniform(np.log(2.0), np.log(16.0))))
    loud = rng.uniform(50, 110)
    notes = []
    time = float(rng.uniform(0, 0.5))
    scale = np.sort(rng.choice(12, 7, replace=False))
    step = int(rng.integers(low, high))
    while time < seconds - 0.05:
        if style == "random":
            pitches = [int(rng.integers(low, high + 1))]
            pause = rng.exponential(1 / rate)
        elif style == "chords":
            count = int(rng.integers(2, 7))
            root = int(rng.integers(low, high + 1))
            steps = rng.choice([0, 3, 4, 5, 7, 9, 10, 12, 14, 15, 16, 19, 24], count, replace=False)
            pitches = sorted({min(108, root + int(s)) for s in steps})
            pause = rng.uniform(0.5, 1.5) * count / rate
        else:
            step += int(rng.choice([-2, -1, 1, 2], p=[0.1, 0.4, 0.4, 0.1]))
            step = low if not low <= step <= high else step
            pitches = [step - step % 12 + int(scale[step % 7])]
            if rng.random() < 0.2:
                pitches.append(pitches[0] + 12)
            pause = 1 / rate
        duration = float(np.exp(rng.uniform(np.log(0.08), np.log(2.0))))
        for pitch in pitches:
            onset = max(0.0, time + float(rng.normal(0, 0.006)))
            velocity = int(np.clip(rng.normal(loud, 15), 15, 127))
            notes.append(Note(onset, onset + max(0.05, duration * rng.uniform(0.7, 1.3)), min(127, pitch), velocity))
        time += float(pause)
    return sorted(notes)


def random_drums(seconds: float, rng: np.random.Generator) -> list[Note]:
    """Draw a pattern of drum hits on a grid of 16ths, repeated with changes."""
    tempo = float(rng.uniform(70, 180))
    step = 60 / tempo / 4
    instruments = {36: 0.25, 35: 0.05, 38: 0.18, 40: 0.05, 42: 0.5, 44: 0.08, 46: 0.08, 49: 0.03, 51: 0.2, 57: 0.02}
    instruments |= dict.fromkeys([37, 39, 41, 43, 45, 47, 48, 50, 53, 54, 56], 0.03)
    drums = list(instruments)
    density = rng.uniform(0.6, 1.6)
    pattern = rng.random((16, len(drums))) < np.minimum(0.9, density * np.array(list(instruments.values())))
    pattern &= (rng.random(len(drums)) < 0.7)[None]
    pattern[::4, 0] |= rng.random() < 0.5
    pattern[4::8, 2] |= rng.random() < 0.7
    loud = rng.uniform(60, 115)
    notes = []
    for number in range(int(seconds / step)):
        row = pattern[number % 16] ^ (rng.random(len(drums)) < 0.01)
        for drum in np.flatnonzero(row):
            onset = max(0.0, number * step + float(rng.normal(0, 0.006)))
            velocity = int(np.clip(rng.normal(loud, 18), 12, 127))
            notes.append(Note(onset, onset + 0.1, drums[drum], velocity, 0, True))
    return sorted(notes)


def read_split(folders: Sequence[Path], split: str) -> list[Song]:
    """List the songs of folders that belong to a split, named FOLDER/FILE.

    Raises:
        ValueError: there are none.
    """
    songs = [Song(f"{folder.name}/{song.name}", song.path) for folder in folders for song in read_songs(folder)]
    selected = [song for song in songs if split_of(song.name) == split]
    if not selected:
        raise ValueError(f"of {plural(len(songs), 'song')} none belongs to the {split} split")
    return selected
