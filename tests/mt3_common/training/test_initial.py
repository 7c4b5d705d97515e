"""Initial weights: MT3's names, shapes and variances; arranged ones look where they are meant to."""

import dataclasses
import types

import numpy as np
import pytest

from mt3_common.checkpoint.names import check_arrays
from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.training import initial
from mt3_common.training.config import TrainingConfig

NETWORK = NetworkConfig(emb_dim=128, num_heads=4, head_dim=32, mlp_dim=64, num_encoder_layers=3, num_decoder_layers=1)
CONFIG = Config(network=NETWORK, spectrogram=SpectrogramConfig(hop_width=320), input_frames=64)


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((2000, 40)) @ rng.standard_normal((40, 512)) - 5).astype(np.float32)


@pytest.fixture(scope="module")
def arranged(frames):
    return initial.arranged_arrays(CONFIG, frames, seed=1)


def test_draws_have_mt3s_variances():
    arrays = initial.initial_arrays(NETWORK, seed=2)
    check_arrays(arrays, NETWORK)
    for name, array in arrays.items():
        assert array.dtype == np.float32
        if name.endswith("scale"):
            assert (array == 1).all()
            continue
        expected = 1.0 if name.endswith("embedding") else array.shape[0] ** -0.5
        expected *= 32**-0.5 if "/query/" in name else 1
        assert array.std() == pytest.approx(expected, rel=0.05), name
    again = initial.initial_arrays(NETWORK, seed=2)
    assert all((arrays[name] == again[name]).all() for name in arrays)


@pytest.mark.parametrize(("top_db", "context"), [(0.0, 0), (20.0, 0), (20.0, 8)])
def test_drawn_arrays_are_arranged_for_what_the_encoder_takes(top_db, context, frames):
    """Without the rows past the end of the audio and the context, and with the floor of the network."""
    segments = frames.reshape(20, 100, 512).copy()
    segments[3, 60:] = 0
    around = {"pre_encoder_layers": 1, "pre_encoder_dim": 4, "context_frames": context} if context else {}
    network = dataclasses.replace(NETWORK, encoder_top_db=top_db, **around)
    config = dataclasses.replace(CONFIG, network=network, input_frames=100 - 2 * context)
    source = types.SimpleNamespace(some=lambda count: types.SimpleNamespace(frames=segments[:count]))
    taken = []
    for segment in segments:
        floor = segment[segment.any(axis=-1)].max() - np.float32(np.log(10)) if top_db else -np.inf
        own = segment[context : 100 - context]
        taken.append(np.maximum(own[own.any(axis=-1)], floor))
    expected = initial.arranged_arrays(config, np.concatenate(taken), seed=4)
    for name, array in initial.drawn_arrays(config, TrainingConfig(seed=4), source).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_projected_frames_are_white_and_leave_positions_alone(arranged, frames):
    check_arrays(arranged, NETWORK)
    projected = frames @ arranged["encoder/continuous_inputs_projection/kernel"]
    scales = np.linalg.eigvalsh(projected.T @ projected / len(frames))[::-1]
    assert scales[:39] == pytest.approx(1, abs=0.1)
    positions = initial._sinusoids(np.arange(64), NETWORK)
    assert np.abs(projected @ positions.T).max() < 0.02 * np.linalg.norm(projected, axis=1).max() * 8


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (0, 3), (1, 1), (1, 3), (2, 0)])
def test_heads_look_so_many_frames_ahead(arranged, layer, head):
    positions = initial._sinusoids(np.arange(64), NETWORK)
    columns = slice(head * 32, head * 32 + 32)
    query, key = (
        positions @ arranged[f"encoder/layers_{layer}/attention/{part}/kernel"][:, columns] for part in ("query", "key")
    )
    looked_at = (query @ key.T).argmax(axis=1) - np.arange(64)
    assert (looked_at[10:54] == initial.ENCODER_OFFSETS[layer][head]).all()


def test_shift_tokens_look_at_their_frame(arranged):
    embedding = arranged["decoder/token_embedder/embedding"]
    positions = initial._sinusoids(np.arange(64), NETWORK)
    name = "decoder/layers_0/encoder_decoder_attention"
    query = embedding[3:131] @ arranged[f"{name}/query/kernel"][:, :32]
    looked_at = (query @ (positions @ arranged[f"{name}/key/kernel"][:, :32]).T).argmax(axis=1)
    # 50 frames and 100 steps a second
    assert np.abs(looked_at[4:120] - np.arange(4, 120) / 2).max() <= 1


def test_every_token_knows_the_last_shift(arranged):
    rng = np.random.default_rng(3)
    ids, right = [], []
    for shift in range(4, 100, 7):
        ids += [3 + shift, *rng.integers(1004, 1132, rng.integers(1, 5)).tolist()]
        right += [ids.index(3 + shift)] * (len(ids) - len(right))
    x = arranged["decoder/token_embedder/embedding"][ids] + initial._sinusoids(np.arange(len(ids)), NETWORK)
    x /= np.sqrt((x**2).mean(axis=1, keepdims=True))
    name = "decoder/layers_0/self_attention"
    query, key, value = (x @ arranged[f"{name}/{part}/kernel"][:, :32] for part in ("query", "key", "value"))
    logits = np.where(np.tri(len(ids), dtype=bool), query @ key.T, -np.inf)
    assert np.mean(logits.argmax(axis=1) == right) > 0.75
    # what it brings is where cross-attention's query looks for the time
    times = value[right] @ arranged[f"{name}/out/kernel"][:32]
    cross = "decoder/layers_0/encoder_decoder_attention"
    positions = initial._sinusoids(np.arange(64), NETWORK)
    query = times @ arranged[f"{cross}/query/kernel"][:, :32]
    looked_at = (query @ (positions @ arranged[f"{cross}/key/kernel"][:, :32]).T).argmax(axis=1)
    assert np.abs(looked_at - (np.array(ids)[right] - 3) / 2).max() <= 1.5


def test_what_cannot_be_arranged_is_said(frames):
    with pytest.raises(ValueError, match="too few"):
        initial.arranged_arrays(CONFIG, frames[:100])
    small = Config(network=NetworkConfig(emb_dim=24, num_heads=1, head_dim=8, mlp_dim=8))
    with pytest.raises(ValueError, match="emb_dim and head_dim"):
        initial.arranged_arrays(small, frames)
