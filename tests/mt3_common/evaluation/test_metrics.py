"""Measures of notes: held to mir_eval's own, to counts done by hand, and to what MT3 asks of programs and drums."""

import mir_eval
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_memory import memory_below

from mt3_common.evaluation import metrics
from mt3_common.notes.note import Note, trim_overlapping

NOTES = st.lists(
    st.builds(
        lambda onset, length, pitch, velocity, program, is_drum: Note(
            onset / 100, (onset + length) / 100, pitch, velocity, 0 if is_drum else program, is_drum
        ),
        st.integers(0, 400),
        st.integers(1, 100),
        st.integers(58, 64),
        st.integers(20, 127),
        st.sampled_from([0, 1, 9, 40]),
        st.booleans(),
    ),
    max_size=25,
)


def heard(notes):
    """Intervals (s) and pitches (Hz), as mir_eval takes notes."""
    return np.array([n[:2] for n in notes]), 440 * 2 ** ((np.array([n.pitch for n in notes]) - 69) / 12)


@given(NOTES, NOTES)
@settings(deadline=None, max_examples=60)
def test_onset_measures_are_mir_evals(references, estimates):
    ours = metrics.evaluate(references, estimates)
    pitched_references, expected = ([n for n in notes if not n.is_drum] for notes in (references, estimates))
    if not pitched_references or not expected:
        assert ours["onset"] == float(not pitched_references and not expected)
        return
    arrays = [*heard(pitched_references), *heard(expected)]
    precision, recall, f1, _ = mir_eval.transcription.precision_recall_f1_overlap(*arrays, offset_ratio=None)
    assert (ours["onset_precision"], ours["onset_recall"], ours["onset"]) == pytest.approx((precision, recall, f1))
    _, _, f1, _ = mir_eval.transcription.precision_recall_f1_overlap(*arrays)
    assert ours["onset_offset"] == pytest.approx(f1)
    assert ours["onset_offset_velocity"] <= ours["onset_offset"] <= ours["onset"]


@given(NOTES, NOTES, st.floats(0.2, 1), st.integers(-20, 20))
@settings(deadline=None, max_examples=60)
def test_the_velocity_measure_is_mir_evals(references, others, scale, shift):
    """Of estimates among which many are references, their velocities scaled and moved, unevenly."""
    moved = [n._replace(velocity=min(127, max(1, round(scale * n.velocity) + shift + n.pitch % 5))) for n in references]
    estimates = moved + others
    pitched_references, pitched_estimates = ([n for n in notes if not n.is_drum] for notes in (references, estimates))
    ours = metrics.evaluate(references, estimates)
    if not pitched_references or not pitched_estimates:
        assert ours["onset_offset_velocity"] == float(not pitched_references and not pitched_estimates)
        return
    arrays = []
    for notes in (pitched_references, pitched_estimates):
        arrays += [*heard(notes), np.array([n.velocity for n in notes])]
    expected = mir_eval.transcription_velocity.precision_recall_f1_overlap(*arrays)[:3]
    names = ("onset_offset_velocity_precision", "onset_offset_velocity_recall", "onset_offset_velocity")
    assert tuple(ours[name] for name in names) == pytest.approx(expected)


