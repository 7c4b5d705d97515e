"""Notes, events and ids of YourMT3+ against what the published code computed (golden/yourmt3/README.md)."""

import io
import itertools
import json
from pathlib import Path

import mido
import numpy as np
import pytest

from mt3_common.config import ConfigError
from mt3_common.formats.yourmt3_midi import published_midi, write_published_midi
from mt3_common.notes.instruments import Instruments, joined_names, named_programs, parse_instruments
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import Tempo
from mt3_common.notes.yourmt3_decoder import VOICES, ChannelDecoder, YourMT3Decoder, decode_segment, join_channels
from mt3_common.notes.yourmt3_events import cut_events, encode_segment, note_events
from mt3_common.notes.yourmt3_tasks import TASKS, find_task
from mt3_common.transcription.family import YourMT3Family

GOLDEN = Path(__file__).parents[2] / "golden" / "yourmt3"
NAMED = json.loads((GOLDEN / "tasks.json").read_text())
NOTES = {case["midi"]: case for case in json.loads((GOLDEN / "notes.json").read_text())}
HOSTILE = json.loads((GOLDEN / "hostile.json").read_text())
SEGMENT = 32767 / 16000


def note(row) -> Note:
    is_drum, program, onset, offset, pitch, _ = row
    return Note(onset, offset, pitch, 100, 0 if is_drum else program, is_drum)


def fields(event):
    return [event.is_drum, event.program, event.time, event.velocity, event.pitch]


@pytest.mark.parametrize("name", NAMED["tasks"])
def test_tasks_are_the_published_ones(name):
    task, golden = find_task(name), NAMED["tasks"][name]
    assert list(task.ranges) == list(golden["ranges"])
    assert task.ranges == {kind: (ids["first_id"], ids["last_id"]) for kind, ids in golden["ranges"].items()}
    assert task.num_ids == golden["num_tokens"]
    assert task.num_channels == golden["num_decoding_channels"]
    assert task.max_tokens == golden["max_total_token_length"]
    assert {prefix: task.prefix(prefix) for prefix in task.prefixes} == golden["eval_subtask_prefix"]
    programs = [task.id_of("program", task.first_of_class.get(number, number)) for number in range(128)]
    assert programs == golden["encode_program"]
    drums = [task.id_of("drum", task.first_of_drum_class.get(pitch, pitch)) for pitch in range(128)]
    assert drums == golden["encode_drum"]
    channels = {int(program): entry["channel"] for program, entry in golden["program2channel"].items()}
    assert task.channel_of_program == channels


@pytest.mark.parametrize("name", NAMED["tasks"])
def test_the_programs_of_notes_are_those_of_the_ids_that_may_be_chosen(name):
    family = YourMT3Family.__new__(YourMT3Family)
    family.task = find_task(name)
    first, last = family.task.ranges["program"]
    for program in range(128):
        allowed = family.allowed_ids(Instruments(frozenset({program}), False))[first : last + 1]
        assert family.written_programs(program) == {
            VOICES.get(int(other), int(other)) for other in np.flatnonzero(allowed)
        }


def test_an_instrument_stands_for_its_class():
    family = YourMT3Family.__new__(YourMT3Family)
    family.task = find_task("mt3_full_plus")
    names = named_programs(parse_instruments("fretless bass,cello,tremolo strings,voice oohs"), family.written_programs)
    assert names == {32: 35, 42: 42, 48: 44, 52: 53, 53: 53}
    assert joined_names(parse_instruments("fretless bass,cello"), family.written_programs) == (
        "fretless bass stands for acoustic bass, fretless bass"
    )


def test_all_tasks_are_there():
    assert sorted(TASKS) == sorted(NAMED["tasks"])
    with pytest.raises(ConfigError, match="no task is called 'mt4'; there are mt3_midi, "):
        find_task("mt4")
    with pytest.raises(ConfigError, match="task mc13 has no prefix 'drum-only'; there are default"):
        find_task("mc13").prefix("drum-only")
    with pytest.raises(ValueError, match=r"pitch must be in 0\.\.127, not 128"):
        find_task("mc13").id_of("pitch", 128)


