"""The losses of training in PyTorch; jax_mt3/losses.py is its twin."""

import torch
from einops import einsum
from torch.nn import functional as F

from mt3_common.training import labels as training_labels


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, z_loss: float = 1e-4) -> torch.Tensor:
    """The training loss: cross-entropy plus z_loss * log(Z)^2, summed over positions whose target is not 0.

    Args:
        logits: (b, l, vocab_size).
        targets: (b, l) ids.

    Source: T5X/losses.py, compute_weighted_cross_entropy.
    """
    log_z = torch.logsumexp(logits, dim=-1)
    chosen = torch.gather(logits, -1, targets[..., None].long())[..., 0]
    return ((log_z - chosen + z_loss * log_z**2) * (targets > 0)).sum()


def auxiliary_losses(
    encoded: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor,
    rolls: torch.Tensor,
    next_events: torch.Tensor,
    next_weight: float,
) -> torch.Tensor:
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
    weights, positive = (torch.from_numpy(array).to(encoded.device) for array in training_labels.roll_weights())
    logits = encoded.to(kernel.dtype) @ kernel + bias
    logits, places = logits.split([rolls.shape[-1], logits.shape[-1] - rolls.shape[-1]], dim=-1)
    losses = (1 - rolls) * logits + (1 + (positive - 1) * rolls) * F.softplus(-logits)
    chosen = torch.gather(places, -1, next_events[..., None])[..., 0]
    return (losses * weights).sum(dim=-1) + next_weight * (torch.logsumexp(places, dim=-1) - chosen)


def alignment_loss(query: torch.Tensor, key: torch.Tensor, places: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """How far a head of cross-attention is from looking at given frames: cross-entropy, summed over tokens.

    Args:
        query: (b, l, d), of one head.
        key: (b, f, d).
        places: (b, l), frames, f where there is none to look at.
        real: (b, l) bool, false at padding.
    """
    frames = torch.arange(key.shape[1], device=key.device, dtype=places.dtype)
    # 0.8 frames: a note may be heard in the frames beside its own
    wanted = torch.exp(-0.5 * ((frames - places[..., None]) / 0.8) ** 2)
    wanted = wanted / torch.clamp(wanted.sum(dim=-1, keepdim=True), min=1e-6)
    logits = einsum(query, key, "b l d, b f d -> b l f").to(places.dtype)
    losses = -(wanted * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
    return (losses * (real & (places < key.shape[1]))).sum()
