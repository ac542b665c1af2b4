from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlffn_lite import registry
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import CheckpointError, ConfigError
from mlffn_lite.neighbours import coreset, greedy_k_center, nearest, sparse_projection
from mlffn_lite.peers.patchcore import FinePatchCore, PatchCore, PatchCoreParameters
from mlffn_lite.storage import CHECKPOINT, load_tensors, save_tensors

CONFIG = Config.preset("tiny", method="patchcore", train={"device": "cpu"})


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchCore, Path]:
    run = tmp_path_factory.mktemp("patchcore") / "r"
    return PatchCore(CONFIG).fit(folder, out=run, progress=False), run


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference_k_center(points: np.ndarray, count: int, start: int) -> list[int]:
    """Algorithm 1 of the paper, pair by pair."""
    chosen = [start]
    while len(chosen) < count:
        best, farthest = -1, -1.0
        for i in range(len(points)):
            if i not in chosen:
                gap = min(math.dist(points[i], points[j]) for j in chosen)
                if gap > farthest:
                    best, farthest = i, gap
        chosen.append(best)
    return chosen


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 2**16))
def test_greedy_choice_is_the_loop(count: int, dims: int, seed: int) -> None:
    points = torch.randn(count, dims, generator=generator(seed))
    found = greedy_k_center(points, max(1, count // 2), seed % count).tolist()
    assert found == reference_k_center(points.double().numpy(), max(1, count // 2), seed % count)


def test_greedy_choice_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [4.0], [10.0]])
    assert greedy_k_center(points, 4, 0).tolist() == [0, 3, 2, 1]


def test_greedy_choice_never_repeats_itself() -> None:
    assert sorted(greedy_k_center(torch.ones(6, 3), 6, 2).tolist()) == list(range(6))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 64), st.integers(0, 2**16))
def test_nearest_is_the_loop(count: int, size: int, cells: int, seed: int) -> None:
    queries = 5 + torch.randn(count, 4, generator=generator(seed))
    bank = 5 + torch.randn(size, 4, generator=generator(seed + 1))
    distance, index = nearest(queries, bank, cells=cells)
    for i, q in enumerate(queries.double().numpy()):
        gaps = [math.dist(q, b) for b in bank.double().numpy()]
        assert float(distance[i]) == pytest.approx(min(gaps), rel=1e-5)
        assert gaps[int(index[i])] == pytest.approx(min(gaps), rel=1e-5)


def test_a_point_of_the_bank_is_at_distance_zero() -> None:
    bank = 1000 + torch.randn(50, 8, generator=generator(0))
    assert float(nearest(bank, bank)[0].max()) == 0.0


def test_projection_keeps_distances() -> None:
    matrix = sparse_projection(400, 300, generator(0))
    assert float((matrix != 0).float().mean()) == pytest.approx(400**-0.5, rel=0.05)
    x = torch.randn(40, 400, generator=generator(1))
    ratio = torch.pdist(x @ matrix) / torch.pdist(x)
    assert float((ratio - 1).abs().max()) < 0.25
    assert float(ratio.square().mean()) == pytest.approx(1, abs=0.05)


def test_a_coreset_covers_better_than_chance() -> None:
    scale = torch.where(torch.rand(600, 1, generator=generator(3)) < 0.05, 5.0, 1.0)  # a few lie far out
    points = torch.randn(600, 64, generator=generator(0)) * scale
    chosen = coreset(points, 60, 32, generator(1))
    assert len(set(chosen.tolist())) == 60
    chance = torch.randperm(600, generator=generator(2))[:60]
    assert float(nearest(points, points[chosen])[0].max()) < 0.8 * float(nearest(points, points[chance])[0].max())


@pytest.mark.parametrize("method", [PatchCore, FinePatchCore])
def test_finds_obvious_defects(method: type[PatchCore], folder: AnomalyFolder) -> None:
    """Averaged over 3×3 of the few pixels of an 8×8 map, thin scratches fade."""
    result = method(CONFIG).fit(folder, progress=False).evaluate(folder)
    assert result["image_auroc"] > (0.9 if method is FinePatchCore else 0.7)
    assert result["pixel_auroc"] > (0.9 if method is FinePatchCore else 0.8)


