"""Identity: which original a candidate's array holds, against the words of its name that mean one thing everywhere.

`query`, `self_attn`, `decoder` and the number of a layer are no matter of naming: an array that holds something else
is a fault, however many of its siblings hold the same thing. Names that say nothing have to say it alike in all layers.
"""

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping

from parity.diagnosis import fibres
from parity.diagnosis.claims import contradicts, joined_parts
from parity.diagnosis.finding import Finding, module_of_array
from parity.diagnosis.names import Reading
from parity.diagnosis.siblings import role_of


def identity_findings(
    matching: fibres.Matching, readings: Mapping[str, Reading], named: Iterable[str], known: Iterable[str]
) -> list[Finding]:
    """Findings about arrays that hold what their names contradict.

    Args:
        matching: of the candidate against the original.
        readings: of the candidate's names.
        named: the candidate's arrays that were placed by their names, which are compared there.
        known: sites of other findings.
    """
    placed, known = set(named), set(known)
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    alike = {name: group for group in matching.alike for name in group}
    for key, match in matching.matches.items():
        if key in placed or _is_above(readings[key], matching):
            continue
        for name in match.owners:
            if not any(_means(readings[key], other) for other in alike.get(name, [name])):
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


def _is_above(reading: Reading, matching: fibres.Matching) -> bool:
    """Tell whether a name speaks of a layer that MT3 does not have: arrays too many, whatever they hold."""
    return (
        reading.claim.layer is not None
        and not reading.names
        and reading.claim.layer > matching.last_layer(reading.claim.stack)
    )


def _means(reading: Reading, name: str) -> bool:
    """Tell whether a name may mean an original."""
    if reading.is_certain:
        return name in reading.names or role_of(name) in reading.names or "/layers_" not in name
    return not contradicts(reading.claim, name)


def order_findings(
    matching: fibres.Matching,
    readings: Mapping[str, Reading],
    starts: Callable[[fibres.Match, str], int],
    known: Iterable[str],
) -> list[Finding]:
    """Findings about joined arrays whose parts stand in another order than their names say.

    Args:
        matching: of the candidate against the original.
        readings: of the candidate's names.
        starts: (match, original) -> where in the flattened array the original's first number stands.
        known: sites of other findings.
    """
    known = set(known)
    findings: dict[str, Finding] = {}
    for key, match in matching.matches.items():
        parts = tuple(name.split("/")[-2] for name in readings[key].names) or joined_parts(key)
        modules: dict[str, list[str]] = {}
        for name in match.owners:
            modules.setdefault(name.rsplit("/", 2)[0], []).append(name)
        for names in modules.values():
            order = [name.split("/")[-2] for name in sorted(names, key=lambda name: starts(match, name))]
            sites = [module_of_array(name) for name in names]
            # `c_attn` joins query, key, value in self-attention, key, value in cross attention
            named = [part for part in parts if part in order]
            if len(order) < 2 or set(order) != set(named) or order == named or known & set(sites):
                continue
            cause = f"order {', '.join(order)}"
            text = f"{key} is in the order {', '.join(order)}; its name says {', '.join(named)}"
            finding = findings.setdefault(cause, Finding(sites[0], cause, text, math.nan))
            finding.sites += sites
    return list(findings.values())


def layout_findings(
    matching: fibres.Matching, readings: Mapping[str, Reading], named: Iterable[str], known: Iterable[str]
) -> list[Finding]:
    """Findings about joined and stacked kernels that do not lie as their convention says, or are joined along inputs.

    Args:
        matching: of the candidate against the original.
        readings: of the candidate's names.
        named: the candidate's arrays that were placed by their names, which are compared there.
        known: sites of other findings.
    """
    placed, known = set(named), set(known)
    findings = _joined_along_inputs(matching, known)
    known |= {site for finding in findings for site in finding.sites}
    sites: dict[str, list[str]] = {}
    for key, match in matching.matches.items():
        layout = readings[key].layout
        if key in placed or not layout or not match.owners[0].endswith("kernel"):
            continue
        if fibres.is_transposed(match, 2) != (layout == "out, in"):
            sites.setdefault(layout, []).extend(module_of_array(name) for name in match.owners)
    for layout, modules in sites.items():
        modules = [site for site in dict.fromkeys(modules) if site not in known]
        if modules:
            text = f"transposed: their names are of kernels that lie ({layout})"
            findings.append(Finding(modules[0], "transposed", text, math.nan, sites=modules))
    return findings


