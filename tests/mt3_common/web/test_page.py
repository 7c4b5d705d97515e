"""The page in a real browser: drop a file, wait for its notes, play, mute, save, reload. Needs Chromium."""

import json
import os
import shutil
import threading
import time
import warnings
from pathlib import Path

import pytest
from fakes import IDS, infer, record
from serving import served

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("MT3_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
# where screenshots go to be looked at; nowhere if unset
PICTURES = os.environ.get("MT3_SCREENSHOTS")
REASON = "NO BROWSER: the page is NOT tested; install Debian's chromium, or name one in MT3_BROWSER"
if BROWSER is None:
    warnings.warn(REASON, pytest.PytestWarning, stacklevel=1)
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.process, pytest.mark.skipif(BROWSER is None, reason=REASON)]


def every_segment(segments):
    """Stand for the network: the same notes in each segment."""
    for _ in segments:
        yield IDS


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page whose every complaint is an error of the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.set_default_timeout(20_000)
    yield page
    context.close()
    # what the browser itself writes of a recording that is refused
    assert [text for text in complaints if "status of 415" not in text] == []


def picture(page, name: str) -> None:
    if PICTURES:
        page.wait_for_timeout(300)
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def drop(page, *paths: Path) -> None:
    """Drop files on the page as a user does from a folder."""
    contents = [[path.name, list(path.read_bytes())] for path in paths]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of files) transfer.items.add(new File([Uint8Array.from(bytes)], name));
            return transfer;
        }""",
        contents,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def saved(page, label: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return Path(download.value.path()).read_bytes()


def until(condition) -> None:
    """Wait for a condition; the page's policy forbids Playwright's own way, which evaluates texts."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def address(client) -> str:
    return f"http://127.0.0.1:{client.port}/"


def test_a_dropped_file_becomes_the_notes_of_the_command_line(page, folder):
    """Drop, wait, compare, play, mute, save, reload."""
    song = record("song.wav", 5.0)
    assert infer(song, "--format", "mid,json,musicxml,csv", generate=every_segment) == 0
    with served(every_segment) as client:
        page.goto(address(client))
        drop(page, song)
        page.get_by_text("6 notes, 2 instruments, 5.0 s").first.wait_for()
        for kind, label in (("mid", "MIDI"), ("musicxml", "MusicXML"), ("json", "JSON"), ("csv", "CSV")):
            assert saved(page, f"Save {label}") == Path(f"song.{kind}").read_bytes(), kind
        assert saved(page, "Save picture").startswith(b"\x89PNG")
        page.get_by_text("List of notes").click()
        page.locator("#rows tr").nth(5).wait_for()
        assert page.locator("#rows tr").count() == 6
        until(lambda: page.locator("#time").inner_text() == "0:00.0 of 0:05.0")
        picture(page, "toy-1280")

        page.get_by_role("button", name="Play", exact=True).click()
        until(lambda: float(page.locator("#position").input_value()) > 0.4)
        assert page.locator("#play").inner_text() == "Pause"
        mute = page.get_by_role("button", name="Mute acoustic grand piano")
        mute.click()
        assert mute.get_attribute("aria-pressed") == "true"
        assert page.locator("#chips li.silent").inner_text().startswith("acoustic grand piano")
        page.get_by_role("button", name="Pause", exact=True).click()
        stopped = page.locator("#position").input_value()
        page.wait_for_timeout(300)
        assert page.locator("#position").input_value() == stopped

        page.locator("#theme").click()
        theme = page.locator("html").get_attribute("data-theme")
        page.reload()
        assert page.locator("html").get_attribute("data-theme") == theme
        assert page.locator("#result").is_hidden()
        drop(page, song)
        page.get_by_text("6 notes, 2 instruments, 5.0 s").first.wait_for()


def test_several_files_one_by_one_errors_in_the_words_of_the_command_line_and_a_phone(browser, page, folder):
    broken = Path("notes.txt")
    broken.write_bytes(b"no sound at all " * 99)
    with served(every_segment) as client:
        page.set_viewport_size({"width": 390, "height": 800})
        page.goto(address(client))
        page.locator("#files").set_input_files([record("a.wav", 3.0), broken, record("b.wav", 1.0, seed=1)])
        page.get_by_role("alert").wait_for()
        assert infer("notes.txt") == 1
        message = page.get_by_role("alert").inner_text()
        assert message.startswith("notes.txt: ")
        assert client.ask("POST", "/transcriptions?name=notes.txt", broken.read_bytes())[2] == (
            json.dumps({"error": message}, ensure_ascii=False, separators=(",", ":")).encode()
        )
        page.get_by_text("2 notes, 2 instruments, 1.0 s").first.wait_for()
        assert page.locator("#queue li").count() == 3
        # nothing is wider than the phone
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        picture(page, "toy-390")
        page.get_by_role("button", name="Remove a.wav").click()
        assert page.locator("#queue li").count() == 2


def test_keys_options_and_the_loop(page, folder):
    asked = []
    with served(every_segment) as client:
        load = client.server.networks.load
        client.server.networks.load = lambda **settings: asked.append(settings) or load(**settings)
        page.goto(address(client))
        page.get_by_text("Options").click()
        page.get_by_label("piano", exact=True).check()
        page.get_by_label("drums", exact=True).check()
        page.get_by_label("Hold instruments").check()
        page.get_by_label("Tempo").select_option("number")
        page.get_by_label("Quarters a minute").fill("90")
        page.locator("#files").set_input_files(record("a.wav", 5.0))
        page.get_by_text("6 notes").first.wait_for()
        piano = ",".join(map(str, range(8)))
        assert asked == [{"instruments": f"{piano},drums", "hold": 2.0}]
        with page.expect_download() as download:
            page.locator("h1").click()
            page.keyboard.press("s")
        assert download.value.suggested_filename == "a.mid"
        page.keyboard.press("End")
        assert float(page.locator("#position").input_value()) >= 5.0
        page.keyboard.press("Home")
        page.keyboard.press("Shift+ArrowRight")
        assert float(page.locator("#position").input_value()) == 1.0
        page.keyboard.press("]")
        assert page.locator("#loop").get_attribute("aria-pressed") == "true"
        page.keyboard.press(" ")
        # the loop of a second goes round
        page.wait_for_timeout(1600)
        assert float(page.locator("#position").input_value()) < 1.05
        page.keyboard.press("Escape")
        assert page.locator("#loop").get_attribute("aria-pressed") == "false"
        page.keyboard.press("1")
        assert page.get_by_role("button", name="Mute drums").get_attribute("aria-pressed") == "true"
        page.keyboard.press("?")
        assert page.get_by_role("dialog").is_visible()


def test_closing_the_page_ends_the_work(browser, folder):
    opened = threading.Event()

    def slow(segments):
        for segment in segments:
            opened.wait(20)
            yield from every_segment([segment])

    with served(slow) as client:
        page = browser.new_page()
        page.goto(address(client))
        page.locator("#files").set_input_files(record("a.wav", 20.0))
        page.get_by_text("0 of 10 segments").wait_for()
        assert len(client.server.line) == 1
        page.close()
        opened.set()
        until(lambda: not len(client.server.line))
