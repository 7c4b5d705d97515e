"""bfloat16 and TF32 are judged by budgets of their own: clean pairs pass, faults of one precision alone are found."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

import jax_mt3.model
import torch_mt3.model
from jax_mt3.checkpoint import to_params
from mt3_common.checkpoint.names import array_shapes
from mt3_common.config import Config, NetworkConfig
from parity import check
from parity.commands import options
from parity.compare import budget, comparability, results, taps, traces
from parity.diagnosis import diagnose
from parity.sides import jax_side, record, torch_side
from parity.trace import trace
from parity.trace.inputs import with_tokens
from parity.trace.precision import PRECISIONS, PRODUCT_BITS
from torch_mt3.checkpoint import to_state_dict
from torch_mt3.model import Transformer

CONFIG = Config(
    network=NetworkConfig(
        vocab_size=1408, emb_dim=24, num_heads=2, head_dim=10, mlp_dim=20, num_encoder_layers=1, num_decoder_layers=2
    ),
    input_frames=20,
    max_target_length=24,
)


def sides(seed, gain=1.0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in array_shapes(CONFIG.network).items():
        spread = gain * shape[0] ** -0.5 if len(shape) == 2 else 1.0
        values = rng.uniform(0.3, 2.0, shape) if len(shape) == 1 else spread * rng.normal(size=shape)
        arrays[name] = values.astype(np.float32)
    frames = 4.0 * rng.normal(size=(2, CONFIG.input_frames, 512)).astype(np.float32)
    model = Transformer(CONFIG.network)
    model.load_state_dict(to_state_dict(arrays))
    inputs = with_tokens(frames, CONFIG, CONFIG.max_target_length, seed)
    return jax_side.Side(to_params(arrays), CONFIG), torch_side.Side(model, CONFIG), inputs


def report_of(reference, candidate, given, low):
    precisions = ("float64", "float32", low)
    ours = record.record(reference, given, precisions)
    return traces.compare(ours, record.record(candidate, given, precisions, reference=ours))


def rounded(x, bits):
    """x with so many bits behind the point, to nearest even, as what goes into a TF32 product (bits 10)."""
    values = np.asarray(x, np.float32)
    places = 23 - bits
    if not places:
        return values
    whole = values.view(np.uint32)
    whole = (whole + (1 << (places - 1)) - 1 + ((whole >> places) & 1)) >> places << places
    return whole.view(np.float32).reshape(values.shape)


def spoil(module, precision_dtype, bits):
    """The module's output rounded to fewer bits in passes of one dtype."""

    class Rounding(type(module)):
        def forward(self, *args, **kwargs):
            result = super().forward(*args, **kwargs)
            if result.dtype != precision_dtype:
                return result
            return torch.from_numpy(rounded(result.float().numpy(), bits)).to(precision_dtype)

    module.__class__ = Rounding


def ratios(report, precision):
    rows = [row for row in report.rows if row.precision == precision and row.section in ("taps", "logits")]
    measures = (measure for row in rows for measure in (row.free, row.local))
    return [measure.ratio for measure in measures if measure is not None and measure.ratio is not None]


@pytest.mark.parametrize(("seed", "gain"), [(0, 1.0), (1, 2.0), (2, 0.3)])
def test_a_clean_pair_is_the_same_in_bfloat16_on_either_side(seed, gain):
    reference, candidate, inputs = sides(seed, gain)
    for pair in ((reference, candidate), (candidate, reference)):
        report = report_of(*pair, inputs, "bfloat16")
        assert report.verdict == "same", (report.refusals, report.first_difference)
        # below the limit, and not so far below that the limit means nothing
        assert 0.05 < max(ratios(report, "bfloat16")) < 0.8


def test_rounding_that_sharp_softmaxes_amplify_is_no_fault_and_a_fault_is():
    for seed in (1, 2, 3):  # how far apart the twins' roundings are depends on the versions of the frameworks
        reference, candidate, inputs = sides(seed, gain=2.0)
        report = report_of(candidate, reference, inputs, "bfloat16")
        assert report.verdict == "same", report.first_difference
        excused = [row for row in report.rows if row.note.startswith("rounding, amplified")]
        if excused:
            break
    else:
        pytest.skip("the twins round alike: nothing is over its budget")
    assert 1 < max(row.free.ratio for row in excused) < budget.AMPLIFIED / 2
    # the same excess is a difference with one module over its budget in any precision, or missing, or float64 wrong
    wo = [row for row in report.rows if row.section == "taps" and row.name == "encoder/layers_0/mlp/wo"]
    logits = next(row for row in report.rows if row.section == "logits" and row.precision == "float64")
    for culprit, kind in [*((row, "local") for row in wo), (wo[0], "free"), (logits, "free")]:
        measure = getattr(culprit, kind)
        for changed in (dataclasses.replace(measure, ratio=1.1 if kind == "local" else 1.01 * budget.AMPLIFIED), None):
            setattr(culprit, kind, changed)
            for row in excused:
                row.verdict = "different"
            taps.excuse_amplified(report.rows)
            assert {row.verdict for row in excused} == {"different"}, (culprit.name, culprit.precision, kind)
        setattr(culprit, kind, measure)
    # nor is more than AMPLIFIED excused
    sample = next(row for row in excused if row.precision == "float32")
    sample.free.ratio = 1.01 * budget.AMPLIFIED
    taps.excuse_amplified(report.rows)
    assert [row for row in excused if row.verdict == "different"] == [sample]
    # a module that is wrong in the fifth digit
    encoder, plain = candidate.model.encoder, candidate.model.encoder.output_dropout.forward
    encoder.output_dropout.forward = lambda x, train, shared_axis=-2: plain(x * 1.0001, train, shared_axis)
    assert report_of(reference, candidate, inputs, "bfloat16").verdict == "different"


