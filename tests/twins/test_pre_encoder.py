"""The pre-encoder that shares over pitch: twins, fast paths, oracle, checkpoints, losses, and what it is for."""

import concurrent.futures
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jax_mt3 import checkpoint as jax_checkpoint
from jax_mt3 import decode as jax_decode
from jax_mt3 import model as jax_model
from jax_mt3 import train as jax_train
from jax_mt3.weights import pack as jax_pack
from mt3_common.audio.segments import segments
from mt3_common.checkpoint import names
from mt3_common.checkpoint.config_files import resolve
from mt3_common.checkpoint.write import write_t5x
from mt3_common.config import (
    LOWEST_PITCH,
    PITCH_ROWS,
    ROW_BIAS,
    Config,
    ConfigError,
    NetworkConfig,
    SpectrogramConfig,
    VocabularyConfig,
)
from mt3_common.data.segments import cut_segments
from mt3_common.data.shards import ROLL_COLUMNS, Batch
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary
from mt3_common.training import labels
from mt3_common.training.config import TrainingConfig, TrainingError
from mt3_common.training.initial import initial_arrays, pitch_bins
from mt3_common.training.labels import LABEL_COLUMNS, NUM_CLASSES
from mt3_common.transcription.batching import PromptedSegment
from onnx_mt3 import decode as onnx_decode
from onnx_mt3.graph import search_parts
from parity.sides import numpy_network
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import decode as torch_decode
from torch_mt3 import kernels
from torch_mt3 import model as torch_model
from torch_mt3 import train as torch_train
from torch_mt3.weights import pack as torch_pack

NETWORK = NetworkConfig(
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=40,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
    pre_encoder_layers=2,
    pre_encoder_dim=6,
    # half of the frames' values lie further below the largest
    encoder_top_db=60.0,
    context_frames=4,
)
# a network without a pre-encoder
NONE = {"pre_encoder_layers": 0, "pre_encoder_dim": 0, "context_frames": 0}
CONFIG = Config(network=NETWORK, spectrogram=SpectrogramConfig(hop_width=320), input_frames=16, max_target_length=64)
LEARNERS = {"jax": jax_train.Learner, "torch": torch_train.Learner}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def arrays():
    """Weights of which none is 0 or 1: MT3's names -> float64."""
    rng = np.random.default_rng(5)
    drawn = initial_arrays(NETWORK, 2)
    return {
        name: array + 0.2 * np.abs(array).mean() * rng.standard_normal(array.shape) for name, array in drawn.items()
    }


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).normal(-5, 2, (3, CONFIG.heard_frames, NETWORK.input_depth))


def torch_network(arrays, network=NETWORK):
    model = torch_model.Transformer(network).double()
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    return model


def jax_encoded(arrays, frames, network=NETWORK):
    params = jax_checkpoint.to_params(arrays)
    return np.asarray(jax_model.Transformer(network).apply({"params": params}, frames, method="encode"))


