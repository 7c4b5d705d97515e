"""Instruments by name, and what a search may choose where only they play."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.config import PRESETS
from mt3_common.notes.instruments import FAMILIES, PROGRAM_NAMES, Instruments, allowed_tokens, parse_instruments
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary

CONFIG = PRESETS["mt3"]


@pytest.mark.parametrize(
    ("text", "programs", "drums"),
    [
        ("piano", range(8), False),
        ("piano,bass,drums", [*range(8), *range(32, 40)], True),
        (" Synth Lead , CHROMATIC_PERCUSSION", [*range(80, 88), *range(8, 16)], False),
        ("violin,Electric Bass (finger),lead 8 (bass + lead)", [40, 33, 87], False),
        ("0,127,40", [0, 40, 127], False),
        ("drums", [], True),
    ],
)
def test_names_and_numbers(text, programs, drums):
    assert parse_instruments(text) == Instruments(frozenset(programs), drums)


def test_general_midis_families_and_names_are_all_there_and_distinct():
    assert len(FAMILIES) == 16
    assert [parse_instruments(name).programs for name in PROGRAM_NAMES] == [{number} for number in range(128)]
    assert parse_instruments(",".join(FAMILIES)).programs == set(range(128))


@pytest.mark.parametrize("text", ["", "piano,", "kazoo", "128", "-1", "4.5", "²", "piano;bass"])
def test_other_names_are_refused_with_those_that_there_are(text):
    with pytest.raises(ValueError, match=r"no instrument '.*'; there are piano, chromatic percussion, .*drums"):
        parse_instruments(text)


@settings(deadline=None, max_examples=50)
@given(programs=st.frozensets(st.integers(0, 127)), drums=st.booleans())
def test_the_text_of_instruments_names_them(programs, drums):
    instruments = Instruments(programs, drums)
    if programs or drums:
        assert parse_instruments(str(instruments)) == instruments


@pytest.mark.parametrize("text", ["piano,bass,drums", "violin", "drums", "0"])
def test_only_tokens_of_other_instruments_are_banned(text):
    instruments = parse_instruments(text)
    vocabulary = Vocabulary(CONFIG.vocabulary)
    allowed = allowed_tokens(instruments, CONFIG)
    assert (allowed.shape, allowed.dtype) == ((1536,), bool)
    banned = {vocabulary.events[index] for index in np.flatnonzero(~allowed) - 3}
    expected = {("program", program) for program in range(128) if program not in instruments.programs}
    if not instruments.drums:
        expected |= {("drum", key) for key in range(128)}
    if not instruments.programs:
        expected |= {("pitch", pitch) for pitch in range(128)}
    assert banned == expected
    assert allowed[EOS_ID]


def test_a_model_of_one_instrument_has_nothing_to_choose_from():
    vocabulary = dataclasses.replace(CONFIG.vocabulary, use_programs=False)
    with pytest.raises(ValueError, match="one instrument only"):
        allowed_tokens(parse_instruments("piano"), dataclasses.replace(CONFIG, vocabulary=vocabulary))
