"""The diagnosis of a set of weights under any names: every array placed, compared, and measured."""

import math
import re
from collections.abc import Mapping

import numpy as np

from mt3_common.checkpoint.settings import VOCABULARY
from mt3_common.config import Config
from mt3_common.io.plural import plural
from parity.diagnosis import fibres
from parity.diagnosis.arrays import compare_arrays, is_near
from parity.diagnosis.candidate import Candidate, CandidateError
from parity.diagnosis.claims import FUSED, LETTERS
from parity.diagnosis.config import check_config, unjudged, vocabulary_note
from parity.diagnosis.effect import measure
from parity.diagnosis.finding import Diagnosis, Finding, module_of_array
from parity.diagnosis.folding import fold_weight_norm, split_averaged, unrounded
from parity.diagnosis.grouping import grouped
from parity.diagnosis.identity import (
    consistency_findings,
    identity_findings,
    layout_findings,
    order_findings,
)
from parity.diagnosis.placement import place
from parity.diagnosis.siblings import Loaded, load_as_siblings
from parity.diagnosis.surplus import copy_findings, differing_copies, surplus_findings

# share of the original's arrays that a candidate must hold for a diagnosis to mean anything
RECOGNISABLE = 0.1


def diagnose_weights(
    candidate: Candidate, original: Mapping[str, np.ndarray], config: Config, measured: bool = True
) -> Diagnosis:
    """Diagnose a set of weights, whatever its arrays are called.

    Args:
        candidate: arrays and settings.
        original: MT3's names -> arrays.
        config: the original's.
        measured: compute the errors that every fault makes, and that of the logits, which takes most of the time.
    """
    diagnosis = Diagnosis()
    if not candidate.arrays:
        raise CandidateError(f"{candidate.path}: holds no arrays of floating-point numbers")
    indices = fibres.index_of(original)
    arrays, folded = fold_weight_norm(_judged_set(candidate.arrays, original, indices, diagnosis.notes))
    diagnosis.judged = arrays
    matching = fibres.match(arrays, original, indices)
    equal = unrounded(matching, {key: arrays[key] for key in folded}, original)
    if equal:
        diagnosis.notes.append(
            f"{plural(len(equal), 'kernel of weight_norm was', 'kernels of weight_norm were')} folded: right to "
            "float32's rounding"
        )
        arrays |= equal
        matching = fibres.match(arrays, original, indices)
    diagnosis.matched, diagnosis.duplicates, diagnosis.missing = matching, matching.duplicates, dict(matching.missing)
    diagnosis.unused = matching.unused
    head_dim = config.network.head_dim
    for key, match in matching.matches.items():
        words = fibres.describe(match, original, head_dim)
        diagnosis.mapping[key] = {"holds": match.owners, "how": words or ["copied"], "exact": match.exact}
    placement = place(arrays, original, matching)
    placed, readings = dict(placement.arrays), placement.readings
    diagnosis.notes += placement.notes
    for name, array in list(placed.items()):
        placed[name] = _uncropped(name, array, original, diagnosis.notes, config.vocabulary.num_ids)
    rest = [name for name in original if name not in placed]
    named = {*placed, *(name for reading in readings.values() if (name := reading.name))}
    loaded = load_as_siblings(matching, arrays, original, rest, named, placement.transposed, head_dim)
    diagnosis.conventions = loaded.conventions
    _as_named(loaded, matching)
    for name, array in loaded.arrays.items():
        placed[name] = _uncropped(name, array, original, diagnosis.notes, config.vocabulary.num_ids)
    findings = compare_arrays(placed, original, config.network, indices)
    _name_magnitudes(findings, placement.sources, folded)
    placed |= fibres.restore(matching, arrays, {name: original[name] for name in loaded.odd})
    absent = [name for name in original if name not in placed and name not in loaded.odd]
    findings += _unexplained_findings(loaded, matching, findings)
    diagnosis.counts = {"of": len(original), "found": len(original) - len(matching.missing)}
    diagnosis.refusal = _refusal(candidate.path, diagnosis, placed, original, readings)
    if diagnosis.refusal:
        return diagnosis
    sites = [site for finding in findings for site in finding.sites]
    findings += identity_findings(matching, readings, placement.sources.values(), sites)
    findings += order_findings(matching, readings, _start, sites)
    findings += layout_findings(matching, readings, placement.sources.values(), sites)
    findings += consistency_findings(matching, readings, [site for finding in findings for site in finding.sites])
    findings += _missing_findings(absent, original, arrays, matching, readings)
    copies = differing_copies(arrays, placement, matching)
    findings += copy_findings(copies)
    findings += surplus_findings(arrays, original, placement, matching, diagnosis.notes, copies)
    diagnosis.findings = check_config(candidate.config, config, diagnosis.notes) + grouped(findings)
    diagnosis.unjudged = unjudged(candidate.config, config)
    if VOCABULARY not in " ".join(diagnosis.notes):
        diagnosis.notes += vocabulary_note(config)
    diagnosis.by_content = [key for key in matching.matches if not readings[key].is_certain]
    diagnosis.placed = placed
    if measured:
        measure(diagnosis, original, config.network)
    return diagnosis


