"""The canvas that scenes are computed on, and the shapes, noises and colours that they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.interpolate import CubicSpline

Field = npt.NDArray[np.floating[Any]]
Rng = np.random.Generator

CANVAS = 512  # the scene is computed at this side and averaged down: anti-aliasing
PX = CANVAS / 256  # canvas pixels per unit; lengths below are in units of 1/256 of the picture's side
_y, _x = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)
X: Field = (_x + 0.5) / np.float32(PX) - 128
Y: Field = (_y + 0.5) / np.float32(PX) - 128


def noise(rng: Rng, cells: int, octaves: int = 1) -> Field:
    """Smooth random field of mean 0 and standard deviation about 1; `cells` bumps across in the coarsest octave."""
    total = np.zeros((CANVAS, CANVAS), np.float32)
    for octave in range(octaves):
        n = cells * 2**octave
        grid = rng.standard_normal((n + 4, n + 4), dtype=np.float32)
        total += 0.55**octave * resize(grid, CANVAS, Image.Resampling.BICUBIC, box=(2, 2, n + 2, n + 2))
    return total / total.std()


def resize(
    field: Field, side: int, method: Image.Resampling, box: tuple[float, float, float, float] | None = None
) -> Field:
    """Resize a float32 field to (side, side)."""
    return np.asarray(Image.fromarray(field).resize((side, side), method, box=box))


def step(low: float, high: float, x: Field) -> Field:
    """Smooth step from 0 at low to 1 at high (or falling, when low > high)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rgb(*channels: float) -> Field:
    """Colour as an array."""
    return np.array(channels, np.float32)


def mix(a: Field, b: Field | tuple[float, ...], weight: Field) -> Field:
    """Blend colours: a where weight is 0, b where it is 1."""
    return a + weight[..., None] * (np.asarray(b, np.float32) - a)


def blob(rng: Rng, x: float, y: float, radius: float, ragged: float = 0.25, stretch: float = 1.6) -> Field:
    """Distance-like field of an irregular blob: below 1 inside, 1 on its edge."""
    angle, s = rng.uniform(0, np.pi), np.sqrt(rng.uniform(1, stretch))
    dx, dy = X - x, Y - y
    a, b = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return np.hypot(a / s, b * s) / radius + ragged * noise(rng, max(6, int(200 / radius)), 3)


def curve(rng: Rng, x: float, y: float, length: float, bend: float) -> Field:
    """Distance of every pixel from a smooth random curve centred near (x, y)."""
    angle, t = rng.uniform(0, 2 * np.pi), np.linspace(-0.5, 0.5, 5)
    off, c, s = rng.normal(0, bend * length, 5), np.cos(angle), np.sin(angle)
    along = np.stack([x + t * length * c - off * s, y + t * length * s + off * c])
    points = (CubicSpline(t, along, axis=1)(np.linspace(-0.5, 0.5, 80)).T + 128) * PX
    canvas = Image.new("L", (CANVAS, CANVAS), 255)
    ImageDraw.Draw(canvas).line([tuple(p) for p in points], fill=0, width=1)
    return (ndimage.distance_transform_edt(np.asarray(canvas)) / PX).astype(np.float32)
