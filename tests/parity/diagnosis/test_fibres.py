"""Weights are found by content: whatever they are called, however they are cut, turned, joined, scaled or rounded."""

import resource

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.config import NetworkConfig
from parity.diagnosis import fibres
from parity.diagnosis.siblings import load_as_siblings
from parity.sides import numpy_network

SMALL = NetworkConfig(emb_dim=48, num_heads=3, head_dim=16, mlp_dim=40, num_encoder_layers=2, num_decoder_layers=3)


@pytest.fixture(scope="module")
def arrays():
    return numpy_network.random_arrays(SMALL, 5)


def words(candidate, arrays, head_dim=16):
    match = fibres.match({"x": candidate}, arrays).matches["x"]
    assert match.exact
    return match.owners, fibres.describe(match, arrays, head_dim)


Q, K, V, OUT = (f"encoder/layers_0/attention/{part}/kernel" for part in ("query", "key", "value", "out"))
EMBEDDING = "decoder/token_embedder/embedding"


@pytest.mark.parametrize(
    ("change", "description"),
    [
        (lambda a: a[Q], []),
        (lambda a: a[Q].T, ["transposed"]),
        (lambda a: a[Q].reshape(48, 3, 16), ["split to 48x3x16"]),
        (lambda a: a[Q].T.reshape(3, 16, 48), ["split to 3x16x48", "transposed"]),
        (lambda a: a[Q].reshape(48, 3, 16)[:, [2, 1, 0]].reshape(48, 48), ["heads in the order [2, 1, 0]"]),
        (lambda a: a[Q].reshape(48, 3, 16).swapaxes(1, 2).reshape(48, 48), ["head axes exchanged (d h for h d)"]),
        (lambda a: a[Q] * np.float32(0.25), ["times 0.25"]),
        (lambda a: a[Q].astype(np.float64) * 4, ["times 4"]),
        (lambda a: -a[Q], ["times -1"]),
        (lambda a: a[Q].astype(np.float16), []),
        (lambda a: a[Q].astype(ml_dtypes.bfloat16), []),
        (lambda a: a[Q][::-1], ["reversed"]),
        (lambda a: np.roll(a[Q], 1, axis=0), ["rolled by -1"]),
    ],
)
def test_one_array_and_what_was_done_to_it(arrays, change, description):
    assert words(np.ascontiguousarray(change(arrays)), arrays) == ([Q], description)


def test_out_kernels_keep_their_heads_on_the_other_axis(arrays):
    assert words(arrays[OUT].reshape(3, 16, 48)[[1, 0, 2]].reshape(48, 48), arrays) == (
        [OUT],
        ["heads in the order [1, 0, 2]"],
    )


@pytest.mark.parametrize("order", [(Q, K, V), (K, Q, V)])
@pytest.mark.parametrize("join", [lambda p: np.concatenate(p, 1), lambda p: np.concatenate(p, 1).T, np.stack])
def test_fused_projections(arrays, order, join):
    owners, _ = words(np.ascontiguousarray(join([arrays[name] for name in order])), arrays)
    assert owners == list(order)


def test_stacked_layers_and_stacked_scales(arrays):
    kernels = [f"decoder/layers_{i}/mlp/wo/kernel" for i in range(3)]
    scales = [f"decoder/layers_{i}/pre_mlp_layer_norm/scale" for i in range(3)]
    assert words(np.stack([arrays[name] for name in kernels]), arrays)[0] == kernels
    assert words(np.stack([arrays[name] for name in kernels], axis=1), arrays)[0] == kernels
    assert words(np.stack([arrays[name] for name in scales]), arrays)[0] == scales


@pytest.mark.parametrize(
    ("change", "description"),
    [
        (lambda e: e[:1491], "cropped from 1536 to 1491"),
        (lambda e: np.concatenate([e, np.zeros((64, 48), np.float32)]), "padded from 1536 to 1600 with zeros"),
        (lambda e: np.where(np.arange(1536)[:, None] < 1491, e, 0), "45 of 1536 rows or columns zeroed"),
        (lambda e: np.roll(e, 3, 0), "rolled by -3"),
    ],
)
def test_rows_of_the_vocabulary(arrays, change, description):
    assert words(change(arrays[EMBEDDING]), arrays) == ([EMBEDDING], [description])


def test_scale_minus_one_as_gemma_keeps_it(arrays):
    name = "decoder/decoder_norm/scale"
    owners, description = words(arrays[name] - 1, arrays)
    assert (owners, description) == ([name], ["-1 added"])


def test_what_is_not_there_is_not_found(arrays):
    random = np.random.default_rng(99)
    strangers = {
        "a": random.standard_normal((48, 48)),
        "b": np.zeros((48, 48)),
        "c": np.ones(48),
        "d": np.full((48, 48), np.nan),
        "e": np.arange(48),
        "f": np.float32(3.0),
    }
    result = fibres.match(strangers, arrays)
    assert result.unused == list(strangers)
    assert set(result.missing) == set(arrays)


