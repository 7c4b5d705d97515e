"""A user of the page in a browser: where it is, what is dropped on it, what it saves."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fakes import IDS

from mt3_common.web import runtime

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("MT3_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
NO_BROWSER = "NO BROWSER: the page is NOT tested; install Debian's chromium, or name one in MT3_BROWSER"
# axe-core, which make installs from npm
AXE = Path(os.environ.get("MT3_AXE") or Path(sys.prefix) / "npm" / "node_modules" / "axe-core" / "axe.min.js")
NO_AXE = (
    "NO AXE-CORE: nobody looked whether the page is accessible; install npm and run make test, or name it in MT3_AXE"
)
# all rules of WCAG 2.2 A and AA, and axe-core's best practices
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# runs what browsers compute by themselves, without a browser
NODE = shutil.which("node")
NO_NODE = "NO NODE.JS: what browsers compute by themselves is NOT tested; install Debian's nodejs"
# ONNX Runtime Web and mpg123-decoder, which make fetches from npm
RUNTIME_FOLDER = Path(os.environ.get("MT3_RUNTIME") or Path(sys.prefix) / "npm")
RUNTIME = [RUNTIME_FOLDER / package.archive for package in runtime.PACKAGES]
HAS_RUNTIME = all(path.exists() for path in RUNTIME)
NO_RUNTIME = (
    "NO ONNX RUNTIME WEB OR MPG123-DECODER: the page that transcribes by itself is NOT tested; install npm and run "
    "make test, or name the folder of their packages in MT3_RUNTIME"
)
# where screenshots go to be looked at; nowhere if unset
PICTURES = os.environ.get("MT3_SCREENSHOTS")


def left_out() -> list[str]:
    """Say what of the page is not tested on this machine."""
    missing = {NO_BROWSER: BROWSER is None, NO_NODE: NODE is None}
    missing |= {NO_AXE: BROWSER and not AXE.exists(), NO_RUNTIME: BROWSER and not HAS_RUNTIME}
    return [line for line, is_missing in missing.items() if is_missing]


def every_segment(segments):
    """Stand for the network: the same notes in each segment."""
    for _ in segments:
        yield IDS


def address(client, token: str | None = None) -> str:
    """Return the address of the page."""
    return f"http://127.0.0.1:{client.port}/" + (f"#token={token}" if token else "")


def picture(page, name: str) -> None:
    """Save a screenshot, if somebody wants to look at it."""
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
    """Return the file that a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return Path(download.value.path()).read_bytes()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the page's policy forbids Playwright's own way, which evaluates texts."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def violations(page) -> list[str]:
    """Return what axe-core, which is in the page, objects to: the rule, where, and why."""
    results = page.evaluate("(tags) => axe.run(document, { runOnly: tags })", RULES)
    assert len(results["passes"]) > 10
    return [
        f"{rule['id']}: {node['html']}: {node['failureSummary']}"
        for rule in results["violations"]
        for node in rule["nodes"]
    ]


def names_by_tab(page, count: int) -> list[str]:
    """Return the names of what the Tab key reaches, one after the other."""
    name = "document.activeElement.ariaLabel || document.activeElement.id || document.activeElement.innerText"
    names = []
    for _ in range(count):
        page.keyboard.press("Tab")
        names.append(page.evaluate(name))
    return names
