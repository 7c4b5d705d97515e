"""JSON that somebody else may have written."""

import pytest

from mt3_common.io.json_text import DEEPEST, parse_json


def test_nesting_has_an_end_whatever_python_can_bear():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for depth in (DEEPEST + 1, 500, 100_000):
        for text in ("[" * depth + "1" + "]" * depth, '{"x": ' * depth + "0" + "}" * depth):
            with pytest.raises(ValueError, match="nested too deeply"):
                parse_json(text)


def test_what_is_no_json_says_where():
    with pytest.raises(ValueError, match="line 1 column 8"):
        parse_json('{"a": 1')
