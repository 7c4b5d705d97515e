"""Channels and levels: what is mended, what is reported, and what keeps its bits."""

import logging

import numpy as np
import pytest
import soundfile

from mt3_common.audio.files import read_audio, stream_audio
from mt3_common.audio.levels import TARGET_PEAK, Mix

RATE = 16000
PUBLISHED = Mix(published=True)


def melody(seconds=2.0, level=0.5, hertz=440.0):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def written(path, samples, subtype="FLOAT"):
    soundfile.write(path, samples, RATE, subtype=subtype)
    return path


@pytest.fixture
def read(tmp_path):
    """Write samples, read them; return them and what was reported."""

    def run(samples, subtype="FLOAT", **options):
        path = written(tmp_path / "x.wav", samples, subtype)
        reports = []
        mono = read_audio(path, report=reports.append, **options)
        assert all(report.startswith(f"{path}: ") for report in reports)
        return mono, [report.removeprefix(f"{path}: ") for report in reports]

    return run


# --- channels


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_channels_that_cancel_give_the_left_one(read, noise):
    left = melody()
    right = -left + noise * np.random.default_rng(0).normal(size=len(left)).astype(np.float32)
    mono, [message] = read(np.stack([left, right], axis=1))
    np.testing.assert_array_equal(mono, left)
    assert message.startswith("its channels cancel each other out (their mean is ")
    assert message.endswith("so the left one was taken; --channel takes another, or the mean")


@pytest.mark.parametrize(("channel", "index"), [("left", 0), ("right", 1)])
def test_a_channel_that_is_asked_for(read, channel, index):
    channels = np.stack([melody(), -melody()], axis=1)
    mono, messages = read(channels, mix=Mix(channel=channel))
    np.testing.assert_array_equal(mono, channels[:, index])
    assert messages == []


def test_the_mean_that_is_asked_for_is_silent_and_said_to_be(read):
    mono, messages = read(np.stack([melody(), -melody()], axis=1), mix=Mix(channel="mean"))
    assert not mono.any()
    assert messages == ["it is silent: every sample is 0"]


def test_a_mono_file_has_one_channel_only(read):
    mono, messages = read(melody(), mix=Mix(channel="right"))
    np.testing.assert_array_equal(mono, melody())
    assert messages == []


def test_as_published_the_mean_is_taken_and_what_is_odd_reported(read):
    mono, [message] = read(np.stack([melody(), -melody()], axis=1), mix=PUBLISHED)
    assert not mono.any()
    assert message.startswith("its channels cancel each other out for 2 of 2 s, where notes are missed; --channel left")


def test_channels_that_cancel_later_are_reported(read):
    left = melody(30)
    right = np.concatenate([left[: 20 * RATE], -left[20 * RATE :]])
    mono, [message] = read(np.stack([left, right], axis=1))
    np.testing.assert_array_equal(mono[: 20 * RATE], left[: 20 * RATE])
    assert message.startswith("its channels cancel each other out for 10 of 30 s, where notes are missed")


def test_channels_that_cancel_only_at_first_are_reported(read):
    left = melody(30)
    right = np.concatenate([-left[: 12 * RATE], left[12 * RATE :]])
    _, messages = read(np.stack([left, right], axis=1))
    assert len(messages) == 2
    assert messages[1] == "its channels cancel each other out for 12 of 30 s only; --channel mean takes both"


@pytest.mark.parametrize("right", [0.0, 1.0, -0.5])
def test_channels_that_do_not_cancel_keep_their_bits(read, right):
    channels = np.stack([melody(), right * melody()], axis=1)
    mono, messages = read(channels)
    np.testing.assert_array_equal(mono, channels.mean(axis=1))
    assert messages == []


def test_of_four_channels_a_loud_one_is_taken(read):
    left = melody()
    channels = np.stack([0.01 * left, -0.01 * left, left, -left], axis=1)
    mono, [message] = read(channels)
    np.testing.assert_array_equal(mono, left)
    assert "the number 3 one was taken" in message


def test_a_silent_channel_is_reported(read):
    _, messages = read(np.stack([melody(), 0 * melody()], axis=1), mix=Mix(channel="right"))
    assert messages == ["the channel that was taken is silent, another one is not; see --channel"]


# --- constants


@pytest.mark.parametrize("constant", [0.1, -0.02, 0.5])
@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16"])
def test_a_constant_is_taken_off(read, constant, subtype):
    mono, [message] = read(melody(3, 0.4) + np.float32(constant), subtype)
    np.testing.assert_allclose(mono, melody(3, 0.4), rtol=0, atol=2e-3)
    assert abs(mono[-1]) < 0.4
    words = f"every sample carries a constant of {constant:g}"
    assert message.startswith(words) or message.startswith(f"every sample carries a constant of {constant:.3f}"[:-1])
    raw, messages = read(melody(3, 0.4) + np.float32(constant), subtype, mix=PUBLISHED)
    np.testing.assert_allclose(raw, melody(3, 0.4) + constant, rtol=0, atol=1e-4)
    assert messages == []


