"""Notes as an instrument plays them: in register and compass, detached, with vibrato, scoops, a pedal, on a kit."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mt3_common.data.songs import Stem
from mt3_common.data.soundfont import BEND_STEP
from mt3_common.notes.note import DRUM_CLASSES, Note, trim_overlapping

# Programs that can bend a note while it sounds: bowed strings, voices, brass, reeds, pipes.
BENDING = (*range(40, 45), 52, 53, 54, *range(56, 80))
# Lowest and highest sounding pitches that are usual on the instruments of programs 8 to 111; pianos and sound effects
# play any.
REGISTERS: dict[int, tuple[int, int]] = {
    # celesta, glockenspiel, music box, vibraphone, marimba, xylophone, tubular bells, dulcimer
    **dict(zip(range(8, 16), ((60, 108), (79, 108), (60, 96), (53, 89), (45, 96), (65, 108), (60, 77), (45, 93)))),
    # organs; accordion, harmonica, tango accordion
    **dict.fromkeys(range(16, 21), (36, 96)),
    **{21: (41, 93), 22: (60, 96), 23: (41, 93)},
    # guitars; basses
    **dict.fromkeys(range(24, 32), (40, 86)),
    **dict.fromkeys(range(32, 40), (28, 60)),
    # violin, viola, cello, contrabass, tremolo and pizzicato of all, harp, timpani
    **dict(zip(range(40, 48), ((55, 100), (48, 88), (36, 76), (28, 60), (28, 96), (28, 96), (24, 103), (38, 57)))),
    # ensembles of strings; voices; orchestra hit
    **dict.fromkeys(range(48, 52), (28, 96)),
    **dict.fromkeys((52, 53, 54), (41, 84)),
    55: (36, 84),
    # trumpet, trombone, tuba, muted trumpet, horn, sections
    **dict(zip(range(56, 61), ((54, 86), (40, 72), (28, 58), (54, 84), (34, 77)))),
    **dict.fromkeys((61, 62, 63), (36, 84)),
    # saxophones from soprano to baritone, oboe, English horn, bassoon, clarinet
    **dict(zip(range(64, 72), ((56, 88), (49, 81), (44, 76), (36, 69), (58, 91), (52, 81), (34, 75), (50, 94)))),
    # piccolo, flutes
    **dict(zip(range(72, 80), ((74, 108), (60, 96), (60, 91), (60, 96), (60, 96), (55, 86), (60, 96), (60, 84)))),
    # synthesizers
    **dict.fromkeys(range(80, 104), (36, 96)),
    # sitar, banjo, shamisen, koto, kalimba, bagpipe, fiddle, shanai
    **dict(zip(range(104, 112), ((48, 77), (48, 84), (50, 79), (55, 84), (48, 79), (36, 77), (55, 96), (48, 72)))),
}


def in_register(notes: Sequence[Note], program: int, rng: np.random.Generator) -> list[Note]:
    """The notes of a stem moved by octaves into the register of its instrument.

    A song's line is given to whatever instrument is drawn for it, also to one that never plays so high or low; what is
    heard then is hardly that instrument. A line with nine tenths of its notes in the register stays where it is. Others
    are moved as a whole, by an octave shift drawn among those that bring at least three quarters as many notes into the
    register as the best one does. Single notes that are still outside are moved by octaves of their own.

    Args:
        notes: of a stem.
        program: that plays them; see REGISTERS.
        rng: draws the octave shift; not touched where the line stays.
    """
    if program not in REGISTERS or not notes:
        return list(notes)
    low, high = REGISTERS[program]
    pitches = np.array([note.pitch for note in notes])
    moved = pitches + 12 * np.arange(-6, 7)[:, None]
    inside = ((moved >= low) & (moved <= high)).mean(axis=1)
    fitting = np.flatnonzero(inside >= 0.75 * inside.max())
    stays = np.mean((pitches >= low) & (pitches <= high)) >= 0.9
    chosen = registered(pitches if stays else moved[rng.choice(fitting)], program)
    return trim_overlapping(sorted(note._replace(pitch=int(pitch)) for note, pitch in zip(notes, chosen, strict=True)))


def registered(pitches: np.ndarray, program: int) -> np.ndarray:
    """Return pitches with those outside of the register of a program moved by octaves to its nearest end."""
    low, high = REGISTERS.get(program, (0, 127))
    pitches = np.where(pitches < low, low + (pitches - low) % 12, pitches)
    return np.where(pitches > high, high - (high - pitches) % 12, pitches)


def in_compass(notes: Sequence[Note], longest: np.ndarray, shift: int = 0) -> list[Note]:
    """The notes as an instrument can play them, so that a label says what is heard.

    Notes outside of the compass move by octaves into it, to a pitch that has no note at that time, or are left out;
    notes that are held for longer than the instrument sounds end there.

    Args:
        notes: in order of onset.
        longest: (128,) s, as Fonts.longest.
        shift: semitones that the notes are played higher (and slowed down by as much).
    """
    slower = 2.0 ** (shift / 12)
    fitted = []
    for note in notes:
        octaves = [note.pitch + 12 * octave for octave in (0, -1, 1, -2, 2, -3, 3)]
        inside = [pitch for pitch in octaves if 0 <= pitch + shift <= 127 and longest[pitch + shift] > 0]
        if inside:
            duration = float(longest[inside[0] + shift]) * slower
            fitted.append(note._replace(pitch=inside[0], offset=min(note.offset, note.onset + duration)))
    return trim_overlapping(sorted(fitted))


def on_kit(notes: Sequence[Note], longest: np.ndarray) -> list[Note]:
    """The hits as a kit can play them, so that a label says what is heard.

    A hit of a key that is silent moves to one of its class of drums (DRUM_CLASSES) that sounds, or is left out.

    Args:
        notes: drums, in order of onset.
        longest: (128,) s, as Fonts.longest.
    """
    classes = {member: members for members in DRUM_CLASSES for member in members}
    fitted = []
    for note in notes:
        sounding = [key for key in (note.pitch, *classes.get(note.pitch, ())) if longest[key] > 0]
        if sounding:
            fitted.append(note._replace(pitch=sounding[0]))
    return trim_overlapping(sorted(fitted))


def bent(
    notes: Sequence[Note], seconds: float, vibrato: float, scoops: float, rng: np.random.Generator
) -> np.ndarray | None:
    """Vibrato and scoops of a stem: (n,) semitones every BEND_STEP from 0 to `seconds`, or None for neither.

    Vibrato of 4.5 to 7 Hz and 10 to 60 cents sets in 0.2 to 0.4 s after an onset. A scoop begins 30 to 150 cents below
    and arrives within 60 to 150 ms; lines with chords have none.

    Args:
        notes: in order of onset.
        seconds: length.
        vibrato: share of the stems that have it.
        scoops: share of the stems that have them.
        rng: of all draws.
    """
    has_vibrato, has_scoops = rng.random() < vibrato, rng.random() < scoops
    has_scoops &= all(after.onset > note.offset - 0.03 for note, after in itertools.pairwise(notes))
    if not notes or not (has_vibrato or has_scoops):
        return None
    times = np.arange(math.ceil(seconds / BEND_STEP)) * BEND_STEP
    bend = np.zeros(len(times))
    rate, depth, delay = rng.uniform(4.5, 7.0), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.4)
    onsets = np.array([note.onset for note in notes])
    since = times - onsets[np.searchsorted(onsets, times, side="right").clip(1) - 1]
    if has_vibrato:
        rising = np.clip((since - delay) / 0.2, 0, 1)
        bend += depth * rising * np.sin(2 * np.pi * rate * since)
    if has_scoops:
        for note in notes:
            if rng.random() < 0.4:
                deep, arrival = rng.uniform(0.3, 1.5), rng.uniform(0.06, 0.15)
                steps = (times >= note.onset - BEND_STEP) & (times < note.onset + arrival)
                bend[steps] -= deep * (1 - (times[steps] - note.onset) / arrival).clip(0, 1)
    return bend


def detached(notes: Sequence[Note], share: float, rng: np.random.Generator) -> Sequence[Note]:
    """The notes, in a share of the cases shortened, so that no offset tells the next onset.

    All are shortened to one share of their length, 15 to 90 %, each with a deviation of a fifth, at least to 40 ms.

    Args:
        notes: of a stem.
        share: of the stems that are shortened.
        rng: of all draws; not touched where share is 0.
    """
    if not share or rng.random() >= share:
        return notes
    factors = rng.uniform(0.15, 0.9) * np.exp(rng.normal(0, 0.2, len(notes)))
    lengths = [max(0.04, min(1.0, factor) * (note.offset - note.onset)) for note, factor in zip(notes, factors)]
    return [note._replace(offset=min(note.offset, note.onset + length)) for note, length in zip(notes, lengths)]


def pedalled(
    notes: Sequence[Note], seconds: float, rng: np.random.Generator
) -> tuple[list[Note], list[tuple[float, float]]]:
    """The notes as a sustain pedal holds them, and the times, in seconds, at which it goes down and up.

    The pedal goes down for 0.3 to 4 s at a time, usually again at once, sometimes after a pause. A note that ends while
    it is down lasts until it goes up.

    Args:
        notes: of a piano.
        seconds: length.
        rng: of all draws.
    """
    length, pauses = float(np.exp(rng.uniform(np.log(0.4), np.log(2.5)))), rng.uniform(0, 0.5)
    pedals = []
    time = float(rng.uniform(0, length))
    while time < seconds:
        up = time + float(np.clip(length * np.exp(rng.normal(0, 0.3)), 0.3, 4.0))
        pedals.append((time, up))
        # the foot takes a moment; a pause is as long as a pedal
        time = up + (length if rng.random() < pauses else float(rng.uniform(0.03, 0.15)))
    downs, ups = np.array(pedals).reshape(-1, 2).T
    longer = []
    for note in notes:
        last = int(np.searchsorted(downs, note.offset, side="right")) - 1
        is_held = last >= 0 and note.offset < ups[last]
        longer.append(note._replace(offset=float(ups[last])) if is_held else note)
    return trim_overlapping(sorted(longer)), pedals


def one_kit(stems: list[Stem]) -> list[Stem]:
    """The stems with all drums in one, which one kit plays."""
    drums = sorted(note for stem in stems if stem.is_drum for note in stem.notes)
    pitched = [stem for stem in stems if not stem.is_drum]
    return [*pitched, Stem(0, True, tuple(drums))] if drums else pitched
