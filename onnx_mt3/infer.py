"""Recordings to notes with ONNX Runtime: python -m onnx_mt3.infer song.wav, or from Python:

from onnx_mt3 import infer
transcription = infer.load().transcribe("song.wav", velocity="auto")
transcription.write("song.mid")
"""

import os
import sys

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.registry import NamedCheckpoint, find_checkpoint
from mt3_common.checkpoint.user_config import StatedConfig, overrides_of_mt3
from mt3_common.checkpoint.yourmt3 import is_yourmt3, mt3_preset
from mt3_common.cli import infer as cli
from mt3_common.io.optional import needed
from mt3_common.notes.instruments import allowed_tokens, parse_instruments
from mt3_common.transcription.activations import has_activations
from mt3_common.transcription.continuity import InstrumentContinuity
from mt3_common.transcription.family import check_yourmt3_options
from mt3_common.transcription.instrument_prior import takes_prior
from mt3_common.transcription.pipeline import Transcriber


def load(
    checkpoint: str | os.PathLike | NamedCheckpoint | None = None,
    model: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    search: str = "greedy",
    beams: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    positions: str | None = None,
    instruments: str | None = None,
    hold: float | None = None,
    instrument_prior: bool = True,
    activations: bool = True,
    config: StatedConfig | None = None,
) -> Transcriber:
    """Return a Transcriber: the network of a checkpoint as an ONNX graph, run on the CPU.

    Args:
        checkpoint: path, name or address, as find_checkpoint takes them; None for the default one.
        model: 'mt3', 'ismir2021' or a released YourMT3+, where neither the checkpoint nor its name tells.
        device: 'cpu' or None; the twins have others.
        dtype: 'float32' or 'float64'; the twins have others.
        search: 'greedy'; the twins have others.
        beams, temperature, top_k, top_p, seed: for the twins' searches; greedy search ignores them.
        batch_size: segments searched at once.
        positions: 'mt3' or 'port': the sinusoids that the weights were trained on; None to believe the checkpoint.
        instruments: the only ones that may be heard, such as 'piano,bass,drums' (see parse_instruments); None for all.
        hold: keep instruments from one segment to the next, with this bias; None to decode each segment alone.
        instrument_prior: choose instruments by their share of the recording so far, too (see InstrumentPrior), where
            instruments are not held and notes are not decoded as published.
        activations: correct onsets and offsets by the pre-encoder's pitch activations, where the network has
            context_frames and notes are not decoded as published (see ActivationCorrector).
        config: settings where the checkpoint has none, or other ones: a config.json, its content, or the name of a
            released YourMT3+; None to believe the checkpoint.

    Raises:
        ValueError: the checkpoint or a setting is not usable; says what to do.
    """
    if search != "greedy":
        raise ValueError(f"ONNX Runtime searches greedily; --search {search} is for torch_mt3 and jax_mt3")
    if device not in (None, "cpu"):
        raise ValueError(f"onnx_mt3 runs on the CPU, not on {device!r}; torch_mt3 and jax_mt3 know other devices")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"onnx_mt3 computes in float32 or float64; --dtype {dtype} is for torch_mt3 and jax_mt3")
    with needed("onnx_mt3 needs onnx and onnxruntime", "onnx"):
        # imported here: --help and wrong arguments are answered at once
        from onnx_mt3 import decode, graph

    named = find_checkpoint(checkpoint)
    if is_yourmt3(named.path):
        from onnx_mt3.yourmt3 import infer as yourmt3

        check_yourmt3_options(search, positions, hold, dtype)
        return yourmt3.load(named, model, dtype, batch_size, instruments, config)
    programs = None if instruments is None else parse_instruments(instruments)
    overrides = overrides_of_mt3(config, positions, named.name)
    source = read_checkpoint(named.path)
    network = source.config(mt3_preset(named.name, model or named.model), overrides)
    search_model, weights = graph.search_parts(source.arrays, network, computed=dtype)
    session = decode.session(search_model.SerializeToString(), computed=dtype, weights=weights)
    # the session has its own copy, laid out for its products
    del source, search_model, weights
    decode.release_memory()
    generate = decode.generator(
        session,
        network,
        batch_size=batch_size,
        allowed=None if programs is None else allowed_tokens(programs, network),
        program_logits=instrument_prior and takes_prior(network, search, hold),
        activations=activations and has_activations(network),
    )
    continuity = None if hold is None else InstrumentContinuity(hold, batch_size)
    return Transcriber(network, generate, checkpoint=named, instruments=programs, continuity=continuity)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: see mt3_common/cli/infer.py."""
    return cli.main("onnx_mt3", load, argv)


if __name__ == "__main__":
    sys.exit(main())
