"""Soundfonts built from recorded notes, made here, and what tinysoundfont plays of them."""

import csv

import numpy as np
import pytest
import soundfile

pytest.importorskip("tinysoundfont")
import tinysoundfont

from mt3_common.cli.sample_fonts import main
from mt3_common.data import sample_fonts
from mt3_common.data.sample_fonts import RATE, NotesError, RecordedNote, compasses, zones

HEADER = [
    *("path", "instrument", "program", "key", "source", "licence", "credit", "pitch", "velocity", "take", "seconds"),
    *("attack_ms", "loop_start", "loop_end", "split", "loop_type", "level_db", "rms_db", "articulation", "class"),
]


def tone(pitch, seconds=1.0, loud=0.3):
    """A tone with one overtone."""
    phase = 2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * np.arange(round(seconds * RATE)) / RATE
    return (loud * (np.sin(phase) + 0.3 * np.sin(2 * phase))).astype(np.float32)


def write_index(folder, rows):
    """Rows of (path, program, key, pitch, velocity, take, loop, split, level_db, articulation) with their samples."""
    with open(folder / "index.tsv", "w", newline="") as file:
        index = csv.DictWriter(file, HEADER, delimiter="\t")
        index.writeheader()
        for (path, program, key, pitch, velocity, take, loop, split, level, articulation), samples in rows:
            (folder / path).parent.mkdir(exist_ok=True)
            soundfile.write(folder / path, samples, RATE, subtype="FLOAT")
            row = {"path": path, "program": program, "key": key, "pitch": pitch, "velocity": velocity, "take": take}
            row |= dict(zip(("loop_start", "loop_end"), loop or ("", "")))
            index.writerow(row | {"split": split, "level_db": level, "articulation": articulation})


def heard(path, key, velocity=100, seconds=1.0, hold=None, is_drum=False, program=40):
    """Return what tinysoundfont plays: (n,) float32 at 44.1 kHz; the note ends after `hold` seconds."""
    synth = tinysoundfont.Synth(samplerate=44100)
    font = synth.sfload(str(path))
    synth.program_select(0, font, 128 if is_drum else 0, 0 if is_drum else program, is_drum)
    synth.noteon(0, key, velocity)
    parts = [synth.generate(round((hold or seconds) * 44100))]
    if hold:
        synth.noteoff(0, key)
        parts.append(synth.generate(round((seconds - hold) * 44100)))
    return np.concatenate([np.frombuffer(part, np.float32).reshape(-1, 2).sum(axis=1) for part in parts])


