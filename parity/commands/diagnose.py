"""`parity diagnose`: the faults of weights, a config.json or a trace."""

import argparse
import math
from collections.abc import Mapping
from typing import Any

from mt3_common.config import Config
from mt3_common.io.plural import plural
from parity.commands import options
from parity.diagnosis.candidate import Candidate, read_candidates, read_original
from parity.diagnosis.diagnose import diagnose
from parity.diagnosis.finding import Diagnosis, Finding
from parity.networks.names import read_map
from parity.networks.record import rename
from parity.report.files import write_json
from parity.sides import numpy_network

# Number of conventions of arrays without readable names in the line of the verdict.
CONVENTIONS_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity diagnose`."""
    parser.add_argument("candidate", help="weights under any names, a trace, or a config.json")
    parser.add_argument("--against", required=True, metavar="CKPT", help="the original: any checkpoint")
    parser.add_argument("--config", help="the candidate's config.json (default: the one beside it)")
    parser.add_argument("--model", choices=("mt3", "ismir2021"), help="preset, where the original has no config")
    options.add_weights(parser)
    options.add_names(parser)
    parser.add_argument("--mapping", action="store_true", help="print which array holds what")
    parser.add_argument("--json", metavar="FILE", help="write the diagnosis as JSON")


def run(args: argparse.Namespace) -> int:
    """Diagnose a candidate; return 0 nothing wrong, 1 faults, 2 refused."""
    original, config = read_original(options.mt3_path(args.against, "diagnose"), args.model)
    candidates = read_candidates(
        options.mt3_path(args.candidate, "diagnose"), args.config, args.weights, args.scan_axis
    )
    if args.names:
        _rename(candidates, read_map(args.names), original, config)
    diagnoses = {}
    for prefix, candidate in candidates.items():
        diagnoses[prefix] = diagnose(candidate, original, config)
        diagnoses[prefix].notes += candidate.notes
    if len(candidates) > 1:
        names = ", ".join(candidates)
        sets = plural(len(candidates), "set")
        print(f"{args.candidate} holds {sets} of weights with different numbers, each judged: {names}")
    for prefix, diagnosis in diagnoses.items():
        path = f"{args.candidate}: {prefix}" if len(candidates) > 1 else args.candidate
        print_diagnosis(diagnosis, path, args.against, args.mapping)
    worst = max(diagnoses.values(), key=lambda diagnosis: diagnosis.exit_code)
    if args.json:
        sets = {prefix: diagnosis.to_dict() for prefix, diagnosis in diagnoses.items()}
        write_json(args.json, worst.to_dict() | ({"sets": sets} if len(sets) > 1 else {}))
    return worst.exit_code


def _rename(
    candidates: Mapping[str, Candidate], names: Mapping[str, str], original: Mapping[str, Any], config: Config
) -> None:
    """Give the taps, weights and inputs of traces MT3's names."""
    for candidate in candidates.values():
        if candidate.trace is None:
            raise ValueError("--names is for traces; arrays under other names are found by their content")
        taps = [step.name for step in numpy_network.steps(config.network) if step.name]
        candidate.trace = rename(candidate.trace, names, [*taps, *original], numpy_network.INPUTS)


def print_diagnosis(diagnosis: Diagnosis, path: str, against: str, show_mapping: bool = False) -> None:
    """Print a diagnosis."""
    verdict = diagnosis.verdict()
    if diagnosis.refusal:
        print(verdict)
        return
    shown = "; ".join(diagnosis.conventions[:CONVENTIONS_SHOWN])
    if len(diagnosis.conventions) > CONVENTIONS_SHOWN:
        shown += f"; and {len(diagnosis.conventions) - CONVENTIONS_SHOWN} more, in --json"
    print(f"{verdict}{', mapped with: ' + shown if shown else ''} ({path} against {against})")
    for number, finding in enumerate(diagnosis.findings, 1):
        print(f"  {number}. {_sentence(finding)}")
    for note in diagnosis.notes:
        print(f"  not a fault: {note}")
    if diagnosis.unjudged:
        print(f"  not judged: the settings {', '.join(diagnosis.unjudged)}")
    if diagnosis.coverage:
        print(f"judged: {diagnosis.coverage}")
    if diagnosis.counts:
        counts = diagnosis.counts
        print(
            f"arrays: {counts['found']} of {counts['of']} found by content, {len(diagnosis.missing)} missing, "
            f"{len(diagnosis.duplicates)} held more than once, {len(diagnosis.unused)} of the candidate's unused"
        )
    if diagnosis.logits_error is not None:
        without = diagnosis.not_computed()
        print(
            f"effect: the logits are off by {diagnosis.logits_error:.1e} of their largest value"
            + (f", without what is not computed: {', '.join(without)}" if without else "")
        )
    if show_mapping:
        for key, entry in diagnosis.mapping.items():
            print(f"  {key} <- {' + '.join(entry['holds'])} ({', '.join(entry['how'])})")
        for name in diagnosis.missing:
            print(f"  missing: {name}")
        for name in diagnosis.unused:
            print(f"  unused: {name}")
        for name in diagnosis.by_content:
            print(f"  believed for its content: {name}")


def _sentence(finding: Finding) -> str:
    if math.isnan(finding.before):
        where = finding.site if len(finding.sites) < 2 else f"{finding.site} and {len(finding.sites) - 1} more"
        return f"{where}: {finding.text}"
    return finding.sentence()
