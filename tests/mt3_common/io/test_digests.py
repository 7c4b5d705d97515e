import hashlib

import pytest

from mt3_common.io import digests


@pytest.mark.parametrize("size", [0, 1, digests.BLOCK_BYTES, 3 * digests.BLOCK_BYTES + 7])
def test_digests_are_those_of_the_content(tmp_path, size):
    content = bytes(number % 251 for number in range(size))
    path = tmp_path / "a"
    path.write_bytes(content)
    assert digests.file_sha256(path) == hashlib.sha256(content).hexdigest()
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    digests.update_from_file(path, iter([sha256, md5]))
    assert sha256.digest() == hashlib.sha256(content).digest()
    assert md5.digest() == hashlib.md5(content, usedforsecurity=False).digest()
