"""The table of faults to plant in the PyTorch twin, one at a time.

Kinds come from published ports, issue threads and shared experience; the second column says which. Some pairs of
changes cancel: those are equivalents.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mt3_common.checkpoint.names import array_shapes
from mt3_common.config import NetworkConfig
from parity.diagnosis.finding import sites_of
from parity.mutation import plant_in_modules as modules
from parity.mutation import plant_in_weights as weights


@dataclasses.dataclass(frozen=True)
class Kind:
    """One sort of fault.

    Attributes:
        name: short.
        group: 'weights', 'behaviour', 'unlisted' (a behaviour without a name in the diagnosis, which must say so) or
            'equivalent'.
        source: where such a fault was seen.
        where: a pattern of modules, a list of modules, or a function of the config that lists them.
        plant: (model, site, random) -> None, changes the model.
        causes: regular expression for what the diagnosis may call it, of Finding.cause.
        equivalent: why nothing can tell it from the original, for those that are.
    """

    name: str
    group: str
    source: str
    where: str | list[str] | Callable[[NetworkConfig], list[str]]
    plant: Callable[[Any, str, np.random.Generator], Any]
    causes: str
    equivalent: str = ""

    def sites(self, config: NetworkConfig) -> list[str]:
        """Modules in which it can be planted."""
        if isinstance(self.where, str):
            return modules_like(self.where, config)
        return self.where if isinstance(self.where, list) else self.where(config)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted fault: a kind at a site with a seed."""

    kind: Kind
    site: str
    seed: int


def modules_like(pattern: str, config: NetworkConfig) -> list[str]:
    """Modules whose whole name a pattern matches."""
    return [site for site in sites_of(config) if re.fullmatch(pattern, site)]


def square_kernels(config: NetworkConfig) -> list[str]:
    """Dense modules with as many inputs as outputs."""
    shapes = array_shapes(config)
    return [site for site in modules_like(KERNEL, config) if len(set(shapes[f"{site}/kernel"])) == 1]


def oblong_kernels(config: NetworkConfig) -> list[str]:
    """Dense modules with more inputs than outputs, or fewer."""
    square = square_kernels(config)
    return [site for site in modules_like(KERNEL, config) if site not in square]


ATTENTION = r".*/layers_\d+/(attention|self_attention|encoder_decoder_attention)"
SELF = r"decoder/layers_\d+/self_attention"
CROSS = r"decoder/layers_\d+/encoder_decoder_attention"
QUERY, KEY, VALUE, OUT = (rf"{ATTENTION}/{part}" for part in ("query", "key", "value", "out"))
MLP = r".*/layers_\d+/mlp"
NORM = r".*norm"
LAYER = r".*/layers_\d+"
IN_LAYERS = rf"({QUERY}|{KEY}|{VALUE}|{OUT}|{MLP}/w.*)"
KERNEL = rf"({IN_LAYERS}|encoder/continuous_inputs_projection|decoder/logits_dense)"

# Where a fault was seen whose kind the examination of this harness from outside brought up.
FOUND = "an examination from outside"
FLASH = "autocast; flash attention"

