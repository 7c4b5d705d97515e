"""Checkpoints into each framework and back: bit for bit, by the declared rule, strict in both directions."""

import dataclasses
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from jax_mt3 import checkpoint as jax_checkpoint
from mt3_common.checkpoint import hf_t5
from mt3_common.checkpoint.names import CheckpointError, check_arrays
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.config import Config
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3.model import Transformer

GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUTS = sorted(path.name for path in (GOLDEN / "model" / "checkpoints").iterdir())
HEADS = {"num_heads": 3}


def same(candidate, reference):
    assert candidate.keys() == reference.keys()
    for name, array in candidate.items():
        assert array.dtype == reference[name].dtype
        np.testing.assert_array_equal(array.view(np.uint8), reference[name].view(np.uint8), err_msg=name)


def test_there_are_seven_layouts():
    assert len(LAYOUTS) == 7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_into_both_bit_for_bit(layout):
    path = GOLDEN / "model" / "checkpoints" / layout
    arrays = read_checkpoint(path).arrays
    params, jax_config = jax_checkpoint.load(path, preset="mt3", overrides=HEADS)
    model, torch_config = torch_checkpoint.load(path, preset="mt3", overrides=HEADS)
    assert jax_config == torch_config
    same(jax_checkpoint.to_arrays(params), arrays)
    same(torch_checkpoint.to_arrays(model.state_dict()), arrays)


def test_a_file_that_one_twin_saves_the_other_loads(tmp_path, golden_config, golden_arrays):
    config = dataclasses.replace(Config(), network=golden_config)
    bits = {name: array.astype(ml_dtypes.bfloat16) for name, array in golden_arrays.items()}
    for number, arrays in enumerate((golden_arrays, bits)):
        jax_checkpoint.save(tmp_path / f"jax{number}.safetensors", jax_checkpoint.to_params(arrays), config)
        model, loaded_config = torch_checkpoint.load(tmp_path / f"jax{number}.safetensors")
        assert loaded_config == config
        same(torch_checkpoint.to_arrays(model.state_dict()), arrays)
        torch_checkpoint.save(tmp_path / f"torch{number}.safetensors", model, config)
        params, loaded_config = jax_checkpoint.load(tmp_path / f"torch{number}.safetensors")
        assert loaded_config == config
        same(jax_checkpoint.to_arrays(params), arrays)


