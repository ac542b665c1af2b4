"""The explorers of score maps: one detector's, with what lies above the threshold, and two runs' side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np

from ..datasets.folder import Split
from ..decision import find_regions
from ..detector import AnomalyDetector, Calibration, Prediction, fitted
from .controls import Explorer, ImagePicker, button, dropdown, move, row, slider, table
from .panels import Panel, Scene, number, word

Source = AnomalyDetector | Prediction

_OPACITY = "Opacity of the hottest colours over the image"
_LISTED = 8  # regions that are numbered and listed
_SCALE = "Own: colours by the scores of each run's good images; common: one scale for both"


class View:
    """A split with its prediction, and with colours and threshold to show it."""

    def __init__(self, source: Source, split: Split, calibration: Calibration | None) -> None:
        if not len(split):
            raise ValueError("the split holds no image")
        if isinstance(source, AnomalyDetector):
            own = fitted(source)
            calibration, found = calibration or own, source.predict_split(split)
        else:
            found = source
        if found.maps.shape != (len(split), *split.shape) or found.scores.shape != (len(split),):
            wanted = (len(split), *split.shape)
            raise ValueError(f"the split needs maps {wanted} and a score each, got {tuple(found.maps.shape)}")
        if not (found.maps.isfinite().all() and found.scores.isfinite().all()):
            raise ValueError("the prediction holds scores that are not finite")
        good = split.labels() == 0
        if calibration is None and not good.any():
            raise ValueError("the split has no good image to take colours and threshold from; give a calibration")
        self.split, self.prediction = split, found
        self.calibration = calibration or Calibration.from_good(Prediction(found.maps[good], found.scores[good]))
        self.scene = lru_cache(8)(self._scene)

    def known(self, index: int) -> bool:
        """Say whether it is known where this image is defective."""
        return bool(self.split.has_mask[index])

    def heat(self, index: int) -> np.ndarray:
        """Return the score map of an image."""
        return self.prediction.maps[index].numpy()

    def score(self, index: int) -> float:
        """Return the score of an image."""
        return float(self.prediction.scores[index])

    def _scene(self, index: int) -> Scene:
        image, mask = self.split.batch([index])
        return Scene(image[0].numpy(), mask[0].numpy(), self.heat(index))


class HeatmapExplorer(Explorer):
    """Browse the score maps of a split; move the threshold and watch mask, regions and verdict.

    Parameters
    ----------
    source : AnomalyDetector or Prediction, or a mapping by category
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
        self._views = {name: View(s, splits[name], given.get(name)) for name, s in sources.items()}
        self.picker, self._category = ImagePicker(splits), ""
        self.threshold = slider("Threshold", (0, 1, 0.01), 0.5, "Pixels and images that score higher are anomalous")
        self.colours = slider("Colours", (0, 1, 0.01), (0.0, 1.0), "Scores at the cold and the hot end of the colours")
        self.opacity = slider("Opacity", (0, 1, 0.05), 0.6, _OPACITY)
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
        marks = [(*scene.place(r.x, r.y), str(i)) for i, r in enumerate(self.regions[:_LISTED], 1)]
        over = scene.overlaid(low, high, self.opacity.value, self.labels > 0)
        on = np.bincount(self.labels[scene.mask], minlength=len(self.regions) + 1)[1:]
        beside = self.anomalous and view.known(index) and scene.mask.any() and not on.any()
        says = _verdict(score, threshold, view.split.defects[index], beside=bool(beside))
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


def _verdict(score: float, threshold: float, defect: str, *, beside: bool) -> str:
    """Compare score and threshold, and verdict and truth; ``beside``: nothing above the threshold is on the mask."""
    found, true = score > threshold, defect != "good"
    right = "right" if found == true else "a false alarm" if found else "a miss"
    right += ", but not where the defect is" * beside
    compared = f"image score {number(score)} {'>' if found else '≤'} threshold {number(threshold)}"
    return f"{compared}: {word(found)}. Truth: {word(true)}; {right}."


class RunComparison(Explorer):
    """See one image under two runs side by side, each with its own threshold and verdict.

    Parameters
    ----------
    runs : mapping of str to AnomalyDetector or Prediction
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
        self._views = {name: View(run, split, (calibrations or {}).get(name)) for name, run in runs.items()}
        self.picker = ImagePicker({"": split})
        self.strictness = slider("Strictness", (0, 2, 0.02), 1.0, "1: each run's threshold; 0: its typical good pixel")
        self.opacity = slider("Opacity", (0, 1, 0.05), 0.6, _OPACITY)
        self.scale = dropdown("Colours", [("own scale each", "own"), ("common scale", "common")], _SCALE)
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
            rows.append((name, number(score), number(threshold), word(score > threshold), share, false))
            says.append(f"{name}: {number(score)}, {word(score > threshold)}.")
        truth = f"{self.picker.name}, in truth {word(view.split.defects[index] != 'good')}"
        columns = ("run", "image score", "threshold", "verdict", "true mask found", "px above it elsewhere")
        text = f"{truth}. {' '.join(says)}"
        panels.insert(0, Panel("image, true mask", scene.photo()))
        self._publish(text, f"An image and the overlays of two runs: {text}", panels, table(truth, columns, rows))
