"""Names of checkpoints and commands, right and mistyped."""

from parity import __main__ as cli


def test_a_typo_is_told_with_the_commands(capsys):
    assert cli.main(["diagnos"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("parity: 'diagnos' is neither a command nor a checkpoint; did you mean 'diagnose'? usage: ")
    # a command's help is not the help of another
    assert cli.main(["trace", "--help"]) == 3
    assert "'trace' is neither" in capsys.readouterr().err


def test_names_of_bundled_checkpoints_work_in_every_command(tmp_path, capsys):
    assert cli.main(["inspect", "golden"]) == 0
    assert cli.main(["diagnose", "golden", "--against", "golden"]) == 0
    assert "same: nothing is wrong" in capsys.readouterr().out
    assert cli.main(["convert", "golden", str(tmp_path / "a.safetensors")]) == 0
    assert cli.main(["diagnose", str(tmp_path / "a.safetensors"), "--against", "goldne"]) == 3
    assert "the bundled ones are: " in capsys.readouterr().err
