"""Tasks of YourMT3+: the ids of a vocabulary, the classes that programs and drums are joined to, and the channels.

Ids in order: PAD, EOS, UNK, the task's own ids, then shift, pitch, velocity, tie, program, drum.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from mt3_common.config import ConfigError
from mt3_common.notes.note import DRUM_CLASSES, first_of_class
from mt3_common.yourmt3_config import YourMT3Settings

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SINGING, CHORUS = 100, 101
# programs of the events alone: drums, and what nobody annotated
DRUMS, UNANNOTATED = 128, 129
STEPS_PER_SECOND = 100
# kind of event -> values
SIZES = {"shift": 206, "pitch": 128, "velocity": 2, "tie": 1, "program": 128, "drum": 128}

_GROUPS = (
    *("Piano", "Chromatic Percussion", "Organ", "Guitar", "Bass", "Strings", "Strings", "Brass", "Reed", "Pipe"),
    *("Synth Lead", "Synth Pad"),
)
GM: dict[str, tuple[int, ...]] = {}
for _number, _name in enumerate(_GROUPS):
    GM[_name] = GM.get(_name, ()) + tuple(range(8 * _number, 8 * _number + 8))
GM_PLUS = GM | {"Singing Voice": (SINGING, CHORUS)}
_VOICES = {"Singing Voice": (SINGING,), "Singing Voice (chorus)": (CHORUS,)}
_PIANOS = {"Acoustic Piano": (0, 1, 3, 6, 7), "Electric Piano": (2, 4, 5)}
# class -> its programs, of which the first stands for all
MT3_FULL = {
    **_PIANOS,
    "Chromatic Percussion": GM["Chromatic Percussion"],
    "Organ": GM["Organ"],
    "Acoustic Guitar": (24, 25),
    "Clean Electric Guitar": (26, 27, 28),
    "Distorted Electric Guitar": (29, 30, 31),
    "Acoustic Bass": (32, 35),
    "Electric Bass": (33, 34, 36, 37, 38, 39),
    "Violin": (40,),
    "Viola": (41,),
    "Cello": (42,),
    "Contrabass": (43,),
    "Orchestral Harp": (46,),
    "Timpani": (47,),
    "String Ensemble": (48, 49, 44, 45),
    "Synth Strings": (50, 51),
    "Choir and Voice": (52, 53, 54),
    "Orchestra Hit": (55,),
    "Trumpet": (56, 59),
    "Trombone": (57,),
    "Tuba": (58,),
    "French Horn": (60,),
    "Brass Section": (61, 62, 63),
    "Soprano/Alto Sax": (64, 65),
    "Tenor Sax": (66,),
    "Baritone Sax": (67,),
    "Oboe": (68,),
    "English Horn": (69,),
    "Bassoon": (70,),
    "Clarinet": (71,),
    "Pipe": (73, 72, 74, 75, 76, 77, 78, 79),
    "Synth Lead": GM["Synth Lead"],
    "Synth Pad": GM["Synth Pad"],
}
MT3_FULL_PLUS = MT3_FULL | _VOICES
# also the classes of the MIDI files that the authors' Space writes
GM_EXT_PLUS = {
    **_PIANOS,
    "Chromatic Percussion": GM["Chromatic Percussion"],
    "Organ": GM["Organ"],
    "Guitar (clean)": (24, 25, 26, 27),
    "Guitar (distortion)": (30, 28, 29, 31),
    "Bass": (33, 32, 34, 35, 36, 37, 38, 39),
    "Strings": (48, *range(40, 48), *range(49, 56)),
    **{name: GM[name] for name in ("Brass", "Reed", "Pipe", "Synth Lead", "Synth Pad")},
    **_VOICES,
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A vocabulary, and how music is put into it.

    Attributes:
        name: as published.
        classes: class -> programs that are encoded as its first; programs in no class stay.
        channels: class -> programs of a decoder's channel, drums behind them; empty for one channel.
        extra: kinds of the task's own ids, one id each, which decoding passes over.
        prefixes: name -> kinds that the ids begin with.
        max_tokens: ids of a channel at most, prefix included.
    """

    name: str
    classes: Mapping[str, Sequence[int]]
    channels: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    extra: tuple[str, ...] = ()
    prefixes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {"default": ()})
    max_tokens: int = 1024

    @functools.cached_property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Return kind -> (first, last) id."""
        sizes = {"PAD": 1, "EOS": 1, "UNK": 1} | dict.fromkeys(self.extra, 1) | SIZES
        ranges = {}
        first = 0
        for kind, size in sizes.items():
            ranges[kind] = (first, first + size - 1)
            first += size
        return ranges

    @functools.cached_property
    def events(self) -> list[tuple[str, int]]:
        """Return (kind, value) of each id."""
        return [(kind, value) for kind, (first, last) in self.ranges.items() for value in range(last - first + 1)]

    @property
    def num_ids(self) -> int:
        """Number of ids."""
        return len(self.events)

    @property
    def num_channels(self) -> int:
        """Channels of the decoder: the classes and the drums, or one."""
        return len(self.channels) + 1 if self.channels else 1

    @functools.cached_property
    def first_of_class(self) -> dict[int, int]:
        """Return program -> the program that it is encoded as; without those in no class."""
        return first_of_class(self.classes.values())

    @functools.cached_property
    def first_of_drum_class(self) -> dict[int, int]:
        """Return pitch of a drum -> the pitch that it is encoded as; without those in no class."""
        return first_of_class(DRUM_CLASSES)

    @functools.cached_property
    def channel_of_program(self) -> dict[int, int]:
        """Return program -> channel, drums included; programs in no channel are lost. Empty for one channel."""
        if not self.channels:
            return {}
        numbers = {
            program: number for number, programs in enumerate(self.channels.values()) for program in sorted(programs)
        }
        return numbers | {DRUMS: len(self.channels)}

    def id_of(self, kind: str, value: int = 0) -> int:
        """Return the id of an event.

        Raises:
            ValueError: there is no such event.
        """
        first, last = self.ranges[kind]
        if not 0 <= value <= last - first:
            raise ValueError(f"{kind} must be in 0..{last - first}, not {value}")
        return first + value

    def prefix(self, name: str = "default") -> list[int]:
        """Return the ids that the network is given first.

        Raises:
            ConfigError: the task has no such prefix.
        """
        if name not in self.prefixes:
            raise ConfigError(f"task {self.name} has no prefix {name!r}; there are {', '.join(self.prefixes)}")
        return [self.id_of(kind) for kind in self.prefixes[name]]


def _task_prefixes(**names: str) -> dict[str, tuple[str, ...]]:
    return {name.replace("_", "-"): (kind, "task") for name, kind in names.items()}


_SINGING = {
    "name": "singing_v1",
    "extra": ("task", "transcribe_singing", "transcribe_all"),
    "prefixes": _task_prefixes(default="transcribe_all", singing_only="transcribe_singing"),
}
_SINGING_DRUM = {
    "name": "singing_drum_v1",
    "extra": ("task", "transcribe_singing", "transcribe_drum", "transcribe_all"),
    "prefixes": _task_prefixes(
        default="transcribe_all", singing_only="transcribe_singing", drum_only="transcribe_drum"
    ),
}
_EXCLUSIVE = {
    "name": "exc_v1",
    "extra": ("transcribe", "all", ":"),
    "prefixes": {"default": ("transcribe", "all", ":")},
}
TASKS = {
    task.name: task
    for task in (
        Task("mt3_midi", GM),
        Task("mt3_midi_plus", GM_PLUS),
        Task("mt3_full", MT3_FULL),
        Task("mt3_full_plus", MT3_FULL_PLUS),
        Task("gm_ext_plus", GM_EXT_PLUS),
        Task(classes=MT3_FULL_PLUS, max_tokens=1026, **_SINGING),
        Task(classes=MT3_FULL_PLUS, max_tokens=1026, **_SINGING_DRUM),
        Task("mc13", GM_PLUS, GM_PLUS, max_tokens=512),
        Task("mc13_256", GM_PLUS, GM_PLUS, max_tokens=256),
        Task("mc13_full_plus", MT3_FULL_PLUS, GM_PLUS, max_tokens=512),
        Task("mc13_full_plus_256", MT3_FULL_PLUS, GM_PLUS, max_tokens=256),
        Task(classes=MT3_FULL_PLUS, **_EXCLUSIVE),
    )
}


def max_tokens(settings: YourMT3Settings) -> int:
    """Return the ids of a channel at most: those of the task, and no more than a decoder's table has positions."""
    most, network = find_task(settings.task).max_tokens, settings.network
    return min(most, network.num_positions) if network.t5_decoder.position_encoding == "sinusoidal" else most


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]
