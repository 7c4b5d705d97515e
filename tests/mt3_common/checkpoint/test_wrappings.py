"""Weights in every wrapping: made with the libraries that others save with, read to the same bits under MT3's names."""

import argparse
import functools
import inspect
import json
import os
import shutil
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import tensorstore as ts
import torch
from flax import serialization
from flax.training import train_state
from measured_memory import memory_below

from mt3_common.checkpoint.config_files import find_config_files
from mt3_common.checkpoint.hf_t5 import hf_t5_name
from mt3_common.checkpoint.names import CheckpointError, array_shapes
from mt3_common.checkpoint.naming import STACKED
from mt3_common.checkpoint.read import inspect_checkpoint, read_any, read_checkpoint
from mt3_common.checkpoint.stacked import take_apart
from mt3_common.checkpoint.write import write_t5x
from mt3_common.config import Config, NetworkConfig

NETWORK = NetworkConfig(
    vocab_size=1536, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=12, num_encoder_layers=3, num_decoder_layers=2
)
CONFIG = json.dumps(Config(NETWORK).to_dict())


@functools.cache
def arrays(seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random numbers under MT3's names."""
    generator = np.random.default_rng(seed)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return {name: generator.standard_normal(shape).astype(kind) for name, shape in array_shapes(NETWORK).items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *levels, leaf = name.split("/")
        node = tree
        for level in levels:
            node = node.setdefault(level, {})
        node[leaf] = array
    return tree


def on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def hf_t5(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same under HF-T5's names, kernels turned."""
    return {
        hf_t5_name(name): np.ascontiguousarray(array.T) if name.endswith("kernel") else array
        for name, array in flat.items()
    }


def tensors(seed: int = 0, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: torch.from_numpy(array.copy()) for name, array in hf_t5(arrays(seed)).items()}


def save_orbax(path: Path, tree: Any, **options: Any) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as writer:
        writer.save(path, tree)


def is_right(path: Path, seed: int = 0, dtype: str = "float32", step: int | None = None, **options: Any) -> tuple:
    """Assert that a checkpoint is read to the bits of arrays(seed, dtype), listed alike; return its notes."""
    read = read_checkpoint(path, **options)
    expected = arrays(seed, dtype)
    assert read.arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert (read.arrays[name].dtype, read.arrays[name].shape) == (array.dtype, array.shape), name
        assert read.arrays[name].tobytes() == array.tobytes(), name
        assert read.arrays[name].flags.writeable
    listed = inspect_checkpoint(path, **options)
    assert {name: (entry.shape, entry.dtype) for name, entry in listed.arrays.items()} == {
        name: (array.shape, array.dtype) for name, array in expected.items()
    }
    assert read.step == listed.step == step
    return read.notes


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Flax and Orbax ---


def states() -> dict[str, tuple[Any, int | None]]:
    """Trees that others save, and the step that each says."""
    params = on_device(nested(arrays()))
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adamw(1e-3)).replace(step=7)
    return {
        "bare": (params, None),
        "params": ({"params": params}, None),
        "params twice": ({"params": {"params": params}}, None),
        "TrainState": (state, 7),
        "TrainState in a level": ({"train": state, "epoch": 3}, 7),
        "batch_stats": ({"params": params, "batch_stats": {"mean": jnp.zeros(3)}}, None),
        "average beside": ({"params": params, "ema_params": on_device(nested(arrays(1)))}, None),
        "target": ({"target": params, "state": {"step": jnp.asarray(7)}}, 7),
    }


@pytest.mark.parametrize("kind", list(states()))
@pytest.mark.parametrize("zarr3", [False, True])
def test_trees_of_flax_are_read_from_orbax(kind, zarr3, tmp_path):
    tree, step = states()[kind]
    save_orbax(tmp_path / "x", tree, use_zarr3=zarr3)
    notes = is_right(tmp_path / "x", step=step)
    assert ("optimizer state" in str(notes)) == kind.startswith("TrainState")
    assert ("ema_params" in str(notes)) == (kind == "average beside")
    assert ("batch_stats/mean" in str(notes)) == (kind == "batch_stats")
    if kind == "average beside":
        is_right(tmp_path / "x", seed=1, weights="ema_params")
        assert list(read_any(tmp_path / "x")) == ["params", "ema_params"]


@pytest.mark.parametrize("kind", ["bare", "params", "TrainState"])
@pytest.mark.parametrize("name", ["flax_model.msgpack", "checkpoint", "checkpoint_40"])
def test_trees_of_flax_are_read_from_msgpack(kind, name, tmp_path):
    tree, step = states()[kind]
    (tmp_path / name).write_bytes(serialization.to_bytes(jax.device_get(tree)))
    is_right(tmp_path, step=40 if step is None and name == "checkpoint_40" else step)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_boxes_of_partitioning_are_no_names(dtype, tmp_path):
    boxed = jax.tree.map(
        lambda array: nn.LogicallyPartitioned(array, names=(None,) * array.ndim), on_device(nested(arrays(0, dtype)))
    )
    save_orbax(tmp_path / "x", {"params": boxed})
    is_right(tmp_path / "x", dtype=dtype)


def test_a_stack_of_zarr3_needs_all_its_chunks(tmp_path):
    save_orbax(tmp_path / "x", {"params": on_device(nested(arrays()))}, use_zarr3=True, use_ocdbt=False)
    is_right(tmp_path / "x")
    kernel = tmp_path / "x/params.decoder.logits_dense.kernel"
    assert (kernel / "zarr.json").exists()
    shutil.move(kernel / "c", tmp_path / "gone")
    assert "decoder/logits_dense/kernel is incomplete: chunk" in refusal(tmp_path / "x")


def test_missing_pieces_of_a_shard_of_zarr3_are_errors(tmp_path):
    folder = tmp_path / "x"
    for name, array in arrays().items():
        shape = list(array.shape)
        inner = [max(1, size // 2) for size in shape]
        bytes_codec = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {"chunk_shape": inner, "codecs": [bytes_codec], "index_codecs": [bytes_codec]}
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder}/params.{name.replace('/', '.')}/"},
            "metadata": {
                "shape": shape,
                "data_type": "float32",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            },
        }
        stored = ts.open(spec, create=True).result()
        if name.endswith("wi_1/kernel") and name.startswith("encoder/layers_2"):
            stored[: inner[0]].write(array[: inner[0]]).result()
        else:
            stored.write(array).result()
    (folder / "_METADATA").write_text(
        json.dumps(
            {
                "use_zarr3": True,
                "tree_metadata": {
                    name: {
                        "key_metadata": [{"key": key, "key_type": 2} for key in ("params", *name.split("/"))],
                        "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
                    }
                    for name in arrays()
                },
            }
        )
    )
    assert "encoder/layers_2/mlp/wi_1/kernel cannot be read" in refusal(folder)


@pytest.fixture(scope="module")
def managed(tmp_path_factory) -> Path:
    """A run of Orbax's CheckpointManager, steps 900 and 1000."""
    folder = tmp_path_factory.mktemp("managed") / "run"
    with ocp.CheckpointManager(folder) as manager:
        for step, seed in ((900, 1), (1000, 0)):
            manager.save(step, args=ocp.args.StandardSave({"params": on_device(nested(arrays(seed)))}))
        manager.wait_until_finished()
    (folder / "config.json").write_text(CONFIG)
    return folder


@pytest.mark.parametrize("below", ["", "1000", "1000/default"])
def test_a_run_of_the_checkpoint_manager_is_read_from_every_folder(managed, below):
    is_right(managed / below, step=1000)
    assert read_checkpoint(managed / below).config().network == NETWORK
    assert is_right(managed / "900", seed=1, step=900) == ()


def test_interrupted_saves_links_and_several_items(managed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(managed, run)
    shutil.copytree(run / "1000", run / "2000.orbax-checkpoint-tmp-123")
    (run / "3000/default/d").mkdir(parents=True)
    is_right(run, step=1000)
    (run / "1000").rename(tmp_path / "elsewhere")
    (run / "1000").symlink_to(tmp_path / "elsewhere")
    is_right(run, step=1000)
    (tmp_path / "elsewhere/default").rename(tmp_path / "elsewhere/model")
    is_right(run, step=1000)
    (tmp_path / "elsewhere/metadata").mkdir()
    (tmp_path / "elsewhere/metadata/metadata").write_text("{}")
    is_right(run, step=1000)
    shutil.copytree(tmp_path / "elsewhere/model", tmp_path / "elsewhere/params")
    assert "holds several checkpoints (model, params): name one" in refusal(run)


@pytest.mark.parametrize("name", ["step_00000500", "checkpoint_500", "500", "ckpt-500"])
def test_steps_have_many_names(managed, name, tmp_path):
    shutil.copytree(managed / "1000", tmp_path / name)
    is_right(tmp_path, step=500)


@pytest.mark.filterwarnings("ignore:Use `save:DeprecationWarning")
def test_what_the_new_interface_of_orbax_writes_is_read(tmp_path):
    from orbax.checkpoint.experimental import v1

    v1.save_pytree(tmp_path / "one", {"params": on_device(nested(arrays()))})
    is_right(tmp_path / "one")
    with v1.training.Checkpointer(tmp_path / "run") as writer:
        writer.save_pytree(5, {"params": on_device(nested(arrays(1)))})
        writer.save_pytree(6, {"params": on_device(nested(arrays()))})
    is_right(tmp_path / "run", step=6)


# --- scanned layers ---


def scanned(axis: int | dict[str, int], flat: dict[str, np.ndarray], network: NetworkConfig = NETWORK) -> dict:
    """The arrays of all layers in one, along an axis; `encoder/layers/…`."""
    stacked = {name: array for name, array in flat.items() if "/layers_" not in name}
    for name in flat:
        stack, _, rest = name.partition("/layers_0/")
        if rest:
            count = network.num_encoder_layers if stack == "encoder" else network.num_decoder_layers
            layers = [flat[f"{stack}/layers_{layer}/{rest}"] for layer in range(count)]
            position = axis if isinstance(axis, int) else axis[rest.rpartition("/")[2]]
            stacked[f"{stack}/layers/{rest}"] = np.stack(layers, position)
    return stacked


@pytest.mark.parametrize("axis", [0, 1, -1, {"kernel": 0, "scale": 1}])
@pytest.mark.parametrize("beginning", ["target/", "params/", "params/params/"])
def test_stacked_layers_are_taken_apart_along_any_axis(axis, beginning, tmp_path):
    np.savez(tmp_path / "x.npz", **{beginning + name: array for name, array in scanned(axis, arrays()).items()})
    [note] = is_right(tmp_path / "x.npz")
    assert note.startswith("arrays of all layers were taken apart along axis")
    (only,) = read_any(tmp_path / "x.npz").values()
    assert only.arrays.keys() == arrays().keys()


def test_names_of_t5x_and_kernels_of_dense_general_are_read(tmp_path):
    heads = {}
    for name, array in scanned(1, arrays()).items():
        levels = name.split("/")
        if "layers" in levels:
            levels.remove("layers")
            levels.insert(0, levels[0])
            if "attention/" in name and name.endswith("out/kernel"):
                array = array.transpose(1, 0, 2).reshape(-1, 2, 5, 8).transpose(1, 0, 2, 3)
            elif "attention/" in name and name.endswith("kernel"):
                array = array.reshape(*array.shape[:2], 2, 5)
        heads["/".join(levels)] = array
    save_orbax(tmp_path / "x", {"target": on_device(nested(heads)), "state": {"step": jnp.asarray(3)}})
    is_right(tmp_path / "x", step=3)


def test_an_axis_that_cannot_be_told_is_asked_for(tmp_path):
    network = NetworkConfig(
        vocab_size=1536, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=8, num_decoder_layers=8
    )
    generator = np.random.default_rng(0)
    flat = {name: generator.standard_normal(shape).astype("f4") for name, shape in array_shapes(network).items()}
    np.savez(tmp_path / "x.npz", **scanned(1, flat, network))
    assert "cannot be told (one of 1, 0, -1" in refusal(tmp_path / "x.npz")
    right = read_checkpoint(tmp_path / "x.npz", scan_axis=1).arrays
    assert all(right[name].tobytes() == array.tobytes() for name, array in flat.items())
    turned = read_checkpoint(tmp_path / "x.npz", scan_axis=0).arrays
    assert not all(turned[name].tobytes() == array.tobytes() for name, array in flat.items())


def test_a_layer_both_stacked_and_alone_is_refused():
    norm, kernel = f"encoder/{STACKED}/pre_mlp_layer_norm/scale", f"encoder/{STACKED}/mlp/wo/kernel"
    names = {"a": norm, "b": kernel, "c": "encoder/layers_1/mlp/wo/kernel", "d": "encoder/encoder_norm/scale"}
    shapes = {"a": (8, 3), "b": (12, 3, 8), "c": (12, 8), "d": (8,)}
    with pytest.raises(CheckpointError, match="encoder/layers_1/mlp/wo/kernel is there twice: c and b"):
        take_apart(names, shapes, None)
    with pytest.raises(CheckpointError, match="no axis of theirs"):
        take_apart({"b": kernel, "d": names["d"]}, {"b": (12, 9), "d": (8,)}, None)
    with pytest.raises(CheckpointError, match="axis 2 of theirs"):
        take_apart({"a": norm, "b": kernel, "d": names["d"]}, shapes, 2)


# --- PyTorch, Hugging Face, NumPy ---


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.model.",
        "net.transcriber.",
        "a.b.c.d.",
    ],
)
@pytest.mark.parametrize("wrapper", [(), ("net",), ("ema",), ("module",), ("state_dict",), ("checkpoint", "model")])
def test_prefixes_and_wrappers_in_any_order(prefix, wrapper, tmp_path):
    content: Any = tensors(prefix=prefix)
    for key in reversed(wrapper):
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(8, 8)}}}}
    torch.save(content, tmp_path / "x.pth")
    assert is_right(tmp_path / "x.pth") == ()
    (only,) = read_any(tmp_path / "x.pth").values()
    assert only.arrays.keys() == hf_t5(arrays()).keys()


