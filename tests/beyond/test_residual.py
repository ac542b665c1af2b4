"""The network on residuals: what sets features apart from good images', against loops; trained, saved, in company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlffn_lite.beyond.ensemble import RESIDUAL_WEIGHT, EnsembleDetector, TrainedEnsemble
from mlffn_lite.beyond.residual import ResidualDetector, ResidualMLFFN
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import ConfigError
from mlffn_lite.network import MLFFN

CONFIG = Config.preset("tiny", method="residual", train={"steps": 12, "batch": 4, "device": "cpu", "lr": 5e-3})


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[ResidualDetector, Path]:
    run = tmp_path_factory.mktemp("residual") / "r"
    detector = AnomalyDetector(CONFIG).fit(folder, out=run, progress=False)
    assert isinstance(detector, ResidualDetector)
    return detector, run


def reference(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (C, h, w) over images and deviations (C,) about them of a level (B, C, h, w), in loops and float64."""
    images, channels, height, width = level.shape
    mean, scale = np.zeros((channels, height, width)), np.zeros(channels)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                mean[c, y, x] = sum(level[:, c, y, x]) / images
        squares = [(level[i, c] - mean[c]) ** 2 for i in range(images)]
        scale[c] = np.sqrt(sum(map(np.sum, squares)) / (images * height * width))
    return mean, scale


def test_means_and_deviations_are_those_of_loops() -> None:
    network = ResidualMLFFN(CONFIG.model, CONFIG.texture)
    levels = [torch.randn(7, c, 6 - i, 5) * 3 + 50 for i, c in enumerate(network.backbone.channels)]
    network.fit([x[a:b] for x in levels] for a, b in ((0, 3), (3, 7)))
    for i, level in enumerate(levels, 1):
        mean, scale = reference(level.double().numpy()[:, :2])
        found = network.residual(level, i)[:, :2]
        expected = (level[:, :2].double().numpy() - mean) / scale[:, None, None]
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)
        assert abs(float(network.residual(level, i).square().mean()) - 1) < 1e-3


def test_the_network_sees_residuals_and_is_the_papers_besides() -> None:
    torch.manual_seed(0)
    network, plain = ResidualMLFFN(CONFIG.model, CONFIG.texture).eval(), MLFFN(CONFIG.model, CONFIG.texture).eval()
    assert not plain.load_state_dict(network.state_dict(), strict=False).missing_keys
    images = torch.rand(3, 3, 48, 40)
    with torch.no_grad():
        levels = network.backbone(images)
        network.fit([levels])
        found, expected = network(images), plain.head([network.residual(x, i) for i, x in enumerate(levels, 1)])
    torch.testing.assert_close(found.score, expected.score)
    # A channel that never changes, and images of another size than those fitted to, are no error.
    network.fit([[torch.ones_like(x) for x in levels]])
    assert network(torch.rand(1, 3, 33, 64)).score.isfinite().all()


def test_it_learns_and_is_read_back_as_it_was(fitted: Any, folder: AnomalyFolder) -> None:
    detector, run = fitted
    assert detector.step == 12
    images = folder.test.images()
    maps = detector.predict(images).maps
    assert torch.equal(AnomalyDetector.load(run).predict(images).maps, maps)
    plain = AnomalyDetector(CONFIG.replace(method="mlffn")).fit(folder, progress=False)
    assert not torch.allclose(plain.predict(images).maps, maps, atol=1e-2)


def test_nothing_is_learned_of_the_images_it_is_calibrated_on(fitted: Any, folder: AnomalyFolder) -> None:
    detector, _ = fitted
    held = detector.held_out(len(folder.train))
    assert held.tolist() == list(range(3, len(folder.train), 4))
    others = [i for i in range(len(folder.train)) if i not in held.tolist()]
    assert detector.calibration.source == "left out"
    scores = detector.predict(folder.train.images()[held]).scores
    assert detector.calibration.scores == pytest.approx(tuple(sorted(scores.tolist())))
    with torch.no_grad():
        levels = detector._run(folder.train.images()[others], detector._ready(detector.backbone))
    for i, level in enumerate(levels, 1):
        torch.testing.assert_close(
            getattr(detector.network, f"mean{i}"), level.mean(0, keepdim=True), atol=1e-4, rtol=0
        )


def test_all_tiles_of_a_held_out_image_are_held_out(folder: AnomalyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replace(
        method="ensemble",
        data={"size": 128, "tile": 64, "overlap": 0},
        ensemble={"members": {"residual": 1.0}},
        train={"steps": 1},
    )
    seen: list[int] = []
    score = EnsembleDetector._maps

    def spied(self: EnsembleDetector, images: torch.Tensor, left_out: torch.Tensor | None = None) -> torch.Tensor:
        seen.extend([] if left_out is None else left_out.tolist())
        return score(self, images, left_out)

    monkeypatch.setattr(EnsembleDetector, "_maps", spied)
    detector = AnomalyDetector(config).fit(folder.root, progress=False)
    assert detector.tiles is not None
    count, held = len(detector.tiles.places), detector.held_out(len(folder.train))
    assert held is not None
    assert {place // count for place in seen} == set(held.tolist())
    assert len(set(seen)) == count * len(held)


def test_a_single_image_is_fitted_to_and_said_to_be() -> None:
    detector = AnomalyDetector(CONFIG.replace(train={"steps": 1})).fit([torch.rand(3, 64, 64)], progress=False)
    assert detector.calibration is not None
    assert detector.calibration.source == "training"


def test_it_is_a_member_of_an_ensemble(folder: AnomalyFolder, tmp_path: Path) -> None:
    config = CONFIG.replace(method="ensemble", ensemble={"members": {"density": 1.0, "residual": 1.0}})
    detector = AnomalyDetector(config).fit(folder, out=tmp_path / "r", progress=False)
    images = folder.test.images()
    assert torch.equal(AnomalyDetector.load(tmp_path / "r").predict(images).maps, detector.predict(images).maps)


def test_the_trained_ensemble_has_it_as_one_more_member(folder: AnomalyFolder, tmp_path: Path) -> None:
    config = CONFIG.replace(method="ensemble_trained", memory={"patches": 60})
    detector = AnomalyDetector(config).fit(folder, out=tmp_path / "r", progress=False)
    assert isinstance(detector, TrainedEnsemble)
    assert dict(detector.config.ensemble.members) == {"density": 2.0, "memory": 3.0, "residual": RESIDUAL_WEIGHT}
    assert list(detector.maps(folder.test.images())) == ["density", "memory", "residual", "ensemble_trained"]
    assert detector.calibration is not None
    assert detector.calibration.source == "left out"
    held = detector.held_out(len(folder.train))
    assert held is not None
    assert len(detector.calibration.scores) == len(held)  # those that the network was not trained on
    again = AnomalyDetector.load(tmp_path / "r")
    assert torch.equal(again.predict(folder.test.images()).maps, detector.predict(folder.test.images()).maps)
    other = AnomalyDetector(config.replace(ensemble={"members": {"density": 1.0, "residual": 4.0}}))
    assert dict(other.config.ensemble.members) == {"density": 1.0, "residual": 4.0}


def test_a_backbone_that_changes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set train\.backbone=frozen"):
        AnomalyDetector(CONFIG.replace(train={"backbone": "train"}))
