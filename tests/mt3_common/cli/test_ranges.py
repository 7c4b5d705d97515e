"""Numbers of options: each has a range, and one sentence for what is outside of it, whichever command it is."""

import json

import pytest

from mt3_common.cli import mt3

LARGE = "9" * 5000
WORKERS = "is not a whole number from 0 to 1024"
MANY = "is not a whole number from 1 to 1000000"
STEPS = "is not a whole number from 1 to 1000000000"
SEED = "is not a whole number from 0 to 2^64 - 1"
COMMANDS = {
    ("data", "shards", "DIR"): {"--shards": MANY, "--examples": MANY, "--seed": SEED, "--workers": WORKERS},
    ("data", "profile"): {
        **dict.fromkeys(("--batch-size", "--mixes", "--steps", "--together"), MANY),
        "--workers": WORKERS,
    },
    ("data", "sources", "DIR"): {"--mma": "is not a whole number from 0 to 1000"},
    ("train", "RUN"): {"--max-steps": STEPS, "--val-every": STEPS, "--workers": WORKERS},
    ("transcribe", "a.wav"): {"--jobs": "is not a whole number from 1 to 1024", "--search=sample --seed": SEED},
}
CASES = [(command, option, sentence) for command, options in COMMANDS.items() for option, sentence in options.items()]


@pytest.mark.parametrize(("command", "option", "sentence"), CASES)
@pytest.mark.parametrize("value", ["-1", "1.5", "many", LARGE, "18446744073709551616"])
def test_numbers_outside_of_a_range_are_refused_in_a_sentence(command, option, sentence, value, tmp_path, capsys):
    arguments = [*command, *option.split(), value]

    try:
        status = mt3.main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    [line] = capsys.readouterr().err.splitlines()
    name = " ".join(command[:-1] if command[-1].isupper() or "." in command[-1] else command)
    shown = value if len(value) <= 40 else value[:40] + "…"
    assert line == f"error: argument {option.split()[-1]}: {shown!r} {sentence}; mt3 {name} --help lists the options"


@pytest.mark.parametrize("value", ["0", "-2", "nan", "inf", "even"])
def test_a_temperature_of_data_sets_is_above_0(value, capsys):
    with pytest.raises(SystemExit, match="2"):
        mt3.main(["data", "shards", "DIR", "--temperature", value])
    assert f"--temperature: {value!r} is not a number above 0; mt3 data shards" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["1e9", "3601", "0.5"])
def test_an_example_lasts_an_hour_at_most(seconds, capsys):
    with pytest.raises(SystemExit, match="2"):
        mt3.main(["data", "shards", "DIR", "--recipe", f'{{"seconds": {seconds}}}'])
    assert "seconds must be in [1, 3600]" in capsys.readouterr().err


def test_the_largest_seed_draws_examples(tmp_path, font):
    seed = 2**64 - 1
    arguments = ["--fonts", str(font), "--recipe", '{"piano": 1, "seconds": 3}', "--seed", str(seed), "--pairs"]
    assert mt3.main(["data", "shards", str(tmp_path), *arguments, "--examples", "1"]) == 0
    assert json.loads((tmp_path / "sources.json").read_text())["seed"] == seed
    assert len(list(tmp_path.glob("*__00000.flac"))) == 1


def test_wrong_arguments_of_other_commands_are_one_sentence_too(capsys):
    commands = {"data fonts": [], "data install": ["--unknown"], "evaluate": [], "train": []}
    for command, arguments in commands.items():
        with pytest.raises(SystemExit, match="2"):
            mt3.main([*command.split(), *arguments])
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert line.endswith(f"; mt3 {command} --help lists the options")
