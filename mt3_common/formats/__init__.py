"""Notes as files: MIDI, JSON, CSV, NoteSequence, MusicXML, pictures, sound."""
