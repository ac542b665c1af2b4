"""What is not known to be good is never called good."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector, Calibration
from mlffn_lite.errors import CheckpointError, TrainingError
from mlffn_lite.heatmaps import ERROR, write_predictions

from .conftest import CONFIG


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_an_error(
    bad: float, run: Path, folder: AnomalyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = AnomalyDetector.load(run)
    score = detector._score

    def spoiled(images: torch.Tensor) -> torch.Tensor:
        maps = score(images).clone()
        maps[:, 3, 4] = bad
        return maps

    monkeypatch.setattr(detector, "_score", spoiled)
    table = write_predictions(detector, folder.test.paths[:3], tmp_path, progress=False)
    assert set(table["verdict"]) == {ERROR}
    assert set(pd.read_csv(tmp_path / "scores.csv")["verdict"]) == {ERROR}
    with pytest.raises(TrainingError, match="not finite"):
        detector.evaluate(folder)


@pytest.mark.parametrize("field", ["low", "high", "threshold", "min_peak"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_threshold_and_no_colour_is_infinite(field: str, bad: float) -> None:
    good = {"low": 0.0, "high": 1.0, "threshold": 0.5, "min_peak": 0.1}
    Calibration(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        Calibration(**{**good, field: bad})  # type: ignore[arg-type]


def test_few_or_constant_images_are_told_at_every_use(folder: AnomalyFolder, tmp_path: Path) -> None:
    few = [sample.image for sample in folder.train][:3]
    same = [torch.full((3, 64, 64), 128, dtype=torch.uint8)] * 12
    for images, reason in ((few, "3 good images, fewer than 10"), (same, "constant images")):
        with pytest.warns(UserWarning, match=reason):
            AnomalyDetector(CONFIG).fit(images, out=tmp_path / reason[:2], progress=False)
        with pytest.warns(UserWarning, match=reason):
            detector = AnomalyDetector.load(tmp_path / reason[:2])
        assert detector.calibration is not None
        assert reason in detector.calibration.describe()


def test_a_detector_that_scores_nothing_finite_is_not_loaded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(AnomalyDetector.load(run))
    monkeypatch.setattr(kind, "_score", lambda self, images: images[:, 0] * math.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        AnomalyDetector.load(run)
