"""Large images in tiles: the grid covers all, stitching loses nothing, and a run in tiles is a run like any other."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector, fitted
from mlffn_lite.errors import ConfigError
from mlffn_lite.tiles import TiledSplit, Tiles


@pytest.mark.parametrize("shape", [(64, 64), (65, 33), (200, 100), (31, 300)])
@pytest.mark.parametrize(("side", "overlap"), [(64, 0), (64, 16), (48, 24)])
def test_tiles_cover_the_image_and_stitch_to_it(shape: tuple[int, int], side: int, overlap: int) -> None:
    tiles = Tiles(shape, side, overlap)
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    def maps(numbers: list[int]) -> Tensor:
        asked.extend(numbers)
        assert len(numbers) <= 3
        return torch.stack([tiles.cut(image, n) for n in numbers])

    torch.testing.assert_close(tiles.stitch(maps, 3), image)
    assert asked == list(range(len(tiles.places)))
    for axis in (0, 1):
        starts = sorted({place[axis] for place in tiles.places})
        assert all(b - a <= tiles.size[axis] - overlap for a, b in itertools.pairwise(starts))


def test_a_seam_is_a_blend() -> None:
    tiles = Tiles((32, 56), 32, 8)
    values = tiles.stitch(lambda n: torch.tensor(n, dtype=torch.float32)[:, None, None].expand(-1, 32, 32), 2)
    assert values[:, :24].max() == 0
    assert values[:, 32:].min() == 1
    assert (values[:, 24:32].diff(dim=1) > 0).all()


def test_tiles_of_a_split_are_samples(parts: Path) -> None:
    folder = AnomalyFolder(parts, size=96)
    split = TiledSplit(folder.test, Tiles(folder.shape, 64, 32))
    assert len(split) == 4 * len(folder.test)
    images, masks = split.batch([0, 3, 5, 30])
    whole = folder.test.images()
    assert torch.equal(images[1], whole[0][:, 32:, 32:])
    assert torch.equal(images[2], whole[1][:, :64, 32:])
    assert torch.equal(masks[3], folder.test.masks()[7][32:, :64])
    assert torch.equal(split.subset([30]).images()[0], images[3])
    assert split[30].defect == split.defects[30] == "scratch"
    assert split.labels().tolist() == [label for label in folder.test.labels().tolist() for _ in range(4)]


@pytest.mark.parametrize("method", ["density", "memory", "ensemble", "mlffn"])
def test_a_run_in_tiles_is_a_run_like_any_other(method: str, parts: Path, tmp_path: Path) -> None:
    preset = Config.preset(
        "tiny", method=method, train={"device": "cpu", "steps": 2, "batch": 4}, memory={"patches": 60}
    )
    config = preset.replace(data={"size": 128, "tile": 64, "overlap": 16})
    detector = AnomalyDetector(config).fit(parts, out=tmp_path, progress=False)
    assert detector.tiles is not None
    maps, scores = detector.predict(parts / "test/scratch")
    assert maps.shape == (4, 128, 128)
    assert len(fitted(detector).scores) == 12  # images, not tiles
    loaded = AnomalyDetector.load(tmp_path)
    assert torch.equal(loaded.predict(parts / "test/scratch").scores, scores)
    last = list(detector.maps(parts / "test/scratch").values())[-1]
    torch.testing.assert_close(last, maps)
    assert loaded.evaluate(parts)["shape"] == [128, 128]


def test_images_no_larger_than_a_tile_are_seen_whole(folder: AnomalyFolder) -> None:
    config = Config.preset("tiny", method="density", train={"device": "cpu"})
    tiled = AnomalyDetector(config.replace(data={"tile": 512})).fit(folder, progress=False)
    assert tiled.tiles is None
    whole = AnomalyDetector(config).fit(folder, progress=False)
    assert torch.equal(tiled.predict_split(folder.test).maps, whole.predict_split(folder.test).maps)


def test_tiles_that_cannot_be_are_refused() -> None:
    for data in ({"tile": 16}, {"tile": 100, "overlap": 64}, {"tile": -1}, {"tile": 5000}):
        with pytest.raises(ConfigError, match=r"data\.tile"):
            Config.preset("tiny", data=data)
    assert "tile" not in Config.preset("tiny").to_dict()["data"]
