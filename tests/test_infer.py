"""Both twins' infer as their users run it: real processes, the bundled checkpoint, the same notes."""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_common.audio.files import read_audio
from mt3_common.audio.segments import segments
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.write import write_t5x
from mt3_common.evaluation import metrics
from mt3_common.formats import midi, tables
from mt3_common.io.plural import plural
from mt3_common.notes.decoder import decode_segments
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import SPECIAL_IDS, Vocabulary
from mt3_common.transcription.instrument_prior import InstrumentPrior
from mt3_common.transcription.reader import Request

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "checkpoints" / "golden"
EXAMPLE = ROOT / "audio" / "example.flac"
TWINS = ("jax_mt3", "torch_mt3")


def start(twin, *arguments, folder):
    """The process `python -m {twin}.infer …`, run in a folder outside the project."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    # PyTorch 2.6 leaves a temporary folder of its own to the garbage collector, a Ctrl-C the file that open() was at
    environment["PYTHONWARNINGS"] = "error,ignore::ResourceWarning"
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.Popen(
        [sys.executable, "-m", f"{twin}.infer", *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def infer(twin, *arguments, folder):
    """(exit status, stdout, stderr) of `python -m {twin}.infer …`."""
    process = start(twin, *arguments, folder=folder)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def written(tmp_path_factory, talkative):
    """Per twin: the folder with what it wrote of six seconds of the example, and what it said."""
    outputs = {}
    for twin in TWINS:
        folder = tmp_path_factory.mktemp(twin)
        # what random weights repeat at one moment are notes too, so that there are many
        options = ("--duration", "6", "--format", "mid,json", "--batch-size", "2", "--as-published")
        options += ("--checkpoint", talkative)
        outputs[twin] = folder, infer(twin, EXAMPLE, "-o", "out", *options, folder=folder)
    return outputs


@pytest.mark.parametrize("twin", TWINS)
def test_a_recording_becomes_files(written, twin):
    folder, (status, out, err) = written[twin]
    assert (status, err) == (0, "")
    assert out.startswith(f"{EXAMPLE} -> out/example.mid, out/example.json: ")
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["example.json", "example.mid"]
    notes, metadata = tables.read_json(folder / "out" / "example.json")
    assert len(notes) > 50
    assert (metadata["checkpoint"], metadata["duration"], metadata["segments"]) == ("talkative", 6.0, 3)
    assert f" {plural(len(notes), 'note')}, " in out
    assert len(midi.read_midi(folder / "out" / "example.mid")) > 50


@pytest.mark.parametrize("twin", TWINS)
def test_the_default_model_hears_the_example(twin, tmp_path):
    assert infer(twin, EXAMPLE, "-o", "song.mid", "--quiet", folder=tmp_path) == (0, "", "")
    piece = runpy.run_path(str(ROOT / "audio" / "make_example.py"))
    played = [
        Note(beat * piece["BEAT"], (beat + 1) * piece["BEAT"], int(pitch), 100, 0)
        for part in (piece["MELODY"], piece["CHORDS"])
        for beat, pitches in enumerate(part)
        if pitches is not None
        for pitch in np.atleast_1d(pitches)
    ]
    measures = metrics.evaluate(played, midi.read_midi(tmp_path / "song.mid"))
    assert measures["onset"] > 0.9
    assert measures["onset_class"] > 0.9


@pytest.mark.parametrize("name", ["example.mid", "example.json"])
def test_both_write_the_same_bytes(written, name):
    first, second = ((written[twin][0] / "out" / name).read_bytes() for twin in TWINS)
    assert first == second


@pytest.mark.parametrize("twin", TWINS)
def test_three_lines_of_python_write_what_the_command_writes(written, talkative, twin, tmp_path):
    folder, _ = written[twin]
    code = (
        f"from {twin} import infer\n"
        f"transcription = infer.load({str(talkative)!r}, device='cpu').transcribe("
        f"{str(EXAMPLE)!r}, duration=6, published=True)\n"
        "transcription.write('song.mid')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT)), check=True)
    assert (tmp_path / "song.mid").read_bytes() == (folder / "out" / "example.mid").read_bytes()


@pytest.mark.parametrize("twin", TWINS)
def test_the_preset_follows_from_the_name(twin):
    """ismir2021 does not fit the bundled weights: that it is refused shows that it was asked for."""
    load = importlib.import_module(f"{twin}.infer").load
    with pytest.raises(ValueError, match="preset ismir2021"):
        load(NamedCheckpoint(str(BUNDLED), "x", model="ismir2021"))
    assert load(NamedCheckpoint(str(BUNDLED), "x", model="ismir2021"), model="mt3").config.vocabulary.use_ties


def test_only_the_named_instruments_are_heard_by_both(written, talkative, tmp_path):
    """Without pitches, which only waste its tokens here, the checkpoint hears more drums; and without drums none."""
    options = ("--duration", "6", "--batch-size", "2", "--as-published", "--checkpoint", talkative, "--instruments")
    for twin in TWINS:
        assert infer(twin, EXAMPLE, "-o", f"{twin}.json", *options, "drums", folder=tmp_path)[0] == 0
    assert len({(tmp_path / f"{twin}.json").read_bytes() for twin in TWINS}) == 1
    free, _ = tables.read_json(written["jax_mt3"][0] / "out" / "example.json")
    drums, metadata = tables.read_json(tmp_path / "jax_mt3.json")
    assert len(drums) > len(free)
    assert all(note.is_drum for note in drums)
    assert metadata["instruments"] == "drums"
    assert infer("torch_mt3", EXAMPLE, "-o", "piano.json", *options, "piano", folder=tmp_path)[0] == 0
    assert not any(note.is_drum for note in tables.read_json(tmp_path / "piano.json")[0])


@pytest.mark.parametrize(
    ("options", "programs"),
    [
        (("--instruments", "cello,electric bass (finger),honky-tonk piano", "--batch-size", "1"), {3, 33, 42}),
        (("--only", "3"), {3}),
        (("--instruments", "viola", "--hold-instruments"), {41}),
    ],
)
def test_of_the_default_model_a_program_stands_for_its_family_in_both(options, programs, tmp_path):
    """Its training joined the programs of a family to the first: it never writes the others."""
    for twin in TWINS:
        status, _, err = infer(twin, EXAMPLE, "-o", f"{twin}.json", "--duration", "6", *options, folder=tmp_path)
        assert (status, "the model tells families of instruments apart" in err) == (0, True)
    assert len({(tmp_path / f"{twin}.json").read_bytes() for twin in TWINS}) == 1
    notes = tables.read_json(tmp_path / "jax_mt3.json")[0]
    assert len(notes) > 5
    assert {note.program for note in notes} <= programs


@pytest.mark.parametrize("twin", TWINS)
def test_in_blocks_it_writes_what_the_whole_at_once_gives(written, talkative, twin, tmp_path):
    folder, _ = written[twin]
    transcriber = importlib.import_module(f"{twin}.infer").load(talkative, device="cpu", batch_size=3)
    cut = list(segments(read_audio(EXAMPLE, duration=6.0), transcriber.config))
    ids = [tokens.ids for tokens in transcriber.generate(cut)]
    vocabulary = Vocabulary(transcriber.config.vocabulary)
    decoded = decode_segments(zip([segment.start_time for segment in cut], ids), vocabulary)
    midi.write_midi(decoded.notes, tmp_path / "once.mid")
    assert (tmp_path / "once.mid").read_bytes() == (folder / "out" / "example.mid").read_bytes()


@pytest.fixture(scope="module")
def undecided(tmp_path_factory):
    """A checkpoint of random weights that gives notes of the example to several programs."""
    source = read_checkpoint(BUNDLED)
    config = source.config()
    vocabulary = Vocabulary(config.vocabulary)
    kernel = source.arrays["decoder/logits_dense/kernel"].copy()
    kernel[:, SPECIAL_IDS + 15 : SPECIAL_IDS + vocabulary.max_shift_steps + 1] = 0.0
    for kind in ("program", "pitch"):
        kernel[:, vocabulary.first_id(kind) :][:, :128] *= 2.5
    path = tmp_path_factory.mktemp("checkpoint") / "undecided"
    write_t5x(path, source.arrays | {"decoder/logits_dense/kernel": kernel}, source.step, config=config)
    return path


def test_the_recording_so_far_chooses_instruments_in_both_twins_but_where_it_must_not(undecided):
    """The prior's notes against its own on the ids; none of it as published, nor by the option."""

    def notes(twin, published=False, **settings):
        infer_module = importlib.import_module(f"{twin}.infer")
        transcriber = infer_module.load(undecided, device="cpu", batch_size=3, **settings)
        return transcriber.transcribe(EXAMPLE, duration=6.0, published=published).notes

    with_prior = [notes(twin) for twin in TWINS]
    without = [notes(twin, instrument_prior=False) for twin in TWINS]
    assert with_prior[0] == with_prior[1]
    assert without[0] == without[1]
    assert {note.program for note in with_prior[0]} != {note.program for note in without[0]}
    assert notes("torch_mt3", published=True) == notes("torch_mt3", published=True, instrument_prior=False)
    assert notes("torch_mt3", hold=2.0) == notes("torch_mt3", hold=2.0, instrument_prior=False)
    transcriber = importlib.import_module("torch_mt3.infer").load(undecided, device="cpu", batch_size=3)
    prior = InstrumentPrior(Vocabulary(transcriber.config.vocabulary))
    cut = list(segments(read_audio(EXAMPLE, duration=6.0), transcriber.config))
    ids = [prior.choose(tokens) for tokens in transcriber.generate(cut)]
    decoded = decode_segments(
        zip([segment.start_time for segment in cut], ids), Vocabulary(transcriber.config.vocabulary), published=False
    )
    assert decoded.notes == with_prior[0]


