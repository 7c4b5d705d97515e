"""Segments to train on: cut as infer cuts them, with the ids that NoteEncoder gives and rolls that agree with them."""

import argparse
import dataclasses
import json
import pickle

import numpy as np
import pytest

from mt3_common.audio.files import read_audio
from mt3_common.audio.segments import segments, start_times
from mt3_common.cli import dataset as command_line
from mt3_common.cli.dataset import add_arguments, generator_of, main
from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.data import corpora as datasets
from mt3_common.data import segments as training_segments
from mt3_common.data import shards as dataset
from mt3_common.data import sources, synthesis
from mt3_common.data.synthesis import Example, Recipe
from mt3_common.formats.midi import read_midi, write_midi
from mt3_common.io.digests import file_sha256
from mt3_common.notes.decoder import decode_segments
from mt3_common.notes.encoder import encode_segments
from mt3_common.notes.note import Note, trim_overlapping
from mt3_common.notes.vocabulary import Vocabulary

CONFIG = Config(spectrogram=SpectrogramConfig(hop_width=320), input_frames=64, max_target_length=64)
# the same, whose segments come with what is around them
AROUND = dataclasses.replace(CONFIG, network=NetworkConfig(pre_encoder_layers=1, pre_encoder_dim=4, context_frames=8))
NOTES = [
    Note(0.10, 0.50, 60, 100, 0),
    Note(0.50, 2.00, 64, 100, 40),
    Note(1.00, 1.05, 36, 100, 0, True),
    Note(2.50, 2.90, 60, 100, 0),
]


def audio(seconds=3.0, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * 16000)).astype(np.float32)


def test_a_later_segment_hears_what_is_before_it():
    samples = audio()
    whole = list(training_segments.cut_segments(samples, NOTES, 0, AROUND))
    assert len(whole) == 3
    moved = training_segments.cut_segments(samples, NOTES, 5, AROUND)
    for (frames, _, _), (later, _, _) in zip(whole, moved, strict=True):
        np.testing.assert_array_equal(frames[5:], later[:-5])


