"""Lines about the stages of a long command."""

import time

from mt3_common.io.progress import Stages


class Quick(Stages):
    FIRST, REPEAT = 0.05, 0.1


class Late(Stages):
    FIRST = 60.0


def test_what_is_over_quickly_says_nothing(capsys):
    with Late("parity") as say:
        say("loading")
    assert capsys.readouterr().err == ""


def test_a_long_stage_is_said_again(capsys):
    with Quick("parity") as say:
        say("loading")
        time.sleep(0.4)
        say("comparing")
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("parity: loading (")
    assert len([line for line in lines if "loading" in line]) > 1
    assert any(line.startswith("parity: comparing (") for line in lines)
