"""The page of `mt3 site` in a real browser: the bundled network, run by the browser, gives the command line's notes.

Needs Chromium and the package of ONNX Runtime Web.
"""

import base64
import functools
import http.server
import itertools
import json
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browsing import AXE, HAS_RUNTIME, NO_AXE, NO_RUNTIME, RUNTIME, names_by_tab, picture, saved, until, violations
from fakes import encode

from mt3_common.audio.files import read_audio
from mt3_common.audio.levels import Mix
from mt3_common.cli import site
from mt3_common.notes.note import Note
from mt3_common.transcription.reader import AUTO_VELOCITY
from onnx_mt3 import infer

pytestmark = [pytest.mark.compile, pytest.mark.process, pytest.mark.skipif(not HAS_RUNTIME, reason=NO_RUNTIME)]

# the samples of a file as the page reads them
READ = """async (content) => {
    const { decode, samplesOf } = await import("./local/source.js");
    const file = new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], "song");
    return Array.from(samplesOf(await decode(file), 0));
}"""
EXAMPLE = Path(__file__).parents[3] / "audio" / "example.flac"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A static server as anybody has one, without its log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of the site of the bundled network."""
    folder = tmp_path_factory.mktemp("site") / "below" / "site"
    folder.parent.mkdir()
    named = [argument for path in RUNTIME for argument in ("--runtime", str(path))]
    assert site.main([str(folder), *named]) == 0
    # not at the root of its server
    handler = functools.partial(Quiet, directory=folder.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/site/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page(browser, address):
    """One page for all tests, whose network is loaded once; what it complains of or fetches elsewhere is an error."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: request.url.startswith((address, "blob:")) or complaints.append(request.url))
    page.set_default_timeout(120_000)
    page.goto(address)
    yield page
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def network():
    return infer.load()


def result_of(page, path: Path) -> bytes:
    """Return the JSON file of a recording that is dropped."""
    page.locator("#files").set_input_files(path)
    row = page.locator("#queue li").last
    row.locator(".state", has_text=" instrument").wait_for()
    row.locator(".name").click()
    return saved(page, "Save JSON")


def clear(page) -> None:
    for button in page.get_by_role("button", name="Remove ").all()[::-1]:
        button.click()


def chords(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Return struck chords, (n, 2) in [-1, 1], with the same sound at every rate."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    sound = np.zeros((len(times), 2))
    for onset in np.arange(0.0, seconds - 0.5, 0.35):
        age = np.maximum(times - onset, 0)
        envelope = (times >= onset) * np.exp(-3 * age) * np.minimum(age / 0.005, 1)
        for pitch in rng.integers(45, 80, 3):
            hertz = 440 * 2 ** ((pitch - 69) / 12)
            wave = sum(np.sin(2 * np.pi * k * hertz * age) / k**1.5 for k in range(1, 8))
            sound += (envelope * wave)[:, None] * rng.uniform(0.05, 0.15, 2)
    return sound / max(1.0, np.abs(sound).max())


def test_the_bundled_recording_gives_the_same_files(page, tmp_path):
    """Files of the command itself."""
    assert infer.main([str(EXAMPLE), "-o", str(tmp_path), "--format", "json,mid,csv", "--quiet"]) == 0
    actual = result_of(page, EXAMPLE)
    assert len(json.loads(actual)["notes"]) > 20
    for kind, label in (("json", "JSON"), ("mid", "MIDI"), ("csv", "CSV")):
        content = actual if kind == "json" else saved(page, f"Save {label}")
        assert content == (tmp_path / f"example.{kind}").read_bytes(), kind
    page.get_by_role("button", name="All", exact=True).click()
    picture(page, "site-1280")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "site-390")
    page.set_viewport_size({"width": 1280, "height": 900})
    clear(page)


