"""Notes to ids and back, against what MT3 computed, and each way in which ports went wrong."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.audio.segments import start_times as exact_starts
from mt3_common.config import PRESETS
from mt3_common.notes.decoder import NoteDecoder, decode_segments
from mt3_common.notes.encoder import NoteEncoder, encode_segments
from mt3_common.notes.note import Note, check_notes, trim_overlapping
from mt3_common.notes.vocabulary import EOS_ID, PAD_ID, UNK_ID, Vocabulary

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "features" / "notes.json").read_text())
VOCABULARIES = {model: Vocabulary(config.vocabulary) for model, config in PRESETS.items()}
MT3 = VOCABULARIES["mt3"]


def golden_note(fields):
    names = ("start_time", "end_time", "pitch", "velocity", "program", "is_drum")
    return Note(*(fields[name] for name in names))


def golden_ids(tokens):
    """Ids of codec tokens, which in the hostile streams include -2 (invalid) and numbers past the vocabulary."""
    return [token + 3 if token >= 0 else UNK_ID for token in tokens]


def frames_of(seconds):
    return round(seconds * 16000) // 128 + 1


def start_times(count, config):
    times = np.arange(count) * config.input_frames / config.spectrogram.frames_per_second
    return times - times % (1 / config.vocabulary.steps_per_second)


def ids_of(*events, model="mt3"):
    """Ids of ("pitch", 60)-like pairs and of plain ids."""
    vocabulary = VOCABULARIES[model]
    return [event if isinstance(event, int) else vocabulary.index(*event) + 3 for event in events]


def steps_of(note):
    return note._replace(onset=round(note.onset * 100), offset=round(note.offset * 100))


SHIFT = {steps: ("shift", steps) for steps in range(1001)}
ON, OFF, TIE = ("velocity", 1), ("velocity", 0), ("tie", 0)
C, E, G = ("pitch", 60), ("pitch", 64), ("pitch", 67)


class TestGolden:
    @pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['model']}-{case['seconds']}")
    def test_trim_encode_decode(self, case):
        config, vocabulary = PRESETS[case["model"]], VOCABULARIES[case["model"]]
        notes = [golden_note(fields) for fields in case["notes"]]
        assert trim_overlapping(notes) == [golden_note(fields) for fields in case["trimmed"]]

        encoded = encode_segments(notes, frames_of(case["seconds"]), config, append_eos=False)
        assert [ids.tolist() for ids in encoded] == [segment["ids"] for segment in case["segments"]]
        assert all(ids.dtype == np.int32 for ids in encoded)
        assert [vocabulary.decode(ids).tolist() for ids in encoded] == [s["tokens"] for s in case["segments"]]

        decoded = decode_segments([(s["start_time"], s["ids"]) for s in case["segments"]], vocabulary)
        assert decoded.notes == [golden_note(fields) for fields in case["decoded"]]
        assert decoded.instruments == [fields["instrument"] for fields in case["decoded"]]
        assert (decoded.invalid, decoded.dropped) == (case["invalid"], case["dropped"])

    @pytest.mark.parametrize("number", range(len(GOLDEN["hostile"])))
    def test_hostile_streams(self, number):
        case = GOLDEN["hostile"][number]
        segments = [(segment["start_time"], golden_ids(segment["tokens"])) for segment in case["segments"]]
        decoded = decode_segments(segments, VOCABULARIES[case["model"]])
        assert decoded.notes == [golden_note(fields) for fields in case["decoded"]]
        assert decoded.instruments == [fields["instrument"] for fields in case["decoded"]]
        assert (decoded.invalid, decoded.dropped) == (case["invalid"], case["dropped"])

    def test_covers_both_models_and_every_kind_of_fault(self):
        for kind in ("cases", "hostile"):
            assert {case["model"] for case in GOLDEN[kind]} == {"mt3", "ismir2021"}
        assert all(any(case[count] for case in GOLDEN["hostile"]) for count in ("invalid", "dropped", "decoded"))


class TestDecoding:
    def decode(self, *segments):
        return decode_segments([(start, ids_of(*events)) for start, events in segments], MT3)

    def test_without_eos_the_whole_segment_counts(self):
        decoded = self.decode((0.0, [TIE, ON, C, SHIFT[50], OFF, C]))
        assert decoded.notes == [Note(0.0, 0.5, 60, 127, 0, False)]
        assert decoded[2:] == (0, 0)

    def test_what_follows_eos_is_neither_decoded_nor_counted(self):
        assert self.decode((0.0, [TIE, EOS_ID, OFF, C, UNK_ID])) == ([], [], 0, 0)

    def test_pad_unk_and_extra_ids_are_counted_and_skipped(self):
        decoded = self.decode((0.0, [TIE, PAD_ID, ON, UNK_ID, C, 1391, SHIFT[50], 1535, OFF, C]))
        assert decoded.notes == [Note(0.0, 0.5, 60, 127, 0, False)]
        assert decoded[2:] == (4, 0)

    def test_shifts_in_a_row_add_up_and_later_ones_begin_again(self):
        decoded = self.decode((0.0, [TIE, SHIFT[10], SHIFT[20], ON, C, SHIFT[40], OFF, C]))
        assert decoded.notes == [Note(0.3, 0.4, 60, 127, 0, False)]

    def test_an_id_outside_the_vocabulary_does_not_part_two_shifts(self):
        decoded = self.decode((0.0, [TIE, SHIFT[10], UNK_ID, SHIFT[20], ON, C, SHIFT[40], OFF, C]))
        assert decoded.notes == [Note(0.3, 0.4, 60, 127, 0, False)]

    def test_backward_shifts_are_skipped_and_counted(self):
        decoded = self.decode((0.0, [TIE, SHIFT[50], ON, C, SHIFT[20], E, SHIFT[70], OFF, C]))
        assert decoded.notes == [Note(0.5, 0.7, 60, 127, 0, False)]
        assert decoded.invalid == 1

    def test_the_next_beginning_itself_is_not_past_it(self):
        events = [TIE, ON, C, SHIFT[204], OFF, C, SHIFT[205], ON, E]
        decoded = self.decode((0.0, events), (2.04, [TIE]))
        assert decoded.notes == [Note(0.0, 2.04, 60, 127, 0, False)]
        assert (decoded.invalid, decoded.dropped) == (0, 3)

    def test_the_last_segment_has_no_end(self):
        decoded = self.decode((0.0, [TIE, SHIFT[1000], SHIFT[1000], ON, C]))
        assert [note.onset for note in decoded.notes] == [20.0]
        assert decoded.dropped == 0

    def test_ties_end_what_they_do_not_name_at_the_beginning_of_the_segment(self):
        decoded = self.decode(
            (0.0, [TIE, ON, C, E, G]), (2.04, [("program", 0), E, G, TIE, SHIFT[10], OFF, G]), (4.09, [E, TIE])
        )
        ends = [(note.pitch, note.offset) for note in decoded.notes]
        assert ends == [(60, 2.04), (67, 2.04 + 0.1), (64, 4.09)]
        assert decoded.invalid == 0

    def test_a_tie_of_what_does_not_sound_or_is_tied_already_is_counted(self):
        decoded = self.decode((0.0, [TIE, ON, C]), (2.04, [C, C, E, TIE, TIE]))
        assert decoded.invalid == 3

    def test_without_a_tie_token_pitches_are_lost_drums_are_not_and_notes_sound_on(self):
        decoded = self.decode(
            (0.0, [TIE, ON, C]), (2.04, [SHIFT[10], E, ("drum", 36), SHIFT[20], OFF, C]), (4.09, [C, TIE])
        )
        assert [(note.pitch, note.is_drum) for note in decoded.notes] == [(36, True), (60, False)]
        assert decoded.notes[1].offset == 4.09
        assert decoded.invalid == 1

    def test_velocity_and_program_hold_across_segments(self):
        decoded = self.decode(
            (0.0, [TIE, ("program", 40), ON, C]), (2.04, [TIE, E]), (4.09, [TIE, OFF, SHIFT[5], E, C])
        )
        assert [(note.pitch, note.program) for note in decoded.notes] == [(60, 40), (64, 40)]

    def test_velocity_is_100_until_one_is_given(self):
        assert [note.velocity for note in self.decode((0.0, [TIE, C, ON, E])).notes] == [100, 127]

    def test_127_velocity_bins(self):
        ids = ids_of(("velocity", 77), C, SHIFT[50], OFF, C, model="ismir2021")
        assert decode_segments([(0.0, ids)], VOCABULARIES["ismir2021"]).notes == [Note(0.0, 0.5, 60, 77, 0, False)]

    def test_the_piano_model_has_no_ties(self):
        segments = [(0.0, ids_of(("velocity", 9), C, model="ismir2021")), (4.09, ids_of(TIE, E, model="ismir2021"))]
        decoded = decode_segments(segments, VOCABULARIES["ismir2021"])
        assert [note.onset for note in decoded.notes] == [0.0, 4.09]
        assert decoded.invalid == 1

    def test_a_drum_does_not_touch_program_9_at_its_pitch(self):
        drum = ("drum", 60)
        decoded = self.decode((0.0, [TIE, ("program", 9), ON, C, SHIFT[10], drum, SHIFT[20], drum, SHIFT[50], OFF, C]))
        assert [(note.onset, note.offset, note.program, note.is_drum) for note in decoded.notes] == [
            (0.1, 0.1 + 0.01, 0, True),
            (0.2, 0.2 + 0.01, 0, True),
            (0.0, 0.5, 9, False),
        ]
        assert decoded.instruments == [9, 9, 0]

    def test_drums_have_no_end(self):
        decoded = self.decode((0.0, [TIE, ON, ("drum", 36), SHIFT[10], OFF, ("drum", 36)]))
        assert len(decoded.notes) == 1
        assert decoded.invalid == 1

    def test_a_note_on_a_sounding_pitch_ends_it(self):
        decoded = self.decode((0.0, [TIE, ON, C, SHIFT[30], C, SHIFT[50], OFF, C, C]))
        assert [(note.onset, note.offset) for note in decoded.notes] == [(0.0, 0.3), (0.3, 0.5)]
        assert decoded.invalid == 1

    def test_no_note_is_shorter_than_a_step(self):
        assert self.decode((0.0, [TIE, ON, C, OFF, C])).notes == [Note(0.0, 0.01, 60, 127, 0, False)]

    def test_what_still_sounds_ends_at_one_time(self):
        decoded = self.decode((0.0, [TIE, ON, C, SHIFT[100], E]))
        assert [(note.pitch, note.offset) for note in decoded.notes] == [(60, 1.01), (64, 1.01)]

    def test_segments_are_put_in_order_of_time(self):
        first, second = (0.0, ids_of(TIE, ON, C)), (2.04, ids_of(TIE))
        assert decode_segments([second, first], MT3) == decode_segments([first, second], MT3)
        assert decode_segments([first, second], MT3).notes[0].offset == 2.04

    def test_nothing_gives_nothing(self):
        assert decode_segments([], MT3) == ([], [], 0, 0)


class TestNoteDecoder:
    def test_says_what_sounds_as_a_tie_section_would(self):
        decoder = NoteDecoder(MT3)
        assert decoder.sounding == []
        decoder.feed(ids_of(TIE, ("program", 40), ON, E, ("program", 8), G, C, ("drum", 36)), 0.0, 2.04)
        assert decoder.sounding == [(60, 8), (67, 8), (64, 40)]
        decoder.finish()
        assert decoder.sounding == []

    def test_gives_each_note_when_it_has_ended(self):
        decoder = NoteDecoder(MT3)
        assert decoder.feed(ids_of(TIE, ON, C, E), 0.0, 2.04) == []
        assert [note.pitch for note in decoder.feed(ids_of(E, TIE), 2.04, 4.09)] == [60]
        assert [note.pitch for note in decoder.finish()] == [64]

    def test_writes_what_sounds_as_a_tie_section_of_a_given_length(self):
        decoder = NoteDecoder(MT3)
        assert decoder.tie_section(9).tolist() == ids_of(TIE)
        decoder.feed(ids_of(TIE, ("program", 40), ON, E, ("program", 8), G, C, ("drum", 36)), 0.0, 2.04)
        assert decoder.tie_section(7).tolist() == ids_of(("program", 8), C, G, ("program", 40), E, TIE)
        assert decoder.tie_section(6).tolist() == ids_of(("program", 8), C, G, TIE)
        assert decoder.tie_section(2).tolist() == ids_of(TIE)

    def test_only_named_programs_play(self):
        """Program 0 holds until the first program token, and what it would play makes no sense either."""
        decoder = NoteDecoder(MT3, programs={8})
        notes = decoder.feed(ids_of(TIE, ON, C, ("program", 8), E, ("drum", 36)), 0.0) + decoder.finish()
        assert [(note.pitch, note.program, note.is_drum) for note in notes] == [(36, 0, True), (64, 8, False)]
        assert decoder.invalid == 1

    def test_what_is_said_twice_at_a_time_is_two_notes_or_one(self):
        """MT3 has two; a network that is caught in a loop would leave hundreds."""
        hit = ("drum", 36)
        twice = ids_of(TIE, ON, C, C, hit, hit, OFF, C, ON, C, ("shift", 50), C, hit)
        notes = NoteDecoder(MT3).feed(twice, 0.0)
        assert [(note.onset, note.pitch) for note in notes] == [(0, 60), (0, 36), (0, 36), (0, 60), (0, 60), (0.5, 36)]
        decoder = NoteDecoder(MT3, published=False)
        notes = decoder.feed(twice, 0.0)
        assert [(note.onset, note.offset, note.pitch) for note in notes] == [
            (0, 0.01, 36),
            (0, 0.01, 60),
            (0.5, 0.51, 36),
        ]
        assert decoder.invalid == 3
        assert decoder.sounding == [(60, 0)]
        # another program's is another note
        assert decoder.feed(ids_of(TIE, ("shift", 1), C, ("program", 8), C), 2.0) == [Note(0.5, 2.0, 60, 127)]
        assert decoder.sounding == [(60, 0), (60, 8)]

    def test_drums_of_a_class_are_written_as_its_first(self):
        """A snare that is now an acoustic and now an electric one is one snare; both at once are one hit."""
        bass, electric, acoustic, pedal, tom = (("drum", pitch) for pitch in (35, 40, 38, 44, 41))
        ids = ids_of(TIE, ON, bass, electric, acoustic, tom, ("shift", 50), acoustic, ("shift", 60), electric, pedal)
        vocabulary = Vocabulary(PRESETS["mt3"].with_granularity(drums="class").vocabulary)
        decoder = NoteDecoder(vocabulary, published=False)
        notes = decoder.feed(ids, 0.0)
        assert [(note.onset, note.pitch) for note in notes] == [
            *((0, 36), (0, 38), (0, 41)),
            *((0.5, 38), (0.6, 38), (0.6, 42)),
        ]
        assert all(note.is_drum for note in notes)
        assert decoder.invalid == 0
        for others in (NoteDecoder(MT3, published=False), NoteDecoder(vocabulary)):
            assert [note.pitch for note in others.feed(ids, 0.0)] == [35, 40, 38, 41, 38, 40, 44]

    def test_what_the_first_segment_ties_begins_with_it_or_is_lost(self):
        """As MT3 has it, lost: nothing was there to be tied."""
        ids = ids_of(("program", 8), C, E, E, TIE, ON, C, ("shift", 50), G, OFF, E)
        decoder = NoteDecoder(MT3)
        assert decoder.feed(ids, 30.0) == []
        assert decoder.sounding == [(60, 8), (67, 8)]
        decoder = NoteDecoder(MT3, published=False)
        assert decoder.feed(ids, 30.0, 32.04) == [Note(30.0, 30.5, 64, 127, 8)]
        assert (decoder.sounding, decoder.invalid) == ([(60, 8), (67, 8)], 2)
        # in later segments as MT3 has it
        assert decoder.feed(ids_of(C, ("program", 40), C, TIE), 32.04) == [Note(30.5, 32.04, 67, 127, 8)]
        assert decoder.sounding == [(60, 8)]

    def test_what_the_first_segment_ties_and_ends_at_once_begins_anew(self):
        """A network that hears the silence before a recording may tie its first notes, end and begin them, all at 0."""
        decoder = NoteDecoder(MT3, published=False)
        ids = ids_of(C, E, TIE, OFF, C, E, ON, C, ("shift", 50), OFF, C)
        assert decoder.feed(ids, 0.0) == [Note(0.0, 0.5, 60, 127)]
        assert (decoder.sounding, decoder.invalid) == ([], 0)
        # an onset that ends at once is a note of the shortest length, and so is a second one
        decoder = NoteDecoder(MT3, published=False)
        assert decoder.feed(ids_of(TIE, ON, C, OFF, C), 0.0) == [Note(0.0, 0.01, 60, 127)]
        # in later segments ties are of notes that sounded
        decoder.feed(ids_of(TIE, ON, E), 1.0)
        assert decoder.feed(ids_of(E, TIE, OFF, E), 2.0) == [Note(1.0, 2.0, 64, 127)]

    def test_a_note_that_another_program_ties_or_ends_goes_on_as_it_began(self):
        """As MT3 has it, it ends where the next segment does not tie it under its own program."""
        begin = ids_of(TIE, ("program", 40), ON, C, E, ("shift", 100), ("program", 0), G)
        # the violin's C and E are taken for a reed's, and end as a reed's and a piano's
        later = ids_of(("program", 64), C, E, TIE, ("shift", 50), OFF, C, ("shift", 60), ("program", 0), E)
        published = NoteDecoder(MT3)
        ended = published.feed(begin, 0.0, 2.04) + published.feed(later, 2.04)
        assert [(note.offset, note.pitch, note.program) for note in ended] == [
            (2.04, 60, 40),
            (2.04, 64, 40),
            (2.04, 67, 0),
        ]
        assert (published.sounding, published.invalid) == ([], 4)
        decoder = NoteDecoder(MT3, published=False)
        assert decoder.feed(begin, 0.0, 2.04) == []
        ended = decoder.feed(later, 2.04)
        # the piano's G is not tied by anyone
        assert [(note.onset, note.pitch, note.program) for note in ended] == [
            (1.0, 67, 0),
            (0.0, 60, 40),
            (0.0, 64, 40),
        ]
        assert [note.offset for note in ended] == pytest.approx([2.04, 2.54, 2.64])
        assert (decoder.sounding, decoder.invalid) == ([], 0)

    def test_a_pitch_under_two_other_programs_says_nothing_of_either(self):
        decoder = NoteDecoder(MT3, published=False)
        decoder.feed(ids_of(TIE, ON, ("program", 40), C, ("program", 48), C), 0.0, 2.04)
        decoder.feed(
            ids_of(("program", 40), C, ("program", 48), C, TIE, OFF, ("shift", 10), ("program", 8), C), 2.04, 4.08
        )
        assert (decoder.sounding, decoder.invalid) == ([(60, 40), (60, 48)], 1)
        # one of them tied under its own name leaves the other one alone
        decoder.feed(ids_of(("program", 48), C, ("program", 8), C, TIE), 4.08)
        assert (decoder.sounding, decoder.invalid) == ([(60, 40), (60, 48)], 1)

    def test_a_pitch_that_begins_anew_under_the_program_that_tied_it_ends(self):
        decoder = NoteDecoder(MT3, published=False)
        begin = ids_of(TIE, ON, ("shift", 10), ("program", 0), C)
        later = ids_of(("program", 8), C, TIE, ("shift", 20), ON, C, ("shift", 60), OFF, C)
        decoder.feed(begin, 0.0, 2.04)
        assert decoder.feed(later, 2.04, 4.09) == [Note(0.1, 2.24, 60, 127, 0), Note(2.24, 2.64, 60, 127, 8)]
        assert decoder.sounding == []
        # once alone, and not where the tie's own program sounds again
        decoder.feed(ids_of(TIE, ON, ("program", 0), C), 4.09, 6.14)
        again = ids_of(
            ("program", 8), C, TIE, OFF, ("shift", 10), C, ON, ("shift", 20), ("program", 0), C, ("program", 8), C
        )
        assert decoder.feed(again, 6.14, 8.19) == [Note(4.09, 6.24, 60, 127, 0)]
        assert decoder.sounding == [(60, 0), (60, 8)]
        # of two notes of a pitch, an offset under the name of one of them ends that one
        decoder.feed(ids_of(("program", 0), C, ("program", 9), C, TIE), 8.19, 10.24)
        assert decoder.feed(ids_of(("program", 0), C, ("program", 9), C, TIE, OFF, ("shift", 10), C), 10.24) == [
            Note(6.34, 10.34, 60, 127, 8)
        ]

    def test_what_lies_at_the_end_of_a_segment_is_not_past_it(self):
        for start, following in ((37.12, 38.4), (47.36, 48.64), (2.04, 4.09)):
            decoder = NoteDecoder(MT3, published=False)
            steps = round(100 * (following - start))
            begin = ids_of(TIE, ON, C, ("shift", steps), ("drum", 36), OFF, C)
            assert decoder.feed(begin, start, following) == [
                Note(following, following + 0.01, 36, 127, 0, True),
                Note(start, following, 60, 127),
            ]
            # and what begins there comes before nothing
            assert decoder.feed(ids_of(TIE, ON, E), following) == []
            assert (decoder.invalid, decoder.dropped) == (0, 0)

    def test_refuses_a_segment_from_the_past(self):
        decoder = NoteDecoder(MT3)
        decoder.feed([], 2.04)
        with pytest.raises(ValueError, match="in order of time"):
            decoder.feed([], 0.0)

    def test_refuses_a_beginning_that_is_no_number(self):
        with pytest.raises(ValueError, match="in order of time"):
            NoteDecoder(MT3).feed([], float("nan"))

    @given(
        model=st.sampled_from(["mt3", "ismir2021"]),
        streams=st.lists(
            st.lists(
                st.one_of(
                    st.integers(-5, 1700),
                    # shifts, a few pitches, velocities, the tie, programs and drums of both models, to sound at all
                    st.sampled_from([4, 13, 54, 104, 1064, 1065, 1132, 1133, 1134, 1135, 1260, 1261, 1263, 1389]),
                ),
                max_size=30,
            ),
            max_size=5,
        ),
    )
    @settings(deadline=None, max_examples=200)
    def test_any_ids_decode_and_piece_by_piece_equals_all_at_once(self, model, streams):
        vocabulary = VOCABULARIES[model]
        starts = start_times(len(streams), PRESETS[model]).tolist()
        decoded = decode_segments(list(zip(starts, streams)), vocabulary)
        check_notes(decoded.notes)
        assert all(note.offset > note.onset for note in decoded.notes)
        assert len(decoded.instruments) == len(decoded.notes)

        decoder = NoteDecoder(vocabulary)
        notes = []
        for ids, start, following in zip(streams, starts, [*starts[1:], None]):
            notes += decoder.feed(np.array(ids, np.int32), start, following)
        sounding = decoder.sounding
        final = decoder.finish()
        assert sorted((note.program, note.pitch) for note in final) == [key[::-1] for key in sounding]
        assert (notes + final, decoder.invalid, decoder.dropped) == (decoded.notes, decoded.invalid, decoded.dropped)


class TestEncoding:
    def events(self, ids, model="mt3"):
        return [VOCABULARIES[model].event(int(index)) for index in VOCABULARIES[model].decode(ids) if index >= 0]

    def encode(self, notes, seconds, model="mt3", **options):
        return encode_segments(notes, frames_of(seconds), PRESETS[model], **options)

    def test_eos_is_appended_by_choice(self):
        notes = [Note(0.5, 1.0, 60, 90)]
        (with_eos,) = self.encode(notes, 1.5)
        (without,) = self.encode(notes, 1.5, append_eos=False)
        assert with_eos.tolist() == [*without.tolist(), EOS_ID]
        assert with_eos.dtype == without.dtype == np.int32

    def test_silence_is_a_tie_and_nothing_for_the_piano_model(self):
        assert [ids.tolist() for ids in self.encode([], 5.0)] == [[1134, EOS_ID]] * 3
        assert [ids.tolist() for ids in self.encode([], 5.0, model="ismir2021")] == [[EOS_ID]] * 2

    def test_half_steps_round_to_even(self):
        notes = [Note(0.005, 0.015, 60, 90), Note(0.025, 0.035, 64, 90)]
        (ids,) = self.encode(notes, 1.0)
        assert [event.value for event in self.events(ids) if event.kind == "shift"] == [2, 4]

    def test_ends_come_before_beginnings_at_one_time(self):
        notes = [Note(0.5, 1.0, 70, 90, 0), Note(1.0, 1.5, 60, 90, 0)]
        (ids,) = self.encode(notes, 1.6)
        assert self.events(ids)[5:10] == [SHIFT[100], OFF, ("pitch", 70), ON, C]

    def test_programs_and_velocities_are_said_when_they_change(self):
        notes = [Note(0.1, 0.2, 60, 90, 5), Note(0.1, 0.2, 64, 90, 5), Note(0.1, 0.3, 36, 90, 0, True)]
        (ids,) = self.encode(notes, 1.0)
        program = ("program", 5)
        assert self.events(ids) == [TIE, SHIFT[10], program, ON, C, E, ("drum", 36), SHIFT[20], OFF, C, E]

    def test_a_shift_past_the_largest_is_said_in_pieces(self):
        notes = [Note(0.0, 25.0, 60, 90)]
        config = dataclasses.replace(PRESETS["mt3"], input_frames=5000)
        (ids,) = encode_segments(notes, frames_of(30.0), config)
        assert self.events(ids) == [TIE, ("program", 0), ON, C, SHIFT[1000], SHIFT[1000], SHIFT[500], OFF, C]
        assert decode_segments([(0.0, ids)], MT3).notes == [Note(0.0, 25.0, 60, 127)]

    def test_overlapping_notes_are_trimmed(self):
        notes = [Note(0.1, 0.9, 60, 90), Note(0.5, 1.0, 60, 90)]
        (ids,) = self.encode(notes, 1.5)
        assert [(note.onset, note.offset) for note in decode_segments([(0.0, ids)], MT3).notes] == [
            (0.1, 0.5),
            (0.5, 1),
        ]

    def test_tie_sections_are_by_program_then_pitch_without_drums(self):
        notes = [Note(0.1, 3.0, 64, 90, 7), Note(0.1, 3.0, 60, 90, 7), Note(0.1, 3.0, 67, 90, 2)]
        notes += [Note(0.1, 3.0, 36, 90, 0, True), Note(0.1, 0.5, 50, 90, 2)]
        ids = self.encode(notes, 4.0)[1]
        assert self.events(ids)[:6] == [("program", 2), G, ("program", 7), C, E, TIE]

    def test_the_piano_model_says_no_program(self):
        (ids,) = self.encode([Note(0.1, 0.5, 60, 90, 33)], 1.0, model="ismir2021")
        assert {event.kind for event in self.events(ids, "ismir2021")} == {"shift", "velocity", "pitch"}

    def test_after_the_last_event_the_last_notes_are_declared_tied_as_published(self):
        segments = self.encode([Note(0.1, 0.5, 60, 90)], 5.0)
        assert self.events(segments[2]) == [("program", 0), C, TIE]

    def test_a_segment_over_the_maximum_is_refused_or_skipped(self):
        notes = [Note(3.0, 3.1, 60, 90), Note(4.5, 4.6, 60, 90)]
        length = len(self.encode(notes, 6.0)[1])
        fits = dataclasses.replace(PRESETS["mt3"], max_target_length=length)
        assert len(encode_segments(notes, frames_of(6.0), fits)[1]) == length
        tight = dataclasses.replace(PRESETS["mt3"], max_target_length=length - 1)
        with pytest.raises(ValueError, match=rf"segment at 2.05 s needs {length} tokens"):
            encode_segments(notes, frames_of(6.0), tight)
        with pytest.raises(ValueError, match=rf"segment at 2.05 s needs {length} tokens"):
            encode_segments(notes, frames_of(6.0), tight, append_eos=False)
        skipped = encode_segments(notes, frames_of(6.0), tight, too_long="skip")
        assert [ids is None for ids in skipped] == [False, True, True]
        with pytest.raises(ValueError, match="too_long"):
            encode_segments(notes, frames_of(6.0), tight, too_long="cut")

    def test_any_stretch_can_be_encoded(self):
        notes = [Note(step / 10, step / 10 + 0.35, 50 + step % 7, 90, step % 3) for step in range(60)]
        config = PRESETS["mt3"]
        encoder = NoteEncoder(notes, frames_of(7.0), config)
        whole = encode_segments(notes, frames_of(7.0), config)
        assert [encoder.encode(first, first + 256).tolist() for first in range(0, frames_of(7.0), 256)] == [
            ids.tolist() for ids in whole
        ]
        # From frame 125 (1.0 s) on, 125 frames: onsets from 1.0 s to 1.9 s.
        events = self.events(encoder.encode(125, 250))
        onsets = [event for event in events[events.index(TIE) :] if event.kind == "pitch"]
        assert max(event.value for event in events if event.kind == "shift") <= 100
        assert len(onsets) == 10 + 10

    @pytest.mark.parametrize(("first", "last"), [(-1, 10), (10, 10), (100, 200)])
    def test_a_stretch_outside_the_recording_is_refused(self, first, last):
        with pytest.raises(ValueError, match="not a stretch of 100 frames"):
            NoteEncoder([], 100, PRESETS["mt3"]).encode(first, last)

    def test_a_recording_without_frames_is_refused(self):
        with pytest.raises(ValueError, match="num_frames must be positive"):
            encode_segments([], 0, PRESETS["mt3"])

    @pytest.mark.parametrize(
        "note",
        [
            Note(-0.1, 1.0, 60, 90),
            Note(1.0, 0.5, 60, 90),
            Note(0.0, float("inf"), 60, 90),
            Note(float("nan"), 1.0, 60, 90),
            Note(0.0, 1.0, 128, 90),
            Note(0.0, 1.0, 60, 0),
            Note(0.0, 1.0, 60, 90, 128),
        ],
    )
    def test_notes_that_midi_cannot_hold_are_refused(self, note):
        with pytest.raises(ValueError, match="note 1 must"):
            encode_segments([Note(0.0, 1.0, 60, 90), note], 10, PRESETS["mt3"])


@st.composite
def notes_on_the_grid(draw, model, first=0):
    """Notes on the 10 ms grid within 19 s, from a step on; no pitch sounds twice.

    The published start times are exact as long.
    """
    notes = []
    for pitch, program, is_drum in draw(
        st.sets(
            st.tuples(
                st.integers(0, 127),
                st.integers(0, 127) if model == "mt3" else st.just(0),
                st.booleans() if model == "mt3" else st.just(False),
            ),
            max_size=6,
        )
    ):
        times = sorted(draw(st.sets(st.integers(first, first + 1899), min_size=2, max_size=8)))
        for begin, end in zip(times[::2], times[1::2]):
            velocity = draw(st.integers(1, 127)) if model == "ismir2021" else 127
            if is_drum:
                notes.append(Note(begin / 100, (begin + 1) / 100, pitch, velocity, 0, True))
            else:
                notes.append(Note(begin / 100, end / 100, pitch, velocity, program, False))
    return trim_overlapping(draw(st.permutations(notes)))


@pytest.mark.parametrize("model", PRESETS)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_notes_on_the_grid_round_trip(model, data):
    notes = data.draw(notes_on_the_grid(model))
    config = PRESETS[model]
    segments = encode_segments(notes, frames_of(data.draw(st.sampled_from([10.0, 19.0, 24.0]))), config)
    decoded = decode_segments(list(zip(start_times(len(segments), config), segments)), VOCABULARIES[model])
    assert sorted(map(steps_of, decoded.notes)) == sorted(map(steps_of, notes))
    assert decoded.dropped == 0


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_notes_anywhere_on_the_grid_come_back_exactly_unless_as_published(data):
    """Segments of 1.28 s, of which five of eight start early as published."""
    spectrogram = dataclasses.replace(PRESETS["mt3"].spectrogram, hop_width=320)
    config = dataclasses.replace(PRESETS["mt3"], spectrogram=spectrogram, input_frames=64)
    first = data.draw(st.integers(0, 20000))
    notes = data.draw(notes_on_the_grid("mt3", first))
    segments = encode_segments(notes, first // 2 + 1000, config)
    starts = exact_starts(len(segments), config, published=False)
    decoded = decode_segments(list(zip(starts, segments, strict=True)), VOCABULARIES["mt3"], published=False)
    whole = [[note._replace(offset=round(note.offset, 9)) for note in sorted(side)] for side in (decoded.notes, notes)]
    assert whole[0] == whole[1]
    assert decoded.dropped == 0
