"""Weight files under the names of many projects: those of conventions.py, and others that no table has."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mt3_common.config import NetworkConfig
from parity.diagnosis.conventions import CONVENTIONS
from parity.mutation.plant_in_files import Port, port

STACKS = ("encoder", "decoder")


class Spelling(NamedTuple):
    """The names that a project gives to the arrays of a layer, and how its kernels lie.

    Attributes:
        prefixes: of a layer, `{n}` its number: of the encoder and of the decoder.
        own: the self-attention's name, with a dot behind it.
        cross: the cross attention's.
        parts: names of query, key, value and out.
        mlp: names of wi_0, wi_1 and wo.
        norms: names of the norms before self-attention, before cross attention, before the MLP; of the encoder's two.
        outside: names of the input projection, the embedding, the head, the encoder's and the decoder's last norm.
        leaf: last word of a kernel's name.
        transposed: kernels lie (out, in).
        last: last word of a norm's name and of an embedding's.
        form: number of a layer, as in format().
    """

    prefixes: tuple[str, str]
    own: str
    cross: str
    parts: tuple[str, str, str, str]
    mlp: tuple[str, str, str]
    norms: tuple[str, str, str, str, str]
    outside: tuple[str, str, str, str, str]
    leaf: str = "weight"
    transposed: bool = True
    last: tuple[str, str] = ("weight", "weight")
    form: str = "d"


SPELLINGS = {
    "llama.cpp (T5)": Spelling(
        ("enc.blk.{n}.", "dec.blk.{n}."),
        "attn_",
        "cross_attn_",
        ("q", "k", "v", "o"),
        ("ffn_gate", "ffn_up", "ffn_down"),
        ("attn_norm", "cross_attn_norm", "ffn_norm", "attn_norm", "ffn_norm"),
        ("enc.input_proj", "token_embd", "output", "enc.output_norm", "dec.output_norm"),
    ),
    "Mesh TensorFlow (T5)": Spelling(
        ("encoder/block_{n}/", "decoder/block_{n}/"),
        "layer_000/SelfAttention/",
        "layer_001/EncDecAttention/",
        ("q", "k", "v", "o"),
        ("layer_{m}/DenseReluDense/wi_0", "layer_{m}/DenseReluDense/wi_1", "layer_{m}/DenseReluDense/wo"),
        ("layer_000/layer_norm", "layer_001/layer_norm", "layer_002/layer_norm", "layer_000/layer_norm",
         "layer_001/layer_norm"),
        ("encoder/input_projection", "shared", "decoder/logits", "encoder/final_layer_norm",
         "decoder/final_layer_norm"),
        leaf="kernel",
        transposed=False,
        last=("scale", "embedding"),
        form="03d",
    ),
    "ESPnet": Spelling(
        ("encoder.encoders.{n}.", "decoder.decoders.{n}."),
        "self_attn.",
        "src_attn.",
        ("linear_q", "linear_k", "linear_v", "linear_out"),
        ("feed_forward.w_1", "feed_forward.w_gate", "feed_forward.w_2"),
        ("norm1", "norm2", "norm3", "norm1", "norm2"),
        ("encoder.embed.0", "decoder.embed.0", "decoder.output_layer", "encoder.after_norm", "decoder.after_norm"),
    ),
    "OpenNMT": Spelling(
        ("encoder.transformer.{n}.", "decoder.transformer_layers.{n}."),
        "self_attn.",
        "context_attn.",
        ("linear_query", "linear_keys", "linear_values", "final_linear"),
        ("feed_forward.w_1", "feed_forward.w_3", "feed_forward.w_2"),
        ("layer_norm_1", "layer_norm_2", "feed_forward.layer_norm", "layer_norm", "feed_forward.layer_norm"),
        ("encoder.input_projection", "decoder.embeddings.make_embedding.emb_luts.0", "generator",
         "encoder.layer_norm", "decoder.layer_norm"),
    ),
    "attention-is-all-you-need-pytorch": Spelling(
        ("encoder.layer_stack.{n}.", "decoder.layer_stack.{n}."),
        "slf_attn.",
        "enc_attn.",
        ("w_qs", "w_ks", "w_vs", "fc"),
        ("pos_ffn.w_1", "pos_ffn.w_gate", "pos_ffn.w_2"),
        ("slf_attn.layer_norm", "enc_attn.layer_norm", "pos_ffn.layer_norm", "slf_attn.layer_norm",
         "pos_ffn.layer_norm"),
        ("encoder.src_proj", "decoder.trg_word_emb", "trg_word_prj", "encoder.layer_norm", "decoder.layer_norm"),
    ),
    "transformers BERT": Spelling(
        ("encoder.layer.{n}.", "decoder.layer.{n}."),
        "attention.self.",
        "crossattention.self.",
        ("query", "key", "value", "dense"),
        ("intermediate.dense", "intermediate.gate", "output.dense"),
        ("attention.norm", "crossattention.norm", "output.norm", "attention.norm", "output.norm"),
        ("encoder.embeddings.projection", "decoder.embeddings.word_embeddings", "cls.predictions.decoder",
         "encoder.norm", "decoder.norm"),
    ),
    "DistilBERT, XLM": Spelling(
        ("encoder.layer.{n}.", "decoder.layer.{n}."),
        "attention.",
        "encoder_attn.",
        ("q_lin", "k_lin", "v_lin", "out_lin"),
        ("ffn.lin1", "ffn.gate", "ffn.lin2"),
        ("layer_norm1", "layer_norm15", "layer_norm2", "layer_norm1", "layer_norm2"),
        ("encoder.proj", "decoder.embeddings", "pred_layer.proj", "encoder.norm", "decoder.norm"),
    ),
    "MLX": Spelling(
        ("encoder.layers.{n}.", "decoder.layers.{n}."),
        "self_attention.",
        "cross_attention.",
        ("query_proj", "key_proj", "value_proj", "out_proj"),
        ("dense.wi_0", "dense.wi_1", "dense.wo"),
        ("ln1", "ln2", "ln3", "ln1", "ln2"),
        ("encoder.input_proj", "wte", "lm_head.linear", "encoder.ln", "decoder.ln"),
    ),
    "Haiku": Spelling(
        ("net/~/encoder/layer_{n}/", "net/~/decoder/layer_{n}/"),
        "self_attention/",
        "cross_attention/",
        ("query", "key", "value", "linear"),
        ("mlp/gate", "mlp/up", "mlp/down"),
        ("norm_attn", "norm_cross", "norm_mlp", "norm_attn", "norm_mlp"),
        ("net/~/encoder/input", "net/~/embed", "net/~/head", "net/~/encoder/norm", "net/~/decoder/norm"),
        leaf="w",
        transposed=False,
        last=("scale", "embeddings"),
    ),
    "nnx": Spelling(
        ("encoder.layers.{n}.", "decoder.layers.{n}."),
        "attn.",
        "cross_attn.",
        ("query", "key", "value", "out"),
        ("mlp.wi_0", "mlp.wi_1", "mlp.wo"),
        ("norm1", "norm2", "norm3", "norm1", "norm2"),
        ("encoder.proj", "decoder.embed", "decoder.head", "encoder.norm", "decoder.norm"),
        leaf="kernel.value",
        transposed=False,
        last=("scale.value", "embedding.value"),
    ),
    "Keras": Spelling(
        ("model/encoder_layer_{n}/", "model/decoder_layer_{n}/"),
        "self_attention/",
        "cross_attention/",
        ("query_dense", "key_dense", "value_dense", "output_dense"),
        ("ffn_gate_dense", "ffn_intermediate_dense", "ffn_output_dense"),
        ("self_attention_layer_norm", "cross_attention_layer_norm", "ffn_layer_norm", "self_attention_layer_norm",
         "ffn_layer_norm"),
        ("model/encoder_projection", "model/token_embedding", "model/logits", "model/encoder_norm",
         "model/decoder_norm"),
        leaf="kernel",
        transposed=False,
        last=("gamma", "embeddings"),
    ),
    "The Annotated Transformer": Spelling(
        ("encoder.layers.{n}.", "decoder.layers.{n}."),
        "self_attn.",
        "src_attn.",
        ("linears.0", "linears.1", "linears.2", "linears.3"),
        ("feed_forward.w_1", "feed_forward.w_g", "feed_forward.w_2"),
        ("sublayer.0.norm", "sublayer.1.norm", "sublayer.2.norm", "sublayer.0.norm", "sublayer.1.norm"),
        ("src_embed.0", "tgt_embed.0.lut", "generator.proj", "encoder.norm", "decoder.norm"),
        last=("a_2", "weight"),
    ),
    "Marian": Spelling(
        ("encoder_l{n}_", "decoder_l{n}_"),
        "self_",
        "context_",
        ("Wq", "Wk", "Wv", "Wo"),
        ("ffn_W1", "ffn_Wg", "ffn_W2"),
        ("self_Wo_ln_scale", "context_Wo_ln_scale", "ffn_ffn_ln_scale", "self_Wo_ln_scale", "ffn_ffn_ln_scale"),
        ("encoder_input_W", "Wemb", "decoder_ff_logit_out_W", "encoder_top_ln_scale", "decoder_top_ln_scale"),
        leaf="",
        transposed=False,
        last=("", ""),
    ),
}  # fmt: skip


def spelled(original: Mapping[str, np.ndarray], spelling: Spelling, config: NetworkConfig) -> Port:
    """Write the original's arrays under a project's names."""
    arrays, originals = {}, {}
    for name, array in original.items():
        key = _spell(name, spelling)
        kind = name.rpartition("/")[2]
        leaf = {"kernel": spelling.leaf, "scale": spelling.last[0], "embedding": spelling.last[1]}[kind]
        joint = "/" if "/" in spelling.prefixes[0] else "."
        key = key + (joint + leaf if leaf else "")
        turned = spelling.transposed and kind == "kernel"
        arrays[key], originals[key] = np.ascontiguousarray(array.T if turned else array), (name,)
    return Port(arrays, originals, config)


def _spell(name: str, spelling: Spelling) -> str:
    outside = {
        "encoder/continuous_inputs_projection/kernel": 0,
        "decoder/token_embedder/embedding": 1,
        "decoder/logits_dense/kernel": 2,
        "encoder/encoder_norm/scale": 3,
        "decoder/decoder_norm/scale": 4,
    }
    if name in outside:
        return spelling.outside[outside[name]]
    stack, number, module, *rest = re.sub("layers_", "", name).split("/")
    prefix = spelling.prefixes[STACKS.index(stack)].format(n=format(int(number), spelling.form))
    if module.endswith("layer_norm"):
        order = {"pre_self_attention": 0, "pre_cross_attention": 1, "pre_attention": 3}
        index = order.get(module.removesuffix("_layer_norm"), 4 if stack == "encoder" else 2)
        return prefix + spelling.norms[index]
    if module == "mlp":
        word = spelling.mlp[("wi_0", "wi_1", "wo").index(rest[0])]
        return prefix + word.replace("{m}", "001" if stack == "encoder" else "002")
    attention = spelling.cross if module == "encoder_decoder_attention" else spelling.own
    return prefix + attention + spelling.parts[("query", "key", "value", "out").index(rest[0])]


def stacked(original: Mapping[str, np.ndarray], config: NetworkConfig, axis: int) -> Port:
    """T5X's names, the layers of each stack in one array along an axis."""
    arrays, originals = {}, {}
    for name, array in original.items():
        match = re.match(r"(encoder|decoder)/layers_(\d+)/", name)
        if match is None:
            arrays[name], originals[name] = array, (name,)
        elif match[2] == "0":
            count = config.num_encoder_layers if match[1] == "encoder" else config.num_decoder_layers
            names = tuple(name.replace("layers_0", f"layers_{number}") for number in range(count))
            key = name.replace("layers_0", "layers")
            arrays[key] = np.stack([original[layer] for layer in names], axis=min(axis, array.ndim))
            originals[key] = names
    return Port(arrays, originals, config)


