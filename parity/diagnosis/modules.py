"""Causes by module: what a model does in place of what MT3's does, read from its taps alone.

Every tap is computed again in float64 from what the candidate itself fed that module. Where the candidate's output is
over the budget of parity/compare/traces.py, the fault is in that module and not inherited; so all faults are seen in
one pass, not only the first. Then every known misbehaviour is put in the module's place: the one whose output is the
candidate's to within rounding is the cause. Undoing it in the candidate restores parity by the same amount.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from mt3_common.config import NetworkConfig
from parity.compare.budget import AMPLIFIED
from parity.diagnosis import fibres
from parity.diagnosis.arrangement import rearranged
from parity.diagnosis.epsilon import agree, epsilons_implied, filtered, name_rivals, only_epsilon, unsupported
from parity.diagnosis.evidence import EXPLAINED, FITTED, Trial, ranked
from parity.diagnosis.finding import Finding, module_of
from parity.diagnosis.hypotheses import hypotheses
from parity.diagnosis.hypothesis import Hypothesis
from parity.diagnosis.implied import implied
from parity.diagnosis.positions import recovered_positions
from parity.diagnosis.values import Epsilon, Scale, Values
from parity.sides.numpy_network import MT3, Step, shorten, steps

ATTENTIONS = ("attention", "self_attention", "encoder_decoder_attention")
INHERITED = "not finite before"
MASKED = "NaN or infinity at masked positions: masked with -inf, or in a type too short for -1e10"
# hypotheses about a single unobserved step are tried where at most this many steps lie between two taps
FEW_STEPS = 24


def examine(
    outputs: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    config: NetworkConfig,
    precision: str,
) -> list[Finding]:
    """Find every module whose output is not what MT3's gives on the candidate's own inputs, with the cause where known.

    Args:
        outputs: tap -> what the candidate put out, '' its logits; taps may be missing.
        inputs: frames, decoder_input_tokens, decoder_target_tokens, as the candidate was given them.
        arrays: the weights that the candidate should use, under MT3's names.
        config: the sizes and behaviour that it should have.
        precision: 'float64', 'float32', 'tf32' or 'bfloat16': the candidate's arithmetic.

    Returns:
        Findings in the order of execution; equal causes in modules of one kind are one finding with several sites.

    Raises:
        ValueError: no tap has a name that MT3's modules have.
    """
    known = [step for step in steps(config) if step.name and step.name in outputs]
    if not known:
        raise ValueError(
            "none of the candidate's taps is named after a module of MT3 "
            f"(its taps: {', '.join(list(outputs)[:3]) or 'none'}; MT3's: encoder/layers_0/attention/query, …)"
        )
    values = Values(inputs, arrays, config, precision)
    findings: list[Finding] = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        number, arranged = 0, set()
        while number < len(values.sequence):
            step = values.sequence[number]
            layer = "/".join(step.name.split("/")[:2])
            if "/layers_" in layer and layer not in arranged:
                arranged.add(layer)
                finding = rearranged(layer, dict(outputs), values)
                if finding is not None:
                    findings.append(finding)
                    continue
            number += 1
            path = values.segment(step)
            exact = values.compute(path, low=False)
            if step.name not in outputs:
                values.hidden.add(step.name)
                values.exact[step.name] = exact
                values.low[step.name] = values.compute(path, low=True)
                continue
            candidate = np.asarray(outputs[step.name])
            if _broadcastable(candidate, exact):
                candidate = np.broadcast_to(candidate, exact.shape)
            finding = _judge_step(step, path, candidate, exact, values)
            if finding is not None and not (findings and finding.cause == INHERITED):
                findings.append(finding)
            values.exact[step.name] = values.low[step.name] = candidate
        readings = agree(values.epsilons, precision)
        rounding = {id(finding) for finding in unsupported(values.epsilons)}
        name_rivals(readings, precision)
    return _grouped([finding for finding in findings if id(finding) not in rounding])


def _broadcastable(candidate: np.ndarray, exact: np.ndarray) -> bool:
    return candidate.ndim == exact.ndim and candidate.shape[0] == 1 and candidate.shape[1:] == exact.shape[1:]


def alternatives_at(
    step: Step,
    output: np.ndarray,
    inputs: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    config: NetworkConfig,
    cause: str,
) -> tuple[str, float | None]:
    """The best explanation of a float64 output other than a given cause, and its error; ('', None) if none helps.

    Args:
        step: whose output it is.
        output: to explain.
        inputs: of the network.
        values: every step's right output: what the step was fed.
        arrays: the right weights.
        config: sizes.
        cause: to leave out.
    """
    known = Values(inputs, arrays, config, "float64")
    known.exact.update(values)
    scale = Scale(step, [step], output, known)
    truth = known.compute([step], low=False)
    _, before = scale.ratio(truth, lambda: truth)
    best: tuple[str, float | None] = ("", None)
    for hypothesis in hypotheses(step, arrays, config, output.shape):
        if hypothesis.cause == cause or hypothesis.fit is not None:
            continue
        error = scale.ratio(known.compute([step], low=False, changed={step.name: hypothesis}), lambda: truth)[1]
        if error < min(before, np.inf if best[1] is None else best[1]):
            best = (hypothesis.text, error)
    # what removes less than half of the error explains nothing
    return best if best[1] is not None and best[1] < before / 2 else ("", None)


def _judge_step(step, path, candidate, exact, values) -> Finding | None:
    scale = Scale(step, path, candidate, values)
    site = module_of(step.name)
    ratio, before = scale.ratio(exact, lambda: values.compute(path, low=True))
    # Along a path through many steps one side's rounding is amplified more than the other's.
    if ratio <= (1.0 if len(path) <= FEW_STEPS else AMPLIFIED):
        if not np.isfinite(candidate).all() and np.isfinite(exact).all():
            return Finding(site, "not finite where masked", MASKED, np.inf, sites=[site])
        return filtered(scale, exact) if step.kind == "norm" and values.precision == "float32" else None
    if not np.isfinite(scale.rows(exact)).all():
        # What went in was not finite: the fault lies before, or in the inputs.
        return Finding(site, INHERITED, "was given NaN or infinity", np.inf, sites=[site])
    if candidate.shape == exact.shape and not np.isfinite(scale.rows(candidate)).all():
        return Finding(site, "not finite", "holds NaN or infinity", np.inf, sites=[site])
    tried = []
    for target, hypothesis in _alternatives(step, path, candidate, exact, values):
        try:
            if hypothesis.left:
                trial = _shortened(scale, target, hypothesis, exact)
                if trial is not None:
                    tried.append(trial)
                continue
            if hypothesis.fit is not None:
                if step.kind.endswith("weights") and any(trial.explanation is not None for trial in tried):
                    # A fit, which takes seconds here, comes after every explanation without fitted numbers.
                    continue
                fitted = hypothesis.fit(scale.seeing(exact), scale.seeing(candidate.astype(np.float64)))
                if fitted is None:
                    continue
                ratio_left, error, want = scale.judged(
                    fitted, lambda f=fitted: f + (values.compute(path, low=True) - exact)
                )
                if error > before / 2:
                    # what removes less than half of the error explains nothing, however wide the budget
                    continue
                ratio_left /= FITTED[values.precision]
            else:
                changed = dict.fromkeys(target, hypothesis)
                truth = values.compute(path, low=False, changed=changed)
                ratio_left, error, want = scale.judged(
                    truth, lambda c=changed: values.compute(path, low=True, changed=c)
                )
        except (ValueError, KeyError):
            # the hypothesis does not fit the shapes here
            continue
        explanation = want if ratio_left <= EXPLAINED and hypothesis.fit is None else None
        tried.append(Trial(ratio_left, error, target, hypothesis, explanation))
    if not tried:
        return Finding(site, "unknown", "differs", before, sites=[site])
    order = ranked(tried, scale.rows(candidate), values.precision)
    best = order[0]
    if best.ratio > EXPLAINED:
        recovered = _recovered(scale)
        if recovered is not None:
            cause, text, error = recovered
            return Finding(site, cause, text, before, error, sites=[site])
        text = f"differs (shape {candidate.shape}, not {exact.shape})" if candidate.shape != exact.shape else "differs"
        return Finding(site, "unknown", text, before, None, (best.hypothesis.text, best.error), sites=[site])
    hypothesis = best.hypothesis
    site = module_of(best.target[-1])
    second = next((trial for trial in order[1:] if trial.error < before), None)
    runner_up = (second.hypothesis.text, second.error) if second else ("", None)
    # a fault of an unobserved step is not reported again by the steps that read it
    for name in best.target:
        if name in values.hidden:
            upto = values.segment(values.by_name[name])
            changed = {name: hypothesis}
            values.exact[name] = values.compute(upto, low=False, changed=changed)
            values.low[name] = values.compute(upto, low=True, changed=changed)
    sites = [module_of(n) for n in best.target]
    finding = Finding(site, hypothesis.cause, hypothesis.text, before, best.error, runner_up, sites=sites)
    if best.target == [step.name] and only_epsilon(hypothesis):
        values.epsilons.append(Epsilon(finding, hypothesis, scale))
    return finding


def _shortened(scale: Scale, target: list[str], hypothesis: Hypothesis, exact: np.ndarray) -> Trial | None:
    """Try a hypothesis of a shorter type, whose roundings near the middle of two short numbers go either way."""
    have = scale.rows(scale.candidate).astype(np.float64)
    if hypothesis.stored and not np.array_equal(shorten(have, hypothesis.stored), have):
        return None
    changed = dict.fromkeys(target, hypothesis)
    want = scale.rows(scale.values.compute(scale.path, low=False, changed=changed))
    before = float(np.abs(scale.rows(exact) - have).mean())
    after = np.abs(want - have)
    if want.shape != have.shape or not np.isfinite(after).all() or before == 0.0:
        return None
    ratio = float(after.mean()) / before / hypothesis.left
    return Trial(ratio, float(after.max() / (np.abs(have).max() or 1.0)), target, hypothesis, None)


def _alternatives(step, path, candidate, exact, values) -> Iterator[tuple[list[str], Hypothesis]]:
    """(steps to change, hypothesis): the observed step first, then the unobserved ones before it, nearest first."""
    for other in reversed(path[:-1]):
        # before its two sums are tried together, which comes to the same
        if other.kind == "residual":
            yield from (([other.name], h) for h in hypotheses(other, values.arrays, values.config, ()) if h.reads)
    kinds: dict[str, list[Step]] = {}
    for other in reversed(path):
        kinds.setdefault(other.kind, []).append(other)
    for group in kinds.values():
        if len(group) > 1:
            for hypothesis in hypotheses(group[0], values.arrays, values.config, ()):
                if hypothesis.behaviour != MT3:
                    yield [other.name for other in reversed(group)], hypothesis
    if len(path) > FEW_STEPS:
        return
    for other in reversed(path):
        shape = candidate.shape if other is step else ()
        for hypothesis in hypotheses(other, values.arrays, values.config, shape, values.precision):
            if other is step or hypothesis.fit is None:
                yield [other.name], hypothesis
    if np.isfinite(candidate).all():
        yield from (([step.name], hypothesis) for hypothesis in implied(step, candidate, exact, values))
    if step.kind == "norm":
        yield from (([step.name], hypothesis) for hypothesis in epsilons_implied(step, candidate, values))


def _recovered(scale: Scale) -> tuple[str, str, float] | None:
    """Name the kernel that a dense step must have used, matched by content, or the positions of a table.

    Returns:
        (cause, text, error left); None if it cannot be told: a kernel has as many unknowns per output as inputs.
    """
    step, values = scale.step, scale.values
    if step.kind == "positions" and scale.candidate.ndim == 3:
        return recovered_positions(scale.candidate[0], values.config)
    if step.kind not in ("dense", "head") or len(scale.path) > 1:
        return None
    x = scale.rows(values.exact[step.reads[0]].astype(np.float64)).reshape(-1, values.arrays[step.array].shape[0])
    y = scale.rows(scale.candidate).astype(np.float64).reshape(len(x), -1)
    # with hardly more rows than inputs anything fits
    if len(x) < 1.5 * x.shape[1] or y.shape[1] != values.arrays[step.array].shape[1]:
        return None
    kernel, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    error = float(np.abs(x @ kernel - y).max() / np.abs(y).max())
    if rank < x.shape[1] or error > 1e-5:
        return None
    match = fibres.match({"kernel": kernel}, values.arrays).matches.get("kernel")
    if match is None:
        text = "holds weights that are not in the original"
        return text, text, error
    words = fibres.describe(match, values.arrays, values.config.head_dim)
    if match.owners == [step.array]:
        text = ", ".join(words) or "differs"
    else:
        text = ", ".join([f"holds {' and '.join(match.owners)}", *words])
    return text, text, error


def _grouped(findings: list[Finding]) -> list[Finding]:
    """Equal causes in modules of one kind as one finding."""
    groups: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        last = finding.site.rpartition("/")[2]
        kind = "norm" if "norm" in last else "layers" if last.startswith("layers_") else last
        kind = "attention" if last in ATTENTIONS else kind
        key = (finding.cause, kind)
        if finding.cause == "unknown" or key not in groups:
            groups[key if finding.cause != "unknown" else (finding.cause, finding.site)] = finding
            continue
        first = groups[key]
        first.sites += [site for site in finding.sites if site not in first.sites]
        first.before = max(first.before, finding.before)
        if first.after is not None and finding.after is not None:
            first.after = max(first.after, finding.after)
    return list(groups.values())
