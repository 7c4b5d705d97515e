"""Recordings to notes with the Flax network: python -m jax_mt3.infer song.wav, or from Python:

from jax_mt3 import infer
transcription = infer.load().transcribe("song.wav", velocity="auto")
transcription.write("song.mid")
"""

import errno
import os
import sys
import warnings
from pathlib import Path

import platformdirs

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

    Sets JAX's matmul precision to the highest for the whole process, and enables 64 bits if dtype needs them.

    Args:
        checkpoint: path, name or address, as find_checkpoint takes them; None for the default one.
        model: 'mt3', 'ismir2021' or a released YourMT3+, where neither the checkpoint nor its name tells.
        device: 'cpu', 'gpu', 'gpu:1', 'tpu'; None for the first that JAX finds.
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
    """
    # imported here: --help and wrong arguments are answered at once, and Ctrl-C while JAX loads is handled
    import jax

    from jax_mt3 import checkpoint as weights
    from jax_mt3 import decode

    # float32 is meant: left alone, JAX lets GPUs and TPUs round what goes into a product to fewer bits
    jax.config.update("jax_default_matmul_precision", "highest")
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    checkpoint = find_checkpoint(checkpoint)
    if is_yourmt3(checkpoint.path):
        from jax_mt3.yourmt3 import infer as yourmt3

        check_yourmt3_options(search, positions, hold, dtype)
        keep_compiled()
        return yourmt3.load(checkpoint, model, find_device(device), dtype, batch_size, instruments, config)
    only = None if instruments is None else parse_instruments(instruments)
    overrides = overrides_of_mt3(config, positions, checkpoint.name)
    params, network = weights.load(
        checkpoint.path, preset=mt3_preset(checkpoint.name, model or checkpoint.model), overrides=overrides
    )
    params = jax.device_put(weights.cast(params, "float32" if dtype == "int8" else dtype), find_device(device))
    generate = decode.generator(
        params,
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
        folder=programs_folder(),
        program_logits=instrument_prior and takes_prior(network, search, hold),
        activations=activations and has_activations(network),
    )
    continuity = None if hold is None else InstrumentContinuity(hold, batch_size)
    return Transcriber(network, generate, checkpoint=checkpoint, instruments=only, continuity=continuity)


def programs_folder() -> str | None:
    """Return the folder of compiled programs in the user's cache folder, made if need be; None where JAX keeps them.

    JAX keeps them where JAX_COMPILATION_CACHE_DIR says, and only what it compiles. Without them the first transcription
    of a process takes about twice as long.

    Warns:
        UserWarning: the folder cannot be made or written to: the answer is None too.
    """
    import jax

    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    folder = Path(platformdirs.user_cache_dir("mt3-twins"), "programs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        message = f"compiled programs cannot be kept in {folder} ({error.strerror}): every run compiles them again"
        warnings.warn(message, UserWarning, stacklevel=3)
        return None
    return str(folder)


def keep_compiled() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where.

    The second run on a machine then starts sooner.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("mt3-twins") + "/jax")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def find_device(name: str | None):
    """The jax.Device called 'cpu', 'gpu', 'gpu:1' or 'tpu'; the first of JAX's default kind for None.

    Raises:
        ValueError: there is none of that name; says which there are.
    """
    import jax

    kind, _, number = (name or "").partition(":")
    try:
        if number and not number.isdecimal():
            raise ValueError(number)
        return jax.devices(kind or None)[int(number or 0)]
    except (RuntimeError, IndexError, ValueError):
        named = (f"{device.platform}:{device.id}" for device in jax.devices() if device.platform != "cpu")
        hint = "; mps is for torch_mt3" if kind == "mps" else ""
        raise ValueError(f"no device {name!r} for JAX here; there are: {', '.join([*named, 'cpu'])}{hint}") from None


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line: see mt3_common/cli.py."""
    return cli.main("jax_mt3", load, argv)


if __name__ == "__main__":
    sys.exit(main())
