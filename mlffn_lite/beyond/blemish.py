"""Blemishes: pseudo-anomalies that the paper does not have, small and faint as real defects often are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..canvas import Canvas, Shapes, lerp, list_pixels, log_lerp, window_around
from ..pseudo import CanvasAnomaly, Limits

CELLS = 8
"""Cells per side of the lattice of a smooth noise."""


@dataclass(frozen=True, kw_only=True)
class Blemish(CanvasAnomaly):
    """Irregular spots, stains and scratches of all sizes and strengths.

    A blemish is an ellipse whose border is roughened by smooth noise; its opacity falls from at most 1 inside to 0 at
    the border over a random width. What fills it is drawn per blemish: a change of colour, the image's own content from
    elsewhere with a quarter of such a change, or a cloudy texture. Lengths and contrasts are log-uniform: small and
    faint ones are as frequent as large and strong ones, which the paper's generators hardly make.

    Parameters
    ----------
    count : (int, int)
        Fewest and most blemishes per image, at most 64.
    length : (float, float)
        Range of the long axis, in image sides, log-uniform; never drawn smaller than 3 px.
    aspect : (float, float)
        Range of long over short axis, log-uniform; the short one is never smaller than 2 px.
    contrast : (float, float)
        Range of the largest change of a channel by colour or texture, log-uniform.
    colour, elsewhere, texture : float
        Relative weights of the fillings.
    grey : float
        Probability that all channels change alike.
    """

    count: tuple[int, int] = (1, 3)
    length: tuple[float, float] = (4 / 256, 128 / 256)
    aspect: tuple[float, float] = (1.0, 12.0)
    contrast: tuple[float, float] = (0.08, 0.8)
    colour: float = 0.4
    elsewhere: float = 0.4
    texture: float = 0.2
    grey: float = 0.6

    limits: ClassVar[Limits] = {
        "count": (1, 64),
        "length": (1e-6, 4),
        "aspect": (1, 1e3),
        "contrast": (1e-6, 1),
        "grey": (0, 1),
        **dict.fromkeys(("colour", "elsewhere", "texture"), (0, 1e6)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.colour + self.elsewhere + self.texture:
            raise ValueError("colour, elsewhere and texture are all 0; give one a weight")

    def draw(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Draw blemishes one after the other, each onto the result of those before."""
        (height, width), n, most = canvas.size, len(images), self.count[1]
        device, home = images.device, generator.device
        draws = torch.rand((1 + 15 * most, n), generator=generator, device=home)
        lattices = torch.rand((most, 2, n, CELLS + 1, CELLS + 1), generator=generator, device=home).to(device)
        count = lerp(draws[0], self.count[0], most + 1).floor()
        for k, (drawn, (border, clouds)) in enumerate(zip(draws[1:].unflatten(0, (most, 15)), lattices, strict=True)):
            length, aspect, angle, y, x, cells, softness, filling, contrast, grey, *tint, down, right = drawn
            y, x = self._placed(y, x)
            ellipse, (top, left, tall, wide) = self._outline(canvas.size, length, aspect, angle, y, x)
            ellipse, pixels = ellipse.to(device), list_pixels(top, left, tall * (count > k), wide, device)
            soft, filling = log_lerp(softness, 0.1, 1.0), filling * (self.colour + self.elsewhere + self.texture)
            cells, soft, filling, down, right = (
                t.to(device) for t in (cells, soft, filling, (down * height).long(), (right * width).long())
            )
            shape, image = pixels.shape, images.index_select(0, pixels.shape)
            at = canvas.locate(image, pixels.y, pixels.x)
            old = canvas.read(at, changed=True)

            v, u = ellipse.pick(shape).local(pixels.y, pixels.x)
            v, u = v * (2 / ellipse.tall)[shape], u * (2 / ellipse.wide)[shape]  # the ellipse is the unit circle
            rough = value_noise(border, shape, v, u, 2 + 4 * cells)
            opacity = ((1 - v.square() - u.square() + 1.6 * (rough - 0.5)) / soft[shape]).clamp(0, 1)

            colour = self._colour(canvas, images, y, x, torch.stack(tint), contrast, grey).index_select(1, shape)
            cloud = value_noise(clouds, shape, v, u, 3 + 5 * cells) - 0.5
            source = canvas.locate(image, (pixels.y + down[shape]) % height, (pixels.x + right[shape]) % width)
            moved = canvas.read(source) + colour / 4  # some of a blank image's surroundings equal it
            pick = filling[shape]
            filled = torch.where(pick < self.colour + self.elsewhere, moved, old + 2 * cloud * colour)
            filled = torch.where(pick < self.colour, old + colour, filled)
            canvas.write(at, old + opacity * (filled - old))

    def _outline(
        self, size: tuple[int, int], length: Tensor, aspect: Tensor, angle: Tensor, y: Tensor, x: Tensor
    ) -> tuple[Shapes, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return ellipses, and the windows that hold them however their borders are roughened."""
        tall = (log_lerp(length, *self.length) * min(size)).clamp(min=3)
        wide = (tall / log_lerp(aspect, *self.aspect)).clamp(min=2)
        y, x, cos, sin = y * size[0] - 0.5, x * size[1] - 0.5, (math.pi * angle).cos(), (math.pi * angle).sin()
        outside = math.sqrt(1.8) / 2  # opacity is 0 there: 1 - r² + 1.6 · ½ < 0
        top, down = window_around(y, torch.hypot(tall * cos, wide * sin) * outside, size[0])
        left, right = window_around(x, torch.hypot(tall * sin, wide * cos) * outside, size[1])
        return Shapes(y, x, cos, sin, tall, wide), (top, left, down, right)

    def _colour(
        self, canvas: Canvas, images: Tensor, y: Tensor, x: Tensor, tint: Tensor, contrast: Tensor, grey: Tensor
    ) -> Tensor:
        """Return the change of colour of each blemish, (3, n); darker instead of lighter where that shows more."""
        alike = torch.where(tint[0] < 0.5, -1.0, 1.0)
        tint = torch.where(grey < self.grey, alike, 2 * tint - 1)
        colour = (tint / tint.abs().amax(0) * log_lerp(contrast, *self.contrast)).to(images.device)
        centre = ((t * s).long().clamp(max=s - 1) for t, s in zip((y, x), canvas.size, strict=True))
        seen = canvas.read(canvas.locate(images, *(t.to(images.device) for t in centre)), changed=True)
        more, less = (((seen + s * colour).clamp(0, 1) - seen).abs().mean(0) for s in (1, -1))
        return torch.where(more < 0.4 * less, -colour, colour)


def value_noise(lattice: Tensor, shape: Tensor, v: Tensor, u: Tensor, cells: Tensor) -> Tensor:
    """Smooth noise in [0, 1] at points (N,), |v|, |u| < 1.35, of shapes whose lattices are (n, CELLS + 1, CELLS + 1).

    ``cells``, (n,), at most CELLS, is how many of them a shape and its surroundings are across.
    """
    half = cells.index_select(0, shape) / 2
    v, u = ((t.clamp(-1.35, 1.35) * half / 1.35 + CELLS / 2).clamp(0, CELLS - 1e-3) for t in (v, u))
    i, j = v.long(), u.long()
    v, u = (t * t * (3 - 2 * t) for t in (v - i, u - j))
    corner, values = (shape * (CELLS + 1) + i) * (CELLS + 1) + j, lattice.flatten()
    top, bottom = (
        torch.lerp(values.index_select(0, corner + down), values.index_select(0, corner + down + 1), u)
        for down in (0, CELLS + 1)
    )
    return torch.lerp(top, bottom, v)
