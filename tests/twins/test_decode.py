"""Cached decoding: token for token what T5X decodes, the same in both twins, and the same as the full forward pass."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from jax_mt3 import checkpoint as jax_checkpoint
from jax_mt3 import decode as jax_decode
from jax_mt3 import kernels as jax_kernels
from jax_mt3 import model as jax_model
from jax_mt3 import search as jax_search
from jax_mt3 import weights as jax_weights
from mt3_common.audio.segments import Segment
from mt3_common.config import Config
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary
from mt3_common.transcription import batching
from mt3_common.transcription.batching import PromptedSegment, SearchSettings
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import decode as torch_decode
from torch_mt3 import kernels as torch_kernels
from torch_mt3 import model as torch_model
from torch_mt3 import search as torch_search
from torch_mt3 import weights as torch_weights


def with_eos_gain(arrays, gain):
    """The weights with the EOS column of logits_dense scaled, as the golden cases have it."""
    kernel = arrays["decoder/logits_dense/kernel"].copy()
    kernel[:, 1] *= np.float32(gain)
    return {**arrays, "decoder/logits_dense/kernel": kernel}


def jax_model_of(config, arrays):
    return jax_checkpoint.to_params(arrays)


def torch_model_of(config, arrays):
    model = torch_model.Transformer(config)
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    return model


SEARCH = {"jax": jax_search, "torch": torch_search}
TWINS = {
    "jax": (jax_decode, jax_model_of, lambda config, arrays: jax_weights.pack(jax_model_of(config, arrays), config)),
    "torch": (torch_decode, torch_model_of, lambda config, arrays: torch_weights.pack(torch_model_of(config, arrays))),
}


@pytest.mark.parametrize("gain", ["1.0", "2.0", "3.0", "4.0"])
@pytest.mark.parametrize("case", ["greedy", "beam1", "beam4"])
@pytest.mark.parametrize("twin", TWINS)
def test_tokens_and_scores_are_t5xs(twin, case, gain, golden_config, golden_arrays, decoded):
    decode, _, pack = TWINS[twin]
    num_decodes = 4 if case == "beam4" else 1
    settings = SearchSettings("greedy" if case == "greedy" else "t5x", num_decodes, max_steps=64)
    weights = pack(golden_config, with_eos_gain(golden_arrays, float(gain)))
    batch = decode.Batch(weights, settings, 6, 256)
    batch.prefill(list(range(6)), list(decoded["in/frames"]), [settings.uniforms(i) for i in range(6)])
    while not batch.advance()[:6].all():
        pass
    tokens, scores = (np.asarray(array)[:6] for array in SEARCH[twin].finalize(settings, batch.state))
    golden = decoded[f"eos_gain{gain}/{case}/tokens"].reshape(6, num_decodes, 64)
    for candidate, reference in zip(tokens.reshape(-1, 64), golden.reshape(-1, 64)):
        np.testing.assert_array_equal(batching.until_eos(candidate), batching.until_eos(reference))
    if case != "greedy":
        np.testing.assert_allclose(scores, decoded[f"eos_gain{gain}/{case}/scores"], rtol=0, atol=1e-4)


def test_the_golden_cases_tell_the_searches_apart(decoded):
    """Otherwise greedy in place of T5X's search would pass."""
    greedy, t5x = decoded["eos_gain2.0/greedy/tokens"], decoded["eos_gain2.0/beam1/tokens"][:, 0]
    assert any(not np.array_equal(batching.until_eos(a), batching.until_eos(b)) for a, b in zip(greedy, t5x))


def noisy_segments(decoded, count):
    rng = np.random.default_rng(0)
    frames = decoded["in/frames"]
    return [frames[i % 6] + 0.3 * rng.normal(size=(256, 512)).astype(np.float32) for i in range(count)]


