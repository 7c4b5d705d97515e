"""Ids, codec indices and events against the published vocabularies."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.config import PRESETS
from mt3_common.notes.vocabulary import EOS_ID, PAD_ID, UNK_ID, Event, Vocabulary

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "features" / "vocabulary.json").read_text())
VOCABULARIES = {model: Vocabulary(PRESETS[model].vocabulary) for model in GOLDEN}


@pytest.mark.parametrize("model", GOLDEN)
class TestGolden:
    def test_sizes(self, model):
        vocabulary, golden = VOCABULARIES[model], GOLDEN[model]
        assert vocabulary.num_classes == golden["num_classes"]
        assert vocabulary.vocab_size == golden["vocab_size"]
        assert vocabulary.num_embeddings == golden["num_embeddings"]
        assert vocabulary.max_shift_steps == golden["max_shift_steps"]
        assert vocabulary.config.steps_per_second == golden["steps_per_second"]
        assert vocabulary.num_embeddings == PRESETS[model].network.vocab_size

    def test_ranges_and_their_order(self, model):
        golden = [(kind, tuple(span)) for kind, span in GOLDEN[model]["ranges"].items()]
        assert list(VOCABULARIES[model].ranges.items()) == golden

    def test_what_each_id_decodes_to(self, model):
        ids = [i for i in range(VOCABULARIES[model].num_embeddings) if i != EOS_ID]
        assert VOCABULARIES[model].decode(ids).tolist() == GOLDEN[model]["decode_ids"]

    def test_velocities(self, model):
        vocabulary, golden = VOCABULARIES[model], GOLDEN[model]
        assert [vocabulary.velocity_to_bin(velocity) for velocity in range(128)] == golden["velocity_to_bin"]
        bins = range(vocabulary.config.num_velocity_bins + 1)
        assert [vocabulary.bin_to_velocity(velocity_bin) for velocity_bin in bins] == golden["bin_to_velocity"]

    def test_every_index_both_ways(self, model):
        vocabulary = VOCABULARIES[model]
        indices = list(range(vocabulary.num_classes))
        assert [vocabulary.index(*vocabulary.event(index)) for index in indices] == indices
        assert vocabulary.decode(vocabulary.encode(indices)).tolist() == indices


def test_note_on_of_the_multi_instrument_model():
    assert VOCABULARIES["mt3"].event(1133 - 3) == Event("velocity", 1)


def test_everything_after_the_first_eos_is_eos():
    ids = [5, UNK_ID, EOS_ID, 6, PAD_ID, EOS_ID, 7]
    assert VOCABULARIES["mt3"].decode(ids).tolist() == [2, -2, -1, -1, -1, -1, -1]


def test_unk_is_not_eos_and_pad_is_nothing():
    assert VOCABULARIES["mt3"].decode([PAD_ID, UNK_ID, 1390, 1391, 1535]).tolist() == [-2, -2, 1387, -2, -2]


@given(st.lists(st.integers(-(2**40), 2**40), max_size=30))
@settings(deadline=None, max_examples=100)
def test_any_integers_decode(ids):
    vocabulary = VOCABULARIES["mt3"]
    decoded = vocabulary.decode(ids)
    assert decoded.shape == (len(ids),)
    assert decoded.dtype == np.int32
    assert ((decoded >= -2) & (decoded < vocabulary.num_classes)).all()


@given(st.lists(st.integers(0, 1387), max_size=30))
@settings(deadline=None, max_examples=50)
def test_ids_round_trip(indices):
    vocabulary = VOCABULARIES["mt3"]
    ids = vocabulary.encode(indices)
    assert ids.dtype == np.int32
    assert ids.tolist() == [index + 3 for index in indices]
    assert vocabulary.decode(ids).tolist() == indices


@pytest.mark.parametrize("indices", [[1388], [0, -1]])
def test_encode_refuses_what_is_not_in_the_codec(indices):
    with pytest.raises(ValueError, match=r"codec indices are 0\.\.1387"):
        VOCABULARIES["mt3"].encode(indices)


@pytest.mark.parametrize("ids", [[1.0, 2.0], [[3, 4]], ["3"], 3])
def test_ids_must_be_a_row_of_whole_numbers(ids):
    with pytest.raises(ValueError, match="row of whole numbers"):
        VOCABULARIES["mt3"].decode(ids)


def test_events_outside_the_vocabulary_are_refused():
    vocabulary = VOCABULARIES["mt3"]
    with pytest.raises(ValueError, match=r"pitch must be in 0\.\.127, not 128"):
        vocabulary.index("pitch", 128)
    with pytest.raises(ValueError, match="no event is called 'note'"):
        vocabulary.index("note", 1)
    with pytest.raises(ValueError, match="not 1388"):
        vocabulary.event(1388)
    with pytest.raises(ValueError, match="not -1"):
        vocabulary.event(-1)
