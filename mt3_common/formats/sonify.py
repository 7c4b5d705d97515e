"""A transcription as sound: its notes played, and beside the recording, to compare by ear.

A soundfont is used if there is one and tinysoundfont is installed; otherwise instruments made of sine waves. Audio is
processed in blocks, so memory does not grow with the recording.
"""

import contextlib
import functools
import itertools
import math
import os
import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pretty_midi

from mt3_common.audio.files import DEFAULT_MIX, stream_audio
from mt3_common.audio.levels import Mix
from mt3_common.formats import sealed, sf2
from mt3_common.formats.registry import kind_of
from mt3_common.io.notices import LOGGER
from mt3_common.notes.note import Note, check_notes

# the first at which two channels of 16 bits fit into a WAV: beyond 6.7, 13.5 and 26.9 hours
RATES = (44100, 22050, 11025, 4000)
WAV_BYTES = 2**32 - 2**16
BLOCK = 8192
# seconds for the last notes to decay
TAIL = 2.0
LOUDEST = 0.9
# factor per block by which a reduced gain recovers
RECOVERY = 1.02
# largest gain that matches the loudness of the notes to the recording's
MOST_GAIN = 10.0

# usual folders of soundfonts; the largest below LARGEST_FONT (bytes) is used
FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/sounds/sf3",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
    "~/.local/share/soundfonts",
    "~/Library/Audio/Sounds/Banks",
)
LARGEST_FONT = 200_000_000
MAX_VOICES = 256
DRUMS = 128
# gain of soundfonts (dB): some twenty notes at full velocity stay below LOUDEST
FONT_DB = -12.0

# samples of one period
TABLE = 4096
# level of one note at full velocity
TONE_LEVEL = 0.15


class Timbre(NamedTuple):
    """A family of instruments made of sine waves.

    Attributes:
        slope: partial n has the weight n ** -slope.
        even: even partials have this much of it.
        attack, decay, release: s; decay is infinite for sustained sounds.
    """

    slope: float
    even: float
    attack: float
    decay: float
    release: float


# of General MIDI's 16 families
TIMBRES = (
    Timbre(1.6, 1.0, 0.003, 1.2, 0.12),
    Timbre(2.2, 0.3, 0.002, 0.5, 0.20),
    Timbre(1.0, 0.6, 0.010, math.inf, 0.06),
    Timbre(1.4, 1.0, 0.003, 0.7, 0.10),
    Timbre(1.3, 1.0, 0.005, 0.8, 0.08),
    Timbre(1.2, 1.0, 0.060, math.inf, 0.12),
    Timbre(1.3, 1.0, 0.090, math.inf, 0.20),
    Timbre(1.0, 0.9, 0.030, math.inf, 0.08),
    Timbre(1.2, 0.35, 0.030, math.inf, 0.08),
    Timbre(2.5, 0.6, 0.040, math.inf, 0.10),
    Timbre(1.0, 0.8, 0.010, math.inf, 0.08),
    Timbre(1.8, 1.0, 0.150, math.inf, 0.30),
    Timbre(1.6, 0.7, 0.080, math.inf, 0.30),
    Timbre(1.3, 0.8, 0.003, 0.6, 0.10),
    Timbre(1.8, 0.4, 0.002, 0.3, 0.10),
    Timbre(1.0, 1.0, 0.010, math.inf, 0.20),
)


class Player(Protocol):
    """An instrument, or a set of them, that turns notes into sound."""

    def play(self, notes: Sequence[Note], rate: int, count: int) -> Iterator[np.ndarray]:
        """Yield blocks (BLOCK,) float32, the last one shorter, of count samples in all; they may exceed [-1, 1]."""
        ...


