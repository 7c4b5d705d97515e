"""Tables of names: held against what libraries call their arrays, and against faults in every one of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from parity.diagnosis import weights
from parity.diagnosis.candidate import Candidate
from parity.diagnosis.conventions import CONVENTIONS, names_of, rows
from parity.diagnosis.diagnose import diagnose
from parity.diagnosis.names import read_name
from parity.mutation.files import judge_files, meets_file_targets, outcome_of, summarise_files
from parity.mutation.plant_in_files import CLEAN, FAULTS, port
from parity.sides import numpy_network

NETWORK = NetworkConfig(
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=20,
    input_depth=24,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
LIBRARIES = json.loads((Path(__file__).parent / "data" / "library_names.json").read_text())
LETTERS = {"q": "query", "k": "key", "v": "value", "o": "out"}


@pytest.fixture(scope="module")
def original():
    config = Config(network=NETWORK, spectrogram=SpectrogramConfig(num_mel_bins=NETWORK.input_depth))
    return numpy_network.random_arrays(NETWORK, 3), config


@pytest.fixture
def unmeasured(monkeypatch):
    """Diagnoses without the error of the logits, which takes most of their time."""
    monkeypatch.setattr(weights, "measure", lambda *args: None)


def meanings(library, originals, model=""):
    """Name -> reading, of a library's recorded arrays that are no biases; a decoder alone stands in for an encoder."""
    (names,) = [names for name, names in LIBRARIES.items() if re.search(library, name)]
    arrays = [name for name in names if not name.endswith("bias")]
    return {name: read_name(re.sub(model, "encoder.", name, count=1) if model else name, originals) for name in arrays}


@pytest.mark.parametrize(
    ("library", "model", "unread"),
    [
        (r"transformers [\d.]+: T5", "", r"encoder\.embed_tokens\.weight|.*relative_attention_bias.*"),
        (r"transformers [\d.]+: BART", "", r".*(fc\d|embed_positions|layernorm_embedding|embed_tokens)\.weight"),
        (r"transformers [\d.]+: Whisper", "", r".*(fc\d|embed_positions|conv\d)\.weight"),
        (r"transformers [\d.]+: GPT-NeoX", r"^gpt_neox\.", r".*(embed_in|embed_out)\.weight"),
        (r"transformers [\d.]+: LLaMA", r"^model\.", r".*(post_attention_layernorm|embed_tokens)\.weight"),
        (r"^x-transformers", "", r".*pos_emb.*|encoder\.(token_emb|to_logits).*"),
        (r"^timm", "^", r".*(cls_token|pos_embed|ls\d\.gamma|patch_embed\.proj\.weight)"),
        (r"^peft", "", r".*(lora_\w+|relative_attention_bias|encoder\.embed_tokens).*"),
    ],
)
def test_a_librarys_own_names_are_read_for_certain(original, library, model, unread):
    read = meanings(library, original[0], model)
    layers = {name: reading for name, reading in read.items() if not re.fullmatch(unread, name)}
    assert {name for name, reading in layers.items() if not reading.is_certain} == set()
    assert len({reading.names for reading in layers.values()}) >= 12


def test_names_of_t5_mean_what_transformers_computes(original):
    for name, reading in meanings(r"transformers [\d.]+: T5", original[0]).items():
        stack, layer, kind, part = re.match(r"(\w+)(?:\.block\.(\d)\.layer\.\d\.(\w+)\.(\w+))?", name).groups()
        if kind in ("SelfAttention", "EncDecAttention") and part in LETTERS:
            attention = "attention" if stack == "encoder" else "self_attention"
            attention = "encoder_decoder_attention" if kind == "EncDecAttention" else attention
            assert reading.names == (f"{stack}/layers_{layer}/{attention}/{LETTERS[part]}/kernel",)
            assert reading.layout == "out, in"


def test_torchs_own_modules_are_read_for_certain(original):
    stacks = {
        "encoder": torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False
        ),
        "decoder": torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(8, 2, 16), 2, torch.nn.LayerNorm(8)),
    }
    names = [name for name in torch.nn.ModuleDict(stacks).state_dict() if not name.endswith("bias")]
    uncertain = {re.sub(r"\d", "#", name) for name in names if not read_name(name, original[0]).is_certain}
    assert uncertain == {f"{stack}.layers.#.linear#.weight" for stack in stacks}
    joined = read_name("decoder.layers.1.multihead_attn.in_proj_weight", original[0])
    module = "decoder/layers_1/encoder_decoder_attention"
    assert joined.names == tuple(f"{module}/{part}/kernel" for part in ("query", "key", "value"))


