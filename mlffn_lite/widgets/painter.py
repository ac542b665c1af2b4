"""The explorer of a detector's answer: one pseudo-anomaly where, and as large as, one likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import registry
from ..canvas import VISIBLE_CHANGE, Canvas
from ..datasets.folder import Split
from ..detector import AnomalyDetector, fitted
from .controls import Explorer, ImagePicker, dropdown, row, seed, slider, table
from .panels import Panel, Scene, number
from .views import as_bytes, word


class PseudoPainter(Explorer):
    """Paint a pseudo-anomaly (§2.1) on a good image and watch the score map of a detector answer.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.
    split : Split
        Its good images are offered.

    Attributes
    ----------
    picker : ImagePicker
    kind : Dropdown
        A kind of this library, see :func:`paint`.
    x, y, size, strength : FloatSlider
        See :func:`paint`.
    seed : BoundedIntText
    painted, mask : Tensor
        (3, H, W) in [0, 1], and the changed pixels, (H, W) bool.
    before, after : Prediction
        Of the good and of the painted image.
    anomalous : bool
        The verdict on the painted image.
    """

    def __init__(self, detector: AnomalyDetector, split: Split) -> None:
        self._detector, self._split, self._scale = detector, split, fitted(detector)
        self.picker = ImagePicker({"": split}, only_good=True)
        self.kind = dropdown("Kind", list(_SIZED), "Kind of pseudo-anomaly")
        self.x = slider("x", (0, 1, 0.02), 0.5, "Centre, from the left, in widths of the image")
        self.y = slider("y", (0, 1, 0.02), 0.5, "Centre, from the top, in heights of the image")
        self.size = slider("Size", (0.02, 0.6, 0.02), 0.2, "Side or length, in image sides")
        self.strength = slider("Strength", (0, 1, 0.05), 1.0, "0: nothing changes; 1: the full pseudo-anomaly")
        self.seed = seed()
        rows = row(self.kind, self.size, self.strength), row(self.seed, self.x, self.y)
        super().__init__(self.picker, *rows)
        self.picker.observe(self._picked, "chosen")
        self._watch(self.kind, self.x, self.y, self.size, self.strength, self.seed)
        self._picked()

    def _picked(self, _: Any = None) -> None:
        self._good = self._split[self.picker.chosen[1]].image
        self.before = self._detector.predict(self._good[None])
        self._changed()

    def redraw(self) -> None:
        """Paint, score, and draw both images with both score maps."""
        where = {name: getattr(self, name).value for name in ("x", "y", "size", "strength", "seed")}
        self.painted, self.mask = paint(self._good, self.kind.value, **where)
        self.after = self._detector.predict(self.painted[None])
        low, high, threshold = self._scale.low, self._scale.high, self._scale.threshold
        mask, rows, scenes = self.mask.numpy(), [], []
        for name, image, found in (("before", self._good, self.before), ("after", as_bytes(self.painted), self.after)):
            heat, score = found.maps[0].numpy(), float(found.scores[0])
            peak = np.unravel_index(heat.argmax(), heat.shape)
            inside = number(heat[mask].mean()) if mask.any() else "–"
            place = f"({peak[1]}, {peak[0]}), {'inside' if mask[peak] else 'outside'}"
            rows.append((name, number(score), word(score > threshold), inside, place))
            scenes.append(Scene(image.numpy(), mask, heat, side=208))
        self.anomalous = score > threshold
        text = (
            f"{self.kind.value} on {self.picker.name}, {mask.mean():.1%} of the pixels. Image score "
            f"{number(float(self.before.scores[0]))} → {number(score)}, "
            f"threshold {number(threshold)}: {word(self.anomalous)}."
        )
        columns = ("", "image score", "verdict", "mean score in the mask", "peak at (x, y), in the mask?")
        self._publish(
            text,
            f"A good image, the same with a pseudo-anomaly painted on it, and the score maps of both: {text}",
            [
                Panel("good image", scenes[0].photo(outline=False)),
                Panel("painted, mask", scenes[1].photo()),
                Panel("score map before", scenes[0].colours(low, high)),
                Panel("score map after", scenes[1].colours(low, high), (low, high, threshold)),
            ],
            table("Before and after painting", columns, rows),
        )


def paint(
    image: Tensor, kind: str, *, x: float, y: float, size: float, strength: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Put one pseudo-anomaly (§2.1) at a place of an image.

    Parameters
    ----------
    image : Tensor
        (3, H, W), uint8 or in [0, 1]. Not modified.
    kind : str
        ``confetti``, ``cutpaste``, ``scar`` or ``blemish``.
    x, y : float
        Centre in widths and heights of the image, 0 to 1; a pasted rectangle is moved until it lies inside.
    size : float
        In image sides, above 0 and at most 1: side of a square (confetti), square root of the area (cutpaste), length
        (scar, blemish).
    strength : float
        Share of the full change that is applied, 0 to 1; 0 changes nothing.
    seed : int
        Of everything else: rotation, colour, what is copied.

    Returns
    -------
    image : Tensor
        (3, H, W) in [0, 1], float32 for uint8, else in the dtype of the input.
    mask : Tensor
        (H, W) bool, the pixels that changed by more than :data:`~mlffn_lite.canvas.VISIBLE_CHANGE`.

    Raises
    ------
    ValueError
        If the kind is unknown or a number is out of range.
    """
    if kind not in _SIZED:
        raise ValueError(f"unknown kind {kind!r}; choose from {', '.join(_SIZED)}")
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 <= strength <= 1 and 0 < size <= 1):
        raise ValueError(f"x, y, strength must lie in [0, 1], size in (0, 1]; got {x}, {y}, {strength} and {size}")
    good = Canvas(image[None].cpu()).images
    generator = registry.find("kinds", kind)(place=(y, x), **_SIZED[kind](size))
    full, _ = generator(good, generator=torch.Generator().manual_seed(seed))
    painted = torch.lerp(good, full, strength)
    mask = ((painted - good).abs() > VISIBLE_CHANGE).any(1, keepdim=True)
    return torch.where(mask, painted, good)[0], mask[0, 0]


# What makes a generator put one strong shape of a size, in image sides.
_SIZED: dict[str, Callable[[float], dict[str, Any]]] = {
    "confetti": lambda size: {"count": (1, 1), "side": (size, size), "colour": (0.5, 1.0)},
    "cutpaste": lambda size: {"area": (size**2, size**2)},
    "scar": lambda size: {"length": (size, size), "width": (size / 4, size / 4)},
    "blemish": lambda size: {"count": (1, 1), "length": (size, size), "contrast": (0.8, 0.8)},
}
