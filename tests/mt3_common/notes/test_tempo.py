"""Beats of recordings, and MIDI files whose quarters are these beats: notes stay where they were in seconds."""

import itertools
import sys
import tracemalloc
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.formats import midi
from mt3_common.notes import tempo
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import Tempo, TempoMap
from mt3_common.transcription import beats


def clicks(path: Path, times, seconds: float, rate: int = 22050) -> Path:
    """A recording of short noises at the given times (s)."""
    samples = np.random.default_rng(0).normal(0, 1e-4, round(seconds * rate))
    for time in times:
        place = round(time * rate)
        samples[place : place + 400] += np.random.default_rng(1).normal(0, 0.3, 400)[: len(samples) - place]
    soundfile.write(path, samples, rate)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("bpm", "seconds"), [(96, 20), (120, 40), (140, 70)])
def test_beats_of_a_recording_are_found(tmp_path, bpm, seconds):
    pytest.importorskip("librosa")
    times = np.arange(0.7, seconds - 0.5, 60 / bpm)
    tempo_map = beats.find_beats(clicks(tmp_path / "a.wav", times, seconds))
    assert 60 / tempo_map.interval == pytest.approx(bpm, rel=0.02)
    inside = [beat for beat in tempo_map.beats if times[0] <= beat <= times[-1]]
    assert len(inside) > 0.9 * len(times)
    assert np.mean([np.abs(times - beat).min() < 0.05 for beat in inside]) > 0.95


def played(bpm_at, seconds: float) -> np.ndarray:
    """Times (s) of beats whose tempo at each moment is bpm_at(s)."""
    times = [0.7]
    while times[-1] < seconds - 0.5:
        times.append(times[-1] + 60 / bpm_at(times[-1]))
    return np.array(times)


@pytest.mark.parametrize(
    "bpm_at",
    [
        lambda time: 100 if time < 20 else 140,
        lambda time: 120 - 40 * max(0.0, (time - 20) / 20),
        lambda time: 90 + time,
    ],
    ids=["100 to 140", "ritardando", "accelerando"],
)
def test_beats_follow_changes_of_the_tempo(tmp_path, bpm_at):
    pytest.importorskip("librosa")
    times = played(bpm_at, 40)
    tempo_map = beats.find_beats(clicks(tmp_path / "a.wav", times, 40), [Note(t, t + 0.1, 60, 90) for t in times])
    beat_times = np.asarray(tempo_map.beats)
    assert len(beat_times) == pytest.approx(len(times), abs=4)
    assert np.mean([np.abs(beat_times - time).min() < 0.05 for time in times]) > 0.9
    intervals = 60 / np.diff(beat_times)
    for moment in (8.0, 36.0):
        assert np.interp(moment, beat_times[1:], intervals) == pytest.approx(bpm_at(moment), rel=0.06)


def test_a_steady_tempo_stays_one_value(tmp_path):
    pytest.importorskip("librosa")
    times = np.arange(0.7, 39.5, 60 / 112)
    notes = [Note(time, time + 0.1, 60, 90) for time in times]
    tempo_map = beats.find_beats(clicks(tmp_path / "a.wav", times, 40), notes)
    assert len(set(np.round(np.diff(tempo_map.beats), 6))) == 1
    assert 60 / tempo_map.interval == pytest.approx(112, abs=0.01)


def test_start_and_duration_and_downbeats(tmp_path):
    """Every fourth beat has two notes, from the third on."""
    pytest.importorskip("librosa")
    times = np.arange(1.0, 19.0, 0.5)
    path = clicks(tmp_path / "a.wav", times, 20.0)
    notes = [Note(time - 1.0, time - 0.9, 60 + number % 4 // 2, 100) for number, time in enumerate(times)]
    notes += [Note(time - 1.0, time - 0.9, 40, 100) for time in times[2::4]]
    tempo_map = beats.find_beats(path, notes, start=1.0, duration=15.0)
    assert tempo_map.beats[-1] < 15.1
    first = tempo_map.beats[tempo_map.downbeat]
    assert (first + 0.05) % 2.0 == pytest.approx(1.05, abs=0.1)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 5.0])
def test_silence_and_moments_have_the_usual_tempo(tmp_path, seconds):
    pytest.importorskip("librosa")
    soundfile.write(tmp_path / "a.wav", np.zeros(round(seconds * 16000)), 16000)
    assert beats.find_beats(tmp_path / "a.wav") == tempo.constant(120.0)


