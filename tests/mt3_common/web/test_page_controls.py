"""The page's controls in a real browser, by mouse, fingers and keys, each by what can be seen and heard of it."""

import io
import itertools
import re
import threading

import numpy as np
import pytest
from browsing import address, every_segment, names_by_tab, picture, saved, until
from fakes import record
from PIL import Image
from serving import served

from mt3_common.notes.meter import Meter
from mt3_common.notes.tempo import ScoreClock, Tempo

pytestmark = pytest.mark.process
# remembers all gains, of which a page makes first that of the recording and that of the notes, and hears what is played
LISTEN = """
const make = AudioContext.prototype.createGain, connect = AudioNode.prototype.connect;
window.gains = [];
AudioContext.prototype.createGain = function () { const gain = make.call(this); gains.push(gain); return gain; };
AudioNode.prototype.connect = function (to, ...more) {
  if (to instanceof AudioDestinationNode) {
    window.ear = this.context.createAnalyser();
    connect.call(this, ear);
  }
  return connect.call(this, to, ...more);
};
// [from, for how long] of each part of a recording that is played
window.parts = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...when) {
  if (when.length > 1) parts.push(when.slice(1));
  return start.apply(this, when);
};
window.loudness = () => {
  const samples = new Float32Array(ear.fftSize);
  ear.getFloatTimeDomainData(samples);
  return Math.hypot(...samples) / Math.sqrt(samples.length);
};
"""


@pytest.fixture(scope="module")
def client():
    with served(every_segment) as client:
        yield client


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    return record(tmp_path_factory.mktemp("song") / "song.wav", 20.0)


@pytest.fixture
def opened(page, client, song):
    """The page with a transcription of 20 s, all of which is shown."""
    page.add_init_script(LISTEN)
    page.goto(address(client))
    page.locator("#files").set_input_files(song)
    page.get_by_text("20 notes, 2 instruments, 20.0 s").first.wait_for()
    page.get_by_role("button", name="All", exact=True).click()
    until(lambda: view(page) == (0.0, 20.0))
    return page


def view(page) -> tuple[float, ...]:
    """Return the times that the picture shows (s), as it says to those who do not see it."""
    label = page.locator("#roll").get_attribute("aria-label")
    times = re.findall(r"(\d+):(\d+\.\d)", label)
    return tuple(60 * int(minutes) + float(seconds) for minutes, seconds in times)


def spot(page, time: float) -> tuple[float, float]:
    """Return the point of the window (px) at which the picture shows a time, in the middle of its height."""
    box = page.locator("#roll").bounding_box()
    begin, end = view(page)
    return box["x"] + (time - begin) / (end - begin) * box["width"], box["y"] + box["height"] / 2


def position(page) -> float:
    return float(page.locator("#position").input_value())


def gains(page) -> list[float]:
    """Return the gains of the recording and of the notes."""
    return page.evaluate("gains.slice(0, 2).map((gain) => gain.gain.value)")


def is_near(value: tuple[float, ...], expected: tuple[float, ...]) -> bool:
    return value == pytest.approx(expected, abs=0.15)


def test_wheel_and_buttons_zoom_where_they_point(opened):
    page = opened
    page.mouse.move(*spot(page, 15.0))
    page.mouse.wheel(0, -300)
    # e times closer; 15 s stays where it is
    until(lambda: is_near(view(page), (15 - 15 / 2.718, 15 + 5 / 2.718)))
    page.mouse.wheel(0, 300)
    until(lambda: is_near(view(page), (0.0, 20.0)))
    page.get_by_role("button", name="Zoom in").click()
    until(lambda: is_near(view(page), (5.0, 15.0)))
    page.mouse.move(*spot(page, 10.0))
    page.mouse.wheel(300, 0)
    until(lambda: 5.5 < view(page)[0] <= 10.0)
    page.get_by_role("button", name="Zoom out").click()
    until(lambda: is_near(view(page), (0.0, 20.0)))
    for _ in range(20):
        page.keyboard.press("+")
    until(lambda: view(page)[1] - view(page)[0] == pytest.approx(0.5, abs=0.11))
    page.keyboard.press("0")
    until(lambda: is_near(view(page), (0.0, 20.0)))


