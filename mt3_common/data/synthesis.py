"""Synthetic training data: songs rendered with soundfonts, with their notes.

An example depends on its seed and index alone, so any of them can be made again, in any process, in any order. Songs
come from MIDI files or are random; each stem is rendered alone, equalized and mixed; the mix gets reverb, compression
and noise.

Rendering needs tinysoundfont (`pip install --no-deps tinysoundfont`) and soxr.
"""

import dataclasses
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mt3_common.config import Range, check_fields
from mt3_common.data.augment import SAMPLE_RATE, degrade, equalize_stem, resound
from mt3_common.data.performance import (
    BENDING,
    bent,
    detached,
    in_compass,
    in_register,
    on_kit,
    one_kit,
    pedalled,
    registered,
)
from mt3_common.data.songs import Song, Stem, random_drums, random_notes
from mt3_common.data.soundfont import RENDER_RATE, Fonts
from mt3_common.io.plural import plural
from mt3_common.notes.note import CLASS_SIZE, Note, trim_overlapping

# dB, range of a stem's gain
GAIN, CLEAN_GAIN = (-10.0, 4.0), (-6.0, 0.0)
# Share of a stem's notes that a font's instrument or kit should have; those that have fewer are drawn if no other has
# more.
IN_COMPASS = 0.9
# programs whose strings a pedal frees; electric pianos, the harpsichord and the clavinet have no such pedal
PIANOS = range(4)
# s, of an example, which is made in memory
LONGEST = 3600


class Example(NamedTuple):
    """Audio and its notes.

    Attributes:
        audio: (n,) float32 in [-1, 1], mono at 16 kHz.
        notes: onsets and offsets in seconds, trimmed (no pitch of a program sounds twice at once); those that sound
            already where an excerpt begins have their onsets before 0 s.
        kind: of the Recipe: "piano", "band", "drums", "solo", "dense" or "silence".
    """

    audio: np.ndarray
    notes: list[Note]
    kind: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of synthetic examples.

    Attributes:
        seconds: length of an example, from 1 to LONGEST.
        piano: share of examples that are a song's notes on a piano.
        band: share with a song's stems on their instruments, redrawn within their MIDI class.
        drums: share with drums alone, from songs or made up.
        solo: share with one line of a song on one melodic instrument, or a made-up melody.
        dense: share with random notes, chords and scales on one instrument, half of them on a piano.
        silence: share with noise only.
        midi_class: label notes with the first program of their MIDI class instead of their own.
        settle: label notes with times on a grid of so many seconds (see settle), which a decoder can tell apart;
            0 to label them with their own times, as test sets need.
        recorded: share of the stems that are played by a font with recordings of a few instruments, where one has an
            instrument of the stem's MIDI class.
        vibrato: share of the stems of strings, voices, brass, reeds and pipes that have vibrato.
        scoops: share of those whose lines without chords begin some notes from below.
        detached: share of the pitched stems whose notes are shortened (see performance.detached).
        register: share of the pitched stems whose notes move into the register of their instrument
            (see performance.in_register).
        pedal: share of the stems of pianos (programs 0 to 3) that are played with a sustain pedal (see
            performance.pedalled), whose strings resound.
        takes: share of the stems that alternate between the takes of their instrument, where there are several.
        tones: share of the pitched stems that are added up from sine waves (see play_tones), which sound like none of
            the soundfonts' instruments.
        reflections: share of the rooms of damaged mixes with early reflections.
        media: share of the damaged mixes that are stored at another rate, as MP3 or Ogg Vorbis, or with a constant
            offset.
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
    recorded: float = 0.5
    vibrato: float = 0.4
    scoops: float = 0.2
    detached: float = 0.0
    register: float = 0.0
    pedal: float = 0.0
    takes: float = 0.0
    reflections: float = 0.0
    media: float = 0.0
    damage: bool = True

    def __post_init__(self):
        if min(self.shares().values()) < 0 or not sum(self.shares().values()):
            raise ValueError(f"the shares of a recipe must be 0 or more and one of them above it, not {self.shares()}")
        names = ("tones", "recorded", "vibrato", "scoops", "detached", "register", "pedal", "takes")
        shares = dict.fromkeys((*names, "reflections", "media"), Range(0, 1, closed=True))
        check_fields(self, {"seconds": Range(1, LONGEST, closed=True), "settle": Range(0, 0.1, closed=True)} | shares)

    def shares(self) -> dict[str, float]:
        """Return kind -> share; shares need not add up to 1."""
        return {kind: getattr(self, kind) for kind in ("piano", "band", "drums", "solo", "dense", "silence")}


