"""The generator of training data, with a soundfont and songs made here."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tinysoundfont")
from mt3_common.data import augment, performance, sample_fonts, soundfont, synthesis
from mt3_common.data.performance import REGISTERS
from mt3_common.data.songs import Song, Stem, random_drums, random_notes, read_songs, split_of
from mt3_common.formats.midi import write_midi
from mt3_common.notes.note import Note, trim_overlapping

SHARES = dict.fromkeys(("piano", "band", "drums", "solo", "dense", "silence"), 0.0)


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    notes = [Note(t / 4, t / 4 + 0.2, 50 + t % 24, 80) for t in range(80)]
    notes += [Note(t / 2, t / 2 + 0.1, 36 + 2 * (t % 2), 90, 0, True) for t in range(40)]
    write_midi(notes, folder / "song.mid")
    (folder / "broken.mid").write_bytes(b"no song")
    return read_songs(folder)


def recipe(**settings):
    return synthesis.Recipe(**{"seconds": 4.0, **SHARES, **settings})


def test_songs_are_read_by_stem_and_broken_files_left_out(songs):
    assert [song.name for song in songs] == ["song.mid"]
    assert sorted((is_drum, len(notes)) for _, is_drum, notes in songs[0].stems) == [(False, 80), (True, 40)]


def test_a_folder_without_midi_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no MIDI file"):
        read_songs(tmp_path)


def test_songs_without_notes_are_passed_over_and_missing_ones_are_said(songs, font, tmp_path):
    (tmp_path / "broken.mid").write_bytes(b"MThd and no more")
    broken = read_songs(tmp_path)
    assert broken[0].stems == ()
    generator = synthesis.Generator(broken * 3 + songs, [font], recipe(piano=1.0))
    assert all(generator._stems("piano", rng) for rng in draws(10))
    with pytest.raises(ValueError, match=r"none of 1 song has notes; the first is .*broken\.mid"):
        synthesis.Generator(broken, [font], recipe(piano=1.0)).example(0)
    gone = Song("gone.mid", tmp_path / "gone.mid")
    with pytest.raises(ValueError, match=r"gone\.mid cannot be read"):
        synthesis.Generator([gone], [font], recipe(piano=1.0)).example(0)


def test_splits_hold_nine_tenths_and_keep_versions_together():
    names = [f"songs/{number}.mid" for number in range(2000)]
    splits = [split_of(name) for name in names]
    assert 0.87 < splits.count("train") / 2000 < 0.93
    assert splits.count("validation") > 60
    assert splits.count("test") > 60
    for number in range(50):
        assert split_of(f"D_SONG{number}_12ab.mid") == split_of(f"D_SONG{number}_9f3e.mid")


@pytest.mark.parametrize("kind", ["piano", "drums", "dense", "silence"])
def test_examples_depend_on_seed_and_index_alone(kind, songs, font):
    one, other = (synthesis.Generator(songs, [font], recipe(**{kind: 1.0}), seed=3) for _ in range(2))
    other.example(7)
    example, again = one.example(4), other.example(4)
    assert example.kind == kind
    assert example.audio.dtype == np.float32
    assert example.audio.shape == (64000,)
    np.testing.assert_array_equal(example.audio, again.audio)
    assert example.notes == again.notes
    assert bool(example.notes) == (kind != "silence")
    assert all(note.is_drum == (kind == "drums") for note in example.notes)
    assert np.abs(example.audio).max() <= 1.0
    assert not np.array_equal(example.audio, one.example(5).audio)


@pytest.mark.process
def test_workers_make_the_same_examples_in_order(songs, font):
    generator = synthesis.Generator(songs, [font], recipe(piano=1.0, dense=1.0), seed=1)
    alone = list(synthesis.in_order(generator.example, range(2, 6), 0))
    together = list(synthesis.in_order(generator.example, range(2, 6), 2))
    assert [example.notes for example in alone] == [example.notes for example in together]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.audio, other.audio)


def test_notes_are_where_the_audio_has_them(songs, font):
    generator = synthesis.Generator(songs, [font], recipe(damage=False, piano=1.0), seed=0)
    for index in range(4):
        example = generator.example(index)
        first = min(note.onset for note in example.notes)
        rendered = np.flatnonzero(np.abs(example.audio) > 0.02)[0] / 16000
        assert abs(rendered - first) < 0.012


@pytest.mark.parametrize("shift", [-3, 0, 3])
def test_another_formant_keeps_pitch_and_time(shift, songs, font):
    generator = synthesis.Generator(songs, [font], recipe(damage=False, silence=1.0), seed=0)
    generator.example(0)
    stem = Stem(0, False, (Note(1.0, 3.0, 69, 100),))
    audio = generator._stem_audio(stem, 0, shift, 0.0, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(audio[20000:36000] * np.hanning(16000)))
    assert abs(int(spectrum.argmax()) - 441) <= 1
    assert abs(np.flatnonzero(np.abs(audio) > 0.01)[0] / 16000 - 1.0) < 0.012


def test_notes_are_trimmed_and_within_the_example(songs, font):
    generator = synthesis.Generator(songs, [font], recipe(piano=1.0, band=1.0, dense=1.0, drums=1.0), seed=5)
    for example in map(generator.example, range(8)):
        assert example.notes == trim_overlapping(example.notes)
        assert all(0 <= note.onset < note.offset <= 4.0 for note in example.notes)
        assert all(note.program % 8 == 0 for note in example.notes)


def test_made_up_music_is_playable():
    rng = np.random.default_rng(2)
    for make, is_drum in ((random_notes, False), (random_drums, True)):
        for _ in range(20):
            notes = make(5.0, rng)
            assert notes == sorted(notes)
            for note in notes:
                assert note.is_drum == is_drum
                assert 0 <= note.pitch <= 127
                assert 1 <= note.velocity <= 127
                assert 0 <= note.onset < note.offset


def test_a_missing_font_is_said(songs, tmp_path):
    (tmp_path / "text.sf2").write_text("no soundfont")
    with pytest.raises(ValueError, match=r"text\.sf2 cannot be loaded"):
        synthesis.Generator(songs, [tmp_path / "text.sf2"], recipe(piano=1.0)).example(0)
    with pytest.raises(ValueError, match="at least one soundfont"):
        synthesis.Generator(songs, [], recipe(piano=1.0)).example(0)


def test_settled_notes_share_times():
    chord = [Note(1.004, 1.52, 60, 80), Note(1.011, 1.9, 64, 80), Note(1.017, 3.0, 67, 80)]
    after = [Note(1.5, 1.51, 72, 80), Note(1.54, 2.5, 74, 80)]
    settled = synthesis.settle(chord + after, 0.02)
    assert [note.onset for note in settled] == pytest.approx([1.02, 1.02, 1.02, 1.5, 1.54])
    # the first one ends where the next begins; the second and the last on the coarse grid; none before it began
    assert [note.offset for note in settled] == pytest.approx([1.5, 1.92, 3.04, 1.52, 2.48])
    assert [note.pitch for note in settled] == [60, 64, 67, 72, 74]
    assert synthesis.settle([], 0.02) == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 2), st.integers(40, 44)), max_size=20))
def test_settling_moves_little_and_loses_nothing(rows):
    notes = trim_overlapping(sorted(Note(onset, onset + length, pitch, 80) for onset, length, pitch in rows))
    settled = synthesis.settle(notes, 0.02)
    assert len(settled) == len(notes)
    for before, after in zip(notes, settled):
        assert abs(after.onset - before.onset) <= 0.04
        assert after.onset < after.offset
        assert abs(after.offset - before.offset) <= 0.12


def test_tones_sound_where_the_notes_are():
    notes = [Note(0.5, 1.0, 69, 100), Note(1.5, 1.9, 57, 60)]
    for program in (0, 40):
        audio = synthesis.play_tones(notes, program, 0.0, 2.5, np.random.default_rng(3))
        assert audio.shape == (40000,)
        assert audio.dtype == np.float32
        assert np.abs(audio[:7900]).max() == 0
        # 440 Hz and 220 Hz are the strongest of their octave
        for first, hertz in ((8800, 440), (24800, 220)):
            spectrum = np.abs(np.fft.rfft(audio[first : first + 6400] * np.hanning(6400)))
            assert abs(np.argmax(spectrum[: int(hertz * 1.5 / 2.5)]) * 2.5 - hertz) <= 5
    # a stem that the soundfont would play sounds otherwise as tones
    assert not np.array_equal(audio, synthesis.play_tones(notes, 40, 0.0, 2.5, np.random.default_rng(4)))


def draws(count=200):
    return map(np.random.default_rng, range(count))


def decibels(ratio):
    return 20 * np.log10(ratio)


def test_stretches_have_other_tempos_keys_and_velocities(tmp_path, font):
    notes = [Note(t / 4, t / 4 + 0.1, 60, 80) for t in range(160)]
    notes += [Note(t / 4, t / 4 + 0.1, 38, 80, 0, True) for t in range(160)]
    write_midi(notes, tmp_path / "even.mid")
    [song] = read_songs(tmp_path)
    generator = synthesis.Generator([song], [font], recipe(piano=1.0))
    tempos, transpositions, velocities = [], set(), set()
    for rng in draws():
        pitched, drums = sorted(generator._stretch(song, rng), key=lambda stem: stem.is_drum)
        onsets = [note.onset for note in pitched.notes]
        tempos.append(0.25 / np.polyfit(np.arange(len(onsets)), onsets, 1)[0])
        transpositions |= {note.pitch - 60 for note in pitched.notes}
        velocities |= {note.velocity for note in pitched.notes}
        assert {note.pitch for note in drums.notes} == {38}
        assert 0 <= min(onsets) <= max(onsets) < 4.02
    assert 0.795 < min(tempos) < 0.82 < 1.22 < max(tempos) < 1.256
    assert transpositions == set(range(-5, 7))
    assert min(velocities) < 50 < 105 < max(velocities) <= 127


def test_stems_have_gains_of_their_own(songs, font, monkeypatch):
    stem = Stem(0, False, (Note(0.5, 3.5, 69, 100),))
    # colour changes loudness, which gains are relative to
    monkeypatch.setattr(synthesis, "equalize_stem", lambda audio, rng: audio)
    for damage, low, high in ((True, -10, 4), (False, -6, 0)):
        generator = synthesis.Generator(songs, [font], recipe(damage=damage, silence=1.0))
        generator.example(0)
        alone = generator._font_audio(stem, 0, 0, 0.0, np.random.default_rng(0))[:64000]
        rms = np.sqrt(np.mean(alone**2))
        stems = (generator._stem_audio(stem, 0, 0, 0.0, rng) for rng in draws())
        gains = [decibels(np.sqrt(np.mean(audio**2)) / np.sqrt(0.08 * rms)) for audio in stems]
        assert low - 0.1 < min(gains) < low + 0.5
        assert high - 0.5 < max(gains) < high + 0.1


def test_stems_are_left_out_and_have_other_programs_of_their_class(songs, font):
    generator = synthesis.Generator(songs, [font], recipe(band=1.0))
    written = (3, 26, 33, 40, 61, 73)
    stems = [Stem(p, False, (Note(0, 1, 60 + i, 80, p),)) for i, p in enumerate(written)]
    stems.append(Stem(0, True, (Note(0, 1, 38, 80, 0, True),)))
    reserved, drawn = [], {program: set() for program in written}
    for rng in draws(400):
        band = generator._band(songs[0], stems, rng)
        reserved.append(len(band))
        for stem in band:
            if stem.is_drum:
                assert stem.program == 0
            else:
                drawn[written[stem.notes[0].pitch - 60]].add(stem.program)
    assert min(reserved) >= 1
    assert 0.76 < np.mean(reserved) / 7 < 0.84
    for program, result in drawn.items():
        assert result == set(range(program // 8 * 8, program // 8 * 8 + 8))


def played(monkeypatch, generator, count):
    """Font, formant, detuning and is_drum of each stem of so many examples."""
    result = []

    def stem_audio(self, stem, font, shift, detune, rng):
        result[-1].append((font, shift, detune, stem.is_drum))
        return np.zeros(64000, np.float32)

    monkeypatch.setattr(synthesis.Generator, "_stem_audio", stem_audio)
    for index in range(count):
        result.append([])
        generator.example(index)
    return [example for example in result if example]


def test_fonts_formants_and_detuning_are_drawn(songs, font, monkeypatch):
    generator = synthesis.Generator(songs, [font] * 3, recipe(piano=1.0, band=1.0))
    examples = played(monkeypatch, generator, 150)
    assert {stem[0] for example in examples for stem in example} == {0, 1, 2}
    assert any(len({stem[0] for stem in example}) > 1 for example in examples)
    for is_drum, formants in ((False, set(range(-3, 4))), (True, {0})):
        assert {stem[1] for example in examples for stem in example if stem[3] == is_drum} == formants
    # all of an example are out of tune together, by hundredths of a semitone
    assert all(len({stem[2] for stem in example}) == 1 for example in examples)
    detunings = [example[0][2] for example in examples]
    assert 0.06 < np.std(detunings) < 0.1
    assert np.abs(detunings).max() < 0.4
    clean = synthesis.Generator(songs, [font], recipe(piano=1.0, damage=False))
    assert {stem for example in played(monkeypatch, clean, 20) for stem in example} == {(0, 0, 0.0, False)}


def test_detuning_is_heard(font):
    audio = soundfont.Fonts([font]).play([Note(0.0, 2.0, 69, 100)], 0, 0, False, 0.5, 2.0)
    spectrum = np.abs(np.fft.rfft(audio[22050:66150] * np.hanning(44100)))
    assert abs(int(spectrum.argmax()) - 441 * 2 ** (0.5 / 12)) <= 1


def test_each_stem_has_an_equaliser(songs, font, monkeypatch):
    impulse = np.zeros(32000, np.float32)
    impulse[16000] = 1.0
    curves = np.array([decibels(np.abs(np.fft.rfft(augment.equalize_stem(impulse, rng)))) for rng in draws(100)])
    rendered = curves[:, 50:15000]
    assert 3 < np.abs(rendered).max() < 9.5
    assert np.abs(rendered).max(axis=1).min() < 1.0
    assert np.median(rendered.std(axis=1)) > 0.5
    # gentle: a third of an octave apart, no more than 5 dB
    low = np.arange(100, 11000)
    assert np.abs(curves[:, (low * 1.26).astype(int)] - curves[:, low]).max() < 5.5
    monkeypatch.setattr(synthesis, "equalize_stem", lambda audio, rng: 0 * audio)
    stem = Stem(0, False, (Note(0.5, 3.5, 69, 100),))
    for damage in (True, False):
        generator = synthesis.Generator(songs, [font], recipe(damage=damage, silence=1.0))
        generator.example(0)
        assert generator._stem_audio(stem, 0, 0, 0.0, np.random.default_rng(0)).any() != damage


def test_rooms_have_tails():
    rooms = [augment._room_response(rng, 0.0) for rng in draws(100)]
    assert all(room[0] == 1 and len(room) <= 16000 for room in rooms)
    tails = [decibels(np.sqrt(np.sum(room[1:] ** 2))) for room in rooms]
    assert -18.1 < min(tails) < -14 < -3 < max(tails) < 1.1
    for room in rooms:
        half = len(room) // 2
        assert np.sum(room[1:half] ** 2) > 10 * np.sum(room[half:] ** 2)
    assert max(map(len, rooms)) > 12000
    assert min(map(len, rooms)) < 3000


def test_early_reflections_are_single_and_come_within_50_ms():
    rooms = [augment._room_response(rng, 0.5) for rng in draws(100)]
    # with the same draws; rooms without reflections are the same
    before = [augment._room_response(rng, 0.0) for rng in draws(100)]
    same = [len(a) == len(b) and np.allclose(a, b) for a, b in zip(rooms, before)]
    assert 30 < sum(same) < 70
    for room, plain, is_same in zip(rooms, before, same):
        if not is_same:
            added = room - np.pad(plain, (0, len(room) - len(plain)))
            assert room[0] == 1
            assert not added[1:20].any()
            assert np.abs(added).max() > 0.05
            assert np.abs(added[900:]).max(initial=0) < 1e-3


def test_stored_mixes_keep_their_length_and_times():
    rng = np.random.default_rng(0)
    mix = np.zeros(24000, np.float32)
    for first in (2000, 9000, 17000):
        mix[first : first + 4000] = (
            0.3 * np.sin(np.arange(4000) * rng.uniform(0.1, 0.6)) * np.exp(-np.arange(4000) / 900)
        )
    results = [augment._stored(mix, rng) for rng in draws(60)]
    offsets, errors = [], []
    for stored in results:
        assert stored.dtype == np.float32
        assert stored.shape == mix.shape
        offsets.append(float(np.median(stored[:1500])))
        centred = stored - offsets[-1]
        assert np.argmax(np.correlate(centred[8900:9600], mix[9000:9500])) == 100
        errors.append(decibels(np.std(centred - mix) / np.std(mix)))
    # a constant offset, a lossy codec, another rate: in about half of the mixes each, some alone
    large = np.abs(np.array(offsets)) > 4e-4
    assert 15 < large.sum() < 45
    assert 0.02 < np.abs(offsets).max() <= 0.0501
    assert min(errors) < -60 < -30 < max(errors) < -15


def test_a_long_mix_is_stored_as_well(monkeypatch):
    """Three minutes at once are more than libsndfile's Vorbis encoder has room for: it ends the process."""
    monkeypatch.setattr(augment, "LEVELS", {("OGG", "VORBIS"): 0.9})
    mix = np.zeros(200 * 16000, np.float32)
    # its draws choose the codec
    assert augment._stored(mix, np.random.default_rng(0)).shape == mix.shape


