"""Checkpoints of YourMT3+: Lightning files read without running anything in them, settings, names, downloads."""

import hashlib
import http.server
import json
import os
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from measured_memory import memory_below
from yourmt3_toys import settings, toy, write_toy

from mt3_common.checkpoint import yourmt3_released
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.checkpoint.yourmt3 import fits, is_yourmt3, published_settings, read_yourmt3
from mt3_common.checkpoint.yourmt3_lightning import read_lightning
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.checkpoint.yourmt3_write import write_yourmt3
from mt3_common.config import ConfigError
from mt3_common.io import transfer
from mt3_common.notes.yourmt3_tasks import find_task
from mt3_common.yourmt3_config import YourMT3Settings
from torch_mt3.yourmt3.checkpoint import template

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "yourmt3"
PUBLISHED = json.loads((GOLDEN / "released.json").read_text())
# of the names and values that the published code has after three steps of training
DIGEST = "ff278f82c30f95da78ad8060392424bb575977768e6d870cd8575d8d905f3534"
NAMES = {
    "ymt3-plus": "YMT3+",
    "yptf-single": "YPTF+Single",
    "yptf-multi-ps": "YPTF+Multi",
    "yptf-moe-multi": "YPTF+MoE+Multi",
    "yptf-moe-multi-ps": "YPTF+MoE+Multi",
}


@pytest.mark.parametrize("file", ["lightning.ckpt", "lightning_pitchshift.ckpt"])
def test_lightning_files(file):
    checkpoint = read_yourmt3(GOLDEN / file)
    assert is_yourmt3(GOLDEN / file)
    assert checkpoint.settings.task == "mt3_full_plus"
    assert checkpoint.settings.network.t5_encoder.num_layers == 1
    assert checkpoint.settings.front_end.num_bins == 16
    digest = hashlib.sha256()
    for name, array in sorted(checkpoint.arrays.items()):
        digest.update(name.encode() + array.tobytes())
    assert digest.hexdigest() == DIGEST
    # Lightning's own has the front end's arrays too
    assert len(checkpoint.arrays) == 29
    assert len(checkpoint.front_end_arrays) == (2 if file == "lightning.ckpt" else len(checkpoint.published) - 29)
    assert (checkpoint.notice == "") == (file == "lightning.ckpt")


def test_entries_of_training_are_left_out():
    checkpoint = read_yourmt3(GOLDEN / "lightning_pitchshift.ckpt")
    assert checkpoint.left_out == ("pitchshift.pshifters.-1.kernel", "pitchshift.pshifters.1.window")
    assert checkpoint.notice.startswith("2 entries of training are left out, the first is pitchshift.pshifters.-1")


@pytest.mark.parametrize("name", RELEASED)
def test_released_settings_are_the_published_ones(name):
    golden = PUBLISHED[NAMES[name]]
    arrays = {key: SimpleNamespace(shape=tuple(entry[1:])) for key, entry in golden["state_dict"].items()}
    released = RELEASED[name]
    assert published_settings(golden, arrays) == released.settings
    assert YourMT3Settings.from_dict(json.loads(json.dumps(released.settings.to_dict()))) == released.settings
    assert find_task(released.settings.task).num_channels == released.settings.network.num_channels
    assert next(other for other in RELEASED if fits(arrays, RELEASED[other].settings)).startswith(name[:10])
    shapes = {key: tuple(tensor.shape) for key, tensor in template(released.settings.network).items()}
    network = {
        key: array.shape
        for key, array in arrays.items()
        if not key.startswith("spectrogram.") and not key.endswith(".self.rotary_emb.freqs")
    }
    assert shapes == network


def test_the_settings_of_an_unknown_file_are_asked_for(tmp_path):
    torch.save({"lm_head.lm_head.weight": torch.zeros(3, 3)}, tmp_path / "model.ckpt")
    with pytest.raises(ConfigError, match=r"says nothing about its settings, .*: put a config.json beside it"):
        read_yourmt3(tmp_path / "model.ckpt")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        read_yourmt3(tmp_path / "model.ckpt")
    (tmp_path / "config.json").write_text('{"family": "yourmt3"}')
    with pytest.raises(ConfigError, match="no settings of YourMT3"):
        read_yourmt3(tmp_path / "model.ckpt")
    (tmp_path / "config.json").write_text('{"audio_cfg": {}, "model_cfg": {}}')
    with pytest.raises(ConfigError, match=r"the YourMT3. settings lack 'codec'"):
        read_yourmt3(tmp_path / "model.ckpt")


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    source = read_yourmt3(GOLDEN / "lightning.ckpt")
    write_yourmt3(tmp_path / "model.safetensors", source)
    back = read_yourmt3(tmp_path / "model.safetensors")
    assert back.settings == source.settings
    assert back.published.keys() == source.published.keys()
    for name, array in source.published.items():
        assert back.published[name].dtype == array.dtype
        np.testing.assert_array_equal(back.published[name], array)
    with pytest.raises(CheckpointError, match=r"is written as .safetensors only"):
        write_yourmt3(tmp_path / "model.pth", source)


