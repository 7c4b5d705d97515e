"""The evaluate command, with a transcriber that knows the answers and one that fails."""

import contextlib
import csv
import json
import re
import shutil
import sys

import matplotlib.colors
import matplotlib.image
import mido
import numpy as np
import pytest
import soundfile
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.cli import evaluate, mt3
from mt3_common.config import Config
from mt3_common.data import corpora as datasets
from mt3_common.evaluation import evaluate as evaluation
from mt3_common.evaluation import plot
from mt3_common.formats import midi
from mt3_common.formats.plot import LOWEST, drum_row, spectrogram_image
from mt3_common.notes.note import Note
from mt3_common.transcription.result import Transcription

PIANO = [Note(0.5, 1.0, 60, 100), Note(1.0, 1.5, 64, 100), Note(1.5, 2.5, 67, 100)]
DRUMS = [Note(t / 4, t / 4 + 0.01, 36, 100, 0, True) for t in range(8)]


class Oracle:
    """Transcribes by reading the answers, one note of the piano missing."""

    config = Config()
    tells_velocities = True

    def transcribe(self, path):
        if "broken" in path.name:
            raise ValueError(f"{path} is no audio")
        notes = PIANO[:2] if "piano" in path.name else DRUMS
        return Transcription(notes, 3.0, 1, invalid=2, dropped=1)


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("piano__one", "drums__two"):
        soundfile.write(data / f"{name}.flac", np.random.default_rng(0).uniform(-0.1, 0.1, 48000), 16000)
    midi.write_midi(PIANO, data / "piano__one.mid")
    lines = ["onset\toffset\tpitch\tprogram\tis_drum"]
    lines += [f"{note.onset}\t{note.offset}\t{note.pitch}\t0\t1" for note in DRUMS]
    (data / "drums__two.tsv").write_text("\n".join(lines) + "\n")
    soundfile.write(data / "alone.wav", np.zeros(1600), 16000)
    return data


def load(**options):
    assert options["search"] == "greedy"
    return Oracle()


def test_results_are_written_per_file_and_over_all(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(out), "--pictures"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["files"]] == ["drums__two", "piano__one"]
    drums, piano = results["files"]
    assert (piano["onset_precision"], piano["onset_recall"]) == pytest.approx((1, 2 / 3))
    assert piano["drum_onset"] is None
    assert drums["onset"] is None
    assert drums["drum_onset"] == drums["drums"] == 1
    summary = results["summary"]
    assert summary["all"]["onset"]["mean"] == pytest.approx(0.8)
    assert summary["all"]["onset"]["files"] == 1
    assert summary["piano"]["invalid"] == 2
    assert summary["drums"]["dropped"] == 1
    with open(out / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["onset"]) == pytest.approx(0.8)
    assert "0.800" in capsys.readouterr().out
    # of each file a picture, with something of the kinds that it has and more of none than the legend's own patch
    for name, kinds in (("piano__one", {"found", "missed"}), ("drums__two", {"found"})):
        image = matplotlib.image.imread(out / f"{name}.png")[..., :3]
        assert image.shape[0] == 800
        for kind, colour, _ in plot.COMPARED:
            area = (np.abs(image - matplotlib.colors.to_rgb(colour)).max(axis=-1) < 0.01).sum()
            assert area > 60, kind
            assert (area > 230) == (kind.partition(",")[0] in kinds), (name, kind, area)