def test_twins_fast_paths_and_the_oracle_agree(arrays, frames):
    network = torch_network(arrays)
    reference = jax_encoded(arrays, frames)
    others = {
        "torch": network.encode(torch.from_numpy(frames)).detach().numpy(),
        "torch, packed": torch_decode.encode(torch_pack(network), torch.from_numpy(frames))[0].numpy(),
        "jax, packed": np.asarray(jax_decode.encode(jax_pack(jax_checkpoint.to_params(arrays), NETWORK), frames)[0]),
    }
    values = {numpy_network.FRAMES: frames}
    for step in numpy_network.steps(NETWORK):
        if step.name.startswith("decoder"):
            break
        values[step.name] = numpy_network.run_step(step, values, arrays, NETWORK)
    others["oracle"] = values["encoder"]
    for name, encoded in others.items():
        np.testing.assert_allclose(encoded, reference, rtol=0, atol=1e-13 * np.abs(reference).max(), err_msg=name)
    without = {name: 0 * array if "pre_encoder/out" in name else array for name, array in arrays.items()}
    assert np.abs(jax_encoded(without, frames) - reference).max() > 0.01


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_activations_of_the_context_come_out_beside_the_ids(twin, hold, batch_size, arrays):
    """For every segment in order, however many rows share a batch; they are the model's, and change no id."""
    cut = list(segments(np.random.default_rng(3).uniform(-0.3, 0.3, 13 * 5120).astype(np.float32), CONFIG))
    assert len(cut) == 14
    prompt = np.zeros(0, np.int32), np.zeros(NETWORK.vocab_size, np.float32)
    arriving = [PromptedSegment(segment, *prompt) for segment in cut] if hold else cut
    network = torch_network(arrays)
    # threads of a batch compute in what JAX has by default
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    if twin == "torch":
        decode, model = torch_decode, torch_network(single).float()
    else:
        decode, model = jax_decode, jax_checkpoint.to_params(single)
    how = {"batch_size": batch_size, "max_steps": 8, "hold": hold}
    results = list(decode.generator(model, CONFIG, activations=True, **how)(arriving))
    rows = []
    network.encoder.pre_encoder.rolls.register_forward_hook(lambda _m, _i, output: rows.append(output))
    contexts = torch.from_numpy(np.stack([segment.context for segment in cut]).astype(np.float64))
    network.encoder.pre_encoder(torch_model.within_range(contexts, NETWORK))
    expected = torch.sigmoid(rows[0] + ROW_BIAS)[..., :2].detach().numpy()
    assert expected.std() > 1e-3
    for tokens, ids, activations in zip(
        results, decode.generator(model, CONFIG, **how)(arriving), expected, strict=True
    ):
        np.testing.assert_array_equal(tokens.ids, ids)
        assert tokens.program_logits is None
        assert tokens.activations.dtype == np.float32
        np.testing.assert_allclose(tokens.activations, activations, rtol=0, atol=5e-5)
    # arrays alone have them, too, and the logits of programs come out as well
    [tokens] = decode.generator(model, CONFIG, activations=True, program_logits=True, max_steps=8)([cut[0].heard])
    np.testing.assert_allclose(tokens.activations, expected[0], rtol=0, atol=5e-5)
    assert tokens.program_logits.shape[1:] == (128,)


@pytest.mark.parametrize("hears", [False, True])
@pytest.mark.parametrize("package", ["jax", "torch", "onnx"])
def test_activations_that_are_asked_for_come_where_there_are_any(package, hears):
    """Also of a network that hears nothing around its segments; one without a pre-encoder has none."""
    network = dataclasses.replace(NETWORK, **NONE | ({"pre_encoder_layers": 1, "pre_encoder_dim": 6} if hears else {}))
    config = dataclasses.replace(CONFIG, network=network)
    arrays = initial_arrays(network, 2)
    frames = np.random.default_rng(0).normal(-5, 2, (16, network.input_depth)).astype(np.float32)
    if package == "onnx":
        graph, parts = search_parts(arrays, config)
        session = onnx_decode.session(graph.SerializeToString(), weights=parts)
        generate = onnx_decode.generator(session, config, max_steps=8, activations=True)
    elif package == "torch":
        model = torch_network(arrays, network).float()
        generate = torch_decode.generator(model, config, max_steps=8, activations=True)
    else:
        generate = jax_decode.generator(jax_checkpoint.to_params(arrays), config, max_steps=8, activations=True)
    [tokens] = generate([frames])
    assert len(tokens.ids)
    assert (tokens.activations.shape == (16, PITCH_ROWS, 2)) if hears else tokens.activations is None


def test_the_context_reaches_the_rows_and_not_the_projection(arrays, frames):
    """The rows of the segment's own frames depend on it; all else of the encoder does not."""
    network = dataclasses.replace(NETWORK, encoder_top_db=0.0)
    own = slice(NETWORK.context_frames, -NETWORK.context_frames)
    changed = frames.copy()
    changed[:, : NETWORK.context_frames] += 1
    for encoded in (
        lambda a, x: jax_encoded(a, x, network),
        lambda a, x: torch_network(a, network).encode(torch.from_numpy(x)).detach().numpy(),
    ):
        assert encoded(arrays, frames).shape == (3, CONFIG.input_frames, NETWORK.emb_dim)
        assert np.abs(encoded(arrays, frames) - encoded(arrays, changed)).max() > 1e-6
        deaf = {name: 0 * array if "pre_encoder/out" in name else array for name, array in arrays.items()}
        np.testing.assert_array_equal(encoded(deaf, frames), encoded(deaf, changed))
    plain = jax_encoded(deaf, frames[:, own], dataclasses.replace(network, context_frames=0))
    np.testing.assert_allclose(plain, jax_encoded(deaf, frames, network), rtol=0, atol=1e-12)


