"""Large images in tiles: what is fitted and scored is a tile; the maps of an image's tiles are stitched to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .datasets.folder import Sample, Split


@dataclass(frozen=True)
class Tiles:
    """A grid of equal, overlapping tiles that covers an image.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image.
    side : int
        Of a tile, which is square where the image is large enough.
    overlap : int
        Pixels, at least, that neighbours share.
    """

    shape: tuple[int, int]
    side: int
    overlap: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a tile."""
        return min(self.side, self.shape[0]), min(self.side, self.shape[1])

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Top and left of every tile, row by row, evenly spread."""
        rows, columns = map(self._starts, self.shape, self.size)
        return [(top, left) for top in rows for left in columns]

    def _starts(self, total: int, tile: int) -> list[int]:
        count = 1 if total <= tile else -(-(total - self.overlap) // (tile - self.overlap))
        return [round(start) for start in np.linspace(0, total - tile, count)]

    def cut(self, image: Tensor, number: int) -> Tensor:
        """Return a tile of images or masks (..., H, W)."""
        (top, left), (height, width) = self.places[number], self.size
        return image[..., top : top + height, left : left + width]

    def stitch(self, maps: Callable[[list[int]], Tensor], batch: int) -> Tensor:
        """Return one map (..., H, W) of those that ``maps`` gives for numbers of tiles, (B, ..., h, w), B at a time.

        Where tiles overlap their mean is taken, weighted by the distance from the edge of each, where a network sees
        least. In memory are the map, its weights and one batch.
        """
        ramps = [
            1.0 + torch.minimum(torch.arange(n), torch.arange(n).flip(0)).clamp(max=self.overlap) for n in self.size
        ]
        weight = torch.outer(*ramps)
        total, weights = torch.zeros(0), torch.zeros(self.shape)
        for start in range(0, len(self.places), batch):
            numbers = list(range(start, min(start + batch, len(self.places))))
            for number, found in zip(numbers, maps(numbers), strict=True):
                if not total.numel():
                    total = found.new_zeros((*found.shape[:-2], *self.shape))
                self.cut(total, number).add_(found * weight.to(found.device))
                self.cut(weights, number).add_(weight)
        return total.div_(weights.to(total.device))


class TiledSplit(Split):
    """The tiles of a split's images, image after image, as samples of their own."""

    in_background = False  # it remembers the last image, for one thread

    def __init__(self, split: Split, tiles: Tiles, numbers: Tensor | None = None) -> None:
        numbers = torch.arange(len(split) * len(tiles.places)) if numbers is None else numbers
        entries = split.entries
        super().__init__([entries[i // len(tiles.places)] for i in numbers.tolist()], tiles.size, None)
        self._split, self._tiles, self._numbers = split, tiles, numbers
        self._last: tuple[int, tuple[Tensor, Tensor]] | None = None  # an image need not be decoded for every tile

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        entry = self._entries[index]
        images, masks = self.batch([index])
        return Sample(images[0], masks[0], entry.label, entry.defect, entry.path, entry.has_mask)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen tiles (B, 3, h, w) uint8 and their masks (B, h, w) bool."""
        found = []
        for number in self._numbers[torch.as_tensor(indices, dtype=torch.long)].tolist():
            image, tile = divmod(number, len(self._tiles.places))
            if self._last is None or self._last[0] != image:
                self._last = image, self._split.batch([image])
            found.append(tuple(self._tiles.cut(x[0], tile) for x in self._last[1]))
        if not found:
            height, width = self.shape
            return torch.zeros(0, 3, height, width, dtype=torch.uint8), torch.zeros(0, height, width, dtype=torch.bool)
        images, masks = zip(*found, strict=True)
        return torch.stack(images), torch.stack(masks)

    def subset(self, indices: Sequence[int] | Tensor) -> Split:
        """Return the chosen tiles as a split of their own."""
        return TiledSplit(self._split, self._tiles, self._numbers[torch.as_tensor(indices, dtype=torch.long)])
