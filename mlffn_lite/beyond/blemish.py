"""Blemishes: pseudo-anomalies that the paper does not have, small and faint as real defects often are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..canvas import Canvas, Pixels, Shapes, Windows, check_limits, lerp, log_lerp, windows_around
from ..pseudo import CanvasAnomaly

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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits(self, count=(1, 64), length=(1e-6, 4), aspect=(1, 1e3), contrast=(1e-6, 1), grey=(0, 1))
        check_limits(self, colour=(0, 1e6), elsewhere=(0, 1e6), texture=(0, 1e6))
        if not self.colour + self.elsewhere + self.texture:
            raise ValueError("colour, elsewhere and texture are all 0; give one a weight")

    def draw(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Draw blemishes one after the other, each onto the result of those before."""
        n, most, device, home = len(images), self.count[1], images.device, generator.device
        draws = torch.rand((1 + 15 * most, n), generator=generator, device=home)
        lattices = torch.rand((most, 2, n, CELLS + 1, CELLS + 1), generator=generator, device=home).to(device)
        count = lerp(draws[0], self.count[0], most + 1).floor()
        for k, (draw, (border, clouds)) in enumerate(zip(draws[1:].unflatten(0, (most, 15)), lattices, strict=True)):
            ellipse, window = self._outline(self._named(draw), canvas.size)
            drawn, ellipse = self._named(draw.to(device)), ellipse.to(device)
            pixels = window._replace(tall=window.tall * (count > k)).pixels(device)
            shape = pixels.shape
            at = canvas.locate(images.index_select(0, shape), pixels.y, pixels.x)
            old = canvas.read(at, changed=True)
            v, u = ellipse.pick(shape).local(pixels.y, pixels.x)
            v, u = v * (2 / ellipse.tall)[shape], u * (2 / ellipse.wide)[shape]  # the ellipse is the unit circle
            rough = value_noise(border, shape, v, u, 2 + 4 * drawn.cells)
            soft = log_lerp(drawn.softness, 0.1, 1.0)[shape]
            opacity = ((1 - v.square() - u.square() + 1.6 * (rough - 0.5)) / soft).clamp(0, 1)
            cloud = value_noise(clouds, shape, v, u, 3 + 5 * drawn.cells) - 0.5
            filling = self._filling(canvas, images, drawn, pixels, old, 2 * cloud)
            canvas.write(at, old + opacity * (filling - old))

    def _named(self, draws: Tensor) -> _Draws:
        """Give the uniform draws (15, n) of a blemish their names, and it its place."""
        named = _Draws(draws[10:13], draws[13:], *draws[:10])
        y, x = self._placed(named.y, named.x)
        return named._replace(y=y, x=x)

    def _outline(self, drawn: _Draws, size: tuple[int, int]) -> tuple[Shapes, Windows]:
        """Return ellipses, and the windows that hold them however their borders are roughened."""
        height, width = size
        tall = (log_lerp(drawn.length, *self.length) * min(size)).clamp(min=3)
        wide = (tall / log_lerp(drawn.aspect, *self.aspect)).clamp(min=2)
        angle = math.pi * drawn.angle
        ellipse = Shapes(drawn.y * height - 0.5, drawn.x * width - 0.5, angle.cos(), angle.sin(), tall, wide)
        cos, sin, outside = ellipse.cos, ellipse.sin, math.sqrt(1.8) / 2  # opacity is 0 there: 1 - r² + 1.6 · ½ < 0
        reach_y, reach_x = torch.hypot(tall * cos, wide * sin) * outside, torch.hypot(tall * sin, wide * cos) * outside
        return ellipse, windows_around(ellipse.y, ellipse.x, reach_y, reach_x, size)

    def _filling(
        self, canvas: Canvas, images: Tensor, drawn: _Draws, pixels: Pixels, old: Tensor, cloud: Tensor
    ) -> Tensor:
        """Return what pixels become where a blemish is opaque, (3, N); ``cloud`` lies between -1 and 1."""
        (shape, y, x), (height, width) = pixels, canvas.size
        colour = self._colour(canvas, images, drawn).index_select(1, shape)
        down, right = (drawn.shift * drawn.shift.new_tensor([[height], [width]])).long()
        source = canvas.locate(images[shape], (y + down[shape]) % height, (x + right[shape]) % width)
        moved = canvas.read(source) + colour / 4  # some of a blank image's surroundings equal it
        pick = drawn.filling[shape] * (self.colour + self.elsewhere + self.texture)
        filling = torch.where(pick < self.colour + self.elsewhere, moved, old + cloud * colour)
        return torch.where(pick < self.colour, old + colour, filling)

    def _colour(self, canvas: Canvas, images: Tensor, drawn: _Draws) -> Tensor:
        """Return the change of colour of each blemish, (3, n); darker instead of lighter where that shows more."""
        centre = ((t * s).long().clamp(max=s - 1) for t, s in zip((drawn.y, drawn.x), canvas.size, strict=True))
        grey = torch.where(drawn.tint[0] < 0.5, -1.0, 1.0)
        tint = torch.where(drawn.grey < self.grey, grey, 2 * drawn.tint - 1)
        colour = tint / tint.abs().amax(0) * log_lerp(drawn.contrast, *self.contrast)
        seen = canvas.read(canvas.locate(images, *centre), changed=True)
        more, less = (((seen + s * colour).clamp(0, 1) - seen).abs().mean(0) for s in (1, -1))
        return torch.where(more < 0.4 * less, -colour, colour)


class _Draws(NamedTuple):
    """Uniform draws of a blemish: colour (3, n), shift of content from elsewhere (2, n), and the rest (n,) each."""

    tint: Tensor
    shift: Tensor
    length: Tensor
    aspect: Tensor
    angle: Tensor
    y: Tensor
    x: Tensor
    cells: Tensor
    softness: Tensor
    filling: Tensor
    contrast: Tensor
    grey: Tensor


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
