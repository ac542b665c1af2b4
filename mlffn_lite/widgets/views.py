"""What explorers look at: a split with its score maps, and what a threshold makes of all of its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .. import escaped
from ..datasets.folder import Split
from ..decision import Rule, share
from ..detector import AnomalyDetector, Calibration, Prediction, fitted
from ..heatmaps import NOK, OK
from ..storage import write_atomic
from .panels import Scene, number, word

Source = AnomalyDetector | Prediction

RIGHT, MISS, ALARM, BESIDE = "right", "a miss", "a false alarm", "right, but not where the defect is"
COLUMNS = ("category", "image", "defect", "verdict", "score", "threshold", "outcome", "peak_x", "peak_y")
"""Of the table of verdicts; ``verdict`` is OK or NOK, as ``mlffn predict`` writes it."""


class View:
    """A split with its prediction, and with colours and threshold to show it.

    Parameters
    ----------
    source : AnomalyDetector or Prediction
    split : Split
    calibration : Calibration, optional
        By default the detector's, or what the good images of the split give.
    labelled : bool
        Whether it is known which images are good.
    """

    def __init__(
        self, source: Source, split: Split, calibration: Calibration | None = None, *, labelled: bool = True
    ) -> None:
        if not len(split):
            raise ValueError("the split holds no image")
        self.detector = source if isinstance(source, AnomalyDetector) else None
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
        self.split, self.prediction, self.labelled = split, found, labelled
        self.calibration = calibration or Calibration.from_good(Prediction(found.maps[good], found.scores[good]))
        self.scene = lru_cache(8)(self._scene)
        self.verdicts = Verdicts(split, found, labelled=labelled, rule=self.calibration.rule)

    def rule(self, threshold: float) -> Rule:
        """Return when an image is called anomalous at another threshold than the calibrated one."""
        return dataclasses.replace(self.calibration.rule, threshold=threshold)

    def known(self, index: int) -> bool:
        """Say whether it is known where this image is defective."""
        return self.labelled and bool(self.split.has_mask[index])

    def heat(self, index: int) -> np.ndarray:
        """Return the score map of an image."""
        return self.prediction.maps[index].numpy()

    def score(self, index: int) -> float:
        """Return the score of an image."""
        return float(self.prediction.scores[index])

    def _scene(self, index: int, window: tuple[int, int, int, int] | None = None, side: int = 256) -> Scene:
        image, mask = self.split.batch([index])
        return Scene(image[0].numpy(), mask[0].numpy(), self.heat(index), window=window, side=side)


class Verdicts:
    """What a threshold makes of a set of images.

    Parameters
    ----------
    split : Split
        The images, (M,), with their truth.
    prediction : Prediction
        Their maps and scores.
    labelled : bool
        Whether it is known which images are good.
    rule : Rule, optional
        What a region must have to count; by default each counts. Its threshold does not enter.

    Attributes
    ----------
    scores : ndarray
        (M,), float64.
    truth : ndarray
        (M,) bool, true where anomalous; all False where nothing is known.
    limits : ndarray
        (M,), the threshold below which an image is called anomalous: its score, unless regions must be large or strong.
    on_mask : ndarray
        (M,), the threshold below which it is for a region on the true mask; infinite where there is no mask to compare.
    """

    def __init__(
        self, split: Split, prediction: Prediction, *, labelled: bool = True, rule: Rule | None = None
    ) -> None:
        self.labelled, self._split, self._maps = labelled, split, prediction.maps
        rule = rule or Rule(0.0)
        self._demands = rule.demands
        self.scores = prediction.scores.numpy().astype(np.float64)
        heats = prediction.maps.numpy()
        self.limits = np.array([rule.limit(heat) for heat in heats]) if rule.demands else self.scores
        self.truth = split.labels().bool().numpy() & labelled
        self.on_mask = np.full(len(split), np.inf)
        for i in np.flatnonzero(self.truth & split.has_mask.numpy()):
            mask = split.batch([int(i)])[1][0]
            if mask.any():
                self.on_mask[i] = rule.limit(heats[i], mask.numpy())

    def called(self, threshold: float) -> np.ndarray:
        """Return which images are called anomalous, (M,) bool."""
        return self.limits > threshold

    def misses(self, threshold: float) -> np.ndarray:
        """Return which anomalous images are called good, (M,) bool."""
        return self.truth & ~self.called(threshold)

    def false_alarms(self, threshold: float) -> np.ndarray:
        """Return which good images are called anomalous, (M,) bool."""
        return self.called(threshold) & ~self.truth & self.labelled

    def beside(self, threshold: float) -> np.ndarray:
        """Return which images are called anomalous although no region that counts lies on their true mask."""
        return self.truth & self.called(threshold) & (self.on_mask <= threshold)

    def outcomes(self, threshold: float) -> list[str]:
        """Return the verdict on every image beside the truth, in words; empty where the truth is not known."""
        found = np.full(len(self.scores), RIGHT if self.labelled else "", dtype=object)
        for name, part in (
            (MISS, self.misses(threshold)),
            (ALARM, self.false_alarms(threshold)),
            (BESIDE, self.beside(threshold)),
        ):
            found[part] = name
        return found.tolist()

    def summary(self, threshold: float) -> str:
        """Return misses and false alarms of the whole set in a sentence."""
        total, demands = len(self.scores), f" Regions need {self._demands}." * bool(self._demands)
        if not self.labelled:
            called = int(self.called(threshold).sum())
            return f"{total} images: {called} anomalous, {total - called} good; the truth is not known.{demands}"
        counts = (int(x.sum()) for x in (self.misses(threshold), self.false_alarms(threshold), self.beside(threshold)))
        return _sentence(*counts, int(self.truth.sum()), total) + demands

    def says(self, index: int, threshold: float) -> str:
        """Compare an image's score with a threshold, and the verdict with the truth, in a sentence or two."""
        score, called = float(self.scores[index]), bool(self.limits[index] > threshold)
        compared = f"image score {number(score)} {'>' if score > threshold else '≤'} threshold {number(threshold)}"
        compared += f", but no region with {self._demands}" * (score > threshold and not called)
        if not self.labelled:
            return f"{compared}: {word(called)}. The truth is not known."
        truth = f"Truth: {word(self.truth[index])}; {self.outcomes(threshold)[index]}."
        return f"{compared}: {word(called)}. {truth}"

    def rows(self, threshold: float, category: str = "") -> list[tuple[object, ...]]:
        """Return a line of :data:`COLUMNS` for every image."""
        peaks = self._maps.flatten(1).argmax(1)
        width = self._maps.shape[2]
        rows: list[tuple[object, ...]] = []
        for i, (outcome, called) in enumerate(zip(self.outcomes(threshold), self.called(threshold), strict=True)):
            score, (y, x) = float(self.scores[i]), divmod(int(peaks[i]), width)
            entry = self._split.entries[i]
            defect, verdict = entry.defect if self.labelled else "", NOK if called else OK
            rows.append((category, escaped.name(entry.path), defect, verdict, score, threshold, outcome, x, y))
        return rows


@lru_cache(256)
def _sentence(misses: int, alarms: int, beside: int, anomalous: int, total: int) -> str:
    said = [f"misses {share(misses, anomalous)}"] * bool(anomalous)
    said += [f"false alarms {share(alarms, total - anomalous)}"] * bool(total - anomalous)
    said += [f"{beside} found, but not where the defect is"] * bool(beside)
    return f"{total} images: {', '.join(said)}."


def write_verdicts(path: str | Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write lines of :data:`COLUMNS` as CSV, whole or not at all; returns the path.

    Texts that a spreadsheet would take for a formula begin with an apostrophe, see :mod:`~mlffn_lite.escaped`.
    """
    write_atomic(Path(path), escaped.cells(pd.DataFrame(rows, columns=list(COLUMNS))).to_csv(index=False))
    return Path(path)


def unit(view: View, scores: np.ndarray) -> np.ndarray:
    """Return scores in units that runs share: 0 is a run's typical good pixel, 1 its calibrated threshold."""
    typical = view.calibration.low
    return (scores - typical) / max(view.calibration.threshold - typical, torch.finfo(torch.float32).tiny)
