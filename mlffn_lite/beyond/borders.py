"""Scores in units of what good images have: at the border of an image, of what they have at that border.

Not in the paper. A convolution sees zeros outside the image, so near the border features, and distances between them,
are unlike those inside; on surfaces that fill the picture most false alarms lie there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..features import upsample
from ..layers import normal_range

CELL = 8
"""Side in pixels of the cells that an image is divided into."""


class Scale(NamedTuple):
    """What scores of good images look like in every zone: their median and its distance to a high percentile."""

    centre: Tensor
    width: Tensor


def zones(height: int, width: int, rings: int) -> Tensor:
    """Number the zones of an image of so many cells, (height, width): 0 inside, one for each row along each border.

    ``rings`` rows of cells along each border are zones, 4 · rings + 1 in all with the inside. A cell in a corner
    belongs to the nearest border. Of small images at most a quarter per side is border.
    """
    down, right = torch.arange(height)[:, None], torch.arange(width)[None]
    sides = torch.stack(torch.broadcast_tensors(down, height - 1 - down, right, width - 1 - right))
    distance, side = sides.min(0)
    border = distance < min(rings, (min(height, width) - 1) // 4)
    return torch.where(border, 1 + 4 * distance + side, 0)


def fit_scale(maps: Tensor, rings: int, ignored: Tensor | None = None) -> Scale:
    """Take the scale, (4 · rings + 1,) each, from score maps (N, H, W) of good images.

    A noisy border is damped, a quiet one is not raised to the noise of the rest: median and width are at least those
    inside. Pixels that are ``ignored``, (H, W) or (N, H, W) bool, do not count; where nothing is seen of a border it
    has the scale of the inside, which is that of all there is where nothing is seen inside.
    """
    height, width = maps.shape[-2:]
    where = _pixels(zones(-(-height // CELL), -(-width // CELL), rings), height, width).to(maps.device)
    seen = None if ignored is None else ~ignored.to(maps.device).expand_as(maps)
    centre = torch.full((4 * rings + 1,), -torch.inf, device=maps.device)  # small images lack the inner rings
    spread = torch.zeros_like(centre)
    for zone in where.unique().tolist():
        values = maps[:, where == zone] if seen is None else maps[seen & (where == zone)]
        if seen is not None and zone == 0 and not values.numel():
            values = maps[seen]
        if values.numel():
            low, high = normal_range(values)
            centre[zone], spread[zone] = low, (high - low).clamp(min=1e-6)
    return Scale(centre.clamp(min=float(centre[0])), spread.clamp(min=float(spread[0])))


def fields(scale: Scale, height: int, width: int) -> Scale:
    """Spread a scale over the pixels, (height, width) each; between zones it changes gradually."""
    rings = len(scale.centre) // 4
    cells = zones(-(-height // CELL), -(-width // CELL), rings).to(scale.centre.device)
    return Scale(*upsample(torch.stack([x[cells] for x in scale])[:, None], (height, width)))


def _pixels(cells: Tensor, height: int, width: int) -> Tensor:
    """Return the zone of every pixel."""
    rows, columns = (torch.arange(n) * c // n for n, c in ((height, cells.shape[0]), (width, cells.shape[1])))
    return cells[rows[:, None], columns]
