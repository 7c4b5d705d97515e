"""mt3 export: the file as other programs see it, and the notes that ONNX Runtime makes with it alone."""

import errno
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.cli import mt3
from mt3_common.config import Config
from mt3_common.io.plural import plural
from onnx_mt3 import builder, decode, export, graph
from onnx_mt3.network import NetworkBuilder
from parity.checkpoints import convert


@pytest.fixture(scope="module")
def written(talkative, tmp_path_factory):
    """The file that the command writes of a checkpoint, with the defaults."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert mt3.main(["export", str(talkative), "-o", str(path)]) == 0
    return path


def test_the_file_says_what_it_is(written, talkative):
    model = onnx.load(written)
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", builder.OPSET)}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert Config.from_dict(json.loads(properties["config"])) == read_checkpoint(talkative).config()
    assert properties["checkpoint"] == "talkative"
    assert len(properties["sha256"]) == 64
    weights = [tensor for tensor in model.graph.initializer if tensor.name.endswith("kernel")]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.BFLOAT16}


def test_the_file_alone_gives_the_tokens_of_the_checkpoint(written, talkative):
    """The bundled weights are in bfloat16, so that none is rounded."""
    checkpoint = read_checkpoint(talkative)
    config = checkpoint.config()
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    segments = list(np.random.default_rng(0).normal(-4, 2, (3, config.input_frames, 512)).astype(np.float32))
    rows = list(decode.generator(session, config, max_steps=60)(segments))
    model = graph.search_graph(checkpoint.arrays, config, stored="float32")
    expected = decode.generator(decode.session(model.SerializeToString()), config, max_steps=60)(segments)
    for row, ids in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row, ids)
    assert sum(map(len, rows)) > 20


def test_a_rounding_is_said_and_float64_rounds_nothing(tmp_path, capsys, golden_arrays, talkative):
    path = tmp_path / "golden.onnx"
    checkpoint = "tests/golden/model/checkpoints/t5x_zarr"
    rounded = sorted(name for name, array in golden_arrays.items() if export._is_rounded(array, "bfloat16"))
    assert rounded
    assert mt3.main(["export", checkpoint, "-o", str(path), "--model", "mt3"]) == 0
    assert (
        f"bfloat16 rounds the weights of {plural(len(rounded), 'array')}; --stored float32 keeps"
        in capsys.readouterr().err
    )
    options = ["--stored", "float64", "--computed", "float64", "--kind", "teacher", "--positions", "port"]
    assert mt3.main(["export", checkpoint, "-o", str(path), "--model", "mt3", "--force", *options]) == 0
    assert "rounds" not in capsys.readouterr().err
    outputs = [output.name for output in onnx.load(path).graph.output]
    assert "encoder/layers_0/mlp" in outputs
    assert outputs[-1] == "logits"


def weights_of(path) -> dict[str, np.ndarray]:
    """Return the weights in an ONNX file by the checkpoint's names."""
    tensors = onnx.load(path).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors if "/" in tensor.name}


@pytest.mark.parametrize(
    "layout",
    ["t5x_zarr", "t5x_single_file", "t5x_inline_scales", "t5x_orbax_ocdbt", "safetensors", "pth", "npz", "orbax"],
)
def test_every_layout_gives_the_same_file(layout, golden_arrays, tmp_path):
    folder = Path("tests/golden/model/checkpoints")
    source = folder / layout if layout.startswith("t5x") else converted(folder / "t5x_zarr", layout, tmp_path)
    options = ["--stored", "float32", "--kind", "teacher", "--model", "mt3"]
    assert mt3.main(["export", str(source), "-o", str(tmp_path / "x.onnx"), *options]) == 0
    weights = weights_of(tmp_path / "x.onnx")
    assert set(weights) == set(golden_arrays)
    for name, array in golden_arrays.items():
        np.testing.assert_array_equal(weights[name], array)


def converted(source: Path, to: str, folder: Path) -> Path:
    """Write a checkpoint in another layout and return its path."""
    target = folder / ("orbax" if to == "orbax" else f"weights.{to}")
    if to == "npz":
        np.savez(target, **read_checkpoint(source).arrays)
        (folder / "config.json").write_text(json.dumps(convert.read(source).config.to_dict()))
    else:
        convert.write(target, convert.read(source), to)
    return target


