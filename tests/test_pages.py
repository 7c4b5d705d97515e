"""The pages: what they link to is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("checkpoints/*.md"), *ROOT.glob("examples/*.md")]


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead to nothing."""
    links = (link for link in LINK.findall(page.read_text()) if not re.match(r"\w+:", link))
    return [link for link in links if not (page.parent / link).exists()]


def test_links_between_the_pages_lead_somewhere():
    assert len(PAGES) > 10
    assert {page.name: links for page in PAGES if (links := broken_links(page))} == {}


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "a.md").write_text("[a](b.md), [c](https://example.org/d.md), [self](a.md#part), ![e](f.png)")
    assert broken_links(tmp_path / "a.md") == ["b.md", "f.png"]
