"""Meanings of arrays' names, in the spellings of other projects."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

_PARTS = {
    "query": {"q", "query", "q_proj", "wq", "to_q", "query_proj", "linear_q", "q_linear"},
    "key": {"k", "key", "k_proj", "wk", "to_k", "key_proj", "linear_k", "k_linear"},
    "value": {"v", "value", "v_proj", "wv", "to_v", "value_proj", "linear_v", "v_linear"},
    "out": {"o", "out", "o_proj", "out_proj", "to_out", "output", "linear_out", "out_linear", "wo"},
    "wi_0": {"wi_0", "wi0", "w1", "fc1", "gate_proj", "linear1"},
    "wi_1": {"wi_1", "wi1", "w3", "up_proj", "fc1_gate", "fc_gate", "fc3", "linear_gate", "gate"},
    "wo": {"wo", "w2", "fc2", "down_proj", "linear2"},
}
_CROSS = re.compile(r"cross|enc_?dec|encoder_decoder|encoder_attn|src_attn|context")
_ATTENTION = re.compile(r"att(n|ention)|selfatt")
_MLP = re.compile(r"mlp|ffn|feed_?forward|dense|^ff$|^fc\d|^wi_|^wo$")
_NORM = re.compile(r"norm|(^|_)ln\d?(_f|_post)?$")
_HF_T5 = re.compile(
    r"(encoder|decoder)\.block\.\d+\.layer\.\d\.((SelfAttention|EncDecAttention)\.[qkvo]|DenseReluDense\.w\w+|layer_norm)"
    r"\.weight|(encoder|decoder)\.final_layer_norm\.weight|lm_head\.weight|decoder_embed_tokens\.weight|proj\.weight"
)
LETTERS = {"q": "query", "k": "key", "v": "value"}
FUSED = re.compile(r"(?:^|[^a-z])(?:w|c_|to_|in_|fused_)?([qkv](?:_?[qkv]){1,2})(?![a-z])")


@dataclasses.dataclass(frozen=True)
class Meant:
    """The original that a name means; strict if the naming is one that is known exactly."""

    name: str
    strict: bool


def is_torch_name(key: str) -> bool:
    """Tell whether a name is one of the published PyTorch ports' kernels, which nn.Linear keeps as (out, in)."""
    return bool(_HF_T5.fullmatch(key)) and re.search(r"Attention|DenseReluDense", key) is not None


def read_name(key: str, originals: Mapping[str, Any]) -> Meant | None:
    """Read which of the originals an array is meant to be; None where its name does not say.

    Args:
        key: 'encoder.block.0.layer.0.SelfAttention.q.weight', 'decoder/layers_3/mlp/wo/kernel', 'enc.h.2.attn.wq', …
        originals: MT3's names.
    """
    plain = re.sub(r"layers\.(\d+)", r"layers_\1", key).replace(".", "/")
    plain = re.sub(r"^(params|optimizer|target|state|model|module)/", "", re.sub(r"^(optimizer|state)/", "", plain))
    for leaf in ("", "/kernel", "/embedding", "/scale"):
        for name in (plain + leaf, plain.removesuffix("/weight") + leaf):
            if name in originals:
                return Meant(name, strict=True)
    tokens = [token.lower() for token in re.split(r"[./]", key)]
    name = _read_tokens(tokens)
    return Meant(name, strict=bool(_HF_T5.fullmatch(key))) if name in originals else None


def _read_tokens(tokens: list[str]) -> str | None:
    stack = next(
        ("encoder" if t.startswith("enc") else "decoder" for t in tokens[:2] if re.match(r"(en|de)c(oder)?s?$", t)),
        None,
    )
    leafless = [token for token in tokens if token not in ("weight", "kernel", "scale", "embedding", "w", "gamma")]
    numbers = [(i, int(digits[1])) for i, t in enumerate(tokens) if (digits := re.fullmatch(r"(?:[a-z_]*?_?)(\d+)", t))]
    layer = next((n for i, n in numbers if not re.search(r"^(ln|norm|fc|w|wi|linear)_?\d$", tokens[i])), None)
    last = leafless[-1] if leafless else ""
    if layer is None:
        return _read_top(stack, tokens, last)
    if stack is None:
        return None
    base = f"{stack}/layers_{layer}"
    rest = [
        t for t in leafless if not re.fullmatch(r"(en|de)c(oder)?s?|layers?|blocks?|h|\d+|layers?_\d+|block_\d+", t)
    ]
    path = " ".join(rest)
    cross = stack == "decoder" and any(_CROSS.search(token) for token in rest)
    attention = "encoder_decoder_attention" if cross else "self_attention" if stack == "decoder" else "attention"
    if any(_NORM.search(token) for token in rest):
        return _read_layer_norm(base, stack, tokens, rest, cross)
    part = next((part for part, words in _PARTS.items() if last in words), None)
    if part == "out" and last == "wo" and not any(_ATTENTION.search(token) for token in rest):
        part = "wo"
    if part is None:
        return None
    if part in ("query", "key", "value") or (
        part in ("out", "wo") and any(_ATTENTION.search(token) for token in rest) and not _MLP.search(rest[0])
    ):
        return f"{base}/{attention}/{'out' if part in ('out', 'wo') else part}/kernel"
    if part in ("wi_0", "wi_1", "wo") and (len(rest) < 2 or _MLP.search(path)):
        return f"{base}/mlp/{part}/kernel"
    return None


def _read_layer_norm(base: str, stack: str, tokens: list[str], rest: list[str], cross: bool) -> str | None:
    order = {
        "encoder": ["pre_attention", "pre_mlp"],
        "decoder": ["pre_self_attention", "pre_cross_attention", "pre_mlp"],
    }
    names = order[stack]
    word = next(token for token in rest if _NORM.search(token))
    # HF-T5: block.N.layer.K.layer_norm
    position = next(
        (
            int(tokens[i + 1])
            for i, t in enumerate(tokens[:-1])
            if t == "layer" and "block" in tokens and tokens[i + 1].isdigit()
        ),
        None,
    )
    if position is None and (digits := re.search(r"(\d)$", word)):
        position = int(digits[1]) - 1
    if position is not None:
        return f"{base}/{names[position]}_layer_norm/scale" if position < len(names) else None
    if cross:
        return f"{base}/pre_cross_attention_layer_norm/scale"
    if any(_ATTENTION.search(token) or "self" in token for token in rest):
        return f"{base}/{names[0]}_layer_norm/scale"
    if any(_MLP.search(token) or "final" in token for token in rest):
        return f"{base}/pre_mlp_layer_norm/scale"
    return None


def _read_top(stack: str | None, tokens: list[str], last: str) -> str | None:
    if any(_NORM.search(token) for token in tokens):
        return f"{stack}/{stack}_norm/scale" if stack else None
    if last in ("proj", "input_projection", "input_proj", "continuous_inputs_projection", "mel_projection", "in_proj"):
        return "encoder/continuous_inputs_projection/kernel" if stack != "decoder" else None
    if last in ("lm_head", "logits_dense", "output_projection", "logits", "head", "to_logits"):
        return "decoder/logits_dense/kernel"
    if last in ("shared", "token_embedder", "decoder_embed_tokens", "token_embedding", "tok_embeddings", "embedding"):
        return "decoder/token_embedder/embedding"
    if last == "embed_tokens":
        # the known ports keep a copy of the projection under encoder.embed_tokens
        return "decoder/token_embedder/embedding" if stack == "decoder" else None
    return None
