"""A YourMT3+ checkpoint as a Transcriber; onnx_mt3/infer.py decides which checkpoints come here."""

from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.user_config import StatedConfig
from mt3_common.checkpoint.yourmt3 import naming
from mt3_common.transcription.family import segments_together
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.yourmt3 import open_yourmt3
from onnx_mt3.decode import release_memory, session
from onnx_mt3.yourmt3.decode import generator
from onnx_mt3.yourmt3.graph import search_parts


def load(
    checkpoint: NamedCheckpoint,
    model: str | None,
    dtype: str,
    batch_size: int,
    instruments: str | None,
    config: StatedConfig | None = None,
) -> Transcriber:
    """Return a Transcriber of a YourMT3+ checkpoint; the arguments are those of infer.load.

    Raises:
        ValueError: the checkpoint or a setting is not usable; says what to do.
    """
    source, opened = open_yourmt3(checkpoint, model, instruments, config)
    family = opened.family
    with naming(checkpoint.path):
        prefix = family.task.prefix()
        search_model, weights = search_parts(source.arrays, source.settings.network, dtype, prefix)
    search = session(search_model.SerializeToString(), computed=dtype, weights=weights)
    # the session has its own copy, laid out for its products
    del source, search_model, weights
    release_memory()
    generate = generator(
        search,
        # as published, what is predicted last behind a prefix is never written
        family.max_tokens - bool(prefix),
        segments_together(batch_size, family.task),
        opened.allowed,
    )
    return opened.transcriber(generate)
