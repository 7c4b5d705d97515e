"""Files of notes that the page sends back: nothing is kept on the server, and no path comes from a user."""

import itertools
import math
import tempfile
from pathlib import Path
from typing import Any

from mt3_common.formats.tables import json_note
from mt3_common.io.json_text import parse_json
from mt3_common.io.shown_names import shown_as
from mt3_common.notes.meter import parse_meter
from mt3_common.notes.note import check_notes
from mt3_common.notes.tempo import FASTEST, Tempo
from mt3_common.transcription.result import Transcription

KINDS = {
    "mid": "audio/midi",
    "musicxml": "application/vnd.recordare.musicxml+xml",
    "json": "application/json",
    "csv": "text/csv",
}
# entries of metadata, and characters of one, that a file takes from a request
MOST_METADATA, LONGEST_TEXT = 16, 4096
MOST_NOTES, MOST_BEATS_PER_SECOND = 1_000_000, 20
# s between beats, half of what the fastest tempo has: before and behind the beats given, more follow at their distance
SHORTEST_BEAT = 30 / FASTEST
# s that notes and beats may last beyond the longest recording
GRACE = 60.0


def file_of(kind: str, body: bytes, longest: float) -> bytes:
    """Return a file as the command line writes it.

    Args:
        kind: of KINDS.
        body: JSON with notes, and what work.described returns.
        longest: s of the longest recording that the server takes: a score takes time and memory by its bars.

    Raises:
        ValueError: the body is something else, or a library is missing; says which.
    """
    transcription = parsed(body, longest)
    with tempfile.TemporaryDirectory(prefix="mt3-twins-") as folder:
        path = Path(folder) / f"notes.{kind}"
        with shown_as(path, path.name):
            transcription.write(path)
            return path.read_bytes()


def parsed(body: bytes, longest: float) -> Transcription:
    """Return the transcription that a request describes, of a recording of `longest` s at most.

    Raises:
        ValueError: it does not describe one.
    """
    try:
        content = parse_json(body)
        if not isinstance(content, dict) or not isinstance(content["notes"], list):
            raise ValueError("notes must be a list")
        if len(content["notes"]) > MOST_NOTES:
            raise ValueError(f"more than {MOST_NOTES} notes")
        notes = [json_note(item) for item in content["notes"]]
        check_notes(notes)
        if any(note.offset > longest + GRACE for note in notes):
            raise ValueError(f"a note ends after {longest:g} s, the longest recording that this server takes")
        counts = [content.get(name, 0) for name in ("segments", "invalid", "dropped")]
        duration = content.get("duration", 0)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("segments, invalid and dropped must be whole numbers")
        if isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 <= duration < math.inf:
            raise ValueError("duration must be a number of seconds")
        segments, invalid, dropped = counts
        return Transcription(
            notes,
            float(duration),
            segments,
            invalid,
            dropped,
            _metadata(content.get("metadata")),
            tempo=_tempo(content.get("tempo"), longest),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the request does not describe notes: {error}") from error


def _metadata(metadata: Any) -> dict[str, Any]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or len(metadata) > MOST_METADATA:
        raise ValueError("metadata must be an object of few entries")
    for name, value in metadata.items():
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if len(name) > LONGEST_TEXT or not (is_number or (isinstance(value, str) and len(value) <= LONGEST_TEXT)):
            raise ValueError("metadata must have short texts and numbers only")
    # the command line writes these as numbers with a point
    return metadata | {name: float(metadata[name]) for name in ("start", "held", "bpm") if name in metadata}


def _tempo(tempo: Any, longest: float) -> Tempo | None:
    if tempo is None:
        return None
    beats, downbeat = tempo["beats"], tempo["downbeat"]
    if not isinstance(beats, list) or not 2 <= len(beats) <= MOST_BEATS_PER_SECOND * (longest + GRACE):
        raise ValueError("a tempo has two beats or more, and twenty a second at most")
    if any(isinstance(beat, bool) or not isinstance(beat, int | float) or not math.isfinite(beat) for beat in beats):
        raise ValueError("beats must be numbers")
    if beats[-1] > longest + GRACE:
        raise ValueError(f"a beat comes after {longest:g} s, the longest recording that this server takes")
    if beats[0] < 0 or any(later <= earlier for earlier, later in itertools.pairwise(beats)):
        raise ValueError("beats must ascend from 0 s or later")
    if any(later - earlier < SHORTEST_BEAT for earlier, later in itertools.pairwise(beats)):
        raise ValueError(f"beats must be {SHORTEST_BEAT:g} s apart or more")
    if type(downbeat) is not int or not 0 <= downbeat < len(beats):
        raise ValueError("downbeat must be the number of a beat")
    start = tempo["start"]
    meter = parse_meter(tempo["meter"])
    # a recording that begins inside a bar has the beginning of that bar before 0 s
    earliest = -float(meter.bar + 1) * (beats[1] - beats[0])
    if start is not None and (
        isinstance(start, bool) or not isinstance(start, int | float) or not earliest <= start <= longest + GRACE
    ):
        raise ValueError(f"start must be a number of seconds, at most a bar before 0 s, and before {longest:g} s")
    return Tempo(tuple(map(float, beats)), downbeat, meter, start and float(start))
