"""The table of faults of YourMT3+ that are planted: in which network, where, how, and what the diagnosis should say."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from parity.mutation.yourmt3_array_faults import array_kinds
from parity.mutation.yourmt3_kinds import CROSS_T5, EQUIVALENT, FF_T5, LOCAL, SCA, SELF_T5, TEMPORAL, Kind
from parity.mutation.yourmt3_plants import conformer, perceiver, planting, pre_encoder, t5_stacks
from parity.mutation.yourmt3_plants.planting import Plant


def made(factory: Callable[..., Plant], how: Mapping[str, Any]) -> Plant:
    """Return factory(**how), for settings whose types a table does not tell."""
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
        *array_kinds(),
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
        yield Kind(name, "single", norm, made(pre_encoder.batch_norm, how), cause)
    for name, how, cause in (
        ("convolution repeats the edge", {"padding": "replicate"}, "padding repeats the edge"),
        ("convolution wraps around", {"padding": "circular"}, "padding wraps"),
        ("convolution reflects the edge", {"padding": "reflect"}, "padding reflects"),
        ("convolution with its kernel flipped", {"flip": True}, "kernel flipped"),
        ("convolution with time and frequency exchanged", {"exchange": True}, "time and frequency exchanged"),
        ("causal convolution", {"causal": True}, "padding in front only"),
    ):
        yield Kind(name, "single", conv, made(pre_encoder.convolution, how), cause)
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
        yield Kind(name, "multi", block, made(pre_encoder.residual_block, how), cause)


def _norms() -> Iterator[Kind]:
    where = r"encoder/blocks_\d/.*(layernorm\d?)"
    for name, how, cause in (
        ("layer norm epsilon 1e-6", {"eps": 1e-6}, "eps=1e-06"),
        ("layer norm epsilon 1e-12", {"eps": 1e-12}, r"eps=(0|1e-12|1e-08)"),
        ("rms norm for layer norm", {"center": False}, "rms norm"),
        ("layer norm without bias", {"bias": False}, "norm without bias"),
    ):
        yield Kind(name, "single", where, made(perceiver.layer_norm, how), cause)
    for name, network, how, cause in (
        ("rms norm epsilon 1e-6", "td", {"eps": 1e-6}, "eps=1e-06"),
        ("layer norm for rms norm", "td", {"center": True}, "layer norm"),
        ("rms norm with 1 + scale", "td", {"scale": "plus one"}, r"1 \+ scale"),
    ):
        yield Kind(name, network, where, made(perceiver.rms_norm, how), cause)
    t5 = r"(en|de)coder/(en|de)coder/(block_\d/layer_\d/layer_norm|final_layer_norm)"
    for name, how, cause in (
        ("t5 norm epsilon 1e-5", {"eps": 1e-5}, "eps=1e-05"),
        ("t5 norm subtracts the mean", {"center": True}, "layer norm"),
        ("t5 norm without scale", {"scale": "none"}, "norm without scale"),
    ):
        yield Kind(name, "ymt3plus", t5, made(perceiver.rms_norm, how), cause)


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
        yield Kind(name, network, where, made(perceiver.attention, how), cause)
    for name, network, how, cause in (
        ("query residual added", "single", "with", "residual added"),
        ("query residual left out", "moe", "without", "residual left out"),
        ("query residual behind the norm", "moe", "normed", "residual behind the norm"),
        ("query residual twice", "moe", "twice", "residual twice"),
    ):
        yield Kind(name, network, SCA, perceiver.attended(how), cause)
    for name, how, cause in (
        ("residual of an attention left out", "without", "residual left out"),
        ("residual of an attention behind the norm", "normed", "residual behind the norm"),
    ):
        yield Kind(name, "multi", rf"({LOCAL}|{TEMPORAL})/attention", perceiver.attended(how), cause)


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
        yield Kind(name, "moe", where, made(perceiver.attention, how), cause)
    yield Kind(
        "rope not on keys", "rope on keys", every, perceiver.attention(rotate="queries alone"), "rope not on keys"
    )
    for name, network, where, how, cause in (
        ("alibi slopes halve", "alibi", every, {"slopes": "halving"}, "alibi slopes"),
        ("alibi slopes from 1", "alibi", every, {"slopes": "first 1"}, "alibi slopes from 1"),
        ("alibi behind the scale", "alibi", every, {"late": True}, "alibi behind the scale"),
        ("alibi added", "alibi", every, {"sign": 1.0}, "alibi sign"),
        ("alibi left out", "alibi", every, {"slopes": "none"}, "alibi left out"),
        ("alibi aligned at the start", "alibi", rf"{SCA}/self", {"at_start": True}, "alibi aligned at the start"),
        ("trained slopes for all heads", "alibit", every, {"slopes": "all trained"}, "alibi slopes of all heads"),
    ):
        yield Kind(name, network, where, perceiver.attention(alibi=how), cause)
    for name, network, how, cause in (
        ("positions left out", "single", "no positions", "positions left out"),
        ("positions one frame late", "single", "one late", "positions one frame late"),
        ("positions of the first frame", "single", "first only", "positions of the first frame"),
        ("positions in every block", "multi", "positions always", "positions in every block"),
        ("positions in time in every block", "kdt", "time always", "positions in time in every block"),
        ("positions in time left out", "kdt", "time never", "positions in time left out"),
    ):
        yield Kind(name, network, "encoder", perceiver.perceiver_encoder(how), cause)
    yield Kind(
        "positions in time not added",
        "kdt",
        r"encoder/blocks_0",
        perceiver.perceiver_block("no positions"),
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
        yield Kind(name, network, "encoder", perceiver.perceiver_encoder(how), cause)
    for name, how, cause in (
        ("time and latents exchanged by a reshape", "reshaped", "time and latents exchanged"),
        ("time and latents exchanged back by a reshape", "reshaped back", "latents and time exchanged back"),
        ("attention among latents for time", "latents for time", "attention among latents for time"),
        ("cross attention skipped", "local skips", "cross attention skipped"),
    ):
        yield Kind(name, "multi", r"encoder/blocks_\d", perceiver.perceiver_block(how), cause)
    for name, how, cause in (
        ("feed forward beside the attention", "parallel", "feed forward beside the attention"),
        ("feed forward without norm", "no norm", "norm left out"),
        ("residual of a feed forward left out", "no residual", "residual left out"),
        ("residual of the layer's input", "first input", "sum of the layer's input"),
        ("residual behind the feed forward's norm", "normed", "residual behind the norm"),
    ):
        yield Kind(name, "multi", rf"{LOCAL}|{TEMPORAL}", perceiver.perceiver_layer(how), cause)


def _feed_forwards() -> Iterator[Kind]:
    where = rf"({LOCAL}|{TEMPORAL})/mlp"
    for function, cause in (("gelu tanh", "gelu_tanh"), ("relu", "relu"), ("silu", "silu"), ("none", "identity")):
        yield Kind(f"mlp: {function} for gelu", "single", where, perceiver.feed_forward(function), f"{cause} for gelu")
    for name, how, cause in (
        ("gate and w1 exchanged", "exchanged", "gate and w1 exchanged"),
        ("gate left out", "no gate", "gate left out"),
        ("halves of a gated mlp added", "sum", "halves added"),
    ):
        yield Kind(name, "gmlp", where, perceiver.gated(how), cause)
    yield Kind("gated mlp: gelu for relu", "gmlp", where, perceiver.gated(function="gelu"), "gelu for relu")


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
        yield Kind(name, network, where, perceiver.mixture(how), cause)
    # p_i / sum p_j over the chosen is the softmax of their logits
    yield Kind(
        "softmax over the chosen logits", "moe", where, perceiver.mixture("softmax of the chosen"), "", EQUIVALENT
    )
    for name, how, cause in (
        ("gate and w1 of an expert exchanged", {"how": "exchanged"}, "gate and w1 exchanged"),
        ("gelu for silu in an expert", {"function": "gelu"}, "gelu for silu"),
    ):
        yield Kind(name, "moe", expert, made(perceiver.gated, how), cause)
    yield Kind(
        "norm in front of a t5 stack's experts",
        "t5 experts",
        r"encoder/encoder/block_\d",
        t5_stacks.experts_normed,
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
        yield Kind(name, "ymt3plus", where, made(t5_stacks.t5_attention, how), cause)
    yield Kind(
        "relative bias in the first block only",
        "t5 trainable",
        r"encoder/encoder/block_1/layer_0/SelfAttention",
        t5_stacks.t5_attention(bias_off=True),
        "relative bias left out",
    )
    for name, where, change, cause in (
        (
            "buckets both ways in the decoder",
            "decoder/decoder",
            t5_stacks.buckets(both_ways=True),
            "buckets of the other.*",
        ),
        (
            "buckets one way in the encoder",
            "encoder/encoder",
            t5_stacks.buckets(both_ways=False),
            "buckets of the other.*",
        ),
        ("buckets of another distance", "(en|de)coder/(en|de)coder", t5_stacks.buckets(far=64), "buckets of another.*"),
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
        yield Kind(name, "ymt3plus", where, t5_stacks.sublayer(inner, how), cause)
    names = ("wi_0", "wi_1", "wo")
    for name, how, cause in (
        ("t5 exact gelu", {"function": "gelu"}, "gelu for gelu_tanh"),
        ("t5 relu", {"function": "relu"}, "relu for gelu_tanh"),
        ("wi_0 and wi_1 exchanged", {"how": "exchanged"}, "gate and w1 exchanged"),
    ):
        yield Kind(name, "ymt3plus", rf"{FF_T5}/DenseReluDense", made(perceiver.gated, {**how, "names": names}), cause)
    stack = "(en|de)coder/(en|de)coder"
    for name, how, cause in (
        ("mt3's sinusoids", "mt3", "mt3's sinusoids"),
        ("sinusoids interleaved", "interleaved", "sinusoids interleaved"),
        ("cosines before sines", "cosines first", "cosines first"),
        ("t5 positions left out", "left out", "positions left out"),
        ("t5 positions one late", "late", "positions one late"),
    ):
        yield Kind(name, "ymt3plus", stack, t5_stacks.stack_input(how), cause)
    yield Kind("norm behind a stack left out", "ymt3plus", stack, t5_stacks.no_final_norm, "final norm left out")


def _ends() -> Iterator[Kind]:
    yield Kind(
        "embedding scaled",
        "ymt3plus",
        "embed_tokens",
        planting.change_output(lambda y, given, module: y * 24**0.5),
        "embedding scaled",
    )
    yield Kind(
        "ids off by one",
        "ymt3plus",
        "embed_tokens",
        planting.patch(lambda self, ids: self.weight[(ids + 1) % self.num_embeddings]),
        "ids off by one",
    )
    yield Kind("head scaled once in training", "ymt3plus", "lm_head", t5_stacks.scaled_once, "head scaled once")
    yield Kind("head not scaled", "ymt3plus", "lm_head", t5_stacks.head(0), "head not scaled")
    yield Kind("head scaled once too often", "multi", "lm_head", t5_stacks.head(2), "head scaled twice")
    yield Kind("head scaled though untied", "t5 experts", "lm_head", t5_stacks.head(1), "head scaled.*|head not scaled")
    yield Kind("head tied", "ymt3plus", "lm_head/lm_head", t5_stacks.tied, "head tied")
    for name, how, cause in (
        ("channels before examples", "channels first", "channels before examples"),
        ("first channel for all", "first channel", "the first channel for all"),
        ("channels reversed in the decoder", "reversed", "channels reversed"),
    ):
        yield Kind(name, "multi", "decoder", t5_stacks.fold(how), cause)
    for name, network, how, cause in (
        ("latents joined by features", "single", "features first", "latents transposed"),
        ("latents of a channel apart", "multi", "channels spread", "latents of a channel apart"),
        ("latents of a channel joined by features", "multi", "channel features first", "latents transposed"),
        ("channels of latents reversed", "multi", "channels reversed", "channels reversed"),
        ("groups of latents interleaved", "group linear", "groups interleaved", "latents interleaved"),
        ("time moved forward before the reshape", "depthwise", "time first", "time moved forward"),
    ):
        yield Kind(name, network, "pre_decoder_0", t5_stacks.pre_decoder(how), cause)


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
        yield Kind(name, "conformer", f"{layer}/self_attn", conformer.conformer_attention(how), cause)
    for name, how, cause in (
        ("first feed forward whole", "first whole", "whole feed forward"),
        ("second feed forward whole", "last whole", "whole feed forward"),
        ("residual of the attention left out", "attention alone", "residual left out"),
        ("last norm of a layer left out", "no last norm", "final norm left out"),
    ):
        yield Kind(name, "conformer", layer, conformer.conformer_layer(how), cause)
    for name, how, cause in (
        ("halves of the gate exchanged", "exchanged", "halves of the gate exchanged"),
        ("gate of the convolution left out", "no gate", "gate left out"),
        ("gate without sigmoid", "no sigmoid", "gate without sigmoid"),
        ("convolution: relu for gelu", "relu", "relu for gelu"),
        ("convolution: silu for gelu", "silu", "silu for gelu"),
    ):
        yield Kind(name, "conformer", f"{layer}/conv_module", conformer.conformer_convolution(how), cause)
    yield Kind(
        "conformer batch norm in training mode",
        "conformer",
        f"{layer}/conv_module/batch_norm",
        pre_encoder.batch_norm(batch=True),
        "batch statistics",
    )
    yield Kind(
        "causal depthwise convolution",
        "conformer",
        f"{layer}/conv_module/depthwise_conv",
        conformer.causal_line,
        "padding in front only",
    )
    yield Kind(
        "conformer feed forward: tanh approximation",
        "conformer",
        rf"{layer}/ffn\d",
        conformer.conformer_feed_forward("gelu tanh"),
        "gelu_tanh for gelu",
    )
