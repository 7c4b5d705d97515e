"""Mixtures of recordings: what is mixed, with which labels, the same for an index in any order."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_common.cli import dataset, train
from mt3_common.config import ConfigError
from mt3_common.data import corpora, data_presets, remix
from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.remix import Augmentation, Remixer, transposed
from mt3_common.notes.note import Note

SECONDS = 4.0
# dataset -> (name, {program, or 'drum' or None: Hz of its stem}) of its recordings
SETS = {
    "band": [("one", {0: 220.0, 40: 330.0, "drum": 2000.0}), ("two", {0: 250.0, 32: 90.0})],
    "song": [("voice", {56: 440.0, None: 700.0})],
}
PITCH = {220.0: 57, 330.0: 64, 2000.0: 36, 250.0: 59, 90.0: 42, 440.0: 69}
OFF = {"stem_probability": 1, "max_mixed": 0, "lowest_gain": 1.0, "highest_gain": 1.0}


def tone(hertz: float) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Data sets as `mt3 data install` prepares them: every instrument is a sine of its own."""
    home = tmp_path_factory.mktemp("home")
    for dataset_name, pieces in SETS.items():
        folder = home / dataset_name
        (folder / "notes").mkdir(parents=True)
        entries = []
        for name, stems in pieces:
            listed, rows = [], ["onset\toffset\tpitch\tprogram\tis_drum"]
            for kind, hertz in stems.items():
                soundfile.write(folder / f"{name}_{kind}.wav", tone(hertz), SAMPLE_RATE, subtype="FLOAT")
                is_drum, program = kind == "drum", 0 if kind == "drum" else kind
                listed.append({"audio": f"{name}_{kind}.wav", "program": program, "is_drum": is_drum})
                if program is not None:
                    rows += [f"{t}\t{t + 0.5}\t{PITCH[hertz]}\t{program}\t{int(is_drum)}" for t in (0.5, 1.5, 2.5)]
            soundfile.write(folder / f"{name}.wav", sum(map(tone, stems.values())), SAMPLE_RATE, subtype="FLOAT")
            (folder / "notes" / f"{name}.tsv").write_text("\n".join(rows) + "\n")
            entries.append({"name": name, "split": "train", "audio": f"{name}.wav", "notes": f"notes/{name}.tsv"})
            entries[-1]["stems"] = listed
        index = {"format": "mt3-recordings", "version": 1, "dataset": dataset_name, "recordings": entries}
        (folder / "recordings.json").write_text(json.dumps(index))
    return home


def remixer(home: Path, *names: str, seconds: float = SECONDS, seed: int = 0, **settings) -> Remixer:
    datasets = [corpora.recordings(home / name) for name in names or SETS]
    excerpts = corpora.Excerpts(datasets, seconds, seed, temperature=1)
    return Remixer(excerpts, Augmentation(**(OFF | settings)))


