"""Notes, and what every format asks of them."""

from mt3_common.notes.note import Note, assign_instruments, trim_overlapping


def test_trimming_drops_what_has_no_length_left_and_keeps_the_order():
    notes = [Note(1.0, 3.0, 60, 9), Note(0.0, 2.0, 60, 9), Note(1.0, 4.0, 60, 8), Note(0.0, 2.0, 60, 9, 1)]
    notes += [Note(0.0, 2.0, 60, 9, 0, True), Note(1.0, 1.0, 61, 9)]
    assert trim_overlapping(notes) == [
        Note(0.0, 1.0, 60, 9),
        Note(1.0, 4.0, 60, 8),
        Note(0.0, 2.0, 60, 9, 1),
        Note(0.0, 2.0, 60, 9, 0, True),
    ]


def test_instrument_numbers_leave_out_nine_and_go_on_past_sixteen():
    notes = [Note(0.0, 1.0, 60, 90, program) for program in range(100, 120)]
    notes.insert(3, Note(0.0, 1.0, 36, 90, 0, True))
    notes.append(Note(0.0, 1.0, 60, 90, 100))
    numbers = [0, 1, 2, 9, 3, 4, 5, 6, 7, 8, *range(10, 21), 0]
    assert assign_instruments(notes) == numbers
