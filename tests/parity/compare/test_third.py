"""ONNX Runtime as a third side: what is right is the same, planted faults of the builder are named, votes."""

import dataclasses

import numpy as np
import pytest

from mt3_common.config import Config
from onnx_mt3 import network
from onnx_mt3.builder import GraphBuilder
from onnx_mt3.network import NetworkBuilder
from parity.check import name_causes
from parity.commands.check import has_third
from parity.compare import third
from parity.compare.results import THIRD, Report, Row
from parity.compare.third import compare_decoding_with_third, compare_taps_with_third
from parity.sides import record
from parity.sides.onnx_graphs import OnnxGraphs
from parity.sides.torch_side import Side
from parity.trace import inputs
from torch_mt3 import checkpoint
from torch_mt3.model import Transformer


@pytest.fixture(scope="module")
def config(golden_config):
    return dataclasses.replace(Config(), network=golden_config, input_frames=32, max_target_length=32)


@pytest.fixture(scope="module")
def side(golden_arrays, config):
    model = Transformer(config.network)
    model.load_state_dict(checkpoint.to_state_dict(golden_arrays))
    return Side(model, config)


@pytest.fixture(scope="module")
def traces(side, config):
    """Traces of PyTorch, and the same again in the place of Flax."""
    frames = np.random.default_rng(0).normal(-4, 2, (2, 32, config.network.input_depth)).astype(np.float32)
    trace = record.record(side, inputs.with_tokens(frames, config, 24), ("float64", "float32"))
    return trace, dataclasses.replace(trace, framework="jax")


def first(rows):
    """Name of the first row that differs."""
    return next((row.name for row in rows if row.verdict != "same"), None)


def test_a_right_graph_is_the_same_at_every_module(golden_arrays, config, traces):
    rows = compare_taps_with_third(OnnxGraphs(golden_arrays, config), traces)
    assert first(rows) is None
    for precision in ("float64", "float32"):
        names = [row.name for row in rows if row.precision == precision]
        assert set(traces[0].passes["float64"].outputs) - set(names) == {
            name for name in traces[0].passes["float64"].outputs if "dropout" in name or "positions" in name
        } | {"encoder", "decoder"}
        assert names[-1] == "logits"
    # measured: 0.16; a budget is worth something if what is right stays well below it
    assert max(row.free.ratio for row in rows) < 0.5


def scaled(**factors):
    """A fault of the arrays: those whose names end so are multiplied."""
    ends = {name.replace("__", "/"): factor for name, factor in factors.items()}
    return lambda arrays: {
        name: next((factor * array for end, factor in ends.items() if name.endswith(end)), array)
        for name, array in arrays.items()
    }


def exchanged(a, b):
    """A fault of the arrays: two parts of a name are exchanged."""

    def fault(arrays):
        names = {name: name.replace(a, "\0").replace(b, a).replace("\0", b) for name in arrays}
        return {name: arrays[other] for name, other in names.items()}

    return fault


def replaced_op(kind, **changes):
    """A fault of the builder: nodes of a kind are of another kind, or have another attribute."""
    op = GraphBuilder.op

    def fault(self, name, *values, **attributes):
        if name != kind:
            return op(self, name, *values, **attributes)
        other = {key: value for key, value in changes.items() if key != "to_kind"}
        return op(self, changes.get("to_kind", kind), *values, **{**attributes, **other})

    return "op", fault


def other_real(old, new):
    real = GraphBuilder.real
    return "real", lambda self, value: real(self, new if value == old else value)


def heads_as(fault):
    heads = NetworkBuilder.heads
    return "heads", lambda self, x, transposed=False: fault(self, heads, x, transposed)


def transposed_out(arrays):
    name = "encoder/layers_0/attention/out/kernel"
    return arrays | {name: np.ascontiguousarray(arrays[name].T)}


def no_scale(name):
    return lambda arrays: arrays | {name: np.ones_like(arrays[name])}


def rounded(arrays):
    return {name: array.astype("bfloat16").astype(np.float32) for name, array in arrays.items()}


def sigmoid_gelu(self, x):
    return self.op("Mul", x, self.op("Sigmoid", self.op("Mul", x, self.real(1.702))))