def sounding(audio: np.ndarray) -> set[float]:
    """The sines of SETS that are in audio."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    hertz = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    known = [hz for pieces in SETS.values() for _, stems in pieces for hz in stems.values()]
    return {hz for hz in known if spectrum[np.argmin(np.abs(hertz - hz))] > 0.05 * spectrum.max()}


def labelled(notes: list[Note]) -> set[int]:
    return {note.pitch for note in notes}


def test_an_example_depends_on_the_seed_and_its_number_alone(home):
    settings = {"stem_probability": 0.5, "max_mixed": 2, "semitones": 2, "lowest_gain": 0.5}
    one, again = remixer(home, **settings), remixer(home, **settings)
    examples = [one.example(index) for index in range(6)]
    for index in reversed(range(6)):
        other = again.example(index)
        np.testing.assert_array_equal(other.audio, examples[index].audio)
        assert other.notes == examples[index].notes
    assert len({example.audio.tobytes() for example in examples}) == 6
    assert remixer(home, seed=1, **settings).example(0).audio.tobytes() != examples[0].audio.tobytes()


def test_stems_go_with_their_notes_and_one_stays(home):
    counts = []
    for index in range(30):
        example = remixer(home, "band", stem_probability=0.5).example(index)
        heard = {PITCH[hertz] for hertz in sounding(example.audio)}
        assert heard == labelled(example.notes)
        assert heard
        counts.append(len(heard))
        assert np.abs(example.audio).max() == pytest.approx(1.0, abs=1e-4)
    assert {1, 2, 3} <= set(counts)
    whole = remixer(home, "band").example(0)
    assert len(labelled(whole.notes)) in (2, 3)


def test_excerpts_of_others_are_mixed_in_unless_their_instruments_are_there(home):
    met = set()
    for index in range(16):
        example = remixer(home, "band", max_mixed=3, tau=1e-6).example(index)
        assert {PITCH[hertz] for hertz in sounding(example.audio)} == labelled(example.notes)
        programs = [note.program for note in example.notes if not note.is_drum]
        # both recordings have a piano: the second one's is left out
        assert len({note.pitch for note in example.notes if note.program == 0 and not note.is_drum}) == 1
        met.add(frozenset(programs))
    assert frozenset({0, 40, 32}) in met


def test_what_nobody_annotated_is_left_out_or_stays_alone(home):
    kinds = set()
    for index in range(20):
        example = remixer(home, max_mixed=3, tau=1e-6, stem_probability=0.999).example(index)
        heard = sounding(example.audio)
        if 700.0 in heard:
            assert heard == {700.0, 440.0}
        kinds.add(700.0 in heard)
        assert labelled(example.notes) == {PITCH[hertz] for hertz in heard - {700.0}}
    assert kinds == {True, False}


@pytest.mark.parametrize("semitones", [-3, -1, 2])
def test_the_key_moves_in_audio_and_labels(semitones):
    notes = [Note(0.5, 1.5, 69, 90, 40), Note(1.0, 1.01, 38, 90, 0, True), Note(2.0, 2.5, 127, 90, 0)]
    audio, moved = transposed(tone(440.0), notes, semitones)
    speed = 2 ** (semitones / 12)
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    hertz = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)[spectrum.argmax()]
    assert 12 * np.log2(hertz / 440) == pytest.approx(semitones, abs=0.05)
    assert len(audio) == pytest.approx(SECONDS * SAMPLE_RATE / speed, abs=2)
    assert moved[0] == Note(0.5 / speed, 1.5 / speed, 69 + semitones, 90, 40)
    assert moved[1].pitch == 38
    assert len(moved) == (3 if semitones < 0 else 2)


def test_moved_examples_have_their_length_and_their_labels(home):
    examples = [remixer(home, "band", seconds=2.0, semitones=2).example(index) for index in range(12)]
    assert {len(example.audio) for example in examples} == {2 * SAMPLE_RATE}
    moved = {note.pitch - 57 for example in examples for note in example.notes if note.program == 40}
    assert moved - {7} <= {5, 6, 8, 9}
    assert len(moved) > 2
    assert all(note.pitch == 36 for example in examples for note in example.notes if note.is_drum)


def test_recordings_without_stems_are_mixed_whole(home, tmp_path):
    for number, hertz in enumerate((220.0, 330.0)):
        soundfile.write(tmp_path / f"{number}.wav", tone(hertz), SAMPLE_RATE)
        (tmp_path / f"{number}.tsv").write_text(f"0.5\t1.0\t{PITCH[hertz]}\t{number * 40}\t0\n")
    example = remixer(tmp_path, ".", max_mixed=2, tau=1e-6).example(0)
    assert sounding(example.audio) == {220.0, 330.0}
    assert labelled(example.notes) == {57, 64}


def test_a_stem_that_ends_before_its_mix_is_silent_then(home, tmp_path):
    folder = tmp_path / "uneven"
    shutil.copytree(home / "band", folder)
    long = np.tile(tone(220.0), 5)
    soundfile.write(folder / "one_0.wav", long, SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(folder / "one.wav", long, SAMPLE_RATE, subtype="FLOAT")
    index = json.loads((folder / "recordings.json").read_text())
    index["recordings"] = index["recordings"][:1]
    (folder / "recordings.json").write_text(json.dumps(index))
    heard = [sounding(remixer(tmp_path, "uneven", seconds=2.0).example(number).audio) for number in range(20)]
    assert {220.0} in heard
    assert {220.0, 330.0, 2000.0} in heard
    # all of them may end before it
    shutil.copytree(folder, tmp_path / "ended")
    soundfile.write(tmp_path / "ended" / "one_0.wav", tone(220.0), SAMPLE_RATE, subtype="FLOAT")
    examples = [remixer(tmp_path, "ended", seconds=2.0).example(number) for number in range(20)]
    assert {len(example.audio) for example in examples} <= {2 * SAMPLE_RATE, 2 * SAMPLE_RATE + 1}


def test_instruments_that_are_labelled_alike_are_not_mixed(tmp_path):
    """Of two pianos, an electric one among them, the labels of families say one."""
    for number, program in enumerate((0, 4)):
        soundfile.write(tmp_path / f"{number}.wav", tone(220.0), SAMPLE_RATE)
        (tmp_path / f"{number}.tsv").write_text(f"{0.5 + number}\t{2.4 + number}\t57\t{program}\t0\n")
    excerpts = corpora.Excerpts([corpora.recordings(tmp_path)], SECONDS, temperature=1, midi_class=True)
    example = Remixer(excerpts, Augmentation(**(OFF | {"max_mixed": 1, "tau": 1e-6}))).example(0)
    assert [(note.program, round(note.offset - note.onset, 3)) for note in example.notes] == [(0, 1.9)]


@pytest.mark.parametrize(("tau", "alpha"), [(5, 1000), (1e-6, 1e-6), (1e300, 1e300), (1e300, 1e-6)])
def test_numbers_of_mixed_excerpts_have_probabilities_whatever_the_settings(tau, alpha):
    probabilities = Augmentation(max_mixed=3, tau=tau, alpha=alpha).mixed_probabilities()
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities >= 0).all()


def test_numbers_of_mixed_excerpts_are_the_published_ones():
    probabilities = Augmentation(max_mixed=5).mixed_probabilities()
    np.testing.assert_allclose(probabilities, [0.259, 0.192, 0.142, 0.105, 0.078, 0.223], atol=6e-4)
    assert Augmentation(max_mixed=0).mixed_probabilities() == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stem_probability": 1.5}, "stem_probability must be"),
        ({"semitones": 20}, "semitones must be"),
        ({"lowest_gain": 2.0}, "highest_gain 1.1 is below lowest_gain 2.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**settings)


def test_the_commands_take_augmentation_and_data_presets(home, tmp_path, capsys):
    options = train.parse("mt3 train", ["run", "--recordings", str(home / "band"), "--augment", '{"semitones": 1}'])
    generator = dataset.generator_of(options, "train", 3)
    assert isinstance(generator, Remixer)
    assert generator.augmentation == Augmentation(semitones=1)
    options = train.parse("mt3 train", ["run", "--recordings", str(home / "band"), "--augment", "off"])
    assert isinstance(dataset.generator_of(options, "train", 3), corpora.Excerpts)
    with pytest.raises(SystemExit):
        train.parse("mt3 train", ["run", "--augment", '{"pitch": 1}'])
    assert "there is no 'pitch'; there are stem_probability" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--augment is for --recordings and --data-preset"):
        dataset.generator_of(train.parse("mt3 train", ["run", "--fonts", "x.sf2", "--augment", "{}"]), "train", 0)


def test_a_data_preset_draws_installed_sets_with_the_published_weights(home, tmp_path, monkeypatch):
    monkeypatch.setitem(data_presets.FOLDERS, "slakh", "band")
    monkeypatch.setitem(data_presets.FOLDERS, "mir_st500", "song")
    options = train.parse("mt3 train", ["run", "--data-preset", "singing_v1", "--data-home", str(home)])
    generator = dataset.generator_of(options, "train", 0)
    # a file has the weight of its set times the share of the other sets' files: 0.8 / 3, 0.2 * 2 / 3
    np.testing.assert_allclose(generator.rates, [2 * 0.8 / 3 / (1.6 / 3 + 0.4 / 3), 0.2], rtol=1e-6)
    np.testing.assert_allclose(data_presets.published_rates([7], [1.0]), [1.0])
    assert dataset.sources_of(generator, options, "train")["data_preset"] == "singing_v1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("all_cross_v9", "no data preset is called 'all_cross_v9'; there are musicnet_mt3_em_synth_plus_maps"),
        ("all_cross_stem", "has mir_st500_stem, which cannot be had"),
        ("all_cross_v7", "lacks cmedia, e-gmd, enst-drums, .*: mt3 data install cmedia e-gmd"),
    ],
)
def test_data_presets_that_cannot_be_had_are_refused(tmp_path, name, message):
    with pytest.raises(corpora.DatasetError, match=message):
        data_presets.find_mixture(name, tmp_path)


def test_all_published_presets_are_there():
    assert {kind: len(names) for kind, names in data_presets.presets().items()} == {"single": 42, "multi": 45}
    assert dataclasses.asdict(Augmentation())["highest_gain"] == 1.1
    weights = data_presets.presets()["multi"]["all_cross_v7"]["weights"]
    assert weights == [0.295, 0.19, 0.191, 0.05, 0.01, 0.004, 0.1, 0.1, 0.01, 0.05]
    assert remix.UNANNOTATED == 0.7


def test_singers_of_stems_are_labelled_as_general_midi_names_them(home, tmp_path):
    """And go with their stems, which are called 100 too."""
    shutil.copytree(home / "band", tmp_path / "band")
    for path in (tmp_path / "band" / "recordings.json", tmp_path / "band" / "notes" / "one.tsv"):
        text = path.read_text()
        path.write_text(text.replace('"program": 40', '"program": 100').replace("\t40\t", "\t100\t"))
    datasets = [corpora.recordings(tmp_path / "band")]
    for general_midi, program in ((True, 53), (False, 100)):
        excerpts = corpora.Excerpts(datasets, SECONDS, temperature=1, general_midi=general_midi)
        halves = Remixer(excerpts, Augmentation(**(OFF | {"stem_probability": 0.5})))
        examples = [halves.example(index) for index in range(12)]
        for example in examples:
            assert {PITCH[hertz] for hertz in sounding(example.audio)} == labelled(example.notes)
        assert any(note.program == program for example in examples for note in example.notes)
        assert all(note.program in (0, 32, program) for example in examples for note in example.notes)
