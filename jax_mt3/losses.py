"""The losses of training in JAX; torch_mt3/losses.py is its twin."""

import jax
import jax.numpy as jnp
from einops import einsum

from mt3_common.training import labels as training_labels


def cross_entropy(logits: jax.Array, targets: jax.Array, z_loss: float = 1e-4) -> jax.Array:
    """The training loss: cross-entropy plus z_loss * log(Z)^2, summed over positions whose target is not 0.

    Args:
        logits: (b, l, vocab_size).
        targets: (b, l) ids.

    Source: T5X/losses.py, compute_weighted_cross_entropy.
    """
    log_z = jax.scipy.special.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return ((log_z - chosen + z_loss * log_z**2) * (targets > 0)).sum()


def auxiliary_losses(
    encoded: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    rolls: jax.Array,
    next_events: jax.Array,
    next_weight: float,
) -> jax.Array:
    """The frame-wise losses on the encoder, or those on a decoder layer: (b, f).

    What sounds: weighted binary cross-entropy of each column, summed; plus next_weight times the cross-entropy of where
    the next event is.

    Args:
        encoded: (b, f, emb_dim), what the linear layer reads; f may be tokens.
        kernel: (emb_dim, columns), of the linear layer that is thrown away.
        bias: (columns,).
        rolls: (b, f, LABEL_COLUMNS) in 0..1, see labels.soft_rolls.
        next_events: (b, f) ids, see labels.next_events.
        next_weight: of the second loss.
    """
    weights, positive = training_labels.roll_weights()
    logits = encoded.astype(kernel.dtype) @ kernel + bias
    logits, places = jnp.split(logits, [rolls.shape[-1]], axis=-1)
    losses = (1 - rolls) * logits + (1 + (positive - 1) * rolls) * jax.nn.softplus(-logits)
    chosen = jnp.take_along_axis(places, next_events[..., None], axis=-1)[..., 0]
    return (losses * weights).sum(axis=-1) + next_weight * (jax.scipy.special.logsumexp(places, axis=-1) - chosen)


def alignment_loss(query: jax.Array, key: jax.Array, places: jax.Array, real: jax.Array) -> jax.Array:
    """How far a head of cross-attention is from looking at given frames: cross-entropy, summed over tokens.

    Args:
        query: (b, l, d), of one head.
        key: (b, f, d).
        places: (b, l), frames, f where there is none to look at.
        real: (b, l) bool, false at padding.
    """
    frames = jnp.arange(key.shape[1], dtype=places.dtype)
    # 0.8 frames: a note may be heard in the frames beside its own
    wanted = jnp.exp(-0.5 * ((frames - places[..., None]) / 0.8) ** 2)
    wanted = wanted / jnp.maximum(wanted.sum(axis=-1, keepdims=True), 1e-6)
    logits = einsum(query, key, "b l d, b f d -> b l f").astype(places.dtype)
    losses = -(wanted * jax.nn.log_softmax(logits, axis=-1)).sum(axis=-1)
    return (losses * (real & (places < key.shape[1]))).sum()
