"""What the tests of explorers in a browser press and read."""

from __future__ import annotations

import re
import statistics
import time
from typing import TYPE_CHECKING

from playwright.sync_api import expect

if TYPE_CHECKING:
    from jupyter_page import Notebook
    from playwright.sync_api import Locator


class Box:
    """One explorer on the page."""

    def __init__(self, notebook: Notebook, kind: str) -> None:
        self.root = notebook.page.locator(f".jp-OutputArea-output .mlffn-{kind}").first
        self.root.scroll_into_view_if_needed()
        self.label = self.root.locator("> .widget-label").first
        self.panels = self.root.locator(".mlffn-panels img.widget-image")
        self.picture = self.panels.last  # it changes with every control
        self.sheet = self.root.locator("> .mlffn-surface")
        self.table = self.root.locator("> .widget-html").last
        expect(self.picture).to_have_js_property("complete", True)

    def handle(self, slider: str) -> Locator:
        """The first handle of a slider."""
        return self.root.locator(".widget-hslider").filter(has=self.named(slider)).locator(".noUi-handle").first

    def named(self, text: str) -> Locator:
        """The written name of a control."""
        return self.root.page.locator(".widget-label", has_text=re.compile(f"^{text}$"))

    def choice(self, text: str) -> Locator:
        """The list of a drop-down."""
        return self.root.locator(".widget-dropdown").filter(has=self.named(text)).locator("select")

    def said(self, text: str) -> Locator:
        """A line of text that contains some other."""
        return self.root.locator("> .widget-label", has_text=re.compile(text))

    def press(self, control: Locator, key: str, *, label: bool = True) -> None:
        """Press a key on a control, and wait until the picture, and the label if that must change, are others."""
        said, shown = self.label.inner_text(), self.picture.get_attribute("src")
        control.focus()
        control.press(key)
        expect(self.picture).not_to_have_attribute("src", str(shown))
        expect(self.picture).to_have_js_property("complete", True)
        assert self.picture.evaluate("image => image.naturalWidth") > 140
        if label:
            expect(self.label).not_to_have_text(said)

    def next(self) -> None:
        """Go to the next image by keyboard."""
        self.press(self.root.get_by_role("button", name="Next"), "Enter")

    def at(self, right: float, down: float, *, panel: int = 0) -> tuple[float, float]:
        """Return a place on the page: shares of a panel's width and height."""
        self.panels.nth(panel).scroll_into_view_if_needed()
        box = self.panels.nth(panel).bounding_box()
        assert box
        return box["x"] + right * box["width"], box["y"] + down * box["height"]

    def steps(self, slider: str, count: int) -> float:
        """Return the median milliseconds from a key on a slider until the new picture is decoded."""
        handle = self.handle(slider)
        handle.evaluate("() => { delete window.lap; }")
        laps = [float(handle.evaluate(_LAP, self.picture.element_handle())) for _ in range(count)]
        return statistics.median(laps)

    def settle(self, seconds: float = 0.5) -> None:
        """Wait for what a browser sends back after the picture."""
        time.sleep(seconds)


# The page's own clock: from the key to the picture that answers it, decoded. 10 s at most.
_LAP = """(handle, image) => new Promise((done, failed) => {
    const start = performance.now();
    setTimeout(() => failed("no picture came"), 10000);
    new MutationObserver((_, seen) => {
        seen.disconnect();
        image.decode().then(() => done(performance.now() - start), failed);
    }).observe(image, { attributes: true, attributeFilter: ["src"] });
    window.lap = (window.lap ?? -1) + 1;
    const key = window.lap % 10 < 5 ? "ArrowLeft" : "ArrowRight"; // back and forth, never beyond where it began
    handle.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
})"""