def test_the_option_leaves_the_prior_out(undecided, tmp_path):
    options = ("--duration", "6", "--batch-size", "2", "--checkpoint", undecided)
    for name, option in (("with", ()), ("without", ("--no-instrument-prior",))):
        assert infer("torch_mt3", EXAMPLE, "-o", f"{name}.json", *options, *option, folder=tmp_path)[0] == 0
    programs = {
        name: {note.program for note in tables.read_json(tmp_path / f"{name}.json")[0]} for name in ("with", "without")
    }
    assert programs["with"] != programs["without"]


@pytest.mark.parametrize(("twin", "search"), [("jax_mt3", "greedy"), ("torch_mt3", "sample")])
def test_recordings_that_share_batches_come_out_as_if_alone(talkative, twin, search, tmp_path):
    samples, rate = soundfile.read(EXAMPLE)
    paths = [tmp_path / f"{number}.flac" for number in range(3)]
    for path, (start, seconds) in zip(paths, [(0, 3), (3, 1), (4, 4)]):
        soundfile.write(path, samples[start * rate :][: seconds * rate], rate)
    load = importlib.import_module(f"{twin}.infer").load
    settings = {"search": search, "temperature": 0.1, "device": "cpu"}
    together = list(load(talkative, batch_size=4, **settings).transcribe_many(map(Request, paths), readers=2))
    alone = [load(talkative, batch_size=rows, **settings).transcribe(path) for path, rows in zip(paths, (4, 1, 4))]
    for path, first, second in zip(paths, together, alone):
        first.write(path.with_suffix(".first.mid"))
        second.write(path.with_suffix(".second.mid"))
        assert path.with_suffix(".first.mid").read_bytes() == path.with_suffix(".second.mid").read_bytes()
        assert first == second
        assert first.num_segments > 0
    assert sum(len(result.notes) for result in together) > 20


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(
    "name", ["gpu:7", "cuda:99", "tpu:0", "mps:3", "cpu:1", "cpu:-1", "cuda:x", "nonsense", "c pu"]
)
def test_devices_that_are_not_there(twin, name):
    find_device = importlib.import_module(f"{twin}.infer").find_device
    with pytest.raises(ValueError, match=rf"^no device '{name}' for (JAX|PyTorch) here; there are: .*cpu"):
        find_device(name)