def test_two_fingers_zoom_and_one_moves(opened, context):
    page = opened
    touch = context.new_cdp_session(page)

    def fingers(kind: str, *times: float) -> None:
        points = [spot_of_all[time] for time in times]
        touch.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]},
        )

    spot_of_all = {time: spot(page, time) for time in (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0)}
    fingers("touchStart", 8.0, 12.0)
    fingers("touchMove", 6.0, 14.0)
    fingers("touchMove", 2.0, 18.0)
    # 4 s now fill 16 of 20 parts
    until(lambda: is_near(view(page), (7.5, 12.5)))
    fingers("touchEnd")
    before = position(page)
    fingers("touchStart", 14.0)
    fingers("touchMove", 12.0)
    fingers("touchMove", 6.0)
    until(lambda: is_near(view(page), (9.5, 14.5)))
    fingers("touchEnd")
    # whoever moves the picture does not go elsewhere in the music
    assert position(page) == before


def test_a_click_goes_there_a_drag_moves_and_one_with_shift_loops(opened):
    page = opened
    page.mouse.click(*spot(page, 12.0))
    until(lambda: position(page) == pytest.approx(12.0, abs=0.1))
    page.get_by_role("button", name="Zoom in").click()
    until(lambda: is_near(view(page), (5.0, 15.0)))
    page.mouse.move(*spot(page, 10.0))
    page.mouse.down()
    page.mouse.move(*spot(page, 12.0), steps=4)
    page.mouse.up()
    until(lambda: is_near(view(page), (3.0, 13.0)))
    assert page.locator("#loop").get_attribute("aria-pressed") == "false"
    page.keyboard.down("Shift")
    page.mouse.move(*spot(page, 4.0))
    page.mouse.down()
    page.mouse.move(*spot(page, 4.6), steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert page.locator("#loop").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Play", exact=True).click()
    for _ in range(4):
        page.wait_for_timeout(400)
        assert 3.9 <= position(page) <= 4.8
    page.get_by_role("button", name="Loop").click()
    assert page.locator("#loop").get_attribute("aria-pressed") == "false"
    until(lambda: position(page) > 4.9)
    page.get_by_role("button", name="Pause", exact=True).click()
    # the button loops what is shown
    page.get_by_role("button", name="Loop").click()
    assert page.locator("#loop").get_attribute("aria-pressed") == "true"


def test_the_recording_ends_where_the_loop_ends(opened):
    """To the sample: the time between two looks at the clock is not heard."""
    page = opened
    page.get_by_role("button", name="Play", exact=True).click()
    until(lambda: position(page) > 0.1)
    assert page.evaluate("parts") == [[0, pytest.approx(20.0)]]
    page.locator("#position").fill("1.5")
    # counts while it plays: what is played already is cut off
    page.keyboard.press("]")
    page.locator("#position").fill("1.2")
    page.evaluate("parts.length = 0")
    until(lambda: len(page.evaluate("parts")) > 1)
    for begin, length in page.evaluate("parts"):
        assert (begin, begin + length) == pytest.approx((0.0, 1.5), abs=0.4)
    ends = {round(begin + length, 6) for begin, length in page.evaluate("parts")}
    assert len(ends) == 1


def test_the_playhead_and_the_picture_follow_the_music(opened):
    page = opened
    page.keyboard.press("+")
    page.keyboard.press("+")
    until(lambda: is_near(view(page), (7.5, 12.5)))
    page.locator("#position").fill("1")
    assert page.locator("#time").inner_text() == "0:01.0 of 0:20.0"
    page.locator("h1").click()
    page.keyboard.press(" ")
    # the picture turns the page to where the music is
    until(lambda: view(page)[0] < 1.0)
    shown = page.locator("#roll").screenshot()
    page.wait_for_timeout(400)
    assert page.locator("#roll").screenshot() != shown
    page.keyboard.press(" ")
    page.keyboard.press("ArrowRight")
    assert position(page) > 6.0
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("[")
    assert page.locator("#loop").get_attribute("aria-pressed") == "true"


def test_recording_and_notes_are_mixed(opened):
    page = opened
    assert gains(page) == pytest.approx([0.5**0.5] * 2)
    page.locator("#mix").fill("0")
    assert gains(page) == pytest.approx([1, 0], abs=1e-6)
    page.keyboard.press("n")
    assert gains(page) == pytest.approx([0, 1], abs=1e-6)
    page.keyboard.press("r")
    assert gains(page) == pytest.approx([1, 0], abs=1e-6)
    assert page.locator("#mix").input_value() == "0"
    page.keyboard.press("b")
    assert gains(page) == pytest.approx([0.5**0.5] * 2)


def test_what_is_muted_is_not_heard(opened):
    page = opened
    page.keyboard.press("n")
    page.get_by_role("button", name="Play", exact=True).click()
    until(lambda: page.evaluate("loudness()") > 1e-3)
    page.get_by_role("button", name="Mute acoustic grand piano").click()
    page.get_by_role("button", name="Mute drums").click()
    assert page.locator("#chips li.silent").count() == 2
    until(lambda: page.evaluate("loudness()") < 1e-6)
    # who plays alone is heard, muted or not
    page.get_by_role("button", name="Solo drums").click()
    assert page.locator("#chips li.silent").all_inner_texts()[0].startswith("acoustic grand piano")
    until(lambda: page.evaluate("loudness()") > 1e-4)
    page.keyboard.press("Shift+Digit1")
    page.get_by_role("button", name="Solo drums").click()
    pressed = [button.get_attribute("aria-pressed") for button in page.locator("#chips button").all()]
    assert pressed.count("true") == 3
    page.get_by_role("button", name="Pause", exact=True).click()


def test_every_instrument_has_its_colour_in_the_picture(opened):
    page = opened
    colours = page.evaluate(
        "[...document.querySelectorAll('#chips .colour')].map((part) => getComputedStyle(part).backgroundColor)"
    )
    assert len(set(colours)) == 2
    image = Image.open(io.BytesIO(saved(page, "Save picture"))).convert("RGB")
    # 50 px a second of the segments' frames, the last of which reaches a little further
    assert image.height == 720
    assert 1000 <= image.width <= 1010
    pixels = np.asarray(image).reshape(-1, 3).astype(int)
    for colour in colours:
        wanted = [int(number) for number in re.findall(r"\d+", colour)]
        # over a dark ground at 95 %
        assert (np.abs(pixels - wanted).max(axis=1) < 20).sum() > 50, colour


def test_time_left_and_notes_are_told_while_it_works(page, song):
    gate = threading.Semaphore(0)

    def slow(segments):
        for segment in segments:
            assert gate.acquire(timeout=120)
            yield from every_segment([segment])

    with served(slow) as client:
        page.goto(address(client))
        page.locator("#files").set_input_files(song)
        page.get_by_text("0 of 10 segments").wait_for()
        page.wait_for_timeout(1100)
        for _ in range(4):
            gate.release()
        page.get_by_text(re.compile("[34] of 10 segments, about [1-5] s left")).wait_for()
        assert page.get_by_role("progressbar", name="Progress of song.wav").get_attribute("max") == "10"
        # what is done can be seen already, while nothing can be saved yet
        until(lambda: re.search(": [678] notes$", page.locator("#roll").get_attribute("aria-label")) is not None)
        assert page.locator("#chips li").count() == 2
        assert page.locator("#saves button").count() == 0
        for _ in range(6):
            gate.release()
        page.get_by_text("20 notes, 2 instruments, 20.0 s").first.wait_for()


def test_dark_and_light_as_the_machine_has_it_or_as_asked(browser, client, song):
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 844})
        page = context.new_page()
        page.goto(address(client))
        page.locator("#files").set_input_files(song)
        page.get_by_text("20 notes, 2 instruments, 20.0 s").first.wait_for()
        picture(page, f"toy-390-{scheme}")
        shade = "getComputedStyle(document.body).backgroundColor"
        asis = page.evaluate(shade)
        assert (asis == "rgb(22, 23, 26)") == (scheme == "dark")
        page.locator("#theme").click()
        assert (page.evaluate(shade) == "rgb(22, 23, 26)") == (scheme == "light")
        context.close()


