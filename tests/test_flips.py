"""The counts behind benchmarks/flips.py, on notes whose flips are plain."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from yourmt3_toys import write_toy

from mt3_common.config import PRESETS
from mt3_common.formats import midi
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.transcription.batching import PromptedSegment, SegmentTokens
from mt3_common.transcription.continuity import InstrumentContinuity
from mt3_common.transcription.pipeline import Transcriber

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("flips", ROOT / "benchmarks" / "flips.py")
flips = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(flips)

BOUNDARIES = [2.0, 4.0, 6.0]


def note(onset, offset, pitch, program, is_drum=False):
    return Note(onset, offset, pitch, 100, program, is_drum)


def test_what_agrees_does_not_flip():
    notes = [note(0.5, 1.0, 60, 8), note(2.5, 4.5, 62, 8), note(5.0, 5.1, 64, 8), note(2.5, 2.6, 36, 0, True)]
    assert flips.flips(notes, notes, BOUNDARIES) == (0, 2, 0, 0)
    # a wrong program that stays is no flip
    assert flips.flips(notes, [other._replace(program=40) for other in notes], BOUNDARIES) == (0, 2, 0, 0)
    assert flips.flips([], notes, BOUNDARIES) == (0, 0, 0, 0)


def test_an_instrument_that_is_heard_as_another_flips_even_over_a_segment_without_it():
    references = [note(0.5, 1.0, 60, 8), note(0.6, 1.0, 62, 8), note(6.5, 7.0, 64, 8), note(7.5, 7.6, 64, 8)]
    estimates = [reference._replace(program=program) for reference, program in zip(references, (8, 8, 40, 40))]
    assert flips.flips(references, estimates, BOUNDARIES) == (1, 1, 0, 0)
    # the most decide
    estimates[3] = estimates[3]._replace(program=8)
    estimates.append(note(7.0, 7.1, 65, 8))
    references.append(estimates[-1])
    assert flips.flips(references, estimates, BOUNDARIES) == (0, 1, 0, 0)


def test_a_note_that_goes_on_under_another_program_is_cut():
    estimates = [note(1.0, 2.0, 60, 8), note(2.05, 3.0, 60, 40), note(1.0, 2.0, 62, 8), note(2.05, 3.0, 62, 8)]
    assert flips.flips([], estimates, BOUNDARIES).cut_notes == 1
    assert flips.flips([], [*estimates[:1], note(2.2, 3.0, 60, 40)], BOUNDARIES).cut_notes == 0
    assert flips.flips([], [note(1.0, 1.9, 60, 8), estimates[1]], BOUNDARIES).cut_notes == 0


def test_long_notes_are_counted():
    assert flips.flips([], [note(0.0, 11.0, 60, 8), note(0.0, 9.0, 62, 8)], BOUNDARIES).long_notes == 1


def test_the_command_shows_each_way_to_decode(tmp_path, capsys, monkeypatch):
    """The network's stand-in flips unless it is held: it says the program that nothing speaks against.

    It is sure of program 0, but not of the other one, which the recording so far corrects.
    """
    config = PRESETS["mt3"]
    vocabulary = Vocabulary(config.vocabulary)

    def load(hold, instrument_prior, **settings):
        def generate(segments):
            for item in segments:
                if item is None:
                    return
                continued = isinstance(item, PromptedSegment)
                segment = item.segment if continued else item
                program = 40 * (segment.index % 2)
                if continued and item.logit_bias[3 + vocabulary.index("program", program)] < -1:
                    program = 40 - program
                events = [("tie", 0), ("shift", 100), ("program", program), ("velocity", 1), ("pitch", 60)]
                events += [("shift", 150), ("velocity", 0), ("pitch", 60)]
                ids = vocabulary.encode([vocabulary.index(*event) for event in events])
                logits = np.full((1, 128), -30.0, np.float32)
                logits[0, [0, 40]] = np.log([0.45, 0.55] if program else [0.9, 0.1])
                yield SegmentTokens(ids, logits) if instrument_prior else ids

        return Transcriber(config, generate, continuity=None if hold is None else InstrumentContinuity(hold, 2))

    monkeypatch.setattr("torch_mt3.infer.load", load)
    soundfile.write(tmp_path / "a.wav", np.zeros(16000 * 8), 16000)
    midi.write_midi([note(begin + 1, begin + 1.5, 60, 8) for begin in (0, 2.04, 4.09, 6.14)], tmp_path / "a.mid")
    argv = [tmp_path, "--bias", "1", "2", "--json", tmp_path / "figures.json"]
    assert flips.main([str(argument) for argument in argv]) == 0
    assert "bias 2" in capsys.readouterr().out
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [(row["instruments by"], row["stream_flips"], row["chances"], row["onset"]) for row in rows] == [
        ("segment alone", 3, 3, 1.0),
        ("recording so far", 0, 3, 1.0),
        ("held, bias 1", 3, 3, 1.0),
        ("held, bias 2", 0, 3, 1.0),
    ]


def test_a_folder_without_notes_is_refused(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    with pytest.raises(SystemExit):
        flips.main([str(tmp_path)])
    assert "has its notes beside it" in capsys.readouterr().err


def test_a_yourmt3_cannot_hold_instruments(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 16000)
    midi.write_midi([note(0.0, 0.1, 60, 8)], tmp_path / "a.mid")
    write_toy(tmp_path / "toy.safetensors")
    with pytest.raises(SystemExit) as stop:
        flips.main([str(tmp_path), "--checkpoint", str(tmp_path / "toy.safetensors")])
    assert stop.value.code == 2
    assert "toy.safetensors is a YourMT3+, which cannot hold instruments" in capsys.readouterr().err
