"""A third side: what the published code computes, to say which of two twins is wrong.

Either the original itself (packages `mt3` and `t5x`, from git), run on the same checkpoint and inputs, or a file of
activations that it computed earlier, as tests/golden/model/activations.npz.
"""

import importlib
import os
import re
from typing import Any

import numpy as np

from mt3_common.config import Config
from parity.compare.traces import Row, judge, over, real_rows
from parity.trace.trace import Trace, read_npz

# our tap -> the original's, whose unnamed modules are numbered
NAMES = (
    (r"(encoder|decoder)/positions", r"\1/FixedEmbed_0"),
    (r"(encoder|decoder)/input_dropout", r"\1/Dropout_0"),
    (r"(encoder|decoder)/output_dropout", r"\1/Dropout_1"),
    (r"(encoder/layers_\d+)/attention_dropout", r"\1/Dropout_0"),
    (r"(encoder/layers_\d+)/mlp_dropout", r"\1/Dropout_1"),
    (r"(decoder/layers_\d+)/self_attention_dropout", r"\1/Dropout_0"),
    (r"(decoder/layers_\d+)/cross_attention_dropout", r"\1/Dropout_1"),
    (r"(decoder/layers_\d+)/mlp_dropout", r"\1/Dropout_2"),
    (r"(.*/mlp)/dropout", r"\1/Dropout_0"),
)


def original_name(tap: str) -> str:
    """The name under which the original's capture_intermediates has a tap of ours."""
    for pattern, replacement in NAMES:
        match = re.fullmatch(pattern, tap)
        if match:
            return match.expand(replacement)
    return tap


def read_activations(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs, outputs by the original's names with 'logits') of a file of the original's activations.

    Raises:
        ValueError: not such a file.
    """
    found = read_npz(path)
    names = {"frames": "in/frames", "decoder_input_tokens": "in/decoder_inputs", "decoder_target_tokens": "in/targets"}
    missing = [key for key in (*names.values(), "out/logits") if key not in found]
    if missing:
        raise ValueError(f"{path}: not a file of activations, {missing[0]} is missing")
    outputs = {key.removeprefix("act/"): array for key, array in found.items() if key.startswith("act/")}
    return {name: found[key] for name, key in names.items()}, outputs | {"logits": found["out/logits"]}


def import_original() -> Any:
    """The module mt3.network of the original.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("mt3.network")
    except Exception as error:
        # its many requirements fail in many ways when their versions do not fit
        said = " ".join(str(error).split())
        raise ValueError(
            f"--oracle needs the original, which cannot be imported here ({said}); "
            "install mt3 and t5x from git (the extra t5x), or name a file of its activations: --oracle FILE.npz"
        ) from error


def check_original(source: str, config: Config) -> None:
    """Raises ValueError unless source can be a third side for such a network: what would fail late fails at once."""
    if source == "t5x":
        import_original()
        return
    given, _ = read_activations(source)
    frames, tokens = given["frames"], given["decoder_input_tokens"]
    if frames.ndim != 3 or frames.shape[2] != config.network.input_depth or tokens.ndim != 2:
        raise ValueError(
            f"{source}: frames of shape {frames.shape}, tokens of shape {tokens.shape}; "
            f"this network takes (b, frames, {config.network.input_depth}) and (b, l)"
        )


def run_original(arrays: dict[str, np.ndarray], config: Config, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by the original's names, with 'logits', of mt3.network.Transformer in float32.

    Raises:
        ValueError: the original is not installed.
    """
    network = import_original()
    import jax
    from flax import traverse_util

    sizes = config.network
    model = network.Transformer(
        config=network.T5Config(
            vocab_size=sizes.vocab_size,
            dtype="float32",
            emb_dim=sizes.emb_dim,
            num_heads=sizes.num_heads,
            num_encoder_layers=sizes.num_encoder_layers,
            num_decoder_layers=sizes.num_decoder_layers,
            head_dim=sizes.head_dim,
            mlp_dim=sizes.mlp_dim,
            mlp_activations=sizes.mlp_activations,
            dropout_rate=sizes.dropout_rate,
            logits_via_embedding=False,
        )
    )
    params = traverse_util.unflatten_dict(arrays, sep="/")
    with jax.default_matmul_precision("highest"):
        logits, state = model.apply(
            {"params": params},
            inputs["frames"],
            inputs["decoder_input_tokens"],
            inputs["decoder_target_tokens"],
            enable_dropout=False,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
    found = traverse_util.flatten_dict(state["intermediates"], sep="/")
    outputs = {name.removesuffix("/__call__"): np.asarray(values[0]) for name, values in found.items()}
    return outputs | {"logits": np.asarray(logits)}


def vote(original: dict[str, np.ndarray], reference: Trace, candidate: Trace) -> list[Row]:
    """A row per tap that the original has, in execution order, saying which side it supports.

    The reference's float64 outputs are the yardstick only where the original agrees with them: a budget is what
    float32 costs the reference, and the original may be that far from either side.

    Args:
        original: outputs by the original's names, with 'logits'.
        reference, candidate: traces made on the original's inputs.
    """
    exact, rough, other = reference.passes["float64"], reference.passes["float32"], candidate.passes["float32"]
    targets = reference.inputs["decoder_target_tokens"]
    rows = []
    for tap in [*exact.outputs, "logits"]:
        name = original_name(tap)
        if name not in original:
            continue
        truth, low, theirs = (run.logits if tap == "logits" else run.outputs.get(tap) for run in (exact, rough, other))
        label = "decoder" if tap == "logits" else tap
        third = _reshaped(original[name], truth.shape)
        if third is None:
            note = f"the original has shape {original[name].shape}, the reference {truth.shape}"
            rows.append(Row("original", tap, "different", "float32", note=note))
            continue
        truth, low, third = (real_rows(label, array, targets) for array in (truth, low, third))
        ours = judge(third, low, low - truth, "float32")
        wrong = [reference.framework] if over(ours) else []
        fits = theirs is not None and theirs.shape[-1:] == third.shape[-1:]
        if not fits or over(judge(third, real_rows(label, theirs, targets), low - truth, "float32")):
            wrong.append(candidate.framework)
        note = f"differs from the original: {' and '.join(wrong)}" if wrong else ""
        if len(wrong) == 2:
            note += " (both: is this the original's checkpoint?)"
        rows.append(Row("original", tap, "different" if wrong else "same", "float32", ours, note=note))
    if not rows:
        rows.append(Row("original", "taps", "skipped", "float32", note="the original has none of our taps"))
    return rows


def _reshaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    # the original splits heads: (b, l, h, d) for our (b, l, h * d)
    if array.shape == shape:
        return array
    if array.ndim == 4 and (*array.shape[:2], array.shape[2] * array.shape[3]) == shape:
        return array.reshape(shape)
    return None


def compare_with_original(source: str, reference: Any, candidate: Any, arrays: dict[str, np.ndarray], given: dict):
    """Rows of the three-way vote; source is 't5x' or a file of activations."""
    from parity.sides import record

    if source == "t5x":
        original = run_original(arrays, reference.config, given)
    else:
        given, original = read_activations(source)
    ours = record.record(reference, given)
    return vote(original, ours, record.record(candidate, given, reference=ours))
