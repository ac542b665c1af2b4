"""Two runs side by side: where they disagree, in one image and in the whole set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np

from ..datasets.folder import Split
from ..detector import Calibration
from .controls import Explorer, ImagePicker, dropdown, row, slider, table
from .heatmaps import OPACITY
from .overview import THUMB, ContactSheet
from .panels import TRUTH, Panel, number, word
from .views import Source, View, unit

_SCALE = "Own: colours by the scores of each run's good images; common: one scale for both"
_DISAGREE = "disagreement"


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
        Lists all images, or those whose verdicts differ, or that a run misses or raises a false alarm on; by name, or
        by how far the scores are apart in units of *Strictness*.
    opacity : FloatSlider
        Of the overlays at the hot end of the colours, 0 to 1.
    scale : Dropdown
        ``"own"``: the colours of each run's calibration; ``"common"``: one scale that holds both.
    strictness : FloatSlider
        Where the thresholds lie: 0 is a run's typical good pixel, 1 its calibrated threshold, 2 as far again. The
        scores of two runs need not have a common unit, so one threshold for both would mean nothing.
    truth : Checkbox
        Whether the true mask is outlined on the overlays too.
    overall : Label
        Misses and false alarms of both runs on all images.
    sheet : ContactSheet
        Thumbnails of what the picker lists; framed by the outcome of the second run.
    scores, thresholds, verdicts, scales, regions : dict
        By run, for the chosen image: image score, threshold, whether it is anomalous, ends of the colours, regions.
    """

    def __init__(
        self, runs: Mapping[str, Source], split: Split, *, calibrations: Mapping[str, Calibration] | None = None
    ) -> None:
        if len(runs) != 2:
            raise ValueError(f"give two runs to compare, got {len(runs)}")
        self._views = {name: View(run, split, (calibrations or {}).get(name)) for name, run in runs.items()}
        first, second = self._views.values()
        apart = np.abs(unit(first, first.verdicts.scores) - unit(second, second.verdicts.scores))
        self.strictness = slider("Strictness", (0, 2, 0.02), 1.0, "1: each run's threshold; 0: its typical good pixel")
        filters = {
            "verdicts differ": lambda _: self.differ(),
            "misses of a run": lambda _: np.any([v.verdicts.misses(t) for v, t in self._each()], axis=0),
            "false alarms of a run": lambda _: np.any([v.verdicts.false_alarms(t) for v, t in self._each()], axis=0),
        }
        self.picker = ImagePicker({"": split}, filters=filters, orders={_DISAGREE: lambda _: apart})
        self.opacity = slider("Opacity", (0, 1, 0.05), 0.6, OPACITY)
        self.scale = dropdown("Colours", [("own scale each", "own"), ("common scale", "common")], _SCALE)
        self.truth = w.Checkbox(True, description="True mask", indent=False, tooltip="Outline the true defect")
        self.truth.layout.width = "8em"
        self.overall = w.Label(layout={"width": "auto", "margin": "6px 2px"})
        self.sheet = ContactSheet(self.picker, lru_cache(1000)(self._thumbnail))
        controls = row(self.strictness, self.opacity, self.scale, self.truth)
        super().__init__(self.picker, controls, below=[self.overall, self.sheet])
        self._watch(self.picker, self.opacity, self.strictness, self.scale, self.truth)
        self.picker.observe(self._listed, "listed")
        self.redraw()

    def differ(self) -> np.ndarray:
        """Return on which images the verdicts of the runs differ, (M,) bool."""
        one, two = (view.verdicts.called(threshold) for view, threshold in self._each())
        return one != two

    def _each(self) -> list[tuple[View, float]]:
        return [(view, self._threshold(view)) for view in self._views.values()]

    def _threshold(self, view: View) -> float:
        typical = view.calibration.low
        return typical + self.strictness.value * (view.calibration.threshold - typical)

    def _thumbnail(self, index: int) -> np.ndarray:
        return next(iter(self._views.values())).scene(index, None, THUMB).photo()

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
            threshold = self._threshold(view)
            labels, self.regions[name] = view.rule(threshold).find(view.heat(index))
            called = bool(self.regions[name])
            self.scores[name], self.thresholds[name], self.verdicts[name] = score, threshold, called
            found = labels > 0
            over = scene.overlaid(low, high, self.opacity.value, found)
            panels.append(
                Panel(name, scene.outlined(over, scene.mask & self.truth.value, TRUTH), (low, high, threshold))
            )
            share = f"{(found & scene.mask).sum() / scene.mask.sum():.0%}" if scene.mask.any() else "–"
            false = int((found & ~scene.mask).sum()) if view.known(index) else "unknown"
            rows.append((name, number(score), number(threshold), word(called), share, false))
            says.append(f"{name}: {number(score)}, {word(called)}.")
        truth = f"{self.picker.name}, in truth {word(view.split.defects[index] != 'good')}"
        columns = ("run", "image score", "threshold", "verdict", "true mask found", "px above it elsewhere")
        text = f"{truth}. {' '.join(says)}"
        panels.insert(0, Panel("image, true mask", scene.photo()))
        self._publish(text, f"An image and the overlays of two runs: {text}", panels, table(truth, columns, rows))
        self._survey()

    def _survey(self) -> None:
        """Bring what is said and drawn about the whole set up to date."""
        said = [f"{name}: {v.verdicts.summary(self._threshold(v))}" for name, v in self._views.items()]
        self.overall.value = f"Verdicts differ on {int(self.differ().sum())} images. {' '.join(said)}"
        if self.picker.filter.value != "all":
            self.picker.refresh()
        self._listed()

    def _listed(self, _: Any = None) -> None:
        view, threshold = self._each()[1]
        self.sheet.update(view.verdicts.scores, view.verdicts.outcomes(threshold))
