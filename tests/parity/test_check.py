"""`python -m parity`: the verdict is the exit status, and bad input is one sentence."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parity import check
from parity.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "tests" / "golden" / "model" / "checkpoints"
AUDIO = ROOT / "audio" / "example.flac"


def test_the_twins_are_the_same(tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main([str(CHECKPOINTS / "t5x_zarr"), "--segments", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("SAME")
    for line in ("weights, bit for bit", "decoder/layers_2", "logits", "decode path", "tokens: segment 0", "notes"):
        assert line in printed
    report = json.loads(out.read_text())
    assert (report["verdict"], report["exit_code"], report["first_difference"]) == ("same", 0, None)
    assert report["coverage"]["weights"] == "195 of 195 compared, 0 skipped"
    assert {row["section"] for row in report["rows"]} >= {"weights", "taps", "logits", "decode path", "tokens", "notes"}


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
    assert check.devices("cpu") == ("cpu", "cpu")
    assert check.devices("gpu,cpu") == ("gpu", "cpu")


def test_answers_begun_ahead_are_for_their_own_question():
    class Slow:
        framework = "slow"

        def __init__(self):
            self.asked = []

        def generate(self, segments, limit=None):
            self.asked.append((list(segments), limit))
            return [len(segments)]

    slow, segments = Slow(), [1, 2, 3]
    side = check.Ahead(slow)
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


def test_traces_of_two_processes(tmp_path):
    def parity(*argv):
        command = [sys.executable, "-m", "parity", *[str(arg) for arg in argv]]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    golden, a, b = CHECKPOINTS / "t5x_single_file", tmp_path / "a", tmp_path / "b"
    # the other way round for once: PyTorch is the reference
    recorded = parity("record", golden, "--framework", "torch", "--audio", AUDIO, "-o", a)
    assert recorded.returncode == 0, recorded.stderr
    recorded = parity("record", CHECKPOINTS / "t5x_zarr", "--framework", "jax", "--on", a, "-o", b)
    assert recorded.returncode == 0, recorded.stderr
    compared = parity("compare", a, b)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    # a candidate that was not fed the reference's inputs leaves local errors unknown, which is no verdict of "same"
    assert parity("compare", b, a).returncode == 1
    assert parity("record", CHECKPOINTS / "t5x_bfloat16", "--framework", "torch", "--on", a, "-o", b).returncode == 0
    compared = parity("compare", a, b)
    assert compared.returncode == 1
    assert compared.stdout.startswith("DIFFERENT")
