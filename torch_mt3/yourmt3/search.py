"""Greedy search as YourMT3+ does it, plainly: the decoder sees all ids again for each new one. kernels.py is fast."""

from collections.abc import Sequence

import numpy as np
import torch

from torch_mt3.yourmt3.model import YourMT3


def with_prefix(network: YourMT3, frames: torch.Tensor, prefix: Sequence[int]) -> torch.Tensor:
    """Return frames (b, t, f) with the embedded ids of a task in front, as the encoders see them."""
    if not prefix:
        return frames
    embedded = network.embed_tokens(torch.tensor(prefix, device=frames.device))
    embedded = embedded[None].expand((frames.shape[0], *embedded.shape))
    return torch.concatenate([embedded.to(frames.dtype), frames], dim=1)


@torch.inference_mode()
def greedy_search(network: YourMT3, frames: torch.Tensor, max_tokens: int, prefix: Sequence[int] = ()) -> np.ndarray:
    """Return the ids of segments: frames (b, t, f) -> (b, n), or (b, c, n) with channels; n <= max_tokens.

    A row ends with EOS and is filled with 0, but EOS as its first id does not end it, as published. With a prefix the
    ids begin with what is predicted behind each of its ids but the last, which is never fed, and n is one less.

    Args:
        max_tokens: ids of a row at most.
        prefix: ids of a task, which the encoder and the decoder are given.
    """
    encoded = network.encode(with_prefix(network, frames, prefix))
    fed = torch.tensor([0, *prefix[:-1]], device=frames.device).expand((*encoded.shape[:-2], -1))
    predicted = fed[..., :0]
    written = fed[..., :0]
    ended = torch.zeros(encoded.shape[:-2], dtype=torch.bool, device=frames.device)
    limit = max_tokens - 1 if prefix else max_tokens
    while written.shape[-1] < limit and not ended.all():
        tokens = torch.concatenate([fed, predicted], dim=-1)
        logits = network.lm_head(network.decode(encoded, tokens))
        is_first = written.shape[-1] == 0
        new = logits.argmax(-1)[..., -fed.shape[-1] if is_first else -1 :]
        predicted = torch.concatenate([predicted, new[..., -1:]], dim=-1)
        written = torch.concatenate([written, torch.where(ended[..., None], 0, new)], dim=-1)
        if not is_first:
            ended = ended | (new[..., -1] == 1)
    return written.cpu().numpy().astype(np.int32)
