"""Training data made on the spot: songs played on soundfonts, with the notes that were played.

An example depends on its seed and index alone, so that any of them can be made again, in any process, in any order.
Songs come from MIDI files or are made up; each stem is played alone, coloured, and mixed; the mix is put into a room,
compressed, and spoiled with noise.

Rendering needs tinysoundfont (`pip install --no-deps tinysoundfont`) and soxr.
"""

import dataclasses
import functools
import hashlib
import math
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.fft

from mt3_common.formats.midi import NoteFileError, read_midi_stems
from mt3_common.notes.notes import Note, trim_overlapping

SAMPLE_RATE = 16000
# Soundfonts are rendered at their own rate: below it tinysoundfont's linear interpolation folds overtones back.
RENDER_RATE = 44100
# Voices of one stem that sound at once; dense chords with long releases need as many.
MAX_VOICES = 128
# dB, of one stem beside the others
GAIN, CLEAN_GAIN = (-10.0, 4.0), (-6.0, 0.0)
# dB, deviation of the gains of a stem's equaliser at most, and of the mix's; no gain is more than three times as much
STEM_EQUALIZER, MIX_EQUALIZER = 3.0, 5.0
# Programs of one MIDI class are 8 neighbours (0..7 pianos, 8..15 chromatic percussion, ...).
CLASS_SIZE = 8


class Stem(NamedTuple):
    """What one instrument plays: notes with their own program and is_drum, in order of onset."""

    program: int
    is_drum: bool
    notes: tuple[Note, ...]


class Song:
    """A piece of music in a MIDI file, which is read when it is first played, in each process anew.

    Attributes:
        name: decides its split.
        path: the file.
    """

    def __init__(self, name: str, path: str | Path):
        self.name = name
        self.path = Path(path)

    def __getstate__(self):
        return {"name": self.name, "path": self.path}

    @functools.cached_property
    def stems(self) -> tuple[tuple[int, bool, np.ndarray], ...]:
        """Of each stem: program, is_drum, and (n, 4) onsets, offsets (s), pitches, velocities.

        Empty where the file is no MIDI or holds no notes.

        Raises:
            NoteFileError: the file cannot be read: examples without it would be others than with it.
        """
        try:
            found = [notes for notes in read_midi_stems(self.path, sustain=True) if notes]
        except NoteFileError as error:
            if isinstance(error.__cause__, OSError):
                raise
            found = []
        return tuple((n[0].program, n[0].is_drum, np.array([note[:4] for note in n], np.float64)) for n in found)


