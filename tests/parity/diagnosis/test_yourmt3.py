"""Causes in networks of YourMT3+, from a pass of the candidate: none in right ones, the planted one in wrong ones."""

import dataclasses
import re

import numpy as np
import pytest

from mt3_common.audio.yourmt3_frames import FrontEnd
from parity.diagnosis.yourmt3 import name_faults
from parity.diagnosis.yourmt3_frontend import explain
from parity.mutation.yourmt3_faults import kinds
from parity.mutation.yourmt3_frontends import FRONT_ENDS, planted_frames
from parity.mutation.yourmt3_kinds import BEHAVIOUR
from parity.mutation.yourmt3_mutants import bench_inputs
from parity.mutation.yourmt3_networks import MELSPEC, NETWORKS, SPEC, random_checkpoint, random_settings
from parity.sides import yourmt3_torch

KINDS = kinds()
# every kind of the table is planted by `parity mutants --family yourmt3`; here a share of them
SHARE = 11


@pytest.fixture(scope="module")
def sides():
    """Return a function from a network's name to (side, inputs, arrays), each made once."""
    made = {}

    def side(name):
        if name not in made:
            checkpoint = random_checkpoint(NETWORKS[name], 3)
            made[name] = yourmt3_torch.Side(checkpoint), bench_inputs(NETWORKS[name], 3), checkpoint
        return made[name]

    return side


def findings(side, inputs, checkpoint, precision="float64"):
    run = side.run(inputs, precision)
    return name_faults(run, inputs, side.arrays(), checkpoint.arrays, checkpoint.settings)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_right_network_has_no_fault(sides, name):
    side, inputs, checkpoint = sides(name)
    precisions = ["float64", *(["float32"] if name in ("moe", "ymt3plus") else [])]
    assert [findings(side, inputs, checkpoint, precision) for precision in precisions] == [[]] * len(precisions)


def test_a_right_network_of_other_sizes_has_no_fault():
    checkpoint = random_checkpoint(random_settings(21), 4)
    side = yourmt3_torch.Side(checkpoint)
    assert findings(side, bench_inputs(checkpoint.settings, 4), checkpoint) == []


@pytest.mark.parametrize("kind", KINDS[::SHARE], ids=lambda kind: kind.name)
def test_a_planted_fault_is_named_where_it_is(sides, kind, monkeypatch):
    _, inputs, checkpoint = sides(kind.network)
    side = yourmt3_torch.Side(checkpoint)
    sites = kind.sites(list(side.run(inputs, "float64").outputs))
    if kind.group == BEHAVIOUR:
        cast = side.cast

        def planted(precision):
            network = cast(precision)
            kind.plant(network, sites[0])
            return network

        monkeypatch.setattr(side, "cast", planted)
    else:
        kind.plant(side.model, sites[0])
    first = findings(side, inputs, checkpoint)[0]
    assert re.fullmatch(kind.causes, first.cause), first.sentence()
    assert any(kind.accepts(sites[0], site) for site in first.sites)
    assert first.after is not None
    assert first.after < 1e-8


def test_every_kind_has_a_name_of_its_own_and_a_site():
    assert len({kind.name for kind in KINDS}) == len(KINDS) > 150
    assert {kind.network for kind in KINDS} <= set(NETWORKS)


def test_a_fault_that_no_formula_gives_has_no_cause(sides, monkeypatch):
    side, inputs, checkpoint = sides("ymt3plus")
    cast = side.cast

    def planted(precision):
        network = cast(precision)
        network.embed_tokens.register_forward_hook(lambda module, given, output: output + output**2)
        return network

    monkeypatch.setattr(side, "cast", planted)
    [finding] = findings(side, inputs, checkpoint)
    assert (finding.site, finding.cause, finding.after) == ("embed_tokens", "unknown", None)


@pytest.mark.parametrize("fault", FRONT_ENDS, ids=lambda fault: fault.name)
def test_a_planted_fault_of_a_front_end_is_named(fault):
    config = SPEC if "spec" in fault.codecs else MELSPEC
    front_end = FrontEnd(dataclasses.replace(config, input_frames=9000))
    samples = np.random.default_rng(0).normal(0, 0.1, (2, 9000)).astype(np.float32)
    samples[1] *= 0.05
    frames = planted_frames(front_end, samples, fault)
    truth = np.stack([front_end.frames(segment) for segment in samples])
    if not fault.causes:
        np.testing.assert_allclose(frames, truth, atol=1e-9)
        return
    assert frames.shape != truth.shape or np.abs(frames - truth).max() > 1e-6
    cause, _, error = explain(front_end, samples, frames)
    assert cause == fault.causes
    assert error < 1e-9


def test_frames_of_no_known_front_end_have_no_cause():
    front_end = FrontEnd(SPEC)
    samples = np.random.default_rng(0).normal(0, 0.1, (1, SPEC.input_frames)).astype(np.float32)
    frames = front_end.frames(samples[0])[np.newaxis]
    assert explain(front_end, samples, frames**2)[0] == "unknown"
