"""The explorer of heatmaps: colours, threshold, and what lies above it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np

from ..datasets.folder import Split
from ..detector import Calibration
from .controls import Explorer, ImagePicker, button, move, row, slider, table
from .panels import Panel, find_regions, number
from .views import OPACITY, Source, View, word

_LISTED = 8  # regions that are numbered and listed


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
        self.opacity = slider("Opacity", (0, 1, 0.05), 0.6, OPACITY)
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


def _verdict(score: float, threshold: float, defect: str) -> str:
    found, true = score > threshold, defect != "good"
    right = "right" if found == true else "a false alarm" if found else "a miss"
    compared = f"image score {number(score)} {'>' if found else '≤'} threshold {number(threshold)}"
    return f"{compared}: {word(found)}. Truth: {word(true)}; {right}."
