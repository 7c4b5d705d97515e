"""Traces survive a file bit for bit; damaged, foreign and empty files are refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from parity.sides.cache import unrolled
from parity.trace.file import TraceError, load, save
from parity.trace.trace import Call, Pass, Trace, digest, same_bits


def small_trace() -> Trace:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3))
    run = Pass(
        precision="float64",
        mode={"jax_enable_x64": True, "other dtypes": {}},
        outputs={"b": x, "a": x + 1},
        logits=x,
        capture_is_neutral=True,
        calls={"b": Call((x, None, np.array([[True]])), {"shared_axis": None}), "a": Call((x, False))},
        local={"b": x * 2},
        exact={"a": x * 3},
    )
    return Trace(
        "jax", {"jax": "1"}, {"input_frames": 4}, {"w": ["float32", [2], "abc"]}, {"frames": x}, {"float64": run}
    )


def test_a_file_holds_everything(tmp_path):
    trace = small_trace()
    save(tmp_path / "a.safetensors", trace)
    result = load(tmp_path / "a.safetensors")
    assert (result.framework, result.environment, result.config) == (trace.framework, trace.environment, trace.config)
    assert (result.weights, result.created) == (trace.weights, trace.created)
    assert same_bits(result.inputs["frames"], trace.inputs["frames"])
    run, original = result.passes["float64"], trace.passes["float64"]
    assert list(run.outputs) == ["b", "a"]
    for kind in ("outputs", "local", "exact"):
        for tap, array in getattr(original, kind).items():
            assert same_bits(getattr(run, kind)[tap], array)
    assert run.calls["b"].args[1] is None
    assert run.calls["b"].kwargs == {"shared_axis": None}
    assert same_bits(run.calls["b"].args[2], original.calls["b"].args[2])
    # an array that is many things is kept once, and comes back as one
    assert run.calls["a"].args[0] is run.outputs["b"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_one_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, small_trace())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TraceError, match=r"1 of .* arrays are damaged"):
        load(path)


def header_changed(path, change):
    with safetensors.safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["header"])
        result = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header)
    safetensors.numpy.save_file(result, path, metadata={"header": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(version=99), "a trace of version 99, this program reads version 1"),
        (lambda header: header.update(format="other"), "not a trace"),
        (lambda header: header.pop("weights"), "incomplete trace"),
        (lambda header: header["passes"]["float64"].update(logits="gone"), "incomplete trace"),
        (lambda header: header["passes"].clear(), "an empty trace"),
        (lambda header: header["passes"]["float64"].update(outputs=[]), "an empty trace"),
    ],
)
def test_foreign_and_empty_traces_are_refused(tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    save(path, small_trace())
    header_changed(path, change)
    with pytest.raises(TraceError, match=message):
        load(path)


@pytest.mark.parametrize("content", [b"", b"not a trace at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="not a"):
        load(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(TraceError, match="no such trace file"):
        load(tmp_path / "none")


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(st.sampled_from([np.float32, np.int32, bool]), arrays.array_shapes(min_side=0)))
def test_digest_tells_dtype_shape_and_bytes_apart(array):
    assert digest(array) == digest(array.copy(order="F"))
    assert digest(array) != digest(array[np.newaxis])
    if array.dtype != bool:
        assert digest(array) != digest(array.view(np.uint32))
    if array.size:
        changed = array.copy()
        changed.reshape(-1)[0] = 1 if changed.reshape(-1)[0] != 1 else 0
        assert digest(array) != digest(changed)


def test_unrolled_puts_a_ring_in_order():
    # one layer, one head of width 1, a ring of 5 slots whose next slot is 2: the last 4 tokens are in 3, 4, 0, 1
    ring = np.arange(5.0).reshape(1, 1, 5, 1)
    cross = np.arange(6.0).reshape(1, 2, 3, 1)
    result = unrolled([ring], [ring + 10], [cross], [cross + 10], slot=2, length=4)
    assert result["decoder/layers_0/self_attention/key"][0, :, 0].tolist() == [3, 4, 0, 1]
    assert result["decoder/layers_0/self_attention/value"][0, :, 0].tolist() == [13, 14, 10, 11]
    assert result["decoder/layers_0/encoder_decoder_attention/key"][0].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert result["decoder/layers_0/encoder_decoder_attention/value"][0].tolist() == [[10, 13], [11, 14], [12, 15]]
