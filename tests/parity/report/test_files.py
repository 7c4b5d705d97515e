"""The written forms of a report say what the report says."""

import io
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from parity.compare.results import Measure, Report, Row
from parity.report import files, table, terminal
from parity.report.html import page

VOID = {"meta", "line", "br"}


def measured(ratio, relative=1e-6):
    return Measure(relative, relative / 3, 0.5, 1.0, 1e-5, relative, 10, ratio)


def example(**changes):
    rows = [
        Row("comparability", "input <frames>", "same", note="same bytes"),
        Row("weights", "encoder/a/kernel", "same"),
        Row("taps", "encoder/layers_0/a", "same", "float64", measured(0.2, 1e-15), measured(0.1, 1e-16)),
        Row("taps", "encoder/layers_0/a", "same", "float32", measured(0.3), measured(0.1)),
        Row("taps", "decoder/layers_0/b", "different", "float64", measured(1e9), measured(2e9), note="local & <bad>"),
        Row("taps", "decoder/layers_0/b", "skipped", "float32", note="no local output recorded"),
        Row("logits", "logits", "different", "float32", measured(float("nan"), float("nan"))),
        Row("tokens", "segment 0", "same", "float32", note="3 tokens, equal"),
    ]
    fields = {
        "rows": rows,
        "facts": {"replay": "python -m parity <x>", "seconds": 1.5},
        "sides": {"reference": {"framework": "jax", "environment": {"jax": "1"}, "modes": {}}},
        "worst": ("decoder/layers_0/b", "float64", [1, 0, 3], [-np.inf, -7.0, -6.0]),
    }
    return Report(**(fields | changes))


def test_the_page_shows_what_amplifies():
    result = example()
    taps = [row for row in result.rows if row.section == "taps"]
    for row, factor in zip(taps, (3.5, 0.2, 1234.0, float("inf")), strict=True):
        row.amplification = factor
    shown = page(result).split("What amplifies errors")[1].split("</table>")[0]
    lines = [line for line in shown.splitlines() if line.startswith("<tr>")]
    assert [line.split("<td>")[1].split("<")[0] for line in lines] == ["decoder/layers_0/b", "encoder/layers_0/a"]
    assert "1.2e+03" in lines[0]
    assert "3.50" in lines[1]
    assert "0.20" in lines[1]
    for row in taps:
        row.amplification = None
    assert "What amplifies" not in page(result)


def test_people_are_shown_ten_causes_and_programs_all():
    result = example(causes=[f"module {index} <b>: wrong" for index in range(12)])
    console = Console(width=150, record=True, file=io.StringIO())
    terminal.show(result, console=console)
    for text in (console.export_text(), page(result), files.to_markdown(result)):
        assert "module 9 " in text
        assert "module 10 " not in text
        assert "and 2 more" in text
    assert len(files.to_json(result)["causes"]) == 12
    assert files.to_junit(result).count("cause: module") == 12


class Tags(HTMLParser):
    """Every opened tag is closed, and nothing is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.titles = [], [], 0

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        assert not {"src", "href"} & {name for name, _ in attributes}
        self.titles += tag == "title"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize(
    "report",
    [
        example(),
        example(rows=[], refusals=["the <frames> differ"], worst=None),
        example(rows=example().rows[:4], worst=None, facts={}),
        example(rows=[Row("taps", "a", "same", "float64", measured(0.0, 0.0), measured(0.0, 0.0))]),
    ],
)
def test_the_page_is_whole_and_fetches_nothing(report):
    written = page(report)
    tags = Tags()
    tags.feed(written.removeprefix("<!doctype html>").replace("/>", ">"))
    assert tags.open == []
    text = "".join(tags.text)
    assert report.verdict.capitalize() in text
    assert "<frames>" not in written
    assert "http" not in written
    for row in report.rows:
        if row.section == "taps":
            assert row.name in text
    for reason in report.refusals:
        assert reason in text


def test_json_is_strict_and_complete():
    result = example()
    stored = json.loads(json.dumps(files.to_json(result), allow_nan=False))
    assert (stored["schema"], stored["schema_version"]) == ("mt3-parity-report", 1)
    assert (stored["verdict"], stored["exit_code"]) == ("different", 1)
    assert stored["first_difference"]["name"] == "decoder/layers_0/b"
    assert [row["name"] for row in stored["rows"]] == [row.name for row in result.rows]
    assert stored["rows"][6]["free"]["ratio"] == "nan"
    assert stored["coverage"]["taps"] == "3 of 4 compared, 1 skipped"
    refused = files.to_json(example(refusals=["no"]))
    assert (refused["verdict"], refused["exit_code"], refused["first_difference"]) == ("refused", 2, None)


def test_junit_has_a_test_per_row():
    suite = ElementTree.fromstring(files.to_junit(example()).encode()).find("testsuite")
    assert suite.attrib["tests"] == str(len(suite.findall("testcase"))) == "8"
    assert suite.attrib["failures"] == str(len(suite.findall("testcase/failure"))) == "3"
    assert suite.attrib["errors"] == "0"
    refused = files.to_junit(Report(rows=[Row("comparability", "x", "refused", note="bad \x00 byte")]))
    assert ElementTree.fromstring(refused.encode()).find("testsuite").attrib["errors"] == "1"


def test_markdown_table_is_rectangular():
    text = files.to_markdown(example())
    assert text.startswith("## Parity: different")
    assert "First difference: `decoder/layers_0/b` float64" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) > 5
    assert len({line.count("|") for line in lines}) == 1


def test_the_terminal_says_what_matters():
    console = Console(width=150, record=True, file=io.StringIO())
    terminal.show(example(), console=console)
    printed = console.export_text()
    assert printed.startswith("DIFFERENT")
    assert "first difference: decoder/layers_0/b float64 local error 2.0e+09 times its budget" in printed
    assert "segment 0 float32: 3 tokens, equal" in printed
    terminal.show(example(), everything=True, console=console)
    assert "decoder/layers_0/b" in console.export_text()


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0, "0"), (0.314, "0.31"), (2.4e-7, "2.4e-07"), (5e9, "5.0e+09")]
)
def test_number(value, text):
    assert table.number(value) == text


def test_files_are_replaced_whole(tmp_path):
    files.write(tmp_path / "a" / "b.txt", "one")
    files.write(tmp_path / "a" / "b.txt", "two")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "two"


def test_the_page_says_first_what_was_compared():
    report = example()
    report.facts |= {
        "checkpoint": "/a/small",
        "commit": "abc123",
        "date": "2026-01-02 03:04 UTC",
        "machine": "a laptop",
    }
    written = page(report)
    head = written.split("<h2>")[0]
    for words in (": small</title>", ": small</h1>", "commit abc123", "date 2026-01-02 03:04 UTC", "machine a laptop"):
        assert words in head
    # nothing is wider than a phone: pictures shrink to the page
    assert "min-width: 44rem" not in written
