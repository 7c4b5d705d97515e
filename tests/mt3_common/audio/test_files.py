"""Audio files of every kind, whole and broken, through real files in tmp_path."""

import os
import re
import socket
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.audio.files import AudioError, audio_duration, read_audio, stream_audio
from mt3_common.audio.levels import Mix

# name -> (format, subtype) of libsndfile
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "24_bit.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "double.wav": ("WAV", "DOUBLE"),
    "adpcm.wav": ("WAV", "MS_ADPCM"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
# Those that say how long they should be; each of the others is read as far as it goes, or not at all.
CUT_IS_SEEN = ["wav", "24_bit.wav", "float.wav", "adpcm.wav", "rf64", "aiff", "au", "flac", "ogg", "opus", "mp3"]
RATE = 48000


def noise(frames, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (frames, channels)).astype(np.float32)


def written(path, samples=None, rate=RATE, kind="wav"):
    """The path of a file with these samples, by default 3 s of stereo noise."""
    file_format, subtype = FORMATS[kind]
    soundfile.write(path, noise(3 * rate) if samples is None else samples, rate, format=file_format, subtype=subtype)
    return path


@pytest.fixture
def no_pyav(monkeypatch):
    """PyAV that is not installed."""
    monkeypatch.setitem(sys.modules, "av", None)


# --- what is read


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_mixed_to_mono_and_resampled(tmp_path, kind):
    path = written(tmp_path / f"song.{kind}", kind=kind)
    decoded, rate = soundfile.read(path, dtype="float32")
    if kind in ("ogg", "opus", "mp3"):  # decoders of lossy codings agree at the steps of 16 bits
        decoded = np.rint(decoded * np.float32(32768)) / np.float32(32768)
    wanted = soxr.resample(decoded.mean(axis=1), rate, 16000, quality="HQ")
    samples = read_audio(path)
    assert samples.dtype == np.float32
    # One more zero where soxr rounds the length down.
    assert len(samples) == -(-len(decoded) * 16000 // rate)
    np.testing.assert_array_equal(samples[: len(wanted)], wanted)
    assert not samples[len(wanted) :].any()
    assert audio_duration(path) == len(decoded) / rate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated and slated for removal:DeprecationWarning")
def test_the_samples_are_those_of_librosa(tmp_path):
    librosa = pytest.importorskip("librosa")
    path = written(tmp_path / "song.flac", noise(132317), 44100, "flac")
    wanted, _ = librosa.load(path, sr=16000)
    np.testing.assert_array_equal(read_audio(path), wanted)


def test_mono_is_the_mean_of_the_channels(tmp_path):
    channels = np.tile(np.float32([0.5, -0.25, 0.125, 0, 0, 0, 0, 0.625]), (100, 1))
    samples = read_audio(written(tmp_path / "x.wav", channels, 16000, "float.wav"))
    np.testing.assert_array_equal(samples, np.full(100, 0.125, np.float32))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
def test_a_tone_keeps_its_pitch_phase_and_level(tmp_path, rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    samples = read_audio(written(tmp_path / "x.wav", tone, rate, "float.wav"))
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert samples.shape == (16000,)
    np.testing.assert_allclose(samples[1000:-1000], wanted[1000:-1000], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("frames", [1, 2, 7, 1000])
def test_even_one_sample_gives_one(tmp_path, rate, frames):
    samples = read_audio(written(tmp_path / "x.wav", noise(frames, 1), rate))
    assert samples.shape == (-(-frames * 16000 // rate),)


def test_other_rates_can_be_asked_for(tmp_path):
    path = written(tmp_path / "x.wav", noise(48000, 1), 48000, "float.wav")
    np.testing.assert_array_equal(read_audio(path, sample_rate=48000), noise(48000, 1)[:, 0])
    assert read_audio(path, sample_rate=22050).shape == (22050,)


@pytest.mark.parametrize("name", ["ünï cödé 🎵.wav", "-x.wav", "100%:d.wav", "no_suffix", "two\nlines.wav"])
def test_odd_names(tmp_path, name):
    assert len(read_audio(written(tmp_path / name))) == 48000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text(tmp_path):
    path = written(tmp_path / "x.wav").rename(tmp_path / os.fsdecode(b"\xff\xfe.wav"))
    assert len(read_audio(path)) == 48000


# --- blocks, start and duration


@pytest.fixture(scope="module")
def cd_file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("audio") / "cd.flac", noise(66167), 44100, "flac")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 4), st.sampled_from([0.0, 0.1, 0.7]), st.sampled_from([None, 0.3, 5.0]))
def test_the_samples_do_not_depend_on_the_blocks(cd_file, block_seconds, start, duration):
    whole = read_audio(cd_file, start=start, duration=duration)
    blocks = list(stream_audio(cd_file, block_seconds=block_seconds, start=start, duration=duration))
    assert all(len(block) and block.dtype == np.float32 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("kind", FORMATS)
def test_start_and_duration_are_exact(tmp_path, kind):
    path = written(tmp_path / f"song.{kind}", kind=kind)
    whole = read_audio(path, sample_rate=RATE)
    for start, duration in ((0.5, 1.0), (1.25, 0.001), (2.5, None)):
        first = round(start * RATE)
        wanted = whole[first:] if duration is None else whole[first : first + round(duration * RATE)]
        np.testing.assert_array_equal(read_audio(path, RATE, start, duration), wanted)


def test_a_duration_past_the_end_is_what_there_is(tmp_path):
    assert len(read_audio(written(tmp_path / "x.wav"), start=2, duration=100)) == 16000


def test_memory_does_not_grow_with_the_length(tmp_path):
    path = written(tmp_path / "long.wav", np.zeros((300 * 8000, 1), np.float32), 8000)
    tracemalloc.start()
    total = sum(len(block) for block in stream_audio(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 300 * 16000
    assert peak < 1e6  # the whole is 19 MB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"start": -1}, "start must be 0 s or later, not -1"),
        ({"start": float("nan")}, "start must be 0 s or later, not nan"),
        ({"duration": 0}, "duration must be a positive number, not 0"),
        ({"duration": float("nan")}, "duration must be a positive number, not nan"),
        ({"sample_rate": 0}, "sample_rate must be a positive number, not 0"),
        ({"start": 3}, r"x\.wav: start 3 s is at or past the end \(3\.00 s\)"),
        ({"start": 99}, r"x\.wav: start 99 s is at or past the end \(3\.00 s\)"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, words):
    path = written(tmp_path / "x.wav")
    with pytest.raises(AudioError, match=words):
        read_audio(path, **arguments)


# --- what is refused


def refused(path, **arguments):
    """The one sentence with which a file is refused; it begins with the file's name."""
    with pytest.raises(AudioError) as caught:
        read_audio(path, **arguments)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_missing(tmp_path):
    assert refused(tmp_path / "x.wav") == "no such file"


def test_a_folder_called_x_wav(tmp_path):
    (tmp_path / "x.wav").mkdir()
    assert refused(tmp_path / "x.wav") == "is a folder, not an audio file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "x.wav")
    assert refused(tmp_path / "x.wav") == "is a pipe or a device, not a file: - reads a recording from stdin"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
def test_unreadable(tmp_path):
    path = written(tmp_path / "x.wav")
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read anything
        assert refused(path) == "cannot be read: Permission denied"
    finally:
        os.seteuid(user)


def test_empty(tmp_path):
    (tmp_path / "x.wav").touch()
    assert refused(tmp_path / "x.wav") == "is empty (0 bytes)"


@pytest.mark.parametrize("kind", ["wav", "aiff", "caf"])
def test_without_samples(tmp_path, kind):
    assert refused(written(tmp_path / f"x.{kind}", noise(0), kind=kind)) == "contains no samples"


@pytest.mark.usefixtures("no_pyav")
@pytest.mark.parametrize("name", ["x.txt", "x.wav", "x.mp3", "x.raw", "x.m4a"])
def test_not_audio(tmp_path, name):
    (tmp_path / name).write_text("do re mi\n" * 100)
    message = refused(tmp_path / name)
    assert message.startswith("is not audio that can be read (")
    assert message.endswith('; if other programs play it, `pip install "mt3-twins[audio]"` for FFmpeg\'s decoders')


@pytest.mark.usefixtures("no_pyav")
def test_a_header_that_breaks_off(tmp_path):
    path = written(tmp_path / "x.wav")
    path.write_bytes(path.read_bytes()[:20])
    assert "Malformed 'fmt ' chunk" in refused(path)


@pytest.mark.parametrize("kind", CUT_IS_SEEN)
def test_truncated(tmp_path, kind):
    path = written(tmp_path / f"x.{kind}", kind=kind)
    whole = read_audio(path, RATE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    message = refused(path)
    assert message.startswith("truncated or damaged: only the first ")
    readable = float(message.removeprefix("truncated or damaged: only the first ").split(" s")[0])
    assert 0.9 <= readable < 2.5
    # What the message offers is there, and is right.
    part = read_audio(path, RATE, duration=readable)
    np.testing.assert_array_equal(part, whole[: len(part)])
    assert len(part) == round(readable * RATE)
    # What is wanted beyond it is refused too, not shortened.
    assert refused(path, duration=2.9).startswith("truncated or damaged")
    assert refused(path, start=2.8).startswith("truncated or damaged")


@pytest.mark.parametrize("kind", ["wav", "24_bit.wav", "aiff", "au", "rf64"])
def test_the_length_that_a_truncated_file_should_have_is_named(tmp_path, kind):
    path = written(tmp_path / f"x.{kind}", kind=kind)
    path.write_bytes(path.read_bytes()[:-100000])
    assert " s of 3.00 s can be read" in refused(path)
    assert 2 < audio_duration(path) < 3


def test_a_flac_with_a_damaged_middle(tmp_path):
    path = written(tmp_path / "x.flac", kind="flac")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(byte ^ 0x5A for byte in data[middle : middle + 300])
    path.write_bytes(data)
    message = refused(path)
    assert message.startswith("truncated or damaged: only the first 1.00 s of 3.00 s can be read (")
    # libsndfile says "decoder lost sync" or "unknown error", as the noise would have it.
    assert "flac decoder" in message


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFD7, 0x7FFFF000, 0x7FFFFFFF, 0x80000000])
def test_a_wav_from_a_pipe_promises_nothing(tmp_path, size):
    path = written(tmp_path / "x.wav")
    data = path.read_bytes()
    path.write_bytes(data[:4] + struct.pack("<I", size) + data[8:40] + struct.pack("<I", size) + data[44:])
    assert len(read_audio(path)) == 48000


def test_a_flac_from_a_pipe_promises_nothing(tmp_path):
    path = written(tmp_path / "x.flac", kind="flac")
    wanted = read_audio(path)
    data = bytearray(path.read_bytes())
    # The low 36 bits of these 8 bytes of STREAMINFO are the number of samples; 0 is unknown.
    (word,) = struct.unpack(">Q", data[18:26])
    data[18:26] = struct.pack(">Q", word >> 36 << 36)
    path.write_bytes(data)
    assert audio_duration(path) is None
    np.testing.assert_array_equal(read_audio(path), wanted)
    np.testing.assert_array_equal(read_audio(path, RATE, start=2.5), read_audio(path, RATE)[round(2.5 * RATE) :])


@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e20, "1e+20"), (3e38, "inf")]
)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_samples_that_are_no_sound(tmp_path, value, shown, start):
    samples = noise(2 * 44100)
    samples[round(1.5 * 44100) :] = value
    path = written(tmp_path / "x.wav", samples, 44100, "float.wav")
    assert refused(path, start=start) == (f"the sample at 1.500 s is {shown}, which is no sound; export the file again")
    assert len(read_audio(path, duration=1.25)) == 20000


def test_integers_stored_as_floats_are_loud_but_sound(tmp_path):
    path = written(tmp_path / "x.wav", noise(16000) * 2**31, 16000, "float.wav")
    assert np.abs(read_audio(path, mix=Mix(published=True))).max() > 2**28
    assert 0.3 < np.abs(read_audio(path)).max() <= 0.5


@pytest.mark.parametrize("rate", [1, 100, 999, 768001, 0x7FFFFFFF])
def test_absurd_sample_rates(tmp_path, rate):
    path = written(tmp_path / "x.wav")
    data = path.read_bytes()
    path.write_bytes(data[:24] + struct.pack("<I", rate) + data[28:])
    assert refused(path) == (
        f"its header says {rate} samples per second, not between 1000 and 768000: damaged, or not audio"
    )
    with pytest.raises(AudioError, match="samples per second"):
        audio_duration(path)


def test_a_thousand_channels(tmp_path):
    path = written(tmp_path / "x.wav", noise(9000, 1000), 48000)
    assert len(read_audio(path)) == 3000


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    kinds = ("wav", "float.wav", "aiff", "flac", "ogg", "au", "caf", "rf64")
    files = {kind: written(folder / f"x.{kind}", noise(2000), 16000, kind) for kind in kinds}
    files["m4a"] = encoded(folder / "x.m4a", "m4a", noise(2000), 16000)
    return {kind: file.read_bytes() for kind, file in files.items()}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_broken_bytes_give_sound_or_one_sentence(small_files, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(sorted(small_files)))
    content = bytearray(small_files[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 200) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "broken"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    message, samples = "", np.zeros(1)
    try:
        samples = read_audio(path)
    except AudioError as error:
        message = str(error)
    assert not message or message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(samples)
    assert np.isfinite(samples).all()


# --- other decoders

# A file's suffix -> the encoder of PyAV and the muxer's options.
FFMPEG_FORMATS = {
    "m4a": ("aac", {"movflags": "+faststart"}),
    "alac.m4a": ("alac", {"movflags": "+faststart"}),
    "fragments.mp4": ("aac", {"movflags": "frag_keyframe+empty_moov"}),
    "webm": ("libopus", {}),
    "mka": ("flac", {}),
    "aac": ("aac", {}),
}


def encoded(path, suffix, samples=None, rate=RATE):
    """Write (n, channels) samples with PyAV, by default 3 s of a tone, and return the path."""
    av = pytest.importorskip("av")
    codec, options = FFMPEG_FORMATS[suffix]
    samples = tone(3 * rate, rate) if samples is None else samples
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
        for first in range(0, len(samples), 4096):
            planes = np.ascontiguousarray(samples[first : first + 4096].T)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, first
            container.mux([packet for block in resampler.resample(frame) for packet in stream.encode(block)])
        container.mux([packet for block in resampler.resample(None) for packet in stream.encode(block)])
        container.mux(stream.encode(None))
    return path


def tone(frames, rate=RATE):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(frames) / rate)
    return np.stack([wave, 0.5 * wave], axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", FFMPEG_FORMATS)
def test_what_ffmpeg_decodes_is_read(tmp_path, suffix):
    path = encoded(tmp_path / f"x.{suffix}", suffix)
    samples = read_audio(path)
    wanted = read_audio(written(tmp_path / "x.wav", tone(3 * RATE), kind="float.wav"))
    # A coder's last frame may be longer; AAC without an edit list begins with its encoder's 1024 samples of delay.
    delay = 341 if suffix in ("aac", "fragments.mp4") else 0
    assert 0 <= len(samples) - len(wanted) <= delay + 342
    error = samples[delay + 2000 : delay + 46000] - wanted[2000:46000]
    assert np.sqrt(np.mean(error**2)) < 0.02  # a shift by one sample gives 0.035


def test_lossless_samples_come_bit_for_bit(tmp_path):
    samples = np.round(noise(3 * RATE) * 32768) / np.float32(32768)
    np.testing.assert_array_equal(
        read_audio(encoded(tmp_path / "x.mka", "mka", samples)), read_audio(written(tmp_path / "x.wav", samples))
    )


@pytest.mark.parametrize("suffix", ["m4a", "webm"])
def test_lossy_samples_are_steps_of_16_bits(tmp_path, suffix):
    """Decoders that differ by their rounding give the same samples, and silence is silence."""
    rate = 48000  # that of Opus
    steps = (
        read_audio(encoded(tmp_path / f"x.{suffix}", suffix, noise(rate, channels=1), rate), sample_rate=rate) * 32768
    )
    assert steps.any()
    np.testing.assert_array_equal(steps, np.round(steps))


def test_lossless_samples_of_24_bits_are_not_rounded(tmp_path):
    samples = np.round(noise(RATE) * 2**23) / np.float32(2**23)
    soundfile.write(tmp_path / "x.flac", samples, RATE, subtype="PCM_24")
    np.testing.assert_array_equal(read_audio(tmp_path / "x.flac", sample_rate=RATE), samples.mean(axis=1))


@pytest.mark.parametrize("suffix", ["m4a", "webm", "mka"])
def test_the_length_that_a_container_states(tmp_path, suffix):
    assert audio_duration(encoded(tmp_path / f"x.{suffix}", suffix)) == pytest.approx(3, abs=0.02)


def test_bare_aac_states_no_length(tmp_path):
    assert audio_duration(encoded(tmp_path / "x.aac", "aac")) is None


@pytest.mark.parametrize("suffix", ["m4a", "webm"])
def test_start_and_duration_of_an_encoded_file(tmp_path, suffix):
    path = encoded(tmp_path / f"x.{suffix}", suffix)
    whole = read_audio(path, RATE)
    np.testing.assert_array_equal(read_audio(path, RATE, 1.5, 0.5), whole[round(1.5 * RATE) : 2 * RATE])
    assert refused(path, start=4).startswith("start 4 s is at or past the end (3.0")


@pytest.mark.parametrize("suffix", FFMPEG_FORMATS)
def test_a_truncated_encoded_file(tmp_path, suffix):
    path = encoded(tmp_path / f"x.{suffix}", suffix)
    whole = read_audio(path, RATE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    message = refused(path)
    assert message.startswith("truncated or damaged: only the first ")
    assert message.endswith("; get a whole copy, or ask for a duration that ends before")
    readable = float(message.removeprefix("truncated or damaged: only the first ").split(" s")[0])
    assert 1.4 < readable < 2.2
    part = read_audio(path, RATE, duration=readable)
    np.testing.assert_array_equal(part, whole[: len(part)])
    assert len(part) == round(readable * RATE)
    assert refused(path, start=readable).startswith("truncated or damaged")


@pytest.mark.parametrize(
    ("suffix", "length"),
    [
        ("m4a", " of 3.00 s"),
        ("fragments.mp4", " of 3.02 s"),
        ("webm", " of 3.01 s"),
        ("mka", " of 3.00 s"),
        ("aac", ""),
    ],
)
def test_an_encoded_file_with_a_damaged_middle(tmp_path, suffix, length):
    path = encoded(tmp_path / f"x.{suffix}", suffix)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(byte ^ 0x5A for byte in data[middle : middle + 300])
    path.write_bytes(data)
    message = refused(path)
    assert re.match(r"truncated or damaged: only the first 1\.\d\d s" + length + " can be read", message)
    if suffix != "webm":  # whose reader stops where no element begins
        assert "(FFmpeg: Invalid data found when processing input)" in message


def test_a_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("av")
    image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert refused(tmp_path / "x.png") == (
        "is not audio that can be read (Format not recognised; FFmpeg: no audio in it)"
    )


def test_a_codec_that_nobody_knows(tmp_path):
    pytest.importorskip("av")
    path = written(tmp_path / "x.caf", kind="caf")
    path.write_bytes(path.read_bytes().replace(b"lpcm", b"none", 1))
    assert refused(path).endswith("; FFmpeg: no decoder for it)")


def test_a_comment_that_is_no_text(tmp_path):
    path = encoded(tmp_path / "x.m4a", "m4a")
    path.write_bytes(path.read_bytes().replace(b"SoundHandler", b"Sound\xff\xfe\xfdlers"))
    assert len(read_audio(path)) >= 48000


def test_what_ffmpeg_refuses_has_both_reasons(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0 ftypM4A " * 10)
    assert refused(tmp_path / "x.m4a") == (
        "is not audio that can be read (Format not recognised; FFmpeg: Invalid data found when processing input)"
    )


def test_a_playlist_opens_no_address(tmp_path):
    pytest.importorskip("av")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        (tmp_path / "x.m3u8").write_text(f"#EXTM3U\n#EXTINF:3,\n{address}\n#EXT-X-ENDLIST\n")
        assert "FFmpeg: " in refused(tmp_path / "x.m3u8")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("list_of_files", ["ffconcat version 1.0\nfile song\n", "#EXTM3U\n#EXTINF:3,\nsong\n"])
def test_a_playlist_is_no_recording(list_of_files, tmp_path):
    """One that names itself would be opened until there are no more files to open."""
    pytest.importorskip("av")
    (tmp_path / "song").write_text(list_of_files)
    assert "Too many open files" not in refused(tmp_path / "song")
    soundfile.write(tmp_path / "other.flac", np.zeros(1600), 16000)
    (tmp_path / "song").write_text(list_of_files.replace("song", "other.flac"))
    assert "is not audio that can be read" in refused(tmp_path / "song")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_an_encoded_file_whose_name_is_no_text(tmp_path):
    path = encoded(tmp_path / "x.m4a", "m4a").rename(tmp_path / os.fsdecode(b"\xff\xfe.m4a"))
    assert len(read_audio(path)) >= 48000


@pytest.mark.slow
def test_the_memory_of_an_encoded_file_does_not_grow(tmp_path):
    path = encoded(tmp_path / "x.m4a", "m4a", tone(60 * RATE))
    next(stream_audio(path))  # imports
    tracemalloc.start()
    total = sum(len(block) for block in stream_audio(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total >= 60 * 16000
    assert peak < 1e6  # the whole is 23 MB
