"""Light and camera: a scene, that is a height map with an albedo, becomes a picture.

Lambert's law, highlights, ambient occlusion and a soft shadow make the light; focus, vignetting and grain the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from .canvas import CANVAS, PX, Field, Rng, X, Y, resize, step


@dataclass
class Scene:
    """Height and its usual range (units), linear albedo (H, W, 3), strength and exponent of highlights, brushing."""

    height: Field
    relief: float
    albedo: Field
    gloss: Field | float
    shine: float
    brushed: tuple[Field, Field] | None = None


@dataclass
class Look:
    """Light and camera of one picture; every picture draws its own."""

    azimuth: float
    elevation: float
    exposure: float
    tint: Field
    shading: Field
    focus: float
    grain: float

    @classmethod
    def draw(cls, rng: Rng, elevation: float) -> Look:
        """Draw a look around a light from the upper left."""
        cx, cy = rng.normal(0, 22, 2)
        falloff = 1 - rng.uniform(0.10, 0.22) * ((X - cx) ** 2 + (Y - cy) ** 2) / 128**2 / 2
        slope = 1 + rng.normal(0, 0.05) * X / 128 + rng.normal(0, 0.05) * Y / 128
        return cls(
            azimuth=np.deg2rad(rng.uniform(213, 237)),
            elevation=np.deg2rad(elevation + rng.uniform(-4, 4)),
            exposure=float(np.exp(rng.normal(0, 0.06))),
            tint=(1 + rng.normal(0, 0.012, 3)).astype(np.float32),
            shading=(falloff * slope).astype(np.float32),
            focus=rng.uniform(0.35, 0.75),
            grain=rng.uniform(1.2, 2.2),
        )


def _shadow(height: Field, relief: float, lx: float, ly: float, slope: float) -> Field:
    """Share of the key light that reaches each pixel: march towards the light and look for something higher."""
    steps = np.arange(0.75, relief / slope + 0.75, max(0.75, relief / slope / 10))
    pad = int(np.ceil(steps[-1] * PX)) + 1
    padded = np.pad(height, pad, mode="edge")
    worst = np.full_like(height, -8)
    for t in steps:
        i, j = pad + round(ly * t * PX), pad + round(lx * t * PX)
        np.maximum(worst, padded[i : i + CANVAS, j : j + CANVAS] - height - np.float32(t * slope), out=worst)
    return 1 - ndimage.uniform_filter(step(-0.5, 2.0, worst), 3)


def _highlight(scene: Scene, nx: Field, ny: Field, nz: Field, lx: float, ly: float, lz: float) -> Field:
    """Blinn's highlight, or Ward's stretched across the brushing."""
    hx, hy, hz = np.array([lx, ly, lz + 1]) / np.sqrt(2 + 2 * lz)
    nh = np.maximum(nx * hx + ny * hy + nz * hz, 1e-3)
    if scene.brushed is None:
        return nh**scene.shine
    tx, ty = scene.brushed
    ht = (hx - nx * nh) * tx + (hy - ny * nh) * ty
    across = np.maximum(1 - nh * nh - ht * ht, 0)
    return np.exp(-((ht / 0.17) ** 2 + across / 0.50**2) / (nh * nh))


def light(scene: Scene, look: Look) -> Field:
    """Linear radiance (CANVAS, CANVAS, 3): occluded ambient light, a key light with shadow, a weak fill light."""
    h = scene.height
    gy, gx = np.gradient(h, 1 / PX)
    nz = 1 / np.sqrt(1 + gx * gx + gy * gy)
    nx, ny = -gx * nz, -gy * nz
    near = ndimage.uniform_filter(h, 9)
    far = resize(resize(h, 64, Image.Resampling.BOX), CANVAS, Image.Resampling.BICUBIC)
    occlusion = 1 / (1 + 0.30 * np.maximum(near - h, 0) + 0.10 * np.maximum(far - h, 0))
    total_diffuse = 0.34 * occlusion * (0.75 + 0.25 * nz)
    total_gloss = 0.09 * occlusion
    for turn, power in ((0.0, 1.0), (2.3, 0.22)):
        az = look.azimuth + turn
        lx, ly, lz = np.cos(az) * np.cos(look.elevation), np.sin(az) * np.cos(look.elevation), np.sin(look.elevation)
        seen = occlusion if turn else _shadow(h, scene.relief, np.cos(az), np.sin(az), np.tan(look.elevation))
        total_diffuse += 0.8 * power * seen * np.maximum(nx * lx + ny * ly + nz * lz, 0)
        total_gloss += power * seen * _highlight(scene, nx, ny, nz, lx, ly, lz)
    radiance = scene.albedo * total_diffuse[..., None] + (scene.gloss * total_gloss)[..., None]
    return radiance * (look.exposure * look.shading[..., None] * look.tint)


def develop(radiance: Field, look: Look, size: int) -> Field:
    """Average down to the picture's size, blur by focus, apply the tone curve: values 0 to 255, no grain yet."""
    planes = [resize(np.ascontiguousarray(radiance[..., c]), size, Image.Resampling.BOX) for c in range(3)]
    planes = [ndimage.gaussian_filter(p, look.focus * size / 256) for p in planes]
    linear = np.maximum(np.stack(planes, -1), 0)
    return 255 * (1 - np.exp(-1.35 * linear - 0.6 * linear**2)) ** np.float32(1 / 2.2)


def grain(rng: Rng, look: Look, size: int) -> Field:
    """Sensor noise in grey levels (H, W, 1), slightly correlated as after demosaicing."""
    g = ndimage.gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), 0.6)
    return (g * (look.grain / g.std()))[..., None]
