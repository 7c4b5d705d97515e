"""Facts of a model that the page shows and offers, whichever source transcribes."""

from typing import Any

from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.notes.instruments import DRUMS, FAMILIES, PROGRAM_NAMES
from mt3_common.notes.tempo import FASTEST, SLOWEST
from mt3_common.transcription.family import Family


def model_facts(family: Family, checkpoint: NamedCheckpoint | None) -> dict[str, Any]:
    """Return for JSON: name and notice of the checkpoint, instruments, what can be chosen, and bounds of a tempo."""
    return {
        "checkpoint": checkpoint.name if checkpoint else "",
        "notice": checkpoint.notice if checkpoint else "",
        "programs": PROGRAM_NAMES,
        "families": FAMILIES,
        "drums": DRUMS,
        "instruments": family.tells_instruments,
        "hold": family.can_hold,
        "slowest": SLOWEST,
        "fastest": FASTEST,
    }