@pytest.mark.parametrize("name", NOTES)
def test_notes_become_the_published_ids(name):
    case = NOTES[name]
    task = TASKS[case["task"]]
    segments = cut_events(note_events([note(row) for row in case["notes"]]), case["starts"], SEGMENT)
    for number, (segment, golden) in enumerate(zip(segments, case["segments"], strict=True)):
        assert [fields(event) for event in segment.events] == golden["note_events"]
        assert [fields(tie) for tie in segment.ties] == golden["ties"]
        assert encode_segment(segment, task) == [ids[number] for ids in case["ids"]]


def channels_of(case, task) -> list[ChannelDecoder]:
    """Decoders that were fed the ids, and compared at each segment."""
    decoders = [ChannelDecoder(task, published=True) for _ in case["ids"]]
    for decoder, rows, golden in zip(decoders, case["ids"], case["decoded"]["channels"], strict=True):
        for ids, start, expected in zip(rows, case["starts"], golden["segments"], strict=True):
            segment = decoder.feed(ids, start)
            assert [fields(event) for event in segment.events] == expected["note_events"]
            assert [[False, program, None, 1, pitch] for program, pitch in segment.ties] == expected["ties"]
            assert [list(key) for key in segment.last_activity] == expected["last_activity"]
    return decoders


def check(case, task):
    decoders = channels_of(case, task)
    for decoder, golden in zip(decoders, case["decoded"]["channels"]):
        assert decoder.finish() == [note(row) for row in golden["notes"]]
        assert dict(decoder.errors) == golden["errors"]
        assert dict(decoder.merge_errors) == golden["merge_errors"]
    joined = YourMT3Decoder(task, published=True)
    for number, start in enumerate(case["starts"]):
        rows = [ids[number] for ids in case["ids"]]
        width = max(map(len, rows))
        padded = [row + [0] * (width - len(row)) for row in rows]
        joined.feed(np.array(padded, np.int32).reshape(len(rows), width), start)
    notes = joined.finish()
    assert notes == [note(row) for row in case["decoded"]["notes"]]
    if "midi" in case:
        content = io.BytesIO()
        published_midi(notes).save(file=content)
        assert content.getvalue() == (GOLDEN / "midi" / case["midi"]).read_bytes()
    return joined


@pytest.mark.parametrize("name", NOTES)
def test_ids_become_the_published_notes_and_files(name):
    check(NOTES[name], TASKS[NOTES[name]["task"]])


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "two_channels"])
def test_bad_ids_become_what_the_published_code_makes_of_them(name):
    case = HOSTILE[name] | {"ids": [HOSTILE[name]["ids"]]}
    joined = check(case, TASKS["mt3_full_plus"])
    golden = case["decoded"]["channels"][0]
    assert joined.invalid == sum(golden["errors"].values()) + golden["merge_errors"].get("Err/onset not found", 0)


def test_channels_are_joined():
    golden = HOSTILE["two_channels"]["decoded"]
    channels = [[note(row) for row in channel["notes"]] for channel in golden["channels"]]
    assert join_channels(channels) == [note(row) for row in golden["notes"]]


def decoded(ids, starts, published):
    decoder = YourMT3Decoder(TASKS["mt3_full_plus"], published)
    for row, start in zip(ids, starts):
        assert decoder.feed(np.array(row), start) == []
    return decoder.finish()


def test_long_notes_stay_long_by_default():
    case = HOSTILE["longer_than_ten_seconds"]
    assert decoded(case["ids"], case["starts"], False) == [Note(0.05, 12.49, 60, 100)]


def test_open_notes_end_at_the_last_event_by_default():
    ids = [[339, 8, 340, 338, 269, 103, 338, 270, 1]]
    assert decoded(ids, [0.0], False) == [Note(0.05, 1.0, 60, 100), Note(1.0, 1.01, 61, 100)]
    assert decoded(ids, [0.0], True) == [Note(0.05, 0.05 + 0.01, 60, 100), Note(1.0, 1.01, 61, 100)]


