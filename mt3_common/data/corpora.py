"""Recordings with known notes: published data sets in their published layouts, and folders of pairs.

A folder is recognised by its contents:

    maestro    maestro-v3.0.0.csv, with the columns split, midi_filename, audio_filename
    slakh      train|validation|test/TrackNNNNN/{metadata.yaml, mix.flac, MIDI/SNN.mid} (Slakh2100 redux)
    musicnet   {train,test}_{data,labels}/ID.{wav,csv}, label times in samples at 44.1 kHz
    guitarset  annotation/NAME.jams and audio_mono-mic/NAME_mic.wav
    urmp       NN_Title_instruments/{AuMix_*.wav, Notes_N_instrument_*.txt}
    installed  recordings.json, as `mt3 data install` writes it (mt3_common/data/published/index.py)
    pairs      NAME.flac (or another audio file) with NAME.mid or NAME.tsv beside it, anywhere below

Sources: the data sets' own pages; mt3/preprocessors.py and mt3/tasks.py for programs, the pedal and the temperature;
the MT3 paper's appendix for the splits of GuitarSet and URMP, which have none of their own.
"""

import csv
import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3_common.audio.files import audio_duration, read_audio, stream_audio
from mt3_common.config import shown
from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.published.index import INDEX, SPLITS, DatasetError, Stem, read_index
from mt3_common.data.songs import split_of
from mt3_common.data.synthesis import Example
from mt3_common.formats import midi
from mt3_common.formats.find_audio import recordings as audio_files
from mt3_common.formats.sealed import NoteFileError
from mt3_common.io.bounded import LARGEST_SETTINGS, read_bounded
from mt3_common.io.json_text import parse_json
from mt3_common.io.optional import needed
from mt3_common.io.plural import plural
from mt3_common.notes.note import Note, trim_overlapping
from mt3_common.notes.yourmt3_decoder import VOICES

# MT3 draws a data set of n examples in proportion to n ** (1 / TEMPERATURE).
TEMPERATURE = 10 / 3
# Hz, of MusicNet's recordings; its labels are in samples
MUSICNET_RATE = 44100
# instruments that only a count from 0, or only a count from 1, has; MusicNet's eleven are piano, harpsichord, violin,
# viola, cello, bass, horn, oboe, bassoon, clarinet and flute
FROM_0, FROM_1 = {0, 6, 40, 60, 68, 70, 73}, {1, 7, 44, 61, 69, 72, 74}
# a nylon guitar, as MT3 labels GuitarSet
GUITAR = 24
URMP_PROGRAMS = {
    **{"vn": 40, "va": 41, "vc": 42, "db": 43, "tpt": 56, "tbn": 57, "tba": 58, "hn": 60, "sax": 64},
    **{"ob": 68, "bn": 70, "cl": 71, "fl": 73},
}
URMP_VALIDATION = (1, 2, 12, 13, 24, 25, 31, 38, 39)
# installed data sets whose tables have General MIDI's programs throughout
GENERAL_MIDI_TABLES = {"slakh"}
NOTE_SUFFIXES = (*midi.MIDI_SUFFIXES, ".tsv")
# of a table of notes
MAX_LINES = 1_000_000
# characters of its first line that are looked at
MAX_HEADER = 1000
# velocity of labels without one
VELOCITY = 100


class Recording(NamedTuple):
    """A recording and the files of its notes.

    Attributes:
        name: path within the data set, without suffix.
        layout: of LAYOUTS.
        split: 'train', 'validation' or 'test'.
        audio: the file.
        notes: the files that read_notes reads.
        stems: files of its parts, where an installed data set has them.
        dataset: name of an installed data set.
    """

    name: str
    layout: str
    split: str
    audio: Path
    notes: tuple[Path, ...]
    stems: tuple[Stem, ...] = ()
    dataset: str = ""

    @property
    def kind(self) -> str:
        """The data set if it was installed, else the layout."""
        return self.dataset or self.layout

    @property
    def group(self) -> str:
        """The kind; for pairs, 'maps' of 'maps__song', or the folder's name if there is no double underscore."""
        if self.layout != "pairs":
            return self.kind
        head, separator, _ = Path(self.name).name.partition("__")
        return head if separator else self.audio.parent.name