SEARCHES = {
    "greedy": {"search": "greedy"},
    "t5x": {"search": "t5x"},
    "beams": {"search": "t5x", "num_decodes": 3},
    "sample": {"search": "sample", "seed": 3},
    "top_k": {"search": "sample", "seed": 3, "top_k": 5, "temperature": 1.5},
    "top_p": {"search": "sample", "top_p": 0.5},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_generate_is_the_same_in_both_twins_and_at_any_batch_size(search, golden_config, golden_arrays, decoded):
    arrays = with_eos_gain(golden_arrays, 3.0)
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=90)
    segments = noisy_segments(decoded, 11)
    results = [
        list(decode.generate(build(golden_config, arrays), config, iter(segments), batch_size=rows, **SEARCHES[search]))
        for decode, build, rows in (
            (jax_decode, jax_model_of, 4),
            (torch_decode, torch_model_of, 4),
            (torch_decode, torch_model_of, 1),
            (torch_decode, torch_model_of, 64),
        )
    ]
    for other in results[1:]:
        assert len(other) == 11
        for reference, candidate in zip(results[0], other):
            np.testing.assert_array_equal(reference, candidate)
    assert results[0][0].dtype == np.int32
    assert len({len(ids) for ids in results[0]}) > 1 or search == "beams"


@pytest.mark.parametrize("search", SEARCHES)
def test_tokens_that_are_not_allowed_never_come_in_either_twin(search, golden_config, golden_arrays, decoded):
    """The banned tokens are those that free decoding likes best, EOS and every third id aside."""
    # beam search prefers to end at once where it may
    arrays = with_eos_gain(golden_arrays, 1.0 if search == "beams" else 3.0)
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=60)

    def generate(decode, build, allowed):
        model = build(golden_config, arrays)
        segments = noisy_segments(decoded, 5)
        ids = decode.generate(model, config, segments, batch_size=4, allowed=allowed, **SEARCHES[search])
        return [row.tolist() for row in ids]

    free = generate(*TWINS["torch"][:2], None)
    tokens = {token for row in free for token in row}
    banned = {token for token in tokens if token % 3 and token != EOS_ID}
    assert banned
    allowed = ~np.isin(np.arange(1536), list(banned))
    restricted = [generate(*TWINS[twin][:2], allowed) for twin in TWINS]
    assert restricted[0] == restricted[1]
    assert restricted[0] != free
    assert not banned & {token for row in restricted[0] for token in row}
    for twin in TWINS:
        assert generate(*TWINS[twin][:2], np.ones(1536, bool)) == free


def masked(logits, allowed, first):
    """Logits (n, vocab_size) with a mask (vocab_size,), under which allowed programs have the others' probability."""
    programs = slice(first, first + 128)
    left = logits[:, programs] + np.where(allowed[programs], 0, -np.inf)
    logits = logits.copy()
    logits[:, programs] += logsumexp(logits[:, programs], 1, keepdims=True) - logsumexp(left, 1, keepdims=True)
    return np.where(allowed, logits, -np.inf)


def full_pass_logits(model, frames, ids):
    """Logits (len(ids), vocab_size) of the full pass of a torch model when it is given the ids."""
    targets = torch.tensor(np.asarray(ids)[None], dtype=torch.int64)
    inputs = torch.nn.functional.pad(targets[:, :-1], (1, 0))
    with torch.no_grad():
        encoded = model.encoder(torch.from_numpy(frames[None]))
        return model.decoder(encoded, inputs, torch.ones_like(targets)).numpy()[0]


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize("twin", TWINS)
def test_the_logits_of_programs_are_those_of_a_full_pass(twin, batch_size, golden_config, golden_arrays, decoded):
    """Some rows end early and others at max_steps; with 3 rows, each has several segments one after the other."""
    decode, build, _ = TWINS[twin]
    arrays = with_eos_gain(golden_arrays, 2.0)
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=16)
    first = Vocabulary(config.vocabulary).first_id("program")
    # programs but for one class, and EOS, so that many are chosen; the rest of the mask is for pitches 60 to 69
    allowed = np.zeros(1536, bool)
    allowed[[EOS_ID, *range(1064, 1074), *range(first, first + 40), *range(first + 48, first + 128)]] = True
    segments = noisy_segments(decoded, 64 if batch_size == 64 else 20)
    model = build(golden_config, arrays)
    how = {"batch_size": batch_size, "allowed": allowed}
    results = list(decode.generate(model, config, segments, program_logits=True, **how))
    free = decode.generate(model, config, segments, **how)
    reference = torch_model_of(golden_config, arrays)
    lengths = set()
    for frames, tokens, ids in zip(segments, results, free, strict=True):
        np.testing.assert_array_equal(tokens.ids, ids)
        positions = batching.program_positions(ids, first)
        assert tokens.program_logits.shape == (len(positions), 128)
        assert tokens.program_logits.dtype == np.float32
        np.testing.assert_array_equal(tokens.program_logits.argmax(1), ids[positions] - first)
        assert np.isneginf(tokens.program_logits[:, 40:48]).all()
        expected = masked(full_pass_logits(reference, frames, ids), allowed, first)[positions, first : first + 128]
        usable = allowed[first : first + 128]
        np.testing.assert_allclose(tokens.program_logits[:, usable], expected[:, usable], rtol=0, atol=2e-4)
        lengths.add(len(ids))
    assert len(lengths) > 1
    assert max(lengths) == 16