def test_velocities_count_by_how_they_rise_and_fall():
    references = [Note(t, t + 0.5, 60, velocity) for t, velocity in enumerate((20, 60, 100, 120))]
    halved = [note._replace(velocity=note.velocity // 2) for note in references]
    assert metrics.evaluate(references, halved)["onset_offset_velocity"] == 1
    # the loudest as the quietest
    wrong = [*references[:3], references[3]._replace(velocity=1)]
    values = metrics.evaluate(references, wrong)
    assert values["onset_offset"] == 1 > values["onset_offset_velocity"]


@given(NOTES, NOTES)
@settings(deadline=None, max_examples=30)
def test_matched_notes_are_those_that_the_measures_count(references, estimates):
    pairs = metrics.matched_notes(references, estimates)
    for side in (0, 1):
        assert len({pair[side] for pair in pairs}) == len(pairs)
    for i, j in pairs:
        one, other = references[i], estimates[j]
        assert (one.pitch, one.is_drum) == (other.pitch, other.is_drum)
        assert abs(one.onset - other.onset) <= metrics.ONSET_TOLERANCE + 1e-4
    ours = metrics.evaluate(references, estimates)
    for name, is_drum in (("onset", False), ("drums", True)):
        kind = [note for note in references if note.is_drum == is_drum]
        if kind:
            assert sum(references[i].is_drum == is_drum for i, _ in pairs) / len(kind) == ours[f"{name}_recall"]


@given(NOTES)
@settings(deadline=None, max_examples=30)
def test_the_reference_itself_is_perfect(notes):
    # quiet references do not count in frames
    notes = trim_overlapping([note._replace(velocity=max(31, note.velocity)) for note in notes])
    for name, value in metrics.evaluate(notes, notes).items():
        assert value == pytest.approx(1.0), name


@given(NOTES, NOTES)
@settings(deadline=None, max_examples=40)
def test_finer_programs_never_score_higher(references, estimates):
    flat, classes, full = (metrics.program_score(references, estimates, g).recall for g in metrics.GRANULARITIES)
    assert full <= classes + 1e-9 <= flat + 2e-9


def test_programs_count_as_mt3_counts_them():
    references = [Note(0, 1, 60, 100, 0), Note(1, 2, 62, 100, 8), Note(0.5, 0.6, 36, 100, 0, True)]
    estimates = [
        Note(0, 1, 60, 100, 5),  # another piano: right in its class only
        Note(1, 2, 62, 100, 40),  # a violin for a celesta: wrong but for flat
        Note(0.51, 0.52, 36, 100, 0, True),  # drums have no end
    ]
    assert metrics.program_score(references, estimates, "flat").f1 == pytest.approx(1.0)
    assert metrics.program_score(references, estimates, "midi_class").f1 == pytest.approx(2 / 3)
    assert metrics.program_score(references, estimates, "full").f1 == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="granularity"):
        metrics.program_score(references, estimates, "class")


def test_frames_leave_out_drums_and_quiet_notes():
    references = [Note(0, 1, 60, 100), Note(0, 1, 61, 30), Note(0, 1, 36, 100, 0, True)]
    assert metrics.frame_score(references, [Note(0, 0.5, 60, 100)]) == pytest.approx((1.0, 0.5, 2 / 3))
    # 50 ms at least: 3 frames of 62
    assert metrics.frame_score(references, [Note(0, 0.001, 60, 100)]).recall == pytest.approx(3 / 62)


def test_drum_classes_do_not_ask_which_of_a_class():
    """Two bass drums, two snares; a bass drum and a tom are two classes."""
    references = [
        Note(t, t + 0.1, pitch, 100, 0, True) for t, pitch in ((0, 35), (0, 36), (0.5, 40), (1, 41), (1.5, 42))
    ]
    estimates = [Note(t, t + 0.1, pitch, 100, 0, True) for t, pitch in ((0, 36), (0.5, 38), (1, 36), (1.5, 42))]
    values = metrics.evaluate(references, estimates)
    assert (values["drum_class_precision"], values["drum_class_recall"]) == (0.75, 0.75)
    assert (values["drums_precision"], values["drums_recall"]) == (0.5, 0.4)
    assert values["onset_class"] == values["drums"]


@given(NOTES, NOTES)
@settings(deadline=None, max_examples=60)
def test_notes_match_pitch_by_pitch_as_mir_eval_matches_them_together(references, estimates):
    sides = [[note for note in notes if not note.is_drum] for notes in (references, estimates)]
    arrays = []
    for notes in sides:
        arrays.append(np.array([(n.onset, max(n.offset, n.onset + 1e-3)) for n in notes]).reshape(-1, 2))
        arrays.append(440 * 2 ** ((np.array([n.pitch for n in notes]) - 69) / 12))
    whole = mir_eval.transcription.precision_recall_f1_overlap
    with_velocities = mir_eval.transcription_velocity.precision_recall_f1_overlap
    velocities = [np.array([n.velocity for n in notes]) for notes in sides]
    for name, of, inputs, ratio in (
        ("onset", whole, arrays, None),
        ("onset_offset", whole, arrays, 0.2),
        ("onset_offset_velocity", with_velocities, [*arrays[:2], velocities[0], *arrays[2:], velocities[1]], 0.2),
    ):
        if all(sides):
            expected = of(*inputs, offset_ratio=ratio)[:3]
            values = metrics.evaluate(references, estimates)
            assert (values[f"{name}_precision"], values[f"{name}_recall"], values[name]) == pytest.approx(expected)


def test_an_hour_of_dense_music_is_measured_in_little_memory():
    """All pitches together would take 30,000 by 30,000 comparisons, several times over."""
    notes = [Note(t, t + 0.2, 21 + index % 88, 100) for index, t in enumerate(np.arange(30000) / 8)]
    with memory_below(3e8):
        assert metrics.evaluate(notes, notes)["onset_offset"] == 1.0


def test_two_drums_of_a_class_at_about_one_time_are_one_hit():
    """Decoding joins those of one step, so one that is a few milliseconds later is none that could be found."""
    references = [Note(t, t + 0.1, pitch, 100, 0, True) for t, pitch in ((1, 36), (1.003, 35), (1.025, 35))]
    for estimates in (references, [references[0], references[2]]):
        assert metrics.evaluate(references, estimates)["drum_class"] == 1.0
    assert metrics.evaluate(references, references[:1])["drum_class_recall"] == 0.5


def test_drum_moments_do_not_ask_which_drum():
    references = [Note(t, t + 0.1, 36, 100, 0, True) for t in (0.0, 0.5, 1.0)]
    references.append(Note(0.51, 0.6, 42, 100, 0, True))
    estimates = [Note(0.0, 0.1, 38, 100, 0, True), Note(0.54, 0.6, 42, 100, 0, True), Note(2.0, 2.1, 36, 1, 0, True)]
    assert metrics.drum_onset_score(references, estimates) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert metrics.evaluate(references, estimates)["drums"] == pytest.approx(2 / 7)


def test_confidence_interval_holds_the_mean_and_narrows():
    rng = np.random.default_rng(1)
    few, many = rng.random(8), rng.random(200)
    for values in (few, many):
        low, high = metrics.confidence_interval(values)
        assert low < values.mean() < high
    assert np.ptp(metrics.confidence_interval(many)) < np.ptp(metrics.confidence_interval(few))


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 200), st.integers(0, 40), st.integers(60, 62), st.sampled_from([20, 80])),
            max_size=12,
        ),
        min_size=2,
        max_size=2,
    )
)
def test_the_frame_score_counts_cells_of_pitch_and_frame(sides):
    references, estimates = (
        [Note(first / 50, (first + length) / 50, pitch, velocity) for first, length, pitch, velocity in side]
        for side in sides
    )

    def cells(notes):
        return {
            (note.pitch, frame)
            for note in notes
            for frame in range(int(note.onset * 62.5), int(max(note.offset, note.onset + 0.05) * 62.5))
        }

    reference, estimate = cells(note for note in references if note.velocity > 30), cells(estimates)
    wanted = metrics.score(len(reference & estimate), len(reference), len(estimate))
    assert metrics.frame_score(references, estimates) == wanted


def test_a_note_of_years_takes_no_memory():
    assert metrics.frame_score([Note(0, 1e9, 60, 100)], [Note(0, 1e9, 60, 100)]).f1 == 1
