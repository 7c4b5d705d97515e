"""The network's weights arranged for decoding in JAX; torch_mt3/weights.py is its twin."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mt3.checkpoint import named_matrices
from jax_mt3.kernels import (
    Matrix,
    cache_dtype,
    computes_in,
    device_of,
    is_wide,
    on_device,
    product_matrix,
    quantised,
    step_matrix,
)
from jax_mt3.model import sinusoids
from mt3_common.config import NetworkConfig

jax.tree_util.register_static(NetworkConfig)


class EncoderLayerWeights(NamedTuple):
    """One encoder layer; matrices are (out, in), those that share an input are packed."""

    norm: jax.Array
    qkv: Matrix
    out: Matrix
    mlp_norm: jax.Array
    mlp_wi: Matrix
    mlp_wo: Matrix


class LayerWeights(NamedTuple):
    """One decoder layer; matrices are (out, in), those that share an input are packed."""

    self_norm: jax.Array
    self_qkv: Matrix
    self_out: Matrix
    cross_norm: jax.Array
    cross_query: Matrix
    cross_kv: Matrix
    cross_out: Matrix
    mlp_norm: jax.Array
    mlp_wi: Matrix
    mlp_wo: Matrix


class Weights(NamedTuple):
    """The network arranged for decoding.

    Attributes:
        config: sizes.
        cache_example: (0,), an empty array in the dtype of the cache's keys and values.
        pre_encoder: its tensors under MT3's names, kernels turned over; empty where the network has none.
        projection, embedding, positions, logits: (out, in) matrices and (n, emb_dim) tables.
        encoder_layers, layers: of the encoder and of the decoder.
        encoder_norm, norm: scales (emb_dim,).
    """

    config: NetworkConfig
    cache_example: jax.Array
    pre_encoder: dict[str, jax.Array]
    projection: Matrix
    encoder_layers: tuple[EncoderLayerWeights, ...]
    encoder_norm: jax.Array
    embedding: jax.Array
    positions: jax.Array
    layers: tuple[LayerWeights, ...]
    norm: jax.Array
    logits: Matrix


def pack(params: dict[str, Any], config: NetworkConfig, int8: bool = False) -> Weights:
    """Arrange the weights for decoding, on their device.

    In float32 and float64 everything is computed in that dtype. Of bfloat16 weights everything is computed in float32,
    with weights that bfloat16 can hold, but for products in a wide network (kernels.computes_in): they take and give
    bfloat16, except those of frames, those of the cache's keys and values of frames, and logits. The dtype of the cache
    is kernels.cache_dtype's.

    Args:
        int8: quantise the decoder's MLPs, with a scale for each output: to 8 bits in a wide network, in a narrow one to
            15 bits; the inputs of MLPs have 15 bits, with a scale for each row.
    """
    arrays, device = named_matrices(params), device_of(params)
    dtype = arrays["decoder/token_embedder/embedding"].dtype
    wide_dtype = jnp.promote_types(dtype, jnp.float32)

    def vector(name: str) -> jax.Array:
        return on_device(arrays[name].astype(wide_dtype), device)

    def joined(block: str, *names: str) -> np.ndarray:
        return np.concatenate([arrays[f"{block}/{name}/kernel"] for name in names])

    def in_wide_dtype(block: str, *names: str) -> Matrix:
        return product_matrix(joined(block, *names).astype(wide_dtype), device)

    def in_dtype(block: str, *names: str) -> Matrix:
        return product_matrix(joined(block, *names), device) if is_coarse else in_wide_dtype(block, *names)

    def of_steps(block: str, *names: str) -> Matrix:
        return in_dtype(block, *names) if is_coarse else step_matrix(joined(block, *names), device)

    def of_mlp(block: str, *names: str) -> Matrix:
        return quantised(joined(block, *names), is_wide(config), device) if int8 else of_steps(block, *names)

    is_coarse = computes_in(dtype, config, device)
    encoder_layers = tuple(
        EncoderLayerWeights(
            norm=vector(f"{layer}/pre_attention_layer_norm/scale"),
            qkv=in_dtype(f"{layer}/attention", "query", "key", "value"),
            out=in_dtype(f"{layer}/attention", "out"),
            mlp_norm=vector(f"{layer}/pre_mlp_layer_norm/scale"),
            mlp_wi=in_dtype(f"{layer}/mlp", "wi_0", "wi_1"),
            mlp_wo=in_dtype(f"{layer}/mlp", "wo"),
        )
        for layer in (f"encoder/layers_{number}" for number in range(config.num_encoder_layers))
    )
    layers = tuple(
        LayerWeights(
            self_norm=vector(f"{layer}/pre_self_attention_layer_norm/scale"),
            self_qkv=of_steps(f"{layer}/self_attention", "query", "key", "value"),
            self_out=of_steps(f"{layer}/self_attention", "out"),
            cross_norm=vector(f"{layer}/pre_cross_attention_layer_norm/scale"),
            cross_query=of_steps(f"{layer}/encoder_decoder_attention", "query"),
            cross_kv=in_wide_dtype(f"{layer}/encoder_decoder_attention", "key", "value"),
            cross_out=of_steps(f"{layer}/encoder_decoder_attention", "out"),
            mlp_norm=vector(f"{layer}/pre_mlp_layer_norm/scale"),
            mlp_wi=of_mlp(f"{layer}/mlp", "wi_0", "wi_1"),
            mlp_wo=of_mlp(f"{layer}/mlp", "wo"),
        )
        for layer in (f"decoder/layers_{number}" for number in range(config.num_decoder_layers))
    )
    return Weights(
        config=config,
        cache_example=on_device(np.zeros(0, cache_dtype(dtype, int8, device)), device),
        pre_encoder={name: vector(name) for name in arrays if name.startswith("encoder/pre_encoder/")},
        projection=in_wide_dtype("encoder", "continuous_inputs_projection"),
        encoder_layers=encoder_layers,
        encoder_norm=vector("encoder/encoder_norm/scale"),
        embedding=vector("decoder/token_embedder/embedding"),
        positions=on_device(sinusoids(2048, config.emb_dim, config.position_table), device),
        layers=layers,
        norm=vector("decoder/decoder_norm/scale"),
        logits=in_wide_dtype("decoder", "logits_dense"),
    )
