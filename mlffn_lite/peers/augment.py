"""What compared methods that make their own anomalies share: turned rectangles and changes of colour."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def jitter(images: Tensor, generator: torch.Generator, inside: Tensor | None = None, amount: float = 0.1) -> Tensor:
    """Change brightness, contrast, saturation and hue of images (B, 3, H, W), by up to ``amount`` either way.

    The hue's is a share of a turn. Contrast is about the mean grey of the pixels ``inside`` (B, 1, H, W), by default of
    all.
    """
    batch = len(images)
    brightness, contrast, saturation = (uniform(batch, 1 - amount, 1 + amount, generator) for _ in range(3))
    turn = 2 * math.pi * uniform(batch, -amount, amount, generator)
    grey = torch.tensor([0.299, 0.587, 0.114])
    yiq = torch.stack([grey, torch.tensor([0.596, -0.274, -0.322]), torch.tensor([0.211, -0.523, 0.312])])
    rotation = torch.zeros(batch, 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = turn.cos()
    rotation[:, 2, 1] = turn.sin()
    rotation[:, 1, 2] = -turn.sin()
    s = saturation[:, None, None]
    matrix = (s * torch.eye(3) + (1 - s) * grey) @ torch.linalg.inv(yiq) @ rotation @ yiq
    matrix = (brightness[:, None, None] * matrix).to(images)
    x = torch.einsum("bij,bjhw->bihw", matrix, images).clamp(0, 1)
    weight = torch.ones_like(x[:, :1]) if inside is None else inside.to(x)
    mean = ((x * grey.to(x).view(1, 3, 1, 1)).sum(1, keepdim=True) * weight).sum((2, 3), keepdim=True)
    mean = mean / weight.sum((2, 3), keepdim=True).clamp(min=1)
    c = contrast.to(x).view(-1, 1, 1, 1)
    return (c * x + (1 - c) * mean).clamp(0, 1)


def turned(height: int, width: int, centre: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return where every pixel lies on the axes of a rectangle: down and right of its centre, (B, height, width).

    Parameters
    ----------
    height, width : int
        Of the image.
    centre : Tensor
        Row and column of the rectangles' centres, in pixels, (B, 2).
    angle : Tensor
        By which they are turned, in radians, (B,).
    """
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    dy, dx = y - centre[:, :1, None], x - centre[:, 1:, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * dy - sin * dx, sin * dy + cos * dx


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return so many numbers drawn from [low, high)."""
    return low + (high - low) * torch.rand(count, generator=generator)
