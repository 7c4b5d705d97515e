"""Results of the scripts that browsers run by themselves, held to Python's: in Node.js, without a browser."""

import base64
import collections
import contextlib
import dataclasses
import functools
import json
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from browsing import HAS_RUNTIME, NO_NODE, NO_RUNTIME, NODE, RUNTIME
from fakes import CONFIG, encode, noise

from mt3_common.audio import decoders
from mt3_common.audio.decoders import open_source
from mt3_common.audio.files import AudioError, read_audio
from mt3_common.audio.segments import segments, start_times
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.config import LOWEST_PITCH, PITCH_ROWS, Config
from mt3_common.formats.midi import write_midi
from mt3_common.formats.tables import fields
from mt3_common.notes.decoder import NoteDecoder
from mt3_common.notes.instruments import allowed_tokens, parse_instruments
from mt3_common.notes.meter import Meter
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import Tempo, constant
from mt3_common.notes.vocabulary import EOS_ID, SPECIAL_IDS, Vocabulary
from mt3_common.transcription.activations import ONSET, SOUNDING, ActivationCorrector
from mt3_common.transcription.batching import PromptedSegment, SegmentTokens, until_eos
from mt3_common.transcription.continuity import HOLD_BIAS, InstrumentContinuity
from mt3_common.transcription.family import MT3Family
from mt3_common.transcription.instrument_prior import InstrumentPrior
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.reader import AUTO_VELOCITY
from mt3_common.transcription.result import Transcription
from mt3_common.web.files import file_of
from mt3_common.web.runtime import MPG123, SCRIPT, WASM, runtime_files
from mt3_common.web.site import site_files
from mt3_common.web.strips import strip
from mt3_common.web.work import described

pytestmark = [pytest.mark.process, pytest.mark.skipif(NODE is None, reason=NO_NODE)]

DRIVER = Path(__file__).with_name("local_driver.mjs")
CHECKPOINT = NamedCheckpoint(Path("small"), "small")
VOCABULARY = Vocabulary(CONFIG.vocabulary)


# networks with a pre-encoder: of 0.8, of 2 and of 3.2 steps a frame, the second with the sizes of the bundled default
HEARING = dataclasses.replace(
    CONFIG,
    network=dataclasses.replace(CONFIG.network, pre_encoder_layers=2, pre_encoder_dim=32, context_frames=8),
)
CONFIGS = {
    "mt3": CONFIG,
    "hearing": HEARING,
    # too little context for corrections
    "context alone": dataclasses.replace(HEARING, network=dataclasses.replace(HEARING.network, context_frames=2)),
    "classes": CONFIG.with_granularity("midi_class", "class"),
    "default": dataclasses.replace(
        HEARING, spectrogram=dataclasses.replace(HEARING.spectrogram, hop_width=320), input_frames=64
    ),
    "long frames": dataclasses.replace(
        HEARING,
        network=dataclasses.replace(HEARING.network, context_frames=5),
        spectrogram=dataclasses.replace(HEARING.spectrogram, hop_width=512),
        input_frames=40,
    ),
}


@pytest.fixture(scope="module")
def node_of(tmp_path_factory):
    """A function from one of CONFIGS to one that runs a mode of the driver on the scripts of its site."""

    @functools.cache
    def of(name: str) -> Callable[..., Any]:
        folder = tmp_path_factory.mktemp("local")
        decoder = runtime_files(RUNTIME)[MPG123] if HAS_RUNTIME else b""
        written = site_files(CONFIGS[name], CHECKPOINT, b"", {SCRIPT: b"", WASM: b"", MPG123: decoder})
        for file, content in written.items():
            if file == "site.json" or file.startswith("local/"):
                (folder / Path(file).name).write_bytes(content)
        (folder / "package.json").write_text('{"type": "module"}')

        def run(mode: str, **payload: Any) -> Any:
            done = subprocess.run(
                [str(NODE), DRIVER, folder, mode], input=json.dumps(payload), text=True, capture_output=True
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        return run

    return of


@pytest.fixture(scope="module")
def node(node_of):
    """A function that runs a mode of the driver on the scripts of a site of MT3."""
    return node_of("mt3")


def text(samples: np.ndarray) -> str:
    return base64.b64encode(samples.astype("<f4").tobytes()).decode()


def floats(encoded: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(encoded), "<f4")


def decibels(expected: np.ndarray, actual: np.ndarray) -> float:
    error = np.square(expected.astype(np.float64) - actual).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / error))


@pytest.mark.parametrize(
    ("rate", "dense", "least"),
    [
        (48000, False, 120),
        (44100, False, 120),
        (22050, False, 120),
        (8000, False, 120),
        (11025, False, 120),
        (192000, False, 120),
        (37800, True, 65),
        (44100, True, 120),
        (9000, True, 65),
    ],
)
def test_resampling_is_soxrs(node, rate, dense, least):
    samples = noise(0.7, rate=rate)[:, 0].astype(np.float32)
    expected = read_resampled(samples, rate)
    actual = floats(node("resample", rate=rate, samples=text(samples), dense=dense))
    assert len(actual) == len(expected)
    # soxr fades in over the first samples where rates have no small ratio, and may leave out the last
    assert decibels(expected[300:-1], actual[300:-1]) > least
    np.testing.assert_allclose(actual, expected, atol=5e-3)


