"""YourMT3+ checkpoints: Lightning files, PyTorch files, .safetensors, folders of T5X and Orbax; told from MT3's, read.

Arrays keep the names and the shapes of the published state dict in every layout; in the trees of T5X and Orbax, each
part of a name between points is a level below `target`.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from mt3_common.checkpoint.damage import HEAD_BYTES, describe_damage
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.place import Place, locate
from mt3_common.checkpoint.sources import open_source
from mt3_common.checkpoint.torch_pickle import PICKLES
from mt3_common.checkpoint.weights import read_entries
from mt3_common.checkpoint.yourmt3_lightning import read_lightning
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.checkpoint.yourmt3_settings import network_arrays, read_published_settings
from mt3_common.config import ConfigError
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from mt3_common.yourmt3_config import FAMILY, FrontEndConfig, YourMT3Settings

# of a folder that training wrote
MODEL_FILE = "model.safetensors"
# arrays that every network of the family has, and no MT3: one of them tells the family; their names in a tree
MARK = "lm_head.lm_head.weight"
MARKS = (MARK, "decoder.decoder.block.0.layer.0.SelfAttention.q.weight")
TREE_MARKS = tuple("target/" + mark.replace(".", "/") for mark in MARKS)
# entries of training alone
LEFT_OUT = ("pitchshift.", "validation_metrics.", "test_metrics.", "train_metrics.")


class YourMT3Checkpoint(NamedTuple):
    """A checkpoint of YourMT3+.

    Attributes:
        arrays: published names -> arrays of the network.
        front_end_arrays: published names -> window and mel matrix.
        repeated: published names -> frequencies that attentions repeat.
        settings: of all of it.
        left_out: names of entries that are no part of it: pitch shifter, metrics.
        location: of the file or folder.
        step: of training, None where the file does not say.
        layout: 'pth' (PyTorch's and Lightning's), 'safetensors', or of a folder as in read.Inspection.
    """

    arrays: dict[str, np.ndarray]
    front_end_arrays: dict[str, np.ndarray]
    repeated: dict[str, np.ndarray]
    settings: YourMT3Settings
    left_out: tuple[str, ...]
    location: str
    step: int | None = None
    layout: str = ""

    @property
    def notice(self) -> str:
        """Return what its user may want to know, '' for nothing."""
        if not self.left_out:
            return ""
        entries = plural(len(self.left_out), "entry of training is", "entries of training are")
        return f"{entries} left out, the first is {self.left_out[0]}"

    @property
    def published(self) -> dict[str, np.ndarray]:
        """Return all arrays under the names of the published state dict."""
        return self.front_end_arrays | self.arrays | self.repeated


def is_yourmt3(path: str | os.PathLike) -> bool:
    """Return whether a local file or folder holds a network of YourMT3+, by the names in it; nothing is unpickled.

    A folder of a training run is judged by its model.safetensors.
    """
    name = _file_of(path)
    if os.path.isdir(name):
        return _is_folder_of_yourmt3(name)
    if not os.path.isfile(name):
        return False
    if name.endswith(".safetensors"):
        with open(name, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return size <= os.path.getsize(name) and _has_mark(file.read(size))
    if name.endswith(PICKLES) and zipfile.is_zipfile(name):
        try:
            with zipfile.ZipFile(name) as archive:
                # PyTorch stores it as it is: a compressed one is not read here, which could fill the memory.
                pickled = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
                stored = [entry for entry in pickled if entry.compress_type == zipfile.ZIP_STORED]
                return any(_has_mark(archive.read(entry)) for entry in stored)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
            return False
    return False


def _has_mark(content: bytes) -> bool:
    """Return whether the names in a file's header or pickle are of the family."""
    return any(mark.encode() in content for mark in MARKS)


def _is_folder_of_yourmt3(name: str) -> bool:
    try:
        place = locate(name)
        if place.file:
            return is_yourmt3(str(place))
        containers = open_source(place, optimizer=False).containers
        return any(mark in containers for mark in TREE_MARKS)
    except CheckpointError:
        # whoever reads it reports that
        return False


def _file_of(path: str | os.PathLike) -> str:
    """Return the path of the file with the arrays: in a folder of a training run, model.safetensors."""
    inside = os.path.join(path, MODEL_FILE)
    return inside if os.path.isfile(inside) else os.fspath(path)


