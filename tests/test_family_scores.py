"""The counts behind benchmarks/family_scores.py, on notes whose families are plain."""

import importlib.util
from pathlib import Path

import numpy as np
import soundfile

from mt3_common.formats import midi
from mt3_common.notes.note import Note

SPEC = importlib.util.spec_from_file_location("families", Path(__file__).parents[1] / "benchmarks" / "family_scores.py")
families = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(families)
# two of a piano, two of a violin, one hit
REFERENCES = [
    *(Note(0.5, 0.9, 60, 90, 0), Note(1.0, 1.4, 62, 90, 3)),
    *(Note(0.5, 0.9, 76, 90, 40), Note(1.0, 1.4, 77, 90, 40)),
    Note(1.5, 1.51, 38, 90, 0, True),
]


def test_a_note_of_another_family_is_heard_and_does_not_match():
    # a violin's note given to a flute, one of the piano's to another piano, one missing, one that nobody plays
    estimates = [REFERENCES[0]._replace(program=1), REFERENCES[2]._replace(program=73), *REFERENCES[3:]]
    estimates.append(Note(1.8, 1.9, 50, 90, 73))
    counts = families.count(REFERENCES, estimates)
    rows = {name: counts[number].tolist() for number, name in enumerate(families.ROWS) if counts[number].any()}
    assert rows == {"piano": [2, 1, 1, 1], "strings": [2, 2, 1, 1], "pipe": [0, 0, 2, 0], "drums": [1, 1, 1, 1]}


def test_recordings_are_counted_together_and_estimates_side_by_side(tmp_path, capsys):
    for name in ("one", "two"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(40000, np.float32), 16000)
        midi.write_midi(REFERENCES, tmp_path / f"{name}.mid")
        right = [*REFERENCES, Note(1.8, 1.9, 50, 90, 16)]
        for folder, notes in (("right", right), ("none", REFERENCES[:1] if name == "one" else [])):
            (tmp_path / folder).mkdir(exist_ok=True)
            midi.write_midi(notes, tmp_path / folder / f"{name}.mid")
    (tmp_path / "songs").mkdir()
    for path in [*tmp_path.glob("*.wav"), *tmp_path.glob("*.mid")]:
        path.rename(tmp_path / "songs" / path.name)
    folders = [str(tmp_path / name) for name in ("songs", "none", "right")]
    assert families.main(folders) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [f"1: {tmp_path / 'none'}", f"2: {tmp_path / 'right'}"]
    lines = [line for line in printed if line.startswith("│")]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert rows == [
        ["piano", "2", "4", "0.250", "0.400", "1.000", "1.000"],
        ["organ", "0", "0", "-", "-", "-", "0.000"],
        ["strings", "2", "4", "0.000", "0.000", "1.000", "1.000"],
        ["drums", "2", "2", "0.000", "0.000", "1.000", "1.000"],
    ]
