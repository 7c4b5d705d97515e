"""Arrays of the original's shape that hold its numbers rounded, on a grid, exchanged, negated or times a factor."""

import numpy as np

# of a factor: what float32 rounds in a product, and how far from one it has to be to be one
LAST_PLACES, NOT_ONE = 2.0**-22, 1e-6
# of a multiple of a grid's step
WHOLE = 2e-3
# relative error of four bits
COARSEST = 0.3
Cause = tuple[str, str, bool]


def rounding_of(array: np.ndarray, own: np.ndarray) -> str:
    """Name the type or the grid that the original was rounded to; '' where the array is nothing of the kind.

    Args:
        array, own: of one shape, finite; `own` is the original.
    """
    import ml_dtypes

    with np.errstate(over="ignore", invalid="ignore"):
        wide, values = array.astype(np.float64), own.astype(np.float32)
        if own.dtype == np.float64 and np.array_equal(wide, values):
            return "float32"
        for low in (ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
            # of float64, on the way to it by float32 or without
            if any(np.array_equal(wide, exact.astype(low).astype(np.float64)) for exact in (values, own)):
                return np.dtype(low).name
    if np.array_equal(wide, to_tf32(values).astype(np.float64)):
        return "tf32 (10 bits)"
    if np.array_equal(wide, (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)):
        return "bfloat16 (cut off, not rounded)"
    return _grid(wide, own.astype(np.float64)) if own.ndim == 2 else ""


def to_tf32(values: np.ndarray) -> np.ndarray:
    """Round float32 to the 10 bits of TF32, halves away from zero."""
    return ((np.ascontiguousarray(values).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _grid(array: np.ndarray, own: np.ndarray) -> str:
    """'int8, a scale for each row' where all numbers of a line are multiples of one step, and near the original."""
    import ml_dtypes

    if np.linalg.norm(array - own) > COARSEST * np.linalg.norm(own):
        return ""
    for axis, scope in ((None, "the array"), (0, "each column"), (1, "each row")):
        largest = np.abs(array).max(axis=axis, keepdims=True)
        spread = array.max(axis=axis, keepdims=True) - array.min(axis=axis, keepdims=True)
        if not largest.all() or not spread.all():
            continue
        for bits, steps in ((8, (127, 128)), (4, (7, 8))):
            for count in steps:
                if _is_on(array, own, largest / count, 0.0):
                    return f"int{bits}, a scale for {scope}"
            step = spread / (2**bits - 1)
            if _is_on(array, own, step, array.min(axis=axis, keepdims=True)):
                return f"int{bits} with a zero point, a scale for {scope}"
        for low, top in ((ml_dtypes.float8_e4m3fn, 448.0), (ml_dtypes.float8_e5m2, 57344.0)):
            scaled = array * (top / largest)
            with np.errstate(over="ignore", invalid="ignore"):
                rounded = scaled.astype(low).astype(np.float64)
            near = np.abs(array - own) <= 0.13 * np.abs(own) + 2e-3 * largest
            if np.all(np.abs(rounded - scaled) <= 1e-6 * np.abs(scaled)) and near.all():
                return f"{np.dtype(low).name}, a scale for {scope}"
    return ""


def _is_on(array: np.ndarray, own: np.ndarray, step: np.ndarray, start: np.ndarray | float) -> bool:
    multiples, exact = (array - start) / step, (own - start) / step
    return bool(
        np.all(np.abs(multiples - np.round(multiples)) <= WHOLE)
        and np.all(np.abs(multiples - exact) <= 0.51 + WHOLE)
        and np.any(np.abs(exact - np.round(exact)) > 10 * WHOLE)
    )


def same_numbers(array: np.ndarray, own: np.ndarray, head_dim: int, heads_in_rows: bool) -> Cause | None:
    """(cause, text, whether it can be undone) of an array that holds the original's numbers otherwise.

    Args:
        array, own: of one shape, finite; `own` is the original.
        head_dim: width of a head where the array is of an attention, else 0.
        heads_in_rows: heads stand in rows (`out`), not in columns.
    """
    return (
        _times(array, own)
        or _times_rounded(array, own)
        or _by_head(array, own, head_dim, heads_in_rows)
        or _negated(array, own)
        or _moved(array, own)
    )


def _factor(array: np.ndarray, own: np.ndarray) -> float:
    power = float((own * own).sum())
    return float((array * own).sum()) / power if power else 0.0


def _is_times(array: np.ndarray, own: np.ndarray, factor: float) -> bool:
    return bool(np.all(np.abs(array - own * factor) <= LAST_PLACES * np.abs(own * factor)))


def _times(array: np.ndarray, own: np.ndarray) -> Cause | None:
    array, own = array.astype(np.float64), own.astype(np.float64)
    factor = _factor(array, own)
    if abs(factor - 1) <= NOT_ONE or not factor or not _is_times(array, own, factor):
        return None
    text = f"times {factor:.8g}" if abs(factor - 1) < 1e-2 else f"times {factor:.6g}"
    return text, text, True


def _times_rounded(array: np.ndarray, own: np.ndarray) -> Cause | None:
    """The cause of an array that was multiplied by one factor and rounded to a short type."""
    import ml_dtypes

    wide, exact = array.astype(np.float64), own.astype(np.float64)
    factor = _factor(wide, exact)
    if not 1e-30 < abs(factor) < 1e30:
        return None
    # the factor of rounded numbers is near; as the root of a whole number, or its inverse, it is one
    square = max(factor**2, factor**-2)
    root = float(np.copysign(round(square) ** (0.5 if abs(factor) > 1 else -0.5), factor)) if square < 1e9 else 0.0
    for low in (ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore", invalid="ignore"):
            is_short = np.array_equal(array.astype(np.float32).astype(low).astype(np.float64), wide)
        # half a unit of the last place
        unit = float(ml_dtypes.finfo(low).eps) / 2
        if not is_short or abs(factor - 1) <= unit:
            continue
        smallest = float(ml_dtypes.finfo(low).smallest_subnormal)
        for near, digits in ((root, 6), (factor, 3)):
            if np.all(np.abs(wide - exact * near) <= 1.01 * unit * np.abs(exact * near) + smallest) and near:
                text = f"times {near:.{digits}g}, rounded to {np.dtype(low).name}"
                return text, text, False
    return None


def _by_head(array: np.ndarray, own: np.ndarray, head_dim: int, heads_in_rows: bool) -> Cause | None:
    if not head_dim or own.ndim != 2:
        return None
    array, own = (x.astype(np.float64) if heads_in_rows else x.astype(np.float64).T for x in (array, own))
    words = []
    for head in range(len(own) // head_dim):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        factor = _factor(array[rows], own[rows])
        if np.array_equal(array[rows], own[rows]):
            continue
        if abs(factor - 1) <= NOT_ONE or not _is_times(array[rows], own[rows], factor):
            return None
        words.append(f"head {head} negated" if factor == -1 else f"head {head} times {factor:.6g}")
    return (", ".join(words), ", ".join(words), True) if words else None


def _negated(array: np.ndarray, own: np.ndarray) -> Cause | None:
    if own.ndim != 2:
        return None
    for axis, word in ((1, "row"), (0, "column")):
        negated = (array == -own).all(axis=axis) & np.any(own != 0, axis=axis)
        if negated.any() and (negated | (array == own).all(axis=axis)).all():
            lines = np.flatnonzero(negated)
            text = f"{len(lines)} {word}{'s' * (len(lines) > 1)} negated"
            return text, f"{text} ({_shown(lines)})", True
    return None


def _moved(array: np.ndarray, own: np.ndarray) -> Cause | None:
    """The cause of an array of which a few whole lines, or numbers of a vector, stand in another order."""
    for axis, word in ((0, "row"), (1, "column")) if own.ndim == 2 else ((0, "element"),):
        now, before = (np.ascontiguousarray(np.moveaxis(x.astype(np.float64), axis, 0)) for x in (array, own))
        now, before = now.reshape(len(now), -1), before.reshape(len(before), -1)
        lines = np.flatnonzero((now != before).any(axis=1))
        if not 2 <= len(lines) <= len(now) // 4:
            continue
        if sorted(map(bytes, now[lines])) != sorted(map(bytes, before[lines])):
            continue
        if len(lines) == 2:
            text = f"{word}s {lines[0]} and {lines[1]} exchanged"
            return text, text, True
        text = f"{len(lines)} {word}s permuted among themselves"
        return text, f"{text} ({_shown(lines)})", True
    return None


def _shown(lines: np.ndarray) -> str:
    return ", ".join(map(str, lines[:4])) + (", …" if len(lines) > 4 else "")