def test_where_bfloat16_leaves_nothing_to_compare_modules_are_still_judged():
    """Sharp softmaxes make noise of the activations' own size: no alarm for a clean pair, no amnesty for a fault."""
    reference, candidate, inputs = sides(1, gain=2.0)
    report = report_of(reference, candidate, inputs, "bfloat16")
    rows = [row for row in report.rows if row.precision == "bfloat16" and row.free is not None]
    lost = [row for row in rows if row.free.ratio is None]
    assert lost
    assert all("module by module" in row.note for row in lost)
    # the small modules are judged all the same
    assert all(row.local.ratio is not None for row in rows if row.name.endswith(("query", "wo", "norm", "mlp")))
    spoil(candidate.model.decoder.layers[1].mlp, torch.bfloat16, 2)
    first = report_of(reference, candidate, inputs, "bfloat16").first_difference
    assert (first.name, first.precision) == ("decoder/layers_1/mlp", "bfloat16")
    truth, noise = np.ones(9), np.full(9, 0.3)
    assert budget.judge_short(truth, truth + 5, noise, "bfloat16").ratio is None
    assert budget.judge_short(truth, truth + 5, noise, "float32").ratio > 1
    assert budget.judge_short(truth, truth + np.nan, noise, "bfloat16").ratio == np.inf


def test_a_fault_in_bfloat16_alone_is_found_where_it_is():
    reference, candidate, inputs = sides(0)
    spoil(candidate.model.decoder.layers[1].mlp, torch.bfloat16, 2)
    report = report_of(reference, candidate, inputs, "bfloat16")
    assert report.verdict == "different"
    first = report.first_difference
    assert (first.name, first.precision) == ("decoder/layers_1/mlp", "bfloat16")
    assert all(row.verdict == "same" for row in report.rows if row.precision in ("float64", "float32"))


@pytest.mark.parametrize("change", ["relu", "no mask", "transposed"])
def test_bfloat16_alone_would_find_it_too(change, monkeypatch):
    reference, candidate, inputs = sides(0)
    decoder = candidate.model.decoder
    if change == "relu":
        monkeypatch.setattr(torch_mt3.model.F, "gelu", lambda x, approximate: torch.relu(x))
        site = "encoder/layers_0/mlp"
    elif change == "no mask":
        plain = decoder.layers[0].self_attention.__class__

        class Unmasked(plain):
            def forward(self, q, kv, mask, *rest, **more):
                return super().forward(q, kv, None, *rest, **more)

        decoder.layers[0].self_attention.__class__ = Unmasked
        site = "decoder/layers_0/self_attention"
    else:
        decoder.layers[0].self_attention.out.weight.data = decoder.layers[0].self_attention.out.weight.data.flip(0)
        site = "decoder/layers_0/self_attention/out"
    report = report_of(reference, candidate, inputs, "bfloat16")
    local = [row for row in report.rows if row.section == "taps" and row.precision == "bfloat16"]
    first = next(row for row in local if not row.local.ratio <= 1.0)
    assert first.name == site


@pytest.fixture
def tf32(monkeypatch):
    """The CPU rounding what goes into products as a GPU does: yields {'bits': 10}, to be changed."""
    state = {"precision": "float32", "bits": 10, "torch bits": None}

    def entered(precision, kind):
        state["precision"] = precision

    def jax_rounded(x):
        return jax.lax.reduce_precision(x, 8, state["bits"]) if state["precision"] == "tf32" else x

    def torch_rounded(x):
        bits = state["torch bits"] or state["bits"]
        return torch.from_numpy(rounded(x.detach().numpy(), bits)) if state["precision"] == "tf32" else x

    def patched(owner, name, rounding):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda a, b, *rest, **more: plain(rounding(a), rounding(b), *rest, **more))

    for side in (jax_side, torch_side):
        monkeypatch.setattr(side, "check_device", entered)
    patched(jax.lax, "dot_general", jax_rounded)
    patched(jax_mt3.model, "einsum", jax_rounded)
    patched(torch.nn.functional, "linear", torch_rounded)
    patched(torch_mt3.model, "einsum", torch_rounded)
    return state


