"""Judgement of a config.json in anybody's spelling: which of its settings contradict what MT3 is.

The diagnosis, and every command that reads weights, judge by it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mt3_common.checkpoint.settings import DECISIVE, RELATIVE_BIAS, SETTINGS, SIZE_KEYS
from mt3_common.checkpoint.settings_defaults import DEFAULTS


class Contradiction(NamedTuple):
    """A setting that contradicts what MT3 is: its key, a cause in few words, a text."""

    key: str
    cause: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


def judge(values: Mapping[str, Any]) -> tuple[list[Contradiction], list[Contradiction]]:
    """Return the contradictions of a config.json: those by which another network would be meant, and doubtful ones.

    Another network is meant by activations, norms, epsilons and factors that the file itself states. A setting that
    stands for something the weights would show, or of training, or that only a library's defaults add, is doubtful.

    Args:
        values: flat or in sections.
    """
    entries = {entry: None for section in sections(values) for entry in contradictions(section)}
    stated = _all_keys(values)
    decisive = [entry for entry in entries if entry.key in DECISIVE and entry.key in stated]
    return decisive, [entry for entry in entries if entry not in decisive]


def contradictions(flat: Mapping[str, Any]) -> list[Contradiction]:
    """Return the settings of one section that contradict what MT3 is."""
    entries = []
    for setting in SETTINGS:
        for key in setting.keys:
            if key not in flat or (flat[key] is None and setting.optional):
                continue
            if not setting.has_type(flat[key]):
                entries.append(mistyped(key, flat[key], setting.expected))
            elif fault := setting.fault(key, flat[key]):
                entries.append(Contradiction(key, *fault))
    if relative := [key for key in flat if RELATIVE_BIAS.search(key) and flat[key]]:
        text = "a relative position bias; MT3 has none (fixed sinusoids are added)"
        entries.append(Contradiction(relative[0], "relative bias", text))
    return entries


def mistyped(key: str, value: Any, expected: str) -> Contradiction:
    """Return the contradiction of a setting of the wrong type."""
    shown = json.dumps(value, default=str)
    text = f"{shown if len(shown) < 60 else shown[:57] + '...'} is not {expected}"
    return Contradiction(key, f"{key} of the wrong type", text)


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with transformers' defaults where they are those of a model_type that leaves some out.

    A setting that stands in a section, in whatever spelling, is not left out.
    """
    defaults = DEFAULTS.get(str(values.get("model_type")), {})
    aliases = [*SIZE_KEYS.values(), *(setting.keys for setting in SETTINGS)]
    completed, present = dict(values), _all_keys(values)
    for key, default in defaults.items():
        keys = next((keys for keys in aliases if key in keys), (key,))
        # each stack has its own setting in BART's spelling
        own = {alias for alias in keys if _stack_of(alias) in (None, _stack_of(key))} if _stack_of(key) else set(keys)
        if not own & present:
            completed[key] = default
    if defaults and "num_layers" in completed and not present & set(SIZE_KEYS["num_decoder_layers"]):
        completed["num_decoder_layers"] = completed["num_layers"]
    return completed


def _stack_of(key: str) -> str | None:
    return next((stack for stack in ("encoder", "decoder") if key.startswith(f"{stack}_")), None)


def _all_keys(values: Any) -> set[str]:
    """Every key of settings, of their sections and of lists of sections."""
    if isinstance(values, Mapping):
        return {*map(str, values), *(key for value in values.values() for key in _all_keys(value))}
    return {key for value in values for key in _all_keys(value)} if isinstance(values, list) else set()


def sections(values: Mapping[str, Any], name: str = "") -> list[dict[str, Any]]:
    """Return the settings of a file and of each of its sections, however deep, in lists too, one dict each.

    The number of layers in a section of the decoder is the decoder's. Keys that are paths ('decoder.num_heads') are
    those of sections.
    """
    values = complete(_unfolded(values))
    own = {key: value for key, value in values.items() if not _inner(value) or key in _GROUPS}
    if "decoder" in name.lower():
        own = {
            "num_decoder_layers" if key in ("num_layers", "n_layer", "n_layers", "num_hidden_layers") else key: own[key]
            for key in own
        }
    inner = [section for key, value in values.items() for part in _inner(value) for section in sections(part, str(key))]
    return [own, *inner]


_LAYERS = ("num_layers", "n_layer", "n_layers", "num_hidden_layers")
# settings that are groups of settings, whose presence says something; and the keys of a choice in such a group
_GROUPS = ("quantization_config", "rope_scaling")
_CHOICES = ("name", "type", "class_name")


def _unfolded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with paths as sections, and a choice such as {"activation": {"name": "relu"}} as its name."""
    known = {key for setting in SETTINGS for key in setting.keys} - set(_GROUPS)
    unfolded: dict[str, Any] = {}
    for key, value in values.items():
        choice = next((value[name] for name in _CHOICES if name in value), None) if isinstance(value, Mapping) else None
        *path, last = re.split(r"[./]", str(key))
        if path and last:
            section = unfolded.setdefault(".".join(path), {})
            if isinstance(section, dict):
                section[last] = value
        else:
            unfolded[key] = choice if key in known and isinstance(choice, str) else value
    return unfolded


def _inner(value: Any) -> list[Mapping[str, Any]]:
    """The sections that a value is or, as a list, has."""
    return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, Mapping)]
