"""Findings: the faults that a diagnosis names, and the modules that it can blame."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mt3_common.config import NetworkConfig
from mt3_common.io.plural import plural
from parity.compare.results import DIFFERENT, REFUSED, SAME
from parity.diagnosis import fibres
from parity.sides.numpy_network import steps

# causes of findings about arrays that MT3 does not have, beside which all that MT3 has may be right
SURPLUS = ("too many arrays", "bias", "relative bias")
LISTED = 3


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


@dataclasses.dataclass
class Finding:
    """One fault.

    Attributes:
        site: the module, or the array, where it is: 'decoder/layers_3/mlp/wo'.
        cause: short and stable, for programs: 'eps=1e-05'; 'unknown' if no hypothesis explains it.
        text: the same for people.
        before: largest error of the site's output as it is, relative to the largest value.
        after: the same once the cause is undone; None if no cause was found.
        runner_up: the next best cause and its error; ('', None) where there is none that helps.
        undoable: whether `parity repair` can undo it with the candidate's own numbers.
        in_weights: whether it lies in the weights, not in what a module does.
        sites: all sites with the same cause.
        arrays: the candidate's arrays that it is about, where they are no sites themselves.
    """

    site: str
    cause: str
    text: str
    before: float
    after: float | None = None
    runner_up: tuple[str, float | None] = ("", None)
    undoable: bool = False
    in_weights: bool = False
    sites: list[str] = dataclasses.field(default_factory=list)
    arrays: list[str] = dataclasses.field(default_factory=list)

    def sentence(self) -> str:
        """'decoder/layers_3/mlp/wo: transposed (restores parity to 3e-14; next best: none)'."""
        where = self.site if len(self.sites) < 2 else f"{self.site} and {len(self.sites) - 1} more"
        if self.after is None:
            return f"{where}: {self.text} (error {self.before:.1e}; no known cause explains it)"
        name, error = self.runner_up
        second = f"{name}, {error:.1e}" if name else "none"
        how = "restores parity" if self.undoable or not self.in_weights else "putting the original back restores parity"
        return f"{where}: {self.text} ({how} from {self.before:.1e} to {self.after:.0e}; next best: {second})"


@dataclasses.dataclass
class Diagnosis:
    """A verdict with its findings, and with what only looks like a fault.

    Attributes:
        findings: faults.
        notes: things that look like faults and are none, or that do no harm.
        mapping: candidate array -> which originals it holds, and how it was changed.
        duplicates, unused, missing: as in matching.Matching.
        counts: 'found' and 'of': original arrays.
        refusal: why there is no verdict, or ''.
        placed: original name -> the candidate's array in MT3's layout.
        matched: of the candidate's arrays, for repair.
        logits_error: largest relative error of the logits with the candidate's weights; None where it has none.
        coverage: what was judged, in words; '' where the counts say it.
        conventions: how arrays without readable names were mapped, in words, where all siblings share it.
        by_content: the candidate's arrays whose names are not read, or not for certain: believed for what they hold.
        unjudged: settings of the config of which neither MT3's value nor harmlessness is known.
        judged: the candidate's arrays as they were compared: kernels of weight_norm folded, one of two sets of weights.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    mapping: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    duplicates: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    unused: list[str] = dataclasses.field(default_factory=list)
    missing: dict[str, float] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    refusal: str = ""
    placed: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    matched: fibres.Matching | None = None
    logits_error: float | None = None
    coverage: str = ""
    conventions: list[str] = dataclasses.field(default_factory=list)
    by_content: list[str] = dataclasses.field(default_factory=list)
    unjudged: list[str] = dataclasses.field(default_factory=list)
    judged: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def surplus(self) -> list[str]:
        """The arrays that MT3 does not have and that may have an effect, where nothing else is wrong; else []."""
        if any(finding.cause not in SURPLUS for finding in self.findings):
            return []
        return [site for finding in self.findings for site in (finding.arrays or finding.sites)]

    def verdict(self) -> str:
        """Return the verdict in words: 'same: nothing is wrong', 'different: 2 faults', …"""
        if self.refusal:
            return f"refused: {self.refusal}"
        if self.surplus:
            arrays = plural(len(self.surplus), "array")
            return f"same, and the file holds {arrays} that MT3 does not have: {_listed(self.surplus)}"
        if self.findings:
            return f"different: {plural(len(self.findings), 'fault')}"
        if self.by_content:
            names = plural(len(self.by_content), "name is", "names are")
            return f"same by content: {names} not read for certain: {_listed(self.by_content)}"
        if self.unjudged:
            return f"same, but for settings that are not judged: {_listed(self.unjudged)}"
        return "same: nothing is wrong"

    def short_verdict(self) -> str:
        """Return the verdict for programs: 'same' only where every name and setting was judged."""
        if self.exit_code != SAME:
            return "refused" if self.refusal else "different"
        if self.by_content:
            return "same by content"
        return "same but for settings" if self.unjudged else "same"

    def not_computed(self) -> list[str]:
        """Return what the error of the logits leaves out, in words: arrays too many, second copies, settings."""
        causes = {finding.cause for finding in self.findings}
        parts = {
            "arrays that MT3 does not have": causes & {*SURPLUS, "unexplained"},
            "second copies that differ": causes & {"copies differ"},
            "settings": [finding for finding in self.findings if finding.site.startswith("config: ")],
        }
        return [words for words, present in parts.items() if present]

    @property
    def exit_code(self) -> int:
        """0 nothing wrong, 1 faults, 2 refused."""
        if self.refusal:
            return REFUSED
        return DIFFERENT if self.findings else SAME

    def to_dict(self) -> dict[str, Any]:
        """For JSON; arrays left out."""
        return {
            "format": "mt3-parity-diagnosis",
            "version": 1,
            "verdict": self.short_verdict(),
            "words": self.verdict(),
            "refusal": self.refusal,
            "findings": [dataclasses.asdict(finding) | {"sentence": finding.sentence()} for finding in self.findings],
            "not_faults": self.notes,
            "arrays": self.counts,
            "mapping": self.mapping,
            "duplicates": self.duplicates,
            "unused": self.unused,
            "missing": self.missing,
            "logits_error": self.logits_error,
            "mapped_with": self.conventions,
            "by_content": self.by_content,
            "unjudged_settings": self.unjudged,
            "coverage": self.coverage,
        }


def module_of(step: str) -> str:
    """Return the module to blame: the attention for its weights, the layer for its sums, 'logits' for the last step."""
    path, _, last = step.rpartition("/")
    if last == "dropout" or last.startswith(".") or last == "input_dropout":
        return path
    return step or "logits"


def sites_of(config: NetworkConfig) -> list[str]:
    """Every module that can be blamed."""
    return list(dict.fromkeys(module_of(step.name) for step in steps(config)))


def module_of_array(array: str) -> str:
    return array.rpartition("/")[0]
