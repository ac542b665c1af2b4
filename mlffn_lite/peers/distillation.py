"""What two methods share that first distil a small network from a large one: other views of the few images there are.

Both also hold out good images to scale their scores by, and have a faster rate where schedules are small.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.folder import Split
from .trained import TrainedPeer

HELD_OUT = 10
"""One good image of so many is not trained on."""
GAIN = 0.5
"""Largest change of a colour channel, as a share of it."""
SHORT_RATE = 10.0
"""Learning rates of a small schedule in units of the papers', which have hundreds of times as many steps."""


SAMPLE = 64
"""Images, at most, that means and deviations of features are taken from."""


class DistillingPeer(TrainedPeer):
    """A peer whose last step scales its scores by good images that it was not trained on.

    Attributes
    ----------
    held : Split
        These images, while it is fitted.
    """

    held: Split

    def _fit(self, train: Split, *, run: Path | None, progress: bool, resume: bool) -> float:
        rest, self.held = hold_out(train)
        return super()._fit(rest, run=run, progress=progress, resume=resume)


def views(
    images: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    size: tuple[int, int] | None = None,
    shown: tuple[float, float] = (0.5, 1.0),
) -> Tensor:
    """Return random views of images, in turn.

    The papers distil on ImageNet, where a network sees what no good image shows.  Where there are good images only,
    views stand in for it: any part of an image, flipped, turned by any angle, rows and columns enlarged differently,
    colour channels exchanged and each with a gain of its own; mirrored where a view looks beyond the border.

    Parameters
    ----------
    images : Tensor
        (B, 3, H, W) in [0, 1].
    count : int
        How many.
    generator : torch.Generator
        Draws all.
    size : (int, int), optional
        Height and width of the views, by default those of the images.
    shown : (float, float)
        Bounds of the magnification's inverse: of the share of the sides that a view of the images' size shows.

    Returns
    -------
    Tensor
        (count, 3, height, width) in [0, 1].
    """
    turn = torch.arange(count) % len(images)
    device = images.device
    size = size or (images.shape[-2], images.shape[-1])
    part = torch.tensor([size[1] / images.shape[-1], size[0] / images.shape[-2]], device=device)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(count, *shape, generator=generator)).to(device)

    angle, scale = uniform(-torch.pi, torch.pi), (uniform(*shown, 2) * part).clamp(max=1)
    flip = torch.where(uniform(-1.0, 1.0) < 0, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([cos * flip, -sin, sin * flip, cos], dim=1).view(-1, 2, 2) * scale[:, :, None]
    shift = (1 - scale) * uniform(-1.0, 1.0, 2)
    grid = F.affine_grid(torch.cat([theta, shift[:, :, None]], 2), [count, 3, *size], align_corners=False)
    seen = F.grid_sample(images[turn.to(device)], grid, padding_mode="reflection", align_corners=False)
    order = torch.rand(count, 3, generator=generator).argsort(1).to(device)
    seen = seen.gather(1, order[:, :, None, None].expand_as(seen))
    return (seen * uniform(1 - GAIN, 1 + GAIN, 3, 1, 1)).clamp(0, 1)


def sample_of(train: Split) -> Split:
    """Return evenly spread images of a split, :data:`SAMPLE` at most."""
    return train.subset(torch.arange(0, len(train), -(-len(train) // SAMPLE)))


def hold_out(train: Split) -> tuple[Split, Split]:
    """Split good images into those to train on and every tenth; where there are too few, all are both."""
    places = torch.arange(len(train))
    held = places % HELD_OUT == HELD_OUT - 1
    return (train.subset(places[~held]), train.subset(places[held])) if held.any() else (train, train)
