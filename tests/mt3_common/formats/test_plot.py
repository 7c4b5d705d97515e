"""Pictures of transcriptions: notes and sound are where they belong, however long the recording is."""

import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

from mt3_common.formats import plot, sealed
from mt3_common.notes.note import Note

pytest.importorskip("matplotlib")
NOTES = [Note(0.5, 1.0, 60, 100, 0), Note(2.0, 3.0, 72, 100, 40), Note(1.5, 1.51, 36, 100, 0, True)]


def record(path, seconds, rate=16000):
    """A tone of 1000 Hz (pitch 83) in the second half."""
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 1000 * time) * (time > seconds / 2), rate)
    return path


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def test_a_picture_is_a_png_of_the_notes_and_known_as_ours(tmp_path):
    audio = record(tmp_path / "a.wav", 4.0)
    plot.write_picture(NOTES, audio, tmp_path / "a.png", seconds=4.0)
    with_notes = pixels(tmp_path / "a.png")
    assert with_notes.shape[:2] == (800, 1000)
    assert sealed.written_here(tmp_path / "a.png")
    first = (tmp_path / "a.png").read_bytes()
    plot.write_picture(NOTES, audio, tmp_path / "a.png", seconds=4.0)
    assert (tmp_path / "a.png").read_bytes() == first
    plot.write_picture([], audio, tmp_path / "b.png", seconds=4.0)
    assert (pixels(tmp_path / "b.png") != with_notes).any()
    (tmp_path / "a.png").write_bytes(first[:-60] + b"x" + first[-59:])
    assert not sealed.written_here(tmp_path / "a.png")


@pytest.mark.parametrize("seconds", [4.0, 20.0])
def test_sound_is_drawn_at_its_pitch_and_time(tmp_path, seconds):
    image = plot.spectrogram_image(record(tmp_path / "a.wav", seconds), 0.0, seconds, 800)
    assert image.shape == (88 * plot.ROWS_PER_PITCH, 800)
    loud = image[(83 - plot.LOWEST) * plot.ROWS_PER_PITCH]
    assert loud[420:780].min() > loud[:380].max() + 5
    assert image[:, 600].argmax() == pytest.approx((83.2 - plot.LOWEST) * plot.ROWS_PER_PITCH, abs=2)


def test_a_part_is_drawn_from_its_beginning(tmp_path):
    image = plot.spectrogram_image(record(tmp_path / "a.wav", 8.0), 4.0, 2.0, 800)
    assert image[(83 - plot.LOWEST) * plot.ROWS_PER_PITCH].min() > 0


@pytest.mark.slow
def test_memory_and_size_do_not_grow_with_the_recording(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "MAX_COLUMNS", 900)
    peaks = []
    for seconds in (60.0, 300.0):
        audio = record(tmp_path / "a.wav", seconds)
        plot.write_picture(NOTES, audio, tmp_path / "a.png", seconds=seconds)
        tracemalloc.start()
        plot.write_picture(NOTES, audio, tmp_path / "a.png", seconds=seconds)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pixels(tmp_path / "a.png").shape[1] == 1100
    assert peaks[1] < 1.2 * peaks[0]


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"mt3-twins\[plot\]"):
        plot.write_picture(NOTES, tmp_path / "a.wav", tmp_path / "a.png")
