"""Kernels in PyTorch: products, attention, the cache's layout, and array operations under the twins' common names.

jax_mt3/kernels.py is its counterpart. This file alone may differ freely: it holds what makes a machine fast.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.func import functional_call
from torch.nn import functional as F

from mt3_common.config import NetworkConfig
from torch_mt3.checkpoint import state_dict_key
from torch_mt3.model import PreEncoder

# slots that the ring starts with, and by how many it grows when a row outgrows it: copying the ring every 32 steps
# costs less than reading slots that hold nothing
FIRST_LENGTH = 32
# segments that are encoded together: enough for full matrix products, few enough for the processor's cache
ENCODED_TOGETHER = 4
# rows that matrices are laid out for: those of a half by default
ROWS_OF_PRODUCTS = 32
# smallest batch decoded by two threads: below it, contention for the GIL costs more than the overlap gains
MIN_ROWS_OF_THREADS = 64
# width from which coarse rounding pays: narrower networks spend their time elsewhere, and would change more notes
COARSE_WIDTH = 512
# ids in the state of the search
TOKEN_DTYPE = np.int64


class Quantised(NamedTuple):
    """A matrix in whole numbers from -127 to 127.

    Attributes:
        whole: (out, in) int8; float32 where PyTorch has no products of int8: whole numbers are as exact in it.
        rest: (out, in) likewise, what rounding left, in 254ths of one; None where it is dropped.
        scales: (out,) float32, the value of one in each row.
    """

    whole: torch.Tensor
    rest: torch.Tensor | None
    scales: torch.Tensor


# the right side of a product; a ScriptObject is fbgemm's
Matrix = torch.Tensor | torch.ScriptObject | Quantised


def device_of(holder: torch.Tensor | torch.nn.Module) -> torch.device:
    """Return the device of an array, or of a network's first one."""
    return holder.device if isinstance(holder, torch.Tensor) else next(holder.parameters()).device


def on_device(array: np.ndarray | torch.Tensor, device: torch.device, copy: bool = False) -> torch.Tensor:
    """Return the array on the device; copy: even where its memory could be shared."""
    return torch.as_tensor(array).to(device, copy=copy)


