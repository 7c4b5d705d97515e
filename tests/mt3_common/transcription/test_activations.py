"""Onsets and offsets corrected by activations: each rule on notes, and ids that must stay what they mean."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.config import LOWEST_PITCH, PITCH_ROWS, Config, NetworkConfig, SpectrogramConfig, VocabularyConfig
from mt3_common.notes.decoder import NoteDecoder
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import EOS_ID, UNK_ID, Vocabulary
from mt3_common.transcription.activations import ONSET, SOUNDING, ActivationCorrector, has_activations

CONTEXT_FRAMES = 8
# 64 frames of 20 ms, 128 steps a segment
CONFIG = Config(
    network=NetworkConfig(pre_encoder_layers=2, pre_encoder_dim=6, context_frames=CONTEXT_FRAMES),
    spectrogram=SpectrogramConfig(hop_width=320),
    input_frames=64,
)
SECONDS = 1.28
VOCABULARY = Vocabulary(CONFIG.vocabulary)


def ids_of(*events, eos=True):
    """Model ids of (kind, value) pairs, and EOS."""
    ids = VOCABULARY.encode([VOCABULARY.index(kind, value) for kind, value in events])
    return np.append(ids, EOS_ID).astype(np.int32) if eos else ids


def activations(heard=(), onset=0.0):
    """Activations of a segment: (pitch, first frame, end) sound, and begin where they have a fourth number."""
    rows = np.zeros((64 + 2 * CONTEXT_FRAMES, PITCH_ROWS, 2), np.float32)
    rows[..., ONSET] = onset
    for pitch, first, end, *height in heard:
        row = rows[:, pitch - LOWEST_PITCH]
        row[CONTEXT_FRAMES + first : CONTEXT_FRAMES + end, SOUNDING] = 0.9
        for number in height:
            row[CONTEXT_FRAMES + first, ONSET] = number
    return rows


def corrected(*segments, config=CONFIG, ends=False, missing=0):
    """Notes of (ids, activations) of segments, onsets and offsets in frames, and the number of invalid ids.

    ends: whether the recording ends with the last one, which lacks so many samples.
    """
    hop = config.spectrogram.hop_width
    corrector, decoder = ActivationCorrector(config), NoteDecoder(Vocabulary(config.vocabulary), published=False)
    notes = []
    for number, (ids, rows) in enumerate(segments):
        is_last = ends and number == len(segments) - 1
        result = corrector.correct(ids, rows, len(segments) * 64 * hop - missing if is_last else None)
        assert result.dtype == np.int32
        notes += decoder.feed(result, number * SECONDS, None if is_last else (number + 1) * SECONDS)
    notes += decoder.finish()
    return [
        (round(note.onset / 0.02, 6), round(note.offset / 0.02, 6), note.pitch, note.program) for note in sorted(notes)
    ], decoder.invalid


def note(pitch, first, end, program=0):
    """Events of a note from one frame to another."""
    begin = [("shift", 2 * first)] * (first > 0)
    start = [*begin, ("program", program), ("velocity", 1), ("pitch", pitch)]
    return [*start, ("shift", 2 * end), ("velocity", 0), ("pitch", pitch)]


QUIET = ids_of(("tie", 0))


def test_an_onset_that_is_not_heard_goes_and_takes_its_offset_along():
    ids = ids_of(("tie", 0), *note(60, 10, 20), *note(64, 30, 40, 7))
    assert corrected((ids, activations([(60, 10, 20, 0.2), (64, 30, 40, 0.4)]))) == ([(30, 40, 64, 7)], 0)
    # two frames away are near enough, three are not
    assert corrected((ids, activations([(60, 12, 20, 0.4), (64, 33, 40, 0.4)]))) == ([(10, 20, 60, 0)], 0)
    # the frames before and after the segment count
    edges = ids_of(("tie", 0), *note(60, 0, 20), *note(64, 63, 64))
    heard = [(60, -1, 20, 0.4), (64, 65, 70, 0.4)]
    assert corrected((edges, activations(heard))) == ([(0, 20, 60, 0), (63, 64, 64, 0)], 0)


def test_an_onset_that_is_not_heard_does_not_cut_the_note_that_sounds():
    first = ids_of(("tie", 0), ("velocity", 1), ("pitch", 60))
    second = ids_of(("pitch", 60), ("tie", 0), *note(60, 10, 20))
    heard = activations([(60, 0, 64, 0.9)])
    notes, _ = corrected((first, heard), (second, activations([(60, 0, 20)])))
    assert notes == [(0, 84, 60, 0)]
    notes, _ = corrected((first, heard), (second, activations([(60, 0, 20), (60, 10, 20, 0.5)])))
    assert notes == [(0, 74, 60, 0), (74, 84, 60, 0)]


def test_a_clear_onset_is_added_under_the_program_of_the_nearest():
    ids = ids_of(("tie", 0), *note(60, 10, 20), *note(84, 40, 50, 73))
    heard = [(60, 10, 20, 0.9), (84, 40, 50, 0.9)]
    # nearer in pitch, nearer in time, and by both together
    for pitch, frame, program in ((86, 25, 73), (58, 25, 0), (74, 12, 0), (70, 40, 73)):
        notes, invalid = corrected((ids, activations([*heard, (pitch, frame, frame + 8, 0.85)])))
        assert (frame, frame + 8, pitch, program) in notes
        assert len(notes) == 3
        assert invalid == 0
    assert len(corrected((ids, activations([*heard, (70, 30, 40, 0.79)])))[0]) == 2
    # within 70 ms of an onset of its pitch it is that one
    for frame, count in ((13, 2), (14, 3)):
        assert len(corrected((ids, activations([*heard, (60, frame, 20, 0.9)])))[0]) == count
    # without any note there is no program
    assert corrected((QUIET, activations([(60, 10, 20, 0.9)]))) == ([], 0)


def test_the_top_of_an_onset_lies_between_frames():
    rows = activations([(60, 10, 20, 0.9), (72, 30, 40, 0.9)])
    rows[CONTEXT_FRAMES + 31, 72 - LOWEST_PITCH, ONSET] = 0.89
    notes, _ = corrected((ids_of(("tie", 0), *note(60, 10, 20)), rows))
    assert notes == [(10, 20, 60, 0), (30.5, 40, 72, 0)]


def test_a_missing_onset_at_a_boundary_is_the_next_segments_to_add():
    one, other = ids_of(("tie", 0), *note(60, 10, 20, 3)), ids_of(("tie", 0), *note(62, 0, 20, 3))
    heard = activations([(60, 10, 20, 0.9), (62, 62, 80, 0.9), (65, 62, 80, 0.9)])
    # the second segment sees the same onsets, two frames before its first; one is the decoder's
    after = activations([(62, -2, 20, 0.9), (65, -2, 15, 0.9)])
    notes, _ = corrected((one, heard), (other, after))
    assert notes == [(10, 20, 60, 3), (64, 79, 65, 3), (64, 84, 62, 3)]


def test_a_note_lasts_while_it_sounds():
    ids = ids_of(("tie", 0), *note(60, 10, 20), *note(64, 30, 40))
    heard = activations([(60, 10, 27, 0.9), (64, 30, 38, 0.9)])
    assert corrected((ids, heard))[0] == [(10, 27, 60, 0), (30, 40, 64, 0)]
    # but no longer than to its next onset
    again = ids_of(("tie", 0), *note(60, 10, 20), *note(60, 24, 30, 5))
    heard = activations([(60, 10, 30, 0.9), (60, 24, 30, 0.9)])
    assert corrected((again, heard))[0] == [(10, 24, 60, 0), (24, 30, 60, 5)]


def test_a_note_that_is_not_tied_goes_on_while_it_sounds():
    first = ids_of(("tie", 0), *note(60, 10, 60, 3))
    heard = activations([(60, 10, 80, 0.9)])
    assert corrected((first, heard), (QUIET, activations([(60, -8, 30)])))[0] == [(10, 94, 60, 3)]
    # over a whole segment, too
    through = activations([(60, -8, 72)])
    notes = corrected((first, heard), (QUIET, through), (QUIET, activations([(60, -8, 5)])))[0]
    assert notes == [(10, 133, 60, 3)]
    # one frame is not enough
    assert corrected((first, heard), (QUIET, activations([(60, -8, 1)])))[0] == [(10, 64, 60, 3)]
    # nor is it held beside the same pitch that the decoder ties under another program
    tied = ids_of(("program", 9), ("pitch", 60), ("tie", 0), ("shift", 20), ("velocity", 0), ("pitch", 60))
    assert corrected((first, heard), (tied, activations([(60, -8, 10)])))[0] == [(10, 74, 60, 3)]


def test_what_sounds_at_the_end_of_a_recording_ends_there():
    # the decoder ends it, begins it alone, ties it alone, or neither ties nor ends it; or the onset is added
    ended, begun = ids_of(("tie", 0), *note(60, 10, 50, 3)), ids_of(("tie", 0), *note(60, 10, 50, 3)[:-3])
    heard = activations([(60, 10, 80, 0.9), (64, 20, 80, 0.9)])
    expected = [(10, 64, 60, 3), (20, 64, 64, 3)], 0
    assert corrected((ended, heard), ends=True) == expected
    assert corrected((begun, heard), ends=True) == expected
    tied = ids_of(("program", 3), ("pitch", 60), ("tie", 0))
    for last in (QUIET, tied):
        notes = corrected((begun, heard), (last, activations([(60, -8, 72), (64, -8, 30)])), ends=True)
        assert notes == ([(10, 128, 60, 3), (20, 94, 64, 3)], 0)
    # it lasts as long as it sounds, a frame at least, and to its next onset at most
    assert corrected((begun, activations([(60, 10, 40, 0.9)])), ends=True) == ([(10, 40, 60, 3)], 0)
    assert corrected((begun, activations([(60, 10, 11, 0.9)])), ends=True) == ([(10, 11, 60, 3)], 0)
    again = ids_of(("tie", 0), *note(60, 10, 50, 3)[:-3], ("shift", 60), ("pitch", 60))
    heard = activations([(60, 10, 80, 0.9), (60, 30, 80, 0.9)])
    assert corrected((again, heard), ends=True) == ([(10, 30, 60, 3), (30, 64, 60, 3)], 0)


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 40])
@pytest.mark.parametrize("more", [0, 1, 160, 319])
def test_nothing_is_added_behind_the_end_of_a_recording(frames, more):
    """The pre-encoder hears the pitch go on a little where sound is cut off, and begin."""
    begun = ids_of(("tie", 0), *note(60, 10, 50, 3)[:-3])
    tied = ids_of(("program", 3), ("pitch", 60), ("tie", 0))
    samples = 320 * frames + more
    # steps are halves of frames
    end = math.ceil(2 * (64 + samples / 320)) / 2
    heard = activations([(60, -8, frames + 3, 0.9)])
    begun_late = [(72, first, frames + 4, 0.9) for first in range(frames - 2 + (more > 0), frames + 3)]
    for last in (QUIET, tied):
        for second in ([], *([one] for one in begun_late)):
            rows = np.maximum(heard, activations(second))
            segments = (begun, activations([(60, 10, 80, 0.9)])), (last, rows)
            (only, *others), _ = corrected(*segments, ends=True, missing=64 * 320 - samples)
            assert others == []
            # one frame is not enough to be held
            is_held = last is tied or samples > 320
            assert only == (10, end if is_held else 64, 60, 3)
    # what begins a little before is found
    if frames == 40:
        rows = np.maximum(heard, activations([(72, 36, 44, 0.9)]))
        notes, _ = corrected(
            (begun, activations([(60, 10, 80, 0.9)])), (tied, rows), ends=True, missing=64 * 320 - samples
        )
        assert notes[1] == (100, end, 72, 3)


def test_of_unisons_at_the_end_of_a_recording_each_ends_where_it_does():
    unison = [("program", 0), ("velocity", 1), ("pitch", 60), ("program", 48), ("pitch", 60)]
    ids = ids_of(("tie", 0), *unison, ("program", 0), ("pitch", 64), ("shift", 100), ("velocity", 0), ("pitch", 64))
    heard = activations([(60, 0, 30, 0.9), (64, 0, 50, 0.9)])
    expected = [(0, 30, 60, 0), (0, 30, 60, 48), (0, 50, 64, 0)]
    assert corrected((ids, heard), ends=True) == (expected, 0)
    # one of them is ended by the decoder
    one = ids_of(("tie", 0), *unison, ("shift", 40), ("velocity", 0), ("pitch", 60))
    assert corrected((one, activations([(60, 0, 30, 0.9)])), ends=True)[0] == [(0, 30, 60, 0), (0, 30, 60, 48)]


def test_what_activations_say_nothing_of_ends_at_the_last_event():
    """As MT3 has it: a pitch outside of the rows, and a tied note that does not sound."""
    last = [("shift", 90), ("velocity", 1), ("drum", 36)]
    high = ids_of(("tie", 0), ("velocity", 1), ("pitch", 119), *last)
    notes, _ = corrected((high, activations()), ends=True)
    assert notes[0] == (0, 45, 119, 0)
    tied = ids_of(("pitch", 70), ("tie", 0), *last)
    begun = ids_of(("tie", 0), ("velocity", 1), ("pitch", 70))
    notes, _ = corrected((begun, activations([(70, 0, 64, 0.9)])), (tied, activations()), ends=True)
    assert notes[0] == (0, 109, 70, 0)


def test_a_note_that_is_tied_under_another_program_ends_once():
    first = ids_of(("tie", 0), *note(60, 10, 50, 3)[:-3])
    heard = activations([(60, 10, 80, 0.9)])
    tie = [("program", 9), ("pitch", 60), ("tie", 0)]
    # struck again under that program
    again = ids_of(*tie, *note(60, 10, 20, 9))
    notes = corrected((first, heard), (again, activations([(60, -8, 20), (60, 10, 20, 0.9)])), (QUIET, activations()))
    assert notes == ([(10, 74, 60, 3), (74, 84, 60, 9)], 0)
    # ended under that program, while another player holds the pitch: nothing is left to hold
    both = ids_of(("tie", 0), *note(60, 10, 50, 3)[:-3], ("shift", 40), ("program", 5), ("pitch", 60))
    ends = ids_of(("program", 5), ("pitch", 60), *tie, ("shift", 20), ("velocity", 0), ("pitch", 60))
    heard = activations([(60, 10, 80, 0.9), (60, 20, 80, 0.9)])
    notes = corrected((both, heard), (ends, activations([(60, -8, 10)])), (QUIET, activations([(60, -8, 30)])))
    assert notes == ([(10, 74, 60, 3), (20, 158, 60, 5)], 0)


def test_what_the_pre_encoder_does_not_hear_of_stays():
    drums = [("velocity", 1), ("drum", 36), ("shift", 20), ("drum", 38)]
    low = [("shift", 40), ("program", 33), ("pitch", 10), ("shift", 60), ("velocity", 0), ("pitch", 10)]
    ids = ids_of(("tie", 0), *drums, *low)
    notes, invalid = corrected((ids, activations()))
    assert [entry[2] for entry in notes] == [36, 38, 10]
    assert notes[2][:2] == (20, 30)
    assert invalid == 0


def test_velocities_of_added_notes_are_those_of_the_nearest():
    config = dataclasses.replace(CONFIG, vocabulary=VocabularyConfig(num_velocity_bins=127))
    vocabulary = Vocabulary(config.vocabulary)
    events = [("tie", 0), ("shift", 20), ("velocity", 40), ("pitch", 60), ("shift", 40), ("velocity", 0), ("pitch", 60)]
    ids = vocabulary.encode([vocabulary.index(*event) for event in events])
    rows = activations([(60, 10, 20, 0.9), (65, 12, 20, 0.9)])
    notes = NoteDecoder(vocabulary, published=False).feed(ActivationCorrector(config).correct(ids, rows), 0.0)
    assert sorted(notes) == [Note(0.2, 0.4, 60, 40, 0, False), Note(0.24, 0.4, 65, 40, 0, False)]


ANY_EVENT = st.one_of(
    st.tuples(st.just("shift"), st.integers(0, 140)),
    st.tuples(st.just("pitch"), st.integers(0, 127)),
    st.tuples(st.just("pitch"), st.integers(60, 63)),
    st.tuples(st.just("velocity"), st.integers(0, 1)),
    st.tuples(st.just("program"), st.integers(0, 5)),
    st.tuples(st.just("drum"), st.integers(35, 40)),
    st.tuples(st.just("tie"), st.just(0)),
)
ANY_ID = st.one_of(st.integers(0, 3), st.integers(1391, 1535))


@st.composite
def any_segment(draw):
    """Ids of a segment: mostly in order, mostly with a tie token, sometimes ids without meaning."""
    events = draw(st.lists(ANY_EVENT, max_size=40))
    if draw(st.booleans()):
        events = sorted(events, key=lambda event: event[0] == "shift" and event[1])
    if draw(st.integers(0, 4)):
        events.insert(draw(st.integers(0, min(4, len(events)))), ("tie", 0))
    # before the first velocity of a recording MT3 has one of its own, which no token says
    events.insert(0, ("velocity", 1))
    ids = ids_of(*events, eos=draw(st.booleans())).tolist()
    for number in draw(st.lists(ANY_ID, max_size=2)):
        ids.insert(draw(st.integers(0, len(ids))), number)
    return np.array(ids, np.int32)


@settings(max_examples=400, deadline=None)
@given(st.lists(any_segment(), min_size=1, max_size=4))
def test_without_a_reason_to_correct_notes_stay_as_they_are(segments):
    """All onsets are half heard and no pitch sounds: nothing is dropped, added, or made longer."""
    corrector = ActivationCorrector(CONFIG)
    decoders = [NoteDecoder(VOCABULARY, published=False) for _ in range(2)]
    results = [[], []]
    for number, ids in enumerate(segments):
        times = number * SECONDS, (number + 1) * SECONDS
        for decoder, notes, own in zip(decoders, results, (ids, corrector.correct(ids, activations(onset=0.5)))):
            notes.append(sorted(decoder.feed(own, *times)))
            # onsets of one moment may change places with offsets
        assert {key for key, _ in decoders[0].begun.items()} == {key for key, _ in decoders[1].begun.items()}
    assert results[0] == results[1]


@settings(max_examples=200, deadline=None)
@given(st.lists(any_segment(), min_size=1, max_size=4), st.integers(0, 1000))
def test_any_ids_and_activations_make_notes_within_their_segments(segments, seed):
    rng = np.random.default_rng(seed)
    corrector, decoder = ActivationCorrector(CONFIG), NoteDecoder(VOCABULARY, published=False)
    for number, ids in enumerate(segments):
        rows = np.clip(rng.normal(0.4, 0.4, (64 + 2 * CONTEXT_FRAMES, PITCH_ROWS, 2)), 0, 1).astype(np.float32)
        result = corrector.correct(ids, rows)
        assert (result == EOS_ID).sum() == (ids == EOS_ID).sum()
        for entry in decoder.feed(result, number * SECONDS, (number + 1) * SECONDS):
            assert 0 <= entry.onset < entry.offset <= (number + 1) * SECONDS + 0.02


def test_ids_that_decoding_skips_are_counted_still():
    ids = ids_of(("tie", 0), *note(60, 10, 20), ("shift", 10), ("velocity", 1), ("pitch", 61)).tolist()
    ids.insert(3, 1500)
    plain = NoteDecoder(VOCABULARY, published=False)
    plain.feed(ids, 0.0)
    result = ActivationCorrector(CONFIG).correct(np.array(ids, np.int32), activations([(60, 10, 20, 0.9)]))
    decoder = NoteDecoder(VOCABULARY, published=False)
    assert [entry.pitch for entry in decoder.feed(result, 0.0)] == [60]
    assert decoder.invalid == plain.invalid == 3
    assert (result == UNK_ID).sum() == 3


@pytest.mark.parametrize(
    ("network", "vocabulary", "expected"),
    [
        ({"pre_encoder_layers": 1, "pre_encoder_dim": 4, "context_frames": 3}, {}, True),
        ({"pre_encoder_layers": 1, "pre_encoder_dim": 4, "context_frames": 2}, {}, False),
        ({"pre_encoder_layers": 1, "pre_encoder_dim": 4}, {}, False),
        ({"pre_encoder_layers": 1, "pre_encoder_dim": 4, "context_frames": 8}, {"use_ties": False}, False),
        ({}, {}, False),
    ],
)
def test_networks_that_hear_what_is_around_a_segment_have_activations(network, vocabulary, expected):
    config = Config(network=NetworkConfig(**network), vocabulary=VocabularyConfig(**vocabulary))
    assert has_activations(config) is expected


def test_what_lies_behind_the_segment_leaves_nothing_for_the_next_one():
    """Decoding drops a program token behind the segment's end, so the next note has another; the ids stay as given."""
    first = ids_of(("tie", 0), ("shift", 100), ("shift", 60), ("program", 33), ("pitch", 50), eos=True)
    second = ids_of(("tie", 0), ("shift", 20), ("pitch", 60), ("shift", 40), ("velocity", 0), ("pitch", 60), eos=True)
    corrector, decoder = ActivationCorrector(CONFIG), NoteDecoder(VOCABULARY, published=False)
    own = corrector.correct(first, activations(onset=0.5))
    assert own.tolist()[-len(first) + 1 :] == first.tolist()[1:]
    assert decoder.feed(own, 0.0, SECONDS) == []
    notes = decoder.feed(corrector.correct(second, activations(onset=0.5)), SECONDS, 2 * SECONDS)
    assert [(note.pitch, note.program) for note in notes] == [(60, 0)]
