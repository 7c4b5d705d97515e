"""Names in one spelling, maps of names, and the order of arrays and axes."""

import json

import numpy as np
import pytest

from parity.networks.names import NameMap, plain, read_map, slashed
from parity.networks.recording import Event, unrolled
from parity.networks.taps import View, best_view, match_arrays
from parity.networks.weights import role_of


def test_frameworks_spell_a_name_in_one_way():
    assert plain("encoder/layers_0/mlp") == plain("encoder.layers.0.mlp") == "encoder.layers.0.mlp"
    assert plain("mlp/~/linear_1") == "mlp.linear.1"
    assert slashed("encoder.layers.0.mlp") == "encoder/layers_0/mlp"
    assert plain("conv1.weight") == "conv1.weight"


def test_a_plain_entry_maps_everything_below_it_and_nothing_beside_it():
    names = NameMap({"encoder.layers": "enc.blocks"})
    assert names.candidate("encoder.layers.0.mlp") == "enc.blocks.0.mlp"
    assert names.candidate("encoder.layers") == "enc.blocks"
    assert names.candidate("encoder.layers_norm") == "encoder.layers_norm"
    assert names.candidate("encoder.layers.0#2") == "enc.blocks.0#2"


def test_a_regular_expression_may_use_its_groups():
    names = NameMap({r"layers\.(\d+)\.attn": r"blocks.\1.attention"})
    assert names.candidate("decoder.layers.11.attn.query") == "decoder.blocks.11.attention.query"


def test_an_empty_name_is_the_whole_network():
    assert NameMap({"": "model"}).candidate("encoder.mlp") == "model.encoder.mlp"


LONG, DEEP = pytest.param("0" * 2**21, id="long"), pytest.param("[" * 10**5, id="deep")


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"a": 1}', '{"(": "b"}', LONG, DEEP])
def test_a_bad_map_is_refused_in_one_sentence(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError, match="name"):
        read_map(tmp_path / "names.json")


def test_a_map_is_read(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"a": "b"}))
    assert read_map(tmp_path / "names.json") == {"a": "b"}


def test_channels_first_and_last_are_one_array():
    array = np.random.default_rng(0).normal(size=(2, 5, 5, 5))
    view = best_view(array, array.transpose(0, 3, 1, 2))
    assert view == View(axes=(0, 2, 3, 1))
    np.testing.assert_array_equal(view(array.transpose(0, 3, 1, 2)), array)
    np.testing.assert_array_equal(view.back(array, (2, 5, 5, 5)), array.transpose(0, 3, 1, 2))


def test_arrays_in_another_order_find_their_counterparts():
    rng = np.random.default_rng(0)
    a, b, ids = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.integers(0, 9, (3, 4))
    pairs = match_arrays([a, b, ids], [ids, b, a])
    assert [(number, other) for number, other, _ in pairs] == [(0, 2), (1, 1), (2, 0)]


def test_a_scan_becomes_layers_by_number():
    def event(name, part, count):
        return Event(name, part, executions=[[np.array(i)] for i in range(count)], later=True)

    untold = [event("layers", "in", 0), event("layers.up", "out", 0)]
    run = [event("layers#2", "in", 2), event("layers.up#2", "out", 2)]
    events, scanned = unrolled([*untold, *run])
    assert [(e.name, int(e.arrays[0])) for e in events] == [
        ("layers.0", 0),
        ("layers.0.up", 0),
        ("layers.1", 1),
        ("layers.1.up", 1),
    ]
    assert scanned == {"layers": 2}


def test_projections_are_read_from_their_names():
    assert [role_of(name) for name in ("a.q_proj", "a/key", "to_v", "a.kernel")] == ["q", "k", "v", ""]
