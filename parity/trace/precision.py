"""Precisions: unit roundoff, dtypes, and the bits that a product keeps of its inputs."""

import numpy as np

PRECISIONS = ("float64", "float32", "bfloat16", "tf32")
# Unit roundoff; for tf32, that of the 10 bits to which products round their inputs.
EPSILON = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-9}
# Bits behind the point that a product must keep of numbers in [1, 2), as product_bits measures them.
PRODUCT_BITS = {"float64": 52, "float32": 23, "tf32": 10, "bfloat16": 7}


def dtype_of(precision: str) -> str:
    """Return the dtype of weights and taps in a precision: for TF32 float32, which only products round further."""
    return "float32" if precision == "tf32" else precision


def input_dtype(tap: str, precision: str) -> str:
    """Return the dtype of a module's floating inputs in a pass: logits_dense gets at least float32, as in MT3."""
    return "float32" if precision == "bfloat16" and tap.endswith("logits_dense") else dtype_of(precision)


def product_test() -> tuple[np.ndarray, np.ndarray]:
    """Return two (64, 64) float64 matrices whose product shows to how many bits a device rounds the inputs."""
    return np.diag(1.0 + 2.0 ** -np.arange(1.0, 65.0)), np.eye(64)


def product_bits(product: np.ndarray) -> int:
    """Count the bits behind the point that the product of product_test kept: 52, 23, 10 (TF32), 7 (bfloat16)."""
    wanted = np.diagonal(product_test()[0])
    exact = (np.diagonal(product).astype(np.float64) == wanted) & (wanted != 1.0)
    return int(exact.argmin())


def check_device(precision: str, kind: str) -> None:
    """Raise ValueError if a kind of device ('cpu', 'gpu', 'cuda', 'tpu', ...) lacks the precision."""
    if precision == "tf32" and kind not in ("gpu", "cuda"):
        raise ValueError(f"precision tf32: GPUs of NVIDIA round products to TF32, the device {kind} does not")


def shaken(array: np.ndarray) -> np.ndarray:
    """Return an array with each number about one unit in its last place up or down, the same ones each time."""
    random = np.random.default_rng(array.size)
    signs = random.integers(0, 2, array.shape, np.int8) * 2 - 1
    return (array * (1 + np.finfo(array.dtype).eps * signs)).astype(array.dtype)
