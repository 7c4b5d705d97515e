"""The way from a recording to files, with a stand-in for the network that answers with the ids of known notes."""

import collections
import dataclasses
import hashlib
import io
import itertools
import json
import re
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fakes import record

from mt3_common.audio.files import AudioError
from mt3_common.audio.segments import segments, start_times
from mt3_common.checkpoint.registry import NamedCheckpoint, find_checkpoint
from mt3_common.config import PITCH_ROWS, PRESETS
from mt3_common.formats import midi, tables
from mt3_common.notes.decoder import decode_segments
from mt3_common.notes.encoder import encode_segments
from mt3_common.notes.instruments import parse_instruments
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.transcription import batching, pipeline, reader
from mt3_common.transcription.batching import SegmentTokens, program_positions
from mt3_common.transcription.continuity import InstrumentContinuity
from mt3_common.transcription.family import MT3Family
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.reader import Request
from mt3_common.transcription.result import Transcription

CONFIG = PRESETS["mt3"]
RATE = 16000
NOTES = [
    Note(0.10, 0.60, 60, 127, 0, False),
    Note(0.50, 0.51, 36, 127, 0, True),
    # sounds through three segments
    Note(1.00, 6.50, 64, 127, 40, False),
    Note(4.50, 4.80, 67, 127, 0, False),
]
SECONDS = 7.0


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A file of seven seconds of noise: four segments."""
    return record(tmp_path / "song.wav", SECONDS, subtype="FLOAT")


def ids_of(notes, seconds=SECONDS):
    return encode_segments(notes, round(seconds * RATE) // 128 + 1, CONFIG)


def answering(answers, ahead=1):
    """A generate that takes `ahead` segments before it answers the first, and keeps what it took in .taken."""

    def generate(frames):
        answer = iter(answers)
        frames = iter(frames)
        while taken := list(itertools.islice(frames, ahead)):
            generate.taken += taken
            for _ in taken:
                yield next(answer)

    generate.taken = []
    return generate


@pytest.mark.parametrize("ahead", [1, 2, 3, 100])
def test_notes_come_back_however_far_the_network_reads_ahead(audio, ahead):
    transcription = Transcriber(CONFIG, answering(ids_of(NOTES), ahead)).transcribe(audio)
    expected = decode_segments(
        zip(start_times(4, CONFIG, published=False), ids_of(NOTES)), Vocabulary(CONFIG.vocabulary), published=False
    )
    assert transcription.notes == expected.notes
    assert [(n.pitch, n.program, n.is_drum) for n in transcription.notes] == [
        (36, 0, True),
        (60, 0, False),
        (67, 0, False),
        (64, 40, False),
    ]
    assert (transcription.num_segments, transcription.invalid, transcription.dropped) == (4, 0, 0)
    assert transcription.duration == SECONDS
    assert transcription.num_instruments == 3


@pytest.mark.parametrize("ahead", [1, 3])
def test_notes_are_told_in_their_order(audio, ahead):
    told = []
    transcription = Transcriber(CONFIG, answering(ids_of(NOTES), ahead)).transcribe(audio, on_notes=told.append)
    assert [note for notes in told for note in notes] == transcription.notes
    assert len(told) > 1
    assert all(told)


def test_a_stage_counts_alone(audio, monkeypatch):
    """A clock that moves only where the stages say so, in each thread: nothing inside another stage counts twice."""
    now = collections.Counter()

    def after(seconds, items):
        for item in items:
            now[threading.get_ident()] += seconds
            yield item

    def network(segments):
        for _ in segments:
            now[threading.get_ident()] += 100.0
            yield np.array([1])

    stream_audio, segments = reader.stream_audio, MT3Family.segments
    monkeypatch.setattr(time, "perf_counter", lambda: now[threading.get_ident()])
    monkeypatch.setattr(reader, "stream_audio", lambda *args, **options: after(1.0, stream_audio(*args, **options)))
    monkeypatch.setattr(MT3Family, "segments", lambda *args: after(10.0, segments(*args)))
    result = Transcriber(CONFIG, network).transcribe(audio)
    # seven blocks of a second, four segments
    assert result.seconds == {"audio": 7.0, "spectrogram": 40.0, "waiting": 0.0, "network": 400.0, "notes": 0.0}


def test_the_network_gets_the_segments_of_the_recording(audio):
    generate = answering(ids_of(NOTES))
    Transcriber(CONFIG, generate).transcribe(audio)
    samples, _ = soundfile.read(audio, dtype="float32")
    expected = [segment.frames for segment in segments(samples, CONFIG)]
    np.testing.assert_array_equal(np.stack([segment.frames for segment in generate.taken]), np.stack(expected))


def test_events_past_the_next_segment_are_dropped_and_counted(audio):
    vocabulary = Vocabulary(CONFIG.vocabulary)
    late = [vocabulary.index(*event) + 3 for event in (("tie", 0), ("shift", 300), ("velocity", 1), ("pitch", 60))]
    odd = [vocabulary.index("drum", 40) + 3, 1500, 1]
    answers = [late, odd, late, late]
    transcription = Transcriber(CONFIG, answering(answers)).transcribe(audio)
    expected = decode_segments(zip(start_times(4, CONFIG), answers), vocabulary)
    assert (transcription.notes, transcription.invalid, transcription.dropped) == (
        expected.notes,
        expected.invalid,
        expected.dropped,
    )
    assert expected.invalid == 1
    # the last segment has no next one
    assert expected.dropped == 6


def test_start_and_duration(audio):
    generate = answering(ids_of([], 3.0))
    transcription = Transcriber(CONFIG, generate).transcribe(audio, start=2.0, duration=3.0)
    samples, _ = soundfile.read(audio, dtype="float32")
    expected = [segment.frames for segment in segments(samples[2 * RATE : 5 * RATE], CONFIG)]
    np.testing.assert_array_equal(np.stack([segment.frames for segment in generate.taken]), np.stack(expected))
    assert (transcription.duration, transcription.num_segments) == (3.0, 2)
    assert transcription.metadata["start"] == 2.0


@pytest.mark.parametrize(
    ("options", "total"), [({}, 4), ({"start": 2.0}, 3), ({"duration": 2.0}, 1), ({"start": 6.0, "duration": 9.0}, 1)]
)
def test_progress_counts_to_the_total(audio, options, total):
    seen = []
    answers = itertools.repeat([1])
    Transcriber(CONFIG, answering(answers)).transcribe(audio, on_progress=lambda *now: seen.append(now), **options)
    assert seen == [(number, total) for number in range(total + 1)]


def test_a_length_that_the_file_does_not_tell(audio, monkeypatch):
    monkeypatch.setattr(reader, "audio_duration", lambda path: None)
    seen = []
    Transcriber(CONFIG, answering(ids_of([]))).transcribe(audio, on_progress=lambda *now: seen.append(now))
    assert seen == [(0, None), (1, None), (2, None), (3, None), (4, None)]


def test_a_network_that_leaves_segments_out_is_found_out(audio):
    def generate(frames):
        yield from ([1] for _ in itertools.islice(frames, 2))
        list(frames)

    with pytest.raises(RuntimeError, match="2 of 4 segments"):
        Transcriber(CONFIG, generate).transcribe(audio)


def test_memory_does_not_grow_with_the_recording(tmp_path, monkeypatch):
    # how far the reader is ahead depends on what else the machine does: here, never far
    monkeypatch.setattr(reader, "QUEUED_SEGMENTS", 2)

    def peak(seconds):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, np.zeros(seconds * RATE), RATE)
        tracemalloc.start()
        Transcriber(CONFIG, lambda frames: ([1] for _ in frames)).transcribe(path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(20)  # what is computed once and kept
    assert peak(200) < 1.2 * peak(20)


@pytest.fixture
def transcription() -> Transcription:
    return Transcription(NOTES, SECONDS, 4, 1, 2, {"audio": "song.wav"})


def test_write_follows_the_ending(tmp_path, transcription):
    for name in ("a.mid", "b.MIDI", "c.json"):
        transcription.write(tmp_path / name)
    assert midi.read_midi(tmp_path / "a.mid") == midi.read_midi(tmp_path / "b.MIDI")
    assert [note.pitch for note in midi.read_midi(tmp_path / "a.mid")] == [60, 36, 64, 67]
    notes, metadata = tables.read_json(tmp_path / "c.json")
    assert notes == NOTES
    assert metadata == {"audio": "song.wav", "duration": 7.0, "segments": 4, "invalid": 1, "dropped": 2}
    transcription.write(tmp_path / "d.csv")
    assert (tmp_path / "d.csv").read_text().count("\n") == len(NOTES) + 1
    with pytest.raises(ValueError, match=r"must end in .mid, .midi, .json, .csv, .noteseq"):
        transcription.write(tmp_path / "e.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mid", "b.MIDI", "c.json", "d.csv"]


def test_bundled_checkpoints_are_what_the_manifest_says():
    root = Path(pipeline.__file__).parents[2] / "checkpoints"
    manifest = json.loads((root / "manifest.json").read_text())
    checkpoint = find_checkpoint()
    assert Path(checkpoint.path) == root / manifest["default"]
    assert checkpoint == find_checkpoint(manifest["default"])
    for name, entry in manifest["checkpoints"].items():
        assert entry["licence"], name
        assert entry["source"], name
        files = {path.relative_to(root / name).as_posix(): path for path in (root / name).rglob("*") if path.is_file()}
        assert files.keys() == entry["sha256"].keys(), name
        for relative, path in files.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"][relative], f"{name}/{relative}"
    # what a clone can bear
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 30e6


def test_a_path_comes_before_a_bundled_name(tmp_path, monkeypatch):
    (tmp_path / "golden").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("golden") == NamedCheckpoint("golden", "golden")
    assert find_checkpoint(tmp_path / "golden/") == NamedCheckpoint(str(tmp_path / "golden"), "golden")
    assert find_checkpoint("memory://bucket/mt3") == NamedCheckpoint("memory://bucket/mt3", "mt3")


def test_an_unknown_checkpoint_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"no checkpoint 'nowhere'.* golden"):
        find_checkpoint("nowhere")


def recordings(folder: Path, *lengths: float) -> list[Path]:
    """Files of noise, each of its own, of so many seconds."""
    return [
        record(folder / f"{number}.wav", seconds, seed=number, subtype="FLOAT")
        for number, seconds in enumerate(lengths)
    ]


def listening(ahead, rows=None):
    """A generate whose ids follow from the frames alone, `ahead` segments late; rows collects how many it took."""

    def generate(segments):
        segments = iter(segments)
        while taken := list(itertools.islice(segments, ahead)):
            if rows is not None:
                rows.append(len(taken))
            for segment in taken:
                pitch = 30 + int(np.abs(segment.frames).sum()) % 60
                yield ids_of([Note(0.1, 0.5, pitch, 127, 0, False)], 1.0)[0]

    return generate


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("ahead", [1, 4, 100])
def test_recordings_share_batches_and_come_out_as_if_alone(tmp_path, ahead, readers):
    paths = recordings(tmp_path, 5.0, 0.5, 9.0, 2.0)
    requests = [Request(path, start=0.25 * number) for number, path in enumerate(paths)]
    rows = []
    transcriber = Transcriber(CONFIG, listening(ahead, rows))
    together = list(transcriber.transcribe_many(requests, readers))
    alone = [Transcriber(CONFIG, listening(1)).transcribe(*request[:2]) for request in requests]
    assert together == alone
    assert [result.num_segments for result in together] == [3, 1, 5, 1]
    # every batch is full but the last
    assert rows == [ahead] * (10 // ahead) + [10 % ahead] * (10 % ahead > 0)


def test_indices_begin_anew_with_each_recording(tmp_path):
    seen = []

    def generate(segments):
        for segment in segments:
            seen.append(segment.index)
            yield [1]

    list(Transcriber(CONFIG, generate).transcribe_many(map(Request, recordings(tmp_path, 5.0, 3.0))))
    assert seen == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_bad_recordings_leave_the_others_alone(tmp_path, monkeypatch, ahead):
    monkeypatch.setitem(sys.modules, "av", None)  # whose reason depends on FFmpeg's version
    paths = recordings(tmp_path, 5.0, 9.0, 3.0, 1.0)
    samples, _ = soundfile.read(paths[1])
    samples[6 * RATE] = np.nan
    soundfile.write(paths[1], samples, RATE, subtype="FLOAT")
    paths[3].write_bytes(b"no sound")
    transcriber = Transcriber(CONFIG, listening(ahead))
    results = list(transcriber.transcribe_many(map(Request, [tmp_path / "missing", *paths, paths[0]]), 2))
    assert [str(result) for result in results if isinstance(result, Exception)] == [
        f"{tmp_path / 'missing'}: no such file",
        f"{paths[1]}: the sample at 6.000 s is nan, which is no sound; export the file again",
        f"{paths[3]}: is not audio that can be read (Format not recognised); if other programs play it, "
        '`pip install "mt3-twins[audio]"` for FFmpeg\'s decoders',
    ]
    assert [number for number, result in enumerate(results) if isinstance(result, Transcription)] == [1, 3, 5]
    assert results[1] == results[5] == transcriber.transcribe(paths[0])
    assert results[3] == transcriber.transcribe(paths[2])


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_network_that_fails_blames_one_recording(tmp_path, ahead):
    """Here at the third segment of the second recording; whatever was in the batch behind it is begun again."""
    paths = recordings(tmp_path, 3.0, 7.0, 5.0)
    told = []

    def failing(segments):
        references = []

        def watched():
            for segment in segments:
                references.append(segment)
                yield segment

        for number, ids in enumerate(listening(ahead)(watched())):
            if references[number].index == 2 and np.array_equal(references[number].frames, bad):
                raise MemoryError("too much")
            yield ids

    samples, _ = soundfile.read(paths[1], dtype="float32")
    bad = list(segments(samples, CONFIG))[2].frames
    requests = [Request(path, on_notes=lambda notes, path=path: told.append((path, notes))) for path in paths]
    results = list(Transcriber(CONFIG, failing).transcribe_many(requests, 2))
    assert [type(result) for result in results] == [Transcription, MemoryError, Transcription]
    assert results[2] == Transcriber(CONFIG, listening(1)).transcribe(paths[2])
    for path, result in zip(paths, results):
        if isinstance(result, Transcription):
            assert [note for where, notes in told if where == path for note in notes] == result.notes


@pytest.mark.parametrize("wrong", ["nothing", "early", "unasked"])
def test_a_network_that_does_not_answer(tmp_path, wrong):
    def generate(segments):
        if wrong == "unasked":
            yield [1]
        for segment in itertools.islice(segments, wrong == "early"):
            yield [segment.index]

    results = list(Transcriber(CONFIG, generate).transcribe_many(map(Request, recordings(tmp_path, 3.0, 1.0))))
    expected = [RuntimeError, Transcription if wrong == "early" else RuntimeError]
    assert [type(result) for result in results] == expected


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reading ")]


def test_nobody_reads_on_when_nobody_asks(tmp_path):
    """Also where the queue is full and the reader waits for room."""
    results = Transcriber(CONFIG, listening(1)).transcribe_many(map(Request, recordings(tmp_path, 1.0, 90.0, 90.0)), 2)
    next(results)
    assert threads() != []
    results.close()
    assert threads() == []


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_while_a_thread_starts_leaves_no_thread(tmp_path, monkeypatch, begun):
    """A thread that is left may abort the process when that ends."""
    paths = recordings(tmp_path, 30.0, 30.0)
    start = threading.Thread.start

    def interrupted(thread):
        if begun:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(Transcriber(CONFIG, listening(1)).transcribe_many(map(Request, paths)))
    assert not threads()


def test_only_so_much_is_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "QUEUED_SEGMENTS", 2)
    made = []

    segments = MT3Family.segments

    def counted(*arguments):
        for segment in segments(*arguments):
            made.append(segment.index)
            yield segment

    monkeypatch.setattr(MT3Family, "segments", counted)
    most = 0

    def generate(frames):
        nonlocal most
        for number, _ in enumerate(frames, 1):
            threading.Event().wait(0.01)
            most = max(most, len(made) - number)
            yield [1]

    Transcriber(CONFIG, generate).transcribe(recordings(tmp_path, 60.0)[0])
    # two in the queue, one that waits for room, and one behind it by which it is known not to be the last
    assert 0 < most <= 4


def test_before_is_called_first_and_may_refuse(tmp_path):
    def refuse():
        raise ValueError("no")

    path = recordings(tmp_path, 1.0)[0]
    requests = [Request(tmp_path / "missing", before_reading=refuse), Request(path, before_reading=path.touch)]
    results = list(Transcriber(CONFIG, listening(1)).transcribe_many(requests))
    assert (str(results[0]), results[1].num_segments) == ("no", 1)


def holding(answers, rows):
    """A generate that takes PromptedSegments, at most `rows` at a time as batching does, and keeps them in .taken."""

    def generate(segments):
        waiting = collections.deque()
        for item in itertools.chain(segments, itertools.repeat(None)):
            if item is not None:
                generate.taken.append(item)
                waiting.append(item)
            elif not waiting:
                return
            if item is None or len(waiting) == rows:
                item = waiting.popleft()
                yield np.concatenate([item.prompt_ids, answers[item.segment.index]])

    generate.taken = []
    return generate


def test_what_goes_on_is_asked_for_again_under_its_program(audio):
    """Segments that agree with what was before are not; nor is anything tied that the network does not tie."""
    vocabulary = Vocabulary(CONFIG.vocabulary)

    def ids(*events):
        return np.array([*(vocabulary.index(*event) + 3 for event in events), 1], np.int32)

    def program(number):
        return ("program", number)

    begin, end, tie = ("velocity", 1), ("velocity", 0), ("tie", 0)
    c, e, g = ("pitch", 60), ("pitch", 64), ("pitch", 67)
    free = [
        # of another program in the first segment, which has nothing before it
        ids(tie, ("shift", 50), program(8), begin, c, g, program(40), e),
        # c is tied under another program and so is what was not there; g ends
        ids(program(16), c, ("pitch", 70), program(40), e, tie, ("shift", 10), program(16), begin, ("pitch", 62)),
        # as before
        ids(program(8), c, program(40), e, tie, ("shift", 20), end, e, program(8), end, c, begin, e),
        # a new program alone
        ids(program(8), e, tie, ("shift", 20), program(0), begin, c),
    ]
    again = {1: ids(("shift", 10), program(8), begin, ("pitch", 62)), 3: ids(("shift", 20), program(0), begin, c)}
    taken = []

    def generate(segments):
        for request in segments:
            if request is None:
                return
            taken.append(request)
            number = request.segment.index
            yield np.concatenate([request.prompt_ids, again[number]]) if len(request.prompt_ids) else free[number]

    result = Transcriber(CONFIG, generate, continuity=InstrumentContinuity(1.5, 1)).transcribe(audio)
    assert [request.segment.index for request in taken] == [0, 1, 1, 2, 3, 3]
    forced = [[vocabulary.events[token - 3] for token in request.prompt_ids] for request in taken]
    assert [forced[number] for number in (0, 1, 3, 4)] == [[]] * 4
    assert forced[2] == [program(8), c, program(40), e, tie]
    assert forced[5] == [program(8), e, tie]
    ends = {(note.pitch, note.program): round(note.offset, 2) for note in result.notes}
    assert set(ends) == {(60, 8), (67, 8), (64, 40), (62, 8), (64, 8), (60, 0)}
    assert (ends[67, 8], ends[64, 40], ends[62, 8]) == (2.04, 4.29, 4.09)
    first = 3 + vocabulary.ranges["program"][0]
    unbiased = [{token - first for token in np.flatnonzero(request.logit_bias == 0).tolist()} for request in taken]
    assert [programs & set(range(128)) for programs in unbiased[::2]] == [set(range(128)), {8, 40}, set(range(128))]
    assert unbiased[5] & set(range(128)) == {8, 40}
    assert set(taken[2].logit_bias.tolist()) == {-1.5, 0.0}
    assert result.metadata["held"] == 1.5


@pytest.mark.parametrize(("at_once", "rows"), [(1, 3), (2, 2), (2, 5), (8, 8)])
def test_held_recordings_come_out_as_if_alone_whatever_runs_beside_them(tmp_path, at_once, rows):
    paths = recordings(tmp_path, 5.0, 9.0, 1.0, 3.0)
    answers = ids_of(NOTES, 9.0)
    alone = [
        Transcriber(CONFIG, holding(answers, 1), continuity=InstrumentContinuity(1.0, 1)).transcribe(path).notes
        for path in paths
    ]
    assert len({len(notes) for notes in alone}) > 1
    transcriber = Transcriber(CONFIG, holding(answers, rows), continuity=InstrumentContinuity(1.0, at_once))
    *together, missing = transcriber.transcribe_many(map(Request, [*paths, tmp_path / "missing"]))
    assert [result.notes for result in together] == alone
    assert isinstance(missing, AudioError)


def test_held_recordings_do_not_heed_the_recording_so_far(audio):
    """Their segments come twice, so they would count twice; every answer here comes with what would change it."""
    vocabulary = Vocabulary(CONFIG.vocabulary)
    generate = holding(ids_of(NOTES, 9.0), 2)

    def with_logits(segments):
        for ids in generate(segments):
            positions = program_positions(ids, vocabulary.first_id("program"))
            yield SegmentTokens(ids, np.eye(128, dtype=np.float32)[np.full(len(positions), 100)] * 50)

    def programs(generate, continuity=None):
        transcriber = Transcriber(CONFIG, generate, continuity=continuity)
        return {note.program for note in transcriber.transcribe(audio).notes}

    policy = InstrumentContinuity(1.0, 2)
    assert programs(with_logits, policy) == programs(generate, policy)
    assert 100 not in programs(generate, policy)


@pytest.mark.parametrize("hold", [None, 1.0])
def test_each_segment_is_corrected_by_its_own_activations_but_not_as_published(audio, hold):
    """The third segment does not hear its onset; every answer has activations, also those that come a second time."""
    answers = ids_of(NOTES, 9.0)
    network = dataclasses.replace(CONFIG.network, pre_encoder_layers=1, pre_encoder_dim=4, context_frames=8)
    config = dataclasses.replace(CONFIG, network=network)
    shape = config.heard_frames, PITCH_ROWS, 2
    numbers = []

    def generate(arriving):
        numbers.clear()

        def noted():
            for segment in arriving:
                if segment is not None:
                    numbers.append(segment.segment.index if hold else segment.index)
                yield segment

        for turn, ids in enumerate((holding(answers, 2) if hold else answering(answers))(noted())):
            yield SegmentTokens(ids, None, np.full(shape, 0.4 * (numbers[turn] != 2), np.float32))

    transcriber = Transcriber(config, generate, continuity=hold and InstrumentContinuity(hold, 2))
    assert {note.pitch for note in transcriber.transcribe(audio, published=True).notes} == {36, 60, 64, 67}
    assert {note.pitch for note in transcriber.transcribe(audio).notes} == {36, 60, 64}
    assert (len(numbers) > len(set(numbers))) == bool(hold)


def test_held_recordings_go_through_a_running_batch(tmp_path):
    """Rows of a stand-in for the framework, that end after as many steps as their segment's length decides.

    It changes its mind about the program in every segment, unless it is held.
    """
    vocabulary = Vocabulary(CONFIG.vocabulary)
    again = []

    class Batch:
        def __init__(self, num_rows):
            self.num_rows, self.left, self.ids = num_rows, [0] * num_rows, [None] * num_rows

        def prefill(self, rows, frames, uniforms, prompts=None):
            for row, item in zip(rows, prompts, strict=True):
                assert not self.left[row]
                self.left[row] = 1 + (item.segment.index + len(item.prompt_ids)) % 3
                program = 0 if item.logit_bias.any() else 8 * (item.segment.index % 3)
                ties = [("program", program), ("pitch", 60)] * (item.segment.index > 0)
                events = [*ties, ("tie", 0)] if not len(item.prompt_ids) else []
                events += [("shift", 7), ("program", program), ("velocity", 1), ("pitch", 60)]
                again.extend([item.segment.index] * bool(len(item.prompt_ids)))
                self.ids[row] = np.array([*item.prompt_ids, *(vocabulary.index(*event) + 3 for event in events), 1])
            return []

        def advance(self):
            self.left = [max(0, left - 1) for left in self.left]
            return np.array([not left for left in self.left])

        def collect(self, rows):
            return [self.ids[row] for row in rows]

        def compact(self, rows):
            self.num_rows = len(rows)
            self.left, self.ids = [self.left[row] for row in rows], [self.ids[row] for row in rows]

    def generate(segments):
        return batching.decode_continuously(Batch, segments, batching.SearchSettings(max_steps=8), 3)

    paths = recordings(tmp_path, 5.0, 9.0, 1.0, 3.0, 7.0)
    expected = None
    for ahead, readers in ((1, 1), (1, 3), (3, 1), (8, 2)):
        again.clear()
        transcriber = Transcriber(CONFIG, generate, continuity=InstrumentContinuity(1.0, ahead))
        results = list(transcriber.transcribe_many(map(Request, paths), readers))
        assert [transcription.num_segments for transcription in results] == [3, 5, 1, 2, 4]
        assert sorted(again) == [1, 1, 1, 1, 2, 2, 2, 4]
        assert {note.program for transcription in results for note in transcription.notes} == {0}
        assert expected in (None, [transcription.notes for transcription in results])
        expected = [transcription.notes for transcription in results]


def test_a_model_without_ties_has_nothing_to_hold():
    with pytest.raises(ValueError, match="nothing to hold"):
        Transcriber(PRESETS["ismir2021"], holding([], 1), continuity=InstrumentContinuity(1.0, 1))


@pytest.mark.parametrize("ahead", [1, 3])
def test_velocities_come_from_the_segment_that_a_note_begins_in(tmp_path, ahead):
    """Two tones that get softer from segment to segment; the second sounds through three of them."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    first = 0.05 * np.sin(2 * np.pi * 261.6 * time) * ((time > 0.1) & (time < 0.6))
    second = 0.01 * np.sin(2 * np.pi * 329.6 * time) * (time > 1.0) * np.exp(-2 * np.maximum(time - 1.0, 0))
    soundfile.write(tmp_path / "a.wav", first + second, RATE, subtype="FLOAT")
    transcriber = Transcriber(CONFIG, answering(ids_of(NOTES), ahead))
    told = []
    result = transcriber.transcribe(tmp_path / "a.wav", velocity="estimate", on_notes=told.extend)
    velocities = {(note.pitch, note.is_drum): note.velocity for note in result.notes}
    assert 80 < velocities[60, False] < 127
    assert 30 < velocities[64, False] < velocities[60, False] / 1.5
    assert velocities[67, False] < 5
    assert told == result.notes
    assert result.notes == transcriber_of(ids_of(NOTES)).transcribe(tmp_path / "a.wav", velocity="estimate").notes
    fixed = transcriber_of(ids_of(NOTES)).transcribe(tmp_path / "a.wav", velocity=33).notes
    assert {note.velocity for note in fixed} == {33}
    assert [note._replace(velocity=0) for note in fixed] == [note._replace(velocity=0) for note in result.notes]


