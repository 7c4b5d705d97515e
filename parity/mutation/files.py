"""The part of `parity mutants` that judges whole weight files: faults that others thought of, in every naming."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.io.plural import plural
from parity.diagnosis.candidate import Candidate
from parity.diagnosis.finding import Diagnosis
from parity.diagnosis.weights import diagnose_weights
from parity.mutation import processors
from parity.mutation.plant_in_files import CLEAN, Planted, files
from parity.sides import numpy_network


class FileOutcome(NamedTuple):
    """The outcome of one file.

    Attributes:
        convention, kind: which file.
        size: of the network: 'small' or 'full'.
        isa: the processor's instructions: 'native' or 'avx2'.
        is_clean: nothing was planted.
        detected: the diagnosis does not say that it is the same.
        localised: a planted fault's module or array is blamed.
        named: by one of its names.
        verdict: in words, with the first finding.
    """

    convention: str
    kind: str
    size: str
    isa: str
    is_clean: bool
    detected: bool
    localised: bool
    named: bool
    verdict: str


def outcome_of(planted: Planted, diagnosis: Diagnosis) -> tuple[bool, bool, bool]:
    """(detected, localised, named) of a file and its diagnosis."""
    words = planted.causes
    blamed = [
        finding
        for finding in diagnosis.findings
        if not planted.sites or any(_is_in(site, planted.sites) for site in [finding.site, *finding.sites])
    ]
    named = any(re.search(words, f"{finding.cause} {finding.text}") for finding in blamed)
    return diagnosis.exit_code != 0, bool(blamed), bool(words) and named


def _is_in(site: str, sites: Iterable[str]) -> bool:
    return any(site == other or site.startswith(f"{other}/") or other.startswith(f"{site}/") for other in sites)


def judge_files(
    network: NetworkConfig,
    size: str,
    seed: int = 0,
    limit: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[FileOutcome]:
    """Diagnose every kind of file in every naming, or `limit` of them spread over all.

    Args:
        network: sizes of the network; its weights are random.
        size: what to call it.
        seed: of weights and faults.
        limit: number of files.
        progress: gets a line now and then.
    """
    original = numpy_network.random_arrays(network, seed)
    config = Config(network=network, spectrogram=SpectrogramConfig(num_mel_bins=network.input_depth))
    clean = {kind.name for kind in CLEAN}
    chosen = list(files(original, network, seed))
    if limit:
        chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, limit).astype(int))]
    outcomes = []
    for number, (convention, kind, planted) in enumerate(chosen, 1):
        diagnosis = diagnose_weights(Candidate(kind, "weights", planted.arrays), original, config, measured=False)
        words = "; ".join([diagnosis.verdict(), *(finding.text for finding in diagnosis.findings[:1])])
        marks = outcome_of(planted, diagnosis)
        isa = processors.instruction_set()
        outcomes.append(FileOutcome(convention, kind, size, isa, kind in clean, *marks, words))
        if number % 50 == 0:
            progress(f"{size}: {number} of {plural(len(chosen), 'file')}")
    return outcomes


def summarise_files(outcomes: Iterable[FileOutcome]) -> dict[str, Any]:
    """Counts for the table, and the outcomes that are not right."""
    rows: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        name = f"{outcome.size}{', AVX2' if outcome.isa == processors.AVX2 else ''}"
        row = rows.setdefault(
            name, dict.fromkeys(("files", "detected", "localised", "named", "clean", "false alarms"), 0)
        )
        if outcome.is_clean:
            row["clean"] += 1
            row["false alarms"] += outcome.detected
            continue
        row["files"] += 1
        for mark in ("detected", "localised", "named"):
            row[mark] += getattr(outcome, mark)
    wrong = [
        outcome._asdict()
        for outcome in outcomes
        if outcome.detected != (not outcome.is_clean) or not (outcome.is_clean or (outcome.localised and outcome.named))
    ]
    return {"table": rows, "wrong": wrong}


def meets_file_targets(summary: Mapping[str, Any]) -> bool:
    """No wrong "same", no false alarm, 99 % localised, 95 % named."""
    rows = summary["table"].values()
    return all(
        row["detected"] == row["files"]
        and not row["false alarms"]
        and row["localised"] >= 0.99 * row["files"]
        and row["named"] >= 0.95 * row["files"]
        for row in rows
    )