def recordings(folder: str | os.PathLike, split: str | None = None) -> list[Recording]:
    """List the recordings of a data set, by name: those of one split, or all.

    Raises:
        DatasetError: there are none, or a file is missing.
    """
    folder = Path(folder)
    listed: list[Recording] = []
    for name, list_layout in LAYOUTS.items():
        try:
            listed = sorted(list_layout(folder))
        except DatasetError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise DatasetError(f"{folder} is not as {name} has it: {' '.join(repr(error).split())[:200]}") from error
        if listed:
            break
    if not listed:
        raise DatasetError(
            f"{folder}: no data set is recognised here ({', '.join(LAYOUTS)}), and no recording here has its notes "
            "beside it (NAME.flac with NAME.mid or NAME.tsv)"
        )
    layout = listed[0].layout
    selected = [recording for recording in listed if split in (None, recording.split)]
    if not selected:
        raise DatasetError(f"{folder}: of {plural(len(listed), 'recording')} ({layout}) none is of the {split} split")
    for recording in selected:
        # results are written under it
        if Path(recording.name).is_absolute() or ".." in Path(recording.name).parts:
            raise DatasetError(
                f"{folder}: the recording {shown(recording.name)} lies outside of it, where its results would go too: "
                "take it out of the list, or copy it into the folder"
            )
        for file in (recording.audio, *recording.notes):
            if not file.exists():
                raise DatasetError(f"{folder}: {file.relative_to(folder)} is missing, the rest of {layout} is there")
    return selected


def read_notes(recording: Recording, general_midi: bool = False) -> list[Note]:
    """Read the notes of a recording, by onset, with the sustain pedal of MIDI applied.

    Args:
        recording: whose notes they are.
        general_midi: see program_of.

    Raises:
        ValueError: a file cannot be read or contradicts its layout.
    """
    readers: dict[str, Callable[[Sequence[Path]], list[Note]]] = {
        "slakh": _slakh_notes,
        "musicnet": _musicnet_notes,
        "guitarset": _guitarset_notes,
        "urmp": _urmp_notes,
    }
    if recording.layout in readers:
        try:
            notes = sorted(readers[recording.layout](recording.notes))
        except (DatasetError, NoteFileError):
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
            raise DatasetError(
                f"{recording.notes[0]} is not as {recording.layout} has it: {repr(error)[:200]}"
            ) from error
        for note in notes:
            check_label(note, str(recording.notes[0]))
        return notes
    [path] = recording.notes
    if path.suffix.lower() != ".tsv":
        return midi.read_midi(path, sustain=True)
    notes = read_tsv(path)
    return with_voices(notes) if general_midi and _names_singers(recording) else notes


def program_of(recording: Recording, program: int, general_midi: bool) -> int:
    """Return the program of an instrument of a recording.

    Args:
        recording: it plays in.
        program: that the recording's files call it.
        general_midi: name singers as General MIDI does (53, 52), where the files are tables: these call them 100 and
            101, as YourMT3+'s data sets do, but for those of GENERAL_MIDI_TABLES. In General MIDI 100 and 101 are
            synthetic effects, and no transcription of a voice could be right.
    """
    return VOICES.get(program, program) if general_midi and _names_singers(recording) else program


def _names_singers(recording: Recording) -> bool:
    """Return whether 100 and 101 are singers in the files of a recording."""
    return recording.notes[0].suffix.lower() == ".tsv" and recording.dataset not in GENERAL_MIDI_TABLES


def with_voices(notes: Sequence[Note]) -> list[Note]:
    """Return the notes of a table with General MIDI's voices in place of 100 and 101; see program_of."""
    return [note if note.is_drum else note._replace(program=VOICES.get(note.program, note.program)) for note in notes]