def test_strings_resound_while_the_pedal_is_down():
    """Half a second of A3, once with the pedal down up to 1.4 s and once without."""
    tone = np.zeros(48000, np.float32)
    for first in (0, 32000):
        tone[first : first + 8000] = 0.3 * np.sin(np.arange(8000) * 2 * np.pi * 220 / 16000)
    levels = []
    for rng in draws(60):
        added = augment.resound(tone, [(0.2, 1.4)], rng) - tone
        assert not added[:3200].any()
        assert not added[round((1.4 + augment.DAMPING) * 16000) :].any()
        levels.append(decibels(np.linalg.norm(added) / np.linalg.norm(tone[3200:22400])))
        # it rings on behind the tone, and fades
        ringing = [np.linalg.norm(added[first : first + 1600]) for first in (9600, 16000, 20800, 23200)]
        assert ringing[0] > ringing[2] > ringing[3] > 0
    assert -32.1 < min(levels) < -30 < -16 < max(levels) < -13.9
    np.testing.assert_array_equal(augment.resound(tone, [(3.5, 4.0)], np.random.default_rng(0)), tone)
    # what has nearly died away when the pedal goes down does not come back
    faint = tone + np.float32(1e-5)
    added = augment.resound(faint, [(1.0, 1.9)], np.random.default_rng(0)) - faint
    assert 0 < np.abs(added).max() < 1e-4