def interleaved(self, x):
    shape = self.ints([0, 0, self.network.num_heads * self.network.head_dim])
    return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 3, 1]), shape)


TABLE = network.sinusoids
ENCODER, DECODER = "encoder/layers_0", "decoder/layers_0"
# what is wrong -> (fault of the arrays, or attribute of the builder and its replacement; the first tap that shows it)
FAULTS = {
    "epsilon": (other_real(1e-6, 1e-5), f"{ENCODER}/pre_attention_layer_norm"),
    "sum for mean": (replaced_op("ReduceMean", to_kind="ReduceSum"), f"{ENCODER}/pre_attention_layer_norm"),
    "scale of a norm left out": (no_scale("encoder/encoder_norm/scale"), "encoder/encoder_norm"),
    "scale of the last norm": (no_scale("decoder/decoder_norm/scale"), "decoder/decoder_norm"),
    "constant of GELU": (other_real(0.044715, 0.0447), f"{ENCODER}/mlp/wo"),
    "GELU by a sigmoid": (("gelu", sigmoid_gelu), f"{ENCODER}/mlp/wo"),
    "ReLU": (("gelu", lambda self, x: self.op("Relu", x)), f"{ENCODER}/mlp/wo"),
    "scaled attention": (
        heads_as(
            lambda self, heads, x, t: self.op("Mul", heads(self, x, t), self.real(0.25)) if t else heads(self, x, t)
        ),
        f"{ENCODER}/attention/out",
    ),
    "heads joined in another order": (("joined", interleaved), f"{ENCODER}/attention/out"),
    "softmax over queries": (replaced_op("Softmax", axis=-2), f"{ENCODER}/attention/out"),
    "out kernel transposed": (transposed_out, f"{ENCODER}/attention/out"),
    "query for key": (exchanged("attention/query", "attention/key"), f"{ENCODER}/attention/query"),
    "value for key": (exchanged("self_attention/value", "self_attention/key"), f"{DECODER}/self_attention/key"),
    "gates exchanged": (exchanged("wi_0", "wi_1"), f"{ENCODER}/mlp/wi_0"),
    "layers exchanged": (exchanged("decoder/layers_0", "decoder/layers_1"), f"{DECODER}/pre_self_attention_layer_norm"),
    "embedding scaled": (scaled(token_embedder__embedding=48**0.5), "decoder/token_embedder"),
    "logits scaled": (scaled(logits_dense__kernel=48**-0.5), "decoder/logits_dense"),
    "weights rounded": (rounded, "encoder/continuous_inputs_projection"),
    "the future is seen": (replaced_op("Trilu", upper=1), f"{DECODER}/self_attention/out"),
    "no mask": (("masked", -1.0), f"{DECODER}/self_attention/out"),
    "table of the ports": (("sinusoids", lambda *a: TABLE(*a[:2], "port")), f"{ENCODER}/pre_attention_layer_norm"),
    "positions from 1": (
        ("sinusoids", lambda n, *a: TABLE(n + 1, *a)[1:]),
        f"{ENCODER}/pre_attention_layer_norm",
    ),
}


def planted(fault, golden_arrays, config, monkeypatch) -> OnnxGraphs:
    """Graphs with a fault."""
    if callable(fault):
        return OnnxGraphs(fault(golden_arrays), config)
    name, replacement = fault
    if name in ("sinusoids", "masked"):
        monkeypatch.setattr(network, name if name == "sinusoids" else "MASKED", replacement)
    else:
        monkeypatch.setattr(NetworkBuilder, name, replacement)
    return OnnxGraphs(golden_arrays, config)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_builder_is_named(golden_arrays, config, traces, monkeypatch, name):
    fault, tap = FAULTS[name]
    rows = compare_taps_with_third(planted(fault, golden_arrays, config, monkeypatch), traces)
    assert first(rows) == tap
    row = next(row for row in rows if row.name == tap)
    assert row.precision == "float64"
    assert row.note.startswith("onnx stands alone; equal up to ")
    sentence = name_causes(Report(rows=rows), None, None, None)
    assert sentence[0].startswith(f"both twins are the same as each other: only onnx differs, first at {tap} (onnx")


