"""How far a network looks in the image, by gradients (notebook 03), and pictures that differ far from the middle."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Field(NamedTuple):
    """Where the gradient of the middle vector lies: density (H, W), sums to 1; its middle; side of the 90 % square."""

    density: Tensor
    row: int
    column: int
    side: int


def effective_field(features: Tensor, images: Tensor, held: float = 0.9) -> Field:
    """Return the effective receptive field of the middle vector of features (B, C, h, w).

    Parameters
    ----------
    features : Tensor
        Computed from ``images``, with gradients.
    images : Tensor
        (B, 3, H, W), requiring gradients; the density is the mean over them.
    held : float
        Share of the density within the square, around its own middle.
    """
    middle = features.shape[-1] // 2
    (gradient,) = torch.autograd.grad(features[:, :, middle, middle].sum(), images, retain_graph=True)
    each = gradient.abs().sum(1)
    density = (each / each.sum((1, 2), keepdim=True)).mean(0)
    row, column = (round(float(density.sum(d) @ torch.arange(float(density.shape[1 - d])))) for d in (1, 0))

    def inside(side: int) -> Tensor:
        top, left = max(row - side // 2, 0), max(column - side // 2, 0)
        return density[top : row + side // 2 + 1, left : column + side // 2 + 1].sum()

    return Field(density, row, column, next(s for s in range(1, density.shape[0] + 1, 2) if inside(s) >= held))


def surrounded(images: Tensor, others: Tensor, side: int) -> Tensor:
    """Keep a square in the middle of images (B, 3, H, W), and take what surrounds it from others."""
    out, top, left = others.clone(), (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
    out[..., top : top + side, left : left + side] = images[..., top : top + side, left : left + side]
    return out
