"""The comparer: what it must never let pass, and that planted faults are found where they are."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from parity.compare import results, traces
from parity.compare.budget import judge, measure
from parity.sides import record
from parity.trace import file, trace
from torch_mt3.model import Attention

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "model"


@pytest.fixture(scope="module")
def inputs():
    stored = np.load(GOLDEN / "activations.npz")
    return {
        "frames": stored["in/frames"],
        "decoder_input_tokens": stored["in/decoder_inputs"],
        "decoder_target_tokens": stored["in/targets"],
    }


@pytest.fixture(scope="module")
def torch_side():
    return record.load_side("torch", str(GOLDEN / "checkpoints" / "t5x_zarr"))


@pytest.fixture(scope="module")
def reference(inputs):
    return record.record(record.load_side("jax", str(GOLDEN / "checkpoints" / "t5x_zarr")), inputs)


@pytest.fixture(scope="module")
def candidate(inputs, reference, torch_side):
    return record.record(torch_side, inputs, reference=reference)


def test_clean_twins_are_the_same(reference, candidate):
    report = traces.compare(reference, candidate)
    assert report.verdict == "same", (report.refusals, report.first_difference)
    assert report.first_difference is None
    assert report.coverage()["taps"] == "234 of 234 compared, 0 skipped"
    assert report.coverage()["weights"] == "65 of 65 compared, 0 skipped"
    ratios = [m.ratio for row in report.rows for m in (row.free, row.local) if m is not None]
    # room to spare below the limit, and not so much that the limit means nothing
    assert 0.05 < max(ratios) < 0.6


def test_what_one_side_alone_has_was_not_compared(reference, candidate):
    def first_tap(run):
        tap = next(iter(run.outputs))
        return dataclasses.replace(run, outputs={tap: run.outputs[tap]})

    def poor(side):
        return dataclasses.replace(side, passes={name: first_tap(run) for name, run in side.passes.items()})

    report = traces.compare(reference, poor(candidate))
    assert report.verdict == "different"
    assert report.coverage()["taps"] == "2 of 234 compared, 0 skipped"
    report = traces.compare(poor(reference), candidate)
    assert report.verdict == "different"
    assert report.coverage()["taps"] == "2 of 2 compared, 0 skipped, 232 of the candidate alone"


def planted(torch_side, change):
    side = type(torch_side)(copy.deepcopy(torch_side.model), torch_side.config)
    change(side.model)
    return side


def transpose(model):
    weight = model.decoder.layers[1].self_attention.value.weight
    weight.data = weight.data.T.contiguous()


def swap_gates(model):
    mlp = model.encoder.layers[1].mlp
    mlp.wi_0, mlp.wi_1 = mlp.wi_1, mlp.wi_0


class Gelu(torch.nn.Module):
    """The MLP with the exact GELU, which differs from the tanh one by 5e-4 at most."""

    def __init__(self, mlp):
        super().__init__()
        self.wi_0, self.wi_1, self.dropout, self.wo = mlp.wi_0, mlp.wi_1, mlp.dropout, mlp.wo

    def forward(self, x, train=False):
        x = torch.nn.functional.gelu(self.wi_0(x)) * self.wi_1(x)
        return self.wo(self.dropout(x, train))


class Epsilon(torch.nn.Module):
    """RMSNorm with another epsilon."""

    def __init__(self, norm):
        super().__init__()
        self.scale = norm.scale

    def forward(self, x):
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + 1e-5) * self.scale


class Scaled(Attention):
    """Attention with the 1/sqrt(head_dim) that MT3 does not have."""

    def forward(self, inputs_q, inputs_kv, mask, train=False):
        return super().forward(inputs_q * self.config.head_dim**-0.5, inputs_kv, mask, train)


def scaled(attention):
    attention.__class__ = Scaled
    return attention


def set_(owner, name, make):
    def change(model):
        parent = model.get_submodule(owner)
        setattr(parent, name, make(getattr(parent, name)))

    return change


def only_float64(report):
    rows = [row for row in report.rows if row.section == "taps" and row.precision == "float64"]
    return next(row for row in rows if row.local is not None and not row.local.ratio <= 1.0)


@pytest.mark.parametrize(
    ("change", "tap"),
    [
        (set_("encoder.layers.1", "mlp", Gelu), "encoder/layers_1/mlp"),
        (set_("decoder.layers.2", "pre_mlp_layer_norm", Epsilon), "decoder/layers_2/pre_mlp_layer_norm"),
        (set_("encoder", "encoder_norm", Epsilon), "encoder/encoder_norm"),
        (set_("decoder.layers.0", "self_attention", scaled), "decoder/layers_0/self_attention"),
    ],
)
def test_wrong_arithmetic_is_found_where_it_is(reference, torch_side, inputs, change, tap):
    report = traces.compare(reference, record.record(planted(torch_side, change), inputs, reference=reference))
    assert report.verdict == "different"
    assert report.first_difference.name == tap
    assert only_float64(report).name == tap
    later = [row for row in report.rows if row.name == "decoder/logits_dense" and row.precision == "float64"]
    assert later[0].verdict == "different"
    assert later[0].note.startswith("inherited")
    assert later[0].local.ratio <= 1.0


@pytest.mark.parametrize(
    ("change", "weight", "tap"),
    [
        (transpose, "decoder/layers_1/self_attention/value/kernel", "decoder/layers_1/self_attention/value"),
        (swap_gates, "encoder/layers_1/mlp/wi_0/kernel", "encoder/layers_1/mlp/wi_0"),
    ],
)
def test_wrong_weights_are_found_by_their_bits_and_by_their_effect(reference, torch_side, inputs, change, weight, tap):
    report = traces.compare(reference, record.record(planted(torch_side, change), inputs, reference=reference))
    assert report.verdict == "different"
    assert report.first_difference.name == weight
    assert only_float64(report).name == tap


def changed(candidate, precision="float32", **fields):
    run = dataclasses.replace(candidate.passes[precision], **fields)
    return dataclasses.replace(candidate, passes=candidate.passes | {precision: run})


def refusals(reference, candidate):
    report = traces.compare(reference, candidate)
    assert report.verdict == "refused"
    assert report.exit_code == 2
    assert not [row for row in report.rows if row.section == "taps"]
    return "; ".join(report.refusals)


def test_other_inputs_are_refused(reference, candidate):
    frames = candidate.inputs["frames"].copy()
    frames[0, 0, 0] = np.nextafter(frames[0, 0, 0], 9)
    other = dataclasses.replace(candidate, inputs=candidate.inputs | {"frames": frames})
    assert "different frames" in refusals(reference, other)
    fewer = {name: array for name, array in candidate.inputs.items() if name != "decoder_target_tokens"}
    assert "only one side" in refusals(reference, dataclasses.replace(candidate, inputs=fewer))


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ({"allow_tf32": True}, "TF32 was allowed"),
        ({"float32_matmul_precision": "medium"}, "matmul precision was medium"),
        ({"autocast": True}, "autocast was on"),
        ({"deterministic": False}, "not deterministic"),
        ({"inputs": ["bfloat16"]}, "the inputs were bfloat16"),
        ({"other dtypes": {"encoder/layers_0/mlp": "bfloat16"}}, "encoder/layers_0/mlp in bfloat16"),
    ],
)
def test_another_precision_is_refused(reference, candidate, mode, reason):
    other = changed(candidate, mode=candidate.passes["float32"].mode | mode)
    assert reason in refusals(reference, other)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ({"jax_enable_x64": True}, "jax_enable_x64 was True"),
        ({"jax_default_matmul_precision": "tensorfloat32"}, "jax_default_matmul_precision was tensorfloat32"),
        ({"jax_default_matmul_precision": None}, "jax_default_matmul_precision was None"),
    ],
)
def test_another_precision_of_jax_is_refused(reference, candidate, mode, reason):
    other = changed(reference, mode=reference.passes["float32"].mode | mode)
    assert reason in refusals(other, candidate)


def test_more_reasons_to_refuse(reference, candidate):
    assert "observing changed the logits" in refusals(reference, changed(candidate, capture_is_neutral=False))
    config = copy.deepcopy(candidate.config)
    config["network"]["num_heads"] = 6
    assert "network.num_heads is 3 and 6" in refusals(reference, dataclasses.replace(candidate, config=config))
    for precision in ("float64", "float32"):
        one = [dataclasses.replace(side, passes={precision: side.passes[precision]}) for side in (reference, candidate)]
        assert refusals(*one)
    calls = dict(candidate.passes["float32"].calls)
    tap = "decoder/layers_0/self_attention"
    args = tuple(~arg if isinstance(arg, np.ndarray) and arg.dtype == bool else arg for arg in calls[tap].args)
    calls[tap] = trace.Call(args)
    assert f"the masks differ, first at {tap}" in refusals(reference, changed(candidate, calls=calls))
    assert "no weights" in refusals(
        dataclasses.replace(reference, weights={}), dataclasses.replace(candidate, weights={})
    )


def test_names_count_in_both_directions(reference, candidate):
    for side in (reference, candidate):
        weights = dict(side.weights)
        weights.pop("encoder/encoder_norm/scale")
        fewer = dataclasses.replace(side, weights=weights)
        pair = (fewer, candidate) if side is reference else (reference, fewer)
        report = traces.compare(*pair)
        assert report.verdict == "different"
        assert report.first_difference.name == "encoder/encoder_norm/scale"
    outputs = dict(candidate.passes["float32"].outputs)
    outputs.pop("encoder/encoder_norm")
    report = traces.compare(reference, changed(candidate, outputs=outputs))
    assert report.verdict == "different"
    assert "torch has no such tap" in report.first_difference.note
    report = traces.compare(
        reference, changed(candidate, outputs=candidate.passes["float32"].outputs | {"new": outputs["encoder"]})
    )
    assert report.verdict == "different"
    assert "jax has no such tap" in report.first_difference.note


def test_what_was_not_recorded_is_skipped_and_a_skip_fails(reference, candidate):
    report = traces.compare(reference, changed(candidate, local={}))
    assert report.verdict == "different"
    assert report.coverage()["taps"] == "117 of 234 compared, 117 skipped"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_never_passes(reference, candidate, value):
    tap = "decoder/decoder_norm"
    outputs = {name: array.copy() for name, array in candidate.passes["float32"].outputs.items()}
    outputs[tap][0, 0, 0] = value
    report = traces.compare(reference, changed(candidate, outputs=outputs))
    assert report.verdict == "different"
    assert report.first_difference.note.startswith("not finite: 1 of ")
    assert report.first_difference.note.endswith(" values of the candidate alone")
    # not even where both sides have it, which is said
    both = changed(reference, outputs=outputs)
    report = traces.compare(both, changed(candidate, outputs=outputs))
    assert report.verdict == "different"
    assert any("not finite: overflow in both sides, which says nothing of either" in row.note for row in report.rows)


def test_shapes_are_never_cut(reference, candidate):
    outputs = dict(candidate.passes["float32"].outputs)
    outputs["decoder/logits_dense"] = outputs["decoder/logits_dense"][..., :1491]
    report = traces.compare(reference, changed(candidate, outputs=outputs))
    assert report.verdict == "different"
    assert "1491" in report.first_difference.note
    logits = candidate.passes["float32"].logits[..., :1491]
    report = traces.compare(reference, changed(candidate, logits=logits))
    assert report.verdict == "different"
    assert report.first_difference.section == "logits"
    with pytest.raises(ValueError, match="shapes differ"):
        measure(np.zeros((2, 3)), np.zeros((3,)))


def test_nothing_compared_is_refused():
    assert results.Report().verdict == "refused"
    assert results.Report(rows=[results.Row("taps", "a", "skipped")]).verdict == "refused"


def test_a_broken_reference_does_not_widen_the_budget():
    truth = np.linspace(1, 2, 100)
    noise = np.full(100, 10.0)
    assert judge(truth, truth + 1.0, noise, "float32").ratio > 1
    assert judge(truth, truth + 1e-3, noise, "float64").ratio > 1


def test_judge_has_two_limits_and_a_floor():
    truth = np.ones(10000)
    noise = np.full(10000, 1e-7)
    assert judge(truth, truth + 3e-7, noise, "float32").ratio < 1
    assert judge(truth, truth + 9e-7, noise, "float32").ratio > 1
    one_off = truth.copy()
    one_off[17] += 1e-4
    assert judge(truth, one_off, noise, "float32").ratio > 1
    # no noise at all: a few units in the last place remain
    assert judge(truth, truth * (1 + 2.0**-24), noise * 0, "float32").ratio < 1
    assert judge(truth, truth * (1 + 2.0**-19), noise * 0, "float32").ratio > 1
    assert judge(np.zeros(3), np.full(3, 1e-30), np.zeros(3), "float32").ratio == np.inf
    assert judge(np.zeros(3), np.zeros(3), np.zeros(3), "float32").ratio == 0


def test_measure_says_what_tolerance_would_have_been_needed():
    rng = np.random.default_rng(1)
    a = rng.normal(size=1000)
    b = a + 1e-3 * rng.normal(size=1000)
    result = measure(a, b)
    assert np.allclose(b, a, rtol=result.needed * 1.0001, atol=result.needed * 1.0001)
    assert not np.allclose(b, a, rtol=result.needed * 0.999, atol=result.needed * 0.999)
    assert result.max_abs == np.abs(a - b).max()
    assert result.values == 1000


def test_traces_in_files_give_the_same_report_without_a_framework(reference, candidate, tmp_path):
    file.save(tmp_path / "a", reference)
    file.save(tmp_path / "b", candidate)
    program = (
        "import sys\n"
        "from parity.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & {'jax', 'flax', 'torch', 'tensorflow'}\n"
        "sys.exit(f'loaded {loaded}' if loaded else status)\n"
    )
    command = [sys.executable, "-c", program, "compare", str(tmp_path / "a"), str(tmp_path / "b")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("SAME")
    (tmp_path / "b").write_bytes(b"junk")
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 3
    assert "not a readable trace file" in result.stderr
    assert "Traceback" not in result.stderr
