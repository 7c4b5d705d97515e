"""A YourMT3+ checkpoint as a Transcriber; onnx_mt3/infer.py decides which checkpoints come here."""

from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.user_config import StatedConfig, read_config
from mt3_common.checkpoint.yourmt3 import naming, read_yourmt3
from mt3_common.notes.instruments import parse_instruments
from mt3_common.transcription.family import YourMT3Family, segments_together
from mt3_common.transcription.pipeline import Transcriber
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
    stated = None if config is None else read_config(config)
    source = read_yourmt3(checkpoint.path, model or checkpoint.model or None, stated)
    with naming(checkpoint.path):
        family = YourMT3Family(source.settings, FrontEnd(source.settings.front_end, source.front_end_arrays))
        prefix = family.task.prefix()
        search_model, weights = search_parts(source.arrays, source.settings.network, dtype, prefix)
    search, notice = session(search_model.SerializeToString(), computed=dtype, weights=weights), source.notice
    # the session has its own copy, laid out for its products
    del source, search_model, weights
    release_memory()
    only = None if instruments is None else parse_instruments(instruments)
    generate = generator(
        search,
        # as published, what is predicted last behind a prefix is never written
        family.max_tokens - bool(prefix),
        segments_together(batch_size, family.task),
        None if only is None else family.allowed_ids(only),
    )
    return Transcriber(family, generate, checkpoint._replace(notice=notice), only)
