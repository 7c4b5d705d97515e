"""The tie rule, the decode path matrix and the effect on notes, each with faults that it must see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mt3 import decode as jax_decode
from mt3_common.notes.note import Note
from parity.compare import decoding, results
from parity.sides import record
from parity.trace import inputs
from torch_mt3 import decode as torch_decode


@pytest.fixture(scope="module")
def sides(golden_checkpoint):
    return tuple(record.load_side(name, golden_checkpoint) for name in ("jax", "torch"))


@pytest.fixture(scope="module")
def golden_checkpoint():
    from pathlib import Path

    return str(Path(__file__).parents[2] / "golden" / "model" / "checkpoints" / "t5x_zarr")


def test_every_path_of_both_sides_is_within_budget(sides, decoded):
    # long enough for both rings to grow (64 and 128) and to come round
    given = inputs.with_tokens(decoded["in/frames"][:1], sides[0].config, 150)
    given["decoder_target_tokens"] = np.ones_like(given["decoder_target_tokens"])
    rows = decoding.compare_decode_path(*sides, given, {"float64": 150, "float32": 150})
    assert [row.name for row in rows if row.verdict != "same"] == []
    # two precisions, two sides: forward, steps, keys and values of two attentions in three layers; less the truth
    assert len(rows) == 2 * 2 * (2 + 12) - 1


class Late:
    """A side whose cached steps see every position one too late."""

    framework = "late"

    def __init__(self, side):
        self.side = side
        self.logits, self.observe = side.logits, side.observe

    def cached(self, frames, tokens, precision):
        tokens = np.concatenate([tokens[:, :1], tokens[:, :-1]], axis=1)
        return self.side.cached(frames, tokens, precision)


def test_a_cache_off_by_one_is_found(sides, decoded):
    given = inputs.with_tokens(decoded["in/frames"][:1], sides[0].config, 12)
    given["decoder_target_tokens"] = np.ones_like(given["decoder_target_tokens"])
    rows = decoding.compare_decode_path(sides[0], Late(sides[1]), given, {"float64": 12, "float32": 12})
    bad = [row for row in rows if row.verdict != "same"]
    assert bad[0].name == "late: cached steps, positions 0..11"
    assert {row.name.split(":")[0] for row in bad} == {"late"}
    # what the frames made is right
    assert not [row for row in bad if "prefill" in row.name]


class Stuck:
    """A side whose cached steps see id 3 in place of every id from a position on."""

    framework = "stuck"

    def __init__(self, side, position):
        self.side, self.position = side, position
        self.logits, self.observe = side.logits, side.observe

    def cached(self, frames, tokens, precision):
        tokens = tokens.copy()
        tokens[:, self.position :] = 3
        return self.side.cached(frames, tokens, precision)


def test_the_first_wrong_position_is_named(sides, decoded):
    given = inputs.with_tokens(decoded["in/frames"][:1], sides[0].config, 12)
    given["decoder_target_tokens"] = np.ones_like(given["decoder_target_tokens"])
    rows = decoding.compare_decode_path(sides[0], Stuck(sides[1], 7), given, {"float64": 12, "float32": 12})
    bad = [row for row in rows if row.verdict != "same"]
    assert {row.note for row in bad} == {"wrong from position 7 on"}
    [sentence] = decoding.explain_decode_path(rows)
    assert sentence.startswith("decode path of stuck: cached steps are wrong from position 7 on (float64)")
    assert "layer 0 are wrong already" in sentence


@pytest.mark.parametrize("chosen", ["first", "last"])
@pytest.mark.parametrize("kind", ["jax", "torch"])
def test_a_row_that_takes_the_age_of_another_is_found(sides, decoded, monkeypatch, kind, chosen):
    """As in a batch whose rows begin their segments at different steps."""
    decode = jax_decode if kind == "jax" else torch_decode
    step = decode.step

    def of_one_age(weights, cache, tokens):
        age = cache.age * 0 + (cache.age[0] if chosen == "first" else cache.age[-1])
        logits, after = step(weights, cache._replace(age=age), tokens)
        return logits, after._replace(age=cache.age + 1)

    monkeypatch.setattr(decode, "step", of_one_age)
    given = inputs.with_tokens(decoded["in/frames"][:1], sides[0].config, 48)
    given["decoder_target_tokens"] = np.ones_like(given["decoder_target_tokens"])
    rows = decoding.compare_decode_path(*sides, given, {"float64": 48, "float32": 48})
    bad = [row for row in rows if row.verdict != "same"]
    assert f"{kind}: cached steps, positions 0..47" in {row.name for row in bad}
    assert {row.name.split(":")[0] for row in bad} == {kind}
    assert {row.precision for row in bad} == {"float64" if chosen == "first" else "float32"}


class Spoken:
    """A side that says what it is told: logits (l, vocab) in float32, with the same in float64 where it is asked."""

    framework = "spoken"

    def __init__(self, logits, exact=None, steps=None):
        self.given, self.exact = logits, exact
        self.steps = logits if steps is None else steps

    def cached(self, frames, tokens, precision):
        return self.steps[np.newaxis], {}

    def logits(self, inputs, precision):
        return (self.given if precision == "float32" else self.exact)[np.newaxis]


def logits(*rows):
    return np.array(rows, np.float32)


FRAMES = np.zeros((1, 2, 2), np.float32)


def test_a_tie_is_excused_and_the_rest_still_counts():
    exact = logits([0, 5, 5 + 1e-6, 0], [9, 0, 0, 0], [0, 0, 0, 7.0]).astype(np.float64)
    reference = exact + np.array([[0, 2e-6, 0, 0], [1e-6, 0, 0, 0], [0, 0, 0, 1e-6]])
    candidate = exact + np.array([[0, 0, 2e-6, 0], [1e-6, 0, 0, 0], [0, 0, 0, 1e-6]])
    ids = ([np.array([1, 0, 3], np.int32)], [np.array([2, 0, 0], np.int32)])
    rows = decoding.compare_tokens(Spoken(reference, exact), Spoken(candidate), FRAMES, ids)
    assert [row.verdict for row in rows] == ["same", "same"]
    assert rows[0].note.startswith("parted at position 0 of 3: tie")
    assert rows[1].note == "2 of 3 equal, 1 tie, 0 real"
    # the same tie, and behind it, on the same prefix, another token without any doubt
    candidate[2] = [0, 0, 7, 0]
    rows = decoding.compare_tokens(Spoken(reference, exact), Spoken(candidate), FRAMES, ids)
    assert [row.verdict for row in rows] == ["same", "different"]
    assert "1 of 3 equal, 1 tie, 1 real; first at segment 0, position 2" in rows[1].note


def test_a_wrong_candidate_cannot_make_its_own_noise():
    exact = np.array([0.0, 5.0, 4.0])
    assert decoding.tie_rule(exact, exact + 1e-6, np.array([0.0, 4.0, 5.0]))[0] is False


def test_a_cached_path_that_parts_alone_is_real():
    exact = np.zeros((1, 4))
    exact[0, 1] = 5
    side = Spoken(exact + 1e-7, exact)
    ids = ([np.array([1], np.int32)], [np.array([2], np.int32)])
    rows = decoding.compare_tokens(side, side, FRAMES, ids)
    assert [row.verdict for row in rows] == ["different", "same"]
    assert "the cached path alone" in rows[0].note


@pytest.mark.parametrize(("margin", "verdict"), [(1e-6, "same"), (1e-3, "different")])
def test_a_tie_in_the_cached_path_alone_is_judged_by_its_own_noise(margin, verdict):
    """Both forward passes choose id 1; the candidate's cached steps, whose rounding is larger, choose id 2."""
    exact = np.array([[0.0, 5.0, 5.0 - margin, 0.0]])
    forward, steps = exact + 1e-8, exact.copy()
    steps[0, 2] = 5.0 + 1e-6
    ids = ([np.array([1], np.int32)], [np.array([2], np.int32)])
    # The reference's own cached steps are off by as much, on another id.
    own = exact + np.array([[2e-6, 0, 0, 0]])
    rows = decoding.compare_tokens(Spoken(forward, exact, own), Spoken(forward, exact, steps), FRAMES, ids)
    assert rows[0].verdict == verdict
    assert f"{'tie' if verdict == 'same' else 'real'}, the cached path alone" in rows[0].note