class Generator:
    """Generator of numbered examples.

    Args:
        songs: of one split.
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
        # Each worker process loads the soundfonts itself.
        return {**self.__dict__, "_fonts": None}

    @property
    def fonts(self) -> Fonts:
        """The soundfonts, which each process loads when it first needs them."""
        if self._fonts is None:
            self._fonts = Fonts(self.font_paths)
        return self._fonts

    def example(self, index: int) -> Example:
        """Make example number index, bit for bit the same in any process."""
        rng = np.random.default_rng([self.seed, index])
        shares = self.recipe.shares()
        kind = str(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
        stems = one_kit([stem for stem in self._stems(kind, rng) if stem.notes])
        detune = float(rng.normal(0, 0.08)) if self.recipe.damage else 0.0
        formant = int(rng.integers(-3, 4)) if self.recipe.damage and rng.random() < 0.4 else 0
        count = round(self.recipe.seconds * SAMPLE_RATE)
        mix = np.zeros(count, np.float32)
        notes: list[Note] = []
        for stem in stems:
            shift = 0 if stem.is_drum else formant
            font, stem, pedals = self._cast(stem, shift, rng)
            audio = self._stem_audio(stem, font, shift, detune, rng)
            if audio is not None:
                mix += resound(audio, pedals, rng) if pedals else audio
                label = stem.program - stem.program % CLASS_SIZE if self.recipe.midi_class else stem.program
                notes += [n._replace(program=0 if stem.is_drum else label, is_drum=stem.is_drum) for n in stem.notes]
        if self.recipe.damage:
            mix = degrade(mix, rng, self.recipe.reflections, self.recipe.media)
        else:
            mix *= np.float32(0.5 / max(1e-4, np.abs(mix).max()))
        end = self.recipe.seconds
        notes = [n._replace(offset=min(n.offset, end)) for n in notes if n.onset < end - 0.01]
        notes = trim_overlapping(sorted(notes))
        if self.recipe.settle:
            notes = trim_overlapping(sorted(settle(notes, self.recipe.settle)))
        return Example(mix.astype(np.float32), notes, kind)

    def _cast(self, stem: Stem, shift: int, rng: np.random.Generator) -> tuple[int, Stem, list[tuple[float, float]]]:
        """Draw the font that plays a stem; return its number, the stem as it plays it, and its pedals.

        The stem's program becomes that of the font, of the same class (of drums: the kit's preset), and its notes are
        in the register and the compass of that instrument, or on the keys of that kit, so that all of them sound.
        """
        moves = not stem.is_drum and self.recipe.register > 0 and rng.random() < self.recipe.register
        role = self._role(stem, shift, moves, rng)
        if role is None:
            return 0, stem._replace(notes=()), []
        font, program = role
        longest = self.fonts.longest(font, program, stem.is_drum)
        notes: Sequence[Note] = stem.notes
        pedals: list[tuple[float, float]] = []
        if stem.is_drum:
            notes = on_kit(notes, longest)
        else:
            if moves:
                notes = in_register(notes, program, rng)
            notes = detached(notes, self.recipe.detached, rng)
            if self.recipe.pedal and program in PIANOS and rng.random() < self.recipe.pedal:
                notes, pedals = pedalled(notes, self.recipe.seconds, rng)
            notes = in_compass(notes, longest, shift)
        return font, stem._replace(program=program, notes=tuple(notes)), pedals

    def _role(self, stem: Stem, shift: int, moves: bool, rng: np.random.Generator) -> tuple[int, int] | None:
        """Draw a font and its program, or the preset of its kit, that have most of a stem's notes; None without any.

        Args:
            stem: what is played.
            shift: semitones that it is played higher.
            moves: whether its notes move into the register of the program.
            rng: of all draws.
        """
        fonts = range(len(self.fonts))
        if stem.is_drum:
            roles = [(font, kit) for font in fonts for kit in self.fonts.kits(font)]
        else:
            first = stem.program - stem.program % CLASS_SIZE
            banks = [font for font in fonts if not self.fonts.recorded(font)]
            roles = [(font, stem.program) for font in banks if stem.program in self.fonts.programs(font)]
            roles += [
                (font, program)
                for font in fonts
                if self.fonts.recorded(font)
                for program in sorted(self.fonts.programs(font))
                if first <= program < first + CLASS_SIZE
            ]
        groups = [[role for role in roles if self.fonts.recorded(role[0]) == real] for real in (False, True)]
        if all(groups):
            roles = groups[int(rng.random() < self.recipe.recorded)]
        if not roles:
            return None
        pitches = np.array([note.pitch for note in stem.notes])
        inside = np.array([self._inside(pitches, role, stem.is_drum, shift, moves) for role in roles])
        fitting = [role for role, share in zip(roles, inside) if share >= min(IN_COMPASS, inside.max())]
        if not stem.is_drum:
            return fitting[int(rng.integers(len(fitting)))]
        # each font alike, however many kits it has; of its kits the standard one (0) most of the time
        font = int(rng.choice(sorted({font for font, _ in fitting})))
        kits = [kit for other, kit in fitting if other == font]
        return font, 0 if 0 in kits and rng.random() < 0.4 else int(rng.choice(kits))

    def _inside(self, pitches: np.ndarray, role: tuple[int, int], is_drum: bool, shift: int, moves: bool) -> float:
        """Return the share of pitches that sound with a role, a font and its program or kit."""
        if moves:
            pitches = registered(pitches, role[1])
        return float(np.mean(self.fonts.longest(*role, is_drum)[(pitches + shift).clip(0, 127)] > 0))

    def _stem_audio(self, stem, font, shift, detune, rng) -> np.ndarray | None:
        """Render one stem at its gain: (seconds * 16000,) float32, or None if it has no notes."""
        if not stem.notes:
            return None
        if self.recipe.tones and not stem.is_drum and rng.random() < self.recipe.tones:
            audio = play_tones(stem.notes, stem.program, detune, self.recipe.seconds, rng)
        else:
            audio = self._font_audio(stem, font, shift, detune, rng)
        count = round(self.recipe.seconds * SAMPLE_RATE)
        audio = np.pad(audio[:count], (0, max(0, count - len(audio))))
        if self.recipe.damage:
            audio = equalize_stem(audio, rng)
        loudness = np.sqrt(np.mean(audio**2)) + 1e-5
        gain = 10 ** (rng.uniform(*(GAIN if self.recipe.damage else CLEAN_GAIN)) / 20)
        # Half way to equal loudness raises quiet presets and keeps dynamics.
        return audio * np.float32(gain * 0.08 / (loudness**0.5 * 0.08**0.5))

    def _font_audio(self, stem, font, shift, detune, rng) -> np.ndarray:
        """Render a stem with a soundfont that has its program or kit: about seconds * 16000 samples."""
        import soxr

        # Rendering `shift` semitones higher and slowing down by as much keeps the pitch and moves the formants.
        speed = 2.0 ** (shift / 12)
        played = [
            n._replace(onset=n.onset / speed, offset=n.offset / speed, pitch=n.pitch + shift)
            for n in stem.notes
            if 0 <= n.pitch + shift <= 127
        ]
        seconds = self.recipe.seconds / speed + 0.1
        bend = None
        if not stem.is_drum and stem.program in BENDING:
            bend = bent(played, seconds, self.recipe.vibrato, self.recipe.scoops, rng)
        takes = [font]
        if self.recipe.takes and not stem.is_drum and rng.random() < self.recipe.takes:
            takes = self.fonts.takes(font, stem.program)
        parts = [
            self.fonts.play(notes, take, stem.program, stem.is_drum, detune, seconds, bend)
            for take, notes in zip(takes, self._alternated(played, takes, stem.program), strict=True)
        ]
        audio = np.sum(parts, axis=0) if len(parts) > 1 else parts[0]
        return soxr.resample(audio, RENDER_RATE, SAMPLE_RATE * speed, quality="MQ")

    def _alternated(self, notes: Sequence[Note], takes: Sequence[int], program: int) -> list[list[Note]]:
        """Return the notes of each take: one after the other, the first take's where another one has no such key."""
        if len(takes) == 1:
            return [list(notes)]
        longest = [self.fonts.longest(take, program, False) for take in takes]
        shares: list[list[Note]] = [[] for _ in takes]
        for number, note in enumerate(notes):
            take = number % len(takes)
            needed = min(note.offset - note.onset, longest[0][note.pitch])
            shares[take if longest[take][note.pitch] >= needed > 0 else 0].append(note)
        return shares

    def _stems(self, kind: str, rng: np.random.Generator) -> list[Stem]:
        """Draw the stems of an example: notes from 0 s to recipe.seconds, programs redrawn."""
        if kind == "silence":
            return []
        if kind == "dense" or not self.songs:
            if kind == "drums":
                return [Stem(0, True, tuple(random_drums(self.recipe.seconds, rng)))]
            program = _draw_program(0, rng) if kind == "piano" or rng.random() < 0.5 else int(rng.integers(0, 112))
            return [Stem(program, False, tuple(random_notes(self.recipe.seconds, rng)))]
        for _ in range(20):
            song = self.songs[rng.integers(len(self.songs))]
            if not song.stems:
                continue
            stems = self._stretch(song, rng)
            melodic = [stem for stem in stems if not stem.is_drum]
            if kind == "drums":
                if rng.random() < 0.35:
                    return [Stem(0, True, tuple(random_drums(self.recipe.seconds, rng)))]
                selected = [stem for stem in stems if stem.is_drum]
            elif kind == "piano":
                if len(stems) > 3 and rng.random() < 0.7:
                    continue
                program = _draw_program(0, rng)
                notes = [note for stem in melodic for note in stem.notes]
                selected = [Stem(program, False, tuple(_pedal(notes, rng) if rng.random() < 0.35 else notes))]
            elif kind == "solo":
                stem = melodic[rng.integers(len(melodic))] if melodic else None
                # melodies: violins, voices, reeds, pipes, brass and guitars more than the rest
                group = int(rng.choice([24, 40, 40, 48, 56, 64, 64, 72, 32, 16]))
                selected = [Stem(_draw_program(group, rng), False, stem.notes)] if stem else []
            else:
                selected = self._band(song, stems, rng)
            if sum(len(stem.notes) for stem in selected) >= 5:
                return selected
        if not any(song.stems for song in self.songs):
            raise ValueError(f"none of {plural(len(self.songs), 'song')} has notes; the first is {self.songs[0].path}")
        return []

    def _band(self, song: Song, stems: list[Stem], rng: np.random.Generator) -> list[Stem]:
        """Stems with programs redrawn within their class, some left out; piano pieces get new instruments."""
        if all(stem.program == 0 for stem in stems):
            groups = [int(rng.choice([40, 48, 56, 64, 72, 80, 24])), int(rng.choice([24, 32, 48, 16])), 0]
            stems = [s._replace(program=_draw_program(g, rng)) for s, g in zip(stems, groups)]
            if rng.random() < 0.6:
                stems.append(Stem(0, True, tuple(random_drums(self.recipe.seconds, rng))))
        else:
            stems = [s if s.is_drum else s._replace(program=_draw_program(s.program, rng)) for s in stems]
        keep = [stem for stem in stems if rng.random() > 0.2]
        return keep[:8] if keep else stems[:1]

    def _stretch(self, song: Song, rng: np.random.Generator) -> list[Stem]:
        """Draw an excerpt of the song at another tempo, key and loudness."""
        tempo = float(rng.uniform(0.8, 1.25))
        transposition = int(rng.integers(-5, 7))
        length = self.recipe.seconds * tempo
        last = max(float(rows[:, 1].max()) for _, _, rows in song.stems)
        begin = float(rng.uniform(-0.5, max(0.0, last - length)))
        stems = []
        for program, is_drum, rows in song.stems:
            gain = float(rng.uniform(0.6, 1.3))
            notes = []
            inside = (rows[:, 1] > begin) & (rows[:, 0] < begin + length) & (rows[:, 0] >= begin)
            for start, end, key, loud in rows[inside].tolist():
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
    """Move notes to audibly distinct times: chords to one onset, offsets to a nearby onset.

    A decoder writes one time per group of events. Notes of a chord some milliseconds apart, and offsets that nobody
    hears exactly, would spread its probability over many equally likely times.

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
    """Yield make(index) for each index, in order.

    Args:
        make: function of an index, the same in every process.
        indices: of the examples.
        workers: worker processes, which work a few examples ahead; 0 for this process.

    Raises:
        ValueError: a worker process died.
    """
    if not workers:
        yield from map(make, indices)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(make,)) as pool:
        waiting = []
        try:
            for index in indices:
                waiting.append(pool.submit(_make_in_worker, index))
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


# of a worker process
_make: Callable[[int], Example] | None = None


def _start_worker(make: Callable[[int], Example]) -> None:
    """Start a worker process; it reuses loaded songs and fonts for all of its examples."""
    global _make
    _make = make


def _make_in_worker(index: int) -> Example:
    assert _make is not None, "_start_worker runs first"
    return _make(index)


def play_tones(
    notes: Sequence[Note], program: int, detune: float, seconds: float, rng: np.random.Generator
) -> np.ndarray:
    """Render notes with a random additive synthesizer: (seconds * SAMPLE_RATE,) float32.

    Up to 16 partials with random weights, inharmonic as in a stiff string or not; decaying if the program is a piano,
    a mallet, a guitar or a bass, sustained otherwise, sometimes with vibrato.

    Args:
        notes: to render.
        program: of the notes.
        detune: semitones.
        seconds: length.
        rng: of all draws.
    """
    struck = program < 16 or 24 <= program < 40
    partials = np.arange(1, int(rng.integers(4, 17)))
    weights = partials ** -rng.uniform(0.6, 2.2) * np.exp(rng.normal(0, 0.5, len(partials)))
    # Clarinets and square waves have odd partials only.
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


def _draw_program(program: int, rng: np.random.Generator) -> int:
    """Draw a program of the same MIDI class; acoustic pianos more often than electric ones."""
    if program < CLASS_SIZE:
        return int(rng.choice(CLASS_SIZE, p=[0.52, 0.22, 0.06, 0.06, 0.05, 0.05, 0.02, 0.02]))
    return program - program % CLASS_SIZE + int(rng.integers(CLASS_SIZE))


def _pedal(notes: Sequence[Note], rng: np.random.Generator) -> list[Note]:
    """Sustain notes by a pedal that is renewed at a regular beat."""
    beat = float(rng.uniform(0.4, 2.2))
    return trim_overlapping([n._replace(offset=max(n.offset, (n.onset // beat + 1) * beat - 0.05)) for n in notes])
