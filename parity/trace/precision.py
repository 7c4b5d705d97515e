"""Precisions: unit roundoff, dtypes, and what a product keeps of its inputs."""

import numpy as np

PRECISIONS = ("float64", "float32", "bfloat16", "tf32")
# unit roundoff; tf32 is that of the 10 bits that go into a product
EPSILON = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-9}
# bits behind the point that a product of numbers in [1, 2) must keep, as product_bits reads it back
PRODUCT_BITS = {"float64": 52, "float32": 23, "tf32": 10, "bfloat16": 7}


def dtype_of(precision: str) -> str:
    """The dtype of weights and taps in a precision: TF32 is float32 that only products round to fewer bits."""
    return "float32" if precision == "tf32" else precision


def input_dtype(tap: str, precision: str) -> str:
    """The dtype of a module's floating inputs in a pass: logits_dense gets at least float32, as in MT3."""
    return "float32" if precision == "bfloat16" and tap.endswith("logits_dense") else dtype_of(precision)


def product_test() -> tuple[np.ndarray, np.ndarray]:
    """Two (64, 64) float64 matrices whose product shows what a device makes of numbers that go into a product."""
    return np.diag(1.0 + 2.0 ** -np.arange(1.0, 65.0)), np.eye(64)


def product_bits(product: np.ndarray) -> int:
    """How many bits behind the point the product of product_test kept: 52, 23 (float32), 10 (TF32), 7 (bfloat16)."""
    wanted = np.diagonal(product_test()[0])
    kept = (np.diagonal(product).astype(np.float64) == wanted) & (wanted != 1.0)
    return int(kept.argmin())


def check_device(precision: str, kind: str) -> None:
    """Raises ValueError if a kind of device ('cpu', 'gpu', 'cuda', 'tpu', ...) has no such precision."""
    if precision == "tf32" and kind not in ("gpu", "cuda"):
        raise ValueError(f"precision tf32: GPUs of NVIDIA round products to TF32, the device {kind} does not")
