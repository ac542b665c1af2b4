"""From scores to a decision: a threshold that keeps a promise, regions of a map, rates with their intervals."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, stats

LEVEL = 0.95
"""Of all intervals here."""


class Region(NamedTuple):
    """A connected part of a score map above the threshold.

    Attributes
    ----------
    area : int
        Pixels.
    peak : float
        Highest score, at column ``x`` and row ``y``.
    left, top, width, height : int
        The smallest upright box around it.
    """

    area: int
    peak: float
    x: int
    y: int
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Rule:
    """When an image is called anomalous: it has a region above the threshold that is large and strong enough.

    Attributes
    ----------
    threshold : float
        Pixels with a greater score belong to regions.
    min_area : int
        Pixels of the map that a region must have.
    min_peak : float
        Score that a region must reach somewhere.
    """

    threshold: float
    min_area: int = 0
    min_peak: float = -math.inf

    @property
    def demands(self) -> str:
        """What a region above the threshold must have to count, in words; empty where each counts."""
        least = [f"at least {self.min_area} px"] * bool(self.min_area)
        least += [f"a peak of at least {self.min_peak:.4g}"] * math.isfinite(self.min_peak)
        return " and ".join(least)

    def regions(self, score_map: Any) -> list[Region]:
        """Return the regions of a map (H, W) that count, the highest peak first; the image is anomalous if any does."""
        return [r for r in find_regions(score_map, self.threshold)[1] if self._counts(r)]

    def find(self, score_map: Any) -> tuple[np.ndarray, list[Region]]:
        """Return labels and regions as :func:`find_regions` does, of the regions that count."""
        labels, regions = find_regions(score_map, self.threshold)
        counts = [self._counts(r) for r in regions]
        numbers = np.array([0, *(np.cumsum(counts, dtype=int) * counts)])
        return numbers[labels], list(compress(regions, counts))

    def mask(self, score_map: Any) -> np.ndarray:
        """Return the pixels of the regions of a map (H, W) that count, (H, W) bool."""
        return self.find(score_map)[0] > 0

    def limit(self, score_map: Any, on: np.ndarray | None = None) -> float:
        """Return the score below which every threshold, with these demands, makes an image anomalous, and none else.

        As a threshold falls, regions grow and join, so there is one such score; without demands it is the map's
        maximum. This rule's own threshold does not enter.

        Parameters
        ----------
        score_map : array
            (H, W), finite.
        on : ndarray, optional
            (H, W) bool: only regions that touch it are looked at.

        Returns
        -------
        float
            −∞ where no threshold does.
        """
        heat = np.asarray(score_map, dtype=np.float64)
        where = np.ones(heat.shape, bool) if on is None else on
        if not where.any() or heat.max() < self.min_peak or heat.size < self.min_area:
            return -math.inf
        if self.min_area < 2 and (on is None or self.min_peak == -math.inf):
            return float(heat[where].max())
        levels = np.unique(heat)[::-1]

        def found(i: int) -> bool:
            labels, _ = replace(self, threshold=np.nextafter(levels[i], -np.inf)).find(heat)
            return bool(labels[where].any())

        return float(levels[bisect.bisect_left(range(len(levels)), True, key=found)])

    def _counts(self, region: Region) -> bool:
        return region.area >= self.min_area and region.peak >= self.min_peak


def find_regions(score_map: Any, threshold: float) -> tuple[np.ndarray, list[Region]]:
    """Find the 8-connected regions of a score map that lie above a threshold.

    Parameters
    ----------
    score_map : array
        (H, W), finite.
    threshold : float
        A pixel belongs to a region if its score is greater.

    Returns
    -------
    labels : ndarray
        (H, W) int: 0 outside, 1 … R in the regions, in the order of the list.
    regions : list of Region
        The highest peak first.
    """
    heat = np.asarray(score_map, dtype=np.float64)
    if heat.ndim != 2 or not np.isfinite(heat).all() or math.isnan(threshold):
        raise ValueError(f"need a finite score map (H, W) and a threshold, got shape {heat.shape} and {threshold}")
    above = heat > threshold
    if not above.any():  # most images, on a line that works
        return np.zeros(heat.shape, int), []
    labels, count = ndimage.label(above, np.ones((3, 3)))
    regions = [_region(heat, labels, i, box) for i, box in enumerate(ndimage.find_objects(labels), 1)]
    order = sorted(range(count), key=lambda i: -regions[i].peak)
    rank = np.zeros(count + 1, int)
    rank[[i + 1 for i in order]] = np.arange(1, count + 1)
    return rank[labels], [regions[i] for i in order]


def _region(heat: np.ndarray, labels: np.ndarray, number: int, box: tuple[slice, slice]) -> Region:
    """Return what a label marks; of equal peaks the first, row by row."""
    inside, (rows, columns) = labels[box] == number, box
    scores = np.where(inside, heat[box], -np.inf)
    y, x = np.unravel_index(scores.argmax(), scores.shape)
    return Region(
        *(int(inside.sum()), float(scores[y, x]), columns.start + int(x), rows.start + int(y)),
        *(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
    )


def promised_threshold(scores: Any, rate: float) -> tuple[float, float]:
    """Return the lowest threshold that new good images pass with a probability of at most ``rate``, and that promise.

    It is one of the scores of n good images that the detector has not learned from: the k-th smallest, with
    k = ⌈(n + 1)(1 − rate)⌉. A new one from the same source exceeds it with probability (n + 1 − k)/(n + 1) at most,
    whatever the distribution (split conformal prediction, Vovk et al., 2005). Fewer than 1/rate − 1 images cannot
    promise that: then it is their largest score, and the promise 1/(n + 1).

    Parameters
    ----------
    scores : array
        (n,), n ≥ 1, finite.
    rate : float
        0 < rate < 1.

    Returns
    -------
    threshold, promise : float
        An image with a greater score is called anomalous.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not len(ordered) or not np.isfinite(ordered).all() or not 0 < rate < 1:
        raise ValueError(f"need finite scores of good images and a rate between 0 and 1, got {len(ordered)} and {rate}")
    n = len(ordered)
    k = min(n, math.ceil((n + 1) * (1 - rate) - 1e-9))
    return float(ordered[k - 1]), (n + 1 - k) / (n + 1)


