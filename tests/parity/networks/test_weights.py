"""Names of what is wrong with an array of the candidate."""

import numpy as np
import pytest
import torch

import parity
from tests.parity.networks import networks as n


def changed(edit):
    candidate = n.TorchStack()
    with torch.no_grad():
        edit(candidate)
    return parity.compare_modules(n.TorchStack(), candidate, {"x": n.X})


def reshape_up(candidate):
    weight = candidate.layers[1].up.weight
    weight.copy_(weight.T.reshape(32, 16))


def exchange(candidate):
    a, b = (layer.up.weight for layer in candidate.layers)
    first = a.clone()
    a.copy_(b)
    b.copy_(first)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (reshape_up, "layers_1/up/kernel: reshaped where it should be transposed"),
        (exchange, "layers_0/up/kernel: holds the weights of layers_1/up/kernel"),
        (lambda c: c.layers[0].up.weight.mul_(2.0), "layers_0/up/kernel: times 2"),
        (lambda c: c.layers[0].up.weight.neg_(), "layers_0/up/kernel: negated"),
        (lambda c: c.layers[0].up.bias.zero_(), "layers_0/up/bias: all zeros"),
        (lambda c: c.layers[1].norm.weight.sub_(1.0), "layers_1/norm/scale: scale - 1 in place of scale"),
        (lambda c: c.layers[0].up.weight.copy_(c.layers[0].up.weight.half()), "rounded to float16"),
        (lambda c: c.layers[0].up.weight[3, 4].add_(1.0), "layers_0/up/kernel: 1 of"),
        (lambda c: c.layers[0].up.weight.copy_(c.layers[0].up.weight.flip(0)), "layers_0/up/kernel: reversed"),
    ],
)
def test_edits_of_arrays_are_named(edit, sentence):
    report = changed(edit)
    assert report.verdict == "different"
    assert any(sentence in cause for cause in report.causes), report.causes


def test_a_transposed_square_kernel():
    reference, candidate = n.attention(), n.attention()
    candidate.value.weight.data = candidate.value.weight.data.T.contiguous()
    report = parity.compare_modules(reference, candidate, {"x": n.X})
    assert report.causes == ["value/kernel: transposed"]


def test_heads_in_another_order():
    reference, candidate = n.attention(), n.attention()
    candidate.value.weight.data = candidate.value.weight.data.reshape(4, 4, 16).flip(0).reshape(16, 16)
    report = parity.compare_modules(reference, candidate, {"x": n.X})
    assert report.causes == ["value/kernel: heads in the order [3, 2, 1, 0]"]


def test_a_missing_bias_and_one_without_effect():
    candidate = n.TorchStack()
    candidate.layers[0].up.bias = None
    report = parity.compare_modules(n.TorchStack(), candidate, {"x": n.X})
    assert "layers_0/up/bias: bias missing: only the reference has it" in report.causes
    reference = n.TorchStack()
    reference.layers[0].up.bias.data.zero_()
    report = parity.compare_modules(reference, candidate, {"x": n.X})
    assert report.verdict == "same"
    assert any("no effect" in note for note in report.facts["notes"])


def test_an_unused_module_of_the_candidate_is_different():
    candidate = n.TorchStack()
    candidate.extra = torch.nn.Linear(2, 2)
    report = parity.compare_modules(n.TorchStack(), candidate, {"x": n.X})
    assert report.verdict == "different"
    assert "extra/kernel: kernel not in the reference" in report.causes[0]


class Joined(torch.nn.Module):
    """PyTorch's own attention, which joins query, key and value in one array."""

    def __init__(self, order="qkv"):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        parts = {"q": n.attention().query, "k": n.attention().key, "v": n.attention().value}
        self.attn.in_proj_weight.data = torch.cat([parts[part].weight.data for part in order])
        self.attn.in_proj_bias.data = torch.cat([parts[part].bias.data for part in order])
        self.attn.out_proj.load_state_dict(n.attention().out.state_dict())

    def forward(self, x):
        return self.attn(x, x, x)[0]


def test_a_joined_array_and_its_order():
    reference = n.attention()
    assert parity.compare_modules(reference, Joined(), {"x": n.X}).verdict == "same"
    report = parity.compare_modules(reference, Joined("kqv"), {"x": n.X})
    assert report.verdict == "different"
    assert "joined as key, query, value, not as query, key, value" in report.causes[0]


def test_a_difference_behind_weights_of_zero_is_seen():
    def build(activation):
        stack = n.TorchStack(activation=activation)
        stack.layers[1].down.weight.data.zero_()
        return stack

    report = parity.compare_modules(build(torch.tanh), build(torch.sigmoid), {"x": n.X})
    assert report.verdict == "different"
    assert "sigmoid in place of tanh" in report.causes[0]


def test_not_a_number_never_passes():
    candidate = n.TorchStack()
    candidate.layers[1].up.bias.data[0] = np.nan
    assert parity.compare_modules(n.TorchStack(), candidate, {"x": n.X}).verdict == "different"