@pytest.mark.parametrize(
    ("name", "rate", "share"),
    [
        ("a.wav", 16000, 1.0),
        ("b.flac", 16000, 1.0),
        ("c.wav", 16000, 1.0),
        ("d.flac", 44100, 0.995),
        ("e.wav", 48000, 0.995),
        ("f.mp3", 44100, 0.995),
        ("g.mp3", 48000, 0.995),
    ],
)
def test_generated_recordings_give_the_same_notes(page, network, tmp_path, name, rate, share):
    """All notes at 16 kHz, 99.5 % of them where soxr and the page resample, or two builds of mpg123 decode."""
    sound = chords(8.0, rate, ord(name[0]))
    if name.endswith(".mp3"):
        # that of a room: in the silence of a synthesizer the network listens to the rounding of decoders
        sound = 0.9 * sound + np.random.default_rng(0).normal(0.0, 5e-4, sound.shape)
    soundfile.write(tmp_path / name, sound, rate)
    expected = network.transcribe(tmp_path / name, velocity=AUTO_VELOCITY)
    actual = json.loads(result_of(page, tmp_path / name))
    notes = [Note(**note) for note in actual["notes"]]
    assert len(expected.notes) > 40
    common = len(set(notes) & set(expected.notes))
    assert 2 * common >= share * (len(notes) + len(expected.notes))
    assert actual["metadata"]["segments"] == expected.num_segments
    clear(page)


