"""The epsilon of a norm, read from outputs in which it is smaller than rounding."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from parity.diagnosis.evidence import EVIDENCE, evidence, likeliest
from parity.diagnosis.finding import Finding, module_of
from parity.diagnosis.hypotheses import NORMS
from parity.diagnosis.hypothesis import Hypothesis
from parity.diagnosis.values import Epsilon, Scale, Values
from parity.sides.numpy_network import MT3, Behaviour, Step, run_step

# a matched filter names a deviation hidden in rounding noise at this many standard deviations ...
SIGNIFICANT = 5.0
# ... if the fault appears in its own strength, give or take this share, and is not below float32's own rounding
STRENGTH = 0.25
ROUNDING = 0.75 * 2.0**-24
# an epsilon read off float32 is worth this much: a mean square of 10 keeps epsilon to steps of 1e-6
READING = 0.12


# between the causes of a finding that cannot be told apart
OR = " or "


def _known() -> list[Hypothesis]:
    """The epsilons that other libraries have."""
    known = []
    for cause, text, options in NORMS:
        if options.keys() <= {"eps", "eps_outside"}:
            changed: dict[str, Any] = options
            known.append(Hypothesis(cause, text, Behaviour(**changed)))
    return known


def filtered(scale: Scale, exact: np.ndarray) -> Finding | None:
    """A fault of a norm that is smaller than rounding in every element and still shows in all of them together.

    A matched filter: a wrong epsilon changes each row by a factor that depends on the row's mean square. The factors of
    all rows are compared with those that an epsilon would give. A known one must appear in its own strength; otherwise
    the strength tells which epsilon it is.
    """
    step, values = scale.step, scale.values
    truth, have = scale.rows(exact), scale.rows(scale.candidate).astype(np.float64)
    # rows share the rounding of their mean square, so a row is one observation
    power = (truth * truth).sum(axis=-1)
    rows = power > 0
    truth, have, power = truth[rows], have[rows], power[rows]
    gains = ((have - truth) * truth).sum(axis=-1) / power

    def under(hypothesis: Hypothesis) -> np.ndarray:
        return scale.rows(values.compute(scale.path, low=False, changed={step.name: hypothesis}))[rows]

    def expected(hypothesis: Hypothesis) -> np.ndarray:
        return ((under(hypothesis) - truth) * truth).sum(axis=-1) / power

    def strength_of(shape: np.ndarray) -> float | None:
        """Strength of a shape in the gains; None if not significantly or below float32's own rounding."""
        size = (shape * shape).sum()
        if not size > 0:
            return None
        strength = (gains * shape).sum() / size
        scatter = gains - strength * shape
        deviation = np.sqrt((scatter * scatter * shape * shape).sum()) / size
        loud = abs(strength) * np.sqrt(size / len(shape)) > ROUNDING
        return float(strength) if loud and abs(strength) > SIGNIFICANT * deviation else None

    fitting: list[Hypothesis] = []
    for hypothesis in _known():
        strength = strength_of(expected(hypothesis))
        if strength is not None and abs(strength - 1.0) < STRENGTH:
            fitting.append(hypothesis)
    larger = 1e-5
    strength = strength_of(expected(Hypothesis("", "", Behaviour(eps=larger))))
    eps = MT3.eps + (strength or 0.0) * (larger - MT3.eps)
    known = [eps_known.behaviour.eps for eps_known in fitting if not eps_known.behaviour.eps_outside]
    if strength is not None and eps > 0 and all(abs(eps / eps_known - 1) > READING for eps_known in known):
        text = f"epsilon about {eps:.1e} in place of 1e-6"
        fitting.append(Hypothesis(f"eps={eps:.1e}", text, Behaviour(eps=eps)))
    if not fitting:
        return None
    explanations = [under(hypothesis) for hypothesis in fitting]
    fitting.insert(0, fitting.pop(likeliest(explanations, have, values.precision)))

    def error(other: np.ndarray) -> float:
        return float(np.abs(have - other).max() / np.abs(truth).max())

    best, second = fitting[0], fitting[1] if len(fitting) > 1 else None
    runner_up = (second.text, error(under(second))) if second else ("", None)
    site = module_of(step.name)
    finding = Finding(site, best.cause, best.text, error(truth), error(under(best)), runner_up, sites=[site])
    is_certain = evidence(truth, under(best), have, values.precision) > EVIDENCE
    values.epsilons.append(Epsilon(finding, best, scale, is_certain))
    return finding


