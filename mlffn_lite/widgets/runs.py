"""The explorer of two runs: one image, two score maps, each with its own threshold."""

from __future__ import annotations

from collections.abc import Mapping

from ..datasets.folder import Split
from ..detector import Calibration
from .controls import Explorer, ImagePicker, dropdown, row, slider, table
from .panels import Panel, find_regions, number
from .views import OPACITY, Source, View, word

_SCALE = "Own: colours by the scores of each run's good images; common: one scale for both"


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
        self.opacity = slider("Opacity", (0, 1, 0.05), 0.6, OPACITY)
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
