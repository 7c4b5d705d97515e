"""Recordings to notes with the PyTorch network: python -m torch_mt3.infer song.wav, or from Python:

from torch_mt3 import infer
transcription = infer.load().transcribe("song.wav", velocity="auto")
transcription.write("song.mid")
"""

import os
import sys
import warnings

from mt3_common.checkpoint.registry import NamedCheckpoint, find_checkpoint
from mt3_common.checkpoint.user_config import StatedConfig, overrides_of_mt3
from mt3_common.checkpoint.yourmt3 import is_yourmt3, mt3_preset
from mt3_common.cli import infer as cli
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
    """A Transcriber: the network of a checkpoint, on its device, with a way to search.

    Args:
        checkpoint: path, name or address, as find_checkpoint takes them; None for the default one.
        model: 'mt3', 'ismir2021' or a released YourMT3+, where neither the checkpoint nor its name tells.
        device: 'cpu', 'cuda', 'gpu', 'cuda:1', 'mps'; None for a GPU if there is one.
        dtype: 'float32', 'bfloat16', 'float64' or 'int8' (whole numbers in the decoder's MLPs).
        search: 'greedy', 't5x' (T5X's beam search, as MT3 was published) or 'sample'.
        beams: beams of 't5x'.
        temperature: divides the logits in 'sample'.
        top_k: tokens that 'sample' chooses among; 0 for all.
        top_p: probability that 'sample' chooses within; 1.0 for all.
        seed: of 'sample'.
        batch_size: segments decoded at once.
        positions: 'mt3' or 'port': the sinusoids that the weights were trained on; None to believe the checkpoint.
        instruments: the only ones that may be heard, such as 'piano,bass,drums' (see parse_instruments); None for all.
        hold: keep instruments from one segment to the next with this bias (see InstrumentContinuity); None to decode
            each segment alone.
        instrument_prior: choose instruments by their share of the recording so far, too (see InstrumentPrior), where
            the search is greedy, instruments are not held and notes are not decoded as published.
        activations: correct onsets and offsets by the pre-encoder's pitch activations, where the network has
            context_frames and notes are not decoded as published (see ActivationCorrector).
        config: settings where the checkpoint has none, or other ones: a config.json, its content, or the name of a
            released YourMT3+; None to believe the checkpoint.

    Raises:
        ValueError: the checkpoint, the device or a setting is not usable; says what to do.

    Warns:
        UserWarning: the processor is slow or wrong at the dtype, and float32 is computed instead; says which.
    """
    # imported here: --help and wrong arguments are answered at once, and Ctrl-C while PyTorch loads is handled
    from torch_mt3 import checkpoint as weights
    from torch_mt3 import decode
    from torch_mt3.kernels import processor_note

    checkpoint = find_checkpoint(checkpoint)
    if is_yourmt3(checkpoint.path):
        from torch_mt3.yourmt3 import infer as yourmt3

        check_yourmt3_options(search, positions, hold, dtype)
        return yourmt3.load(checkpoint, model, find_device(device), dtype, batch_size, instruments, config)
    only = None if instruments is None else parse_instruments(instruments)
    overrides = overrides_of_mt3(config, positions, checkpoint.name)
    module, network = weights.load(
        checkpoint.path, preset=mt3_preset(checkpoint.name, model or checkpoint.model), overrides=overrides
    )
    place = find_device(device)
    if dtype == "int8" and place.type != "cpu":
        raise ValueError(f"PyTorch computes int8 on the CPU only, not on {place}: take float32 or bfloat16 there")
    module = weights.cast(module, "float32" if dtype == "int8" else dtype).to(place).eval()
    if note := processor_note(module, int8=dtype == "int8"):
        warnings.warn(note, UserWarning, stacklevel=2)
    generate = decode.generator(
        module,
        network,
        search=search,
        num_decodes=beams,
        batch_size=batch_size,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        allowed=None if only is None else allowed_tokens(only, network),
        hold=hold is not None,
        int8=dtype == "int8",
        program_logits=instrument_prior and takes_prior(network, search, hold),
        activations=activations and has_activations(network),
    )
    continuity = None if hold is None else InstrumentContinuity(hold, batch_size)
    return Transcriber(network, generate, checkpoint=checkpoint, instruments=only, continuity=continuity)


def find_device(name: str | None):
    """The torch.device called 'cpu', 'cuda', 'cuda:1' or 'mps'; for None a GPU if there is one, else the CPU.

    Raises:
        ValueError: there is none of that name; says which there are.
    """
    import torch

    present = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    present += ["mps"] * torch.backends.mps.is_available()
    kind, _, number = (name or present[:2][-1]).replace("gpu", "cuda").partition(":")
    numbered = f"{kind}:{number or 0}"
    device_name = kind if kind != "cuda" and numbered == f"{kind}:0" else numbered
    if device_name not in present:
        hint = "; a TPU is for jax_mt3" if kind == "tpu" else ""
        raise ValueError(f"no device {name!r} for PyTorch here; there are: {', '.join(present)}{hint}")
    return torch.device(device_name)


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line: see mt3_common/cli.py."""
    return cli.main("torch_mt3", load, argv)


if __name__ == "__main__":
    sys.exit(main())