def transcriber_of(answers):
    return Transcriber(CONFIG, answering(answers))


def test_a_tempo_goes_into_the_files(audio, tmp_path):
    result = transcriber_of(ids_of(NOTES)).transcribe(audio, tempo=90)
    assert (result.tempo.beats, result.metadata["bpm"]) == ((0.0, 60 / 90), 90.0)
    result.write(tmp_path / "a.mid")
    onsets = sorted(note.onset for note in midi.read_midi(tmp_path / "a.mid"))
    assert onsets == pytest.approx(sorted(note.onset for note in result.notes), abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
def test_an_array_of_samples_is_transcribed_as_its_file_is(tmp_path, dtype):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (round(SECONDS * 44100), 2))
    if np.issubdtype(dtype, np.integer):
        samples *= 2 ** (8 * np.dtype(dtype).itemsize - 1)
    samples = samples.astype(dtype)
    subtype = {"float32": "FLOAT", "float64": "DOUBLE", "int16": "PCM_16", "int32": "PCM_32"}[np.dtype(dtype).name]
    soundfile.write(tmp_path / "song.wav", samples, 44100, subtype=subtype)
    spectra = []

    def generate(frames):
        answers = iter(ids_of(NOTES))
        for segment in frames:
            spectra[-1].append(segment.frames)
            yield next(answers)

    transcriber = Transcriber(CONFIG, generate)
    results = []
    for source in ({"audio": tmp_path / "song.wav"}, {"audio": samples, "sample_rate": 44100}):
        spectra.append([])
        results.append(transcriber.transcribe(**source))
    assert results[0].notes == results[1].notes
    assert (results[1].duration, results[1].metadata["audio"]) == (SECONDS, "samples")
    # 32-bit integers have more digits than the floats that are read of either
    for one, other in zip(*spectra, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(100), None, "needs its sample_rate"),
        (np.zeros((2, 44100)), 44100, "would have 44100 channels: transpose them"),
        (np.zeros((1, 2, 3)), 44100, "no recording"),
        (np.zeros(0), 44100, "no recording"),
        (np.zeros(100, np.uint8), 44100, "no scale"),
        (np.array([0.0, np.nan]), 44100, "NaN"),
    ],
)
def test_arrays_that_are_no_recording_are_refused(samples, rate, message):
    with pytest.raises(ValueError, match=message):
        Transcriber(CONFIG, answering([])).transcribe(samples, sample_rate=rate)