def epsilons_implied(step: Step, candidate: np.ndarray, values: Values) -> Iterator[Hypothesis]:
    """The epsilon that a norm's output implies, if it implies one."""
    x = values.exact[step.reads[0]].astype(np.float64)
    if candidate.shape != x.shape:
        return
    mean = (x * x).mean(axis=-1)
    truth = run_step(step, {step.reads[0]: x}, values.arrays, values.config)
    with np.errstate(all="ignore"):
        gain = (candidate * truth).sum(axis=-1) / (truth * truth).sum(axis=-1)
        implied = (mean + MT3.eps) / gain**2 - mean
        # a row tells the more of epsilon the smaller it is
        eps = float((implied / mean**2).sum() / (1 / mean**2).sum())
    if np.isfinite(eps) and 0 < eps < 1:
        yield Hypothesis(f"eps={eps:.1e}", f"epsilon {eps:.1e} in place of 1e-6", Behaviour(eps=eps))


def only_epsilon(hypothesis: Hypothesis) -> bool:
    behaviour = hypothesis.behaviour
    return behaviour != MT3 and dataclasses.replace(behaviour, eps=MT3.eps, eps_outside=False) == MT3


class Reading(NamedTuple):
    """The epsilon of several norms.

    Attributes:
        hypothesis: which it is.
        epsilons: the findings of which it is that.
    """

    hypothesis: Hypothesis
    epsilons: list[Epsilon]


def agree(epsilons: list[Epsilon], precision: str) -> list[Reading]:
    """Give norms whose readings of epsilon differ by rounding alone the same reading, that of most of them."""
    agreed = []
    while epsilons:
        readings = {epsilon.hypothesis.cause: epsilon.hypothesis for epsilon in epsilons}
        support = []
        for hypothesis in readings.values():
            against = [_against(hypothesis, epsilon, epsilon.hypothesis, precision) for epsilon in epsilons]
            agreeing = [number for number, ratio in enumerate(against) if ratio <= EVIDENCE]
            support.append((len(agreeing), -sum(against[number] for number in agreeing), hypothesis, agreeing))
        _, _, hypothesis, agreeing = max(support, key=lambda reading: reading[:2])
        for number in agreeing:
            finding, scale = epsilons[number].finding, epsilons[number].scale
            if finding.cause != hypothesis.cause:
                rows, output = epsilons[number].rows(hypothesis), scale.rows(scale.candidate)
                finding.cause, finding.text = hypothesis.cause, hypothesis.text
                finding.after = float(np.abs(output - rows).max() / (np.abs(rows).max() or 1.0))
        agreed.append(Reading(hypothesis, [epsilons[number] for number in agreeing]))
        epsilons = [epsilon for number, epsilon in enumerate(epsilons) if number not in agreeing]
    return agreed


def _against(hypothesis: Hypothesis, epsilon: Epsilon, other: Hypothesis, precision: str) -> float:
    """Evidence of a norm's output for another hypothesis."""
    if hypothesis.cause == other.cause:
        return 0.0
    output = epsilon.scale.rows(epsilon.scale.candidate)
    return evidence(epsilon.rows(hypothesis), epsilon.rows(other), output, precision)


def name_rivals(readings: list[Reading], precision: str) -> None:
    """Say of every reading which other known epsilons rounding does not rule out, in all of its norms together."""
    for hypothesis, epsilons in readings:
        rivals = [
            rival
            for rival in _known()
            if rival.cause != hypothesis.cause
            and sum(_against(rival, epsilon, hypothesis, precision) for epsilon in epsilons) <= EVIDENCE
        ]
        for epsilon in epsilons if rivals else []:
            finding = epsilon.finding
            finding.cause = OR.join([finding.cause, *(rival.cause for rival in rivals)])
            finding.text = ", or ".join([finding.text, *(rival.text for rival in rivals)]) + ": rounding hides which"


def unsupported(epsilons: list[Epsilon]) -> list[Finding]:
    """Return the findings that may be rounding: of one norm, uncertain there, and no certain norm has the same cause.

    Rounding that all rows share, such as that of an approximate root, looks like a small change of epsilon.
    """
    certain = {epsilon.finding.cause for epsilon in epsilons if epsilon.is_certain}
    return [epsilon.finding for epsilon in epsilons if not epsilon.is_certain and epsilon.finding.cause not in certain]
