"""A YourMT3+ checkpoint as a Transcriber; jax_mt3/infer.py decides which checkpoints come here."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_mt3.yourmt3.checkpoint import to_variables
from jax_mt3.yourmt3.kernels import generator
from jax_mt3.yourmt3.model import YourMT3
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.user_config import StatedConfig
from mt3_common.checkpoint.yourmt3 import naming
from mt3_common.transcription.family import segments_together
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.yourmt3 import open_yourmt3


def load(
    checkpoint: NamedCheckpoint,
    model: str | None,
    device: Any,
    dtype: str,
    batch_size: int,
    instruments: str | None,
    config: StatedConfig | None = None,
) -> Transcriber:
    """A Transcriber of a YourMT3+ checkpoint; the arguments are those of infer.load.

    Raises:
        ValueError: the checkpoint or a setting is not usable; says what to do.
    """
    source, opened = open_yourmt3(checkpoint, model, instruments, config)
    family = opened.family
    with naming(checkpoint.path):
        loaded = to_variables(source.arrays, source.settings.network)
    variables = jax.tree.map(
        lambda array: array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array,
        loaded,
    )
    generate = generator(
        YourMT3(source.settings.network),
        jax.device_put(variables, device),
        family.max_tokens,
        family.task.prefix(),
        segments_together(batch_size, family.task),
        opened.allowed,
    )
    return opened.transcriber(generate)
