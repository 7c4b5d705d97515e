"""The positions that a table has in place of 0, 1, 2, …, read from its rows."""

import numpy as np

from mt3_common.config import NetworkConfig

# Largest difference of a row from the sinusoids of its position: float32 angles of late positions are rounded.
ROW = 2e-4


def recovered_positions(table: np.ndarray, config: NetworkConfig) -> tuple[str, str, float] | None:
    """Return (cause, text, error left) of a table whose rows are sinusoids of other positions; None if they are not.

    Args:
        table: (length, emb_dim), a candidate's.
        config: gives the table's formula.
    """
    length, width = table.shape
    half = width // 2
    if length < 2 or not np.isfinite(table).all():
        return None
    divisor = half if config.position_table == "port" else half - 1
    frequencies = np.exp(-np.log(10000.0) / divisor * np.arange(half))
    numbers = np.arange(-4, 4 * length + 8) / 2
    angles = numbers[:, np.newaxis] * frequencies
    grid = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = table.astype(np.float64)
    distances = (grid**2).sum(-1) - 2 * table @ grid.T
    nearest = distances.argmin(axis=-1)
    error = float(np.abs(grid[nearest] - table).max())
    if error > ROW:
        return None
    words = _describe(numbers[nearest])
    return words and (*words, error)


def _describe(positions: np.ndarray) -> tuple[str, str] | None:
    count = np.arange(len(positions))
    shift = positions - count
    wrong = np.flatnonzero(shift)
    if not len(wrong):
        return None
    first = int(wrong[0])
    if np.allclose(positions, positions[1] * count):
        return f"positions times {positions[1]:g}", f"positions are multiplied by {positions[1]:g}"
    if np.array_equal(positions, np.minimum(count, positions.max())):
        return f"positions end at {positions.max():g}", f"positions end at {positions.max():g}: later ones repeat it"
    if np.array_equal(positions, count % first):
        return f"positions modulo {first}", f"positions begin again at 0 every {first}"
    if len(set(shift[first:])) == 1:
        size = f"{abs(shift[first]):g} too {'large' if shift[first] > 0 else 'small'}"
        return f"positions from {first} on", f"from position {first} on, positions are {size}"
    return "other positions", f"from position {first} on, rows are of other positions ({positions[first]:g}, …)"
