"""The generator of training data, with a soundfont and songs made here."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tinysoundfont")
from mt3_common import synthesis
from mt3_common.midi import write_midi
from mt3_common.notes import Note, trim_overlapping

SHARES = dict.fromkeys(("piano", "band", "drums", "solo", "dense", "silence"), 0.0)


def soundfont() -> bytes:
    """A soundfont of two presets, piano (bank 0) and a drum kit (bank 128): one looped sawtooth of 441 Hz."""

    def chunk(name, data):
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    period = np.linspace(20000, -20000, 100)
    samples = np.tile(period, 40).astype("<i2").tobytes() + b"\0\0" * 46
    # generators: 54 loops, 53 names the sample, 41 the instrument
    presets = [(b"piano", 0), (b"kit", 128)]
    phdr = b"".join(struct.pack("<20sHHHIII", n, 0, bank, i, 0, 0, 0) for i, (n, bank) in enumerate(presets))
    phdr += struct.pack("<20sHHHIII", b"EOP", 0, 0, 2, 0, 0, 0)
    pgen = struct.pack("<HHHHHH", 41, 0, 41, 0, 0, 0)
    inst = struct.pack("<20sH20sH", b"saw", 0, b"EOI", 1)
    igen = struct.pack("<HHHHHH", 54, 1, 53, 0, 0, 0)
    shdr = struct.pack("<20sIIIIIBbHH", b"saw", 0, 4000, 1000, 3000, 44100, 69, 0, 0, 1) + struct.pack("<46s", b"EOS")
    pdta = b"".join(
        [
            *(chunk(b"phdr", phdr), chunk(b"pbag", struct.pack("<HHHHHH", 0, 0, 1, 0, 2, 0))),
            *(chunk(b"pmod", b"\0" * 10), chunk(b"pgen", pgen), chunk(b"inst", inst)),
            *(chunk(b"ibag", struct.pack("<HHHH", 0, 0, 2, 0)), chunk(b"imod", b"\0" * 10)),
            *(chunk(b"igen", igen), chunk(b"shdr", shdr)),
        ]
    )
    info = chunk(b"ifil", struct.pack("<HH", 2, 1)) + chunk(b"isng", b"EMU8000\0") + chunk(b"INAM", b"saw\0")
    body = chunk(b"LIST", b"INFO" + info) + chunk(b"LIST", b"sdta" + chunk(b"smpl", samples))
    return chunk(b"RIFF", b"sfbk" + body + chunk(b"LIST", b"pdta" + pdta))


@pytest.fixture(scope="module")
def font(tmp_path_factory):
    path = tmp_path_factory.mktemp("fonts") / "saw.sf2"
    path.write_bytes(soundfont())
    return path


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    notes = [Note(t / 4, t / 4 + 0.2, 50 + t % 24, 80) for t in range(80)]
    notes += [Note(t / 2, t / 2 + 0.1, 36 + 2 * (t % 2), 90, 0, True) for t in range(40)]
    write_midi(notes, folder / "song.mid")
    (folder / "broken.mid").write_bytes(b"no song")
    return synthesis.read_songs(folder)


def recipe(**settings):
    return synthesis.Recipe(**{"seconds": 4.0, **SHARES, **settings})


def test_songs_are_read_by_stem_and_broken_files_left_out(songs):
    assert [song.name for song in songs] == ["song.mid"]
    assert sorted((is_drum, len(notes)) for _, is_drum, notes in songs[0].stems) == [(False, 80), (True, 40)]


def test_a_folder_without_midi_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no MIDI file"):
        synthesis.read_songs(tmp_path)


def test_splits_hold_nine_tenths_and_keep_versions_together():
    names = [f"songs/{number}.mid" for number in range(2000)]
    splits = [synthesis.split_of(name) for name in names]
    assert 0.87 < splits.count("train") / 2000 < 0.93
    assert splits.count("validation") > 60
    assert splits.count("test") > 60
    for number in range(50):
        assert synthesis.split_of(f"D_SONG{number}_12ab.mid") == synthesis.split_of(f"D_SONG{number}_9f3e.mid")


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
        heard = np.flatnonzero(np.abs(example.audio) > 0.02)[0] / 16000
        assert abs(heard - first) < 0.012


@pytest.mark.parametrize("shift", [-3, 0, 3])
def test_another_formant_keeps_pitch_and_time(shift, songs, font):
    generator = synthesis.Generator(songs, [font], recipe(damage=False, silence=1.0), seed=0)
    generator.example(0)
    stem = synthesis.Stem(0, False, (Note(1.0, 3.0, 69, 100),))
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
    for make, is_drum in ((synthesis.made_up_notes, False), (synthesis.made_up_drums, True)):
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
