"""Settings that other people's files state, and the Config that they and the arrays add up to.

Gin files of MT3 and T5X, config.json of this project and of Hugging Face's T5.
"""

import ast
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mt3_common.checkpoint.judgement import judge
from mt3_common.checkpoint.names import CheckpointError, reason_of
from mt3_common.checkpoint.storage import STEP, Folder
from mt3_common.config import (
    FIELDS,
    PARTS,
    PRE_ENCODER,
    PRESETS,
    Config,
    ConfigError,
    Range,
    VocabularyConfig,
    shown,
    type_error,
)
from mt3_common.io.json_text import parse_json

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
    """A setting of a file: its value, its name in the file, and its origin."""

    value: Any
    name: str
    origin: str

    def __str__(self) -> str:
        return f"{self.name} {shown(self.value)}"


class Resolved(NamedTuple):
    """A Config and, for every setting, where it comes from ("the arrays", "config.json", "the preset mt3" …)."""

    config: Config
    origins: dict[str, str]


def read_settings(values: Mapping[str, Any], origin: str, strict: bool = False) -> dict[str, Setting]:
    """Return the settings among key-value pairs, under MT3's names: HF-T5's `d_model` becomes `emb_dim`.

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
    flat = {key: value for key, value in values.items() if key not in PARTS}
    for part in PARTS:
        if isinstance(values.get(part), Mapping):
            flat.update(values[part])
    settings: dict[str, Setting] = {}

    def state(name: str, value: Any, spelled: str) -> None:
        if name == "mlp_activations" and isinstance(value, (list, tuple)):
            value = tuple(value)
        if complaint := type_error(FIELDS[name], value, Range(0) if name in PRE_ENCODER else None):
            raise ConfigError(f"{origin}: {spelled} must be {complaint}, not {shown(value)}")
        setting = Setting(value, spelled, origin)
        if name in settings and settings[name].value != value:
            raise ConfigError(
                f"{origin} says two things: {settings[name].name} {shown(settings[name].value)}, "
                f"{spelled} {shown(value)}"
            )
        settings[name] = setting

    for key, value in flat.items():
        name = _ALIASES.get(key, key)
        if name in FIELDS:
            state(name, value, key)
        elif key == "feed_forward_proj":
            state("mlp_activations", ("gelu", "linear") if value == "gated-gelu" else value, key)
        elif key == "layer_norm_epsilon":
            if value != 1e-6:
                raise ConfigError(
                    f"{origin}: layer_norm_epsilon is {shown(value)}, but MT3 has 1e-06 and nothing else is built"
                )
        elif key == "ONSETS_ONLY":
            if value is not False:
                raise ConfigError(f"{origin}: ONSETS_ONLY is {shown(value)}, but only models with note ends are built")
        elif key == "PROGRAM_GRANULARITY":
            if value not in ("flat", "midi_class", "full"):
                raise ConfigError(f"{origin}: PROGRAM_GRANULARITY must be flat, midi_class or full, not {shown(value)}")
            state("use_programs", value != "flat", key)
            if value != "flat":
                state("program_granularity", value, key)
        elif key == "TASK_FEATURE_LENGTHS":
            if not isinstance(value, Mapping) or not {"inputs", "targets"} <= set(value):
                raise ConfigError(f"{origin}: TASK_FEATURE_LENGTHS must have inputs and targets, not {shown(value)}")
            state("input_frames", value["inputs"], f"{key}['inputs']")
            state("max_target_length", value["targets"], f"{key}['targets']")
        elif strict and key not in _REMARKS:
            known = [*FIELDS, *_ALIASES, *_TRANSLATED]
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(FIELDS)}"
            raise ConfigError(f"{origin}: unknown setting {shown(key)}; {hint}")
    return settings


def read_settings_file(text: str, name: str) -> dict[str, Setting]:
    """Return the settings that a config.json or a .gin file states, under MT3's names.

    Args:
        text: content of the file.
        name: its name or path; what ends in .gin is read as gin, everything else as JSON.

    Raises:
        ConfigError: not JSON or gin, or contradictory; names the file.
    """
    if name.endswith(".gin"):
        return read_settings(parse_gin(text, name), name)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds no JSON object")
    settings = read_settings(values, name)
    if settings and (decisive := judge(values)[0]):
        raise ConfigError(f"{name}: {'; '.join(map(str, decisive))}")
    return settings


def doubts(files: Mapping[str, str]) -> list[str]:
    """Return what the config.json files of a checkpoint state that MT3 is not, and that may not matter, as sentences.

    Args:
        files: name -> text, of find_config_files.
    """
    sentences = []
    for name, text in files.items():
        if not name.endswith(".gin"):
            sentences += [f"{name}: {contradiction}" for contradiction in judge(parse_json(text))[1]]
    return sentences


def parse_gin(text: str, name: str = "gin") -> dict[str, Any]:
    """Return the literal parameters and macros of a gin file, by their last name; the last binding wins.

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
            wanted = last if last in FIELDS else None
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
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise ConfigError(f"{name}: the value of {key} is no literal: {value[:60]!r}") from error
    return values


