"""Metrics of estimated against reference notes, as MT3's paper and mir_eval define them.

Needs mir_eval (`pip install "mt3-twins[evaluate]"`).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mt3_common.io.optional import needed
from mt3_common.notes.note import CLASS_SIZE, DRUM_CLASSES, Note, first_of_class

# s; mir_eval's default, which all published figures use
ONSET_TOLERANCE = 0.05
# frames per second of the frame measure, and the velocity above which a reference note counts (mt3/metrics.py)
FRAME_RATE = 62.5
FRAME_VELOCITY = 30
# shortest duration of a note in the frame measure (s)
FRAME_MIN_DURATION = 0.05
# of the range of the references' velocities; mir_eval's default
VELOCITY_TOLERANCE = 0.1
# s; drum hits that are closer are one where a measure joins drums
SAME_HIT = 0.02
GRANULARITIES = ("flat", "midi_class", "full")


class Score(NamedTuple):
    """Share of correct estimates (precision), share of matched references (recall), and F1."""

    precision: float
    recall: float
    f1: float


def score(num_matched: float, num_references: float, num_estimates: float) -> Score:
    """Return the Score of counts; without references and estimates it is 1."""
    if not num_references and not num_estimates:
        return Score(1.0, 1.0, 1.0)
    precision = num_matched / num_estimates if num_estimates else 0.0
    recall = num_matched / num_references if num_references else 0.0
    return Score(precision, recall, 2 * precision * recall / (precision + recall) if num_matched else 0.0)


def evaluate(references: Sequence[Note], estimates: Sequence[Note]) -> dict[str, float]:
    """Return all measures by name, in 0..1.

    onset, onset_offset and onset_offset_velocity ignore drums and programs; drums needs time and drum of a hit to
    match, drum_class time and class (DRUM_CLASSES), drum_onset its time alone; onset_class needs the MIDI class too
    (drums are a class in which the drum must match); program_flat, program_midi_class and program_full are MT3's
    program-aware F1. Each measure also comes as NAME_precision and NAME_recall.
    """
    pitched, estimated = _pitched(references), _pitched(estimates)
    scores = {
        "onset": _match(pitched, estimated),
        "onset_offset": _match(pitched, estimated, offsets=True),
        "onset_offset_velocity": _match(pitched, estimated, offsets=True, velocities=True),
        "frame": frame_score(references, estimates),
        "drums": _match(_drums(references), _drums(estimates)),
        "drum_class": _match(_drum_classes(references), _drum_classes(estimates)),
        "drum_onset": drum_onset_score(references, estimates),
        "onset_class": program_score(references, estimates, "midi_class", offsets=False),
    }
    scores |= {f"program_{name}": program_score(references, estimates, name) for name in GRANULARITIES}
    values: dict[str, float] = {}
    for name, (precision, recall, f1) in scores.items():
        values |= {name: f1, f"{name}_precision": precision, f"{name}_recall": recall}
    return values


def program_score(
    references: Sequence[Note], estimates: Sequence[Note], granularity: str = "full", offsets: bool = True
) -> Score:
    """Return MT3's program-aware score: programs must match; drums are matched by onset alone.

    Args:
        references: true notes.
        estimates: notes to judge.
        granularity: "flat" (drums or not), "midi_class" (8 neighbouring programs are one) or "full".
        offsets: require the offsets of pitched notes to match, as MT3 does.

    Raises:
        ValueError: no such granularity.

    Source: mt3/metrics.py, program_aware_note_scores: precisions and recalls of the programs are pooled by numbers of
    notes.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, not {granularity!r}")
    size = {"flat": 128, "midi_class": CLASS_SIZE, "full": 1}[granularity]

    def group(note: Note) -> tuple[bool, int]:
        return note.is_drum, 0 if note.is_drum else note.program // size

    matched = 0.0
    for key in {group(note) for note in [*references, *estimates]}:
        members = [note for note in references if group(note) == key]
        candidates = [note for note in estimates if group(note) == key]
        if members and candidates:
            matched += _match(members, candidates, offsets=offsets and not key[0]).recall * len(members)
    return score(matched, len(references), len(estimates))


