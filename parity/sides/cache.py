"""A decoding cache under the names of the taps that it should equal."""

import numpy as np

# Tokens decoded into a cache before the compared ones, so that its ring buffer wraps around.
WARM_UP = 37


class Companied:
    """The rows of a batch that decodes rows to be compared and, beside them, a companion of another age.

    Attributes:
        num_rows: the companion's included.
        companion: its row: the first in float64, the last in other precisions.
        rows: those that are compared, in order.
        sources: of each row, the one of the given rows whose frames and tokens it has.

    Args:
        tokens: (b, l) decoder inputs of the rows to compare.
        precision: in which they are decoded.
    """

    def __init__(self, tokens: np.ndarray, precision: str):
        count, self._length = tokens.shape
        self._tokens = tokens
        self.num_rows = count + 1
        self.companion = 0 if precision == "float64" else count
        self.rows = [row for row in range(self.num_rows) if row != self.companion]
        self.sources = np.arange(self.num_rows)
        self.sources[self.rows], self.sources[self.companion] = np.arange(count), 0

    def ids(self, position: int, companion_position: int) -> np.ndarray:
        """Return the tokens of a step, (num_rows, 1): at a position of the compared rows and one of the companion."""
        ids = self._tokens[self.sources, position % self._length]
        ids[self.companion] = self._tokens[0, companion_position % self._length]
        return ids[:, np.newaxis]

    def begins_companion(self, position: int) -> bool:
        """Return whether the companion, WARM_UP tokens older, begins anew before the step of a position."""
        return (WARM_UP + position) % self._length == 0


def unrolled(
    self_keys: list[np.ndarray],
    self_values: list[np.ndarray],
    cross_keys: list[np.ndarray],
    cross_values: list[np.ndarray],
    slot: int,
    length: int,
) -> dict[str, np.ndarray]:
    """Return the content of a decoding cache under the names and in the shapes of the taps that it should equal.

    Args:
        self_keys, self_values: per layer (b, h, ring, d), `slot` being the slot after the last token's.
        cross_keys, cross_values: per layer (b, h, frames, d).
        length: tokens to take, in order.

    Returns:
        tap -> (b, length or frames, h * d).
    """

    def joined(array: np.ndarray) -> np.ndarray:
        array = np.swapaxes(array, 1, 2)
        return array.reshape(*array.shape[:2], -1)

    slots = (slot - length + np.arange(length)) % self_keys[0].shape[2]
    taps = {}
    for layer, arrays in enumerate(zip(self_keys, self_values, cross_keys, cross_values, strict=True)):
        for name, array in zip(("self_attention/key", "self_attention/value"), arrays[:2], strict=True):
            taps[f"decoder/layers_{layer}/{name}"] = joined(array[:, :, slots])
        for name, array in zip(
            ("encoder_decoder_attention/key", "encoder_decoder_attention/value"), arrays[2:], strict=True
        ):
            taps[f"decoder/layers_{layer}/{name}"] = joined(array)
    return taps
