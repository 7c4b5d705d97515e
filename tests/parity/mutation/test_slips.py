"""Files in the names of many projects: right ones are the same, those with a slip in which array is which are not."""

import re

import numpy as np
import pytest

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from parity.diagnosis.candidate import Candidate, read_candidates
from parity.diagnosis.claims import read_claim
from parity.diagnosis.weights import diagnose_weights
from parity.mutation.namings import SPELLINGS, namings
from parity.mutation.slips import slips
from parity.sides.numpy_network import random_arrays

NETWORK = NetworkConfig(
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=20,
    input_depth=24,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
CONFIG = Config(network=NETWORK, spectrogram=SpectrogramConfig(num_mel_bins=NETWORK.input_depth))
ORIGINAL = random_arrays(NETWORK, 5)
FILES = dict(namings(ORIGINAL, NETWORK))
# names of which only numbers tell queries from keys
NUMBERED = {"The Annotated Transformer"}


def diagnosed(arrays):
    return diagnose_weights(Candidate("file", "weights", dict(arrays)), ORIGINAL, CONFIG, measured=False)


@pytest.mark.parametrize("naming", FILES)
def test_a_right_file_is_the_same_and_no_slip_in_it_is(naming):
    assert diagnosed(FILES[naming].arrays).exit_code == 0
    kinds = set()
    for slip in slips(FILES[naming], 1, np.random.default_rng(3)):
        diagnosis = diagnosed(slip.arrays)
        by_content = slip.kind in ("exchanged everywhere", "scaled everywhere") and diagnosis.by_content
        assert (diagnosis.exit_code == 0) == slip.is_harmless or by_content, (slip.kind, slip.text)
        kinds.add(slip.kind)
    assert {"two exchanged", "exchanged everywhere", "written over", "one too many", "second copy"} <= kinds


@pytest.mark.parametrize("naming", ["x-transformers", "timm", "transformers T5", "Marian", "DenseGeneral"])
def test_a_file_is_read_as_one_set_of_weights(naming, tmp_path):
    """Of `attn_layers.layers.2.1.ff.0.proj.weight` the end is a name of the input projection, by chance."""
    np.savez(tmp_path / "model.npz", **FILES[naming].arrays)
    ((_, candidate),) = read_candidates(tmp_path / "model.npz").items()
    assert len(candidate.arrays) == len(FILES[naming].arrays)
    assert diagnosed(candidate.arrays).exit_code == 0


@pytest.mark.parametrize("naming", [name for name in SPELLINGS if name not in NUMBERED])
@pytest.mark.parametrize(("one", "other"), [("query", "key"), ("key", "value"), ("value", "out")])
def test_words_for_a_projection_are_believed_in_every_spelling(naming, one, other):
    given = FILES[naming]
    arrays = dict(given.arrays)
    for key, names in given.originals.items():
        if f"attention/{one}/" in names[0]:
            partner = given.key_of(names[0].replace(f"/{one}/", f"/{other}/"))
            arrays[key], arrays[partner] = given.arrays[partner], given.arrays[key]
    diagnosis = diagnosed(arrays)
    assert diagnosis.exit_code == 1
    sites = {site for finding in diagnosis.findings for site in finding.sites}
    assert any(re.search(f"/({one}|{other})$", site) for site in sites)


@pytest.mark.parametrize(
    ("key", "claim"),
    [
        ("dec.blk.3.cross_attn_q.weight", ("decoder", 3, "cross", ("query",))),
        ("encoder.encoders.1.self_attn.linear_k.weight", ("encoder", 1, None, ("key",))),
        ("model/decoder_layer_2/self_attention/output_dense/kernel", ("decoder", 2, "self", ("out",))),
        ("decoder_l1_context_Wv", ("decoder", 1, "cross", ("value",))),
        ("decoder.layers.0.cross_attn.key.kernel.value", ("decoder", 0, "cross", ("key",))),
        ("enc.blk.0.ffn_norm.weight", ("encoder", 0, None, ("norm.mlp",))),
        ("encoder.layers.0.post_attention_layernorm.weight", ("encoder", 0, None, ())),
        ("decoder.embeddings.make_embedding.emb_luts.0.weight", ("decoder", None, None, ("embedding",))),
        ("generator.weight", (None, None, None, ("head",))),
        ("encoder.layers.0.mlp.output_dense.weight", ("encoder", 0, None, ())),
    ],
)
def test_claims_of_other_projects_names(key, claim):
    assert read_claim(key) == claim
