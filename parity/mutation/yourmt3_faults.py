"""The table of faults of YourMT3+ that are planted: in which network, where, how, and what the diagnosis should say."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from parity.mutation import plant_in_yourmt3 as plant
from parity.mutation.plant_in_yourmt3 import Plant

BEHAVIOUR, WEIGHTS, EQUIVALENT = "behaviour", "weights", "equivalent"
SCA = r"encoder/blocks_\d/spectral_cross_attention"
LOCAL = r"encoder/blocks_\d/local_transformer_\d"
TEMPORAL = r"encoder/blocks_\d/temporal_transformer_\d"
CROSS_T5 = r"decoder/decoder/block_\d/layer_1"
SELF_T5 = r"(en|de)coder/(en|de)coder/block_\d/layer_0"
FF_T5 = r"decoder/decoder/block_\d/layer_2"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A fault.

    Attributes:
        name: of it.
        network: in which it is planted, of NETWORKS.
        where: regular expression of the taps of the modules in which it can be.
        plant: changes the network at a tap.
        causes: regular expression of what the diagnosis may call it.
        group: BEHAVIOUR, WEIGHTS, or EQUIVALENT for a change that changes nothing.
        blamed: regular expression of the sites that may be blamed, where that is not the tap itself; '{site}' stands
            for the tap.
    """

    name: str
    network: str
    where: str
    plant: Plant
    causes: str
    group: str = BEHAVIOUR
    blamed: str = "{site}"

    def sites(self, taps: list[str]) -> list[str]:
        """Return the taps where it can be planted."""
        return [tap for tap in taps if re.fullmatch(self.where, tap)]

    def accepts(self, site: str, blamed: str) -> bool:
        """Return whether a blamed module is one in which the fault lies."""
        return re.fullmatch(self.blamed.format(site=re.escape(site)), blamed) is not None


def made(factory: Callable[..., Plant], how: Mapping[str, Any]) -> Plant:
    """Return the plant of a factory."""
    return factory(**how)


def kinds() -> list[Kind]:
    """Return all faults and equivalents."""
    return [
        *_pre_encoder(),
        *_norms(),
        *_perceiver_attention(),
        *_positions(),
        *_perceiver_stack(),
        *_feed_forwards(),
        *_experts(),
        *_t5(),
        *_ends(),
        *_conformer(),
        *_weights(),
    ]


def _pre_encoder() -> Iterator[Kind]:
    norm, conv, block = r"pre_encoder_0/blocks_\d/bn\d", r"pre_encoder_0/blocks_\d/conv\d", r"pre_encoder_0/blocks_\d"
    for name, how, cause in (
        ("batch norm in training mode", {"batch": True}, "batch statistics"),
        ("batch norm epsilon 1e-3", {"eps": 1e-3}, r"eps=0\.001"),
        ("batch norm epsilon 1e-6", {"eps": 1e-6}, "eps=1e-06"),
        ("batch norm without scale and bias", {"affine": False}, "norm without scale and bias"),
        ("batch norm divides by the variance", {"deviation": True}, "deviation for variance"),
        ("batch norm of each example", {"example": True}, "statistics of each example"),
    ):
        yield Kind(name, "single", norm, made(plant.batch_norm, how), cause)
    for name, how, cause in (
        ("convolution repeats the edge", {"padding": "replicate"}, "padding repeats the edge"),
        ("convolution wraps around", {"padding": "circular"}, "padding wraps"),
        ("convolution reflects the edge", {"padding": "reflect"}, "padding reflects"),
        ("convolution with its kernel flipped", {"flip": True}, "kernel flipped"),
        ("convolution with time and frequency exchanged", {"exchange": True}, "time and frequency exchanged"),
        ("causal convolution", {"causal": True}, "padding in front only"),
    ):
        yield Kind(name, "single", conv, made(plant.convolution, how), cause)
    for name, how, cause in (
        ("relu behind the first norm left out", {"inner": "none"}, "identity for relu"),
        ("gelu for relu", {"inner": "gelu"}, "gelu for relu"),
        ("shortcut left out", {"shortcut": False}, "shortcut left out"),
        ("relu before the sum", {"early": True}, "relu before the sum"),
        ("last relu left out", {"last": "none"}, "last relu left out"),
        ("larger of two bins", {"pool": "max"}, "largest of two bins"),
        ("every other bin", {"pool": "first"}, "every other bin"),
        ("bins added", {"pool": "sum"}, "bins added"),
    ):
        yield Kind(name, "multi", block, made(plant.residual_block, how), cause)


