"""Paths of temporary files in messages: whoever gave a recording reads the name that they know."""

import logging

import pytest

from mt3_common.cli.console import sentence
from mt3_common.io.notices import LOGGER, notice, shown_by
from mt3_common.io.shown_names import shown_as, shown_name, with_shown_names

PATH = "/tmp/mt3-twins-x1/recording"


def test_notices_of_every_level_have_the_name(caplog):
    caplog.set_level(logging.DEBUG, "mt3_common")
    with shown_as(PATH, "my song.wav"):
        notice(f"{PATH}: odd")
        LOGGER.debug("%s: read", PATH)
        assert shown_name(PATH) == "my song.wav"
    LOGGER.warning(f"{PATH}: later")
    assert caplog.messages == ["my song.wav: odd", "my song.wav: read", f"{PATH}: later"]
    assert (shown_name(PATH), with_shown_names(PATH)) == ("recording", PATH)


def test_two_files_of_one_name_are_two():
    lines: list[str] = []
    with shown_by(lines.append):
        for path in ("/tmp/mt3-twins-x2/a", "/tmp/mt3-twins-x3/a"):
            with shown_as(path, "samples"):
                notice(f"{path}: odd")
                notice(f"{path}: odd")
    assert lines == ["samples: odd"] * 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(f"{PATH}: is empty, see {PATH}"), "song: is empty, see song"),
        (ValueError(3, f"{PATH} is odd"), "(3, 'song is odd')"),
        (OSError(28, "No space left on device", PATH), "[Errno 28] No space left on device: 'song'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_exceptions_that_leave_have_the_name(error, expected):
    with pytest.raises(type(error)) as raised, shown_as(PATH, "song"):
        raise error
    assert str(raised.value) == expected


def test_a_sentence_about_a_file_has_its_name():
    error = OSError(28, "No space left on device", PATH)
    assert sentence(error, "", {PATH: "my  song"}) == "my  song: No space left on device"
    assert sentence(error, "") == f"{PATH}: No space left on device"