def test_of_several_sets_of_weights_one_is_named(tmp_path, golden_arrays, golden_config):
    path = tmp_path / "both.npz"
    sets = {"model": golden_arrays, "ema_model": {name: array / 2 for name, array in golden_arrays.items()}}
    np.savez(path, **{f"{name}/{key}": array for name, arrays in sets.items() for key, array in arrays.items()})
    output = tmp_path / "x.onnx"
    command = [
        "export",
        str(path),
        "-o",
        str(output),
        "--stored",
        "float32",
        "--model",
        "mt3",
        "--kind",
        "teacher",
        "--force",
    ]
    (tmp_path / "config.json").write_text(json.dumps(Config(network=golden_config).to_dict()))
    with pytest.warns(UserWarning, match="other weights were left alone: ema_model"):
        assert mt3.main(command) == 0
    assert np.array_equal(weights_of(output)["decoder/decoder_norm/scale"], golden_arrays["decoder/decoder_norm/scale"])
    for name, arrays in sets.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert mt3.main([*command, "--weights", name]) == 0
        weights = weights_of(output)
        assert all(np.array_equal(weights[key], array) for key, array in arrays.items())


def test_a_table_that_is_asked_for_is_written(talkative, tmp_path, monkeypatch):
    tables = []
    table = NetworkBuilder.table
    monkeypatch.setattr(
        NetworkBuilder, "table", lambda self, length: tables.append(self.network.position_table) or table(self, length)
    )
    assert mt3.main(["export", str(talkative), "-o", str(tmp_path / "x.onnx"), "--positions", "port"]) == 0
    assert set(tables) == {"port"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["broken.safetensors"], "broken.safetensors is damaged, truncated or no safetensors file"),
        (["empty"], "empty is no checkpoint: expected a file"),
        (["golden", "--model", "yptf-single"], "golden is no YourMT3+, which --model yptf-single would be"),
        (["golden", "--config", "none.json"], "--config none.json: there is no such file"),
        (["golden", "--weights", "ema"], "there are no weights called 'ema', only target"),
    ],
)
def test_an_unusable_checkpoint_or_setting_starts_nothing(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    assert mt3.main(["export", *arguments, "-o", "x.onnx"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_that_cannot_be_written_is_a_failure(tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(export.atomic, "write", full)
    assert mt3.main(["export", "golden", "-o", str(tmp_path / "x.onnx")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'x.onnx'}: No space left on device\n"


def test_an_unusable_checkpoint_makes_no_site(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mt3.site, "runtime_files", lambda archives: {})
    (tmp_path / "empty.npz").write_bytes(b"")
    for checkpoint in (tmp_path / "empty.npz", written):
        assert mt3.main(["site", str(tmp_path / "site"), "--checkpoint", str(checkpoint)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {checkpoint}")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("command", ["export", "transcribe", "evaluate", "train"])
def test_an_exported_network_is_no_checkpoint_of_any_command(command, written, tmp_path, capsys):
    """Whatever reads checkpoints: with the status that it has for those that are none."""
    for name in ("NAME.wav", "NAME.mid"):
        (tmp_path / name).write_bytes(b"")
    arguments = {
        "export": [str(written), "-o", str(tmp_path / "x.onnx")],
        "transcribe": ["audio/example.flac", "--checkpoint", str(written), "-o", str(tmp_path / "x.mid")],
        "evaluate": [str(tmp_path), "--checkpoint", str(written)],
        "train": [str(tmp_path / "run"), "--warm-start", str(written), "--data", str(tmp_path)],
    }
    assert mt3.main([command, *arguments[command]]) == 2
    assert capsys.readouterr().err == (
        f"error: {written} is a network exported as ONNX by mt3 export, which commands do not read: give the "
        "checkpoint that it was made from, called 'talkative'\n"
    )


def test_without_onnx_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    find = mt3.export.importlib.util.find_spec
    monkeypatch.setattr(mt3.export.importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    assert mt3.main(["export", "-o", str(tmp_path / "x.onnx")]) == 2
    assert capsys.readouterr().err == 'error: mt3 export needs onnx: pip install "mt3-twins[onnx]"\n'
