"""Metrics of §3.2: image AUROC, pixel AUROC and PRO, exact for any scores, on the tensors' own device.

A score is only ever compared with other scores: there are no bins or threshold grids, equal scores form one point of a
curve, and a monotone transform of the scores changes nothing. Half-precision scores are widened to float32, which keeps
their order and their ties. MPS has no float64, so its tensors are moved to the CPU, where the curves then lie.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

__all__ = [
    "average_precision",
    "best_threshold",
    "image_auroc",
    "label_regions",
    "pixel_auroc",
    "precision_recall_curve",
    "pro",
    "region_curve",
    "roc_curve",
]

_CHUNK = 1 << 22  # pixels handled at once: bounds the temporary memory
# 8-connected inside an image and never across two images of the batch.
_STRUCTURE = np.zeros((3, 3, 3), dtype=bool)
_STRUCTURE[1] = True


def image_auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of image scores: the chance that an anomalous image outscores a normal one.

    Equal scores count one half (Mann-Whitney with mid-ranks), so a constant score gives 0.5.

    Parameters
    ----------
    scores : Tensor, shape (M,)
        Floating point; larger is more anomalous. ±inf is allowed.
    labels : Tensor, shape (M,)
        Bool or integer; non-zero is anomalous.

    Returns
    -------
    float
        0 to 1; NaN with a ``UserWarning`` if only one class is present.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, or a score is NaN.
    """
    return _auroc(*_prepare(scores, labels, "image AUROC"))


def pixel_auroc(maps: Tensor, masks: Tensor, *, ignored: Tensor | None = None) -> float:
    """Area under the ROC curve over all pixels of ``maps`` and ``masks``, both (M, H, W).

    Pixels of ``ignored``, (H, W) bool, take part in no image. Dtypes, result and errors are those of
    :func:`image_auroc`; memory is that of :func:`pro`.
    """
    return _auroc(*_prepare(maps, masks, "pixel AUROC", pixels=True, ignored=ignored))


def pro(maps: Tensor, masks: Tensor, *, limit: float = 0.3, ignored: Tensor | None = None) -> float:
    """Per-region overlap: area under the PRO curve up to a false-positive rate, divided by that rate.

    A region is an 8-connected defect of one image. The curve plots the covered fraction, averaged over the regions of
    all images without weights, against the share of defect-free pixels (those of good images included) at or above the
    threshold: one point per distinct score, straight lines between points, also at ``limit``. A perfect map gives 1, an
    inverted one 0 and a constant one ``limit / 2``, not 0.5.

    Memory beside the inputs, on the CPU: at most 9 bytes per pixel (17 for float64), usually about 6, another 24 per
    defective pixel, and 0.3 GB to work in; an image of more than 4 million pixels needs more of the last.

    Parameters
    ----------
    maps, masks : Tensor, shape (M, H, W)
        Score maps and ground truth (non-zero is defective); dtypes as in :func:`image_auroc`.
    limit : float
        Largest false-positive rate, in (0, 1].
    ignored : Tensor, shape (H, W), optional
        Bool; such pixels are neither ground nor defect in any image: what they leave of a region is the region.

    Returns
    -------
    float
        0 to 1; NaN with a ``UserWarning`` if there is no region or no defect-free pixel.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, a score is NaN, or ``limit`` is outside (0, 1].

    Notes
    -----
    Let a and b be the shares of normal pixels above, and at or above, the score of a defective pixel. As the threshold
    falls past that score, the pixel lifts the curve in a straight line from FPR a to FPR b. The area under this ramp up
    to ``limit`` has a closed form; PRO is the mean of these areas, weighted by one over the size of the pixel's region.
    """
    defect, normal = _prepare(maps, masks, "PRO", pixels=True, limit=limit, ignored=ignored)
    if not (len(defect) and len(normal)):
        return math.nan
    count = len(normal)
    normal = _sorted(_largest(normal, limit))
    weights = region_weights(_without(masks, ignored)).to(normal.device)
    area = total = 0.0
    for scores, weight in zip(defect.split(_CHUNK), weights.split(_CHUNK), strict=True):
        start, end = (hits.double() / count for hits in _false_positives(scores, normal))
        low, high = start.clamp(max=limit), end.clamp(max=limit)
        ramp = (high - low).square() / (2 * (end - start).clamp(min=0.5 / count))  # without ties 0 / 0 becomes 0
        area += float((weight * ((limit - high + ramp) / limit)).sum())
        total += float(weight.sum())
    return area / total