def test_a_picture_has_right_and_estimated_notes_on_top_of_the_spectrogram(tmp_path):
    times = np.arange(4 * 16000) / 16000
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * times), 16000)
    references = [Note(0.5, 1.5, 60, 100), Note(1.0, 2.0, 72, 100), Note(2.0, 2.05, 36, 100, 0, True)]
    estimates = [
        Note(0.52, 1.0, 60, 100, 5),  # found, of another program, too short
        Note(1.06, 2.0, 72, 100),  # 60 ms late: the reference is missed, the estimate wrong
        Note(2.01, 2.02, 36, 100, 0, True),
        Note(3.0, 3.01, 43, 100, 0, True),
    ]
    image = spectrogram_image(tmp_path / "a.wav", 0.0, 4.0, 800)
    figure = plot._compared(references, estimates, image, 4.0)
    (axes,) = figure.axes
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    reference, estimate, missed, wrong = (
        tuple(round(255 * part) for part in matplotlib.colors.to_rgb(colour)) for _, colour, _ in plot.COMPARED
    )

    def at(seconds, height):
        x, y = axes.transData.transform((seconds, height))
        return tuple(int(part) for part in pixels[int(y), int(x)])

    # the estimate inside of the reference, which goes on alone
    assert at(0.7, 60) == estimate
    assert at(0.7, 60.35) == at(0.7, 59.65) == at(0.51, 60) == at(1.2, 60) == reference
    assert at(1.03, 72) == at(1.5, 72.4) == missed
    assert at(1.5, 72) == wrong
    assert at(2.03, drum_row(36)) == estimate
    assert at(2.03, drum_row(36) + 0.35) == reference
    assert at(3.03, drum_row(43)) == wrong
    below = [drum_row(key) for key in (35, 36, 43, 81, LOWEST)]
    assert below[4] == below[0] < below[1] < below[2] < below[3] < LOWEST
    assert axes.get_ylim()[0] < below[0]
    assert axes.get_ylabel() == "MIDI pitch, drums below 21"
    # the tone where nobody wrote a note: bright, and dark two semitones above
    for seconds in (0.3, 1.5, 3.5):
        bright, dark = at(seconds, 69.1), at(seconds, 71.2)
        assert len(set(bright)) == len(set(dark)) == 1
        assert bright[0] > dark[0] + 60
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "onset within 50 ms"
    message = [text.get_text() for text in legend.get_texts()]
    assert message == ["found, reference: 2", "found, estimate: 2", "missed: 1", "wrong: 2"]


def test_a_run_goes_on_from_its_results(folder, tmp_path, monkeypatch):
    arguments = [str(folder), "-o", str(tmp_path / "out")]
    assert evaluate.main("torch_mt3", load, arguments) == 0
    before = json.loads((tmp_path / "out" / "results.json").read_text())
    measured = []
    measure = evaluation.measure
    monkeypatch.setattr(evaluate, "measure", lambda pair, *rest: measured.append(pair.name) or measure(pair, *rest))
    assert evaluate.main("torch_mt3", load, arguments) == 0
    assert measured == []
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == before
    # other notes for one file: only that is measured again
    midi.write_midi(PIANO[:1], folder / "piano__one.mid")
    assert evaluate.main("torch_mt3", load, arguments) == 0
    assert measured == ["piano__one"]
    # results of an earlier version, which may lack measures
    monkeypatch.setattr(evaluation, "READING", evaluation.READING + 1)
    assert evaluate.main("torch_mt3", load, arguments) == 0
    assert measured[1:] == ["drums__two", "piano__one"]


def test_one_bad_file_does_not_stop_the_others(folder, tmp_path, capsys):
    soundfile.write(folder / "broken.flac", np.zeros(1600), 16000)
    midi.write_midi(PIANO, folder / "broken.mid")
    assert evaluate.main("jax_mt3", load, [str(folder), "-o", str(tmp_path / "out")]) == 1
    assert "broken.flac is no audio" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["files"]) == 2