def test_compression_brings_loud_and_soft_together():
    tone = np.sin(np.arange(32000) * 0.3).astype(np.float32)
    tone[:16000] *= 0.1
    closer = []
    for rng in draws(60):
        after = augment._compress(tone, rng)
        soft, loud = (np.sqrt(np.mean(after[first : first + 8000] ** 2)) for first in (8000, 24000))
        closer.append(20 - decibels(loud / soft))
    # 18 dB of level, to powers of 0.1 to 0.5
    assert 1.5 < min(closer) < 3 < 7.5 < max(closer) < 9.3


def test_overdriven_mixes_are_clipped():
    tone = np.sin(np.arange(16000) * 2 * np.pi * 400 / 16000).astype(np.float32)
    flat, thirds = 0, []
    for rng in draws(100):
        after = augment._overdrive(tone, rng)
        assert np.abs(after).max() <= 1
        spectrum = np.abs(np.fft.rfft(after))
        thirds.append(spectrum[1200] / spectrum[400])
        flat += np.mean(after > 0.999) > 0.05
    assert max(thirds) > 0.15
    # one in five is clipped hard, and most of those are driven far enough to be flat
    assert 5 < flat < 25


def test_noise_is_white_or_dark_or_not_there():
    noises = [augment._noise(8000, rng) for rng in draws()]
    silent = [noise for noise in noises if not noise.any()]
    assert 8 <= len(silent) <= 34
    levels = [decibels(noise.std()) for noise in noises if noise.any()]
    assert -85.5 < min(levels) < -80 < -45 < max(levels) < -39.5
    dark = [np.corrcoef(noise[1:], noise[:-1])[0, 1] > 0.4 for noise in noises if noise.any()]
    assert 0.55 < np.mean(dark) < 0.85


