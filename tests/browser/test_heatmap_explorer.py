"""The explorers of heatmaps in JupyterLab, on scores that are there at once: what a hand and a pointer do to them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from explorer_page import Box
from playwright.sync_api import expect

if TYPE_CHECKING:
    from jupyter_page import Notebook

pytest_plugins = ["jupyter_page"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEP = 100
"""Milliseconds that a step of a slider may take, in the median."""

# How far a photograph is from the mean of the good ones, at two scales of scores: nothing is trained.
CELLS = [
    """\
import torch
from mlffn_lite.datasets import AnomalyFolder
from mlffn_lite.datasets.miniparts import miniparts_path
from mlffn_lite.detector import Prediction
from mlffn_lite.widgets import HeatmapExplorer, RunComparison

torch.set_num_threads(1)
tests = {name: AnomalyFolder(miniparts_path() / name, size=128).test for name in ("weave", "flange")}
found = {}
for name, factor in (("weave", 10.0), ("flange", 1000.0)):
    images = tests[name].images().float() / 255
    far = (images - images[tests[name].labels() == 0].mean(0)).abs().mean(1)[:, None]
    maps = factor * torch.nn.functional.avg_pool2d(far, 9, 1, 4)[:, 0]
    found[name] = Prediction(maps, maps.flatten(1).amax(1))
explorer = HeatmapExplorer(found, tests)
explorer""",
    """\
other = Prediction(found["weave"].maps.roll(1, 0), found["weave"].scores.roll(1))
RunComparison({"one": found["weave"], "two": other}, tests["weave"])""",
    """\
from course.explorers import PseudoPainter
from mlffn_lite import AnomalyDetector, Config

config = Config.preset("tiny", method="density", data={"size": 128}, train={"device": "cpu"})
PseudoPainter(AnomalyDetector(config).fit(miniparts_path() / "weave", progress=False), tests["weave"])""",
]


@pytest.fixture(scope="module")
def notebook(run_notebook: Callable[..., Notebook]) -> Notebook:
    opened = run_notebook("explorers", CELLS)
    opened.finish()
    return opened


@pytest.fixture
def box(notebook: Notebook) -> Box:
    return Box(notebook, "HeatmapExplorer")


def test_a_category_brings_its_own_threshold_and_colours(box: Box) -> None:
    """Both ways: a browser may push a slider's old value into its new range, and send that back."""
    thresholds: dict[str, str] = {}
    colours: dict[str, str] = {}
    for category in ("flange", "weave", "flange", "weave"):
        box.choice("Category").select_option(label=category)
        verdict = re.compile(rf"^{category} (.*): image score ([\d.]+) ([>≤]) threshold ([\d.]+): (good|anomalous)\.")
        expect(box.label).to_contain_text(verdict)
        box.settle()
        said = verdict.search(box.label.inner_text())
        assert said
        _, score, sign, threshold, word = said.groups()
        assert sign == (">" if float(score) > float(threshold) else "≤")
        assert word == ("anomalous" if sign == ">" else "good")
        assert thresholds.setdefault(category, threshold) == threshold
        shown = box.root.locator(".mlffn-range .widget-readout").inner_text()
        assert colours.setdefault(category, shown) == shown
        low, high = (float(end) for end in re.split(" *[–-] *", shown.strip()))
        assert low < high
    assert thresholds["weave"] != thresholds["flange"]


def test_every_control_is_reached_by_tab_and_left_again(notebook: Notebook, box: Box) -> None:
    box.choice("Category").focus()
    reached, left = set(), False
    for _ in range(60):
        notebook.page.keyboard.press("Tab")
        if left := not box.root.evaluate("element => element.contains(document.activeElement)"):
            break
        reached.add(box.root.evaluate("() => document.activeElement.closest('.jupyter-widgets').innerText").strip())
    names = " ".join(reached)
    wanted = (
        "Defect, Image, Previous, Next, Show, Order, Threshold, Colours, Opacity, True mask, Reset, Zoom, Peak, Save"
    )
    for name in wanted.split(", "):
        assert name in names, sorted(reached)
    assert left