def test_ready_midi_files_are_measured_without_a_network(folder, tmp_path, capsys):
    estimates = tmp_path / "estimates"
    estimates.mkdir()
    midi.write_midi(PIANO, estimates / "piano__one.mid")
    midi.write_midi(DRUMS[:4], estimates / "drums__two.mid")
    out = tmp_path / "out"
    arguments = [str(folder), "--estimates", str(estimates), "-o", str(out), "--pictures"]
    assert evaluate.main("jax_mt3", None, arguments) == 0
    assert {path.name for path in out.glob("*.png")} == {"piano__one.png", "drums__two.png"}
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert summary["piano"]["onset"]["mean"] == 1
    assert summary["drums"]["drum_onset"]["mean"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("line", ["0.1\t0.2\t60\t0", "0.1\t0.2\t60\t0\tmaybe", "0.1\tx\t60\t0\t1"])
def test_a_line_that_is_no_note_is_said(line, tmp_path):
    path = tmp_path / "bad.tsv"
    path.write_text(f"onset\toffset\tpitch\tprogram\tis_drum\n0\t1\t60\t0\t0\n{line}\n")
    with pytest.raises(ValueError, match=r"bad\.tsv, line 3"):
        datasets.read_tsv(path)


def test_a_folder_without_pairs_is_said(tmp_path, capsys):
    assert evaluate.main("torch_mt3", load, [str(tmp_path)]) == 2
    assert "no recording here has its notes" in capsys.readouterr().err


def test_a_checkpoint_that_changed_under_its_name_is_measured_again(folder, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    (path / "array").mkdir(parents=True)
    (path / "array" / "0.0").write_bytes(b"first")
    # the file that makes the folder a checkpoint
    (path / "checkpoint").touch()

    def load_named(**options):
        oracle = Oracle()
        oracle.checkpoint = NamedCheckpoint(str(path), "checkpoint")
        return oracle

    measured = []
    measure = evaluation.measure
    monkeypatch.setattr(evaluate, "measure", lambda pair, *rest: measured.append(pair.name) or measure(pair, *rest))
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--checkpoint"]
    assert evaluate.main("torch_mt3", load_named, [*arguments, str(path)]) == 0
    assert len(measured) == 2
    # the same content, called by another name
    assert evaluate.main("torch_mt3", load_named, [*arguments, "another"]) == 0
    assert len(measured) == 2
    (path / "array" / "0.0").write_bytes(b"later")
    assert evaluate.main("torch_mt3", load_named, [*arguments, str(path)]) == 0
    assert len(measured) == 4
    result = {evaluation.fingerprint(load_named())}
    (path / "array" / "0.0").rename(path / "array" / "0.1")
    assert evaluation.fingerprint(load_named()) not in result


def test_results_of_one_framework_are_not_those_of_another(folder, tmp_path):
    asked = []

    def load_of(program):
        class Named(Oracle):
            def transcribe(self, path):
                asked.append(program)
                return super().transcribe(path)

        return lambda **options: Named()

    (folder / "drums__two.tsv").unlink()
    for program in ("torch_mt3", "torch_mt3", "jax_mt3", "onnx_mt3", "onnx_mt3"):
        assert evaluate.main(program, load_of(program), [str(folder), "-o", str(tmp_path / "out")]) == 0
    assert asked == ["torch_mt3", "jax_mt3", "onnx_mt3"]


def test_the_recording_so_far_is_part_of_what_is_not_measured_again_where_it_counts(folder, tmp_path):
    """Not with t5x's search, which leaves it out itself."""
    asked = []

    class Counted(Oracle):
        def __init__(self, search, instrument_prior):
            self.chosen = search, instrument_prior

        def transcribe(self, path):
            asked.append(self.chosen)
            return super().transcribe(path)

    def load_counted(search, instrument_prior, **others):
        return Counted(search, instrument_prior)

    (folder / "drums__two.tsv").unlink()
    for chosen in ([], ["--search", "t5x"]):
        for more in ([], [], ["--no-instrument-prior"], ["--no-instrument-prior"]):
            arguments = [str(folder), "-o", str(tmp_path / "out"), *chosen, *more]
            assert evaluate.main("torch_mt3", load_counted, arguments) == 0
    assert asked == [("greedy", True), ("greedy", False), ("t5x", False)]


STAND_IN = """#!{python}
import shutil, sys
output, audio = sys.argv[1:]
if "piano" in audio:
    shutil.copy({midi!r}, output + "/piano__one_basic_pitch.mid")
else:
    print("first", file=sys.stderr)
    sys.exit("no " + output + "/good.mid")
"""


def test_basic_pitch_is_run_by_its_command(folder, tmp_path, capsys):
    midi.write_midi(PIANO[:1], tmp_path / "found.mid")
    content = (tmp_path / "found.mid").read_bytes()
    # a wrong number of tracks, which is repaired and reported
    (tmp_path / "found.mid").write_bytes(content[:11] + b"\x09" + content[12:])
    command = tmp_path / "basic-pitch"
    command.write_text(STAND_IN.format(python=sys.executable, midi=str(tmp_path / "found.mid")))
    command.chmod(0o755)
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--baseline", "basic-pitch", "--baseline-command"]
    assert evaluate.main("jax_mt3", None, [*arguments, str(command)]) == 1
    err = capsys.readouterr().err
    assert "drums__two.flac: basic-pitch failed: no good.mid" in err
    assert "piano__one.flac, as basic-pitch hears it: " in err
    [row] = json.loads((tmp_path / "out" / "results.json").read_text())["files"]
    assert (row["name"], row["estimates"], row["onset_recall"]) == ("piano__one", 1, pytest.approx(1 / 3))
    assert evaluate.main("jax_mt3", None, [*arguments, str(tmp_path / "nowhere")]) == 2
    assert "there is no command" in capsys.readouterr().err


def test_a_published_data_set_is_measured_on_its_test_split(tmp_path):
    lines = ["split,midi_filename,audio_filename"]
    for split in ("train", "test"):
        soundfile.write(tmp_path / f"{split}_piano.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 48000), 16000)
        midi.write_midi(PIANO, tmp_path / f"{split}_piano.midi")
        lines.append(f"{split},{split}_piano.midi,{split}_piano.wav")
    (tmp_path / "maestro-v3.0.0.csv").write_text("\n".join(lines) + "\n")
    for more, expected in (([], "test_piano"), (["--split", "train"], "train_piano")):
        out = tmp_path / expected
        assert evaluate.main("torch_mt3", load, [str(tmp_path), "-o", str(out), *more]) == 0
        results = json.loads((out / "results.json").read_text())
        assert [row["name"] for row in results["files"]] == [expected]
        assert results["summary"]["maestro"]["program_full"]["files"] == 1


def test_every_measure_that_is_promised_is_there_with_its_interval(folder, tmp_path):
    out = tmp_path / "out"
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    promised = ["onset", "onset_offset", "onset_offset_velocity", "frame", "drum_onset", "drums", "onset_class"]
    promised += ["program_flat", "program_midi_class", "program_full"]
    for name in promised:
        entry = results["summary"]["all"][name]
        assert entry["low"] <= entry["mean"] <= entry["high"]
        assert entry["files"] == (2 if name.startswith(("program", "onset_class")) else 1)
        assert all({name, f"{name}_precision", f"{name}_recall"} <= row.keys() for row in results["files"])


def test_the_channel_and_the_gain_asked_for_are_those_that_are_heard(folder, tmp_path, capsys):
    heard = []

    class Listener(Oracle):
        def transcribe(self, path, **reading):
            heard.append(reading)
            return super().transcribe(path)

    def listener(**options):
        return Listener()

    arguments = [str(folder), "-o", str(tmp_path / "out")]
    assert evaluate.main("torch_mt3", listener, arguments) == 0
    assert evaluate.main("torch_mt3", listener, [*arguments, "--channel", "left", "--gain", "auto", "--pictures"]) == 0
    assert heard == [{}] * 2 + [{"channel": "left", "gain": "auto"}] * 2
    # rows of another channel are measured again, those of this one are not
    assert evaluate.main("torch_mt3", listener, [*arguments, "--channel", "left", "--gain", "auto"]) == 0
    assert evaluate.main("torch_mt3", listener, [*arguments, "--gain", "12"]) == 0
    assert heard[4:] == [{"gain": 12.0}] * 2
    with pytest.raises(SystemExit):
        evaluate.main("torch_mt3", None, [*arguments, "--channel", "left", "--estimates", str(tmp_path)])
    assert "--channel says how a checkpoint hears the recordings" in capsys.readouterr().err


# --- estimates and references of other programs


def pedalled(path):
    """A MIDI file of two notes under a pedal from 0 s to 2 s, which mido wrote."""
    file = mido.MidiFile(ticks_per_beat=500)
    events = [mido.Message("control_change", control=64, value=127, time=0)]
    for pitch in (60, 64):
        events.append(mido.Message("note_on", note=pitch, velocity=80, time=300))
        events.append(mido.Message("note_off", note=pitch, time=100))
    events.append(mido.Message("control_change", control=64, value=0, time=1200))
    file.tracks.append(mido.MidiTrack(events))
    file.save(path)


@pytest.fixture
def pedal_folders(tmp_path):
    for name in ("ref", "est"):
        (tmp_path / name).mkdir()
        pedalled(tmp_path / name / "song.mid")
    soundfile.write(tmp_path / "ref" / "song.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 48000), 16000)
    return tmp_path / "ref", tmp_path / "est"


def results_of(out):
    return json.loads((out / "results.json").read_text())["files"]


@pytest.mark.parametrize("suffix", [".mid", ".midi", ".MID", ".rmi"])
def test_the_pedal_counts_on_both_sides(pedal_folders, tmp_path, suffix):
    references, estimates = pedal_folders
    (estimates / "song.mid").rename(estimates / f"song{suffix}")
    arguments = [str(references), "--estimates", str(estimates), "-o", str(tmp_path / "out")]
    assert evaluate.main("torch_mt3", None, arguments) == 0
    [row] = results_of(tmp_path / "out")
    for name in ("onset", "onset_offset", "onset_offset_velocity", "frame", "program_full"):
        assert row[name] == 1, name


@pytest.mark.parametrize(("program", "right"), [(100, 1), (101, 1), (96, 0)])
def test_singing_of_a_table_is_a_voice_of_general_midi(program, right, folder, tmp_path):
    """YourMT3+'s data sets have singing as 100 and choirs as 101, which are synthetic effects in General MIDI."""
    (folder / "drums__two.tsv").write_text(HEADER + f"0.5\t1.5\t60\t{program}\t0\n")
    (tmp_path / "estimates").mkdir()
    midi.write_midi([Note(0.5, 1.5, 60, 100, 53)], tmp_path / "estimates" / "drums__two.mid")
    (folder / "piano__one.mid").unlink()
    (folder / "piano__one.flac").unlink()
    arguments = [str(folder), "--estimates", str(tmp_path / "estimates"), "-o", str(tmp_path / "out")]
    assert evaluate.main("torch_mt3", None, arguments) == 0
    [row] = results_of(tmp_path / "out")
    assert (row["onset"], row["onset_class"]) == (1, right)


def test_missing_estimates_are_named(pedal_folders, tmp_path, capsys):
    references, estimates = pedal_folders
    (estimates / "song.mid").rename(estimates / "other.mid")
    assert evaluate.main("torch_mt3", None, [str(references), "--estimates", str(estimates)]) == 1
    words = f"song: {estimates}: no estimates for song: there is no song.mid (or .midi, .tsv)"
    assert words in capsys.readouterr().err


def test_estimates_are_those_of_the_whole_name(tmp_path):
    for name in ("take.mid", "song.mid"):
        midi.write_midi(PIANO, tmp_path / name)
    with pytest.raises(ValueError, match=r"no estimates for take\.1: there is no take\.1\.mid"):
        evaluation.find_estimates(tmp_path, "take.1")
    # of two recordings of one stem, which have their suffixes in their names
    assert evaluation.find_estimates(tmp_path, "song.flac") == tmp_path / "song.mid"
    midi.write_midi(PIANO, tmp_path / "song.flac.mid")
    assert evaluation.find_estimates(tmp_path, "song.flac") == tmp_path / "song.flac.mid"


def test_what_is_repaired_in_a_reference_is_a_note_on_stderr(folder, tmp_path, capsys):
    content = bytearray((folder / "piano__one.mid").read_bytes())
    content[11] += 1
    (folder / "piano__one.mid").write_bytes(content)
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(tmp_path / "out"), "--pictures"]) == 0
    assert capsys.readouterr().err.count("piano__one.mid: its header states 3 tracks, 2 are there\n") == 1


def test_the_estimates_are_there_to_be_listened_to(folder, tmp_path):
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(tmp_path / "out")]) == 0
    written = midi.read_midi(tmp_path / "out" / "estimates" / "piano__one.mid")
    assert [note.pitch for note in written] == [60, 64]
    again = [str(folder), "--estimates", str(tmp_path / "out" / "estimates"), "-o", str(tmp_path / "again")]
    assert evaluate.main("torch_mt3", None, again) == 0
    for first, second in zip(results_of(tmp_path / "out"), results_of(tmp_path / "again")):
        assert first["onset_offset"] == second["onset_offset"]
        assert first["drums"] == second["drums"]


