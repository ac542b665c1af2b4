"""A brush: strokes on an image, as a hand or code draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from mlffn_lite.canvas import VISIBLE_CHANGE, Canvas

_FINER = 4  # strokes are drawn so many times finer, for smooth edges


class Stroke(NamedTuple):
    """A line through points, in widths and heights of the image, with its width in image sides and its colour."""

    points: tuple[tuple[float, float], ...]
    size: float
    colour: str


def brush(image: Tensor, strokes: Sequence[Stroke], *, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw strokes on an image.

    Parameters
    ----------
    image : Tensor
        (3, H, W), uint8 or in [0, 1]. Not modified.
    strokes : sequence of Stroke
        A later one covers an earlier one. A single point is a dot.
    strength : float
        Opacity, 0 to 1.

    Returns
    -------
    image : Tensor
        (3, H, W) in [0, 1].
    mask : Tensor
        (H, W) bool, the pixels that changed by more than :data:`~mlffn_lite.canvas.VISIBLE_CHANGE`.

    Raises
    ------
    ValueError
        If a colour is unknown, or a number is out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    good = Canvas(image[None].cpu()).images[0]
    painted = good.clone()
    for stroke in strokes:
        colour = torch.tensor(ImageColor.getrgb(stroke.colour)[:3]).to(good.dtype)[:, None, None] / 255
        painted = torch.lerp(painted, colour.expand_as(good), strength * _cover(stroke, good.shape[1:]).to(good.dtype))
    mask = ((painted - good).abs() > VISIBLE_CHANGE).any(0)
    return torch.where(mask, painted, good), mask


def _cover(stroke: Stroke, shape: Sequence[int]) -> Tensor:
    """Return how much of each pixel a stroke covers, (H, W) in [0, 1]."""
    if not stroke.points or not 0 < stroke.size <= 1:
        raise ValueError(f"a stroke needs a point and a size in (0, 1], got {len(stroke.points)} and {stroke.size}")
    height, width = (_FINER * n for n in shape)
    sheet = Image.new("L", (width, height))
    draw, wide = ImageDraw.Draw(sheet), stroke.size * max(width, height)
    places = [(x * width, y * height) for x, y in stroke.points]
    draw.line(places, 255, round(wide), joint="curve")
    for x, y in places:
        draw.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), 255)
    return torch.from_numpy(np.array(sheet.reduce(_FINER))) / 255
