"""The search of YourMT3+ in ONNX against the ids of the published code, and the PyTorch twin's."""

import functools
import zipfile

import numpy as np
import onnx
import pytest
import torch
from yourmt3_cases import CASES, NAMES, Case, golden_case

from mt3_common.audio.segments import Segment
from onnx_mt3 import builder, decode
from onnx_mt3.yourmt3 import decode as yourmt3_decode
from onnx_mt3.yourmt3 import graph, search, t5
from torch_mt3.yourmt3 import checkpoint as torch_checkpoint
from torch_mt3.yourmt3 import kernels as torch_kernels
from torch_mt3.yourmt3.model import YourMT3

MAX_TOKENS = 24
RUNS = [
    (name, float(tap.removesuffix(".npy").removeprefix("greedy/eos_gain")))
    for name in NAMES
    for tap in zipfile.ZipFile(CASES / name / "taps.npz").namelist()
    if tap.startswith("greedy/")
]


@functools.cache
def golden(name: str) -> Case:
    return golden_case(name)


def searched(case: Case, gain: float = 1.0, dtype: str = "float32", max_steps: int = MAX_TOKENS, **how) -> list:
    """The ids of a case's segments, by the file's graph."""
    arrays = case.with_eos_gain(gain)
    model = graph.search_graph(arrays, case.config, stored=dtype, computed=dtype, prefix=case.prefix)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.version for entry in model.opset_import} == {builder.OPSET}
    session = decode.session(model.SerializeToString(), threads=1, computed=dtype)
    generate = yourmt3_decode.generator(session, max_steps - bool(case.prefix), **how)
    return list(generate(Segment(0, 0.0, frames, len(frames)) for frames in case.frames))


def published_ids(case: Case, gain: float) -> np.ndarray:
    ids = case.taps[f"greedy/eos_gain{gain}"]
    return ids[:, 0] if case.config.decoder == "t5" else ids


def assert_same_ids(rows, expected) -> None:
    """Rows of a batch are as long as the longest of it, and zeros follow their ends."""
    assert len(rows) == len(expected)
    for row, truth in zip(rows, expected, strict=True):
        length = min(row.shape[-1], truth.shape[-1])
        np.testing.assert_array_equal(row[..., :length], truth[..., :length])
        assert not row[..., length:].any()
        assert not truth[..., length:].any()


def test_there_are_runs():
    assert len(RUNS) >= 24


@pytest.mark.parametrize(("name", "gain"), RUNS)
def test_ids_are_the_published_ones(name, gain):
    case = golden(name)
    rows = searched(case, gain)
    assert_same_ids(rows, published_ids(case, gain))
    assert all(row.dtype == np.int32 for row in rows)


@pytest.mark.parametrize("name", ["ptf_moe_multi", "t5_prefix", "multi_trainable_moe"])
def test_float64_gives_them_too(name):
    gain = max(gain for run, gain in RUNS if run == name)
    assert_same_ids(searched(golden(name), gain, "float64"), published_ids(golden(name), gain))


def torch_ids(case: Case, frames: np.ndarray, max_tokens: int, allowed: np.ndarray | None = None) -> np.ndarray:
    network = YourMT3(case.config)
    network.load_state_dict(torch_checkpoint.to_state_dict(case.arrays, case.config), strict=True)
    torch_kernels.pack(network.eval())
    encoded = torch_kernels.encode(network, torch.from_numpy(frames), case.prefix)
    decoder = torch_kernels.CachedDecoder(network, allowed)
    return torch_kernels.greedy_search(decoder, encoded, max_tokens, case.prefix)


