"""Bands: Slakh2100, rendered from MIDI stem by stem, and RWC-Pop, recorded, with MIDI that was written by ear."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mido

from mt3_common.data.corpora import slakh_stems
from mt3_common.data.published.index import SPLITS, DatasetError, Piece, Stem, locate
from mt3_common.formats import midi
from mt3_common.io.shown_names import shown_as
from mt3_common.notes.note import Note, trim_overlapping

BASSES = range(32, 40)
# the one bass of Slakh that sounds as it is written; the others sound an octave lower
TRUE_BASS = "scarbee_jay_bass_slap_both.nkm"
OCTAVE = 12
TRACKS = Path(__file__).parents[1] / "rwc_pop_tracks.json"
# by the name of its track, as rwc_pop_tracks.json has it
DRUMS, KEEPS_PROGRAM = "drums", "own"
DRUM_CHANNEL = 9


def slakh(root: Path) -> Iterator[Piece]:
    """Yield the songs of Slakh2100 redux: {train,validation,test}/TrackNNNNN, with a stem for each instrument.

    Basses are written an octave above their sound and are moved down, except those of one plug-in. Programs are those
    of metadata.yaml; stems that were not rendered, or have no MIDI, are left out.

    Raises:
        DatasetError: a track's metadata are not as published.
    """
    folder = locate(root, "train/Track*/metadata.yaml")
    for split in SPLITS:
        for metadata in sorted(folder.glob(f"{split}/Track*/metadata.yaml")):
            track = metadata.parent
            mix = next(iter(sorted(track.glob("mix.*"))), track / "mix.wav")
            notes: list[Note] = []
            stems = []
            for name, description in slakh_stems(metadata).items():
                source, audio = track / "MIDI" / f"{name}.mid", track / "stems" / f"{name}{mix.suffix}"
                if not source.exists() or not audio.exists():
                    continue
                part = slakh_notes(source, metadata, description)
                notes += part
                is_drum = bool(description["is_drum"])
                stems.append(Stem(audio, 0 if is_drum else int(description["program_num"]), is_drum))
            yield Piece(f"{split}/{track.name}", split, mix, track.name, trim_overlapping(sorted(notes)), tuple(stems))


def slakh_notes(path: Path, metadata: Path, description: dict[str, Any]) -> list[Note]:
    """Return the notes of a stem of Slakh at the pitches that sound.

    Args:
        path: of its MIDI file.
        metadata: the file of the description, for messages.
        description: of the stem in metadata.yaml.

    Raises:
        DatasetError: the description lacks its program or its kind.
    """
    try:
        is_drum, program = bool(description["is_drum"]), int(description["program_num"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{metadata} is not as Slakh has it: {error!r}") from error
    lowered = not is_drum and program in BASSES and description.get("plugin_name") != TRUE_BASS
    notes = [
        note._replace(
            program=0 if is_drum else program, is_drum=is_drum, pitch=note.pitch - OCTAVE if lowered else note.pitch
        )
        for note in midi.read_midi(path, sustain=True)
    ]
    return [note for note in notes if note.pitch >= 0]


def rwc_pop(root: Path) -> Iterator[Piece]:
    """Yield the songs of RWC-Pop, a test set: all instruments, and as the variant `bass` the bass alone.

    Programs come from the names of the tracks (rwc_pop_tracks.json), because the MIDI files' own are not reliable;
    tracks of noises and of unpitched percussion are left out. The bass has its octave mended by the data set's editors.

    Raises:
        DatasetError: the table of songs is another one, or a track has a name that is not known.
    """
    folder = locate(root, "wav_to_midi_filename_mapping.csv", "MIDI/*.mid")
    table = folder / "wav_to_midi_filename_mapping.csv"
    header, *rows = [line.split(",") for line in table.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if len(header) < 3 or any(len(row) < 3 for row in rows):
        raise DatasetError(f"{table} is not RWC-Pop's table: it must have folder, track and song")
    rules = json.loads(TRACKS.read_text(encoding="utf-8"))
    for row in rows:
        disc, track, song = (field.strip() for field in row[:3])
        audio = folder / f"{header[0].strip()}{disc}" / f"{track} {header[1].strip()}.wav"
        yield Piece(song, "test", audio, f"full/{song}", rwc_notes(folder / "MIDI" / f"{song}.mid", rules))
        bass = folder / "MIDI-Bass-Octave-fixed-v2" / f"{song}_bass.mid"
        if bass.exists():
            notes = trim_overlapping(midi.read_midi(bass))
            yield Piece(song, "test", audio, f"bass/{song}", notes, variant="bass")


def rwc_notes(path: Path, rules: list[dict[str, Any]]) -> list[Note]:
    """Return the notes of a song of RWC-Pop, with programs by the names of the tracks.

    Raises:
        DatasetError: a track has no name, or one that no rule knows.
    """
    try:
        song = mido.MidiFile(path)
    except (OSError, ValueError, EOFError, KeyError, IndexError) as error:
        raise DatasetError(f"{path} is no MIDI file that can be read: {error}") from error
    tracks = song.tracks[:1]
    channels: dict[int, int] = {}
    for track in song.tracks[1:]:
        name = next((message.name for message in track if message.type == "track_name"), None)
        rule = None if name is None else _rule(name, rules)
        if rule is None:
            raise DatasetError(f"{path}: there is no instrument for the track {name!r}")
        program = rule["program"]
        if program == KEEPS_PROGRAM:
            own = next((message.program for message in track if message.type == "program_change"), 0)
            program = rule["programs"].get(str(own), own)
        if program is None:
            continue
        if program == DRUMS:
            channel = DRUM_CHANNEL
        else:
            # 0 to 8, then 10 on; programs beyond the fifteenth would share the last channel
            channel = channels.setdefault(program, min(15, len(channels) + (len(channels) >= DRUM_CHANNEL)))
        messages = [message for message in track if message.type != "track_name"]
        renamed = mido.MidiTrack()
        if program != DRUMS:
            renamed.append(mido.Message("program_change", program=program, channel=channel, time=0))
        pending = 0
        for message in messages:
            if message.type == "program_change":
                # its time belongs to the message behind it
                pending += message.time
                continue
            changes = {"channel": channel} if hasattr(message, "channel") else {}
            renamed.append(message.copy(time=message.time + pending, **changes))
            pending = 0
        tracks.append(renamed)
    song.tracks = tracks
    with TemporaryDirectory() as folder:
        corrected = Path(folder) / path.name
        song.save(corrected)
        with shown_as(corrected, str(path)):
            return trim_overlapping(midi.read_midi(corrected, sustain=True))


def _rule(name: str, rules: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first rule that a track's name fits; capitals do not count."""
    name = name.upper()
    for rule in rules:
        fits = name in rule.get("equals", ()) or any(part in name for part in rule["contains"])
        if fits and not any(part in name for part in rule.get("without", ())):
            return rule
    return None