def frame_score(references: Sequence[Note], estimates: Sequence[Note]) -> Score:
    """Score sounding pitches 62.5 times a second, without drums and reference notes of velocity 30 or less.

    Source: mt3/metrics_utils.py, get_prettymidi_pianoroll and frame_metrics.
    """
    loud = [note for note in references if note.velocity > FRAME_VELOCITY]
    reference, estimate = _sounding_spans(loud), _sounding_spans(estimates)
    common = sum(_overlap(spans, estimate[pitch]) for pitch, spans in reference.items() if pitch in estimate)
    lengths = (sum(stop - first for spans in side.values() for first, stop in spans) for side in (reference, estimate))
    return score(common, *lengths)


def drum_onset_score(references: Sequence[Note], estimates: Sequence[Note]) -> Score:
    """Score the times of drum hits, whatever the drum; hits less than SAME_HIT apart count as one."""
    mir_eval = library()
    onsets, estimated = (_distinct_onsets(_drums(notes)) for notes in (references, estimates))
    matched = (
        len(mir_eval.util.match_events(onsets, estimated, ONSET_TOLERANCE)) if len(onsets) and len(estimated) else 0
    )
    return score(matched, len(onsets), len(estimated))


def matched_notes(
    references: Sequence[Note], estimates: Sequence[Note], onset_tolerance: float = ONSET_TOLERANCE
) -> list[tuple[int, int]]:
    """Match notes as the measures onset and drums do; return pairs of a reference's and an estimate's index.

    Pitched notes match by pitch and onset, drums by drum and onset, whatever the program.

    Args:
        references: true notes.
        estimates: notes to judge.
        onset_tolerance: largest difference of two onsets that match, in seconds.
    """
    matches = []
    for is_drum in (False, True):
        rows, columns = ([i for i, n in enumerate(notes) if n.is_drum == is_drum] for notes in (references, estimates))
        pairs = _pairs([references[i] for i in rows], [estimates[j] for j in columns], tolerance=onset_tolerance)
        matches += [(rows[i], columns[j]) for i, j in pairs]
    return sorted(matches)


