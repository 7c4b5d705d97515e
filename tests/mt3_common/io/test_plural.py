"""A count in a message agrees with its noun and its verb."""

import pytest

from mt3_common.io.plural import plural


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("note",), "0 notes"),
        (1, ("note",), "1 note"),
        (2, ("note",), "2 notes"),
        (1, ("entry", "entries"), "1 entry"),
        (0, ("array is", "arrays are"), "0 arrays are"),
        (3, ("array is", "arrays are"), "3 arrays are"),
    ],
)
def test_counts_agree_with_their_nouns(count, words, text):
    assert plural(count, *words) == text
