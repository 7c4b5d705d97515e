"""Families of networks in training: how a run's segments are cut, its checkpoints written and its pictures drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mt3_common.audio.yourmt3_frames import MEL_NAME, FrontEnd, window_name
from mt3_common.checkpoint.write import write_t5x
from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint
from mt3_common.checkpoint.yourmt3_folder import write_folder
from mt3_common.config import Config
from mt3_common.data.segments import Cutter, MT3Cutter, YourMT3Cutter
from mt3_common.data.shards import Batch
from mt3_common.training.logs import segment_image, yourmt3_segment_image
from mt3_common.yourmt3_config import YourMT3Settings


class TrainingFamily(Protocol):
    """A family of networks, with the settings of the one that is trained.

    Attributes:
        config: of the network.
        cutter: of its segments.
    """

    config: Config | YourMT3Settings
    cutter: Cutter

    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], step: int, slots: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Write a folder of a checkpoint, with slots to resume from; one of that name is replaced.

        Raises:
            CheckpointError, OSError: it cannot be written.
        """
        ...

    def image(self, batch: Batch, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Return a picture of transcribed segments: see logs.segment_image."""
        ...


class MT3Training:
    """MT3's networks: see TrainingFamily."""

    def __init__(self, config: Config):
        self.config: Config | YourMT3Settings = config
        self._config = config
        self.cutter: Cutter = MT3Cutter(config)

    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], step: int, slots: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """See TrainingFamily."""
        write_t5x(path, arrays, step, optimizer=slots, config=self._config, overwrite=True)

    def image(self, batch: Batch, ids: Sequence[np.ndarray]) -> np.ndarray:
        """See TrainingFamily."""
        return segment_image(batch, ids, self._config)


class YourMT3Training:
    """YourMT3+'s networks: see TrainingFamily.

    Args:
        settings: of the network.
        front_end_arrays: window and mel matrix of the checkpoint that the run starts from; those of the formulas where
            there is none.
    """

    def __init__(self, settings: YourMT3Settings, front_end_arrays: Mapping[str, np.ndarray] | None = None):
        self.config: Config | YourMT3Settings = settings
        self._settings = settings
        front_end = FrontEnd(settings.front_end, front_end_arrays)
        self._front_end_arrays = {window_name(settings.front_end): front_end.window}
        if front_end.mel_matrix is not None:
            self._front_end_arrays[MEL_NAME] = front_end.mel_matrix
        self.cutter: Cutter = YourMT3Cutter(settings, front_end)

    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], step: int, slots: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """See TrainingFamily."""
        # as PyTorch counts
        counted = {
            name: array.astype(np.int64) if name.endswith("num_batches_tracked") else array
            for name, array in arrays.items()
        }
        checkpoint = YourMT3Checkpoint(counted, self._front_end_arrays, {}, self._settings, (), str(path))
        write_folder(path, checkpoint, step, slots)

    def image(self, batch: Batch, ids: Sequence[np.ndarray]) -> np.ndarray:
        """See TrainingFamily."""
        return yourmt3_segment_image(batch, ids, self._settings)


def training_family(config: Config | YourMT3Settings | TrainingFamily) -> TrainingFamily:
    """Return the family of a config; a family stays what it is."""
    if isinstance(config, Config):
        return MT3Training(config)
    return YourMT3Training(config) if isinstance(config, YourMT3Settings) else config
