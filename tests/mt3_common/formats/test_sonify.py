"""Transcriptions as sound: the right notes at the right times and levels, whoever plays them."""

import contextlib
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile

from mt3_common.formats import sealed, sonify
from mt3_common.notes.note import Note

NOTES = [
    Note(0.5, 1.0, 69, 100, 0),
    Note(1.5, 2.0, 81, 100, 40),
    Note(2.5, 2.51, 36, 120, 0, True),
    Note(2.7, 2.71, 42, 120, 0, True),
    Note(3.2, 3.6, 57, 60, 16),
]
BUNDLED_FONT = Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"


def players():
    instances = [sonify.TonePlayer()]
    # without tinysoundfont
    with contextlib.suppress(ValueError):
        instances.append(sonify.FontPlayer(BUNDLED_FONT))
    return instances


PLAYERS = pytest.mark.parametrize("player", players(), ids=lambda player: type(player).__name__)


def record(path, seconds, rate=16000, level=0.05):
    samples = level * np.random.default_rng(0).standard_normal(round(seconds * rate))
    soundfile.write(path, samples, rate)
    return path


def loudness(samples, begin, end, rate=44100):
    return float(np.sqrt(np.mean(samples[round(begin * rate) : round(end * rate)] ** 2)))


@PLAYERS
def test_notes_sound_when_and_as_high_as_they_should(player):
    samples = np.concatenate(list(player.play(NOTES, 44100, 44100 * 5)))
    assert (len(samples), samples.dtype) == (44100 * 5, np.float32)
    assert loudness(samples, 0.0, 0.49) == 0
    for note in NOTES:
        assert loudness(samples, note.onset, note.onset + 0.05) > 3e-3
    for onset, pitch in ((0.55, 69), (1.6, 81), (3.3, 57)):
        part = samples[round(onset * 44100) :][:8192] * np.hanning(8192)
        spectrum = np.abs(np.fft.rfft(part))
        hertz = 440.0 * 2 ** ((pitch - 69) / 12)
        assert spectrum[round(hertz / 44100 * 8192) + np.arange(-2, 3)].max() > 0.25 * spectrum.max()
    assert loudness(samples, 4.8, 5.0) < 1e-3


