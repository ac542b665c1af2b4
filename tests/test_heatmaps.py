"""Heatmaps on disk: cold where nothing is wrong, as large as the photo, and all or none of a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder, read_image
from mlffn_lite.decision import find_regions
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import DataError
from mlffn_lite.heatmaps import REGION_COLUMNS, SCORE_COLUMNS, Outputs, not_judged, write_predictions


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder) -> AnomalyDetector:
    config = Config.preset("tiny", train={"device": "cpu"}).replace(method="density")
    return AnomalyDetector(config).fit(folder, progress=False)


def test_good_images_look_cold(fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path) -> None:
    table = write_predictions(fitted, folder.test.paths, tmp_path / "out", outputs=Outputs("png"), progress=False)
    assert list(table.columns) == list(SCORE_COLUMNS)
    changes = []
    for path, name in zip(folder.test.paths, table["picture"], strict=True):
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
    assert len(set(table["picture"])) == len(table) == 4
    assert Image.open(tmp_path / "out" / table["picture"][0]).size == (50, 30)


def test_a_bad_image_is_never_lost_and_loses_no_other(
    fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    table = write_predictions(fitted, [bad, *folder.test.paths[:3]], tmp_path / "out", progress=False)
    assert list(table["verdict"]) == ["ERROR", *table["verdict"][1:]]
    assert set(table["verdict"][1:]) <= {"OK", "NOK"}
    assert "bad.png" in not_judged(table)
    assert not_judged(table[1:]) == ""
    assert pd.read_csv(tmp_path / "out/scores.csv")["verdict"].tolist() == table["verdict"].tolist()
    with pytest.raises(DataError, match="does not exist"):
        write_predictions(fitted, [tmp_path / "none.png"], tmp_path / "out", progress=False)


def test_scores_that_are_not_finite_are_no_verdict(
    fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = fitted._score
    monkeypatch.setattr(fitted, "_score", lambda x: score(x).log() * torch.nan)
    table = write_predictions(fitted, folder.test.paths[:2], tmp_path / "out", progress=False)
    assert list(table["verdict"]) == ["ERROR", "ERROR"]
    assert {p.name for p in (tmp_path / "out").glob("[!.]*")} == {"scores.csv", "regions.csv"}


def test_verdict_and_regions_are_those_of_the_maps(
    fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path
) -> None:
    paths = folder.test.paths
    outputs = Outputs("none", "npy", masks=True)
    table = write_predictions(fitted, paths, tmp_path / "out", outputs=outputs, coco=True, progress=False)
    regions = pd.read_csv(tmp_path / "out/regions.csv")
    assert list(regions.columns) == list(REGION_COLUMNS)
    assert {p.suffix for p in (tmp_path / "out").glob("[!.]*")} == {".npy", ".png", ".csv", ".json"}
    maps, scores = fitted.predict(paths)
    threshold = fitted.calibration.threshold  # type: ignore[union-attr]
    np.testing.assert_array_equal(table["score"].astype(np.float32), scores.numpy())
    assert list(table["verdict"]) == ["NOK" if s > threshold else "OK" for s in scores.tolist()]
    assert set(table["verdict"]) == {"OK", "NOK"}
    for path, heat in zip(paths, maps.numpy(), strict=True):
        (saved,) = [p for p in (tmp_path / "out").glob("*_map.npy") if np.array_equal(np.load(p), heat)]
        assert saved.stem.endswith(f"{path.stem}_map")
        labels, found = find_regions(heat, threshold)
        mine = regions[regions["image"] == str(path)]
        width, height = Image.open(path).size
        assert len(mine) == len(found) == int(table.set_index("image")["regions"][str(path)])
        for row, region in zip(mine.to_dict("records"), found, strict=True):
            assert row["peak"] == pytest.approx(region.peak)
            inside = np.argwhere(labels == 1 + found.index(region))  # rows, columns of the scored image
            low, high = inside.min(0), inside.max(0) + 1
            scale = np.array([height / heat.shape[0], width / heat.shape[1]])
            assert (row["y"], row["x"]) == tuple(np.floor(low * scale).astype(int))
            bottom, right = np.ceil(high * scale).astype(int)
            assert (row["y"] + row["height"], row["x"] + row["width"]) == (bottom, right)
    coco = json.loads((tmp_path / "out/regions.json").read_text())
    assert len(coco["annotations"]) == len(regions)
    assert [x["verdict"] for x in coco["images"]] == list(table["verdict"])


def test_it_goes_on_where_it_broke_off(
    fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = folder.test.paths
    whole = write_predictions(fitted, paths, tmp_path / "whole", progress=False)
    scores, regions = (tmp_path / "out" / name for name in ("scores.csv", "regions.csv"))
    predict = fitted.predict
    calls: list[int] = []

    def failing(images: Any) -> Any:
        calls.append(len(images))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return predict(images)

    monkeypatch.setattr("mlffn_lite.heatmaps.PREDICT_BATCH", 3)
    monkeypatch.setattr(fitted, "predict", failing)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(fitted, paths, tmp_path / "out", progress=False)
    assert len(pd.read_csv(scores)) == 3
    with scores.open("a") as file:  # a line that broke off
        file.write(str(paths[3]))
    monkeypatch.setattr(fitted, "predict", predict)
    again = write_predictions(fitted, paths, tmp_path / "out", resume=True, progress=False)
    assert again["verdict"].tolist() == whole["verdict"].tolist()
    for name in (scores, regions):
        assert pd.read_csv(name).to_csv() == pd.read_csv(tmp_path / "whole" / name.name).to_csv()
    scores.write_text("image,anomalous\na,True\n")
    with pytest.raises(DataError, match="other columns"):
        write_predictions(fitted, paths, tmp_path / "out", resume=True, progress=False)


@pytest.mark.parametrize("what", ["threshold", "area", "image", "no number", "too many"])
def test_it_does_not_go_on_with_verdicts_of_another_detector(
    what: str, fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = [tmp_path / p.name for p in folder.test.paths[-2:]], tmp_path / "out"
    for image, path in zip(images, folder.test.paths[-2:], strict=True):
        image.write_bytes(path.read_bytes())
    monkeypatch.setattr(fitted, "calibration", fitted.calibration)  # and back
    write_predictions(fitted, images[:1], out, progress=False)
    lines = (out / "scores.csv").read_text().splitlines()
    match what:
        case "threshold":
            fitted.calibrate(threshold=123.0)
        case "area":
            fitted.calibrate(min_area=10**6)
        case "image":
            images[0].write_bytes(folder.test.paths[0].read_bytes())
        case "no number":
            (out / "scores.csv").write_text("\n".join([lines[0], lines[1].replace("OK,", "OK,nan")]))
        case "too many":
            (out / "scores.csv").write_text("\n".join([lines[0], lines[1] + ",more"]))
    if what == "too many":  # such a line is none, and its image is judged anew
        table = write_predictions(fitted, images, out, resume=True, coco=True, progress=False)
        assert len(table) == 2
        return
    message = {"threshold": "not 123", "no number": "no number", "area": "smallest area"}.get(what, "another detector")
    with pytest.raises(DataError, match=message):
        write_predictions(fitted, images, out, resume=True, coco=True, progress=False)


def test_long_names_are_cut_and_old_pictures_go(fitted: AnomalyDetector, folder: AnomalyFolder, tmp_path: Path) -> None:
    images, out = [tmp_path / f"{'ü' * 120}{i}.png" for i in range(2)], tmp_path / "out"
    for image, path in zip(images, folder.test.paths, strict=False):
        image.write_bytes(path.read_bytes())
    outputs = Outputs(maps="npy", masks=True)
    table = write_predictions(fitted, images, out, outputs=outputs, coco=True, progress=False)
    assert "ERROR" not in set(table["verdict"])
    assert len({*table["picture"]} & {p.name for p in out.iterdir()}) == 2
    (out / table["picture"][1]).unlink()  # as if it had ended before this was written
    resumed = write_predictions(fitted, images, out, resume=True, progress=False)
    assert all((out / picture).is_file() for picture in resumed["picture"])
    (out / "mine.txt").write_text("stays")
    outside = tmp_path / "x_heatmap.png"
    outside.write_text("stays")
    with (out / "scores.csv").open("a") as file:
        file.write("a,OK,0,0,0,../x_heatmap.png,\n")
    again = write_predictions(fitted, folder.test.paths[:1], out, progress=False)
    assert {p.name for p in out.glob("[!.]*")} == {"scores.csv", "regions.csv", "mine.txt", again["picture"][0]}
    assert outside.exists()


def test_pictures_do_not_become_data(fitted: AnomalyDetector, parts: Path) -> None:
    for place in ("test/heat", "train/good", "ground_truth/heat", "test/scratch"):
        with pytest.raises(DataError, match="write elsewhere"):
            write_predictions(fitted, [parts / "test/scratch"], parts / place, progress=False)
    assert not (parts / "test/heat").exists()


def test_pictures_of_huge_images_are_reduced(fitted: AnomalyDetector, tmp_path: Path) -> None:
    Image.new("RGB", (900, 300), (90, 80, 70)).save(tmp_path / "long.png")
    outputs = Outputs("jpeg", "tiff16", masks=True, longest_side=300)
    table = write_predictions(fitted, [tmp_path / "long.png"], tmp_path / "out", outputs=outputs, progress=False)
    assert Image.open(tmp_path / "out" / table["picture"][0]).size == (300, 100)
    assert Image.open(tmp_path / "out/long_mask.png").size == (300, 100)
    with Image.open(tmp_path / "out/long_map.tiff") as values:
        assert values.size == fitted.shape[::-1]
        assert values.mode.startswith("I;16")
