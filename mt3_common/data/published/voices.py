"""Singing in pop songs: MIR-ST500 and CMedia, with voice and accompaniment separated by spleeter."""

from collections.abc import Iterator
from pathlib import Path

from mt3_common.data.published.index import DatasetError, Piece, Stem, locate
from mt3_common.io.json_text import parse_json
from mt3_common.notes.note import Note, trim_overlapping

# of a voice, as YourMT3 has it
VOICE = 100
VELOCITY = 100
# of MIR-ST500's 500 songs the first 400
TRAINING_SONGS = 400
# s: shorter notes of CMedia last to the next onset, if that is not farther away than REACH
SHORTEST, REACH = 0.01, 0.5


def mir_st500(root: Path) -> Iterator[Piece]:
    """Yield the songs of MIR-ST500: {train,test}/N, songs 1 to 400 for training, the others for the test.

    The data set's own index has the separated voice; the variant `mix` the songs, with an accompaniment as a stem
    without labels.
    """
    folder = locate(root, "MIR-ST500_*/MIR-ST500_corrected.json")
    table = next(folder.glob("MIR-ST500_*/MIR-ST500_corrected.json"))
    for song, notes in _annotations(table).items():
        split = "train" if int(song) <= TRAINING_SONGS else "test"
        yield from _song(folder / split / song, song, split, trim_overlapping(notes))


def cmedia(root: Path) -> Iterator[Piece]:
    """Yield the songs of CMedia, all for training: train/N; the index and its variant as for MIR-ST500.

    Notes shorter than 10 ms are legato whose end was lost: they last to the next onset within half a second.
    """
    folder = locate(root, "Cmedia-train/Cmedia_train_gt.json")
    for song, notes in _annotations(folder / "Cmedia-train" / "Cmedia_train_gt.json").items():
        following = [note.onset for note in notes[1:]] + [float("inf")]
        lasting = [
            note._replace(offset=onset)
            if note.offset - note.onset < SHORTEST and 0 < onset - note.offset < REACH
            else note
            for note, onset in zip(notes, following)
        ]
        yield from _song(folder / "train" / song, song, "train", trim_overlapping(lasting))


def _song(folder: Path, song: str, split: str, notes: list[Note]) -> Iterator[Piece]:
    voice, music = folder / "vocals.wav", folder / "accompaniment.wav"
    yield Piece(song, split, voice, song, notes)
    stems = (Stem(voice, VOICE), Stem(music, None))
    yield Piece(song, split, folder / "converted_Mixture.wav", song, notes, stems, "mix")


def _annotations(path: Path) -> dict[str, list[Note]]:
    """Read a table of songs: number -> [[onset, offset, pitch], …].

    Raises:
        DatasetError: it is no such table.
    """
    try:
        songs = parse_json(path.read_bytes())
        return {
            str(int(song)): sorted(
                Note(float(onset), float(offset), int(pitch), VELOCITY, VOICE) for onset, offset, pitch in rows
            )
            for song, rows in sorted(songs.items(), key=lambda item: int(item[0]))
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is no table of sung notes: {error!r}") from error
