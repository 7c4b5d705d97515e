"""The segments that are compared are those that a transcription has."""

import dataclasses

import numpy as np
import pytest

from mt3_common.audio.files import read_audio
from mt3_common.audio.levels import Mix
from mt3_common.audio.segments import segments
from mt3_common.config import Config, SpectrogramConfig
from parity.trace.inputs import BUNDLED_AUDIO, read_segments


@pytest.mark.parametrize("context", [0, 8])
def test_the_first_segments_are_those_of_the_whole_recording(context):
    """The last of them hears what is behind it, too."""
    config = Config(spectrogram=SpectrogramConfig(hop_width=320), input_frames=64)
    around = {"pre_encoder_layers": 1, "pre_encoder_dim": 4, "context_frames": context} if context else {}
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, **around))
    whole = segments(read_audio(BUNDLED_AUDIO, 16000, mix=Mix(published=True)), config)
    frames, times = read_segments(str(BUNDLED_AUDIO), config, 2)
    assert frames.shape == (2, config.heard_frames, 512)
    for heard, time, segment in zip(frames, times, whole, strict=False):
        np.testing.assert_allclose(heard, segment.heard, rtol=0, atol=1e-4)
        assert time == segment.start_time
