"""What the generators of pseudo-anomalies share: a batch that is changed pixel by pixel, and turned shapes on it.

All shapes of a batch are laid end to end in one list of pixels, so the work is proportional to what changes. Parameters
are drawn and derived on the generator's device, pixels computed on the images' device: a CPU generator gives the same
anomalies on every device, and CUDA never has to wait for a size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

VISIBLE_CHANGE = 4 / 255
"""A pixel counts as changed if a channel moves by more than this, four grey levels of an 8-bit image. Smaller changes,
such as the far tail of a blur, nobody can see: they are taken back, and every pixel outside a mask equals the input."""

PROBES = 8
"""Points per side with which a shape is judged before it is drawn."""


class Canvas:
    """A batch being changed: lists of pixels of ``images`` and ``out`` are read and written, ``masks`` stays true.

    Parameters
    ----------
    images : Tensor
        (B, 3, H, W), floating point in [0, 1] or uint8 (which is divided by 255). Not modified.

    Attributes
    ----------
    size : (int, int)
        H and W.
    images, out : Tensor
        (B, 3, H, W), floating point: before and after.
    masks : Tensor
        (B, 1, H, W) bool: pixels that differ visibly.

    Raises
    ------
    ValueError
        If shape, dtype or range of the images is wrong.
    """

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"images must be floating point or uint8, got {images.dtype}")
        elif images.numel() and not (torch.stack((images.amin(), 1 - images.amax())) >= 0).all():
            raise ValueError("images must lie in [0, 1]; synthesise pseudo-anomalies before normalising")
        if not images.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous()
        self.size = (images.shape[2], images.shape[3])
        self.images, self.out = images.detach(), images.detach().clone()
        self.masks = torch.zeros((len(images), 1, *self.size), dtype=torch.bool, device=images.device)
        self._precise = torch.promote_types(images.dtype, torch.float32)  # half precision is too coarse to compute in
        # Both memory layouts are dense, so a flat view and the strides address every value.
        self._before, self._after = (t.as_strided((t.numel(),), (1,)) for t in (self.images, self.out))

    def locate(self, image: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return where pixels, given by image, row and column, (N,), are stored: in images (3, N), in masks (N,)."""
        per_image, per_channel, per_row, per_column = self.images.stride()
        height, width = self.size
        channels = torch.arange(3, device=image.device)[:, None] * per_channel
        return image * per_image + y * per_row + x * per_column + channels, (image * height + y) * width + x

    def read(self, at: tuple[Tensor, Tensor], *, changed: bool = False) -> Tensor:
        """Return values (3, N), at least float32, of ``images``, or of ``out`` if ``changed``."""
        flat = self._after if changed else self._before
        return flat.index_select(0, at[0].flatten()).view(at[0].shape).to(self._precise)

    def write(self, at: tuple[Tensor, Tensor], values: Tensor) -> None:
        """Set pixels of ``out``, each listed once, to values (3, N), clamped to [0, 1]; update their masks."""
        before = self.read(at)
        values = values.clamp(0, 1).to(self.out.dtype).to(self._precise)  # the mask is about what is stored
        seen = ((values - before).abs() > VISIBLE_CHANGE).any(dim=0)
        self._after.scatter_(0, at[0].flatten(), torch.where(seen, values, before).to(self.out.dtype).flatten())
        self.masks.view(-1).scatter_(0, at[1], seen)


class Pixels(NamedTuple):
    """Pixels of several shapes, end to end: the number of each one's shape, its row and column; (N,) int64."""

    shape: Tensor
    y: Tensor
    x: Tensor


class Shapes(NamedTuple):
    """Turned rectangles, or the ellipses in them: centres, cosines and sines of their angles, and sides, in pixels."""

    y: Tensor
    x: Tensor
    cos: Tensor
    sin: Tensor
    tall: Tensor
    wide: Tensor

    def to(self, device: torch.device) -> Shapes:
        """Move all to a device."""
        return Shapes(*torch.stack(self).to(device))

    def pick(self, which: Tensor) -> Shapes:
        """Return those of n shapes that have the numbers (N,) int64."""
        return Shapes(*torch.stack(self).index_select(1, which))

    def local(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates of pixels along the axes of as many shapes, (N,) each, from their centres."""
        dy, dx = y - self.y, x - self.x
        return dy * self.cos + dx * self.sin, dx * self.cos - dy * self.sin

    def probe(self, height: int, width: int) -> Pixels:
        """Spread PROBES² points over each of n shapes, and return the nearest pixels of the image."""
        cy, cx, cos, sin, tall, wide = torch.stack(self)[:, :, None, None]
        steps = (torch.arange(PROBES, device=tall.device) + 0.5) / PROBES - 0.5
        v, u = tall * steps[:, None], wide * steps
        y, x = (cy + v * cos - u * sin).flatten().round().long(), (cx + v * sin + u * cos).flatten().round().long()
        shape = torch.arange(len(tall), device=tall.device).repeat_interleave(PROBES**2)
        return Pixels(shape, y.clamp(0, height - 1), x.clamp(0, width - 1))


def window_around(centre: Tensor, reach: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return first pixels and extents, int64, of what reaches so far about centres along a side of the image."""
    first, end = ((centre + r + 1).clamp(0, side).long() for r in (-reach, reach))
    return first, end - first


def list_pixels(top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, device: torch.device) -> Pixels:
    """List the pixels of n upright windows, given by upper left corners and extents, (n,) int64.

    Extents on the generator's device tell how many there are, so CUDA need not be asked.
    """
    rows, total = int(tall.sum()), int((tall * wide).sum())
    top, left, tall, wide = (t.to(device) for t in (top, left, tall, wide))
    window, y = _number(tall, rows)
    row, x = _number(wide[window], total)
    window, y = window.index_select(0, row), (y + top[window]).index_select(0, row)
    return Pixels(window, y, x + left.index_select(0, window))


def _number(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Number ``total = counts.sum()`` items: the owner of each, and its place among the owner's."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=total)
    start = counts.cumsum(0) - counts
    return owner, torch.arange(total, device=counts.device) - start.index_select(0, owner)


def lerp(draws: Tensor, low: float, high: float) -> Tensor:
    """Spread uniform draws over a range."""
    return low + (high - low) * draws


def log_lerp(draws: Tensor, low: float, high: float) -> Tensor:
    """Spread uniform draws log-uniformly over a range above 0."""
    return lerp(draws, math.log(low), math.log(high)).exp()