def test_band_limits_take_the_ends():
    hertz = np.arange(1, 8001)
    curves = np.array([augment._band_limits(hertz, rng) for rng in draws(100)])
    assert curves.max() == 0
    assert not curves[:, 200:2499].any()
    # 30 Hz is passed by few, 7900 Hz by none
    assert (curves[:, 30] < 0).mean() > 0.95
    assert -40 < curves[:, 7899].min() < -30 < -10 < curves[:, 7899].max() < -4


def test_every_damage_befalls_its_share_of_mixes(monkeypatch):
    shares = {"_equalizer_gains": 1, "_band_limits": 0.25, "_room_response": 0.6, "_overdrive": 0.3, "_compress": 0.3}
    shares["_noise"] = 1
    counts = dict.fromkeys(shares, 0)

    def counted(name, do):
        def counting(*args):
            counts[name] += 1
            return do(*args)

        return counting

    for name in shares:
        monkeypatch.setattr(augment, name, counted(name, getattr(augment, name)))
    tone = np.sin(np.arange(8000) * 0.3).astype(np.float32) * 0.2
    peaks, lasting = [], []
    for rng in draws(300):
        mix = augment.degrade(np.pad(tone, (0, 8000)), rng)
        assert mix.dtype == np.float32
        assert np.abs(mix).max() <= 1
        peaks.append(decibels(np.abs(mix).max()))
        lasting.append(np.abs(mix[8200:9000]).max() / np.abs(mix).max())
    for name, share in shares.items():
        assert counts[name] / 300 == pytest.approx(share, abs=0.08 if share < 1 else 0)
    assert -26.1 < min(peaks) < -23 < -3 < max(peaks) < -0.8
    # what is counted is heard: rooms sound on
    assert 0.3 < np.mean(np.array(lasting) > 0.05) < 0.7
    assert not np.array_equal(augment.degrade(tone, np.random.default_rng(1)), tone)


