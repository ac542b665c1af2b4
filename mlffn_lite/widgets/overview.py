"""Pictures of a whole set: a histogram of its scores with the threshold, and a sheet of thumbnails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from ..figures import COLOURS, encode_png
from .controls import ImagePicker
from .panels import font, number
from .pointer import Surface
from .views import ALARM, BESIDE, MISS, Verdicts

THUMB, ACROSS, DOWN = 88, 8, 2
"""Side of a thumbnail in pixels, and how many stand on a sheet."""

_WIDTH, _HALF, _EDGE, _BINS = 400, 44, 16, 50
_PAGE = ACROSS * DOWN
_CELL = (THUMB + 20, THUMB + 40)
_SHORT = {MISS: ("miss", "orange"), ALARM: ("false alarm", "pink"), BESIDE: ("beside", "blue")}


class Histogram:
    """How many images have which score: good ones above the line, anomalous ones below; one threshold across.

    Parameters
    ----------
    verdicts : Verdicts
        The set.
    low, high : float
        Ends of the axis, those of the threshold's slider; images beyond an end are counted in the last bar.
    """

    def __init__(self, verdicts: Verdicts, low: float, high: float) -> None:
        self._low, self._high = low, max(high, low + 1e-12)
        edges = np.linspace(self._low, self._high, _BINS + 1)
        self._beyond = bool((verdicts.scores > self._high).any())
        scores = np.clip(verdicts.scores, self._low, self._high)
        parts = (scores[~verdicts.truth], scores[verdicts.truth])
        self._counts = [np.histogram(part, edges)[0] for part in parts]
        names = ("good", "anomalous") if verdicts.labelled else ("images", "")
        self._names = [f"{name} ({len(part)})" if name else "" for name, part in zip(names, parts, strict=True)]
        self._blank = self._draw()

    def _draw(self) -> Image.Image:
        sheet = Image.new("RGB", (_WIDTH, 2 * (_HALF + _EDGE)), "white")
        draw, middle, step = ImageDraw.Draw(sheet), _EDGE + _HALF, _WIDTH / _BINS
        most = max(1, *(counts.max() for counts in self._counts))
        for counts, up, colour in zip(self._counts, (-1, 1), ("blue", "orange"), strict=True):
            for i in np.flatnonzero(counts):
                tall = max(2, round(_HALF * counts[i] / most))
                ends = sorted((middle + up, middle + up * tall))
                draw.rectangle((i * step, ends[0], (i + 1) * step - 2, ends[1]), COLOURS[colour])
        draw.line((0, middle, _WIDTH, middle), "#888888")
        draw.text((2, 1), self._names[0], COLOURS["blue"], font())
        draw.text((2, 2 * _HALF + _EDGE), self._names[1], COLOURS["orange"], font())
        end = number(self._high) + " and more" * self._beyond
        draw.text((_WIDTH - 2, middle - _HALF), end, "#555555", font(11), anchor="ra")
        return sheet

    def draw(self, threshold: float) -> np.ndarray:
        """Return the histogram with the threshold, (H, W, 3) uint8."""
        sheet = self._blank.copy()
        draw, share = ImageDraw.Draw(sheet), (threshold - self._low) / (self._high - self._low)
        x = round(min(max(share, 0), 1) * (_WIDTH - 1))
        draw.line((x, _EDGE, x, 2 * _HALF + _EDGE), COLOURS["black"], 2)
        text, right = f"threshold {number(threshold)}", x > _WIDTH / 2
        draw.text((x + (-5 if right else 5), 1), text, COLOURS["black"], font(), anchor="ra" if right else "la",
                  stroke_width=3, stroke_fill="white")  # fmt: skip
        return np.asarray(sheet)


class Thumbnail(NamedTuple):
    """A small picture (H, W, 3) with its name, its score and its outcome in words."""

    rgb: np.ndarray
    name: str
    score: float
    outcome: str
    chosen: bool


def contact_sheet(thumbs: Sequence[Thumbnail]) -> np.ndarray:
    """Return thumbnails in rows, (H, W, 3) uint8: framed by outcome, which stands beside the score too."""
    rows = max(1, -(-len(thumbs) // ACROSS))
    sheet = Image.new("RGB", (ACROSS * _CELL[0], rows * _CELL[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for i, thumb in enumerate(thumbs):
        x, y = i % ACROSS * _CELL[0] + 6, i // ACROSS * _CELL[1] + 18
        height, width = thumb.rgb.shape[:2]
        word, key = _SHORT.get(thumb.outcome, ("", "black"))
        colour = ImageColor.getrgb(COLOURS[key]) if word else (200, 200, 200)
        draw.rectangle((x - 3, y - 3, x + width + 2, y + height + 2), colour)
        sheet.paste(Image.fromarray(thumb.rgb), (x, y))
        if thumb.chosen:
            draw.rectangle((x - 5, y - 5, x + width + 4, y + height + 4), outline=(0, 0, 0), width=2)
        draw.text((x - 3, y - 18), _fitted(thumb.name), "black", font(11))
        draw.text((x - 3, y + height + 4), f"{number(thumb.score)} {word}", colour if word else "#555555", font(11))
    return np.asarray(sheet)


class ContactSheet(Surface):
    """The part of a picker's list that the chosen image stands on, as thumbnails; a press on one chooses it.

    Parameters
    ----------
    picker : ImagePicker
    thumbnail : callable
        ``index -> (H, W, 3)``, of the chosen category.
    """

    def __init__(self, picker: ImagePicker, thumbnail: Callable[[int], np.ndarray]) -> None:
        super().__init__()
        self._picker, self._thumbnail, self._drawn = picker, thumbnail, object()
        self.page: list[int] = []
        self.follow(press=self.press)

    def update(self, scores: Sequence[float] | np.ndarray, outcomes: Sequence[str]) -> None:
        """Draw the thumbnails, if any of them, its outcome, or the choice has changed."""
        category, chosen = self._picker.chosen
        listed = [i for _, i in self._picker.image.options]
        start = listed.index(chosen) // _PAGE * _PAGE
        self.page = listed[start : start + _PAGE]
        drawn = (category, chosen, *((i, outcomes[i]) for i in self.page))
        if drawn == self._drawn:
            return
        self._drawn = drawn
        thumbs = [
            Thumbnail(self._thumbnail(i), self._picker.name_of(i), float(scores[i]), outcomes[i], i == chosen)
            for i in self.page
        ]
        said = (f"{t.name} {number(t.score)} {t.outcome}{' (chosen)' * t.chosen}" for t in thumbs)
        alt = f"Thumbnails {start + 1} to {start + len(thumbs)} of {len(listed)} images: {', '.join(said)}"
        self.show(encode_png(contact_sheet(thumbs), alt), alt)

    def press(self, x: float, y: float) -> None:
        """Choose the image whose thumbnail lies at a pixel of the sheet."""
        place = int(y // _CELL[1]) * ACROSS + int(x // _CELL[0])
        if place < len(self.page):
            self._picker.image.value = self.page[place]


def _fitted(name: str) -> str:
    """Return a name that is not wider than a thumbnail: its end tells images apart."""
    while font(11).getlength(name) > _CELL[0] - 8 and len(name) > 4:
        name = f"…{name[2:]}"
    return name
