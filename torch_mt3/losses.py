"""The losses of training in PyTorch; jax_mt3/losses.py is its twin."""

from collections.abc import Sequence

import torch
from einops import einsum
from torch import log_softmax, logsumexp, stack
from torch.nn.functional import softplus

from mt3_common.config import PITCH_ROWS, ROW_BIAS, Config
from mt3_common.notes.vocabulary import NUM_PROGRAMS
from mt3_common.training import labels
from mt3_common.training.config import TrainingConfig
from torch_mt3.kernels import as_array, count_up, take_along, zeros

# standard deviation in frames of the target of alignment_loss: a note may be heard in the frames beside its own
ALIGNMENT_WIDTH = 0.8


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, z_loss: float = 1e-4) -> torch.Tensor:
    """Return the training loss: cross-entropy plus z_loss * log(Z)^2, summed over positions whose target is not 0.

    Args:
        logits: (b, l, vocab_size).
        targets: (b, l) ids.

    Source: T5X/losses.py, compute_weighted_cross_entropy.
    """
    log_z = logsumexp(logits, -1)
    target_logits = take_along(logits, targets[..., None], -1)[..., 0]
    return ((log_z - target_logits + z_loss * log_z**2) * (targets > 0)).sum()


def program_loss(logits: torch.Tensor, targets: torch.Tensor, first_program: int) -> torch.Tensor:
    """Return the cross-entropy of program tokens among the programs alone, summed over them.

    It teaches which instrument plays, and leaves alone how likely a program token is at all.

    Args:
        logits: (b, l, vocab_size).
        targets: (b, l) ids.
        first_program: id of program 0.
    """
    programs = targets - first_program
    is_program = (programs >= 0) & (programs < NUM_PROGRAMS)
    log_probabilities = log_softmax(logits[..., first_program : first_program + NUM_PROGRAMS], -1)
    chosen = take_along(log_probabilities, (programs * is_program)[..., None], -1)[..., 0]
    return -(chosen * is_program).sum()


def auxiliary_losses(
    encoded: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor,
    rolls: torch.Tensor,
    next_events: torch.Tensor,
    next_weight: float,
    classes: float = 1.0,
) -> torch.Tensor:
    """Return the frame-wise losses of the encoder, or the token-wise ones of a decoder layer: (b, f).

    They are the weighted binary cross-entropy of each column of the piano roll, summed, plus next_weight times the
    cross-entropy of the frame of the next event.

    Args:
        encoded: (b, f, emb_dim), input of the linear layer; f counts frames or tokens.
        kernel: (emb_dim, columns), of the linear layer, which training alone uses.
        bias: (columns,).
        rolls: (b, f, LABEL_COLUMNS) in 0..1, see labels.soft_rolls.
        next_events: (b, f) ids, see labels.next_events.
        next_weight: of the second loss.
        classes: weight of the columns of MIDI classes.
    """
    weights, positive = (as_array(array, encoded) for array in labels.roll_weights(classes))
    logits = encoded.to(kernel.dtype) @ kernel + bias
    logits, event_logits = logits[..., : rolls.shape[-1]], logits[..., rolls.shape[-1] :]
    losses = (1 - rolls) * logits + (1 + (positive - 1) * rolls) * softplus(-logits)
    target_logits = take_along(event_logits, next_events[..., None], -1)[..., 0]
    return (losses * weights).sum(-1) + next_weight * (logsumexp(event_logits, -1) - target_logits)


def pitch_losses(logits: torch.Tensor, rolls: torch.Tensor) -> torch.Tensor:
    """Return the frame-wise losses on the pre-encoder: (b, f).

    The weighted binary cross-entropy of sounding pitches, onsets and offsets of each row, summed over rows.

    Args:
        logits: (b, f, PITCH_ROWS, ROW_FEATURES), without ROW_BIAS.
        rolls: (b, f, LABEL_COLUMNS) in 0..1, see labels.soft_rolls.
    """
    columns = list(labels.PITCH_COLUMNS)
    weights, positive = (as_array(array[columns], logits) for array in labels.roll_weights(1.0))
    rolls = stack([rolls[..., first : first + PITCH_ROWS] for first in columns], -1)
    logits = logits[..., : len(columns)].to(rolls.dtype) + ROW_BIAS
    losses = (1 - rolls) * logits + (1 + (positive - 1) * rolls) * softplus(-logits)
    return (losses * weights).sum((-2, -1))


