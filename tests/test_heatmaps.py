"""Heatmaps on disk: cold where nothing is wrong, as large as the photo, and all or none of a list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder, read_image
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import DataError, UnreadableError
from mlffn_lite.heatmaps import write_predictions


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder) -> AnomalyDetector:
    config = Config.preset("tiny", train={"device": "cpu"}).replace(method="density")
    return AnomalyDetector(config).fit(folder, progress=False)


def test_good_images_look_cold(fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path) -> None:
    table = write_predictions(fitted, folder.test.paths, tmp_path / "out", progress=False)
    assert list(table.columns) == ["image", "score", "anomalous", "heatmap"]
    changes = []
    for path, name in zip(folder.test.paths, table["heatmap"], strict=True):
        picture = np.asarray(Image.open(tmp_path / "out" / name)).astype(int)
        changes.append(np.abs(picture - read_image(path).permute(1, 2, 0).numpy()).mean())
    good = [c for c, d in zip(changes, folder.test.defects, strict=True) if d == "good"]
    bad = [c for c, d in zip(changes, folder.test.defects, strict=True) if d != "good"]
    assert np.mean(good) < 0.5 * np.mean(bad)


def test_predictions_keep_size_and_names_apart(fitted: AnomalyDetector, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for place in ("a/x.png", "b/x.png", "b/x.jpg", "b/y.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 50, 3), np.uint8)).save(tmp_path / place)
    table = write_predictions(fitted, [tmp_path / "a", tmp_path / "b"], tmp_path / "out", progress=False)
    assert len(set(table["heatmap"])) == len(table) == 4
    assert Image.open(tmp_path / "out" / table["heatmap"][0]).size == (50, 30)


def test_one_bad_image_stops_before_anything_is_written(
    fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    paths = [folder.test.paths[0], bad]
    with pytest.raises(UnreadableError, match=r"1 of 2 .*bad\.png.*; repair or remove them$"):
        write_predictions(fitted, paths, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match=r"bad\.png"):
        table = write_predictions(fitted, paths, tmp_path / "out", skip_bad=True, progress=False)
    assert len(table) == 1
    with pytest.raises(DataError, match="does not exist"):
        write_predictions(fitted, [tmp_path / "none.png"], tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="1 of 1") as caught:
        write_predictions(fitted, [bad], tmp_path / "out", skip_bad=True, progress=False)
    assert not isinstance(caught.value, UnreadableError)  # to leave it out would leave nothing