def hover(notebook: Notebook, x: float, y: float) -> None:
    """Move as a hand does: the canvas shows once something points at the picture, and follows what comes after."""
    notebook.page.mouse.move(x - 3, y, steps=3)
    notebook.page.wait_for_timeout(500)
    notebook.page.mouse.move(x, y, steps=3)


def test_the_score_under_the_pointer(notebook: Notebook, box: Box) -> None:
    readout, mouse = box.said(r"^x = \d+, y = \d+: score"), notebook.page.mouse
    hover(notebook, *box.at(0.5, 0.3, panel=1))
    expect(readout).to_contain_text(re.compile(r"^x = 6\d, y = 3\d"))
    hover(notebook, *box.at(0.5, 0.8, panel=1))
    expect(readout).to_contain_text(re.compile(r"^x = 6\d, y = (9|10)\d"))
    hover(notebook, *box.at(0.2, 0.3))
    mouse.click(*box.at(0.2, 0.3))
    hover(notebook, *box.at(0.5, -0.3))
    expect(readout).to_contain_text(re.compile(r"^x = 2\d, y = 3\d"))
    hover(notebook, *box.at(0.2, 0.3))
    mouse.click(*box.at(0.2, 0.3))  # the picture has the focus
    notebook.page.keyboard.press("+")
    expect(box.root.locator(".widget-hslider", has=box.named("Zoom")).locator(".widget-readout")).to_have_text("2")
    notebook.shoot("explorer_zoom")
    notebook.page.keyboard.press("Tab")
    expect(box.root.get_by_role("button", name="Peak")).to_be_focused()
    box.press(box.handle("Zoom"), "Home", label=False)


def test_lists_and_thumbnails(notebook: Notebook, box: Box) -> None:
    box.choice("Show").select_option(label="misses")
    expect(box.label).to_contain_text("a miss")
    expect(box.said(r"^\d+ images: misses")).to_have_count(1)
    box.choice("Show").select_option(label="all")
    box.choice("Order").select_option(label="score, highest first")
    box.sheet.scroll_into_view_if_needed()
    before = box.label.inner_text()
    place = box.sheet.bounding_box()
    assert place
    thumbnail = place["x"] + 0.45 * place["width"], place["y"] + 0.25 * place["height"]
    hover(notebook, *thumbnail)
    notebook.page.mouse.click(*thumbnail)
    expect(box.label).not_to_have_text(before)
    notebook.shoot("explorer_thumbnails")
    box.choice("Order").select_option(label="name")


def test_a_brush_paints(notebook: Notebook) -> None:
    box, mouse = Box(notebook, "PseudoPainter"), notebook.page.mouse
    box.choice("Kind").select_option(label="brush")  # by its letter it cannot be: b is JupyterLab's, for a new cell
    expect(box.label).to_contain_text("brush on good/000, 0.0% of the pixels")
    hover(notebook, *box.at(0.3, 0.5, panel=1))
    mouse.down()
    hover(notebook, *box.at(0.7, 0.6, panel=1))
    mouse.up()
    expect(box.label).to_contain_text(re.compile(r"brush on good/000, [1-9][\d.]*% of the pixels"))
    notebook.shoot("painter_brush")


@pytest.mark.parametrize("slider", ["Threshold", "Opacity"])
def test_a_step_of_a_slider(box: Box, slider: str) -> None:
    _quick(slider, box.steps(slider, 31))


def _quick(slider: str, median: float) -> None:
    """Judge a median where the machine is free; a busy one measures the others' work."""
    said, load = f"{slider}: median {median:.0f} ms a step", os.getloadavg()[0]
    print(said)
    if median > STEP and load > (os.cpu_count() or 1):
        pytest.skip(f"{said}, at a load of {load:.1f} on {os.cpu_count()} cores")
    assert median <= STEP


def test_two_runs(notebook: Notebook) -> None:
    box = Box(notebook, "RunComparison")
    expect(box.said("^Verdicts differ on")).to_have_count(1)
    box.choice("Show").select_option(label="verdicts differ")
    box.next()
    _quick("Strictness", box.steps("Strictness", 21))


def test_the_page_has_no_errors(notebook: Notebook) -> None:
    assert notebook.faults == []
