"""Settings of a config.json, in anybody's spelling, against the original's."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

from mt3_common.checkpoint.judgement import contradictions, mistyped, sections
from mt3_common.checkpoint.settings import (
    FRONT_END_KEYS,
    HARMLESS,
    RELATIVE_BIAS,
    SETTINGS,
    SIZE_KEYS,
    VOCABULARY,
    is_number,
    is_whole,
)
from mt3_common.config import Config
from parity.diagnosis.finding import Finding


def vocabulary_note(config: Config) -> list[str]:
    """A note on ids and rows of the embedding, where the rows are the ids rounded up as MT3 does."""
    ids, rows = config.vocabulary.num_ids + 100, config.network.vocab_size
    if not 0 <= rows - ids < 128:
        return []
    return [f"{ids} ids against {rows} rows of the embedding is no mismatch: {VOCABULARY}"]


def check_config(values: Mapping[str, Any], config: Config, notes: list[str]) -> list[Finding]:
    """Findings about settings that contradict the original's.

    Args:
        values: a config.json, in anybody's spelling, flat or in sections.
        config: the original's.
        notes: gets what looks like a fault and is none.
    """
    findings: dict[tuple[str, str], Finding] = {}
    for section in sections(values):
        for finding in _check_section(section, config, notes):
            findings.setdefault((finding.site, finding.cause), finding)
    for name in ("encoder_top_db", "context_frames"):
        # no array tells, and what reads the file takes its absence for 0
        if values and getattr(config.network, name) and all(name not in part for part in sections(values)):
            text = f"not stated, which is 0; the checkpoint has {getattr(config.network, name):g}"
            finding = _finding(name, f"{name} missing", text)
            findings[finding.site, finding.cause] = finding
    return list(findings.values())


def unjudged(values: Mapping[str, Any], config: Config) -> list[str]:
    """List the settings of which the diagnosis knows neither MT3's value nor that they are harmless."""
    known = {key for keys in [*SIZE_KEYS.values(), *FRONT_END_KEYS.values()] for key in keys} | set(_own_fields(config))
    # the step is of the training, not of the network
    known |= {key for setting in SETTINGS for key in setting.keys} | {"step"}
    keys = dict.fromkeys(str(key) for section in sections(values) for key in section)
    return [
        key
        for key in keys
        if key not in known and not HARMLESS.fullmatch(key.lower()) and not RELATIVE_BIAS.search(key)
    ]


def _own_fields(config: Config) -> dict[str, Any]:
    """Settings under MT3's own names of which no other project has another: the vocabulary's, and the lengths."""
    fields = {
        **dataclasses.asdict(config),
        **dataclasses.asdict(config.vocabulary),
        **dataclasses.asdict(config.network),
    }
    named = {*SIZE_KEYS, *FRONT_END_KEYS, *(key for setting in SETTINGS for key in setting.keys)}
    return {key: value for key, value in fields.items() if key not in named and not isinstance(value, dict)}


def _check_section(flat: Mapping[str, Any], config: Config, notes: list[str]) -> list[Finding]:
    findings = _check_sizes(flat, config, notes) + _check_front_end(flat, config)
    findings += [_finding(key, cause, text) for key, cause, text in contradictions(flat)]
    for key, right in _own_fields(config).items():
        # which programs it was trained with, and which drums are written, is nothing that a network computes
        if key not in flat or flat[key] == right or key in ("program_granularity", "drum_granularity"):
            continue
        cause, text = f"{key}={flat[key]}", f"{flat[key]!r}; the checkpoint has {right!r}"
        if (key, flat[key]) == ("position_table", "port"):
            cause, text = "positions=port", "the ports' position table (2k/d) in place of MT3's"
        findings.append(_finding(key, cause, text))
    if any(flat.get(key) is not None for key in SIZE_KEYS["vocab_size"]) and not notes:
        notes += vocabulary_note(config)
    return findings


def _check_sizes(flat: Mapping[str, Any], config: Config, notes: list[str]) -> list[Finding]:
    findings = []
    wrong: dict[str, tuple[str, int]] = {}
    right = dataclasses.asdict(config.network)
    for field, keys in SIZE_KEYS.items():
        for key in keys:
            if key not in flat or (is_whole(flat[key]) and flat[key] == right[field]):
                continue
            value = flat[key]
            if not is_whole(value):
                findings.append(_mistyped(key, value, f"a whole number; the checkpoint has {right[field]}"))
            elif field == "vocab_size" and value in (config.vocabulary.num_ids, config.vocabulary.num_ids + 100):
                notes.append(f"config: {key} {value} against {right[field]} is no fault: {VOCABULARY}")
            else:
                wrong[field] = (key, value)
    for (field, (key, value)), (other, (other_key, other_value)) in itertools.combinations(sorted(wrong.items()), 2):
        if field in wrong and other in wrong and value == right[other] and other_value == right[field]:
            text = f"swapped with {other_key}: {key} is {right[field]} and {other_key} is {right[other]}"
            findings.append(_finding(key, f"{key} and {other_key} swapped", text))
            del wrong[field], wrong[other]
    for field, (key, value) in wrong.items():
        text = f"{value}; the checkpoint has {right[field]}"
        joined = config.network.num_heads * config.network.head_dim
        if field == "num_heads" and joined != config.network.emb_dim:
            text += f" heads of {config.network.head_dim}: {joined} in all, not {config.network.emb_dim}"
        findings.append(_finding(key, f"{field}={value}", text))
    return findings


def _check_front_end(flat: Mapping[str, Any], config: Config) -> list[Finding]:
    findings = []
    right = dataclasses.asdict(config.spectrogram) | {"frames_per_second": config.spectrogram.frames_per_second}
    for field, keys in FRONT_END_KEYS.items():
        for key in keys:
            if key not in flat or flat[key] == right[field]:
                continue
            if is_number(flat[key]):
                findings.append(_finding(key, f"{field}={flat[key]:g}", f"{flat[key]:g}; MT3 has {right[field]:g}"))
            elif flat[key] is not None:
                findings.append(_mistyped(key, flat[key], f"a number; MT3 has {right[field]:g}"))
    return findings


def _finding(key: str, cause: str, text: str) -> Finding:
    return Finding(f"config: {key}", cause, text, math.nan, undoable=True, sites=[f"config: {key}"])


def _mistyped(key: str, value: Any, expected: str) -> Finding:
    return _finding(*mistyped(key, value, expected))


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without their sections; of a key in several, the last value."""
    return {key: value for section in sections(values) for key, value in section.items()}
