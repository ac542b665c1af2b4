"""Every run has a page: with and without masks, defects or test images at all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.run_report import TILES, write_run_report


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder) -> AnomalyDetector:
    config = Config.preset("tiny", train={"device": "cpu"}).replace(method="density")
    return AnomalyDetector(config).fit(folder, progress=False)


def report(fitted: AnomalyDetector, data: Path, out: Path) -> str:
    parts = AnomalyFolder(data, shape=fitted.shape)
    fitted.save(out)
    result, prediction = fitted.complete_run(out, parts)
    return write_run_report(out, fitted, parts, result, prediction, command="mlffn train <b>").read_text("utf-8")


def test_it_says_what_the_run_decides(fitted: AnomalyDetector, parts: Path, tmp_path: Path) -> None:
    text = report(fitted, parts, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "mlffn train &lt;b&gt;" in text
    assert fitted.calibration is not None
    assert f"threshold {fitted.calibration.threshold:.4g}" in text
    found = metrics["decision"]["detections"]
    assert f"({found['images']} of {found['total']};" in text
    tiles = re.findall(r'data-score="([^"]+)" data-defect="([^"]+)" data-name="([^"]+)" class="(\w*)"', text)
    assert len(tiles) == metrics["images"]
    scores = np.array([float(t[0]) for t in tiles])
    assert (np.diff(scores) <= 0).all()
    assert [t[3] == "nok" for t in tiles] == list(scores > fitted.calibration.threshold)
    assert sum(t[3] == "nok" and t[1] != "good" for t in tiles) == found["images"]
    rows = re.findall(r"<tr>\s*" + r"<td>([^<]*)</td>\s*" * 5 + "</tr>", text)  # image, folder, verdict, score, regions
    assert [row[0] for row in rows] == [t[2] for t in tiles]
    assert [row[2] == "NOK" for row in rows] == [int(row[4]) > 0 for row in rows] == [t[3] == "nok" for t in tiles]
    np.testing.assert_allclose([float(row[3]) for row in rows], scores, rtol=1e-3)
    assert f"average precision {metrics['average_precision']:.3f}" in text


def test_what_is_missing_is_left_out(fitted: AnomalyDetector, parts: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))
    shutil.rmtree(copy / "ground_truth")
    text = report(fitted, copy, tmp_path / "a")
    assert "ROC and precision-recall curves: image AUROC" in text
    assert "and PRO curves" not in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
    shutil.rmtree(copy / "test/good")
    text = report(fitted, copy, tmp_path / "b")
    assert "defects found" in text
    assert "Curves" not in text
    shutil.rmtree(copy / "test")
    text = report(fitted, copy, tmp_path / "c")
    assert "Decision: threshold" in text
    assert "data-score" not in text


def test_a_detector_without_a_threshold_is_measured_all_the_same(
    fitted: AnomalyDetector, folder: AnomalyFolder
) -> None:
    whole = fitted.evaluate(folder)
    calibration, fitted.calibration = fitted.calibration, None
    try:
        assert fitted.evaluate(folder).keys() == whole.keys() - {"decision"}
    finally:
        fitted.calibration = calibration


def test_of_many_images_the_ends_are_shown(
    fitted: AnomalyDetector, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TILES > 100
    monkeypatch.setattr("mlffn_lite.run_report.TILES", 4)
    text = report(fitted, parts, tmp_path)
    count = json.loads((tmp_path / "metrics.json").read_text())["images"]
    assert text.count("data-score=") == 4
    assert f"{count - 4} more images" in text
