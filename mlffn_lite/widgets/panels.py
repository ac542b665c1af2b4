"""Pictures of the explorers: image, score map and overlay as arrays of pixels, side by side in a PNG.

Nothing is drawn by matplotlib: a picture of three panels takes some ten milliseconds, so it can follow a slider.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from scipy import ndimage

from ..figures import _CMAP, overlay

TRUTH, FOUND = (0, 229, 255), (255, 255, 255)
"""Colours of the outlines of true or painted defects, and of what lies above the threshold."""

_GAP, _HEAD, _BAR = 10, 20, 80  # pixels between panels, above them, and of a colour bar with its numbers


def number(value: float) -> str:
    """Write a score with two or three figures."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.{2 + (size < 0.1) * 2}f}"


def word(anomalous: bool) -> str:
    """Return the verdict as a word."""
    return "anomalous" if anomalous else "good"


class Scene:
    """An image with its mask and score map, enlarged to the size of a panel.

    Parameters
    ----------
    image : ndarray
        (3, H, W) uint8.
    mask : ndarray
        (H, W) bool, true or painted defects.
    heat : ndarray, optional
        (H, W), scores.
    side : int
        Longer side of a panel in pixels.
    """

    def __init__(self, image: np.ndarray, mask: np.ndarray, heat: np.ndarray | None = None, *, side: int = 256) -> None:
        height, width = mask.shape
        self.mask, self.factor = mask, side / max(height, width)
        self._size = (max(1, round(width * self.factor)), max(1, round(height * self.factor)))
        photo = Image.fromarray(image.transpose(1, 2, 0)).resize(self._size, Image.Resampling.BICUBIC)
        self._photo = np.asarray(photo).transpose(2, 0, 1)
        if heat is not None:
            values = Image.fromarray(heat.astype(np.float32))
            self._heat = np.asarray(values.resize(self._size, Image.Resampling.BILINEAR))

    def photo(self, outline: bool = True) -> np.ndarray:
        """Return the image, with the mask's outer outline if wanted; one of every hole would hide the defect."""
        rgb = self._photo.transpose(1, 2, 0)
        return self._outlined(rgb, ndimage.binary_fill_holes(self.mask), TRUTH) if outline else rgb

    def colours(self, low: float, high: float) -> np.ndarray:
        """Return the score map in colours from ``low`` to ``high``."""
        return _CMAP((self._heat - low) / (high - low), bytes=True)[..., :3]

    def overlaid(self, low: float, high: float, opacity: float, found: np.ndarray) -> np.ndarray:
        """Return :func:`~mlffn_lite.figures.overlay` of image and score map, with the outline of what was found."""
        return self._outlined(overlay(self._photo, self._heat, low, high, opacity), found, FOUND)

    def enlarge(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask at the size of the panel: its pixels become squares."""
        return np.asarray(Image.fromarray(mask).resize(self._size, Image.Resampling.NEAREST))

    def place(self, x: int, y: int) -> tuple[int, int]:
        """Return where the middle of a pixel lies on the panel."""
        return round((x + 0.5) * self.factor), round((y + 0.5) * self.factor)

    def _outlined(self, rgb: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        if not mask.any():
            return rgb
        rgb, inside = rgb.copy(), self.enlarge(mask)
        rgb[ndimage.binary_dilation(inside) & ~inside] = 0
        rgb[inside & ~ndimage.binary_erosion(inside)] = colour
        return rgb


class Panel(NamedTuple):
    """Pixels (H, W, 3) with a title, a colour bar (low, high, threshold) on the right, and marks (x, y, text)."""

    title: str
    rgb: np.ndarray
    bar: tuple[float, float, float] | None = None
    marks: Sequence[tuple[int, int, str]] = ()


def compose(panels: Sequence[Panel], alt: str) -> tuple[bytes, dict[str, tuple[int, int, int, int]]]:
    """Put panels side by side.

    Returns
    -------
    png : bytes
        With ``alt`` in its field Description.
    boxes : dict
        Left, top, right and bottom of every panel by its title.
    """
    widths = [p.rgb.shape[1] + (_GAP if p.bar is None else _BAR) for p in panels]
    sheet = Image.new("RGB", (sum(widths), max(p.rgb.shape[0] for p in panels) + _HEAD + 8), "white")
    draw, x, boxes = ImageDraw.Draw(sheet), 0, {}
    for panel, step in zip(panels, widths, strict=True):
        height, width = panel.rgb.shape[:2]
        sheet.paste(Image.fromarray(panel.rgb), (x, _HEAD))
        draw.text((x, 2), panel.title, "black", _font())
        boxes[panel.title] = (x, _HEAD, x + width, _HEAD + height)
        for right, down, text in panel.marks:
            place = (x + min(right + 5, width - 14), _HEAD + min(max(down - 18, 1), height - 18))
            draw.text(place, text, "white", _font(), stroke_width=2, stroke_fill="black")
        if panel.bar is not None:
            _draw_bar(sheet, draw, x + width + 6, height, *panel.bar)
        x += step
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_itxt("Description", alt)
    sheet.save(buffer, "PNG", compress_level=1, pnginfo=info)
    return buffer.getvalue(), boxes


def _draw_bar(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, x: int, height: int, low: float, high: float, threshold: float
) -> None:
    """Draw a colour bar with its ends, its middle, and a triangle at the threshold where that lies between them."""
    ramp = _CMAP(np.linspace(1, 0, height), bytes=True)[:, None, :3].repeat(12, axis=1)
    sheet.paste(Image.fromarray(ramp), (x, _HEAD))
    for share in (0.0, 0.5, 1.0):
        y = _HEAD + (1 - share) * (height - 1)
        draw.text((x + 23, min(max(y, _HEAD + 6), _HEAD + height - 6)), number(low + share * (high - low)), "black",
                  _font(), anchor="lm")  # fmt: skip
    share = (threshold - low) / (high - low)
    if 0 <= share <= 1:
        y = _HEAD + (1 - share) * (height - 1)
        draw.polygon([(x + 12, y), (x + 19, y - 5), (x + 19, y + 5)], fill="black")


@functools.cache
def _font() -> Any:
    return ImageFont.load_default(13)