@pytest.mark.slow
def test_a_long_recording_takes_little_memory(tmp_path):
    pytest.importorskip("librosa")
    peaks = []
    for seconds in (70, 210):
        path = clicks(tmp_path / f"{seconds}.wav", np.arange(0.5, seconds, 0.5), seconds)
        beats.find_beats(path)
        tracemalloc.start()
        beats.find_beats(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


beat_lists = st.builds(
    lambda first, gaps, downbeat: Tempo(tuple(itertools.accumulate(gaps, initial=first)), downbeat),
    st.one_of(st.just(0.0), st.floats(0.002, 3)),
    st.lists(st.floats(0.2, 2.0), min_size=1, max_size=30),
    st.integers(0, 3),
)


@settings(deadline=None, max_examples=100)
@given(beats=beat_lists, resolution=st.sampled_from(midi.TEMPO_RESOLUTIONS))
def test_beats_are_quarters_and_the_downbeat_begins_a_bar(beats, resolution):
    grid = TempoMap(beats, resolution)
    ticks = [grid.tick(beat) for beat in beats.beats]
    assert all(tick % resolution == 0 for tick in ticks)
    assert all(later - earlier == resolution for earlier, later in itertools.pairwise(ticks))
    if beats.downbeat < len(ticks):
        assert (ticks[beats.downbeat] - grid.bar) % (4 * resolution) == 0
    assert grid.tick(0.0) == 0


@settings(deadline=None, max_examples=60)
@given(beats=beat_lists, onsets=st.lists(st.floats(0, 60), min_size=1, max_size=12, unique=True))
def test_notes_stay_where_they_are_within_a_tick(tmp_path_factory, beats, onsets):
    path = tmp_path_factory.mktemp("midi") / "a.mid"
    notes = [Note(onset, onset + 0.5, 20 + number, 100, 8) for number, onset in enumerate(onsets)]
    midi.write_midi(notes, path, beats)
    tick = max(np.diff(beats.beats).max(), beats.beats[0]) / 960
    by_pitch = {note.pitch: note for note in midi.read_midi(path)}
    for note in notes:
        assert abs(by_pitch[note.pitch].onset - note.onset) <= tick
        assert abs(by_pitch[note.pitch].offset - note.offset) <= tick


def test_other_readers_find_the_beats_and_bars(tmp_path):
    beats = Tempo((0.8, 1.3, 1.9, 2.4, 2.8, 3.3), 1)
    midi.write_midi([Note(1.3, 3.3, 60, 100)], tmp_path / "a.mid", beats)
    read = pretty_midi.PrettyMIDI(str(tmp_path / "a.mid"))
    times = read.get_beats()
    for beat in beats.beats[:-1]:
        assert np.abs(times - beat).min() < 1e-5
    # 0.0, 0.4 and 0.8 make a bar of their own
    assert [(change.numerator, change.denominator) for change in read.time_signature_changes][-1] == (4, 4)
    assert np.abs(read.get_downbeats() - 1.3).min() < 1e-5
    assert read.instruments[0].notes[0].start == pytest.approx(1.3, abs=1e-3)


def test_a_given_tempo_counts_from_zero(tmp_path):
    midi.write_midi([Note(1.25, 2.5, 60, 100)], tmp_path / "a.mid", tempo.constant(96.0))
    file = mido.MidiFile(tmp_path / "a.mid")
    assert [message.tempo for message in file.tracks[0] if message.type == "set_tempo"] == [625000]
    assert next(message.time for message in file.tracks[1] if message.type == "note_on") == 2 * 960


def test_hours_keep_their_place(tmp_path):
    """Rounded tempos would add up to 5 ms in three hours; and the ticks stay few enough for pretty_midi."""
    beats = tuple(np.cumsum(np.tile([0.4137731, 0.5911317, 0.4900049], 7000)).tolist())
    notes = [Note(time, time + 0.3, 60, 100) for time in beats[::50]]
    midi.write_midi(notes, tmp_path / "a.mid", Tempo(beats))
    for ours, copy in zip(notes, midi.read_midi(tmp_path / "a.mid"), strict=True):
        assert abs(ours.onset - copy.onset) < 2e-6


def test_without_librosa_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(ValueError, match=r"mt3-twins\[tempo\]"):
        beats.find_beats(tmp_path / "a.wav")