def mt3_preset(name: str, preset: str | None) -> str | None:
    """Return the preset that a checkpoint of MT3 is read with, None for none.

    Args:
        name: of the checkpoint.
        preset: the one that the user names, or the checkpoint's own.

    Raises:
        ConfigError: it is the name of a YourMT3+.
    """
    if preset in RELEASED:
        raise ConfigError(f"{name} is no YourMT3+, which --model {preset} would be: leave it out")
    return preset or None


def refuse_yourmt3(path: str | os.PathLike, name: str) -> None:
    """Refuse a YourMT3+ for the page that browsers compute by themselves, which knows MT3's networks only.

    Args:
        path: of the checkpoint.
        name: of the checkpoint, for the message.

    Raises:
        CheckpointError: it is one.
    """
    if is_yourmt3(path):
        raise CheckpointError(f"{name} is a YourMT3+, which browsers do not compute by themselves: take mt3 serve")


class _Content(NamedTuple):
    """Arrays of a file or folder under published names, settings as it states them, its step, its layout's name."""

    arrays: dict[str, np.ndarray]
    stated: Mapping[str, Any]
    step: int | None
    layout: str


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put the file's name in front of errors about what is in it."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def read_yourmt3(
    path: str | os.PathLike, model: str | None = None, config: Mapping[str, Any] | None = None
) -> YourMT3Checkpoint:
    """Read a checkpoint and find its settings.

    The settings are, of these, the first: `config`; those of `model`; a config.json of ours or a published one, in the
    file or beside it; those that Lightning keeps; those of the released network that has the same arrays.

    Args:
        path: of a .safetensors, of a Lightning or PyTorch file, or of a folder of T5X, of Orbax or of a training run.
        model: one of RELEASED.
        config: a config.json of ours, or a published one.

    Raises:
        CheckpointError: unreadable, damaged, or not finite.
        ConfigError: no settings, or such that do not fit.
    """
    name = _file_of(path)
    if model and model not in RELEASED:
        raise ConfigError(f"{name} is a YourMT3+, not {model}: leave out --model, or name one of {', '.join(RELEASED)}")
    if os.path.isdir(name) and (place := locate(name)).file:
        name = str(place)
    content = _read_content(name)
    if MARK not in content.arrays:
        raise CheckpointError(f"{name} is no YourMT3+, or not a whole one: it lacks {MARK}")
    left_out = tuple(sorted(key for key in content.arrays if key.startswith(LEFT_OUT)))
    arrays = {key: array for key, array in content.arrays.items() if key not in left_out}
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"{name}: {key} has values that are not finite")
    if config is not None:
        settings = stated_settings(config, arrays)
        if settings is None:
            raise ConfigError(
                "--config is no config of a YourMT3+: it must have task, audio_cfg and model_cfg as the published code "
                f"has them, be a config.json of ours, or be the name of one of {', '.join(RELEASED)}"
            )
    else:
        settings = RELEASED[model].settings if model else _settings(name, arrays, content.stated)
    network = network_arrays(arrays)
    front_end = {key: array for key, array in arrays.items() if key.startswith("spectrogram.")}
    repeated = {key: array for key, array in arrays.items() if key not in network and key not in front_end}
    return YourMT3Checkpoint(network, front_end, repeated, settings, left_out, name, content.step, content.layout)


def _read_content(name: str) -> _Content:
    if os.path.isdir(name):
        return _read_folder(locate(name))
    if name.endswith(".safetensors"):
        return _read_safetensors(name)
    file = read_lightning(name)
    return _Content(file.arrays, file.settings, file.step, "pth")


def _read_folder(place: Place) -> _Content:
    """Read a step folder of T5X or Orbax; its config.json lies in it, or in the folder above."""
    try:
        source = open_source(place, optimizer=False)
        entries = read_entries(source.entries(source.containers))
    except CheckpointError as error:
        raise error if str(place) in str(error) else CheckpointError(f"{place}: {error}") from error
    arrays = {name.removeprefix("target/").replace("/", "."): array for name, array in entries.items()}
    stated = {}
    for folder in (place.folder, place.folder.above):
        if (text := folder.read("config.json")) is not None:
            stated = _json_object(text, f"{folder}/config.json")
            break
    return _Content(arrays, stated, source.step, source.layout)


