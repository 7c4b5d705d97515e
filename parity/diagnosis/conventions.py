"""Naming conventions of published libraries, as data: which array of MT3 a name means, and how the array lies.

A row is a name without what wraps it (`module.`, `base_layer`, …) and without its last word (`weight`, `kernel`, …), in
dots. `{stack}` is encoder or decoder, `{n}` the number of a layer, `{3n+1}` a number of sub-layers that is three times
a layer's plus one. Its meaning is a part of the layer (`self.query`, `norm.mlp`), or several that are joined in that
order.
"""

import functools
import itertools
import re
from collections.abc import Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """One name of a convention.

    Attributes:
        pattern: matches a whole name in dots.
        stack: 'encoder' or 'decoder'.
        step, offset: a number in the name is `step` times the layer's, plus `offset`; step 0 where there is none.
        parts: what it means, in the order in which they are joined.
        convention: where it comes from.
    """

    pattern: re.Pattern[str]
    stack: str
    step: int
    offset: int
    parts: tuple[str, ...]
    convention: "Convention"


class Convention(NamedTuple):
    """The names that one library gives to the arrays of an encoder and a decoder.

    Attributes:
        name: of the library.
        source: where the names stand.
        layout: of a `weight`: 'out, in' as nn.Linear keeps it, or 'in, out'; a `kernel` is always (in, out).
        rows: names that mean one thing.
        loose: names that ports use where the library has no such array; they are believed for what they hold.
    """

    name: str
    source: str
    layout: str
    rows: Mapping[str, str]
    loose: Mapping[str, str] = {}


def _attention(prefix: str, module: str, names: tuple[str, ...]) -> dict[str, str]:
    """Rows of the four kernels of an attention, of which `module` is 'self' or 'cross'."""
    parts = ("query", "key", "value", "out")
    return {f"{prefix}.{name}": f"{module}.{part}" for name, part in zip(names, parts)}


_LETTERS = ("q_proj", "k_proj", "v_proj", "out_proj")
_WORDS = ("query", "key", "value", "out")
_LAYERS = "{stack}.layers.{n}"
# the MLP without a gate has two arrays, a port with one three
_FC_PORT = {f"{_LAYERS}.fc1": "mlp.wi_0", f"{_LAYERS}.fc_gate": "mlp.wi_1", f"{_LAYERS}.fc2": "mlp.wo"}
_TOP = {
    "encoder.input_projection": "input",
    "decoder.embed_tokens": "embedding",
    "decoder.output_projection": "head",
}