@pytest.mark.parametrize("twin", TWINS)
def test_within_prompts_the_logits_of_programs_are_what_the_network_thought(
    twin, golden_config, golden_arrays, decoded
):
    """With mask and bias, as of the tokens behind the prompt, and as the ONNX graph gives them."""
    decode, build, _ = TWINS[twin]
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=16)
    first = Vocabulary(config.vocabulary).first_id("program")
    forced = [[], [first + 5], [first + 2, 1064, first + 90], [first + 7, first + 7, first + 3]]
    segments = noisy_segments(decoded, len(forced))
    bias = np.random.default_rng(0).normal(0, 2, 1536).astype(np.float32)
    allowed = np.ones(1536, bool)
    allowed[first + 40 : first + 48] = False
    model, reference = (of(golden_config, golden_arrays) for of in (build, torch_model_of))
    how = {"batch_size": 4, "allowed": allowed, "hold": True, "program_logits": True}
    results = list(decode.generate(model, config, held(segments, forced, bias), **how))
    for frames, begins, (ids, logits, _) in zip(segments, forced, results, strict=True):
        assert ids[: len(begins)].tolist() == begins
        expected = masked(full_pass_logits(reference, frames, ids), allowed, first) + bias
        positions = batching.program_positions(ids, first)
        np.testing.assert_allclose(logits, expected[positions, first : first + 128], rtol=0, atol=2e-4)


@pytest.mark.parametrize("twin", TWINS)
def test_allowed_programs_take_the_place_of_others(twin):
    """That a program comes is as likely as before; with none allowed, the rest stays as it is."""
    import jax_mt3.search
    import torch_mt3.search

    logits = np.random.default_rng(0).normal(0, 3, (2, 3, 20)).astype(np.float32)
    only = {"torch": lambda m: torch_mt3.search.only_allowed(torch.from_numpy(logits), torch.from_numpy(m)).numpy()}
    only |= {"jax": lambda m: np.asarray(jax_mt3.search.only_allowed(logits, m))}
    tokens = np.ones(20, bool)
    tokens[[3, 9, 10, 12]] = False
    mask = np.where(np.arange(20) == 3, True, tokens), (np.arange(20) >= 8) & (np.arange(20) < 14)
    result = only[twin](np.stack(mask))
    before, after = (np.exp(x[..., 8:14]).sum(-1) for x in (logits, result))
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert np.isneginf(result[..., [9, 10, 12]]).all()
    rest = [*range(8), *range(14, 20)]
    np.testing.assert_array_equal(result[..., rest], logits[..., rest])
    np.testing.assert_allclose(result[..., 8] - result[..., 13], logits[..., 8] - logits[..., 13], atol=1e-5)
    none = only[twin](np.stack([~mask[1], mask[1]]))
    assert np.isneginf(none[..., 8:14]).all()
    np.testing.assert_array_equal(none[..., rest], logits[..., rest])


def test_only_a_greedy_search_records_logits():
    with pytest.raises(ValueError, match="logits of programs are recorded by search 'greedy', not by 't5x'"):
        SearchSettings("t5x", first_program=1000)


def held(segments, forced, bias):
    """The segments of one recording, as if the one before each were known."""
    for number, frames in enumerate(segments):
        yield PromptedSegment(Segment(number, 0.0, frames, 256), np.array(forced[number], np.int32), bias)


