"""Weights in every dtype of a file: the sides hold what it holds, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
from yourmt3_toys import toy

from mt3_common.checkpoint.names import array_shapes
from mt3_common.checkpoint.write import write_safetensors
from mt3_common.checkpoint.yourmt3_write import write_yourmt3
from mt3_common.config import Config, NetworkConfig
from parity.sides import jax_side, torch_side, yourmt3_jax, yourmt3_torch

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SMALL = NetworkConfig(
    vocab_size=1536, emb_dim=8, num_heads=1, head_dim=4, mlp_dim=6, num_encoder_layers=1, num_decoder_layers=1
)


def check_same(own: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    assert own.keys() == arrays.keys()
    for name, array in arrays.items():
        assert own[name].dtype == array.dtype, name
        assert own[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("side", [jax_side.Side, torch_side.Side])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sides_of_mt3_hold_the_arrays_of_the_file(tmp_path, side, dtype):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape in array_shapes(SMALL).items()}
    write_safetensors(tmp_path / "a.safetensors", arrays, Config(network=SMALL), 0)
    check_same(side.load(tmp_path / "a.safetensors").arrays(), arrays)


@pytest.mark.parametrize("side", [yourmt3_jax.Side, yourmt3_torch.Side])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sides_of_yourmt3_hold_the_arrays_of_the_file(tmp_path, side, dtype):
    checkpoint = toy()
    arrays = {
        name: array.astype(dtype) if array.dtype == np.float32 else array for name, array in checkpoint.arrays.items()
    }
    write_yourmt3(tmp_path / "a.safetensors", checkpoint._replace(arrays=arrays))
    check_same(side.load(tmp_path / "a.safetensors").arrays(), arrays)
