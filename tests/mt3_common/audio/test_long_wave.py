"""WAV files of more than 4 GB, of which a part is there."""

import struct

import pytest

from mt3_common.audio.files import AudioError, read_audio


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
@pytest.mark.parametrize("size", [640_000, 3_000_000_000, 5_000_000_000, 9_000_000_000])
def test_what_is_cut_off_is_said(magic, size, tmp_path):
    head = magic + struct.pack("<I", 0xFFFFFFFF) + b"WAVE"
    head += b"ds64" + struct.pack("<IQQQI", 28, size + 72, size, size // 2, 0)
    head += b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    path = tmp_path / "long.wav"
    path.write_bytes(head + b"data" + struct.pack("<I", 0xFFFFFFFF) + 16000 * b"\x10\x20")
    with pytest.raises(AudioError, match=r"truncated or damaged: only the first 1\.00 s"):
        read_audio(path)