@pytest.mark.parametrize("search", SEARCHES)
def test_what_is_forced_comes_first_and_is_followed_the_same_in_both_twins(
    search, golden_config, golden_arrays, decoded
):
    arrays = with_eos_gain(golden_arrays, 3.0)
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=60)
    segments = noisy_segments(decoded, 7)
    forced = [[], [1134], [1135, 1064, 1134], [7, 7, 7], [1134] * 59, [1134] * 60, [1]]
    bias = np.zeros(1536, np.float32)
    bias[:700] = -2.0
    results = [
        [
            row.tolist()
            for row in decode.generate(
                build(golden_config, arrays),
                config,
                held(segments, forced, bias),
                batch_size=rows,
                hold=True,
                **SEARCHES[search],
            )
        ]
        for decode, build, rows in ((*TWINS["jax"][:2], 4), (*TWINS["torch"][:2], 4), (*TWINS["torch"][:2], 1))
    ]
    assert results[0] == results[1] == results[2]
    for ids, begins in zip(results[0], forced):
        assert ids[: len(begins)] == begins
    assert [len(ids) for ids in results[0][4:]] == [60, 60, 1]


@pytest.mark.parametrize("search", ["greedy", "t5x", "beams"])
@pytest.mark.parametrize("twin", TWINS)
def test_forcing_what_would_come_changes_nothing(twin, search, golden_config, golden_arrays, decoded):
    """With T5X's search nothing is forced: it would rule out the ends of second choice that decide there."""
    decode, build, _ = TWINS[twin]
    model = build(golden_config, with_eos_gain(golden_arrays, 3.0))
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=60)
    segments = noisy_segments(decoded, 4)
    free = list(decode.generate(model, config, segments, **SEARCHES[search]))
    forced = [ids[:5] if search == "greedy" else [] for ids in free]
    again = decode.generate(
        model, config, held(segments, forced, np.zeros(1536, np.float32)), hold=True, **SEARCHES[search]
    )
    assert [ids.tolist() for ids in again] == [ids.tolist() for ids in free]


def test_sampling_depends_on_the_seed_and_narrows_to_greedy(golden_config, golden_arrays, decoded):
    model = torch_model_of(golden_config, with_eos_gain(golden_arrays, 3.0))
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=60)

    def tokens(**settings):
        return [tuple(ids) for ids in torch_decode.generate(model, config, noisy_segments(decoded, 6), **settings)]

    assert tokens(search="sample", seed=1) == tokens(search="sample", seed=1)
    assert tokens(search="sample", seed=1) != tokens(search="sample", seed=2)
    assert tokens(search="sample", top_k=1) == tokens(search="greedy")
    assert tokens(search="sample", temperature=1e-4) == tokens(search="greedy")


@pytest.mark.parametrize("twin", TWINS)
def test_the_ring_grows_and_rows_without_eos_reach_the_last_step(twin, golden_config, golden_arrays, decoded):
    decode, build, _ = TWINS[twin]
    kernel = golden_arrays["decoder/logits_dense/kernel"].copy()
    kernel[:, 1] = 0.0
    model = build(golden_config, {**golden_arrays, "decoder/logits_dense/kernel": kernel})
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=300)
    ids = list(decode.generate(model, config, list(decoded["in/frames"][:3]), batch_size=2))
    assert [len(row) for row in ids] == [300, 300, 300]


@pytest.mark.parametrize("twin", TWINS)
def test_a_row_may_wait_for_as_long_as_it_must(twin, golden_config, golden_arrays):
    """As rows of recordings that ended do while others hold instruments for hours."""
    decode, _, pack = TWINS[twin]
    weights = pack(golden_config, golden_arrays)
    array = torch.tensor if twin == "torch" else np.array
    outputs = []
    for waited in (0, 2045):
        cache = decode.empty_cache(weights, 2, 4, length=16)
        cache = cache._replace(age=cache.age + array([waited, 0]))
        for _ in range(6):
            logits, cache = decode.step(weights, cache, array([[0], [0]]))
        outputs.append(np.asarray(logits))
        assert np.asarray(cache.age).tolist() == [min(waited + 6, 2047), 6]
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])
    assert np.isfinite(outputs[1]).all()


