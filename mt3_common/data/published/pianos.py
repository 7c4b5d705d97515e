"""Pianos with MIDI: MAESTRO and MAPS. The sustain pedal is applied, everything is program 0."""

import re
from collections.abc import Iterator
from pathlib import Path

from mt3_common.data.published.index import DatasetError, Piece, locate
from mt3_common.formats import midi
from mt3_common.io.json_text import parse_json
from mt3_common.notes.note import Note, trim_overlapping

# pianos of MAPS that were recorded, the test set; the others are sampled
MAPS_SONG = re.compile(r"MAPS_MUS-([\w-]+)_")


def maestro(root: Path) -> Iterator[Piece]:
    """Yield the recordings of MAESTRO by its own table, maestro-v3.0.0.json; splits as published.

    Raises:
        DatasetError: the table is missing or another one.
    """
    folder = locate(root, "maestro-v*.json")
    table = sorted(folder.glob("maestro-v*.json"))[-1]
    try:
        columns = parse_json(table.read_bytes())
        rows = [
            (columns["split"][key], columns["midi_filename"][key], columns["audio_filename"][key])
            for key in columns["split"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{table} is not MAESTRO's table: {error!r}") from error
    for split, midi_name, audio_name in rows:
        name = Path(audio_name).with_suffix("").as_posix()
        # The archive has .midi or .mid, whatever the table says.
        file = next(
            (path for suffix in (".midi", ".mid") if (path := (folder / midi_name).with_suffix(suffix)).exists()),
            folder / midi_name,
        )
        yield Piece(name, split, folder / audio_name, name, piano_notes(file))


def maps(root: Path) -> Iterator[Piece]:
    """Yield the pieces of MAPS: {train,test}/**/MUS/*.mid with .wav beside.

    As published, songs of the test set (two recorded pianos) are left out of the training set, which leaves 139 of 210;
    the variant `all` has the 270 as one training set.
    """
    folder = locate(root, "train/**/MUS/*.mid", "test/**/MUS/*.mid")
    tests = sorted(folder.glob("test/**/MUS/*.mid"))
    songs = {match[1] for path in tests if (match := MAPS_SONG.search(path.name))}
    for split, files in (("train", sorted(folder.glob("train/**/MUS/*.mid"))), ("test", tests)):
        for file in files:
            notes = piano_notes(file)
            audio = file.with_suffix(".wav")
            # As published: a part of a name counts, so that a test set's chpn-p1 excludes chpn-p10 as well.
            if split == "test" or not any(song in file.name for song in songs):
                yield Piece(file.stem, split, audio, file.stem, notes)
            yield Piece(file.stem, "train", audio, file.stem, notes, variant="all")


def piano_notes(path: Path) -> list[Note]:
    """Read a MIDI file as a piano: pedal applied, program 0, no drums, no note over another of its pitch."""
    notes = midi.read_midi(path, sustain=True)
    return trim_overlapping([note._replace(program=0, is_drum=False) for note in notes])