def test_every_step_of_the_oracle_is_a_tap_of_both_twins(arrays, frames):
    inputs = (frames, np.ones((3, 4), np.int32), np.ones((3, 4), np.int32))
    model = jax_model.Transformer(NETWORK)
    params = jax_checkpoint.to_params(arrays)
    _, variables = model.apply({"params": params}, *inputs, capture_intermediates=True, mutable=["intermediates"])
    seen = {}
    network = torch_network(arrays)
    for path, module in network.named_modules():
        module.register_forward_hook(lambda _m, _i, output, path=path: seen.__setitem__(path, output.detach().numpy()))
    network(*map(torch.from_numpy, inputs))
    for step in numpy_network.steps(NETWORK):
        if not step.is_tap or "pre_encoder" not in step.name:
            continue
        tap = variables["intermediates"]
        for part in step.name.split("/"):
            tap = tap[part]
        candidate = seen[step.name.replace("layers_", "layers.").replace("/", ".")]
        np.testing.assert_allclose(candidate, tap["__call__"][0], rtol=0, atol=1e-12, err_msg=step.name)


@pytest.mark.parametrize(("name", "inputs"), [("bfloat16", 0.05), ("float32", 1e-4)])
def test_shorter_numbers_stay_near(name, inputs, arrays, frames):
    wide = jax_encoded(arrays, frames)
    network = torch_network(arrays).to(getattr(torch, name))
    torch_short = network.encode(torch.from_numpy(frames).to(getattr(torch, name))).detach().double().numpy()
    params = jax_checkpoint.cast(jax_checkpoint.to_params(arrays), name)
    encode = jax_model.Transformer(NETWORK).apply
    jax_short = encode({"params": params}, jnp.asarray(frames, name), method="encode").astype(np.float64)
    for short in (torch_short, jax_short):
        assert np.sqrt(np.mean((short - wide) ** 2) / np.mean(wide**2)) < inputs


def test_silence_stays_silence_however_many_frames_there_are(arrays):
    """The mean of equal values may be rounded, and the norms make ten thousand times as much of what is left."""
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    silence = np.full((1, 80, NETWORK.input_depth), np.log(np.float32(1e-5)), np.float32)
    network = torch_network(single).float().encoder.pre_encoder
    rows = [network(torch.from_numpy(silence), True)[1].detach().numpy()]
    params = jax_checkpoint.to_params(single)["encoder"]["pre_encoder"]
    rows.append(np.asarray(jax_model.PreEncoder(NETWORK).apply({"params": params}, silence, True)[1]))
    for activations in rows:
        np.testing.assert_allclose(activations, 1 / (1 + np.exp(-ROW_BIAS)), rtol=1e-6)


