"""The arguments that benchmarks/decode.py refuses."""

import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("decode", Path(__file__).parents[1] / "benchmarks" / "decode.py")
decode = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(decode)


def test_the_two_searches_are_those_of_the_twins(monkeypatch, capsys):
    """ONNX Runtime would search greedily in both columns."""
    monkeypatch.setattr(sys, "argv", ["decode.py", "--parts", "search", "--twins", "torch_mt3,onnx_mt3"])
    monkeypatch.setattr(decode, "take_turns", lambda *_: pytest.fail("something was measured"))
    with pytest.raises(SystemExit):
        decode.main()
    assert "onnx_mt3 searches greedily alone: leave the part search out of --parts" in capsys.readouterr().err
