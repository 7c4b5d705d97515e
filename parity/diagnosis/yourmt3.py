"""Causes by module of YourMT3+: what a candidate does in place of what the published network does.

Every module is computed again in NumPy from what the candidate itself fed it (yourmt3_*.py), so a fault shows where it
is. Then each known fault is put in the module's place: the one that gives the candidate's value is the cause.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from mt3_common.yourmt3_config import YourMT3Config, YourMT3Settings
from parity.diagnosis import yourmt3_conformer, yourmt3_ends, yourmt3_perceiver, yourmt3_t5
from parity.diagnosis.finding import Finding
from parity.diagnosis.yourmt3_checks import Check, Seen, wide
from parity.diagnosis.yourmt3_weights import compare_arrays, module_of
from parity.trace.trace import Pass

# relative errors up to which a module is right, and up to which a cause explains a value
RIGHT = {"float64": 1e-10, "float32": 3e-5}
EXPLAINED = {"float64": 1e-8, "float32": 1e-4}
# numbers below this one are masks
MASK = -1e29
# share of the error that a cause must leave at most
BETTER = 0.1


def name_faults(
    run: Pass,
    inputs: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    originals: Mapping[str, np.ndarray],
    settings: YourMT3Settings,
) -> list[Finding]:
    """Return the faults of a candidate: of its arrays, then of its modules in the order of execution.

    Args:
        run: the candidate's pass, with the inputs of every module.
        inputs: of the network.
        arrays: the candidate's, under the published names.
        originals: the checkpoint's.
        settings: of the checkpoint.
    """
    return compare_arrays(arrays, originals, settings.network) + examine(run, inputs, arrays, settings.network)


def examine(
    run: Pass, inputs: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], network: YourMT3Config
) -> list[Finding]:
    """Return a finding for each module whose value is not what it should be on its own inputs; equal causes are one."""
    seen = Seen(run, arrays)
    findings: list[Finding] = []
    with np.errstate(all="ignore"):
        for check in checks(seen, inputs, network):
            finding = judge(check, run.precision)
            if finding is not None:
                findings.append(finding)
    return grouped(findings + idle(seen))


def idle(seen: Seen) -> list[Finding]:
    """Return a finding for each module that has arrays and never ran: no check of it could fail."""
    sites = dict.fromkeys(module_of(name) for name in seen.arrays)
    text = "it has arrays and never runs"
    return [Finding(site, "does not run", text, 1.0, None, sites=[site]) for site in sites if not seen.has(site)]


def checks(seen: Seen, inputs: Mapping[str, np.ndarray], network: YourMT3Config) -> Iterator[Check]:
    """Yield the checks of all modules in the order of execution."""
    frames = wide(inputs["frames"])
    if network.pre_encoder == "none":
        if seen.has("encoder"):
            yield Check("encoder", seen.input("encoder"), lambda: frames)
    else:
        yield from yourmt3_ends.pre_encoder(seen, network, frames)
        if seen.has("encoder", "pre_encoder_0"):
            yield Check("encoder", seen.input("encoder"), lambda: seen.output("pre_encoder_0"))
    if network.encoder == "t5":
        yield from yourmt3_t5.encoder(seen, network.t5_encoder)
    elif network.encoder == "conformer":
        yield from yourmt3_conformer.conformer(seen, network.conformer)
    else:
        yield from yourmt3_perceiver.encoder(seen, network.perceiver)
    yield from yourmt3_ends.pre_decoder(seen, network)
    before = "encoder" if network.pre_decoder == "none" else "pre_decoder_0"
    if seen.has("decoder", before):
        yield Check("decoder", seen.input("decoder", 1), lambda: seen.output(before))
    yield from yourmt3_t5.decoder(seen, network, np.asarray(inputs["decoder_input_tokens"]))


def error_of(value: np.ndarray, truth: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; masks must stand at the same positions."""
    if value.shape != truth.shape:
        return float("inf")
    if not value.size:
        return 0.0
    a, b = value.astype(np.float64), truth.astype(np.float64)
    masked = a <= MASK, b <= MASK
    if (masked[0] != masked[1]).any():
        return float("inf")
    a, b = (np.where(masked[0], 0.0, array) for array in (a, b))
    difference = float(np.abs(a - b).max())
    size = float(np.abs(b).max())
    if not np.isfinite(difference):
        return float("inf")
    return difference / size if size else difference


def judge(check: Check, precision: str) -> Finding | None:
    """Return the finding of a check with its cause, None where the value is right."""
    before = error_of(check.actual, check.expected())
    if before <= RIGHT[precision]:
        return None
    trials = sorted(
        ((error_of(check.actual, formula()), cause, text) for cause, (text, formula) in check.alternatives.items()),
        key=lambda trial: trial[0],
    )
    trials = [trial for trial in trials if trial[0] < BETTER * before]
    if not trials or trials[0][0] > EXPLAINED[precision]:
        runner_up = (trials[0][1], trials[0][0]) if trials else ("", None)
        text = "differs from what it should make of its own inputs"
        return Finding(check.site, "unknown", text, before, None, runner_up, sites=[check.site])
    after, cause, text = trials[0]
    second = (trials[1][1], trials[1][0]) if len(trials) > 1 else ("", None)
    return Finding(check.site, cause, text, before, after, second, sites=[check.site])


def grouped(findings: list[Finding]) -> list[Finding]:
    """Join the findings with one cause, those without a cause last."""
    groups: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = finding.cause, finding.text
        if key in groups:
            first = groups[key]
            if finding.site not in first.sites:
                first.sites.append(finding.site)
            first.before = max(first.before, finding.before)
        else:
            groups[key] = finding
    return sorted(groups.values(), key=lambda finding: finding.cause in ("unknown", "does not run"))