def _gin_lines(text: str) -> list[str]:
    """Return the logical lines without comments; open brackets and a final backslash continue a line."""
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
    """Return the Config of a checkpoint and the origin of each setting. Nothing is guessed.

    Sizes come from the arrays, and whatever states one must agree with them; numbers of rows of one vocabulary (1391
    ids, 1491 with extra ones, 1536 rounded up) do agree. What arrays cannot say comes from, in this order: the
    overrides, the files, the preset; then
    - num_heads and head_dim from a preset whose sizes are all those of the arrays;
    - vocabulary and input_frames from the preset of the same vocab_size (1536: mt3, 1664: ismir2021), unless another
      number of velocity bins is stated;
    - what is the same in all presets (spectrogram, steps, target length, dropout, activations) from there, except for
      networks with a pre-encoder, whose frames must be stated.

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
        if name in sizes
        and setting.value != sizes[name]
        and not (name == "vocab_size" and _are_alike(setting.value, sizes))
    ]
    heads, wrong_heads = _heads(sizes["attention_dim"], stated, preset, fitting)
    if wrong := wrong + wrong_heads:
        origins = " and ".join(dict.fromkeys(origin for origin, _ in wrong))
        raise ConfigError(f"{origins}: settings contradict the arrays: {'; '.join(text for _, text in wrong)}")
    if not heads:
        raise ConfigError(_unknown_heads(sizes, preset))

    _check_vocabulary(sizes["vocab_size"], stated)
    resolved = {name: Setting(size, name, "the arrays") for name, size in sizes.items() if name in FIELDS} | heads
    resolved |= {name: setting for name, setting in stated.items() if name not in resolved}
    bins = stated.get("num_velocity_bins")
    for name, default in _preset_settings(sizes["vocab_size"], preset, bins).items():
        resolved.setdefault(name, default)
        if preset and resolved[name].value != default.value and name in stated and name not in overriding:
            raise ConfigError(
                f"{resolved[name].origin}: {resolved[name]} contradicts the preset {preset}, "
                f"which has {shown(default.value)}"
            )
    meaning = ("num_velocity_bins", "use_ties", "use_programs", "input_frames")
    if missing := [name for name in meaning if name not in resolved]:
        sizes_of = ", ".join(f"{name}'s {PRESETS[name].network.vocab_size}" for name in PRESETS)
        raise ConfigError(
            f"cannot tell what the {sizes['vocab_size']} ids mean (known: {sizes_of}): pass {', '.join(missing)}, "
            "or put a config.json or .gin that states them beside the checkpoint"
        )
    if "num_mel_bins" not in resolved and sizes["input_depth"] != 512:
        raise ConfigError(
            f"frames have {sizes['input_depth']} bins where MT3 has 512: pass num_mel_bins and the other settings of "
            "the spectrogram that differ from MT3's"
        )
    if "pre_encoder_layers" in sizes and (
        missing := [name for name in ("hop_width", "input_frames") if name not in stated]
    ):
        raise ConfigError(
            f"the arrays have a pre-encoder, which MT3 has not, so MT3's settings say nothing of its "
            f"{' and '.join(missing)} (nor context_frames, encoder_top_db): put the config.json of its training beside "
            "the checkpoint, or give it to mt3 as --config"
        )
    for name, value in PRESETS["mt3"].to_dict().items():
        resolved.setdefault(name, Setting(value, name, "MT3"))
    names = [name for name in FIELDS if name in resolved]
    config = Config.from_dict({name: resolved[name].value for name in names})
    return Resolved(config, {name: resolved[name].origin for name in names})


def _rows(preset: str) -> tuple[int, ...]:
    """Return the numbers of rows that an embedding of a preset's vocabulary may have, which are all one vocabulary.

    MT3's own rounded up to a multiple of 128; its ids with seqio's 100 extra ones; its ids alone.
    """
    ids = PRESETS[preset].vocabulary.num_ids
    return (PRESETS[preset].network.vocab_size, ids + 100, ids)


def _are_alike(stated: int, sizes: Mapping[str, int]) -> bool:
    """Return True if a stated vocab_size and that of the arrays are of the same vocabulary."""
    return any(stated in _rows(preset) and sizes["vocab_size"] in _rows(preset) for preset in PRESETS)


def _check_vocabulary(vocab_size: int, stated: Mapping[str, Setting]) -> None:
    """Refuse stated velocity bins or steps that need another vocab_size than the arrays', where that is a preset's."""
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
    """List the sizes in which a preset differs from the arrays, as sentences."""
    network = PRESETS[preset].network
    has = dataclasses.asdict(network) | {"attention_dim": network.num_heads * network.head_dim}
    return [
        f"{name} {has[name]} against {size}"
        for name, size in sizes.items()
        if has[name] != size and not (name == "vocab_size" and size in _rows(preset))
    ]


def _heads(
    width: int, stated: Mapping[str, Setting], preset: str | None, fitting: Sequence[str]
) -> tuple[dict[str, Setting], list[tuple[str, str]]]:
    """Return num_heads and head_dim (empty if unknown), and the faults of the stated ones: (origin, text)."""
    given = {name: stated[name] for name in ("num_heads", "head_dim") if name in stated}
    usual = next(
        (PRESETS[name].network for name in ([preset] if preset is not None and preset in fitting else fitting)), None
    )
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
        f'{splits}{misfit}; pass num_heads (in Python: overrides; mt3 takes a file with {{"num_heads": …}} as '
        "--config), or put such a config.json, or a .gin that states it, beside the checkpoint"
    )


def _preset_settings(vocab_size: int, preset: str | None, bins: Setting | None) -> dict[str, Setting]:
    """Return vocabulary and input_frames from the named preset, or the one of this vocab_size and number of bins."""
    if preset and vocab_size not in _rows(preset):
        fits = [name for name in PRESETS if vocab_size in _rows(name)]
        raise ConfigError(
            f"the preset {preset} has vocab_size {PRESETS[preset].network.vocab_size}, the arrays have {vocab_size}"
            + (f": those of {fits[0]}" if fits else "")
        )
    for name in [preset] if preset else PRESETS:
        chosen = PRESETS[name]
        same_bins = bins is None or bins.value == chosen.vocabulary.num_velocity_bins
        if vocab_size in _rows(name) and (preset or same_bins):
            values = dataclasses.asdict(chosen.vocabulary) | {"input_frames": chosen.input_frames}
            # no array and no id tells them
            del values["program_granularity"], values["drum_granularity"]
            origin = f"the preset {name}" if preset else f"{name}, by its vocab_size {vocab_size}"
            return {field: Setting(value, field, origin) for field, value in values.items()}
    return {}


def find_config_files(folder: Folder, listed: Sequence[str] | None) -> dict[str, str]:
    """Return name -> text of the config files that go with a checkpoint.

    These are the config.json and *.gin in the nearest of these folders that has any with settings of a model: the step
    folder (or the file's folder); the step folder around it, where it is an item of Orbax such as `default`; the folder
    of the run, which holds the steps; the one above; and if that is called `checkpoints`, the one above it.

    Args:
        folder: of the checkpoint.
        listed: all keys in it; None where they are not known.
    """
    levels = [folder]
    # an item of Orbax lies in a step folder
    if STEP.fullmatch(folder.above.path.name):
        levels.append(folder.above)
    if STEP.fullmatch(levels[-1].path.name):
        levels.append(levels[-1].above)
    levels.append(levels[-1].above)
    if levels[-1].path.name == "checkpoints":
        levels.append(levels[-1].above)
    for level in levels:
        files = {}
        for name in level.config_names(listed if level is folder else None):
            data = level.read(name)
            if data is not None and _has_settings(text := _text(data, f"{level}/{name}"), f"{level}/{name}"):
                files[f"{level}/{name}"] = text
        if files:
            return files
    return {}


def _has_settings(text: str, name: str) -> bool:
    """Return True if a file has settings of a model, or is damaged: then its reader must report it."""
    try:
        return bool(read_settings_file(text, name))
    except ConfigError:
        return True


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not text: {reason_of(error)}") from error
