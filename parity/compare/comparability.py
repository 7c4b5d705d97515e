"""Proof that two traces saw the same inputs in the same precision."""

from typing import Any

import numpy as np

from mt3_common.io.plural import plural
from parity.compare.frames import explain_frames
from parity.compare.results import Row
from parity.trace.precision import PRODUCT_BITS, dtype_of
from parity.trace.trace import Pass, Trace, digest, same_bits


def comparability(reference: Trace, candidate: Trace) -> tuple[list[Row], list[str]]:
    """Compare the inputs, configs, precisions and masks of both sides: rows, and the reasons to refuse a verdict."""
    rows, reasons = [], []

    def check(name: str, fine: bool, note: str, reason: str) -> None:
        rows.append(Row("comparability", name, "same" if fine else "refused", note=note if fine else reason))
        if not fine:
            reasons.append(reason)

    for name in sorted(reference.inputs.keys() | candidate.inputs.keys()):
        a, b = reference.inputs.get(name), candidate.inputs.get(name)
        if a is None or b is None:
            check(f"input {name}", False, "", f"only one side was given the input {name}")
        else:
            same = same_bits(a, b)
            reason = f"the sides were given different {name}: {_describe(a)} and {_describe(b)}"
            if name == "frames" and not same:
                reason += f"; {explain_frames(a, b)}"
            check(f"input {name}", same, f"same bytes, {_describe(a)}", reason)
    config = differing_configs(reference.config, candidate.config)
    check("config", not config, "equal", f"the configs differ: {'; '.join(config)}")
    a, b = list(reference.passes), list(candidate.passes)
    check("passes", a == b, ", ".join(a), f"different precisions were recorded: {', '.join(a)} and {', '.join(b)}")
    check(
        "float64 pass",
        "float64" in a,
        "budgets come from it",
        "no float64 pass was recorded, so there is nothing to derive budgets from; record with float64",
    )
    if "float64" in a and a == ["float64"]:
        check("float32 pass", False, "", "only float64 was recorded: budgets need a float32 or bfloat16 pass beside it")
    for precision in [p for p in a if p in b]:
        one, other = reference.passes[precision], candidate.passes[precision]
        for side, run in ((reference, one), (candidate, other)):
            label = f"{side.framework} {precision}"
            check(
                f"{label}: capture",
                run.capture_is_neutral,
                "logits bitwise the same with and without",
                f"{label}: observing changed the logits",
            )
            wrong = wrong_mode(run)
            check(f"{label}: precision", not wrong, _mode(run), f"{label}: {'; '.join(wrong)}")
        others = (one.mode.get("other dtypes"), other.mode.get("other dtypes"))
        check(
            f"{precision}: dtypes",
            others[0] == others[1],
            f"{plural(len(one.outputs), 'tap')} in {precision}, except {_listing(others[0] or {})}",
            f"{precision}: the sides computed in different dtypes: "
            f"{_listing(others[0] or {})} against {_listing(others[1] or {})}",
        )
        masks = (_masks(one), _masks(other))
        unseen = bool(masks[0]) and not masks[1]
        note = f"{plural(len(masks[0]), 'mask')}, same bytes" if masks[0] else "no masks"
        check(
            f"{precision}: masks",
            masks[0] == masks[1] or unseen,
            "the candidate's modules take no boolean masks; what they mask shows in their outputs" if unseen else note,
            f"{precision}: the masks differ, first at {_first_difference(*masks)}",
        )
    return rows, reasons


def wrong_mode(run: Pass) -> list[str]:
    """List what contradicts the precision that a pass claims, from its recorded switches; empty if nothing does."""
    mode, wrong = run.mode, []
    dtype, tf32 = dtype_of(run.precision), run.precision == "tf32"
    if mode.get("inputs") not in (None, [], [dtype]):
        wrong.append(f"the inputs were {' and '.join(mode['inputs'])}")
    bits = mode.get("product_bits", None if tf32 else PRODUCT_BITS.get(run.precision))
    if bits != PRODUCT_BITS.get(run.precision):
        measured = "nobody read back how many bits" if bits is None else f"{bits} bits"
        wrong.append(f"{measured} went into a product, not {PRODUCT_BITS[run.precision]}")
    if "jax_enable_x64" in mode and mode["jax_enable_x64"] != (run.precision == "float64"):
        wrong.append(f"jax_enable_x64 was {mode['jax_enable_x64']}")
    switches = ("tensorfloat32",) if tf32 else ("highest", "float32")
    if mode.get("jax_default_matmul_precision", switches[0]) not in switches:
        wrong.append(f"jax_default_matmul_precision was {mode['jax_default_matmul_precision']}")
    if mode.get("float32_matmul_precision", "highest") != "highest" and not tf32:
        wrong.append(f"torch's float32 matmul precision was {mode['float32_matmul_precision']}")
    if mode.get("allow_tf32", tf32) != tf32:
        wrong.append("TF32 was not allowed" if tf32 else "TF32 was allowed")
    if mode.get("autocast"):
        wrong.append("autocast was on")
    if mode.get("deterministic") is False:
        wrong.append("torch was not deterministic")
    strangers = [
        f"{name} in {measured}"
        for name, measured in mode.get("other dtypes", {}).items()
        if not (name.endswith("positions") and measured == "float32")
        and not (run.precision == "bfloat16" and measured == "float32")
    ]
    if strangers:
        wrong.append(f"not everything was {run.precision}: {', '.join(strangers[:3])} ({len(strangers)} in all)")
    return wrong


def _mode(run: Pass) -> str:
    return ", ".join(f"{key} {value}" for key, value in run.mode.items() if key != "other dtypes")


def _listing(named: dict[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in list(named.items())[:4]) or "nothing"


def _masks(run: Pass) -> dict[str, str]:
    return {
        tap: digest(value)
        for tap, call in run.calls.items()
        for value in call.args
        if isinstance(value, np.ndarray) and value.dtype == bool
    }


def _first_difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    return next((key for key in [*a, *b] if a.get(key) != b.get(key)), "nowhere")


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape} {digest(array)[:12]}"


def differing_configs(a: Any, b: Any, path: str = "") -> list[str]:
    """Return a phrase for each value of two nested configs that differs, with the names that lead to it."""
    if isinstance(a, dict) and isinstance(b, dict):
        differences = []
        for key in [*a, *(key for key in b if key not in a)]:
            differences += differing_configs(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        return differences
    a, b = (list(x) if isinstance(x, tuple) else x for x in (a, b))
    return [] if a == b else [f"{path} is {a!r} and {b!r}"]