def test_one_cached_step_equals_the_full_forward_pass_at_every_position(golden_config, golden_arrays, decoded):
    """float64, positions 0..1023, in both twins; the ring is forced to grow on the way."""
    length = 1024
    rng = np.random.default_rng(5)
    frames = decoded["in/frames"][:2].astype(np.float64)
    tokens = rng.integers(1, 1536, (2, length))
    inputs = np.concatenate([np.zeros((2, 1), int), tokens[:, :-1]], axis=1)

    model = torch_model_of(golden_config, golden_arrays).double()
    with torch.no_grad():
        full = model(*map(torch.from_numpy, (frames, inputs, tokens))).numpy()
    weights = torch_weights.pack(model)
    cache = torch_decode.empty_cache(weights, 2, 256, length=512)
    cache, _ = torch_decode.prefill(weights, cache, torch.arange(2), torch.from_numpy(frames))
    stepped = np.empty_like(full)
    for position in range(length):
        if position == 512:
            cache = torch_decode.grow(cache, length)
        logits, cache = torch_decode.step(weights, cache, torch.from_numpy(inputs[:, position : position + 1]))
        stepped[:, position] = logits[:, 0].numpy()
    assert np.abs(stepped - full).max() / np.abs(full).max() < 1e-12

    with jax.enable_x64(True):
        params = jax.tree.map(lambda array: array.astype("float64"), jax_model_of(golden_config, golden_arrays))
        full_jax = np.asarray(
            jax.jit(jax_model.Transformer(golden_config).apply)({"params": params}, frames, inputs, tokens)
        )
        weights = jax_weights.pack(params, golden_config)
        step = jax.jit(jax_decode.step, donate_argnums=1)
        cache = jax_decode.empty_cache(weights, 2, 256, length=512)
        cache, _ = jax_decode.prefill(weights, cache, np.arange(2), frames)
        for position in range(length):
            if position == 512:
                cache = jax_decode.grow(cache, length)
            logits, cache = step(weights, cache, inputs[:, position : position + 1])
            stepped[:, position] = np.asarray(logits)[:, 0]
    assert np.abs(stepped - full_jax).max() / np.abs(full_jax).max() < 1e-12


def test_a_wrong_position_would_be_seen(golden_config, golden_arrays, decoded):
    model = torch_model_of(golden_config, golden_arrays)
    weights = torch_weights.pack(model)
    logits = []
    for age in (0, 1):
        cache = torch_decode.empty_cache(weights, 1, 256, length=8)
        cache, _ = torch_decode.prefill(weights, cache, torch.tensor([0]), torch.from_numpy(decoded["in/frames"][:1]))
        cache.age[:] = age
        logits.append(torch_decode.step(weights, cache, torch.zeros((1, 1), dtype=torch.int64))[0])
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"search": "beam"}, "greedy"),
        ({"num_decodes": 4}, "t5x"),
        ({"search": "t5x", "num_decodes": 0}, "num_decodes must be a positive integer"),
        ({"search": "sample", "temperature": 0.0}, "above 0"),
        ({"search": "sample", "top_p": 0.0}, "top_p"),
        ({"search": "sample", "top_k": -1}, "top_k"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        SearchSettings(**settings)


@pytest.mark.parametrize("search", ["greedy", "beams"])
@pytest.mark.parametrize("twin", TWINS)
def test_rows_in_two_halves_decode_as_in_one(twin, search, golden_config, golden_arrays, decoded):
    """With fewer and fewer rows: segments of 3 to 90 tokens, of which one half runs out first."""
    decode, _, pack = TWINS[twin]
    settings = SearchSettings(**SEARCHES[search], max_steps=90)
    weights = pack(golden_config, with_eos_gain(golden_arrays, 3.0))
    segments = noisy_segments(decoded, 17)

    def one(rows):
        return decode.Batch(weights, settings, rows, 256)

    def halves(rows):
        return batching.TwoThreadBatch(one, rows, lambda: None)

    whole, halved = (list(batching.decode_continuously(make, segments, settings, 9)) for make in (one, halves))
    assert [ids.tolist() for ids in whole] == [ids.tolist() for ids in halved]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_fewer_bits_choose_nearly_the_same_tokens_in_both_twins(dtype, golden_config, golden_arrays, decoded):
    """On random weights, whose logits lie closer together than a trained network's."""
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=12)
    arrays = with_eos_gain(golden_arrays, 0.0)
    segments = noisy_segments(decoded, 6)
    cast = "float32" if dtype == "int8" else dtype
    exact = list(torch_decode.generate(torch_model_of(golden_config, arrays), config, segments))
    params = jax_checkpoint.cast(jax_model_of(golden_config, arrays), cast)
    model = torch_checkpoint.cast(torch_model_of(golden_config, arrays), cast)
    ids_by_twin = {
        "jax": list(jax_decode.generate(params, config, segments, int8=dtype == "int8")),
        "torch": list(torch_decode.generate(model, config, segments, int8=dtype == "int8")),
    }
    for ids in ids_by_twin.values():
        firsts = [candidate[0] == reference[0] for candidate, reference in zip(ids, exact)]
        assert sum(firsts) >= 5


