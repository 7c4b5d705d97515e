"""Sizes and settings of a model: the network, the spectrogram, the vocabulary, the segments.

Field names keep MT3's spelling (mt3/network.py, T5Config; mt3/spectrograms.py, SpectrogramConfig;
mt3/vocabularies.py, VocabularyConfig), so that a gin file or a config.json of MT3 reads straight in.
`read_settings` reads such files, `resolve` puts a Config together from what the arrays and the files say.
"""

import dataclasses
import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class ConfigError(ValueError):
    """Settings that are missing, malformed, or contradict the arrays or one another."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8


def shown(value: Any) -> str:
    """Return the repr of a value of a file, shortened to what a message has room for."""
    return _SHORT.repr(value)


class Range(NamedTuple):
    """Numbers allowed: low <= number < high, or <= high where the end is closed."""

    low: float
    high: float = math.inf
    closed: bool = False

    def __contains__(self, number: object) -> bool:
        return isinstance(number, (int, float)) and (
            self.low <= number < self.high or (self.closed and number == self.high)
        )

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{']' if self.closed else ')'}"


def check_fields(
    settings: Any, ranges: Mapping[str, Range] | None = None, choices: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Check type and range of every field of a dataclass: 127.0 is no integer, "true" is not true.

    Args:
        settings: an instance of the dataclass.
        ranges: field -> numbers allowed; without one, integers are 1 or more, and floats 0 or more and finite.
        choices: field -> values allowed.

    Raises:
        ConfigError: a field is not what it must be.
    """
    ranges, choices = ranges or {}, choices or {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if complaint := type_error(field.type, value, ranges.get(field.name), choices.get(field.name)):
            raise ConfigError(f"{field.name} must be {complaint}, not {shown(value)}")


# numbers that an array may have which settings alone ask for: of a mel matrix, of the frames or the samples of a
# segment (64 MiB each in float32, MT3's have 0.5 at most), of the attention in one layer or a table of positions
MOST_WEIGHTS, MOST_VALUES, MOST_ATTENTION, MOST_POSITIONS = 2**25, 2**24, 2**28, 2**27


def check_product(most: int, *factors: tuple[str, int]) -> None:
    """Check that settings that are right one by one do not ask together for more than a computer has.

    Args:
        most: that they may be, multiplied.
        factors: names and values.

    Raises:
        ConfigError: they are more.
    """
    if (product := math.prod(value for _, value in factors)) > most:
        names = " times ".join(f"{name} {value}" for name, value in factors)
        raise ConfigError(f"{names} must be at most {most}, not {product}")


def type_error(kind: Any, value: Any, allowed: Range | None = None, choices: Sequence[str] | None = None) -> str:
    """Return what a value must be, or "" if it is that."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if choices is not None and value not in choices:
        return f"one of {', '.join(choices)}"
    if kind is bool and not isinstance(value, bool):
        return "true or false"
    if kind is int and not (is_number and isinstance(value, int) and value in (allowed or Range(1))):
        if allowed is None or (allowed.low == 1 and not (is_number and value > allowed.high)):
            return "a positive integer"
        if allowed.low == 1:
            return f"at most {allowed.high:.0f}"
        return f"a whole number {f'in {allowed}' if math.isfinite(allowed.high) else f'of at least {allowed.low:g}'}"
    if kind is float:
        allowed = allowed or Range(0)
        # A Python integer may be too large for a float, which isfinite does not say but raises.
        if not is_number or not -sys.float_info.max <= value <= sys.float_info.max:
            return f"a number of at least {allowed.low:g}" if math.isfinite(allowed.low) else "a finite number"
        if value not in allowed:
            return f"in {allowed}" if math.isfinite(allowed.high) else f"a number of at least {allowed.low:g}"
    return ""


# settings that MT3 does not have, which are 0 for it and not written
PRE_ENCODER = ("pre_encoder_layers", "pre_encoder_dim", "context_frames")
# settings that are not written where they have the value of MT3's checkpoints
UNWRITTEN = {**dict.fromkeys(PRE_ENCODER, 0), "encoder_top_db": 0.0}
UNWRITTEN |= {"program_granularity": "full", "drum_granularity": "full"}
# values of program_granularity, and of drum_granularity
GRANULARITIES = ("full", "midi_class")
DRUM_GRANULARITIES = ("full", "class")
# rows of the pre-encoder, one a semitone from MIDI pitch LOWEST_PITCH up, and bins of its logarithmic axis for each
PITCH_ROWS, LOWEST_PITCH, BINS_PER_ROW = 96, 21, 3
# of each row in each frame: what the pre-encoder says (the first three: it sounds, begins, ends), and what is added to
# the logits, as all of it is rare
ROW_FEATURES, ROW_BIAS = 8, -4.0


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the T5 encoder-decoder; the only constructor argument of every twin module.

    Attributes:
        vocab_size: rows of the token embedding and columns of logits_dense, padding to 128 included.
        emb_dim: width of the residual stream.
        num_heads: attention heads per layer.
        num_encoder_layers: encoder layers.
        num_decoder_layers: decoder layers.
        head_dim: width of one head; num_heads * head_dim need not equal emb_dim.
        mlp_dim: width of the gated MLP.
        mlp_activations: activations of wi_0 and wi_1; MT3 has ('gelu', 'linear') and nothing else is built.
        dropout_rate: used in training only.
        logits_via_embedding: MT3 has False (a separate logits_dense); nothing else is built.
        input_depth: mel bins of one input frame.
        position_table: 'mt3' for MT3's sinusoids; 'port' for those of the known PyTorch ports, whose exponent is
            divided by emb_dim / 2 instead of emb_dim / 2 - 1. Only weights trained on the other table need it.
        pre_encoder_layers: layers that share their weights over pitch, in front of the encoder's own; 0, as in MT3, for
            no such layers.
        pre_encoder_dim: their channels for each semitone; 0 where there are none.
        context_frames: frames before a segment, and as many after it, that the network is given with the segment's own.
            The pre-encoder hears them; all behind it has the segment's own frames alone. 0, as in MT3, for none. From 3
            on, onsets and offsets are corrected (transcription/activations.py).
        encoder_top_db: the encoder raises magnitudes that lie more than so many dB below the largest of its frames to
            this limit (librosa's top_db), so that noise which nobody hears changes nothing; 0, as in MT3, for no limit.
            Zeros past the end of the audio stay.

    Raises:
        ConfigError: a size is not a positive integer, or the network is not one that MT3 describes.

    Source: mt3/network.py, T5Config; mt3/gin/model.gin.
    """

    vocab_size: int = 1536
    emb_dim: int = 512
    num_heads: int = 6
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    head_dim: int = 64
    mlp_dim: int = 1024
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    input_depth: int = 512
    position_table: str = "mt3"
    pre_encoder_layers: int = 0
    pre_encoder_dim: int = 0
    context_frames: int = 0
    encoder_top_db: float = 0.0

    @property
    def log_range(self) -> float:
        """Return encoder_top_db as a difference of natural-log magnitudes."""
        return self.encoder_top_db * math.log(10) / 20

    def __post_init__(self):
        if isinstance(self.mlp_activations, list):
            object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        sizes = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "input_depth")
        ranges = {"dropout_rate": Range(0, 1), "encoder_top_db": Range(0, 200, closed=True)}
        ranges |= dict.fromkeys(PRE_ENCODER, Range(0, 4096, closed=True))
        ranges |= dict.fromkeys(sizes, Range(1, 2**20, closed=True))
        ranges |= dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), Range(1, 4096, closed=True))
        check_fields(self, ranges, {"position_table": ("mt3", "port")})
        if bool(self.pre_encoder_layers) != bool(self.pre_encoder_dim):
            raise ConfigError(
                f"pre_encoder_layers {self.pre_encoder_layers} and pre_encoder_dim {self.pre_encoder_dim} must both be "
                "0 or both above it"
            )
        if self.context_frames and not self.pre_encoder_layers:
            raise ConfigError(f"context_frames {self.context_frames} need a pre-encoder, and pre_encoder_layers is 0")
        if self.mlp_activations != ("gelu", "linear"):
            raise ConfigError(
                f"mlp_activations must be ('gelu', 'linear') as in MT3, not {shown(self.mlp_activations)}"
            )
        if self.logits_via_embedding:
            raise ConfigError("logits_via_embedding must be false: MT3 has a separate logits_dense")
        if self.emb_dim % 2 or self.emb_dim < 4:
            raise ConfigError(f"emb_dim must be even and at least 4 (sinusoids come in pairs), not {self.emb_dim}")