class Malicious:
    """An object whose unpickling would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("key", ["state_dict", "hyper_parameters", "callbacks"])
def test_nothing_in_a_file_is_run(tmp_path, key):
    source = toy()
    content = {
        "state_dict": {name: torch.from_numpy(array) for name, array in source.arrays.items()},
        "hyper_parameters": {},
        "callbacks": {},
    }
    content[key]["evil"] = Malicious(tmp_path / "made")
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=rf"model.ckpt: .* it asks for {os.mkdir.__module__}.mkdir"):
        read_lightning(tmp_path / "model.ckpt")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("cut", "its end is missing"), ("byte", r"Bad CRC-32 for file 'lightning/data\.pkl'"), ("empty", "it is empty")],
)
def test_damaged_files_are_refused(tmp_path, damage, reason):
    data = bytearray((GOLDEN / "lightning.ckpt").read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "byte":
        data[data.index(b"FloatStorage") + 3] ^= 1
    else:
        data = bytearray()
    (tmp_path / "model.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"model.ckpt: damaged, .* no PyTorch file: {reason}; fetch"):
        read_lightning(tmp_path / "model.ckpt")


def test_other_files_are_no_yourmt3(tmp_path):
    torch.save({"proj.weight": torch.zeros(2, 2)}, tmp_path / "mt3.pth")
    assert not is_yourmt3(tmp_path / "mt3.pth")
    assert not is_yourmt3(ROOT / "checkpoints" / "golden")
    assert not is_yourmt3(tmp_path / "missing.ckpt")
    with pytest.raises(CheckpointError, match=r"mt3.pth is no YourMT3., or not a whole one: it lacks lm_head"):
        read_yourmt3(tmp_path / "mt3.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        read_yourmt3(tmp_path / "missing.ckpt")


def test_values_that_are_not_finite_are_refused(tmp_path):
    source = toy()
    source.arrays["lm_head.lm_head.weight"][0, 0] = np.nan
    write_yourmt3(tmp_path / "model.safetensors", source)
    with pytest.raises(CheckpointError, match=r"lm_head.lm_head.weight has values that are not finite"):
        read_yourmt3(tmp_path / "model.safetensors")


def test_front_end_and_network_must_go_together():
    values = settings().to_dict()
    values["front_end"]["hop_length"] = 300
    with pytest.raises(ConfigError, match="the front end makes 110 frames of 64 bins, but the network takes 8 of 64"):
        YourMT3Settings.from_dict(values)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server in the place of Hugging Face; what it serves stands in `content`, what it was asked for in `paths`."""
    state = SimpleNamespace(content=b"", paths=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "RETRIES", 1)
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.01)
    yield state
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints_are_fetched_by_name(name, hub, tmp_path, monkeypatch):
    hub.content = write_toy(tmp_path / "toy.safetensors").read_bytes()
    released = RELEASED[name]
    digest = hashlib.sha256(hub.content).hexdigest()
    known = released._replace(num_bytes=len(hub.content), sha256=digest)
    monkeypatch.setitem(yourmt3_released.RELEASED, name, known)
    fetched = find_checkpoint(name, quiet=True)
    assert fetched.model == name
    assert Path(fetched.path).read_bytes() == hub.content
    folder = f"/spaces/mimbres/YourMT3/resolve/main/amt/logs/2024/{released.folder}/checkpoints/{released.file}"
    assert hub.paths == [folder]
    assert find_checkpoint(name, offline=True, quiet=True) == fetched
    assert hub.paths == [folder]


def test_other_content_than_the_released_is_refused(hub):
    hub.content = b"something else"
    with pytest.raises(transfer.DownloadError):
        find_checkpoint("ymt3-plus", quiet=True)
    assert not list(Path(os.environ["MT3_CACHE"]).rglob("model.ckpt"))


def test_a_compressed_pickle_is_not_inflated(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    with memory_below(2**22):
        assert not is_yourmt3(tmp_path / "x.pth")
