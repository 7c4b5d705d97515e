"""MT3's array names and shapes, and sets of arrays that are not quite them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.checkpoint import names as arrays
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.config import PRESETS, NetworkConfig

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/model/config.json").read_text())
FIELDS = [field.name for field in dataclasses.fields(NetworkConfig) if field.name in GOLDEN]
SMALL = NetworkConfig(**{name: GOLDEN[name] for name in FIELDS})


class Shaped(NamedTuple):
    """The part of an array that the checks look at."""

    shape: tuple[int, ...]


def shaped(config: NetworkConfig) -> dict[str, Shaped]:
    return {name: Shaped(shape) for name, shape in arrays.array_shapes(config).items()}


def test_full_size_has_the_published_number_of_arrays_and_parameters():
    shapes = arrays.array_shapes(PRESETS["mt3"].network)
    scales = {name: shape for name, shape in shapes.items() if name.endswith("/scale")}
    assert (len(shapes), len(scales)) == (189, 42)
    assert sum(map(math.prod, shapes.values())) == 45_896_704
    assert sum(map(math.prod, scales.values())) == 21_504
    assert shapes["encoder/layers_7/attention/query/kernel"] == (512, 384)
    assert shapes["decoder/layers_7/encoder_decoder_attention/out/kernel"] == (384, 512)
    assert list(shapes) == arrays.array_names(8, 8)


def test_names_and_shapes_are_those_of_mt3s_own_small_network():
    golden = {name: tuple(shape) for name, shape in GOLDEN["parameters"].items()}
    assert arrays.array_shapes(SMALL) == golden


@pytest.mark.parametrize("config", [SMALL, PRESETS["mt3"].network, PRESETS["ismir2021"].network])
def test_sizes_come_back_from_the_shapes(config):
    sizes = arrays.array_sizes(shaped(config))
    assert sizes.pop("attention_dim") == config.num_heads * config.head_dim
    assert sizes == {name: getattr(config, name) for name in sizes}
    arrays.check_arrays(shaped(config), config)


NAMES = sorted(arrays.array_shapes(SMALL))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(["missing", "longer", "turned", "flat"]))
def test_one_wrong_array_is_the_one_named(name, fault):
    shapes = shaped(SMALL)
    shape = shapes.pop(name).shape
    if fault != "missing":
        wrong = {"longer": (*shape[:-1], shape[-1] + 7), "turned": shape[::-1], "flat": (math.prod(shape), 1, 1)}[fault]
        if wrong == shape:
            return
        shapes[name] = Shaped(wrong)
    # with the config, and against the network that the other arrays describe
    with pytest.raises(CheckpointError) as stated:
        arrays.check_arrays(shapes, SMALL)
    assert f"array {name} " in str(stated.value)
    assert "more" not in str(stated.value)


def test_the_odd_one_out_is_named_without_a_config():
    shapes = shaped(SMALL)
    shapes["encoder/layers_0/attention/query/kernel"] = Shaped((48, 40))
    sizes = arrays.array_sizes(shapes)
    assert sizes["attention_dim"] == 48


def test_an_unexpected_array_is_named():
    shapes = shaped(SMALL) | {"encoder/layers_0/attention/query/bias": Shaped((48,))}
    with pytest.raises(CheckpointError, match=r"array encoder/layers_0/attention/query/bias is not one of MT3's"):
        arrays.check_arrays(shapes, SMALL)


def test_a_lost_layer_is_missing_rather_than_the_next_one_unexpected():
    shapes = {name: shape for name, shape in shaped(SMALL).items() if not name.startswith("decoder/layers_1/")}
    assert arrays.array_sizes(shapes)["num_decoder_layers"] == 3
    with pytest.raises(CheckpointError, match=r"decoder/layers_1/pre_self_attention_layer_norm/scale \(and 13 more\)"):
        arrays.check_arrays(shapes, SMALL)


def test_a_wild_layer_number_does_not_ask_for_the_layers_before_it():
    shapes = shaped(SMALL) | {"decoder/layers_9999/mlp/wo/kernel": Shaped((40, 48))}
    assert arrays.array_sizes(shapes)["num_decoder_layers"] == 4
    with pytest.raises(CheckpointError, match="decoder/layers_9999/mlp/wo/kernel"):
        arrays.check_arrays(shapes, SMALL)


@pytest.mark.parametrize("shapes", [{}, {"encoder.block.0.layer.0.SelfAttention.q.weight": Shaped((384, 512))}])
def test_arrays_of_something_else_are_refused(shapes):
    with pytest.raises(CheckpointError, match="not MT3's arrays"):
        arrays.array_sizes(shapes)


def test_a_size_that_no_array_tells_is_reported_by_the_array_that_would():
    shapes = {name: shape for name, shape in shaped(SMALL).items() if "/mlp/" not in name}
    with pytest.raises(CheckpointError, match="encoder/layers_0/mlp/wi_0/kernel is missing"):
        arrays.array_sizes(shapes)
