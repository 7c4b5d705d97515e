"""Identity: which original a candidate's array holds, against the words of its name that mean one thing everywhere.

`query`, `self_attn`, `decoder` and the number of a layer are no matter of naming: an array that holds something else
is a fault, however many of its siblings hold the same thing.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from parity.diagnosis import fibres
from parity.diagnosis.finding import Finding, module_of_array
from parity.diagnosis.names import FUSED, LETTERS
from parity.diagnosis.siblings import role_of

# words of which every project means the same part
PARTS = {
    "query": {"q", "query", "q_proj", "wq", "to_q", "query_proj", "linear_q", "q_linear"},
    "key": {"k", "key", "k_proj", "wk", "to_k", "key_proj", "linear_k", "k_linear"},
    "value": {"v", "value", "v_proj", "wv", "to_v", "value_proj", "linear_v", "v_linear"},
    "out": {"o", "o_proj", "out_proj", "to_out", "linear_out", "out_linear"},
    "wi_0": {"wi_0", "wi0", "gate_proj"},
    "wi_1": {"wi_1", "wi1", "up_proj"},
}
# joined arrays whose name says the order of their parts
JOINED = {
    "in_proj_weight": ("query", "key", "value"),
    "in_proj": ("query", "key", "value"),
    "query_key_value": ("query", "key", "value"),
    "gate_up_proj": ("wi_0", "wi_1"),
}
LEAVES = {"weight", "kernel", "scale", "base_layer", "w", "default", "original", "original0", "original1", "weight_v"}
KNOWN_PARTS = {"query", "key", "value", "out", "wi_0", "wi_1", "wo"}
STACK = re.compile(r"(en|de)c(oder)?s?")
NUMBERED = re.compile(r"layers?|blocks?|h|resblocks")


class Claim(NamedTuple):
    """The words of a name that mean one thing everywhere; None or () where it has none.

    Attributes:
        stack: 'encoder' or 'decoder'.
        layer: number of the layer in its stack.
        attention: 'self' or 'cross', in the decoder.
        parts: of an attention or MLP, in the order in which they are joined.
    """

    stack: str | None
    layer: int | None
    attention: str | None
    parts: tuple[str, ...]


def read_claim(key: str) -> Claim:
    """Read what the name of an array says beyond doubt."""
    tokens = [token.lower() for token in re.split(r"[./]", key)]
    at = next((i for i, token in enumerate(tokens) if STACK.fullmatch(token)), None)
    stack = None if at is None else "encoder" if tokens[at].startswith("enc") else "decoder"
    rest = tokens if at is None else tokens[at + 1 :]
    layer = None
    for word, number in zip(rest, [*rest[1:], ""]):
        joined = re.fullmatch(r"(layers?|blocks?)_(\d+)", word)
        if joined or (NUMBERED.fullmatch(word) and number.isdigit()):
            layer = int(joined[2] if joined else number)
            break
    cross = any(re.search(r"cross|enc_?dec|encoder_attn|src_attn", token) for token in rest)
    itself = any("self" in token for token in rest)
    attention = ("cross" if cross else "self" if itself else None) if stack == "decoder" else None
    words = [token for token in rest if token not in LEAVES and not token.isdigit()]
    return Claim(stack, layer if stack else None, attention, joined_parts(key) or _part(words[-1] if words else ""))


def joined_parts(key: str) -> tuple[str, ...]:
    """Parts that a joined array holds, in the order that its name says; () where it does not."""
    tokens = [token for token in re.split(r"[./]", key.lower()) if token not in LEAVES]
    if tokens and tokens[-1] in JOINED:
        return JOINED[tokens[-1]]
    fused = FUSED.search(key.lower())
    return tuple(LETTERS[letter] for letter in fused[1] if letter != "_") if fused else ()


def _part(word: str) -> tuple[str, ...]:
    return next(((part,) for part, words in PARTS.items() if word in words), ())


def contradicts(claim: Claim, original: str) -> bool:
    """Tell whether a name cannot mean an original of a layer; embedding and head may be copied anywhere."""
    if "/layers_" not in original:
        return False
    stack = original.split("/")[0]
    layer = re.search(r"layers_(\d+)", original)
    attention = re.search(r"/(?:pre_)?(self|cross|encoder_decoder)_attention", original)
    part = original.split("/")[-2]
    return bool(
        (claim.stack and stack != claim.stack)
        or (claim.layer is not None and layer and int(layer[1]) != claim.layer)
        or (claim.attention and attention and (attention[1] == "self") != (claim.attention == "self"))
        or (claim.parts and part in KNOWN_PARTS and part not in claim.parts)
    )


def identity_findings(matching: fibres.Matching, named: Iterable[str], known: Iterable[str]) -> list[Finding]:
    """Findings about arrays that hold what their names contradict.

    Args:
        matching: of the candidate against the original.
        named: the candidate's arrays that were placed by their names, which are compared there.
        known: sites of other findings.
    """
    placed, known = set(named), set(known)
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    alike = {name: group for group in matching.alike for name in group}
    for key, match in matching.matches.items():
        claim = read_claim(key)
        if key in placed:
            continue
        for name in match.owners:
            if all(contradicts(claim, other) for other in alike.get(name, [name])):
                groups.setdefault((re.sub(r"\d+", "#", key), role_of(name)), []).append((key, name))
    findings = []
    for pairs in groups.values():
        sites = list(dict.fromkeys(module_of_array(name) for _, name in pairs))
        if known & set(sites):
            continue
        key, name = pairs[0]
        more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
        text = f"{key} holds {name}, which its name contradicts{more}"
        findings.append(Finding(sites[0], f"holds {name}", text, math.nan, sites=sites))
    return findings


def order_findings(
    matching: fibres.Matching, starts: Callable[[fibres.Match, str], int], known: Iterable[str]
) -> list[Finding]:
    """Findings about joined arrays whose parts stand in another order than their names say.

    Args:
        matching: of the candidate against the original.
        starts: (match, original) -> where in the flattened array the original's first number stands.
        known: sites of other findings.
    """
    known = set(known)
    findings: dict[str, Finding] = {}
    for key, match in matching.matches.items():
        parts = joined_parts(key)
        modules: dict[str, list[str]] = {}
        for name in match.owners:
            modules.setdefault(name.rsplit("/", 2)[0], []).append(name)
        for names in modules.values():
            order = [name.split("/")[-2] for name in sorted(names, key=lambda name: starts(match, name))]
            sites = [module_of_array(name) for name in names]
            if set(order) != set(parts) or order == list(parts) or known & set(sites):
                continue
            pattern = re.sub(r"\d+", "#", key)
            text = f"{key} is in the order {', '.join(order)}; its name says {', '.join(parts)}"
            finding = findings.setdefault(pattern, Finding(sites[0], f"order {', '.join(order)}", text, math.nan))
            finding.sites += sites
    return list(findings.values())


def has_no_effect(key: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Tell whether an array that MT3 does not have changes nothing: zeros, norms kept beside, adapters of zeros."""
    array = np.asarray(arrays[key], np.float64)
    if array.size and not array.any():
        return True
    other = arrays.get(re.sub(r"lora_A\b", "lora_B", key))
    if "lora_A" in key and other is not None:
        return not np.asarray(other).any()
    # weight_norm keeps the norms of a kernel's rows beside it
    direction = arrays.get(re.sub(r"original0$", "original1", re.sub(r"weight_g$", "weight_v", key)))
    if re.search(r"(original0|weight_g)$", key) and direction is not None and direction.ndim == 2:
        norms = np.linalg.norm(direction.astype(np.float64), axis=1)
        return array.size == norms.size and bool(np.allclose(array.ravel(), norms, rtol=1e-5, atol=0))
    return False