def test_a_keyboard_is_enough(page, client, song):
    page.goto(address(client))
    with page.expect_file_chooser() as chooser:
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "files":
                break
        page.keyboard.press("Enter")
    chooser.value.set_files(song)
    page.get_by_text("20 notes, 2 instruments, 20.0 s").first.wait_for()
    names = names_by_tab(page, 40)
    reached = ("play", "Mix of recording and notes", "loop", "Zoom in", "fit", "Mute drums", "Solo drums", "Position")
    assert set(reached) | {"Save MIDI", "Save picture", "Remove song.wav", "song.wav"} <= set(names)
    page.locator("#play").focus()
    page.keyboard.press("Enter")
    until(lambda: position(page) > 0.2)
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Play"
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


def test_keys_can_be_switched_off_by_keyboard_and_stay_off(opened, client, song):
    page = opened
    page.locator("#help").focus()
    page.keyboard.press("Enter")
    assert "shortcuts" in names_by_tab(page, 3)
    page.locator("#shortcuts").focus()
    page.keyboard.press(" ")
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0

    def press_all() -> tuple:
        page.locator("h1").click()
        for key in ("n", "]", "+", "ArrowRight", "Digit1", "End", "?"):
            page.keyboard.press(key)
        pressed = page.locator("#chips button[aria-pressed=true]").count()
        looped = page.locator("#loop").get_attribute("aria-pressed")
        return page.locator("#mix").input_value(), looped, position(page), pressed, page.get_by_role("dialog").count()

    assert press_all() == ("50", "false", 0.0, 0, 0)
    assert view(page) == (0.0, 20.0)
    # what has the focus is still worked by keys
    page.locator("#play").focus()
    page.keyboard.press("Enter")
    until(lambda: position(page) > 0.1)
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Play"
    page.reload()
    page.locator("#files").set_input_files(song)
    page.get_by_text("20 notes, 2 instruments, 20.0 s").first.wait_for()
    assert press_all() == ("50", "false", 0.0, 0, 0)
    assert page.context.cookies() == []
    page.locator("#help").click()
    page.get_by_label("One key alone works anywhere").check()
    page.keyboard.press("Escape")
    mix, _, time, pressed, dialogs = press_all()
    assert (mix, pressed, dialogs) == ("100", 1, 1)
    assert time > 19


