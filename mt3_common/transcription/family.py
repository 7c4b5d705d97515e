"""Families of networks: their ways from blocks of audio to notes, which are frames, segments and decoding."""

from collections.abc import Generator, Iterable
from typing import Any, Protocol

import numpy as np

from mt3_common.audio import segments as mt3_segments
from mt3_common.audio import yourmt3_frames
from mt3_common.audio.segments import Segment
from mt3_common.audio.spectrogram import bins_of, hertz
from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.config import Config, ConfigError
from mt3_common.formats.plot import BRIGHTEST, DARKEST
from mt3_common.io.plural import plural
from mt3_common.notes.decoder import NoteDecoder
from mt3_common.notes.instruments import Instruments, written_program
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.notes.yourmt3_decoder import VOICES, YourMT3Decoder
from mt3_common.notes.yourmt3_tasks import CHORUS, SINGING, Task, find_task, max_tokens
from mt3_common.transcription.activations import ActivationCorrector, has_activations
from mt3_common.transcription.velocity import VelocityEstimator
from mt3_common.yourmt3_config import YourMT3Settings


class Decoder(Protocol):
    """Ids of segments, in order, to notes.

    Attributes:
        dropped: tokens past the beginning of the next segment.
    """

    dropped: int

    @property
    def invalid(self) -> int:
        """Tokens that were skipped."""
        ...

    def feed(self, ids: np.ndarray, start_time: float, next_start_time: float | None = None) -> list[Note]:
        """Return the notes that the next segment ends."""
        ...

    def finish(self) -> list[Note]:
        """Return the notes that still sound."""
        ...


class Family(Protocol):
    """A family of networks, with the settings of one.

    Attributes:
        name: 'mt3' or 'yourmt3'.
        sample_rate: of the audio (1/s).
        max_tokens: ids of a segment at most.
        can_hold: whether instruments can be kept from one segment to the next.
        tells_velocities: whether its notes have velocities of their own, or a usual one (100).
        tells_instruments: whether its notes have programs, among which a user can choose.
        segment_samples: from the start of a segment to that of the next.
        hop_samples: from the start of a frame to that of the next.
    """

    name: str
    sample_rate: int
    max_tokens: int
    can_hold: bool
    tells_velocities: bool
    tells_instruments: bool
    segment_samples: int
    hop_samples: int

    def num_segments(self, num_samples: int) -> int:
        """Return the number of segments of a recording."""
        ...

    def segments(self, blocks: Iterable[np.ndarray], published: bool = False) -> Generator[Segment, None, None]:
        """Yield the segments of a recording, with the published start times or exact ones."""
        ...

    def corrector(self) -> ActivationCorrector | None:
        """Return a corrector for the ids of one recording; None for a network without pitch activations."""
        ...

    def decoder(self, instruments: Instruments | None, published: bool) -> Any:
        """Return a Decoder of a recording."""
        ...

    def written_programs(self, program: int) -> set[int]:
        """Return the programs of the notes that the network writes for a program of General MIDI."""
        ...

    def picture(self, frames: np.ndarray, pitches: np.ndarray) -> np.ndarray:
        """Return how dark the frames (n, bins) are drawn at MIDI pitches (k,): (n, k) from 0 to 1."""
        ...

    def velocities(self) -> VelocityEstimator:
        """Return an estimator of a recording's velocities.

        Raises:
            ValueError: the frames do not tell them.
        """
        ...


class MT3Family:
    """MT3's networks.

    Args:
        config: of the network.
    """

    name = "mt3"

    def __init__(self, config: Config):
        self.config = config
        self.sample_rate = config.spectrogram.sample_rate
        self.max_tokens = config.max_target_length
        self.can_hold = config.vocabulary.use_ties and config.vocabulary.use_programs
        self.tells_velocities = config.vocabulary.num_velocity_bins > 1
        self.tells_instruments = config.vocabulary.use_programs
        self.hop_samples = config.spectrogram.hop_width
        self.segment_samples = config.input_frames * self.hop_samples

    def num_segments(self, num_samples: int) -> int:
        """See Family."""
        return mt3_segments.num_segments(num_samples, self.config)

    def segments(self, blocks: Iterable[np.ndarray], published: bool = False) -> Generator[Segment, None, None]:
        """See Family."""
        return mt3_segments.segments(blocks, self.config, published)

    def corrector(self) -> ActivationCorrector | None:
        """See Family."""
        return ActivationCorrector(self.config) if has_activations(self.config) else None

    def decoder(self, instruments: Instruments | None, published: bool) -> NoteDecoder:
        """See Family."""
        programs = None
        if instruments is not None:
            programs = set[int]().union(*map(self.written_programs, instruments.programs))
        return NoteDecoder(Vocabulary(self.config.vocabulary), programs, published)

    def written_programs(self, program: int) -> set[int]:
        """See Family."""
        return {written_program(program, self.config.vocabulary)}

    def picture(self, frames: np.ndarray, pitches: np.ndarray) -> np.ndarray:
        """See Family."""
        bins = bins_of(pitches, self.config.spectrogram)
        return np.clip((frames[:, bins] - DARKEST) / (BRIGHTEST - DARKEST), 0.0, 1.0)

    def velocities(self) -> VelocityEstimator:
        """See Family."""
        return VelocityEstimator(self.config)