@pytest.fixture(scope="module")
def flute(tmp_path_factory):
    """A font with recordings of one instrument, program 73, keys 70 to 84, of which each sounds for about 2 s."""
    path = tmp_path_factory.mktemp("fonts") / "flute.sf2"
    times = np.arange(2 * sample_fonts.RATE) / sample_fonts.RATE
    recorded = []
    for key in range(72, 83, 2):
        samples = (0.3 * np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * times)).astype(np.float32)
        recorded.append(sample_fonts.RecordedNote(samples, float(key), key, 0.5, None))
    sample_fonts.write_font(path, "flute", 73, recorded)
    return path


def cast(generator, program, pitches, count, is_drum=False):
    generator.example(0)
    stem = Stem(program, is_drum, tuple(Note(0.1, 3.9, pitch, 90, program, is_drum) for pitch in pitches))
    return [generator._cast(stem, 0, rng)[:2] for rng in draws(count)]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_recorded_instruments_play_their_share_of_the_stems_of_their_class(songs, bank, flute, share):
    generator = synthesis.Generator(songs, [bank, flute], recipe(silence=1.0, recorded=share))
    roles = [(number, stem.program) for number, stem in cast(generator, 75, [76], 200)]
    assert np.mean([role == (1, 73) for role in roles]) == pytest.approx(share, abs=0.1)
    assert set(roles) <= {(0, 75), (1, 73)}
    # other classes, and drums, are the bank's
    assert {number for number, _ in cast(generator, 0, [76], 20)} == {0}
    assert {number for number, _ in cast(generator, 0, [38], 20, is_drum=True)} == {0}


def test_a_font_that_has_more_of_the_notes_is_taken_and_the_label_is_what_sounds(songs, bank, flute):
    generator = synthesis.Generator(songs, [flute], recipe(silence=1.0))
    for _, stem in cast(generator, 79, [65, 76], 5):
        # 65 is below the compass; held for longer than 2 s nothing sounds
        assert sorted(note.pitch for note in stem.notes) == [76, 77]
        assert all(0.1 < note.offset < 2.4 for note in stem.notes)
    assert [stem.notes for _, stem in cast(generator, 0, [76], 2)] == [(), ()]
    low = synthesis.Generator(songs, [bank, flute], recipe(silence=1.0, recorded=1.0))
    assert {number for number, _ in cast(low, 73, [76], 5)} == {1}


def write_instrument(path, program, keys):
    """A font of short tones, as loud on each of its keys; a drum kit if program is None."""
    times = np.arange(sample_fonts.RATE // 4) / sample_fonts.RATE
    notes = []
    for key in keys:
        samples = 0.3 * np.exp(-times / 0.05) * np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * times)
        notes.append(sample_fonts.RecordedNote(samples.astype(np.float32), float(key), key, 0.5, None))
    sample_fonts.write_font(path, path.stem, program, notes)
    return path


