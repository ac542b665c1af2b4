"""The bank against loops in float64, left-out images against a bank without them, and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlffn_lite.beyond.memory import MemoryDetector, PatchMemory
from mlffn_lite.config import BankConfig, Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import CheckpointError, ConfigError
from mlffn_lite.neighbours import greedy_k_center
from mlffn_lite.storage import CHECKPOINT, load_tensors, save_tensors

BANKS = [{"floor": 0.1, "dims": 16, "neighbours": 3}, {"levels": [2, 3], "average": 3}]
TINY = Config.preset("tiny", method="memory", memory={"patches": 60, "banks": BANKS}, train={"device": "cpu"})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def patches(images: int, each: int, channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features far from the origin, and the image of each."""
    mixing = torch.randn(channels, channels, generator=generator(7))
    points = torch.randn(images * each, channels, generator=generator(seed)) @ mixing + 20
    return points, torch.arange(images).repeat_interleave(each)


def whitened(points: np.ndarray, fitted: np.ndarray, floor: float, dims: int) -> np.ndarray:
    """Principal axes of what was fitted, each divided by the root of its eigenvalue and the floor."""
    mean = fitted.mean(0)
    values, axes = np.linalg.eigh((fitted - mean).T @ (fitted - mean) / len(fitted))
    gains = 1 / np.sqrt(values + floor * values.mean()) if floor else np.ones_like(values)
    return np.asarray((points - mean) @ (axes * gains)[:, -dims:])


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.integers(2, 12), st.integers(1, 4), st.sampled_from([0.0, 0.1]), st.integers(0, 999))
def test_equals_loops(images: int, each: int, neighbours: int, floor: float, seed: int) -> None:
    """Distances to the bank, with and without the image that a patch is from."""
    points, owner = patches(images, each, 6, seed)
    count, dims = max(1, len(points) // 2), 4
    memory = PatchMemory(6, count, BankConfig(dims=dims, floor=floor, neighbours=neighbours)).fit(
        points, owner, generator(seed)
    )
    white = whitened(points.double().numpy(), points.double().numpy(), floor, dims)
    start = int(torch.randint(len(points), (), generator=generator(seed)))
    chosen = greedy_k_center(torch.from_numpy(white).float(), count, start).numpy()

    def distance(z: np.ndarray, of: int | None) -> float:
        others = [i for i in chosen if of is None or owner[i] != of] or list(chosen)
        gaps = sorted(float(np.linalg.norm(z - white[i])) for i in others)
        return float(np.mean(gaps[:neighbours]))

    queries = points.T.reshape(1, 6, images, each)  # one image whose patches are all there is
    unit = float(memory.unit)
    got = memory(queries)[0, 0].flatten().double().numpy() * unit
    np.testing.assert_allclose(got, [distance(z, None) for z in white], rtol=1e-3, atol=1e-3)
    for image in range(images):
        left = memory(queries, torch.tensor([image]))[0, 0].flatten().double().numpy() * unit
        np.testing.assert_allclose(left, [distance(z, image) for z in white], rtol=1e-3, atol=1e-3)


def test_the_unit_is_what_good_patches_have_from_other_images() -> None:
    points, owner = patches(6, 40, 8, 1)
    memory = PatchMemory(8, 60, BankConfig(floor=0.1, neighbours=3)).fit(points, owner, generator(0))
    own = [memory(points[owner == i].T.reshape(1, 8, 8, 5), torch.tensor([i])) for i in range(6)]
    assert float(torch.cat(own).median()) == pytest.approx(1, abs=0.02)


def test_one_image_alone_is_not_left_out() -> None:
    points, owner = patches(1, 20, 4, 1)
    memory = PatchMemory(4, 10, BankConfig(floor=0.1, neighbours=3)).fit(points, owner, generator(0))
    features = points.T.reshape(1, 4, 4, 5)
    assert torch.equal(memory(features, torch.tensor([0])), memory(features))


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryDetector, Path]:
    run = tmp_path_factory.mktemp("memory") / "r"
    detector = AnomalyDetector(TINY).fit(folder, out=run, progress=False)
    assert isinstance(detector, MemoryDetector)
    return detector, run


def test_finds_defects_and_is_calibrated_on_left_out_images(
    fitted: tuple[MemoryDetector, Path], folder: AnomalyFolder
) -> None:
    detector, _ = fitted
    assert detector.evaluate(folder)["image_auroc"] > 0.9
    inside = detector.predict(folder.train.images()).maps
    with torch.inference_mode():
        numbers = torch.arange(len(folder.train))
        out = detector._run(folder.train.images(), detector._score_left_out, numbers)
    assert float((out - inside).min()) > -1e-5
    assert float((out - inside).max()) > 0.1
    assert detector.calibration is not None
    assert detector.calibration.threshold == pytest.approx(float(out.flatten(1).amax(1).quantile(0.99)), rel=1e-5)


def test_the_seed_decides_and_the_bank_is_bounded(folder: AnomalyFolder) -> None:
    same = [AnomalyDetector(TINY).fit(folder, progress=False) for _ in range(2)]
    other = AnomalyDetector(TINY.replace(train={"seed": 1})).fit(folder, progress=False)
    banks = [[m.bank for m in d.memories] for d in (*same, other)]  # type: ignore[attr-defined]
    for a, b, c, channels in zip(*banks, (16, 152), strict=True):
        assert a.shape == (60, channels)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_save_and_load_give_the_same_scores(fitted: tuple[MemoryDetector, Path], folder: AnomalyFolder) -> None:
    detector, run = fitted
    loaded = AnomalyDetector.load(run)
    assert torch.equal(loaded.predict(folder.test.images()).maps, detector.predict(folder.test.images()).maps)
    tensors, state = load_tensors(run / CHECKPOINT)
    del tensors["memory.0.bank"]
    save_tensors(run / CHECKPOINT, tensors, state)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
        AnomalyDetector.load(run)


def test_a_memory_of_finer_patches_works(folder: AnomalyFolder) -> None:
    fine = TINY.replace(memory={"stride": 4, "banks": [{"levels": [1, 2]}], "sigma": 2.0})
    detector = AnomalyDetector(fine).fit(folder, progress=False)
    assert (detector.parts, detector.evaluate(folder)["image_auroc"]) >= (1, 0.9)


def test_neighbours_are_looked_for_in_the_first_axes_and_measured_in_all() -> None:
    """Of features with more axes than are searched, the last hold little, and the distance has them."""
    scale = torch.linspace(3, 0.05, 90) ** 2
    points = torch.randn(300, 90, generator=generator(3)) * scale
    memory = PatchMemory(90, 40, BankConfig()).fit(points, torch.arange(300), generator(0))
    queries = torch.randn(50, 90, generator=generator(4)) * scale
    got = memory(queries.T.reshape(1, 90, 5, 10)).flatten() * memory.unit
    exact = torch.cdist((queries - points.mean(0)) @ memory.axes, memory.bank).amin(1)
    torch.testing.assert_close(got, exact, rtol=1e-2, atol=0)
    assert (memory.axes.mT @ memory.axes - torch.eye(90)).abs().max() < 1e-4  # turned only: distances are as they were


@pytest.mark.parametrize("bad", [{"banks": []}, {"banks": [{"average": 2}]}, {"banks": [{"floor": -1.0}]}, {"bank": 1}])
def test_bad_sections_are_refused_in_one_line(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"(memory|bank)\.(bank|banks|average|floor)"):
        TINY.replace(memory=bad)
