"""The explorers in JupyterLab, by keyboard: controls move, and label, picture and table follow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from jupyter_page import NOTEBOOKS, SECONDS, Notebook, show_all
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

pytest_plugins = ["jupyter_page"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * SECONDS)]
expect.set_options(timeout=1000 * SECONDS)

CELLS = [
    """
    from mlffn_lite import AnomalyFolder, Config
    from mlffn_lite.datasets.mini import miniparts_path
    from mlffn_lite.notebook import setup
    from mlffn_lite.peers.padim import PaDiM
    from mlffn_lite.widgets import HeatmapExplorer, PseudoExplorer, PseudoPainter, RunComparison

    setup("00")
    folder = AnomalyFolder(miniparts_path() / "weave", size=64)
    config = Config.preset("lite", data={"size": 64}, train={"device": "cpu"})
    detector = PaDiM(config).fit(folder, progress=False)
    """,
    "HeatmapExplorer({'one': detector, 'two': detector}, {'one': folder.test, 'two': folder.test})",
    "RunComparison({'first': detector, 'second': detector}, folder.test)",
    "PseudoPainter(detector, folder.test)",
    "PseudoExplorer(folder.train)",
]


@pytest.fixture(scope="module")
def opened(browser: Browser, lab: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    cells = [new_code_cell(re.sub(r"\n {4}", "\n", text).strip()) for text in CELLS]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"display_name": "Python 3", "name": "python3"}})
    yield from show_all(browser, lab, notebook, "explorers.ipynb", tmp_path_factory.mktemp("screenshots"))


class Box:
    """One explorer on the page."""

    def __init__(self, notebook: Notebook, kind: str) -> None:
        self.root = notebook.page.locator(f".jp-OutputArea-output .mlffn-{kind}").first
        self.root.wait_for()
        self.root.scroll_into_view_if_needed()
        self.label = self.root.locator("> .widget-label").last
        self.picture = self.root.locator("img.widget-image")
        self.table = self.root.locator("> .widget-html").last
        expect(self.picture).to_have_js_property("complete", True)

    def handle(self, slider: str) -> Locator:
        """The first handle of a slider."""
        named = self.root.locator(".widget-hslider, .widget-inline-hbox").filter(has=self.named(slider))
        return named.locator(".noUi-handle").first

    def named(self, text: str) -> Locator:
        """The written name of a control."""
        return self.root.page.locator(".widget-label", has_text=re.compile(f"^{text}$"))

    def choice(self, text: str) -> Locator:
        """The list of a drop-down."""
        return self.root.locator(".widget-dropdown").filter(has=self.named(text)).locator("select")

    def state(self) -> tuple[str, str]:
        """What the label says, and which picture is shown."""
        return self.label.inner_text(), str(self.picture.get_attribute("src"))

    def expect_change(self, before: tuple[str, str], *, label: bool = True) -> None:
        """Wait until picture and label are others than before."""
        expect(self.picture).not_to_have_attribute("src", before[1])
        expect(self.picture).to_have_js_property("complete", True)
        assert self.picture.evaluate("image => image.naturalWidth") > 300
        if label:
            expect(self.label).not_to_have_text(before[0])


def test_heatmaps_by_keyboard(opened: Notebook) -> None:
    box = Box(opened, "HeatmapExplorer")
    expect(box.label).to_contain_text("threshold")
    opened.shot("heatmaps")
    for slider, label in (("Threshold", True), ("Opacity", False), ("Colours", False)):
        before = box.state()
        handle = box.handle(slider)
        handle.focus()
        handle.press("ArrowRight")
        box.expect_change(before, label=label)
    box.handle("Threshold").press("Home")
    expect(box.label).to_contain_text(re.compile("anomalous. Truth"))
    expect(box.table).to_contain_text("region")
    opened.shot("heatmaps_moved")
    before = box.state()
    reset = box.root.get_by_role("button", name="Reset")
    reset.focus()
    reset.press("Space")
    box.expect_change(before)


def test_choose_an_image_by_keyboard(opened: Notebook) -> None:
    box = Box(opened, "HeatmapExplorer")
    before = box.state()
    following = box.root.get_by_role("button", name="Next")
    following.focus()
    following.press("Enter")
    box.expect_change(before)
    expect(box.label).to_contain_text("001")
    box.choice("Defect").focus()
    box.choice("Defect").press("h")  # to "hole"
    expect(box.label).to_contain_text("hole/000")
    box.choice("Image").select_option(label="hole/003")
    expect(box.label).to_contain_text("hole/003")
    box.choice("Category").select_option(label="two")
    expect(box.label).to_contain_text(re.compile("^two "))


def test_every_control_is_reached_by_tab(opened: Notebook) -> None:
    box = Box(opened, "HeatmapExplorer")
    box.choice("Category").focus()
    reached = set()
    for _ in range(12):
        opened.page.keyboard.press("Tab")
        if not box.root.evaluate("element => element.contains(document.activeElement)"):
            break
        reached.add(
            opened.page.evaluate("document.activeElement.closest('.jupyter-widgets').innerText || 'box'").strip()
        )
    names = " ".join(reached)
    for name in ("Defect", "Image", "Previous", "Next", "Threshold", "Colours", "Opacity", "True mask", "Reset"):
        assert name in names


def test_picture_has_a_name(opened: Notebook) -> None:
    for kind in ("HeatmapExplorer", "RunComparison", "PseudoPainter", "PseudoExplorer"):
        box = Box(opened, kind)
        named = box.root.get_by_role("img", name=re.compile(r"\w+ \w+ \w+"))
        expect(named).to_have_count(1)


def test_two_runs(opened: Notebook) -> None:
    box = Box(opened, "RunComparison")
    opened.shot("runs")
    before = box.state()
    handle = box.handle("Strictness")
    handle.focus()
    handle.press("End")
    box.expect_change(before, label=False)
    before = box.state()
    following = box.root.get_by_role("button", name="Next")
    following.focus()
    following.press("Enter")
    box.expect_change(before)
    expect(box.table).to_contain_text("true mask found")


def test_paint_by_keyboard(opened: Notebook) -> None:
    box = Box(opened, "PseudoPainter")
    opened.shot("painter")
    for slider in ("x", "Size", "Strength"):
        before = box.state()
        handle = box.handle(slider)
        handle.focus()
        handle.press("ArrowLeft")
        box.expect_change(before, label=False)
    box.choice("Kind").focus()
    box.choice("Kind").press("s")  # to "scar"
    expect(box.label).to_contain_text(re.compile("^scar on good/000"))
    opened.shot("painter_scar")


def test_parameters(opened: Notebook) -> None:
    box = Box(opened, "PseudoExplorer")
    opened.shot("parameters")
    before = box.state()
    handle = box.handle("rotation")
    handle.focus()
    handle.press("ArrowLeft")
    box.expect_change(before, label=False)
    expect(box.table).to_contain_text("rotation=40")
    box.choice("Kind").select_option(label="cutpaste")
    expect(box.label).to_contain_text(re.compile("^cutpaste"))
    expect(box.table).to_contain_text("CutPaste(area=")
    expect(box.root.locator(".widget-label", has_text="jitter")).to_have_count(1)
    opened.shot("parameters_cutpaste")


def test_scripts_ran_without_errors(opened: Notebook) -> None:
    assert opened.faults == []


@pytest.mark.parametrize("number", ["00", "02", "15"])
def test_notebook(number: str, browser: Browser, lab: tuple[Path, str], tmp_path: Path) -> None:
    """All cells run; sliders of every explorer in it answer to the keyboard."""
    file = next(NOTEBOOKS.glob(f"{number}_*.ipynb"), None)
    if file is None:
        pytest.skip(f"notebook {number} does not exist yet")
    stored = nbformat.read(file, as_version=4)
    for opened in show_all(browser, lab, stored, file.name, tmp_path):
        for kind, slider, label in (
            ("HeatmapExplorer", "Threshold", True),
            ("RunComparison", "Strictness", False),
            ("PseudoPainter", "Strength", True),
            ("PseudoExplorer", "rotation", False),
        ):
            if not opened.page.locator(f".mlffn-{kind}").count():
                continue
            box = Box(opened, kind)
            before = box.state()
            handle = box.handle(slider)
            handle.focus()
            handle.press("ArrowLeft")
            box.expect_change(before, label=label)
            opened.shot(f"{number}_{kind}")
            if kind != "PseudoExplorer":
                before = box.state()
                following = box.root.get_by_role("button", name="Next")
                following.focus()
                following.press("Enter")
                box.expect_change(before)
        assert opened.faults == []
