"""Meters, downbeats and steady beats, found in notes that have them."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.formats import midi
from mt3_common.notes.bars import find_bars
from mt3_common.notes.grid import BEAT as BEAT_STEPS
from mt3_common.notes.grid import quantise, quantised_times
from mt3_common.notes.key import Key, find_key
from mt3_common.notes.meter import FOUR_FOUR, Meter, parse_meter
from mt3_common.notes.note import Note
from mt3_common.notes.steady import steady_beats
from mt3_common.notes.tempo import NO_TIME, ScoreClock, Tempo, constant, without_short_beat
from mt3_common.transcription.beats import score_start, tempo_for

BEAT = 0.5


def accompaniment(beats_per_bar: int, bars: int, pickup: int = 0, begin: float = 0.0) -> list[Note]:
    """A bass note at the beginning of each bar, a chord on its other beats, and a tune over them."""
    notes = []
    for beat in range(bars * beats_per_bar + pickup):
        time = begin + beat * BEAT
        number = beat - pickup
        root = (48, 53, 55, 50)[number // beats_per_bar % 4]
        if number % beats_per_bar == 0:
            notes.append(Note(time, time + 0.4, root - 12, 100))
        elif number > 0:
            notes += [Note(time, time + 0.3, root + step, 100) for step in (4, 7, 12)]
        notes.append(Note(time, time + 0.4, 72 + number * 5 % 7, 100, 40))
    return notes


@pytest.mark.parametrize(("beats_per_bar", "meter"), [(3, Meter(3, 4)), (4, FOUR_FOUR)])
@pytest.mark.parametrize("pickup", [0, 1, 2])
def test_the_meter_and_the_downbeat_are_those_of_the_bass(beats_per_bar, meter, pickup):
    notes = accompaniment(beats_per_bar, 12, pickup)
    random = np.random.default_rng(0)
    notes = [note._replace(onset=max(0.0, note.onset + random.normal(0, 0.01))) for note in notes]
    beats = [BEAT * number for number in range(12 * beats_per_bar + pickup + 3)]
    tempo = find_bars(beats, notes)
    assert (tempo.meter, tempo.downbeat % beats_per_bar) == (meter, pickup)
    assert tempo.beats == tuple(beats)


def jig(bars: int, eighth: float, begin: float) -> list[Note]:
    """Running eighths, with a bass note and a chord in each bar."""
    notes = []
    for number in range(bars):
        time = begin + number * 6 * eighth
        for step, pitch in enumerate((74, 71, 67, 69, 71, 72) if number % 2 else (79, 76, 72, 74, 74, 71)):
            notes.append(Note(time + step * eighth, time + (step + 0.9) * eighth, pitch, 100, 73))
        notes.append(Note(time, time + 5 * eighth, 43 + number % 3 * 2, 100))
        notes.append(Note(time + 3 * eighth, time + 5 * eighth, 55, 100))
    return notes


@pytest.mark.parametrize("spacing", [3, 2])
def test_a_jig_is_in_six_eighths_whichever_beats_are_tapped(spacing):
    """Beats are dotted quarters, or quarters across them that begin an eighth late."""
    eighth = 0.18
    notes = jig(16, eighth, 0.36)
    beats = [0.36 + (spacing == 2) * eighth + spacing * eighth * number for number in range(6 * 16 // spacing)]
    tempo = find_bars(beats, notes)
    assert tempo.meter == Meter(6, 8)
    assert tempo.interval == pytest.approx(2 * eighth, abs=1e-6)
    assert (tempo.beats[tempo.downbeat] - 0.36) / (6 * eighth) % 1 == pytest.approx(0, abs=1e-3)


def test_a_given_meter_and_downbeat_are_taken():
    beats = [BEAT * number for number in range(20)]
    tempo = find_bars(beats, accompaniment(4, 4), Meter(3, 4), first_downbeat=2 * BEAT + 0.02)
    assert (tempo.meter, tempo.downbeat) == (Meter(3, 4), 2)


def test_without_notes_there_are_bars_of_four():
    assert find_bars([0.0, 0.5, 1.0], []) == Tempo((0.0, 0.5, 1.0))


def test_options_of_a_constant_tempo():
    notes = accompaniment(3, 8, begin=0.25)
    tempo = tempo_for(120, "", notes, meter="3/4", first_downbeat=0.25)
    assert (tempo.meter, tempo.beats[tempo.downbeat], tempo.start) == (Meter(3, 4), 0.25, 0.25)
    assert tempo_for(120, "", accompaniment(3, 8), meter="auto").meter == Meter(3, 4)
    assert tempo_for(None, "", notes, meter="6/8") == constant(120, Meter(6, 8))
    with pytest.raises(ValueError, match="'3/5' is no meter"):
        tempo_for(None, "", notes, meter="3/5")


@pytest.mark.parametrize(("first", "expected"), [(2.0, 2.0), (2.5, 2.0), (3.5, 3.5), (3.75, 3.75), (3.97, 4.0)])
def test_a_score_begins_with_its_first_bar_or_pick_up(first, expected):
    """Bars of four begin at 2 s and 4 s: notes in the first half of a bar begin with it."""
    tempo = Tempo(tuple(BEAT * number for number in range(20)), 4)
    assert score_start(tempo, [Note(first, first + 0.2, 60, 100)]) == pytest.approx(expected)


@pytest.mark.parametrize("beats", range(5))
@pytest.mark.parametrize("late", [-0.01, 0.0, 0.005, 0.01, 0.1])
def test_a_downbeat_that_is_a_moment_late_makes_no_beat_of_a_moment(tmp_path, beats, late):
    """As it is read off a picture: the notes begin at 0 s, and the first beat is a little longer or shorter."""
    first = max(0.0, 0.5 * beats + late)
    midi.write_midi([Note(0.0, 0.4, 60, 100)], tmp_path / "a.mid", constant(120, first_downbeat=first))
    assert _bar_of_even_tempo(tmp_path / "a.mid") == beats % 4


def _bar_of_even_tempo(path):
    """Quarters of the first bar of a file at about 120; 0 for a whole one."""
    track = midi.mido.MidiFile(path).tracks[0]
    tempos = [60e6 / message.tempo for message in track if message.type == "set_tempo"]
    assert all(95 <= tempo <= 123 for tempo in tempos)
    ticks, bars = 0, []
    for message in track:
        ticks += message.time
        if message.type == "time_signature":
            bars.append((ticks, message.numerator))
    return bars[0][1] % 4


@pytest.mark.parametrize("begin", [0.0, 0.02, 0.06, 0.12])
def test_notes_that_begin_a_moment_late_make_no_beat_of_a_moment(tmp_path, begin):
    """As above, where bars are looked for, and where beats are."""
    notes = [Note(begin + 0.5 * number, begin + 0.5 * number + 0.4, 60 + number % 5, 100) for number in range(24)]
    looked_for = tempo_for(120, "", notes, meter="auto", first_downbeat=begin + 2.0)
    midi.write_midi(notes, tmp_path / "a.mid", looked_for)
    assert _bar_of_even_tempo(tmp_path / "a.mid") == 0
    recording = np.zeros(14 * 22050, np.float32)
    for note in notes:
        first = round(note.onset * 22050)
        recording[first : first + 8000] += np.exp(-np.arange(8000) / 2000) * np.sin(
            np.arange(8000) * (0.05 + note.pitch / 1000)
        )
    soundfile.write(tmp_path / "a.wav", recording / 2, 22050)
    midi.write_midi(notes, tmp_path / "a.mid", tempo_for("auto", tmp_path / "a.wav", notes))
    _bar_of_even_tempo(tmp_path / "a.mid")


@pytest.mark.parametrize(("downbeat", "onset"), [(0.0, 0.69), (1.25, 0.435)])
def test_no_note_stands_before_its_score(downbeat, onset):
    """A note early on an eighth where a score in 3/8 begins, whose nearest sixteenth lies before it."""
    notes = [Note(onset, onset + 0.2, 60, 100), Note(onset + 0.0625, onset + 0.6, 64, 100)]
    clock = ScoreClock(tempo_for(120, "", notes, meter="3/8", first_downbeat=downbeat))
    assert clock.begin == 0.5
    items, _ = quantise(notes, clock, triplets=False)
    assert items[0].begin == clock.begin * BEAT_STEPS


@pytest.mark.parametrize("downbeat", range(4))
@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_short_first_beat_is_part_of_the_next_one(downbeat, count):
    short = Tempo(tuple(0.06 + 0.5 * number for number in range(count)), downbeat)
    tempo = without_short_beat(short)
    assert tempo.beats[0] == pytest.approx(0.56)
    assert len(tempo.beats) >= 2
    assert np.diff(tempo.beats) == pytest.approx(np.full(len(tempo.beats) - 1, 0.5))
    bars = {round(0.06 + 0.5 * (downbeat + 4 * number), 6) for number in range(9)}
    assert round(tempo.beats[tempo.downbeat], 6) in bars
    assert without_short_beat(short._replace(beats=(0.0, 0.5))).beats == (0.0, 0.5)
    assert without_short_beat(short._replace(beats=(0.13, 0.63))).beats == (0.13, 0.63)


@pytest.mark.parametrize(("interval", "bpm"), [(60 / 112, 112), (60 / 100, 100), (0.4321, 60 / 0.4321)])
def test_even_beats_have_one_tempo(tmp_path, interval, bpm):
    """Beats as a tracker gives them, rounded to 23 ms."""
    frame = 512 / 22050
    beats = [frame * round(interval * number / frame) for number in range(80)]
    onsets = [round(interval * number, 2) for number in range(80)]
    steady = steady_beats(beats, onsets)
    assert steady[0] == 0.0
    midi.write_midi([Note(onset, onset + 0.1, 60, 100) for onset in onsets], tmp_path / "a.mid", Tempo(tuple(steady)))
    tempos = [
        message.tempo for message in midi.mido.MidiFile(tmp_path / "a.mid").tracks[0] if message.type == "set_tempo"
    ]
    assert [6e7 / tempo for tempo in tempos] == [pytest.approx(bpm, rel=3e-4)]
    assert 60 / np.diff(steady) == pytest.approx(np.full(79, bpm), rel=3e-4)


def test_a_tempo_that_changes_once_is_two():
    beats = np.concatenate([0.5 * np.arange(40), 20.0 + 0.625 * np.arange(40)])
    noise = np.random.default_rng(0).normal(0, 0.008, 80)
    intervals = np.diff(steady_beats(beats + np.where(np.arange(80) > 0, noise, 0), beats))
    assert intervals[:38] == pytest.approx(np.full(38, 0.5), abs=2e-3)
    assert intervals[41:] == pytest.approx(np.full(38, 0.625), abs=2e-3)
    assert len(np.unique(np.round(intervals, 6))) <= 4


def test_beats_of_free_time_stay():
    beats = np.cumsum(0.5 + 0.15 * np.sin(np.arange(60) / 3))
    assert np.abs(steady_beats(beats) - beats).max() < 0.06


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.01, 3), min_size=2, max_size=60), st.lists(st.floats(0, 60), max_size=40))
def test_beats_stay_in_order(gaps, onsets):
    beats = np.cumsum(gaps)
    steady = steady_beats(beats, onsets)
    assert len(steady) == len(beats)
    assert steady[0] >= 0
    assert np.all(np.diff(steady) > 0)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["4/4", "3/4", "6/8", "9/8", "5/8", "2/2"]),
    st.integers(0, 5),
    st.floats(0, 20),
    st.floats(0.25, 1.0),
)
def test_a_bar_begins_on_the_downbeat(text, downbeat, first, interval):
    meter = parse_meter(text)
    tempo = Tempo(tuple(first + interval * number for number in range(8)), downbeat, meter)
    for start in (None, first, first + interval / 2):
        clock = ScoreClock(tempo._replace(start=start))
        assert 0 <= clock.begin < 1
        assert 0 <= clock.bar - clock.begin < meter.bar
        bars = (clock.quarter(tempo.beats[downbeat]) - float(clock.bar)) / float(meter.bar)
        # a first beat as close to 0 s as NO_TIME is moved there
        assert bars == pytest.approx(round(bars), abs=1e-6 + (first <= NO_TIME) * NO_TIME / interval)
        assert clock.time(clock.quarter(first)) == pytest.approx(first, abs=1e-9)


def test_quantised_notes_are_on_the_grid_and_in_their_order():
    """Sixteenths, played up to 20 ms away, and triplets."""
    tempo = constant(120)
    times = [0.0, 0.125, 0.25, 0.375, 0.5, 1.0, 1.0 + 1 / 6, 1.0 + 1 / 3, 1.5]
    played = [0.01, 0.135, 0.24, 0.39, 0.49, 1.01, 1.17, 1.32, 1.51]
    notes = [Note(onset, onset + 0.12, 60 + number, 100) for number, onset in enumerate(played)]
    quantised = quantised_times(notes[::-1], tempo)[::-1]
    assert [note.onset for note in quantised] == pytest.approx(times)
    assert [note.pitch for note in quantised] == [note.pitch for note in notes]
    assert all(note.offset > note.onset for note in quantised)


@pytest.mark.parametrize(
    ("pitches", "key"),
    [
        ([60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60], Key(0, "major")),
        ([69, 71, 72, 74, 76, 77, 80, 81, 76, 72, 69], Key(0, "minor")),
        ([62, 64, 66, 67, 69, 71, 73, 74, 69, 66, 62], Key(2, "major")),
        ([56, 58, 60, 61, 63, 65, 67, 68, 63, 60, 56], Key(-4, "major")),
        ([61, 61, 60], Key(0, "major")),
    ],
)
def test_keys(pitches, key):
    notes = [Note(0.5 * number, 0.5 * number + 0.4, pitch, 100) for number, pitch in enumerate(pitches)]
    drums = [Note(0.0, 9.0, pitch, 100, 0, True) for pitch in (42, 44, 46)]
    assert find_key([*notes, *drums]) == key


@pytest.mark.parametrize("text", ["", "4", "3/5", "0/4", "99/4", "-3/4", "3/4/4", "３/4"])
def test_what_is_no_meter(text):
    with pytest.raises(ValueError, match="no meter"):
        parse_meter(text)


@pytest.mark.parametrize("meter", ["4/4", "3/4", "9/8", "5/16"])
def test_a_downbeat_long_after_the_end_takes_no_beats_up_to_it(meter):
    notes = accompaniment(4, 4)
    near, far = (tempo_for(112, "", notes, meter=meter, first_downbeat=time) for time in (0.8, 1e9))
    assert max(len(near.beats), len(far.beats)) < 20
    # 0.535714 s a quarter; as many bars later as are 9, 5 or 4 and 3 quarters
    bars = 180 * 0.535714
    same = tempo_for(112, "", notes, meter=meter, first_downbeat=0.8 + 1000 * bars)
    assert same.downbeat == near.downbeat
    assert same.beats == pytest.approx(near.beats, abs=1e-6)


@pytest.mark.parametrize("meter", [None, Meter(3, 4), Meter(6, 8), Meter(9, 8)])
def test_a_downbeat_long_after_the_last_of_the_beats_that_were_found_takes_no_more(meter):
    beats = BEAT * np.arange(16)
    # thirds of beats: those of compound meters are dotted quarters
    notes = [Note(BEAT * i / 3, BEAT * i / 3 + 0.1, 60, 100) for i in range(45)]
    near = find_bars(beats, notes, meter, first_downbeat=0.0)
    far = find_bars(beats, notes, meter, first_downbeat=1e9)
    later = find_bars(beats, notes, meter, first_downbeat=BEAT * 180)
    assert len(far.beats) <= len(near.beats) + 1
    assert later == near
