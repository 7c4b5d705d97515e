"""One finding for one slip: arrays that were exchanged in the same way in every layer are told once."""

import re
from collections.abc import Iterable

from mt3_common.io.plural import plural
from parity.diagnosis.finding import Finding, module_of_array

_EXCHANGED = re.compile(r"exchanged with (\S+)")


def grouped(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings, those about exchanges that differ in nothing but layers, stacks or parts made one."""
    merged: list[Finding] = []
    first: dict[tuple, Finding] = {}
    for finding in findings:
        match = _EXCHANGED.fullmatch(finding.cause)
        key = _difference(finding.site, module_of_array(match[1])) if match else None
        if key is None or key not in first:
            merged.append(finding)
            if key is not None:
                first[key] = finding
            continue
        one = first[key]
        one.sites += [site for site in finding.sites if site not in one.sites]
        one.undoable = one.undoable and finding.undoable
        words = " and ".join("/".join(part).replace("layers_", "layer ") for part in zip(*key))
        one.text = f"{one.cause}; {words} are exchanged in {plural(len(one.sites) // 2, 'place')} in the same way"
    return merged


def _difference(site: str, other: str) -> tuple[tuple[str, str], ...] | None:
    """Words in which two modules differ, in pairs; None if they are not alike in their depth or are one."""
    words, others = site.split("/"), other.split("/")
    pairs = tuple((one, two) for one, two in zip(words, others) if one != two)
    if len(words) != len(others) or not pairs:
        return None
    return min(pairs, tuple((two, one) for one, two in pairs))