def has_velocities(path: Path) -> bool:
    """Return whether a file of notes states velocities: MIDI does, and a table whose sixth column is called so."""
    if path.suffix.lower() != ".tsv":
        return path.suffix.lower() in midi.MIDI_SUFFIXES
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return _names_velocity(file.readline(MAX_HEADER))


def _names_velocity(header: str) -> bool:
    return [field.strip().lower() for field in header.replace(",", "\t").split("\t")][5:6] == ["velocity"]


def read_tsv(path: Path) -> list[Note]:
    """Read a table with the columns onset, offset (s), MIDI pitch, program, is_drum; a header is skipped.

    A sixth column counts if the header calls it velocity.

    Raises:
        DatasetError: the file cannot be read as text, or a line is no note.
    """
    notes = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no table of notes: it is not text in UTF-8") from error
    if len(lines) > MAX_LINES:
        raise DatasetError(f"{path} has {plural(len(lines), 'line')}; a table of notes has {MAX_LINES} at most")
    with_velocities = _names_velocity(lines[0] if lines else "")
    for number, line in enumerate(lines, 1):
        fields = line.replace(",", "\t").split("\t")
        is_header = number == 1 and len(fields) >= 5 and not any(map(_is_number, fields))
        if not line.strip() or is_header:
            continue
        try:
            onset, offset, pitch, program, is_drum = fields[:5]
            drum = {"0": False, "1": True, "false": False, "true": True}[is_drum.strip().lower()]
            velocity = int(fields[5]) if with_velocities else VELOCITY
            note = Note(float(onset), float(offset), round(float(pitch)), velocity, int(program), drum)
            if drum and note.onset == note.offset:
                # as in MIDI: without a length it could not be taught
                note = note._replace(offset=note.onset + midi.MIN_DRUM_HIT)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise DatasetError(
                f"{path}, line {number}: not onset, offset, pitch, program, is_drum: {line[:200]!r}"
            ) from error
        check_label(note, f"{path}, line {number}")
        notes.append(note)
    return notes


def check_label(note: Note, where: str) -> None:
    """Raise DatasetError unless a note of a label is one that a recording can have; `where` names file and line."""
    times = f"{note.onset:g} to {note.offset:g} s"
    if not 0 <= note.onset <= note.offset <= midi.MAX_SECONDS:
        raise DatasetError(
            f"{where}: the note must begin at 0 s or later, end no earlier than it begins and no later than "
            f"{midi.MAX_SECONDS:.0f} s, not {times}"
        )
    if not (0 <= note.pitch <= 127 and 0 <= note.program <= 127):
        numbers = f"{shown(note.pitch)} and {shown(note.program)}"
        raise DatasetError(f"{where}: pitch and program must be in 0 to 127, not {numbers} ({times})")
    if not 1 <= note.velocity <= 127:
        raise DatasetError(f"{where}: the velocity must be in 1 to 127, not {shown(note.velocity)} ({times})")


def mixing_rates(sizes: Sequence[int], temperature: float = TEMPERATURE) -> np.ndarray:
    """Return the probabilities with which data sets of these sizes are drawn: (n,) float64.

    Source: seqio, mixing_rate_num_examples.
    """
    rates = np.asarray(sizes, np.float64) ** (1 / temperature)
    return rates / rates.sum()


