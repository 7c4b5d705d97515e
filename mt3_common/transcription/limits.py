"""Ranges of what a transcription can be asked for, of the command line and of Python alike."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

from mt3_common.audio.levels import AUTO as AUTO_GAIN
from mt3_common.audio.levels import CHANNELS
from mt3_common.notes.instruments import Instruments
from mt3_common.notes.meter import Meter, parse_meter
from mt3_common.notes.tempo import FASTEST, SLOWEST
from mt3_common.transcription.beats import AUTO
from mt3_common.transcription.reader import AUTO_VELOCITY, ESTIMATE

# s, of times: far beyond any recording, and few enough samples for 64 bits
MOST_SECONDS = 1e9
# dB, of a gain: more than any recorder's range
MOST_GAIN = 150
# samples a second that the header of a WAV file can tell
MOST_RATE = 2**31 - 1


class Limit(NamedTuple):
    """Numbers that are accepted, and how messages describe them."""

    description: str
    accepts: Callable[[Any], bool]


SECONDS = Limit("a time of 0 s or more, up to 1e9", lambda value: 0 <= value <= MOST_SECONDS)
DURATION = Limit("a time above 0 s, up to 1e9", lambda value: 0 < value <= MOST_SECONDS)
GAIN = Limit(f"a number of dB from -{MOST_GAIN} to {MOST_GAIN}", lambda value: abs(value) <= MOST_GAIN)
VELOCITY = Limit("a whole number from 1 to 127", lambda value: 1 <= value <= 127 and value % 1 == 0)
TEMPO = Limit(f"a number from {SLOWEST} to {FASTEST}", lambda value: SLOWEST <= value <= FASTEST)
RATE = Limit("a whole number from 1 up", lambda value: 1 <= value <= MOST_RATE and value % 1 == 0)

# argument of Transcriber.transcribe -> its limit, and the words that it may be instead
NUMBERS: dict[str, tuple[Limit, tuple[str, ...]]] = {
    "start": (SECONDS, ()),
    "duration": (DURATION, ()),
    "min_note": (SECONDS, ()),
    "first_downbeat": (SECONDS, ()),
    "sample_rate": (RATE, ()),
    "velocity": (VELOCITY, (ESTIMATE, AUTO_VELOCITY)),
    "tempo": (TEMPO, (AUTO,)),
    "gain": (GAIN, (AUTO_GAIN,)),
}


def check_options(options: dict[str, Any]) -> None:
    """Check arguments of Transcriber.transcribe, by name; None is right for each.

    Raises:
        ValueError: one of them is out of its range, or of a wrong kind, or contradicts another.
    """
    for name, (allowed, words) in NUMBERS.items():
        value = options.get(name)
        if value is None or (isinstance(value, str) and value in words):
            continue
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not allowed.accepts(value):
            choices = "".join(f"{word!r}, " for word in words)
            raise ValueError(f"{name} must be {choices}{'or ' if words else ''}{allowed.description}, not {value!r}")
    channel, meter, only = (options.get(name) for name in ("channel", "meter", "only"))
    if channel is not None and channel not in CHANNELS:
        raise ValueError(f"channel must be one of {', '.join(CHANNELS)}, not {channel!r}")
    if isinstance(meter, str) and meter != AUTO:
        parse_meter(meter)
    elif meter is not None and not isinstance(meter, str | Meter):
        raise ValueError(f"meter must be text such as '3/4', or {AUTO!r}, not {meter!r}")
    if only is not None and not isinstance(only, Instruments):
        raise ValueError(f"only must be instruments, such as 'piano,bass', not {only!r}")
    if options.get("quantise") and options.get("tempo") is None:
        raise ValueError(f"quantise moves notes to the beats of tempo: give tempo {AUTO!r}, or a number")