# parts that are joined along their outputs, since they read the same inputs
_JOINED_PARTS = ("query", "key", "value", "wi_0", "wi_1")


def _joined_along_inputs(matching: fibres.Matching, known: set[str]) -> list[Finding]:
    """The finding about square kernels that are joined along their inputs, as transposed ones are.

    Arrays with more axes than a matrix and one of layers keep each part whole; those in which more than one axis is as
    long as a kernel's side do not tell along which they are joined.
    """
    sites: dict[str, str] = {}
    for key, match in matching.matches.items():
        names = [name for name in match.owners if name.split("/")[-2] in _JOINED_PARTS]
        is_stacked = len({_layer(name) for name in names}) > 1
        if len({name.split("/")[-2] for name in names}) < 2 or len(match.shape) != 2 + is_stacked:
            continue
        if match.shape.count(match.shape[match.axis]) > 1:
            continue
        for name, axis in zip(match.owners, match.original_axis):
            if name in names and axis == 1 and module_of_array(name) not in known:
                sites[module_of_array(name)] = key
    if not sites:
        return []
    text = f"transposed: {next(iter(sites.values()))} joins it with others along its inputs"
    return [Finding(next(iter(sites)), "transposed", text, math.nan, sites=list(sites))]


# largest number of sub-layers that a name may count for one layer
SUBLAYERS = 4


def consistency_findings(
    matching: fibres.Matching, readings: Mapping[str, Reading], known: Iterable[str]
) -> list[Finding]:
    """Findings about names that are not certain and mean one thing in most layers, another in the rest.

    Arrays whose names differ in numbers alone hold the same part of one layer after the other. The layer is one of the
    numbers, or that number divided by the sub-layers that it counts; what is left of the numbers tells the part. Names
    of which no number does so for half of the arrays (`p0`, `p1`, …) say nothing.

    Args:
        matching: of the candidate against the original.
        readings: of the candidate's names.
        known: sites of other findings.
    """
    known = set(known)
    patterns: dict[str, list[str]] = {}
    for key, match in matching.matches.items():
        if not readings[key].is_certain and re.search(r"\d", key) and len({_layer(name) for name in match.owners}) == 1:
            patterns.setdefault(re.sub(r"\d+", "#", key), []).append(key)
    findings = []
    for pattern, keys in patterns.items():
        odd = _odd_ones(keys, matching)
        sites = list(dict.fromkeys(module_of_array(matching.matches[key].owners[0]) for key in odd))
        if odd and not known & set(sites):
            name = matching.matches[odd[0]].owners[0]
            text = f"{odd[0]} holds {name}, which no other {pattern} makes likely"
            findings.append(Finding(sites[0], f"holds {name}", text, math.nan, sites=sites))
    return findings


def _layer(name: str) -> int:
    number = re.search(r"layers_(\d+)/", name)
    return int(number[1]) if number else -1


def _odd_ones(keys: list[str], matching: fibres.Matching) -> list[str]:
    """The keys of one pattern that break the best rule of numbers; [] if all obey one, or if there is no rule."""
    if len(keys) < 2:
        return []
    numbers = {key: [int(number) for number in re.findall(r"\d+", key)] for key in keys}
    parts = {key: tuple(sorted(map(role_of, matching.matches[key].owners))) for key in keys}
    alike = {name: group for group in matching.alike for name in group}
    best: list[str] | None = None
    for slot, step in itertools.product(range(len(numbers[keys[0]])), range(1, SUBLAYERS + 1)):
        rest = {key: (*(n for i, n in enumerate(numbers[key]) if i != slot), numbers[key][slot] % step) for key in keys}
        votes: dict[tuple, collections.Counter] = {}
        for key in keys:
            votes.setdefault(rest[key], collections.Counter())[parts[key]] += 1
        odd = [key for key in keys if votes[rest[key]].most_common(1)[0][0] != parts[key]]
        shifts = collections.Counter(
            numbers[key][slot] // step - _layer(matching.matches[key].owners[0]) for key in keys
        )
        shift = shifts.most_common(1)[0][0]
        odd += [
            key
            for key in keys
            if key not in odd
            and _layer(matching.matches[key].owners[0]) >= 0
            and not any(
                numbers[key][slot] // step - _layer(name) == shift
                for owner in matching.matches[key].owners
                for name in alike.get(owner, [owner])
            )
        ]
        if best is None or len(odd) < len(best):
            best = odd
    return best if best and len(best) * 2 <= len(keys) else []