class Example(NamedTuple):
    """Audio and what is played in it.

    Attributes:
        audio: (n,) float32 in [-1, 1], mono at 16 kHz.
        notes: onsets and offsets in seconds, trimmed (no pitch of a program sounds twice at once).
        kind: the Recipe's word for it: "piano", "band", "drums", "solo", "dense" or "silence".
    """

    audio: np.ndarray
    notes: list[Note]
    kind: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What examples are like.

    Attributes:
        seconds: length of an example.
        piano: share of examples that are a song's notes on a piano.
        band: share with a song's stems on their instruments, redrawn within their MIDI class.
        drums: share with drums alone, from songs or made up.
        solo: share with one line of a song on one melodic instrument, or a made-up melody.
        dense: share with random notes, chords and scales on one instrument, half of them on a piano.
        silence: share with noise only.
        midi_class: label notes with the first program of their MIDI class instead of their own.
        settle: label notes with times on a grid of so many seconds (see settle), which a decoder can tell apart;
            0 to label them with their own times, as test sets need.
        tones: share of the pitched stems that are added up from sine waves (see play_tones), which sound like none of
            the soundfonts' instruments.
        damage: stems get an equaliser, gains of -10 to 4 dB, other formants and a common detuning; mixes an equaliser,
            reverb, compression, noise, band limits and clipping. False for clean test sets: gains of -6 to 0 dB.
    """

    seconds: float = 20.48
    piano: float = 0.40
    band: float = 0.22
    drums: float = 0.12
    solo: float = 0.10
    dense: float = 0.15
    silence: float = 0.01
    midi_class: bool = True
    settle: float = 0.0
    tones: float = 0.0
    damage: bool = True

    def __post_init__(self):
        if min(self.shares().values()) < 0 or not sum(self.shares().values()):
            raise ValueError(f"the shares of a recipe must be 0 or more and one of them above it, not {self.shares()}")
        if not self.seconds >= 1:
            raise ValueError(f"an example must last 1 s or longer, not {self.seconds}")
        if not 0 <= self.tones <= 1:
            raise ValueError(f"tones must be a share of 0 to 1, not {self.tones}")
        if not 0 <= self.settle <= 0.1:
            raise ValueError(f"settle must be a grid of 0 to 0.1 s, not {self.settle}")

    def shares(self) -> dict[str, float]:
        """Kind -> its share; they need not add up to 1."""
        return {kind: getattr(self, kind) for kind in ("piano", "band", "drums", "solo", "dense", "silence")}


def read_songs(folder: str | Path) -> list[Song]:
    """The songs of a folder and those below it, by path; files that are no MIDI are left out.

    Raises:
        ValueError: there is no MIDI file.
    """
    songs = []
    for path in sorted(Path(folder).rglob("*.mid")):
        with open(path, "rb") as file:
            if file.read(4) == b"MThd":
                songs.append(Song(path.relative_to(folder).as_posix(), path))
    if not songs:
        raise ValueError(f"{folder} holds no MIDI file (*.mid)")
    return songs


def split_of(name: str) -> str:
    """'train' (90 of 100 songs), 'validation' or 'test' (5 each), the same on every machine.

    Versions of a song that differ by an underscore and hexadecimal digits in the file's name stay together.
    """
    title = re.sub(r"_[0-9a-f]{4}$", "", str(Path(name).with_suffix("")))
    bucket = int.from_bytes(hashlib.sha256(title.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


class Fonts:
    """Soundfonts ready to play; each process loads its own.

    Raises:
        ValueError: tinysoundfont is missing, or a file is no soundfont.
    """

    def __init__(self, paths: Sequence[str | Path]):
        try:
            import tinysoundfont
        except ImportError as error:
            raise ValueError("rendering needs tinysoundfont: pip install --no-deps tinysoundfont") from error
        if not paths:
            raise ValueError("rendering needs at least one soundfont")
        self._synths = []
        for path in paths:
            synth = tinysoundfont.Synth(samplerate=RENDER_RATE)
            try:
                font = synth.sfload(str(path), max_voices=MAX_VOICES)
            except Exception as error:
                raise ValueError(f"{path} cannot be loaded as a soundfont: {error}") from error
            programs = frozenset(p for p in range(128) if synth.sfpreset_name(font, 0, p) is not None)
            kits = tuple(p for p in range(128) if synth.sfpreset_name(font, 128, p) is not None)
            self._synths.append((synth, font, programs, kits))

    def __len__(self) -> int:
        return len(self._synths)

    def programs(self, font: int) -> frozenset[int]:
        """Programs that the font has."""
        return self._synths[font][2]

    def kits(self, font: int) -> tuple[int, ...]:
        """Presets of its drum bank."""
        return self._synths[font][3]

    def play(
        self, notes: Sequence[Note], font: int, preset: int, is_drum: bool, tuning: float, seconds: float
    ) -> np.ndarray:
        """One stem alone, tuning semitones sharp: (seconds * RENDER_RATE,) float32 mono, not yet scaled."""
        synth, number, _, _ = self._synths[font]
        synth.program_select(0, number, 128 if is_drum else 0, preset, is_drum)
        synth.set_tuning(0, tuning)
        events = []
        for note in notes:
            # ends come before beginnings, so that a repeated pitch sounds again
            events.append((round(note.onset * RENDER_RATE), 1, note.pitch, note.velocity))
            events.append((round(max(note.offset, note.onset + 0.02) * RENDER_RATE), 0, note.pitch, 0))
        events.sort()
        total = round(seconds * RENDER_RATE)
        audio = np.zeros(total, np.float32)
        position = 0
        for sample, is_onset, pitch, velocity in [*events, (total, 0, 0, 0)]:
            sample = min(sample, total)
            if sample > position:
                block = np.frombuffer(synth.generate(sample - position), np.float32)
                np.add(block[0::2], block[1::2], out=audio[position:sample])
                position = sample
            if sample == total:
                break
            if is_onset:
                synth.noteon(0, pitch, velocity)
            else:
                synth.noteoff(0, pitch)
        # voices fade for some milliseconds; what is left of them must not be heard in the next stem
        synth.sounds_off(0)
        synth.generate(RENDER_RATE // 4)
        return audio


class Generator:
    """Examples by number: generator.example(index).

    Args:
        songs: to play; those of one split.
        fonts: paths of soundfonts.
        recipe: what examples are like.
        seed: examples differ between seeds.

    Raises:
        ValueError: as Fonts, once the first example is made.
    """

    def __init__(self, songs: Sequence[Song], fonts: Sequence[str | Path], recipe: Recipe, seed: int = 0):
        self.songs = list(songs)
        self.font_paths = [str(path) for path in fonts]
        self.recipe = recipe
        self.seed = seed
        self._fonts: Fonts | None = None

    def __getstate__(self):
        # soundfonts are loaded again in each worker process
        return {**self.__dict__, "_fonts": None}

    def example(self, index: int) -> Example:
        """Example number index; the same bits whenever and wherever it is made."""
        if self._fonts is None:
            self._fonts = Fonts(self.font_paths)
        rng = np.random.default_rng([self.seed, index])
        shares = self.recipe.shares()
        kind = str(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
        stems = [stem for stem in self._stems(kind, rng) if stem.notes]
        detune = float(rng.normal(0, 0.08)) if self.recipe.damage else 0.0
        formant = int(rng.integers(-3, 4)) if self.recipe.damage and rng.random() < 0.4 else 0
        count = round(self.recipe.seconds * SAMPLE_RATE)
        mix = np.zeros(count, np.float32)
        notes: list[Note] = []
        for stem in stems:
            font = int(rng.integers(len(self._fonts)))
            shift = 0 if stem.is_drum else formant
            audio = self._stem_audio(stem, font, shift, detune, rng)
            if audio is not None:
                mix += audio
                label = stem.program - stem.program % CLASS_SIZE if self.recipe.midi_class else stem.program
                notes += [n._replace(program=0 if stem.is_drum else label, is_drum=stem.is_drum) for n in stem.notes]
        mix = _damage(mix, rng) if self.recipe.damage else mix * np.float32(0.5 / max(1e-4, np.abs(mix).max()))
        end = self.recipe.seconds
        notes = [n._replace(offset=min(n.offset, end)) for n in notes if n.onset < end - 0.01]
        notes = trim_overlapping(sorted(notes))
        if self.recipe.settle:
            notes = trim_overlapping(sorted(settle(notes, self.recipe.settle)))
        return Example(mix.astype(np.float32), notes, kind)

    def _stem_audio(self, stem, font, shift, detune, rng) -> np.ndarray | None:
        """(seconds * 16000,) float32 of one stem at its gain, or None where the font lacks its instrument."""
        if self.recipe.tones and not stem.is_drum and rng.random() < self.recipe.tones:
            audio = play_tones(stem.notes, stem.program, detune, self.recipe.seconds, rng)
        else:
            audio = self._font_audio(stem, font, shift, detune, rng)
        if audio is None:
            return None
        count = round(self.recipe.seconds * SAMPLE_RATE)
        audio = np.pad(audio[:count], (0, max(0, count - len(audio))))
        if self.recipe.damage:
            audio = _coloured(audio, rng)
        loudness = np.sqrt(np.mean(audio**2)) + 1e-5
        gain = 10 ** (rng.uniform(*(GAIN if self.recipe.damage else CLEAN_GAIN)) / 20)
        # half way to equal loudness: quiet presets come forward, dynamics are kept
        return audio * np.float32(gain * 0.08 / (loudness**0.5 * 0.08**0.5))

    def _font_audio(self, stem, font, shift, detune, rng) -> np.ndarray | None:
        """The stem played by a soundfont, about seconds * 16000 samples, or None where it lacks the instrument."""
        import soxr

        if stem.is_drum:
            kits = self._fonts.kits(font)
            if not kits:
                return None
            # the standard kit (0) most of the time
            preset = 0 if 0 in kits and rng.random() < 0.4 else int(rng.choice(kits))
        else:
            if stem.program not in self._fonts.programs(font):
                return None
            preset = stem.program
        # played `shift` semitones higher, then slowed down by as much: same pitch, other formants
        speed = 2.0 ** (shift / 12)
        played = [
            n._replace(onset=n.onset / speed, offset=n.offset / speed, pitch=n.pitch + shift)
            for n in stem.notes
            if 0 <= n.pitch + shift <= 127
        ]
        audio = self._fonts.play(played, font, preset, stem.is_drum, detune, self.recipe.seconds / speed + 0.1)
        return soxr.resample(audio, RENDER_RATE, SAMPLE_RATE * speed, quality="MQ")

    def _stems(self, kind: str, rng: np.random.Generator) -> list[Stem]:
        """The stems of an example: notes from 0 s to recipe.seconds, programs drawn."""
        if kind == "silence":
            return []
        if kind == "dense" or not self.songs:
            if kind == "drums":
                return [Stem(0, True, tuple(made_up_drums(self.recipe.seconds, rng)))]
            program = _draw_program(0, rng) if kind == "piano" or rng.random() < 0.5 else int(rng.integers(0, 112))
            return [Stem(program, False, tuple(made_up_notes(self.recipe.seconds, rng)))]
        for _ in range(20):
            song = self.songs[rng.integers(len(self.songs))]
            if not song.stems:
                continue
            stems = self._stretch(song, rng)
            melodic = [stem for stem in stems if not stem.is_drum]
            if kind == "drums":
                if rng.random() < 0.35:
                    return [Stem(0, True, tuple(made_up_drums(self.recipe.seconds, rng)))]
                chosen = [stem for stem in stems if stem.is_drum]
            elif kind == "piano":
                if len(stems) > 3 and rng.random() < 0.7:
                    continue
                program = _draw_program(0, rng)
                notes = [note for stem in melodic for note in stem.notes]
                chosen = [Stem(program, False, tuple(_pedal(notes, rng) if rng.random() < 0.35 else notes))]
            elif kind == "solo":
                stem = melodic[rng.integers(len(melodic))] if melodic else None
                # melodies: violins, voices, reeds, pipes, brass and guitars more than the rest
                group = int(rng.choice([24, 40, 40, 48, 56, 64, 64, 72, 32, 16]))
                chosen = [Stem(_draw_program(group, rng), False, stem.notes)] if stem else []
            else:
                chosen = self._band(song, stems, rng)
            if sum(len(stem.notes) for stem in chosen) >= 5:
                return chosen
        if not any(song.stems for song in self.songs):
            raise ValueError(f"none of {len(self.songs)} songs has notes; the first is {self.songs[0].path}")
        return []

    def _band(self, song: Song, stems: list[Stem], rng: np.random.Generator) -> list[Stem]:
        """Stems with programs redrawn within their class, some left out; piano pieces get new instruments."""
        if all(stem.program == 0 for stem in stems):
            groups = [int(rng.choice([40, 48, 56, 64, 72, 80, 24])), int(rng.choice([24, 32, 48, 16])), 0]
            stems = [s._replace(program=_draw_program(g, rng)) for s, g in zip(stems, groups)]
            if rng.random() < 0.6:
                stems.append(Stem(0, True, tuple(made_up_drums(self.recipe.seconds, rng))))
        else:
            stems = [s if s.is_drum else s._replace(program=_draw_program(s.program, rng)) for s in stems]
        keep = [stem for stem in stems if rng.random() > 0.2]
        return keep[:8] if keep else stems[:1]

    def _stretch(self, song: Song, rng: np.random.Generator) -> list[Stem]:
        """A stretch of the song at another tempo, key and loudness, beginning somewhere."""
        tempo = float(rng.uniform(0.8, 1.25))
        transposition = int(rng.integers(-5, 7))
        length = self.recipe.seconds * tempo
        last = max(float(played[:, 1].max()) for _, _, played in song.stems)
        begin = float(rng.uniform(-0.5, max(0.0, last - length)))
        stems = []
        for program, is_drum, played in song.stems:
            gain = float(rng.uniform(0.6, 1.3))
            notes = []
            chosen = (played[:, 1] > begin) & (played[:, 0] < begin + length) & (played[:, 0] >= begin)
            for start, end, key, loud in played[chosen].tolist():
                pitch = int(key) if is_drum else int(key) + transposition
                if 0 <= pitch <= 127:
                    velocity = int(np.clip(loud * gain + rng.normal(0, 6), 8, 127))
                    jitter = float(rng.normal(0, 0.004))
                    onset = max(0.0, (start - begin) / tempo + jitter)
                    offset = max(onset + 0.03, (end - begin) / tempo)
                    notes.append(Note(onset, offset, pitch, velocity, program, is_drum))
            if notes:
                stems.append(Stem(program, is_drum, tuple(notes)))
        return stems


def settle(notes: Sequence[Note], grid: float) -> list[Note]:
    """Notes at times that can be heard apart: chords together, ends where something begins if that is near.

    A decoder says one time per group of events. Notes of a chord some milliseconds apart, and ends that nobody
    hears exactly, would make it choose among many times that are equally likely, so that none of them wins.

    Args:
        notes: sorted by onset.
        grid: s; onsets within 30 ms share one multiple of it. Offsets within 60 ms of one take it, others the nearest
            multiple of four times the grid.
    """
    if not notes:
        return []
    onsets = np.array([note.onset for note in notes])
    groups, first = [], 0
    for index in range(1, len(onsets) + 1):
        if index == len(onsets) or onsets[index] - onsets[first] > 0.03:
            groups += [round(float(onsets[first:index].mean()) / grid) * grid] * (index - first)
            first = index
    times = np.unique(groups)
    settled = []
    for note, onset in zip(notes, groups):
        near = times[np.clip(np.searchsorted(times, note.offset) + np.array([-1, 0]), 0, len(times) - 1)]
        offset = float(near[np.argmin(np.abs(near - note.offset))])
        if abs(offset - note.offset) > 0.06 or offset <= onset:
            coarse = 4 * grid
            offset = max(round(note.offset / coarse), math.floor(onset / coarse + 1e-6) + 1) * coarse
        settled.append(note._replace(onset=onset, offset=offset))
    return settled


def in_order(make: Callable[[int], Example], indices: Iterable[int], workers: int) -> Iterator[Example]:
    """What make gives for each index, in order, made in so many worker processes (0: in this one), a few ahead.

    Raises:
        ValueError: a worker process died.
    """
    if not workers:
        yield from map(make, indices)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_keep, initargs=(make,)) as pool:
        waiting = []
        try:
            for index in indices:
                waiting.append(pool.submit(_kept, index))
                if len(waiting) > 2 * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process died, perhaps for want of memory; fewer --workers need less (what is written stays)"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _keep(make: Callable[[int], Example]) -> None:
    """Begins a worker process: songs that were read and fonts that were loaded stay for its next example."""
    _kept.make = make


def _kept(index: int) -> Example:
    return _kept.make(index)


def play_tones(
    notes: Sequence[Note], program: int, detune: float, seconds: float, rng: np.random.Generator
) -> np.ndarray:
    """Notes on an instrument that was never built: (seconds * SAMPLE_RATE,) float32.

    Up to 16 partials with random weights, sharpened as in a stiff string or not; struck and dying away where the
    program is a piano, a mallet, a guitar or a bass, held otherwise, some with vibrato.
    """
    struck = program < 16 or 24 <= program < 40
    partials = np.arange(1, int(rng.integers(4, 17)))
    weights = partials ** -rng.uniform(0.6, 2.2) * np.exp(rng.normal(0, 0.5, len(partials)))
    # clarinets and square waves have odd partials alone
    weights[1::2] *= rng.choice([1.0, 1.0, 0.3, 0.03])
    stiffness = rng.choice([0.0, 1e-4, 4e-4, 1e-3]) if struck else 0.0
    attack = float(np.exp(rng.uniform(np.log(0.002), np.log(0.02 if struck else 0.06))))
    release = float(np.exp(rng.uniform(np.log(0.02), np.log(0.3))))
    decay, faster = (rng.uniform(0.4, 3.0), rng.uniform(0.1, 0.8)) if struck else (rng.uniform(0, 0.3), 0.0)
    vibrato = rng.uniform(0, 0.006) if not struck and rng.random() < 0.5 else 0.0
    audio = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    for note in notes:
        first = round(note.onset * SAMPLE_RATE)
        length = min(len(audio) - first, round((note.offset - note.onset + 4 * release) * SAMPLE_RATE))
        if length <= 0:
            continue
        time = np.arange(length, dtype=np.float32) / SAMPLE_RATE
        frequency = 440.0 * 2.0 ** ((note.pitch + detune - 69) / 12)
        phase = (2 * np.pi * frequency * (time + vibrato * np.sin(2 * np.pi * 5.5 * time) / 35)).astype(np.float32)
        wave = np.zeros(length, np.float32)
        for k, weight in zip(partials, weights):
            sharp = np.float32(k * np.sqrt(1 + stiffness * k * k))
            if sharp * frequency < 0.45 * SAMPLE_RATE:
                fade = np.exp(-np.float32(decay + faster * k) * time) if struck or decay else np.float32(1)
                wave += np.float32(weight) * fade * np.sin(sharp * phase)
        wave *= np.minimum(time / np.float32(attack), 1)
        wave *= np.exp(-np.maximum(time - np.float32(note.offset - note.onset), 0) / np.float32(release))
        audio[first : first + length] += np.float32((note.velocity / 127) ** 1.5) * wave
    return audio


def made_up_notes(seconds: float, rng: np.random.Generator) -> list[Note]:
    """Random notes, chords or scales on one instrument, from sparse to dense: no style to lean on."""
    style = rng.choice(["random", "chords", "scale"])
    low = int(rng.integers(21, 72))
    high = min(108, low + int(rng.integers(12, 60)))
    rate = float(np.exp(rng.uniform(np.log(2.0), np.log(16.0))))
    loud = rng.uniform(50, 110)
    notes = []
    time = float(rng.uniform(0, 0.5))
    scale = np.sort(rng.choice(12, 7, replace=False))
    step = int(rng.integers(low, high))
    while time < seconds - 0.05:
        if style == "random":
            pitches = [int(rng.integers(low, high + 1))]
            pause = rng.exponential(1 / rate)
        elif style == "chords":
            count = int(rng.integers(2, 7))
            root = int(rng.integers(low, high + 1))
            steps = rng.choice([0, 3, 4, 5, 7, 9, 10, 12, 14, 15, 16, 19, 24], count, replace=False)
            pitches = sorted({min(108, root + int(s)) for s in steps})
            pause = rng.uniform(0.5, 1.5) * count / rate
        else:
            step += int(rng.choice([-2, -1, 1, 2], p=[0.1, 0.4, 0.4, 0.1]))
            step = low if not low <= step <= high else step
            pitches = [step - step % 12 + int(scale[step % 7])]
            if rng.random() < 0.2:
                pitches.append(pitches[0] + 12)
            pause = 1 / rate
        duration = float(np.exp(rng.uniform(np.log(0.08), np.log(2.0))))
        for pitch in pitches:
            onset = max(0.0, time + float(rng.normal(0, 0.006)))
            velocity = int(np.clip(rng.normal(loud, 15), 15, 127))
            notes.append(Note(onset, onset + max(0.05, duration * rng.uniform(0.7, 1.3)), min(127, pitch), velocity))
        time += float(pause)
    return sorted(notes)


def made_up_drums(seconds: float, rng: np.random.Generator) -> list[Note]:
    """A random pattern on 16ths, repeated with changes: kick, snare, hats, toms, cymbals."""
    tempo = float(rng.uniform(70, 180))
    step = 60 / tempo / 4
    instruments = {36: 0.25, 35: 0.05, 38: 0.18, 40: 0.05, 42: 0.5, 44: 0.08, 46: 0.08, 49: 0.03, 51: 0.2, 57: 0.02}
    instruments |= dict.fromkeys([37, 39, 41, 43, 45, 47, 48, 50, 53, 54, 56], 0.03)
    drums = list(instruments)
    density = rng.uniform(0.6, 1.6)
    pattern = rng.random((16, len(drums))) < np.minimum(0.9, density * np.array(list(instruments.values())))
    pattern &= (rng.random(len(drums)) < 0.7)[None]
    pattern[::4, 0] |= rng.random() < 0.5
    pattern[4::8, 2] |= rng.random() < 0.7
    loud = rng.uniform(60, 115)
    notes = []
    for number in range(int(seconds / step)):
        row = pattern[number % 16] ^ (rng.random(len(drums)) < 0.01)
        for drum in np.flatnonzero(row):
            onset = max(0.0, number * step + float(rng.normal(0, 0.006)))
            velocity = int(np.clip(rng.normal(loud, 18), 12, 127))
            notes.append(Note(onset, onset + 0.1, drums[drum], velocity, 0, True))
    return sorted(notes)


def _draw_program(program: int, rng: np.random.Generator) -> int:
    """A program of the same MIDI class; among pianos the acoustic ones more often than the electric."""
    if program < CLASS_SIZE:
        return int(rng.choice(CLASS_SIZE, p=[0.52, 0.22, 0.06, 0.06, 0.05, 0.05, 0.02, 0.02]))
    return program - program % CLASS_SIZE + int(rng.integers(CLASS_SIZE))


def _pedal(notes: Sequence[Note], rng: np.random.Generator) -> list[Note]:
    """The notes held by a pedal that is renewed at a regular beat."""
    beat = float(rng.uniform(0.4, 2.2))
    return trim_overlapping([n._replace(offset=max(n.offset, (n.onset // beat + 1) * beat - 0.05)) for n in notes])


def _coloured(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One stem through an equaliser: (n,) float32."""
    size = scipy.fft.next_fast_len(len(audio) + SAMPLE_RATE // 4, real=True)
    response = _equalizer(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), STEM_EQUALIZER, rng)
    return scipy.fft.irfft(scipy.fft.rfft(audio, size) * _factors(response), size)[: len(audio)]


