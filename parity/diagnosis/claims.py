"""Claims: the words of an array's name that mean one thing in every project."""

import re
from typing import NamedTuple

from parity.diagnosis.conventions import LEAVES, WRAPPERS


def _words(core: str, plain: bool = True) -> re.Pattern[str]:
    """Match a part's word alone (if `plain`) or with what projects put around it: w_q, linear_q, q_proj, attn_q."""
    before, after = (
        r"(?:(?:w|to|linear|lin|attn|self|cross|context|slf|enc|src|inter)_?)",
        r"(?:_?(?:proj|projection|lin|linear|dense))",
    )
    forms = [rf"{before}+(?:{core}){after}?", rf"(?:{core}){after}", *([core] if plain else [])]
    return re.compile("|".join(f"(?:{form})" for form in forms))


# words of which every project means the same part
PARTS = {
    "query": _words("q|qs|query|queries"),
    "key": _words("k|ks|key|keys"),
    "value": _words("v|vs|value|values"),
    "out": re.compile(r"o|o_proj|out_proj|to_out|linear_out|out_linear"),
    "wi_0": re.compile(r"wi_?0|gate_proj|ffn_gate"),
    "wi_1": re.compile(r"wi_?1|up_proj|ffn_up"),
    "wo": re.compile(r"down_proj|ffn_down|dense_4h_to_h"),
}
# words of the last kernel of an attention, where another word says that it is one
ATTENTION_OUT = _words("o|out|output", plain=False)
# words of the kernels of a gated MLP, where another word says that it is one
MLP_PARTS = {"up": "wi_1", "down": "wo"}
ATTENTION = re.compile(r"att(n|ention)")
_NORMED_ATTENTION = re.compile(r"att(n|ention)|cross|self|slf")
MLP = re.compile(r"mlp|ffn?|pos_ffn|feed_?forward")
NORM = re.compile(r"norm|(^|_)ln(_|\d|$)")
# norms behind a block or a stack, of which each project means another
AFTER = re.compile(r"post|output|final|(^|_)out")
EMBEDDING = re.compile(r"embe?d?|\w*_emb(d|eddings?)?|emb_luts|wte|embeddings?|embed_tokens|token_embedder|lut")
HEAD = re.compile(r"lm_head|to_logits|logits(_dense)?|output_(layer|projection)|proj_out|generator|head|word_prj")
# joined arrays whose name says the order of their parts
JOINED = {
    "in_proj_weight": ("query", "key", "value"),
    "in_proj": ("query", "key", "value"),
    "query_key_value": ("query", "key", "value"),
    "key_value": ("key", "value"),
    "c_attn": ("query", "key", "value"),
    "w_pack": ("query", "key", "value"),
    **dict.fromkeys(("gate_up_proj", "gate_up", "gate_and_up_proj", "ffn_gate_up", "wi_fused"), ("wi_0", "wi_1")),
}
# joined arrays whose rows are head by head (q, k, v of head 0, then of head 1), as Megatron has them
BY_HEAD = re.compile("key_value")
LETTERS = {"q": "query", "k": "key", "v": "value"}
FUSED = re.compile(r"(?:^|[^a-z])(?:w|c_|to_|in_|fused_|linear_)?([qkv](?:_?[qkv]){1,2})(?![a-z])")
KNOWN_PARTS = {"query", "key", "value", "out", "wi_0", "wi_1", "wo"}
STACK = re.compile(r"(en|de)c(oder)?s?")
# words before the number of a layer
NUMBERED = r"layers?|blocks?|blk|h|resblocks|layer_stack|(?:en|de)coders|transformer(?:_layers)?"
# the number of a layer, behind its word
LAYER = re.compile(rf"((?:{NUMBERED})[._/]|(?<=coder_)l)(\d+)", re.IGNORECASE)
# a stack and what is in it in one word: decoder_layer_3, decoder_l3, decoder_norm; no encoder_decoder_attention
_JOINED_STACK = re.compile(r"(?<![a-z0-9])((?:en|de)coder)_(?!decoder|att)")
_SHORT_LAYER = re.compile(r"(?<=coder\.)l(\d+)_")


class Claim(NamedTuple):
    """The words of a name that mean one thing everywhere; None or () where it has none.

    Attributes:
        stack: 'encoder' or 'decoder'.
        layer: number of the layer in its stack.
        attention: 'self' or 'cross', in the decoder.
        parts: of an attention or MLP, in the order in which they are joined; 'norm.attention', 'norm.mlp', 'embedding'
            and 'head' are parts too.
    """

    stack: str | None
    layer: int | None
    attention: str | None
    parts: tuple[str, ...]


