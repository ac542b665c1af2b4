"""Known defects: images with real defects, and their masks, in place of pseudo-anomalies. Not in the paper.

What a network learns from these is a bound for what any pseudo-anomaly can teach it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..canvas import Canvas
from ..config import DataConfig
from ..datasets.folder import Split
from ..datasets.sources import open_source
from ..errors import ConfigError
from ..pseudo import PseudoAnomaly


@dataclass(kw_only=True)
class KnownDefects(PseudoAnomaly):
    """Replaces good images by defective ones of a folder, drawn at random.

    Parameters
    ----------
    folder : str
        A category in MVTec AD layout, or a folder of them, of which the one that is named as the training set's is
        taken: its defective test images that have masks. They must be others than those that a result is measured on.

    Raises
    ------
    ConfigError
        When first used, if the folder has no defective image with a mask.
    """

    folder: str
    _category: str = field(default="", init=False)

    def prepare(self, good: Split) -> None:
        """Take the name of the training set."""
        root = good.paths[0].resolve().parents[2]  # of train/good/NAME
        self._category = root.name if (Path(self.folder) / root.name).is_dir() else ""

    def draw(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Replace the canvas's images with the numbers ``images``, (n,) int64."""
        pictures, masks = _read(str(Path(self.folder, self._category)), canvas.size)
        chosen = torch.randint(len(pictures), (len(images),), generator=generator, device=generator.device).cpu()
        canvas.out[images] = (pictures[chosen].to(canvas.out.device) / 255).to(canvas.out.dtype)
        canvas.masks[images] = masks[chosen].to(canvas.masks.device)

    def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return as many defective images (B, 3, H, W) and their masks (B, 1, H, W) as there are good ones."""
        return self(images, generator=generator)


@lru_cache(maxsize=4)
def _read(folder: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the defective images, uint8 (M, 3, H, W), and masks, bool (M, 1, H, W)."""
    if not Path(folder).is_dir():
        raise ConfigError(f"known defects: {folder} is no folder; give a category with test/<defect> and ground_truth")
    test = open_source(folder, DataConfig(), shape=size).test
    usable = test.labels().bool() & test.has_mask
    if not usable.any():
        raise ConfigError(f"known defects: {folder} has no defective test image with a mask; give a folder that has")
    chosen = test.subset(usable.nonzero()[:, 0])
    return chosen.images(), chosen.masks()[:, None]
