"""Plucked strings: GuitarSet, and the single notes of IDMT-SMT-Bass."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mt3_common.audio.files import read_audio
from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.corpora import guitarset_notes, guitarset_split
from mt3_common.data.published.index import DatasetError, Piece, locate
from mt3_common.io.json_text import parse_json
from mt3_common.notes.note import Note, trim_overlapping

# by the style of plucking: fingers, muted, pick, slap-pluck, slap-thumb
BASSES = {"FS": 33, "MU": 33, "PK": 34, "SP": 36, "ST": 37}
# MIDI pitches of the open strings
OPEN_STRINGS = (28, 33, 38, 43, 48)
# samples of a frame, and the peak in a frame from which on a note sounds, and until which
ENVELOPE, BEGINS, ENDS = 256, 0.05, 0.02
VELOCITY = 100


def guitarset(root: Path) -> Iterator[Piece]:
    """Yield the excerpts of GuitarSet, each by microphone and by pickup: annotation/*.jams, audio_mono-*/*.wav.

    Validation: the third chord progression, as MT3 has it; there is no test set.
    """
    folder = locate(root, "annotation/*.jams", "audio_mono-mic/*.wav")
    for annotation in sorted(folder.glob("annotation/*.jams")):
        name = annotation.stem
        notes = trim_overlapping(guitarset_notes(annotation))
        for microphone in ("mic", "pickup_mix"):
            short = microphone.removeprefix("pickup_")
            audio = folder / f"audio_mono-{microphone}" / f"{name}_{short}.wav"
            yield Piece(f"{name}_{short}", guitarset_split(name), audio, name, notes)


def idmt_smt_bass(root: Path) -> Iterator[Piece]:
    """Yield the notes of IDMT-SMT-Bass, split as YourMT3's stratified_split_crepe_smt.json has it.

    The pitch follows from string and fret in the file's name, the program from the style of plucking; onset and offset
    are measured on the audio.

    Raises:
        DatasetError: the table is another one, or a file has no such name or no sound.
    """
    folder = locate(root, "stratified_split_*.json")
    table = next(folder.glob("stratified_split_*.json"))
    try:
        splits = parse_json(table.read_bytes())
        rows = [(split, str(name)) for split in ("train", "validation") for name in splits[split]]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{table} is no list of a training and a validation set: {error!r}") from error
    for split, name in rows:
        audio = folder / name
        label = Path(name).with_suffix("").as_posix()
        try:
            *_, style, _, string, fret = audio.stem.split("_")
            program, pitch = BASSES[style], OPEN_STRINGS[int(string) - 1] + int(fret)
        except (ValueError, KeyError, IndexError) as error:
            raise DatasetError(f"{audio} does not name style, string and fret as IDMT-SMT-Bass does") from error
        onset, offset = measured_span(audio)
        yield Piece(label, split, audio, label, [Note(onset, offset, pitch, VELOCITY, program)])


def measured_span(path: Path) -> tuple[float, float]:
    """Return where a note begins and ends in a recording of it alone, s, to frames of 16 ms.

    Raises:
        DatasetError: there is no sound.
    """
    samples = read_audio(path, SAMPLE_RATE)
    count = len(samples) // ENVELOPE
    peaks = samples[: count * ENVELOPE].reshape(count, ENVELOPE).max(axis=1, initial=0.0)
    begins, sounds = np.flatnonzero(peaks > BEGINS), np.flatnonzero(peaks > ENDS)
    if not len(begins):
        raise DatasetError(f"{path}: no note sounds here")
    # One frame at least: a click may be over within the frame that it begins in.
    last = max(sounds[-1], begins[0] + 1)
    return round(begins[0] * ENVELOPE / SAMPLE_RATE, 3), round(last * ENVELOPE / SAMPLE_RATE, 3)
