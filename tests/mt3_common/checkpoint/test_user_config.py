"""A config.json that cannot be read is one sentence."""

import pytest

from mt3_common.checkpoint.user_config import read_config
from mt3_common.config import ConfigError


def test_a_folder_in_place_of_a_config(tmp_path):
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path)
    assert str(error.value) == f"--config {tmp_path} cannot be read: Is a directory"
