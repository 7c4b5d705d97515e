"""The ONNX graphs against the published code's numbers and the PyTorch twin; the search token for token."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.special import logsumexp

from mt3_common.audio.segments import Segment, segments
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary
from mt3_common.training.initial import initial_arrays
from mt3_common.transcription.batching import PromptedSegment, until_eos
from onnx_mt3 import builder, decode, graph, network
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import decode as torch_decode
from torch_mt3.model import Transformer


@pytest.fixture(scope="module")
def config(golden_config) -> Config:
    return dataclasses.replace(Config(), network=golden_config, max_target_length=64)


@pytest.fixture(scope="module")
def twin(golden_arrays, golden_config) -> Transformer:
    model = Transformer(golden_config)
    model.load_state_dict(torch_checkpoint.to_state_dict(golden_arrays))
    return model.eval()


def full_pass(arrays, config, activations, dtype: str) -> dict[str, np.ndarray]:
    """Outputs of the teacher-forced graph for the golden inputs, by name."""
    model = graph.teacher_graph(arrays, config, stored=dtype, computed=dtype)
    onnx.checker.check_model(model, full_check=True)
    session = decode.session(model.SerializeToString(), threads=1, computed=dtype)
    inputs = {
        "frames": activations["in/frames"].astype(dtype),
        "decoder_input_tokens": activations["in/decoder_inputs"].astype(np.int64),
        "decoder_target_tokens": activations["in/targets"].astype(np.int64),
    }
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def relative_error(value: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(value - truth.reshape(value.shape)).max() / np.abs(truth).max())


def test_float32_agrees_with_the_published_code_at_every_module(golden_arrays, config, activations):
    outputs = full_pass(golden_arrays, config, activations, "float32")
    expected = {name.removeprefix("act/"): array for name, array in activations.items()}
    errors = {name: relative_error(value, expected[name]) for name, value in outputs.items() if name in expected}
    modules = {name for name in expected if "Dropout" not in name and "FixedEmbed" not in name and "/" in name}
    assert set(errors) == modules - {name for name in modules if name.startswith(("in/", "out/"))}
    # measured: 1.1e-6
    assert max(errors.values()) < 5e-6, max(errors, key=errors.get)
    assert relative_error(outputs["logits"], activations["out/logits"]) < 5e-6


def test_float64_agrees_with_the_twin(golden_arrays, config, activations, twin):
    outputs = full_pass(golden_arrays, config, activations, "float64")
    inputs = [torch.from_numpy(activations[name]) for name in ("in/frames", "in/decoder_inputs", "in/targets")]
    with torch.no_grad():
        logits = twin.double()(inputs[0].double(), inputs[1].long(), inputs[2].long()).numpy()
    twin.float()
    # measured: 1.3e-15
    assert relative_error(outputs["logits"], logits) < 1e-12


# PyTorch warns that this exporter, which needs no further package, is old, and that tracing fixes shapes
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_pytorchs_own_exporter_is_a_witness(golden_arrays, config, activations, twin, tmp_path):
    """A graph that nobody here wrote gives the same logits; in float64 the exporter rounds constants to float32."""
    names = {"frames": "in/frames", "decoder_input_tokens": "in/decoder_inputs", "decoder_target_tokens": "in/targets"}
    frames, tokens, targets = (activations[name] for name in names.values())
    values = torch.from_numpy(frames), torch.from_numpy(tokens).long(), torch.from_numpy(targets).long()
    path = tmp_path / "witness.onnx"
    torch.onnx.export(twin, values, path, input_names=list(names), opset_version=20, dynamo=False)
    witness = decode.session(path.read_bytes(), threads=1)
    (logits,) = witness.run(None, dict(zip(names, (value.numpy() for value in values), strict=True)))
    own = full_pass(golden_arrays, config, activations, "float32")["logits"]
    # measured: 9e-7
    assert relative_error(own, logits) < 5e-6


@pytest.mark.parametrize("fault", ["eps", "gelu", "scale", "transposed", "gate", "table"])
def test_a_planted_fault_is_far_outside_of_rounding(golden_arrays, config, activations, fault, monkeypatch):
    clean = full_pass(golden_arrays, config, activations, "float64")["logits"]
    arrays, changed = dict(golden_arrays), config
    if fault == "table":
        changed = dataclasses.replace(config, network=dataclasses.replace(config.network, position_table="port"))
    elif fault == "gate":
        for layer in range(config.network.num_decoder_layers):
            name = f"decoder/layers_{layer}/mlp/wi_"
            arrays[f"{name}0/kernel"], arrays[f"{name}1/kernel"] = arrays[f"{name}1/kernel"], arrays[f"{name}0/kernel"]
    elif fault == "transposed":
        arrays["encoder/layers_0/attention/out/kernel"] = arrays["encoder/layers_0/attention/out/kernel"].T.copy()
    elif fault == "eps":
        real = builder.GraphBuilder.real
        monkeypatch.setattr(builder.GraphBuilder, "real", lambda self, x: real(self, 1e-5 if x == 1e-6 else x))
    elif fault == "gelu":
        real = builder.GraphBuilder.real
        monkeypatch.setattr(builder.GraphBuilder, "real", lambda self, x: real(self, 0.0 if x == 0.044715 else x))
    else:
        heads = network.NetworkBuilder.heads
        monkeypatch.setattr(
            network.NetworkBuilder,
            "heads",
            lambda self, x, transposed=False: self.op("Mul", heads(self, x, transposed), self.real(1.01)),
        )
    assert relative_error(full_pass(arrays, changed, activations, "float64")["logits"], clean) > 1e-7


def searched(arrays, config: Config, segments, **how) -> list[np.ndarray]:
    model, weights = graph.search_parts(arrays, config)
    session = decode.session(model.SerializeToString(), threads=1, weights=weights)
    return list(decode.generator(session, config, **how)(segments))


def test_weights_apart_are_not_copied_and_give_the_same_ids(golden_arrays, config, decoded):
    """Arrays may be read-only, and are not needed once there is a session."""
    arrays = {name: array.copy() for name, array in with_eos_gain(golden_arrays, 3.0).items()}
    for array in arrays.values():
        array.flags.writeable = False
    whole = graph.search_graph(arrays, config, stored="float32").SerializeToString()
    model, weights = graph.search_parts(arrays, config)
    shared = [array for name, array in weights.items() if array is arrays.get(name)]
    assert sum(array.nbytes for array in shared) > 0.7 * sum(array.nbytes for array in arrays.values())
    assert model.ByteSize() < len(whole) / 8
    session = decode.session(model.SerializeToString(), threads=1, weights=weights)
    for array in arrays.values():
        array.flags.writeable = True
        array[...] = np.nan
    del arrays, shared, weights
    decode.release_memory()
    segments = list(decoded["in/frames"])
    ids = list(decode.generator(session, config)(segments))
    for row, expected in zip(ids, decode.generator(decode.session(whole, threads=1), config)(segments), strict=True):
        np.testing.assert_array_equal(row, expected)


def with_eos_gain(arrays, gain: float) -> dict[str, np.ndarray]:
    kernel = arrays["decoder/logits_dense/kernel"].copy()
    kernel[:, EOS_ID] *= gain
    return arrays | {"decoder/logits_dense/kernel": kernel}


def test_every_batch_gives_its_memory_back(golden_arrays, config, decoded, monkeypatch):
    """Keys and values of one batch are not kept for the next."""
    model, weights = graph.search_parts(golden_arrays, config)
    session = decode.session(model.SerializeToString(), threads=1, weights=weights)
    runs, run = [], session.run
    monkeypatch.setattr(
        session, "run", lambda names, inputs, options: runs.append(options) or run(names, inputs, options)
    )
    assert len(list(decode.generator(session, config, batch_size=4)(list(decoded["in/frames"])))) == 6
    assert len(runs) > 1
    assert {options.get_run_config_entry("memory.enable_memory_arena_shrinkage") for options in runs} == {"cpu:0"}


def test_no_loop_ends_with_keys_and_values_of_rows_that_have_ended(
    golden_arrays, config, decoded, tmp_path, monkeypatch
):
    """A loop copies what it carried at its end: only what goes on may be in it, which is a block's at most here."""
    monkeypatch.setattr(decode, "num_cores", lambda: 1)
    kernel = golden_arrays["decoder/logits_dense/kernel"].copy()
    kernel[:, EOS_ID] = 0.0
    model, weights = graph.search_parts(golden_arrays | {"decoder/logits_dense/kernel": kernel}, config)
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = list(decode.generator(session, config)(list(decoded["in/frames"])))
    assert {len(row) for row in rows} == {config.max_target_length}
    events = json.loads(Path(session.end_profiling()).read_text())
    sizes = [int(event["args"]["output_size"]) for event in events if event.get("args", {}).get("op_name") == "Loop"]
    network_config = config.network
    position = 2 * 4 * network_config.num_heads * network_config.head_dim * network_config.num_decoder_layers
    block = len(rows) * graph.BLOCK_STEPS * position
    ids = len(rows) * config.max_target_length * 8
    assert block < max(sizes) < block + 2 * ids < 2 * block


