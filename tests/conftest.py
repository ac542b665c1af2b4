"""Settings shared by all tests: reproducible property tests, few threads, small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from mlffn_lite.datasets.folder import AnomalyFolder

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in MVTec layout: 12 grainy good images, 4 good and 4 scratched test images, 64 px."""
    root = tmp_path_factory.mktemp("data") / "parts"
    rng = np.random.default_rng(0)
    for split, defect, count in (("train", "good", 12), ("test", "good", 4), ("test", "scratch", 4)):
        for index in range(count):
            image = 120 + 10 * rng.standard_normal((64, 64, 3))
            mask = np.zeros((64, 64), bool)
            if defect == "scratch":
                mask[20 + index : 24 + index, 10:50] = True
                image[mask] += 90
            save(root / split / defect / f"{index:03}.png", image.clip(0, 255).astype(np.uint8))
            if defect == "scratch":
                save(root / "ground_truth" / defect / f"{index:03}_mask.png", mask.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="session")
def folder(parts: Path) -> AnomalyFolder:
    """That data set, read at its own size."""
    return AnomalyFolder(parts, size=64)


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
