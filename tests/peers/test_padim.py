from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import CheckpointError, ConfigError
from mlffn_lite.features import Moments, smooth
from mlffn_lite.peers.padim import PaDiM, PaDiMParameters, mahalanobis, whitening
from mlffn_lite.peers.patchcore import PatchCore

CONFIG = Config.preset("tiny", method="padim", train={"device": "cpu"})


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[PaDiM, Path]:
    run = tmp_path_factory.mktemp("padim") / "r"
    return PaDiM(CONFIG).fit(folder, out=run, progress=False), run


def reference_distance(good: np.ndarray, new: np.ndarray, epsilon: float) -> np.ndarray:
    """Equation (2) of the paper, a position and an image at a time; good (P, N, D), new (P, B, D) -> (P, B)."""
    out = np.zeros(new.shape[:2])
    for p in range(len(good)):
        mean = sum(good[p]) / len(good[p])
        covariance = epsilon * np.eye(good.shape[2])
        for x in good[p]:
            covariance = covariance + np.outer(x - mean, x - mean) / (len(good[p]) - 1)
        inverse = np.linalg.inv(covariance)
        for b in range(new.shape[1]):
            d = new[p, b] - mean
            out[p, b] = math.sqrt(d @ inverse @ d)
    return out


@given(st.integers(2, 9), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**16))
def test_distance_is_the_equation(count: int, dims: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    good, new = rng.normal(3.0, 2.0, (4, count, dims)), rng.normal(3.0, 2.0, (4, 3, dims))
    moments = Moments()
    for part in torch.tensor(good, dtype=torch.float32).split(batch, dim=1):
        moments.add(part)
    factor = whitening(moments.covariance(), 0.01, chunk=3)
    found = mahalanobis(torch.tensor(new, dtype=torch.float32), moments.mean, factor)
    np.testing.assert_allclose(found, reference_distance(good, new, 0.01), rtol=2e-3)


def test_distance_by_hand() -> None:
    """Values 1 and 3: mean 2, variance 2; with ε = 2 the distance of 6 is 4 / √4."""
    moments = Moments()
    moments.add(torch.tensor([[[1.0], [3.0]]]))
    factor = whitening(moments.covariance(), 2.0)
    assert float(mahalanobis(torch.tensor([[[6.0]]]), moments.mean, factor)) == pytest.approx(2.0)


def test_one_image_leaves_the_regular_part_alone() -> None:
    moments = Moments()
    moments.add(torch.ones(2, 1, 3))
    torch.testing.assert_close(whitening(moments.covariance(), 0.01), 10 * torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize("size", [(256, 256), (64, 40), (8, 256)])
def test_smoothing_is_scipys(size: tuple[int, int]) -> None:
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    sigmas = [4 * side / 256 for side in size]
    radii = [min(math.ceil(4 * s), side - 1) for s, side in zip(sigmas, size, strict=True)]
    expected = maps.numpy().astype(float)
    for axis in (1, 2):
        expected = scipy.ndimage.gaussian_filter1d(
            expected, sigmas[axis - 1], axis=axis, mode="mirror", radius=radii[axis - 1]
        )
    np.testing.assert_allclose(smooth(maps, 4.0), expected, atol=1e-5)
    assert torch.equal(smooth(maps, 0.0), maps)


def test_finds_obvious_defects(fitted: tuple[PaDiM, Path], folder: AnomalyFolder) -> None:
    result = fitted[0].evaluate(folder)
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] > 0.9
    assert fitted[0].seconds > 0


def test_maps_are_upsampled_smoothed_distances(fitted: tuple[PaDiM, Path], folder: AnomalyFolder) -> None:
    detector, _ = fitted
    good, new = folder.train.images(), folder.test.images()[:3]
    with torch.inference_mode():
        x, y = (
            detector._run(i, lambda z: detector._features(detector.backbone(z)))[:, detector.channels]
            for i in (good, new)
        )
    x, y = (t.flatten(2).permute(2, 0, 1).double() for t in (x, y))
    expected = reference_distance(x.numpy(), y.numpy(), 0.01)
    maps = torch.tensor(expected).T.reshape(3, 1, 16, 16)
    maps = torch.nn.functional.interpolate(maps, size=(64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(detector.predict(new).maps.double(), smooth(maps, 4.0), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("size", [(64, 48), (90, 42)])
def test_coarser_levels_are_repeated_on_the_grid_of_stride_4(size: tuple[int, int], stride: int) -> None:
    """A position takes the coarser pixel that its centre lies in, where sides are odd the one at the same fraction."""
    grids = [[-(-side // s) for side in size] for s in (4, 8, 16)]
    levels = [torch.rand(2, 3, *grid) for grid in grids]
    found = PaDiM(CONFIG.replace(model={"stride": stride}))._features(levels)
    (height, width), expected = grids[0], []
    for level, (h, w) in zip(levels, grids, strict=True):
        rows, columns = torch.arange(height) * h // height, torch.arange(width) * w // width
        expected.append(level[:, :, rows][:, :, :, columns])
    assert torch.equal(found, torch.cat(expected, 1))


def test_save_and_load_give_the_same_scores(fitted: tuple[PaDiM, Path], folder: AnomalyFolder, tmp_path: Path) -> None:
    detector, run = fitted
    images = folder.test.images()
    loaded = PaDiM.load(run, device="cpu")
    assert torch.equal(loaded.predict(images).maps, detector.predict(images).maps)
    assert (loaded.calibration, loaded.config, loaded.seconds) == (detector.calibration, CONFIG, detector.seconds)
    own = PaDiMParameters(levels=(2,), average=3, sigma=1.5, channels=7, epsilon=0.1)
    other = PaDiM(CONFIG, own).fit(folder, progress=False)
    other.save(tmp_path / "r")
    again = PaDiM.load(tmp_path / "r", device="cpu")
    assert again.parameters == own
    assert torch.equal(again.predict(images).maps, other.predict(images).maps)


def test_a_run_of_another_method_is_refused(fitted: tuple[PaDiM, Path]) -> None:
    with pytest.raises(CheckpointError, match="holds a run of padim"):
        PatchCore.load(fitted[1])
    assert type(AnomalyDetector.load(fitted[1], device="cpu")) is PaDiM
    with pytest.raises(CheckpointError, match="not a run folder"):
        AnomalyDetector.load(fitted[1] / "nothing")


def test_the_seed_draws_the_channels(fitted: tuple[PaDiM, Path], folder: AnomalyFolder) -> None:
    torch.manual_seed(3)
    again = PaDiM(CONFIG).fit(folder, progress=False)
    other = PaDiM(CONFIG.replace(train={"seed": 1})).fit(folder, progress=False)
    assert torch.equal(again.channels, fitted[0].channels)
    assert torch.equal(again.factor, fitted[0].factor)
    assert len(again.channels) == len(set(again.channels.tolist())) == 100
    assert not torch.equal(other.channels, again.channels)


def test_other_sizes_are_brought_to_the_grid(fitted: tuple[PaDiM, Path]) -> None:
    assert fitted[0].predict(torch.rand(2, 3, 90, 40)).maps.shape == (2, 64, 64)


@pytest.mark.parametrize("bad", [{"levels": (4,)}, {"levels": ()}, {"average": 2}, {"sigma": -1.0}, {"epsilon": 0.0}])
def test_impossible_parameters_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        PaDiMParameters(**bad)
