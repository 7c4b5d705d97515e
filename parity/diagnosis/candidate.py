"""Candidates: weights under any names, a trace or a config.json, read from whatever file holds them."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.checkpoint import safetensors
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.torch_pickle import PICKLES, read_tensors
from mt3_common.config import Config
from parity.trace.file import load, read_npz


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
    """

    path: str
    kind: str
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    trace: Any = None


def read_candidate(path: str | os.PathLike, config: str | os.PathLike | None = None) -> Candidate:
    """Read what lies at a path: weights under any names, a trace, or a config.json.

    Args:
        path: T5X or Orbax directory, .safetensors, .npz, a PyTorch file, a trace, or config.json.
        config: the config.json that goes with it; by default the one beside it.

    Raises:
        ValueError: nothing there, or nothing that can be read.
    """
    path = Path(path)
    name = path.name.lower()
    if "://" not in str(path) and not path.exists():
        raise CandidateError(f"{path}: no such file or directory")
    if name.endswith(".json"):
        return Candidate(str(path), "config", config=_read_json(path))
    beside = path.parent / "config.json" if path.is_file() else path / "config.json"
    settings = Path(config) if config is not None else beside
    values = _read_json(settings) if config is not None or beside.is_file() else {}
    if path.is_dir() or "://" in str(path):
        return Candidate(str(path), "weights", read_checkpoint(path, check=False).arrays, values)
    if name.endswith(".safetensors"):
        return _read_safetensors(path, values)
    if name.endswith(".npz"):
        return Candidate(str(path), "weights", read_npz(path), values)
    if name.endswith(PICKLES):
        return Candidate(str(path), "weights", _read_pickle(path), values)
    raise CandidateError(f"{path}: not a checkpoint folder, .safetensors, .npz, {', '.join(PICKLES)} or config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _parse_settings(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise CandidateError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise CandidateError(f"{path}: not readable JSON ({error})") from error


def _parse_settings(text: str, where: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CandidateError(f"{where}: not readable JSON ({error})") from error
    if not isinstance(settings, dict):
        raise CandidateError(f"{where}: holds no settings (a JSON object of names and values)")
    return settings


def _read_safetensors(path: Path, config: dict[str, Any]) -> Candidate:
    try:
        file = safetensors.parse(path.read_bytes())
    except ValueError as error:
        raise CandidateError(f"{path}: not a readable .safetensors file ({error})") from error
    if "header" in file.metadata:
        return Candidate(str(path), "trace", trace=load(path))
    if "config" in file.metadata and not config:
        config = _parse_settings(file.metadata["config"], f"{path}: its metadata 'config'")
    return Candidate(str(path), "weights", file.arrays, config)


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    floats = ("float16", "bfloat16", "float32", "float64")
    return {key: array for key, array in read_tensors(path).items() if array.dtype.name in floats}


def read_original(path: str, preset: str | None = None) -> tuple[dict[str, np.ndarray], Config]:
    """Arrays and config of the original checkpoint, complete and checked."""
    original = read_checkpoint(path)
    return original.arrays, original.config(preset)