@pytest.mark.parametrize("twin", TWINS)
def test_devices_that_are_there(twin):
    find_device = importlib.import_module(f"{twin}.infer").find_device
    assert find_device("cpu") == find_device("cpu:0")
    assert "cpu" in str(find_device("cpu")).lower()
    assert find_device(None)


@pytest.mark.parametrize("twin", TWINS)
def test_two_processes_write_what_one_writes(written, talkative, twin, tmp_path):
    folder, _ = written[twin]
    options = ("--duration", "6", "--format", "mid,json", "--batch-size", "2", "--as-published")
    options += ("--checkpoint", talkative, "--device", "cpu,cpu")
    status, _, err = infer(twin, EXAMPLE, "-o", "out", *options, folder=tmp_path)
    assert (status, err) == (0, "")
    for name in ("example.mid", "example.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_both_hold_instruments_and_recordings_come_out_as_if_alone(talkative, tmp_path):
    options = ("--duration", "6", "--checkpoint", talkative, "--hold-instruments", "--search", "t5x")
    (tmp_path / "copy.flac").write_bytes(EXAMPLE.read_bytes())
    for twin in TWINS:
        assert infer(twin, EXAMPLE, "copy.flac", "-o", twin, "--format", "json", *options, folder=tmp_path)[0] == 0
    notes = [tables.read_json(tmp_path / twin / f"{name}.json")[0] for twin in TWINS for name in ("example", "copy")]
    assert notes[0] == notes[1] == notes[2] == notes[3]
    assert notes[0]


def test_both_agree_with_every_option_of_theirs(talkative, tmp_path):
    options = ("--search", "sample", "--temperature", "0.1", "--top-k", "50", "--top-p", "0.9", "--seed", "3")
    options += (
        "--dtype",
        "float64",
        "--device",
        "cpu",
        "--positions",
        "port",
        "--as-published",
        "--checkpoint",
        talkative,
    )
    contents = []
    for twin in TWINS:
        status, _, err = infer(twin, EXAMPLE, "-o", f"{twin}.json", "--duration", "2", *options, folder=tmp_path)
        assert (status, err) == (0, "")
        contents.append((tmp_path / f"{twin}.json").read_bytes())
    assert contents[0] == contents[1]
    assert len(tables.read_json(tmp_path / "jax_mt3.json")[0]) > 10


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "python -m {twin}.infer --help"),
        (("missing.wav", "--checkpoint", "nowhere"), "error: no checkpoint 'nowhere'"),
        (("missing.wav", "--device", "gpu:7"), "error: no device 'gpu:7'"),
        (("missing.wav", "--model", "ismir2021"), "error: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_are_sentences(tmp_path, twin, arguments, message):
    status, out, err = infer(twin, *arguments, folder=tmp_path)
    assert (status, out) == (2, "")
    assert message.format(twin=twin) in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("twin", TWINS)
def test_ctrl_c_leaves_nothing(tmp_path, twin):
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 16000 * 600)
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    process = start(twin, "long.wav", "--checkpoint", "golden", folder=tmp_path)
    # the note comes when the network is loaded, right before the work
    assert process.stderr.readline().startswith("note: the bundled test checkpoint has random weights")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (130, "interrupted: what was finished is written, nothing is half-written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


def test_the_example_is_what_its_program_makes(tmp_path):
    script = tmp_path / "make_example.py"
    script.write_bytes((ROOT / "audio" / "make_example.py").read_bytes())
    subprocess.run([sys.executable, script], check=True, capture_output=True)
    made, _ = soundfile.read(tmp_path / "example.flac")
    samples, rate = soundfile.read(EXAMPLE)
    assert (rate, len(samples)) == (16000, 160000)
    # sines differ in the last bit from one machine to the next
    np.testing.assert_allclose(made, samples, atol=2 / 32768)
    assert EXAMPLE.stat().st_size < 250_000


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_and_resumed(talkative, tmp_path):
    samples, rate = soundfile.read(EXAMPLE)
    for number in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / f"{number}.flac", samples[number * rate :][: round(1.5 * rate)], rate)
    command = ("in", "--format", "mid,json", "--batch-size", "1", "--checkpoint", talkative)
    summary = tmp_path / "out" / "summary.jsonl"
    process = start("torch_mt3", *command, "-o", "out", folder=tmp_path)
    while not (summary.exists() and summary.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = [json.loads(line)["audio"] for line in summary.read_text().splitlines()]
    assert 1 <= len(done) < 4
    status, out, err = infer("torch_mt3", *command, "-o", "out", "--resume", folder=tmp_path)
    assert (status, err) == (0, f"note: {len(done)} of 4 inputs done before, as out/summary.jsonl says\n")
    lines = [line.split(" -> ")[0] for line in out.splitlines() if " -> " in line]
    assert lines == [f"in/{n}.flac" for n in range(len(done), 4)]
    assert [json.loads(line)["status"] for line in summary.read_text().splitlines()] == ["done"] * 4
    summary.unlink()
    assert infer("torch_mt3", *command, "-o", "whole", folder=tmp_path)[0] == 0
    (tmp_path / "whole" / "summary.jsonl").unlink()
    contents, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole")
    )
    assert len(expected) == 8
    assert contents == expected
