"""The settings that a user states for a checkpoint: those of a file, or of a released network."""

import os
from collections.abc import Mapping
from typing import Any

from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.config import ConfigError
from mt3_common.io.bounded import LARGEST_SETTINGS, read_bounded
from mt3_common.io.json_text import parse_json
from mt3_common.yourmt3_config import FAMILY

# a config.json, its content, or the name of a released YourMT3+
StatedConfig = str | os.PathLike | Mapping[str, Any]


def read_config(config: StatedConfig) -> dict[str, Any]:
    """Return the content of a config.json, or the settings of a released YourMT3+ by its name.

    Raises:
        ConfigError: neither such a name nor a file with a JSON object.
    """
    if isinstance(config, Mapping):
        return dict(config)
    name = os.fspath(config)
    if name in RELEASED:
        return RELEASED[name].settings.to_dict()
    try:
        with open(name, "rb") as file:
            values = parse_json(read_bounded(file, LARGEST_SETTINGS))
    except FileNotFoundError:
        raise ConfigError(f"--config {name}: there is no such file, and the names are {', '.join(RELEASED)}") from None
    except OSError as error:
        raise ConfigError(f"--config {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--config {name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {name} holds no JSON object")
    return values


def overrides_of_mt3(config: StatedConfig | None, positions: str | None, name: str) -> dict[str, Any] | None:
    """Return the settings that count more than those of a checkpoint of MT3, None for none.

    Args:
        config: see read_config.
        positions: the sinusoids, 'mt3' or 'port'.
        name: of the checkpoint.

    Raises:
        ConfigError: it is no config, or that of a YourMT3+.
    """
    values = {} if config is None else read_config(config)
    if values.get("family") == FAMILY or "model_cfg" in values:
        raise ConfigError(f"{name} is no YourMT3+, whose config --config is: leave it out")
    values |= {"position_table": positions} if positions else {}
    return values or None
