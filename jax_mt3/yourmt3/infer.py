"""A YourMT3+ checkpoint as a Transcriber; jax_mt3/infer.py decides which checkpoints come here."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_mt3.yourmt3.checkpoint import to_variables
from jax_mt3.yourmt3.kernels import generator
from jax_mt3.yourmt3.model import YourMT3
from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.user_config import StatedConfig, read_config
from mt3_common.checkpoint.yourmt3 import naming, read_yourmt3
from mt3_common.notes.instruments import parse_instruments
from mt3_common.transcription.family import YourMT3Family, segments_together
from mt3_common.transcription.pipeline import Transcriber


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
    stated = None if config is None else read_config(config)
    source = read_yourmt3(checkpoint.path, model or checkpoint.model or None, stated)
    with naming(checkpoint.path):
        family = YourMT3Family(source.settings, FrontEnd(source.settings.front_end, source.front_end_arrays))
        loaded = to_variables(source.arrays, source.settings.network)
    only = None if instruments is None else parse_instruments(instruments)
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
        None if only is None else family.allowed_ids(only),
    )
    return Transcriber(family, generate, checkpoint._replace(notice=source.notice), only)