def _norms() -> Iterator[Kind]:
    where = r"encoder/blocks_\d/.*(layernorm\d?)"
    for name, how, cause in (
        ("layer norm epsilon 1e-6", {"eps": 1e-6}, "eps=1e-06"),
        ("layer norm epsilon 1e-12", {"eps": 1e-12}, r"eps=(0|1e-12|1e-08)"),
        ("rms norm for layer norm", {"center": False}, "rms norm"),
        ("layer norm without bias", {"bias": False}, "norm without bias"),
    ):
        yield Kind(name, "single", where, made(plant.layer_norm, how), cause)
    for name, network, how, cause in (
        ("rms norm epsilon 1e-6", "td", {"eps": 1e-6}, "eps=1e-06"),
        ("layer norm for rms norm", "td", {"center": True}, "layer norm"),
        ("rms norm with 1 + scale", "td", {"scale": "plus one"}, r"1 \+ scale"),
    ):
        yield Kind(name, network, where, made(plant.rms_norm, how), cause)
    t5 = r"(en|de)coder/(en|de)coder/(block_\d/layer_\d/layer_norm|final_layer_norm)"
    for name, how, cause in (
        ("t5 norm epsilon 1e-5", {"eps": 1e-5}, "eps=1e-05"),
        ("t5 norm subtracts the mean", {"center": True}, "layer norm"),
        ("t5 norm without scale", {"scale": "none"}, "norm without scale"),
    ):
        yield Kind(name, "ymt3plus", t5, made(plant.rms_norm, how), cause)


def _perceiver_attention() -> Iterator[Kind]:
    every = rf"({SCA}|{LOCAL}/attention|{TEMPORAL}/attention)/self"
    for name, network, where, how, cause in (
        ("queries not normed", "single", every, {"raw_query": True}, "query not normed"),
        ("tokens not normed", "single", rf"{SCA}/self", {"raw_keys": True}, "keys not normed"),
        ("scores not divided", "multi", every, {"scale": "none"}, "scores not divided"),
        ("scores divided by all features", "multi", every, {"scale": "all"}, "scores divided by sqrt of all features"),
        ("softmax over queries", "multi", every, {"over_queries": True}, "softmax over queries"),
        ("heads interleaved", "multi", every, {"interleaved": True}, "heads interleaved"),
        ("keys for values", "multi", every, {"value_of": "key"}, "keys for values"),
    ):
        yield Kind(name, network, where, made(plant.attention, how), cause)
    for name, network, how, cause in (
        ("query residual added", "single", "with", "residual added"),
        ("query residual left out", "moe", "without", "residual left out"),
        ("query residual behind the norm", "moe", "normed", "residual behind the norm"),
        ("query residual twice", "moe", "twice", "residual twice"),
    ):
        yield Kind(name, network, SCA, plant.attended(how), cause)
    for name, how, cause in (
        ("residual of an attention left out", "without", "residual left out"),
        ("residual of an attention behind the norm", "normed", "residual behind the norm"),
    ):
        yield Kind(name, "multi", rf"({LOCAL}|{TEMPORAL})/attention", plant.attended(how), cause)


