"""`python -m parity`: the verdict is the exit status, and bad input is one sentence."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest

from parity import check
from parity.__main__ import COMMANDS, main
from parity.commands import check as command
from parity.commands import options
from parity.compare.results import Report, Row
from parity.diagnosis import diagnose
from parity.diagnosis.finding import Finding
from parity.sides import prefetch
from parity.trace.trace import Trace

ROOT = Path(__file__).parents[3]
CHECKPOINTS = ROOT / "tests" / "golden" / "model" / "checkpoints"
AUDIO = ROOT / "audio" / "example.flac"


@pytest.mark.compile
def test_the_twins_are_the_same(tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main([str(CHECKPOINTS / "t5x_zarr"), "--segments", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("SAME")
    for line in ("weights, bit for bit", "decoder/layers_2", "logits", "decode path", "tokens: segment 0", "notes"):
        assert line in printed
    report = json.loads(out.read_text())
    assert (report["verdict"], report["exit_code"], report["first_difference"]) == ("same", 0, None)
    # 65 arrays, though each is held against the other side and, on both, against the checkpoint
    assert sum(row["section"] == "weights" for row in report["rows"]) == 3 * 65
    assert report["coverage"]["weights"] == "65 of 65 compared, 0 skipped"
    assert report["causes"] == []
    assert "python -m parity blindspots" in printed
    assert report["coverage"]["onnx"] == "168 of 168 compared, 0 skipped"
    assert {row["section"] for row in report["rows"]} >= {
        "onnx tokens",
        "onnx notes",
        "weights",
        "taps",
        "logits",
        "decode path",
        "tokens",
        "notes",
    }


@pytest.mark.compile
def test_every_form_of_the_report_names_the_cause(tmp_path, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    gelu = torch.nn.functional.gelu
    # what a port does that leaves out approximate="tanh"
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, approximate="none": gelu(x))
    files = {name: tmp_path / f"report.{name}" for name in ("json", "html", "junit", "markdown")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    golden = str(CHECKPOINTS / "t5x_zarr")
    assert main([golden, "--segments", "1", "--precisions", "float64,float32", "--positions", "8", *options]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    message = "candidate (torch): encoder/layers_0/mlp and 4 more: exact GELU (erf)"
    assert f"cause: {message}" in printed
    assert (
        printed.index("first difference: encoder/layers_0/mlp")
        < printed.index("cause: ")
        < printed.index("bit for bit")
    )
    report = json.loads(files["json"].read_text())
    assert report["schema_version"] == 1
    assert len(report["causes"]) == 1
    assert report["causes"][0].startswith(message)
    assert "restores parity" in report["causes"][0]
    assert f"<b>Cause</b>: {message}" in files["html"].read_text()
    assert f"- cause: {message}" in files["markdown"].read_text()
    cases = [case for case in ElementTree.parse(files["junit"]).iter("testcase") if (case.findtext("failure") or "")]
    assert [case.get("name") for case in cases] == ["encoder/layers_0/mlp float64"]
    assert message in cases[0].findtext("failure")


def test_what_lies_between_modules_has_no_module_to_name():
    class Side:
        framework, config = "torch", None

        def arrays(self):
            return {}

    result = Report(rows=[Row("taps", "a", "same"), Row("decode path", "cached steps", "different")])
    [sentence] = check.name_causes(result, None, Side(), Side())
    assert sentence.endswith("between modules, in decode path")
    for verdict in ("different", "skipped"):
        result = Report(rows=[Row("taps", "a", "same"), Row("original", "a", verdict)])
        [sentence] = check.name_causes(result, None, Side(), Side())
        assert "only the original (the published MT3 that --oracle names) differs, or could not be" in sentence


def test_a_difference_between_modules_has_no_counterexample_and_says_so(tmp_path, capsys, monkeypatch):
    result = Report(rows=[Row("taps", "a", "same"), Row("decode path", "cached steps", "different", "float64")])
    monkeypatch.setattr(command, "check", lambda *_, **__: (result, None))
    assert main([str(CHECKPOINTS / "t5x_zarr"), "--counterexample", str(tmp_path / "folder")]) == 1
    assert "counter-example: none: the difference is in decode path and not in one module" in capsys.readouterr().out
    assert not (tmp_path / "folder").exists()


def test_a_wrong_reference_is_told_as_such(monkeypatch):
    calls = []

    def name_faults(trace, original, config, arrays):
        calls.append((trace.framework, sorted(trace.passes)))
        return [Finding("a", "x", "wrong", 1.0, 0.0)] if trace.framework == "jax" else []

    monkeypatch.setattr(diagnose, "name_faults", name_faults)

    def side(framework):
        return types.SimpleNamespace(framework=framework, config=None, arrays=dict)

    def trace(framework):
        return Trace(framework, {}, {}, {}, {}, {"float64": None, "tf32": None})

    inputs = (Report(), (trace("jax"), trace("torch")), side("jax"), side("torch"))
    [sentence] = check.name_causes(*inputs)
    assert sentence.startswith("reference (jax): a: wrong (restores parity")
    assert calls == [("torch", ["float64", "tf32"]), ("jax", ["float64", "tf32"])]
    monkeypatch.setattr(diagnose, "name_faults", lambda *_: [])
    assert check.name_causes(*inputs) == [
        "the diagnosis found no cause: alone, every module of both sides does what MT3's does"
    ]
    monkeypatch.setattr(diagnose, "name_faults", lambda *_: {}["gone"])
    assert check.name_causes(*inputs) == ["the diagnosis could not examine the candidate (KeyError: 'gone')"]


def refused(capsys, *argv):
    status = main([str(arg) for arg in argv])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    return status, error


def test_bad_input_is_one_sentence(tmp_path, capsys):
    golden = CHECKPOINTS / "t5x_zarr"
    status, error = refused(capsys, tmp_path / "nothing")
    assert status == 3
    assert "nothing" in error
    status, error = refused(capsys, golden, "--audio", tmp_path / "no.wav")
    assert status == 3
    assert "no.wav" in error
    damaged = tmp_path / "damaged"
    shutil.copytree(golden, damaged)
    shutil.rmtree(next(damaged.glob("target.*wi_0*")))
    status, error = refused(capsys, damaged)
    assert status == 3
    assert "wi_0" in error
    (damaged / "checkpoint").write_bytes(b"\xff\x00")
    assert refused(capsys, damaged)[0] == 3
    for argv in (
        ("--segments", "0"),
        ("--sides", "jax"),
        ("--sides", "jax,tensorflow"),
        ("--device", "abacus"),
        ("--device", "gpu,gpu,cpu"),
    ):
        status, error = refused(capsys, golden, *argv)
        assert status == 3, argv
        assert argv[1].split(",")[-1] in error or argv[0] in error


def test_wrong_arguments_are_bad_input_and_not_a_refusal(capsys):
    assert main(["compare", "one"]) == 3
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("sides", ["jax,torch", "torch,jax"])
@pytest.mark.parametrize("devices", ["gpu", "cpu,gpu", "gpu,cpu", "tpu", "tpu,cpu", "cpu,tpu"])
def test_a_device_that_is_not_there(capsys, devices, sides):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    if torch.cuda.is_available() or jax.default_backend() != "cpu":
        pytest.skip("there is one")
    status, error = refused(capsys, CHECKPOINTS / "t5x_zarr", "--device", devices, "--sides", sides)
    assert status == 3
    place = 0 if devices.split(",")[0] != "cpu" else 1
    name = devices.split(",")[-1 if place else 0]
    wanted = {"jax": f"device {name}: JAX finds none here", "torch": f"device {name}: PyTorch"}
    assert wanted[sides.split(",")[place]] in error


def test_devices():
    assert options.devices("cpu") == ("cpu", "cpu")
    assert options.devices("gpu,cpu") == ("gpu", "cpu")


def test_answers_begun_ahead_are_for_their_own_question():
    class Slow:
        framework = "slow"

        def __init__(self):
            self.asked = []

        def generate(self, segments, limit=None):
            self.asked.append((list(segments), limit))
            return [len(segments)]

    slow, segments = Slow(), [1, 2, 3]
    side = prefetch.Prefetch(slow)
    side.begin("generate", segments)
    assert side.framework == "slow"
    # another list, though it is equal, and other arguments are asked for themselves
    assert side.generate(list(segments)) == [3]
    assert side.generate(segments, 5) == [3]
    assert side.generate(segments) == [3]
    assert len(slow.asked) == 3
    assert side.generate(segments) == [3]
    assert len(slow.asked) == 4
    side.begin("generate", None)
    with pytest.raises(TypeError):
        side.generate(None)


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in COMMANDS:
        assert name in printed


@pytest.mark.compile
@pytest.mark.process
def test_traces_of_two_processes(tmp_path):
    def parity(*argv):
        command = [sys.executable, "-m", "parity", *[str(arg) for arg in argv]]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def record(*argv):
        recorded = parity("record", *argv, "--precisions", "float64,float32")
        assert recorded.returncode == 0, recorded.stderr

    golden, a, b = CHECKPOINTS / "t5x_single_file", tmp_path / "a", tmp_path / "b"
    # the other way round for once: PyTorch is the reference
    record(golden, "--framework", "torch", "--audio", AUDIO, "-o", a)
    record(CHECKPOINTS / "t5x_zarr", "--framework", "jax", "--on", a, "-o", b)
    compared = parity("compare", a, b)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    # a candidate that was not fed the reference's inputs leaves local errors unknown
    unfed = parity("compare", b, a)
    assert unfed.returncode == 3
    assert f"{a} was recorded without --on {b}" in unfed.stderr
    record(CHECKPOINTS / "t5x_bfloat16", "--framework", "torch", "--on", a, "-o", b)
    compared = parity("compare", a, b)
    assert compared.returncode == 1
    assert compared.stdout.startswith("DIFFERENT")
