"""The result of a transcription: notes, counts, and the files that they are written to."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from mt3_common.formats import midi, musicxml, note_sequence, tables, yourmt3_midi
from mt3_common.formats.find_audio import name_of_recording
from mt3_common.formats.registry import SUFFIXES
from mt3_common.notes.grid import quantised_times
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import Tempo


@dataclasses.dataclass(frozen=True)
class Transcription:
    """Notes of a recording, with counts and metadata.

    Attributes:
        notes: in the order in which they ended, as MT3 lists them; 0 s is where the reading of the audio began.
        duration: audio that was read (s).
        num_segments: segments that it was cut into.
        invalid: tokens that were skipped: no event, or out of place.
        dropped: tokens past the beginning of the next segment.
        metadata: for JSON: the names of the audio and the checkpoint, start, instruments.
        seconds: time that each of STAGES took (s).
        tempo: beats, for MIDI and MusicXML; None for none.
        is_quantised: whether notes are moved to the grid of the tempo in MIDI, too.
        published_midi: MIDI files are those that the authors of YourMT3+ write.
    """

    notes: list[Note]
    duration: float
    num_segments: int
    invalid: int
    dropped: int
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict, compare=False)
    tempo: Tempo | None = None
    is_quantised: bool = False
    published_midi: bool = False

    @property
    def num_instruments(self) -> int:
        """Number of programs that play; all drums count as one."""
        return len({(note.program, False) if not note.is_drum else (0, True) for note in self.notes})

    @property
    def title(self) -> str | None:
        """Name of the recording without its ending; None for one without a name, such as stdin or samples."""
        name = self.metadata.get("audio", "")
        return None if name in ("", "stdin", "samples") else name_of_recording(Path(name).name)

    def with_tempo(self, tempo: Tempo, quantise: bool = False) -> "Transcription":
        """Return a copy with beats and bars; quantise is as is_quantised."""
        metadata = self.metadata | {"bpm": round(60 / tempo.interval, 3), "meter": str(tempo.meter)}
        return dataclasses.replace(self, tempo=tempo, metadata=metadata, is_quantised=quantise)

    def write(self, path: str | os.PathLike) -> None:
        """Write a file in the format that its name ends in: .mid (or .midi), .json, .csv, .noteseq or .musicxml.

        A .noteseq file is a serialised note_seq.NoteSequence. The file appears whole or not at all; one that is
        there is replaced.

        Raises:
            ValueError: the name ends in something else, note_seq is needed and missing, or the file cannot be written.
        """
        match SUFFIXES.get(Path(path).suffix.lower()):
            case "mid" if self.published_midi:
                yourmt3_midi.write_published_midi(self.notes, path, self.tempo)
            case "mid":
                notes = self.notes
                if self.is_quantised and self.tempo is not None:
                    notes = quantised_times(notes, self.tempo)
                midi.write_midi(notes, path, self.tempo)
            case "json":
                counts = {
                    "duration": self.duration,
                    "segments": self.num_segments,
                    "invalid": self.invalid,
                    "dropped": self.dropped,
                }
                tables.write_json(self.notes, path, self.metadata | counts)
            case "csv":
                tables.write_csv(self.notes, path)
            case "noteseq":
                note_sequence.write_note_sequence(self.notes, path)
            case "musicxml":
                musicxml.write_musicxml(self.notes, path, self.tempo, self.title)
            case _:
                raise ValueError(f"{path}: the name of the output must end in {', '.join(SUFFIXES)}")
