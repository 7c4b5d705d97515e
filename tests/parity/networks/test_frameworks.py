"""Right pairs of every framework are the same, and one fault is found and named in each."""

import io

import haiku as hk
import jax
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.networks.network import NetworkError, adapt
from tests.parity.networks import networks as n

GELU = "exact GELU (erf) in place of GELU (tanh approximation)"
pytestmark = pytest.mark.compile


def erf(**options):
    return n.TorchStack(activation=torch.nn.functional.gelu, **options)


def nnx_stack():
    model = n.NnxStack()
    model.eval()
    return model


class HaikuBlock(hk.Module):
    def __call__(self, x):
        y = hk.Linear(32, name="up")(hk.LayerNorm(-1, True, True, name="norm")(x))
        return x + hk.Linear(16, name="down")(jax.nn.gelu(y))


def haiku_stack():
    def run(x):
        return HaikuBlock("layers_1")(HaikuBlock("layers_0")(x))

    words = {"kernel": "w", "bias": "b"}
    params = {}
    for layer, modules in n.stack_params().items():
        for module, leaves in modules.items():
            names = {"scale": "scale", "bias": "offset"} if module == "norm" else words
            params[f"{layer}/{module}"] = {names[leaf]: array for leaf, array in leaves.items()}
    return hk.without_apply_rng(hk.transform(run)), params


def references():
    params = n.stack_params()
    return {
        "linen": (n.LinenStack(), {"params": params}),
        "linen scan": (n.LinenStack(scanned=True), n.stacked(params)),
        "nnx by content": nnx_stack(),
        "equinox under vmap": n.equinox_stack(),
        "haiku": haiku_stack(),
        "jax": (n.jax_function, params),
        "torch": n.TorchStack(),
    }


@pytest.mark.parametrize("name", list(references()))
def test_a_right_pair_is_the_same_and_a_fault_is_named(name):
    reference = references()[name]
    report = parity.compare_modules(reference, n.TorchStack(), {"x": n.X})
    assert report.verdict == "same", report.first_difference
    assert report.causes == []
    assert report.coverage()["weights"].startswith("12 of 12 compared")
    assert int(report.coverage()["taps"].split()[0]) >= 12
    report = parity.compare_modules(reference, erf(), {"x": n.X})
    assert report.verdict == "different"
    assert len(report.causes) == 1
    assert GELU in report.causes[0]
    assert report.causes[0].startswith(("between layers_1/up and ", "between blocks_1/fc1 and blocks_1/fc2"))


def test_names_of_both_sides_by_a_map_reach_the_blocks_too():
    report = parity.compare_modules(nnx_stack(), n.TorchStack(), {"x": n.X}, names=n.NNX_NAMES)
    assert report.verdict == "same"
    assert report.coverage()["taps"] == "16 of 16 compared, 0 skipped"
    assert "arrays paired by their content, not by a name" not in report.facts


def test_what_is_paired_by_content_is_listed():
    report = parity.compare_modules(nnx_stack(), n.TorchStack(), {"x": n.X})
    assert "blocks_0/fc1/kernel" in report.facts["arrays paired by their content, not by a name"]
    assert report.facts["modules under other names"]["blocks_1/fc2"] == "layers_1/down"


def test_inputs_without_names_are_refused():
    with pytest.raises(NetworkError, match="inputs are a list: give them by name"):
        parity.compare_modules(n.TorchStack(), n.TorchStack(), [n.X])  # pyright: ignore[reportArgumentType]


def test_active_dropout_is_refused_with_the_remedy():
    report = parity.compare_modules(n.NnxStack(), n.TorchStack(), {"x": n.X})
    assert report.verdict == "refused"
    assert "dropout is active in blocks_0/drop; put it in evaluation mode" in report.refusals[0]


def test_a_state_given_beside_an_nnx_module_is_used():
    model, other = nnx_stack(), nnx_stack()
    other.blocks[0].fc1.bias[...] += 1.0
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert parity.compare_modules((other, state), n.TorchStack(), {"x": n.X}).verdict == "same"
    assert parity.compare_modules(other, n.TorchStack(), {"x": n.X}).verdict == "different"


# the exporter that needs no further package; PyTorch warns of its age
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_in_both_arithmetics(tmp_path):
    torch.onnx.export(n.TorchStack(), (torch.tensor(n.X),), tmp_path / "m.onnx", input_names=["x"], dynamo=False)
    report = parity.compare_modules(n.TorchStack(), tmp_path / "m.onnx", {"x": n.X})
    assert report.verdict == "same", report.first_difference
    assert {row.precision for row in report.rows if row.section == "taps"} == {"float64", "float32"}
    report = parity.compare_modules(erf(), (tmp_path / "m.onnx").read_bytes(), {"x": n.X})
    assert report.verdict == "different"
    assert "between layers_1/up and layers_1/down" in report.causes[0]
    assert "GELU (tanh approximation) in place of exact GELU (erf)" in report.causes[0]


