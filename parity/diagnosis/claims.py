"""Claims: the words of an array's name that mean one thing in every project."""

import re
from typing import NamedTuple

# words of which every project means the same part
PARTS = {
    "query": {"q", "query", "q_proj", "wq", "to_q", "query_proj", "linear_q", "q_linear"},
    "key": {"k", "key", "k_proj", "wk", "to_k", "key_proj", "linear_k", "k_linear"},
    "value": {"v", "value", "v_proj", "wv", "to_v", "value_proj", "linear_v", "v_linear"},
    "out": {"o", "o_proj", "out_proj", "to_out", "linear_out", "out_linear"},
    "wi_0": {"wi_0", "wi0", "gate_proj"},
    "wi_1": {"wi_1", "wi1", "up_proj"},
    "wo": {"down_proj", "dense_4h_to_h"},
}
# joined arrays whose name says the order of their parts
JOINED = {
    "in_proj_weight": ("query", "key", "value"),
    "in_proj": ("query", "key", "value"),
    "query_key_value": ("query", "key", "value"),
    "key_value": ("key", "value"),
    "c_attn": ("query", "key", "value"),
    "w_pack": ("query", "key", "value"),
    "gate_up_proj": ("wi_0", "wi_1"),
}
LETTERS = {"q": "query", "k": "key", "v": "value"}
FUSED = re.compile(r"(?:^|[^a-z])(?:w|c_|to_|in_|fused_|linear_)?([qkv](?:_?[qkv]){1,2})(?![a-z])")
LEAVES = {"weight", "kernel", "scale", "base_layer", "w", "default", "original", "original0", "original1", "weight_v"}
KNOWN_PARTS = {"query", "key", "value", "out", "wi_0", "wi_1", "wo"}
STACK = re.compile(r"(en|de)c(oder)?s?")
NUMBERED = re.compile(r"layers?|blocks?|h|resblocks")


class Claim(NamedTuple):
    """The words of a name that mean one thing everywhere; None or () where it has none.

    Attributes:
        stack: 'encoder' or 'decoder'.
        layer: number of the layer in its stack.
        attention: 'self' or 'cross', in the decoder.
        parts: of an attention or MLP, in the order in which they are joined.
    """

    stack: str | None
    layer: int | None
    attention: str | None
    parts: tuple[str, ...]


def read_claim(key: str) -> Claim:
    """Read what the name of an array says beyond doubt."""
    tokens = [token.lower() for token in re.split(r"[./]", key)]
    at = next((i for i, token in enumerate(tokens) if STACK.fullmatch(token)), None)
    stack = None if at is None else "encoder" if tokens[at].startswith("enc") else "decoder"
    rest = tokens if at is None else tokens[at + 1 :]
    layer = None
    # x-transformers counts sub-layers
    for word, number in [] if "attn_layers" in tokens else zip(rest, [*rest[1:], ""]):
        joined = re.fullmatch(r"(layers?|blocks?)_(\d+)", word)
        if joined or (NUMBERED.fullmatch(word) and number.isdigit()):
            layer = int(joined[2] if joined else number)
            break
    cross = any(re.search(r"cross|enc_?dec|encoder_attn|src_attn|inter_att|multihead_attn", token) for token in rest)
    itself = any("self" in token for token in rest)
    attention = ("cross" if cross else "self" if itself else None) if stack == "decoder" else None
    words = [token for token in rest if token not in LEAVES and not token.isdigit()]
    return Claim(stack, layer if stack else None, attention, joined_parts(key) or _part(words[-1] if words else ""))


def joined_parts(key: str) -> tuple[str, ...]:
    """Parts that a joined array holds, in the order that its name says; () where it does not."""
    tokens = [token for token in re.split(r"[./]", key.lower()) if token not in LEAVES]
    if tokens and tokens[-1] in JOINED:
        return JOINED[tokens[-1]]
    fused = FUSED.search(key.lower())
    return tuple(LETTERS[letter] for letter in fused[1] if letter != "_") if fused else ()


def _part(word: str) -> tuple[str, ...]:
    return next(((part,) for part, words in PARTS.items() if word in words), ())


def contradicts(claim: Claim, original: str) -> bool:
    """Tell whether a name cannot mean an original of a layer; embedding and head may be copied anywhere."""
    if "/layers_" not in original:
        return False
    stack = original.split("/")[0]
    layer = re.search(r"layers_(\d+)", original)
    attention = re.search(r"/(?:pre_)?(self|cross|encoder_decoder)_attention", original)
    part = original.split("/")[-2]
    return bool(
        (claim.stack and stack != claim.stack)
        or (claim.layer is not None and layer and int(layer[1]) != claim.layer)
        or (claim.attention and attention and (attention[1] == "self") != (claim.attention == "self"))
        or (claim.parts and part in KNOWN_PARTS and part not in claim.parts)
    )