@pytest.mark.parametrize("old", [True, False])
def test_torchs_weight_norm_is_folded(original, unmeasured, old):
    arrays, config = original
    given = port(arrays, CONVENTIONS[1], config.network)
    name = "decoder.block.1.layer.0.SelfAttention.q"
    weight = given.arrays[f"{name}.weight"]
    module = torch.nn.Linear(*weight.shape[::-1], bias=False)
    module.weight.data = torch.from_numpy(weight.copy())
    norm = torch.nn.utils.parametrizations.weight_norm
    if old:
        with pytest.warns(FutureWarning, match="weight_norm"):
            module = torch.nn.utils.weight_norm(module)
    else:
        module = norm(module)
    rest = {key: array for key, array in given.arrays.items() if key != f"{name}.weight"}
    own = {f"{name}.{key}": array.numpy() for key, array in module.state_dict().items()}
    assert len(own) == 2
    diagnosis = diagnose(Candidate("x", "weights", rest | own), arrays, config)
    assert (diagnosis.exit_code, diagnosis.by_content) == (0, [])
    size = next(key for key in own if own[key].shape[1] == 1)
    wrong = diagnose(Candidate("x", "weights", rest | own | {size: 2 * own[size]}), arrays, config)
    assert [(finding.site, finding.cause) for finding in wrong.findings] == [
        ("decoder/layers_1/self_attention/query", "times 2")
    ]


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda convention: convention.name)
def test_a_convention_names_every_array_once(original, convention):
    names = names_of(convention, {"encoder": 2, "decoder": 3})
    meant = [name for parts in names.values() for name in parts]
    assert sorted(meant) == sorted(original[0])
    for key, parts in names.items():
        reading = read_name(f"{key}.weight", original[0])
        loose = any(
            re.fullmatch(row.replace("{stack}", r"\w+").replace("{n}", r"\d+"), key) for row in convention.loose
        )
        assert (reading.names, reading.is_certain) == (parts, True) or (loose and not reading.is_certain)


def test_no_two_rows_contradict_each_other():
    meant = {}
    for row in rows():
        key = (row.pattern.pattern, row.step, row.offset)
        assert meant.setdefault(key, row.parts) == row.parts


@pytest.mark.parametrize("kind", [*FAULTS, *CLEAN], ids=lambda kind: kind.name)
def test_a_kind_of_file_in_two_conventions(original, unmeasured, kind):
    arrays, config = original
    number = [*FAULTS, *CLEAN].index(kind)
    able = 0
    for convention in (CONVENTIONS[number % len(CONVENTIONS)], CONVENTIONS[(number + 3) % len(CONVENTIONS)]):
        planted = kind.plant(port(arrays, convention, config.network), np.random.default_rng(number))
        if planted is None:
            continue
        able += 1
        diagnosis = diagnose(Candidate("x", "weights", planted.arrays), arrays, config)
        fault = kind in FAULTS
        assert outcome_of(planted, diagnosis) == (fault, fault, fault), (convention.name, diagnosis.verdict())
    assert able


def test_loose_names_are_listed_and_give_no_bare_same(original, unmeasured):
    arrays, config = original
    fairseq = next(convention for convention in CONVENTIONS if convention.loose)
    diagnosis = diagnose(Candidate("x", "weights", port(arrays, fairseq, config.network).arrays), arrays, config)
    assert diagnosis.exit_code == 0
    assert diagnosis.verdict().startswith("same by content: 15 names are not read for certain: ")
    assert diagnosis.to_dict()["verdict"] == "same by content"
    assert {re.sub(r".*\.(\w+)\.weight", r"\1", key) for key in diagnosis.by_content} == {"fc1", "fc_gate", "fc2"}
    certain = diagnose(Candidate("x", "weights", dict(arrays)), arrays, config)
    assert (certain.verdict(), certain.by_content) == ("same: nothing is wrong", [])


def test_loose_names_hold_one_thing_in_all_layers(original, unmeasured):
    arrays, config = original
    fairseq = next(convention for convention in CONVENTIONS if convention.loose)
    for stack in ("encoder", "decoder"):
        named = dict(port(arrays, fairseq, config.network).arrays)
        pair = [f"{stack}.layers.0.{part}.weight" for part in ("fc1", "fc_gate")]
        named[pair[0]], named[pair[1]] = named[pair[1]], named[pair[0]]
        diagnosis = diagnose(Candidate("x", "weights", named), arrays, config)
        assert any(re.match(rf"{stack}/layers_\d/mlp/wi_", finding.site) for finding in diagnosis.findings)


def test_the_verdict_names_what_the_file_has_too_much(original, unmeasured):
    arrays, config = original
    extra = {"decoder.layers.0.gate": np.array([0.5], np.float32)}
    diagnosis = diagnose(Candidate("x", "weights", {**arrays, **extra}), arrays, config)
    assert diagnosis.exit_code == 1
    assert diagnosis.verdict() == "same, and the file holds 1 array that MT3 does not have: decoder.layers.0.gate"
    assert diagnosis.not_computed() == ["arrays that MT3 does not have"]


def test_the_benchmark_of_files_counts_what_is_wrong(unmeasured):
    outcomes = judge_files(NETWORK, "toy", limit=12)
    summary = summarise_files(outcomes)
    assert meets_file_targets(summary)
    [row] = summary["table"].values()
    assert row["files"] + row["clean"] == len(outcomes) == 12
    missed = [outcome._replace(detected=outcome.is_clean) for outcome in outcomes]
    assert not meets_file_targets(summarise_files(missed))
    assert len(summarise_files(missed)["wrong"]) == 12