def _damage(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mix in a room, through a microphone, on a medium: (n,) float32 in [-1, 1]."""
    size = scipy.fft.next_fast_len(len(audio) + SAMPLE_RATE, real=True)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    response = _equalizer(hertz, MIX_EQUALIZER, rng)
    if rng.random() < 0.25:
        response += _band_limits(hertz, rng)
    spectrum = scipy.fft.rfft(audio, size) * _factors(response)
    if rng.random() < 0.6:
        spectrum *= scipy.fft.rfft(_room(rng), size)
    audio = scipy.fft.irfft(spectrum, size)[: len(audio)].astype(np.float32)
    peak = np.abs(audio).max()
    if peak > 1e-5:
        audio /= peak
        if rng.random() < 0.3:
            audio = _overdriven(audio, rng)
        if rng.random() < 0.3:
            audio = _compressed(audio, rng)
        audio *= np.float32(10 ** (rng.uniform(-26, -1) / 20) / np.abs(audio).max())
    return np.clip(audio + _noise(len(audio), rng), -1, 1).astype(np.float32)


def _equalizer(hertz: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """An equaliser's gains (dB) at these frequencies: drawn for seven, spread over 20..8000 Hz, smooth between them."""
    octaves = np.log2(np.maximum(hertz, 20.0) / 20.0)
    gains = rng.normal(0, rng.uniform(0, deviation), 7).clip(-3 * deviation, 3 * deviation)
    return np.interp(octaves, np.linspace(0, np.log2(400), 7), gains)


def _band_limits(hertz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gains (dB) of a medium that lets through from 30..200 to 2500..7000 Hz, 24 dB less an octave further."""
    low, high = rng.uniform(30, 200), rng.uniform(2500, 7000)
    below = np.where(hertz < low, -24 * np.log2(low / np.maximum(hertz, 1)), 0).clip(-60)
    return below + np.where(hertz > high, -24 * np.log2(np.maximum(hertz, 1) / high), 0)


def _factors(decibels: np.ndarray) -> np.ndarray:
    """10 ** (decibels / 20), float32."""
    return np.exp(decibels.astype(np.float32) * np.float32(np.log(10) / 20))


def _overdriven(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Audio with a peak of 1, louder than the medium takes: clipped softly or, seldom, hard."""
    drive = rng.uniform(1, 3)
    return np.tanh(audio * drive) if rng.random() < 0.8 else np.clip(audio * drive * 0.7, -1, 1)


def _compressed(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Audio whose level over 50 ms is raised to a power of 0.5 to 0.9."""
    level = np.sqrt(_filtered([0.00125], [1, -0.99875], audio**2)) + 0.02
    return audio * (level ** -rng.uniform(0.1, 0.5)).astype(np.float32)


def _noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of -85 to -40 dB, white or darker; none in one mix of ten, which is as clean as digital silence."""
    noise = rng.standard_normal(count, np.float32)
    if rng.random() < 0.7:
        noise = _filtered([1.0], [1.0, -rng.uniform(0.5, 0.98)], noise)
        noise /= noise.std()
    return noise * np.float32(10 ** (rng.uniform(-85, -40) / 20) * (rng.random() > 0.1))


def _room(rng: np.random.Generator) -> np.ndarray:
    """An impulse response: the direct sound and decaying noise, (16000 or fewer,) float32."""
    decay = float(np.exp(rng.uniform(np.log(0.1), np.log(1.2))))
    times = np.arange(int(min(1.0, decay) * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * np.exp(-6.9 * times / decay) * (times > rng.uniform(0.001, 0.02))
    tail = _filtered([1.0], [1.0, -rng.uniform(0.2, 0.8)], tail)
    tail *= 10 ** (rng.uniform(-18, 1) / 20) / (np.sqrt(np.sum(tail**2)) + 1e-9)
    tail[0] = 1.0
    return tail.astype(np.float32)


def _filtered(b, a, samples):
    """scipy.signal.lfilter, imported here: it takes half a second, and parity and training load this module."""
    from scipy.signal import lfilter

    return lfilter(b, a, samples)