def _positions() -> Iterator[Kind]:
    every = rf"({SCA}|{LOCAL}/attention|{TEMPORAL}/attention)/self"
    pixel, lang = rf"({SCA}|{LOCAL}/attention)/self", rf"{TEMPORAL}/attention/self"
    for name, where, how, cause in (
        ("rope on keys", every, {"rotate": "keys"}, "rope on keys"),
        ("rope in halves", every, {"rope": {"halves": True}}, "rope in halves"),
        ("rope as wide as a head", every, {"rope": {"width": 12}}, "rope width by head"),
        ("rope half as wide as a head", every, {"rope": {"width": 6}}, "rope width by head, partial"),
        ("rope partial ignored", every, {"rope": {"width": 8}}, "rope partial ignored"),
        ("rope left out", every, {"rotate": "nothing"}, "rope left out"),
        ("rope reversed", every, {"rope": {"sign": -1.0}}, "rope reversed"),
        ("rope counts for pixels", pixel, {"rope": {"kind": "lang"}}, "rope positions of the other kind"),
        ("rope pixels for counts", lang, {"rope": {"kind": "pixel"}}, "rope positions of the other kind"),
        ("rope of lang for pixel", pixel, {"rope": {"kind": "lang", "width": 4}}, "rope of the other kind"),
        ("rope of pixel for lang", lang, {"rope": {"kind": "pixel", "width": 4}}, "rope of the other kind"),
        ("rope one position late", lang, {"rope": {"first": 1}}, "rope one position late"),
        ("rope of another base", lang, {"rope": {"base": 500000.0}}, "rope base"),
    ):
        yield Kind(name, "moe", where, made(plant.attention, how), cause)
    yield Kind("rope not on keys", "rope on keys", every, plant.attention(rotate="queries alone"), "rope not on keys")
    for name, network, where, how, cause in (
        ("alibi slopes halve", "alibi", every, {"slopes": "halving"}, "alibi slopes"),
        ("alibi slopes from 1", "alibi", every, {"slopes": "first 1"}, "alibi slopes from 1"),
        ("alibi behind the scale", "alibi", every, {"late": True}, "alibi behind the scale"),
        ("alibi added", "alibi", every, {"sign": 1.0}, "alibi sign"),
        ("alibi left out", "alibi", every, {"slopes": "none"}, "alibi left out"),
        ("alibi aligned at the start", "alibi", rf"{SCA}/self", {"at_start": True}, "alibi aligned at the start"),
        ("trained slopes for all heads", "alibit", every, {"slopes": "all trained"}, "alibi slopes of all heads"),
    ):
        yield Kind(name, network, where, plant.attention(alibi=how), cause)
    for name, network, how, cause in (
        ("positions left out", "single", "no positions", "positions left out"),
        ("positions one frame late", "single", "one late", "positions one frame late"),
        ("positions of the first frame", "single", "first only", "positions of the first frame"),
        ("positions in every block", "multi", "positions always", "positions in every block"),
        ("positions in time in every block", "kdt", "time always", "positions in time in every block"),
        ("positions in time left out", "kdt", "time never", "positions in time left out"),
    ):
        yield Kind(name, network, "encoder", plant.perceiver_encoder(how), cause)
    yield Kind(
        "positions in time not added",
        "kdt",
        r"encoder/blocks_0",
        plant.perceiver_block("no positions"),
        "positions in time left out",
    )


def _perceiver_stack() -> Iterator[Kind]:
    for name, network, how, cause in (
        ("channels as columns", "multi", "channels as columns", "channels as columns"),
        ("columns as channels", "tk", "channels as columns", "channels as columns"),
        ("latents transposed", "multi", "transposed", "latents transposed"),
        ("latents reversed", "multi", "reversed", "latents reversed"),
        ("latents anew in every block", "multi", "latents anew", "latents anew in every block"),
    ):
        yield Kind(name, network, "encoder", plant.perceiver_encoder(how), cause)
    for name, how, cause in (
        ("time and latents exchanged by a reshape", "reshaped", "time and latents exchanged"),
        ("time and latents exchanged back by a reshape", "reshaped back", "latents and time exchanged back"),
        ("attention among latents for time", "latents for time", "attention among latents for time"),
        ("cross attention skipped", "local skips", "cross attention skipped"),
    ):
        yield Kind(name, "multi", r"encoder/blocks_\d", plant.perceiver_block(how), cause)
    for name, how, cause in (
        ("feed forward beside the attention", "parallel", "feed forward beside the attention"),
        ("feed forward without norm", "no norm", "norm left out"),
        ("residual of a feed forward left out", "no residual", "residual left out"),
        ("residual of the layer's input", "first input", "sum of the layer's input"),
        ("residual behind the feed forward's norm", "normed", "residual behind the norm"),
    ):
        yield Kind(name, "multi", rf"{LOCAL}|{TEMPORAL}", plant.perceiver_layer(how), cause)