class YourMT3Family:
    """YourMT3+'s networks.

    Args:
        settings: of the network.
        front_end: with the window and the mel matrix of the checkpoint.

    Raises:
        ConfigError: the task has other ids or channels than the network, or the encoder has too few positions.
    """

    name = "yourmt3"
    can_hold = False
    tells_velocities = True
    tells_instruments = True

    def __init__(self, settings: YourMT3Settings, front_end: FrontEnd):
        self.settings = settings
        self.front_end = front_end
        self.task: Task = find_task(settings.task)
        network = settings.network
        if (network.vocab_size, network.num_channels) != (self.task.num_ids, self.task.num_channels):
            raise ConfigError(
                f"task {self.task.name} has {self.task.num_ids} ids and "
                f"{plural(self.task.num_channels, 'channel')}, the network "
                f"has {network.vocab_size} and {network.num_channels}"
            )
        length = network.num_frames + len(self.task.prefix())
        has_table = network.encoder == "t5" and network.t5_encoder.position_encoding == "sinusoidal"
        if has_table and length > network.num_positions:
            raise ConfigError(f"the encoder sees {length} frames, but num_positions is {network.num_positions}")
        self.sample_rate = settings.front_end.sample_rate
        self.max_tokens = max_tokens(settings)
        self.segment_samples = settings.front_end.input_frames
        self.hop_samples = settings.front_end.hop_length

    def num_segments(self, num_samples: int) -> int:
        """See Family."""
        return yourmt3_frames.num_segments(num_samples, self.settings.front_end)

    def segments(self, blocks: Iterable[np.ndarray], published: bool = False) -> Generator[Segment, None, None]:
        """See Family; the published ones are exact."""
        return self.front_end.segments(blocks)

    def corrector(self) -> None:
        """See Family."""

    def decoder(self, instruments: Instruments | None, published: bool) -> YourMT3Decoder:
        """See Family."""
        return YourMT3Decoder(self.task, published)

    def written_programs(self, program: int) -> set[int]:
        """See Family; singers and choruses become voices (53, 52)."""
        return {VOICES.get(encoded, encoded) for encoded in self._encoded(program)}

    def _encoded(self, program: int) -> set[int]:
        """Return the programs of the ids that stand for one of General MIDI."""
        programs = {program} | {singer for singer in (SINGING, CHORUS) if VOICES[singer] == program}
        return {self.task.first_of_class.get(program, program) for program in programs}

    def picture(self, frames: np.ndarray, pitches: np.ndarray) -> np.ndarray:
        """See Family; frames have 1 where the segment is loudest, and half of that is nearly silent."""
        bins = self.front_end.bins_of(hertz(pitches))
        return np.clip(2.0 * frames[:, bins] - 1.0, 0.0, 1.0)

    def velocities(self) -> VelocityEstimator:
        """See Family."""
        raise ValueError("velocities are estimated from MT3's frames only: give --velocity a number with a YourMT3+")

    def allowed_ids(self, instruments: Instruments) -> np.ndarray:
        """Return the ids that a search may choose for these instruments: (num_ids,) bool.

        A program stands for its class; those of voices (52, 53) also for choruses and singers.
        """
        allowed = np.ones(self.task.num_ids, bool)
        programs = set[int]().union(*map(self._encoded, instruments.programs))

        def ids(kind: str) -> np.ndarray:
            first, last = self.task.ranges[kind]
            return allowed[first : last + 1]

        ids("program")[:] = np.isin(np.arange(128), list(programs))
        ids("pitch")[:] = bool(programs)
        ids("drum")[:] = instruments.drums
        return allowed


def family_of(config: "Config | Family") -> "Family":
    """Return the family of a config; a family stays what it is."""
    return MT3Family(config) if isinstance(config, Config) else config


# rows of a batch at most, a channel of a segment each: their keys and values take 13 MB
MAX_ROWS = 104


def segments_together(batch_size: int, task: Task) -> int:
    """Return the number of segments that are decoded side by side, at most batch_size."""
    return max(1, min(batch_size, MAX_ROWS // task.num_channels))


def check_yourmt3_options(search: str, positions: str | None, hold: float | None, dtype: str) -> None:
    """Refuse what only MT3's networks can do.

    Raises:
        ValueError: says which.
    """
    if search != "greedy":
        raise ValueError(f"a YourMT3+ is searched greedily, not by {search!r}: leave out --search and --beams")
    if positions is not None:
        raise ValueError("--positions is for MT3's networks: a YourMT3+ has its positions in the checkpoint")
    if hold is not None:
        raise ValueError("--hold-instruments is for MT3's networks: a YourMT3+ decodes each segment alone")
    if dtype == "int8":
        raise ValueError("int8 is for MT3's networks: take float32, bfloat16 or float64 with a YourMT3+")
