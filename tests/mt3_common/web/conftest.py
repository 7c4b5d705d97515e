"""A real browser for the tests of the page; without one they are left out, which the last line of a run says."""

import pytest
from browsing import BROWSER, NO_BROWSER


@pytest.fixture(scope="module")
def browser():
    """Chromium, whose pages may make sounds at once."""
    if BROWSER is None:
        pytest.skip(NO_BROWSER)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser):
    """A user's browser, with nothing remembered: 1280 px wide, with a touch screen."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, has_touch=True)
    yield context
    context.close()


@pytest.fixture
def page(context):
    """A page whose every complaint is an error of the test."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.set_default_timeout(120_000)
    yield page
    page.close()
    # what the browser itself writes of a recording, or of a reader without the token, that is refused
    refusals = ("status of 415", "status of 401")
    assert [text for text in complaints if not any(refusal in text for refusal in refusals)] == []
