"""Hypotheses whose numbers are read from the output first: a factor, a window, a cap, a clamp, normalised inputs."""

from collections.abc import Iterator

import numpy as np

from parity.diagnosis.hypothesis import Hypothesis
from parity.diagnosis.values import Values
from parity.sides.numpy_network import FRAMES, TARGETS, TOKENS, Behaviour, Step

# Weights below this have few digits left in float32.
SMALLEST = 1e-20
# Share of the mean error that normalising frames may leave: sums over thousands of values round in their own ways.
SUMS = 1e-4


def implied(step: Step, candidate: np.ndarray, exact: np.ndarray, values: Values) -> Iterator[Hypothesis]:
    """Yield hypotheses with the number that the candidate's output implies, each to be judged as any other.

    Args:
        step: an observed step.
        candidate, exact: its output, and MT3's on the same inputs, in float64.
        values: what it read.
    """
    if candidate.shape != exact.shape:
        return
    have = candidate.astype(np.float64)
    if step.kind.endswith("weights"):
        real = np.ones(exact.shape[0:1] + exact.shape[2:3], bool)
        if not step.kind.startswith("encoder"):
            # Rows of padded queries have lost their digits to -1e10.
            real = values.exact[TARGETS] > 0
        yield from _factors(have * real[:, np.newaxis, :, np.newaxis], exact)
        if step.kind == "self_weights":
            yield from _windows(have, exact, real)
    elif step.kind == "embed":
        yield from _clamps(step, have, values)
    elif step.name == "encoder/continuous_inputs_projection":
        yield from _normalised_frames(values.exact[FRAMES])
    if step.kind in ("dense", "head", "same", "gate"):
        yield from _caps(have, exact)


def _factors(have: np.ndarray, exact: np.ndarray) -> Iterator[Hypothesis]:
    """The factor t on the logits of an attention: its weights are then the t-th power, normalised."""
    both = (have > SMALLEST) & (exact > SMALLEST)
    trust = np.where(both, np.minimum(have, exact), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (np.where(both, np.log(np.where(both, values, 1.0)), 0.0) for values in (exact, have))
        total = trust.sum(axis=-1, keepdims=True)
        x, y = (values - np.where(total > 0, (trust * values).sum(-1, keepdims=True) / total, 0.0) for values in (x, y))
    power = float((trust * x * x).sum())
    factor = float((trust * x * y).sum()) / power if power > 0 else 1.0
    if np.isfinite(factor) and 0.01 < factor < 100 and factor != 1.0:
        text = f"the attention's logits are multiplied by {factor:.4g}"
        yield Hypothesis(f"attention scaled by {factor:.4g}", text, Behaviour(attention_scale=factor))


def _windows(have: np.ndarray, exact: np.ndarray, real: np.ndarray) -> Iterator[Hypothesis]:
    """The number of positions, itself included, that a position sees: weights further back are zero."""
    distance = np.arange(exact.shape[-2])[:, np.newaxis] - np.arange(exact.shape[-1])
    rows = real[:, np.newaxis, :, np.newaxis]
    lost = ((have == 0) & (exact > SMALLEST) & rows).any(axis=(0, 1))
    seen = ((have > 0) & rows).any(axis=(0, 1))
    if lost.any() and seen.any() and distance[lost].min() > distance[seen].max():
        window = int(distance[seen].max()) + 1
        text = f"a position sees {window} positions back, itself included (a window)"
        yield Hypothesis(f"window of {window}", text, Behaviour(window=window))


def _clamps(step: Step, have: np.ndarray, values: Values) -> Iterator[Hypothesis]:
    """The largest id of a smaller vocabulary, to which ids above it are clamped."""
    table, ids = values.arrays[step.array].astype(np.float64), np.asarray(values.exact[TOKENS])
    known = (ids >= 0) & (ids < len(table))
    wrong = known & (np.abs(have - table[np.where(known, ids, 0)]).max(axis=-1) > 1e-2 * np.abs(table).max())
    if not wrong.any():
        return
    row = have[wrong][0]
    largest = int(np.abs(table - row).max(axis=-1).argmin())
    if largest and ids[wrong].min() > largest:
        text = f"ids above {largest} are looked up as {largest} (a smaller vocabulary, clamped)"
        yield Hypothesis(f"ids clamped to {largest}", text, Behaviour(token_clamp=largest))


def _normalised_frames(frames: np.ndarray) -> Iterator[Hypothesis]:
    """The network normalises its frames itself; MT3 takes them as they are."""
    for cause, axes in (("all frames", (0, 1, 2)), ("each segment", (1, 2)), ("each mel bin", (1,))):
        mean = frames.astype(np.float64).mean(axis=axes, keepdims=True)
        for ddof in (1, 0):
            deviation = frames.astype(np.float64).std(axis=axes, keepdims=True, ddof=ddof)
            text = f"frames are normalised (mean 0, deviation 1 over {cause}); MT3 takes them as they are"
            changed = (frames - mean) / np.where(deviation > 0, deviation, 1.0)
            yield Hypothesis("frames normalised", text, inputs={FRAMES: changed}, left=SUMS)


def _caps(have: np.ndarray, exact: np.ndarray) -> Iterator[Hypothesis]:
    """The bound at which an output is clipped, or the cap c of c * tanh(x / c)."""
    bound = float(np.abs(have).max())
    beyond = np.abs(exact) > bound * (1 + 1e-6)
    if beyond.any() and (np.abs(have[beyond]) >= bound * (1 - 1e-6)).all():
        yield Hypothesis(f"clipped at {bound:.4g}", f"clipped at {bound:.4g}", Behaviour(clip=bound))
    # By series, c * tanh(x / c) = x - x ** 3 / (3 c ** 2) + ...; Newton's steps on 1 / c ** 2 refine it.
    loss = float(((exact - have) * exact**3).sum())
    power = float((exact**6).sum())
    inverse = 3 * loss / power if power > 0 else 0.0
    for _ in range(30):
        if not (np.isfinite(inverse) and inverse > 0):
            return
        error, slope = (_cap_error(have, exact, inverse * factor) for factor in (1.0, 1 + 1e-6))
        derivative = (slope - error) / (inverse * 1e-6)
        change = float((error * derivative).sum()) / (float((derivative * derivative).sum()) or 1.0)
        inverse -= float(np.clip(change, -inverse / 2, inverse))
    cap = inverse**-0.5
    if cap < 1e3 * float(np.abs(exact).max()):
        text = f"softly capped: {cap:.4g} tanh(x / {cap:.4g})"
        yield Hypothesis(f"soft cap of {cap:.4g}", text, Behaviour(soft_cap=cap))


def _cap_error(have: np.ndarray, exact: np.ndarray, inverse: float) -> np.ndarray:
    cap = inverse**-0.5
    return cap * np.tanh(exact / cap) - have
