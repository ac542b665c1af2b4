"""Explorers for notebooks: heatmaps, two runs side by side, and pseudo-anomalies by parameter or painted by hand.

Each is a box of controls, a line of text (``label``), a picture and a table, without an ``Output`` widget: controls are
set, and the outcome is read, by code as well as by hand, so an explorer works and is tested without a browser. A
picture's text alternative, ``alt``, is its accessible name in the browser and the field Description of its PNG.

>>> explorer = HeatmapExplorer(detector, folder.test)
>>> explorer.picker.select("hole/003")
>>> explorer.threshold.value = 2.0
>>> explorer.label.value, explorer.anomalous, explorer.regions
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from .base import Calibration, Detector, Prediction
from .controls import Explorer, ImagePicker, button, dropdown, move, row, seed, slider, table
from .datasets.folder import Split
from .painting import paint
from .panels import Panel, Region, Scene, find_regions, number
from .pseudo import KINDS, Canvas

__all__ = [
    "Explorer",
    "HeatmapExplorer",
    "ImagePicker",
    "PseudoExplorer",
    "PseudoPainter",
    "Region",
    "RunComparison",
    "find_regions",
    "paint",
]

Source = Detector | Prediction
_LISTED = 8  # regions that are numbered and listed
_HELP = {
    "opacity": "Opacity of the hottest colours over the image",
    "scale": "Own: colours by the scores of each run's good images; common: one scale for both",
}


class HeatmapExplorer(Explorer):
    """Browse the score maps of a split; move the threshold and watch mask, regions and verdict.

    Parameters
    ----------
    source : Detector or Prediction, or a mapping by category
        A fitted detector, which scores the split, or the prediction for it.
    split : Split, or a mapping with the same categories
        What is shown.
    calibration : Calibration, or a mapping, optional
        Colours and threshold to start from. By default the detector's own; with a prediction, those that the good
        images of the split would give.

    Attributes
    ----------
    picker : ImagePicker
    opacity : FloatSlider
        Of the overlay at the hot end of the colours, 0 to 1.
    colours : FloatRangeSlider
        Scores at the cold and the hot end of the colours.
    threshold : FloatSlider
        Pixels with a greater score are outlined; an image with a greater score is anomalous.
    truth : Checkbox
        Whether the true mask is outlined.
    reset : Button
        Back to the calibrated colours and threshold.
    anomalous : bool
        The verdict.
    regions, labels : list of Region, ndarray
        What lies above the threshold, see :func:`find_regions`.
    """

    def __init__(
        self,
        source: Source | Mapping[str, Source],
        split: Split | Mapping[str, Split],
        *,
        calibration: Calibration | Mapping[str, Calibration] | None = None,
    ) -> None:
        sources = source if isinstance(source, Mapping) else {"": source}
        splits = split if isinstance(split, Mapping) else {"": split}
        if not sources or sources.keys() != splits.keys():
            raise ValueError(f"source has the categories {list(sources)}, but split {list(splits)}")
        given = calibration if isinstance(calibration, Mapping) else dict.fromkeys(sources, calibration)
        self._views = {name: _View(s, splits[name], given.get(name)) for name, s in sources.items()}
        self.picker, self._category = ImagePicker(splits), ""
        self.threshold = slider("Threshold", (0, 1, 0.01), 0.5, "Pixels and images that score higher are anomalous")
        self.colours = slider("Colours", (0, 1, 0.01), (0.0, 1.0), "Scores at the cold and the hot end of the colours")
        self.opacity = slider("Opacity", (0, 1, 0.05), 0.6, _HELP["opacity"])
        self.truth = w.Checkbox(True, description="True mask", indent=False, tooltip="Outline the true defect")
        self.truth.layout.width = "8em"
        self.reset = button("Reset", "undo", "Go back to the calibrated colours and threshold", self._reset)
        rows = row(self.threshold, self.colours), row(self.opacity, self.truth, self.reset)
        super().__init__(self.picker, *rows)
        self.picker.observe(self._picked, "chosen")
        self._watch(self.opacity, self.colours, self.threshold, self.truth)
        self._reset()

    def _picked(self, _: Any) -> None:
        if self.picker.chosen[0] != self._category:
            self._reset()
        else:
            self._changed()

    def _reset(self, _: Any = None) -> None:
        self._category = self.picker.chosen[0]
        view = self._views[self._category]
        scale, maps = view.calibration, view.prediction.maps
        low, high = min(float(maps.min()), scale.low, scale.threshold), max(float(maps.max()), scale.high)
        with self.together():
            move(self.threshold, low, high, (scale.high - scale.low) / 100, scale.threshold)
            move(self.colours, low, high, (scale.high - scale.low) / 50, (scale.low, scale.high))

    def redraw(self) -> None:
        """Draw the image with its true mask, its score map, and the overlay with what lies above the threshold."""
        category, index = self.picker.chosen
        view, threshold = self._views[category], self.threshold.value
        low, high = self.colours.value
        high = max(high, low + self.colours.step)  # the colours must rise
        scene, score = view.scene(index), view.score(index)
        self.anomalous = score > threshold
        self.labels, self.regions = find_regions(view.heat(index), threshold)
        name = " ".join(filter(None, (category, self.picker.name)))
        says = _verdict(score, threshold, view.split.defects[index])
        marks = [(*scene.place(r.x, r.y), str(i)) for i, r in enumerate(self.regions[:_LISTED], 1)]
        over = scene.overlaid(low, high, self.opacity.value, self.labels > 0)
        on = np.bincount(self.labels[scene.mask], minlength=len(self.regions) + 1)[1:]
        rows = [
            (i, r.area, number(r.peak), f"({r.x}, {r.y})", f"{o / r.area:.0%}" if view.known(index) else "unknown")
            for i, (r, o) in enumerate(zip(self.regions[:_LISTED], on, strict=False), 1)
        ]
        count = f"{len(self.regions)} region{'s' * (len(self.regions) != 1)} above the threshold"
        shown = f", the {_LISTED} with the highest peaks" if len(self.regions) > _LISTED else ""
        self._publish(
            f"{name}: {says}",
            f"{name}, its score map, and the map laid over it, {count} outlined. {says}",
            [
                Panel("image, true mask", scene.photo(self.truth.value)),
                Panel("score map", scene.colours(low, high), (low, high, threshold)),
                Panel("overlay, above the threshold", over, marks=marks),
            ],
            table(count + shown, ("region", "area in px", "peak", "peak at (x, y)", "on the true mask"), rows),
        )


class RunComparison(Explorer):
    """See one image under two runs side by side, each with its own threshold and verdict.

    Parameters
    ----------
    runs : mapping of str to Detector or Prediction
        Two runs by name, each fitted, or its prediction for the split.
    split : Split
        What is shown.
    calibrations : mapping of str to Calibration, optional
        As ``calibration`` of :class:`HeatmapExplorer`.

    Attributes
    ----------
    picker : ImagePicker
    opacity : FloatSlider
        Of the overlays at the hot end of the colours, 0 to 1.
    scale : Dropdown
        ``"own"``: the colours of each run's calibration; ``"common"``: one scale that holds both.
    strictness : FloatSlider
        Where the thresholds lie: 0 is a run's typical good pixel, 1 its calibrated threshold, 2 as far again. The
        scores of two runs need not have a common unit, so one threshold for both would mean nothing.
    scores, thresholds, verdicts, scales, regions : dict
        By run, for the chosen image: image score, threshold, whether it is anomalous, ends of the colours, regions.
    """

    def __init__(
        self, runs: Mapping[str, Source], split: Split, *, calibrations: Mapping[str, Calibration] | None = None
    ) -> None:
        if len(runs) != 2:
            raise ValueError(f"give two runs to compare, got {len(runs)}")
        self._views = {name: _View(run, split, (calibrations or {}).get(name)) for name, run in runs.items()}
        self.picker = ImagePicker({"": split})
        self.strictness = slider("Strictness", (0, 2, 0.02), 1.0, "1: each run's threshold; 0: its typical good pixel")
        self.opacity = slider("Opacity", (0, 1, 0.05), 0.6, _HELP["opacity"])
        self.scale = dropdown("Colours", [("own scale each", "own"), ("common scale", "common")], _HELP["scale"])
        super().__init__(self.picker, row(self.strictness, self.opacity, self.scale))
        self._watch(self.picker, self.opacity, self.strictness, self.scale)
        self.redraw()

    def redraw(self) -> None:
        """Draw the image with its true mask, and the overlay of either run with what lies above its threshold."""
        index = self.picker.chosen[1]
        self.scales = {name: (v.calibration.low, v.calibration.high) for name, v in self._views.items()}
        if self.scale.value == "common":
            every = [end for scale in self.scales.values() for end in scale]
            self.scales = dict.fromkeys(self._views, (min(every), max(every)))
        self.scores, self.thresholds, self.verdicts, self.regions = {}, {}, {}, {}
        panels: list[Panel] = []
        rows, says = [], []
        for name, view in self._views.items():
            (low, high), scene, score = self.scales[name], view.scene(index), view.score(index)
            typical = view.calibration.low
            threshold = typical + self.strictness.value * (view.calibration.threshold - typical)
            labels, self.regions[name] = find_regions(view.heat(index), threshold)
            self.scores[name], self.thresholds[name], self.verdicts[name] = score, threshold, score > threshold
            found = labels > 0
            over = scene.overlaid(low, high, self.opacity.value, found)
            panels.append(Panel(name, over, (low, high, threshold)))
            share = f"{(found & scene.mask).sum() / scene.mask.sum():.0%}" if scene.mask.any() else "–"
            false = int((found & ~scene.mask).sum()) if view.known(index) else "unknown"
            rows.append((name, number(score), number(threshold), _word(score > threshold), share, false))
            says.append(f"{name}: {number(score)}, {_word(score > threshold)}.")
        truth = f"{self.picker.name}, in truth {_word(view.split.defects[index] != 'good')}"
        columns = ("run", "image score", "threshold", "verdict", "true mask found", "px above it elsewhere")
        text = f"{truth}. {' '.join(says)}"
        panels.insert(0, Panel("image, true mask", scene.photo()))
        self._publish(text, f"An image and the overlays of two runs: {text}", panels, table(truth, columns, rows))


class PseudoPainter(Explorer):
    """Paint a pseudo-anomaly (§2.1) on a good image and watch the score map of a detector answer.

    Parameters
    ----------
    detector : Detector
        Fitted.
    split : Split
        Its good images are offered.

    Attributes
    ----------
    picker : ImagePicker
    kind : Dropdown
        A key of :data:`mlffn_lite.pseudo.KINDS`.
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

    def __init__(self, detector: Detector, split: Split) -> None:
        self._detector, self._split, self._scale = detector, split, _fitted(detector)
        self.picker = ImagePicker({"": split}, only_good=True)
        self.kind = dropdown("Kind", list(KINDS), "Kind of pseudo-anomaly")
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
        for name, image, found in (("before", self._good, self.before), ("after", _bytes(self.painted), self.after)):
            heat, score = found.maps[0].numpy(), float(found.scores[0])
            peak = np.unravel_index(heat.argmax(), heat.shape)
            inside = number(heat[mask].mean()) if mask.any() else "–"
            place = f"({peak[1]}, {peak[0]}), {'inside' if mask[peak] else 'outside'}"
            rows.append((name, number(score), _word(score > threshold), inside, place))
            scenes.append(Scene(image.numpy(), mask, heat, side=208))
        self.anomalous = score > threshold
        text = (
            f"{self.kind.value} on {self.picker.name}, {mask.mean():.1%} of the pixels. Image score "
            f"{number(float(self.before.scores[0]))} → {number(score)}, "
            f"threshold {number(threshold)}: {_word(self.anomalous)}."
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
        A key of :data:`mlffn_lite.pseudo.KINDS`.
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
        self.kind = dropdown("Kind", list(KINDS), "Kind of pseudo-anomaly")
        self.seed = seed()
        self.parameters: dict[str, dict[str, w.Widget]] = {}
        for kind, limits in _LIMITS.items():
            start = KINDS[kind]()
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
        self.generator = replace(KINDS[self.kind.value](), **values)  # type: ignore[type-var]
        self.images, self.masks = self.generator(self._good, generator=torch.Generator().manual_seed(self.seed.value))
        shares = self.masks.float().mean((1, 2, 3))
        panels: list[Panel] = []
        for image, mask, share in zip(_bytes(self.images), self.masks[:, 0].numpy(), shares, strict=True):
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


class _View:
    """A split with its prediction, and with colours and threshold to show it."""

    def __init__(self, source: Source, split: Split, calibration: Calibration | None) -> None:
        if not len(split):
            raise ValueError("the split holds no image")
        found = source.predict_split(split) if isinstance(source, Detector) and _fitted(source) else source
        assert isinstance(found, Prediction)
        if found.maps.shape != (len(split), *split.shape) or found.scores.shape != (len(split),):
            wanted = (len(split), *split.shape)
            raise ValueError(f"the split needs maps {wanted} and a score each, got {tuple(found.maps.shape)}")
        if not (found.maps.isfinite().all() and found.scores.isfinite().all()):
            raise ValueError("the prediction holds scores that are not finite")
        good = split.labels() == 0
        if calibration is None and isinstance(source, Prediction) and not good.any():
            raise ValueError("the split has no good image to take colours and threshold from; give a calibration")
        if calibration is None:
            good_ones = Prediction(found.maps[good], found.scores[good])
            calibration = _fitted(source) if isinstance(source, Detector) else Calibration.from_good(good_ones)
        self.split, self.prediction, self.calibration = split, found, calibration
        self.scene = lru_cache(8)(self._scene)

    def known(self, index: int) -> bool:
        return bool(self.split.has_mask[index])

    def heat(self, index: int) -> np.ndarray:
        return self.prediction.maps[index].numpy()

    def score(self, index: int) -> float:
        return float(self.prediction.scores[index])

    def _scene(self, index: int) -> Scene:
        image, mask = self.split.batch([index])
        return Scene(image[0].numpy(), mask[0].numpy(), self.heat(index))


def _fitted(detector: Detector) -> Calibration:
    if detector.calibration is None:
        raise ValueError("the detector is not fitted: call fit or load first")
    return detector.calibration


def _bytes(images: Tensor) -> Tensor:
    return (255 * images).round().byte()


def _word(anomalous: bool) -> str:
    return "anomalous" if anomalous else "good"


def _verdict(score: float, threshold: float, defect: str) -> str:
    found, true = score > threshold, defect != "good"
    right = "right" if found == true else "a false alarm" if found else "a miss"
    compared = f"image score {number(score)} {'>' if found else '≤'} threshold {number(threshold)}"
    return f"{compared}: {_word(found)}. Truth: {_word(true)}; {right}."


def _rounded(value: Any) -> str:
    return f"({', '.join(map(_rounded, value))})" if isinstance(value, tuple) else f"{value:.4g}"
