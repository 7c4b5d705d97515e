"""requirements-oldest.txt holds the lower bounds of pyproject.toml, which continuous integration installs and tests."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
REQUIREMENTS = [Requirement(text) for texts in GROUPS for text in texts]
LINES = (ROOT / "requirements-oldest.txt").read_text().splitlines()
OLDEST = [Requirement(line) for line in LINES if line and not line.startswith("#")]


@pytest.mark.parametrize("pin", OLDEST, ids=lambda pin: pin.name)
def test_the_oldest_version_is_the_lower_bound(pin):
    (version,) = (Version(part.version) for part in pin.specifier)
    ranges = [one.specifier for one in REQUIREMENTS if one.name.lower() == pin.name.lower()]
    bounds = {Version(part.version) for specifier in ranges for part in specifier if part.operator == ">="}
    # what the requirements bring with them has no range here
    assert bounds == {version} or pin.name in ("jaxlib", "pyparsing", "virtualenv")
