"""A YourMT3+ checkpoint with what stands around its network, as the twins and onnx_mt3 begin with it."""

from typing import NamedTuple

import numpy as np

from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.user_config import StatedConfig, read_config
from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint, naming, read_yourmt3
from mt3_common.notes.instruments import Instruments, parse_instruments
from mt3_common.transcription.family import YourMT3Family
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.scheduler import Generate


class OpenedYourMT3(NamedTuple):
    """A checkpoint that waits for its network.

    Attributes:
        checkpoint: with the notice of what the file says.
        family: front end and decoding.
        instruments: the only ones that may be heard, None for all.
    """

    checkpoint: NamedCheckpoint
    family: YourMT3Family
    instruments: Instruments | None

    @property
    def allowed(self) -> np.ndarray | None:
        """The ids that the search may choose, (num_ids,) bool, or None for all."""
        return None if self.instruments is None else self.family.allowed_ids(self.instruments)

    def transcriber(self, generate: Generate) -> Transcriber:
        """Return a Transcriber with a network: `generate` takes segments and yields their ids."""
        return Transcriber(self.family, generate, self.checkpoint, self.instruments)


def open_yourmt3(
    checkpoint: NamedCheckpoint, model: str | None, instruments: str | None, config: StatedConfig | None
) -> tuple[YourMT3Checkpoint, OpenedYourMT3]:
    """Read a checkpoint; the arguments are those of infer.load.

    Returns:
        Arrays and settings, which the caller may drop; and what stands around the network.

    Raises:
        ValueError: the checkpoint or a setting is not usable; says what to do.
    """
    stated = None if config is None else read_config(config)
    source = read_yourmt3(checkpoint.path, model or checkpoint.model or None, stated)
    with naming(checkpoint.path):
        family = YourMT3Family(source.settings, FrontEnd(source.settings.front_end, source.front_end_arrays))
    only = None if instruments is None else parse_instruments(instruments)
    return source, OpenedYourMT3(checkpoint._replace(notice=source.notice), family, only)
