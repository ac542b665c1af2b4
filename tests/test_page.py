"""The report: one file that needs nothing else, says the numbers given, and lets no text become markup."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlffn_lite.figures import png_bytes, score_histogram
from mlffn_lite.page import Gallery, ReportFigure, Tile, write_report

HOSTILE = "<script>alert('x')</script> & {body} \""
METRICS: dict[str, Any] = {
    "image_auroc": 0.98765,
    "pixel_auroc": math.nan,
    "pro": 0.5,
    "per_defect": {HOSTILE: 0.75},
    "seed": 3,
    "device_name": HOSTILE,
    "predict_seconds": 1.23456,
    "versions": {"torch": "2"},
}


class Page(HTMLParser):
    """Elements with their attributes, visible text, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def write(path: Path) -> str:
    figure = score_histogram([0.1, 0.9], [0, 1], 0.5)
    return write_report(
        path,
        title=HOSTILE,
        metrics=METRICS,
        figures=[
            ReportFigure(HOSTILE, figure, HOSTILE, HOSTILE),
            ("From bytes", png_bytes(figure, alt="stored"), "caption", "Two bars."),
        ],
        tables=[(HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE], "value": [0.123456]}))],
        config_toml=f'name = "{HOSTILE}"',
        command=f"mlffn demo {HOSTILE}",
        notes=[HOSTILE],
    ).read_text(encoding="utf-8")


def test_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    text = write(tmp_path / "out" / "report.html")
    page = Page(text)
    assert page.open == []
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "object"} & set(tags)
    assert tags.count("h1") == 1
    sources = [a[key] or "" for _, a in page.elements for key in ("src", "href", "srcset", "action") if key in a]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import|\bon\w+=", text.replace("alert", ""))
    assert ("html", {"lang": "en"}) in page.elements


def test_judged_images_bring_one_script_which_the_policy_knows(tmp_path: Path) -> None:
    picture = "data:image/jpeg;base64,AAAA"
    tiles = [Tile(f"{HOSTILE}{i}", HOSTILE if i else "good", 1.0 + i, i > 1, picture, 4, 3) for i in range(3)]
    path = write_report(tmp_path / "r.html", title="t", metrics={}, gallery=Gallery(2.5, tiles, left_out=7))
    text = path.read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert [tag for tag, _ in page.elements].count("script") == 1
    script = text[text.index("<script>") + 8 : text.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    shown = [a for tag, a in page.elements if tag == "figure"]
    assert [a["data-score"] for a in shown] == ["1.0", "2.0", "3.0"]
    assert [a["data-defect"] for a in shown] == ["good", HOSTILE, HOSTILE]
    assert "7 more images" in text
    assert not re.search(r"https?://|url\(|@import|\bon\w+=", text.replace("alert", ""))


def test_text_never_becomes_markup(tmp_path: Path) -> None:
    page = Page(write(tmp_path / "report.html"))
    shown = "".join(page.text)
    # Title, heading, note, figure heading and caption, defect, table heading, column and cell, fact, command, config.
    assert shown.count(HOSTILE) == 12
    assert any(attrs.get("alt") == HOSTILE for tag, attrs in page.elements if tag == "img")
    assert any(attrs.get("aria-label") == HOSTILE for _, attrs in page.elements)


def test_numbers_are_shown_as_given(tmp_path: Path) -> None:
    shown = " ".join(Page(write(tmp_path / "report.html")).text)
    for part in ("98.8 %", "undefined", "50.0 %", "75.0 %", "seed", "3", "predict seconds", "1.235", "0.1235"):
        assert part in shown
    assert "versions" not in shown


def test_images_carry_their_size_and_alt(tmp_path: Path) -> None:
    images = [attrs for tag, attrs in Page(write(tmp_path / "report.html")).elements if tag == "img"]
    assert [image["alt"] for image in images] == [HOSTILE, "Two bars."]
    for image in images:
        assert (image["width"], image["height"]) == ("1296", "432")
        assert base64.b64decode((image["src"] or "").split(",")[1]).startswith(b"\x89PNG")


def test_same_input_gives_the_same_bytes_and_little_input_a_page(tmp_path: Path) -> None:
    assert write(tmp_path / "a.html") == write(tmp_path / "b.html")
    text = write_report(tmp_path / "c.html", title="t", metrics={"image_auroc": 1.0}).read_text(encoding="utf-8")
    assert "100.0 %" in text
    assert "Reproduce" not in text
    assert "Measured with" not in text


def test_foreign_bytes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a Figure nor PNG"):
        write_report(tmp_path / "r.html", title="t", metrics={}, figures=[("f", b"GIF89a", "c", "a")])
    assert not list(tmp_path.iterdir())
