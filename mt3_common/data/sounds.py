"""Soundfonts from sets of recorded notes as they are published: files named by pitch, and Hydrogen's drum kits."""

import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mt3_common.audio.files import read_audio
from mt3_common.data.catalogue import Source
from mt3_common.data.sample_fonts import RATE, NotesError, RecordedNote, write_font

# A4.mp3, D#3v10.ogg, As4.mp3: the letter, a sharp or flat, the octave (C4 is 60), the layer
NAME = re.compile(r"([A-G])(#|s|b)?(-?\d)(?:v\d+)?")
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
AUDIO = (".mp3", ".ogg", ".wav", ".flac")
# dB below the loudest of the first BEGINNING s at which a note begins; s of audio in front of that
ONSET, BEGINNING, LEAD = -25.0, 1.5, 0.002
# s of a note at most, of its fade where it is cut, and of the part whose level is measured
LONGEST, FADE, LEVELLED = 4.0, 0.05, 0.6
# RMS of that part, dB, and the peak that it may not pass
LEVEL, PEAK = -20.0, 0.84
# semitones that a note may be out of tune, s of its steady part, and the correlation from which on its pitch is sure
TUNING, STEADY, PERIODIC = 1.5, (0.1, 0.6), 0.95
# sounds that are no drum of General MIDI keep Hydrogen's number of the instrument plus this
FIRST_KEY = 36


def build_fonts(
    folders: Sequence[tuple[Source, Path]], output: Path, on_set: Callable[[str], None] = lambda name: None
) -> list[Path]:
    """Build a soundfont for each instrument of sets of recorded notes, and return the files.

    Args:
        folders: sources, and the folder in which each was unpacked; those of one instrument are layers of it.
        output: folder for the .sf2 files.
        on_set: called with the name of each source before it is read.

    Raises:
        NotesError: a set has no recorded notes, or one cannot be read.
    """
    instruments: dict[tuple[str, int], list[RecordedNote]] = defaultdict(list)
    for source, folder in folders:
        on_set(source.name)
        notes = [
            recorded_note(path, pitch_of(path.stem), source.layer)
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in AUDIO and NAME.fullmatch(path.stem)
        ]
        if not notes:
            raise NotesError(f"{folder} has no notes that are named by their pitch, such as A4.mp3")
        instruments[source.instrument, source.program] += notes
    written = []
    for (instrument, program), notes in instruments.items():
        path = output / f"{instrument}.sf2"
        write_font(path, instrument, program, notes)
        written.append(path)
    return written


def pitch_of(name: str) -> int:
    """Return the MIDI pitch of a note's name, such as 69 of A4, 51 of D#3v10."""
    match = NAME.fullmatch(name)
    assert match is not None, name
    letter, sign, octave = match.groups()
    return SEMITONES[letter] + {"#": 1, "s": 1, "b": -1, None: 0}[sign] + 12 * (int(octave) + 1)


def recorded_note(path: Path, pitch: int, velocity: float) -> RecordedNote:
    """Read a recorded note: cut to its onset and LONGEST, levelled, its pitch measured.

    Raises:
        NotesError: it cannot be read, or is silent.
    """
    samples = trimmed(_read(path))
    level = float(np.sqrt(np.mean(np.square(samples[: round(LEVELLED * RATE)], dtype=np.float64))))
    peak = float(np.abs(samples).max())
    samples = samples * np.float32(min(10 ** (LEVEL / 20) / level, PEAK / peak))
    return RecordedNote(samples, measured_pitch(samples, pitch), pitch, velocity, None)


def measured_pitch(samples: np.ndarray, pitch: int) -> float:
    """Return the MIDI pitch of a recorded note with cents; `pitch` where the note is not clearly periodic near it.

    The lag at which the autocorrelation is highest, within TUNING semitones, to fractions of a sample.

    Args:
        samples: (n,) at RATE, from the onset on.
        pitch: that its name says.
    """
    steady = np.asarray(samples[slice(*(round(time * RATE) for time in STEADY))], np.float64)
    nominal = RATE / (440 * 2 ** ((pitch - 69) / 12))
    low, high = int(nominal * 2 ** (-TUNING / 12)), int(nominal * 2 ** (TUNING / 12)) + 2
    if low < 2 or len(steady) < 4 * high:
        return float(pitch)
    steady = steady - steady.mean()
    spectrum = np.abs(np.fft.rfft(steady, 2 * len(steady))) ** 2
    correlation = np.fft.irfft(spectrum)[: high + 2]
    correlation *= len(steady) / (len(steady) - np.arange(high + 2)) / correlation[0]
    lag = low + int(np.argmax(correlation[low : high + 1]))
    if correlation[lag] < PERIODIC or lag in (low, high):
        return float(pitch)
    before, peak, after = correlation[lag - 1 : lag + 2]
    exact = lag + (before - after) / 2 / (before - 2 * peak + after)
    return 69 + 12 * float(np.log2(RATE / exact / 440))


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Return a recorded note from just before its onset, LONGEST at most, with a fade where it was cut.

    Args:
        samples: (n,) at RATE, not silent.
    """
    loud = np.abs(samples[: round(BEGINNING * RATE)])
    first = int(np.argmax(loud >= loud.max() * 10 ** (ONSET / 20)))
    samples = samples[max(0, first - round(LEAD * RATE)) :]
    length, fade = round(LONGEST * RATE), round(FADE * RATE)
    if len(samples) <= length:
        return samples
    cut = samples[:length].copy()
    cut[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return cut


def build_kit(folder: Path, output: Path, keys: Mapping[str, int | None] | None = None) -> Path:
    """Build a soundfont from a drum kit of Hydrogen, drumkit.xml with its samples, and return the file.

    Args:
        folder: of the kit.
        output: folder for the .sf2 file.
        keys: key of the kit -> the one of General MIDI, None for a sound that has none; other keys are right.

    Raises:
        NotesError: it is no such kit.
    """
    path = folder / "drumkit.xml"
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise NotesError(f"{path} is no drum kit of Hydrogen: {error}") from error
    for element in tree.iter():
        # without its namespace
        element.tag = element.tag.rpartition("}")[2]
    notes = []
    for number, instrument in enumerate(tree.iter("instrument")):
        told = (instrument.findtext("midiOutNote") or "").strip() or str(FIRST_KEY + number)
        if not (told.isdecimal() and int(told) <= 127):
            raise NotesError(f"{path}: midiOutNote {told[:20]!r} is no key, which is in 0 to 127")
        key = (keys or {}).get(told, int(told))
        if key is None:
            continue
        for layer in instrument.iter("layer"):
            low, high = (float(layer.findtext(name) or default) for name, default in (("min", 0), ("max", 1)))
            samples = trimmed(_read(folder / Path(layer.findtext("filename") or "").name))
            notes.append(RecordedNote(samples, float(key), key, (low + high) / 2, None))
    if not notes:
        raise NotesError(f"{path} has no instruments with samples")
    font = output / f"{folder.name}.sf2"
    write_font(font, folder.name, None, notes)
    return font


def _read(path: Path) -> np.ndarray:
    """Read a recording at RATE, mono.

    Raises:
        NotesError: it cannot be read, or is silent.
    """
    try:
        samples = read_audio(path, RATE)
    except (ValueError, OSError) as error:
        raise NotesError(f"{path} cannot be read: {error}") from error
    if not len(samples) or not np.abs(samples[: round(BEGINNING * RATE)]).max():
        raise NotesError(f"{path} is silent")
    return np.asarray(samples, np.float32)