def test_hits_are_labelled_only_where_the_kit_sounds(tmp_path):
    """A kit with one bass drum, a snare and a hi-hat: doubles go to them, all other hits have no label."""
    kit = write_instrument(tmp_path / "kit.sf2", None, [35, 40, 42])
    generator = synthesis.Generator([], [kit], recipe(drums=1.0, damage=False, seconds=10))
    examples = [generator.example(number) for number in range(6)]
    assert {note.pitch for example in examples for note in example.notes} == {35, 40, 42}
    asked = {note.pitch for rng in draws(20) for note in random_drums(10, rng)}
    assert {36, 38} <= asked  # so these two moved
    assert {45, 51} & asked  # and toms or rides were left out
    for example in examples:
        for note in example.notes:
            start = round(note.onset * 16000)
            assert np.abs(example.audio[start : start + 400]).max() > 0.01


def test_of_the_kits_those_are_drawn_that_have_the_hits(tmp_path):
    whole = write_instrument(tmp_path / "whole.sf2", None, range(35, 60))
    effects = write_instrument(tmp_path / "effects.sf2", None, [38, 60, 61])
    generator = synthesis.Generator([], [effects, whole], recipe(silence=1.0))
    assert {font for font, _ in cast(generator, 0, [36, 38, 42], 30, is_drum=True)} == {1}
    assert {font for font, _ in cast(generator, 0, [38], 30, is_drum=True)} == {0, 1}
    # where no kit has most of them, the one that has more, without what it has not
    [(font, stem)] = cast(generator, 0, [60, 61, 38, 36], 1, is_drum=True)
    assert (font, sorted(note.pitch for note in stem.notes)) == (0, [38, 60, 61])


def test_lines_move_into_the_register_of_the_instrument_that_plays(tmp_path):
    """A violin's line (40) that a recorded contrabass (43) plays is in the contrabass's register."""
    contrabass = write_instrument(tmp_path / "contrabass.sf2", 43, range(20, 109))
    generator = synthesis.Generator([], [contrabass], recipe(silence=1.0, register=1.0))
    [(_, stem)] = cast(generator, 40, [76, 79, 83], 1)
    low, high = performance.REGISTERS[43]
    assert stem.program == 43
    assert stem.notes
    assert all(low <= note.pitch <= high for note in stem.notes)


def test_only_strings_of_pianos_resound(tmp_path):
    """A piano's stem (0) that a recorded electric piano (4) plays has no pedal."""
    fonts = {program: write_instrument(tmp_path / f"{program}.sf2", program, range(40, 90)) for program in (0, 4)}
    for program, pedals in ((0, True), (4, False)):
        generator = synthesis.Generator([], [fonts[program]], recipe(silence=1.0, pedal=1.0))
        generator.example(0)
        stem = Stem(0, False, tuple(Note(0.1, 0.3, pitch, 90) for pitch in (60, 64, 67)))
        assert [bool(generator._cast(stem, 0, rng)[2]) for rng in draws(5)] == [pedals] * 5


def test_notes_of_recorded_instruments_are_labelled_where_they_are_heard(songs, flute):
    generator = synthesis.Generator(
        songs, [flute], recipe(solo=1.0, damage=False, midi_class=False, vibrato=0, scoops=0)
    )
    examples = [generator.example(index) for index in range(30)]
    examples = [example for example in examples if example.notes]
    assert examples
    for example in examples:
        assert {note.program for note in example.notes} == {73}
        assert all(70 <= note.pitch <= 84 for note in example.notes)


def test_notes_stay_inside_the_compass():
    longest = np.zeros(128)
    longest[60:72] = 1.0
    notes = [Note(0, 3, 40, 80), Note(1, 1.5, 65, 80), Note(2, 2.5, 76, 80), Note(3, 4, 64, 80)]
    fitted = performance.in_compass(notes, longest)
    assert [(note.onset, note.offset, note.pitch) for note in fitted] == [
        *((0, 1, 64), (1, 1.5, 65)),
        *((2, 2.5, 64), (3, 4, 64)),
    ]
    # played three semitones higher and slowed down, a sample lasts longer
    [shifted] = performance.in_compass([Note(0, 3, 60, 80)], longest, 3)
    assert (shifted.pitch, shifted.offset) == (60, pytest.approx(2 ** (3 / 12)))
    assert performance.in_compass([Note(0, 1, 60, 80)], np.zeros(128)) == []


def test_vibrato_and_scoops_have_the_rates_depths_and_times_that_they_should():
    line = [Note(0.5, 1.9, 69, 80), Note(2.0, 3.5, 71, 80)]
    assert all(performance.bent(line, 4.0, 0.0, 0.0, rng) is None for rng in draws(20))
    assert performance.bent([], 4.0, 1.0, 1.0, np.random.default_rng(0)) is None
    bends = np.array([performance.bent(line, 4.0, 1.0, 0.0, rng) for rng in draws(100)])
    assert bends.shape == (100, 400)
    # no vibrato before 0.2 s of a note
    assert np.abs(bends[:, 200:219]).max() == 0
    depths = np.abs(bends).max(axis=1)
    assert 0.09 < depths.min() < 0.2 < 0.5 < depths.max() < 0.61
    rates = np.abs(np.fft.rfft(bends[:, 280:], 4000)).argmax(axis=1) / 40
    assert 4.0 < rates.min() < 5.2 < 6.4 < rates.max() < 7.5
    scoops = [bend for rng in draws(200) if (bend := performance.bent(line, 4.0, 0.0, 1.0, rng)) is not None]
    deepest = np.array([bend.min() for bend in scoops])
    assert -1.7 < deepest.min() < -1.2
    assert max(bend.max() for bend in scoops) == 0
    for bend in scoops:
        assert not bend[:48].any()
        assert not bend[66:198].any()
    chord = [Note(0.5, 1.9, 69, 80), Note(0.5, 1.9, 73, 80)]
    assert all(performance.bent(chord, 4.0, 0.0, 1.0, rng) is None for rng in draws(20))


