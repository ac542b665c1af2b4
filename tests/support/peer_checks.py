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