# name, where it was seen, modules, plant, what the diagnosis may call it
WEIGHTS = (
    ("transposed", "t5x #198, gemma ports", square_kernels, weights.edit(lambda w, r: w.T), "transposed"),
    (
        "reshaped, not transposed",
        "t5x #198",
        oblong_kernels,
        weights.edit(lambda w, r: w.T.reshape(w.shape)),
        "reshaped, not transposed",
    ),
    ("wi_0 and wi_1 exchanged", "ports of gated MLPs", MLP, weights.exchange("wi_0", "wi_1"), "exchanged.*wi_1.*"),
    ("query and key exchanged", "MaxText's table", ATTENTION, weights.exchange("query", "key"), "exchanged.*key.*"),
    ("key and value exchanged", "MaxText's table", ATTENTION, weights.exchange("key", "value"), "exchanged.*value.*"),
    ("layers exchanged", "sorting layers_10 before layers_2", LAYER, weights.exchange_layers, "layers exchanged.*"),
    (
        "another layer's weights",
        "converters' index slips",
        IN_LAYERS,
        weights.copy_from(weights.next_layer),
        "holds .*",
    ),
    (
        "the other stack's weights",
        "transformers #26587",
        r"encoder/layers_[01]/mlp/w.*",
        weights.copy_from(weights.other_stack),
        "holds decoder/.*",
    ),
    ("zeros", "uninitialised buffers", KERNEL, weights.edit(lambda w, r: 0 * w), "zeros"),
    ("negated", "sign slips", KERNEL, weights.edit(lambda w, r: -w), "times -1"),
    ("query scaled by 1/sqrt(d)", "axlearn's note on T5X", QUERY, weights.edit_scaled(-0.5), r"times 0\..*"),
    ("query scaled by sqrt(d)", "axlearn's note on T5X", QUERY, weights.edit_scaled(0.5), "times [48].*"),
    ("inputs permuted", "flattening in another order", KERNEL, weights.edit(weights.permuted(1)), "rows permuted.*"),
    (
        "outputs permuted",
        "flattening in another order",
        KERNEL,
        weights.edit(weights.permuted(0)),
        "columns permuted.*",
    ),
    ("heads reversed", "transformers #22573", QUERY, weights.on_heads(lambda w, r: w[::-1]), "heads in the order .*"),
    (
        "head axes exchanged in the weights",
        "transformers #22573",
        f"{QUERY}|{KEY}|{VALUE}",
        weights.on_heads(lambda w, r: w.transpose(1, 0, 2)),
        "head axes exchanged.*",
    ),
    (
        "norm scale missing",
        "converters; MaxText's table",
        NORM,
        weights.edit(lambda w, r: np.ones_like(w)),
        "ones",
    ),
    (
        "another norm's scale",
        "shape-matched loading",
        r".*/pre_mlp_layer_norm",
        weights.copy_from(weights.next_layer),
        "holds .*",
    ),
    ("scale - 1", "Gemma's 1 + w", NORM, weights.edit(lambda w, r: w - 1), "-1 added"),
    ("bfloat16 weights", "openpi #978", KERNEL, weights.edit(weights.rounded("bfloat16")), "bfloat16 weights"),
    ("float16 weights", "openpi #978", KERNEL, weights.edit(weights.rounded("float16")), "float16 weights"),
    ("one element changed", "bit rot", KERNEL, weights.edit(weights.one_element), "1 element changed"),
    ("one output zeroed", "pruning", KERNEL, weights.edit(weights.one_output_zero), "1 column zeroed"),
    ("redrawn", "strict=False", KERNEL, weights.edit(weights.redrawn), "other values"),
    (
        "noise",
        "quantised and back",
        KERNEL,
        weights.edit(lambda w, r: w + 1e-3 * w.std() * r.standard_normal(w.shape)),
        "noise.*",
    ),
    (
        "embedding rows off by 3",
        "special ids counted twice",
        "decoder/token_embedder",
        weights.edit(lambda w, r: np.roll(w, 3, 0)),
        "rows rolled by -3",
    ),
    (
        "embedding cut at 1491",
        "the vocabulary without padding",
        "decoder/token_embedder",
        weights.edit(weights.cut_rows),
        "45 rows zeroed",
    ),
    (
        "logits off by 3",
        "special ids counted twice",
        "decoder/logits_dense",
        weights.edit(lambda w, r: np.roll(w, 3, 0)),
        "columns rolled by -3",
    ),
    (
        "tied head in the weights",
        "transformers #8528; a private port",
        "decoder/logits_dense",
        weights.tie_head,
        "holds decoder/token_embedder/embedding.*",
    ),
)

