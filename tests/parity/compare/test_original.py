"""The third side says which twin is wrong."""

import copy
import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from measured_memory import memory_below

from parity.compare import original
from parity.sides import published, record

NAMES = ("in/frames", "in/decoder_inputs", "in/targets", "out/logits")
GOLDEN = Path(__file__).parents[2] / "golden" / "model"


@pytest.fixture(scope="module")
def activations():
    return published.read_activations(GOLDEN / "activations.npz")


@pytest.fixture(scope="module")
def traces(activations):
    reference = record.record(record.load_side("jax", str(GOLDEN / "checkpoints" / "t5x_zarr")), activations[0])
    candidate = record.load_side("torch", str(GOLDEN / "checkpoints" / "t5x_zarr"))
    return reference, record.record(candidate, activations[0], reference=reference)


def test_both_twins_are_the_original(activations, traces):
    rows = original.vote(activations[1], *traces)
    assert [row.name for row in rows if row.verdict != "same"] == []
    # every tap but the dropouts inside attention, the decoder as a whole and logits_dense, which is the logits
    unnamed = {tap for tap in traces[0].passes["float32"].outputs if tap not in {row.name for row in rows}}
    assert len(unnamed) == 2 + 2 * 3 + 2
    assert all(tap.endswith(("attention/dropout", "decoder", "logits_dense")) for tap in unnamed)
    assert {published.original_name(row.name) for row in rows} == set(activations[1])


def with_fault(trace, tap):
    run = trace.passes["float32"]
    outputs = run.outputs | {tap: run.outputs[tap] * (1 + 1e-4)}
    return dataclasses.replace(trace, passes=trace.passes | {"float32": dataclasses.replace(run, outputs=outputs)})


@pytest.mark.parametrize("wrong", ["jax", "torch"])
def test_the_wrong_twin_is_named(activations, traces, wrong):
    tap = "decoder/layers_1/encoder_decoder_attention/key"
    pair = [with_fault(trace, tap) if trace.framework == wrong else trace for trace in traces]
    if wrong == "jax":
        run = pair[0].passes["float64"]
        outputs = run.outputs | {tap: run.outputs[tap] * (1 + 1e-4)}
        pair[0].passes["float64"] = dataclasses.replace(run, outputs=outputs)
    bad = [row for row in original.vote(activations[1], *pair) if row.verdict != "same"]
    assert [row.name for row in bad] == [tap]
    assert bad[0].note == f"differs from the original: {wrong}"


def test_another_checkpoint_and_another_network(activations, traces):
    others = {name: array * 1.01 for name, array in activations[1].items()}
    rows = original.vote(others, *traces)
    assert "is this the original's checkpoint" in rows[0].note
    cut = activations[1] | {"logits": activations[1]["logits"][..., :1491]}
    assert "shape" in original.vote(cut, *traces)[-1].note
    assert original.vote({}, *traces)[0].verdict == "skipped"


def test_what_is_not_there_is_one_sentence(tmp_path, traces):
    with pytest.raises(ValueError, match="not a readable"):
        published.read_activations(tmp_path / "none.npz")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a readable"):
        published.read_activations(tmp_path / "junk.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="in/frames is missing"):
        published.read_activations(tmp_path / "other.npz")
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    np.save(tmp_path / "single.npy", np.zeros(3))
    cut = (GOLDEN / "activations.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(cut[:1000])
    (tmp_path / "bit.npz").write_bytes(cut[:4000] + b"junk" + cut[4004:])
    for name in ("zip.npz", "single.npy", "cut.npz", "bit.npz"):
        with pytest.raises(ValueError, match=f"{name}: not a readable"):
            published.read_activations(tmp_path / name)
    with pytest.raises(ValueError, match="one bare array"):
        published.read_activations(tmp_path / "single.npy")
    with pytest.raises(ValueError, match=f"{os.devnull}: not a readable .* a device or a pipe"):
        published.read_activations(os.devnull)
    with pytest.raises(ValueError, match="extra t5x"):
        published.run_original({}, copy.copy(traces[0].config), {})


def test_an_archive_of_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "o.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("in/frames.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (2**27,)})
        for _ in range(32):
            member.write(bytes(2**24))
    with memory_below(1e7), pytest.raises(ValueError, match=r"o\.npz has \d+ bytes and declares arrays of"):
        published.read_activations(tmp_path / "o.npz")


def test_a_third_side_that_cannot_be_is_told_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    from parity.__main__ import main
    from parity.commands import check

    monkeypatch.setattr(check, "check", lambda *_: pytest.fail("computed first"))
    checkpoint = str(GOLDEN / "checkpoints" / "t5x_zarr")
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    np.savez(tmp_path / "other.npz", **{name: np.zeros((1, 2)) for name in NAMES})
    for source, reason in (
        ("t5x", "install mt3"),
        (tmp_path / "zip.npz", "not a readable"),
        (tmp_path / "other.npz", "takes"),
    ):
        assert main([checkpoint, "--oracle", str(source)]) == 3
        message = capsys.readouterr().err
        assert reason in message
        assert len(message.splitlines()) == 1
    config = record.load_side("jax", checkpoint).config
    published.check_original(str(GOLDEN / "activations.npz"), config)
    # the published network would be called the wrong one
    floored = dataclasses.replace(config, network=dataclasses.replace(config.network, encoder_top_db=60.0))
    for source in ("t5x", str(GOLDEN / "activations.npz")):
        with pytest.raises(ValueError, match="which has no encoder_top_db, as this one has"):
            published.check_original(source, floored)


def test_a_file_of_activations_is_the_third_side():
    checkpoint = str(GOLDEN / "checkpoints" / "t5x_zarr")
    sides = [record.load_side(name, checkpoint) for name in ("jax", "torch")]
    rows = original.compare_with_original(str(GOLDEN / "activations.npz"), *sides, {}, {})
    assert {row.verdict for row in rows} == {"same"}
    assert len(rows) > 90
    wrong = copy.deepcopy(sides[1].model)
    wrong.decoder.layers[2].mlp.wo.weight.data *= 1.001
    rows = original.compare_with_original(
        str(GOLDEN / "activations.npz"), sides[0], type(sides[1])(wrong, sides[1].config), {}, {}
    )
    bad = [row for row in rows if row.verdict != "same"]
    assert bad[0].name == "decoder/layers_2/mlp/wo"
    assert {row.note for row in bad} == {"differs from the original: torch"}