def test_the_state_dict_is_the_models_own(golden_config, golden_arrays):
    state_dict = torch_checkpoint.to_state_dict(golden_arrays)
    own = Transformer(golden_config).state_dict()
    assert {key: tuple(t.shape) for key, t in state_dict.items()} == {key: tuple(t.shape) for key, t in own.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_cast_leaves_logits_dense_at_least_float32(dtype, golden_config, golden_arrays):
    wide = "float64" if dtype == "float64" else "float32"
    model = Transformer(golden_config)
    model.load_state_dict(torch_checkpoint.to_state_dict(golden_arrays))
    for key, tensor in torch_checkpoint.cast(model, dtype).state_dict().items():
        assert tensor.dtype == getattr(torch, wide if "logits_dense" in key else dtype)
    if dtype != "float64":
        params = jax_checkpoint.cast(jax_checkpoint.to_params(golden_arrays), dtype)
        for name, array in jax_checkpoint.to_arrays(params).items():
            assert array.dtype.name == (wide if "logits_dense" in name else dtype)


def hf_t5_file(path, arrays, divisor, **changes):
    """A file as the public mt3.pth is: HF-T5 names, two repeated entries, two inv_freq buffers."""
    tensors = torch_checkpoint.to_hf_t5(arrays)
    tensors["encoder.embed_tokens.weight"] = tensors["proj.weight"].clone()
    tensors["decoder.embed_tokens.weight"] = tensors["decoder_embed_tokens.weight"].clone()
    width = arrays["encoder/encoder_norm/scale"].size
    for stack in ("encoder", "decoder"):
        steps = torch.arange(width // 2, dtype=torch.float64)
        tensors[f"{stack}.pos_emb.inv_freq"] = (10000.0 ** (-steps / (width / 2 - divisor))).float()
    tensors.update(changes)
    torch.save({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
    return len(tensors)


LOAD = {"jax": jax_checkpoint.load, "torch": torch_checkpoint.load}


@pytest.mark.parametrize("twin", LOAD)
def test_the_public_pth_loads_and_its_table_is_named(twin, tmp_path, golden_arrays):
    path, load = tmp_path / "mt3.pth", LOAD[twin]
    assert hf_t5_file(path, golden_arrays, 0) == len(golden_arrays) + 4
    with pytest.warns(UserWarning, match="sinusoid table of the PyTorch ports"):
        weights, config = load(path, preset="mt3", overrides=HEADS)
    arrays = jax_checkpoint.to_arrays(weights) if twin == "jax" else torch_checkpoint.to_arrays(weights.state_dict())
    same(arrays, golden_arrays)
    assert config.network.position_table == "mt3"
    # no warning, which would be an error here, once the caller has said which table it is
    _, config = load(path, preset="mt3", overrides={**HEADS, "position_table": "port"})
    assert config.network.position_table == "port"
    hf_t5_file(path, golden_arrays, 1)
    assert load(path, preset="mt3", overrides=HEADS)[1].network.position_table == "mt3"


def test_the_full_size_file_has_the_public_ones_193_keys(tmp_path):
    arrays = torch_checkpoint.to_arrays(Transformer(Config().network).state_dict())
    assert hf_t5_file(tmp_path / "mt3.pth", arrays, 0) == 193
    names = [hf_t5.hf_t5_name(name) for name in arrays]
    assert len(set(names)) == 189
    assert "encoder.block.7.layer.0.SelfAttention.q.weight" in names
    assert "decoder.block.0.layer.1.EncDecAttention.o.weight" in names
    assert "decoder.block.7.layer.2.DenseReluDense.wi_1.weight" in names


@pytest.mark.parametrize("wrap", ["state_dict", "model_state_dict", "module.", "model."])
def test_wrappers_and_prefixes_come_off(wrap, tmp_path, golden_arrays):
    tensors = torch_checkpoint.to_hf_t5(golden_arrays)
    if wrap.endswith("."):
        wrapped = {wrap + key: tensor for key, tensor in tensors.items()}
    else:
        wrapped = {wrap: {f"model.{key}": tensor for key, tensor in tensors.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "wrapped.ckpt")
    checkpoint = read_checkpoint(tmp_path / "wrapped.ckpt")
    assert checkpoint.position_table is None
    same(checkpoint.arrays, golden_arrays)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lm_head.weight": None}, "1 entry missing (lm_head.weight)"),
        ({"shared.weight": torch.zeros(3)}, "shared.weight should repeat decoder_embed_tokens.weight and does not"),
        ({"encoder.embed_tokens.weight": torch.zeros(48, 512)}, "should repeat proj.weight"),
        ({"encoder.pos_emb.inv_freq": torch.zeros(24)}, "neither MT3's sinusoid table nor"),
        ({"proj.weight": None, "encoder.embed_tokens.weight": None}, "1 entry missing (proj.weight)"),
    ],
)
def test_a_pth_that_is_not_mt3_is_refused(changes, says, tmp_path, golden_arrays):
    hf_t5_file(tmp_path / "mt3.pth", golden_arrays, 0, **changes)
    with pytest.raises(CheckpointError, match=re.escape(says)):
        torch_checkpoint.load(tmp_path / "mt3.pth", preset="mt3", overrides=HEADS)


def test_a_missing_or_extra_array_is_refused_by_both(tmp_path, golden_config, golden_arrays):
    config = dataclasses.replace(Config(), network=golden_config)
    for change in ({"decoder/decoder_norm/scale": None}, {"decoder/relative_bias": np.ones(3, np.float32)}):
        arrays = {name: array for name, array in {**golden_arrays, **change}.items() if array is not None}
        with pytest.raises(CheckpointError, match=next(iter(change))):
            check_arrays(arrays, config.network)