def test_loudness_alone_changes_nothing(arrays, frames):
    network = torch_network(arrays).encoder.pre_encoder
    plain, louder = (network(torch.from_numpy(frames + shift)).detach().numpy() for shift in (0.0, 3.0))
    np.testing.assert_allclose(louder, plain, rtol=0, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("top_db", [0.0, 20.0])
def test_what_lies_far_below_a_segments_largest_changes_nothing(top_db, arrays):
    """But with a range of 0 dB, as MT3 has it, all does; what lies within the range always does."""
    network = dataclasses.replace(NETWORK, encoder_top_db=top_db)
    rng = np.random.default_rng(7)
    frames = rng.uniform(-1, 0, (2, CONFIG.heard_frames, NETWORK.input_depth))
    # the second segment is louder
    frames[1] += 2
    frames[0, 3, 7], frames[1, 5, 9] = 0.5, 2.5
    # 20 dB are a factor of 10
    below, above = frames.copy(), frames.copy()
    quiet = rng.uniform(0.01, 9, below[:, :, 100:].shape)
    below[:, :, 100:] = frames.max(axis=(1, 2), keepdims=True) - np.log(10) - quiet
    other = below.copy()
    other[:, :, 100:] -= rng.uniform(0, 3, quiet.shape)
    above[:, :, 100:] -= 0.1
    for encode in (
        lambda x: jax_encoded(arrays, x, network),
        lambda x: torch_network(arrays, network).encode(torch.from_numpy(x)).detach().numpy(),
    ):
        assert np.array_equal(encode(below), encode(other)) == bool(top_db)
        assert not np.array_equal(encode(frames), encode(above))


def test_zeros_past_the_end_count_for_nothing():
    """They are no silence, whose magnitudes have logarithms far below 0, and stay as they are."""
    network = dataclasses.replace(NETWORK, encoder_top_db=20.0)
    frames = np.random.default_rng(1).uniform(-12, -3, (2, 6, 5))
    frames[:, 4:] = 0
    frames[1, 1] = 0
    frames[1, 2, 1] = 2
    expected = frames.copy()
    for segment in expected:
        heard = segment.any(axis=-1)
        segment[heard] = np.maximum(segment[heard], segment[heard].max() - np.log(10))
    step = numpy_network.Step("encoder/.within_range", "within_range", (numpy_network.FRAMES,))
    for limited in (
        torch_model.within_range(torch.from_numpy(frames), network).numpy(),
        jax_model.within_range(jnp.asarray(frames), network),
        numpy_network.run_step(step, {numpy_network.FRAMES: frames}, {}, network),
    ):
        np.testing.assert_allclose(limited, expected, rtol=0, atol=1e-12)
    nothing = np.zeros((1, 3, 5))
    np.testing.assert_array_equal(torch_model.within_range(torch.from_numpy(nothing), network), nothing)
    np.testing.assert_array_equal(jax_model.within_range(jnp.asarray(nothing), network), nothing)


def test_what_is_learned_of_one_pitch_holds_for_all(arrays):
    network = dataclasses.replace(NETWORK, pre_encoder_layers=1)
    network = torch_network({n: a for n, a in arrays.items() if "pre_encoder/layers_1" not in n}, network)
    network = network.encoder.pre_encoder
    network.bins = torch.nn.Identity()
    rows = []
    network.rolls.register_forward_hook(lambda _m, _i, output: rows.append(output.detach().numpy()))
    # farther from both ends than a layer looks, and no louder or softer than silence on the whole
    bins = np.zeros((1, 16, 3 * PITCH_ROWS))
    bins[:, 4:9, 140:146] = np.random.default_rng(1).standard_normal((5, 6))
    bins[:, 4, 140] -= bins.sum()
    network(torch.from_numpy(bins))
    network(torch.from_numpy(np.roll(bins, 3, axis=2)))
    one, other = rows
    np.testing.assert_allclose(other[:, :, 1:], one[:, :, :-1], rtol=0, atol=1e-12)
    assert np.abs(other - one).max() > 0.01


@pytest.mark.parametrize("pitch", [45, 57, 69, 88, 104])
def test_bins_have_a_tone_where_its_pitch_is(pitch):
    spectrogram = SpectrogramConfig()
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    edges = np.linspace(*(1127 * np.log(1 + np.array([20, 7600]) / 700)), 514)
    mel = 1127 * np.log(1 + hertz / 700)
    # a triangle around it, as a mel filter bank has
    heard = np.maximum(0, 1 - np.abs(edges[1:-1] - mel) / (2 * (edges[1] - edges[0])))
    weights = pitch_bins(spectrogram)
    assert weights.shape == (512, 3 * PITCH_ROWS)
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-6)
    # the middle of the row's three bins, or beside it where mel bins are wider than a third of a semitone
    assert abs(int((heard @ weights).argmax()) - (3 * (pitch - LOWEST_PITCH) + 1)) <= (1 if pitch > 50 else 2)


def test_checkpoints_hold_it_and_configs_tell_it_from_the_arrays(tmp_path, arrays):
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    names.check_arrays(single, NETWORK)
    sizes = names.array_sizes(single)
    assert (sizes["pre_encoder_layers"], sizes["pre_encoder_dim"]) == (2, 6)
    write_t5x(tmp_path / "t5x", single, 7, config=CONFIG)
    for load, to_arrays in (
        (torch_checkpoint.load, lambda model: torch_checkpoint.to_arrays(model.state_dict())),
        (jax_checkpoint.load, jax_checkpoint.to_arrays),
    ):
        weights, config = load(tmp_path / "t5x")
        assert config == CONFIG
        for name, array in to_arrays(weights).items():
            np.testing.assert_array_equal(array, single[name])
    lost = {name: array for name, array in single.items() if name != "encoder/pre_encoder/layers_0/fifths/kernel"}
    with pytest.raises(names.CheckpointError, match="layers_0/fifths/kernel is missing"):
        names.check_arrays(lost, NETWORK)
    plain = dataclasses.replace(NETWORK, **NONE)
    with pytest.raises(names.CheckpointError, match="is not one of MT3's"):
        names.check_arrays(single, plain)
    with pytest.raises(ConfigError, match="pre_encoder_layers 1 is not 2"):
        resolve(sizes, overrides=CONFIG.to_dict() | {"pre_encoder_layers": 1})


