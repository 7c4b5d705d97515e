"""The notes of benchmarks/row_onsets.py, on activations whose peaks are plain, and its table."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_common.config import LOWEST_PITCH, PITCH_ROWS, Config, SpectrogramConfig
from mt3_common.formats import midi
from mt3_common.notes.note import Note

SPEC = importlib.util.spec_from_file_location("row_onsets", Path(__file__).parents[1] / "benchmarks" / "row_onsets.py")
row_onsets = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(row_onsets)
# 50 frames a second
CONFIG = Config(spectrogram=SpectrogramConfig(hop_width=320))


def test_notes_begin_at_peaks_and_last_while_the_pitch_sounds():
    activations = np.zeros((100, PITCH_ROWS, 2), np.float32)
    row = 60 - LOWEST_PITCH
    activations[10:40, row, 0] = 0.9
    # highest a quarter of a frame behind frame 10
    activations[9:12, row, 1] = 0.3, 0.9, 0.6
    # at the end, and sounding on; below the threshold
    activations[90:, row + 7, 0] = 0.9
    activations[90, row + 7, 1] = 0.8
    activations[50, row + 1, 1] = 0.4
    first, second = row_onsets.peaks(activations, 0.5, CONFIG)
    top = 10 + (0.3 - 0.6) / (0.3 - 1.8 + 0.6) / 2
    assert (first.pitch, second.pitch) == (60, 67)
    assert first.onset == pytest.approx(top / 50)
    assert first.offset == pytest.approx(40 / 50)
    assert (second.onset, second.offset) == (pytest.approx(90 / 50), pytest.approx(2))
    assert len(row_onsets.peaks(activations, 0.3, CONFIG)) == 3


def test_a_plateau_is_one_note_and_quiet_frames_none():
    activations = np.zeros((20, PITCH_ROWS, 2), np.float32)
    activations[5:8, 3, 1] = 0.7
    assert len(row_onsets.peaks(activations, 0.5, CONFIG)) == 1
    assert row_onsets.peaks(np.zeros((20, PITCH_ROWS, 2), np.float32), 0.1, CONFIG) == []


@pytest.mark.compile
def test_the_table_has_a_row_for_a_group_and_the_threshold(tmp_path, capsys):
    """A tone of the bundled model; `small` has no pre-encoder to ask."""
    seconds = np.arange(48000) / 16000
    tone = sum(np.sin(2 * np.pi * 440 * k * seconds) / k for k in range(1, 6)) * np.exp(-seconds) * 0.2
    soundfile.write(tmp_path / "piano__tone.wav", np.concatenate([np.zeros(16000), tone]), 16000)
    midi.write_midi([Note(1.0, 3.0, 69, 100)], tmp_path / "piano__tone.mid")
    assert row_onsets.main([str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "piano" in lines[0]
    assert "threshold" in lines[-1]
    with pytest.raises(SystemExit):
        row_onsets.main([str(tmp_path), "--checkpoint", "small"])
    assert "small: it has no pre-encoder" in capsys.readouterr().err