def _json_object(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds no JSON object")
    return values


def _read_safetensors(name: str) -> _Content:
    try:
        with safetensors.safe_open(name, "np") as file:
            metadata = file.metadata() or {}
        arrays = safetensors.numpy.load_file(name)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}") from error
    except (ValueError, safetensors.SafetensorError) as error:
        with open(name, "rb") as file:
            damage = describe_damage(file.read(HEAD_BYTES), "safetensors file", str(error))
        raise CheckpointError(f"{name} is {damage}") from error
    stated = _json_object(metadata.get("config", "{}"), f"{name}: its metadata 'config'")
    step = stated.get("step")
    return _Content(arrays, stated, step if type(step) is int else None, "safetensors")


def _settings(name: str, arrays: Mapping[str, np.ndarray], stated: Mapping[str, Any]) -> YourMT3Settings:
    """Return the settings by the file, a config.json beside it, or the released network with these arrays."""
    beside = Path(name).with_name("config.json")
    if not stated.get("family") and "model_cfg" not in stated and beside.is_file():
        try:
            stated = _json_object(beside.read_bytes(), str(beside))
        except OSError as error:
            raise ConfigError(f"{beside} cannot be read: {error}") from error
    if (settings := stated_settings(stated, arrays)) is not None:
        return settings
    for released in RELEASED.values():
        if fits(arrays, released.settings):
            return released.settings
    raise ConfigError(
        f"{name} says nothing about its settings, and is none of the released networks: put a config.json beside it, "
        "or give --config a file, with task, audio_cfg and model_cfg as the published code has them"
    )


def stated_settings(stated: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> YourMT3Settings | None:
    """Return the settings of a config.json of ours or a published one, None where it is neither.

    Raises:
        ConfigError: a setting is missing or has no meaning.
    """
    if stated.get("family") == FAMILY:
        return YourMT3Settings.from_dict(stated)
    if isinstance(stated.get("model_cfg"), Mapping) and isinstance(stated.get("audio_cfg"), Mapping):
        return published_settings(stated, arrays)
    return None


def published_settings(stated: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> YourMT3Settings:
    """Return the settings of a published config, or of Lightning's hyper-parameters.

    Raises:
        ConfigError: a setting is missing or has no meaning.
    """
    audio = stated["audio_cfg"]
    names = ("codec", "hop_length", "n_fft", "n_mels", "f_min", "f_max", "sample_rate", "input_frames")
    try:
        front_end = FrontEndConfig(**{name: audio[name] for name in names})
    except KeyError as error:
        raise ConfigError(f"the YourMT3+ settings lack {error.args[0]!r}") from error
    network = read_published_settings(stated["model_cfg"], arrays, front_end.num_bins, front_end.num_frames)
    task = stated.get("task")
    state = getattr(stated.get("task_manager"), "state", None)
    if task is None and isinstance(state, Mapping):
        task = state.get("task_name")
    if task is None:
        task = "mc13_full_plus_256" if network.decoder == "multi-t5" else "mt3_full_plus"
    return YourMT3Settings(task, front_end, network)


def fits(arrays: Mapping[str, np.ndarray], settings: YourMT3Settings) -> bool:
    """Return whether a network of these settings has the arrays, judged by those that tell the released ones apart."""
    perceiver = settings.network.perceiver
    shapes = {
        MARK: (settings.network.vocab_size, settings.network.t5_decoder.d_model),
        "encoder.latent_array.latents": (perceiver.num_latents, perceiver.d_latents),
        "encoder.blocks.0.local_transformer.0.mlp.experts.0.w1.weight": (512, 128),
        "encoder.encoder.block.7.layer.0.SelfAttention.q.weight": (384, 512),
    }
    is_perceiver = settings.network.encoder == "perceiver-tf"
    has_experts = is_perceiver and perceiver.ff_layer == "moe"
    present = (True, is_perceiver, has_experts, not is_perceiver)
    return all(
        (name in arrays and arrays[name].shape == shape) if wanted else name not in arrays
        for (name, shape), wanted in zip(shapes.items(), present, strict=True)
    )