BEHAVIOURS = (
    ("epsilon 1e-5", "transformers #16766", NORM, modules.norm(eps=1e-5), "eps=1e-05"),
    ("epsilon 1e-12", "transformers #16766", NORM, modules.norm(eps=1e-12), "eps=1e-12"),
    (
        "epsilon outside the root",
        "Keras habits",
        NORM,
        modules.norm(outside=True),
        "eps outside the root",
    ),
    ("LayerNorm", "nn.LayerNorm for RMSNorm", NORM, modules.norm(centred=True), "LayerNorm"),
    ("LayerNorm, 1e-5", "nn.LayerNorm's default", NORM, modules.norm(centred=True, eps=1e-5), "LayerNorm, eps=1e-05"),
    ("1 + scale", "Gemma", NORM, modules.norm(plus_one=True), r"1 \+ scale"),
    ("scale left out", "strict=False", NORM, modules.norm(scaled=False), "norm without scale"),
    ("norm left out", "a lost line", r".*/pre_.*norm", modules.norm(skip=True), "norm missing"),
    (
        "final norm left out",
        "decoder-only habits",
        r"(encoder|decoder)/\1_norm",
        modules.norm(skip=True),
        "norm missing",
    ),
    ("n - 1", "torch.std's default", NORM, modules.norm(unbiased=True), "unbiased variance"),
    ("statistics in bfloat16", "autocast", NORM, modules.norm(low="bfloat16"), "bfloat16 statistics"),
    ("GELU erf", "F.gelu's default; gemma_pytorch", MLP, modules.mlp("gelu_erf"), "gelu_erf"),
    ("ReLU", "a private port", MLP, modules.mlp("relu"), "relu"),
    ("SiLU", "LLaMA habits", MLP, modules.mlp("silu"), "silu"),
    ("quick GELU", "CLIP", MLP, modules.mlp("quick_gelu"), "quick_gelu"),
    ("no activation", "a lost line", MLP, modules.mlp("linear"), "no activation"),
    ("activation on wi_1", "gates in another order", MLP, modules.mlp(gate="wi_1"), "activation on wi_1"),
    ("ReLU on wi_1", "a private port", MLP, modules.mlp("relu", "wi_1"), "relu on wi_1"),
    ("no gate", "plain MLP", MLP, modules.mlp(gate="none"), "wi_1 left out"),
    ("gate added", "a slip", MLP, modules.mlp(gate="sum"), "gate added"),
    (
        "attention scaled",
        "F.scaled_dot_product_attention's default",
        ATTENTION,
        modules.attention(scale=lambda c: c.head_dim**-0.5),
        r"attention scaled by 1/sqrt\(d\)",
    ),
    ("wrong head count", "a private port: 8 heads", ATTENTION, modules.attention(heads=lambda c: 8), "heads=8"),
    ("head axes exchanged", "transformers #22573", ATTENTION, modules.attention(inner=True), "head axes exchanged"),
    (
        "relative bias",
        "HF T5's default",
        r".*/layers_\d+/(attention|self_attention)",
        modules.attention(bias=modules.relative_bias),
        "relative bias",
    ),
    ("ALiBi", "another position scheme", ATTENTION, modules.attention(bias=modules.alibi), "alibi|relative bias"),
    ("softmax over queries", "a wrong axis", ATTENTION, modules.attention(softmax="queries"), "softmax over queries"),
    ("softmax plus one", "quiet attention", ATTENTION, modules.attention(softmax="plus one"), "softmax off by one"),
    (
        "no causal mask in a layer",
        "encoder code reused",
        SELF,
        modules.attention(mask="all but causal"),
        "no causal mask",
    ),
    ("no causal mask", "encoder code reused", ["decoder"], modules.masks("no causal"), "no causal mask"),
    (
        "causal mask hides itself",
        "tril(-1)",
        ["decoder"],
        modules.masks("strict"),
        "causal mask hides the position itself",
    ),
    ("causal mask one ahead", "tril(1)", ["decoder"], modules.masks("ahead"), "causal mask one ahead"),
    ("no padding mask", "ports pass no mask", ["decoder"], modules.masks("no padding"), "no padding mask"),
    ("no mask at all", "ports pass no mask", ["decoder"], modules.masks("none"), "no mask"),
    (
        "zero frames masked",
        "attention masks for padded audio",
        rf"encoder/layers_\d+/attention|{CROSS}",
        modules.frames_masked,
        "zero frames masked",
    ),
    ("encoder norm skipped", "reads hidden_states[-1]", CROSS, modules.encoded("unnormed"), "encoder norm skipped"),
    ("encoder layer left out", "reads hidden_states[-2]", CROSS, modules.encoded("previous"), "encoder layer left out"),
    ("encoder input read", "inputs_embeds for the output", CROSS, modules.encoded("embedded"), "encoder input read"),
    (
        "2k/d sinusoids",
        "kunato/mt3-pytorch, MR-MT3, mt3-infer",
        ".*/positions",
        modules.positions("port"),
        "positions=port",
    ),
    (
        "interleaved sinusoids",
        "the paper's layout",
        ".*/positions",
        modules.positions("interleaved"),
        "positions=interleaved",
    ),
    ("cosines first", "a slip", ".*/positions", modules.positions("cosine_first"), "positions=cosine_first"),
    (
        "positions from 1",
        "T5X: a cache index from -1",
        ".*/positions",
        modules.positions(first=1),
        "first position 1",
    ),
    (
        "positions from -1",
        "T5X: a cache index from -1",
        ".*/positions",
        modules.positions(first=-1),
        "first position -1",
    ),
    (
        "no positions",
        "a lost line",
        ["encoder", "decoder"],
        modules.scaled_sum(position_scale=0.0),
        "positions not added",
    ),
    (
        "embedding times sqrt(emb_dim)",
        "Transformer habits",
        ["encoder", "decoder"],
        modules.scaled_sum(embedding_scale="sqrt"),
        r"scaled by sqrt\(emb_dim\)",
    ),
    ("start token 1", "EOS or BOS for pad", "decoder/token_embedder", modules.ids(modules.start(1)), "start token 1"),
    ("inputs not shifted", "HF's labels", "decoder/token_embedder", modules.unshifted, "tokens not shifted"),
    (
        "ids off by 1",
        "special ids miscounted",
        "decoder/token_embedder",
        modules.ids(lambda ids: (ids + 1).clamp(max=1535)),
        "ids off by 1",
    ),
    (
        "logits scaled",
        "YourMT3 (its lm_head.py)",
        "decoder/logits_dense",
        modules.output(lambda y, m, r: y * m.in_features**-0.5),
        r"logits scaled by 1/sqrt\(emb_dim\)",
    ),
    ("tied head", "HF's default", "decoder/logits_dense", modules.tied_forward(False), "tied head"),
    ("tied head, scaled", "HF T5's default", "decoder/logits_dense", modules.tied_forward(True), "tied head, scaled"),
    ("logits in bfloat16", "autocast", "decoder/logits_dense", modules.low_output("bfloat16"), "bfloat16 output"),
    ("bias added", "nn.Linear's default", KERNEL, modules.output(modules.with_bias), "bias"),
    ("residual missing", "a lost line", LAYER, modules.layer("none"), "residual missing"),
    ("residual from the norm", "post-norm habits", LAYER, modules.layer("normed"), "residual from the norm"),
    ("block left out", "a lost line", LAYER, modules.layer("branch_left_out"), "branch left out"),
    ("dropout active", "model.eval() forgotten", r".*_dropout", modules.output(modules.dropped), "dropout active"),
    ("softmax in bfloat16", FLASH, ATTENTION, modules.attention(softmax="bfloat16"), "bfloat16 softmax"),
    ("softmax in float16", FLASH, ATTENTION, modules.attention(softmax="float16"), "float16 softmax"),
    (
        "query and key in bfloat16",
        FLASH,
        ATTENTION,
        modules.attention(products="bfloat16"),
        "bfloat16 inputs",
    ),
    ("a product in bfloat16", "autocast", KERNEL, modules.low_inputs("bfloat16"), "bfloat16 inputs"),
    ("norm scale in float16", FOUND, NORM, modules.scale_in_float16, "float16 weights"),
    ("table in float16", FOUND, ".*/positions", modules.positions("float16"), "float16 table"),
    ("logits in float16", FOUND, "decoder/logits_dense", modules.low_output("float16"), "float16 output"),
    ("post-norm", FOUND, LAYER, modules.arrangement("post"), "post-norm"),
    ("parallel blocks", "GPT-J; PaLM", LAYER, modules.arrangement("parallel"), "parallel blocks"),
    ("window of 6", "Mistral", SELF, modules.attention(window=6), "window of 6"),
    ("leaky ReLU", FOUND, MLP, modules.mlp("leaky"), "leaky_relu"),
    ("Mish", FOUND, MLP, modules.mlp("mish"), "mish"),
    ("positions late from 8 on", FOUND, ".*/positions", modules.positions("late"), "positions from 8 on"),
    ("positions halved", FOUND, ".*/positions", modules.positions("halved"), "positions times 0.5"),
    (
        "ids clamped",
        "the vocabulary without padding",
        "decoder/token_embedder",
        modules.ids(lambda ids: ids.clamp(max=1390)),
        "ids clamped to 1390",
    ),
    (
        "frames normalised",
        "front ends of other models",
        "encoder/continuous_inputs_projection",
        modules.frames_normalised,
        "frames normalised",
    ),
    ("attention 5 % sharper", FOUND, ATTENTION, modules.attention(scale=lambda c: 1.05), r"attention scaled by 1\.05"),
    (
        "output clipped at 1",
        FOUND,
        f"{MLP}/wo|{OUT}",
        modules.output(lambda y, m, r: y.clamp(-1, 1)),
        "clipped at 1",
    ),
    (
        "logits softly capped",
        "Gemma 2",
        "decoder/logits_dense",
        modules.output(lambda y, m, r: 30 * (y / 30).tanh()),
        "soft cap of 30",
    ),
    ("mask of the inputs", FOUND, ["decoder"], modules.masked_by_inputs, "mask of the inputs"),
    ("one position late", "cache off by one", rf"{VALUE}|{MLP}/wo", modules.output(modules.late), "one position late"),
)