def test_detached_notes_end_early_and_nothing_else_changes():
    line = [Note(number * 0.5, number * 0.5 + 0.5, 60 + number, 80) for number in range(8)]
    rng = np.random.default_rng(0)
    assert performance.detached(line, 0.0, rng) is line
    assert rng.random() == np.random.default_rng(0).random()
    played = [performance.detached(line, 0.5, rng) for rng in draws(400)]
    shortened = [notes for notes in played if notes != line]
    assert 160 < len(shortened) < 240
    shares = np.array([[(note.offset - note.onset) / 0.5 for note in notes] for notes in shortened])
    assert 0.08 <= shares.min() < 0.12
    assert shares.max() == pytest.approx(1.0)
    medians = np.median(shares, axis=1)
    assert 0.1 < medians.min() < 0.25 < 0.8 < medians.max() <= 1
    for notes in shortened:
        assert [note._replace(offset=0) for note in notes] == [note._replace(offset=0) for note in line]
    # a note that is shorter than 40 ms stays as it is
    [short] = performance.detached([Note(0.0, 0.03, 60, 80)], 1.0, np.random.default_rng(0))
    assert short.offset == 0.03


def test_a_recipe_shortens_the_notes_it_renders(songs, flute):
    generators = [synthesis.Generator(songs, [flute], recipe(solo=1.0, **more)) for more in ({}, {"detached": 1.0})]
    long, short = (np.median([n.offset - n.onset for i in range(40) for n in g.example(i).notes]) for g in generators)
    assert short < 0.9 * long


def test_a_pedal_holds_the_notes_that_end_while_it_is_down():
    line = [Note(number * 0.25, number * 0.25 + 0.1, 60 + number % 5, 80) for number in range(80)]
    for rng in draws(20):
        longer, pedals = performance.pedalled(line, 20.0, rng)
        assert len(longer) == len(line)
        assert all(up - down > 0.299 for down, up in pedals)
        assert all(up < down for (_, up), (down, _) in itertools.pairwise(pedals))
        assert 0 <= pedals[0][0] < pedals[-1][0] < 20
        again = {pitch: sorted(note.onset for note in line if note.pitch == pitch) for pitch in range(60, 65)}
        for before, after in zip(line, longer):
            assert after._replace(offset=before.offset) == before
            ends = [up for down, up in pedals if down <= before.offset < up] or [before.offset]
            # or the key is struck again before
            anew = [onset for onset in again[before.pitch] if onset > before.onset]
            assert after.offset == pytest.approx(min(ends + anew))


def test_a_recipe_has_pedals_on_its_pianos_alone(songs, bank, monkeypatch):
    calls = []
    monkeypatch.setattr(synthesis, "resound", lambda audio, pedals, rng: calls.append(len(pedals)) or audio)
    for kind, share in (("piano", 1.0), ("piano", 0.0), ("drums", 1.0)):
        calls.clear()
        generator = synthesis.Generator(songs, [bank], recipe(pedal=share, midi_class=False, **{kind: 1.0}))
        examples = [generator.example(index) for index in range(10)]
        # electric pianos, harpsichords and clavinets have none
        pianos = [example for example in examples if kind == "piano" and example.notes[0].program < 4]
        assert len(calls) == (len(pianos) if share else 0)
        assert 0 < len(pianos) < 10 or kind == "drums"
        assert all(calls)
        if share and kind == "piano":
            long = np.mean([note.offset - note.onset for example in examples for note in example.notes])
        elif kind == "piano":
            assert np.mean([note.offset - note.onset for example in examples for note in example.notes]) < long