@pytest.mark.parametrize("samples", [melody(), np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)])
def test_sound_without_a_constant_keeps_its_bits(read, samples):
    mono, messages = read(samples)
    np.testing.assert_array_equal(mono, samples)
    assert messages == []


def test_what_is_mended_does_not_depend_on_the_blocks(tmp_path):
    path = written(
        tmp_path / "x.wav", melody(15) + np.float32(0.1) + 1e-3 * np.arange(15 * RATE, dtype=np.float32) / RATE
    )
    blocks = [np.concatenate(list(stream_audio(path, block_seconds=seconds))) for seconds in (0.3, 1.0, 20.0)]
    np.testing.assert_array_equal(blocks[0], blocks[1])
    np.testing.assert_array_equal(blocks[0], blocks[2])


def test_a_part_is_mended_too(tmp_path):
    path = written(tmp_path / "x.wav", melody(4) + np.float32(0.1))
    part = read_audio(path, start=1.0, duration=2.0)
    np.testing.assert_allclose(part, melody(4)[RATE : 3 * RATE], rtol=0, atol=2e-3)


# --- integers stored as floats


@pytest.mark.parametrize("bits", [15, 23, 31])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_integers_stored_as_floats_are_divided(read, bits, subtype):
    integers = np.round(melody(2, 0.7).astype(np.float64) * 2.0**bits)
    mono, [message] = read(integers, subtype)
    np.testing.assert_allclose(mono, melody(2, 0.7), rtol=0, atol=2.0**-15)
    assert "integers stored as floats, which were divided by " + f"{2**bits}" in message
    raw, messages = read(integers, subtype, mix=PUBLISHED)
    assert np.abs(raw).max() > 2 ** (bits - 1)
    assert len(messages) == 1
    assert "where 1 is full scale, so that notes are wrong" in messages[0]


def test_integers_that_begin_quietly_are_divided_by_the_peak_of_the_whole(read):
    quiet = np.concatenate([np.zeros(11 * RATE), 100 * np.ones(RATE), 2.0**22 * melody(1).astype(np.float64)])
    mono, messages = read(np.round(quiet), "DOUBLE")
    assert np.abs(mono).max() == pytest.approx(0.25, rel=1e-3)
    assert "divided by 8388608" in messages[0]


def test_integers_that_were_resampled_are_divided(read):
    mono, messages = read(melody(2, 0.7) * np.float32(32767))
    np.testing.assert_allclose(mono, melody(2, 0.7), rtol=0, atol=1e-4)
    assert "divided by 32768" in messages[0]


@pytest.mark.parametrize("peak", [1.0, 8.0, 100.0])
def test_a_hot_mix_keeps_its_bits(read, peak):
    mono, messages = read(melody(2, peak))
    np.testing.assert_array_equal(mono, melody(2, peak))
    assert messages == []


# --- levels


@pytest.mark.parametrize("decibels", [-55, -74, -84])
def test_a_quiet_recording_is_reported_and_turned_up_when_asked(read, decibels):
    quiet = melody(2, 10 ** (decibels / 20))
    mono, messages = read(quiet, "PCM_24")
    np.testing.assert_allclose(mono, quiet, rtol=0, atol=2.0**-23)
    assert messages == [
        f"its peak is {-decibels} dB below full scale, so that notes may be missed; --gain auto turns it up"
    ]
    mono, messages = read(quiet, "PCM_24", mix=Mix(gain="auto"))
    assert np.abs(mono).max() == pytest.approx(TARGET_PEAK)
    assert messages == []


def test_a_recording_that_is_not_quiet_is_not_reported(read):
    assert read(melody(2, 10 ** (-45 / 20)))[1] == []


def test_a_gain_in_decibels(read):
    mono, _ = read(melody(2, 0.01), mix=Mix(gain=20.0))
    np.testing.assert_allclose(mono, melody(2, 0.1), rtol=1e-5, atol=1e-7)


def test_gain_auto_of_a_part_goes_by_the_part(tmp_path):
    path = written(tmp_path / "x.wav", np.concatenate([melody(2, 0.9), melody(2, 0.01)]))
    part = read_audio(path, start=2.5, duration=1.0, mix=Mix(gain="auto"))
    assert np.abs(part).max() == pytest.approx(TARGET_PEAK)


def test_silence_is_reported(read):
    for mix in (Mix(), Mix(gain="auto")):
        mono, messages = read(np.zeros(RATE), "PCM_16", mix=mix)
        assert not mono.any()
        assert messages == ["it is silent: every sample is 0"]


def test_a_few_milliseconds_are_reported(read):
    assert read(melody(0.006))[1] == ["it has 6 ms of sound, too short for a note"]


def test_a_program_without_logging_sees_each_once(tmp_path, caplog):
    path = written(tmp_path / "x.wav", melody(0.006))
    with caplog.at_level(logging.WARNING, "mt3_common"):
        read_audio(path)
        read_audio(path)
    assert caplog.messages == [f"{path}: it has 6 ms of sound, too short for a note"]
