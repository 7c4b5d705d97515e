"""Diagnosis of somebody's weights, config or trace against the original checkpoint.

Weights are matched by content (fibres.py), so any naming will do; names are then read to see what each array
is *meant* to be, and what it holds is compared with what it is meant to be. Modules of a recorded trace are examined
one by one (modules.py). Every cause named was tested: undoing it restores parity.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mt3_common.checkpoint.settings import SIZE_KEYS, is_whole
from mt3_common.config import Config
from mt3_common.io.plural import plural
from parity.diagnosis.arrays import compare_arrays
from parity.diagnosis.candidate import Candidate, CandidateError
from parity.diagnosis.config import check_config, flat_settings, unjudged
from parity.diagnosis.finding import Diagnosis, Finding
from parity.diagnosis.modules import examine
from parity.diagnosis.weights import diagnose_weights
from parity.sides import numpy_network
from parity.trace.precision import EPSILON


def diagnose(candidate: Candidate, original: Mapping[str, np.ndarray], config: Config) -> Diagnosis:
    """Diagnose a candidate of any kind.

    Raises:
        CandidateError: the candidate holds nothing to judge.
    """
    if candidate.kind == "weights":
        return diagnose_weights(candidate, original, config)
    diagnosis = Diagnosis()
    if candidate.kind == "config":
        known = {name for names in SIZE_KEYS.values() for name in names}
        flat = flat_settings(candidate.config)
        stated = sorted(known & set(flat))
        if not stated:
            shown = ", ".join(sorted(map(str, flat))[:4])
            raise CandidateError(f"{candidate.path}: none of its settings is a network's size ({shown})")
        if not any(is_whole(flat[name]) for name in stated):
            shown = ", ".join(f"{name} is {json.dumps(flat[name], default=str)[:40]}" for name in stated[:3])
            raise CandidateError(f"{candidate.path}: no size of the network can be read: {shown}, not whole numbers")
        diagnosis.findings = check_config(candidate.config, config, diagnosis.notes)
        diagnosis.unjudged = unjudged(candidate.config, config)
        return diagnosis
    return diagnose_trace(candidate, original, config)


def diagnose_trace(candidate: Candidate, original: Mapping[str, np.ndarray], config: Config) -> Diagnosis:
    """Diagnose the model that made a trace: every module, in every precision that was recorded."""
    trace = candidate.trace
    diagnosis = Diagnosis()
    inputs = trace.inputs
    absent = [name for name in numpy_network.INPUTS if name not in inputs]
    if absent:
        raise CandidateError(f"{candidate.path}: the trace does not say what its {' and '.join(absent)} were")
    depth = inputs[numpy_network.FRAMES].shape[-1]
    if depth != config.network.input_depth:
        diagnosis.refusal = (
            f"{candidate.path}: frames of {depth} values; the original's model takes {config.network.input_depth}"
        )
        return diagnosis
    from parity.trace import trace as traces

    prints = traces.fingerprint(dict(original))
    if other := _other_sizes(trace, prints, config):
        diagnosis.refusal = f"{candidate.path}: the trace is of a network of other sizes than the original: {other}"
        return diagnosis
    differing = [name for name, entry in trace.weights.items() if name in prints and entry[1:] != prints[name][1:]]
    unknown = [name for name in trace.weights if name not in prints]
    if differing:
        shown = ", ".join(differing[:3]) + (", …" if len(differing) > 3 else "")
        diagnosis.notes.append(
            f"{len(differing)} of {plural(len(prints), 'weight')} of the trace are not the original's bits ({shown}); "
            "diagnose the weights themselves too"
        )
    if unknown:
        diagnosis.notes.append(
            f"{plural(len(unknown), 'weight of the trace has a name', 'weights of the trace have names')} that "
            f"are not MT3's ({unknown[0]}, …)"
        )
    taps = {step.name for step in numpy_network.steps(config.network) if step.name and step.is_tap}
    seen = taps.intersection(*(run.outputs for run in trace.passes.values()))
    diagnosis.coverage = f"{len(seen)} of {plural(len(taps), 'module')} of MT3, and the logits"
    diagnosis.findings = name_faults(trace, original, config)
    return diagnosis


def _other_sizes(trace: Any, prints: Mapping[str, Sequence[Any]], config: Config) -> str:
    """Return what shows that a trace is of a network of other sizes, '' if nothing does.

    Args:
        trace: with ids and, where its maker states them, the weights' shapes.
        prints: name of an original's weight -> [dtype, shape, sha256].
        config: the original's.
    """
    outputs = next(iter(trace.passes.values())).outputs if trace.passes else {}
    network = config.network
    for stack, count in (("encoder", network.num_encoder_layers), ("decoder", network.num_decoder_layers)):
        matches = (re.match(rf"{stack}/layers_(\d+)(?:/|$)", name) for name in [*trace.weights, *outputs])
        if beyond := [int(match[1]) for match in matches if match and int(match[1]) >= count]:
            return f"{stack}/layers_{min(beyond)} is in it, and {plural(count, 'layer')} there"
    for name, (_, shape, *_rest) in trace.weights.items():
        # whatever way round
        if name in prints and sorted(shape) != sorted(prints[name][1]):
            return f"{name} is {'x'.join(map(str, shape))} in it, and {'x'.join(map(str, prints[name][1]))} there"
    for name, (_, shape, *_rest) in prints.items():
        module = name.rpartition("/")[0]
        output = outputs.get(module)
        # (batch, positions, values)
        if output is not None and output.ndim == 3 and output.shape[-1] != shape[-1]:
            return f"{module} puts out {output.shape[-1]} values in it, and {shape[-1]} there"
    largest = max(
        (
            int(trace.inputs[name].max(initial=0))
            for name in (numpy_network.TOKENS, numpy_network.TARGETS)
            if name in trace.inputs
        ),
        default=0,
    )
    if largest >= config.network.vocab_size:
        return f"it was given id {largest}, and the original has {config.network.vocab_size}"
    return ""


def name_faults(
    trace: Any,
    original: Mapping[str, np.ndarray],
    config: Config,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> list[Finding]:
    """Name the causes of everything that a traced model does other than MT3, most exact precision first.

    Args:
        trace: of parity.trace.trace; its inputs and taps are read.
        original: the weights that the model should have.
        config: the original's.
        arrays: the weights that it has, under MT3's names, where they are at hand: faults of weights are then named
            from the weights, and modules are judged with the weights that they have.
    """
    findings = [] if arrays is None else compare_arrays(arrays, original, config.network)
    weights = original if arrays is None else arrays
    seen: set[tuple[str, str]] = set()
    for precision in sorted(trace.passes, key=list(EPSILON).index):
        new = []
        run = trace.passes[precision]
        # A trace of a part of a network has other outputs than logits.
        outputs = run.outputs | ({"": run.logits} if run.logits.ndim == 3 else {})
        for finding in examine(outputs, trace.inputs, weights, config.network, precision):
            # an epsilon that float64 has read is not read again, with fewer digits, off float32
            sort = "eps" if finding.cause.startswith("eps") else finding.cause
            sites = [site for site in finding.sites if (site, sort) not in seen]
            if sites:
                finding.sites = sites
                finding.site = finding.site if finding.site in sites else sites[0]
                findings.append(finding)
                new += [(site, sort) for site in sites]
        seen.update(new)
    return findings