def bare_name(key: str) -> tuple[str, str | None]:
    """A name in dots without its wrappers and its last word; that word, as LEAVES has it; None if it is of no kernel.

    ('module.encoder.layers_0.attn.q.base_layer.weight') is ('encoder.layers.0.attn.q', 'weight').
    """
    plain = re.sub(r"\[(\d+)\]", r".\1", key.replace("/", "."))
    plain = re.sub(r"(layers?|blocks?)_(\d+)", r"\1.\2", plain).replace("in_proj_weight", "in_proj.weight")
    words = [word for word in plain.split(".") if word and not WRAPPERS.fullmatch(word)]
    plain = ".".join(words)
    if re.search(r"lora_|\.(bias|b|beta|original0|weight_g)$|^(bias|b)$", plain):
        return plain, None
    plain = re.sub(r"weight\.original1?$", "weight", re.sub(r"\.(kernel|scale|embedding)\.value$", r".\1", plain))
    before, _, last = plain.rpartition(".")
    return (before, LEAVES[last]) if before and last in LEAVES else (plain, "")


def read_claim(key: str) -> Claim:
    """Read what the name of an array says beyond doubt."""
    plain, leaf = bare_name(_SHORT_LAYER.sub(r"layers.\1.", _JOINED_STACK.sub(r"\1.", key.lower())))
    tokens = plain.split(".")
    at = next((i for i, token in enumerate(tokens) if STACK.fullmatch(token)), None)
    stack = None if at is None else "encoder" if tokens[at].startswith("enc") else "decoder"
    rest = tokens if at is None else tokens[at + 1 :]
    # x-transformers counts sub-layers
    layer = None if "attn_layers" in tokens else _layer(rest)
    cross = any(
        re.search(r"cross|enc_?dec|enc(oder)?_att|src_att|context_?(att|w|q|k|v)|inter_att|multihead_attn", token)
        for token in rest
    )
    itself = any(re.search("self|slf", token) for token in rest)
    attention = ("cross" if cross else "self" if itself else None) if stack == "decoder" else None
    words = [token for token in rest if not token.isdigit()]
    parts = joined_parts(key) or (_parts(words, layer) if words and leaf is not None else ())
    return Claim(stack, layer if stack else None, attention, parts)


def _layer(tokens: list[str]) -> int | None:
    """The number behind the first word that counts layers."""
    for word, number in zip(tokens, [*tokens[1:], ""]):
        if re.fullmatch(NUMBERED, word) and number.isdigit():
            return int(number)
    return None


def joined_parts(key: str) -> tuple[str, ...]:
    """Parts that a joined array holds, in the order that its name says; () where it does not."""
    plain = bare_name(key.lower())[0]
    last = plain.rpartition(".")[2]
    if last in JOINED:
        return JOINED[last]
    fused = FUSED.search(plain)
    return tuple(LETTERS[letter] for letter in fused[1] if letter != "_") if fused else ()


def _parts(words: list[str], layer: int | None) -> tuple[str, ...]:
    """The part that the last of a name's words mean; () where they do not say."""
    last, near = words[-1], words[-2:]
    if NORM.search(last) or (len(near) > 1 and NORM.search(near[0]) and not _part_of(last)):
        if any(map(AFTER.search, near)):
            return ()
        is_mlp, is_attention = (any(map(kind.search, near)) for kind in (MLP, _NORMED_ATTENTION))
        return ("norm.mlp",) if is_mlp and not is_attention else ("norm.attention",) if is_attention else ()
    if part := _part_of(last):
        return (part,)
    in_attention, in_mlp = (any(map(kind.search, words)) for kind in (ATTENTION, MLP))
    if ATTENTION_OUT.fullmatch(last) and in_attention and not in_mlp:
        return ("out",)
    if last in MLP_PARTS and in_mlp:
        return (MLP_PARTS[last],)
    if layer is None and any(map(HEAD.fullmatch, near)):
        return ("head",)
    return ("embedding",) if layer is None and any(map(EMBEDDING.fullmatch, near)) else ()


def _part_of(word: str) -> str:
    return next((part for part, words in PARTS.items() if words.fullmatch(word)), "")


def contradicts(claim: Claim, original: str) -> bool:
    """Tell whether a name cannot mean an original; what is outside of the layers may be copied, but to no opposite."""
    stack = original.split("/")[0]
    if "/layers_" not in original:
        is_final, is_head = original.endswith("_norm/scale"), "/logits_dense/" in original
        opposite = "embedding" if is_head else "head" if "/token_embedder/" in original else ""
        return bool((is_final and claim.stack and claim.stack != stack) or claim.parts == (opposite,))
    layer = re.search(r"layers_(\d+)", original)
    attention = re.search(r"/(?:pre_)?(self|cross|encoder_decoder)_attention", original)
    part = original.split("/")[-2]
    if part.endswith("layer_norm"):
        part = "norm.mlp" if part == "pre_mlp_layer_norm" else "norm.attention"
    return bool(
        (claim.stack and stack != claim.stack)
        or (claim.layer is not None and layer and int(layer[1]) != claim.layer)
        or (claim.attention and attention and (attention[1] == "self") != (claim.attention == "self"))
        or (claim.parts and part not in claim.parts)
    )
