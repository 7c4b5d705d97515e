"""The prior of instruments: against a plain second implementation, and what it must and must not change."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.config import Config, VocabularyConfig
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary
from mt3_common.transcription.batching import SegmentTokens
from mt3_common.transcription.instrument_prior import InstrumentPrior, takes_prior

VOCABULARY = Vocabulary(VocabularyConfig())


def ids_of(*events):
    """Model ids of (kind, value) pairs."""
    return VOCABULARY.encode([VOCABULARY.index(kind, value) for kind, value in events])


def logits_of(chances):
    """Logits (k, 128) with the given probabilities, {program: probability} a row, and next to nothing elsewhere."""
    logits = np.full((len(chances), 128), -60.0, np.float32)
    for row, of_row in zip(logits, chances, strict=True):
        for program, chance in of_row.items():
            row[program] = math.log(chance)
    return logits


def segment(chances, pitches=(60,)):
    """A segment in which the likeliest program of each row begins the pitches."""
    events = []
    for row in chances:
        events += [("program", max(row, key=row.get)), ("velocity", 1), *(("pitch", pitch) for pitch in pitches)]
    return SegmentTokens(ids_of(("tie", 0), ("shift", 0), *events), logits_of(chances))


def programs(ids):
    """Programs of the program tokens, in order."""
    events = [VOCABULARY.events[index] for index in VOCABULARY.decode(ids) if index >= 0]
    return [value for kind, value in events if kind == "program"]


def plain(tokens, counts):
    """A second implementation without arrays: returns (ids, counts)."""
    events = [None if index < 0 else VOCABULARY.events[index] for index in VOCABULARY.decode(tokens.ids).tolist()]
    groups, velocity = [], 1
    for event in events:
        kind, value = event or ("", 0)
        if kind == "velocity":
            velocity = value
        elif kind == "program":
            groups.append(0)
        elif kind == "pitch" and velocity and groups:
            groups[-1] += 1
    chances = []
    for row in tokens.program_logits.tolist():
        odds = [math.exp(logit - max(row)) for logit in row]
        chances.append([odd / sum(odds) for odd in odds])

    def posterior(near):
        rows = [[sum(row[8 * c : 8 * c + 8]) * (near[c] + 1) for c in range(16)] for row in chances]
        return [[product / sum(row) for product in row] for row in rows]

    near = counts
    for _ in range(6):
        rows = posterior(near)
        near = [counts[c] + sum(n * row[c] for n, row in zip(groups, rows, strict=True)) for c in range(16)]
    ids, number = tokens.ids.tolist(), 0
    for position, event in enumerate(events):
        if event and event[0] == "program":
            best = max(range(16), key=lambda c: rows[number][c])
            if best != event[1] // 8:
                program = max(range(8 * best, 8 * best + 8), key=lambda program: chances[number][program])
                ids[position] += program - event[1]
            number += 1
    return ids, near


@st.composite
def segments(draw):
    """Up to 4 segments of any tokens, and any logits of their programs."""
    result = []
    for _ in range(draw(st.integers(1, 4))):
        events = draw(
            st.lists(
                st.one_of(
                    st.tuples(st.just("program"), st.integers(0, 127)),
                    st.tuples(st.just("pitch"), st.integers(0, 127)),
                    st.tuples(st.just("velocity"), st.integers(0, 1)),
                    st.tuples(st.sampled_from(["shift", "drum"]), st.integers(0, 100)),
                    st.just(("tie", 0)),
                ),
                max_size=24,
            )
        )
        count = sum(kind == "program" for kind, _ in events)
        seed = draw(st.integers(0, 2**32 - 1))
        logits = np.random.default_rng(seed).normal(0, draw(st.sampled_from([0.1, 2.0, 20.0])), (count, 128))
        if draw(st.booleans()):
            logits[:, draw(st.integers(0, 15)) * 8 :] = -np.inf
            logits[:, 0] = 0.0
        result.append(SegmentTokens(np.append(ids_of(*events), EOS_ID).astype(np.int32), logits.astype(np.float32)))
    return result


@settings(max_examples=60, deadline=None)
@given(segments())
def test_it_chooses_what_the_formulas_say(tokens_of_segments):
    prior, counts = InstrumentPrior(VOCABULARY), [0.0] * 16
    for tokens in tokens_of_segments:
        before = tokens.ids.copy()
        ids = prior.choose(tokens)
        expected, counts = plain(tokens, counts)
        assert ids.tolist() == expected
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(tokens.ids, before)
        np.testing.assert_allclose(prior.counts, counts, rtol=1e-9, atol=1e-12)
        number = 0
        for old, new in zip(before.tolist(), expected, strict=True):
            if prior.first_program <= old < prior.first_program + 128:
                assert new == old or tokens.program_logits[number, new - prior.first_program] > -np.inf
                number += 1
            else:
                assert new == old


def test_a_doubtful_note_is_of_the_instrument_that_has_played():
    prior = InstrumentPrior(VOCABULARY)
    for _ in range(3):
        prior.choose(segment([{40: 0.9, 73: 0.1}], pitches=(60, 62)))
    assert programs(prior.choose(segment([{40: 0.3, 73: 0.7}]))) == [40]
    # in a recording of its own it is a flute's, and a note of which the network is certain stays one
    assert programs(InstrumentPrior(VOCABULARY).choose(segment([{40: 0.3, 73: 0.7}]))) == [73]
    assert programs(prior.choose(segment([{40: 0.01, 73: 0.99}]))) == [73]


def test_a_class_that_is_never_first_wins_by_its_probabilities():
    """Every note might be one of three others, each time another one; the fourth is always possible."""
    prior = InstrumentPrior(VOCABULARY)
    results = [programs(prior.choose(segment([{other: 0.55, 65: 0.45}]))) for other in [24, 40, 56, 72, 0, 16] * 2]
    assert results[0] == [24]
    assert results[-1] == [65]


def test_a_segment_is_helped_by_its_own_notes():
    chances = [{65: 0.8, 40: 0.2}] * 5 + [{40: 0.6, 65: 0.4}]
    assert programs(InstrumentPrior(VOCABULARY).choose(segment(chances))) == [65] * 6


def test_within_its_class_the_network_decides():
    prior = InstrumentPrior(VOCABULARY)
    prior.choose(segment([{40: 1.0}] * 8))
    assert programs(prior.choose(segment([{41: 0.6, 40: 0.4}]))) == [41]
    # of another class, the likeliest program
    assert programs(prior.choose(segment([{73: 0.5, 42: 0.3, 40: 0.2}]))) == [42]


def test_only_notes_that_begin_or_are_tied_count():
    prior = InstrumentPrior(VOCABULARY)
    events = [("program", 40), ("pitch", 60), ("pitch", 64), ("tie", 0), ("shift", 3), ("velocity", 0), ("program", 40)]
    events += [("pitch", 60), ("program", 73), ("velocity", 1), ("pitch", 70), ("drum", 36)]
    prior.choose(SegmentTokens(ids_of(*events), logits_of([{40: 1.0}, {40: 1.0}, {73: 1.0}])))
    np.testing.assert_allclose(prior.counts[[5, 9]], [2, 1], atol=1e-9)
    assert prior.counts.sum() == pytest.approx(3)


def test_a_segment_without_programs_changes_nothing():
    prior = InstrumentPrior(VOCABULARY)
    tokens = SegmentTokens(ids_of(("tie", 0), ("shift", 4), ("velocity", 1), ("drum", 36)), np.zeros((0, 128)))
    assert prior.choose(tokens).tolist() == tokens.ids.tolist()
    assert not prior.counts.any()
    empty = SegmentTokens(np.zeros(0, np.int32), np.zeros((0, 128), np.float32))
    assert len(prior.choose(empty)) == 0


@pytest.mark.parametrize(
    ("search", "hold", "use_programs", "expected"),
    [
        ("greedy", None, True, True),
        ("t5x", None, True, False),
        ("sample", None, True, False),
        ("greedy", 2.0, True, False),
        ("greedy", None, False, False),
    ],
)
def test_it_is_for_greedy_searches_of_networks_with_programs(search, hold, use_programs, expected):
    config = Config(vocabulary=VocabularyConfig(use_programs=use_programs))
    assert takes_prior(config, search, hold) is expected