# name, modules, plant
UNLISTED = (
    ("epsilon 3e-6", NORM, modules.norm(eps=3e-6)),
    ("GELU with 0.04", MLP, modules.mlp("gelu_004")),
    ("values squashed", VALUE, modules.output(lambda y, m, r: y.atan())),
    ("first frame ignored", r"encoder/layers_\d+/attention", modules.attention(bias=modules.first_hidden)),
    ("positions 1 % slower", ".*/positions", modules.positions("slow")),
)
# name, modules, plant, why nothing can tell it from the original
EQUIVALENTS = (
    (
        "heads permuted throughout",
        ATTENTION,
        weights.symmetry("heads"),
        "a permutation of heads in query, key, value and out cancels",
    ),
    (
        "query times 4, key over 4",
        ATTENTION,
        weights.symmetry("query and key"),
        "a power of two moves between query and key without rounding",
    ),
    (
        "value times 2, out over 2",
        ATTENTION,
        weights.symmetry("value and out"),
        "a power of two moves between value and out without rounding",
    ),
    (
        "hidden units permuted throughout",
        MLP,
        weights.symmetry("hidden"),
        "a permutation of the MLP's hidden units cancels",
    ),
    ("wi_1 and wo negated", MLP, weights.symmetry("signs"), "two signs cancel: wi_1 is linear"),
    ("no cross mask", CROSS, modules.no_cross_mask, "the mask only hides padded queries, whose outputs nobody reads"),
)
# what an unlisted behaviour may be called
UNNAMED = r"unknown|eps=(2\.[5-9]|3\.[0-5])e-06"
# kind -> modules that may be blamed for it, where that is not the site itself
BLAMED = {
    "wi_0 and wi_1 exchanged": r"{site}/wi_[01]",
    "query and key exchanged": r"{site}/(query|key)",
    "key and value exchanged": r"{site}/(key|value)",
    # what is read is wrong where it is read
    "encoder norm skipped": r"{site}/(key|value)",
    "encoder layer left out": r"{site}/(key|value)",
    "encoder input read": r"{site}/(key|value)",
    "no causal mask": SELF,
    "causal mask hides itself": SELF,
    "causal mask one ahead": SELF,
    "no padding mask": SELF,
    "no mask at all": SELF,
    "mask of the inputs": rf"{SELF}|{CROSS}",
}


def kinds() -> list[Kind]:
    """Every sort of fault, equivalents last."""
    rows = [Kind(row[0], "weights", *row[1:]) for row in WEIGHTS]
    rows += [Kind(row[0], "behaviour", *row[1:]) for row in BEHAVIOURS]
    rows += [Kind(name, "unlisted", "", where, change, UNNAMED) for name, where, change in UNLISTED]
    rows += [Kind(name, "equivalent", "", where, change, "", why) for name, where, change, why in EQUIVALENTS]
    return rows
