"""Probes hold every id and see what a recording does not."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from mt3_common.config import PRESETS
from parity.compare import probes
from parity.sides import record
from parity.trace import inputs

CHECKPOINT = str(Path(__file__).parents[2] / "golden" / "model" / "checkpoints" / "t5x_zarr")


@pytest.fixture(scope="module")
def sides():
    return tuple(record.load_side(name, CHECKPOINT) for name in ("jax", "torch"))


@pytest.mark.parametrize("preset", ["mt3", "ismir2021"])
@pytest.mark.parametrize("seen", [0, 400, 5000])
def test_every_id_is_held(preset, seen):
    config = PRESETS[preset]
    frames = np.zeros((2, config.input_frames, 512), np.float32)
    ids = np.arange(min(seen, config.network.vocab_size))
    names, given = probes.make_probes(config, frames, ids)
    assert len(names) == len(given["frames"]) == 7
    probed_ids = np.union1d(ids, given["decoder_input_tokens"])
    assert set(probed_ids) == set(range(config.network.vocab_size))
    assert given["decoder_target_tokens"][-1].sum() == 1
    assert np.isfinite(given["frames"]).all()
    assert given["frames"][names.index("extreme mel values")].max() == 12


def test_clean_twins_are_the_same_on_probes(sides, decoded):
    names, given = probes.make_probes(sides[0].config, decoded["in/frames"], np.arange(1400))
    rows = probes.compare_probes(*sides, names, given)
    assert [row.name for row in rows if row.verdict != "same"] == []
    assert len(rows) == 14


def test_a_fault_in_the_padding_of_the_vocabulary_is_seen_by_probes_alone(sides, decoded):
    cut = type(sides[1])(copy.deepcopy(sides[1].model), sides[1].config)
    with torch.no_grad():
        cut.model.decoder.token_embedder.weight[1491:] = 0
    names, given = probes.make_probes(sides[0].config, decoded["in/frames"], np.arange(1300))
    rows = probes.compare_probes(sides[0], cut, names, given)
    assert "different" in {row.verdict for row in rows}
    # the recording with ids that a song has would not have shown it
    song = inputs.with_tokens(decoded["in/frames"][:1], sides[0].config, 32)
    song["decoder_input_tokens"] %= 1388
    rows = probes.compare_probes(sides[0], cut, ["song"], song)
    assert {row.verdict for row in rows} == {"same"}