@pytest.mark.parametrize("gain", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_greedy_tokens_are_those_of_the_published_code(golden_arrays, config, decoded, gain, batch_size):
    rows = searched(with_eos_gain(golden_arrays, gain), config, list(decoded["in/frames"]), batch_size=batch_size)
    expected = decoded[f"eos_gain{gain}/greedy/tokens"]
    assert len(rows) == len(expected) == 6
    for ids, tokens in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(ids, until_eos(tokens))


def test_ends_differ_and_the_number_of_steps_is_kept(golden_arrays, config, decoded):
    """Rows that end leave the batch; a limit that is no multiple of a block is a limit all the same."""
    arrays = with_eos_gain(golden_arrays, 3.0)
    lengths = [len(ids) for ids in searched(arrays, config, list(decoded["in/frames"]))]
    assert len(set(lengths)) > 2
    cut = searched(arrays, config, list(decoded["in/frames"]), max_steps=13)
    assert [len(ids) for ids in cut] == [min(13, length) for length in lengths]
    assert all(ids.dtype == np.int32 for ids in cut)


@pytest.mark.parametrize("allowed", [False, True])
def test_prompts_biases_and_allowed_tokens_are_those_of_the_twin(golden_arrays, config, decoded, twin, allowed):
    rng = np.random.default_rng(0)
    frames = decoded["in/frames"]
    vocab_size = config.network.vocab_size
    segments = [
        PromptedSegment(
            Segment(number, 0.0, frame, len(frame)),
            rng.integers(3, vocab_size, length).astype(np.int32),
            rng.normal(0, 3, vocab_size).astype(np.float32),
        )
        for number, (frame, length) in enumerate(zip(frames, [0, 1, 5, 20, 0, 3], strict=True))
    ]
    mask = rng.random(vocab_size) < 0.5 if allowed else None
    if mask is not None:
        mask[EOS_ID] = True
    # where the next segment needs ids that are not out yet, there is a None
    stream = [*segments[:2], None, *segments[2:]]
    ids = searched(golden_arrays, config, stream, allowed=mask)
    expected = list(torch_decode.generator(twin, config, allowed=mask, hold=True)(segments))
    assert len(ids) == len(expected) == 6
    for row, tokens in zip(ids, expected, strict=True):
        np.testing.assert_array_equal(row, tokens)


@pytest.mark.parametrize(("computed", "bound"), [("float32", 5e-6), ("float64", 1e-7)])
def test_logits_of_programs_are_the_twins_at_the_programs_tokens(golden_arrays, config, decoded, twin, computed, bound):
    """Behind the same tokens, with a mask, biases and prompts; rows end at different steps, one at the limit."""
    rng = np.random.default_rng(1)
    frames, network = decoded["in/frames"].astype(computed), config.network
    first = Vocabulary(config.vocabulary).first_id("program")
    segments = []
    for number, (frame, length) in enumerate(zip(frames, [0, 7, 0, 30, 0, 0], strict=True)):
        bias = rng.normal(0, 3, network.vocab_size).astype(np.float32)
        # about a third of the tokens are programs
        bias[first : first + 128] += 3
        bias[EOS_ID] += 4 * number - 4
        prompt = rng.integers(first - 4, first + 128, length).astype(np.int32)
        segments.append(PromptedSegment(Segment(number, 0.0, frame, len(frame)), prompt, bias))
    mask = rng.random(network.vocab_size) < 0.5
    mask[EOS_ID] = True
    model, weights = graph.search_parts(golden_arrays, config, computed)
    session = decode.session(model.SerializeToString(), threads=1, computed=computed, weights=weights)
    how = {"allowed": mask, "max_steps": 45}
    tokens = list(decode.generator(session, config, program_logits=True, **how)(segments))
    plain = decode.generator(session, config, **how)(segments)
    assert len({len(row.ids) for row in tokens}) > 2
    model = twin.double() if computed == "float64" else twin
    for (ids, logits, _), alone, segment in zip(tokens, plain, segments, strict=True):
        np.testing.assert_array_equal(ids, alone)
        given = torch.from_numpy(np.append(0, ids[:-1]).astype(np.int64))[None]
        with torch.no_grad():
            expected = model(torch.from_numpy(segment.segment.frames)[None], given, torch.ones_like(given))[0].numpy()
        programs = expected[:, first : first + 128]
        allowed = programs + np.where(mask[first : first + 128], 0, -np.inf)
        # allowed programs have the probability of the others, too
        programs += logsumexp(programs, 1, keepdims=True) - logsumexp(allowed, 1, keepdims=True)
        expected += np.where(mask, 0, -np.inf) + segment.logit_bias
        positions = np.flatnonzero((ids >= first) & (ids < first + 128))
        chosen = positions[positions >= len(segment.prompt_ids)]
        np.testing.assert_array_equal(expected[chosen].argmax(axis=1), ids[chosen])
        largest = np.abs(expected[np.isfinite(expected)]).max()
        assert logits.dtype == np.float32
        # where one is not allowed, both are -inf
        np.testing.assert_allclose(logits, expected[positions, first : first + 128], rtol=0, atol=bound * largest)
    twin.float()
    assert sum(len(row.program_logits) for row in tokens) > 20


def test_weights_are_stored_once_and_as_asked(golden_arrays, config):
    sizes = {}
    for stored in builder.STORED:
        model = graph.search_graph(golden_arrays, config, stored=stored)
        onnx.checker.check_model(model, full_check=True)
        assert {entry.version for entry in model.opset_import} == {builder.OPSET}
        assert not {node.domain for node in model.graph.node} - {""}
        sizes[stored] = len(model.SerializeToString())
    assert sizes["bfloat16"] == pytest.approx(sizes["float16"], rel=0.01)
    assert sizes["bfloat16"] < 0.75 * sizes["float32"] < 0.6 * sizes["float64"]


def test_wrong_arrays_and_dtypes_are_refused(golden_arrays, config):
    with pytest.raises(ValueError, match="stored must be one of"):
        graph.search_graph(golden_arrays, config, stored="int8")
    with pytest.raises(ValueError, match="computed must be one of"):
        graph.search_graph(golden_arrays, config, computed="bfloat16")
    with_pre_encoder = dataclasses.replace(config.network, pre_encoder_layers=1, pre_encoder_dim=8)
    with pytest.raises(CheckpointError, match="pre_encoder/bins/kernel"):
        graph.search_graph(golden_arrays, dataclasses.replace(config, network=with_pre_encoder))
    with pytest.raises(CheckpointError, match="decoder_norm"):
        graph.search_graph({k: v for k, v in golden_arrays.items() if "decoder_norm" not in k}, config)


@pytest.fixture(scope="module")
def pitched() -> tuple[dict[str, np.ndarray], Config, np.ndarray]:
    """A network with two layers that share their weights over pitch, no weight 0 or 1; and frames for it."""
    network = NetworkConfig(
        **{"emb_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 40, "num_encoder_layers": 1},
        **{"num_decoder_layers": 1, "dropout_rate": 0.0, "pre_encoder_layers": 2, "pre_encoder_dim": 6},
        **{"encoder_top_db": 60.0, "context_frames": 4},
    )
    config = Config(network=network, spectrogram=SpectrogramConfig(hop_width=320), input_frames=16)
    rng = np.random.default_rng(5)
    arrays = {
        name: array + 0.2 * np.abs(array).mean() * rng.standard_normal(array.shape)
        for name, array in initial_arrays(network, 2).items()
    }
    frames = np.random.default_rng(0).normal(-5, 2, (3, config.heard_frames, network.input_depth))
    # the last segment of a recording
    frames[2, 11:] = 0
    return arrays, config, frames


def pitched_outputs(arrays, config, frames, dtype: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs of the teacher-forced graph, and of the twin in float64, by the modules' names."""
    tokens = np.ones((3, 4), np.int64)
    model = Transformer(config.network).double()
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    expected: dict[str, np.ndarray] = {}
    for path, module in model.named_modules():
        name = path.replace("layers.", "layers_").replace(".", "/")
        module.register_forward_hook(lambda _m, _i, output, name=name: expected.__setitem__(name, output.numpy()))
    with torch.no_grad():
        model(torch.from_numpy(frames), torch.from_numpy(tokens), torch.from_numpy(tokens))
    golden = {"in/frames": frames, "in/decoder_inputs": tokens, "in/targets": tokens}
    return full_pass(arrays, config, golden, dtype), expected


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 5e-6)])
def test_the_pre_encoder_is_the_twins_at_every_module(pitched, dtype, bound):
    outputs, expected = pitched_outputs(*pitched, dtype)
    outputs = {name: value for name, value in outputs.items() if name != "logits"}
    # (2 layers x (4 harmonics, 2 norms, local, itself)) + bins, stem, stem_norm, rolls, out, itself
    assert len([name for name in outputs if "pre_encoder" in name]) == 22
    assert set(outputs) <= set(expected)
    # measured: 2.5e-15 and 1.4e-6
    errors = {name: relative_error(value, expected[name]) for name, value in outputs.items()}
    assert max(errors.values()) < bound, max(errors, key=errors.get)