@pytest.mark.parametrize(
    "tempo",
    [
        Tempo((0.0, 0.625), 0, Meter(3, 4)),
        Tempo((0.4, 1.0, 1.7, 2.2, 2.9), 2, Meter(4, 4)),
        Tempo((1.3, 1.8, 2.3), 1, Meter(9, 8)),
        Tempo((0.0004, 0.5, 1.1), 2, Meter(6, 8)),
    ],
)
def test_bars_are_those_of_the_files(page, client, tempo):
    page.goto(address(client))
    written = {"beats": tempo.beats, "downbeat": tempo.downbeat, "meter": str(tempo.meter)}
    times = page.evaluate("(tempo) => import('/bars.js').then(({ barTimes }) => barTimes(tempo, 12))", written)
    clock = ScoreClock(tempo)
    numbers = itertools.count(int(-clock.bar // tempo.meter.bar) + (clock.bar % tempo.meter.bar > 0))
    expected = (clock.time(float(clock.bar + number * tempo.meter.bar)) for number in numbers)
    assert times == pytest.approx(list(itertools.takewhile(lambda time: time < 12, expected)), abs=1e-3)
    assert len(times) > 4


def test_bars_are_drawn_where_a_tempo_was_asked_for(page, client, song):
    page.goto(address(client))
    plain = []
    for kind in ("", "number"):
        page.locator("#options").evaluate("(options) => { options.open = true; }")
        page.get_by_label("Tempo").select_option(kind)
        page.locator("#files").set_input_files(song)
        page.get_by_text("20 notes, 2 instruments, 20.0 s").nth(len(plain)).wait_for()
        page.get_by_role("button", name="song.wav", exact=True).nth(len(plain)).click()
        page.get_by_role("button", name="Save MIDI").wait_for()
        plain.append(np.asarray(Image.open(io.BytesIO(saved(page, "Save picture"))).convert("RGB")).astype(int))
    columns = np.flatnonzero((plain[0] != plain[1]).any(axis=(0, 2)))
    # 120 quarters a minute, 4/4: a bar every 2 s, at 50 px a second
    assert {round(column / 100) for column in columns} == set(range(10))
    assert max(column % 100 for column in columns) <= 1
