"""The explorers of pseudo-anomalies: every parameter of a generator a slider, or one painted where one likes."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from mlffn_lite import registry
from mlffn_lite.canvas import VISIBLE_CHANGE, Canvas
from mlffn_lite.datasets.folder import Split
from mlffn_lite.detector import AnomalyDetector, fitted
from mlffn_lite.widgets.controls import Explorer, ImagePicker, button, dropdown, row, slider, table
from mlffn_lite.widgets.panels import HEAD, Panel, Scene, number, word

from .brush import Stroke, brush

BRUSH = "brush"
_GOOD, _PAINTED, _SIDE = "good image", "painted, mask", 208  # panels of the painter


class PseudoExplorer(Explorer):
    """Move the parameters of the generators of pseudo-anomalies (§2.1) and watch images and masks change.

    Parameters
    ----------
    images : Tensor or Split
        Good images, (B, 3, H, W), uint8 or in [0, 1].
    count : int
        How many are shown, the first ones.

    Attributes
    ----------
    kind : Dropdown
        Name of a kind of this library, see :func:`mlffn_lite.registry.names`.
    seed : BoundedIntText
    parameters : dict of dict
        By kind, the sliders of its generator's parameters by their names.
    generator : PseudoAnomaly
        As the sliders say; the table shows the Python that makes it.
    images, masks : Tensor
        Its output, (B, 3, H, W) and (B, 1, H, W).
    """

    def __init__(self, images: Tensor | Split, *, count: int = 6) -> None:
        self._good = (images.images() if isinstance(images, Split) else images)[:count]
        if not len(Canvas(self._good).images):
            raise ValueError("there is no image to show")
        self.kind = dropdown("Kind", list(_LIMITS), "Kind of pseudo-anomaly")
        self.seed = _seed()
        self.parameters: dict[str, dict[str, w.Widget]] = {}
        for kind, limits in _LIMITS.items():
            start = registry.find("kinds", kind)()
            self.parameters[kind] = {n: slider(n, limit, getattr(start, n), _MEANS[n]) for n, limit in limits.items()}
        self._sliders = row()
        super().__init__(row(self.kind, self.seed), self._sliders)
        self.kind.observe(self._swap, "value")
        self._watch(self.seed, *(s for sliders in self.parameters.values() for s in sliders.values()))
        self._swap()

    def _swap(self, _: Any = None) -> None:
        self._sliders.children = tuple(self.parameters[self.kind.value].values())
        self._changed()

    def redraw(self) -> None:
        """Synthesise with the parameters as they stand, and draw each image above its mask."""
        values = {name: slider.value for name, slider in self.parameters[self.kind.value].items()}
        self.generator = registry.find("kinds", self.kind.value)(**values)
        self.images, self.masks = self.generator(self._good, generator=torch.Generator().manual_seed(self.seed.value))
        shares = self.masks.float().mean((1, 2, 3))
        panels: list[Panel] = []
        for image, mask, share in zip(_as_bytes(self.images), self.masks[:, 0].numpy(), shares, strict=True):
            scene = Scene(image.numpy(), mask, side=136)
            area = 255 * scene.enlarge(mask)[..., None].astype(np.uint8).repeat(3, axis=2)
            line = np.full((4, area.shape[1], 3), 255, np.uint8)
            panels.append(Panel(f"{len(panels) + 1}: {share:.1%}", np.concatenate((scene.photo(False), line, area))))
        text = (
            f"{self.kind.value}: {shares.mean():.1%} of the pixels changed, {shares.min():.1%} to {shares.max():.1%}."
        )
        alt = f"{len(panels)} images with pseudo-anomalies, each above its mask, white where it changed. {text}"
        call = f"{type(self.generator).__name__}({', '.join(f'{k}={_rounded(v)}' for k, v in values.items())})"
        self._publish(text, alt, panels, f"<code>{html.escape(call)}</code>")


# Least, most and step of the parameters that are shown; to begin with they are what the generators have.
_PIXEL = 1 / 256
_LIMITS: dict[str, dict[str, tuple[float, float, float]]] = {
    "confetti": {
        "count": (1, 8, 1),
        "side": (2 * _PIXEL, 100 * _PIXEL, 2 * _PIXEL),
        "rotation": (0, 90, 5),
        "blur": (0, 24 * _PIXEL, _PIXEL),
        "dark": (0, 1, 0.05),
    },
    "cutpaste": {"area": (0.01, 0.3, 0.01), "aspect": (0.1, 8, 0.1), "rotation": (0, 90, 5), "jitter": (0, 0.5, 0.05)},
    "scar": {
        "width": (_PIXEL, 48 * _PIXEL, _PIXEL),
        "length": (_PIXEL, 100 * _PIXEL, _PIXEL),
        "rotation": (0, 90, 5),
        "jitter": (0, 0.5, 0.05),
    },
    "blemish": {
        "count": (1, 8, 1),
        "length": (4 * _PIXEL, 1, 4 * _PIXEL),
        "aspect": (1, 20, 0.5),
        "contrast": (0.02, 1, 0.02),
        "grey": (0, 1, 0.05),
    },
}
_MEANS = {
    "count": "Fewest and most shapes per image",
    "side": "Side of a square, in image sides",
    "rotation": "Largest rotation in degrees, either way",
    "blur": "Standard deviation of the blur, in image sides",
    "dark": "Probability that a square is black",
    "area": "Share of the image that is pasted",
    "aspect": "Height over width, or long over short axis",
    "jitter": "How much brightness, contrast, saturation and hue of the copy may change",
    "width": "Short side, in image sides",
    "length": "Long side or axis, in image sides",
    "contrast": "Largest change of a channel",
    "grey": "Probability that all channels change alike",
}


def _rounded(value: Any) -> str:
    return f"({', '.join(map(_rounded, value))})" if isinstance(value, tuple) else f"{value:.4g}"


class PseudoPainter(Explorer):
    """Paint a pseudo-anomaly (§2.1), or with a brush, on a good image and watch the score map of a detector answer.

    A press on the image puts the pseudo-anomaly there; with the kind ``brush`` it draws until it is lifted.

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
        A kind of this library, see :func:`paint`, or ``brush``.
    x, y, size, strength : FloatSlider
        See :func:`paint`; of the brush, where :attr:`dot` puts a dot, its width and its opacity.
    seed : BoundedIntText
    colour : ColorPicker
        Of the brush.
    dot, undo, clear : Button
        Put a dot at (x, y); take back the last stroke, or all of them.
    strokes : list of Stroke
        What the brush has drawn; it stays when another image is chosen.
    painted, mask : Tensor
        (3, H, W) in [0, 1], and the changed pixels, (H, W) bool.
    before, after : Prediction
        Of the good and of the painted image.
    anomalous : bool
        The verdict on the painted image.
    """

    def __init__(self, detector: AnomalyDetector, split: Split) -> None:
        self._detector, self._split, self._scale = detector, split, fitted(detector)
        self.strokes: list[Stroke] = []
        self._line: list[tuple[float, float]] = []
        self.picker = ImagePicker({"": split}, only_good=True)
        self.kind = dropdown("Kind", [*_SIZED, BRUSH], "Kind of pseudo-anomaly, or a brush")
        self.x = slider("x", (0, 1, 0.02), 0.5, "Centre, from the left, in widths of the image")
        self.y = slider("y", (0, 1, 0.02), 0.5, "Centre, from the top, in heights of the image")
        self.size = slider("Size", (0.02, 0.6, 0.02), 0.2, "Side, length or width of the brush, in image sides")
        self.strength = slider("Strength", (0, 1, 0.05), 1.0, "0: nothing changes; 1: the full pseudo-anomaly")
        self.seed = _seed()
        self.colour = w.ColorPicker(value="#202020", description="Colour", tooltip="Colour of the brush")
        self.colour.style.description_width, self.colour.layout.width = "5.5em", "15.5em"
        self.dot = button("Dot", "circle", "Put a dot of the brush at x and y", self._dot)
        self.undo = button("Undo", "undo", "Take back the last stroke of the brush", lambda _: self._keep(-1))
        self.clear = button("Clear", "eraser", "Take back all strokes of the brush", lambda _: self._keep(0))
        rows = row(self.kind, self.size, self.strength), row(self.seed, self.x, self.y)
        rest = row(self.colour, self.dot, self.undo, self.clear)
        super().__init__(self.picker, *rows, rest, move=self._move, press=self._press, leave=self._leave)
        self.picker.observe(self._picked, "chosen")
        self._watch(self.kind, self.x, self.y, self.size, self.strength, self.seed)
        self._picked()

    def stroke(self, points: Sequence[tuple[float, float]], *, size: float | None = None, colour: str = "") -> None:
        """Draw a stroke with the brush, which becomes the kind.

        Parameters
        ----------
        points : sequence of (float, float)
            In widths and heights of the image.
        size : float, optional
            Width in image sides; by default that of the slider.
        colour : str, optional
            Such as ``"#b03020"``; by default that of the control.
        """
        made = Stroke(tuple(points), self.size.value if size is None else size, colour or self.colour.value)
        brush(self._good, [made])  # bad input shall leave nothing behind
        self.strokes.append(made)
        with self.together():
            self.kind.value = BRUSH

    def _dot(self, _: Any) -> None:
        self.stroke([(self.x.value, self.y.value)])

    def _keep(self, count: int) -> None:
        self.strokes = self.strokes[:count]
        self._changed()

    def _picked(self, _: Any = None) -> None:
        self._good = self._split[self.picker.chosen[1]].image
        self.before = self._detector.predict(self._good[None])
        self._changed()

    def _press(self, title: str, right: float, down: float) -> None:
        if title not in (_GOOD, _PAINTED):
            return
        place = self._place(right, down)
        if self.kind.value != BRUSH:
            with self.together():
                self.x.value, self.y.value = place
            return
        self._line, self._inked = [place], (right, down)
        self._move(title, right, down)

    def _move(self, title: str, right: float, down: float) -> None:
        """Draw on the canvas at once what the picture shows when the stroke is done."""
        if not self._line or title not in (_GOOD, _PAINTED):
            return
        if self._line[-1] != (place := self._place(right, down)):
            self._line.append(place)
        canvas = self.surfaces[(_GOOD, _PAINTED).index(title)].canvas
        canvas.stroke_style, canvas.line_cap, canvas.line_width = self.colour.value, "round", self.size.value * _SIDE
        canvas.stroke_line(self._inked[0], HEAD + self._inked[1], right, HEAD + down)
        self._inked = (right, down)

    def _place(self, right: float, down: float) -> tuple[float, float]:
        """Return a place on a panel in widths and heights of the image."""
        height, width = self._panels[0].rgb.shape[:2]
        return right / width, down / height

    def _leave(self) -> None:
        line, self._line = self._line, []
        if line:
            self.stroke(line)
            for surface in self.surfaces[:2]:
                surface.canvas.clear()

    def redraw(self) -> None:
        """Paint, score, and draw both images with both score maps."""
        if self.kind.value == BRUSH:
            self.painted, self.mask = brush(self._good, self.strokes, strength=self.strength.value)
        else:
            where = {name: getattr(self, name).value for name in ("x", "y", "size", "strength", "seed")}
            self.painted, self.mask = paint(self._good, self.kind.value, **where)
        self.after = self._detector.predict(self.painted[None])
        low, high, threshold, rule = self._scale.low, self._scale.high, self._scale.threshold, self._scale.rule
        mask, rows, scenes = self.mask.numpy(), [], []
        for name, image, found in (("before", self._good, self.before), ("after", _as_bytes(self.painted), self.after)):
            heat, score = found.maps[0].numpy(), float(found.scores[0])
            peak = np.unravel_index(heat.argmax(), heat.shape)
            inside = number(heat[mask].mean()) if mask.any() else "–"
            place = f"({peak[1]}, {peak[0]}), {'inside' if mask[peak] else 'outside'}"
            self.anomalous = bool(rule.regions(heat))
            rows.append((name, number(score), word(self.anomalous), inside, place))
            scenes.append(Scene(image.numpy(), mask, heat, side=_SIDE))
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
                Panel(_GOOD, scenes[0].photo(outline=False)),
                Panel(_PAINTED, scenes[1].photo()),
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


def _as_bytes(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8."""
    return (255 * images).round().byte()


def _seed() -> w.BoundedIntText:
    """Return a field for a seed."""
    tooltip, layout = "Seed of all that is drawn at random", {"width": "15.5em"}
    style = {"description_width": "5.5em"}
    return w.BoundedIntText(0, min=0, max=9999, description="Seed", tooltip=tooltip, style=style, layout=layout)