@pytest.mark.parametrize("config", [CONFIG, AROUND])
def test_segments_are_those_that_infer_sees(config):
    samples = audio()
    ours = list(training_segments.cut_segments(samples, NOTES, 0, config))
    estimates = list(segments(samples, config))
    assert len(ours) == len(estimates) == 3
    for (frames, _, sounding), segment in zip(ours, estimates, strict=True):
        assert (frames.shape, len(sounding)) == ((config.heard_frames, 512), 64)
        np.testing.assert_allclose(frames, segment.heard, rtol=1e-3, atol=1e-3)
    expected = encode_segments(NOTES, len(samples) // 320 + 1, CONFIG)
    for (_, ids, _), right in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(ids, right)
    times = start_times(3, CONFIG)
    decoded = decode_segments([(times[i], ids) for i, (_, ids, _) in enumerate(ours)], Vocabulary(CONFIG.vocabulary))
    assert sorted((n.pitch, n.is_drum) for n in decoded.notes) == sorted((n.pitch, n.is_drum) for n in NOTES)


def test_a_later_first_frame_moves_everything():
    samples = audio()
    frames, _, sounding = next(training_segments.cut_segments(samples, NOTES, 20, CONFIG))
    again, _, same = next(
        training_segments.cut_segments(
            samples[20 * 320 :], [n._replace(onset=max(0, n.onset - 0.4)) for n in NOTES[1:]], 0, CONFIG
        )
    )
    np.testing.assert_array_equal(frames, again)
    assert sounding[5, 128 + 64]
    assert same[5, 128 + 64]


def test_rolls_say_what_sounds():
    columns = training_segments.roll(NOTES, 150, CONFIG.spectrogram.frames_per_second)
    assert columns.shape == (150, dataset.ROLL_COLUMNS)
    assert np.flatnonzero(columns[:, 60]).tolist() == [*range(5, 25), *range(125, 145)]
    assert np.flatnonzero(columns[:, 128 + 60]).tolist() == [5, 125]
    assert np.flatnonzero(columns[:, 256 + 36]).tolist() == [50]
    # a violin is of class 5; drums are of none
    assert np.flatnonzero(columns[50, 384:]).tolist() == [5]
    assert training_segments.roll([Note(9.0, 9.5, 60, 100)], 150, CONFIG.spectrogram.frames_per_second).sum() == 0


def test_a_drum_that_rings_where_a_roll_begins_is_not_struck_in_it():
    notes = [Note(-0.3, 0.5, 36, 100, 0, True), Note(-0.3, 0.5, 60, 100)]
    columns = training_segments.roll(notes, 150, CONFIG.spectrogram.frames_per_second)
    assert not columns[:, 128:384].any()
    assert np.flatnonzero(columns[:, 60]).tolist() == [*range(25)]


@pytest.mark.parametrize(("hop", "first"), [(64, 3), (128, 2), (320, 1)])
def test_a_first_segment_begins_in_the_second_step_at_the_earliest(hop, first, monkeypatch):
    """Frames of a hop of 64 are 0.4 of a step."""
    firsts = []
    monkeypatch.setattr(training_segments, "cut_segments", lambda audio, notes, frame, config: firsts.append(frame))
    config = dataclasses.replace(CONFIG, spectrogram=SpectrogramConfig(hop_width=hop))
    rng = argparse.Namespace(integers=lambda highest: 0)
    training_segments.cutter_of(config).cut(np.zeros(10**6, np.float32), [], rng)
    assert firsts == [first]


def test_pairs_begin_where_their_recordings_do(tmp_path):
    """A note that sounds already where an excerpt begins has its onset there in a MIDI file."""
    example = Example(np.zeros(16000, np.float32), [Note(-0.5, 0.5, 60, 100)], "solo")
    command_line.write_pairs(tmp_path, argparse.Namespace(example=lambda index: example), 1)
    assert [note[:3] for note in read_midi(tmp_path / "solo__00000.mid")] == [(0.0, 0.5, 60)]


def test_what_needs_too_many_ids_is_left_out():
    dense = [Note(0.01 * i, 0.01 * i + 0.005, 30 + i % 80, 100) for i in range(100)]
    assert len(list(training_segments.cut_segments(audio(), dense, 0, CONFIG))) == 2


@pytest.mark.parametrize("config", [CONFIG, AROUND])
def test_shards_give_back_every_segment(config, tmp_path):
    examples = [Example(audio(seed=i), NOTES, "piano") for i in range(3)]
    path = tmp_path / "00000.npz"
    count = dataset.write_shard(path, examples, config, [1, 0])
    assert [file.name for file in tmp_path.iterdir()] == ["00000.npz"]
    shards = dataset.Shards([path], config)
    with pytest.raises(ValueError, match="was made for"):
        dataset.Shards([path], AROUND if config is CONFIG else CONFIG)
    assert len(shards) == count
    again = tmp_path / "again.npz"
    dataset.write_shard(again, examples, config, [1, 0])
    assert path.read_bytes() == again.read_bytes()
    batch = shards.batch(range(count))
    assert batch.frames.shape == (count, config.heard_frames, 512)
    assert batch.rolls.shape == (count, 64, dataset.ROLL_COLUMNS)
    rng = np.random.default_rng([1, 0])
    expected = [
        s for e in examples for s in training_segments.cut_segments(e.audio, NOTES, int(rng.integers(64)), config)
    ]
    for row, (frames, ids, sounding) in enumerate(expected):
        np.testing.assert_array_equal(batch.frames[row], frames.astype(np.float32))
        np.testing.assert_array_equal(batch.targets[row, : len(ids)], ids)
        assert not batch.targets[row, len(ids) :].any()
        np.testing.assert_array_equal(batch.rolls[row], sounding)
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert not batch.inputs[:, 0].any()


@pytest.mark.parametrize(("seconds", "whole"), [(1.0, True), (2.5, True), (4.0, False)])
def test_short_examples_are_cut_from_their_beginning(seconds, whole):
    """So that what begins at once is taught as an onset; of longer ones, other cuts give ties as well."""
    notes = [Note(0.0, 0.5, 60, 100)]
    cutter = training_segments.MT3Cutter(CONFIG)
    rngs = map(np.random.default_rng, range(20))
    firsts = {tuple(next(iter(cutter.cut(audio(seconds), notes, rng)))[1]) for rng in rngs}
    [expected] = {tuple(ids) for _, ids, _ in training_segments.cut_segments(audio(1.0), notes, 0, CONFIG)}
    assert (firsts == {expected}) == whole


def test_batches_depend_on_seed_and_step_alone(tmp_path):
    path = tmp_path / "00000.npz"
    dataset.write_shard(path, [Example(audio(40.0), NOTES, "piano")], CONFIG, [1, 0])
    shards = dataset.Shards([path], CONFIG)
    rows = [shards.rows(step, 8, seed=1).tolist() for step in range(12)]
    assert rows == [shards.rows(step, 8, seed=1).tolist() for step in range(12)]
    assert rows != [shards.rows(step, 8, seed=2).tolist() for step in range(12)]
    # an epoch holds every segment once, but for what is left over
    per_epoch = len(shards) // 8
    seen = [row for batch in rows[:per_epoch] for row in batch]
    assert len(set(seen)) == len(seen) == per_epoch * 8
    # of a run that goes on with them, too
    later = dataset.Shards([path], CONFIG)
    later.begin = 5
    for number in range(per_epoch):
        batch, expected = later.batch_at(5 + number, 8, seed=1), shards.batch_at(number, 8, seed=1)
        np.testing.assert_array_equal(batch.frames, expected.frames)
    dataset.write_shard(tmp_path / "other.npz", [Example(audio(40.0), NOTES, "piano")], CONFIG, [1, 1])
    assert dataset.Shards([tmp_path / "other.npz"], CONFIG).digest != later.digest == shards.digest


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (3, [0, 2, 4]), (4, [0, 1, 3, 5]), (7, range(7)), (9, range(7))]
)
def test_some_segments_are_from_all_over(tmp_path, count, expected):
    path = tmp_path / "00000.npz"
    assert dataset.write_shard(path, [Example(audio(9.0), NOTES, "piano")], CONFIG, [1, 0]) == 7
    shards = dataset.Shards([path], CONFIG)
    np.testing.assert_array_equal(shards.some(count).frames, shards.batch(expected).frames)


