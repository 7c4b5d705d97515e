"""Greedy search as YourMT3+ does it, plainly: the decoder sees all ids again for each new one. kernels.py is fast."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_mt3.yourmt3.model import YourMT3


def with_prefix(network: YourMT3, frames: jax.Array, prefix: Sequence[int]) -> jax.Array:
    """Return frames (b, t, f) with the embedded ids of a task in front, as the encoders see them."""
    if not prefix:
        return frames
    embedded = network.embed_tokens(jnp.asarray(prefix))
    embedded = jnp.broadcast_to(embedded[None], (frames.shape[0], *embedded.shape))
    return jnp.concatenate([embedded.astype(frames.dtype), frames], axis=1)


def greedy_search(
    network: YourMT3, variables: Mapping[str, Any], frames: jax.Array, max_tokens: int, prefix: Sequence[int] = ()
) -> np.ndarray:
    """Return the ids of segments: frames (b, t, f) -> (b, n), or (b, c, n) with channels; n <= max_tokens.

    A row ends with EOS and is filled with 0, but EOS as its first id does not end it, as published. With a prefix the
    ids begin with what is predicted behind each of its ids but the last, which is never fed, and n is one less.

    Args:
        max_tokens: ids of a row at most.
        prefix: ids of a task, which the encoder and the decoder are given.
    """
    encoded: Any = network.apply(variables, frames, method=lambda self, x: self.encode(with_prefix(self, x, prefix)))
    fed = jnp.broadcast_to(jnp.asarray([0, *prefix[:-1]]), (*encoded.shape[:-2], max(1, len(prefix))))
    predicted = fed[..., :0]
    written = fed[..., :0]
    ended = jnp.zeros(encoded.shape[:-2], dtype=bool)
    limit = max_tokens - 1 if prefix else max_tokens
    while written.shape[-1] < limit and not ended.all():
        tokens = jnp.concatenate([fed, predicted], axis=-1)
        logits: Any = network.apply(
            variables, encoded, tokens, method=lambda self, x, y: self.lm_head(self.decode(x, y))
        )
        is_first = written.shape[-1] == 0
        new = logits.argmax(-1)[..., -fed.shape[-1] if is_first else -1 :]
        predicted = jnp.concatenate([predicted, new[..., -1:]], axis=-1)
        written = jnp.concatenate([written, jnp.where(ended[..., None], 0, new)], axis=-1)
        if not is_first:
            ended = ended | (new[..., -1] == 1)
    return np.asarray(written).astype(np.int32)
