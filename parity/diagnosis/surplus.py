"""Arrays too many: what a file holds that MT3 does not have, and second copies that differ from the first."""

import math
import re
from collections.abc import Mapping

import numpy as np

from mt3_common.io.plural import plural
from parity.diagnosis import fibres
from parity.diagnosis.conventions import ADAPTERS, BIASES, KINDS, LAYER_SCALE, RELATIVE, kind_of
from parity.diagnosis.finding import Finding, module_of_array
from parity.diagnosis.placement import Placement, holds
from parity.diagnosis.siblings import role_of
from parity.sides import numpy_network

MULTIPLIES = re.compile(r"norm|ln|gamma|scale|lambda|\bls\d?\b|gate|alpha|ia3")
# constants of attention masks and marks of versions, which are no weights
BUFFERS = re.compile(r"masked_bias|causal_mask|attn_mask|attention_mask|position_ids|(^|\.)version$|_float_tensor$")


def has_no_effect(key: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Tell whether an array that MT3 does not have changes nothing: what is added is zero, what multiplies is one."""
    array = np.asarray(arrays[key], np.float64)
    if not array.size or BUFFERS.search(key):
        return True
    if MULTIPLIES.search(re.sub(r"lora_\w+|\.(weight|bias|b|beta)$", "", key.lower())) and not key.lower().endswith(
        ("bias", ".b", "/b", "beta")
    ):
        return kind_of(key) == LAYER_SCALE and bool((array == 1).all())
    if not array.any():
        return True
    pairs = (("lora_A", "lora_B"), ("lora_B", "lora_A"), ("lora_embedding_A", "lora_embedding_B"), ("down", "up"))
    for one, other in pairs:
        partner = arrays.get(re.sub(rf"{one}\b", other, key))
        if re.search(rf"{one}\b", key) and partner is not None and kind_of(key) == ADAPTERS:
            return not np.asarray(partner).any()
    return False


def differing_copies(
    arrays: Mapping[str, np.ndarray], placement: Placement, matching: fibres.Matching
) -> dict[str, str]:
    """Find arrays that mean an original which another array holds already, and differ from that one.

    Copies in a narrower type are compared in it. An array that holds another original is judged by its identity.

    Args:
        arrays: the candidate's.
        placement: of them.
        matching: of them, with the original.

    Returns:
        Candidate's array -> original.
    """
    copies = {}
    for key, reading in placement.readings.items():
        name = reading.name
        if name not in placement.sources or placement.sources[name] == key:
            continue
        if (key in matching.matches and not holds(matching, key, name)) or arrays[key].ndim != placement.arrays[
            name
        ].ndim:
            continue
        array = arrays[key].T if placement.layouts.get(key) else arrays[key]
        first = placement.arrays[name]
        narrow = min(array.dtype, first.dtype, key=lambda dtype: dtype.itemsize)
        if array.shape != first.shape or not np.array_equal(array.astype(narrow), first.astype(narrow)):
            copies[key] = name
    return copies


def copy_findings(copies: Mapping[str, str]) -> list[Finding]:
    """Findings about second copies that differ, as differing_copies gives them."""
    findings = []
    groups: dict[tuple[str, str], list[str]] = {}
    for key, name in copies.items():
        groups.setdefault((re.sub(r"\d+", "#", key), role_of(name)), []).append(key)
    for keys in groups.values():
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        text = f"{keys[0]} is a second copy of {copies[keys[0]]} that differs from the first{more}"
        findings.append(Finding(module_of_array(copies[keys[0]]), "copies differ", text, math.nan, sites=keys))
    return findings


def surplus_findings(
    arrays: Mapping[str, np.ndarray],
    original: Mapping[str, np.ndarray],
    placement: Placement,
    matching: fibres.Matching,
    notes: list[str],
    copies: Mapping[str, str],
) -> list[Finding]:
    """Findings about arrays that MT3 does not have, one for each kind of them.

    Args:
        arrays: the candidate's.
        original: MT3's.
        placement, matching: of the arrays.
        notes: gets what has no effect.
        copies: second copies that differ, which are no arrays too many.
    """
    used = set(placement.sources.values())
    width = original["decoder/token_embedder/embedding"].shape[1]
    layers = {stack: _layers(original, stack) for stack in ("encoder", "decoder")}
    kinds: dict[str, list[str]] = {}
    for key, array in arrays.items():
        claim, unread = placement.readings[key].claim, not placement.readings[key].names
        above = (
            claim.stack is not None and claim.layer is not None and claim.layer not in layers[claim.stack] and unread
        )
        named = bool(kind_of(key)) and unread
        if key in used or key in copies or not (above or named or key in matching.unused):
            continue
        if has_no_effect(key, arrays):
            zeros = "zero bias" if kind_of(key) == BIASES else "zeros"
            kinds.setdefault(zeros if array.size and not array.any() else "without effect", []).append(key)
        elif key.lower().endswith("inv_freq"):
            kinds.setdefault(_frequency_table(array, width), []).append(key)
        elif above:
            kinds.setdefault(f"{claim.stack} {claim.layer}", []).append(key)
        else:
            kinds.setdefault(_position_table(np.squeeze(array), width) or kind_of(key), []).append(key)
    return [finding for kind, keys in kinds.items() if (finding := _surplus(kind, keys, bool(used), layers, notes))]


def _layers(original: Mapping[str, np.ndarray], stack: str) -> set[int]:
    return {int(number) for name in original for number in re.findall(rf"^{stack}/layers_(\d+)/", name)}


def _surplus(kind: str, keys: list[str], is_named: bool, layers, notes: list[str]) -> Finding | None:
    """The finding about arrays of one kind; None, and a note, for those that change nothing."""
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    many = f"{plural(len(keys), 'array')} too many, which MT3 does not have (their effect is not computed)"
    if kind.startswith("positions="):
        table = "the ports' position table (2k/d)" if kind == "positions=port" else f"a position table ({kind[10:]})"
        return Finding(keys[0], kind, f"{table} in place of MT3's: {shown}", math.nan, sites=keys)
    if kind == BIASES:
        return Finding(keys[0], "bias", f"{kind}: {shown}", math.nan, sites=keys)
    if kind == RELATIVE:
        return Finding(keys[0], "relative bias", f"{kind}: {shown}", math.nan, sites=keys)
    stack, _, number = kind.partition(" ")
    if stack in layers and number.isdigit():
        text = f"{stack} layer {number} is too many: MT3 has {len(layers[stack])} ({many}: {shown})"
        site = f"{stack}/layers_{number}"
        return Finding(site, "too many arrays", text, math.nan, sites=[site], arrays=keys)
    if not kind and not is_named:
        text = f"nothing of the original, and no name says what is meant ({len(keys)} in all: {shown})"
        return Finding(keys[0], "unexplained", text, math.nan, sites=keys)
    if kind and kind not in [words for words, _ in KINDS]:
        notes.append(f"{plural(len(keys), 'array')} ({shown}): {kind}, no harm")
        return None
    text = f"{many}: {shown}" + (f" ({kind})" if kind else "")
    return Finding(keys[0], "too many arrays", text, math.nan, sites=keys)


def _frequency_table(array: np.ndarray, width: int) -> str:
    for table, divisor in (("MT3's frequencies", width // 2 - 1), ("positions=port", width // 2)):
        expected = np.exp(-np.log(10000.0) / divisor * np.arange(width // 2))
        if array.shape == expected.shape and np.allclose(array, expected, rtol=1e-4, atol=0):
            return table
    return ""


def _position_table(array: np.ndarray, width: int) -> str:
    """The kind of a table of sinusoids: 'MT3\'s position table', 'positions=port', …; '' for another array."""
    if array.ndim != 2 or array.shape[1] != width:
        return ""
    for table in ("mt3", "port", "interleaved", "paper", "cosine_first"):
        expected = numpy_network.positions(len(array), width, numpy_network.Behaviour(positions=table))
        if not np.allclose(array, expected, rtol=0, atol=1e-3):
            continue
        # a table computed in float32 is off by as much as one rounded to float16
        if len(array) > 2 and np.array_equal(array.astype(np.float16).astype(array.dtype), array):
            return "positions=float16" if table == "mt3" else f"positions={table}"
        return "MT3's position table" if table == "mt3" else f"positions={table}"
    return ""
