"""Inputs are judged by what they let through."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from parity.commands.blindspots import show
from parity.mutation import blindspots
from parity.mutation.faults import Kind
from parity.sides import record
from parity.trace import inputs

CHECKPOINT = str(Path(__file__).parents[2] / "golden" / "model" / "checkpoints" / "t5x_zarr")


@pytest.fixture(scope="module")
def side():
    return record.load_side("torch", CHECKPOINT)


def kind(name, change):
    def plant(model, site, random):
        with torch.no_grad():
            change(model)

    return Kind(name, "weights", "here", lambda config: ["decoder/token_embedder"], plant, ("x",))


def test_what_the_inputs_do_not_show_is_said(side, decoded):
    frames = decoded["in/frames"][:1]
    song, everything = (inputs.with_tokens(frames, side.config, length) for length in (16, 1024))
    song["decoder_input_tokens"] = song["decoder_input_tokens"] % 1388
    everything["decoder_input_tokens"][0, 1] = 1500

    def padding(model):
        model.decoder.token_embedder.weight[1500] *= 2

    def tiny(model):
        model.decoder.logits_dense.weight[5] *= 1 + 1e-9

    def broken(model):
        model.encoder.encoder_norm.scale[3] = np.nan

    kinds = [kind("padding", padding), kind("nothing", lambda model: None), kind("tiny", tiny), kind("nan", broken)]
    visibility = blindspots.visible(side, kinds, {"song": song, "everything": everything})
    assert visibility["padding"] == {"song": "unseen", "everything": "float32"}
    assert set(visibility["nothing"].values()) == {"unseen"}
    assert set(visibility["tiny"].values()) == {"float64"}
    assert set(visibility["nan"].values()) == {"float32"}
    console = Console(width=120, file=io.StringIO(), record=True)
    show(visibility, ["nothing"], console)
    printed = console.export_text()
    assert "no inputs show: nothing" in printed
    assert "unseen, of 4 kinds" in printed