def write_sounds(
    notes: Sequence[Note],
    audio: str | os.PathLike,
    played: str | os.PathLike,
    compared: str | os.PathLike,
    player: Player,
    start: float = 0.0,
    seconds: float = 0.0,
    mix: Mix = DEFAULT_MIX,
) -> None:
    """Write two WAV files of 16 bits: the notes played; and the recording on the left with the notes on the right.

    Args:
        notes: 0 s is where the reading of the audio begins.
        audio: path of the recording.
        played, compared: paths of the files, each written whole or not at all.
        player: as returned by find_player.
        start: offset in the recording (s).
        seconds: how much of the recording to play beside the notes.
        mix: how the recording's channels become one.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes).
        AudioError: the recording cannot be read.
        NoteFileError: a file cannot be written.
    """
    check_notes(notes)
    longest = max(seconds, max((note.offset for note in notes), default=0.0)) + TAIL
    rate = next((rate for rate in RATES if longest * rate * 4 < WAV_BYTES), RATES[-1])
    count = round(longest * rate)
    # energy of the played notes
    energy = 0.0

    def mono() -> Iterator[np.ndarray]:
        nonlocal energy
        for block in limited(player.play(notes, rate, count)):
            energy += float(np.dot(block, block))
            yield block

    write_wav(played, mono(), rate, 1, count)
    left_energy, peak = 0.0, 1.0
    with contextlib.closing(_recording(audio, rate, start, seconds, mix)) as blocks:
        for block in blocks:
            left_energy += float(np.dot(block, block))
            peak = max(peak, float(np.abs(block).max()))
    gain = math.sqrt(left_energy / energy) / peak if energy and left_energy else 1.0
    gain = min(MOST_GAIN, max(1 / MOST_GAIN, gain))

    def stereo() -> Iterator[np.ndarray]:
        with (
            contextlib.closing(_recording(audio, rate, start, seconds, mix)) as blocks,
            contextlib.closing(stream_audio(played, rate, report=LOGGER.debug)) as notes_again,
        ):
            left = _in_blocks(blocks, count)
            for right in limited(gain * block for block in _in_blocks(notes_again, count)):
                yield np.stack([next(left) / peak, right], axis=1)

    write_wav(compared, stereo(), rate, 2, count)


def _recording(audio: str | os.PathLike, rate: int, start: float, seconds: float, mix: Mix) -> Generator[np.ndarray]:
    return stream_audio(audio, rate, start=start, duration=max(seconds, 1 / rate), mix=mix, report=LOGGER.debug)