def promise_of(scores: Any, threshold: float) -> float:
    """Return the probability, at most, that a new good image exceeds a threshold that does not depend on its score.

    Of n scores of good images that the detector has not learned from, those above and one more, over n + 1.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    return (int((values > threshold).sum()) + 1) / (len(values) + 1)


class Share(NamedTuple):
    """A share of images, with the Wilson interval of the rate behind it (95 %); all NaN where there is none."""

    images: int
    total: int
    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        if not self.total:
            return "–"
        between = f"95 % {100 * self.low:.1f} to {100 * self.high:.1f}"
        return f"{100 * self.rate:.1f} % ({self.images} of {self.total}; {between})"


def share(count: int, total: int) -> Share:
    """Return ``count`` of ``total`` as a share, with Wilson's interval, which holds for few images and rates near 0."""
    if not total:
        return Share(0, 0, math.nan, math.nan, math.nan)
    bounds = stats.binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return Share(count, total, count / total, float(bounds.low), float(bounds.high))


def decision_rates(anomalous: Any, labels: Any) -> dict[str, Any]:
    """Return how often verdicts are right: ``false_alarms`` among good images, ``detections`` among others, ``f1``.

    Parameters
    ----------
    anomalous, labels : array
        (M,) bool: called anomalous, and anomalous.
    """
    called, truth = np.asarray(anomalous, dtype=bool), np.asarray(labels, dtype=bool)
    hits, alarms, wanted = int((called & truth).sum()), int((called & ~truth).sum()), int(truth.sum())
    return {
        "false_alarms": share(alarms, len(truth) - wanted),
        "detections": share(hits, wanted),
        "f1": 2 * hits / (2 * hits + alarms + wanted - hits) if wanted else math.nan,
    }