def read_resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample as audio.files does, to as many samples."""
    resampled = soxr.resample(samples, rate, 16000, quality="HQ")
    count = -(-len(samples) * 16000 // rate)
    return np.concatenate([resampled, np.zeros(max(0, count - len(resampled)), np.float32)])[:count]


def music(seconds: float) -> np.ndarray:
    """Return chords with some noise, (n,) float32."""
    times = np.arange(round(seconds * 16000)) / 16000
    pitches = 220 * 2 ** (np.array([0, 4, 7, 12, 19, 31]) / 12)
    tones = np.sin(2 * np.pi * pitches[:, None] * times).sum(axis=0) * np.exp(-(times % 0.5) * 4)
    return (0.1 * tones + 0.001 * noise(seconds)[:, 0]).astype(np.float32)


@pytest.mark.parametrize("num_samples", [0, 1, 320, 81920, 100_000])
def test_frames_segments_and_strips(node, num_samples):
    samples = music(7)[:num_samples]
    expected = list(segments(samples, CONFIG, published=False))
    actual = node("segments", samples=text(samples))
    assert [segment["isLast"] for segment in actual] == [False] * (len(expected) - 1) + [True]
    for answer, segment in zip(actual, expected, strict=True):
        assert (answer["index"], answer["start"], answer["numFrames"]) == (*segment[:2], segment.num_frames)
        assert answer["context"] is segment.context is None
        assert_frames_close(answer["frames"], segment.frames)
        picture = strip(segment, MT3Family(CONFIG))
        levels = [np.frombuffer(base64.b64decode(item.pop("levels")), np.uint8) for item in (picture, answer["strip"])]
        np.testing.assert_allclose(levels[0].astype(int), levels[1], atol=1)
        assert answer["strip"] == picture


def assert_frames_close(encoded: str, expected: np.ndarray) -> None:
    """Hold log-mel frames to Python's: closely where they are loud."""
    frames = floats(encoded).reshape(expected.shape)
    loud = expected > np.log(0.05)
    np.testing.assert_allclose(frames[loud], expected[loud], atol=2e-4)
    np.testing.assert_allclose(frames, expected, atol=0.03)


@pytest.mark.parametrize("lengths", [[1, 30000, 500], [1_000_000], [3, 6001, 20480, 1]])
@pytest.mark.parametrize("name", ["hearing", "default", "long frames"])
def test_the_frames_around_segments(node_of, name, lengths):
    """Recordings of no sample, of one, and around the length of a segment, without and with what its context needs."""
    config = CONFIGS[name]
    spectrogram = config.spectrogram
    size = config.input_frames * spectrogram.hop_width
    ahead = (config.network.context_frames - 1) * spectrogram.hop_width + spectrogram.fft_size
    sound = music(7)
    for num_samples in (0, 1, size - 1, size, size + 1, size + ahead, size + ahead + 1, 2 * size + 100, len(sound)):
        samples = sound[:num_samples]
        expected = list(segments(samples, config, published=False))
        actual = node_of(name)("segments", samples=text(samples), lengths=lengths)
        assert len(expected) == num_samples // size + 1
        for answer, segment in zip(actual, expected, strict=True):
            assert (answer["numFrames"], answer["start"]) == (segment.num_frames, segment.start_time)
            assert_frames_close(answer["frames"], segment.frames)
            assert_frames_close(answer["context"], segment.context)