def test_mir_eval_is_asked_for_before_the_network_is_loaded(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mir_eval", None)
    assert evaluate.main("torch_mt3", None, [str(folder)]) == 2
    assert 'measuring needs mir_eval: pip install "mt3-twins[evaluate]"' in capsys.readouterr().err


HEADER = "onset\toffset\tpitch\tprogram\tis_drum\n"


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (HEADER + "0\t1e9\t60\t0\t0\n", 2, "no later than 604800 s"),
        (HEADER + "0\tinf\t60\t0\t0\n", 2, "no later than 604800 s"),
        (HEADER + "0\tnan\t60\t0\t0\n", 2, "no later than 604800 s"),
        (HEADER + "-1\t2\t60\t0\t0\n", 2, "begin at 0 s or later"),
        (HEADER + "0\t1\t60\t0\t0\n2\t1\t60\t0\t0\n", 3, "end no earlier than it begins"),
        (HEADER + "0\t1\t600\t0\t0\n", 2, "pitch and program must be in 0 to 127"),
        (HEADER + "0\t1\t60\t-1\t0\n", 2, "pitch and program must be in 0 to 127"),
        (HEADER + "0\t1\tinf\t0\t0\n", 2, "not onset, offset, pitch, program, is_drum"),
        ("hello", 1, "not onset, offset, pitch, program, is_drum"),
        ("0\t1\t60\n", 1, "not onset, offset, pitch, program, is_drum"),
    ],
)
def test_a_bad_reference_is_named_with_its_line_and_the_others_go_on(folder, tmp_path, capsys, content, line, words):
    (folder / "drums__two.tsv").write_text(content)
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(tmp_path / "out")]) == 1
    [message] = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: drums__two: ")]
    assert f"drums__two.tsv, line {line}: " in message
    assert words in message
    assert [row["name"] for row in results_of(tmp_path / "out")] == ["piano__one"]