def test_hf_t5_style_files_have_no_names_for_it(arrays):
    with pytest.raises(names.CheckpointError, match="HF-T5 style files have no name for a pre-encoder"):
        torch_checkpoint.to_hf_t5(arrays)


def test_configs_of_mt3_do_not_mention_it():
    assert {"pre_encoder_dim", "encoder_top_db"}.isdisjoint(Config().to_dict())
    assert Config.from_dict(Config().to_dict()) == Config()
    assert Config.from_dict(CONFIG.to_dict()) == CONFIG
    assert not any("pre_encoder" in name for name in names.array_shapes(NetworkConfig()))
    for layers, width in ((2, 0), (0, 6)):
        with pytest.raises(ConfigError, match="must both be 0 or both above it"):
            dataclasses.replace(NETWORK, pre_encoder_layers=layers, pre_encoder_dim=width)
    with pytest.raises(ConfigError, match=r"pre_encoder_dim must be a whole number in \[0, 4096\], not -1"):
        dataclasses.replace(NETWORK, pre_encoder_dim=-1)
    with pytest.raises(ConfigError, match=r"encoder_top_db must be in \[0, 200\], not -1"):
        dataclasses.replace(NETWORK, encoder_top_db=-1)


def batch_of_one_note():
    """Two segments of noise in which pitch 60 sounds from frame 4 to frame 9."""
    rng = np.random.default_rng(4)
    rolls = np.zeros((2, CONFIG.input_frames, ROLL_COLUMNS), bool)
    rolls[:, 4:10, 60] = True
    rolls[:, 4, 128 + 60] = True
    rolls[:, 4:10, 384 + 5] = True
    vocabulary = Vocabulary(CONFIG.vocabulary)
    note = ("program", 40), ("velocity", 1), ("pitch", 60)
    events = ("tie", 0), ("shift", 8), *note, ("shift", 20), note[0], ("velocity", 0), note[2]
    ids = [*vocabulary.encode([vocabulary.index(*event) for event in events]), EOS_ID]
    shape = (2, CONFIG.heard_frames, NETWORK.input_depth)
    return Batch(rng.normal(-5, 1, shape).astype(np.float32), np.array([ids, ids], np.int32), rolls)


@pytest.mark.parametrize("weights", [{"pitch": 0.1}, {"row_classes": 3.0}, {"auxiliary": 0.1, "classes": 8.0}])
def test_each_auxiliary_loss_is_the_same_in_both_twins_and_teaches(arrays, weights):
    settings = TrainingConfig(
        steps=8, batch_size=2, dtype="float64", warmup_steps=1, learning_rate=0.01, **{"auxiliary": 0.0} | weights
    )
    learners = [learner(CONFIG, settings, arrays, {}, "cpu") for learner in LEARNERS.values()]
    lost = []
    for step in range(8):
        one, other = (learner.update([batch_of_one_note()], step, 0.01) for learner in learners)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9), step
        lost.append(one["loss"] - one["token_loss"])
    assert 0 < lost[-1] < 0.7 * lost[0]


def test_what_comes_behind_the_pre_encoder_rests_where_no_loss_reads_it(arrays):
    settings = TrainingConfig(
        steps=8,
        batch_size=2,
        dtype="float64",
        warmup_steps=1,
        auxiliary=0.0,
        pitch=0.1,
        auxiliary_steps=2,
        weight_decay=0.1,
    )
    learners = [learner(CONFIG, settings, arrays, {}, "cpu") for learner in LEARNERS.values()]
    for step in range(4):
        one, other = (learner.update([batch_of_one_note()], step, 0.01) for learner in learners)
        # Adam makes whole steps of gradients that are nothing but rounding, so later losses part
        assert step >= 2 or one["loss"] == pytest.approx(other["loss"], rel=1e-9), step
        for learner in learners:
            weights = learner.arrays()
            moved = {name for name in arrays if not np.array_equal(weights[name], arrays[name])}
            behind = {name for name in moved if not name.startswith("encoder/pre_encoder/")}
            assert moved - behind
            assert bool(behind) == (step >= 2), step


