"""Hypotheses with numbers of their own: each fits a right output to the candidate's, or says that it cannot."""

import numpy as np


def fit_distance_bias(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The weights with the bias per head and distance that fits best, or None where there is too little to tell.

    A row's logits are known up to a constant (softmax), so log(candidate / truth) = bias[head, distance] + a constant
    per row; least squares by the normal equations.
    """
    if truth.ndim != 4 or candidate.shape != truth.shape:
        return None
    batch, heads, queries, keys = truth.shape
    distances = queries + keys - 1
    distance = np.broadcast_to(
        np.arange(keys) - np.arange(queries)[:, np.newaxis] + queries - 1, (batch, queries, keys)
    )
    row = np.broadcast_to(np.arange(batch * queries).reshape(batch, queries, 1) + distances, (batch, queries, keys))
    result = np.zeros_like(truth)
    for head in range(heads):
        # below 1e-30 float32 has few digits left
        seen = (truth[:, head] > 1e-30) & (candidate[:, head] > 1e-30)
        if seen.sum() < 2 * distances:
            return None
        i, j = distance[seen], row[seen]
        value = np.log(candidate[:, head][seen] / truth[:, head][seen])
        size = distances + batch * queries
        # the digits of a weight are lost in proportion to how small it is
        trust = np.minimum(truth[:, head][seen], candidate[:, head][seen]) + 1e-6
        normal = np.zeros((size, size))
        for a in (i, j):
            for b in (i, j):
                np.add.at(normal, (a, b), trust)
        right = np.bincount(i, trust * value, size) + np.bincount(j, trust * value, size)
        solution = np.linalg.lstsq(normal, right, rcond=1e-14)[0]
        weights = truth[:, head] * np.exp(solution[:distances])[distance]
        result[:, head] = weights / np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
    return result


def fit_dropout(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth with the candidate's zeros, the rest scaled up alike; None unless it looks dropped out."""
    if candidate.shape != truth.shape:
        return None
    dropped = (candidate == 0) & (truth != 0)
    share = dropped.mean()
    # a row or column of zeros is something else
    whole = any(dropped.all(axis=axis).any() for axis in range(1, dropped.ndim))
    if not 0.01 < share < 0.9 or (whole and min(dropped.shape[1:]) > 4):
        return None
    passed = ~dropped & (truth != 0)
    factor = float(np.median(candidate[passed] / truth[passed])) if passed.any() else 1.0
    return np.where(dropped, 0.0, truth * factor)


# so many numbers may all happen to need a bit less than their type has
FEW = 64


def fit_rounded(low: str, scale: np.ndarray | None, truth: np.ndarray, candidate: np.ndarray):
    """The candidate, if all its values (over scale) are numbers of a low precision and near enough; else None."""
    import ml_dtypes

    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}[low]
    if candidate.shape != truth.shape:
        return None
    bare = candidate if scale is None else candidate / scale
    rounded = bare.astype(kind).astype(np.float64)
    epsilon = float(ml_dtypes.finfo(kind).eps)
    size = np.abs(truth).max() or 1.0
    # A float32 pass has rounded the quotient once more; in float64, float32 numbers are exact to more digits.
    exact = 1e-13 if low == "float32" else 1e-6
    if np.abs(bare - rounded).max() > exact * (np.abs(bare).max() or 1.0) or np.array_equal(candidate, truth):
        return None
    digits = np.ldexp(np.frexp(rounded)[0], int(ml_dtypes.finfo(kind).nmant))
    if rounded.size > FEW and np.array_equal(digits, np.round(digits)):
        # one bit fewer would do: it is rounded to something coarser
        return None
    return candidate if np.abs(candidate - truth).max() <= 4 * epsilon * size else None


def fit_factor(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    if candidate.shape != truth.shape:
        return None
    power = float((truth * truth).sum())
    return truth * (float((truth * candidate).sum()) / power) if power else None


def fit_bias(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth with a constant vector added; None with fewer than 4 rows, which any vector fits."""
    if candidate.shape != truth.shape or truth.size // truth.shape[-1] < 4:
        return None
    axes = tuple(range(truth.ndim - 1))
    return truth + np.median(candidate - truth, axis=axes, keepdims=True)


def fit_column_order(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth with its columns in the candidate's order; None if they are not the same columns."""
    if candidate.shape != truth.shape:
        return None
    flat, other = truth.reshape(-1, truth.shape[-1]), candidate.reshape(-1, truth.shape[-1])
    if len(flat) < 4:
        return None
    direction = np.random.default_rng(len(flat)).standard_normal(len(flat))
    own, projected = direction @ flat, direction @ other
    order = np.empty(len(own), int)
    order[np.argsort(projected, kind="stable")] = np.argsort(own, kind="stable")
    return flat[:, order].reshape(truth.shape)


def fit_columns(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth with up to a quarter of its columns taken from the candidate; None if more differ."""
    if candidate.shape != truth.shape:
        return None
    flat, other = truth.reshape(-1, truth.shape[-1]), candidate.reshape(-1, truth.shape[-1])
    off = np.abs(flat - other).max(axis=0) > 1e-5 * (np.abs(flat).max() or 1.0)
    if not 0 < off.sum() <= off.size // 4:
        return None
    return np.where(off, other, flat).reshape(truth.shape)


def fit_other_scale(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth times one vector; None with fewer than 4 rows."""
    if candidate.shape != truth.shape or truth.size // truth.shape[-1] < 4:
        return None
    axes = tuple(range(truth.ndim - 1))
    power = (truth * truth).sum(axis=axes)
    with np.errstate(divide="ignore", invalid="ignore"):
        return truth * np.where(power > 0, (truth * candidate).sum(axis=axes) / power, 0.0)


def fit_times(factor: float, truth: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    return truth * factor