CONVENTIONS = (
    Convention(
        "T5X",
        "t5x.examples.scalable_t5 and MT3's own network.py",
        "out, in",
        {
            **_attention("encoder.layers.{n}.attention", "self", _WORDS),
            **_attention("decoder.layers.{n}.self_attention", "self", _WORDS),
            **_attention("decoder.layers.{n}.encoder_decoder_attention", "cross", _WORDS),
            "encoder.layers.{n}.pre_attention_layer_norm": "norm.self",
            "decoder.layers.{n}.pre_self_attention_layer_norm": "norm.self",
            "decoder.layers.{n}.pre_cross_attention_layer_norm": "norm.cross",
            f"{_LAYERS}.pre_mlp_layer_norm": "norm.mlp",
            f"{_LAYERS}.mlp.wi_0": "mlp.wi_0",
            f"{_LAYERS}.mlp.wi_1": "mlp.wi_1",
            f"{_LAYERS}.mlp.wo": "mlp.wo",
            "{stack}.{stack}_norm": "final",
            "encoder.continuous_inputs_projection": "input",
            "decoder.token_embedder": "embedding",
            "decoder.logits_dense": "head",
        },
    ),
    Convention(
        "transformers T5",
        "transformers.T5ForConditionalGeneration",
        "out, in",
        {
            **_attention("{stack}.block.{n}.layer.0.SelfAttention", "self", ("q", "k", "v", "o")),
            **_attention("decoder.block.{n}.layer.1.EncDecAttention", "cross", ("q", "k", "v", "o")),
            "{stack}.block.{n}.layer.0.layer_norm": "norm.self",
            "decoder.block.{n}.layer.1.layer_norm": "norm.cross",
            "encoder.block.{n}.layer.1.layer_norm": "norm.mlp",
            "decoder.block.{n}.layer.2.layer_norm": "norm.mlp",
            **{f"encoder.block.{{n}}.layer.1.DenseReluDense.{part}": f"mlp.{part}" for part in ("wi_0", "wi_1", "wo")},
            **{f"decoder.block.{{n}}.layer.2.DenseReluDense.{part}": f"mlp.{part}" for part in ("wi_0", "wi_1", "wo")},
            "{stack}.final_layer_norm": "final",
            "proj": "input",
            "decoder_embed_tokens": "embedding",
            "shared": "embedding",
            "decoder.embed_tokens": "embedding",
            "lm_head": "head",
        },
    ),
    Convention(
        "fairseq and transformers BART",
        "fairseq.models.transformer; transformers.BartModel, WhisperModel, MBartModel",
        "out, in",
        {
            **_attention(f"{_LAYERS}.self_attn", "self", _LETTERS),
            **_attention("decoder.layers.{n}.encoder_attn", "cross", _LETTERS),
            f"{_LAYERS}.self_attn.in_proj": "self.query self.key self.value",
            "decoder.layers.{n}.encoder_attn.in_proj": "cross.query cross.key cross.value",
            f"{_LAYERS}.self_attn_layer_norm": "norm.self",
            "decoder.layers.{n}.encoder_attn_layer_norm": "norm.cross",
            f"{_LAYERS}.final_layer_norm": "norm.mlp",
            "{stack}.layer_norm": "final",
            **_TOP,
            "proj_out": "head",
        },
        _FC_PORT,
    ),
    Convention(
        "OpenAI Whisper",
        "whisper.model",
        "out, in",
        {
            **_attention("{stack}.blocks.{n}.attn", "self", _WORDS),
            **_attention("decoder.blocks.{n}.cross_attn", "cross", _WORDS),
            "{stack}.blocks.{n}.attn_ln": "norm.self",
            "decoder.blocks.{n}.cross_attn_ln": "norm.cross",
            "{stack}.blocks.{n}.mlp_ln": "norm.mlp",
            "{stack}.blocks.{n}.mlp.gate_proj": "mlp.wi_0",
            "{stack}.blocks.{n}.mlp.up_proj": "mlp.wi_1",
            "{stack}.blocks.{n}.mlp.down_proj": "mlp.wo",
            "encoder.ln_post": "final",
            "decoder.ln": "final",
            "encoder.input_projection": "input",
            "decoder.token_embedding": "embedding",
            "decoder.head": "head",
        },
    ),
    Convention(
        "torch.nn.Transformer",
        "torch.nn.TransformerEncoderLayer, TransformerDecoderLayer",
        "out, in",
        {
            f"{_LAYERS}.self_attn.in_proj": "self.query self.key self.value",
            f"{_LAYERS}.self_attn.out_proj": "self.out",
            "decoder.layers.{n}.multihead_attn.in_proj": "cross.query cross.key cross.value",
            "decoder.layers.{n}.multihead_attn.out_proj": "cross.out",
            **_attention("decoder.layers.{n}.multihead_attn", "cross", _LETTERS),
            f"{_LAYERS}.norm1": "norm.self",
            "encoder.layers.{n}.norm2": "norm.mlp",
            "decoder.layers.{n}.norm2": "norm.cross",
            "decoder.layers.{n}.norm3": "norm.mlp",
            "{stack}.norm": "final",
            **_TOP,
        },
        {f"{_LAYERS}.linear1": "mlp.wi_0", f"{_LAYERS}.linear_gate": "mlp.wi_1", f"{_LAYERS}.linear2": "mlp.wo"},
    ),
    Convention(
        "Megatron and GPT-NeoX",
        "Megatron-LM's T5; transformers.GPTNeoXModel",
        "out, in",
        {
            "encoder.layers.{n}.attention.query_key_value": "self.query self.key self.value",
            "decoder.layers.{n}.attention.query_key_value": "self.query self.key self.value",
            f"{_LAYERS}.self_attention.query_key_value": "self.query self.key self.value",
            f"{_LAYERS}.attention.dense": "self.out",
            f"{_LAYERS}.self_attention.dense": "self.out",
            "decoder.layers.{n}.inter_attention.query": "cross.query",
            "decoder.layers.{n}.inter_attention.key_value": "cross.key cross.value",
            "decoder.layers.{n}.inter_attention.dense": "cross.out",
            f"{_LAYERS}.input_layernorm": "norm.self",
            "encoder.layers.{n}.post_attention_layernorm": "norm.mlp",
            "decoder.layers.{n}.post_attention_layernorm": "norm.cross",
            "decoder.layers.{n}.post_inter_attention_layernorm": "norm.mlp",
            f"{_LAYERS}.mlp.dense_h_to_4h": "mlp.wi_0 mlp.wi_1",
            f"{_LAYERS}.mlp.dense_4h_to_h": "mlp.wo",
            "{stack}.final_layernorm": "final",
            "encoder.input_projection": "input",
            "embedding.word_embeddings": "embedding",
            "output_layer": "head",
        },
    ),
    Convention(
        "x-transformers",
        "x_transformers.XTransformer, with cross attention and GLU",
        "out, in",
        {
            **_attention("encoder.attn_layers.layers.{2n+0}.1", "self", ("to_q", "to_k", "to_v", "to_out")),
            **_attention("decoder.attn_layers.layers.{3n+0}.1", "self", ("to_q", "to_k", "to_v", "to_out")),
            **_attention("decoder.attn_layers.layers.{3n+1}.1", "cross", ("to_q", "to_k", "to_v", "to_out")),
            "encoder.attn_layers.layers.{2n+0}.1.to_kv": "self.key self.value",
            "decoder.attn_layers.layers.{3n+0}.1.to_kv": "self.key self.value",
            "decoder.attn_layers.layers.{3n+1}.1.to_kv": "cross.key cross.value",
            "encoder.attn_layers.layers.{2n+0}.0.0": "norm.self",
            "decoder.attn_layers.layers.{3n+0}.0.0": "norm.self",
            "decoder.attn_layers.layers.{3n+1}.0.0": "norm.cross",
            "encoder.attn_layers.layers.{2n+1}.0.0": "norm.mlp",
            "decoder.attn_layers.layers.{3n+2}.0.0": "norm.mlp",
            "encoder.attn_layers.layers.{2n+1}.1.ff.0.proj": "mlp.wi_1 mlp.wi_0",
            "decoder.attn_layers.layers.{3n+2}.1.ff.0.proj": "mlp.wi_1 mlp.wi_0",
            **{f"encoder.attn_layers.layers.{{2n+1}}.1.ff.{i}": "mlp.wo" for i in (2, 3)},
            **{f"decoder.attn_layers.layers.{{3n+2}}.1.ff.{i}": "mlp.wo" for i in (2, 3)},
            "{stack}.attn_layers.final_norm": "final",
            "encoder.project_in": "input",
            "decoder.token_emb.emb": "embedding",
            "decoder.to_logits": "head",
        },
    ),
    Convention(
        "LLaMA",
        "Meta's llama and torchtune; cross attention as in Llama 3.2 Vision",
        "out, in",
        {
            **_attention(f"{_LAYERS}.attention", "self", ("wq", "wk", "wv", "wo")),
            **_attention("decoder.layers.{n}.cross_attention", "cross", ("wq", "wk", "wv", "wo")),
            f"{_LAYERS}.attention_norm": "norm.self",
            "decoder.layers.{n}.cross_attention_norm": "norm.cross",
            f"{_LAYERS}.ffn_norm": "norm.mlp",
            f"{_LAYERS}.feed_forward.w1": "mlp.wi_0",
            f"{_LAYERS}.feed_forward.w3": "mlp.wi_1",
            f"{_LAYERS}.feed_forward.w2": "mlp.wo",
            "{stack}.norm": "final",
            "encoder.input_projection": "input",
            "decoder.tok_embeddings": "embedding",
            "decoder.output": "head",
        },
    ),
    Convention(
        "transformers LLaMA",
        "transformers.LlamaModel, MllamaModel, T5GemmaModel",
        "out, in",
        {
            **_attention(f"{_LAYERS}.self_attn", "self", ("q_proj", "k_proj", "v_proj", "o_proj")),
            **_attention("decoder.layers.{n}.cross_attn", "cross", ("q_proj", "k_proj", "v_proj", "o_proj")),
            f"{_LAYERS}.pre_self_attn_layernorm": "norm.self",
            "decoder.layers.{n}.pre_cross_attn_layernorm": "norm.cross",
            f"{_LAYERS}.pre_feedforward_layernorm": "norm.mlp",
            f"{_LAYERS}.mlp.gate_proj": "mlp.wi_0",
            f"{_LAYERS}.mlp.up_proj": "mlp.wi_1",
            f"{_LAYERS}.mlp.down_proj": "mlp.wo",
            "{stack}.norm": "final",
            **_TOP,
        },
    ),
    Convention(
        "timm",
        "timm.models.vision_transformer with SwiGLU; a decoder with cross attention beside it",
        "out, in",
        {
            "{stack}.blocks.{n}.attn.qkv": "self.query self.key self.value",
            "{stack}.blocks.{n}.attn.proj": "self.out",
            **_attention("decoder.blocks.{n}.cross_attn", "cross", ("q", "k", "v", "proj")),
            "decoder.blocks.{n}.cross_attn.kv": "cross.key cross.value",
            "{stack}.blocks.{n}.norm1": "norm.self",
            "encoder.blocks.{n}.norm2": "norm.mlp",
            "decoder.blocks.{n}.norm2": "norm.cross",
            "decoder.blocks.{n}.norm3": "norm.mlp",
            "{stack}.blocks.{n}.mlp.fc1_g": "mlp.wi_0",
            "{stack}.blocks.{n}.mlp.fc1_x": "mlp.wi_1",
            "{stack}.blocks.{n}.mlp.fc2": "mlp.wo",
            "{stack}.norm": "final",
            "encoder.input_projection": "input",
            "decoder.embed_tokens": "embedding",
            "decoder.head": "head",
        },
    ),
)