def _feed_forwards() -> Iterator[Kind]:
    where = rf"({LOCAL}|{TEMPORAL})/mlp"
    for function, cause in (("gelu tanh", "gelu_tanh"), ("relu", "relu"), ("silu", "silu"), ("none", "identity")):
        yield Kind(f"mlp: {function} for gelu", "single", where, plant.feed_forward(function), f"{cause} for gelu")
    for name, how, cause in (
        ("gate and w1 exchanged", "exchanged", "gate and w1 exchanged"),
        ("gate left out", "no gate", "gate left out"),
        ("halves of a gated mlp added", "sum", "halves added"),
    ):
        yield Kind(name, "gmlp", where, plant.gated(how), cause)
    yield Kind("gated mlp: gelu for relu", "gmlp", where, plant.gated(function="gelu"), "gelu for relu")


def _experts() -> Iterator[Kind]:
    where, expert = rf"({LOCAL}|{TEMPORAL})/mlp", rf"({LOCAL}|{TEMPORAL})/mlp/experts_\d"
    for name, network, how, cause in (
        ("experts not renormalised", "moe", "not renormalised", "experts not renormalised"),
        ("softmax again over the chosen", "moe", "softmax again", "softmax twice"),
        ("one expert more", "moe", "more", "one expert more"),
        ("one expert fewer", "top 3", "fewer", "one expert fewer"),
        ("all experts", "top 3", "all", "all experts"),
        ("worst experts", "moe", "worst", "worst experts"),
        ("sigmoid router", "moe", "sigmoid", "sigmoid router"),
        ("equal weights of experts", "top 3", "equal", "equal weights"),
        ("weights of experts exchanged", "moe", "exchanged", "weights of experts exchanged"),
        ("experts off by one", "top 3", "permuted", "experts permuted by 1|experts permuted by 4"),
    ):
        yield Kind(name, network, where, plant.mixture(how), cause)
    # p_i / sum p_j over the chosen is the softmax of their logits
    yield Kind("softmax over the chosen logits", "moe", where, plant.mixture("softmax of the chosen"), "", EQUIVALENT)
    for name, how, cause in (
        ("gate and w1 of an expert exchanged", {"how": "exchanged"}, "gate and w1 exchanged"),
        ("gelu for silu in an expert", {"function": "gelu"}, "gelu for silu"),
    ):
        yield Kind(name, "moe", expert, made(plant.gated, how), cause)
    yield Kind(
        "norm in front of a t5 stack's experts",
        "t5 experts",
        r"encoder/encoder/block_\d",
        plant.experts_normed,
        "norm in front of the experts",
    )