def confidence_interval(values: Sequence[float], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean, by bootstrap."""
    array = np.asarray(values, np.float64)
    rows = np.random.default_rng(seed).integers(len(array), size=(draws, len(array)))
    low, high = np.quantile(array[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _match(
    references: Sequence[Note], estimates: Sequence[Note], offsets: bool = False, velocities: bool = False
) -> Score:
    """Return the Score of mir_eval's one-to-one note matching."""
    return score(len(_pairs(references, estimates, offsets, velocities)), len(references), len(estimates))


def _pairs(
    references: Sequence[Note],
    estimates: Sequence[Note],
    offsets: bool = False,
    velocities: bool = False,
    tolerance: float = ONSET_TOLERANCE,
) -> list[tuple[int, int]]:
    """Match notes one to one with mir_eval, pitch by pitch; return pairs of indices.

    mir_eval compares each reference with each estimate, which for all pitches together of an hour of music would take
    gigabytes; notes of two pitches never match.
    """
    groups: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, notes in enumerate((references, estimates)):
        for index, note in enumerate(notes):
            groups[note.pitch][side].append(index)
    pairs: list[tuple[int, int]] = []
    for rows, columns in groups.values():
        chosen = [references[row] for row in rows], [estimates[column] for column in columns]
        pairs += [(rows[i], columns[j]) for i, j in _pairs_of_a_pitch(*chosen, offsets, tolerance)]
    return _of_like_velocities(pairs, references, estimates) if velocities else pairs


def _of_like_velocities(
    pairs: list[tuple[int, int]], references: Sequence[Note], estimates: Sequence[Note]
) -> list[tuple[int, int]]:
    """Return the pairs whose velocities differ by less than VELOCITY_TOLERANCE of the references' range.

    Estimated velocities are first fitted to the references' by a line over all pairs.

    Source: mir_eval.transcription_velocity.match_notes, which takes no pairs.
    """
    if not pairs:
        return []
    wanted, given = (np.array([note.velocity for note in notes], np.float64) for notes in (references, estimates))
    wanted = (wanted - wanted.min()) / max(1.0, wanted.max() - wanted.min())
    rows, columns = np.array(pairs).T
    wanted, given = wanted[rows], given[columns]
    slope, intercept = np.linalg.lstsq(np.stack([given, np.ones(len(given))], axis=1), wanted, rcond=None)[0]
    is_like = np.abs(slope * given + intercept - wanted) < VELOCITY_TOLERANCE
    return [pair for pair, like in zip(pairs, is_like, strict=True) if like]


def _pairs_of_a_pitch(
    references: Sequence[Note], estimates: Sequence[Note], offsets: bool, tolerance: float
) -> list[tuple[int, int]]:
    """Match notes of one pitch with mir_eval; return pairs of indices."""
    if not references or not estimates:
        return []
    mir_eval = library()
    arrays: list[Any] = []
    for notes in (references, estimates):
        intervals = np.array([(n.onset, max(n.offset, n.onset + 1e-3)) for n in notes], np.float64)
        arrays += [intervals, 440.0 * 2.0 ** ((np.array([n.pitch for n in notes]) - 69) / 12)]
    return mir_eval.transcription.match_notes(*arrays, onset_tolerance=tolerance, offset_ratio=0.2 if offsets else None)


def _pitched(notes: Sequence[Note]) -> list[Note]:
    return [note for note in notes if not note.is_drum]


def _drums(notes: Sequence[Note]) -> list[Note]:
    return [note for note in notes if note.is_drum]


def _drum_classes(notes: Sequence[Note]) -> list[Note]:
    """Return the hits as those of the first drum of their class; of those of a class within SAME_HIT, the first."""
    first = first_of_class(DRUM_CLASSES)
    hits: list[Note] = []
    latest: dict[int, float] = {}
    for note in sorted(_drums(notes)):
        pitch = first.get(note.pitch, note.pitch)
        if note.onset - latest.get(pitch, -math.inf) >= SAME_HIT:
            latest[pitch] = note.onset
            hits.append(note._replace(pitch=pitch))
    return hits


def _sounding_spans(notes: Sequence[Note]) -> dict[int, list[tuple[int, int]]]:
    """Return for each pitch the spans of frames (first, stop) in which it sounds, in order and apart; without drums."""
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for note in sorted(_pitched(notes)):
        last = max(note.offset, note.onset + FRAME_MIN_DURATION)
        first, stop = int(note.onset * FRAME_RATE), int(last * FRAME_RATE)
        earlier = spans[note.pitch]
        if earlier and first <= earlier[-1][1]:
            earlier[-1] = earlier[-1][0], max(earlier[-1][1], stop)
        else:
            earlier.append((first, stop))
    return spans


def _overlap(references: list[tuple[int, int]], estimates: list[tuple[int, int]]) -> int:
    """Return the number of frames that two lists of spans have in common."""
    common = i = j = 0
    while i < len(references) and j < len(estimates):
        (first, stop), (estimate_first, estimate_stop) = references[i], estimates[j]
        common += max(0, min(stop, estimate_stop) - max(first, estimate_first))
        if stop < estimate_stop:
            i += 1
        else:
            j += 1
    return common


def _distinct_onsets(notes: Sequence[Note]) -> np.ndarray:
    """Return the sorted onsets without those less than SAME_HIT after the one before."""
    onsets: list[float] = []
    for onset in sorted(note.onset for note in notes):
        if not onsets or onset - onsets[-1] >= SAME_HIT:
            onsets.append(onset)
    return np.array(onsets)


def library() -> Any:
    """Return the module mir_eval.

    Raises:
        ValueError: it is not installed.
    """
    with needed("measuring needs mir_eval", "evaluate"):
        import mir_eval
    return mir_eval
