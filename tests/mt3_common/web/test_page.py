"""The page in a real browser: drop a file, wait for its notes, play, mute, save, reload. Needs Chromium."""

import json
import threading
from pathlib import Path

import pytest
from browsing import address, drop, every_segment, picture, saved, until
from fakes import infer, record
from serving import served

pytestmark = pytest.mark.process


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


def test_a_file_is_named_after_its_own_recording_though_another_is_shown_meanwhile(page, folder):
    with served(every_segment) as client:
        page.add_init_script(
            """const plain = fetch;
            const later = (...asked) => new Promise((resolve) => setTimeout(resolve, 700)).then(() => plain(...asked));
            window.fetch = (...asked) => (String(asked[0]).includes("/files/") ? later : plain)(...asked);"""
        )
        page.goto(address(client))
        page.locator("#files").set_input_files([record("a.wav", 3.0), record("b.wav", 1.0, seed=1)])
        until(lambda: sum("notes" in text for text in page.locator("#queue .state").all_inner_texts()) == 2)
        page.locator("#queue .name").nth(0).click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save JSON").click()
            page.locator("#queue .name").nth(1).click()
        assert download.value.suggested_filename == "a.json"
        assert json.loads(Path(download.value.path()).read_text())["metadata"]["audio"] == "a.wav"


def test_files_may_be_chosen_before_the_server_has_said_what_it_is(page, folder):
    with served(every_segment) as client:
        page.add_init_script(
            """const plain = fetch;
            const later = (...asked) => new Promise((resolve) => setTimeout(resolve, 500)).then(() => plain(...asked));
            window.fetch = (...asked) => (String(asked[0]).includes("about") ? later : plain)(...asked);"""
        )
        page.goto(address(client))
        page.locator("#files").set_input_files(record("a.wav", 1.0))
        page.get_by_text("2 notes, 2 instruments, 1.0 s").first.wait_for()


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


def test_with_a_token_the_address_opens_the_page(page, folder):
    """As with --host: the token stands behind #, and the page sends it with every request."""
    with served(every_segment, token="secret") as client:
        page.goto(address(client))
        page.get_by_text("the token is missing or wrong: open the whole address that mt3 serve printed").wait_for()
        assert page.locator("#files").is_disabled()
        page.goto("about:blank")
        page.goto(address(client, "secret"))
        page.locator("#files").set_input_files(record("a.wav", 2.0))
        page.get_by_text("2 notes, 2 instruments, 2.0 s").first.wait_for()
        assert saved(page, "Save MIDI").startswith(b"MThd")


def test_a_meter_that_is_asked_for_is_in_the_files(page, folder):
    song = record("song.wav", 5.0)
    assert infer(song, "--tempo", "96", "--meter", "3/4", "--format", "mid,musicxml", generate=every_segment) == 0
    with served(every_segment) as client:
        page.goto(address(client))
        page.get_by_text("Options").click()
        page.get_by_label("Tempo").select_option("number")
        page.get_by_label("Quarters a minute").fill("96")
        page.get_by_label("Meter").select_option("3/4")
        page.locator("#files").set_input_files(song)
        page.get_by_text("6 notes, 2 instruments, 5.0 s").first.wait_for()
        for kind, label in (("mid", "MIDI"), ("musicxml", "MusicXML")):
            assert saved(page, f"Save {label}") == Path(f"song.{kind}").read_bytes(), kind
        page.reload()
        page.get_by_text("Options").click()
        assert page.get_by_label("Meter").input_value() == "3/4"