class Excerpts:
    """Generator of numbered examples that are cut out of recordings, as synthesis.Generator of synthetic ones.

    Args:
        datasets: the recordings of each data set.
        seconds: length of an example.
        seed: examples differ between seeds.
        temperature: of mixing_rates; 1 draws all recordings with equal probability.
        midi_class: label notes with the first program of their MIDI class instead of their own.
        general_midi: name singers as General MIDI does (program_of); False for YourMT3+'s vocabulary, which has them.
        rates: probabilities of the data sets, in place of those of the temperature.
    """

    def __init__(
        self,
        datasets: Sequence[Sequence[Recording]],
        seconds: float = 20.48,
        seed: int = 0,
        temperature: float = TEMPERATURE,
        midi_class: bool = False,
        rates: Sequence[float] | np.ndarray | None = None,
        general_midi: bool = True,
    ):
        self.datasets = [list(recordings) for recordings in datasets]
        sizes = [len(recordings) for recordings in self.datasets]
        self.rates = mixing_rates(sizes, temperature) if rates is None else np.asarray(rates, np.float64)
        self.seconds = seconds
        self.seed = seed
        self.midi_class = midi_class
        self.general_midi = general_midi

    def draw(self, rng: np.random.Generator) -> Recording:
        """Draw a recording: first its data set, then one of it."""
        recordings = self.datasets[rng.choice(len(self.datasets), p=self.rates)]
        return recordings[rng.integers(len(recordings))]

    def example(self, index: int) -> Example:
        """Make example number index, bit for bit the same in any process."""
        rng = np.random.default_rng([self.seed, index])
        recording = self.draw(rng)
        start = float(rng.uniform(0, max(0.0, duration_of(recording.audio) - self.seconds)))
        audio = read_audio(recording.audio, SAMPLE_RATE, start=start, duration=self.seconds)
        end = start + len(audio) / SAMPLE_RATE
        notes = []
        for note in excerpt_notes(read_notes(recording, self.general_midi), start, end):
            program = note.program - note.program % 8 if self.midi_class else note.program
            notes.append(note._replace(program=0 if note.is_drum else program))
        return Example(audio, trim_overlapping(sorted(notes)), recording.kind)


def excerpt_notes(notes: Iterable[Note], start: float, end: float) -> list[Note]:
    """Return the notes of an excerpt from start to end (s), in seconds from its start.

    What sounds at the start keeps its onset, which is before 0 s then; drums that were hit before it are left out.
    """
    return [
        note._replace(onset=note.onset - start, offset=min(note.offset, end) - start)
        for note in notes
        if note.offset > start and note.onset < end and (note.onset >= start or not note.is_drum)
    ]


@functools.cache
def duration_of(path: Path) -> float:
    """Return the duration of a recording in seconds; where its header states none, it is read once."""
    stated = audio_duration(path)
    if stated is not None:
        return stated
    return sum(len(block) for block in stream_audio(path, SAMPLE_RATE)) / SAMPLE_RATE


def _installed(folder: Path) -> Iterator[Recording]:
    if (folder / INDEX).exists():
        dataset, entries = read_index(folder)
        for entry in entries:
            yield Recording(entry.name, "installed", entry.split, entry.audio, (entry.notes,), entry.stems, dataset)


def _maestro(folder: Path) -> Iterator[Recording]:
    for table in sorted(folder.glob("maestro-v*.csv"))[-1:]:
        for row in _rows(table, ("split", "midi_filename", "audio_filename")):
            audio = folder / row["audio_filename"]
            name = Path(row["audio_filename"]).with_suffix("").as_posix()
            yield Recording(name, "maestro", row["split"], audio, (folder / row["midi_filename"],))


def _slakh(folder: Path) -> Iterator[Recording]:
    for metadata in folder.glob("*/Track*/metadata.yaml"):
        track = metadata.parent
        if track.parent.name in SPLITS:
            name = f"{track.parent.name}/{track.name}"
            stems = (track / "MIDI" / f"{stem}.mid" for stem in slakh_stems(metadata))
            yield Recording(name, "slakh", track.parent.name, track / "mix.flac", (metadata, *stems))


def _musicnet(folder: Path) -> Iterator[Recording]:
    metadata = folder / "musicnet_metadata.csv"
    pieces = {}
    if metadata.exists():
        pieces = {
            row["id"]: f"{row['composer']} {row['composition']}" for row in _rows(metadata, ("composer", "composition"))
        }
    for part in ("train", "test"):
        for labels in folder.glob(f"{part}_labels/*.csv"):
            # Movements of a piece share a split; the test set is the published one.
            group = split_of(pieces.get(labels.stem, labels.stem))
            split = "test" if part == "test" else "train" if group == "train" else "validation"
            audio = folder / f"{part}_data" / f"{labels.stem}.wav"
            yield Recording(f"{part}_data/{labels.stem}", "musicnet", split, audio, (labels,))