@pytest.mark.parametrize("content", ["", HEADER])
def test_a_recording_without_reference_notes_is_in_no_mean(folder, tmp_path, content):
    (folder / "drums__two.tsv").write_text(content)
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(tmp_path / "out")]) == 0
    empty, piano = results_of(tmp_path / "out")
    assert (empty["name"], empty["references"]) == ("drums__two", 0)
    measured = {name for name, value in piano.items() if isinstance(value, float)}
    assert {"onset", "onset_class", "program_full"} <= measured
    assert {empty[name] for name in measured} == {None}
    summary = json.loads((tmp_path / "out" / "results.json").read_text())["summary"]
    assert {summary["all"][name]["files"] for name in measured} == {1}


def test_a_table_in_utf_16_is_refused_and_a_byte_order_mark_is_no_matter(tmp_path):
    (tmp_path / "a.tsv").write_text(HEADER + "0\t1\t60\t0\t0\n", encoding="utf-8-sig")
    assert datasets.read_tsv(tmp_path / "a.tsv") == [Note(0, 1, 60, 100)]
    (tmp_path / "b.tsv").write_text(HEADER, encoding="utf-16")
    with pytest.raises(ValueError, match=r"b\.tsv is no table of notes: it is not text in UTF-8"):
        datasets.read_tsv(tmp_path / "b.tsv")