def differing_copies(
    arrays: Mapping[str, np.ndarray],
    meanings: Mapping[str, str],
    placed: Mapping[str, np.ndarray],
    sources: Mapping[str, str],
    transposed: bool,
) -> dict[str, str]:
    """Find arrays that mean an original which another array holds already, and differ from that one.

    Args:
        arrays: the candidate's.
        meanings: candidate's array -> original that its name means.
        placed: original -> array in MT3's layout.
        sources: original -> candidate's array that was placed.
        transposed: whether kernels are (out, in).

    Returns:
        Candidate's array -> original.
    """
    copies = {}
    for key, name in meanings.items():
        if name not in sources or sources[name] == key or arrays[key].ndim != placed[name].ndim:
            continue
        array = arrays[key].T if transposed and name.endswith("kernel") else arrays[key]
        first = np.asarray(placed[name], np.float64)
        near = 1e-2 * (np.abs(first).max() if first.size else 0.0)
        if array.shape != first.shape or not np.allclose(np.asarray(array, np.float64), first, rtol=0, atol=near):
            copies[key] = name
    return copies


def surplus_findings(keys: Iterable[str], copies: Mapping[str, str]) -> list[Finding]:
    """Findings about arrays that MT3 does not have, and about second copies that differ.

    Args:
        keys: arrays that hold nothing of the original and may have an effect.
        copies: as differing_copies gives them.
    """
    findings = []
    keys = [key for key in keys if key not in copies]
    if keys:
        shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
        plural = "s" * (len(keys) > 1)
        text = f"{len(keys)} array{plural} too many, which MT3 does not have (their effect is not computed): {shown}"
        if any(re.search(r"lora|adapter", key.lower()) for key in keys):
            text += " (adapters that were not merged)"
        findings.append(Finding(keys[0], "too many arrays", text, math.nan, sites=keys))
    groups: dict[tuple[str, str], list[str]] = {}
    for key, name in copies.items():
        groups.setdefault((re.sub(r"\d+", "#", key), role_of(name)), []).append(key)
    for keys in groups.values():
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        text = f"{keys[0]} is a second copy of {copies[keys[0]]} that differs from the first{more}"
        findings.append(Finding(module_of_array(copies[keys[0]]), "copies differ", text, math.nan, sites=keys))
    return findings
