"""Instruments by name, and the tokens that a search may choose for a selection of them."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pretty_midi

from mt3_common.config import Config, VocabularyConfig
from mt3_common.notes.note import CLASS_SIZE
from mt3_common.notes.vocabulary import SPECIAL_IDS, Vocabulary

# General MIDI's 16 families of 8 programs each, in order
FAMILIES = tuple(name.lower() for name in pretty_midi.INSTRUMENT_CLASSES)
PROGRAM_NAMES = tuple(pretty_midi.program_to_instrument_name(program).lower() for program in range(128))
DRUMS = "drums"


class Instruments(NamedTuple):
    """A selection of instruments: programs in 0..127, and drums or none."""

    programs: frozenset[int]
    drums: bool

    def among(self, others: "Instruments") -> "Instruments":
        """Return the instruments that are among others, too."""
        return Instruments(self.programs & others.programs, self.drums and others.drums)

    def __str__(self) -> str:
        return ",".join([*map(str, sorted(self.programs)), *[DRUMS] * self.drums])


def parse_instruments(text: str) -> Instruments:
    """Parse a list of instruments such as 'piano,violin,33,drums'.

    Args:
        text: families of General MIDI, names of its programs, programs (0..127, from 0 as in files) and 'drums', with
            commas between; case and punctuation do not matter.

    Raises:
        ValueError: a name is unknown; the message lists the known ones.
    """
    known = {_plain(name): {program} for program, name in enumerate(PROGRAM_NAMES)}
    known |= {_plain(name): set(range(8 * number, 8 * number + 8)) for number, name in enumerate(FAMILIES)}
    programs: set[int] = set()
    drums = False
    for name in text.split(","):
        plain = _plain(name)
        if plain == DRUMS:
            drums = True
        elif plain in known:
            programs |= known[plain]
        elif re.fullmatch(r"\s*[0-9]{1,3}\s*", name) and int(name) < 128:
            programs.add(int(name))
        else:
            raise ValueError(
                f"no instrument {name.strip()!r}; there are {', '.join(FAMILIES)}, {DRUMS}, the programs 0 to 127, and "
                "their names in General MIDI, such as violin or electric bass (finger)"
            )
    return Instruments(frozenset(programs), drums)


def instrument_names(instruments: Instruments) -> str:
    """Return the names of instruments: families that are whole, programs, drums."""
    names = []
    for number, family in enumerate(FAMILIES):
        programs = [program for program in sorted(instruments.programs) if program // CLASS_SIZE == number]
        names += [family] if len(programs) == CLASS_SIZE else [PROGRAM_NAMES[program] for program in programs]
    return ", ".join([*names, *[DRUMS] * instruments.drums])


def instrument_list() -> str:
    """List the names that parse_instruments takes: a line per family, with its programs."""
    lines = [
        f"{family}: {', '.join(f'{8 * number + i} {PROGRAM_NAMES[8 * number + i]}' for i in range(8))}"
        for number, family in enumerate(FAMILIES)
    ]
    return "\n".join([*lines, DRUMS])


def written_program(program: int, vocabulary: VocabularyConfig) -> int:
    """Return the program that a network writes for one: the first of its MIDI class, or itself."""
    return program - program % CLASS_SIZE if vocabulary.program_granularity == "midi_class" else program


def named_programs(instruments: Instruments, written: Callable[[int], Iterable[int]]) -> dict[int, int]:
    """Return for each program that a network writes for the instruments the one of theirs that its notes are given to.

    That is the program itself if it is among them, or else the lowest of those that are written so.

    Args:
        instruments: as they were named.
        written: returns the programs that the network writes for one.
    """
    names: dict[int, int] = {}
    for program in sorted(instruments.programs):
        for other in written(program):
            names.setdefault(other, program)
    return names | {program: program for program in names if program in instruments.programs}


def joined_names(instruments: Instruments, written: Callable[[int], Iterable[int]]) -> str:
    """Describe which of the instruments stand for others that a network does not tell from them; '' for none.

    Args:
        instruments, written: see named_programs.
    """
    sentences = []
    for other, program in sorted(named_programs(instruments, written).items()):
        alike = [number for number in range(128) if other in written(number)]
        if not set(alike) <= instruments.programs:
            names = instrument_names(Instruments(frozenset(alike), False))
            sentences.append(f"{PROGRAM_NAMES[program]} stands for {names}")
    return "; ".join(sentences)


def allowed_tokens(instruments: Instruments, config: Config) -> np.ndarray:
    """Return a mask of the ids that a search may choose for these instruments: (num_embeddings,) bool.

    A program stands for the one that the network writes for it. Without programs, pitches are excluded too; ids that do
    not depend on instruments stay allowed.

    Raises:
        ValueError: the model does not tell instruments apart.
    """
    if not config.vocabulary.use_programs:
        raise ValueError("this model knows one instrument only, so --instruments has nothing to choose from")
    vocabulary = Vocabulary(config.vocabulary)
    allowed = np.ones(vocabulary.num_embeddings, bool)

    def ids(kind: str) -> np.ndarray:
        first, last = vocabulary.ranges[kind]
        return allowed[SPECIAL_IDS + first : SPECIAL_IDS + last + 1]

    programs = {written_program(program, config.vocabulary) for program in instruments.programs}
    ids("program")[:] = np.isin(np.arange(128), list(programs))
    ids("pitch")[:] = bool(instruments.programs)
    ids("drum")[:] = instruments.drums
    return allowed


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
