"""Chamber music: MusicNet with MusicNet-EM, and URMP."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mt3_common.data.corpora import URMP_PROGRAMS, URMP_VALIDATION, first_instrument, musicnet_labels, urmp_part
from mt3_common.data.published.index import DatasetError, Piece, Stem, locate
from mt3_common.formats import midi
from mt3_common.notes.note import Note, trim_overlapping

# MusicNet's published test set, as the folder test_data has it, and the three pieces of its first paper
TEST = (1759, 1819, 2106, 2191, 2298, 2303, 2382, 2416, 2556, 2628)
FIRST_TEST = (1819, 2303, 2382)
# MT3's validation and test sets
MT3_VALIDATION = (1733, 1765, 1790, 1818, 2160, 2198, 2289, 2300, 2308, 2315, 2336, 2466, 2477, 2504, 2611)
MT3_TEST = (1729, 1776, 1813, 1893, 2118, 2186, 2296, 2431, 2432, 2487, 2497, 2501, 2507, 2537, 2621)
# MIDI files that are there twice, under another name
DUPLICATES = ("test_labels_midi/1759.mid", "test_labels_midi/1819.mid")
# beginning of the names of files that macOS leaves
HIDDEN = "."


def musicnet(root: Path) -> Iterator[Piece]:
    """Yield the recordings of MusicNet: with the labels of MusicNet-EM, and variants.

    The data set's own index has the real recordings with MusicNet-EM's labels, which were aligned to the audio; seven
    recordings have none and are left out. Test: the ten recordings of the published test folder; validation: MT3's 15.
    Variants: `thickstun`, the same with the labels first published; `mt3`, these with MT3's splits; `test3`, the three
    test pieces of the first paper; `synth`, the MIDI files rendered, outside the test set, for training.

    Raises:
        DatasetError: files are missing or not as published.
    """
    folder = locate(root, "*_labels/*.csv", "*_data/*.wav")
    labels = {path.stem: path for path in sorted(folder.glob("*_labels/*.csv"))}
    real = {path.stem: path for path in folder.glob("*_data/*.wav")}
    synthetic = {path.stem: path for path in folder.glob("*_synth/*.wav")}
    duplicates = {folder / name for name in DUPLICATES}
    scores = _by_number(sorted(path for path in folder.glob("*_midi/*.mid") if path not in duplicates))
    aligned = _by_number(sorted(folder.glob("*_em/*.mid")))
    first = first_instrument(labels.values())
    for number, path in labels.items():
        if number not in real:
            raise DatasetError(f"{folder}: there is no recording {number}.wav for {path.relative_to(folder)}")
        piece = int(number) if number.isdecimal() else -1
        own = "test" if piece in TEST else "validation" if piece in MT3_VALIDATION else "train"
        mt3 = "test" if piece in MT3_TEST else "validation" if piece in MT3_VALIDATION else "train"
        notes = trim_overlapping(musicnet_labels(path, first))
        audio = real[number]
        yield Piece(number, own, audio, f"labels/{number}", notes, variant="thickstun")
        yield Piece(number, mt3, audio, f"labels/{number}", notes, variant="mt3")
        if number in aligned:
            notes = _read(aligned[number])
            yield Piece(number, own, audio, f"em/{number}", notes)
            if piece in FIRST_TEST:
                yield Piece(number, "test", audio, f"em/{number}", notes, variant="test3")
        if number in synthetic and number in scores and own != "test":
            notes = _read(scores[number])
            yield Piece(number, "train", synthetic[number], f"midi/{number}", notes, variant="synth")


def _by_number(files: Sequence[Path]) -> dict[str, Path]:
    """Map the number that a file's name begins with to the file: 1727 of 1727_schubert_op114.mid."""
    return {path.stem.split("_")[0]: path for path in files}


def _read(path: Path) -> list[Note]:
    return trim_overlapping([note._replace(is_drum=False) for note in midi.read_midi(path)])


def urmp(root: Path) -> Iterator[Piece]:
    """Yield the pieces of URMP with a stem for each player: folders NN_Title_instrument_instrument.

    Pitches are rounded from the notes' frequencies. Instruments come from the folder's name, since a file of piece 15
    names the wrong one. Validation: the nine pieces that MT3 keeps back; the others for training.

    Raises:
        DatasetError: a part is missing, or its instrument is not known.
    """
    folder = locate(root, "*_*_*/AuMix*.wav")
    for mix in sorted(folder.glob("*_*_*/AuMix*.wav")):
        piece = mix.parent
        if mix.name.startswith(HIDDEN) or piece.name.startswith(("Supplementary", HIDDEN)):
            continue
        number, _, *instruments = piece.name.split("_")
        notes: list[Note] = []
        stems = []
        for part, instrument in enumerate(instruments, 1):
            if instrument not in URMP_PROGRAMS:
                raise DatasetError(f"{piece}: there is no instrument {instrument!r}")
            tables, audios = sorted(piece.glob(f"Notes_{part}_*.txt")), sorted(piece.glob(f"AuSep_{part}_*.wav"))
            if not tables or not audios:
                raise DatasetError(f"{piece}: Notes_{part}_*.txt or AuSep_{part}_*.wav is missing")
            notes += urmp_part(tables[0], URMP_PROGRAMS[instrument])
            stems.append(Stem(audios[0], URMP_PROGRAMS[instrument]))
        split = "validation" if number.isdecimal() and int(number) in URMP_VALIDATION else "train"
        yield Piece(piece.name, split, mix, piece.name, trim_overlapping(sorted(notes)), tuple(stems))