def test_the_twins_own_state_dict_is_read(tmp_path):
    from torch_mt3.checkpoint import to_state_dict

    torch.save({"module": to_state_dict(arrays())}, tmp_path / "x.pt")
    is_right(tmp_path / "x.pt")


class Settings:
    """A class of somebody's project."""

    def __init__(self):
        self.learning_rate = 1e-3


def test_what_lightning_leaves_in_a_checkpoint_is_left_alone(tmp_path):
    content = {
        "state_dict": tensors(prefix="model.") | {"loss_fn.weight": torch.ones(3), "metric.total": torch.zeros(1)},
        "hyper_parameters": argparse.Namespace(rate=1e-3, path=Path("x"), settings=Settings()),
        "best": np.float64(0.5),
        "history": np.arange(3),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": Path("x")}},
        "more": [types.SimpleNamespace(a=functools.partial(np.mean, 1)), {1, 2}, Settings()],
        "epoch": 3,
    }
    torch.save(content, tmp_path / "x.ckpt")
    [note] = is_right(tmp_path / "x.ckpt")
    for left in ("state_dict/loss_fn.weight", "hyper_parameters (argparse.Namespace)", "best (numpy"):
        assert left in note
    torch.save({"state_dict": tensors(), "x": Settings()}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    is_right(tmp_path / "old.ckpt")


class Call:
    def __init__(self, function, *arguments):
        self.content = (function, arguments)

    def __reduce__(self):
        return self.content


@pytest.mark.parametrize("function", [os.system, eval, shutil.rmtree, json.loads, os.getcwd, find_config_files, print])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_asks_for_a_function_is_refused(function, zipped, tmp_path):
    content = {"state_dict": tensors(), "more": Call(function, str(tmp_path / "x"))}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert "opened safely: it asks for" in refusal(tmp_path / "x.pth")
    assert (tmp_path / "x.pth").exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    assert "torch.nn.modules.linear.Linear, which only its own code can read" in refusal(tmp_path / "x.pth")


def test_weights_beside_others(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": tensors(), "ema": tensors(1)}, path)
    [note] = is_right(path)
    assert "ema" in note
    is_right(path, seed=1, weights="ema")
    (tmp_path / "config.json").write_text(CONFIG)
    with pytest.warns(UserWarning, match="other weights were left alone: ema"):
        read_checkpoint(path).config()
    assert set(read_any(path)) == {"model", "ema"}
    # neither of them comes first
    torch.save(tensors(prefix="model.") | tensors(1, "ema_model."), path)
    assert "2 sets of weights with different numbers: ema_model, model; choose one" in refusal(path)
    is_right(path, weights="model.")
    assert set(read_any(path)) == {"model", "ema_model"}
    assert "no weights called 'average', only ema_model, model" in refusal(path, weights="average")
    torch.save({"a": tensors(), "b": tensors(1)}, path)
    assert "2 sets of weights with different numbers: a, b" in refusal(path)
    # the same bits: no matter which
    torch.save(tensors(prefix="model.") | tensors(0, "ema_model."), path)
    is_right(path)
    assert len(read_any(path)) == 1


def test_an_entry_too_many_or_too_few_is_refused_in_every_wrapping(tmp_path):
    entries = tensors(prefix="model.")
    torch.save(
        {"net": entries | {"model.encoder.block.0.layer.0.SelfAttention.q.bias": torch.ones(8)}}, tmp_path / "x.pt"
    )
    assert "1 unknown (encoder.block.0.layer.0.SelfAttention.q.bias)" in refusal(tmp_path / "x.pt")
    del entries["model.lm_head.weight"]
    torch.save({"net": entries}, tmp_path / "x.pt")
    assert "1 entry missing (lm_head.weight)" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("names", ["hf", "mt3"])
def test_safetensors_of_either_naming_alone_and_in_pieces(dtype, names, tmp_path):
    content = hf_t5(arrays(0, dtype)) if names == "hf" else arrays(0, dtype)
    safetensors.numpy.save_file(content, tmp_path / "model.safetensors", {"format": "pt"})
    is_right(tmp_path / "model.safetensors", dtype=dtype)
    is_right(tmp_path, dtype=dtype)


EMBEDDING = "decoder_embed_tokens.weight"


@pytest.mark.parametrize(
    "stands_for",
    [
        {EMBEDDING: "decoder.embed_tokens.weight"},
        {EMBEDDING: "shared.weight", "proj.weight": "encoder.embed_tokens.weight"},
        {"proj.weight": "encoder.embed_tokens.weight"},
    ],
    ids=["decoder", "both", "projection"],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_of_shared_tensors_one_is_enough_whatever_its_name(stands_for, suffix, tmp_path):
    content = {stands_for.get(name, name): array for name, array in hf_t5(arrays()).items()}
    if suffix == "pth":
        torch.save({name: torch.from_numpy(array.copy()) for name, array in content.items()}, tmp_path / "x.pth")
    else:
        safetensors.numpy.save_file(content, tmp_path / "x.safetensors")
    is_right(tmp_path / f"x.{suffix}")


def test_shared_tensors_that_are_all_there_must_be_the_same(tmp_path):
    content = hf_t5(arrays())
    names = ("shared.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(content | dict.fromkeys(names, content[EMBEDDING]), path)
    is_right(path)
    for name in names:
        safetensors.numpy.save_file(content | {name: content[EMBEDDING] + 1}, path)
        assert f"{name} should repeat {EMBEDDING} and does not" in refusal(path)


@pytest.mark.parametrize("stated", [{"tie_word_embeddings": True}, {"model_type": "t5", "is_gated_act": True}])
def test_tied_embeddings_are_read_as_transformers_multiplies_them(stated, tmp_path):
    content = {name: array for name, array in hf_t5(arrays()).items() if name != "lm_head.weight"}
    content["shared.weight"] = content.pop(EMBEDDING)
    safetensors.numpy.save_file(content, tmp_path / "model.safetensors")
    assert "1 entry missing (lm_head.weight)" in refusal(tmp_path)
    sizes = {"d_model": 8, "d_kv": 5, "d_ff": 12, "num_heads": 2, "num_layers": 3, "num_decoder_layers": 2}
    settings = sizes | {"vocab_size": 1536, "feed_forward_proj": "gated-gelu"} | stated
    (tmp_path / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    assert "1 entry missing (lm_head.weight)" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for read in (read_checkpoint(tmp_path), read_any(tmp_path)[""]):
        hidden = np.random.default_rng(1).standard_normal(8).astype("f4")
        np.testing.assert_allclose(
            hidden @ read.arrays["decoder/logits_dense/kernel"],
            arrays()["decoder/token_embedder/embedding"] @ (hidden * 8**-0.5),
            rtol=1e-5,
            atol=1e-6,
        )
        assert any("lm_head.weight is not in it" in note for note in read.notes)
    assert read_checkpoint(tmp_path).config("mt3").network == NETWORK
    assert inspect_checkpoint(tmp_path).resolve("mt3").config.network == NETWORK
    # a second copy of the embedding says nothing else
    safetensors.numpy.save_file(content | {"lm_head.weight": content["shared.weight"]}, tmp_path / "model.safetensors")
    again = read_checkpoint(tmp_path)
    np.testing.assert_array_equal(
        again.arrays["decoder/logits_dense/kernel"], read.arrays["decoder/logits_dense/kernel"]
    )
    assert again.config("mt3").network == NETWORK
    # another head was trained on its own, unless the file says that there is none
    other = content | {"lm_head.weight": hf_t5(arrays())["lm_head.weight"]}
    safetensors.numpy.save_file(other, tmp_path / "model.safetensors")
    if "tie_word_embeddings" in stated:
        assert "lm_head.weight is not shared.weight, and tie_word_embeddings in the config.json" in refusal(tmp_path)
    else:
        head = read_checkpoint(tmp_path).arrays["decoder/logits_dense/kernel"]
        np.testing.assert_array_equal(head, arrays()["decoder/logits_dense/kernel"])


@pytest.fixture
def pieces(tmp_path) -> tuple[Path, dict[str, dict]]:
    """Three files with their index, and what is in each."""
    content = hf_t5(arrays())
    files = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    parts: dict[str, dict] = {file: {} for file in files}
    for number, name in enumerate(content):
        parts[files[number % 3]][name] = content[name]
    for file, part in parts.items():
        safetensors.numpy.save_file(part, tmp_path / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index, parts


def test_an_index_must_say_what_its_files_hold(pieces):
    index, parts = pieces
    is_right(index)
    is_right(index.parent)
    second = index.parent / list(parts)[1]
    name, array = next(iter(parts[second.name].items()))
    safetensors.numpy.save_file({key: value for key, value in parts[second.name].items() if key != name}, second)
    assert f"{second} lacks {name}" in refusal(index)
    safetensors.numpy.save_file(parts[second.name] | {"more": array}, second)
    assert f"{second} also holds more" in refusal(index)
    second.unlink()
    assert f"names {second.name}, which is missing" in refusal(index)
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    assert "does not lie beside it" in refusal(index)
    for text in ("[", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        assert "is no index" in refusal(index)


def test_pieces_of_pytorch_files_are_read(tmp_path):
    content = tensors()
    half = len(content) // 2
    files = {"pytorch_model-1-of-2.bin": list(content)[:half], "pytorch_model-2-of-2.bin": list(content)[half:]}
    for file, names in files.items():
        torch.save({name: content[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in files.items() for name in names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    is_right(tmp_path)


@pytest.mark.slow
def test_npz_is_read_and_a_bomb_is_not(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", **hf_t5(arrays()))  # pyright: ignore[reportArgumentType]
    is_right(tmp_path / "x.npz")
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(2**27, np.float32))
    assert "declares arrays of" in refusal(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=np.array([Settings()]))
    assert "not a readable .npz" in refusal(tmp_path / "x.npz")


@pytest.mark.slow
@pytest.mark.parametrize("head", [b"no array", b"\x93NUMPY\x02\x00" + (2**27).to_bytes(4, "little")])
def test_an_npz_whose_member_is_larger_than_it_says_is_not_unpacked(head, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", head + bytes(2**27))
        (entry,) = archive.infolist()
        entry.file_size, entry.CRC = 10_000, zlib.crc32(head + bytes(10_000 - len(head)))
    with memory_below(2e7):
        assert "not a readable .npz" in refusal(tmp_path / "x.npz")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_folders_in_pieces_say_how_to_put_them_together(tmp_path):
    import torch.distributed.checkpoint.state_dict_saver

    save = torch.distributed.checkpoint.state_dict_saver.save
    # older versions find out by themselves that there is one process
    alone = {"no_dist": True} if "no_dist" in inspect.signature(save).parameters else {}
    save({"model": tensors()}, checkpoint_id=tmp_path / "dcp", **alone)
    message = refusal(tmp_path / "dcp")
    assert "distributed checkpoint of PyTorch" in message
    command = message.partition("format_utils ")[2].split()
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    assert command[0] == "dcp_to_torch"
    dcp_to_torch_save(command[1], tmp_path / command[2])
    is_right(tmp_path / command[2])
    (tmp_path / "ds/global_step5").mkdir(parents=True)
    (tmp_path / "ds/zero_to_fp32.py").touch()
    torch.save({"module": tensors(), "ds_config": Settings()}, tmp_path / "ds/global_step5/mp_rank_00_model_states.pt")
    assert "zero_to_fp32.py" in refusal(tmp_path / "ds")
    is_right(tmp_path / "ds/global_step5/mp_rank_00_model_states.pt")


def test_several_files_in_a_folder_are_named(tmp_path):
    torch.save(tensors(), tmp_path / "a.pth")
    is_right(tmp_path)
    torch.save(tensors(1), tmp_path / "b.pth")
    assert "holds several files of weights (a.pth, b.pth): name one" in refusal(tmp_path)


def test_a_zip_bomb_takes_no_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**26)
    assert "data.pkl is compressed, or larger than the file" in refusal(tmp_path / "x.pth")
    storage = torch.arange(2.0**20)
    torch.save({f"a{number}": storage for number in range(40)}, tmp_path / "x.pth")
    assert "share their numbers" in refusal(tmp_path / "x.pth")
    # a number alone is no reason
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\0")
    assert "safely: its pickle cannot be read (KeyError" in refusal(tmp_path / "x.pth")


def test_the_run_folder_of_training_is_its_best_checkpoint(tmp_path):
    for name, seed in (("last", 1), ("best", 0)):
        write_t5x(tmp_path / name, arrays(seed), 5, config=Config(NETWORK))
    assert "holds several checkpoints (best, last)" in refusal(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    is_right(tmp_path, step=5)
    shutil.rmtree(tmp_path / "best")
    is_right(tmp_path, seed=1, step=5)