def test_the_bank_is_a_tenth_of_the_good_patches(fitted: tuple[PatchCore, Path], folder: AnomalyFolder) -> None:
    detector, _ = fitted
    images = folder.train.images()
    with torch.inference_mode():
        patches = detector._run(images, lambda x: detector._features(detector.backbone(x))).flatten(2).mT.flatten(0, 1)
    assert patches.shape == (12 * 8 * 8, 40 + 112)
    assert detector.bank.shape == (77, 40 + 112)
    assert float(nearest(detector.bank, patches)[0].max()) < 1e-3
    few = PatchCore(CONFIG, PatchCoreParameters(candidates=240, ratio=0.5)).fit(folder, progress=False)
    assert len(few.bank) == 120


def test_save_and_load_give_the_same_scores(
    fitted: tuple[PatchCore, Path], folder: AnomalyFolder, tmp_path: Path
) -> None:
    detector, run = fitted
    images = folder.test.images()
    loaded = PatchCore.load(run, device="cpu")
    assert torch.equal(loaded.predict(images).maps, detector.predict(images).maps)
    assert loaded.parameters == detector.parameters == PatchCoreParameters()
    tensors, state = load_tensors(run / CHECKPOINT)
    del tensors["memory.bank"]
    (tmp_path / "config.toml").write_bytes((run / "config.toml").read_bytes())
    save_tensors(tmp_path / CHECKPOINT, tensors, state)
    with pytest.raises(CheckpointError, match="does not fit patchcore"):
        PatchCore.load(tmp_path)


def test_the_seed_determines_the_bank(fitted: tuple[PatchCore, Path], folder: AnomalyFolder) -> None:
    torch.manual_seed(3)
    assert torch.equal(PatchCore(CONFIG).fit(folder, progress=False).bank, fitted[0].bank)
    other = PatchCore(CONFIG.replace(train={"seed": 1})).fit(folder, progress=False)
    assert not torch.equal(other.bank, fitted[0].bank)


def test_features_of_a_resnet_are_averaged_as_in_the_paper(folder: AnomalyFolder) -> None:
    detector = PatchCore(CONFIG.replace(model={"backbone": "resnet18", "weights": "none"}))
    assert detector.parameters.average == 3
    images = folder.test.images()[:1].float() / 255
    with torch.inference_mode():  # without autocast
        levels = detector.backbone.eval()(images)
        found, level = detector._features(levels)[0], levels[1][0]
    assert found.shape == (128 + 256, 8, 8)
    torch.testing.assert_close(found[:128, 3, 5], level[:, 2:5, 4:7].mean((1, 2)), atol=1e-5, rtol=1e-4)
    corner = level[:, :2, :2].sum((1, 2)) / 9  # zeros outside, as in the authors' code
    torch.testing.assert_close(found[:128, 0, 0], corner, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_the_coarser_level_is_interpolated_on_the_grid_of_stride_8(stride: int) -> None:
    """Between pixel centres linearly, by hand: 3 columns 0, 6, 0 seen at 5 lie at −0.2, 0.4, 1, 1.6 and 2.2 of them."""
    coarse = torch.tensor([0.0, 6.0, 0.0]).expand(1, 1, 3, 3)
    levels = [torch.rand(1, 4, 10, 9), torch.rand(1, 2, 5, 5), coarse]
    found = FinePatchCore(CONFIG.replace(model={"stride": stride}))._features(levels)
    torch.testing.assert_close(found[:, :2], levels[1])
    torch.testing.assert_close(found[0, 2], torch.tensor([0.0, 2.4, 6.0, 2.4, 0.0]).expand(5, 5))


def test_every_registered_method_is_a_detector_of_that_name() -> None:
    for name in registry.names("methods"):
        detector = AnomalyDetector(CONFIG.replace(method=name))
        assert (detector.method, type(detector)) == (name, registry.find("methods", name))
    assert FinePatchCore(CONFIG).config.method == "patchcore_fine"  # the class called itself, not the configuration


@pytest.mark.parametrize("bad", [{"ratio": 0.0}, {"ratio": 1.1}, {"candidates": 0}, {"projection": -1}])
def test_impossible_parameters_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        PatchCoreParameters(**bad)