def _judged_set(arrays, original, indices, notes) -> dict[str, np.ndarray]:
    """The arrays without the other set of weights, where a file has averaged weights beside the trained ones."""
    averaged, others = split_averaged(arrays)
    if len(averaged) < len(original) // 2 or len(others) < len(original) // 2:
        return dict(arrays)
    missing = [len(fibres.match(part, original, indices).missing) for part in (averaged, others)]
    chosen, left = (averaged, others) if missing[0] <= missing[1] else (others, averaged)
    notes.append(
        f"two sets of weights, averaged and trained: {next(iter(chosen))}, … is judged, {next(iter(left))}, … not"
    )
    return chosen


def _name_magnitudes(findings, sources, folded) -> None:
    """Say of findings about kernels of weight_norm whose rows have other lengths that its magnitudes are wrong."""
    wrong = {module_of_array(name) for name, key in sources.items() if key in folded}
    for finding in findings:
        if "scaled by itself" in finding.text and wrong & set(finding.sites):
            finding.text += " (weight_norm: its magnitudes are not the lengths of the original's rows)"


def _refusal(path, diagnosis, placed, original, readings) -> str:
    """Why there is nothing to compare: less than a tenth of the original is in the candidate."""
    missing = diagnosis.missing
    recognised = len(original) - len(missing) + sum(name in placed for name in missing)
    same_shape = [name for name in missing if name in placed and placed[name].shape == original[name].shape]
    if len(original) - len(missing) >= RECOGNISABLE * len(original):
        return ""
    # coarsely rounded arrays match nothing; under names that are certain they are near enough to compare
    near = [name for name in same_shape if is_near(placed[name], original[name])]
    if len(near) * 2 > len(original):
        return ""
    known = f"{len(original) - len(missing)} of {plural(len(original), 'array')} of the original are in it"
    if len(same_shape) > RECOGNISABLE * len(original):
        return f"{path}: the same network with other weights: {known}"
    return f"{path}: not this model: {known}" + (
        f" ({plural(recognised, 'name is', 'names are')} known)" if recognised else ""
    )


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


def _uncropped(
    name: str, array: np.ndarray, original: Mapping[str, np.ndarray], notes: list[str], ids: int
) -> np.ndarray:
    """The array with the padding of the vocabulary put back, where that is all that is missing, and a note.

    Args:
        name: of the original that it is meant to be.
        array: in MT3's layout.
        original: all originals.
        notes: gets what was done.
        ids: number of ids that an event or a special token has.
    """
    own = original[name]
    axis = {"decoder/token_embedder/embedding": 0, "decoder/logits_dense/kernel": 1}.get(name)
    if axis is None or array.ndim != 2 or array.shape[1 - axis] != own.shape[1 - axis]:
        return array
    length, full = array.shape[axis], own.shape[axis]
    if ids <= length < full:
        head = np.take(own, np.arange(length), axis)
        if np.array_equal(array.astype(np.float64), head.astype(np.float64)):
            notes.append(
                f"{name}: {length} of {full} rows: {VOCABULARY}; the rows left out belong to no event: not a fault"
            )
            return np.concatenate([array, np.take(own, np.arange(length, full), axis).astype(array.dtype)], axis)
    if length > full:
        rest = np.take(array, np.arange(full, length), axis)
        # rows of the embedding above the largest id are never looked up; columns of the head could be chosen
        if axis == 0 or not rest.any():
            what = "the rest zeros" if not rest.any() else "the rest above every id"
            notes.append(f"{name}: {length} rows for {full}, {what}: not a fault")
            return np.take(array, np.arange(full), axis)
    return array


def _missing_findings(absent, original, arrays, matching, readings) -> list[Finding]:
    findings = []
    groups: dict[str, list[str]] = {}
    for key, array in arrays.items():
        spoilt = [name for name in readings[key].names if name in absent]
        if spoilt and not np.isfinite(array.astype(np.float64)).all():
            sites = [module_of_array(name) for name in spoilt]
            text = f"{key} holds NaN or infinity"
            findings.append(Finding(sites[0], "not finite", text, math.nan, sites=sites))
            absent = [name for name in absent if name not in spoilt]
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
                f"{len(names)} of {plural(total, 'norm scale')} are missing"
                + (" (they lie inline in T5X's msgpack file, not in folders)" if len(names) == total else "")
                + "; loading it needs strict=False, which leaves them at ones"
            )
            findings.append(Finding(sites[0], "norm scales missing", text, math.nan, sites=sites))
        elif what == "decoder/logits_dense/kernel" and not any(reading.name == what for reading in readings.values()):
            text = "missing: the head is tied to the embedding; MT3's is separate"
            findings.append(Finding(sites[0], "tied head", text, math.nan, sites=sites))
        else:
            share = matching.missing.get(names[0], 0.0)
            text = "missing" if share == 0 else f"{share:.0%} of it found"
            findings.append(Finding(sites[0], "missing", text, math.nan, sites=sites))
    return findings


def _start(match: fibres.Match, name: str) -> int:
    owner = match.owners.index(name)
    first = np.flatnonzero(match.owner == owner)[0]
    grid = np.arange(math.prod(match.shape)).reshape(match.shape)
    return int(fibres.fibres_of(grid, match.axis)[first].min())