def _t5() -> Iterator[Kind]:
    own, cross = rf"{SELF_T5}/SelfAttention", rf"{CROSS_T5}/EncDecAttention"
    causal = r"decoder/decoder/block_\d/layer_0/SelfAttention"
    for name, where, how, cause in (
        ("t5 scores divided", f"{own}|{cross}", {"scale": True}, "scores divided"),
        ("t5 softmax over queries", cross, {"over_queries": True}, "softmax over queries"),
        ("t5 keys for values", f"{own}|{cross}", {"value_of": "k"}, "keys for values"),
        ("no causal mask", causal, {"mask": "none"}, "no causal mask"),
        ("mask one position ahead", causal, {"mask": "ahead"}, "mask one position ahead"),
        ("mask hides the position itself", causal, {"mask": "strict"}, "mask hides the position itself"),
    ):
        yield Kind(name, "ymt3plus", where, made(plant.t5_attention, how), cause)
    yield Kind(
        "relative bias in the first block only",
        "t5 trainable",
        r"encoder/encoder/block_1/layer_0/SelfAttention",
        plant.t5_attention(bias_off=True),
        "relative bias left out",
    )
    for name, where, change, cause in (
        (
            "buckets both ways in the decoder",
            "decoder/decoder",
            plant.buckets(both_ways=True),
            "buckets of the other.*",
        ),
        ("buckets one way in the encoder", "encoder/encoder", plant.buckets(both_ways=False), "buckets of the other.*"),
        ("buckets of another distance", "(en|de)coder/(en|de)coder", plant.buckets(far=64), "buckets of another.*"),
    ):
        yield Kind(name, "t5 trainable", where, change, cause)
    for name, where, inner, how, cause in (
        ("t5 self attention without norm", SELF_T5, "SelfAttention", "no norm", "norm left out"),
        ("t5 residual left out", SELF_T5, "SelfAttention", "no residual", "residual left out"),
        ("t5 residual behind the norm", CROSS_T5, "EncDecAttention", "normed", "residual behind the norm"),
        ("frames reversed in cross attention", CROSS_T5, "EncDecAttention", "frames reversed", "frames reversed"),
        ("t5 feed forward without norm", FF_T5, "DenseReluDense", "no norm", "norm left out"),
        ("t5 feed forward without residual", FF_T5, "DenseReluDense", "no residual", "residual left out"),
    ):
        yield Kind(name, "ymt3plus", where, plant.sublayer(inner, how), cause)
    names = ("wi_0", "wi_1", "wo")
    for name, how, cause in (
        ("t5 exact gelu", {"function": "gelu"}, "gelu for gelu_tanh"),
        ("t5 relu", {"function": "relu"}, "relu for gelu_tanh"),
        ("wi_0 and wi_1 exchanged", {"how": "exchanged"}, "gate and w1 exchanged"),
    ):
        yield Kind(name, "ymt3plus", rf"{FF_T5}/DenseReluDense", made(plant.gated, {**how, "names": names}), cause)
    stack = "(en|de)coder/(en|de)coder"
    for name, how, cause in (
        ("mt3's sinusoids", "mt3", "mt3's sinusoids"),
        ("sinusoids interleaved", "interleaved", "sinusoids interleaved"),
        ("cosines before sines", "cosines first", "cosines first"),
        ("t5 positions left out", "left out", "positions left out"),
        ("t5 positions one late", "late", "positions one late"),
    ):
        yield Kind(name, "ymt3plus", stack, plant.stack_input(how), cause)
    yield Kind("norm behind a stack left out", "ymt3plus", stack, plant.no_final_norm, "final norm left out")


def _ends() -> Iterator[Kind]:
    yield Kind(
        "embedding scaled",
        "ymt3plus",
        "embed_tokens",
        plant.change_output(lambda y, given, module: y * 24**0.5),
        "embedding scaled",
    )
    yield Kind(
        "ids off by one",
        "ymt3plus",
        "embed_tokens",
        plant.patch(lambda self, ids: self.weight[(ids + 1) % self.num_embeddings]),
        "ids off by one",
    )
    yield Kind("head scaled once in training", "ymt3plus", "lm_head", plant.scaled_once, "head scaled once")
    yield Kind("head not scaled", "ymt3plus", "lm_head", plant.head(0), "head not scaled")
    yield Kind("head scaled once too often", "multi", "lm_head", plant.head(2), "head scaled twice")
    yield Kind("head scaled though untied", "t5 experts", "lm_head", plant.head(1), "head scaled.*|head not scaled")
    yield Kind("head tied", "ymt3plus", "lm_head/lm_head", plant.tied, "head tied")
    for name, how, cause in (
        ("channels before examples", "channels first", "channels before examples"),
        ("first channel for all", "first channel", "the first channel for all"),
        ("channels reversed in the decoder", "reversed", "channels reversed"),
    ):
        yield Kind(name, "multi", "decoder", plant.fold(how), cause)
    for name, network, how, cause in (
        ("latents joined by features", "single", "features first", "latents transposed"),
        ("latents of a channel apart", "multi", "channels spread", "latents of a channel apart"),
        ("latents of a channel joined by features", "multi", "channel features first", "latents transposed"),
        ("channels of latents reversed", "multi", "channels reversed", "channels reversed"),
        ("groups of latents interleaved", "group linear", "groups interleaved", "latents interleaved"),
        ("time moved forward before the reshape", "depthwise", "time first", "time moved forward"),
    ):
        yield Kind(name, network, "pre_decoder_0", plant.pre_decoder(how), cause)


