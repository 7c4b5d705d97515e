"""A batch whose rows end: how often it is copied, and that its rows stay what they were."""

import collections

import numpy as np
import pytest

from jax_mt3 import checkpoint, decode
from jax_mt3 import weights as packing
from mt3_common.audio.segments import Segment
from mt3_common.notes.vocabulary import EOS_ID
from mt3_common.transcription import batching
from mt3_common.transcription.batching import PromptedSegment, SearchSettings


@pytest.fixture
def weights(golden_config, golden_arrays):
    return packing.pack(checkpoint.to_params(golden_arrays), golden_config)


@pytest.fixture
def segments(decoded):
    rng = np.random.default_rng(0)
    return [decoded["in/frames"][i % 6] + 0.3 * rng.normal(size=(256, 512)).astype(np.float32) for i in range(8)]


def test_a_batch_is_copied_only_when_it_becomes_smaller(weights, segments, monkeypatch):
    settings = SearchSettings(max_steps=90)
    calls = collections.Counter()
    call, compact = decode.Compiled.__call__, decode.Batch.compact

    def counted(self, kind, shape, *given):
        calls[kind] += 1
        return call(self, kind, shape, *given)

    def counted_compact(self, rows):
        calls["compact"] += 1
        compact(self, rows)

    monkeypatch.setattr(decode.Compiled, "__call__", counted)
    monkeypatch.setattr(decode.Batch, "compact", counted_compact)
    lengths = [4, 10, 20, 30, 44, 52, 60, 76]
    forced = [np.array([7] * (length - 1) + [EOS_ID], np.int32) for length in lengths]
    requests = [
        PromptedSegment(Segment(number, 0.0, frames, 256), forced[number], np.zeros(1536, np.float32))
        for number, frames in enumerate(segments)
    ]

    def make(rows):
        return decode.Batch(weights, settings, rows, 256, hold=True)

    assert [len(ids) for ids in batching.decode_continuously(make, requests, settings, 8)] == lengths
    assert calls["advance"] == 10
    # to 4 rows, to 2, to 1; the second makes the batch smaller
    assert calls["compact"] == 3
    assert calls["select"] == 1


@pytest.mark.parametrize("left", [[6, 1], [6, 1, 3]])
def test_a_shrunk_batch_takes_new_segments(weights, segments, left):
    settings = SearchSettings(max_steps=90)
    uniforms = [settings.uniforms(0)] * 8

    def decoded_by(batch):
        while not batch.advance().all():
            pass
        return [ids.tolist() for ids in batch.collect(list(range(batch.num_rows)))]

    batch = decode.Batch(weights, settings, 8, 256)
    batch.prefill(list(range(8)), segments, uniforms)
    alone = decoded_by(batch)
    batch.compact(left)
    assert batch.num_rows == len(left)
    assert decoded_by(batch) == [alone[row] for row in left]
    batch.prefill([1], segments[:1], uniforms[:1])
    assert decoded_by(batch)[:2] == [alone[left[0]], alone[0]]
