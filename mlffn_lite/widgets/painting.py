"""One pseudo-anomaly at a chosen place: the generators of :mod:`mlffn_lite.pseudo`, which draw the place at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pseudo import Blemish, Canvas, ConfettiNoise, CutPaste, CutPasteScar, PseudoAnomaly, _Paste


def paint(
    image: Tensor, kind: str, *, x: float, y: float, size: float, strength: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Put one pseudo-anomaly (§2.1) at a place of an image.

    Parameters
    ----------
    image : Tensor
        (3, H, W), uint8 or in [0, 1]. Not modified.
    kind : str
        A key of :data:`mlffn_lite.pseudo.KINDS`.
    x, y : float
        Centre in widths and heights of the image, 0 to 1; a pasted rectangle is moved until it lies inside.
    size : float
        In image sides, above 0 and at most 1: side of a square (confetti), square root of the area (cutpaste), length
        (scar, blemish).
    strength : float
        Share of the full change that is applied, 0 to 1; 0 changes nothing.
    seed : int
        Of everything else: rotation, colour, what is copied.

    Returns
    -------
    image : Tensor
        (3, H, W) in [0, 1], float32 for uint8, else in the dtype of the input.
    mask : Tensor
        (H, W) bool, the pixels that changed by more than :data:`mlffn_lite.pseudo.VISIBLE_CHANGE`.

    Raises
    ------
    ValueError
        If the kind is unknown or a number is out of range.
    """
    if kind not in _PLACED:
        raise ValueError(f"unknown kind {kind!r}; choose from {', '.join(_PLACED)}")
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 <= strength <= 1 and 0 < size <= 1):
        raise ValueError(f"x, y, strength must lie in [0, 1], size in (0, 1]; got {x}, {y}, {strength} and {size}")
    full, _ = _PLACED[kind](x, y, size)(image[None].cpu(), generator=torch.Generator().manual_seed(seed))
    canvas = Canvas(image[None].cpu())
    at = canvas.locate(*_everywhere(canvas))
    canvas.write(at, torch.lerp(canvas.read(at), full.permute(1, 0, 2, 3).flatten(1).float(), strength))
    return canvas.out[0], canvas.masks[0, 0]


def _everywhere(canvas: Canvas) -> tuple[Tensor, Tensor, Tensor]:
    """List all pixels of the canvas's first image: its number, their rows and columns."""
    rows, columns = torch.meshgrid(*map(torch.arange, canvas.out.shape[2:]), indexing="ij")
    return torch.zeros(rows.numel(), dtype=torch.long), rows.flatten(), columns.flatten()


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """Where the shape of a generator goes."""

    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class _Confetti(_Placed, ConfettiNoise):
    def apply(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        height, width = canvas.out.shape[2:]
        draws, side = torch.rand(4, generator=generator), max(2.0, self.side[0] * min(height, width))
        angle, colour = math.radians((2 * float(draws[0]) - 1) * self.rotation), 2 * draws[1:, None] - 1
        centre = (self.y * height - 0.5, self.x * width - 0.5)
        pose = torch.tensor([*centre, math.cos(angle), math.sin(angle), side, side])[:, None]
        colour = colour / colour.abs().max()
        colour = colour * self._sign(canvas, images, pose, colour)
        shape, rows, columns = _everywhere(canvas)
        at = canvas.locate(shape, rows, columns)
        canvas.write(at, canvas.read(at) + self._noise(canvas, pose, colour, shape, rows, columns))


@dataclass(frozen=True, kw_only=True)
class _Pasted(_Placed, _Paste):
    def _place(self, draws: Tensor, places: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        pose, corner, extent = super()._place(draws, places, height, width)  # of all candidates, which share the target
        for axis, (centre, side) in enumerate(((self.y, height), (self.x, width))):
            reach = int(extent[axis, 0])
            corner[axis] = min(max(round(centre * side - reach / 2), 0), side - reach)
            pose[axis] = corner[axis] + (reach - 1) / 2
        return pose, corner, extent


@dataclass(frozen=True, kw_only=True)
class _CutPaste(_Pasted, CutPaste):
    pass


@dataclass(frozen=True, kw_only=True)
class _Scar(_Pasted, CutPasteScar):
    pass


@dataclass(frozen=True, kw_only=True)
class _Blemish(_Placed, Blemish):
    def _place(self, draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        draws[3], draws[4] = self.y, self.x  # in place: what fills the blemish is judged there too
        return super()._place(draws, height, width)


_PLACED: dict[str, Callable[[float, float, float], PseudoAnomaly]] = {
    "confetti": lambda x, y, size: _Confetti(x=x, y=y, count=(1, 1), side=(size, size)),
    "cutpaste": lambda x, y, size: _CutPaste(x=x, y=y, area=(size**2, size**2)),
    "scar": lambda x, y, size: _Scar(x=x, y=y, length=(size, size), width=(size / 4, size / 4)),
    "blemish": lambda x, y, size: _Blemish(x=x, y=y, count=(1, 1), length=(size, size), contrast=(0.8, 0.8)),
}
