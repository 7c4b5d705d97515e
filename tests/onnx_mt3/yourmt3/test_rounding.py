"""The weights that mt3 export calls rounded are those of which the file has lost something."""

import functools

import ml_dtypes
import numpy as np
import onnx
import pytest
from yourmt3_cases import NAMES, golden_case
from yourmt3_toys import toy, write_toy

from mt3_common.cli import mt3
from onnx_mt3 import export
from onnx_mt3.yourmt3 import graph

SHORT = {"stored": "bfloat16", "computed": "float32"}
# each way to compute with a batch norm, and slopes
TRIED_ONE_BY_ONE = ("conformer", "multi_trainable_moe", "ptf_pe_alibit", "ymt3plus")


def initializers(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}


def shortened(arrays: dict, names) -> dict:
    """Return arrays of which some have bfloat16's values."""
    return arrays | {name: arrays[name].astype(ml_dtypes.bfloat16).astype(np.float32) for name in names}


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "search") for name in NAMES), *((name, "teacher") for name in TRIED_ONE_BY_ONE)]
)
def test_what_is_called_rounded_is_rounded(name, kind):
    case = golden_case(name)
    build = functools.partial(graph.search_graph, prefix=case.prefix) if kind == "search" else graph.teacher_graph
    draw = np.random.default_rng(0)
    # bfloat16 has no value of them
    arrays = {
        key: (array + 1e-3 * draw.uniform(0.5, 1, array.shape)).astype(np.float32) if array.ndim else array
        for key, array in case.arrays.items()
    }
    model = build(arrays, case.config, **SHORT)
    told, written = export.rounded_weights(model, arrays, **SHORT), initializers(model)
    assert told
    assert initializers(build(shortened(arrays, told), case.config, **SHORT)) == written
    exact = [key for key in arrays if key not in told and arrays[key].ndim and not key.endswith(export.UNTRAINED)]
    for key in exact if name in TRIED_ONE_BY_ONE else ():
        assert initializers(build(shortened(arrays, [key]), case.config, **SHORT)) != written, key


def test_folded_convolutions_are_not_counted(tmp_path, capsys):
    path = write_toy(tmp_path / "toy.safetensors")
    arrays = {name: array for name, array in toy().arrays.items() if not name.endswith(export.UNTRAINED)}
    short = {name for name, array in arrays.items() if not export._is_rounded(array, "bfloat16")}
    exact = {name for name in arrays if ".bn" in name or (".blocks." in name and ".conv" in name)}
    assert len(exact - short) == 6
    assert mt3.main(["export", str(path), "-o", str(tmp_path / "toy.onnx")]) == 0
    count = len(arrays.keys() - short - exact)
    assert f"bfloat16 rounds the weights of {count} arrays; --stored float32" in capsys.readouterr().err