def test_a_table_of_too_many_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_LINES", 2)
    (tmp_path / "a.tsv").write_text("\n" * 3)
    with pytest.raises(ValueError, match=r"a\.tsv has 3 lines; a table of notes has 2 at most"):
        datasets.read_tsv(tmp_path / "a.tsv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ([Note(0, 700, 60, 100)], r"piano__one\.mid: a note ends at 700 s, and piano__one\.flac lasts 3\.0 s"),
        (
            [Note(i / 1000, i / 1000 + 1, i % 128, 100, i % 100) for i in range(13_100)],
            r"has 13100 notes, and piano__one",
        ),
    ],
)
def test_notes_of_another_recording_are_refused(folder, capsys, notes, words):
    midi.write_midi(notes, folder / "piano__one.mid")
    assert evaluate.main("torch_mt3", load, [str(folder)]) == 1
    assert re.search(words, capsys.readouterr().err)


def test_velocities_are_measured_where_both_sides_have_them(folder, tmp_path):
    lines = [f"{note.onset}\t{note.offset}\t{note.pitch}\t0\t0\n" for note in PIANO]
    (folder / "piano__two.tsv").write_text("".join(lines))
    soundfile.write(folder / "piano__two.flac", np.zeros(48000), 16000)
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(tmp_path / "out")]) == 0
    rows = {row["name"]: row for row in results_of(tmp_path / "out")}
    assert rows["piano__one"]["onset_offset_velocity"] == rows["piano__two"]["onset_offset"] == pytest.approx(0.8)
    assert rows["piano__two"]["onset_offset_velocity"] is None
    assert rows["piano__two"]["onset_offset_velocity_recall"] is None


def test_a_network_that_says_no_velocities_has_no_measure_of_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Oracle, "tells_velocities", False)
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(tmp_path / "out")]) == 0
    row = next(row for row in results_of(tmp_path / "out") if row["name"] == "piano__one")
    assert row["onset_offset_velocity"] is None
    assert row["onset_offset"] == pytest.approx(0.8)


def test_recordings_of_one_stem_keep_their_suffixes(folder, tmp_path):
    soundfile.write(folder / "piano__one.wav", np.zeros(48000), 16000)
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(tmp_path / "out")]) == 0
    assert [row["name"] for row in results_of(tmp_path / "out")] == ["drums__two", "piano__one.flac", "piano__one.wav"]