def as_array(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Return a NumPy array for computing with `like`."""
    return torch.from_numpy(array).to(like.device)


def to_numpy(array: torch.Tensor) -> np.ndarray:
    """Return the array in NumPy; memory may be shared."""
    return array.cpu().numpy()


def zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Return zeros of the dtype and on the device of `like`."""
    return like.new_zeros(shape)


def count_up(count: int, like: torch.Tensor) -> torch.Tensor:
    """Return 0 … count - 1, (count,) int64 on the device of `like`."""
    return torch.arange(count, device=like.device)


def take_along(array: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Return what numpy.take_along_axis returns."""
    return torch.take_along_dim(array, index.long(), axis)


def top_k(array: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest entries along the last axis, largest first, and their indices."""
    return torch.topk(array, k)


def put(array: torch.Tensor, index: Any, values: torch.Tensor | float) -> torch.Tensor:
    """Return the array with values at index, which is changed in place."""
    array[index] = values
    return array


def is_wide(config: NetworkConfig) -> bool:
    """Tell whether rounding is coarse in a network of this width."""
    return config.emb_dim >= COARSE_WIDTH


def is_slow_at(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether products of this dtype are plain loops: those of bfloat16 on some processors."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not has_onednn_products(dtype)


def computes_in(dtype: torch.dtype, config: NetworkConfig, device: torch.device) -> bool:
    """Tell whether products of weights of this dtype take and give it, rather than float32.

    They do in wide networks, but for bfloat16 on a processor that is slow at it.
    """
    return is_wide(config) and not is_slow_at(dtype, device)


# what users are told
SLOW_BFLOAT16 = "this processor is slow at bfloat16: products are computed in float32, with weights rounded to bfloat16"


def processor_note(model: torch.nn.Module, int8: bool = False) -> str | None:
    """Say in one sentence what is computed in float32 because this processor is slow or wrong at the dtype asked for.

    None if nothing is. A narrow network has float32 products for bfloat16 on every processor.

    Args:
        model: on its device, in its dtype, with its config.
        int8: see weights.pack.
    """
    device = device_of(model)
    if is_wide(model.config) and is_slow_at(model.decoder.token_embedder.weight.dtype, device):
        return SLOW_BFLOAT16
    if int8 and not has_int8_products(device.type):
        return "this processor has no exact int8 products: they are computed in float32, slower than --dtype float32"
    return None


def cache_dtype(dtype: torch.dtype, int8: bool, device: torch.device) -> type[np.floating]:
    """Return the dtype of keys and values.

    For short weights it is float16, as short as bfloat16 and eight times finer, and so are the queries and weights of
    attention that meet them, where there are fast kernels for it; else float32 or wider.
    """
    if (dtype == torch.bfloat16 or int8) and has_fast_float16_sums(device.type):
        return np.float16
    return np.float64 if dtype == torch.float64 else np.float32


def product_matrix(matrix: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a matrix (out, in) as products take it.

    On a CPU it is in the order in which oneDNN's kernels read it, which saves them a copy at every product.
    """
    if device.type != "cpu" or not has_onednn_products(matrix.dtype):
        return matrix.to(device)
    return torch.ops.mkldnn._reorder_linear_weight(matrix, ROWS_OF_PRODUCTS)


def step_matrix(matrix: torch.Tensor, device: torch.device) -> Matrix:
    """Return a matrix (out, in) as products of float32 or wider take it, one token at a time.

    Of bfloat16 weights, products in float32 read 16 bits where there is a kernel for it: float16 holds what bfloat16
    holds, up to 3e-8.
    """
    if matrix.dtype != torch.bfloat16:
        return product_matrix(matrix, device)
    if not has_float16_weights(device.type):
        return product_matrix(matrix.float(), device)
    return torch.ops.quantized.linear_prepack_fp16(matrix.float(), None)


def quantised(matrix: torch.Tensor, coarse: bool, device: torch.device) -> Quantised:
    """Return a matrix (out, in) in whole numbers: 8 bits if coarse, else 15."""
    scales = matrix.abs().amax(dim=1).clamp(min=1e-30) / 127
    whole, rest = in_two(matrix / scales[:, None])
    dtype = torch.int8 if has_int8_products(device.type) else torch.float32
    return Quantised(whole.to(dtype), None if coarse else rest.to(dtype), scales)


def in_two(scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split numbers up to 127 into whole ones and their remainders in 254ths: 15 bits."""
    whole = scaled.round()
    return whole, ((scaled - whole) * 254).round()


# Probes of PyTorch's private kernels, which come and go with its version, its build and the processor. Each kernel is
# tried once with a small product and used only if the result is right. No decision rests on a measured time: tokens
# would depend on what else the machine does.


@functools.cache
def has_onednn_products(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN multiplies in this dtype on this processor.

    Without it, PyTorch's products of bfloat16 on a CPU are plain loops: with AVX2, 690 times slower than float32.
    """

    def product(x, weight):
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), ROWS_OF_PRODUCTS)
        return onednn_product(x.to(dtype), laid_out)

    return dtype in (torch.float32, torch.bfloat16) and is_right(product, 1e-2)


@functools.cache
def has_float16_weights(device_type: str) -> bool:
    """Tell whether fbgemm, Meta's kernels for x86, multiply float32 by weights in float16."""

    def product(x, weight):
        return torch.ops.quantized.linear_dynamic_fp16(x, torch.ops.quantized.linear_prepack_fp16(weight, None))

    return device_type == "cpu" and has_fbgemm() and is_right(product, 1e-2)


@functools.cache
def has_int8_products(device_type: str) -> bool:
    """Tell whether products of int8 are exact.

    They are not on a processor without VNNI: pairs of products are added up in 16 bits, which large numbers overflow.
    """

    def product(x, weight):
        x, weight = ((128 * factor).to(torch.int8) for factor in (x, weight))
        return torch._int_mm(x, weight.t()) / 128**2

    return device_type != "cpu" or is_right(product, 0.0)


@functools.cache
def has_fast_float16_sums(device_type: str) -> bool:
    """Tell whether attention to keys and values in float16 is fast.

    Other devices multiply float16; a CPU's batched products of it take six times as long as those of float32.
    """

    def product(x, weight):
        return weighted_row_sums(x[None].half(), weight.t()[None].half())[0]

    return device_type != "cpu" or (has_fbgemm() and is_right(product, 1e-2))


def has_fbgemm() -> bool:
    """Tell whether PyTorch brings fbgemm and this processor can run it."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def is_right(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tolerance: float) -> bool:
    """Tell whether a kernel's product(x, weight) is x times weight (out, in), within a share of the largest number."""
    x, weight = ((torch.arange(320).view(8, 40) * factor % 255 - 127) / 128 for factor in (7, 11))
    x[0], weight[0], weight[1] = 127 / 128, 127 / 128, -127 / 128
    try:
        result = product(x, weight)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        # the kernel is missing, refuses the dtype on this processor, or takes other arguments
        return False
    exact = x.double() @ weight.double().t()
    return bool(((result.double() - exact).abs() <= tolerance * exact.abs().max()).all())


def cache_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, values: bool) -> torch.Tensor:
    """Return an empty cache of keys, or of values, (b, h, length, d).

    Products read memory fastest from beginning to end. In float32, rows of keys and positions of values are contiguous;
    in float16, whose products are sums of rows, it is the other way round.
    """
    if (dtype == torch.float16) == values:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.zeros((*shape[:2], shape[3], shape[2]), dtype=dtype, device=device).transpose(2, 3)


def cache_like(cache: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return uninitialised memory of another shape that is laid out as the cache is."""
    if cache.stride(3) == 1:
        return cache.new_empty(shape)
    return cache.new_empty((*shape[:2], shape[3], shape[2])).transpose(2, 3)


def cache_rows(cache: torch.Tensor, rows: list[int] | torch.Tensor) -> torch.Tensor:
    """Return the given rows of a cache, laid out as it is."""
    if cache.stride(3) == 1:
        return cache[rows]
    return cache.transpose(2, 3)[rows].transpose(2, 3)


def onednn_product(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x (…, in) times a matrix that product_matrix has reordered, plus the bias."""
    return torch.ops.mkldnn._linear_pointwise(x, matrix, bias, "none", [], "")


def dense(x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Return x (…, in) times matrix (out, in), in x's dtype."""
    if isinstance(matrix, Quantised):
        return int8_dense(x, matrix)
    if isinstance(matrix, torch.ScriptObject):
        return torch.ops.quantized.linear_dynamic_fp16(x, matrix)
    narrow = x.to(matrix.dtype)
    if matrix.is_mkldnn:
        return onednn_product(narrow, matrix).to(x.dtype)
    return F.linear(narrow, matrix).to(x.dtype)


def int8_dense(x: torch.Tensor, matrix: Quantised) -> torch.Tensor:
    """Return x (…, in) times a quantised matrix, x in 15 bits."""
    rows = x.flatten(0, -2)
    scales = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    both = torch.cat(in_two(rows / scales)).to(matrix.whole.dtype)
    product = torch._int_mm if both.dtype == torch.int8 else torch.mm
    wholes, rests = product(both, matrix.whole.t()).chunk(2)
    if matrix.rest is not None:
        rests = rests + product(both[: len(rows)], matrix.rest.t())
    return ((wholes + rests / 254) * scales).mul_(matrix.scales).view(*x.shape[:-1], -1)


def mlp(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """Return the MLP of an encoder's or a decoder's layer on rows x (…, emb_dim)."""
    gate, linear = dense(x, layer.mlp_wi).chunk(2, dim=-1)
    return dense(F.gelu(gate, approximate="tanh") * linear, layer.mlp_wo)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return attention of query (b, h, q, d) to keys and values (b, h, k, d), few queries a head.

    The two batched products read keys and values twice as fast as PyTorch's fused attention, which is made for many
    queries.

    Args:
        mask: (b * h, 1, k), added to the logits.
    """
    shape, dtype = query.shape, query.dtype
    query, keys, values = (array.flatten(0, 1) for array in (query.to(keys.dtype), keys, values))
    product = weighted_row_sums if keys.dtype == torch.float16 and keys.device.type == "cpu" else torch.bmm
    logits = product(query, keys.transpose(1, 2))
    if mask is not None:
        logits += mask
    weights = torch.softmax(logits, dim=-1)
    if values.stride(1) == 1:
        return torch.bmm(values.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2).view(shape)
    return product(weights, values).view(shape).to(dtype)


def weighted_row_sums(factors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return factors (r, n, k) times rows (r, k, m), float16.

    Of PyTorch's kernels, those of embedding bags read float16 fastest, as fast as batched products read float32, and
    they add up in float32.
    """
    num_batches, num_sums, num_rows = factors.shape
    bags = _bags(num_batches, num_sums, num_rows)
    sums = F.embedding_bag(bags, rows.flatten(0, 1), mode="sum", per_sample_weights=factors.flatten(0, 1))
    return sums.view(num_batches, num_sums, -1)


@functools.lru_cache(maxsize=32)
def _bags(num_batches: int, num_sums: int, num_rows: int) -> torch.Tensor:
    rows = torch.arange(num_batches * num_rows).view(num_batches, 1, num_rows)
    return rows.expand(-1, num_sums, -1).flatten(0, 1)


def rms_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return x over the root mean square of its last axis, times scale."""
    return F.rms_norm(x, scale.shape, scale, eps=1e-6)


def pre_encode(
    frames: torch.Tensor, arrays: dict[str, torch.Tensor], config: NetworkConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pre-encoder's output and activations for frames (b, f, input_depth), see PreEncoder.

    Args:
        arrays: as Weights has them.

    Returns:
        ((b, l, emb_dim), (b, f, PITCH_ROWS, ROW_FEATURES)).
    """
    prefix = "encoder.pre_encoder."
    state = {state_dict_key(name)[0].removeprefix(prefix): array for name, array in arrays.items()}
    return functional_call(_pre_encoder(config, threading.get_ident()), state, (frames, True))


@functools.lru_cache(maxsize=32)
def _pre_encoder(config: NetworkConfig, thread: int) -> PreEncoder:
    """Return a thread's own module: while functional_call runs, the module has the arrays of that call."""
    with torch.device("meta"):
        return PreEncoder(config)
