"""Errors of both twins against the published MT3: prints the table of docs/measured.md.

python benchmarks/golden.py
"""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "twins"))
GOLDEN = ROOT / "tests" / "golden"

from test_model import our_name, relative_error  # noqa: E402

from jax_mt3 import checkpoint as jax_checkpoint  # noqa: E402
from jax_mt3 import decode as jax_decode  # noqa: E402
from jax_mt3 import model as jax_model  # noqa: E402
from mt3_common.audio import spectrogram  # noqa: E402
from mt3_common.audio.segments import segments as cut_into_segments  # noqa: E402
from mt3_common.checkpoint.read import read_checkpoint  # noqa: E402
from mt3_common.config import PRESETS, NetworkConfig, SpectrogramConfig  # noqa: E402
from mt3_common.transcription.batching import SearchSettings, until_eos  # noqa: E402
from torch_mt3 import checkpoint as torch_checkpoint  # noqa: E402
from torch_mt3 import decode as torch_decode  # noqa: E402
from torch_mt3 import model as torch_model  # noqa: E402


def spectrogram_errors() -> tuple[float, float, int]:
    """(log-mel, loud; segments; start times that differ): largest differences, loud as docs/measured.md says."""
    loudest = segments = 0.0
    late = 0
    with np.load(GOLDEN / "features" / "spectrograms.npz") as archive:
        for name in (key.removeprefix("signal/") for key in archive if key.startswith("signal/")):
            golden = archive[f"logmel/{name}"]
            ours = spectrogram.log_mel_spectrogram(archive[f"signal/{name}"], SpectrogramConfig())
            loud = golden > golden.max() + np.log(1e-4)
            loudest = max(loudest, float(np.abs(ours - golden)[loud].max()))
    with np.load(GOLDEN / "features" / "segments.npz") as archive:
        for name in (key.removesuffix("/audio") for key in archive if key.endswith("/audio")):
            config = PRESETS[name.split("/")[0]]
            cut = list(cut_into_segments(archive[f"{name}/audio"], config))
            segments = max(
                segments, float(np.abs(np.stack([segment.frames for segment in cut]) - archive[f"{name}/inputs"]).max())
            )
            late += int((np.array([segment.start_time for segment in cut]) != archive[f"{name}/start_times"]).sum())
    return loudest, segments, late