def test_a_clean_pair_is_the_same_in_tf32(tf32):
    report = report_of(*sides(0), "tf32")
    assert report.verdict == "same", (report.refusals, report.first_difference)
    assert 0.02 < max(ratios(report, "tf32")) < 0.8
    # the rounding was there: far more than float32's, far less than bfloat16's
    needed = {row.precision: row.free.relative for row in report.rows if row.section == "logits"}
    assert 1e-5 < needed["tf32"] < 1e-1
    assert needed["float32"] < needed["tf32"] / 100
    mode = report.sides["candidate"]["modes"]["tf32"]
    assert (mode["product_bits"], mode["allow_tf32"], mode["float32_matmul_precision"]) == (10, True, "high")
    assert report.sides["reference"]["modes"]["tf32"]["jax_default_matmul_precision"] == "tensorfloat32"


@pytest.mark.parametrize("change", ["coarse", "relu"])
def test_a_fault_in_tf32_alone_is_found_where_it_is_and_named(tf32, change, monkeypatch):
    reference, candidate, inputs = sides(1)
    if change == "coarse":
        mlp = candidate.model.encoder.layers[0].mlp

        class Coarse(type(mlp)):
            def forward(self, *args, **kwargs):
                result = super().forward(*args, **kwargs)
                return torch.from_numpy(rounded(result.numpy(), 5)) if tf32["precision"] == "tf32" else result

        mlp.__class__ = Coarse
        # no constant or anything else undoes a rounding, however wide the budget of TF32
        cause, names = "unknown", "encoder/layers_0/mlp: differs (error "
    else:
        gelu = torch_mt3.model.F.gelu
        wrong = {"tf32": lambda x, approximate: torch.relu(x)}
        monkeypatch.setattr(
            torch_mt3.model.F,
            "gelu",
            lambda x, approximate: wrong.get(tf32["precision"], gelu)(x, approximate=approximate),
        )
        cause, names = "relu", "encoder/layers_0/mlp and 2 more: ReLU in place of GELU (restores parity"
    precisions = ("float64", "float32", "tf32")
    reference_trace = record.record(reference, inputs, precisions)
    candidate_trace = record.record(candidate, inputs, precisions, reference=reference_trace)
    report = traces.compare(reference_trace, candidate_trace)
    assert report.verdict == "different"
    first = report.first_difference
    assert (first.name, first.precision) == ("encoder/layers_0/mlp", "tf32")
    assert [entry.cause for entry in diagnose.name_faults(candidate_trace, reference.arrays(), CONFIG)] == [cause]
    [sentence] = check.name_causes(report, (reference_trace, candidate_trace), reference, candidate)
    assert sentence.startswith(f"candidate (torch): {names}")


@pytest.mark.parametrize(("seed", "gain"), [(0, 1.0), (1, 2.0), (2, 1.0)])
def test_the_diagnosis_finds_nothing_in_a_clean_pair_in_any_precision(tf32, seed, gain):
    *pair, inputs = sides(seed, gain)
    for side in pair:
        result = record.record(side, inputs, PRECISIONS)
        assert diagnose.name_faults(result, side.arrays(), CONFIG) == [], side.framework


@pytest.mark.parametrize("bits", [7, 23])
def test_products_of_other_bits_are_refused(tf32, bits):
    tf32["torch bits"] = bits
    report = report_of(*sides(0), "tf32")
    assert report.exit_code == results.REFUSED
    assert f"torch tf32: {bits} bits went into a product, not 10" in "; ".join(report.refusals)


def test_tf32_must_be_stated_and_read_back():
    run = trace.Pass("tf32", {}, {}, np.zeros(1), True)
    assert "nobody read back" in comparability.wrong_mode(run)[0]
    run.mode |= {"product_bits": 10}
    assert comparability.wrong_mode(run) == []
    for mode in ({"allow_tf32": False}, {"jax_default_matmul_precision": "highest"}, {"inputs": ["bfloat16"]}):
        assert comparability.wrong_mode(dataclasses.replace(run, mode=run.mode | mode)), mode


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_what_goes_into_a_product_is_read_back(precision):
    modes = []
    with jax_side.exact_mode(precision, jax.devices("cpu")[0]):
        modes.append(jax_side.read_mode(precision))
    with torch_side.exact_mode(precision, torch.device("cpu")):
        modes.append(torch_side.read_mode(precision, torch.device("cpu")))
    for mode in modes:
        assert mode["product_bits"] == PRODUCT_BITS[precision]
        assert comparability.wrong_mode(trace.Pass(precision, mode, {}, np.zeros(1), True)) == []


def test_no_tf32_on_a_processor():
    reference, candidate, inputs = sides(0)
    for side in (reference, candidate):
        with pytest.raises(ValueError, match="precision tf32: GPUs"):
            side.run(inputs, "tf32")


@pytest.mark.parametrize("text", ["float64", "float32,bfloat16", "float64,float32,float32", "float64,float16", ""])
def test_precisions_that_give_no_budget(text):
    with pytest.raises(ValueError, match="--precisions"):
        options.read_precisions(text)
    assert options.read_precisions("float64,tf32") == ("float64", "tf32")