def test_recordings_of_one_name_in_several_data_sets_are_told_apart(folder, tmp_path, capsys):
    sets = [tmp_path / "one" / "songs", tmp_path / "two" / "songs", tmp_path / "others", tmp_path / "pianos"]
    for path in sets[:3]:
        shutil.copytree(folder, path)
    # the second data set knows other notes, and its estimates are others
    midi.write_midi(PIANO[:1], sets[1] / "piano__one.mid")
    sets[3].mkdir()
    for name in ("piano__one.flac", "piano__one.mid"):
        shutil.copy(folder / name, sets[3] / name.replace("one", "three"))
    out, names = tmp_path / "out", ["one/songs", "two/songs", "tmp/others"]
    names[2] = f"{tmp_path.name}/others"
    assert evaluate.main("torch_mt3", load, [*map(str, sets), "-o", str(out), "--pictures"]) == 0
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())["files"]}
    expected = [f"{name}/{song}" for name in names for song in ("drums__two", "piano__one")] + ["piano__three"]
    assert list(rows) == expected
    assert {row["group"] for row in rows.values()} == {"drums", "piano"}
    assert rows["two/songs/piano__one"]["onset_precision"] == 1 / 2
    for name in expected:
        assert (out / "estimates" / f"{name}.mid").exists()
        assert (out / f"{name}.png").exists()
    # estimates of a folder are those of their own data set, too
    midi.write_midi([], out / "estimates" / "one" / "songs" / "piano__one.mid")
    other = tmp_path / "other"
    arguments = [*map(str, sets[:2]), "--estimates", str(out / "estimates" / "one"), "-o", str(other)]
    assert evaluate.main("torch_mt3", load, arguments) == 1
    assert "no estimates for two/songs/piano__one" in capsys.readouterr().err
    arguments = [*map(str, sets), "--estimates", str(out / "estimates"), "-o", str(tmp_path / "again")]
    assert evaluate.main("torch_mt3", load, arguments) == 0
    again = {row["name"]: row for row in json.loads((tmp_path / "again" / "results.json").read_text())["files"]}
    assert again["one/songs/piano__one"]["onset"] == 0
    assert again["two/songs/piano__one"]["onset"] == rows["two/songs/piano__one"]["onset"] > 0
    assert evaluate.main("torch_mt3", load, [str(folder), f"{folder}/../data"]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_one_file_has_no_interval_in_the_table(folder, capsys):
    (folder / "drums__two.tsv").unlink()
    assert evaluate.main("torch_mt3", load, [str(folder)]) == 0
    out = capsys.readouterr().out
    assert "0.800" in out
    assert "(0.80" not in out


def test_results_that_something_else_wrote_are_refused(folder, tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"files": [1]}')
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(tmp_path)]) == 2
    assert "results.json is not as this program wrote it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--estimates E --checkpoint C", "argument --checkpoint: not allowed with argument --estimates"),
        ("--estimates E --baseline basic-pitch", "argument --baseline: not allowed with argument --estimates"),
        ("--checkpoint C --baseline basic-pitch", "argument --baseline: not allowed with argument --checkpoint"),
        ("--estimates E --search greedy", "--search says how a checkpoint hears the recordings, and --estimates takes"),
        ("--estimates E --device cuda:7", "--device says how"),
        ("--estimates E --no-activations", "--no-activations says how"),
        ("--baseline basic-pitch --no-instrument-prior", "--no-instrument-prior says how"),
        ("--baseline basic-pitch --gain 3", "--gain says how a checkpoint hears the recordings, and --baseline takes"),
        ("--estimates E --framework jax", "--framework computes a checkpoint, and --estimates takes none"),
        ("--baseline=basic-pitch --framework=onnx", "--framework computes a checkpoint, and --baseline takes none"),
        ("--baseline-command /bin/true", "--baseline-command is the command of --baseline basic-pitch: give both"),
        ("--force", "--force replaces files of --output"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words, folder, capsys):
    with contextlib.suppress(SystemExit):
        assert mt3.main(["evaluate", str(folder), *options.split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


# --- what an earlier run left in the folder of results


class Interrupted(Oracle):
    """Is interrupted at its last recordings, as by Ctrl-C, or transcribes them."""

    def __init__(self, at=None):
        self.at = at
        self.asked = []

    def transcribe(self, path):
        self.asked.append(path.stem)
        if path.stem == self.at:
            raise KeyboardInterrupt
        return super().transcribe(path)


def test_an_interrupted_second_run_loses_no_results(folder, tmp_path):
    arguments = [str(folder), "-o", str(tmp_path / "out")]
    assert evaluate.main("torch_mt3", load, arguments) == 0
    before = results_of(tmp_path / "out")
    # the first recording is to be measured again, in which the run is interrupted; or it is, and the next one is
    for missing, at in (["drums__two"], "drums__two"), (["drums__two", "piano__one"], "piano__one"):
        for name in missing:
            (tmp_path / "out" / "estimates" / f"{name}.mid").unlink(missing_ok=True)
        assert evaluate.main("torch_mt3", lambda at=at, **options: Interrupted(at), arguments) == 130
        assert results_of(tmp_path / "out") == before
        assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 3


def test_a_run_with_pictures_does_again_only_what_is_missing(folder, tmp_path):
    out = tmp_path / "out"
    arguments = [str(folder), "-o", str(out)]

    def asked_for(*more):
        oracle = Interrupted()
        assert evaluate.main("torch_mt3", lambda **options: oracle, [*arguments, *more]) == 0
        return oracle.asked

    assert asked_for() == ["drums__two", "piano__one"]
    assert asked_for("--pictures") == ["drums__two", "piano__one"]
    assert asked_for("--pictures") == asked_for() == []
    (out / "piano__one.png").unlink()
    assert asked_for() == []
    assert asked_for("--pictures") == ["piano__one"]
    (out / "estimates" / "drums__two.mid").unlink()
    assert asked_for() == ["drums__two"]
    # its picture is of the notes before
    assert asked_for("--pictures") == ["drums__two"]


def test_files_that_were_changed_are_not_replaced(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(folder), "-o", str(out), "--pictures"]
    assert evaluate.main("torch_mt3", load, arguments) == 0
    for number, (name, status, words) in enumerate(
        (
            ("estimates/piano__one.mid", 1, "piano__one.mid is in the way: this program did not write it, or it was "),
            ("piano__one.png", 1, "piano__one.png is in the way: "),
            ("results.csv", 2, "results.csv is not as this program wrote it: "),
            ("results.json", 2, "results.json is not as this program wrote it: "),
        )
    ):
        path = out / name
        content = path.read_bytes()
        changed = content.replace(b"drums", b"dreams") + b"\n"
        path.write_bytes(changed)
        # other notes: the recording is measured again
        midi.write_midi(PIANO[: 1 + number % 2], folder / "piano__one.mid")
        assert evaluate.main("torch_mt3", load, arguments) == status
        assert words in capsys.readouterr().err
        assert path.read_bytes() == changed
        assert evaluate.main("torch_mt3", load, [*arguments, "--force"]) == 0
        assert path.read_bytes() != changed
        assert evaluate.main("torch_mt3", load, arguments) == 0


def test_results_of_other_recordings_are_not_lost(folder, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for suffix in (".flac", ".mid"):
        shutil.copy(folder / f"piano__one{suffix}", other / f"piano__three{suffix}")
    out = tmp_path / "out"
    assert evaluate.main("torch_mt3", load, [str(folder), "-o", str(out)]) == 0
    assert evaluate.main("torch_mt3", load, [str(other), "-o", str(out)]) == 2
    assert "has results of 2 recordings that this run leaves out, such as drums__two: " in capsys.readouterr().err
    assert evaluate.main("torch_mt3", load, [str(folder), str(other), "-o", str(out)]) == 0
    assert [row["name"] for row in results_of(out)] == ["drums__two", "piano__one", "piano__three"]
    assert evaluate.main("torch_mt3", load, [str(other), "-o", str(out), "--force"]) == 0
    assert [row["name"] for row in results_of(out)] == ["piano__three"]


def test_a_folder_of_results_that_cannot_be_made_is_said_before_the_network_is_loaded(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert evaluate.main("torch_mt3", None, [str(folder), "-o", str(tmp_path / "file" / "sub")]) == 2
    assert "a file has this name" in capsys.readouterr().err


def test_a_list_that_names_what_lies_outside_of_its_folder_is_refused(folder, tmp_path, capsys):
    """Results go to files of the recordings' names below -o."""
    for name in ("../outside/s.wav", str(tmp_path / "outside" / "s.wav")):
        published = tmp_path / "maestro"
        published.mkdir(exist_ok=True)
        table = f"split,midi_filename,audio_filename\ntest,one.mid,{name}\n"
        (published / "maestro-v3.0.0.csv").write_text(table)
        (tmp_path / "outside").mkdir(exist_ok=True)
        shutil.copy(folder / "piano__one.flac", tmp_path / "outside" / "s.wav")
        shutil.copy(folder / "piano__one.mid", published / "one.mid")
        assert evaluate.main("torch_mt3", load, [str(published), "-o", str(tmp_path / "out")]) == 2
        assert "lies outside of it, where its results would go too" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "outside").iterdir()] == ["s.wav"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_one_recording_exhausts_does_not_stop_the_others(error, folder, tmp_path, capsys):
    class Exhausted(Oracle):
        def transcribe(self, path):
            if "drums" in path.name:
                raise error
            return super().transcribe(path)

    assert evaluate.main("torch_mt3", lambda **options: Exhausted(), [str(folder), "-o", str(tmp_path / "out")]) == 1
    assert "error: drums__two: not enough memory; close other programs" in capsys.readouterr().err
    assert [row["name"] for row in results_of(tmp_path / "out")] == ["piano__one"]