# words of a name that say how an array is wrapped, not which it is
WRAPPERS = re.compile(
    r"module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer|parametrizations|params|modules_to_save"
    r"|original_module|_forward_module|default"
)
# the last words of a name; of adapters and parametrizations too
LEAVES = {
    "weight": "weight",
    "kernel": "kernel",
    "scale": "",
    "embedding": "",
    "w": "kernel",
    "g": "",
    "gamma": "",
    "default": "",
    "original": "weight",
    "original0": "",
    "original1": "weight",
    "weight_v": "weight",
    "weight_orig": "weight",
    "value": "",
}


@functools.cache
def rows() -> tuple[Row, ...]:
    """Return the rows of every convention, those that mean one thing; one for each stack."""
    return tuple(
        _compiled(name, meaning, stack, convention)
        for convention in CONVENTIONS
        for (name, meaning), stack in itertools.product(convention.rows.items(), ("encoder", "decoder"))
        if not name.startswith({"encoder": "decoder", "decoder": "encoder"}[stack])
    )


def _compiled(name: str, meaning: str, stack: str, convention: Convention) -> Row:
    step = offset = 0
    pattern = re.escape(name.replace("{stack}", stack)).replace(r"\{", "{").replace(r"\}", "}").replace(r"\+", "+")
    if number := re.search(r"\\\.\{(\d*)n(?:\+(\d))?\}", pattern):
        step, offset = int(number[1] or 1), int(number[2] or 0)
        # the layers of a stack may lie in one array: no number then
        pattern = pattern.replace(number[0], r"\.(\d+)" if step > 1 else r"(?:\.(\d+))?")
    # what stands outside of the layers has no number before it
    before = r"(?:.*\.)?" if step else r"(?:[^.]*[^.\d]\.)*"
    return Row(re.compile(before + pattern), stack, step, offset, tuple(meaning.split()), convention)