def region_curve(
    maps: Tensor, masks: Tensor, *, limit: float = 1.0, ignored: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """PRO curve for plots, one point per distinct score; arguments and errors are those of :func:`pro`.

    Returns FPR and overlap, float64 (P,), rising from (0, 0) to (1, 1), or to a last point interpolated at ``limit``.
    The area divided by ``limit`` is PRO. One NaN each where :func:`pro` is NaN.
    """
    defect, normal = _prepare(maps, masks, "the PRO curve", pixels=True, limit=limit, ignored=ignored)
    return _curve(defect, region_weights(_without(masks, ignored)).to(normal.device), normal, limit)


def roc_curve(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """ROC curve for plots, one point per distinct score; arguments and errors are those of :func:`image_auroc`.

    Returns FPR and TPR, float64 (P,), rising from (0, 0) to (1, 1); one NaN each where :func:`image_auroc` is NaN. For
    pixels pass ``maps.flatten(), masks.flatten()``.
    """
    positive, negative = _prepare(scores, labels, "the ROC curve")
    return _curve(positive, torch.ones_like(positive, dtype=torch.int64), negative)


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Area under the precision-recall curve as a sum of steps: Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores, descending.

    Unlike the AUROC it depends on how many images are anomalous; by chance it is their share. NaN with a
    ``UserWarning`` if none is. Arguments and errors are those of :func:`image_auroc`; for pixels pass
    ``maps.flatten(), masks.flatten()``.
    """
    positive, negative = _prepare(scores, labels, "average precision", normals=False)
    if not len(positive):
        return math.nan
    _, false, true = _accumulate(positive, torch.ones_like(positive, dtype=torch.int64), negative)
    true, false = true.double(), false.double()
    gained = true.diff(prepend=true.new_zeros(1)) / len(positive)
    return float((gained * true / (true + false)).sum())


def precision_recall_curve(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision-recall curve for plots, one point per distinct score; arguments and errors as :func:`image_auroc`.

    Returns recall, precision and the score at or above which an image is called anomalous, float64 (P,), recall rising;
    one NaN each, with a ``UserWarning``, if nothing is anomalous. Its area, in steps, is :func:`average_precision`.
    """
    positive, negative = _prepare(scores, labels, "the precision-recall curve", normals=False)
    if not len(positive):
        nothing = torch.full((1,), math.nan, dtype=torch.float64)
        return nothing, nothing, nothing
    score, false, true = _accumulate(positive, torch.ones_like(positive, dtype=torch.int64), negative)
    true = true.double()
    return true / len(positive), true / (true + false), score.double()


def best_threshold(scores: Tensor, labels: Tensor) -> float:
    """Threshold with the largest F1 when ``scores >= threshold`` means anomalous.

    Returns one of the scores: of several with the same F1 the highest, which raises the fewest alarms; NaN with a
    ``UserWarning`` if nothing is anomalous. Arguments and errors are those of :func:`image_auroc`; for pixels pass
    ``maps.flatten(), masks.flatten()``.
    """
    positive, negative = _prepare(scores, labels, "the best threshold", normals=False)
    if not len(positive):
        return math.nan
    score, false, true = _accumulate(positive, torch.ones_like(positive, dtype=torch.int64), negative)
    f1 = 2 * true.double() / (true + false + len(positive))  # 2 TP / ((TP + FP) + (TP + FN))
    return float(score[(f1 == f1.max()).nonzero()[0]])


def label_regions(masks: Tensor) -> Tensor:
    """Number the 8-connected regions of masks (M, H, W), bool or integer, non-zero being defective.

    Returns int32 (M, H, W) on the masks' device: 0 is background, 1 … R are the regions, image after image; no region
    spans two images. Raises ``ValueError`` if the shape or dtype does not fit.
    """
    _check(masks, "masks", 3, floating=False)
    labels = ndimage.label((masks != 0).cpu().numpy(), _STRUCTURE)[0]
    return torch.from_numpy(labels).to(masks.device, torch.int32)


def _check(values: Tensor, name: str, ndim: int, *, floating: bool) -> None:
    if values.ndim != ndim:
        raise ValueError(f"{name} must have shape {'(M, H, W)' if ndim == 3 else '(M,)'}, got {tuple(values.shape)}")
    if values.is_complex() or values.is_floating_point() != floating:
        wanted = "a floating-point dtype" if floating else "dtype bool or integer"
        raise ValueError(f"{name} must have {wanted}, got {values.dtype}")


def _prepare(
    scores: Tensor,
    labels: Tensor,
    what: str,
    *,
    pixels: bool = False,
    normals: bool = True,
    limit: float = 1.0,
    ignored: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Check the arguments of a public function; its anomalous and normal scores; warn where a class is missing."""
    if not 0 < limit <= 1:
        raise ValueError(f"limit must be a false-positive rate in (0, 1], got {limit}")
    name, other, ndim = ("maps", "masks", 3) if pixels else ("scores", "labels", 1)
    _check(scores, name, ndim, floating=True)
    _check(labels, other, ndim, floating=False)
    if scores.shape != labels.shape:
        raise ValueError(f"{name} and {other} differ in shape: {tuple(scores.shape)} and {tuple(labels.shape)}")
    if ignored is not None and (ignored.shape != labels.shape[1:] or ignored.dtype != torch.bool):
        raise ValueError(f"ignored must be bool {tuple(labels.shape[1:])}, got {ignored.dtype} {tuple(ignored.shape)}")
    values = (scores.cpu() if scores.device.type == "mps" else scores).detach()
    positive, negative, nans = _separate(values, labels, ignored)
    if nans:
        raise ValueError(f"{name} hold {nans} NaN among {scores.numel()} values; a rank metric needs every score")
    if not len(positive) or (normals and not len(negative)):
        absent = ("normal " if len(positive) else "defective ") + ("pixel" if pixels else "image")
        warnings.warn(f"{what} is undefined without any {absent}: returning NaN", UserWarning, stacklevel=3)
    return positive, negative


def _chunks(values: Tensor) -> tuple[Tensor, ...]:
    """Parts of whole images."""
    return values.split(max(1, _CHUNK // max(1, math.prod(values.shape[1:]))))


def _without(masks: Tensor, ignored: Tensor | None) -> Tensor:
    """Masks in which nothing ignored is defective."""
    return masks if ignored is None else (masks != 0) & ~ignored.to(masks.device)


def _separate(scores: Tensor, labels: Tensor, ignored: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
    """Flat private copies of the anomalous and the normal scores, in order, at least float32; the number of NaN."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    negative = torch.empty(scores.numel(), dtype=dtype, device=scores.device)
    positive, filled, nans = [], 0, 0
    for values, marks in zip(_chunks(scores), _chunks(labels), strict=True):
        values, mask = values.to(dtype), marks.to(scores.device) != 0
        nans += int(values.isnan().sum())
        unseen = None if ignored is None else ignored.to(scores.device)
        positive.append(_select(values, mask if unseen is None else mask & ~unseen))
        normal = _select(values, ~mask if unseen is None else ~(mask | unseen))
        negative[filled : filled + len(normal)] = normal
        filled += len(normal)
    return torch.cat(positive), negative[:filled], nans


def _select(values: Tensor, mask: Tensor) -> Tensor:
    # NumPy selects about ten times faster than torch on the CPU and needs no int64 index per pixel.
    return torch.from_numpy(values.numpy()[mask.numpy()]) if values.device.type == "cpu" else values[mask]


def region_weights(masks: Tensor) -> Tensor:
    """One over the size of its region for every defective pixel, in order; float64 on the CPU."""
    weights = []
    for chunk in _chunks(masks):
        mask = (chunk != 0).cpu().numpy()
        mask = mask[mask.any((1, 2))]
        region = ndimage.label(mask, _STRUCTURE)[0][mask]
        weights.append(1.0 / np.bincount(region)[region])
    return torch.from_numpy(np.concatenate(weights))


def _largest(values: Tensor, share: float) -> Tensor:
    """The largest values, a little over ``share`` of them, with all ties of the least; reorders its input."""
    drop = len(values) - math.floor(share * len(values)) - 2  # one more to interpolate to, one for rounding
    if drop <= 0 or values.device.type != "cpu":  # elsewhere a full sort is cheap
        return values
    array = values.numpy()
    array.partition(drop)
    return torch.from_numpy(array[array >= array[drop]])


def _sorted(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.sort().values
    values.numpy().sort()  # in place: about three times as fast as torch, which also builds an index
    return values


def _false_positives(scores: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """For each score, how many of the sorted normal scores are above it, and how many at or above it; int64."""
    above = len(normal) - torch.searchsorted(normal, scores, side="right")
    return above, len(normal) - torch.searchsorted(normal, scores, side="left")


def _auroc(positive: Tensor, negative: Tensor) -> float:
    if not (len(positive) and len(negative)):
        return math.nan
    negative, twice_lost = _sorted(negative), 0
    for part in _sorted(positive).split(_CHUNK):
        twice_lost += sum(int(hits.sum()) for hits in _false_positives(part, negative))
    twice_pairs = 2 * len(positive) * len(negative)
    return (twice_pairs - twice_lost) / twice_pairs  # Python integers: exact up to the division


def _accumulate(positive: Tensor, weights: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores, falling, with the number of negatives and the weight of positives at or above each."""
    score, order = torch.cat([positive, negative]).sort(descending=True)
    is_positive = order < len(positive)
    gain = torch.zeros_like(order, dtype=weights.dtype)
    gain[is_positive] = weights[order[is_positive]]
    last = torch.ones_like(is_positive)  # last of its tie group
    last[:-1] = score[1:] != score[:-1]
    return score[last], (~is_positive).cumsum(0)[last], gain.cumsum(0)[last]


def _curve(positive: Tensor, weights: Tensor, negative: Tensor, limit: float = 1.0) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(1, dtype=torch.float64, device=negative.device)
    if not (len(positive) and len(negative)):
        return zero + math.nan, zero + math.nan
    count, total = len(negative), weights.sum()
    negative = _largest(negative, limit)
    if len(negative) < count:
        within = positive >= negative.min()
        positive, weights = positive[within], weights[within]
    _, false, true = _accumulate(positive, weights, negative)
    fpr, rate = torch.cat([zero, false.double() / count]), torch.cat([zero, (true.double() / total).clamp(max=1)])
    end = int((fpr <= limit).sum())
    if end == len(fpr) or fpr[end - 1] == limit:
        return fpr[:end], rate[:end]
    rate[end] = torch.lerp(rate[end - 1], rate[end], (limit - fpr[end - 1]) / (fpr[end] - fpr[end - 1]))
    fpr[end] = limit
    return fpr[: end + 1], rate[: end + 1]
