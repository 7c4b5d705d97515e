"""The network's weights arranged for decoding in PyTorch; jax_mt3/weights.py is its twin."""

from typing import NamedTuple

import torch

from mt3_common.config import NetworkConfig
from torch_mt3.kernels import (
    Quantised,
    arranged,
    has_fast_float16_sums,
    has_int8_products,
    has_onednn_products,
    quantised,
    shortened,
)
from torch_mt3.model import Transformer, sinusoids

# width from which coarse rounding pays: narrower networks spend their time elsewhere, and would change more notes
COARSE_WIDTH = 512


class EncoderLayerWeights(NamedTuple):
    """One encoder layer; matrices are (out, in), those that share an input are packed."""

    norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    mlp_wi: torch.Tensor
    mlp_wo: torch.Tensor


class LayerWeights(NamedTuple):
    """One decoder layer; matrices are (out, in), those that share an input are packed."""

    self_norm: torch.Tensor
    self_qkv: torch.Tensor | torch.ScriptObject
    self_out: torch.Tensor | torch.ScriptObject
    cross_norm: torch.Tensor
    cross_query: torch.Tensor | torch.ScriptObject
    cross_kv: torch.Tensor
    cross_out: torch.Tensor | torch.ScriptObject
    mlp_norm: torch.Tensor
    mlp_wi: torch.Tensor | torch.ScriptObject | Quantised
    mlp_wo: torch.Tensor | torch.ScriptObject | Quantised


class Weights(NamedTuple):
    """The network arranged for decoding.

    Attributes:
        kept: dtype of the keys and values that are kept.
    """

    config: NetworkConfig
    kept: torch.dtype
    projection: torch.Tensor
    encoder_layers: tuple[EncoderLayerWeights, ...]
    encoder_norm: torch.Tensor
    embedding: torch.Tensor
    positions: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    logits: torch.Tensor


@torch.inference_mode()
def pack(model: Transformer, int8: bool = False) -> Weights:
    """The model's weights arranged for decoding, on its device.

    Of a model in float32 or float64 everything is computed and kept in that dtype. Of one in bfloat16, keys and values
    are kept in float16, which is as short and eight times finer, and so are the queries and weights of attention that
    meet them; all else is computed in float32 with weights that bfloat16 can hold, but for products in a network of
    COARSE_WIDTH or wider: they take and give bfloat16 there, except those of frames, of what the decoder keeps of the
    encoder's output, and logits. A processor without fast kernels for bfloat16 or float16 computes in float32 instead.

    Args:
        model: the network.
        int8: quantise the decoder's MLPs, a scale for each output: to 8 bits in a network of COARSE_WIDTH or wider, in
            a narrower one to 15, which is what MLPs take, a scale for each row. Keys, values and attention as for
            bfloat16; all else as the model is.
    """
    encoder, decoder = model.encoder, model.decoder
    narrow = decoder.token_embedder.weight.dtype
    wide = _wide(narrow)
    short = narrow == torch.bfloat16
    coarse = model.config.emb_dim >= COARSE_WIDTH
    device = decoder.token_embedder.weight.device
    coarse_products = coarse and not _is_slow_in_bfloat16(model)

    def joined(block, *names):
        return torch.cat([getattr(block, name).weight for name in names])

    def finely(block, *names):
        return arranged(joined(block, *names).to(wide))

    def coarsely(block, *names):
        return arranged(joined(block, *names)) if coarse_products else finely(block, *names)

    def each_step(block, *names):
        return shortened(joined(block, *names)) if short and not coarse_products else coarsely(block, *names)

    def of_mlp(block, *names):
        return quantised(joined(block, *names), coarse) if int8 else each_step(block, *names)

    encoder_layers = tuple(
        EncoderLayerWeights(
            norm=layer.pre_attention_layer_norm.scale.to(wide),
            qkv=coarsely(layer.attention, "query", "key", "value"),
            out=coarsely(layer.attention, "out"),
            mlp_norm=layer.pre_mlp_layer_norm.scale.to(wide),
            mlp_wi=coarsely(layer.mlp, "wi_0", "wi_1"),
            mlp_wo=coarsely(layer.mlp, "wo"),
        )
        for layer in encoder.layers
    )
    layers = tuple(
        LayerWeights(
            self_norm=layer.pre_self_attention_layer_norm.scale.to(wide),
            self_qkv=each_step(layer.self_attention, "query", "key", "value"),
            self_out=each_step(layer.self_attention, "out"),
            cross_norm=layer.pre_cross_attention_layer_norm.scale.to(wide),
            cross_query=each_step(layer.encoder_decoder_attention, "query"),
            cross_kv=finely(layer.encoder_decoder_attention, "key", "value"),
            cross_out=each_step(layer.encoder_decoder_attention, "out"),
            mlp_norm=layer.pre_mlp_layer_norm.scale.to(wide),
            mlp_wi=of_mlp(layer.mlp, "wi_0", "wi_1"),
            mlp_wo=of_mlp(layer.mlp, "wo"),
        )
        for layer in decoder.layers
    )
    return Weights(
        config=model.config,
        kept=torch.float16 if (short or int8) and has_fast_float16_sums(device.type) else wide,
        projection=finely(encoder, "continuous_inputs_projection"),
        encoder_layers=encoder_layers,
        encoder_norm=encoder.encoder_norm.scale.to(wide),
        embedding=decoder.token_embedder.weight.to(wide),
        positions=torch.from_numpy(sinusoids(2048, model.config.emb_dim, model.config.position_table)).to(device),
        layers=layers,
        norm=decoder.decoder_norm.scale.to(wide),
        logits=finely(decoder, "logits_dense"),
    )


def processor_note(model: Transformer, int8: bool = False) -> str | None:
    """Say in one sentence what pack computes in float32 because this processor is slow or wrong at the dtype asked for.

    None if nothing. A network narrower than COARSE_WIDTH has float32 products for bfloat16 on every processor.
    """
    weight = model.decoder.token_embedder.weight
    if _is_slow_in_bfloat16(model):
        return "this processor is slow at bfloat16: products are computed in float32, with weights rounded to bfloat16"
    if int8 and not has_int8_products(weight.device.type):
        return (
            "this processor has no exact int8 products: they are computed in float32, which takes longer than float32"
        )
    return None


def _is_slow_in_bfloat16(model):
    weight = model.decoder.token_embedder.weight
    is_wide = model.config.emb_dim >= COARSE_WIDTH
    on_cpu = weight.device.type == "cpu"
    return weight.dtype == torch.bfloat16 and is_wide and on_cpu and not has_onednn_products(torch.bfloat16)


def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)
