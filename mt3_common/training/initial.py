"""Initial weights of training, the same for both twins.

They are drawn as MT3 draws them, then arranged by frames of the training data, so that a small network learns in hours
instead of days: the projection of the frames is whitened, some heads attend a fixed number of frames back or ahead, and
the embeddings of shift tokens encode their frame. The architecture stays MT3's.
"""

import math
from collections.abc import Sequence

import numpy as np

from mt3_common.checkpoint.names import array_shapes
from mt3_common.config import (
    BINS_PER_ROW,
    LOWEST_PITCH,
    PITCH_ROWS,
    ROW_FEATURES,
    Config,
    NetworkConfig,
    SpectrogramConfig,
)
from mt3_common.data.shards import Shards, Stream
from mt3_common.io.plural import plural
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.training.config import TrainingConfig

# dimensions of the residual stream reserved for the encoder's positions; 64 positions need no more
POSITION_DIMS = 24
# frames by which heads attend ahead (None: as drawn): in the first encoder layers from their own frame, in
# cross-attention from the frame of a shift token
ENCODER_OFFSETS = ((-2, 2, -5, 5), (-1, 1, -4, 8), (-3, 3, None, None), (0, -2, None, None))
CROSS_OFFSETS = (0, 3, None, None)


def initial_arrays(config: NetworkConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw random weights as MT3 does: MT3's names -> float32.

    Kernels are truncated normal with variance 1 / inputs (the queries' a further 1 / head_dim smaller), embeddings
    standard normal, scales 1.

    Source: mt3/network.py and mt3/layers.py; the draws themselves differ.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in array_shapes(config).items():
        if name.endswith("scale"):
            arrays[name] = np.ones(shape, np.float32)
        elif name.endswith("embedding"):
            arrays[name] = rng.standard_normal(shape, np.float32)
        else:
            # of a convolution all but the last axis are inputs
            inputs = math.prod(shape[:-1])
            deviation = (inputs * (config.head_dim if "/query/" in name else 1)) ** -0.5
            arrays[name] = (_truncated(rng, shape) * deviation).astype(np.float32)
    return arrays


def arranged_arrays(config: Config, frames: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Return initial_arrays arranged for the data.

    Args:
        config: of the model; its emb_dim must exceed POSITION_DIMS.
        frames: (n, mel bins) log-mel rows of the training data, padding left out.
        seed: of all draws.

    Raises:
        ValueError: there are fewer frames than mel bins, or emb_dim is too small.
    """
    network = config.network
    width = network.emb_dim
    if len(frames) < network.input_depth:
        raise ValueError(f"{plural(len(frames), 'frame is', 'frames are')} too few for {network.input_depth} mel bins")
    if width <= POSITION_DIMS or network.head_dim < POSITION_DIMS:
        raise ValueError(
            f"emb_dim and head_dim must be above {POSITION_DIMS} for weights arranged for the data, not {width} "
            f'and {network.head_dim}: choose larger ones, or "arranged": false among the training settings'
        )
    arrays = initial_arrays(network, seed)
    rng = np.random.default_rng([seed, 1])

    positions = _sinusoids(np.arange(config.input_frames), network)
    _, _, rows = np.linalg.svd(positions)
    basis, rest = rows[:POSITION_DIMS].T, rows[POSITION_DIMS:].T

    # Uncentred: without biases, the mean is one of the directions that are scaled down.
    moments = frames.astype(np.float64).T @ frames / len(frames)
    scales, directions = np.linalg.eigh(moments)
    rank = min(rest.shape[1], network.input_depth)
    # 0.02: directions of less variance are noise between neighbouring bins
    whitened = directions[:, ::-1][:, :rank] / np.sqrt(scales[::-1][:rank] + 0.02)
    projection = whitened @ _rotation(rng, rank) @ rest[:, :rank].T
    arrays["encoder/continuous_inputs_projection/kernel"] = projection.astype(np.float32)

    if network.pre_encoder_layers:
        arrays["encoder/pre_encoder/bins/kernel"] = pitch_bins(config.spectrogram)
        # some ten notes sound at once: together they are to be as large as the projection of the frames
        arrays["encoder/pre_encoder/out/kernel"] *= np.float32(0.35 * (PITCH_ROWS * ROW_FEATURES) ** 0.5)
    for layer, offsets in zip(range(network.num_encoder_layers), ENCODER_OFFSETS):
        _attend_at_offsets(arrays, f"encoder/layers_{layer}/attention", offsets, basis, np.eye(width), network, rng)
    # The times of shift tokens are rotated away from the decoder's own positions.
    turned = _rotation(rng, width)
    vocabulary = Vocabulary(config.vocabulary)
    first, last = vocabulary.ranges["shift"]
    times = np.arange(last - first + 1) / config.vocabulary.steps_per_second
    embedding = _sinusoids(times * config.spectrogram.frames_per_second, network) @ turned.T
    # 1.2: the norm of the standard normal rows of other tokens
    arrays["decoder/token_embedder/embedding"][3 + first : 3 + last + 1] = 1.2 * embedding + 0.1 * rng.standard_normal(
        embedding.shape
    )
    for layer in range(network.num_decoder_layers):
        name = f"decoder/layers_{layer}/encoder_decoder_attention"
        _attend_at_offsets(arrays, name, CROSS_OFFSETS, basis, turned, network, rng)
    _carry_time(arrays, embedding, basis, turned, config, rng)
    return arrays


def pitch_bins(spectrogram: SpectrogramConfig) -> np.ndarray:
    """Weights that read the log-mel spectrogram at equal steps of pitch: (mel bins, PITCH_ROWS * BINS_PER_ROW) float32.

    A column is the mean of the mel bins around its pitch, weighted by a triangle as wide as a step, or as the mel bins
    lie apart where that is further; 0 above the highest bin.
    """

    def mel(hz):
        return 1127 * np.log(1 + hz / 700)

    edges = np.linspace(mel(spectrogram.mel_lo_hz), mel(spectrogram.mel_hi_hz), spectrogram.num_mel_bins + 2)
    pitches = 69 + 12 * np.log2(700 * (np.exp(edges[1:-1] / 1127) - 1) / 440)
    columns = LOWEST_PITCH + (np.arange(PITCH_ROWS * BINS_PER_ROW) - (BINS_PER_ROW - 1) / 2) / BINS_PER_ROW
    width = np.maximum(1 / BINS_PER_ROW, np.interp(columns, pitches, np.gradient(pitches)))
    weights = np.maximum(1 - np.abs(pitches[:, np.newaxis] - columns) / width, 0) * (columns <= pitches[-1])
    return (weights / np.maximum(weights.sum(axis=0), 1e-9)).astype(np.float32)


def _carry_time(
    arrays: dict[str, np.ndarray],
    shifts: np.ndarray,
    basis: np.ndarray,
    turned: np.ndarray,
    config: Config,
    rng: np.random.Generator,
) -> None:
    """Let the decoder's first self-attention head copy the time of the last shift token; changes arrays.

    Every token's query of cross-attention then holds the frame of the current event. The head's key encodes whether a
    token is a shift (they all share the slow cosines) and its position; its value is the time.

    Args:
        arrays: all weights, by name.
        shifts: (n, emb_dim), embeddings of the shift tokens.
        basis: (emb_dim, POSITION_DIMS), directions of the encoder's positions.
        turned: (emb_dim, emb_dim), rotation of the times.
        config: of the model.
        rng: of all draws.
    """
    network = config.network
    positions = _sinusoids(np.arange(256), network)
    near = np.linalg.svd(positions)[2][: network.head_dim - 1].T
    constant, shift = positions.mean(axis=0), shifts[: config.vocabulary.steps_per_second].mean(axis=0)
    kernels = {"query": near, "key": near, "value": turned @ basis}
    # 2: enough to outweigh distances of some twenty tokens, little more than shift tokens differ among themselves
    flags = {"query": 2.0 * constant / np.linalg.norm(constant), "key": shift / np.linalg.norm(shift)}
    name = "decoder/layers_0/self_attention"
    for part, kernel in kernels.items():
        head = 0.02 * rng.standard_normal((network.emb_dim, network.head_dim))
        head[:, : kernel.shape[1]] = kernel
        if part in flags:
            head[:, -1] = flags[part]
        arrays[f"{name}/{part}/kernel"][:, : network.head_dim] = head
    out = 0.02 * rng.standard_normal((network.head_dim, network.emb_dim))
    out[:POSITION_DIMS] = (turned @ basis).T
    arrays[f"{name}/out/kernel"][: network.head_dim] = out


def _attend_at_offsets(
    arrays: dict[str, np.ndarray],
    name: str,
    offsets: Sequence[int | None],
    basis: np.ndarray,
    turned: np.ndarray,
    network: NetworkConfig,
    rng: np.random.Generator,
) -> None:
    """Let heads of an attention layer attend to the frame at an offset from their own; changes arrays.

    A query with the sinusoids of position p and a key with those of position q have the product sum(cos(w * (p - q))),
    which is largest at p = q; rotating the query's pairs by an angle of w * offset moves the maximum.
    """
    for head, offset in zip(range(network.num_heads), offsets):
        if offset is None:
            continue
        columns = slice(head * network.head_dim, (head + 1) * network.head_dim)
        for part, position in (("key", basis), ("query", turned @ basis @ basis.T @ _turn(offset, network).T @ basis)):
            kernel = 0.02 * rng.standard_normal((network.emb_dim, network.head_dim))
            kernel[:, :POSITION_DIMS] = position
            arrays[f"{name}/{part}/kernel"][:, columns] = kernel


def _frequencies(network: NetworkConfig) -> np.ndarray:
    half = network.emb_dim // 2
    return np.exp(-np.log(10000.0) / (half - 1 if network.position_table == "mt3" else half) * np.arange(half))


def _sinusoids(positions: np.ndarray, network: NetworkConfig) -> np.ndarray:
    """Return the network's position table at any positions, integer or not: (n, emb_dim) float64."""
    angles = np.asarray(positions, np.float64)[:, None] * _frequencies(network)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _turn(offset: float, network: NetworkConfig) -> np.ndarray:
    """Return the matrix that maps sinusoids of p to those of p + offset: (emb_dim, emb_dim), applied from the left."""
    angles = offset * _frequencies(network)
    sines, cosines = np.diag(np.sin(angles)), np.diag(np.cos(angles))
    return np.block([[cosines, sines], [-sines, cosines]])


def _rotation(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a random orthogonal matrix."""
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def _truncated(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Draw from a normal distribution cut off at two deviations, scaled to variance 1."""
    draws = rng.standard_normal(shape)
    while (outside := np.abs(draws) > 2).any():
        draws[outside] = rng.standard_normal(outside.sum())
    return draws / 0.87962566103423978


def drawn_arrays(config: Config, settings: TrainingConfig, source: Shards | Stream) -> dict[str, np.ndarray]:
    """Return the weights of a training run from scratch."""
    if not settings.arranged:
        return initial_arrays(config.network, settings.seed)
    network, heard = config.network, []
    own = slice(network.context_frames, network.context_frames + config.input_frames)
    for frames in source.some(500).frames:
        real = np.abs(frames).max(axis=-1) > 0
        if network.encoder_top_db:
            # as the encoder takes them
            frames = np.maximum(frames, frames[real].max(initial=-np.inf) - network.log_range)
        heard.append(frames[own][real[own]])
    return arranged_arrays(config, np.concatenate(heard), settings.seed)