def _in_blocks(blocks: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield count samples in blocks of BLOCK: the input cut, or followed by silence."""
    buffer = np.zeros(0, np.float32)
    arriving = itertools.chain(blocks, itertools.repeat(np.zeros(BLOCK, np.float32)))
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        while len(buffer) < size:
            buffer = np.concatenate([buffer, next(arriving)])
        yield buffer[:size]
        buffer = buffer[size:]


def limited(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Limit blocks to LOUDEST: the gain falls one block ahead of a peak and recovers slowly after it."""
    gain = 1.0
    last: np.ndarray | None = None
    allowed_last = 1.0
    for block in itertools.chain(blocks, [None]):
        allowed = 1.0 if block is None else LOUDEST / max(LOUDEST, float(np.abs(block).max(initial=0.0)))
        if last is not None:
            end = min(allowed_last, allowed, gain * RECOVERY)
            yield last * np.linspace(gain, end, len(last), endpoint=False, dtype=np.float32)
            gain = end
        else:
            gain = allowed
        last, allowed_last = block, allowed


def write_wav(path: str | os.PathLike, blocks: Iterable[np.ndarray], rate: int, channels: int, count: int) -> None:
    """Write a sealed WAV file of 16 bits from blocks (n,) or (n, channels) in [-1, 1], of count frames in all.

    Raises:
        NoteFileError: the file cannot be written.
    """
    size = 2 * channels * count
    seal = sealed.UNSEALED.encode()
    info = b"INFO" + b"ISFT" + struct.pack("<I", len(seal)) + seal
    head = b"WAVE" + b"fmt " + struct.pack("<IHHIIHH", 16, 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    head += b"LIST" + struct.pack("<I", len(info)) + info + b"data" + struct.pack("<I", size)
    head = b"RIFF" + struct.pack("<I", len(head) + size) + head
    samples = (np.rint(np.clip(block, -1, 1) * 32767).astype("<i2").tobytes() for block in blocks)
    sealed.write_sealed(path, itertools.chain([head], samples))


def is_played(path: Path) -> bool:
    """Return True if write_sounds wrote the file, by its name and header; it may have been changed since."""
    if kind_of(path) not in ("played", "compared"):
        return False
    try:
        with open(path, "rb") as file:
            return sealed.SEAL.search(file.read(512)) is not None
    except OSError:
        return False


def find_player(soundfont: str | os.PathLike | None = None) -> Player:
    """Return a player for a soundfont; for None, the largest of this system, or sine waves without tinysoundfont.

    Raises:
        ValueError: the named soundfont cannot be loaded, or tinysoundfont is not installed.
    """
    if soundfont is not None:
        return FontPlayer(soundfont)
    try:
        import tinysoundfont  # noqa: F401 (whether it is there)
    except ImportError:
        return TonePlayer()
    font = find_soundfont()
    return TonePlayer() if font is None else FontPlayer(font, with_trial=False)


def find_soundfont() -> Path | None:
    """Return the largest soundfont in FOLDERS up to LARGEST_FONT, or pretty_midi's, or None."""
    folders = [*(Path(folder).expanduser() for folder in FOLDERS), Path(pretty_midi.__file__).parent]
    fonts = []
    for folder in folders:
        for path in sorted(folder.glob("*.[sS][fF][23oO]")):
            with contextlib.suppress(OSError):
                fonts.append((path.stat().st_size, path))
    return max((item for item in fonts if item[0] <= LARGEST_FONT), key=lambda item: item[0], default=(0, None))[1]


class FontPlayer:
    """Player of a soundfont.

    Args:
        path: an .sf2, .sf3 or .sfo file.
        with_trial: load it in a process of its own first, if its samples are compressed; see sf2.check.

    Raises:
        ValueError: the file cannot be loaded or has no instruments, or tinysoundfont is not installed.
    """

    def __init__(self, path: str | os.PathLike, with_trial: bool = True):
        try:
            import tinysoundfont
        except ImportError as error:
            raise ValueError(
                "playing on a soundfont needs tinysoundfont: pip install --no-deps tinysoundfont "
                "(--listen alone plays on sine waves)"
            ) from error
        if not Path(path).is_file():
            raise ValueError(f"{path} is no soundfont: there is no such file")
        sf2.check(path, with_trial)
        self._path = str(path)
        self._synth = tinysoundfont.Synth
        synth, font = self._loaded(RATES[0])
        self._presets, self._kits = set(sf2.presets(synth, font, 0)), sf2.presets(synth, font, DRUMS)
        if not self._presets:
            raise ValueError(f"{path} has no instruments in bank 0: name another soundfont")

    def _loaded(self, rate: int):
        synth = self._synth(gain=FONT_DB, samplerate=rate)
        try:
            return synth, synth.sfload(self._path, max_voices=MAX_VOICES)
        except Exception as error:
            raise ValueError(f"{self._path} cannot be loaded as a soundfont") from error

    def _preset(self, program: int) -> int:
        """Return the preset for a program: itself, or the nearest in its family, or the nearest of all."""
        return min(self._presets, key=lambda preset: (preset // 8 != program // 8, abs(preset - program)))

    def play(self, notes: Sequence[Note], rate: int, count: int) -> Iterator[np.ndarray]:
        """Yield the sound of notes, see Player; drums are left out if the font has none."""
        synth, font = self._loaded(rate)
        # A channel per program: tinysoundfont has more than MIDI's 16.
        for program in sorted({note.program for note in notes if not note.is_drum}):
            synth.program_select(program, font, 0, self._preset(program))
        if self._kits:
            synth.program_select(DRUMS, font, DRUMS, self._kits[0], True)
        events = []
        for note in notes:
            if note.is_drum and not self._kits:
                continue
            channel = DRUMS if note.is_drum else note.program
            first, last = (round(time * rate) for time in (note.onset, max(note.offset, note.onset + 0.02)))
            # Offsets come before onsets, so that a repeated pitch sounds again.
            events += [(first, 1, channel, note.pitch, note.velocity), (last, 0, channel, note.pitch, 0)]
        events.sort()
        coming = iter(events)
        event = next(coming, None)
        for begin in range(0, count, BLOCK):
            end = min(count, begin + BLOCK)
            block = np.empty(end - begin, np.float32)
            position = begin
            while position < end:
                while event is not None and event[0] <= position:
                    _, is_onset, channel, pitch, velocity = event
                    synth.noteon(channel, pitch, velocity) if is_onset else synth.noteoff(channel, pitch)
                    event = next(coming, None)
                stop = end if event is None else min(end, event[0])
                both = np.frombuffer(synth.generate(stop - position), np.float32)
                np.add(both[0::2], both[1::2], out=block[position - begin : stop - begin])
                position = stop
            yield block


class TonePlayer:
    """Player of instruments made of sine waves and noise."""

    def play(self, notes: Sequence[Note], rate: int, count: int) -> Iterator[np.ndarray]:
        """Yield the sound of notes, see Player."""
        coming = iter(sorted(notes))
        note = next(coming, None)
        sounding: list[Note] = []
        for begin in range(0, count, BLOCK):
            end = min(count, begin + BLOCK)
            block = np.zeros(end - begin, np.float32)
            while note is not None and round(note.onset * rate) < end:
                sounding.append(note)
                note = next(coming, None)
            lasting = []
            for sounding_note in sounding:
                first = round(sounding_note.onset * rate)
                begin_of_wave = max(first, begin)
                wave = _sound(sounding_note, rate, begin_of_wave - first, end - first)
                block[begin_of_wave - begin :][: len(wave)] += wave
                if begin_of_wave + len(wave) >= end:
                    lasting.append(sounding_note)
            sounding = lasting
            yield block


def _sound(note: Note, rate: int, first: int, last: int) -> np.ndarray:
    """Return the samples first..last of a note, fewer if it ends before: (n,) float32."""
    level = np.float32(TONE_LEVEL * (note.velocity / 127) ** 1.5)
    if note.is_drum:
        return level * _drum(note.pitch, rate)[first:last]
    timbre = TIMBRES[note.program // 8]
    length = note.offset - note.onset
    # The note has decayed to a thousandth by then.
    last = min(last, round((length + 7 * timbre.release) * rate))
    time = np.arange(first, max(first, last)) / rate
    frequency = 440.0 * 2.0 ** ((note.pitch - 69) / 12)
    partials = int(min(16, 0.45 * rate / frequency))
    if partials < 1:
        return np.zeros(len(time), np.float32)
    places = (time * (frequency * TABLE)).astype(np.int64) % TABLE
    wave = _table(timbre.slope + 1.0, timbre.even, partials)[places]
    bright = _table(timbre.slope, timbre.even, partials)[places]
    # Struck sounds lose their overtones first; sustained ones do not.
    wave += (bright - wave) * np.exp(-time * (4.0 / timbre.decay)).astype(np.float32)
    envelope = np.minimum(time / timbre.attack, 1.0) * np.exp(-time / timbre.decay)
    envelope *= np.exp(-np.maximum(time - length, 0.0) / timbre.release)
    return level * wave * envelope.astype(np.float32)


@functools.cache
def _table(slope: float, even: float, partials: int) -> np.ndarray:
    """Return one period: (TABLE,) float32; the weights of its partials add up to 1."""
    numbers = np.arange(1, partials + 1)
    weights = numbers**-slope * np.where(numbers % 2, 1.0, even)
    turns = np.arange(TABLE) / TABLE
    return (np.sin(2 * np.pi * numbers[:, None] * turns).T @ (weights / weights.sum())).astype(np.float32)


@functools.cache
def _drum(key: int, rate: int) -> np.ndarray:
    """Return the complete sound of a key of General MIDI's drums: (n,) float32."""
    time = np.arange(round(1.5 * rate)) / rate
    noise = np.random.default_rng(key).normal(0.0, 0.5, len(time))
    hiss = np.diff(noise, 2, prepend=[0.0, 0.0]) / 2
    falling = 1 - np.exp(-30 * time)
    if key in (35, 36):
        sound = 3 * np.sin(2 * np.pi * (50 * time + 3 * falling)) * np.exp(-time / 0.12)
    elif key in (37, 38, 39, 40):
        sound = noise * np.exp(-time / 0.08) + np.sin(2 * np.pi * 185 * time) * np.exp(-time / 0.06)
    elif key in (41, 43, 45, 47, 48, 50):
        sound = 2 * np.sin(2 * np.pi * (70 * 2 ** ((key - 41) / 10) * time + 2 * falling)) * np.exp(-time / 0.18)
    elif key in (42, 44, 54, 69, 70, 82):
        sound = hiss * np.exp(-time / 0.03)
    elif key in (46, 49, 51, 52, 53, 55, 57, 59):
        sound = hiss * np.exp(-time / (0.2 if key == 46 else 0.4))
    else:
        pitch = 200 * 2 ** ((key % 24) / 12)
        sound = np.sin(2 * np.pi * pitch * time) * np.exp(-time / 0.06) + 0.3 * hiss * np.exp(-time / 0.02)
    return sound.astype(np.float32)
