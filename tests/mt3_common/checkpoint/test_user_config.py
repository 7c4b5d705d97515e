"""A config.json that cannot be read is one sentence."""

import pytest

from mt3_common.checkpoint.user_config import read_config
from mt3_common.config import ConfigError
from mt3_common.io.bounded import LARGEST_SETTINGS


def test_a_folder_in_place_of_a_config(tmp_path):
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path)
    assert str(error.value) == f"--config {tmp_path} cannot be read: Is a directory"


def test_a_file_that_does_not_end_or_is_nested_without_end(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("0" * LARGEST_SETTINGS + "0")
    with pytest.raises(ConfigError) as error:
        read_config(path)
    assert str(error.value) == f"--config {path} cannot be read: it has more than {LARGEST_SETTINGS} bytes"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: it is nested too deeply"):
        read_config(path)
