"""What is measured on test images beside the three metrics: curves as tables, metrics of each defect, and the files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import metrics
from .datasets.folder import Split
from .storage import METRICS, write_atomic, write_sealed

POINTS = 1000
"""Points of a curve's table, at most about: of more, those that are spread evenly along the curve are kept."""


def by_defect(maps: Tensor, split: Split) -> dict[str, dict[str, float]]:
    """Return pixel AUROC and PRO of every defect that has masks, measured with the good images.

    Parameters
    ----------
    maps : Tensor
        Score maps (M, H, W) of the split's images.
    split : Split
        Test images.
    """
    found: dict[str, dict[str, float]] = {"pixel_auroc_by_defect": {}, "pro_by_defect": {}}
    masks, known, ignored = split.masks(), split.has_mask, split.view.ignored(split.shape)
    for defect in sorted(set(split.defects) - {"good"}):
        chosen = known & torch.tensor([d in (defect, "good") for d in split.defects])
        if (masks[chosen] if ignored is None else masks[chosen] & ~ignored).any():
            for metric in (metrics.pixel_auroc, metrics.pro):
                value = metric(maps[chosen], masks[chosen], ignored=ignored)
                found[f"{metric.__name__}_by_defect"][defect] = value
    return {key: values for key, values in found.items() if values}


def curves(scores: Tensor, maps: Tensor, split: Split) -> dict[str, pd.DataFrame]:
    """Return the curves that the test images allow, by name, with a column per axis.

    ``roc_images``, ``pr_images`` and ``roc_pixels`` need good and defective images, ``roc_pixels`` and ``pro`` masks.
    """
    labels, known = split.labels(), split.has_mask
    found: dict[str, pd.DataFrame] = {}
    if 0 < int(labels.sum()) < len(labels):
        roc, pr = metrics.roc_curve(scores, labels), metrics.precision_recall_curve(scores, labels)
        found["roc_images"] = _table({"false_positive_rate": roc[0], "true_positive_rate": roc[1]})
        found["pr_images"] = _table({"recall": pr[0], "precision": pr[1], "score": pr[2]})
    ignored = split.view.ignored(split.shape)
    seen = torch.ones(split.shape, dtype=torch.bool) if ignored is None else ~ignored
    maps, masks = maps[known], split.masks()[known]
    if masks[:, seen].any() and not masks[:, seen].all():
        roc = metrics.roc_curve(maps[:, seen].flatten(), masks[:, seen].flatten())
        pro = metrics.region_curve(maps, masks, ignored=ignored)
        found["roc_pixels"] = _table({"false_positive_rate": roc[0], "true_positive_rate": roc[1]})
        found["pro"] = _table({"false_positive_rate": pro[0], "overlap": pro[1]})
    return found


def _table(columns: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return a curve's points, thinned along its length, the first and the last among them."""
    values = {name: column.cpu().double().numpy() for name, column in columns.items()}
    x, y = list(values.values())[:2]
    way = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.searchsorted(way, np.linspace(0, way[-1], POINTS + 1)) if len(way) > POINTS else np.arange(len(way))
    return pd.DataFrame(values).iloc[np.unique([0, *kept.clip(max=len(way) - 1), len(way) - 1])]


def defined(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without those that are NaN, at every depth, and without mappings that this leaves empty."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            if kept := defined(value):
                found[key] = kept
        elif not (isinstance(value, float) and math.isnan(value)):
            found[key] = value
    return found


def write_measured(
    folder: Path, result: Mapping[str, Any], scores: Tensor | None = None, maps: Tensor | None = None, split: Any = None
) -> None:
    """Write ``metrics.json``, and the curves of the test images as ``curve_*.csv``; older curves go."""
    for path in folder.glob("curve_*.csv"):
        path.unlink()
    if scores is not None and maps is not None:
        for name, table in curves(scores, maps, split).items():
            write_atomic(folder / f"curve_{name}.csv", table.to_csv(index=False))
    write_sealed(folder / METRICS, result)