def test_a_wrong_cache_cannot_make_its_own_noise():
    exact = np.array([[0.0, 5.0, 5.0 - 1e-5, 0.0]])
    steps = exact + np.array([[0, 0, 1.0, 0]])
    ids = ([np.array([1], np.int32)], [np.array([2], np.int32)])
    side = Spoken(exact + 1e-8, exact)
    rows = decoding.compare_tokens(side, Spoken(exact + 1e-8, exact, steps), FRAMES, ids)
    assert rows[0].verdict == "different"


def test_no_tokens_at_all_is_not_the_same():
    side = Spoken(np.zeros((0, 4)))
    rows = decoding.compare_tokens(side, side, FRAMES[:0], ([], []))
    assert rows[-1].verdict == "different"


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_first_parting(a, b):
    result = decoding.first_parting(np.array(a), np.array(b))
    if a == b:
        assert result is None
    else:
        assert a[:result] == b[:result]
        assert a[result : result + 1] != b[result : result + 1]


def note(onset, pitch=60, program=0, is_drum=False):
    return Note(onset, onset + 0.1, pitch, 100, program, is_drum)


def test_note_effect():
    reference = [note(0.0), note(1.0), note(2.0, is_drum=True), note(3.0, program=40)]
    assert set(decoding.note_effect(reference, reference).values()) == {1.0}
    assert decoding.note_effect([], []) == {"onset": 1.0, "pitch": 1.0, "program": 1.0}
    assert decoding.note_effect(reference, []) == {"onset": 0.0, "pitch": 0.0, "program": 0.0}
    candidate = [note(0.05), note(1.06), note(2.0), note(3.0, program=41)]
    effect = decoding.note_effect(reference, candidate)
    assert effect == {"onset": 0.75, "pitch": 0.5, "program": 0.25}


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
)
def test_onset_effect_is_mir_evals(a, b):
    transcription = pytest.importorskip("mir_eval.transcription")
    # hundredths of a second, as onsets are; sevenths avoid differences of exactly 50 ms, where rounding decides
    a, b = [x / 100 for x in sorted(a)], [x / 100 + 1 / 700 for x in sorted(b)]
    intervals = [np.array([[x, x + 0.1] for x in side]) for side in (a, b)]
    expected = transcription.precision_recall_f1_overlap(
        intervals[0], np.full(len(a), 440.0), intervals[1], np.full(len(b), 440.0), offset_ratio=None
    )[2]
    result = decoding.note_effect([note(x) for x in a], [note(x) for x in b])
    assert result["pitch"] == pytest.approx(expected)


def test_notes_row(sides):
    config = sides[0].config
    # velocity on, pitch 60 at 0 s and at 0.5 s; one side plays another pitch
    on, pitch = 1133, 1004 + 60
    reference, candidate = [on, pitch, 53, pitch, 1], [on, pitch, 53, pitch + 1, 1]
    ids = ([np.array(reference)], [np.array(candidate)])
    tie = np.array([1134])
    ids = tuple([np.concatenate([tie, side[0]])] for side in ids)
    rows = decoding.compare_notes(config, [0.0], ids, [results.Row("tokens", "a", "different")])
    assert rows[0].verdict == "different"
    assert "pitch F1 0.500" in rows[0].note
    rows = decoding.compare_notes(config, [0.0], ids, [results.Row("tokens", "a", "same")])
    assert rows[0].verdict == "same"
    assert "ties only" in rows[0].note
    rows = decoding.compare_notes(config, [0.0], (ids[0], ids[0]), [])
    assert rows[0].note == "2 notes, equal, from 6 tokens; 1 of 1 segment ended"
