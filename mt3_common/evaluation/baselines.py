"""Other transcribers, to compare with MT3."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from mt3_common.audio.files import audio_duration
from mt3_common.formats import midi
from mt3_common.io.shown_names import shown_as
from mt3_common.transcription.result import Transcription


class BasicPitch:
    """Spotify's Basic Pitch, run by its own command in an environment of its own.

    Raises:
        ValueError: there is no such command.
    """

    tells_velocities = True

    def __init__(self, command: str = "basic-pitch"):
        path = shutil.which(command)
        if path is None:
            raise ValueError(
                f"--baseline basic-pitch: there is no command {command!r}; install it in an environment of its own "
                "(pip install basic-pitch) and name it: --baseline-command ENVIRONMENT/bin/basic-pitch"
            )
        self.command = path

    def transcribe(self, path: Path) -> Transcription:
        """Transcribe a recording with Basic Pitch.

        Raises:
            ValueError: it failed; the message has the last line of its output.
        """
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run([self.command, folder, str(path)], capture_output=True, text=True)
            [*written] = Path(folder).glob("*.mid")
            if result.returncode or not written:
                message = (result.stderr.strip() or result.stdout.strip() or "nothing").splitlines()[-1]
                raise ValueError(f"{path}: basic-pitch failed: {message.replace(folder + os.sep, '')}")
            with shown_as(written[0], f"{path}, as basic-pitch hears it"):
                notes = midi.read_midi(written[0], sustain=True)
            return Transcription(notes, audio_duration(path) or 0.0, 0, invalid=0, dropped=0)