def test_notes_alternate_between_the_takes_that_have_them(songs, tmp_path, monkeypatch):
    """Two takes of a flute, the second without the highest keys, and another flute's only take."""
    times = np.arange(2 * sample_fonts.RATE) / sample_fonts.RATE
    for name, keys in (("flute-a-take1", (72, 76, 80)), ("flute-a-take2", (72, 76)), ("flute-b-take1", (72, 76, 80))):
        recorded = []
        for key in keys:
            samples = (0.3 * np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * times)).astype(np.float32)
            recorded.append(sample_fonts.RecordedNote(samples, float(key), key, 0.5, None))
        sample_fonts.write_font(tmp_path / f"{name}.sf2", name, 73, recorded)
    paths = sorted(tmp_path.glob("*.sf2"))
    fonts = soundfont.Fonts(paths)
    assert [fonts.takes(font, 73) for font in range(3)] == [[0, 1], [1, 0], [2]]
    # neither another program's, nor another folder's, nor names without a take
    assert fonts.takes(0, 60) == [0]
    (tmp_path / "more").mkdir()
    copies = [tmp_path / "more" / "flute-a-take2.sf2", tmp_path / "flute-a.sf2", tmp_path / "more" / "flute-a.sf2"]
    for copy in copies:
        copy.write_bytes(paths[0].read_bytes())
    assert [soundfont.Fonts([paths[0], *copies]).takes(font, 73) for font in range(4)] == [[0], [1], [2], [3]]
    played = []

    def play(_, notes, font, *rest):
        played.append((font, [(note.onset, note.pitch) for note in notes]))
        return np.zeros(round(4.2 * soundfont.RENDER_RATE), np.float32)

    monkeypatch.setattr(soundfont.Fonts, "play", play)
    stem = Stem(
        73,
        False,
        tuple(
            Note(number * 0.5, number * 0.5 + 0.4, pitch, 80) for number, pitch in enumerate((72, 76, 80, 80, 72, 76))
        ),
    )
    generator = synthesis.Generator(songs, paths, recipe(silence=1.0, takes=1.0))
    generator._font_audio(stem, 0, 0, 0.0, np.random.default_rng(0))
    assert played == [(0, [(0.0, 72), (1.0, 80), (1.5, 80), (2.0, 72)]), (1, [(0.5, 76), (2.5, 76)])]
    played.clear()
    generator._font_audio(stem, 2, 0, 0.0, np.random.default_rng(0))
    synthesis.Generator(songs, paths, recipe(silence=1.0))._font_audio(stem, 0, 0, 0.0, np.random.default_rng(0))
    assert [(font, len(notes)) for font, notes in played] == [(2, 6), (0, 6)]


def test_a_line_moves_by_octaves_into_the_register_of_its_instrument():
    """A melody of C5 to C6 and a C4, on a bass (E1 to C4), a tuba (E1 to A#3), a violin and a piano."""
    melody = [Note(number * 0.5, number * 0.5 + 0.4, pitch, 80) for number, pitch in enumerate((72, 74, 76, 84, 60))]

    def played(program):
        lines = {tuple(n.pitch for n in performance.in_register(melody, program, rng)) for rng in draws(40)}
        return sorted(lines)

    assert played(33) == [(36, 38, 40, 48, 36), (48, 50, 52, 60, 36)]
    assert played(58) == [(36, 38, 40, 48, 36), (48, 50, 52, 48, 36)]
    # what lies there already stays, also if one octave more would do
    assert played(40) == played(0) == played(120) == [(72, 74, 76, 84, 60)]
    times = [(n.onset, n.offset, n.velocity) for n in performance.in_register(melody, 33, np.random.default_rng(0))]
    assert times == [(n.onset, n.offset, n.velocity) for n in melody]
    assert performance.in_register([], 33, np.random.default_rng(0)) == []


def test_notes_that_meet_on_one_pitch_in_the_register_do_not_overlap():
    octaves = [Note(0.0, 1.0, pitch, 80) for pitch in (30, 42, 54, 66, 78)]
    moved = performance.in_register(octaves, 32, np.random.default_rng(0))
    assert len({(note.onset, note.pitch) for note in moved}) == len(moved) < len(octaves)
    assert all(28 <= note.pitch <= 60 for note in moved)


def test_registers_hold_an_octave_and_every_melodic_program_has_one():
    assert all(0 <= low <= high - 11 and high <= 127 for low, high in REGISTERS.values())
    assert set(REGISTERS) == set(range(8, 112))


def test_a_recipe_moves_its_lines_into_registers(songs, tmp_path):
    """A song of D3 to C#5 on a bass whose recordings reach as high: it is not played above C4 with the setting."""
    samples = (0.3 * np.sin(np.arange(2 * sample_fonts.RATE) / 50)).astype(np.float32)
    keys = [sample_fonts.RecordedNote(samples, float(key), key, 0.5, None) for key in range(28, 92, 2)]
    sample_fonts.write_font(tmp_path / "bass.sf2", "bass", 33, keys)
    highest = []
    for more in ({}, {"register": 1.0}):
        generator = synthesis.Generator(songs, [tmp_path / "bass.sf2"], recipe(solo=1.0, **more))
        highest.append(max(note.pitch for index in range(60) for note in generator.example(index).notes))
    assert highest[0] > 66 > 60 >= highest[1]


def test_bends_are_heard_and_left_behind_with_the_stem(flute):
    fonts = soundfont.Fonts([flute])

    def hertz(audio):
        return np.abs(np.fft.rfft(audio[22050:66150] * np.hanning(44100))).argmax()

    note = [Note(0.0, 1.9, 76, 100)]
    straight = hertz(fonts.play(note, 0, 73, False, 0.0, 1.6))
    up = hertz(fonts.play(note, 0, 73, False, 0.0, 1.6, np.full(160, 0.5)))
    assert up / straight == pytest.approx(2 ** (0.5 / 12), rel=0.002)
    assert hertz(fonts.play(note, 0, 73, False, 0.0, 1.6)) == straight


def test_one_kit_plays_all_drums():
    stems = [
        Stem(0, True, (Note(1, 1.1, 38, 80, 0, True),)),
        Stem(5, False, (Note(0, 1, 60, 80, 5),)),
        Stem(0, True, (Note(0, 0.1, 36, 80, 0, True),)),
    ]
    pitched, drums = performance.one_kit(stems)
    assert pitched == stems[1]
    assert [note.pitch for note in drums.notes] == [36, 38]
    assert performance.one_kit(stems[1:2]) == stems[1:2]
