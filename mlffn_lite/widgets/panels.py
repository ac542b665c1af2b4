"""Pictures of the explorers: image, score map and overlay as arrays of pixels, side by side in a PNG.

Nothing is drawn by matplotlib: a picture of three panels takes some ten milliseconds, so it can follow a slider.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ..figures import _CMAP, encode_png, overlay

TRUTH, FOUND = (0, 229, 255), (255, 255, 255)
"""Colours of the outlines of true or painted defects, and of what lies above the threshold."""

_GAP, HEAD, _BAR = 10, 20, 80  # pixels between panels, above them, and of a colour bar with its numbers


def number(value: float) -> str:
    """Write a score with two or three figures."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.{2 + (size < 0.1) * 2}f}"


def word(anomalous: bool) -> str:
    """Return the verdict as a word."""
    return "anomalous" if anomalous else "good"


class Scene:
    """An image with its mask and score map, or a window of it, enlarged to the size of a panel.

    What was drawn last is kept: moving a threshold outlines anew and lays nothing over the image again.

    Parameters
    ----------
    image : ndarray
        (3, H, W) uint8.
    mask : ndarray
        (H, W) bool, true or painted defects.
    heat : ndarray, optional
        (H, W), scores.
    window : tuple of int, optional
        Left, top, width and height of what is shown, in pixels; by default all.
    side : int
        Longer side of a panel in pixels.
    """

    def __init__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        heat: np.ndarray | None = None,
        *,
        window: tuple[int, int, int, int] | None = None,
        side: int = 256,
    ) -> None:
        self.mask, self.window = mask, window or (0, 0, mask.shape[1], mask.shape[0])
        left, top, width, height = self.window
        self._cut = np.s_[..., top : top + height, left : left + width]
        self.factor = side / max(height, width)
        self._size = (max(1, round(width * self.factor)), max(1, round(height * self.factor)))
        photo = Image.fromarray(image[self._cut].transpose(1, 2, 0)).resize(self._size, Image.Resampling.BICUBIC)
        self._photo = np.asarray(photo).transpose(2, 0, 1)
        if heat is not None:
            values = Image.fromarray(heat[self._cut].astype(np.float32))
            self._heat = np.asarray(values.resize(self._size, Image.Resampling.BILINEAR))
        self.colours, self._laid = functools.lru_cache(2)(self._colours), functools.lru_cache(2)(self._overlay)
        self.photo = functools.lru_cache(2)(self._photograph)

    def _photograph(self, outline: bool = True) -> np.ndarray:
        """Return the image, with the mask's outer outline if wanted; one of every hole would hide the defect."""
        rgb = self._photo.transpose(1, 2, 0)
        return self.outlined(rgb, ndimage.binary_fill_holes(self.mask), TRUTH) if outline else rgb

    def _colours(self, low: float, high: float) -> np.ndarray:
        """Return the score map in colours from ``low`` to ``high``."""
        return _CMAP((self._heat - low) / (high - low), bytes=True)[..., :3]

    def _overlay(self, low: float, high: float, opacity: float) -> np.ndarray:
        return overlay(self._photo, self._heat, low, high, opacity)

    def overlaid(self, low: float, high: float, opacity: float, found: np.ndarray) -> np.ndarray:
        """Return :func:`~mlffn_lite.figures.overlay` of image and score map, with the outline of what was found."""
        return self.outlined(self._laid(low, high, opacity), found, FOUND)

    def enlarge(self, mask: np.ndarray) -> np.ndarray:
        """Return what the window shows of a mask at the size of the panel: its pixels become squares."""
        return np.asarray(Image.fromarray(mask[self._cut]).resize(self._size, Image.Resampling.NEAREST))

    def place(self, x: int, y: int) -> tuple[int, int]:
        """Return where the middle of a pixel lies on the panel; outside of it where the window does not show it."""
        return round((x - self.window[0] + 0.5) * self.factor), round((y - self.window[1] + 0.5) * self.factor)

    def pixel(self, right: float, down: float) -> tuple[int, int]:
        """Return the pixel (x, y) of the image at a place of the panel."""
        left, top, width, height = self.window
        x, y = int(right / self.factor), int(down / self.factor)
        return left + min(max(x, 0), width - 1), top + min(max(y, 0), height - 1)

    def shows(self, x: int, y: int) -> bool:
        """Say whether a pixel lies in the window."""
        left, top, width, height = self.window
        return left <= x < left + width and top <= y < top + height

    def outlined(self, rgb: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        """Draw the outline of a mask (H, W), with a black one around it."""
        if not mask.any():
            return rgb
        rgb, inside = rgb.copy(), self.enlarge(mask)
        padded = np.pad(inside, 1)
        beside = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
        rgb[np.logical_or.reduce(beside) & ~inside] = 0
        rgb[inside & ~np.logical_and.reduce(beside)] = colour
        return rgb


class Panel(NamedTuple):
    """Pixels (H, W, 3) with a title, a colour bar (low, high, threshold) on the right, and marks (x, y, text)."""

    title: str
    rgb: np.ndarray
    bar: tuple[float, float, float] | None = None
    marks: Sequence[tuple[int, int, str]] = ()

    def same(self, other: Panel) -> bool:
        """Say whether another panel looks the same."""
        if (self.title, self.bar, list(self.marks)) != (other.title, other.bar, list(other.marks)):
            return False
        return self.rgb is other.rgb or np.array_equal(self.rgb, other.rgb)


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
    sheet = Image.new("RGB", (sum(widths), max(p.rgb.shape[0] for p in panels) + HEAD + 8), "white")
    draw, x, boxes = ImageDraw.Draw(sheet), 0, {}
    for panel, step in zip(panels, widths, strict=True):
        height, width = panel.rgb.shape[:2]
        sheet.paste(Image.fromarray(panel.rgb), (x, HEAD))
        draw.text((x, 2), panel.title, "black", font())
        boxes[panel.title] = (x, HEAD, x + width, HEAD + height)
        for right, down, text in panel.marks:
            place = (x + min(right + 5, width - 14), HEAD + min(max(down - 18, 1), height - 18))
            draw.text(place, text, "white", font(), stroke_width=2, stroke_fill="black")
        if panel.bar is not None:
            _draw_bar(sheet, draw, x + width + 6, height, *panel.bar)
        x += step
    return encode_png(np.asarray(sheet), alt), boxes


def _draw_bar(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, x: int, height: int, low: float, high: float, threshold: float
) -> None:
    """Draw a colour bar with its ends, its middle, and a triangle at the threshold where that lies between them."""
    ramp = _CMAP(np.linspace(1, 0, height), bytes=True)[:, None, :3].repeat(12, axis=1)
    sheet.paste(Image.fromarray(ramp), (x, HEAD))
    for share in (0.0, 0.5, 1.0):
        y = HEAD + (1 - share) * (height - 1)
        draw.text((x + 23, min(max(y, HEAD + 6), HEAD + height - 6)), number(low + share * (high - low)), "black",
                  font(), anchor="lm")  # fmt: skip
    share = (threshold - low) / (high - low)
    if 0 <= share <= 1:
        y = HEAD + (1 - share) * (height - 1)
        draw.polygon([(x + 12, y), (x + 19, y - 5), (x + 19, y + 5)], fill="black")


@functools.cache
def font(size: float = 13) -> Any:
    """Return the font of all pictures."""
    return ImageFont.load_default(size)
