"""A picture and its mask, by name: scene, light, camera, and the same once more without the defect."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mlffn_lite.errors import DataError

from .camera import Look, develop, grain, light
from .canvas import CANVAS, Field
from .names import check_name, difficulty
from .scenes import SCENES, Flaw

VISIBLE = 4.0  # grey levels of 255 that a pixel must change by to count as defective


def render(
    category: str, split: str, defect: str, index: int, *, seed: int = 0, size: int = 256, twin: bool = False
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draw one picture and its mask.

    Parameters
    ----------
    category : str
        A key of `CATEGORIES`.
    split : {"train", "test"}
        ``"train"`` has only ``"good"``.
    defect : str
        ``"good"`` or one of the category's defects.
    index : int
        Number of the picture, 0 or more; not limited to the bundled ones.
    seed : int
        Another seed gives another set of the same kind.
    size : int
        Side in pixels, 32 to 512. The scene stays the same; grain is drawn at this size.
    twin : bool
        Leave the defect out: the same scene, light, camera and grain, and an empty mask.

    Returns
    -------
    image : ndarray, (size, size, 3), uint8
        At most 256 different colours, as stored.
    mask : ndarray, (size, size), bool
        Visibly changed pixels; empty for ``"good"`` and twins only.

    Raises
    ------
    DataError
        For a name or a number that does not exist.
    """
    check_name(category, split, defect, index)
    if not 32 <= size <= CANVAS:
        raise DataError(f"size is {size}; MiniParts can be drawn at 32 to {CANVAS} pixels")
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more")
    name = zlib.crc32(f"{category}/{split}/{defect}".encode())
    draw_scene, elevation, steps = SCENES[category]

    def rng(purpose: int, attempt: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([seed, name, index, purpose, attempt]))

    look = Look.draw(rng(1), elevation)

    def shoot(flaw: Flaw | None) -> Field:
        return develop(light(draw_scene(rng(0), flaw), look), look, size)

    picture, mask = shoot(None), np.zeros((size, size), np.bool_)
    if defect != "good" and not twin:
        flawless, least = picture, max(3.0, 12 * (size / 256) ** 2)
        for attempt in range(24):  # a defect that fell where nobody sees it is drawn anew, a little stronger
            level = difficulty(category, defect, index)
            picture = shoot(Flaw.draw(defect, rng(2, attempt), level, boost=1.15**attempt))
            mask = visible_change(picture, flawless, VISIBLE)
            if mask.sum() >= least:
                break
    return store(picture + grain(rng(3), look, size), steps), mask


def visible_change(flawed: Field, twin: Field, threshold: float) -> npt.NDArray[np.bool_]:
    """Pixels where a channel differs by more than threshold grey levels; gaps up to 4 pixels closed, specks dropped."""
    changed = np.pad(np.abs(flawed - twin).max(-1) > threshold, 4)
    closed = ndimage.binary_closing(changed, np.ones((3, 3)), iterations=2)[4:-4, 4:-4]
    labels, _ = ndimage.label(closed, np.ones((3, 3)))
    area = np.bincount(labels.ravel())
    area[0] = 0
    return (area >= min(6, max(1, area.max())))[labels]


def store(picture: Field, steps: tuple[int, float]) -> npt.NDArray[np.uint8]:
    """Round to at most 256 colours, so that a palette PNG holds the picture in a third of the bytes.

    The grid is one of luma and of two hues relative to luma, which shading hardly changes: few colours go a long way.
    The step of hue grows only where a picture would need more than 256 colours.
    """
    coarse, tone = steps
    red, green, blue = np.moveaxis(np.clip(np.rint(picture), 0, 255).astype(np.float64), -1, 0)
    level = np.floor((green + (red + blue) / 2) / (2 * coarse))
    luma = coarse * level + coarse // 2
    hues = ((red - blue) / (luma + 60), (green - (red + blue) / 2) / (luma + 60))
    middle = [np.rint(np.median(hue) * 200) / 200 for hue in hues]
    while True:
        warm, lush = (np.rint((h - m) / t) for h, m, t in zip(hues, middle, (2 * tone, tone), strict=True))
        if len(np.unique(level * 1e6 + warm * 1e3 + lush)) <= 256:
            break
        tone *= 1.1
    warm = (warm * 2 * tone + middle[0]) * (luma + 60) / 2
    lush = (lush * tone + middle[1]) * (luma + 60) / 2
    stored = np.stack([luma - lush + warm, luma + lush, luma - lush - warm], -1)
    return np.clip(np.rint(stored), 0, 255).astype(np.uint8)
