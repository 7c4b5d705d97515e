"""The network's weights arranged for decoding in JAX; torch_mt3/weights.py is its twin."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mt3.kernels import Quantised, on_cpu, quantised
from jax_mt3.model import sinusoids
from mt3_common.config import NetworkConfig

jax.tree_util.register_static(NetworkConfig)

# width from which rounding is coarse, as in PyTorch, where it pays
COARSE_WIDTH = 512


class EncoderLayerWeights(NamedTuple):
    """One encoder layer; matrices are (out, in), those that share an input are packed."""

    norm: jax.Array
    qkv: jax.Array
    out: jax.Array
    mlp_norm: jax.Array
    mlp_wi: jax.Array
    mlp_wo: jax.Array


class LayerWeights(NamedTuple):
    """One decoder layer; matrices are (out, in), those that share an input are packed."""

    self_norm: jax.Array
    self_qkv: jax.Array
    self_out: jax.Array
    cross_norm: jax.Array
    cross_query: jax.Array
    cross_kv: jax.Array
    cross_out: jax.Array
    mlp_norm: jax.Array
    mlp_wi: jax.Array | Quantised
    mlp_wo: jax.Array | Quantised


class Weights(NamedTuple):
    """The network arranged for decoding."""

    config: NetworkConfig
    projection: jax.Array
    encoder_layers: tuple[EncoderLayerWeights, ...]
    encoder_norm: jax.Array
    embedding: jax.Array
    positions: jax.Array
    layers: tuple[LayerWeights, ...]
    norm: jax.Array
    logits: jax.Array


def pack(params: dict[str, Any], config: NetworkConfig, int8: bool = False) -> Weights:
    """The parameters arranged for decoding, on their device.

    Of float32 or float64 everything is computed and kept in that dtype. Of bfloat16 all is computed and kept in float32
    with weights that bfloat16 can hold, but for products in a network of COARSE_WIDTH or wider: they take and give
    bfloat16 there, except those of frames, of what the decoder keeps of the encoder's output, and logits. PyTorch keeps
    keys and values in float16; XLA's batched products of 16 bits are twenty times slower than those of float32 on a
    CPU.

    Args:
        params: of the network.
        config: its sizes.
        int8: quantise the decoder's MLPs, a scale for each output: to 8 bits in a network of COARSE_WIDTH or wider, in
            a narrower one to 15, which is what MLPs take, a scale for each row. All else as the parameters are.
    """
    where = params["decoder"]["token_embedder"]["embedding"].sharding
    # with NumPy: eagerly, JAX would compile a program for every shape
    params = jax.tree.map(np.asarray, params)
    encoder, decoder = params["encoder"], params["decoder"]
    kind = np.float32 if on_cpu(where) else np.int8

    narrow = decoder["token_embedder"]["embedding"].dtype
    wide = _wide(narrow)
    coarse = config.emb_dim >= COARSE_WIDTH

    def joined(block, *names):
        return np.concatenate([block[name]["kernel"].T for name in names])

    def finely(block, *names):
        return joined(block, *names).astype(wide)

    def coarsely(block, *names):
        return joined(block, *names) if coarse else finely(block, *names)

    def of_mlp(block, *names):
        return quantised(joined(block, *names), coarse, kind) if int8 else coarsely(block, *names)

    encoder_layers = tuple(
        EncoderLayerWeights(
            norm=layer["pre_attention_layer_norm"]["scale"].astype(wide),
            qkv=coarsely(layer["attention"], "query", "key", "value"),
            out=coarsely(layer["attention"], "out"),
            mlp_norm=layer["pre_mlp_layer_norm"]["scale"].astype(wide),
            mlp_wi=coarsely(layer["mlp"], "wi_0", "wi_1"),
            mlp_wo=coarsely(layer["mlp"], "wo"),
        )
        for layer in (encoder[f"layers_{i}"] for i in range(config.num_encoder_layers))
    )
    layers = tuple(
        LayerWeights(
            self_norm=layer["pre_self_attention_layer_norm"]["scale"].astype(wide),
            self_qkv=coarsely(layer["self_attention"], "query", "key", "value"),
            self_out=coarsely(layer["self_attention"], "out"),
            cross_norm=layer["pre_cross_attention_layer_norm"]["scale"].astype(wide),
            cross_query=coarsely(layer["encoder_decoder_attention"], "query"),
            cross_kv=finely(layer["encoder_decoder_attention"], "key", "value"),
            cross_out=coarsely(layer["encoder_decoder_attention"], "out"),
            mlp_norm=layer["pre_mlp_layer_norm"]["scale"].astype(wide),
            mlp_wi=of_mlp(layer["mlp"], "wi_0", "wi_1"),
            mlp_wo=of_mlp(layer["mlp"], "wo"),
        )
        for layer in (decoder[f"layers_{i}"] for i in range(config.num_decoder_layers))
    )
    weights = Weights(
        config=config,
        projection=finely(encoder, "continuous_inputs_projection"),
        encoder_layers=encoder_layers,
        encoder_norm=encoder["encoder_norm"]["scale"].astype(wide),
        embedding=decoder["token_embedder"]["embedding"].astype(wide),
        positions=sinusoids(2048, config.emb_dim, config.position_table),
        layers=layers,
        norm=decoder["decoder_norm"]["scale"].astype(wide),
        logits=finely(decoder, "logits_dense"),
    )
    return jax.device_put(weights, where)


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)
