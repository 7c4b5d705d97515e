"""A decoding cache under the names of the taps that it should equal."""

import numpy as np

# Tokens decoded into a cache before the compared ones, so that its ring buffer wraps around.
WARM_UP = 37


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