@pytest.mark.parametrize("harmonic", ["octaves", "sevenths"])
def test_a_wrong_interval_of_a_harmonic_is_named(pitched, harmonic, monkeypatch):
    wrong = network.HARMONICS | {harmonic: (network.HARMONICS[harmonic][0], network.HARMONICS[harmonic][1] + 2)}
    monkeypatch.setattr(network, "HARMONICS", wrong)
    outputs, expected = pitched_outputs(*pitched, "float64")
    errors = {name: relative_error(value, expected[name]) for name, value in outputs.items() if name in expected}
    assert next(name for name, error in errors.items() if error > 1e-9) == f"encoder/pre_encoder/layers_0/{harmonic}"


def test_a_search_with_a_pre_encoder_gives_the_twins_tokens(pitched):
    arrays, config, frames = pitched
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    model = Transformer(config.network)
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    frames = list(frames.astype(np.float32))
    rows = searched(arrays, config, frames, max_steps=40)
    expected = list(torch_decode.generate(model.eval(), config, frames, max_steps=40))
    for row, tokens in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row, tokens)


@pytest.mark.parametrize(("computed", "bound"), [("float32", 5e-5), ("float64", 1e-7)])
def test_activations_of_the_context_are_the_twins(pitched, computed, bound):
    arrays, config, _ = pitched
    arrays = {name: array.astype(computed) for name, array in arrays.items()}
    cut = list(segments(np.random.default_rng(3).uniform(-0.3, 0.3, 5 * 5120).astype(np.float32), config))
    twin = Transformer(config.network).double()
    twin.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    expected = list(torch_decode.generator(twin, config, activations=True, max_steps=32)(cut))
    model, weights = graph.search_parts(arrays, config, computed)
    session = decode.session(model.SerializeToString(), threads=1, computed=computed, weights=weights)
    for given in ({"activations": True}, {"activations": True, "program_logits": True}, {}):
        results = list(decode.generator(session, config, batch_size=4, max_steps=32, **given)(cut))
        for tokens, twins in zip(results, expected, strict=True):
            np.testing.assert_array_equal(tokens.ids if given else tokens, twins.ids)
            if given:
                assert tokens.activations.dtype == np.float32
                np.testing.assert_allclose(tokens.activations, twins.activations, rtol=0, atol=bound)
                assert (tokens.program_logits is None) == (len(given) == 1)
