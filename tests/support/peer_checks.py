"""What every trained peer must do, checked the same way in each one's tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector


def good_and_with_hole() -> tuple[Tensor, Tensor]:
    """Return ten images (10, 3, 64, 64) of a regular pattern, and four with a hole in rows 24–35, columns 30–41."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    good = torch.stack(
        [(0.5 + 0.3 * torch.sin((x + s) * 0.8) * torch.sin(y * 0.8)).expand(3, 64, 64) for s in range(10)]
    )
    good = (good + 0.01 * torch.randn(good.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    bad = good[:4].clone()
    bad[:, :, 24:36, 30:42] = torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1)
    return good, bad


def check_hole(detector: AnomalyDetector, good: Tensor, bad: Tensor, around: tuple[slice, slice]) -> None:
    """The images with a hole score higher than all good ones, and inside it more than anywhere not ``around`` it."""
    maps, scores = detector.predict(bad)
    assert (scores > detector.predict(good).scores.max()).all()
    outside = maps.clone()
    outside[:, *around] = 0
    assert (maps[:, 24:36, 30:42].mean((1, 2)) > outside.amax((1, 2))).all()


def check_seeds_and_saving(detector: AnomalyDetector, run: Path, folder: AnomalyFolder, steps: int) -> None:
    """A saved run, and the same seed again whatever the global generator's, give the same maps; another seed others."""
    images, config = folder.test.images(), detector.config.replace(train={"steps": steps})
    assert torch.equal(AnomalyDetector.load(run, device="cpu").predict(images).maps, detector.predict(images).maps)
    found: list[Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        own = AnomalyDetector(config.replace(train={"seed": seed})).fit(folder, progress=False)
        found.append(own.predict(images[:2]).maps)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def check_any_size(detector: AnomalyDetector, size: tuple[int, int]) -> None:
    """Random and constant images of any size have finite maps of that size."""
    images = torch.stack([torch.rand(3, *size), torch.zeros(3, *size), torch.ones(3, *size)])
    with torch.inference_mode():
        maps = detector._score(images)
    assert maps.shape == (3, *size)
    assert torch.isfinite(maps).all()


def check_resuming(config: Config, folder: AnomalyFolder, run: Path, stop: int) -> None:
    """A run that breaks off in a step and is resumed ends as one that did not, to the bit."""
    config = config.replace(train={"checkpoint_every": 1})
    images, good = folder.test.images()[:2], list(folder.train.images()[:4])
    whole = AnomalyDetector(config).fit(good, progress=False)
    broken: Any = AnomalyDetector(config)
    losses = broken._losses

    def failing(images: Tensor, step: int, generator: torch.Generator) -> Sequence[Tensor]:
        if step == stop:
            raise KeyboardInterrupt
        found: Sequence[Tensor] = losses(images, step, generator)
        return found

    broken._losses = failing
    with pytest.raises(KeyboardInterrupt):
        broken.fit(good, out=run, progress=False)
    resumed = AnomalyDetector(config).fit(good, out=run, progress=False, resume=True)
    assert resumed.step == whole.step > stop
    assert torch.equal(resumed.predict(images).maps, whole.predict(images).maps)