def test_duplicates_and_missing_are_told(arrays):
    candidate = {f"t{i}": array for i, (name, array) in enumerate(arrays.items()) if name != K}
    candidate["again"] = arrays[Q].T
    result = fibres.match(candidate, arrays)
    assert list(result.missing) == [K]
    assert list(result.duplicates) == [Q]
    assert "again" in result.duplicates[Q]


def test_half_of_an_array_is_missing_by_half(arrays):
    result = fibres.match({"x": arrays["decoder/layers_1/mlp/wo/kernel"][:, :24]}, arrays)
    assert result.missing["decoder/layers_1/mlp/wo/kernel"] == 0.5


def test_equal_originals_are_called_alike_and_dealt_out(arrays):
    equal = {name: np.ones_like(a) if a.ndim == 1 else a for name, a in arrays.items()}
    result = fibres.match({f"t{i}": array for i, array in enumerate(equal.values())}, equal)
    scales = [name for name in equal if name.endswith("scale")]
    assert result.alike == [scales]
    assert not result.missing
    assert not result.duplicates
    assert sorted(owner for match in result.matches.values() for owner in match.owners) == sorted(equal)


def test_one_changed_number_is_seen(arrays):
    changed = arrays[Q].copy()
    changed[7, 9] = np.nextafter(changed[7, 9], np.float32(9))
    match = fibres.match({"x": changed}, arrays).matches["x"]
    assert match.owners == [Q]
    assert not match.exact


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_mixture_is_undone(arrays, data):
    """Every original, split, turned or scaled at random under a meaningless name, comes back bit for bit."""
    names = data.draw(st.permutations(list(arrays)))
    candidate = {}
    for number, name in enumerate(names):
        array = arrays[name]
        if array.ndim == 2 and data.draw(st.booleans()):
            array = array.T
        if array.shape[-1] == 48 and array.ndim == 2 and data.draw(st.booleans()):
            array = array.reshape(array.shape[0], 3, 16)
        array = array * np.float32(data.draw(st.sampled_from([1.0, 0.25, -2.0, 0.125])))
        candidate[f"w{number}"] = np.ascontiguousarray(array)
    result = fibres.match(candidate, arrays)
    assert not result.unused
    assert not result.missing
    assert {match.candidate: match.owners for match in result.matches.values()} == {
        f"w{number}": [name] for number, name in enumerate(names)
    }
    back = fibres.restore(result, candidate, arrays)
    assert all(back[name].tobytes() == arrays[name].tobytes() for name in arrays)


def test_what_siblings_share_is_undone_and_what_one_has_alone_is_left_in(arrays):
    name = "decoder/layers_1/self_attention/query/kernel"
    candidate = {f"t{i}": -array.T if other == name else array.T for i, (other, array) in enumerate(arrays.items())}
    loaded = load_as_siblings(fibres.match(candidate, arrays), candidate, arrays, arrays)
    assert loaded.conventions == ["every kernel transposed", "decoder/token_embedder transposed"]
    assert not loaded.odd
    assert all((loaded.arrays[other] == (-array if other == name else array)).all() for other, array in arrays.items())


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_positions_say_where_every_number_stands(arrays, data):
    """Whatever array holds it, and however it is turned, cut or joined there."""
    parts = data.draw(st.permutations([Q, K, V]))
    joined = np.concatenate([arrays[part] for part in parts], axis=1)
    if data.draw(st.booleans()):
        joined = joined.reshape(48, 3, 3, 16)[:, :, ::-1]
    if data.draw(st.booleans()):
        joined = joined.T
    joined = np.ascontiguousarray(joined)
    match = fibres.match({"x": joined}, arrays).matches["x"]
    for part in parts:
        assert (joined.ravel()[fibres.positions(match, part, (48, 48))] == arrays[part]).all()


def test_full_size_with_meaningless_names_is_recovered_whole():
    """189 arrays, 45.9 million numbers: 100 % found, in less than 4 GB."""
    arrays = numpy_network.random_arrays(NetworkConfig(), 3)
    assert len(arrays) == 189
    order = np.random.default_rng(1).permutation(len(arrays))
    names = [list(arrays)[i] for i in order]
    candidate = {f"t{i}": np.ascontiguousarray(arrays[name].T) for i, name in enumerate(names)}
    result = fibres.match(candidate, arrays)
    assert {key: match.owners for key, match in result.matches.items()} == {
        f"t{i}": [name] for i, name in enumerate(names)
    }
    assert all(match.exact for match in result.matches.values())
    assert not result.missing
    assert not result.unused
    # kilobytes on Linux; everything else that this process has loaded counts too
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6