def row_class_losses(
    logits: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor,
    classes: torch.Tensor,
) -> torch.Tensor:
    """Return the frame-wise losses of MIDI classes on the pre-encoder: (b, f).

    The cross-entropy of the class of each sounding row, weighted by labels.ROW_CLASS_WEIGHTS, summed over rows.

    Args:
        logits: (b, f, PITCH_ROWS, ROW_FEATURES).
        kernel: (ROW_FEATURES, NUM_CLASSES), of the linear layer, which training alone uses.
        bias: (NUM_CLASSES,).
        classes: (b, f, PITCH_ROWS), see labels.row_classes.
    """
    log_probabilities = log_softmax(logits.to(kernel.dtype) @ kernel + bias, -1)
    known = classes >= 0
    numbers = classes * known
    chosen = take_along(log_probabilities, numbers[..., None], -1)[..., 0]
    weights = as_array(labels.ROW_CLASS_WEIGHTS, chosen)[numbers]
    return -(chosen * weights * known).sum(-1)


def frame_losses(
    settings: TrainingConfig,
    weights: dict[str, torch.Tensor],
    encoded: torch.Tensor,
    rows: torch.Tensor | None,
    targets: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss `auxiliary` and the weighted sum of `pitch` and `row_classes` of each frame: (b, f) each.

    Args:
        settings: of the run.
        weights: with the linear layers that training alone uses, 'auxiliary/kernel' and so on.
        encoded: (b, f, emb_dim).
        rows: (b, f, PITCH_ROWS, ROW_FEATURES), logits of the pre-encoder; None without losses on them.
        targets: rolls, next events and classes, see labels.soft_rolls, next_events and row_classes; None for
            classes that no loss asks for.
    """
    rolls, events, classes = targets
    auxiliary = of_rows = zeros(encoded.shape[:2], rolls)
    if settings.auxiliary:
        head = weights["auxiliary/kernel"], weights["auxiliary/bias"]
        auxiliary = auxiliary_losses(encoded, *head, rolls, events, settings.next_event, settings.classes)
    if rows is not None and settings.pitch:
        of_rows = settings.pitch * pitch_losses(rows, rolls)
    if rows is not None and classes is not None:
        head = weights["auxiliary/row_kernel"], weights["auxiliary/row_bias"]
        of_rows = of_rows + settings.row_classes * row_class_losses(rows, *head, classes)
    return auxiliary, of_rows


def alignment_loss(query: torch.Tensor, key: torch.Tensor, frames: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy between a cross-attention head's weights and given frames, summed over tokens.

    Args:
        query: (b, l, d), of one head.
        key: (b, f, d).
        frames: (b, l) float, the frame that each token is about; f for a token without one, which counts nothing.
        real: (b, l) bool, false at padding.
    """
    distances = (count_up(key.shape[1], frames) - frames[..., None]) / ALIGNMENT_WIDTH
    target = torch.exp(-0.5 * distances**2)
    target = target / target.sum(-1)[..., None].clip(1e-6)
    logits = einsum(query, key, "b l d, b f d -> b l f").to(frames.dtype)
    losses = -(target * log_softmax(logits, -1)).sum(-1)
    return (losses * (real & (frames < key.shape[1]))).sum()


def decoder_losses(
    config: Config,
    settings: TrainingConfig,
    weights: dict[str, torch.Tensor],
    outputs: dict[tuple[str, int], torch.Tensor],
    real: torch.Tensor,
    event_frames: Sequence[torch.Tensor],
    decoder_labels: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Return the losses `alignment` and `contents` of the decoder's layers, weighted and summed over tokens.

    Args:
        config, settings: of the run.
        weights: with the linear layers that training alone uses, 'auxiliary/kernel_0' and so on.
        outputs: ('query', layer) and ('key', layer) of cross-attentions, (b, l or f, h * d), and ('output', layer) of
            layers, (b, l, emb_dim).
        real: (b, l) bool, false at padding.
        event_frames: the fields of labels.EventFrames.
        decoder_labels: labels and next events, see labels.decoder_labels; empty without `contents`.
    """
    total = zeros((), event_frames[0])
    if settings.alignment:
        width = config.network.head_dim
        for layer, head, field in labels.supervised_heads(config):
            query, key = (outputs[part, layer][..., head * width : (head + 1) * width] for part in ("query", "key"))
            total = total + settings.alignment * alignment_loss(query, key, event_frames[field], real)
    if settings.contents:
        for layer in range(config.network.num_decoder_layers - 1):
            head = weights[f"auxiliary/kernel_{layer}"], weights[f"auxiliary/bias_{layer}"]
            rolls, events = decoder_labels
            losses = auxiliary_losses(
                outputs["output", layer], *head, rolls, events, settings.next_event, settings.classes
            )
            total = total + settings.contents * (losses * real).sum()
    return total