def _guitarset(folder: Path) -> Iterator[Recording]:
    for jams in folder.glob("annotation/*.jams"):
        audio = folder / "audio_mono-mic" / f"{jams.stem}_mic.wav"
        yield Recording(jams.stem, "guitarset", guitarset_split(jams.stem), audio, (jams,))


def guitarset_split(name: str) -> str:
    """Return the split of an excerpt of GuitarSet: MT3 validates on the third progression.

    Args:
        name: player, style and progression, tempo, key, part, such as 00_BN1-129-Eb_comp.
    """
    progression = name.split("_")[1].split("-")[0][-1]
    return "validation" if progression == "3" else "train"


def _urmp(folder: Path) -> Iterator[Recording]:
    for audio in [*folder.glob("*/AuMix_*.wav"), *folder.glob("Dataset/*/AuMix_*.wav")]:
        number = audio.parent.name.split("_")[0]
        split = "validation" if number.isdecimal() and int(number) in URMP_VALIDATION else "train"
        notes = tuple(sorted(audio.parent.glob("Notes_*.txt")))
        if not notes:
            raise DatasetError(f"{audio.parent}: there is no Notes_*.txt beside {audio.name}")
        yield Recording(audio.parent.name, "urmp", split, audio, notes)


def find_notes(folder: Path) -> dict[str, Path]:
    """Map the stem of each file of notes in a folder to the file; suffixes count in any case.

    Of several files with one stem the first of NOTE_SUFFIXES counts.
    """
    files = [path for path in folder.glob("*.*") if path.suffix.lower() in NOTE_SUFFIXES]
    files.sort(key=lambda path: (NOTE_SUFFIXES.index(path.suffix.lower()), path.name), reverse=True)
    return {path.stem: path for path in files}


def _pairs(folder: Path) -> Iterator[Recording]:
    # what infer takes for recordings; its command line is not loaded by training
    audios = audio_files(folder)
    counts = Counter(audio.with_suffix("") for audio in audios)
    notes_in = {folder: find_notes(folder) for folder in {audio.parent for audio in audios}}
    for audio in audios:
        notes = notes_in[audio.parent].get(audio.stem)
        if notes is not None:
            # pop.wav and pop.mp3 of one pop.mid have their suffixes in their names.
            stem = audio.with_suffix("") if counts[audio.with_suffix("")] == 1 else audio
            name = stem.relative_to(folder).as_posix()
            split = split_of(audio.relative_to(folder).with_suffix("").as_posix())
            yield Recording(name, "pairs", split, audio, (notes,))


# tried in this order: the last one takes any folder
LAYOUTS: dict[str, Callable[[Path], Iterator[Recording]]] = {
    "installed": _installed,
    "maestro": _maestro,
    "slakh": _slakh,
    "musicnet": _musicnet,
    "guitarset": _guitarset,
    "urmp": _urmp,
    "pairs": _pairs,
}

# the layouts that are data sets
PUBLISHED = [name for name in LAYOUTS if name != "pairs"]