def test_frames_are_computed_once_where_no_segment_ends(node_of):
    samples = music(7)
    count = len(samples) // 320 + 1
    # of each segment those whose window reaches behind it, and eight more; and eight before the first
    cut = 2048 // 320
    num_segments = -(-count // 64)
    last = count - 64 * (num_segments - 1)
    expected = count + 8 + (num_segments - 1) * (cut + 8) + (64 + 8 - min(last, 64 - cut))
    assert node_of("default")("frames", samples=text(samples)) == expected


@pytest.mark.parametrize("name", ["mt3", "default"])
def test_start_times_are_exact(node_of, name):
    expected = start_times(3000, CONFIGS[name], published=False)
    np.testing.assert_array_equal(node_of(name)("starts", count=3000), expected)


def random_ids(rng: np.random.Generator) -> list[int]:
    """Return ids of a segment: few pitches and programs, so that notes repeat, end and are tied."""

    def one() -> int:
        kind = rng.choice(
            ["shift", "pitch", "velocity", "tie", "program", "drum", "none"], p=[0.2, 0.4, 0.1, 0.05, 0.1, 0.1, 0.05]
        )
        if kind == "none":
            return int(rng.choice([0, 1, 2, 1500, 1535]))
        most = {"shift": 60, "pitch": 64, "velocity": 1, "tie": 0, "program": 3, "drum": 40}[kind]
        least = {"pitch": 60, "drum": 38}.get(kind, 0)
        return SPECIAL_IDS + VOCABULARY.index(kind, int(rng.integers(least, most + 1)))

    ties = [SPECIAL_IDS + VOCABULARY.index("pitch", int(pitch)) for pitch in rng.integers(60, 65, rng.integers(0, 3))]
    return [*ties, SPECIAL_IDS + VOCABULARY.index("tie", 0), *(one() for _ in range(rng.integers(0, 40)))]


def random_logits(rng: np.random.Generator, ids: list[int]) -> np.ndarray:
    """Return logits of programs for each program token among ids, (k, 128) float32; a few may not be chosen."""
    first = VOCABULARY.first_id("program")
    count = sum(first <= token < first + 128 for token in ids)
    logits = rng.normal(0, 3, (count, 128)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    return logits


def test_instruments_are_chosen_by_the_recording_so_far(node):
    """Programs of many classes, so that choices change; velocities of 0 begin no notes."""
    rng = np.random.default_rng(8)
    recordings, changes = [], 0
    for _ in range(40):
        recording = []
        for _ in range(rng.integers(1, 12)):
            ids = random_ids(rng)
            first = VOCABULARY.first_id("program")
            ids = [int(rng.integers(first, first + 128)) if first <= token < first + 128 else token for token in ids]
            if rng.random() < 0.7:
                ids.append(EOS_ID)
            ids = until_eos(np.array(ids, np.int32))
            recording.append((ids, random_logits(rng, ids)))
        recordings.append(recording)
    answers = node("prior", recordings=[[(ids.tolist(), text(rows)) for ids, rows in part] for part in recordings])
    for recording, answer in zip(recordings, answers, strict=True):
        prior = InstrumentPrior(VOCABULARY)
        for (ids, logits), actual in zip(recording, answer["ids"], strict=True):
            chosen = prior.choose(SegmentTokens(ids, logits))
            assert actual == chosen[chosen != EOS_ID].tolist()
            changes += int((chosen != ids).sum())
        np.testing.assert_allclose(answer["counts"], prior.counts, rtol=1e-9)
    assert changes > 100


# of the test of corrections: few, so that notes repeat; below, at both ends of, and above the rows of the pre-encoder
SOME_PITCHES = [12, LOWEST_PITCH - 1, LOWEST_PITCH, 60, 61, 62, 72, 100, LOWEST_PITCH + PITCH_ROWS - 1, 117, 125]


def timed_ids(rng: np.random.Generator, num_steps: int) -> list[int]:
    """Return ids of a segment: most events in order, some in the past or without meaning; some without a tie token."""

    def token(kind: str, value: Any) -> int:
        return SPECIAL_IDS + VOCABULARY.index(kind, int(value))

    def program() -> list[int]:
        return [token("program", rng.choice([0, 1, 40]))] * (rng.random() < 0.6)

    def pitch() -> int:
        return token("pitch", 60 if rng.random() < 0.2 else rng.choice(SOME_PITCHES))

    ids = []
    for _ in range(rng.integers(0, 6)):
        ids += [*program(), pitch()]
    if rng.random() < 0.05:
        ids += [token("shift", 9), token("drum", 38), token("shift", rng.integers(0, 19)), *program()]
    if rng.random() < 0.92:
        ids.append(token("tie", 0))
    step = 0
    for _ in range(rng.integers(0, 30)):
        chance = rng.random()
        if chance < 0.6:
            step = int(rng.integers(0, num_steps)) if chance < 0.05 else step + int(rng.integers(0, num_steps // 5))
            shifts = [step // 2, step - step // 2] if chance < 0.15 else [step]
            ids += [token("shift", min(shift, VOCABULARY.max_shift_steps)) for shift in shifts]
        ids += program()
        if rng.random() < 0.7:
            ids.append(token("velocity", rng.random() < 0.5))
        ids.append(pitch())
        if rng.random() < 0.1:
            ids.append(token("drum", rng.integers(35, 40)))
        if rng.random() < 0.1:
            ids.append(int(rng.choice([0, 2, 1459, 1500, 1535, token("tie", 0)])))
    if rng.random() < 0.02:
        ids += [*[token("shift", 900)] * 2, token("pitch", 60), *[token("shift", 1000)] * 2]
        ids += [token("velocity", 0), token("pitch", 60)]
    if rng.random() < 0.5:
        ids.append(EOS_ID)
    return ids + [token("pitch", 60)] * (rng.random() < 0.05)


def random_activations(rng: np.random.Generator, config: Config) -> np.ndarray:
    """Return activations of a segment, (frames, rows, 2) float32: many equal ones, many at the thresholds."""
    frames = config.heard_frames
    activations = np.zeros((frames, PITCH_ROWS, 2), np.float32)
    for pitch in {60, *rng.choice(SOME_PITCHES, 5).tolist()} & set(range(LOWEST_PITCH, LOWEST_PITCH + PITCH_ROWS)):
        heights = rng.random(frames) ** 2 * (rng.random(frames) < rng.choice([0.02, 0.1, 0.5]))
        levels = np.repeat(rng.random(frames // 4 + 1), 4)[:frames] + rng.choice([-0.3, 0, 0.3, 0.6])
        columns = np.clip(np.stack([levels, 1.25 * heights], axis=1), 0, 1)
        if rng.random() < 0.7:
            columns = np.round(columns, 1)
        activations[:, pitch - LOWEST_PITCH, [SOUNDING, ONSET]] = columns
    return activations


class CountingCorrector(ActivationCorrector):
    """Counts what it corrects."""

    def __init__(self, config: Config, counts: collections.Counter[str]):
        super().__init__(config)
        self.counts = counts

    def _parse(self, ids):
        parsed = super()._parse(ids)
        self.counts["skipped" if parsed else "without a tie token"] += parsed.num_skipped if parsed else 1
        return parsed

    def _split(self, ties, activations):
        tied_as, others = super()._split(ties, activations)
        self.counts["held"] += len(others)
        self.counts["tied under another program"] += sum(key != tie for key, tie in tied_as.items())
        return tied_as, others

    def _kept(self, events, tied_as, activations):
        rest = super()._kept(events, tied_as, activations)
        for kind in ("onset", "offset"):
            self.counts[f"dropped {kind}"] += sum(event.kind == kind for event in events)
            self.counts[f"dropped {kind}"] -= sum(event.kind == kind for event in rest)
        return rest

    def _missed(self, onsets, ties, activations):
        missed = super()._missed(onsets, ties, activations)
        self.counts["added"] += len(missed)
        return missed

    def _unended(self, *segment):
        unended = super()._unended(*segment)
        self.counts["without an end in the last segment"] += len(unended)
        return unended

    def _lengthened(self, events, *others):
        lengthened = super()._lengthened(events, *others)
        offsets = [event for event in events if event.kind == "offset"]
        changed = [event for event in lengthened if event.kind == "offset"]
        self.counts["lengthened"] += len(set(changed) - set(offsets))
        self.counts["left to the next segment"] += max(0, len(offsets) - len(changed))
        onsets = {(event.pitch, event.step) for event in events if event.kind == "onset"}
        self.counts["ended by the next onset"] += sum((event.pitch, event.step) in onsets for event in changed)
        return lengthened


@pytest.mark.parametrize("name", ["hearing", "default", "long frames"])
def test_onsets_and_offsets_are_corrected_by_activations(node_of, tmp_path, name):
    """Short segments, so that many notes sound from one to the next."""
    config = dataclasses.replace(CONFIGS[name], input_frames=40)
    num_steps = round(config.input_frames * config.vocabulary.steps_per_second / config.spectrogram.frames_per_second)
    rng = np.random.default_rng(9)
    recordings = [[timed_ids(rng, num_steps) for _ in range(rng.integers(1, 12))] for _ in range(250)]
    counts = collections.Counter[str]()
    expected, lengths = [], []
    with open(tmp_path / "activations", "wb") as file:
        for recording in recordings:
            corrector = CountingCorrector(config, counts)
            expected.append([])
            length = config.input_frames * config.spectrogram.hop_width
            num_samples = len(recording) * length - int(rng.choice([0, 1, rng.integers(length), length]))
            lengths.append(num_samples)
            for number, ids in enumerate(recording, 1):
                activations = random_activations(rng, config)
                file.write(activations.tobytes())
                expected[-1].append(
                    corrector.correct(
                        np.array(ids, np.int32), activations, num_samples if number == len(recording) else None
                    ).tolist()
                )
    path = str(tmp_path / "activations")
    actual = node_of(name)("corrected", recordings=recordings, lengths=lengths, path=path, frames=config.input_frames)
    for number, segment_ids in enumerate(expected):
        assert actual[number] == segment_ids, number
    assert sum(map(len, recordings)) > 1400
    assert len(counts) == 11
    assert min(counts.values()) > 50, counts


@pytest.mark.parametrize("name", ["mt3", "classes"])
def test_notes_of_any_ids(node_of, name):
    rng = np.random.default_rng(5)
    vocabulary = Vocabulary(CONFIGS[name].vocabulary)
    recordings = []
    for number in range(200):
        count = int(rng.integers(1, 6))
        times = [*map(float, start_times(count, CONFIG, published=False)), None]
        parts = [(random_ids(rng), times[index], times[index + 1]) for index in range(count)]
        recordings.append({"segments": parts, "programs": [0, 2] if number % 2 else None})
    total, drums = 0, set()
    for recording, actual in zip(recordings, node_of(name)("notes", recordings=recordings), strict=True):
        decoder = NoteDecoder(vocabulary, recording["programs"], published=False)
        notes = [note for part in recording["segments"] for note in decoder.feed(*part)] + decoder.finish()
        drums |= {note.pitch for note in notes if note.is_drum}
        assert actual["notes"] == [fields(note) for note in notes]
        assert (actual["invalid"], actual["dropped"]) == (decoder.invalid, decoder.dropped)
        total += len(notes)
    assert total > 1000
    assert drums == ({38, 39, 40} if name == "mt3" else {38, 39})


def random_notes(rng: np.random.Generator, count: int, programs: int) -> list[Note]:
    notes = []
    for onset, length in zip(np.round(rng.uniform(0, 20, count), 2), rng.choice([0.01, 0.3, 2.7], count)):
        pitch, velocity, program = (int(rng.integers(*bounds)) for bounds in ((40, 60), (1, 128), (0, programs)))
        is_drum = bool(rng.uniform() < 0.2)
        notes.append(Note(float(onset), float(onset + length), pitch, velocity, 0 if is_drum else program, is_drum))
    return notes


def test_files_are_the_command_lines_byte_for_byte(node):
    rng = np.random.default_rng(6)
    meters = {"4/4": constant(90.0), "auto": Tempo((0.31, 0.8, 1.31, 1.8), 1, Meter(6, 8))}
    results = []
    for number in range(9):
        notes = [] if number == 0 else random_notes(rng, 30 * number, 40 if number % 2 else 3)
        tempo = [None, *meters.values()][number % 3]
        metadata = {"audio": 'a "song"\u2028é\udc80.wav', "start": 0.0, "checkpoint": "small", "held": 2.0}
        transcription = Transcription(notes, 20.5, 11, 3, 0, metadata)
        transcription = transcription.with_tempo(tempo) if tempo else transcription
        results.append({"notes": [fields(note) for note in notes], **described(transcription, metadata["audio"])})
    actual = node("files", results=results)
    for number, result in enumerate(results):
        body = json.dumps(result).encode()
        for offset, kind in enumerate(("mid", "json", "csv")):
            assert base64.b64decode(actual[3 * number + offset]) == file_of(kind, body, 60.0), (number, kind)


def test_a_long_midi_file_has_coarser_ticks(node, tmp_path):
    notes = [Note(0.0, 0.5, 60, 100, 0, False), Note(11000.0, 11000.5, 62, 100, 0, False)]
    result = {"notes": [fields(note) for note in notes], "metadata": {}, "duration": 11001.0, "tempo": None}
    write_midi(notes, tmp_path / "long.mid")
    assert base64.b64decode(node("files", results=[result])[0]) == (tmp_path / "long.mid").read_bytes()


def test_numbers_are_shown_as_python_shows_them(node):
    values = [0.0, 1.0, 0.1 + 0.2, 1e-5, 1.5e-7, 123456789.125, 1e15, 1e16, 2.5e22, -0.01, 0.0001]
    assert node("floats", values=values) == [json.dumps(value) for value in values]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_wav_files_are_read_to_the_bit(node, tmp_path, subtype, channels):
    path = tmp_path / "song.wav"
    soundfile.write(path, noise(1.5, channels), 16000, subtype)
    actual = floats(node("mono", path=str(path), name="song.wav")["samples"])
    # 8 bits have a constant, which is taken off: the mean of many samples
    np.testing.assert_allclose(actual, read_audio(path), rtol=0, atol=1e-9 if subtype == "PCM_U8" else 0)


def test_what_is_mended_and_what_is_refused_is_as_on_the_command_line(node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sound = noise(3.0)
    recordings = {
        "cancelled": (np.concatenate([sound, -sound], axis=1), "FLOAT"),
        "second": (np.concatenate([0.01 * sound, sound, -1.01 * sound], axis=1), "FLOAT"),
        "constant": (sound + 0.25, "FLOAT"),
        "integers": (np.round(sound * 300_000), "FLOAT"),
        "large": (sound * 1e5, "DOUBLE"),
        "nan": (np.where(np.arange(len(sound))[:, None] == 20000, np.nan, sound), "FLOAT"),
        "infinite": (np.where(np.arange(len(sound))[:, None] == 70, -np.inf, sound), "FLOAT"),
        "truncated": (sound, "PCM_16"),
        "none": (sound[:0], "PCM_16"),
        "slow": (sound, "PCM_16"),
    }
    for name, (samples, subtype) in recordings.items():
        path = Path(f"{name}.wav")
        soundfile.write(path, samples, 500 if name == "slow" else 16000, subtype)
        if name == "truncated":
            path.write_bytes(path.read_bytes()[:50001])
        actual = node("mono", path=str(path), name=path.name)
        if name in ("nan", "infinite", "truncated", "none", "slow"):
            with pytest.raises(AudioError) as error:
                read_audio(path)
            assert actual == {"message": str(error.value)}
        else:
            expected = read_audio(path, report=lambda sentence: None)
            np.testing.assert_allclose(floats(actual["samples"]), expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_wav_files_are_read_to_their_ends_whatever_their_headers_state(node, tmp_path, monkeypatch):
    """As on the command line: of programs that write into a pipe, of a recorder that lost its power, joined."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("plain.wav", noise(2.0), 16000, "PCM_16")
    plain = Path("plain.wav").read_bytes()
    place = plain.index(b"data") + 4
    other = b"LIST" + struct.pack("<I", 12) + b"INFOICMT" + bytes(4)

    def stating(size):
        return plain[:place] + struct.pack("<I", size) + plain[place + 4 :]

    recordings = {f"of {size:#x}": stating(size) for size in (0, 1000, 0x7FFFF000, 0x80000000, 0xFFFFFF80, 0xFFFFFFFF)}
    recordings |= {
        "with a chunk": plain + other,
        "with a tag": plain + b"TAG" + bytes(125),
        "with zeros": plain + bytes(99),
        "of 10 ms more": stating(64320),
        "and a header": plain + b"RIFF" + bytes(4) + b"WAVE",
    }
    recordings |= {"two": 2 * plain, "two and a chunk": plain + other + plain}
    # sizes that are wrong, of the other byte order, or of 64 bits; a byte of padding behind an odd number of them
    recordings["with a chunk that states too much"] = plain + b"LIST" + struct.pack("<I", 9999) + bytes(12)
    recordings["with a chunk of the other byte order"] = plain + b"tail" + struct.pack(">I", 12) + bytes(12)
    soundfile.write("long.wav", noise(2.0), 16000, "PCM_16", format="RF64")
    long = Path("long.wav").read_bytes()
    place64 = long.index(b"ds64") + 16
    for size in (0, 1000, 64000, 2**60, 2**64 - 1):
        of_size = long[:place64] + struct.pack("<Q", size) + long[place64 + 8 :]
        recordings |= {f"RF64 of {size:#x}": of_size, f"BW64 of {size:#x}": b"BW64" + of_size[4:]}
    soundfile.write("odd.wav", noise(2.0)[:31999], 16000, "PCM_24")
    odd = Path("odd.wav").read_bytes()
    recordings |= {"odd": odd, "odd and a chunk": odd + other, "two odd": 2 * odd}
    lengths = {"odd": 31999, "odd and a chunk": 31999, "two odd": 63998}
    for name, content in recordings.items():
        path = Path(f"{name}.wav")
        path.write_bytes(content)
        actual = floats(node("mono", path=str(path), name=path.name)["samples"])
        assert len(actual) == lengths.get(name, 64000 if name.startswith("two") else 32000), name
        np.testing.assert_array_equal(actual, read_audio(path, report=lambda sentence: None), err_msg=name)
    soundfile.write("rate.wav", noise(2.0), 44100, "PCM_16")
    soundfile.write("stereo.wav", noise(2.0, 2), 16000, "PCM_16")
    soundfile.write("float.wav", noise(2.0), 16000, "FLOAT")
    others = [Path(f"{name}.wav").read_bytes() for name in ("rate", "stereo", "float")]
    for second in (*others, b"OggS" + bytes(100)):
        Path("mixed.wav").write_bytes(plain + second)
        message = node("mono", path="mixed.wav", name="mixed.wav")["message"]
        assert message.startswith("mixed.wav: another recording of another kind follows")
    # the last one is cut off, or all are: a chunk follows a size of nothing
    for name, content in {"cut": plain + plain[:-20000], "nothing": stating(0)[: place + 4] + other}.items():
        Path(f"{name}.wav").write_bytes(content)
        with pytest.raises(AudioError) as error:
            read_audio(Path(f"{name}.wav"))
        assert node("mono", path=f"{name}.wav", name=f"{name}.wav") == {"message": str(error.value)}


def without_info(content: bytes) -> bytes:
    """Return an MP3 without its first frame, which has the Info header."""
    return content[content.index(b"\xff\xfb", 4) :]


ID3 = b"ID3\x04\0\0\0\0\x01\x00" + b"\xff" * 128


@pytest.mark.skipif(not HAS_RUNTIME, reason=NO_RUNTIME)
@pytest.mark.parametrize(
    ("rate", "channels", "change"),
    [
        (44100, 2, lambda content: content),
        (48000, 1, lambda content: ID3 + content + b"TAG" + bytes(125)),
        (22050, 2, lambda content: content),
        (44100, 1, without_info),
    ],
    ids=["stereo", "mono with tags", "MPEG 2", "without Info"],
)
def test_mp3_files_are_decoded_as_on_the_command_line(node, tmp_path, rate, channels, change):
    """Loud sounds, too, which browsers cut off at 1."""
    sound = noise(2.0, channels, rate)
    soundfile.write(tmp_path / "whole.mp3", sound / np.abs(sound).max(), rate)
    path = tmp_path / "song.mp3"
    path.write_bytes(change((tmp_path / "whole.mp3").read_bytes()))
    expected = read_audio(path, sample_rate=rate)
    assert np.abs(expected).max() > (1.0 if channels == 1 else 0.5)
    actual = node("mono", path=str(path), name="song.mp3")
    assert actual.get("rate") == rate, actual
    samples = floats(actual["samples"])
    assert len(samples) == len(expected)
    assert abs(actual["heldFrames"] - len(expected)) < 1152
    # what the two decoders round to different steps of 16 bits is within one of them
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1.01 / 32768)
    assert np.mean(np.abs(samples - expected) > 1e-6) < 0.1


def test_mp3_files_that_are_no_plain_stream_are_left_to_the_browser(node, tmp_path):
    contents = {}
    for name, rate in (("a", 44100), ("b", 48000)):
        soundfile.write(tmp_path / f"{name}.mp3", noise(1.0, rate=rate), rate)
        contents[name] = (tmp_path / f"{name}.mp3").read_bytes()
    a, b = contents["a"], contents["b"]
    files = {
        "whole": a,
        "joined": a + a,
        "joined at another rate": a + without_info(b),
        "noise between": without_info(a) + b"\x01" * 50 + without_info(a),
        "more than promised": a + without_info(a),
        "no sound": b"no sound at all " * 99,
        "a tag only": ID3,
        "empty": b"",
        "cut": a[: len(a) // 2],
    }
    paths = []
    for number, content in enumerate(files.values()):
        (tmp_path / str(number)).write_bytes(content)
        paths.append(str(tmp_path / str(number)))
    streams = dict(zip(files, node("streams", paths=paths), strict=True))
    assert [name for name, stream in streams.items() if stream] == ["whole", "cut"]
    assert streams["whole"]["heldFrames"] == streams["whole"]["numFrames"] == 44100
    assert streams["cut"]["numFrames"] == 44100
    assert 0.3 < streams["cut"]["heldFrames"] / 44100 < 0.6
    actual = node("mono", path=paths[-1], name="cut.mp3")
    with pytest.raises(AudioError) as error:
        read_audio(paths[-1])
    assert actual["message"].startswith("cut.mp3: truncated or damaged: only the first 0.")
    assert "of 1.00 s can be read; get a whole copy" in actual["message"]
    assert "of 1.00 s can be read; get a whole copy" in str(error.value)


def test_files_state_their_rate(node, tmp_path):
    sound = noise(1.0)
    kinds = [
        ("a.flac", 44100),
        ("b.flac", 96000),
        ("c.ogg", 22050),
        ("d.ogg", 48000),
        ("e.mp3", 44100),
        ("f.mp3", 24000),
    ]
    paths = []
    for name, rate in kinds:
        soundfile.write(tmp_path / name, sound, rate, subtype="PCM_24" if name == "b.flac" else None)
        paths.append(str(tmp_path / name))
    (tmp_path / "tagged.mp3").write_bytes(
        b"ID3\x04\0\0\0\0\x01\x00" + b"\xff" * 128 + b"\xff\xfb\x94\0" + (tmp_path / "e.mp3").read_bytes()
    )
    soundfile.write(tmp_path / "h.opus", noise(1.0, rate=48000), 48000, format="OGG", subtype="OPUS")
    (tmp_path / "words.txt").write_bytes(b"no sound at all " * 99)
    (tmp_path / "short").write_bytes(b"fLaC")
    paths += [str(tmp_path / name) for name in ("tagged.mp3", "h.opus", "words.txt", "short")]
    stated = node("rates", paths=paths)
    assert [item["rate"] for item in stated] == [*(rate for _, rate in kinds), 44100, 48000, None, None]
    assert [(item["numFrames"], item["bits"]) for item in stated[:2]] == [(16000, 16), (16000, 24)]
    assert [item["isLossy"] for item in stated] == [False, False, *[True] * 6, False, False]


# container -> ending, and codings in it: rate and losses are the same in every one of them
KINDS = {
    "matroska": (
        "mkv",
        "flac alac pcm_u8 pcm_s16le pcm_s16be pcm_s24le pcm_s32le pcm_f32le aac libmp3lame mp2 ac3 libopus",
    ),
    "webm": ("webm", "libopus"),
    "mp4": ("mp4", "flac alac pcm_s16be pcm_s24le pcm_f32le aac libmp3lame ac3 libopus"),
    "ipod": ("m4a", "alac aac"),
    "mov": ("mov", "alac pcm_u8 pcm_s8 pcm_s16le pcm_s16be pcm_s24be pcm_s32le pcm_f32be pcm_f64le aac libmp3lame"),
    "aiff": ("aiff", "pcm_s8 pcm_s16be pcm_s24be pcm_s32be pcm_f32be pcm_mulaw"),
    "caf": ("caf", "flac alac pcm_s16le pcm_s24be pcm_f32le pcm_alaw libmp3lame ac3"),
    "wav": ("wav", "pcm_alaw pcm_mulaw adpcm_ms adpcm_ima_wav flac aac libmp3lame"),
    "ogg": ("ogg", "flac libopus"),
    "au": ("au", "pcm_s16be pcm_s24be pcm_f32be pcm_alaw"),
    "adts": ("aac", "aac"),
}


@pytest.mark.parametrize("container", KINDS)
def test_rate_and_losses_are_those_of_the_command_line(node, tmp_path, container):
    """By codec, whatever is around it: lossless samples are not rounded to 16 bits, and lossy ones are."""
    pytest.importorskip("av")
    ending, codecs = KINDS[container]
    sound = noise(0.6, rate=48000)[:, 0]
    kinds = [(codec, 48000 if "opus" in codec else 32000) for codec in codecs.split()]
    paths = [tmp_path / f"{codec}.{ending}" for codec, _ in kinds]
    for path, (codec, rate) in zip(paths, kinds, strict=True):
        encode(path, sound, rate, codec, container)
    for path, (codec, rate), stated in zip(
        paths, kinds, node("rates", paths=[str(path) for path in paths]), strict=True
    ):
        with contextlib.ExitStack() as stack:
            expected = open_source(path, stack)
        assert stated["rate"] == expected.sample_rate == rate, codec
        assert stated["isLossy"] == expected.is_lossy, codec
        # else 16-bit samples would not be taken back from what browsers make of them
        size = re.search(r"_[su](\d+)|law|adpcm", codec)
        if size:
            assert stated["bits"] == int(size[1] or 16), codec


@pytest.mark.parametrize(
    ("codec", "container", "stored", "bits"),
    [
        ("flac", "matroska", "s16", 16),
        ("flac", "mp4", "s32", 24),
        ("alac", "mov", "s16p", 16),
        ("alac", "ipod", "s32p", 24),
    ],
)
def test_containers_state_the_bits_of_lossless_codings(node, tmp_path, codec, container, stored, bits):
    pytest.importorskip("av")
    path = encode(tmp_path / "song", noise(0.6)[:, 0], 16000, codec, container, stored)
    assert node("rates", paths=[str(path)]) == [{"rate": 16000, "bits": bits, "isLossy": False, "numFrames": None}]


def element(name: str, content: bytes) -> bytes:
    """Return an element of Matroska, by the hexadecimal digits of its id."""
    return bytes.fromhex(name) + (0x10000000 | len(content)).to_bytes(4, "big") + content


def test_headers_that_are_nested_or_long_without_end_are_read_in_little_memory(node, tmp_path):
    """Each level and each byte would take a call of its own, and 100,000 of these overflow the stack."""
    depth = element("e1", element("6264", bytes(200_000)))
    sound = element("1654ae6b", element("ae", element("86", b"A_PCM/INT/LIT") + depth))
    boxes = b"".join((8 * (100_000 - level)).to_bytes(4, "big") + b"moov" for level in range(100_000))
    files = {
        "long.mkv": element("1a45dfa3", b"") + element("18538067", sound),
        "nested.mkv": element("1a45dfa3", b"") + bytes.fromhex("18538067ff") * 100_000,
        "nested.mp4": (8).to_bytes(4, "big") + b"ftyp" + boxes,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    unknown = {"rate": None, "bits": None, "isLossy": False, "numFrames": None}
    stated = node("rates", paths=[str(tmp_path / name) for name in files])
    # a rate that is not stated is 8000 Hz
    assert stated == [unknown | {"rate": 8000}, unknown, unknown]


def test_a_film_states_the_rate_of_its_sound(node, tmp_path):
    """Its picture comes first, with numbers where a sound would have its rate."""
    av = pytest.importorskip("av")
    for container, sound in (("mov", "pcm_s24le"), ("matroska", "flac")):
        with av.open(str(tmp_path / container), "w", format=container) as file:
            picture = file.add_stream("mpeg4", rate=25)
            picture.width, picture.height, picture.pix_fmt = 320, 240, "yuv420p"
            stream = file.add_stream(sound, rate=24000, layout="mono")
            file.mux(picture.encode(av.VideoFrame(320, 240, "yuv420p")))
            file.mux(picture.encode(None))
            samples = np.zeros((1, 1152), np.int32)
            frame = av.AudioFrame.from_ndarray(samples, format="s32", layout="mono")
            frame.sample_rate = 24000
            converted = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=24000).resample(frame)
            for part in [*converted, None]:
                file.mux(stream.encode(part))
    stated = node("rates", paths=[str(tmp_path / name) for name in ("mov", "matroska")])
    assert [(item["rate"], item["isLossy"]) for item in stated] == [(24000, False)] * 2


def test_lossy_samples_are_rounded_as_on_the_command_line(node):
    """Halves of a step to the even one."""
    samples = np.concatenate([np.arange(-9, 9) / 2 / 32768, noise(0.5)[:, 0]]).astype(np.float32)
    np.testing.assert_array_equal(floats(node("rounded", samples=text(samples))), decoders._rounded(samples))


def test_bytes_of_the_sound_are_no_rate(node, tmp_path):
    """Bytes like the field of the rate stand in front of it: in a box of another kind, in a void element."""
    sound = b"\xb5\x84\xe9\x7b\xb0\x00" + b"mp4a" + bytes(range(24)) + b"\x12\x34" * 4
    box = lambda kind, content: (8 + len(content)).to_bytes(4, "big") + kind + content  # noqa: E731
    entry = box(b"mp4a", bytes(24) + (44100 << 16).to_bytes(4, "big"))
    moov = box(b"stsd", bytes(8) + entry)
    for kind in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        moov = box(kind, moov)
    (tmp_path / "late.m4a").write_bytes(box(b"ftyp", b"M4A \0\0\0\0") + box(b"mdat", sound) + moov)

    element = lambda number, content: number + bytes([0x80 | len(content)]) + content  # noqa: E731
    unsized = b"\x18\x53\x80\x67\x01" + b"\xff" * 7
    audio = element(b"\xe1", element(b"\xb5", b"\x40\xdf\x40" + bytes(5)))
    tracks = element(b"\x16\x54\xae\x6b", element(b"\xae", element(b"\x86", b"A_AAC") + audio))
    (tmp_path / "live.mkv").write_bytes(element(b"\x1a\x45\xdf\xa3", b"") + unsized + element(b"\xec", sound) + tracks)
    paths = [str(tmp_path / "late.m4a"), str(tmp_path / "live.mkv")]
    assert [item["rate"] for item in node("rates", paths=paths)] == [44100, 32000]


@pytest.mark.parametrize("most", [32767, 32768])
def test_whole_numbers_are_taken_back_from_what_browsers_make_of_them(node, most):
    """Chromium divides positive samples of 16 bits by 32767, negative ones by 32768; others divide all by 32768."""
    whole = np.random.default_rng(3).integers(-32768, 32768, 2000)
    decoded = np.where(whole > 0, whole / most, whole / 32768).astype(np.float32)
    np.testing.assert_array_equal(floats(node("restored", samples=text(decoded))), (whole / 32768).astype(np.float32))


def test_samples_of_8_bits_are_taken_back_too(node):
    """Chromium divides those above 0 by 127."""
    whole = np.random.default_rng(3).integers(-128, 128, 2000)
    decoded = np.where(whole > 0, whole / 127, whole / 128).astype(np.float32)
    np.testing.assert_array_equal(floats(node("restored", samples=text(decoded))), (whole / 128).astype(np.float32))


@pytest.mark.parametrize("name", ["mt3", "hearing", "context alone", "classes"])
@pytest.mark.parametrize(
    "settings", [{}, {"instruments": "piano,drums", "tempo": "97.5"}, {"hold": "1", "meter": "6/8"}]
)
def test_a_recording_becomes_the_same_notes(node_of, tmp_path, settings, name):
    """The whole way with a stand-in for the network, which answers prompts with other notes."""
    node, config = node_of(name), CONFIGS[name]
    path = tmp_path / "song.wav"
    soundfile.write(path, noise(41.0), 16000)
    rng = np.random.default_rng(7)
    free, again = ([random_ids(rng) for _ in range(count)] for count in (30, 5))
    free, again = ([[token for token in ids if token != 1] for ids in answers] for answers in (free, again))
    logits = [random_logits(rng, ids) for ids in free]
    heard = [random_activations(rng, config) for _ in free] if name == "hearing" else None
    heard_file = tmp_path / "activations"
    heard_file.write_bytes(b"".join(activations.tobytes() for activations in heard or []))
    instruments = None
    if "instruments" in settings:
        instruments = parse_instruments(settings["instruments"])
        for rows in logits:
            rows[:, 8:] = -np.inf
    retries = 0

    def generate(items):
        nonlocal retries
        first = 0
        for item in items:
            if item is None:
                continue
            if isinstance(item, PromptedSegment) and len(item.prompt_ids):
                retries += 1
                number = (int((item.logit_bias < 0).sum()) + len(item.prompt_ids)) % len(again)
                yield np.array([*item.prompt_ids, *again[number], 1])
            else:
                first += 1
                ids = np.array([*free[first - 1], 1])
                activations = heard[first - 1] if heard and corrects else None
                yield SegmentTokens(ids, None if "hold" in settings else logits[first - 1], activations)

    continuity = InstrumentContinuity(HOLD_BIAS, 1) if settings.get("hold") else None
    transcriber = Transcriber(config, generate, CHECKPOINT, instruments, continuity)
    tempo = float(settings["tempo"]) if "tempo" in settings else None
    corrects = False
    uncorrected = transcriber.transcribe(path, velocity=AUTO_VELOCITY)
    corrects, retries = True, 0
    expected = transcriber.transcribe(path, tempo=tempo, meter=settings.get("meter"), velocity=AUTO_VELOCITY)
    assert (expected.notes != uncorrected.notes) == (name == "hearing")
    encoded = [text(rows) for rows in logits]
    answers = {"free": free, "again": again, "logits": encoded, "activations": str(heard_file) if heard else None}
    events = node("transcribe", path=str(path), settings=settings, **answers)
    assert [note for event in events if event["type"] == "notes" for note in event["notes"]] == list(
        map(fields, expected.notes)
    )
    assert events[-1] == {"type": "end"} | json.loads(json.dumps(described(expected, "song.wav")))
    assert [event["done"] for event in events if event["type"] == "progress"] == [8, 21]
    assert sum(event["type"] == "strip" for event in events) == expected.num_segments == 21
    assert bool(retries) == ("hold" in settings)


@pytest.mark.parametrize("name", ["mt3", "classes"])
def test_the_mask_of_instruments_is_the_command_lines(node_of, name):
    chosen = parse_instruments("strings,piano")
    allowed = node_of(name)("allowed", programs=sorted(chosen.programs), drums=False)
    np.testing.assert_array_equal(np.array(allowed, bool), allowed_tokens(chosen, CONFIGS[name]))


def test_settings_that_cannot_be_meant_are_refused(node, tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, noise(1.0), 16000)
    (event,) = node("transcribe", path=str(path), settings={"tempo": "5"}, free=[[]], again=[[]], logits=[""])
    assert event == {"type": "error", "message": "5.0 is neither auto nor a number from 10 to 1000"}
    (event,) = node("transcribe", path=str(path), settings={"instruments": "lyre"}, free=[[]], again=[[]], logits=[""])
    assert event["message"].startswith("no instrument 'lyre'; there are piano, ")
    (event,) = node("transcribe", path=str(path), settings={"meter": "3/5"}, free=[[]], again=[[]], logits=[""])
    assert event["message"] == "'3/5' is no meter, such as 4/4, 3/4, 2/4 or 6/8"