@dataclasses.dataclass(frozen=True)
class SpectrogramConfig:
    """Settings of the front end: audio to frames.

    Source: mt3/spectrograms.py and mt3/spectral_ops.py, compute_logmel.
    """

    sample_rate: int = 16000
    hop_width: int = 128
    num_mel_bins: int = 512
    fft_size: int = 2048
    mel_lo_hz: float = 20.0
    mel_hi_hz: float = 7600.0

    @property
    def frames_per_second(self) -> float:
        """Return the frames per second of audio: sample_rate / hop_width (125.0 for MT3)."""
        return self.sample_rate / self.hop_width

    def __post_init__(self):
        # far beyond any recording, and little enough to be computed: 256 windows together
        ranges = {"sample_rate": Range(1, 2**20, closed=True), "fft_size": Range(1, 2**16, closed=True)}
        ranges |= {"hop_width": Range(1, 2**16, closed=True), "num_mel_bins": Range(1, 2**14, closed=True)}
        check_fields(self, ranges)
        check_product(MOST_WEIGHTS, ("fft_size", self.fft_size), ("num_mel_bins", self.num_mel_bins))
        if not self.mel_lo_hz < self.mel_hi_hz <= self.sample_rate / 2:
            raise ConfigError(
                f"mel_lo_hz {self.mel_lo_hz} and mel_hi_hz {self.mel_hi_hz} must rise and end at half of "
                f"sample_rate {self.sample_rate} at most"
            )


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """Settings of the vocabulary: the meaning of the token ids.

    Source: mt3/vocabularies.py, VocabularyConfig, build_codec and PROGRAM_GRANULARITIES, where 'flat' is use_programs
    False.

    Attributes:
        steps_per_second: resolution of the shift events.
        max_shift_seconds: largest shift; steps_per_second times this is the highest shift index.
        num_velocity_bins: velocity bins beside 0 (note off).
        use_ties: segments begin with the notes still sounding, closed by a tie token.
        use_programs: notes carry programs; otherwise everything is piano.
        program_granularity: of the programs that the network was trained with: 'full' for all, 'midi_class' for the
            first of each of General MIDI's families of 8 alone. It changes no id.
        drum_granularity: of the drums that are written: 'full' for what the ids say, 'class' for the first of each of
            YourMT3's classes of drums alone (notes.note.DRUM_CLASSES), such as 36 for the two bass drums. It changes no
            id, and nothing that is decoded as published.
    """

    steps_per_second: int = 100
    max_shift_seconds: int = 10
    num_velocity_bins: int = 1
    use_ties: bool = True
    use_programs: bool = True
    # not in the text by which shards and compiled programs are told from others, as these do not depend on them
    program_granularity: str = dataclasses.field(default="full", repr=False)
    drum_granularity: str = dataclasses.field(default="full", repr=False)

    def __post_init__(self):
        ranges = {"steps_per_second": Range(1, 10**5, closed=True), "max_shift_seconds": Range(1, 10**4, closed=True)}
        ranges |= {"num_velocity_bins": Range(1, 1024, closed=True)}
        words = {"program_granularity": GRANULARITIES, "drum_granularity": DRUM_GRANULARITIES}
        check_fields(self, ranges, words)

    @property
    def num_ids(self) -> int:
        """Count the ids that have a meaning: 3 special ones and the codec's (1391 for mt3)."""
        shifts = self.steps_per_second * self.max_shift_seconds + 1
        # pitch, velocity with 0 for note off, tie, program, drum
        return 3 + shifts + 128 + (self.num_velocity_bins + 1) + 1 + 128 + 128

    @property
    def num_embeddings(self) -> int:
        """Count the rows of MT3's embedding: 100 extra ids, rounded up to a multiple of 128 (1536 for mt3).

        Source: mt3/vocabularies.py, vocabulary_from_codec and num_embeddings.
        """
        return 128 * math.ceil((self.num_ids + 100) / 128)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a model: what a checkpoint needs beside its arrays.

    Attributes:
        network: sizes of the network.
        spectrogram: audio to frames.
        vocabulary: ids to events.
        input_frames: frames of one segment.
        max_target_length: tokens of one segment at most, EOS included.
    """

    network: NetworkConfig = NetworkConfig()
    spectrogram: SpectrogramConfig = SpectrogramConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    input_frames: int = 256
    max_target_length: int = 1024

    def __post_init__(self):
        check_fields(self, dict.fromkeys(("input_frames", "max_target_length"), Range(1, 2**16, closed=True)))
        if self.network.input_depth != self.spectrogram.num_mel_bins:
            raise ConfigError(
                f"input_depth {self.network.input_depth} must equal num_mel_bins {self.spectrogram.num_mel_bins}"
            )
        if self.network.vocab_size < self.vocabulary.num_ids:
            raise ConfigError(
                f"vocab_size {self.network.vocab_size} is too small for the {self.vocabulary.num_ids} ids of the "
                f"vocabulary with num_velocity_bins {self.vocabulary.num_velocity_bins}"
            )
        network, spectrogram = self.network, self.spectrogram
        frames = ("input_frames and context_frames" if network.context_frames else "input_frames", self.heard_frames)
        length = ("max_target_length", self.max_target_length)
        check_product(MOST_VALUES, frames, ("num_mel_bins", spectrogram.num_mel_bins))
        check_product(MOST_VALUES, frames, ("hop_width", spectrogram.hop_width))
        for positions in (frames, length):
            check_product(MOST_POSITIONS, positions, ("emb_dim", network.emb_dim))
            check_product(MOST_ATTENTION, positions, positions, ("num_heads", network.num_heads))
        if network.pre_encoder_layers:
            rows = ("pitch rows", PITCH_ROWS)
            check_product(MOST_POSITIONS, frames, ("pre_encoder_dim", network.pre_encoder_dim), rows)

    @property
    def heard_frames(self) -> int:
        """Count the frames that the network is given for a segment: its own, and context_frames on both sides."""
        return self.input_frames + 2 * self.network.context_frames

    def with_granularity(self, programs: str | None = None, drums: str | None = None) -> "Config":
        """Return a copy with another program_granularity, another drum_granularity; None leaves it."""
        given = {"program_granularity": programs, "drum_granularity": drums}
        values = {name: value for name, value in given.items() if value is not None}
        vocabulary = dataclasses.replace(self.vocabulary, **values)
        return dataclasses.replace(self, vocabulary=vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings under their own names in one flat dict, ready for JSON (config.json).

        All but those that have their value of UNWRITTEN.
        """
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                values.update(dataclasses.asdict(value))
            else:
                values[field.name] = value
        values["mlp_activations"] = list(values["mlp_activations"])
        return {name: value for name, value in values.items() if name not in UNWRITTEN or value != UNWRITTEN[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Build a Config from what to_dict returns.

        Raises:
            ConfigError: a setting is missing, unknown or malformed. For files of others, read_settings and resolve.
        """
        values = UNWRITTEN | dict(values)
        if unknown := sorted(set(values) - set(FIELDS)):
            raise ConfigError(f"unknown settings: {', '.join(map(str, unknown))}")
        if missing := [name for name in FIELDS if name not in values]:
            raise ConfigError(f"missing settings: {', '.join(missing)}")
        parts = {
            part: kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
            for part, kind in PARTS.items()
        }
        return cls(**parts, input_frames=values["input_frames"], max_target_length=values["max_target_length"])


PARTS = {"network": NetworkConfig, "spectrogram": SpectrogramConfig, "vocabulary": VocabularyConfig}
# every setting and its type
FIELDS = {field.name: field.type for kind in (*PARTS.values(), Config) for field in dataclasses.fields(kind)}
FIELDS = {name: kind for name, kind in FIELDS.items() if name not in PARTS}


PRESETS = {
    "mt3": Config(),
    "ismir2021": Config(
        network=NetworkConfig(vocab_size=1664),
        vocabulary=VocabularyConfig(num_velocity_bins=127, use_ties=False, use_programs=False),
        input_frames=512,
    ),
}