def plucked(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Return tones of odd harmonics that die away, two at a time, (n,) in [-1, 1]: of no instrument in particular."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    sound = np.zeros(len(times))
    for onset in np.arange(0, seconds - 0.5, 0.35):
        age = np.maximum(times - onset, 0)
        envelope = ((age > 0) & (age < 0.34)) * np.exp(-3 * age) * np.minimum(age / 0.01, 1)
        for pitch in rng.integers(55, 80, 2):
            hertz = 440 * 2 ** ((pitch - 69) / 12)
            sound += 0.15 * envelope * sum(np.sin(2 * np.pi * k * hertz * age) / k**2 for k in (1, 3, 5, 7))
    return sound


def changed(network, other, path: Path, sounds: Iterable[np.ndarray]):
    """Write the first of the sounds of which a network has other notes than another one; return its transcription."""
    for sound in sounds:
        soundfile.write(path, sound, 16000)
        expected = network.transcribe(path, velocity=AUTO_VELOCITY)
        if expected.notes != other.transcribe(path, velocity=AUTO_VELOCITY).notes:
            return expected
    pytest.fail("all sounds have the same notes without it")


def test_instruments_are_chosen_by_the_recording_so_far(page, network, tmp_path):
    """Without that, the network changes its mind from segment to segment."""
    path = tmp_path / "plucked.wav"
    alone = infer.load(instrument_prior=False)
    expected = changed(network, alone, path, (plucked(8.0, 16000, seed) for seed in range(20)))
    expected.write(tmp_path / "plucked.json")
    assert result_of(page, path) == (tmp_path / "plucked.json").read_bytes()
    clear(page)
    # nor does a recording without any program need one
    soundfile.write(path, np.zeros(16000), 16000)
    assert json.loads(result_of(page, path))["notes"] == network.transcribe(path).notes == []
    clear(page)


def test_onsets_and_offsets_are_corrected_by_activations(page, network, tmp_path):
    """Without that, notes are missing, or end too early."""
    path = tmp_path / "chords.wav"
    alone = infer.load(activations=False)
    expected = changed(network, alone, path, (chords(8.0, 16000, seed) for seed in range(20)))
    expected.write(tmp_path / "chords.json")
    assert result_of(page, path) == (tmp_path / "chords.json").read_bytes()
    clear(page)


@pytest.mark.parametrize(
    ("codec", "container", "stored", "error"),
    [
        ("flac", "matroska", "s16", 0),
        ("flac", "mp4", "s32", 1e-7),
        ("pcm_u8", "mov", None, 0),
        ("pcm_s16be", "mov", None, 0),
        ("pcm_s24le", "mov", None, 1e-7),
        ("pcm_s32le", "matroska", None, 1e-7),
        ("pcm_f32le", "matroska", None, 0),
        ("pcm_mulaw", "wav", None, 0),
    ],
)
def test_lossless_codings_are_read_as_on_the_command_line(page, tmp_path, codec, container, stored, error):
    """Not rounded to 16 bits, in whatever container; Chromium itself rounds samples of 24 and more bits once."""
    pytest.importorskip("av")
    sound = np.clip(chords(1.0, 32000, 3).mean(axis=1), -0.99, 0.99)
    path = encode(tmp_path / "song", sound, 32000, codec, container, stored)
    content = base64.b64encode(path.read_bytes()).decode()
    samples = page.evaluate(READ, content)
    expected = read_audio(path, 32000, mix=Mix(published=True))
    np.testing.assert_allclose(samples, expected, rtol=0, atol=error)
    if codec in ("flac", "pcm_s24le") and stored != "s16":
        assert np.abs(expected * 32768 - np.round(expected * 32768)).max() > 0.4


@pytest.mark.skipif(not AXE.exists(), reason=NO_AXE)
def test_nobody_is_left_out(page, tmp_path):
    """axe-core before the page of the site, on a screen and on a phone, light and dark, with a result and an error."""
    (tmp_path / "notes.txt").write_bytes(b"no sound at all " * 99)
    page.evaluate(AXE.read_text())
    page.get_by_text("Options").click()
    assert violations(page) == []
    page.locator("#files").set_input_files(tmp_path / "notes.txt")
    page.get_by_role("alert").wait_for()
    result_of(page, EXAMPLE)
    page.get_by_text("List of notes").click()
    for width, scheme in itertools.product((1280, 390), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == [], (width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        picture(page, f"site-all-{width}-{scheme}")
    page.get_by_role("button", name="Keys").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_text("List of notes").click()
    page.get_by_text("Options").click()
    clear(page)


def test_a_keyboard_is_enough(page):
    """From the file to its notes, their sound and their file, without a mouse."""
    page.locator("#help").focus()
    with page.expect_file_chooser() as chooser:
        assert names_by_tab(page, 1) == ["files"]
        page.keyboard.press("Enter")
    chooser.value.set_files(EXAMPLE)
    page.locator("#queue li .state", has_text=" instrument").wait_for()
    reached = {"example.flac", "Remove example.flac", "play", "loop", "Zoom in", "fit", "Position", "Save MIDI"}
    assert reached <= set(names_by_tab(page, 30))
    page.locator("#play").focus()
    page.keyboard.press("Enter")
    until(lambda: float(page.locator("#position").input_value()) > 0.2)
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Play"
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename == "example.mid"
    clear(page)


def test_options_reach_the_network(page, tmp_path):
    page.get_by_text("Options").click()
    page.get_by_label("strings", exact=True).check()
    page.get_by_label("Hold instruments").check()
    page.get_by_label("Tempo").select_option("number")
    page.get_by_label("Quarters a minute").fill("90")
    assert "find it" not in page.get_by_label("Meter").inner_text()
    page.get_by_label("Meter").select_option("3/4")
    actual = result_of(page, EXAMPLE)
    expected, alone = (
        infer.load(instruments="strings", hold=2.0, activations=corrects).transcribe(
            EXAMPLE, tempo=90.0, meter="3/4", velocity=AUTO_VELOCITY
        )
        for corrects in (True, False)
    )
    assert alone.notes != expected.notes
    expected.write(tmp_path / "example.json")
    assert actual == (tmp_path / "example.json").read_bytes()
    expected.write(tmp_path / "example.mid")
    assert saved(page, "Save MIDI") == (tmp_path / "example.mid").read_bytes()
    page.get_by_label("strings", exact=True).uncheck()
    page.get_by_label("Hold instruments").uncheck()
    page.get_by_label("Tempo").select_option("none")
    page.get_by_label("Meter").select_option(index=0)
    clear(page)


def test_errors_and_a_recording_that_is_removed(page, tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"no sound at all " * 99)
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "long.wav", np.tile(chords(6.0, 16000, 1), (5, 1)), 16000)
    page.locator("#files").set_input_files([tmp_path / name for name in ("notes.txt", "empty.wav", "long.wav")])
    page.get_by_role("alert").nth(1).wait_for()
    messages = page.get_by_role("alert").all_inner_texts()
    assert messages[0].startswith("notes.txt: is not audio that can be read (this browser: ")
    assert messages[1] == "empty.wav: is empty (0 bytes)"
    page.get_by_text("of 24 segments").wait_for()
    clear(page)
    # its work ends, and the next recording has its turn
    assert json.loads(result_of(page, EXAMPLE))["notes"]
    clear(page)