def with_heads(original: Mapping[str, np.ndarray], config: NetworkConfig) -> Port:
    """T5X's names in dots, the kernels of attentions with an axis of heads, as Flax's DenseGeneral has them."""
    arrays, originals = {}, {}
    for name, array in original.items():
        if re.search(r"attention/(query|key|value)/", name):
            array = array.reshape(array.shape[0], config.num_heads, config.head_dim)
        elif "attention/out/" in name:
            array = array.reshape(config.num_heads, config.head_dim, array.shape[1])
        key = "params." + name.replace("/", ".")
        arrays[key], originals[key] = array, (name,)
    return Port(arrays, originals, config)


def renamed(given: Port, change: Callable[[str], str]) -> Port:
    """A file with other names: behind a prefix, or wrapped."""
    arrays = {change(key): array for key, array in given.arrays.items()}
    return Port(arrays, {change(key): names for key, names in given.originals.items()}, given.config)


def namings(original: Mapping[str, np.ndarray], config: NetworkConfig) -> Iterator[tuple[str, Port]]:
    """Yield (naming, the original's arrays in it)."""
    for convention in CONVENTIONS:
        yield convention.name, port(original, convention, config)
    for name, spelling in SPELLINGS.items():
        yield name, spelled(original, spelling, config)
    for axis in (0, 1):
        yield f"T5X, layers stacked along axis {axis}", stacked(original, config, axis)
    yield "DenseGeneral", with_heads(original, config)
    hugging = port(original, CONVENTIONS[1], config)
    yield "T5, compiled and distributed", renamed(hugging, lambda key: f"module._orig_mod.{key}")
    yield "T5 behind net.model", renamed(hugging, lambda key: f"net.model.{key}")
    yield "PEFT", renamed(hugging, lambda key: "base_model.model." + re.sub(r"(\.[qv])\.w", r"\1.base_layer.w", key))
    whisper = port(original, CONVENTIONS[3], config)
    yield "Whisper, stacks called enc and dec", renamed(whisper, lambda key: re.sub(r"^(en|de)coder", r"\1c", key))
    yield "Whisper behind transformer", renamed(whisper, lambda key: f"transformer.{key}")
