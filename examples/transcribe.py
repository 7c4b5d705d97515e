"""Transcribe a recording: python examples/transcribe.py song.wav."""

import sys

from torch_mt3 import infer  # or: from jax_mt3 import infer

transcription = infer.load().transcribe(sys.argv[1], velocity="auto")
transcription.write("song.mid")
for note in transcription.notes[:5]:
    print(f"{note.onset:6.2f} s  pitch {note.pitch}  program {note.program}")
