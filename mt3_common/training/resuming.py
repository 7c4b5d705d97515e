"""Checks of a run that goes on: its network, and the checkpoint that it began from, may not be others."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mt3_common.config import UNWRITTEN, Config
from mt3_common.io.json_text import parse_json
from mt3_common.training.config import TrainingError, yourmt3_settings
from mt3_common.training.run_folder import RECORD
from mt3_common.yourmt3_config import YourMT3Settings

# of settings that differ, in a sentence
NAMED = 3
# settings that no weight depends on
UNTRAINED = {"drum_granularity"}


def check_same_model(
    folder: Path, saved: Config | YourMT3Settings, config: Config | YourMT3Settings, stated: Mapping[str, Any]
) -> None:
    """Check that the settings of the network that preset and file state are those of the run that goes on.

    Args:
        folder: of the run.
        saved: settings of last/.
        config: settings that preset and file lead to.
        stated: the model settings of preset and file themselves.

    Raises:
        TrainingError: one is another; it is named, with both values.
    """
    if isinstance(saved, YourMT3Settings) and "released" in stated and warm_start_of(folder) is None:
        # all settings of a released network are stated by its name, unless the run began with those of a checkpoint
        config = yourmt3_settings(stated)
    there, wanted = (_flat(values.to_dict()) for values in (saved, config))
    if not isinstance(saved, YourMT3Settings):
        there, wanted = UNWRITTEN | there, UNWRITTEN | wanted
    names = [name for name in wanted if isinstance(saved, YourMT3Settings) or name in stated.keys() - UNTRAINED]
    if others := [name for name in names if wanted[name] != there.get(name)]:
        told = ", ".join(f"{name} {wanted[name]!r} in place of {there.get(name)!r}" for name in others[:NAMED])
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        raise TrainingError(
            f"{folder} holds a run of another network than the settings ask for ({told}{more}): name another RUN, or "
            f"leave the settings as they were"
        )


def check_warm_start(folder: Path, warm_start: str) -> None:
    """Check that a run that goes on began from the checkpoint of --warm-start, where its record tells.

    Raises:
        TrainingError: it began from another one.
    """
    began = warm_start_of(folder)
    if began not in (None, warm_start) and os.path.realpath(str(began)) != os.path.realpath(warm_start):
        raise TrainingError(
            f"{folder} holds a run that began from {began}, not from --warm-start {warm_start}: name another RUN, or "
            f"give --warm-start {began}"
        )


def warm_start_of(folder: Path) -> str | None:
    """Return the checkpoint that the last command of a run named as its start; None if none, or if nothing tells."""
    try:
        return parse_json((folder / RECORD).read_bytes())["arguments"]["warm_start"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def first_step_on(folder: Path, digest: str, begin: int) -> int:
    """Return the step at which a run began with the shards that it is given.

    Args:
        folder: of the run.
        digest: of the shards, see Shards.
        begin: step at which the run goes on; where it had other shards, it begins with these there.
    """
    try:
        shards = parse_json((folder / RECORD).read_bytes())["shards"]
        return int(shards["begin"]) if shards["digest"] == digest else begin
    except (OSError, ValueError, KeyError, TypeError):
        # a new run, or one whose record does not tell
        return 0


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return settings with those of groups under the names of both: front_end.hop."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return flat
