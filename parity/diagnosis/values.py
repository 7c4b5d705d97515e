"""The candidate's taps, steps computed from them, and the budget of one tap."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from parity.compare.budget import CAP, judge, real_rows
from parity.diagnosis.finding import Finding
from parity.diagnosis.hypothesis import Hypothesis
from parity.sides.numpy_network import FRAMES, INPUTS, MT3, TARGETS, Behaviour, Step, run_step, steps
from parity.trace.precision import EPSILON

# an alternative that is within this share of a tap's size, but for that share of its values, has its noise measured
PROMISING, FEW = 1e-2, 0.3


class Values:
    """The candidate's taps, and the steps between them that are no taps, computed as MT3 does, in two precisions."""

    def __init__(self, inputs, arrays, config, precision):
        self.arrays, self.config, self.precision = arrays, config, precision
        self.exact = {name: np.asarray(inputs[name]) for name in INPUTS}
        self.low = dict(self.exact)
        self.hidden: set[str] = set()
        self.epsilons: list[Epsilon] = []
        self.sequence = list(steps(config))
        self.by_name = {step.name: step for step in self.sequence}

    def rewire(self, layer: str, sequence: list[Step]) -> None:
        """Replace the steps of a layer by others: those of a layer that is arranged otherwise."""
        inside = [number for number, step in enumerate(self.sequence) if step.name == layer or _inside(step, layer)]
        self.sequence[inside[0] : inside[-1] + 1] = sequence
        self.by_name = {step.name: step for step in self.sequence}

    def segment(self, step: Step) -> list[Step]:
        """The unobserved steps that lead up to a step, in order, and the step itself."""
        wanted, stack = {step.name}, [step]
        while stack:
            for name in stack.pop().reads:
                if name in self.hidden and name not in wanted:
                    wanted.add(name)
                    stack.append(self.by_name[name])
        return [other for other in self.sequence if other.name in wanted]

    def compute(self, path: list[Step], low: bool, changed: Mapping[str, Hypothesis] = {}) -> np.ndarray:
        """The last step's output along a path of steps, with hypotheses in place of some of them."""
        base = self.low if low else self.exact
        dtype = "float32" if low else "float64"
        outputs: dict[str, np.ndarray] = {}
        first = next((i for i, step in enumerate(path) if step.name in changed), 0) if changed else len(path) - 1
        affected: set[str] = set()
        for position, step in enumerate(path):
            last = position == len(path) - 1
            if not last and (position < first or not (step.name in changed or affected & set(step.reads))):
                continue
            affected.add(step.name)
            hypothesis = changed.get(step.name)
            behaviour = hypothesis.behaviour if hypothesis else MT3
            arrays = {**self.arrays, **hypothesis.arrays} if hypothesis and hypothesis.arrays else self.arrays
            values = {}
            for name in step.reads:
                source = hypothesis.reads.get(name, name) if hypothesis else name
                if source == ".frames_mask":
                    continue
                values[name] = outputs[source] if source in outputs else base[source]
            values |= hypothesis.inputs if hypothesis else {}
            if hypothesis and ".frames_mask" in hypothesis.reads.values():
                seen = np.any(self.exact[FRAMES] != 0, axis=-1)
                kind = Step(step.name, "encoder_weights", (*step.reads[:2], FRAMES))
                values[FRAMES] = seen[..., np.newaxis].astype(np.float64)
                outputs[step.name] = run_step(kind, values, arrays, self.config, Behaviour(encoder_mask="zeros"), dtype)
                continue
            outputs[step.name] = run_step(step, values, arrays, self.config, behaviour, dtype)
        return outputs[path[-1].name]


def _inside(step: Step, layer: str) -> bool:
    return step.name.startswith(f"{layer}/")


class Scale(NamedTuple):
    """The judge of one candidate tap against alternatives."""

    step: Step
    path: list[Step]
    candidate: np.ndarray
    values: Values

    def rows(self, array: np.ndarray) -> np.ndarray:
        # The last step, which is named '', is the decoder's logits.
        return real_rows(self.step.name or "decoder", array, self.values.exact[TARGETS])

    def seeing(self, array: np.ndarray) -> np.ndarray:
        """Attention weights with the rows of padded queries, which see nothing, set to zero; other taps as they are."""
        if array.ndim != 4 or not self.step.kind.startswith(("self", "cross")):
            return array
        return array * (self.values.exact[TARGETS] > 0)[:, np.newaxis, :, np.newaxis]

    def ratio(self, truth: np.ndarray, low: Callable[[], np.ndarray]) -> tuple[float, float]:
        """(multiple of the budget, largest error relative to the largest value); the noise only where it matters."""
        return self.judged(truth, low)[:2]

    def judged(self, truth: np.ndarray, low: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
        """The same as ratio, and the rows that the candidate's were judged against."""
        if truth.shape != self.candidate.shape:
            return np.inf, np.inf, truth
        want, have = self.rows(truth), self.rows(self.candidate)
        precision = self.values.precision
        bare = judge(want, have, np.zeros_like(want), precision)
        off = np.abs(want - have) > PROMISING * (np.abs(want).max() or 1.0)
        if bare.ratio <= 1.0 or off.mean() > FEW:
            return bare.ratio, bare.relative, want
        rounded = self.rows(low()).astype(np.float64)
        # where float32 keeps nothing of the value (rows that see no key), its own value is the truth
        lost = np.abs(rounded - want) > CAP["float32"] * np.abs(want).max()
        if precision != "float64":
            want = np.where(lost, rounded, want)
        noise = np.where(lost, 0.0, rounded - want) * (EPSILON[precision] / EPSILON["float32"])
        measure = judge(want, have, noise, precision)
        return measure.ratio, measure.relative, want


class Epsilon(NamedTuple):
    """A finding that a norm has another epsilon, and what it was read from.

    Attributes:
        is_certain: whether rounding alone cannot look like it.
    """

    finding: Finding
    hypothesis: Hypothesis
    scale: Scale
    is_certain: bool = True

    def rows(self, hypothesis: Hypothesis) -> np.ndarray:
        """The norm's output under a hypothesis."""
        changed = {self.scale.step.name: hypothesis}
        return self.scale.rows(self.scale.values.compute(self.scale.path, low=False, changed=changed))
