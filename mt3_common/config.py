"""Sizes and settings of a model: the network, the spectrogram, the vocabulary, the segments.

Field names keep MT3's spelling (mt3/network.py, T5Config; mt3/spectrograms.py, SpectrogramConfig;
mt3/vocabularies.py, VocabularyConfig), so that a gin file or a config.json of MT3 reads straight in.
`read_settings` reads such files, `resolve` puts a Config together from what the arrays and the files say.
"""

import ast
import dataclasses
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class ConfigError(ValueError):
    """Settings that are missing, malformed, or contradict the arrays or one another."""


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
        if complaint := _complaint(field.type, value, ranges.get(field.name), choices.get(field.name)):
            raise ConfigError(f"{field.name} must be {complaint}, not {value!r}")


def _complaint(kind: Any, value: Any, allowed: Range | None = None, choices: Sequence[str] | None = None) -> str:
    """Return what a value must be, or "" if it is that."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if choices is not None and value not in choices:
        return f"one of {', '.join(choices)}"
    if kind is bool and not isinstance(value, bool):
        return "true or false"
    if kind is int and not (is_number and isinstance(value, int) and value in (allowed or Range(1))):
        if allowed is None:
            return "a positive integer"
        return f"a whole number {f'in {allowed}' if math.isfinite(allowed.high) else f'of at least {allowed.low:g}'}"
    if kind is float:
        allowed = allowed or Range(0)
        if not is_number or not math.isfinite(value):
            return f"a number of at least {allowed.low:g}" if math.isfinite(allowed.low) else "a finite number"
        if value not in allowed:
            return f"in {allowed}" if math.isfinite(allowed.high) else f"a number of at least {allowed.low:g}"
    return ""


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

    def __post_init__(self):
        if isinstance(self.mlp_activations, list):
            object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        check_fields(self, {"dropout_rate": Range(0, 1)}, {"position_table": ("mt3", "port")})
        if self.mlp_activations != ("gelu", "linear"):
            raise ConfigError(f"mlp_activations must be ('gelu', 'linear') as in MT3, not {self.mlp_activations!r}")
        if self.logits_via_embedding:
            raise ConfigError("logits_via_embedding must be false: MT3 has a separate logits_dense")
        if self.emb_dim % 2 or self.emb_dim < 4:
            raise ConfigError(f"emb_dim must be even and at least 4 (sinusoids come in pairs), not {self.emb_dim}")


@dataclasses.dataclass(frozen=True)
class SpectrogramConfig:
    """How audio becomes frames. Source: mt3/spectrograms.py and mt3/spectral_ops.py, compute_logmel."""

    sample_rate: int = 16000
    hop_width: int = 128
    num_mel_bins: int = 512
    fft_size: int = 2048
    mel_lo_hz: float = 20.0
    mel_hi_hz: float = 7600.0

    @property
    def frames_per_second(self) -> float:
        """Frames per second of audio: sample_rate / hop_width (125.0 for MT3)."""
        return self.sample_rate / self.hop_width

    def __post_init__(self):
        check_fields(self)
        if not self.mel_lo_hz < self.mel_hi_hz <= self.sample_rate / 2:
            raise ConfigError(
                f"mel_lo_hz {self.mel_lo_hz} and mel_hi_hz {self.mel_hi_hz} must rise and end at half of "
                f"sample_rate {self.sample_rate} at most"
            )


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """What the token ids mean. Source: mt3/vocabularies.py, VocabularyConfig and build_codec.

    Attributes:
        steps_per_second: resolution of the shift events.
        max_shift_seconds: largest shift; steps_per_second times this is the highest shift index.
        num_velocity_bins: velocity bins beside 0 (note off).
        use_ties: segments begin with the notes still sounding, closed by a tie token.
        use_programs: notes carry programs; otherwise everything is piano.
    """

    steps_per_second: int = 100
    max_shift_seconds: int = 10
    num_velocity_bins: int = 1
    use_ties: bool = True
    use_programs: bool = True

    def __post_init__(self):
        check_fields(self)

    @property
    def num_ids(self) -> int:
        """Ids that mean something: 3 special ones and the codec's (1391 for mt3)."""
        shifts = self.steps_per_second * self.max_shift_seconds + 1
        # pitch, velocity with 0 for note off, tie, program, drum
        return 3 + shifts + 128 + (self.num_velocity_bins + 1) + 1 + 128 + 128

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding that MT3 gives this vocabulary: with 100 extra ids, rounded up to 128 (1536 for mt3).

        Source: mt3/vocabularies.py, vocabulary_from_codec and num_embeddings.
        """
        return 128 * math.ceil((self.num_ids + 100) / 128)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a checkpoint needs beside its arrays.

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
        check_fields(self)
        if self.network.input_depth != self.spectrogram.num_mel_bins:
            raise ConfigError(
                f"input_depth {self.network.input_depth} must equal num_mel_bins {self.spectrogram.num_mel_bins}"
            )
        if self.network.vocab_size < self.vocabulary.num_ids:
            raise ConfigError(
                f"vocab_size {self.network.vocab_size} is too small for the {self.vocabulary.num_ids} ids of the "
                f"vocabulary with {self.vocabulary.num_velocity_bins} velocity bins"
            )

    def to_dict(self) -> dict[str, Any]:
        """Every setting under its own name in one flat dict, ready for JSON (config.json)."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values.update(dataclasses.asdict(value) if dataclasses.is_dataclass(value) else {field.name: value})
        values["mlp_activations"] = list(values["mlp_activations"])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The Config that to_dict wrote.

        Raises:
            ConfigError: a setting is missing, unknown or malformed. For files of others, read_settings and resolve.
        """
        if unknown := sorted(set(values) - set(_FIELDS)):
            raise ConfigError(f"unknown settings: {', '.join(map(str, unknown))}")
        if missing := [name for name in _FIELDS if name not in values]:
            raise ConfigError(f"missing settings: {', '.join(missing)}")
        parts = {
            part: kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
            for part, kind in _PARTS.items()
        }
        return cls(**parts, input_frames=values["input_frames"], max_target_length=values["max_target_length"])


_PARTS = {"network": NetworkConfig, "spectrogram": SpectrogramConfig, "vocabulary": VocabularyConfig}
# every setting and its type
_FIELDS = {field.name: field.type for kind in (*_PARTS.values(), Config) for field in dataclasses.fields(kind)}
_FIELDS = {name: kind for name, kind in _FIELDS.items() if name not in _PARTS}


PRESETS = {
    "mt3": Config(),
    "ismir2021": Config(
        network=NetworkConfig(vocab_size=1664),
        vocabulary=VocabularyConfig(num_velocity_bins=127, use_ties=False, use_programs=False),
        input_frames=512,
    ),
}


# names in other people's files -> ours: HF-T5's config.json, T5X's gin macros and arguments
_ALIASES = {
    "d_model": "emb_dim",
    "d_kv": "head_dim",
    "d_ff": "mlp_dim",
    "num_layers": "num_encoder_layers",
    "tie_word_embeddings": "logits_via_embedding",
    "NUM_VELOCITY_BINS": "num_velocity_bins",
    "USE_TIES": "use_ties",
}
# keys of other people's files that say something about the network in another form
_TRANSLATED = (
    "feed_forward_proj",
    "layer_norm_epsilon",
    "PROGRAM_GRANULARITY",
    "TASK_FEATURE_LENGTHS",
    "ONSETS_ONLY",
)
# keys that a config.json may hold beside the settings
_REMARKS = ("step", "parameters")


class Setting(NamedTuple):
    """One setting as found: its value, the name it had there, and where."""

    value: Any
    name: str
    origin: str

    def __str__(self) -> str:
        return f"{self.name} {self.value!r}"


class Resolved(NamedTuple):
    """A Config and, for every setting, where it comes from ("the arrays", "config.json", "the preset mt3" …)."""

    config: Config
    origins: dict[str, str]


def read_settings(values: Mapping[str, Any], origin: str, strict: bool = False) -> dict[str, Setting]:
    """The settings among key-value pairs, under our names: HF-T5's `d_model` becomes `emb_dim`.

    Args:
        values: a config.json, flat or with the sections network, spectrogram and vocabulary, or overrides.
        origin: what to call them in error messages.
        strict: refuse keys that are no setting, for what the user typed.

    Returns:
        Our name -> Setting; only those that are stated.

    Raises:
        ConfigError: a key is there twice with two values, or means something that MT3 is not; with strict, a key is
            unknown.

    Source: mt3/gin/*.gin for the macros; transformers' T5Config for the HF names.
    """
    flat = {key: value for key, value in values.items() if key not in _PARTS}
    for part in _PARTS:
        if isinstance(values.get(part), Mapping):
            flat.update(values[part])
    settings: dict[str, Setting] = {}

    def state(name: str, value: Any, spelled: str) -> None:
        if name == "mlp_activations" and isinstance(value, (list, tuple)):
            value = tuple(value)
        if complaint := _complaint(_FIELDS[name], value):
            raise ConfigError(f"{origin}: {spelled} must be {complaint}, not {value!r}")
        setting = Setting(value, spelled, origin)
        if name in settings and settings[name].value != value:
            raise ConfigError(
                f"{origin} says two things: {settings[name].name} {settings[name].value!r}, {spelled} {value!r}"
            )
        settings[name] = setting

    for key, value in flat.items():
        name = _ALIASES.get(key, key)
        if name in _FIELDS:
            state(name, value, key)
        elif key == "feed_forward_proj":
            state("mlp_activations", ("gelu", "linear") if value == "gated-gelu" else value, key)
        elif key == "layer_norm_epsilon":
            if value != 1e-6:
                raise ConfigError(
                    f"{origin}: layer_norm_epsilon is {value!r}, but MT3 has 1e-06 and nothing else is built"
                )
        elif key == "ONSETS_ONLY":
            if value is not False:
                raise ConfigError(f"{origin}: ONSETS_ONLY is {value!r}, but only models with note ends are built")
        elif key == "PROGRAM_GRANULARITY":
            if value not in ("flat", "midi_class", "full"):
                raise ConfigError(f"{origin}: PROGRAM_GRANULARITY must be flat, midi_class or full, not {value!r}")
            state("use_programs", value != "flat", key)
        elif key == "TASK_FEATURE_LENGTHS":
            if not isinstance(value, Mapping) or not {"inputs", "targets"} <= set(value):
                raise ConfigError(f"{origin}: TASK_FEATURE_LENGTHS must have inputs and targets, not {value!r}")
            state("input_frames", value["inputs"], f"{key}['inputs']")
            state("max_target_length", value["targets"], f"{key}['targets']")
        elif strict and key not in _REMARKS:
            known = [*_FIELDS, *_ALIASES, *_TRANSLATED]
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_FIELDS)}"
            raise ConfigError(f"{origin}: unknown setting {key!r}; {hint}")
    return settings


def read_settings_file(text: str, name: str) -> dict[str, Setting]:
    """The settings that a config.json or a .gin file states, under our names.

    Args:
        text: content of the file.
        name: its name or path; what ends in .gin is read as gin, everything else as JSON.

    Raises:
        ConfigError: not JSON or gin, or contradictory; names the file.
    """
    if name.endswith(".gin"):
        return read_settings(parse_gin(text, name), name)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds no JSON object")
    return read_settings(values, name)


def parse_gin(text: str, name: str = "gin") -> dict[str, Any]:
    """Parameters and macros of a gin file that have literal values, by their last name; the last binding wins.

    `network.T5Config.num_heads = 6`, the same in a block below `network.T5Config:`, and macros such as
    `NUM_VELOCITY_BINS = 1`. Of parameters only those of T5Config, SpectrogramConfig and VocabularyConfig are kept, and
    the program granularity and ties under their macros' names. References (`@…`) and required values are left out.

    Raises:
        ConfigError: a line is no gin, or a value of interest is no literal.

    Source: gin-config's syntax, as in mt3/gin/*.gin and the config.gin that T5X writes.
    Differs from gin: nothing is imported, included or called.
    """
    bindings: dict[str, str] = {}
    block = ""
    for line in _gin_lines(text):
        statement = line.strip()
        if line[0] not in " \t":
            block = ""
        if re.match(r"(import|from|include)\b", statement):
            continue
        if match := re.fullmatch(r"([\w./]+)\s*:", statement):
            block = match[1] + "."
        elif match := re.fullmatch(r"([\w./]+)\s*=\s*(.+)", statement, re.DOTALL):
            bindings[block + match[1]] = match[2].strip()
        else:
            raise ConfigError(f"{name}: {statement[:60]!r} is no gin statement")

    values: dict[str, Any] = {}
    for key, value in bindings.items():
        # drop the scope (train/…) and the modules (mt3.network.…)
        *owner, last = key.rpartition("/")[2].split(".")
        owner = owner[-1] if owner else ""
        if owner in ("T5Config", "SpectrogramConfig", "VocabularyConfig"):
            wanted = last if last in _FIELDS else None
        elif owner:
            # the macros' usual receivers; both spellings occur in mt3
            wanted = {"granularity_type": "PROGRAM_GRANULARITY", "use_ties": "USE_TIES"}.get(last)
        else:
            wanted = last if last in _ALIASES or last in _TRANSLATED else None
        # a macro stands for its value, and may stand for another macro
        for _ in range(8):
            if not value.startswith("%"):
                break
            value = bindings.get(value[1:], "@")
        if wanted is None or value.startswith(("@", "%")):
            continue
        try:
            values[wanted] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ConfigError(f"{name}: the value of {key} is no literal: {value[:60]!r}") from error
    return values


def _gin_lines(text: str) -> list[str]:
    """Logical lines, without comments and empty lines; open brackets and a final backslash continue a line."""
    lines, current, depth = [], "", 0
    for line in text.splitlines():
        # strings first, so that a # or a bracket inside one is no comment and no bracket
        pieces = re.findall(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|#.*|[^'"#]+|['"]""", line)
        pieces = [piece for piece in pieces if not piece.startswith("#")]
        code = "".join(piece for piece in pieces if piece[0] not in "'\"")
        depth += sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
        line = "".join(pieces).rstrip()
        continued = line.endswith("\\")
        current += line.removesuffix("\\")
        if continued or depth > 0:
            current += " "
            continue
        if current.strip():
            lines.append(current)
        current, depth = "", 0
    return [*lines, current] if current.strip() else lines


def resolve(
    sizes: Mapping[str, int],
    files: Sequence[Mapping[str, Setting]] = (),
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Resolved:
    """The Config of a checkpoint, and where each setting comes from. Nothing is guessed.

    Sizes come from the arrays, and whatever states one must agree with them. What arrays cannot say comes from, in
    this order: the overrides, the files, the preset; then
    - num_heads and head_dim from a preset whose sizes are all those of the arrays;
    - vocabulary and input_frames from the preset of the same vocab_size (1536: mt3, 1664: ismir2021), unless another
      number of velocity bins is stated;
    - what is the same in all presets (spectrogram, steps, target length, dropout, activations) from there.

    Args:
        sizes: emb_dim, mlp_dim, num_encoder_layers, num_decoder_layers, vocab_size, input_depth and attention_dim
            (num_heads * head_dim), as the arrays have them.
        files: settings of the files beside the checkpoint; read_settings_file.
        preset: 'mt3' or 'ismir2021'.
        overrides: settings that the user states, under our names or HF-T5's.

    Raises:
        ConfigError: something contradicts the arrays or something else (with the right values), or is not known (with
            what to pass).
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    stated = _merge(files)
    overriding = read_settings(overrides or {}, "the overrides", strict=True)
    stated.update(overriding)
    fitting = [name for name in PRESETS if _misfit(name, sizes) == []]
    wrong = [
        (setting.origin, f"{setting} is not {'' if setting.name == name else name + ' '}{sizes[name]}")
        for name, setting in stated.items()
        if name in sizes and setting.value != sizes[name]
    ]
    heads, wrong_heads = _heads(sizes["attention_dim"], stated, preset, fitting)
    if wrong := wrong + wrong_heads:
        origins = " and ".join(dict.fromkeys(origin for origin, _ in wrong))
        raise ConfigError(f"{origins}: settings contradict the arrays: {'; '.join(text for _, text in wrong)}")
    if not heads:
        raise ConfigError(_unknown_heads(sizes, preset))

    _check_vocabulary(sizes["vocab_size"], stated)
    found = {name: Setting(size, name, "the arrays") for name, size in sizes.items() if name in _FIELDS} | heads
    found |= {name: setting for name, setting in stated.items() if name not in found}
    bins = stated.get("num_velocity_bins")
    for name, default in _preset_settings(sizes["vocab_size"], preset, bins).items():
        found.setdefault(name, default)
        if preset and found[name].value != default.value and name in stated and name not in overriding:
            raise ConfigError(
                f"{found[name].origin}: {found[name]} contradicts the preset {preset}, which has {default.value!r}"
            )
    meaning = ("num_velocity_bins", "use_ties", "use_programs", "input_frames")
    if missing := [name for name in meaning if name not in found]:
        sizes_of = ", ".join(f"{name}'s {PRESETS[name].network.vocab_size}" for name in PRESETS)
        raise ConfigError(
            f"cannot tell what the {sizes['vocab_size']} ids mean (known: {sizes_of}): pass {', '.join(missing)}, "
            "or put a config.json or .gin that states them beside the checkpoint"
        )
    if "num_mel_bins" not in found and sizes["input_depth"] != 512:
        raise ConfigError(
            f"frames have {sizes['input_depth']} bins where MT3 has 512: pass num_mel_bins and the other settings of "
            "the spectrogram that differ from MT3's"
        )
    for name, value in PRESETS["mt3"].to_dict().items():
        found.setdefault(name, Setting(value, name, "MT3"))
    config = Config.from_dict({name: found[name].value for name in _FIELDS})
    return Resolved(config, {name: found[name].origin for name in _FIELDS})


def _check_vocabulary(vocab_size: int, stated: Mapping[str, Setting]) -> None:
    """Refuses stated velocity bins or steps that need another vocab_size than the arrays', where that is a preset's."""
    settings = {
        field.name: stated[field.name] for field in dataclasses.fields(VocabularyConfig) if field.name in stated
    }
    for name, chosen in PRESETS.items():
        values = {field: setting.value for field, setting in settings.items()}
        needed = dataclasses.replace(chosen.vocabulary, **values).num_embeddings
        if chosen.network.vocab_size == vocab_size != needed:
            origins = " and ".join(dict.fromkeys(setting.origin for setting in settings.values()))
            raise ConfigError(
                f"{origins}: settings contradict the arrays: with {', '.join(map(str, settings.values()))} vocab_size "
                f"is {needed}, but the arrays have {vocab_size}, that of {name} with num_velocity_bins "
                f"{chosen.vocabulary.num_velocity_bins}"
            )


def _merge(files: Sequence[Mapping[str, Setting]]) -> dict[str, Setting]:
    stated: dict[str, Setting] = {}
    for settings in files:
        for name, setting in settings.items():
            if name in stated and stated[name].value != setting.value:
                raise ConfigError(
                    f"two files disagree: {stated[name]} in {stated[name].origin}, {setting} in {setting.origin}"
                )
            stated[name] = setting
    return stated


def _misfit(preset: str, sizes: Mapping[str, int]) -> list[str]:
    """What keeps a preset from being the arrays' own, in words."""
    network = PRESETS[preset].network
    has = dataclasses.asdict(network) | {"attention_dim": network.num_heads * network.head_dim}
    return [f"{name} {has[name]} against {size}" for name, size in sizes.items() if has[name] != size]


def _heads(
    width: int, stated: Mapping[str, Setting], preset: str | None, fitting: Sequence[str]
) -> tuple[dict[str, Setting], list[tuple[str, str]]]:
    """num_heads and head_dim (empty where unknown), and what is wrong about the stated ones: (origin, text)."""
    given = {name: stated[name] for name in ("num_heads", "head_dim") if name in stated}
    usual = next((PRESETS[name].network for name in ([preset] if preset in fitting else fitting)), None)
    hint = f", {usual.num_heads} x {usual.head_dim} in {' and '.join(fitting)}" if usual else ""
    if len(given) == 2:
        heads, head = given["num_heads"], given["head_dim"]
        if heads.value * head.value != width:
            return {}, [(heads.origin, f"{heads} x {head} is not {width}, the width of the attention{hint}")]
        return given, []
    if given:
        ((name, setting),) = given.items()
        other = "head_dim" if name == "num_heads" else "num_heads"
        if width % setting.value:
            return {}, [(setting.origin, f"{setting} does not divide {width}, the width of the attention{hint}")]
        if usual and setting.value != getattr(usual, name):
            text = (
                f"{setting} is not {getattr(usual, name)}, as in {' and '.join(fitting)}, whose sizes the arrays have "
                f"(if it is meant, pass {other} {width // setting.value} with it)"
            )
            return {}, [(setting.origin, text)]
        return {name: setting, other: Setting(width // setting.value, other, f"the arrays and {name}")}, []
    if usual:
        origin = f"the preset {preset if preset in fitting else fitting[0]}"
        return {name: Setting(getattr(usual, name), name, origin) for name in ("num_heads", "head_dim")}, []
    return {}, []


def _unknown_heads(sizes: Mapping[str, int], preset: str | None) -> str:
    width = sizes["attention_dim"]
    splits = ", ".join(f"{heads} x {width // heads}" for heads in range(1, min(width, 32) + 1) if width % heads == 0)
    misfit = f" (the preset {preset} does not fit: {', '.join(_misfit(preset, sizes))})" if preset else ""
    return (
        f"cannot tell the number of heads: the arrays have num_heads x head_dim = {width}, which may be "
        f"{splits}{misfit}; pass num_heads, or put a config.json or .gin that states it beside the checkpoint"
    )


def _preset_settings(vocab_size: int, preset: str | None, bins: Setting | None) -> dict[str, Setting]:
    """Vocabulary and input_frames from the named preset, or from the one with this vocab_size and number of bins."""
    if preset and PRESETS[preset].network.vocab_size != vocab_size:
        fits = [name for name in PRESETS if PRESETS[name].network.vocab_size == vocab_size]
        raise ConfigError(
            f"the preset {preset} has vocab_size {PRESETS[preset].network.vocab_size}, the arrays have {vocab_size}"
            + (f": those of {fits[0]}" if fits else "")
        )
    for name in [preset] if preset else PRESETS:
        chosen = PRESETS[name]
        same_bins = bins is None or bins.value == chosen.vocabulary.num_velocity_bins
        if chosen.network.vocab_size == vocab_size and (preset or same_bins):
            values = dataclasses.asdict(chosen.vocabulary) | {"input_frames": chosen.input_frames}
            origin = f"the preset {name}" if preset else f"{name}, by its vocab_size {vocab_size}"
            return {field: Setting(value, field, origin) for field, value in values.items()}
    return {}
