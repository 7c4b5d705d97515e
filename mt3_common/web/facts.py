"""Facts of a model that the page shows and offers, whichever source transcribes."""

from typing import Any

from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.config import Config
from mt3_common.notes.instruments import DRUMS, FAMILIES, PROGRAM_NAMES
from mt3_common.notes.tempo import FASTEST, SLOWEST


def model_facts(config: Config, checkpoint: NamedCheckpoint | None) -> dict[str, Any]:
    """Return for JSON: name and notice of the checkpoint, instruments, what can be chosen, and bounds of a tempo."""
    vocabulary = config.vocabulary
    return {
        "checkpoint": checkpoint.name if checkpoint else "",
        "notice": checkpoint.notice if checkpoint else "",
        "programs": PROGRAM_NAMES,
        "families": FAMILIES,
        "drums": DRUMS,
        "instruments": vocabulary.use_programs,
        "hold": vocabulary.use_programs and vocabulary.use_ties,
        "slowest": SLOWEST,
        "fastest": FASTEST,
    }