def _conformer() -> Iterator[Kind]:
    layer = r"encoder/layers_\d"
    for name, how, cause in (
        ("rotary behind the projections", "behind", "rotary left out|rotary behind the projection"),
        ("rotary pairs neighbours", "neighbours", "rotary pairs neighbours"),
        ("rotary on values", "values", "rotary on values"),
        ("rotary left out", "none", "rotary left out"),
        ("rotary reversed", "reversed", "rotary reversed"),
        ("conformer scores not divided", "no scale", "scores not divided"),
    ):
        yield Kind(name, "conformer", f"{layer}/self_attn", plant.conformer_attention(how), cause)
    for name, how, cause in (
        ("first feed forward whole", "first whole", "whole feed forward"),
        ("second feed forward whole", "last whole", "whole feed forward"),
        ("residual of the attention left out", "attention alone", "residual left out"),
        ("last norm of a layer left out", "no last norm", "final norm left out"),
    ):
        yield Kind(name, "conformer", layer, plant.conformer_layer(how), cause)
    for name, how, cause in (
        ("halves of the gate exchanged", "exchanged", "halves of the gate exchanged"),
        ("gate of the convolution left out", "no gate", "gate left out"),
        ("gate without sigmoid", "no sigmoid", "gate without sigmoid"),
        ("convolution: relu for gelu", "relu", "relu for gelu"),
        ("convolution: silu for gelu", "silu", "silu for gelu"),
    ):
        yield Kind(name, "conformer", f"{layer}/conv_module", plant.conformer_convolution(how), cause)
    yield Kind(
        "conformer batch norm in training mode",
        "conformer",
        f"{layer}/conv_module/batch_norm",
        plant.batch_norm(batch=True),
        "batch statistics",
    )
    yield Kind(
        "causal depthwise convolution",
        "conformer",
        f"{layer}/conv_module/depthwise_conv",
        plant.causal_line,
        "padding in front only",
    )
    yield Kind(
        "conformer feed forward: tanh approximation",
        "conformer",
        rf"{layer}/ffn\d",
        plant.conformer_feed_forward("gelu tanh"),
        "gelu_tanh for gelu",
    )


