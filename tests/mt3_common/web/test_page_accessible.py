"""The page before axe-core, light and dark, on a phone and on a screen, in all its states."""

import pytest
from browsing import AXE, NO_AXE, address, every_segment, picture, violations
from fakes import record
from serving import served

pytestmark = [pytest.mark.process, pytest.mark.skipif(not AXE.exists(), reason=NO_AXE)]


@pytest.fixture(scope="module")
def client():
    with served(every_segment) as client:
        yield client


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=[390, 1280])
def page(request, browser, scheme):
    """A page into which axe-core comes although its policy lets no other script in."""
    context = browser.new_context(
        viewport={"width": request.param, "height": 844}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(path=AXE)
    yield page
    context.close()


def test_nobody_is_left_out(page, client, folder):
    broken = folder / "notes.txt"
    broken.write_bytes(b"no sound at all " * 99)
    page.goto(address(client))
    page.get_by_text("Up to 500 MB").wait_for()
    assert violations(page) == []
    page.get_by_text("Options").click()
    page.get_by_label("Tempo").select_option("number")
    assert violations(page) == []
    page.locator("#files").set_input_files([record("a.wav", 5.0), broken])
    page.get_by_role("alert").wait_for()
    page.get_by_text("6 notes, 2 instruments, 5.0 s").first.wait_for()
    page.get_by_role("button", name="a.wav", exact=True).click()
    page.get_by_role("button", name="Save MIDI").wait_for()
    page.get_by_text("List of notes").click()
    page.get_by_role("button", name="Mute drums").click()
    page.get_by_role("button", name="Loop").click()
    assert violations(page) == []
    width = page.viewport_size["width"]
    # nothing is wider than the window, options and list included
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture(page, f"all-{width}-{page.evaluate('matchMedia(`(prefers-color-scheme: dark)`).matches')}")
    page.get_by_role("button", name="Keys").click()
    assert violations(page) == []


def test_a_fault_is_seen(page, client):
    page.goto(address(client))
    page.get_by_text("Up to 500 MB").wait_for()
    page.evaluate("document.documentElement.style.setProperty('--quiet', '#8884')")
    assert any(text.startswith("color-contrast: ") for text in violations(page))
    page.evaluate("document.querySelector('#files').closest('label').outerHTML = '<input type=file id=files>'")
    assert any(text.startswith("label: ") for text in violations(page))
