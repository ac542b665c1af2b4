"""The report's threshold in a browser: verdicts, rates and pictures follow it, and nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from mlffn_lite.page import Gallery, Tile, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["jupyter_page"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def test_the_threshold_moves_verdicts_and_rates(browser: Browser, tmp_path: Path) -> None:
    tiles = [Tile(f"good/{i}", "good", 1.0 + i / 10, False, PIXEL, 1, 1) for i in range(5)]
    tiles += [Tile(f"hole/{i}", "hole", 1.2 + i, i > 1, PIXEL, 1, 1) for i in range(5)]
    path = write_report(tmp_path / "r.html", title="t", metrics={}, gallery=Gallery(2.5, tiles))
    page = browser.new_page(viewport={"width": 390, "height": 800})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.goto(path.as_uri())
    assert page.inner_text("#at") == "2.500"
    assert page.inner_text("#alarms") == "0 of 5 (0.0 %)"
    assert page.inner_text("#found") == "3 of 5 (60.0 %)"
    page.focus("#threshold")
    page.keyboard.press("Home")  # the lowest score: all others lie above
    assert page.inner_text("#alarms") == "4 of 5 (80.0 %)"
    assert page.inner_text("#found") == "5 of 5 (100.0 %)"
    page.select_option("#filter", "alarms")
    assert page.locator("#gallery figure:visible b").all_inner_texts() == ["NOK"] * 4
    page.keyboard.press("Escape")
    page.focus("#threshold")
    page.keyboard.press("End")
    page.select_option("#filter", "misses")
    page.select_option("#order", "lowest")
    names = page.locator("#gallery figure:visible").evaluate_all("all => all.map((x) => x.dataset.name)")
    assert names == [f"hole/{i}" for i in range(5)]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert faults == []
