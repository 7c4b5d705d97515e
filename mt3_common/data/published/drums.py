"""Drums: ENST-drums, played on three kits, and E-GMD, an electronic kit with its MIDI."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from mt3_common.audio.files import read_audio
from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.published.index import SPLITS, DatasetError, Piece, Stem, locate
from mt3_common.formats import midi
from mt3_common.io.folders import make_folder
from mt3_common.notes.note import Note

# names of ENST-drums -> General MIDI keys; 0 to 3, below the drums of General MIDI, for sounds that have no key
ENST_KEYS = {
    **{"bd": 36, "sd": 38, "sweep": 0, "sticks": 1, "rs": 2, "cs": 37, "chh": 42, "ohh": 46, "cb": 56, "c": 3},
    **{"lmt": 47, "mt": 48, "mtr": 58, "lt": 45, "ltr": 50, "lft": 41, "rc": 51, "ch": 52, "cr": 49, "spl": 55},
}
# s
HIT = 0.01
VELOCITY = 100
# in the names of recordings with accompaniment
WITH_MUSIC = "minus-one"
# variant -> share of the accompaniment in the mix with the drums, both at peak 1
MIXES = {"dtm-r1": 0.25, "dtm": 0.4}
# takes of E-GMD's reduced test set
REDUCED = ("_5.mid", "_10.mid")


def enst_drums(root: Path) -> Iterator[Piece]:
    """Yield the recordings of ENST-drums: drummer_{1,2,3}/annotation/*.txt with audio/wet_mix/*.wav.

    Drummers 1 and 2 are for training; the test set is what drummer 3 plays to music (21 recordings), of which the data
    set's own index has the drums alone ('dtp'). Variants: `dtm`, drums mixed with the music at 0.6 to 0.4, and
    `dtm-r1`, at 0.75 to 0.25, both with stems whose accompaniment nobody annotated; `dtd`, drummer 3 without music.

    Raises:
        DatasetError: files are missing, or a line names an unknown drum.
    """
    folder = locate(root, "drummer_1/annotation/*.txt")
    for drummer in (1, 2, 3):
        home = folder / f"drummer_{drummer}"
        for table in sorted(home.glob("annotation/*.txt")):
            name = f"drummer_{drummer}/{table.stem}"
            notes = enst_notes(table)
            drums = home / "audio" / "wet_mix" / f"{table.stem}.wav"
            with_music = WITH_MUSIC in table.stem
            if drummer == 3 and not with_music:
                yield Piece(name, "test", drums, name, notes, variant="dtd")
                continue
            split = "train" if drummer < 3 else "test"
            yield Piece(name, split, drums, name, notes)
            for variant, share in MIXES.items():
                if not with_music:
                    yield Piece(name, split, drums, name, notes, variant=variant)
                    continue
                music = home / "audio" / "accompaniment" / drums.name
                for audio in (drums, music):
                    if not audio.is_file():
                        raise DatasetError(f"{audio} is missing; the rest of ENST-drums is there")
                mix = root / "mixes" / variant / f"{name}.wav"
                write_mix(mix, drums, music, share)
                stems = (Stem(drums, 0, True), Stem(music, None))
                yield Piece(name, split, mix, name, notes, stems, variant)


def enst_notes(path: Path) -> list[Note]:
    """Read an annotation of ENST-drums: a time and the name of a drum in each line.

    Raises:
        DatasetError: a line is no hit of a known drum.
    """
    notes = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            time, name = line.split()[:2]
            # rc2, sd-: how it was hit
            name = re.sub(r"[^a-z]", "", name.lower())
            onset = float(time)
            notes.append(Note(onset, onset + HIT, ENST_KEYS[name], VELOCITY, 0, True))
        except (ValueError, KeyError) as error:
            raise DatasetError(
                f"{path}, line {number}: not a time and a drum of ENST-drums ({', '.join(ENST_KEYS)}): {line[:200]!r}"
            ) from error
    return sorted(notes)


def write_mix(path: Path, drums: Path, music: Path, share: float) -> None:
    """Write drums and music, each at peak 1, in shares 1 - share and share, at peak 1 in all; 16 kHz, 16 bit.

    Raises:
        ValueError, OSError: a file cannot be read or written.
    """
    parts = [read_audio(audio, SAMPLE_RATE) for audio in (drums, music)]
    length = max(map(len, parts))
    mix = np.zeros(length)
    for part, weight in zip(parts, (1 - share, share)):
        mix[: len(part)] += weight * part / max(1e-9, float(np.abs(part).max(initial=0.0)))
    make_folder(path.parent)
    soundfile.write(path, mix / max(1e-9, np.abs(mix).max(initial=0.0)), SAMPLE_RATE, subtype="PCM_16")


def e_gmd(root: Path) -> Iterator[Piece]:
    """Yield the recordings of E-GMD by its own table, e-gmd-v1.0.0.csv; splits as published, every note is a drum.

    The variant `reduced` is YourMT3's smaller test set: takes 5 and 10 of the test set.

    Raises:
        DatasetError: the table is missing or another one.
    """
    folder = locate(root, "e-gmd-v*.csv")
    table = sorted(folder.glob("e-gmd-v*.csv"))[-1]
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        try:
            split, source, audio = row["split"], row["midi_filename"], row["audio_filename"]
            if split not in SPLITS:
                raise KeyError(split)
        except KeyError as error:
            raise DatasetError(f"{table} is not E-GMD's table: {error!r}") from error
        name = Path(source).with_suffix("").as_posix()
        notes = [note._replace(program=0, is_drum=True) for note in midi.read_midi(folder / source)]
        yield Piece(name, split, folder / audio, name, notes)
        if split == "test" and any(part in source for part in REDUCED):
            yield Piece(name, split, folder / audio, name, notes, variant="reduced")