def first_logits(twin, config, arrays, frames, dtype):
    """Logits of the first token, and the cache behind it."""
    decode, build, _ = TWINS[twin]
    cast = {"jax": jax_checkpoint, "torch": torch_checkpoint}[twin].cast
    model = cast(build(config, arrays), "float32" if dtype == "int8" else dtype)
    weights = (
        torch_weights.pack(model, int8=dtype == "int8")
        if twin == "torch"
        else jax_weights.pack(model, config, dtype == "int8")
    )
    cache = decode.empty_cache(weights, 2, frames.shape[1], length=8)
    frames, tokens = (np.asarray(frames), np.zeros((2, 1), np.int64))
    if twin == "torch":
        frames, tokens = torch.from_numpy(frames), torch.from_numpy(tokens)
    cache, _ = decode.prefill(weights, cache, torch.arange(2) if twin == "torch" else np.arange(2), frames)
    logits, cache = decode.step(weights, cache, tokens)
    return np.asarray(logits), cache, weights


@pytest.mark.parametrize("coarse", [False, True])
def test_int8_computes_with_whole_numbers_and_is_close(coarse, golden_config, golden_arrays, decoded, monkeypatch):
    """Both twins round the same: to 8 bits in wide networks, to 15 in narrow ones."""
    for kernels in (torch_kernels, jax_kernels):
        monkeypatch.setattr(kernels, "COARSE_WIDTH", 1 if coarse else 10**6)
    frames = decoded["in/frames"][:2]
    exact = first_logits("torch", golden_config, golden_arrays, frames, "float32")[0]
    torch_logits, _, weights = first_logits("torch", golden_config, golden_arrays, frames, "int8")
    assert weights.layers[0].mlp_wo.whole.dtype == torch.int8
    assert coarse == (weights.layers[0].mlp_wo.rest is None)
    jax_logits = first_logits("jax", golden_config, golden_arrays, frames, "int8")[0]
    largest = np.abs(exact).max()
    least, most = (2e-3, 0.1) if coarse else (1e-6, 2e-3)
    assert least < np.abs(torch_logits - exact).max() / largest < most
    assert least < np.abs(jax_logits - exact).max() / largest < most
    # but for PyTorch's keys and values, which are float16
    assert np.abs(torch_logits - jax_logits).mean() / largest < (1e-3 if coarse else 2e-4)


