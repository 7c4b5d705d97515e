"""Instruments by name, and what a search may choose where only they play."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.config import PRESETS
from mt3_common.notes.instruments import (
    FAMILIES,
    PROGRAM_NAMES,
    Instruments,
    allowed_tokens,
    instrument_names,
    joined_names,
    named_programs,
    parse_instruments,
    written_program,
)
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary

CONFIG = PRESETS["mt3"]
CLASSES = CONFIG.with_granularity("midi_class")


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


def written_of_classes(program):
    return {written_program(program, CLASSES.vocabulary)}


@pytest.mark.parametrize(
    ("text", "programs"),
    [
        ("cello", {40}),
        ("33", {32}),
        ("violin,cello,flute", {40, 72}),
        ("strings", {40}),
        ("electric bass (finger)", {32}),
        ("drums", set()),
    ],
)
def test_a_model_of_families_may_choose_the_first_program_of_each(text, programs):
    vocabulary = Vocabulary(CLASSES.vocabulary)
    allowed = allowed_tokens(parse_instruments(text), CLASSES)
    first = vocabulary.first_id("program")
    assert set(np.flatnonzero(allowed[first : first + 128])) == programs
    assert allowed[vocabulary.first_id("pitch")] == bool(programs)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cello", {40: 42}),
        ("cello,viola", {40: 41}),
        ("cello,violin", {40: 40}),
        ("strings,flute,drums", {40: 40, 72: 73}),
        ("drums", {}),
    ],
)
def test_notes_of_a_family_are_given_to_the_first_that_was_named(text, names):
    assert named_programs(parse_instruments(text), written_of_classes) == names


@settings(deadline=None, max_examples=50)
@given(programs=st.frozensets(st.integers(0, 127)))
def test_a_model_of_all_programs_gives_each_its_own_notes(programs):
    instruments = Instruments(programs, False)
    names = named_programs(instruments, lambda program: {written_program(program, CONFIG.vocabulary)})
    assert names == {program: program for program in programs}
    assert not joined_names(instruments, lambda program: {program})


@settings(deadline=None, max_examples=50)
@given(programs=st.frozensets(st.integers(0, 127)))
def test_notes_are_given_to_instruments_that_were_named_and_of_their_family(programs):
    names = named_programs(Instruments(programs, False), written_of_classes)
    assert set(names.values()) <= programs
    assert {program // 8 for program in programs} == {written // 8 for written in names}
    assert all(written // 8 == named // 8 for written, named in names.items())


def test_instruments_that_stand_for_others_are_said():
    def joined(text):
        return joined_names(parse_instruments(text), written_of_classes)

    assert joined("cello") == "cello stands for strings"
    assert joined("piano,cello,flute") == "cello stands for strings; flute stands for pipe"
    assert joined("strings,drums") == ""


def test_names_of_instruments():
    assert instrument_names(parse_instruments("41,Piano,drums")) == "piano, viola, drums"
