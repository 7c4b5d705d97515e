"""The diagnosis of a set of weights under any names: every array placed, compared, and measured."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mt3_common.config import Config
from parity.diagnosis import fibres
from parity.diagnosis.arrays import compare_arrays
from parity.diagnosis.candidate import Candidate, CandidateError
from parity.diagnosis.config import VOCABULARY, check_config, vocabulary_note
from parity.diagnosis.effect import measure
from parity.diagnosis.finding import Diagnosis, Finding, module_of_array
from parity.diagnosis.identity import (
    contradicts,
    differing_copies,
    has_no_effect,
    identity_findings,
    order_findings,
    read_claim,
    surplus_findings,
)
from parity.diagnosis.names import FUSED, LETTERS, Meant, is_torch_name, read_name
from parity.diagnosis.siblings import Loaded, load_as_siblings, role_of
from parity.sides import numpy_network

# share of the original's arrays that a candidate must hold for a diagnosis to mean anything
RECOGNISABLE = 0.1


class Placement(NamedTuple):
    """A candidate's arrays under the names that they are meant to have.

    Attributes:
        arrays: MT3's name -> array in MT3's layout.
        sources: MT3's name -> the candidate's name.
        notes: namings that call a thing by another name throughout.
        transposed: kernels are (out, in), as PyTorch keeps them; None where no kernel was placed.
    """

    arrays: dict[str, np.ndarray]
    sources: dict[str, str]
    notes: list[str]
    transposed: bool | None


def place(arrays: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], matching: fibres.Matching) -> Placement:
    """Put a candidate's arrays under the names that they are meant to have, in MT3's layout.

    Names are read; a naming that calls the same thing by another name throughout is believed for what its arrays hold.
    Kernels are turned if most of the candidate's kernels are (out, in).
    """
    meanings, notes = _meanings(arrays, original, matching)
    turned = [
        fibres.is_transposed(matching.matches[key], 2)
        for key, meant in meanings.items()
        if meant and key in matching.matches and meant.name.endswith("kernel") and arrays[key].ndim == 2
    ]
    torch_layout = sum(turned) * 2 > len(turned) or any(map(is_torch_name, arrays))
    placed: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    # of several arrays with one meaning the one that holds it comes first
    for key in sorted(arrays, key=lambda key: meanings[key] is None or not _holds(matching, key, meanings[key].name)):
        meant, array = meanings[key], arrays[key]
        if meant is None or meant.name in placed or array.ndim != original[meant.name].ndim:
            continue
        placed[meant.name] = array.T if torch_layout and meant.name.endswith("kernel") else array
        sources[meant.name] = key
    return Placement(placed, sources, notes, torch_layout if turned else None)


def _meanings(
    arrays: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], matching: fibres.Matching
) -> tuple[dict[str, Meant | None], list[str]]:
    """Read all names; (the candidate's name -> its meaning, notes on namings that were overruled by content)."""
    meanings = {key: read_name(key, original) for key in arrays}
    notes = []
    patterns: dict[str, list[str]] = {}
    for key in arrays:
        patterns.setdefault(re.sub(r"\d+", "#", key), []).append(key)
    for pattern, keys in patterns.items():
        roles: dict[str, list[str]] = {}
        for key in keys:
            match = matching.matches.get(key)
            if match is not None and len(match.owners) == 1:
                roles.setdefault(role_of(match.owners[0]), []).append(key)
        if not roles:
            continue
        role = max(roles, key=lambda name: len(roles[name]))
        read = {role_of(meanings[key].name) for key in keys if meanings[key]}
        loose = not any(meanings[key] and meanings[key].strict for key in keys)
        if read == {role} or not loose or len(roles[role]) * 2 <= len(keys):
            continue
        if any(
            contradicts(read_claim(key)._replace(layer=None), matching.matches[key].owners[0]) for key in roles[role]
        ):
            continue
        numbers = {key: [int(number) for number in re.findall(r"\d+", key)] for key in keys}
        slot = _layer_slot(numbers, {key: matching.matches[key].owners[0] for key in roles[role]})
        if "#" in role and slot is None:
            continue
        for key in keys:
            name = role.replace("layers_#", f"layers_{numbers[key][slot]}") if "#" in role else role
            if name in original:
                meanings[key] = Meant(name, strict=False)
        if read:
            notes.append(f"{pattern} holds {role} throughout; its name says {min(read)}: a matter of naming")
    return meanings, notes


def _layer_slot(numbers: Mapping[str, list[int]], owners: Mapping[str, str]) -> int | None:
    """Index of the layer's number among the numbers of alike names; None if none is that of every array's owner."""
    for slot in range(min(map(len, numbers.values()), default=0)):
        if all(f"layers_{numbers[key][slot]}/" in owner for key, owner in owners.items()):
            return slot
    return None


def _holds(matching: fibres.Matching, key: str, name: str) -> bool:
    return key in matching.matches and matching.matches[key].owners == [name]


def diagnose_weights(candidate: Candidate, original: Mapping[str, np.ndarray], config: Config) -> Diagnosis:
    """Diagnose a set of weights, whatever its arrays are called.

    Args:
        candidate: arrays and settings.
        original: MT3's names -> arrays.
        config: the original's.
    """
    diagnosis = Diagnosis()
    if not candidate.arrays:
        raise CandidateError(f"{candidate.path}: holds no arrays of floating-point numbers")
    indices = fibres.index_of(original)
    matching = fibres.match(candidate.arrays, original, indices)
    diagnosis.matched, diagnosis.duplicates, diagnosis.missing = matching, matching.duplicates, dict(matching.missing)
    diagnosis.unused = matching.unused
    head_dim = config.network.head_dim
    for key, match in matching.matches.items():
        words = fibres.describe(match, original, head_dim)
        diagnosis.mapping[key] = {"holds": match.owners, "how": words or ["copied"], "exact": match.exact}
    placement = place(candidate.arrays, original, matching)
    placed, sources, notes, torch_layout = dict(placement.arrays), *placement[1:]
    diagnosis.notes += notes
    for name, array in list(placed.items()):
        placed[name] = _uncropped(name, array, original, diagnosis.notes)
    rest = [name for name in original if name not in placed]
    named = {*placed, *(meant.name for key in candidate.arrays if (meant := read_name(key, original)))}
    loaded = load_as_siblings(matching, candidate.arrays, original, rest, named, torch_layout, head_dim)
    diagnosis.conventions = loaded.conventions
    _as_named(loaded, matching)
    for name, array in loaded.arrays.items():
        placed[name] = _uncropped(name, array, original, diagnosis.notes)
    findings = compare_arrays(placed, original, config.network, indices)
    placed |= fibres.restore(matching, candidate.arrays, {name: original[name] for name in loaded.odd})
    absent = [name for name in original if name not in placed and name not in loaded.odd]
    findings += _unexplained_findings(loaded, matching, findings)
    diagnosis.counts = {"of": len(original), "found": len(original) - len(matching.missing)}
    recognised = len(original) - len(matching.missing) + sum(name in placed for name in matching.missing)
    right_shapes = sum(name in placed and placed[name].shape == original[name].shape for name in matching.missing)
    if len(original) - len(matching.missing) < RECOGNISABLE * len(original):
        known = f"{len(original) - len(matching.missing)} of {len(original)} arrays of the original are in it"
        if right_shapes > RECOGNISABLE * len(original):
            diagnosis.refusal = f"{candidate.path}: the same network with other weights: {known}"
        else:
            diagnosis.refusal = f"{candidate.path}: not this model: {known}" + (
                f" ({recognised} names are known)" if recognised else ""
            )
        return diagnosis
    sites = [site for finding in findings for site in finding.sites]
    findings += identity_findings(matching, sources.values(), sites)
    findings += order_findings(matching, _start, sites)
    findings += _missing_findings(absent, original, candidate, matching)
    copies = differing_copies(
        candidate.arrays,
        {
            key: meant.name
            for key in candidate.arrays
            # an array that holds another original is judged by its identity
            if (meant := read_name(key, original))
            and (key not in matching.matches or _holds(matching, key, meant.name))
        },
        placement.arrays,
        sources,
        bool(torch_layout),
    )
    findings += surplus_findings([], copies)
    findings += _extra_findings(candidate, original, sources, matching, diagnosis.notes, copies)
    diagnosis.findings = check_config(candidate.config, config, diagnosis.notes) + findings
    if VOCABULARY not in " ".join(diagnosis.notes):
        diagnosis.notes += vocabulary_note(config)
    diagnosis.placed = placed
    measure(diagnosis, original, config.network)
    return diagnosis


def _unexplained_findings(loaded: Loaded, matching: fibres.Matching, findings: list[Finding]) -> list[Finding]:
    """Faults of arrays without readable names that no array under MT3's name shows: orders, and numbers too many."""
    known = {site for finding in findings for site in finding.sites}
    more = []
    for name, why in loaded.odd.items():
        text = f"{why}; what is meant cannot be told without its name"
        more.append(Finding(module_of_array(name), "order", text, math.nan, sites=[name]))
    for key, match in matching.matches.items():
        sites = list(dict.fromkeys(module_of_array(name) for name in match.owners if name in loaded.arrays))
        if not sites or known & set(sites) or any(name in matching.missing for name in match.owners):
            continue
        used = sum(len(np.unique(match.fibre[match.owner == i])) for i in range(len(match.owners)))
        extra = int((match.owner != -1).sum()) - used
        if extra:
            text = f"{extra} rows or columns of {key} are none of the original's, or are there twice"
            more.append(Finding(sites[0], "rows too many", text, math.nan, sites=[key]))
    return more


def _as_named(loaded: Loaded, matching: fibres.Matching) -> None:
    """Give the parts of a fused array to those that its name says, in its order: 'qkv_proj', 'to_kv'."""
    for key, match in matching.matches.items():
        joined = FUSED.search(key.lower())
        if not joined:
            continue
        parts = [LETTERS[letter] for letter in joined[1] if letter != "_"]
        modules: dict[str, list[str]] = {}
        for name in sorted(set(match.owners) & set(loaded.starts), key=lambda name: loaded.starts[name]):
            modules.setdefault(name.rsplit("/", 2)[0], []).append(name)
        for module, names in modules.items():
            wanted = [f"{module}/{part}/kernel" for part in parts]
            if set(wanted) == set(names):
                loaded.arrays |= dict(zip(wanted, [loaded.arrays[name] for name in names]))


def _uncropped(name: str, array: np.ndarray, original: Mapping[str, np.ndarray], notes: list[str]) -> np.ndarray:
    """The array with the padding of the vocabulary put back, where that is all that is missing, and a note."""
    own = original[name]
    axis = {"decoder/token_embedder/embedding": 0, "decoder/logits_dense/kernel": 1}.get(name)
    if axis is None or array.ndim != 2 or array.shape[1 - axis] != own.shape[1 - axis]:
        return array
    length, full = array.shape[axis], own.shape[axis]
    if full - 128 < length < full:
        head = np.take(own, np.arange(length), axis)
        if np.array_equal(array.astype(np.float64), head.astype(np.float64)):
            notes.append(
                f"{name}: {length} of {full} rows: {VOCABULARY}; the rows left out belong to no event: not a fault"
            )
            return np.concatenate([array, np.take(own, np.arange(length, full), axis).astype(array.dtype)], axis)
    if length > full:
        rest = np.take(array, np.arange(full, length), axis)
        if not rest.any():
            notes.append(f"{name}: {length} rows for {full}, the rest zeros: not a fault")
            return np.take(array, np.arange(full), axis)
    return array


def _missing_findings(absent, original, candidate, matching) -> list[Finding]:
    findings = []
    groups: dict[str, list[str]] = {}
    for stack in ("encoder", "decoder"):
        layers = sorted({int(n) for name in original for n in re.findall(rf"^{stack}/layers_(\d+)/", name)})
        lost = [
            n for n in layers if all(name in absent for name in original if name.startswith(f"{stack}/layers_{n}/"))
        ]
        if lost and len(lost) < len(layers):
            sites = [f"{stack}/layers_{n}" for n in lost]
            text = f"missing whole: {len(layers) - len(lost)} {stack} layers, not {len(layers)}"
            cause = f"num_{stack}_layers={len(layers) - len(lost)}"
            findings.append(Finding(sites[0], cause, text, math.nan, sites=sites))
            absent = [name for name in absent if not any(name.startswith(f"{site}/") for site in sites)]
    for name in absent:
        groups.setdefault("norm scales" if name.endswith("scale") else name, []).append(name)
    for what, names in groups.items():
        sites = [module_of_array(name) for name in names]
        if what == "norm scales":
            total = sum(name.endswith("scale") for name in original)
            text = (
                f"{len(names)} of {total} norm scales are missing"
                + (" (they lie inline in T5X's msgpack file, not in folders)" if len(names) == total else "")
                + "; loading it needs strict=False, which leaves them at ones"
            )
            findings.append(Finding(sites[0], "norm scales missing", text, math.nan, sites=sites))
        elif what == "decoder/logits_dense/kernel" and not any(
            key.endswith("lm_head.weight") for key in candidate.arrays
        ):
            text = "missing: the head is tied to the embedding; MT3's is separate"
            findings.append(Finding(sites[0], "tied head", text, math.nan, sites=sites))
        else:
            share = matching.missing.get(names[0], 0.0)
            text = "missing" if share == 0 else f"{share:.0%} of it found"
            findings.append(Finding(sites[0], "missing", text, math.nan, sites=sites))
    return findings


def _extra_findings(candidate, original, sources, matching, notes, copies) -> list[Finding]:
    """Faults shown by arrays that MT3 does not have: relative biases, biases, position tables."""
    findings = []
    used = set(sources.values())
    width = original["decoder/token_embedder/embedding"].shape[1]
    biases: dict[str, list[str]] = {}
    for key in matching.unused:
        if key in used:
            continue
        array, lower = candidate.arrays[key], key.lower()
        if array.size and not array.any():
            biases.setdefault("zero bias" if lower.endswith("bias") and array.ndim == 1 else "zeros", []).append(key)
        elif "relative_attention_bias" in lower or "relative_position" in lower or "rel_bias" in lower:
            biases.setdefault("relative bias", []).append(key)
        elif lower.endswith("inv_freq"):
            biases.setdefault(_frequency_table(array, width), []).append(key)
        elif array.ndim == 1 and re.search(r"(bias|[./]b)$", lower):
            biases.setdefault("bias", []).append(key)
        else:
            biases.setdefault(_position_table(np.squeeze(array), width) or "unused", []).append(key)
    texts = {
        "relative bias": "a relative position bias; MT3 has none (fixed sinusoids are added to the inputs)",
        "positions=port": "the ports' position table (2k/d) in place of MT3's",
        "bias": "biases that are not zero; MT3 has none",
    }
    for cause, keys in biases.items():
        if cause == "unused" and not used and any(candidate.arrays[key].any() for key in keys):
            shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
            text = f"nothing of the original, and no name says what is meant ({len(keys)} in all: {shown})"
            findings.append(Finding(keys[0], "unexplained", text, math.nan, sites=keys))
        elif cause == "unused":
            surplus = [key for key in keys if not has_no_effect(key, candidate.arrays)]
            findings += surplus_findings([key for key in surplus if key not in copies], {})
            if len(surplus) < len(keys):
                notes.append(f"{len(keys) - len(surplus)} arrays that MT3 does not have are without effect: no harm")
        elif cause in texts:
            shown = f"{texts[cause]}: {', '.join(keys[:2])}" + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
            findings.append(Finding(keys[0], cause, shown, math.nan, sites=keys))
        else:
            notes.append(
                f"{len(keys)} arrays ({keys[0]}, …): {cause}, no harm"
                if len(keys) > 1
                else f"{keys[0]}: {cause}, no harm"
            )
    for name, keys in matching.duplicates.items():
        others = [key for key in keys if key != sources.get(name)]
        if sources.get("decoder/logits_dense/kernel") not in others:
            notes.append(f"{name} is there {len(keys)} times: {', '.join(keys)}")
    return findings


def _start(match: fibres.Match, name: str) -> int:
    owner = match.owners.index(name)
    first = np.flatnonzero(match.owner == owner)[0]
    grid = np.arange(math.prod(match.shape)).reshape(match.shape)
    return int(fibres.fibres_of(grid, match.axis)[first].min())


def _frequency_table(array: np.ndarray, width: int) -> str:
    for table, divisor in (("MT3's frequencies", width // 2 - 1), ("positions=port", width // 2)):
        expected = np.exp(-np.log(10000.0) / divisor * np.arange(width // 2))
        if array.shape == expected.shape and np.allclose(array, expected, rtol=1e-4, atol=0):
            return table
    return "unused"


def _position_table(array: np.ndarray, width: int) -> str:
    if array.ndim != 2 or array.shape[1] != width:
        return ""
    for table in ("mt3", "port", "interleaved", "paper", "cosine_first"):
        expected = numpy_network.positions(len(array), width, numpy_network.Behaviour(positions=table))
        if np.allclose(array, expected, rtol=0, atol=1e-3):
            return "MT3's position table" if table == "mt3" else f"positions={table}"
    return ""
