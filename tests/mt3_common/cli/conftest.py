"""The soundfont that sounds are made with, whatever the machine has."""

from pathlib import Path

import pytest

from mt3_common.formats import sonify


@pytest.fixture(autouse=True)
def small_soundfont(monkeypatch, font: Path):
    """Let the command line find the tests' own soundfont: others take seconds to load."""
    monkeypatch.setattr(sonify, "find_soundfont", lambda: font)