def frequency(samples):
    """Hz of the strongest partial, to a thousandth, of samples at 44.1 kHz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 20))
    return spectrum.argmax() * 44100 / (1 << 20)


@pytest.fixture
def notes(tmp_path):
    """A violin with two loudnesses of one key, a second take of another articulation, a drum kit, one held-out note."""
    folder = tmp_path / "notes"
    folder.mkdir()
    whole = round(RATE / (440 * 2 ** ((60.3 - 69) / 12)) * 100) / 100
    rows = [
        (("violin/a.wav", 40, 60, 60.3, 0.25, 1, (12000, 12000 + round(50 * whole)), "train", -6, ""), tone(60.3)),
        (("violin/b.wav", 40, 64, 63.8, 0.25, 1, None, "train", -6, ""), tone(63.8)),
        (("violin/c.wav", 40, 64, 64.0, 0.75, 1, None, "train", 0, ""), tone(64.0, loud=0.1)),
        (("violin/d.wav", 40, 62, 62.0, 0.75, 2, None, "train", 0, "sul tasto"), tone(62.0)),
        (("kit/a.wav", "drums", 36, "", 0.9, 1, None, "train", -12, "kick"), tone(40, 0.3)),
        (("kit/b.wav", "drums", 42, "", 0.9, 1, None, "train", 0, "hat"), tone(80, 0.3)),
        (("kit/c.wav", "drums", 46, "", 0.9, 1, None, "train", 0, "hat"), tone(85, 2.0)),
        (("viola/a.wav", 41, 60, 60.0, 0.75, 1, None, "heldout", 0, ""), tone(60.0)),
    ]
    write_index(folder, rows)
    return folder


def test_each_instrument_articulation_and_take_is_a_font(notes, tmp_path):
    written = sample_fonts.build(notes, tmp_path / "fonts", "train")
    assert sorted(path.name for path in written) == ["kit.sf2", "violin-sul-tasto-take2.sf2", "violin-take1.sf2"]
    presets = [set(compasses(path)) for path in sorted(written)]
    assert presets == [{(128, 0)}, {(0, 40)}, {(0, 40)}]
    [heldout] = sample_fonts.build(notes, tmp_path / "unseen", "heldout")
    assert set(compasses(heldout)) == {(0, 41)}


@pytest.mark.parametrize("key", [58, 60, 62, 63, 66])
def test_notes_sound_at_once_and_in_tune_whatever_pitch_was_recorded(notes, tmp_path, key):
    sample_fonts.build(notes, tmp_path, "train")
    samples = heard(tmp_path / "violin-take1.sf2", key, velocity=30)
    cents = 1200 * np.log2(frequency(samples[4000:]) / (440 * 2 ** ((key - 69) / 12)))
    assert abs(cents) < 3
    assert np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max())[0] < 0.004 * 44100


def test_loops_sound_on_without_a_break_and_other_notes_end(notes, tmp_path):
    sample_fonts.build(notes, tmp_path, "train")
    path = tmp_path / "violin-take1.sf2"
    looped = heard(path, 60, seconds=3.0)
    steps = np.abs(looped[: 44100 * 3 // 441 * 441].reshape(-1, 441)).max(axis=1)
    assert steps[2:].min() > 0.8 * steps.max()
    assert np.abs(heard(path, 64, seconds=3.0)[2 * 44100 :]).max() == 0
    # it ends when the key is let go
    assert np.abs(heard(path, 60, seconds=2.0, hold=1.0)[round(1.4 * 44100) :]).max() < 0.01 * steps.max()


def test_loudness_chooses_the_layer(notes, tmp_path):
    sample_fonts.build(notes, tmp_path, "train")
    path = tmp_path / "violin-take1.sf2"
    # layers of 0.25 and 0.75 meet at 63.5; the loud one was written a third as loud
    soft, loud = (np.abs(heard(path, 64, velocity)).max() / velocity for velocity in (60, 68))
    assert soft / loud == pytest.approx(3, rel=0.05)


def test_drums_have_their_own_keys_and_levels_and_hats_silence_one_another(notes, tmp_path):
    sample_fonts.build(notes, tmp_path, "train")
    path = tmp_path / "kit.sf2"
    [compass] = compasses(path).values()
    assert np.flatnonzero(compass.longest).tolist() == [36, 42, 46]
    kick, hat = (np.abs(heard(path, key, is_drum=True)).max() for key in (36, 42))
    assert 20 * np.log10(hat / kick) == pytest.approx(12, abs=0.5)
    synth = tinysoundfont.Synth(samplerate=44100)
    synth.program_select(0, synth.sfload(str(path)), 128, 0, True)
    synth.noteon(0, 46, 100)
    synth.generate(4410)
    synth.noteon(0, 42, 100)
    after = np.frombuffer(synth.generate(44100), np.float32)
    assert np.abs(after[2 * 22050 :]).max() < 0.01 * hat


def test_every_key_of_the_compass_has_every_velocity():
    rng = np.random.default_rng(0)
    recorded = [
        RecordedNote(np.zeros(10, np.float32), float(key), int(key), float(velocity), None)
        for key in rng.choice(np.arange(40, 90), 12, replace=False)
        for velocity in rng.random(rng.integers(1, 5))
    ]
    keys = sorted({note.key for note in recorded})
    expected = {key for key in range(keys[0] - 2, keys[-1] + 3) if min(abs(key - other) for other in keys) <= 4}
    heard_at = {}
    for zone in zones(recorded):
        for key in range(zone.keys[0], zone.keys[1] + 1):
            heard_at.setdefault(key, []).extend(range(zone.velocities[0], zone.velocities[1] + 1))
    assert set(heard_at) == expected
    assert all(sorted(velocities) == list(range(1, 128)) for velocities in heard_at.values())


def test_the_compass_says_how_long_each_key_sounds(notes, tmp_path, font):
    sample_fonts.build(notes, tmp_path, "train")
    longest = compasses(tmp_path / "violin-take1.sf2")[0, 40].longest
    assert np.flatnonzero(longest).tolist() == list(range(58, 67))
    # the loop is under the keys of 60 alone
    assert np.isinf(longest[58:63]).all()
    assert longest[64] == pytest.approx(1.0, abs=0.02)
    assert longest[66] == pytest.approx(2 ** (-2 / 12), abs=0.02)
    # the fixture's font, which another program wrote
    synth = tinysoundfont.Synth(samplerate=44100)
    number = synth.sfload(str(font))
    for bank, program in compasses(font):
        assert synth.sfpreset_name(number, bank, program) is not None


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_lists_of_odd_size_are_read_with_and_without_padding(notes, tmp_path, padding):
    path = sample_fonts.build(notes, tmp_path, "heldout")[0]
    whole = path.read_bytes()
    first = whole.index(b"sdta") - 8
    size = int.from_bytes(whole[first + 4 : first + 8], "little")
    end = first + 8 + size
    odd = whole[: first + 4] + (size + 1).to_bytes(4, "little") + whole[first + 8 : end] + b"x" + padding + whole[end:]
    (tmp_path / "odd.sf2").write_bytes(odd)
    [(place, compass)] = compasses(tmp_path / "odd.sf2").items()
    np.testing.assert_array_equal(compass.longest, compasses(path)[place].longest)


def test_what_cannot_be_read_is_said(notes, tmp_path, capsys):
    with pytest.raises(NotesError, match=r"no index\.tsv"):
        sample_fonts.read_notes(tmp_path, "train")
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no index.tsv" in capsys.readouterr().err
    assert main([str(notes), str(tmp_path / "out"), "--split", "heldout"]) == 0
    assert capsys.readouterr().out == f"1 soundfont in {tmp_path / 'out'}\n"
    (notes / "violin" / "a.wav").write_text("no sound")
    with pytest.raises(NotesError, match=r"a\.wav cannot be read"):
        sample_fonts.read_notes(notes, "train")
    soundfile.write(notes / "violin" / "a.wav", np.zeros(100), 44100)
    with pytest.raises(NotesError, match="mono at 24000 Hz"):
        sample_fonts.read_notes(notes, "train")
    index = notes / "index.tsv"
    lines = index.read_text()
    index.write_text(lines.replace("level_db", "level"))
    with pytest.raises(NotesError, match=r"index\.tsv has no column 'level_db'; it has path, "):
        sample_fonts.read_notes(notes, "train")
    index.write_text(lines)
    with open(index, newline="") as file:
        first, *others = csv.DictReader(file, delimiter="\t")
    soundfile.write(notes / "violin" / "a.wav", tone(60.3), RATE, subtype="FLOAT")
    for changed in (
        *({"key": "128"}, {"key": "-1"}, {"pitch": "150"}, {"pitch": "nan"}, {"velocity": "2"}, {"velocity": "nan"}),
        *({"program": "128"}, {"program": "-1"}, {"program": "drums", "level_db": "1e6"}),
        *({"loop_start": "100", "loop_end": "999999"}, {"loop_start": "900", "loop_end": "100"}),
    ):
        with open(index, "w", newline="") as file:
            table = csv.DictWriter(file, HEADER, delimiter="\t")
            table.writeheader()
            table.writerows([first | changed, *others])
        [name] = changed.keys() - {"loop_end"} if "program" not in changed else changed.keys() - {"level_db"}
        wording = {"loop_start": "a loop from", "program": "program|level_db"}.get(name, name)
        with pytest.raises(NotesError, match=rf"index\.tsv: .*({wording})"):
            sample_fonts.read_notes(notes, "train")
    index.write_text(lines.replace("\t40\t", "\tforty\t"))
    with pytest.raises(NotesError, match=r"index\.tsv: a line is not as it must be: .*forty"):
        sample_fonts.read_notes(notes, "train")
    index.write_bytes(b"\xff\xfe")
    with pytest.raises(NotesError, match=r"no index\.tsv of recorded notes"):
        sample_fonts.read_notes(notes, "train")
    index.write_text(lines)
    (tmp_path / "text.sf2").write_text("no soundfont")
    with pytest.raises(NotesError, match="is no soundfont"):
        compasses(tmp_path / "text.sf2")
    whole = sample_fonts.build(notes, tmp_path / "fonts", "heldout")[0]
    (tmp_path / "cut.sf2").write_bytes(whole.read_bytes()[:-3000])
    with pytest.raises(NotesError, match="cut off"):
        compasses(tmp_path / "cut.sf2")