def names_of(convention: Convention, layers: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Return a convention's name -> MT3's names, in the order in which they are joined, without last words.

    Of several names for one array the first is taken.

    Args:
        convention: complete, with its loose names.
        layers: number of layers of 'encoder' and 'decoder'.
    """
    names: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for (name, meaning), stack in itertools.product({**convention.rows, **convention.loose}.items(), layers):
        if name.startswith({"encoder": "decoder", "decoder": "encoder"}[stack]):
            continue
        row = _compiled(name, meaning, stack, convention)
        for layer in range(layers[stack] if row.step else 1):
            meant = tuple(original(stack, layer if row.step else None, part) for part in row.parts)
            if not taken & set(meant):
                key = re.sub(r"\{(\d*)n(\+\d)?\}", str(row.step * layer + row.offset), name.replace("{stack}", stack))
                names[key] = meant
                taken |= set(meant)
    return names


def original(stack: str, layer: int | str | None, part: str) -> str:
    """Return MT3's name of a part: ('encoder', 2, 'self.key') is 'encoder/layers_2/attention/key/kernel'.

    Args:
        stack: 'encoder' or 'decoder'.
        layer: its number, '#' for any; None for a part outside the layers.
        part: as in the rows.
    """
    outside = {
        "input": "encoder/continuous_inputs_projection/kernel",
        "embedding": "decoder/token_embedder/embedding",
        "head": "decoder/logits_dense/kernel",
        "final": f"{stack}/{stack}_norm/scale",
    }
    if part in outside:
        return outside[part]
    module, _, last = part.partition(".")
    itself = "self_attention" if stack == "decoder" else "attention"
    if module == "norm":
        prefix = {"self": f"pre_{itself}", "cross": "pre_cross_attention", "mlp": "pre_mlp"}[last]
        return f"{stack}/layers_{layer}/{prefix}_layer_norm/scale"
    modules = {"self": itself, "cross": "encoder_decoder_attention", "mlp": "mlp"}
    return f"{stack}/layers_{layer}/{modules[module]}/{last}/kernel"


RELATIVE = "a relative position bias; MT3 has none (fixed sinusoids are added to the inputs)"
ADAPTERS = "adapters that were not merged"
LAYER_SCALE = "scales of whole blocks (LayerScale)"
BIASES = "biases that are not zero; MT3 has none"
# what libraries call arrays that MT3 does not have, whatever they hold: (words, pattern of the name)
KINDS = (
    (RELATIVE, r"relative_attention_bias|relative_pos|rel_(pos|bias)"),
    (ADAPTERS, r"lora_|adapter|ia3|hada_w|prompt_|prefix_"),
    ("norms of queries and keys", r"\b(q|k|query|key)_?(norm|ln|layer_?norm)\b|norm_[qk]\b"),
    ("a norm of the embeddings", r"(norm|ln)_?emb|emb\w*_?(norm|ln)\b"),
    (LAYER_SCALE, r"\bls\d?\b|layer_?scale|lambda_\d|\bgamma_\d"),
    ("gates of blocks", r"[./](\w*_)?gate$|[./]alpha\w*$"),
    ("statistics of a batch norm", r"running_(mean|var)"),
    (BIASES, r"(bias|[./]b|[./]beta)$"),
)


def kind_of(key: str) -> str:
    """Say what an array is that MT3 does not have, as far as its name tells; '' where it does not."""
    return next((kind for kind, words in KINDS if re.search(words, key.lower())), "")
