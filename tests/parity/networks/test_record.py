"""Foreign models recorded in three lines, compared and diagnosed under a map of names."""

import copy
import json

import numpy as np
import pytest
import torch

import parity
from parity.__main__ import main
from parity.networks.network import NetworkError
from parity.sides.record import load_side
from parity.sides.record import record as record_side
from parity.trace import file, inputs
from tests.parity.networks import networks as n

pytestmark = pytest.mark.compile
CHECKPOINT = "checkpoints/golden"
NAMES = {"encoder": "enc", "decoder": "dec"}


class Activated(torch.nn.Module):
    """The feed-forward part with another activation."""

    def __init__(self, mlp, activation):
        super().__init__()
        self.wi_0, self.wi_1, self.wo, self.activation = mlp.wi_0, mlp.wi_1, mlp.wo, activation

    def forward(self, x, *_):
        return self.wo(self.activation(self.wi_0(x)) * self.wi_1(x))


class Stranger(torch.nn.Module):
    """MT3's network as somebody else packs it: other names on top, no dropout modules."""

    def __init__(self, model, activation=None):
        super().__init__()
        self.enc, self.dec = model.encoder, model.decoder
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if name.endswith("dropout"):
                    delattr(module, name)
                    module.__dict__[name] = child
        if activation is not None:
            self.enc.layers[1].mlp = Activated(self.enc.layers[1].mlp, activation)

    def forward(self, mel, ids_in, ids_out):
        return self.dec(self.enc(mel), ids_in, ids_out)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    side = load_side("torch", CHECKPOINT)
    given = inputs.choose(side.config, None, length=24)
    given["frames"] = given["frames"][:, :24]
    path = tmp_path_factory.mktemp("traces") / "reference.safetensors"
    file.save(path, record_side(side, given, ("float64", "float32")))
    return path


@pytest.fixture(scope="module")
def model():
    return load_side("torch", CHECKPOINT).model


def stranger(model, activation=None):
    return Stranger(copy.deepcopy(model), activation)


def call(network, path):
    network(*(torch.tensor(array) for array in file.load(path).inputs.values()))


def test_a_right_model_is_the_same_and_a_fault_is_named(reference, model, tmp_path, capsys):
    network = stranger(model)
    with parity.record(network, on=reference, names=NAMES) as trace:
        call(network, reference)
    trace.save(tmp_path / "right.safetensors")
    assert main(["compare", str(reference), str(tmp_path / "right.safetensors")]) == 0
    assert "SAME" in capsys.readouterr().out
    wrong = stranger(model, torch.nn.functional.gelu)
    with parity.record(wrong, on=reference, names=NAMES) as trace:
        call(wrong, reference)
    trace.save(tmp_path / "wrong.safetensors")
    assert main(["compare", str(reference), str(tmp_path / "wrong.safetensors")]) == 1
    assert "first difference: encoder/layers_1/mlp" in capsys.readouterr().out
    assert main(["diagnose", str(tmp_path / "wrong.safetensors"), "--against", CHECKPOINT]) == 1
    assert "encoder/layers_1/mlp: exact GELU (erf)" in capsys.readouterr().out


def test_names_may_be_given_to_the_command_instead(reference, model, tmp_path, capsys):
    network = stranger(model, torch.nn.functional.silu)
    with parity.record(network) as trace:
        call(network, reference)
    trace.save(tmp_path / "own.safetensors")
    entries = NAMES | {"frames": "mel", "decoder_input_tokens": "ids_in", "decoder_target_tokens": "ids_out"}
    (tmp_path / "names.json").write_text(json.dumps(entries))
    arguments = ["diagnose", str(tmp_path / "own.safetensors"), "--against", CHECKPOINT]
    assert main(arguments) == 3
    assert main([*arguments, "--names", str(tmp_path / "names.json")]) == 1
    assert "encoder/layers_1/mlp: SiLU in place of GELU" in capsys.readouterr().out


def test_a_module_that_does_something_is_missed(reference, model, tmp_path, capsys):
    """A tap that one side lacks is excused only where its output is its input."""
    trace = file.load(reference)
    recorded = record_side(load_side("torch", CHECKPOINT), trace.inputs, ("float64", "float32"), trace)
    for run in recorded.passes.values():
        for mapping in (run.outputs, run.calls, run.local):
            mapping.pop("encoder/input_dropout")
    file.save(tmp_path / "a.safetensors", recorded)
    assert main(["compare", str(reference), str(tmp_path / "a.safetensors")]) == 0
    for run in recorded.passes.values():
        for mapping in (run.outputs, run.calls, run.local):
            mapping.pop("encoder/encoder_norm")
    file.save(tmp_path / "b.safetensors", recorded)
    assert main(["compare", str(reference), str(tmp_path / "b.safetensors")]) == 1
    assert "torch has no such tap" in capsys.readouterr().out


def test_other_inputs_than_the_reference_s_are_refused(reference, model):
    network = stranger(model)
    arrays = [torch.tensor(array) for array in file.load(reference).inputs.values()]
    with (
        pytest.raises(NetworkError, match="none of the reference's inputs"),
        parity.record(network, on=reference, names=NAMES),
    ):
        network(arrays[0] + 1.0, *arrays[1:])
    with pytest.raises(NetworkError, match="was not called"), parity.record(network):
        pass


def test_a_network_of_jax_is_called_through_the_recorder(tmp_path):
    with parity.record((n.LinenStack(), {"params": n.stack_params()})) as trace:
        trace(n.X)
    trace.save(tmp_path / "a.safetensors")
    loaded = file.load(tmp_path / "a.safetensors")
    assert loaded.passes["float64"].outputs["layers_1/up"].dtype == np.float64
    assert loaded.passes["float32"].mode["product_bits"] == 23
    with parity.record(n.TorchStack(), on=loaded) as trace:
        trace.network.module(torch.tensor(n.X))
    from parity.compare.traces import compare

    report = compare(loaded, trace.trace)
    assert report.verdict != "refused", report.refusals
    assert report.coverage()["weights"] == "12 of 12 compared, 0 skipped"