def test_convolutions_statistics_and_channels_first():
    options = {"candidate_inputs": {"x": n.IMAGES.transpose(0, 3, 1, 2).copy()}}
    reference = (n.LinenConv(), n.conv_variables())
    assert parity.compare_modules(reference, n.TorchConv(), {"x": n.IMAGES}, **options).verdict == "same"
    faults = {
        "bn: the batch's own statistics (training mode) in place of the running statistics": n.TorchConv().train(),
        "bn: epsilon 0.001 in place of 1e-05": n.TorchConv(eps=1e-3),
        "between bn and head, outside of any submodule: tanh in place of ReLU": n.TorchConv(activation=torch.tanh),
    }
    turned = n.TorchConv()
    turned.conv.weight.data = turned.conv.weight.data.transpose(2, 3).contiguous()
    faults["conv/kernel: axes in the order (1, 0, 2, 3)"] = turned
    for sentence, candidate in faults.items():
        assert parity.compare_modules(reference, candidate, {"x": n.IMAGES}, **options).causes == [sentence]


def test_other_numbers_for_the_candidate_are_refused():
    images = n.IMAGES.transpose(0, 3, 1, 2) + 1
    report = parity.compare_modules(
        (n.LinenConv(), n.conv_variables()), n.TorchConv(), {"x": n.IMAGES}, candidate_inputs={"x": images}
    )
    assert report.verdict == "refused"
    assert "different numbers" in report.refusals[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": 1.0}, "attention: scale 1 in place of 1/sqrt(d)"),
        ({"causal": True}, "attention: mask causal in place of no mask"),
        ({"heads": 2}, "attention: heads 2 in place of 4"),
        ({"dtype": torch.bfloat16}, "computes in bfloat16"),
    ],
)
def test_attention_is_named(options, words):
    report = parity.compare_modules(n.attention(), n.attention(**options), {"x": n.X})
    assert len(report.causes) == 1
    assert report.causes[0].startswith("between value and out, outside of any submodule: ")
    assert words in report.causes[0]


def test_dicts_lists_none_and_keywords_of_other_names():
    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = torch.nn.Linear(16, 4), torch.nn.Linear(16, 3)

        def forward(self, *, x, gain):
            return {"first": self.a(x) * gain, "nothing": None, "second": (self.b(x),)}

    class Candidate(Reference):
        def forward(self, x, gain):
            return [self.a(x) * gain, self.b(x)]

    class Exchanged(Reference):
        def forward(self, x, gain):
            return [self.a(x), self.b(x) * gain]

    inputs = {"x": n.X, "gain": 3.0}
    report = parity.compare_modules(Reference(), Candidate(), inputs)
    assert report.verdict == "same"
    assert report.coverage()["logits"] == "4 of 4 compared, 0 skipped"
    assert parity.compare_modules(Reference(), Exchanged(), inputs).verdict == "different"


def test_a_shared_module_is_compared_at_every_call():
    class Twice(torch.nn.Module):
        def __init__(self, activation):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.activation = torch.nn.Linear(16, 16), activation

        def forward(self, x):
            return self.layer(self.activation(self.layer(x)))

    assert parity.compare_modules(Twice(torch.tanh), Twice(torch.tanh), {"x": n.X}).verdict == "same"
    report = parity.compare_modules(Twice(torch.tanh), Twice(torch.sigmoid), {"x": n.X})
    assert report.causes == ["between layer and layer#2, outside of any submodule: sigmoid in place of tanh"]


def test_modules_in_bfloat16():
    assert parity.compare_modules(n.TorchStack().bfloat16(), n.TorchStack().bfloat16(), {"x": n.X}).verdict == "same"
    report = parity.compare_modules(n.TorchStack(), n.TorchStack().bfloat16(), {"x": n.X})
    assert "rounded to bfloat16" in report.causes[0]


def test_what_no_adapter_takes_and_what_does_not_run():
    with pytest.raises(NetworkError, match="neither a module"):
        adapt(3)
    with pytest.raises(NetworkError, match=r"give \(module, variables\)"):
        adapt(n.LinenStack())
    with pytest.raises(NetworkError, match="does not run on these inputs in float64"):
        parity.compare_modules(n.TorchStack(), n.TorchStack(), {"x": n.X[..., :3]})
    with pytest.raises(NetworkError, match="no readable ONNX graph"):
        adapt(io.BytesIO(b"no graph").getvalue())


def test_a_function_without_parameters():
    inputs = {"a": n.X, "b": n.X + 1}
    report = parity.compare_modules(lambda a, b: (a + b, a * b), lambda a, b: [a + b, np.float32(1) * a * b], inputs)
    assert report.verdict == "same"


def test_a_tap_outside_of_a_comparison_does_nothing():
    assert parity.tap("name", 3) == 3
