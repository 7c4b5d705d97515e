"""Measure the page of `mt3 site` in Chromium: python benchmarks/browser.py RECORDING... (docs/page.md).

For each recording, in a browser of its own: seconds until the network is ready after the page was opened, until the
first notes and until the last after the recording was chosen, x real time, the first notes and x real time by the
processor's time of the worker's thread (which other programs do not change), the most memory of the page's process
(RSS), and the longest time without a frame of the page, which plays the recording while it transcribes. --compare adds
the share of notes that are those of onnx_mt3, --browser-mp3 what the page would be without mpg123.
"""

import argparse
import contextlib
import functools
import http.server
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from pathlib import Path

import soundfile
from playwright.sync_api import Page, sync_playwright

from mt3_common.cli import site
from mt3_common.notes.note import Note
from onnx_mt3 import infer

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# in the page: ms of the longest wait for a frame, when notes came first, and when all were there
WATCH = """
() => {
    window.watched = { gap: 0, first: null };
    let last = performance.now();
    const look = (now) => {
        window.watched.gap = Math.max(window.watched.gap, now - last);
        last = now;
        requestAnimationFrame(look);
    };
    requestAnimationFrame((now) => { last = now; look(now); });
    new MutationObserver(() => { window.watched.first ??= performance.now(); })
        .observe(document.querySelector("#chips"), { childList: true });
    window.watched.begun = performance.now();
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A static server without its log."""

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


def renderers() -> list[Path]:
    """Return the folders below /proc of the renderers that this process started."""
    folders = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            command = status.with_name("cmdline").read_bytes()
            if b"--type=renderer" in command and is_descendant(int(status.parent.name)):
                folders.append(status.parent)
    return folders


def page_memory() -> int:
    """Return the most memory that a renderer has had (bytes)."""
    texts = [(folder / "status").read_text() for folder in renderers()]
    return max(1024 * int(text.partition("VmHWM:")[2].split()[0]) for text in texts)


def worker_seconds() -> float:
    """Return the processor's time of the workers' threads (s)."""
    ticks = 0
    for thread in (thread for folder in renderers() for thread in folder.glob("task/*/stat")):
        name, _, fields = thread.read_text().rpartition(")")
        if "DedicatedWorker" in name:
            ticks += sum(map(int, fields.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def is_descendant(process: int) -> bool:
    """Return whether this process started another one, or one that did."""
    while process > 1:
        if process == os.getpid():
            return True
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        process = int(fields[1])
    return False


def measure(page: Page, address: str, recording: Path) -> dict[str, float]:
    """Return the figures of one recording."""
    opened = time.monotonic()
    page.goto(address)
    page.evaluate(WATCH)
    # an empty transcription waits for the network: half a second of silence
    with tempfile.TemporaryDirectory() as folder:
        silence = Path(folder) / "silence.wav"
        soundfile.write(silence, [0.0] * 8000, 16000)
        page.locator("#files").set_input_files(silence)
        page.locator("#queue li .state", has_text=" instrument").wait_for()
    ready = time.monotonic() - opened
    page.get_by_role("button", name="Remove ").click()
    page.evaluate(WATCH)
    before = worker_seconds()
    chosen = time.monotonic()
    page.locator("#files").set_input_files(recording)
    page.wait_for_function("() => window.watched.first !== null")
    first_of_processor = worker_seconds() - before
    first = page.evaluate("window.watched.first - window.watched.begun") / 1000
    page.locator("#play:not([disabled])").click()
    page.locator("#queue li .state", has_text=" instrument").wait_for()
    last = time.monotonic() - chosen
    seconds = soundfile.info(recording).duration
    return {
        "seconds": seconds,
        "ready": ready,
        "first": first,
        "first of the processor": first_of_processor,
        "last": last,
        "real time": seconds / last,
        "real time of the processor": seconds / (worker_seconds() - before),
        "MB": page_memory() / 1e6,
        "longest gap": page.evaluate("window.watched.gap") / 1000,
    }


def equal_share(page: Page, recording: Path) -> float:
    """Return the share of the page's notes and of onnx_mt3's that both have."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save JSON").click()
    actual = {Note(**note) for note in json.loads(Path(download.value.path()).read_bytes())["notes"]}
    expected = set(infer.load().transcribe(recording, velocity="auto").notes)
    return 2 * len(actual & expected) / (len(actual) + len(expected))


def main() -> None:
    """Measure each recording and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--compare", action="store_true", help="transcribe with onnx_mt3, too, and compare the notes")
    parser.add_argument("--site", type=Path, help="folder that mt3 site wrote; default: written for this run")
    parser.add_argument("--browser-mp3", action="store_true", help="let the browser decode MP3 files, not mpg123")
    arguments = parser.parse_args()
    if arguments.browser_mp3 and arguments.site:
        parser.error("--browser-mp3 changes the site that is written for this run; leave --site out")
    with tempfile.TemporaryDirectory() as folder:
        site_folder = arguments.site or Path(folder) / "site"
        if arguments.site is None and site.main([str(site_folder)]):
            raise SystemExit(1)
        if arguments.browser_mp3:
            (site_folder / "local" / "mp3.js").write_text("export const mp3Source = async () => null;\n")
        handler = functools.partial(Quiet, directory=site_folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as started:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            path = os.environ.get("MT3_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)))
            for recording in arguments.recordings:
                options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
                browser = started.chromium.launch(executable_path=path, args=options)
                page = browser.new_page(bypass_csp=True)
                page.set_default_timeout(600_000)
                figures = measure(page, f"http://127.0.0.1:{server.server_address[1]}/", recording)
                if arguments.compare:
                    figures["equal notes"] = equal_share(page, recording)
                print(
                    json.dumps({"recording": recording.name, **{k: round(v, 4) for k, v in figures.items()}}),
                    flush=True,
                )
                print(f"  {browser.version}, {platform.processor() or platform.machine()}", flush=True)
                browser.close()
            server.shutdown()


if __name__ == "__main__":
    main()
