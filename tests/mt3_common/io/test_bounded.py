"""Files that do not end are read no further than files of their kind go."""

import io
import os

import pytest

from mt3_common.io.bounded import read_bounded


def test_what_is_longer_is_refused():
    assert read_bounded(io.BytesIO(b"abc"), 3) == b"abc"
    with pytest.raises(ValueError, match="it has more than 2 bytes"):
        read_bounded(io.BytesIO(b"abc"), 2)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="devices")
def test_a_device_is_read_no_further():
    with open("/dev/zero", "rb") as file, pytest.raises(ValueError, match="more than 1048576 bytes"):
        read_bounded(file, 2**20)


def test_a_pipe_is_read_to_its_end():
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as file:
        file.write(b"a.wav\n")
        file.write(b"b.wav\n")
    with open(reading, "rb") as file:
        assert read_bounded(file, 2**20) == b"a.wav\nb.wav\n"
