"""Hypotheses about arithmetic in a shorter type than the precision of the pass: products, softmax, norms, tables."""

import functools
from collections.abc import Iterator, Mapping

import numpy as np

from parity.diagnosis.fits import fit_rounded
from parity.diagnosis.hypothesis import Hypothesis
from parity.sides.numpy_network import Behaviour, Step

# Precision of a pass -> types that a part of it may have been computed in by mistake.
SHORTER = {
    "float64": ("bfloat16", "float16", "float32"),
    "float32": ("bfloat16", "float16"),
    "tf32": ("bfloat16", "float16"),
    "bfloat16": (),
}
# Share of the error that a hypothesis may leave where rounding near the middle of two short numbers goes either way.
LEFT = 0.2
# The same where the output's own bits show that it is stored in the type.
LEFT_STORED = 0.9


def short_hypotheses(step: Step, arrays: Mapping[str, np.ndarray], precision: str) -> Iterator[Hypothesis]:
    """Yield what a step does if some of it runs in a shorter type than the pass.

    Args:
        step: of parity.sides.numpy_network.steps.
        arrays: the weights that it should use.
        precision: of the pass.
    """
    for low in SHORTER[precision]:
        if step.kind == "positions":
            yield Hypothesis(f"{low} table", f"the table is rounded to {low}", Behaviour(short_table=low))
        elif step.kind.endswith("weights"):
            yield from _attention(low)
        elif step.kind == "context":
            text = f"the attention's weights and values are rounded to {low} before their product"
            yield Hypothesis(f"{low} inputs", text, Behaviour(short_inputs=low))
        elif step.kind == "norm":
            scale = arrays[step.array].astype(np.float64)
            least = "float64 in this pass" if precision == "float64" else "at least float32"
            fit = functools.partial(fit_rounded, low, scale)
            yield Hypothesis(f"{low} statistics", f"computed in {low}; MT3 takes {least}", fit=fit)
        elif step.kind in ("dense", "head"):
            yield _inputs(low)
        if step.kind in ("norm", "dense", "head", "gate", "embed", "same"):
            yield Hypothesis(f"{low} output", f"rounded to {low}", fit=functools.partial(fit_rounded, low, None))
    if precision in ("float64", "float32") and step.kind in ("dense", "head"):
        yield _inputs("tf32")


def _inputs(low: str) -> Hypothesis:
    cause, kind = f"{low} inputs", low
    if low in ("float16", "tf32"):
        # Both keep 10 bits; only very small and very large numbers tell them apart.
        cause, kind = "10-bit inputs", "10 bits (float16 or TF32)"
    return Hypothesis(cause, f"what is multiplied is rounded to {kind} first", Behaviour(short_inputs=low))


def _attention(low: str) -> Iterator[Hypothesis]:
    stored = {"stored": low, "left": LEFT_STORED if low == "float32" else LEFT}
    softmax, products = f"the softmax runs in {low}", f"the products of query and key run in {low}"
    yield Hypothesis(f"{low} softmax", softmax, Behaviour(short_softmax=low), **stored)
    both = Behaviour(short_softmax=low, short_products=low)
    yield Hypothesis(f"{low} attention", f"{products}, and the softmax too", both, **stored)
    text = f"query and key are rounded to {low} before their product"
    yield Hypothesis(f"{low} inputs", text, Behaviour(short_inputs=low))
    yield Hypothesis(f"{low} products", products, Behaviour(short_products=low), left=LEFT)