@PLAYERS
def test_the_files_and_what_is_on_either_side(tmp_path, player):
    record(tmp_path / "a.wav", 5.0)
    files = tmp_path / "a.played.wav", tmp_path / "a.compared.wav"
    sonify.write_sounds(NOTES, tmp_path / "a.wav", *files, player, 1.0, 4.0)
    played, rate = soundfile.read(files[0])
    compared, _ = soundfile.read(files[1])
    assert (rate, played.shape, compared.shape) == (44100, (44100 * 6,), (44100 * 6, 2))
    assert soundfile.info(files[0]).subtype == "PCM_16"
    left, right = compared.T
    assert not left[44100 * 4 + 50 :].any()
    assert loudness(left, 0, 4) == pytest.approx(0.05, rel=0.05)
    assert np.sqrt(np.mean(right**2)) == pytest.approx(np.sqrt(np.mean(left**2)), rel=0.05)
    assert np.corrcoef(right, played)[0, 1] > 0.99
    first = [path.read_bytes() for path in files]
    assert all(map(sealed.written_here, files))
    assert all(map(sonify.is_played, files))
    sonify.write_sounds(NOTES, tmp_path / "a.wav", *files, player, 1.0, 4.0)
    assert [path.read_bytes() for path in files] == first
    files[0].write_bytes(first[0][:-1] + b"x")
    assert not sealed.written_here(files[0])
    assert sonify.is_played(files[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.compared.wav", "a.played.wav", "a.wav"]


@PLAYERS
def test_many_loud_notes_are_turned_down_and_none_is_cut(tmp_path, player):
    notes = [Note(1.0 + number / 50, 5.0, 30 + number, 127, number % 128) for number in range(60)]
    notes += [Note(3.0, 3.01, key, 127, 0, True) for key in range(35, 82)]
    loudest = max(float(np.abs(block).max()) for block in player.play(notes, 44100, 44100 * 6))
    assert loudest > 1
    samples = np.concatenate(list(sonify.limited(player.play(notes, 44100, 44100 * 6))))
    assert len(samples) == 44100 * 6
    assert np.abs(samples).max() <= sonify.LOUDEST + 1e-6


def test_limiting_leaves_quiet_sound_alone():
    blocks = [np.full(sonify.BLOCK, 0.5, np.float32)] * 3
    assert np.array_equal(np.concatenate(list(sonify.limited(blocks))), np.concatenate(blocks))
    loud = [*blocks, np.full(100, 9.0, np.float32), *blocks]
    samples = np.concatenate(list(sonify.limited(loud)))
    assert len(samples) == 6 * sonify.BLOCK + 100
    assert np.abs(samples).max() <= sonify.LOUDEST + 1e-6
    assert not list(sonify.limited([]))


@PLAYERS
def test_no_notes_and_a_silent_recording(tmp_path, player):
    soundfile.write(tmp_path / "a.flac", np.zeros(8000), 8000)
    sonify.write_sounds([], tmp_path / "a.flac", tmp_path / "b.wav", tmp_path / "c.wav", player, 0.0, 1.0)
    for name, channels in (("b.wav", 1), ("c.wav", 2)):
        samples, _ = soundfile.read(tmp_path / name, always_2d=True)
        assert samples.shape == (44100 * 3, channels)
        assert not samples.any()


def test_a_recording_far_beyond_full_scale_is_brought_down(tmp_path):
    samples = 1000 * np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    sonify.write_sounds(NOTES, tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.wav", sonify.TonePlayer(), 0, 1.0)
    left = soundfile.read(tmp_path / "c.wav")[0][:, 0]
    assert np.abs(left).max() == pytest.approx(1.0, abs=0.01)
    assert np.mean(np.abs(left[:40000]) > 0.99) < 0.05


@PLAYERS
def test_memory_does_not_grow_with_the_recording(tmp_path, player, monkeypatch):
    monkeypatch.setattr(sonify, "RATES", (11025,))
    peaks = []
    for seconds in (20.0, 200.0):
        record(tmp_path / "a.wav", seconds, 11025)
        notes = [Note(time, time + 0.3, 60, 100, 0) for time in np.arange(0, seconds - 1, 1.0).tolist()]
        sonify.write_sounds(notes[:5], tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.wav", player, 0, 5.0)
        tracemalloc.start()
        sonify.write_sounds(notes, tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.wav", player, 0, seconds)
        sealed.written_here(tmp_path / "c.wav")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_what_is_too_long_for_a_wav_is_written_at_a_lower_rate(tmp_path, monkeypatch):
    record(tmp_path / "a.wav", 1.0)
    monkeypatch.setattr(sonify, "WAV_BYTES", 300_000)
    sonify.write_sounds(NOTES, tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.wav", sonify.TonePlayer(), 0, 1.0)
    assert soundfile.info(tmp_path / "c.wav").samplerate == 11025


def test_a_family_stands_in_for_a_program_that_the_font_lacks():
    font = object.__new__(sonify.FontPlayer)
    font._presets = {0, 41, 60}
    assert [font._preset(program) for program in (0, 7, 40, 47, 62, 100)] == [0, 0, 41, 41, 60, 60]


def test_soundfonts_that_cannot_play(tmp_path, monkeypatch):
    pytest.importorskip("tinysoundfont")
    with pytest.raises(ValueError, match=r"absent\.sf2 is no soundfont: there is no such file"):
        sonify.find_player(tmp_path / "absent.sf2")
    (tmp_path / "x.sf2").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"x\.sf2 cannot be loaded as a soundfont"):
        sonify.find_player(tmp_path / "x.sf2")
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(ValueError, match="pip install --no-deps tinysoundfont"):
        sonify.find_player(BUNDLED_FONT)
    assert isinstance(sonify.find_player(), sonify.TonePlayer)


def test_the_largest_soundfont_that_is_not_too_large_is_found(tmp_path, monkeypatch):
    pytest.importorskip("tinysoundfont")
    monkeypatch.setattr(sonify, "FOLDERS", (str(tmp_path), str(tmp_path / "absent")))
    monkeypatch.setattr(sonify, "LARGEST_FONT", 10_000_000)
    assert sonify.find_soundfont() == BUNDLED_FONT
    for name, size in (
        ("a.SF2", 7_000_000),
        ("b.sf3", 8_000_000),
        ("c.sf2", 11_000_000),
        ("d.wav", 9_500_000),
        ("e.sfo", 9_000_000),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    assert sonify.find_soundfont() == tmp_path / "e.sfo"
    monkeypatch.setattr(sonify, "LARGEST_FONT", 1)
    assert isinstance(sonify.find_player(), sonify.TonePlayer)
