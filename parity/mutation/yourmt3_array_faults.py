"""The table of faults of the arrays of YourMT3+: exchanged, edited, replaced."""

from collections.abc import Iterator

import numpy as np

from parity.mutation.yourmt3_kinds import LOCAL, SELF_T5, TEMPORAL, WEIGHTS, Kind
from parity.mutation.yourmt3_plants.arrays import (
    edit,
    exchange,
    heads_reversed,
    mt3_table,
    one_element,
    rounded,
    tie_arrays,
)

FEED_FORWARD = rf"({LOCAL}|{TEMPORAL})/mlp"
EXPERT = rf"{FEED_FORWARD}/experts_\d"
ATTENTION = rf"({LOCAL}|{TEMPORAL})/attention/self"
MATRIX = rf"{ATTENTION}/(query|key|value)"
CONV, NORM = r"pre_encoder_0/blocks_\d/conv\d", r"pre_encoder_0/blocks_\d/bn\d"
T5_TABLE = "(en|de)coder/(en|de)coder/additive_pe"


def array_kinds() -> Iterator[Kind]:
    """Yield all faults of arrays."""
    yield from _exchanged()
    yield from _edited()
    yield from _replaced()


def _exchanged() -> Iterator[Kind]:
    inside = "{site}(/.*)?"
    encoder_block, decoder_block = r"encoder/blocks_\d.*", r"decoder/decoder/block_\d.*"
    for name, network, where, first, second, cause, blamed in (
        ("two experts exchanged", "moe", FEED_FORWARD, "experts_0", "experts_2", "experts permuted", inside),
        ("arrays of gate and w1 exchanged", "moe", EXPERT, "gate", "w1", "gate and w1 exchanged", inside),
        ("arrays of query and key exchanged", "multi", ATTENTION, "query", "key", "key and query.*", inside),
        ("arrays of key and value exchanged", "multi", ATTENTION, "key", "value", "key and value.*", inside),
        ("blocks exchanged", "multi", "encoder", "blocks_0", "blocks_1", "layers exchanged", encoder_block),
        ("t5 blocks exchanged", "ymt3plus", "decoder/decoder", "block_0", "block_1", "layers exchanged", decoder_block),
        ("arrays of query and value exchanged", "single", ATTENTION, "query", "value", "query and value.*", inside),
    ):
        yield Kind(name, network, where, exchange(first, second), cause, WEIGHTS, blamed)


def _edited() -> Iterator[Kind]:
    for name, network, where, change, cause in (
        ("matrix transposed", "multi", MATRIX, edit(np.transpose), "transposed"),
        ("heads reversed", "multi", MATRIX, heads_reversed("perceiver"), "heads permuted"),
        ("t5 heads reversed", "ymt3plus", rf"{SELF_T5}/SelfAttention/[qkv]", heads_reversed("t5"), "heads permuted"),
        ("bfloat16 weights", "multi", MATRIX, edit(rounded), "bfloat16 weights"),
        ("weights negated", "multi", MATRIX, edit(np.negative), "negated"),
        ("one value changed", "multi", MATRIX, edit(one_element), "some values"),
        ("weights halved", "multi", MATRIX, edit(lambda a: a * np.float32(0.3)), "scaled"),
        ("weights of zeros", "multi", MATRIX, edit(np.zeros_like), "zeros"),
        ("kernel flipped", "single", CONV, edit(lambda a: a[:, :, ::-1, ::-1]), "kernel flipped"),
        (
            "kernel with time and frequency exchanged",
            "single",
            CONV,
            edit(lambda a: a.swapaxes(2, 3)),
            "time and frequency exchanged",
        ),
        (
            "rows permuted",
            "single",
            "pre_decoder_0/projection_layer",
            edit(lambda a: a[np.random.default_rng(5).permutation(len(a))]),
            "rows permuted",
        ),
        ("head holds the embedding", "ymt3plus", "lm_head/lm_head", tie_arrays, "holds embed_tokens.weight"),
        ("scale less 1", "single", rf"{LOCAL}/layernorm", edit(lambda a: a - 1), "-1 added"),
    ):
        yield Kind(name, network, where, change, cause, WEIGHTS)


def _replaced() -> Iterator[Kind]:
    """Yield the faults of arrays that are no 'weight' of a matrix: latents, running statistics, tables, scales."""
    latents, frequencies = "encoder/latent_array", "encoder/rotary_emb_temporal"
    for name, network, where, change, leaf, cause in (
        ("latents reversed in the file", "multi", latents, lambda a: a[::-1], "latents", "rows reversed"),
        (
            "latents reshaped in the file",
            "multi",
            latents,
            lambda a: a.T.reshape(a.shape),
            "latents",
            "reshaped, not transposed",
        ),
        ("running mean of zeros", "single", NORM, np.zeros_like, "running_mean", "zeros"),
        ("running variance of ones", "single", NORM, np.ones_like, "running_var", "ones"),
        ("deviation for running variance", "single", NORM, np.sqrt, "running_var", "deviation for variance"),
        ("table of mt3's sinusoids", "ymt3plus", T5_TABLE, mt3_table, "weight", "mt3's sinusoids"),
        (
            "frequencies of the other kind",
            "moe",
            frequencies,
            lambda a: (np.pi * np.linspace(1, 5, len(a))).astype(np.float32),
            "freqs",
            r"frequencies of pixel|holds .*freqs",
        ),
        ("scale of ones", "single", rf"{TEMPORAL}/layernorm", np.ones_like, "weight", "ones"),
        ("positions reversed", "single", "encoder/pos_emb", lambda a: a[::-1], "_pos_emb", "rows reversed"),
    ):
        yield Kind(name, network, where, edit(change, leaf), cause, WEIGHTS)