def test_shards_of_another_config_are_refused(tmp_path):
    path = tmp_path / "00000.npz"
    dataset.write_shard(path, [Example(audio(), NOTES, "piano")], CONFIG, [1, 0])
    with pytest.raises(ValueError, match=r"00000\.npz was made for"):
        dataset.Shards([path], Config())
    # which programs there are changes no frame and no id, and older shards say nothing of it
    assert len(dataset.Shards([path], CONFIG.with_granularity("midi_class")))
    (tmp_path / "bad.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"bad\.npz is no shard"):
        dataset.Shards([tmp_path / "bad.npz"], CONFIG)
    with pytest.raises(ValueError, match="no shards"):
        dataset.Shards([], CONFIG)


def test_the_command_makes_shards_and_goes_on(tmp_path, monkeypatch, font):
    (tmp_path / "midi").mkdir()
    for number in range(3):
        write_midi(NOTES, tmp_path / "midi" / f"{number}.mid")
    (tmp_path / "plan.json").write_text(json.dumps({"model": CONFIG.to_dict()}))
    made = []

    class Silent(synthesis.Generator):
        def example(self, index):
            made.append(index)
            return Example(audio(2.0, index), NOTES[:1], "piano")

    monkeypatch.setattr(command_line, "Generator", Silent)
    arguments = [str(tmp_path / "out"), "--midi", str(tmp_path / "midi"), "--fonts", str(font)]
    arguments += ["--config", str(tmp_path / "plan.json"), "--examples", "3"]
    assert main([*arguments, "--shards", "1"]) == 0
    assert main([*arguments, "--shards", "2"]) == 0
    assert made == [0, 1, 2, 3, 4, 5]
    shards = sorted((tmp_path / "out").glob("*.npz"))
    assert len(dataset.Shards(shards, CONFIG)) > 6
    sources = json.loads((tmp_path / "out" / "sources.json").read_text())
    assert len(sources["midi"]) == 3
    assert len(sources["fonts"][font.name]) == 64
    assert main([*arguments[:2], str(tmp_path / "none"), *arguments[3:]]) == 2


def test_worker_processes_write_the_same_shards_and_fill_gaps(tmp_path, font):
    (tmp_path / "plan.json").write_text(json.dumps({"model": CONFIG.to_dict()}))
    arguments = ["--fonts", str(font), "--config", str(tmp_path / "plan.json"), "--examples", "1", "--shards", "3"]
    arguments += ["--recipe", '{"piano": 1, "seconds": 3}']
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main([str(alone), *arguments]) == 0
    written = {path.name: path.read_bytes() for path in alone.glob("*.npz")}
    assert len(set(written.values())) == 3
    together.mkdir()
    for name in ("00001.npz", "sources.json"):
        (together / name).write_bytes((alone / name).read_bytes())
    unchanged = (together / "00001.npz").stat().st_mtime_ns
    assert main([str(together), *arguments, "--workers", "2"]) == 0
    assert {path.name: path.read_bytes() for path in together.glob("*.npz")} == written
    assert (together / "00001.npz").stat().st_mtime_ns == unchanged


def test_shards_keep_the_sources_that_they_were_made_from(tmp_path, monkeypatch, font, capsys):
    (tmp_path / "plan.json").write_text(json.dumps({"model": CONFIG.to_dict()}))
    (tmp_path / "other.json").write_text(json.dumps({"model": {**CONFIG.to_dict(), "input_frames": 32}}))

    class Silent(synthesis.Generator):
        def example(self, index):
            return Example(audio(2.0, index), NOTES[:1], "piano")

    monkeypatch.setattr(command_line, "Generator", Silent)
    out = tmp_path / "out"
    arguments = [str(out), "--fonts", str(font), "--config", str(tmp_path / "plan.json"), "--examples", "2"]
    assert main([*arguments, "--shards", "1", "--recipe", '{"piano": 1}']) == 0
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    for more, words in (
        (["--seed", "5"], "(seed 0 in place of 5, band 0.0 in place of "),
        (["--recipe", '{"piano": 1}', "--seed", "5"], f"{out} has data of other sources (seed 0 in place of 5): name"),
        (["--recipe", '{"piano": 1}', "--split", "validation"], "(split train in place of validation)"),
        (["--recipe", '{"piano": 1}', "--examples", "3"], "(examples 2 in place of 3)"),
        (["--recipe", '{"piano": 1}', "--config", str(tmp_path / "other.json")], "00000.npz was made for"),
        (["--seed", "9", "--config", str(tmp_path / "none.json")], "none.json"),
        (["--seed", "9", "--pairs"], "seed 0 in place of 9"),
    ):
        assert main([*arguments, *more]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert words in line, line
        assert {path.name: path.read_bytes() for path in out.iterdir()} == written
    # more of the same, also where an earlier version knew no --examples and fewer settings of recipes
    sources = json.loads(written["sources.json"])
    del sources["examples"], sources["recipe"]["damage"]
    (out / "sources.json").write_text(json.dumps(sources))
    assert main([*arguments, "--recipe", '{"piano": 1}', "--shards", "2"]) == 0
    assert (out / "00000.npz").read_bytes() == written["00000.npz"]
    assert (out / "sources.json").read_bytes() == written["sources.json"]
    for content, words in (("[]", "is no list of the sources of shards"), (None, "and no sources.json that says what")):
        (out / "sources.json").unlink()
        if content is not None:
            (out / "sources.json").write_text(content)
        assert main([*arguments, "--recipe", '{"piano": 1}']) == 2
        assert words in capsys.readouterr().err


def test_shards_stay_on_the_disk_and_go_to_other_processes(tmp_path):
    path = tmp_path / "00000.npz"
    dataset.write_shard(path, [Example(audio(60.0), NOTES, "piano")], CONFIG, [1, 0])
    with np.load(path) as file:
        for name in ("frames", "rolls", "lengths"):
            result = dataset.map_array(path, name)
            assert isinstance(result, np.memmap)
            np.testing.assert_array_equal(result, file[name])
            assert result.dtype == file[name].dtype
        np.savez_compressed(tmp_path / "small.npz", **dict(file))
    with pytest.raises(ValueError, match=r"small\.npz is no shard .* compressed"):
        dataset.Shards([tmp_path / "small.npz"], CONFIG)
    shards = dataset.Shards([path], CONFIG)
    content = pickle.dumps(shards)
    assert len(content) < path.stat().st_size / 20
    again = pickle.loads(content)
    for one, other in zip(shards.batch(range(5)), again.batch(range(5)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_damaged_shard_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "00000.npz"
    dataset.write_shard(path, [Example(audio(9.0), NOTES, "piano")], CONFIG, [1, 0])
    with np.load(path) as file:
        arrays = dict(file)
    count = len(arrays["lengths"])
    damages = {
        "of other lengths": {"lengths": arrays["lengths"] + 1},
        "with a negative length": {"lengths": arrays["lengths"] * np.int32(-1)},
        "of more frames than segments": {"frames": np.repeat(arrays["frames"], 2, axis=0)},
        "whose rolls are narrower": {"rolls": arrays["rolls"][..., :3]},
        "of objects": {"ids": np.array([None] * len(arrays["ids"]), object)},
        "of one number": {"lengths": np.int32(count)},
        "of fractions": {"ids": arrays["ids"].astype(np.float32)},
    }
    for name, damage in damages.items():
        np.savez(path, **(arrays | damage))
        with pytest.raises(ValueError, match=r"00000\.npz is no shard of segments: ") as error:
            dataset.Shards([path], CONFIG)
        assert "\n" not in str(error.value), name
    np.savez(path, **arrays)
    content = path.read_bytes()
    # a shape far beyond the file, a header that is no Python, no header at all
    first = content.index(b"'shape': (")
    for head in (b"'shape': (99999999,", b"'shape': ((((((((((", b"\0" * 19):
        path.write_bytes(content[:first] + head + content[first + len(head) :])
        with pytest.raises(ValueError, match=r"00000\.npz is no shard of segments: ") as error:
            dataset.Shards([path], CONFIG)
        assert "\n" not in str(error.value)
    del arrays["rolls"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"00000\.npz is no shard of segments: rolls cannot be read"):
        dataset.Shards([path], CONFIG)


class Numbered:
    """Examples of 4 s whose number is a pitch that sounds throughout; those of `empty` have too many notes.

    All segments of examples that are `even` need as many ids.
    """

    seed = 0

    def __init__(self, empty=(), even=False):
        self.even = even
        self.made = []
        self.empty = empty

    def example(self, index):
        self.made.append(index)
        step = 1 if index in self.empty else 100 // (1 + index % 5)
        notes = [Note(0.0, 4.0, index % 80, 100)]
        if not self.even:
            notes += [Note(t / 100, t / 100 + 0.005, 100, 100) for t in range(0, 400, step)]
        return Example(audio(4.0, index), trim_overlapping(sorted(notes)), "piano")


def test_a_stream_depends_on_seed_and_number_alone():
    stream, other = (dataset.Stream(Numbered(), CONFIG, together=3) for _ in range(2))
    batches = [stream.batch_at(number, 4, seed=1) for number in range(9)]
    other = pickle.loads(pickle.dumps(other))
    for number in (7, 2, 8, 0):
        for one, same in zip(batches[number], other.batch_at(number, 4, seed=1), strict=True):
            np.testing.assert_array_equal(one, same)
    assert not np.array_equal(batches[0].frames, stream.batch_at(0, 4, seed=2).frames)
    # a block is made once, from examples that no other block has
    stream.generator.made.clear()
    [stream.batch_at(number, 4, seed=1) for number in (3, 4, 5, 3)]
    assert stream.generator.made == list(range(12, 12 + len(stream.generator.made)))
    # a stream takes no more to another process than what examples are made from
    assert len(pickle.dumps(stream)) < 5000


@pytest.mark.parametrize("even", [True, False])
def test_segments_of_a_stream_are_mixed_and_none_comes_twice(even):
    stream = dataset.Stream(Numbered(even=even), CONFIG, together=8)
    batches = [stream.batch_at(number, 4) for number in range(8)]
    frames = np.concatenate([batch.frames for batch in batches])
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) == 32
    examples = [np.flatnonzero(batch.rolls[..., :80].any(axis=(0, 1))) for batch in batches]
    # an example has 3 or 4 segments
    assert np.mean([len(result) for result in examples]) > (3 if even else 2)
    for batch in batches:
        assert batch.frames.shape == (4, 64, 512)
        assert batch.rolls.shape == (4, 64, dataset.ROLL_COLUMNS)
    # like lengths together
    lengths = [np.sort((batch.targets > 0).sum(axis=1)) for batch in batches]
    assert even or np.mean([sample[-1] - sample[0] for sample in lengths]) < np.ptp(lengths) / 4
    sample = stream.some(10)
    assert len(sample.frames) == 10


def test_examples_without_a_segment_are_passed_over_unless_nearly_all_are():
    stream = dataset.Stream(Numbered(empty=(0, 1)), CONFIG)
    assert len(stream.batch_at(0, 4).frames) == 4
    with pytest.raises(ValueError, match="4 examples gave 0 segments that max_target_length 64 allows"):
        dataset.Stream(Numbered(empty=range(4)), CONFIG).batch_at(0, 4)


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_what_examples_are_made_from_is_checked(tmp_path, font):
    (tmp_path / "midi").mkdir()
    for number in range(40):
        write_midi(NOTES, tmp_path / "midi" / f"{number}.mid")
    train, test = (
        generator_of(command("--midi", tmp_path / "midi", "--fonts", font), split, 3) for split in ("train", "test")
    )
    assert (len(train.songs) > 20, len(test.songs) < 10, train.seed) == (True, True, 3)
    assert not {song.name for song in train.songs} & {song.name for song in test.songs}
    assert train.songs[0].name.startswith("midi/")
    # without songs music is made up
    assert generator_of(command("--fonts", font), "train", 0).example(0).notes
    for wrong, message in [
        (["--midi", tmp_path / "midi"], "give either --fonts"),
        (["--fonts", font, "--temperature", 2], "--temperature is for several --recordings, and songs have --recipe"),
        (["--data-preset", "all_cross_v7", "--temperature", 2], "and --data-preset has its own shares"),
        (["--fonts", font, "--data-home", tmp_path], "--data-home says where the data sets of a --data-preset are"),
        (["--recordings", tmp_path, "--data-home", tmp_path], "--data-home says where the data sets"),
        (["--fonts", font, "--recordings", tmp_path], "give either --fonts"),
        (["--midi", tmp_path / "midi", "--recordings", tmp_path], "give either --fonts"),
        (["--fonts", tmp_path / "no.sf2"], r"no\.sf2: there is no such soundfont"),
        (["--fonts", font, "--midi", tmp_path / "none"], "holds no MIDI file"),
    ]:
        with pytest.raises(ValueError, match=message):
            generator_of(command(*wrong), "train", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no recipe"), ("[]", "it is no object"), ('{"pian": 1}', "there is no 'pian'; there are seconds, piano")],
)
def test_a_recipe_that_is_none_is_said(text, message, capsys):
    with pytest.raises(SystemExit):
        command("--recipe", text)
    assert message in capsys.readouterr().err
    assert command("--recipe", '{"settle": 0.02}').recipe == Recipe(settle=0.02)
    result = command("--recipe", '{"piano": 0.9, "drums": 0.1, "damage": false}').recipe
    assert {kind: share for kind, share in result.shares().items() if share} == {"piano": 0.9, "drums": 0.1}
    assert not result.damage


def test_a_font_for_tests_is_refused_in_training(tmp_path, font, monkeypatch):
    reserved = tmp_path / "renamed.sf2"
    reserved.write_bytes(font.read_bytes() + b"other")
    manifest = json.loads(sources.MANIFEST.read_text())
    manifest["packages"]["csound-soundfont"]["test_only"] = {"sf_GMbank.sf2": file_sha256(reserved)}
    (tmp_path / "sources.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(sources, "MANIFEST", tmp_path / "sources.json")
    named = tmp_path / "sf_GMbank.sf2"
    named.write_bytes(font.read_bytes())
    for path in (reserved, named):
        with pytest.raises(ValueError, match=rf"{path.name} is kept for validation and test"):
            generator_of(command("--fonts", font, path), "train", 0)
        assert len(generator_of(command("--fonts", font, path), "test", 0).font_paths) == 2
    assert generator_of(command("--fonts", font), "train", 0)


def test_the_command_makes_recordings_to_measure_on(tmp_path, font):
    recipe = '{"seconds": 2.0, "damage": false, "drums": 1}'
    arguments = ["--pairs", "--fonts", str(font), "--split", "test", "--recipe", recipe]
    assert main([str(tmp_path / "out"), *arguments, "--examples", "2"]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("drums*")}
    assert sorted(before) == [f"drums__0000{number}.{suffix}" for number in (0, 1) for suffix in ("flac", "mid")]
    assert main([str(tmp_path / "out"), *arguments, "--examples", "3"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("drums__0000[01]*")} == before
    result = datasets.recordings(tmp_path / "out")
    assert [recording.group for recording in result] == ["drums"] * 3
    example = generator_of(command("--fonts", font, "--recipe", recipe), "test", 0).example(2)
    assert read_audio(result[2].audio, 16000) == pytest.approx(example.audio, abs=1e-4)
    assert len(datasets.read_notes(result[2])) == len(example.notes)
    # without a config, shards are MT3's
    assert main([str(tmp_path / "mt3"), *arguments[1:], "--shards", "1", "--examples", "2"]) == 0
    assert dataset.Shards([tmp_path / "mt3" / "00000.npz"], Config()).some(1).frames.shape == (1, 256, 512)


def test_recordings_to_measure_on_are_no_shards(tmp_path, font, capsys):
    assert main([str(tmp_path / "out"), "--pairs", "--fonts", str(font), "--shards", "2"]) == 2
    assert "--pairs writes recordings, --examples in all, and no shards: leave --shards out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--shards", "--examples"])
def test_less_than_one_shard_or_example_is_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "shards"), "--fonts", "x.sf2", option, "-1"])
    assert stop.value.code == 2
    assert "'-1' is not a whole number from 1 to 1000000" in capsys.readouterr().err
