"""What makes decoding fast in PyTorch: products, attention, the cache's layout; jax_mt3/kernels.py is its counterpart.

This file alone may differ freely from the other twin's.
"""

import functools
from typing import NamedTuple

import torch
from torch.nn import functional as F

# slots that the ring starts with, and by how many it grows when a row outgrows it: copying the ring every 32 steps
# costs less than reading slots that hold nothing
FIRST_LENGTH = 32
# segments that are encoded together: enough for full matrix products, few enough for the processor's cache
ENCODED_TOGETHER = 4
# rows that matrices are laid out for: those of a half by default
ROWS_OF_PRODUCTS = 32
# rows that are not too few to be halved: below, two threads wait for Python more than they gain
WORTH_HALVING = 64


class Quantised(NamedTuple):
    """A matrix in whole numbers from -127 to 127.

    Attributes:
        whole: (out, in) int8; float32 where PyTorch has no products of int8: whole numbers are as exact in it.
        rest: (out, in) likewise, what rounding left, in 254ths of one; None where it is let go.
        scales: (out,) float32, what one is worth in each row.
    """

    whole: torch.Tensor
    rest: torch.Tensor | None
    scales: torch.Tensor


def quantised(weight, coarse):
    scales = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
    whole, rest = in_two(weight / scales[:, None])
    dtype = torch.int8 if has_int8_products(weight.device.type) else torch.float32
    return Quantised(whole.to(dtype), None if coarse else rest.to(dtype), scales)


def in_two(scaled):
    # numbers up to 127 as whole ones and what that leaves, in 254ths: 15 bits
    whole = scaled.round()
    return whole, ((scaled - whole) * 254).round()


def arranged(weight):
    # in the order in which oneDNN's kernels read it, which saves them a copy at every product; other devices and
    # dtypes have no such thing
    if weight.device.type != "cpu" or not has_onednn_products(weight.dtype):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_OF_PRODUCTS)


def shortened(weight):
    # for products in float32 that read the weight in 16 bits: float16 holds what bfloat16 holds, up to 3e-8
    weight = weight.float()
    if not has_float16_weights(weight.device.type):
        return arranged(weight)
    return torch.ops.quantized.linear_prepack_fp16(weight, None)


@functools.cache
def has_onednn_products(dtype):
    # without oneDNN's, PyTorch's products of bfloat16 on a CPU are plain loops: 690 times slower than float32 with AVX2
    def product(x, weight):
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), ROWS_OF_PRODUCTS)
        return onednn_product(x.to(dtype), laid_out)

    return dtype in (torch.float32, torch.bfloat16) and is_right(product, 1e-2)


@functools.cache
def has_float16_weights(device_type):
    # fbgemm, Meta's kernels for x86
    def product(x, weight):
        return torch.ops.quantized.linear_dynamic_fp16(x, torch.ops.quantized.linear_prepack_fp16(weight, None))

    return device_type == "cpu" and has_fbgemm() and is_right(product, 1e-2)


@functools.cache
def has_int8_products(device_type):
    # without VNNI instructions, pairs of products are added up in 16 bits, which large numbers overflow
    def product(x, weight):
        x, weight = ((128 * factor).to(torch.int8) for factor in (x, weight))
        return torch._int_mm(x, weight.t()) / 128**2

    return device_type != "cpu" or is_right(product, 0.0)


@functools.cache
def has_fast_float16_sums(device_type):
    # other devices multiply float16 directly; a CPU's batched products of it take six times as long as those of float32
    def product(x, weight):
        return sums_of_rows(x[None].half(), weight.t()[None].half())[0]

    return device_type != "cpu" or (has_fbgemm() and is_right(product, 1e-2))


def has_fbgemm():
    return "fbgemm" in torch.backends.quantized.supported_engines