@pytest.mark.parametrize("name", ["ptf_moe_multi", "ymt3plus", "t5_prefix", "ptf_pe_kdt", "conformer", "t5_moe"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_longer_searches_give_the_twins_ids(name, batch_size):
    """A limit that is no multiple of a block is a limit all the same; rows leave at different times."""
    case = golden(name)
    frames = np.random.default_rng(0).random((5, *case.frames.shape[1:]), np.float32)
    other = Case(case.config, case.with_eos_gain(3.0), frames, case.tokens, case.taps)
    rows = searched(other, max_steps=21, batch_size=batch_size)
    expected = torch_ids(other, frames, 21)
    assert_same_ids(rows, expected)
    # each core's share of a batch ends with its own last row
    assert max(row.shape[-1] for row in rows) == expected.shape[-1]


@pytest.mark.parametrize("name", ["ymt3plus", "ptf_moe_multi"])
def test_only_allowed_ids_are_chosen(name):
    case = golden(name)
    allowed = np.zeros(case.config.vocab_size, bool)
    allowed[[1, 7, 30]] = True
    rows = searched(case, max_steps=6, allowed=allowed)
    assert_same_ids(rows, torch_ids(case, case.frames, 6, allowed))
    assert set(np.unique(np.concatenate(rows, axis=-1)).tolist()) <= {0, 1, 7, 30}


def test_weights_are_stored_once_and_as_asked():
    case = golden("ptf_moe_multi")
    sizes = {
        stored: len(graph.search_graph(case.arrays, case.config, stored=stored).SerializeToString())
        for stored in ("bfloat16", "float32")
    }
    bytes_of_weights = 4 * sum(array.size for array in case.arrays.values())
    assert 0.9 * bytes_of_weights < sizes["float32"] < bytes_of_weights + 300_000
    assert sizes["float32"] - sizes["bfloat16"] == pytest.approx(bytes_of_weights / 2, rel=0.1)


@pytest.mark.parametrize("name", ["ymt3plus", "ptf_moe_multi"])
def test_weights_apart_give_the_same_ids_and_batches_give_their_memory_back(name, monkeypatch):
    case = golden(name)
    model, weights = graph.search_parts(case.arrays, case.config, prefix=case.prefix)
    assert sum(array.nbytes for array in weights.values()) > 0.9 * 4 * sum(a.size for a in case.arrays.values())
    whole = graph.search_graph(case.arrays, case.config, stored="float32", prefix=case.prefix)
    assert model.ByteSize() < whole.ByteSize() - 0.9 * sum(array.nbytes for array in weights.values())
    session = decode.session(model.SerializeToString(), threads=1, weights=weights)
    runs, run = [], session.run
    monkeypatch.setattr(
        session, "run", lambda names, inputs, options: runs.append(options) or run(names, inputs, options)
    )
    generate = yourmt3_decode.generator(session, MAX_TOKENS - bool(case.prefix))
    rows = list(generate(Segment(0, 0.0, frames, len(frames)) for frames in case.frames))
    assert_same_ids(rows, searched(case))
    assert {options.get_run_config_entry("memory.enable_memory_arena_shrinkage") for options in runs} == {"cpu:0"}


def test_weights_that_are_exact_are_not_rounded():
    """Norms that are folded into convolutions, and positions, are in the computed dtype whatever the weights are in."""
    case = golden("ptf_moe_multi")
    positions = ("additive_pe.weight", "freqs", "running_mean", "running_var")
    arrays = {
        name: array if array.dtype != np.float32 or name.endswith(positions) else as_bfloat16(array)
        for name, array in case.arrays.items()
    }
    logits = []
    for stored in ("float32", "bfloat16"):
        model = graph.logits_graph(arrays, case.config, stored=stored)
        names = [tensor.name for tensor in model.graph.initializer]
        assert not {name for name in names if name.endswith(".freqs")}
        session = decode.session(model.SerializeToString(), threads=1)
        inputs = {"frames": case.frames[:1], "decoder_input_tokens": case.tokens[:1]}
        logits.append(np.asarray(session.run(["logits"], inputs)[0]))
    np.testing.assert_array_equal(*logits)


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    return array.astype("bfloat16").astype(np.float32)


def first_ends(self, chosen, first):
    """The fault that EOS as a row's first id ends it."""
    return self.op("Equal", chosen, self.scalar(1))


def fed_too_late(self, age, logits, values):
    """The fault that ids of a prefix are not fed."""
    best = self.op("ArgMax", self.op("Add", logits, self.allowed), axis=1, keepdims=1)
    return best, best


def stale_position(right):
    """The fault that a step stands at the position before."""
    return lambda self, age, *rest: right(self, self.op("Sub", age, self.scalar(1)), *rest)


def one_further(right):
    """The fault that keys seem one further away."""
    return lambda self, distance: right(self, self.graph.op("Add", distance, self.graph.scalar(1)))


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "wrong"),
    [
        ("ptf_multi", search.SearchBuilder, "ends", first_ends),
        ("t5_prefix", search.SearchBuilder, "choose", fed_too_late),
        ("ptf_multi", search.SearchBuilder, "step", stale_position(search.SearchBuilder.step)),
        ("multi_trainable_moe", t5.T5Nodes, "past_buckets", one_further(t5.T5Nodes.past_buckets)),
    ],
)
def test_a_planted_fault_gives_other_ids(name, owner, attribute, wrong, monkeypatch):
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        compare_runs(name)


def compare_runs(name: str) -> None:
    """Compare all recorded runs of a case."""
    for gain in (gain for run, gain in RUNS if run == name):
        assert_same_ids(searched(golden(name), gain), published_ids(golden(name), gain))