def test_messages_about_an_array_name_no_file(caplog):
    """One array after the other: what is odd about the second is reported, too."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 3).astype(np.float32)
    transcriber = transcriber_of(ids_of(NOTES))
    for _ in range(2):
        result = transcriber.transcribe(np.column_stack([samples, -samples]), sample_rate=16000)
        [message] = caplog.messages
        assert message.startswith("samples: its channels cancel each other out")
        caplog.clear()
    assert (result.metadata["audio"], result.title) == ("samples", None)
    for name, title in (("in/Etude No.1", "Etude No.1"), ("Etude No.1.FLAC", "Etude No.1"), ("a.b.webm", "a.b")):
        assert dataclasses.replace(result, metadata={"audio": name}).title == title
    with pytest.raises(AudioError, match=r"^samples: start 9 s is at or past the end \(3\.00 s\)$"):
        transcriber.transcribe(samples, start=9, sample_rate=16000)


def test_an_array_that_there_is_no_room_for(monkeypatch):
    def full(path, *_, **options):
        raise soundfile.LibsndfileError(2, f"Error opening {str(path)!r}: ")

    monkeypatch.setattr(soundfile, "write", full)
    with pytest.raises(OSError, match=r"the samples, 4 MB, cannot be written to [^ ]+, the folder of tem") as error:
        transcriber_of([]).transcribe(np.zeros(1_000_000), sample_rate=16000)
    assert "array.wav" not in str(error.value)


def test_notes_that_are_too_short_are_left_out_but_no_drums(audio):
    notes = Transcriber(CONFIG, answering(ids_of(NOTES))).transcribe(audio).notes
    longer = Transcriber(CONFIG, answering(ids_of(NOTES))).transcribe(audio, min_note=0.4).notes
    assert longer == [note for note in notes if note.pitch != 67]
    assert len(longer) == len(notes) - 1 == 3


@pytest.mark.parametrize(
    ("only", "pitches"),
    [("violin", [64]), ("piano", [60, 67]), ("drums", [36]), ("organ", []), ("drums,violin", [36, 64])],
)
def test_only_the_notes_of_some_instruments_are_kept(audio, only, pitches):
    generate = answering(ids_of(NOTES))
    notes = Transcriber(CONFIG, generate).transcribe(audio, only=parse_instruments(only)).notes
    assert sorted(note.pitch for note in notes) == pitches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": "center"}, "channel must be one of mean, left, right, not 'center'"),
        ({"velocity": 200}, "velocity must be 'estimate', 'auto', or a whole number from 1 to 127, not 200"),
        ({"velocity": 0}, "velocity must be"),
        ({"velocity": 64.5}, "velocity must be"),
        ({"velocity": True}, "velocity must be"),
        ({"min_note": -5}, "min_note must be a time of 0 s or more, up to 1e9, not -5"),
        ({"start": float("nan")}, "start must be a time of 0 s or more"),
        ({"duration": 0}, "duration must be a time above 0 s, up to 1e9, not 0"),
        ({"duration": "7"}, "duration must be a time above 0 s, up to 1e9, not '7'"),
        ({"first_downbeat": -3}, "first_downbeat must be a time of 0 s or more, up to 1e9, not -3"),
        ({"quantise": True}, "quantise moves notes to the beats of tempo: give tempo 'auto', or a number"),
        ({"tempo": 1e9}, "tempo must be 'auto', or a number from 10 to 1000, not 1000000000.0"),
        ({"tempo": "estimate"}, "tempo must be 'auto', or a number"),
        ({"meter": 3}, "meter must be text such as '3/4', or 'auto', not 3"),
        ({"meter": "3/5"}, "'3/5' is no meter"),
        ({"only": "basss"}, "no instrument 'basss'"),
        ({"only": ["bass"]}, "only must be instruments, such as 'piano,bass', not ['bass']"),
        ({"gain": 1e9}, "gain must be 'auto', or a number of dB from -150 to 150, not 1000000000.0"),
        ({"sample_rate": 0}, "sample_rate must be a whole number from 1 up, not 0"),
        ({"sample_rate": 10**400}, "sample_rate must be a whole number from 1 up, not 1"),
    ],
)
def test_arguments_out_of_their_ranges_are_refused_at_once(audio, options, message):
    for recording in (audio, np.zeros(RATE)):
        with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
            Transcriber(CONFIG, answering([])).transcribe(recording, **{"sample_rate": RATE, **options})
        assert "\n" not in str(error.value)


def test_instruments_may_be_named_in_text(audio):
    result = Transcriber(CONFIG, answering(ids_of(NOTES))).transcribe(audio, only="violin", velocity=np.int64(5))
    assert [(note.program, note.velocity) for note in result.notes] == [(40, 5)]


CLASSES = CONFIG.with_granularity("midi_class")


@pytest.mark.parametrize(
    ("instruments", "only", "programs"),
    [
        ("cello", None, {64: 42}),
        ("cello,violin", None, {64: 40}),
        ("33,cello,piano", None, {60: 0, 64: 42, 67: 0}),
        (None, "cello", {64: 42}),
        (None, "celesta", {}),
        (None, "harpsichord,cello", {60: 6, 64: 42, 67: 6}),
        ("violin,cello", "cello,piano", {64: 42}),
    ],
)
def test_of_a_model_of_families_an_instrument_stands_for_its_own(audio, instruments, only, programs):
    """The network writes violins, as its training joined all strings to them."""
    instruments, only = (name and parse_instruments(name) for name in (instruments, only))
    streamed: list[Note] = []
    transcriber = Transcriber(CLASSES, answering(ids_of(NOTES)), instruments=instruments)
    result = transcriber.transcribe(audio, only=only, on_notes=streamed.extend)
    assert {note.pitch: note.program for note in result.notes if not note.is_drum} == programs
    assert streamed == result.notes


def test_of_a_model_of_families_instruments_that_are_held_have_their_names(audio):
    """Prompts and biases have the network's programs, the notes the one that was named."""
    prompts = []

    def generate(items):
        answers = ids_of(NOTES)
        for item in items:
            if item is not None:
                prompts.append(item.prompt_ids)
                yield answers[item.segment.index]

    chosen = parse_instruments("harpsichord,cello")
    transcriber = Transcriber(CLASSES, generate, None, chosen, InstrumentContinuity(2.0, 1))
    notes = [note for note in transcriber.transcribe(audio).notes if not note.is_drum]
    assert {note.pitch: note.program for note in notes} == {60: 6, 64: 42, 67: 6}
    first = Vocabulary(CLASSES.vocabulary).first_id("program")
    assert {int(token) - first for prompt in prompts for token in prompt if 0 <= token - first < 128} == {40}


@pytest.mark.parametrize("chosen", ["instruments", "only"])
def test_that_no_note_is_left_is_said_but_not_of_silence(audio, tmp_path, caplog, chosen):
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(7 * RATE), RATE)
    organ = parse_instruments("organ,viola")
    for path in (audio, silence):
        generate = answering(ids_of([note for note in NOTES if not note.is_drum]))
        transcriber = Transcriber(CONFIG, generate, instruments=organ if chosen == "instruments" else None)
        assert transcriber.transcribe(path, only=organ if chosen == "only" else None).notes == []
    sentences = [message for message in caplog.messages if "asked for" in message]
    assert sentences == [
        f"{audio}: it is not silent, but no note is of the instruments that were asked for (organ, viola)"
    ]


@pytest.mark.parametrize(
    "audio", [[0.0, 0.1], io.BytesIO(b""), memoryview(b"")], ids=lambda audio: type(audio).__name__
)
def test_what_is_neither_a_path_nor_an_array_is_refused(audio):
    with pytest.raises(TypeError, match=f"a NumPy array, not {type(audio).__name__}: numpy.asarray makes one"):
        Transcriber(CONFIG, answering([])).transcribe(audio)
