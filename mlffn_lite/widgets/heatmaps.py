"""The explorer of a detector's score maps: what lies above the threshold, in one image and in the whole set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np

from ..datasets.folder import Split, few
from ..detector import Calibration
from ..errors import MlffnError, first_line
from ..figures import encode_png
from .controls import Explorer, ImagePicker, button, field, limits, move, row, slider, table
from .overview import THUMB, ContactSheet, Histogram
from .own import read_own
from .panels import Panel, number
from .pointer import Picture
from .views import Source, View, write_verdicts

OPACITY = "Opacity of the hottest colours over the image"
_LISTED = 8  # regions that are numbered and listed
_FILES = ".bmp,.jpg,.jpeg,.png,.tif,.tiff,.webp"


class HeatmapExplorer(Explorer):
    """Browse the score maps of a split; move the threshold and watch mask, regions and verdict, and the whole set.

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
        Lists all images, or the misses, the false alarms, or what is found beside the defect; by name or score.
    opacity : FloatSlider
        Of the overlay at the hot end of the colours, 0 to 1.
    colours : FloatRangeSlider
        Scores at the cold and the hot end of the colours.
    threshold : FloatSlider
        Pixels with a greater score form regions; an image with a region that counts is anomalous: with any, unless the
        calibration asks for its area or peak. It spans the image scores without their upper tail, so that a step
        matters.
    truth : Checkbox
        Whether the true mask is outlined.
    reset : Button
        Back to the calibrated colours and threshold.
    zoom, x, y : IntSlider
        How many times the picture is enlarged, and the pixel in the middle of the window, whose score is read.
    to_peak : Button
        Point at the highest score.
    readout : Label
        The score at the point, or under the pointer.
    overall : Label
        Misses and false alarms of all images of the category at this threshold.
    histogram : Picture
        All image scores and the threshold.
    sheet : ContactSheet
        Thumbnails of what the picker lists.
    path, upload : Text, FileUpload
        Images of one's own: a file or a folder, see :meth:`open_own`; only where a detector is given.
    table_path, save : Text, Button
        See :meth:`save_verdicts`.
    status : Label
        What the last opening or saving did.
    anomalous : bool
        The verdict.
    regions, labels : list of Region, ndarray
        What lies above the threshold and counts, see :meth:`~mlffn_lite.decision.Rule.find`.
    """

    threshold: w.Widget
    colours: w.Widget

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
        self._category = ""
        self._scales: dict[str, tuple[w.Widget, w.Widget]] = {}
        filters = {
            "misses": lambda c: self._views[c].verdicts.misses(self.threshold.value),
            "false alarms": lambda c: self._views[c].verdicts.false_alarms(self.threshold.value),
            "found beside the defect": lambda c: self._views[c].verdicts.beside(self.threshold.value),
        }
        orders = {
            "score, highest first": lambda c: self._views[c].verdicts.scores,
            "score, lowest first": lambda c: -self._views[c].verdicts.scores,
        }
        self.picker = ImagePicker(splits, filters=filters, orders=orders)
        acts: dict[str, Any] = {"move": self._hover, "press": self._press, "leave": self._read, "key": self._key}
        super().__init__(self.picker, *self._controls(), below=self._below(), **acts)
        self.picker.observe(self._picked, "chosen")
        self.picker.observe(self._listed, "listed")
        self._watch(self.opacity, self.truth, self.zoom)
        self.x.observe(self._pointed, "value")
        self.y.observe(self._pointed, "value")
        self._reset()

    def _controls(self) -> list[w.Widget]:
        self._sliders = row()
        self.opacity = slider("Opacity", (0, 1, 0.05), 0.6, OPACITY)
        self.truth = w.Checkbox(True, description="True mask", indent=False, tooltip="Outline the true defect")
        self.truth.layout.width = "8em"
        self.reset = button("Reset", "undo", "Go back to the calibrated colours and threshold", self._reset)
        self.zoom = slider("Zoom", (1, 8, 1), 1, "How many times the picture is enlarged")
        self.x = slider("x", (0, 1, 1), 0, "Column of the pixel that is read, and the middle of the window")
        self.y = slider("y", (0, 1, 1), 0, "Row of the pixel that is read, and the middle of the window")
        self.to_peak = button("Peak", "crosshairs", "Point at the highest score of the image", self._to_peak)
        for control in (self.zoom, self.x, self.y):
            control.style.description_width, control.layout.width = "3.5em", "16em"
        return [
            self._sliders,
            row(self.opacity, self.truth, self.reset),
            row(self.zoom, self.x, self.y, self.to_peak),
        ]

    def _below(self) -> list[w.Widget]:
        self.readout = w.Label(layout={"width": "auto", "margin": "2px"})
        self.overall = w.Label(layout={"width": "auto", "margin": "6px 2px"})
        self.histogram = Picture()
        self._thumbnail = lru_cache(1000)(self._small)
        self.sheet = ContactSheet(self.picker, lambda i: self._thumbnail(self.picker.chosen[0], i))
        self.path = field("Own images", "", "An image file, or a folder of images; press Enter")
        self.path.continuous_update = False
        self.upload = w.FileUpload(accept=_FILES, multiple=True, description="Upload", tooltip="Images of your own")
        self.table_path = field("Verdicts", "verdicts.csv", "Where the table of verdicts is written")
        self.save = button("Save", "save", "Write the verdicts on all images of the category as CSV", self._save)
        self.status = w.Label(layout={"width": "auto", "margin": "2px"})
        self.path.observe(self._opened, "value")
        self.upload.observe(self._uploaded, "value")
        own = [self.path, self.upload] if any(v.detector for v in self._views.values()) else []
        return [
            *(self.readout, self.overall, self.histogram, self.sheet),
            *(row(*own, self.table_path, self.save), self.status),
        ]

    def open_own(self, source: str | Path | Mapping[str, bytes], name: str | None = None) -> None:
        """Score images of one's own with the detector of the chosen category, and show them as one more category.

        Parameters
        ----------
        source : path, or mapping of str to bytes
            See :func:`~mlffn_lite.widgets.own.read_own`.
        name : str, optional
            Of the category; by default that of the file or folder.

        Raises
        ------
        DataError
            If nothing can be read; the explorer stays as it is.
        """
        shown = self._views[self.picker.chosen[0]]
        detector = shown.detector or next((v.detector for v in self._views.values() if v.detector), None)
        if detector is None:
            raise ValueError("a prediction cannot score other images; give the explorer a detector")
        found = read_own(source, detector)
        name = name or ("uploaded" if isinstance(source, Mapping) else Path(source).expanduser().resolve().name)
        name = f"own: {name}"
        scale = shown.calibration if shown.detector else None
        self._views[name] = View(detector, found.split, scale, labelled=found.labelled)
        self._thumbnail.cache_clear()
        self._scales.pop(name, None)
        with self.together():  # the picker's new category and its scale, drawn once
            self.picker.add(name, found.split)
            self._reset()
        skipped = f"; left out {len(found.faults)}: {few(found.faults, 1)}" if found.faults else ""
        self.status.value = f"{len(found.split)} images opened{skipped}"

    def save_verdicts(self, path: str | Path) -> Path:
        """Write the verdicts on all images of the chosen category at this threshold as CSV; returns the path."""
        category = self.picker.chosen[0]
        return write_verdicts(path, self._views[category].verdicts.rows(self.threshold.value, category))

    def score_at(self, x: int, y: int) -> float:
        """Return the score of a pixel of the image."""
        category, index = self.picker.chosen
        return float(self._views[category].heat(index)[y, x])

    def _save(self, _: Any) -> None:
        self._try(lambda path: setattr(self.status, "value", f"written: {self.save_verdicts(path)}"),
                  self.table_path.value or "verdicts.csv")  # fmt: skip

    def _opened(self, change: Any) -> None:
        if change["new"]:
            self._try(self.open_own, change["new"])

    def _uploaded(self, change: Any) -> None:
        if files := {str(f["name"]): bytes(f["content"]) for f in change["new"]}:
            self._try(self.open_own, files)
            self.upload.value = ()

    def _try(self, act: Any, argument: Any) -> None:
        """Do what may fail for reasons of the user's; says so in a line."""
        self.status.value = "…"
        try:
            act(argument)
        except (MlffnError, ValueError, OSError) as error:
            self.status.value = first_line(error)

    def _picked(self, _: Any) -> None:
        if self.picker.chosen[0] != self._category:
            self._reset()
        else:
            self._changed()

    def _reset(self, _: Any = None) -> None:
        self._category = self.picker.chosen[0]
        view = self._views[self._category]
        if self._category not in self._scales:
            self._scales[self._category] = self._scaled(view)
        self.threshold, self.colours = self._scales[self._category]
        scale, maps = view.calibration, view.prediction.maps
        with self.together():
            self.threshold.value, self.colours.value = scale.threshold, (scale.low, scale.high)
            self._sliders.children = [self.threshold, self.colours]
            for control, size in ((self.x, maps.shape[2]), (self.y, maps.shape[1])):
                move(control, 0, size - 1, 1, size // 2)
            self._bars = Histogram(view.verdicts, self.threshold.min, self.threshold.max)

    def _scaled(self, view: View) -> tuple[w.Widget, w.Widget]:
        """Return sliders for a category's threshold and colours.

        Every category has its own: a browser echoes the values that it is sent, and an echo that is late would be
        pressed into the range of the category that was chosen meanwhile.
        """
        scale, maps, scores = view.calibration, view.prediction.maps, view.verdicts.scores
        low, high = min(float(maps.min()), scale.low, scale.threshold), max(float(maps.max()), scale.high)
        step = (scale.high - scale.low) / 100
        top = max(scale.threshold, float(np.quantile(scores, 0.75)), scores[~view.verdicts.truth].max(initial=-np.inf))
        ends = limits(min(float(scores.min()), scale.threshold) - step, top + step, step, scale.threshold)
        threshold = slider("Threshold", ends, scale.threshold, "Pixels and images that score higher are anomalous")
        ends, shown = limits(low, high, 2 * step, (scale.low, scale.high)), (scale.low, scale.high)
        colours = slider("Colours", ends, shown, "Scores at the cold and the hot end of the colours")
        self._watch(threshold, colours)
        return threshold, colours

    def _window(self, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """Return left, top, width and height of what the picture shows; None for all."""
        if self.zoom.value == 1:
            return None
        sizes = [max(1, round(n / self.zoom.value)) for n in shape[::-1]]
        middle = zip((self.x.value, self.y.value), sizes, shape[::-1], strict=True)
        left, top = (min(max(at - size // 2, 0), whole - size) for at, size, whole in middle)
        return left, top, sizes[0], sizes[1]

    def _small(self, category: str, index: int) -> np.ndarray:
        view = self._views[category]
        return view.scene(index, None, THUMB).overlaid(
            view.calibration.low, view.calibration.high, 0.6, np.zeros(view.split.shape, bool)
        )

    def redraw(self) -> None:
        """Draw the image with its true mask, its score map, and the overlay with what lies above the threshold."""
        category, index = self.picker.chosen
        view, threshold = self._views[category], self.threshold.value
        low, high = self.colours.value
        high = max(high, low + self.colours.step)  # the colours must rise
        self._scene = scene = view.scene(index, self._window(view.split.shape))
        self.labels, self.regions = view.rule(threshold).find(view.heat(index))
        self.anomalous = bool(self.regions)
        name = " ".join(filter(None, (category, self.picker.name)))
        seen = [(i, r) for i, r in enumerate(self.regions[:_LISTED], 1)]
        marks = [(*scene.place(r.x, r.y), str(i)) for i, r in seen if scene.shows(r.x, r.y)]
        over = scene.overlaid(low, high, self.opacity.value, self.labels > 0)
        on = np.bincount(self.labels[scene.mask], minlength=len(self.regions) + 1)[1:]
        says, known = view.verdicts.says(index, threshold), view.known(index)
        rows = [
            (i, r.area, number(r.peak), f"({r.x}, {r.y})", f"{on[i - 1] / r.area:.0%}" if known else "unknown")
            for i, r in seen
        ]
        count = f"{len(self.regions)} region{'s' * (len(self.regions) != 1)} above the threshold"
        demands = view.calibration.rule.demands
        count += f" with {demands}" * bool(demands)
        shown = f", the {_LISTED} with the highest peaks" if len(self.regions) > _LISTED else ""
        self._publish(
            f"{name}: {says}",
            f"{name}, its score map, and the map laid over it, {count} outlined. {says}",
            [
                Panel("image, true mask" if known else "image", scene.photo(self.truth.value)),
                Panel("score map", scene.colours(low, high)),
                Panel("overlay, above the threshold", over, (low, high, threshold), marks),
            ],
            table(count + shown, ("region", "area in px", "peak", "peak at (x, y)", "on the true mask"), rows),
        )
        self._survey(view, threshold)
        self._read()

    def _survey(self, view: View, threshold: float) -> None:
        """Bring what is said and drawn about the whole set up to date."""
        self.overall.value = view.verdicts.summary(threshold)
        alt = f"Histogram of image scores, threshold at {number(threshold)}. {self.overall.value}"
        if alt != self.histogram.tooltip:
            self.histogram.show(encode_png(self._bars.draw(threshold), alt), alt)
        if self.picker.filter.value != "all":
            self.picker.refresh()
        self._listed()

    def _listed(self, _: Any = None) -> None:
        if not self._held:
            verdicts = self._views[self._category].verdicts
            self.sheet.update(verdicts.scores, verdicts.outcomes(self.threshold.value))

    def _to_peak(self, _: Any) -> None:
        category, index = self.picker.chosen
        heat = self._views[category].heat(index)
        y, x = divmod(int(heat.argmax()), heat.shape[1])
        self._point(x, y)

    def _point(self, x: int, y: int) -> None:
        """Point at a pixel, and draw once if at all."""
        self._held += 1
        self.x.value, self.y.value = x, y
        self._held -= 1
        self._pointed()

    def _pointed(self, _: Any = None) -> None:
        if self._held:
            return
        if self.zoom.value > 1:
            self.redraw()
        else:
            self._read()

    def _read(self, place: tuple[int, int] | None = None) -> None:
        """Say the score at a pixel, by default at the point."""
        x, y = place or (self.x.value, self.y.value)
        score, threshold = self.score_at(x, y), self.threshold.value
        known = self._views[self._category].known(self.picker.chosen[1])
        mask = f", {'on' if self._scene.mask[y, x] else 'not on'} the true mask" if known else ""
        above = "above" if score > threshold else "not above"
        self.readout.value = f"x = {x}, y = {y}: score {number(score)}, {above} the threshold{mask}"

    def _hover(self, _: str, right: float, down: float) -> None:
        self._read(self._scene.pixel(right, down))

    def _press(self, _: str, right: float, down: float) -> None:
        self._point(*self._scene.pixel(right, down))

    def _key(self, key: str) -> None:
        """Act on a key that is pressed while the picture has the focus: the canvas keeps all of them from the page."""
        x, y = {"ArrowLeft": (-1, 0), "ArrowRight": (1, 0), "ArrowUp": (0, -1), "ArrowDown": (0, 1)}.get(key, (0, 0))
        if x or y:
            self._point(self.x.value + x, self.y.value + y)
        elif key in "+-":
            self.zoom.value += 1 if key == "+" else -1
        elif key in ("Tab", "Escape"):
            self.to_peak.focus()