def is_right(product, tolerance):
    # whole numbers over 128, which are exact in every dtype: the largest in the first rows, all sizes in the others
    x, weight = ((torch.arange(320).view(8, 40) * factor % 255 - 127) / 128 for factor in (7, 11))
    x[0], weight[0], weight[1] = 127 / 128, 127 / 128, -127 / 128
    try:
        result = product(x, weight)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        # the kernel is missing, refuses the dtype on this processor, or takes other arguments
        return False
    exact = x.double() @ weight.double().t()
    return bool(((result.double() - exact).abs() <= tolerance * exact.abs().max()).all())


def kept_zeros(shape, dtype, device, values):
    # (b, h, length, d). Products read memory fastest from beginning to end: in float32 those of keys lie row by row and
    # of values the positions side by side; in float16, which are sums of rows, the other way round
    if (dtype == torch.float16) == values:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.zeros((*shape[:2], shape[3], shape[2]), dtype=dtype, device=device).transpose(2, 3)


def empty_like(kept, shape):
    if kept.stride(3) == 1:
        return kept.new_empty(shape)
    return kept.new_empty((*shape[:2], shape[3], shape[2])).transpose(2, 3)


def select_rows(kept, rows):
    if kept.stride(3) == 1:
        return kept[rows]
    return kept.transpose(2, 3)[rows].transpose(2, 3)


def onednn_product(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def dense(x, weight):
    # of x's dtype, whatever it is computed in
    if isinstance(weight, Quantised):
        return whole_dense(x, weight)
    if isinstance(weight, torch.ScriptObject):
        return torch.ops.quantized.linear_dynamic_fp16(x, weight)
    narrow = x.to(weight.dtype)
    if weight.is_mkldnn:
        return onednn_product(narrow, weight).to(x.dtype)
    return F.linear(narrow, weight).to(x.dtype)


def whole_dense(x, weight):
    rows = x.flatten(0, -2)
    scales = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    both = torch.cat(in_two(rows / scales)).to(weight.whole.dtype)
    product = torch._int_mm if both.dtype == torch.int8 else torch.mm
    wholes, rests = product(both, weight.whole.t()).chunk(2)
    if weight.rest is not None:
        rests = rests + product(both[: len(rows)], weight.rest.t())
    return ((wholes + rests / 254) * scales).mul_(weight.scales).view(*x.shape[:-1], -1)


def mlp(x, layer):
    gate, linear = dense(x, layer.mlp_wi).chunk(2, dim=-1)
    return dense(F.gelu(gate, approximate="tanh") * linear, layer.mlp_wo)


def attend(query, keys, values, unseen=None):
    # one or a few queries a head: two batched products, whose kernels read keys and values twice as fast as PyTorch's
    # fused attention, which is made for many queries
    shape, dtype = query.shape, query.dtype
    query, keys, values = (array.flatten(0, 1) for array in (query.to(keys.dtype), keys, values))
    product = sums_of_rows if keys.dtype == torch.float16 and keys.device.type == "cpu" else torch.bmm
    logits = product(query, keys.transpose(1, 2))
    if unseen is not None:
        logits += unseen
    weights = torch.softmax(logits, dim=-1)
    if values.stride(1) == 1:
        return torch.bmm(values.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2).view(shape)
    return product(weights, values).view(shape).to(dtype)


def sums_of_rows(factors, rows):
    # factors (r, n, k) times rows (r, k, m), float16: of PyTorch's kernels those of embedding bags read it fastest, as
    # fast as batched products read float32, and they add up in float32
    num_batches, num_sums, num_rows = factors.shape
    bags = _bags(num_batches, num_sums, num_rows)
    sums = F.embedding_bag(bags, rows.flatten(0, 1), mode="sum", per_sample_weights=factors.flatten(0, 1))
    return sums.view(num_batches, num_sums, -1)


@functools.lru_cache(maxsize=32)
def _bags(num_batches, num_sums, num_rows):
    rows = torch.arange(num_batches * num_rows).view(num_batches, 1, num_rows)
    return rows.expand(-1, num_sums, -1).flatten(0, 1)


def rms_norm(x, scale):
    return F.rms_norm(x, scale.shape, scale, eps=1e-6)
