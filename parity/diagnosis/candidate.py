"""Candidates: weights under any names, a trace or a config.json, read from whatever file holds them."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.checkpoint.place import INDEX, WEIGHTS
from mt3_common.checkpoint.read import read_any, read_checkpoint
from mt3_common.config import Config
from mt3_common.io.bounded import LARGEST_SETTINGS, read_bounded
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from parity.trace.file import load

# files of settings that transformers writes beside config.json
BESIDE = ("preprocessor_config.json", "generation_config.json")
# bytes that safetensors itself allows for a header
LARGEST_HEADER = 100_000_000


class CandidateError(ValueError):
    """A candidate that cannot be read, or is no candidate at all."""


@dataclasses.dataclass
class Candidate:
    """Something to diagnose.

    Attributes:
        path: where it lies.
        kind: 'weights', 'trace' or 'config'.
        arrays: name -> array, for weights, under the candidate's own names.
        config: its config.json or what was stored with the weights; {} where there is none.
        trace: the trace, where it is one.
        notes: how it was read and what of the file was left alone.
    """

    path: str
    kind: str
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    trace: Any = None
    notes: list[str] = dataclasses.field(default_factory=list)


def read_candidate(
    path: str | os.PathLike,
    config: str | os.PathLike | None = None,
    weights: str | None = None,
    scan_axis: int | None = None,
) -> Candidate:
    """Read the only candidate at a path; see read_candidates.

    Raises:
        ValueError: as there, or there are several sets of weights.
    """
    candidates = read_candidates(path, config, weights, scan_axis)
    if len(candidates) > 1:
        first, *others = candidates
        raise CandidateError(
            f"{path} holds {plural(len(candidates), 'set')} of weights with different numbers, "
            f"{first} and {', '.join(others)}: choose one with --weights {first}"
        )
    return next(iter(candidates.values()))


def read_candidates(
    path: str | os.PathLike,
    config: str | os.PathLike | None = None,
    weights: str | None = None,
    scan_axis: int | None = None,
) -> dict[str, Candidate]:
    """Read what lies at a path: weights under any names, a trace, or a config.json.

    Args:
        path: any checkpoint that mt3_common.checkpoint.read reads, a trace, or config.json.
        config: the config.json that goes with it; by default the one beside it, or else the one that goes with it.
        weights: prefix of the set of weights to read, where there are several.
        scan_axis: axis of the layers in arrays that have all of them, where it cannot be told.

    Returns:
        What names begin with -> Candidate; several only for sets of weights with different numbers.

    Raises:
        ValueError: nothing there, or nothing that can be read.
    """
    path = Path(path) if "://" not in str(path) else path
    name = str(path).lower()
    if isinstance(path, Path) and not path.exists():
        raise CandidateError(f"{path}: no such file or directory")
    if name.endswith(".json") and not name.endswith(INDEX):
        return {"": Candidate(str(path), "config", config=_read_json(Path(path)))}
    if name.endswith(".safetensors") and _is_trace(path):
        return {"": Candidate(str(path), "trace", trace=load(path))}
    if os.path.isfile(path) and not name.endswith((*WEIGHTS, *INDEX, "/checkpoint")):
        endings = ", ".join(WEIGHTS)
        raise CandidateError(f"{path}: not a checkpoint folder, {endings}, an index of such files or config.json")
    sets = read_any(path, weights, scan_axis)
    values = _settings_beside(path, config)
    if not values:
        files = next(iter(sets.values())).config_files
        texts = [(text, where) for where, text in files.items() if not where.endswith(".gin")]
        values = _parse_settings(*texts[0]) if texts else {}
    return {
        prefix: Candidate(str(path), "weights", read.arrays, values, notes=list(read.notes))
        for prefix, read in sets.items()
    }


def _settings_beside(path: str | os.PathLike, config: str | os.PathLike | None) -> dict[str, Any]:
    """Return the content of a config.json, or of the one beside a path; {} where there is none.

    transformers' settings of the front end and of decoding, which lie beside it, are sections of it.
    """
    if config is not None:
        return _read_json(Path(config))
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    values = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    more = {name: _read_json(folder / name) for name in BESIDE if values and (folder / name).is_file()}
    return values | more


def _is_trace(path: str | os.PathLike) -> bool:
    """Return True for a .safetensors file that parity.trace.file wrote."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(size, LARGEST_HEADER)))
        return "header" in header["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = read_bounded(file, LARGEST_SETTINGS).decode("utf-8")
    except FileNotFoundError:
        raise CandidateError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise CandidateError(f"{path}: not readable JSON ({error})") from error
    return _parse_settings(text, str(path))


def _parse_settings(text: str, where: str) -> dict[str, Any]:
    try:
        settings = parse_json(text)
    except ValueError as error:
        raise CandidateError(f"{where}: not readable JSON ({error})") from error
    if not isinstance(settings, dict):
        raise CandidateError(f"{where}: holds no settings (a JSON object of names and values)")
    return settings


def read_original(path: str, preset: str | None = None) -> tuple[dict[str, np.ndarray], Config]:
    """Arrays and config of the original checkpoint, complete and checked."""
    original = read_checkpoint(path)
    return original.arrays, original.config(preset)
