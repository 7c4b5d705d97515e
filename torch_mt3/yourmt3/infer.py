"""A YourMT3+ checkpoint as a Transcriber; torch_mt3/infer.py decides which checkpoints come here."""

import torch

from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.user_config import StatedConfig
from mt3_common.checkpoint.yourmt3 import naming
from mt3_common.transcription.family import segments_together
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.yourmt3 import open_yourmt3
from torch_mt3.yourmt3.checkpoint import to_state_dict
from torch_mt3.yourmt3.kernels import generator
from torch_mt3.yourmt3.model import YourMT3


def load(
    checkpoint: NamedCheckpoint,
    model: str | None,
    device: torch.device,
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
        state = to_state_dict(source.arrays, source.settings.network)
    network = YourMT3(source.settings.network)
    network.load_state_dict(state, strict=True)
    generate = generator(
        network.to(device, getattr(torch, dtype)).eval(),
        family.max_tokens,
        family.task.prefix(),
        segments_together(batch_size, family.task),
        opened.allowed,
    )
    return opened.transcriber(generate)
