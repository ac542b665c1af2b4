"""The explorers in JupyterLab, by keyboard: all cells run, controls move, and label, picture and table follow."""

from __future__ import annotations

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
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="session")
def running(run_notebook: Callable[[str], Notebook]) -> dict[str, Notebook]:
    """All three at once: while one computes another loads."""
    return {number: run_notebook(number) for number in ("02", "15", "00")}


@pytest.fixture
def start(running: dict[str, Notebook]) -> Notebook:
    running["00"].finish()
    return running["00"]


@pytest.fixture
def pseudo(running: dict[str, Notebook]) -> Notebook:
    running["02"].finish()
    return running["02"]


@pytest.fixture
def heatmaps(running: dict[str, Notebook]) -> Notebook:
    running["15"].finish()
    return running["15"]


def test_parameters(pseudo: Notebook) -> None:
    box = Box(pseudo, "PseudoExplorer")
    pseudo.shoot("02_parameters")
    box.choice("Kind").select_option(label="confetti")
    box.press(box.handle("rotation"), "ArrowLeft", label=False)
    box.press(box.handle("side"), "End")
    expect(box.table).to_contain_text("ConfettiNoise(count=")
    box.choice("Kind").select_option(label="cutpaste")
    expect(box.label).to_contain_text(re.compile("^cutpaste"))
    expect(box.table).to_contain_text("CutPaste(area=")
    expect(box.root.locator(".widget-label", has_text="jitter")).to_have_count(1)
    box.press(box.root.locator("input[type=number]"), "ArrowUp")
    pseudo.shoot("02_parameters_cutpaste")


def test_heatmaps_by_keyboard(heatmaps: Notebook) -> None:
    box = Box(heatmaps, "HeatmapExplorer")
    heatmaps.shoot("15_heatmaps")
    box.press(box.handle("Threshold"), "ArrowRight")
    box.press(box.handle("Opacity"), "ArrowRight", label=False)
    box.press(box.handle("Colours"), "ArrowRight", label=False)
    box.press(box.handle("Threshold"), "Home")
    expect(box.label).to_contain_text(re.compile("anomalous. Truth"))
    expect(box.table).to_contain_text("region")
    heatmaps.shoot("15_heatmaps_moved")
    box.press(box.root.get_by_role("button", name="Reset"), "Space")


def test_choose_an_image_by_keyboard(heatmaps: Notebook) -> None:
    box = Box(heatmaps, "HeatmapExplorer")
    box.press(box.choice("Defect"), "h")  # to "hole"
    expect(box.label).to_contain_text("hole/000")
    box.next()
    expect(box.label).to_contain_text("hole/001")
    box.choice("Image").select_option(label="hole/003")
    expect(box.label).to_contain_text("hole/003")


def test_every_control_is_reached_by_tab(heatmaps: Notebook) -> None:
    box = Box(heatmaps, "HeatmapExplorer")
    box.choice("Category").focus()
    reached = set()
    for _ in range(20):
        heatmaps.page.keyboard.press("Tab")
        if not box.root.evaluate("element => element.contains(document.activeElement)"):
            break
        reached.add(box.root.evaluate("() => document.activeElement.closest('.jupyter-widgets').innerText").strip())
    names = " ".join(reached)
    for name in ("Defect", "Image", "Previous", "Next", "Threshold", "Colours", "Opacity", "True mask", "Reset"):
        assert name in names


def test_two_runs(heatmaps: Notebook) -> None:
    box = Box(heatmaps, "RunComparison")
    heatmaps.shoot("15_runs")
    box.press(box.handle("Strictness"), "End", label=False)
    box.next()
    expect(box.table).to_contain_text("true mask found")


def test_paint_by_keyboard(heatmaps: Notebook) -> None:
    box = Box(heatmaps, "PseudoPainter")
    heatmaps.shoot("15_painter")
    box.press(box.choice("Kind"), "s")  # from the brush, with which the notebook ends, to "scar"
    expect(box.label).to_contain_text(re.compile("^scar on good/000"))
    for slider in ("x", "Size", "Strength"):
        box.press(box.handle(slider), "ArrowLeft", label=False)
    box.next()
    heatmaps.shoot("15_painter_scar")


def test_heatmaps_of_the_first_notebook(start: Notebook) -> None:
    box = Box(start, "HeatmapExplorer")
    start.shoot("00_heatmaps")
    box.press(box.handle("Threshold"), "ArrowLeft")
    box.next()


def test_pictures_have_names_and_scripts_no_errors(running: dict[str, Notebook]) -> None:
    for number, kinds in {
        "00": ("HeatmapExplorer",),
        "02": ("PseudoExplorer",),
        "15": ("HeatmapExplorer", "RunComparison", "PseudoPainter"),
    }.items():
        for kind in kinds:
            named = Box(running[number], kind).root.get_by_role("img", name=re.compile(r"\w+ \w+ \w+"))
            assert named.count() >= 1
        assert running[number].faults == []