def _weights() -> Iterator[Kind]:
    inside = "{site}(/.*)?"
    mixture, expert = rf"({LOCAL}|{TEMPORAL})/mlp", rf"({LOCAL}|{TEMPORAL})/mlp/experts_\d"
    projection = rf"({LOCAL}|{TEMPORAL})/attention/self"
    for name, network, where, change, cause, blamed in (
        ("two experts exchanged", "moe", mixture, plant.exchange("experts_0", "experts_2"), "experts permuted", inside),
        (
            "arrays of gate and w1 exchanged",
            "moe",
            expert,
            plant.exchange("gate", "w1"),
            "gate and w1 exchanged",
            inside,
        ),
        (
            "arrays of query and key exchanged",
            "multi",
            projection,
            plant.exchange("query", "key"),
            "key and query.*",
            inside,
        ),
        (
            "arrays of key and value exchanged",
            "multi",
            projection,
            plant.exchange("key", "value"),
            "key and value.*",
            inside,
        ),
        (
            "blocks exchanged",
            "multi",
            "encoder",
            plant.exchange("blocks_0", "blocks_1"),
            "layers exchanged",
            r"encoder/blocks_\d.*",
        ),
        (
            "t5 blocks exchanged",
            "ymt3plus",
            "decoder/decoder",
            plant.exchange("block_0", "block_1"),
            "layers exchanged",
            r"decoder/decoder/block_\d.*",
        ),
        (
            "arrays of query and value exchanged",
            "single",
            projection,
            plant.exchange("query", "value"),
            "query and value.*",
            inside,
        ),
    ):
        yield Kind(name, network, where, change, cause, WEIGHTS, blamed)
    matrix = rf"({LOCAL}|{TEMPORAL})/attention/self/(query|key|value)"
    for name, network, where, change, cause in (
        ("matrix transposed", "multi", matrix, plant.edit(np.transpose), "transposed"),
        ("heads reversed", "multi", matrix, plant.heads_reversed("perceiver"), "heads permuted"),
        (
            "t5 heads reversed",
            "ymt3plus",
            rf"{SELF_T5}/SelfAttention/[qkv]",
            plant.heads_reversed("t5"),
            "heads permuted",
        ),
        ("bfloat16 weights", "multi", matrix, plant.edit(plant.rounded), "bfloat16 weights"),
        ("weights negated", "multi", matrix, plant.edit(np.negative), "negated"),
        ("one value changed", "multi", matrix, plant.edit(plant.one_element), "some values"),
        ("weights halved", "multi", matrix, plant.edit(lambda a: a * np.float32(0.3)), "scaled"),
        ("weights of zeros", "multi", matrix, plant.edit(np.zeros_like), "zeros"),
        (
            "kernel flipped",
            "single",
            r"pre_encoder_0/blocks_\d/conv\d",
            plant.edit(lambda a: a[:, :, ::-1, ::-1]),
            "kernel flipped",
        ),
        (
            "kernel with time and frequency exchanged",
            "single",
            r"pre_encoder_0/blocks_\d/conv\d",
            plant.edit(lambda a: a.swapaxes(2, 3)),
            "time and frequency exchanged",
        ),
        (
            "rows permuted",
            "single",
            r"pre_decoder_0/projection_layer",
            plant.edit(lambda a: a[np.random.default_rng(5).permutation(len(a))]),
            "rows permuted",
        ),
        ("head holds the embedding", "ymt3plus", "lm_head/lm_head", plant.tie_arrays, "holds embed_tokens.weight"),
        ("scale less 1", "single", rf"{LOCAL}/layernorm", plant.edit(lambda a: a - 1), "-1 added"),
    ):
        yield Kind(name, network, where, change, cause, WEIGHTS)
    for name, network, where, change, leaf, cause in (
        (
            "latents reversed in the file",
            "multi",
            "encoder/latent_array",
            lambda a: a[::-1],
            "latents",
            "rows reversed",
        ),
        (
            "latents reshaped in the file",
            "multi",
            "encoder/latent_array",
            lambda a: a.T.reshape(a.shape),
            "latents",
            "reshaped, not transposed",
        ),
        (
            "running mean of zeros",
            "single",
            r"pre_encoder_0/blocks_\d/bn\d",
            np.zeros_like,
            "running_mean",
            "zeros",
        ),
        ("running variance of ones", "single", r"pre_encoder_0/blocks_\d/bn\d", np.ones_like, "running_var", "ones"),
        (
            "deviation for running variance",
            "single",
            r"pre_encoder_0/blocks_\d/bn\d",
            np.sqrt,
            "running_var",
            "deviation for variance",
        ),
        (
            "table of mt3's sinusoids",
            "ymt3plus",
            "(en|de)coder/(en|de)coder/additive_pe",
            plant.mt3_table,
            "weight",
            "mt3's sinusoids",
        ),
        (
            "frequencies of the other kind",
            "moe",
            "encoder/rotary_emb_temporal",
            lambda a: (np.pi * np.linspace(1, 5, len(a))).astype(np.float32),
            "freqs",
            r"frequencies of pixel|holds .*freqs",
        ),
        ("scale of ones", "single", rf"{TEMPORAL}/layernorm", np.ones_like, "weight", "ones"),
        ("positions reversed", "single", "encoder/pos_emb", lambda a: a[::-1], "_pos_emb", "rows reversed"),
    ):
        yield Kind(name, network, where, plant.edit(change, leaf), cause, WEIGHTS)