@pytest.mark.parametrize(("wrong", "place"), [("torch", 0), ("jax", 1)])
def test_a_wrong_twin_stands_alone(golden_arrays, config, traces, wrong, place):
    changed = list(traces)
    exact = changed[place].passes["float64"]
    tap = "encoder/layers_1/mlp"
    outputs = exact.outputs | {tap: exact.outputs[tap] * (1 + 1e-9)}
    passes = changed[place].passes | {"float64": dataclasses.replace(exact, outputs=outputs)}
    changed[place] = dataclasses.replace(changed[place], passes=passes)
    rows = compare_taps_with_third(OnnxGraphs(golden_arrays, config), tuple(changed))
    assert [(row.name, row.note.split(" ")[0]) for row in rows if row.verdict != "same"] == [(tap, wrong)]


def test_three_that_differ_are_all_named(golden_arrays, config, traces):
    exact = traces[1].passes["float64"]
    logits = dataclasses.replace(exact, logits=exact.logits * (1 + 1e-9))
    other = dataclasses.replace(traces[1], passes=traces[1].passes | {"float64": logits})
    graphs = OnnxGraphs(scaled(logits_dense__kernel=1.01)(golden_arrays), config)
    rows = compare_taps_with_third(graphs, (traces[0], other))
    assert next(row for row in rows if row.name == "logits").note.startswith("each stands alone")


def test_a_tap_that_a_twin_lacks_is_a_difference(golden_arrays, config, traces):
    exact = traces[1].passes["float64"]
    outputs = {name: array for name, array in exact.outputs.items() if name != "encoder/encoder_norm"}
    passes = traces[1].passes | {"float64": dataclasses.replace(exact, outputs=outputs)}
    rows = compare_taps_with_third(
        OnnxGraphs(golden_arrays, config), (traces[0], dataclasses.replace(traces[1], passes=passes))
    )
    assert first(rows) == "encoder/encoder_norm"


def test_tokens_and_notes_of_the_search_inside_the_graph(golden_arrays, config, side, monkeypatch):
    segments = list(np.random.default_rng(1).normal(-4, 2, (2, 32, config.network.input_depth)).astype(np.float32))
    graphs = OnnxGraphs(golden_arrays, config)
    rows = compare_decoding_with_third(graphs, side, segments, [0.0, 0.5], config)
    assert [row.section for row in rows] == ["onnx tokens"] * 3 + ["onnx notes"]
    assert {row.verdict for row in rows} == {"same"}
    wrong = OnnxGraphs(exchanged("wi_0", "wi_1")(golden_arrays), config)
    rows = compare_decoding_with_third(wrong, side, segments, [0.0, 0.5], config)
    assert rows[0].verdict == "different"


def test_who_is_wrong_is_a_majority():
    assert {row.section for row in [Row(THIRD, "x", "same")]} == {"onnx"}
    over, fine = (
        dataclasses.replace(third.judge(np.ones(1), np.ones(1), np.zeros(1), "float64"), ratio=r) for r in (9, 0)
    )
    assert third.standing_alone("torch", "jax", [fine, fine], False) == ""
    assert third.standing_alone("torch", "jax", [over, fine], True) == "torch"
    assert third.standing_alone("torch", "jax", [fine, over], True) == "jax"
    assert third.standing_alone("torch", "jax", [over, over], False) == "onnx"
    assert third.standing_alone("torch", "jax", [over, over], True) == "each"


@pytest.mark.parametrize(
    ("asked", "precisions", "answer"),
    [
        (None, ("float64", "float32"), True),
        ("none", ("float64", "float32"), False),
        (None, ("float64",), False),
        ("onnx", ("float64", "float32", "bfloat16"), True),
    ],
)
def test_when_it_is_compared(asked, precisions, answer):
    assert has_third(asked, precisions) is answer


def test_a_third_side_that_cannot_be_compared_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="--precisions lacks float32"):
        has_third("onnx", ("float64",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'--third onnx needs onnx: pip install "mt3-twins\[onnx\]"'):
        has_third("onnx", ("float64", "float32"))
    assert has_third(None, ("float64", "float32")) is False
