"""What explorers are shown in their tests: images, score maps and a detector of a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import Entry, Split
from mlffn_lite.detector import AnomalyDetector, Calibration, Prediction

SIDE = 32
SCALE = Calibration(low=0.0, high=2.0, threshold=1.0)
NAMES = ["good/000", "good/001", "hole/000", "hole/001", "stain/000"]


def split(names: list[str] = NAMES, shape: tuple[int, int] = (SIDE, SIDE), masks: bool = True) -> Split:
    """Grainy grey images; defective ones have a bright square of 6 px at row 10, column 4, and a mask of it."""
    rng = np.random.default_rng(0)
    entries, images, areas = [], [], []
    for name in names:
        defect = name.partition("/")[0]
        image, area = rng.integers(100, 140, (3, *shape), dtype=np.uint8), np.zeros(shape, bool)
        if defect != "good":
            area[10:16, 4:10] = True
            image[:, area] = 230
        path = Path(f"test/{name}.png")
        entries.append(Entry(path, defect, path if masks and defect != "good" else None))
        images.append(image)
        areas.append(area)
    return Split(entries, shape, (torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(areas))))


def prediction(parts: Split) -> Prediction:
    """Score 0.25, and on each defect 1.5 with a peak of 1.75 at row 12, column 6; the last image is missed."""
    maps = torch.full((len(parts), *parts.shape), 0.25)
    maps[parts.masks()] = 1.5
    maps[parts.masks().any(2).any(1), 12, 6] = 1.75
    maps[-1] = 0.25
    return Prediction(maps, maps.flatten(1).amax(1))


class Brightness(AnomalyDetector):
    """Score: how far a pixel is from the mean of the good images."""

    def fit(self, source: Any, *, out: Any = None, progress: bool = True, resume: bool = False) -> Self:
        self.shape = source.shape
        self._calibrate(source)
        return self

    def _score(self, images: Tensor) -> Tensor:
        return (images - 120 / 255).abs().mean(1)

    def _tensors(self) -> dict[str, Tensor]:
        return {}

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        pass


def detector(parts: Split) -> Brightness:
    config = Config.preset("tiny", data={"size": 32}, train={"device": "cpu", "precision": "fp32"})
    return Brightness(config).fit(parts.subset([i for i, d in enumerate(parts.defects) if d == "good"]))