@pytest.mark.parametrize("coarse", [False, True])
def test_bfloat16_rounds_what_pack_says_in_both_twins(coarse, golden_config, golden_arrays, decoded, monkeypatch):
    """A narrow network's products take float32; PyTorch keeps keys and values in float16, JAX in float32."""
    for kernels in (torch_kernels, jax_kernels):
        monkeypatch.setattr(kernels, "COARSE_WIDTH", 1 if coarse else 10**6)
    frames = decoded["in/frames"][:2]
    arrays = {name: torch.from_numpy(array.copy()).bfloat16().float().numpy() for name, array in golden_arrays.items()}
    logits, heard = {}, {}
    for twin, cache_dtype in (("torch", torch.float16), ("jax", np.dtype("float32"))):
        exact, _, wide = first_logits(twin, golden_config, arrays, frames, "float32")
        logits[twin], cache, weights = first_logits(twin, golden_config, arrays, frames, "bfloat16")
        given = torch.from_numpy(frames) if twin == "torch" else frames
        encode = TWINS[twin][0].encode
        heard[twin], fine = (np.asarray(encode(variant, given)[0]) for variant in (weights, wide))
        if coarse:
            assert 5e-4 < np.abs(heard[twin] - fine).max() / np.abs(fine).max() < 2e-2
        else:
            np.testing.assert_array_equal(heard[twin], fine)
        assert {array.dtype for kind in cache[:4] for array in kind} == {cache_dtype}
        off = np.abs(logits[twin] - exact).max() / np.abs(exact).max()
        if coarse:
            assert 2e-3 < off < 5e-2
        else:
            assert off < 2e-3
            assert (off > 1e-6) == (twin == "torch")
    apart = np.abs(logits["torch"] - logits["jax"]).mean() / np.abs(logits["jax"]).max()
    assert apart < (5e-3 if coarse else 2e-4)
    assert np.abs(heard["torch"] - heard["jax"]).mean() / np.abs(heard["jax"]).max() < (1e-3 if coarse else 1e-6)


@pytest.mark.parametrize("shape", [(5, 1, 7, 3), (6, 3, 64, 40), (1, 2, 1, 1), (2, 1, 300, 64)])
def test_sums_of_rows_are_batched_products(shape):
    num_batches, num_sums, num_rows, width = shape
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn((num_batches, num_sums, num_rows), generator=generator).half()
    rows = torch.randn((num_batches, num_rows, width), generator=generator).half()
    exact = torch.bmm(factors.double(), rows.double())
    for laid in (rows, rows.transpose(1, 2).contiguous().transpose(1, 2)):
        sums = torch_kernels.weighted_row_sums(factors, laid)
        assert sums.dtype == torch.float16
        np.testing.assert_allclose(sums.double(), exact, rtol=1e-3, atol=1e-4 * num_rows)


def test_int8_products_are_those_of_the_rounded_matrix_in_both_twins():
    """Their operands have 15 bits, and so has a narrow network's matrix; beside them float32."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn((3, 2, 96), generator=generator), torch.randn((40, 96), generator=generator)
    x[1, 1] = 0
    for coarse in (True, False):
        quantised = torch_kernels.quantised(weight, coarse, weight.device)
        rounded = quantised.whole * quantised.scales[:, None]
        if coarse:
            assert quantised.rest is None
            assert (x @ (rounded - weight).T).abs().max() > 1e-2
        else:
            rounded += quantised.rest / 254 * quantised.scales[:, None]
            np.testing.assert_allclose(rounded, weight, rtol=0, atol=1e-4)
        products = torch_kernels.dense(x, quantised)
        np.testing.assert_allclose(products, x @ rounded.T, rtol=0, atol=3e-3)
        assert not products[1, 1].any()
        of_jax = jax_kernels.column_product(
            jax_kernels.quantised(weight.numpy(), coarse, sharding),
            x.reshape(-1, 96).numpy().T,
        )
        np.testing.assert_allclose(np.asarray(of_jax).T, products.reshape(-1, 40), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("search", ["greedy", "beams"])
def test_short_numbers_do_not_depend_on_the_batch(dtype, search, golden_config, golden_arrays, decoded):
    """Rows come and go, hypotheses change places, the ring grows: keys and values stay with their rows."""
    config = dataclasses.replace(Config(), network=golden_config, max_target_length=60)
    arrays = with_eos_gain(golden_arrays, 3.0)
    model = torch_checkpoint.cast(torch_model_of(golden_config, arrays), "float32" if dtype == "int8" else dtype)
    segments = noisy_segments(decoded, 7)
    ids_by_batch = [
        [
            ids.tolist()
            for ids in torch_decode.generate(
                model, config, segments, batch_size=rows, int8=dtype == "int8", **SEARCHES[search]
            )
        ]
        for rows in (1, 4)
    ]
    assert ids_by_batch[0] == ids_by_batch[1]
