"""Faults that the given inputs could not have shown: every kind of planted fault against them, in the PyTorch twin."""

from typing import Any

import numpy as np

from parity.compare import probes
from parity.sides.side import Side
from parity.trace import inputs
from parity.trace.inputs import shift_right

# a change of the logits is seen in float64 above this share of their largest value: clean twins stay below 1e-12
SEEN = 1e-11
# and in float32 above this many times the largest rounding error there
TIMES_NOISE = 8.0
LEVELS = ("unseen", "float64", "float32")


def input_sets(side: Side, audio: str | None) -> dict[str, dict[str, np.ndarray]]:
    """Name -> inputs: the recording with the tokens that the network gives it, drawn tokens, and the probes."""
    frames, _ = inputs.read_segments(inputs.find_audio(audio), side.config, 4)
    length = min(64, side.config.max_target_length)
    targets = np.ones((1, length), np.int32)
    ids = side.generate([frames[0]], max_steps=length)[0]
    targets[0, : len(ids)] = ids
    drawn = inputs.with_tokens(frames[-2:], side.config, min(256, side.config.max_target_length))
    return {
        "recording": {
            "frames": frames[:1],
            "decoder_input_tokens": shift_right(targets),
            "decoder_target_tokens": targets,
        },
        "drawn ids": drawn,
        "probes": probes.make_probes(side.config, frames, drawn["decoder_input_tokens"])[1],
    }


def visible(
    side: Side, kinds: list[Any], given: dict[str, dict[str, np.ndarray]], seed: int = 0
) -> dict[str, dict[str, str]]:
    """Kind of fault -> input set -> 'unseen', 'float64' (seen in float64 alone) or 'float32'.

    Each kind is planted at its first and its last site, and the better of both counts.

    Args:
        side: the PyTorch Side.
        kinds: of parity.mutation.faults, without equivalents.
    """
    import torch

    clean = {}
    for name, batch in given.items():
        exact, rough = (side.logits(batch, precision).astype(np.float64) for precision in ("float64", "float32"))
        real = batch["decoder_target_tokens"] > 0
        clean[name] = (exact[real], float(np.abs(rough - exact)[real].max()), real)
    kinds_seen: dict[str, dict[str, str]] = {}
    for kind in kinds:
        sites = kind.sites(side.config.network)
        levels = dict.fromkeys(given, 0)
        for site in dict.fromkeys([*sites[:1], *sites[-1:]]):
            model = side.cast("float64")
            torch.manual_seed(seed)
            kind.plant(model, site, np.random.default_rng([seed, 7]))
            for name, batch in given.items():
                exact, noise, real = clean[name]
                with torch.no_grad():
                    logits = model(*side.on_device(batch, "float64")).double().cpu().numpy()[real]
                change = np.abs(logits - exact).max() if logits.shape == exact.shape else np.inf
                # NaN compares as seen: no comparison with it is true
                level = 0 if change <= SEEN * np.abs(exact).max() else 1 if change <= TIMES_NOISE * noise else 2
                levels[name] = max(levels[name], level)
        kinds_seen[kind.name] = {name: LEVELS[level] for name, level in levels.items()}
    return kinds_seen
