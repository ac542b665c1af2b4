"""Curves as tables and metrics of each defect agree with the metrics; what is not defined is not there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mlffn_lite import metrics
from mlffn_lite.datasets.folder import AnomalyFolder, Split
from mlffn_lite.evaluation import POINTS, by_defect, curves, defined, write_measured


@pytest.fixture
def split(folder: AnomalyFolder) -> Split:
    return folder.test


def noisy(split: Split) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(split.masks().shape, generator=generator) + 0.7 * split.masks()


def test_areas_under_the_tables_are_the_metrics(split: Split) -> None:
    maps = noisy(split)
    scores = torch.rand(len(split), generator=torch.Generator().manual_seed(1)) + 0.3 * split.labels()
    found = curves(scores, maps, split)
    roc, pr, pixels, pro = (found[name].to_numpy() for name in ("roc_images", "pr_images", "roc_pixels", "pro"))
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(metrics.image_auroc(scores, split.labels()))
    assert np.trapezoid(pixels[:, 1], pixels[:, 0]) == pytest.approx(metrics.pixel_auroc(maps, split.masks()), abs=1e-3)
    steps = np.diff(pr[:, 0], prepend=0) * pr[:, 1]
    assert steps.sum() == pytest.approx(metrics.average_precision(scores, split.labels()))
    assert ((scores.numpy() >= pr[-1, 2]).sum(), len(pr)) == (len(split), len(split))
    low = pro[pro[:, 0] <= 0.3]
    assert np.trapezoid(low[:, 1], low[:, 0]) / 0.3 == pytest.approx(metrics.pro(maps, split.masks()), abs=5e-3)
    assert 100 < len(pixels) <= POINTS + 2
    for table in (roc, pixels, pro):
        assert (np.diff(table, axis=0) >= 0).all()
        assert table[0].tolist() == [0, 0]
        assert table[-1].tolist() == [1, 1]


def test_each_defect_is_measured_with_the_good(split: Split) -> None:
    maps = noisy(split)
    found = by_defect(maps, split)
    assert found["pro_by_defect"]["scratch"] == metrics.pro(maps, split.masks())
    assert found["pixel_auroc_by_defect"]["scratch"] == metrics.pixel_auroc(maps, split.masks())
    good = split.subset(range(4))
    assert by_defect(maps[:4], good) == {}
    assert curves(torch.rand(4), maps[:4], good) == {}


def test_what_is_not_defined_is_left_out(split: Split, tmp_path: Path) -> None:
    assert defined({"a": math.nan, "b": {"c": math.nan}, "d": {"e": math.nan, "f": 0.0}, "g": [1], "h": None}) == {
        "d": {"f": 0.0},
        "g": [1],
        "h": None,
    }
    (tmp_path / "curve_old.csv").write_text("old")
    write_measured(tmp_path, {"pro": 0.5}, torch.rand(len(split)), noisy(split), split)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"metrics.json", *(f"curve_{n}.csv" for n in ("roc_images", "pr_images", "roc_pixels", "pro"))}
    assert list(pd.read_csv(tmp_path / "curve_pr_images.csv")) == ["recall", "precision", "score"]
    write_measured(tmp_path, {})
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.json"}