def jax_taps(config, arrays, dtype, frames, *tokens):
    """Every module's output and the logits, as float64 arrays by name."""
    with jax.enable_x64(dtype == "float64"):
        params = jax_checkpoint.cast(jax_checkpoint.to_params(arrays), dtype)
        logits, variables = jax_model.Transformer(config).apply(
            {"params": params},
            jnp.asarray(frames, dtype),
            *tokens,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        taps = traverse_util.flatten_dict(variables["intermediates"])
        named = {"/".join(path[:-1]): np.asarray(values[0], np.float64) for path, values in taps.items()}
    return named, np.asarray(logits, np.float64)


def torch_taps(config, arrays, dtype, frames, *tokens):
    """Every module's output and the logits, as float64 arrays by name."""
    model = torch_model.Transformer(config)
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    torch_checkpoint.cast(model, dtype)
    taps = {}
    for path, module in model.named_modules():
        name = re.sub(r"layers\.(\d+)", r"layers_\1", path).replace(".", "/")
        module.register_forward_hook(lambda _m, _i, out, name=name: taps.__setitem__(name, out.double().numpy()))
    with torch.no_grad():
        logits = model(torch.from_numpy(frames).to(getattr(torch, dtype)), *map(torch.from_numpy, tokens))
    return taps, logits.double().numpy()


def activation_errors(config, arrays) -> dict[str, dict[str, float]]:
    """dtype -> who -> the largest error of a tap over its largest value: against the golden ones and between twins."""
    with np.load(GOLDEN / "model" / "activations.npz") as archive:
        golden = dict(archive)
    inputs = golden["in/frames"], golden["in/decoder_inputs"], golden["in/targets"]
    real = inputs[2] > 0
    errors = {}
    for dtype in ("float64", "float32", "bfloat16"):
        sides = {
            name: taps(config, arrays, dtype, *inputs) for name, taps in (("jax", jax_taps), ("torch", torch_taps))
        }
        errors[dtype] = {
            name: max(
                relative_error(logits, golden["out/logits"], real),
                *(
                    relative_error(taps[our_name(key[4:])], value, real)
                    for key, value in golden.items()
                    if key.startswith("act/")
                ),
            )
            for name, (taps, logits) in sides.items()
        }
        reference, candidate = sides["jax"][0], sides["torch"][0]
        errors[dtype]["twins"] = max(relative_error(candidate[name], reference[name], real) for name in reference)
    return errors


def tokens_equal(config, arrays) -> dict[str, tuple[int, int, float]]:
    """twin -> (hypotheses equal to T5X's, of how many, largest difference of a score)."""
    with np.load(GOLDEN / "model" / "decode.npz") as archive:
        golden = dict(archive)
    counts = {}
    for twin, decode in (("jax", jax_decode), ("torch", torch_decode)):
        equal = total = 0
        worst = 0.0
        for gain in ("1.0", "2.0", "3.0", "4.0"):
            scaled = arrays["decoder/logits_dense/kernel"].copy()
            scaled[:, 1] *= np.float32(gain)
            changed = {**arrays, "decoder/logits_dense/kernel": scaled}
            if twin == "jax":
                weights = decode.pack(jax_checkpoint.to_params(changed), config)
            else:
                model = torch_model.Transformer(config)
                model.load_state_dict(torch_checkpoint.to_state_dict(changed))
                weights = decode.pack(model)
            for case, num_decodes in (("greedy", 1), ("beam1", 1), ("beam4", 4)):
                settings = SearchSettings("greedy" if case == "greedy" else "t5x", num_decodes, max_steps=64)
                batch = decode.Batch(weights, settings, 6, 256)
                batch.prefill(list(range(6)), list(golden["in/frames"]), [settings.uniforms(i) for i in range(6)])
                while not batch.advance()[:6].all():
                    pass
                tokens, scores = (array[:6] for array in decode.finalize(settings, batch.state))
                expected = golden[f"eos_gain{gain}/{case}/tokens"].reshape(-1, 64)
                for row, reference in zip(tokens.reshape(-1, 64), expected, strict=True):
                    equal += np.array_equal(until_eos(row), until_eos(reference))
                    total += 1
                if case != "greedy":
                    worst = max(worst, float(np.abs(scores - golden[f"eos_gain{gain}/{case}/scores"]).max()))
        counts[twin] = equal, total, worst
    return counts


def main() -> None:
    """Print the table."""
    sizes = read_checkpoint(GOLDEN / "model" / "checkpoints" / "t5x_zarr")
    config = sizes.config("mt3", {"num_heads": 3}).network
    assert isinstance(config, NetworkConfig)
    jax.config.update("jax_default_matmul_precision", "highest")
    table = Table("against the published MT3 (golden data)", "JAX", "PyTorch", "between the twins")
    loud, segments, late = spectrogram_errors()
    table.add_row("log-mel, where energy is above 1e-4 of the peak: largest error", f"{loud:.1e}", "the same code", "")
    table.add_row("segments, everywhere: largest error; start times that differ", f"{segments:.1e}; {late}", "", "")
    for dtype, errors in activation_errors(config, sizes.arrays).items():
        table.add_row(
            f"107 activations and the logits, {dtype}: largest error of a tap / its largest value",
            *(f"{errors[who]:.1e}" for who in ("jax", "torch", "twins")),
        )
    counts = tokens_equal(config, sizes.arrays)
    table.add_row(
        "greedy, T5X's search with 1 and 4 beams: hypotheses equal token for token",
        *(f"{counts[twin][0]} of {counts[twin][1]}" for twin in ("jax", "torch")),
        "",
    )
    table.add_row("their scores: largest error", *(f"{counts[twin][2]:.1e}" for twin in ("jax", "torch")), "")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