@pytest.mark.parametrize("lacking", ["use_programs", "use_ties"])
def test_classes_of_rows_need_ids_that_tell_them(arrays, lacking):
    settings = TrainingConfig(steps=8, batch_size=2, row_classes=0.1)
    config = dataclasses.replace(CONFIG, vocabulary=VocabularyConfig(**{lacking: False}))
    for learner in LEARNERS.values():
        with pytest.raises(TrainingError, match="row_classes reads from the target ids"):
            learner(config, settings, arrays, {}, "cpu")


@pytest.mark.parametrize("weights", [{"pitch": 0.1}, {"row_classes": 0.1}])
def test_losses_on_rows_need_a_pre_encoder(weights):
    settings = TrainingConfig(steps=8, batch_size=2, **weights)
    plain = dataclasses.replace(NETWORK, **NONE)
    for learner in LEARNERS.values():
        with pytest.raises(TrainingError, match="pre_encoder_layers is 0"):
            learner(dataclasses.replace(CONFIG, network=plain), settings, initial_arrays(plain), {}, "cpu")


def test_the_pitch_loss_is_the_weighted_cross_entropy_of_three_of_the_labels():
    from jax_mt3.losses import pitch_losses as jax_losses
    from torch_mt3.losses import pitch_losses as torch_losses

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 5, PITCH_ROWS, 8))
    rolls = rng.random((2, 5, LABEL_COLUMNS))
    expected = np.zeros((2, 5))
    for feature, (first, weight, positive) in enumerate(((0, 1, 1), (128, 6, 3), (ROLL_COLUMNS, 3, 2))):
        wanted = rolls[..., first + LOWEST_PITCH : first + LOWEST_PITCH + PITCH_ROWS]
        chance = 1 / (1 + np.exp(-(logits[..., feature] - 4)))
        losses = -positive * wanted * np.log(chance) - (1 - wanted) * np.log(1 - chance)
        expected += weight * losses.sum(axis=-1)
    np.testing.assert_allclose(jax_losses(jnp.asarray(logits), jnp.asarray(rolls)), expected, rtol=1e-10)
    np.testing.assert_allclose(torch_losses(torch.from_numpy(logits), torch.from_numpy(rolls)), expected, rtol=1e-10)


def test_the_loss_on_row_classes_is_the_weighted_cross_entropy_of_known_rows():
    from jax_mt3.losses import row_class_losses as jax_losses
    from torch_mt3.losses import row_class_losses as torch_losses

    rng = np.random.default_rng(0)
    logits, kernel, bias = (rng.standard_normal(shape) for shape in ((1, 3, PITCH_ROWS, 8), (8, NUM_CLASSES), (16,)))
    classes = np.full((1, 3, PITCH_ROWS), -1)
    # a chord of classes 5 and 2; in the last frame a piano alone, which counts a quarter
    classes[0, 0, [39, 43]] = 5, 2
    classes[0, 2, 0] = 0
    probabilities = np.exp(logits @ kernel + bias)
    losses = -np.log(probabilities / probabilities.sum(axis=-1, keepdims=True))[0]
    expected = [[losses[0, 39, 5] + losses[0, 43, 2], 0, 0.25 * losses[2, 0, 0]]]
    inputs = logits, kernel, bias, classes
    np.testing.assert_allclose(jax_losses(*map(jnp.asarray, inputs)), expected, rtol=1e-10)
    np.testing.assert_allclose(torch_losses(*map(torch.from_numpy, inputs)), expected, rtol=1e-10)


# (program, pitch) -> onset, length, and silence before the same note sounds again, in frames of 20 ms; 65 and 64 are of
# one class
lines = st.dictionaries(
    st.tuples(st.sampled_from([0, 24, 40, 64, 65]), st.integers(30, 34)),
    st.tuples(st.integers(0, 70), st.integers(1, 40), st.integers(0, 9)),
    max_size=8,
)


