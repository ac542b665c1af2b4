"""Where to look: the box, the ignored pixels, and that both mean the same to training, scores and pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage

from mlffn_lite import metrics
from mlffn_lite.beyond.ensemble import EnsembleDetector
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder, find_view, open_image, read_image, read_mask, scan
from mlffn_lite.datasets.sources import open_source
from mlffn_lite.datasets.view import FILL, View, find_box, ignore_png
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import CheckpointError, ConfigError, DataError
from mlffn_lite.heatmaps import Outputs, write_predictions
from mlffn_lite.studies.cell import Cell
from mlffn_lite.tiles import TiledSplit

BOX = (4, 16, 56, 30)
SHAPE = (48, 64)  # of the images of the box once resized; not those of the box


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """White where pixels of a 64x64 photograph count for nothing: half in the box."""
    marked = np.zeros((64, 64), np.uint8)
    marked[16:36, 40:64] = 255
    path = tmp_path_factory.mktemp("mask") / "ignore.png"
    Image.fromarray(marked).save(path)
    return path


@pytest.fixture(scope="module")
def config(mask: Path) -> Config:
    preset = Config.preset("tiny", train={"device": "cpu"}, method="density")
    return preset.replace(data={"aspect": "keep", "crop": BOX, "ignore": str(mask)})


@pytest.fixture(scope="module")
def fitted(config: Config, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> AnomalyDetector:
    run = tmp_path_factory.mktemp("run")
    AnomalyDetector(config).fit(parts, out=run, progress=False)
    return AnomalyDetector.load(run)


def test_images_and_masks_are_cut_and_filled_alike(parts: Path, mask: Path) -> None:
    view = find_view([], BOX, str(mask))
    test = AnomalyFolder(parts, shape=SHAPE, view=view).test
    left, top, width, height = BOX
    for i in (0, 5):
        image = open_image(test.paths[i]).crop((left, top, left + width, top + height))
        expected = torch.from_numpy(np.array(image.resize(SHAPE[::-1], Image.Resampling.BILINEAR))).permute(2, 0, 1)
        ignored = view.ignored(SHAPE)
        assert ignored is not None
        away = torch.from_numpy(~ndimage.binary_dilation(ignored.numpy(), iterations=2))
        assert torch.equal(test[i].image[:, away], expected[:, away])
        assert (test[i].image[:, ignored] == FILL).all()
    whole = read_mask(test.mask_paths[5], None)  # type: ignore[arg-type]
    assert bool(test[5].mask.any()) == bool(whole[top : top + height, left : left + width].any())


def test_every_pixel_that_is_touched_is_ignored(mask: Path) -> None:
    view = find_view([], "none", str(mask))
    assert view.ignored((64, 64)) is not None
    small = view.ignored((5, 7))
    assert small is not None
    for y, x in np.argwhere(np.asarray(Image.open(mask)) > 0):
        assert small[y * 5 // 64, x * 7 // 64]
    assert View().ignored(SHAPE) is None


def test_a_defect_outside_the_crop_is_still_a_missed_image(parts: Path) -> None:
    folder = AnomalyFolder(parts, size=64, view=View((0, 0, 64, 10)))
    assert folder.test.defects.count("scratch") == 4
    assert not folder.test.masks().any()
    assert bool(folder.test.has_mask.all())


@pytest.mark.parametrize("seed", range(3))
def test_ignored_pixels_count_neither_as_ground_nor_as_defect(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(3, 12, 16, generator=generator)
    masks = torch.rand(3, 12, 16, generator=generator) > 0.9
    ignored = torch.zeros(12, 16, dtype=torch.bool)
    ignored[:, 10:] = True  # the metrics must be those of what is left
    for metric in (metrics.pixel_auroc, metrics.pro):
        assert metric(maps, masks, ignored=ignored) == pytest.approx(metric(maps[:, :, :10], masks[:, :, :10]))
    curve = metrics.region_curve(maps, masks, ignored=ignored)
    for mine, other in zip(curve, metrics.region_curve(maps[:, :, :10], masks[:, :, :10]), strict=True):
        torch.testing.assert_close(mine, other)
    with pytest.raises(ValueError, match="ignored must be bool"):
        metrics.pro(maps, masks, ignored=ignored[:5])


def test_scores_do_not_depend_on_what_is_not_looked_at(fitted: AnomalyDetector, parts: Path, mask: Path) -> None:
    path = parts / "test/scratch/000.png"
    pixels = np.array(Image.open(path))
    other = pixels.copy()
    outside = np.ones((64, 64), bool)
    outside[BOX[1] : BOX[1] + BOX[3], BOX[0] : BOX[0] + BOX[2]] = False
    other[outside | (np.asarray(Image.open(mask)) > 0)] = (255, 0, 0)
    (mine, _), (same, score) = fitted.predict([pixels]), fitted.predict([other])
    seen = fitted.view.ignored(fitted.shape)
    assert seen is not None
    assert torch.equal(mine, same)
    assert torch.equal(same[0][seen], same.min().expand(int(seen.sum())))
    assert float(score[0]) == float(same[0][~seen].max())


@pytest.mark.parametrize("tile", [0, 32])
def test_an_ensemble_is_scaled_on_what_is_looked_at(tile: int, parts: Path, tmp_path: Path) -> None:
    """Of good images as if left out, what is seen has the median 0 and the 99.9th percentile 1, map by map."""
    marked = np.zeros((64, 64), np.uint8)
    marked[:, 24:] = 255
    Image.fromarray(marked).save(tmp_path / "ignore.png")
    members = {"members": {"density": 1.0, "memory": 1.0}, "rings": 0}
    preset = Config.preset("tiny", method="ensemble", ensemble=members, memory={"patches": 60})
    data = {"size": 64, "tile": tile, "overlap": 8, "ignore": str(tmp_path / "ignore.png")}
    folder = open_source(parts, preset.replace(data=data).data)
    detector = AnomalyDetector(preset.replace(data=data, train={"device": "cpu"})).fit(folder, progress=False)
    assert isinstance(detector, EnsembleDetector)
    train = TiledSplit(folder.train, detector.tiles) if detector.tiles else folder.train
    with torch.inference_mode():
        maps = detector._run(train.images(), detector._maps, torch.arange(len(train)))
    ignored = folder.view.ignored((64, 64))
    assert ignored is not None
    places = detector.tiles.places if detector.tiles else [(0, 0)]
    (height, width), hidden = maps.shape[-2:], []
    for top, left in places * len(folder.train):
        hidden.append(ignored[top : top + height, left : left + width])
    for values in detector._standardise(maps).unbind(1):
        seen = values[~torch.stack(hidden)].sort().values
        assert float(seen.median()) == pytest.approx(0, abs=1e-4)
        assert float(seen[int(0.999 * (len(seen) - 1))]) == pytest.approx(1, abs=1e-4)


def test_the_run_keeps_its_view(
    fitted: AnomalyDetector, config: Config, parts: Path, mask: Path, tmp_path: Path
) -> None:
    assert fitted.view.box == BOX
    assert fitted.view == find_view([], BOX, str(mask))
    assert fitted.view == View.from_dict(json.loads(json.dumps(fitted.view.to_dict())))
    assert fitted.shape[1] > fitted.shape[0]  # the aspect of the box
    expected = fitted.predict([parts / "test/good/000.png"]).scores
    own = tmp_path / "own.png"
    shutil.copy(mask, own)
    mine = config.replace(data={"ignore": str(own)})
    AnomalyDetector(mine).fit(parts, out=tmp_path / "run", progress=False)
    own.unlink()
    loaded = AnomalyDetector.load(tmp_path / "run")
    assert torch.equal(loaded.predict([parts / "test/good/000.png"]).scores, expected)
    assert loaded.evaluate(parts)["image_auroc"] == fitted.evaluate(parts)["image_auroc"]
    Image.new("L", (64, 64), 0).save(own)
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(own)
    with pytest.raises(CheckpointError, match="ignore mask"):
        AnomalyDetector(mine).fit(parts, out=tmp_path / "run", progress=False, resume=True)
    with pytest.raises(DataError, match="another crop"):
        loaded.evaluate(AnomalyFolder(parts, shape=loaded.shape))


@pytest.mark.parametrize(
    "change",
    [
        {"box": [1, 2, 3]},
        {"box": [-1, 0, 9, 9]},
        {"box": [0, 0, 0, 9]},
        {"box": "abcd"},
        {"ignore": "?"},
        {"ignore": ""},
    ],
)
def test_a_damaged_view_is_refused(mask: Path, change: dict[str, object]) -> None:
    stored = find_view([], BOX, str(mask)).to_dict()
    with pytest.raises((ValueError, TypeError, KeyError)):
        View.from_dict({**stored, **change})


def test_pictures_and_regions_are_those_of_the_photograph(fitted: AnomalyDetector, parts: Path, tmp_path: Path) -> None:
    left, top, width, height = BOX
    path = parts / "test/scratch/002.png"
    detector = AnomalyDetector(fitted.config)
    detector.__dict__.update(fitted.__dict__)
    heat = fitted.predict([path]).maps[0].numpy()
    detector.calibration = dataclasses.replace(fitted.calibration, threshold=float(np.quantile(heat, 0.95)))  # type: ignore[type-var]
    write_predictions(detector, [path], tmp_path, outputs=Outputs("png", "npy", masks=True), progress=False)
    picture = np.asarray(Image.open(tmp_path / "002_heatmap.png"))
    photo = read_image(path).permute(1, 2, 0).numpy()
    inside = np.zeros((64, 64), bool)
    inside[top : top + height, left : left + width] = True
    assert picture.shape == photo.shape
    assert np.array_equal(picture[~inside], photo[~inside])
    assert not np.array_equal(picture[inside], photo[inside])
    mask = np.asarray(Image.open(tmp_path / "002_mask.png")) > 0
    assert mask.any()
    assert not mask[~inside].any()
    regions = pd.read_csv(tmp_path / "regions.csv")
    boxes = np.zeros((64, 64), bool)
    for r in regions.to_dict("records"):
        boxes[r["y"] : r["y"] + r["height"], r["x"] : r["x"] + r["width"]] = True
        assert left <= r["peak_x"] < left + width
        assert top <= r["peak_y"] < top + height
    assert not boxes[~inside].any()
    assert not (mask & ~boxes).any()
    whole = np.load(tmp_path / "002_map.npy")
    assert whole.shape == (round(64 * heat.shape[0] / height), round(64 * heat.shape[1] / width))
    ignored = fitted.view.ignored(fitted.shape)
    assert ignored is not None
    assert np.isfinite(whole).sum() == int((~ignored).sum())
    assert np.nanmax(whole) == heat.max()


def photos(places: list[tuple[int, int]], noise: float = 2) -> list[Image.Image]:
    """A bright part on dark, noisy ground, at each of these places."""
    rng, found = np.random.default_rng(0), []
    for x, y in places:
        pixels = 20 + noise * rng.standard_normal((120, 200, 3))
        pixels[y : y + 40, x : x + 60] += 100
        found.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return found


def test_auto_finds_what_stands_out_wherever_it_lies() -> None:
    box = find_box(photos([(50, 30), (60, 34), (54, 40)]), (200, 120))
    assert box is not None
    left, top, width, height = box
    assert left <= 50
    assert top <= 30
    assert left + width >= 120
    assert top + height >= 80
    assert width * height < 2.2 * 70 * 50
    assert find_box(photos([(0, 0)], noise=0) * 0 + [Image.new("RGB", (200, 120), (9, 9, 9))], (200, 120)) is None
    rng = np.random.default_rng(0)  # a texture fills the photograph
    grain = [Image.fromarray(rng.integers(0, 255, (120, 200, 3), np.uint8)) for _ in range(5)]
    assert find_box(grain, (200, 120)) is None


def test_auto_looks_at_good_training_images_only(tmp_path: Path) -> None:
    for i, image in enumerate(photos([(50, 30)] * 4)):
        (tmp_path / "train/good").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / f"train/good/{i}.png")
    (tmp_path / "test/bad").mkdir(parents=True)
    photos([(130, 70)])[0].save(tmp_path / "test/bad/0.png")
    data = Config.preset("tiny", data={"crop": "auto", "aspect": "keep"}).data
    parts = open_source(tmp_path, data)
    assert parts.view == find_view(scan(tmp_path).train, "auto")
    assert parts.view.box is not None
    assert parts.view.box[0] + parts.view.box[2] < 130
    assert open_source(parts, data) is parts
    Image.new("RGB", (50, 50)).save(tmp_path / "train/good/9.png")
    with pytest.raises(DataError, match="images of one size"):
        open_source(tmp_path, data)


def test_masks_and_boxes_that_do_not_fit_are_named(parts: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "white.png")
    Image.new("L", (60, 64), 255).save(tmp_path / "small.png")
    for options, message in (
        ({"ignore": str(tmp_path / "none.png")}, "none.png: cannot be read"),
        ({"ignore": str(tmp_path / "black.png")}, "black everywhere"),
        ({"ignore": str(tmp_path / "white.png")}, "leaves nothing"),
        ({"ignore": str(tmp_path / "small.png")}, "has 60x64"),
        ({"crop": (10, 0, 60, 60)}, "do not hold the crop 10,0,60,60"),
    ):
        with pytest.raises(DataError, match=message):
            AnomalyFolder(parts, size=64, **options)
    for crop in ("left", [1, 2, 3], [0, 0, 4, 40], [0, 0, -9, 40], "1,2,3,x"):
        with pytest.raises(ConfigError, match=r"data\.crop must be auto"):
            Config.preset("tiny", data={"crop": crop})


def test_stored_configurations_of_before_are_the_same() -> None:
    """The names of finished cells hang on this."""
    config = Config.preset("tiny")
    assert set(config.to_dict()["data"]) == {"size", "aspect", "source"}
    other = config.replace(data={"crop": "auto"})
    assert Config.from_toml(other.to_toml()) == other
    names = {Cell("d", "f", c.to_dict(), "x", 1).name for c in (config, other, config.replace(data={"ignore": "m"}))}
    assert len(names) == 3
    assert View.from_dict({"box": None, "ignore": "", "ignore_sha256": ""}) == View()
    assert View(png=ignore_png(np.eye(9, dtype=bool))).digest