def test_singers_get_voices_by_default():
    case = HOSTILE["singing_and_chorus"]
    assert [note.program for note in decoded(case["ids"], case["starts"], True)] == [100, 101]
    assert [note.program for note in decoded(case["ids"], case["starts"], False)] == [53, 52]


def test_bad_rows_are_refused():
    with pytest.raises(ValueError, match="ids of 1 channel, of a task with 13"):
        YourMT3Decoder(TASKS["mc13"]).feed(np.array([339, 1]), 0.0)
    with pytest.raises(ValueError, match="ids must be a row of whole numbers"):
        decode_segment(np.array([0.5]), 0.0, TASKS["mt3_full"])
    assert not decode_segment(np.array([339, -1, 596, 10**6]), 0.0, TASKS["mt3_full"]).events


def test_the_published_file_has_no_tempo(tmp_path):
    write_published_midi([Note(0.0, 1.0, 60, 100, 41)], tmp_path / "song.mid")
    messages = [message for track in mido.MidiFile(tmp_path / "song.mid").tracks for message in track]
    assert [message.program for message in messages if message.type == "program_change"] == [48]
    assert "set_tempo" not in {message.type for message in messages}
    with pytest.raises(ValueError, match="has no tempo: leave out"):
        write_published_midi([], tmp_path / "song.mid", Tempo((0.5, 1.0)))


def random_rows(random: np.random.Generator, task, num_segments: int) -> list[np.ndarray]:
    """Ids of segments in which few programs and pitches meet often, in all channels."""
    names = [("program", 0), ("program", 40), ("pitch", 60), ("pitch", 61), ("drum", 38), ("velocity", 0)]
    names += [("velocity", 1), ("velocity", 1), *(("shift", step) for step in (1, 2, 50, 100, 150, 204, 205))]
    choices = [task.id_of(*name) for name in names]
    tie, pitches = task.id_of("tie"), [task.id_of("program", 0), task.id_of("pitch", 60), task.id_of("pitch", 61)]
    segments = []
    for _ in range(num_segments):
        rows = []
        for _ in range(task.num_channels):
            ties = pitches[: random.integers(0, 4)] if random.random() < 0.5 else []
            rows.append([*ties, tie, *random.choice(choices, 20)])
            rows[-1] += [0] * (24 - len(rows[-1]))
        segments.append(np.array(rows, np.int32))
    return segments


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_notes_that_come_early_are_those_that_come_at_the_end(seed, published):
    task = TASKS["mc13_256"]
    random = np.random.default_rng(seed)
    segments = random_rows(random, task, 9)
    starts = [number * SEGMENT for number in range(len(segments) + 1)]
    whole, streamed = YourMT3Decoder(task, published), YourMT3Decoder(task, published)
    early = []
    for number, ids in enumerate(segments):
        assert whole.feed(ids, starts[number]) == []
        following = starts[number + 1] if number + 1 < len(segments) else None
        early.append(streamed.feed(ids, starts[number], following))
    expected = whole.finish()
    assert sorted([*itertools.chain(*early), *streamed.finish()]) == sorted(expected)
    assert sum(map(bool, early)) > 4
    assert len(expected) > 100
    assert streamed.invalid == whole.invalid
    assert [channel.merge_errors for channel in streamed.channels] == [
        channel.merge_errors for channel in whole.channels
    ]


def test_a_note_comes_when_the_next_segment_ends_it():
    decoder = YourMT3Decoder(TASKS["mt3_full_plus"])
    ids = np.array([[339, 8, 340, 338, 269, 20, 338, 270, 30, 337, 269, 1]])
    assert decoder.feed(ids, 0.0, SEGMENT) == [Note(0.05, 0.27, 60, 100)]
    # the other one goes on, then does not
    assert decoder.feed(np.array([[340, 270, 339, 1]]), SEGMENT, 2 * SEGMENT) == []
    assert decoder.feed(np.array([[339, 1]]), 2 * SEGMENT, 3 * SEGMENT) == [Note(0.17, 2 * SEGMENT, 61, 100)]
    assert decoder.finish() == []