@given(lines, st.integers(0, 20), st.sampled_from([1, 127]))
def test_classes_of_rows_are_those_of_the_notes_whatever_else_sounds(played, drum_frame, num_velocity_bins):
    frames_of = {
        key: {(first, first + length), (first + length + silence, first + 2 * length + silence)}
        for key, (first, length, silence) in played.items()
    }
    notes = [
        Note(0.02 * first, 0.02 * end, pitch, 100, program)
        for (program, pitch), spans in frames_of.items()
        for first, end in spans
    ]
    notes.append(Note(0.02 * drum_frame, 0.02 * drum_frame + 0.01, 31, 100, 0, True))
    config = dataclasses.replace(
        CONFIG, max_target_length=512, vocabulary=VocabularyConfig(num_velocity_bins=num_velocity_bins)
    )
    audio = np.zeros(160 * config.spectrogram.hop_width, np.float32)
    frames, ids, rolls = zip(*cut_segments(audio, notes, 1, config))
    longest = max(map(len, ids))
    targets = np.stack([np.pad(row, (0, longest - len(row))) for row in ids]).astype(np.int32)
    known = labels.row_classes(Batch(np.stack(frames), targets, np.stack(rolls)), config)
    for segment, of_segment in enumerate(known):
        begin = 1 + segment * config.input_frames
        for frame, row in enumerate(of_segment):
            at = begin + frame
            for pitch in range(30, 35):
                playing = {
                    program // 8
                    for (program, other), spans in frames_of.items()
                    if other == pitch and any(first <= at < end for first, end in spans)
                }
                expected = playing.pop() if len(playing) == 1 else -1
                assert row[pitch - LOWEST_PITCH] == expected, (segment, frame, pitch)
    outside = np.delete(known, range(30 - LOWEST_PITCH, 35 - LOWEST_PITCH), axis=-1)
    assert (outside == -1).all()


def test_columns_of_classes_weigh_what_the_setting_says():
    plain, heavy = (labels.roll_weights(classes)[0] for classes in (1.0, 8.0))
    changed = np.flatnonzero(plain != heavy)
    assert changed.tolist() == list(range(384, ROLL_COLUMNS))
    assert set(heavy[changed]) == {8.0}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_norm_of_segments_has_the_gradient_that_autograd_finds(dtype):
    rng = np.random.default_rng(1)
    x, scale, weights = (
        torch.tensor(rng.standard_normal(shape), dtype=getattr(torch, dtype))
        for shape in ((2, 3, 4, 5), (5,), (2, 3, 4, 5))
    )
    leaves = [array.clone().requires_grad_() for array in (x, scale)]
    expected = [array.clone().requires_grad_() for array in (x, scale)]
    (torch_model.scaled_to_unit(*leaves) * weights).sum().backward()
    root = torch.rsqrt((expected[0] ** 2).mean(dim=(1, 2, 3), keepdim=True) + 1e-6)
    (expected[0] * root * expected[1] * weights).sum().backward()
    tolerance = 100 * torch.finfo(x.dtype).eps
    for one, other in zip(leaves, expected):
        torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=tolerance)


def test_the_norm_of_segments_has_nearly_its_gradient_in_16_bits():
    rng = np.random.default_rng(2)
    x, scale, weights = (
        torch.tensor(rng.standard_normal(shape)).bfloat16() for shape in ((2, 8, 9, 6), (6,), (2, 8, 9, 6))
    )
    gradients = {}
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [array.to(dtype, copy=True).requires_grad_() for array in (x, scale)]
        (torch_model.scaled_to_unit(*leaves) * weights.to(dtype)).sum().backward()
        gradients[dtype] = [leaf.grad.double() for leaf in leaves]
    for one, other in zip(*gradients.values()):
        assert float((one - other).norm() / other.norm()) < 0.01


def test_threads_that_pre_encode_at_once_have_their_own_weights(arrays, frames):
    """Two threads decode the halves of a batch."""
    inputs = torch.from_numpy(frames)
    packed = torch_pack(torch_network(arrays))
    networks = [{name: (1 + number) * array for name, array in packed.pre_encoder.items()} for number in range(2)]
    with torch.inference_mode():
        expected = [kernels.pre_encode(inputs, network, NETWORK) for network in networks]

    @torch.inference_mode()
    def repeat(number: int) -> list[bool]:
        encoded = (kernels.pre_encode(inputs, networks[number], NETWORK) for _ in range(100))
        return [torch.equal(*pair) for arrays in encoded for pair in zip(arrays, expected[number], strict=True)]

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert all(itertools.chain(*threads.map(repeat, range(2))))