def slakh_stems(metadata: Path) -> dict[str, dict]:
    """Read the descriptions of a track's rendered stems, by name, from metadata.yaml."""
    with needed("Slakh needs PyYAML", "train", DatasetError):
        import yaml

    class Plain(yaml.SafeLoader):
        """Loader of what says everything once: a few lines of aliases of aliases would fill the memory."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias (*), which Slakh does not use")
            return super().compose_node(parent, index)

    try:
        with open(metadata, "rb") as file:
            stems = yaml.load(read_bounded(file, LARGEST_SETTINGS), Plain)["stems"]
        return {name: stem for name, stem in stems.items() if stem.get("audio_rendered") and stem.get("midi_saved")}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DatasetError(f"{metadata} is not as slakh has it: {' '.join(repr(error).split())[:200]}") from error


def _slakh_notes(files: Sequence[Path]) -> list[Note]:
    metadata, *stems = files
    descriptions = slakh_stems(metadata)
    notes = []
    for path in stems:
        stem = descriptions[path.stem]
        program = 0 if stem["is_drum"] else int(stem["program_num"])
        for note in midi.read_midi(path, sustain=True):
            notes.append(note._replace(program=program, is_drum=bool(stem["is_drum"])))
    return notes


def _musicnet_notes(files: Sequence[Path]) -> list[Note]:
    return musicnet_labels(files[0], _first_instrument(files[0].parents[1]))


@functools.cache
def _first_instrument(folder: Path) -> int:
    return first_instrument(sorted(folder.glob("*_labels/*.csv")))


def first_instrument(tables: Iterable[Path]) -> int:
    """Return the number that MusicNet's tables give the piano: 1 as first published, 0 in some copies."""
    for path in tables:
        instruments = {note.program for note in musicnet_labels(path, 0)}
        if instruments & FROM_0:
            return 0
        if instruments & FROM_1:
            return 1
    return 1


def musicnet_labels(path: Path, first_instrument: int = 1) -> list[Note]:
    """Read a table of MusicNet; its instruments are General MIDI programs counted from first_instrument.

    Raises:
        ValueError: it is no such table.
    """
    notes = []
    for row in _rows(path, ("start_time", "end_time", "instrument", "note")):
        onset, offset = (int(row[name]) / MUSICNET_RATE for name in ("start_time", "end_time"))
        notes.append(Note(onset, offset, int(row["note"]), VELOCITY, int(row["instrument"]) - first_instrument))
    return notes


def _guitarset_notes(files: Sequence[Path]) -> list[Note]:
    return guitarset_notes(files[0])


def guitarset_notes(path: Path) -> list[Note]:
    """Read the notes of all strings from an annotation of GuitarSet, .jams.

    Raises:
        ValueError: it is no JSON.
        KeyError, TypeError: it is not as GuitarSet has it.
    """
    try:
        annotations = parse_json(path.read_text())["annotations"]
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON: {error}") from error
    notes = []
    for annotation in annotations:
        # one for each string; pitches are MIDI numbers with fractions
        if annotation["namespace"] == "note_midi":
            for item in annotation["data"]:
                offset = item["time"] + item["duration"]
                notes.append(Note(float(item["time"]), float(offset), round(item["value"]), VELOCITY, GUITAR))
    return notes


def _urmp_notes(files: Sequence[Path]) -> list[Note]:
    # 01_Jupiter_vn_vc/Notes_1_vn_01_Jupiter.txt: the folder has the instruments of all parts, since a file of piece 15
    # names the wrong one
    notes = []
    for path in files:
        number = int(path.stem.split("_")[1])
        instruments = dict(enumerate(path.parent.name.split("_")[2:], 1))
        if instruments.get(number) not in URMP_PROGRAMS:
            raise DatasetError(
                f"{path.parent}: not named as URMP has it, after all instruments, such as 01_Jupiter_vn_vc: "
                f"which one {path.name} is cannot be told"
            )
        notes += urmp_part(path, URMP_PROGRAMS[instruments[number]])
    return notes


def urmp_part(path: Path, program: int) -> list[Note]:
    """Read the notes of a part of URMP: onset, Hz and duration in each line.

    Raises:
        DatasetError: a line is no note.
    """
    notes = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            onset, hertz, duration = map(float, line.split()[:3])
            pitch = round(69 + 12 * math.log2(hertz / 440))
            notes.append(Note(onset, onset + duration, pitch, VELOCITY, program))
        except (ValueError, OverflowError) as error:
            raise DatasetError(f"{path}, line {number}: not onset, Hz, duration: {line[:200]!r}") from error
    return notes


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
                raise DatasetError(f"{path} has no column {missing[0]!r}")
            return list(rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is no table in UTF-8: {error}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
