"""Where to look: a box of every photograph, and pixels in it that count for nothing.

An image is scored so: it is cut to :attr:`View.box`, its ignored pixels (:attr:`View.hidden`) get the grey
:data:`FILL`, it is resized to the fitted shape, and every pixel that an ignored one touches gets that grey again
(:meth:`View.fill`); in the score map these get the lowest score of the others (:meth:`View.quiet`). Scores outside the
box do not exist. So no score depends on what is not looked at. A run keeps box and mask in its checkpoint
(:meth:`View.to_dict`), and its verdicts do not depend on a file that may change.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ..errors import DataError

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels of the upright photograph."""

FILL = 116
"""Grey of ignored pixels: about ImageNet's mean, which backbones see as zero, like what lies beyond the border."""

SAMPLE, SIDE = 64, 128
"""Good images, at most, that a box is found from, and the longest side at which it is looked for."""
MARGIN = 0.05
"""Added to each side of a found box, as a share of its longer side."""
WHOLE = 0.9
"""A found box of more than this share of the photograph is not worth a cut."""


@dataclass(frozen=True)
class View:
    """What of a photograph is looked at.

    Attributes
    ----------
    box : (int, int, int, int) or None
        Left, top, width, height in pixels of the upright photograph; None for all of it.
    png : bytes
        Mask of the ignored pixels as a PNG file of the photograph's size, white where they are; empty for none.
    """

    box: Box | None = None
    png: bytes = b""

    def cut(self, image: Image.Image, name: object) -> Image.Image:
        """Return the part of a photograph, or of a mask of one, that is looked at; a DataError says it does not fit."""
        if self.png and (mask := _mask(self.png)).size != image.size:
            raise DataError(f"{name}: {_times(image)} pixels, but the mask of ignored ones has {_times(mask)}")
        if self.box is None:
            return image
        left, top, width, height = self.box
        if left + width > image.width or top + height > image.height:
            raise DataError(f"{name}: {_times(image)} pixels do not hold the crop {','.join(map(str, self.box))}")
        part = image.crop((left, top, left + width, top + height))
        part.format = image.format
        return part

    @property
    def hidden(self) -> Image.Image | None:
        """Mask of the ignored pixels of a cut photograph, white where they are, at its own size; None for none."""
        return View(self.box).cut(_mask(self.png), "the mask of ignored pixels") if self.png else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height that a photograph must have for the mask of ignored pixels; None for any."""
        return _mask(self.png).size if self.png else None

    def ignored(self, shape: tuple[int, int]) -> Tensor | None:
        """Return which pixels of a cut image of (height, width) any ignored one touches, (H, W) bool; None for none."""
        return _ignored(self, shape) if self.png else None

    def fill(self, images: Tensor) -> Tensor:
        """Return cut images ([B, ]3, H, W), uint8 or float in [0, 1], with the ignored pixels in one colour."""
        if (ignored := self.ignored((images.shape[-2], images.shape[-1]))) is None:
            return images
        grey = FILL if images.dtype == torch.uint8 else FILL / 255
        return images.masked_fill(ignored.to(images.device), grey)

    def quiet(self, maps: Tensor) -> Tensor:
        """Return score maps (B, H, W) with the lowest score of the others at the ignored pixels."""
        if (ignored := self.ignored((maps.shape[-2], maps.shape[-1]))) is None or not len(maps):
            return maps
        ignored = ignored.to(maps.device)
        lowest = maps.masked_fill(ignored, torch.inf).flatten(1).amin(1)
        return torch.where(ignored, lowest[:, None, None], maps)

    def placed(self, heat: np.ndarray, size: tuple[int, int], outside: float) -> np.ndarray:
        """Lay a map of the box (h, w) into one of the whole photograph at the map's own resolution.

        ``size`` is the photograph's width and height; where nothing was looked at is ``outside``.
        """
        left, top, width, height = self.box or (0, 0, *size)
        (h, w), ignored = heat.shape, self.ignored((heat.shape[0], heat.shape[1]))
        heat = heat if ignored is None else np.where(ignored.numpy(), np.float32(outside), heat)
        across, down = w / width, h / height
        x, y = round(left * across), round(top * down)
        whole = np.full((max(y + h, round(size[1] * down)), max(x + w, round(size[0] * across))), outside, heat.dtype)
        whole[y : y + h, x : x + w] = heat
        return whole

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the mask of ignored pixels; empty without one."""
        return hashlib.sha256(self.png).hexdigest() if self.png else ""

    def describe(self) -> str:
        """Return in words what is looked at."""
        left, top, width, height = self.box or (0, 0, 0, 0)
        box = f"the {width}x{height} pixels from {left},{top}" if self.box else "the whole photograph"
        return box + (f", without the {_mask(self.png).histogram()[255]} pixels of the ignore mask" if self.png else "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; :meth:`from_dict` reads them."""
        return {
            "box": None if self.box is None else list(self.box),
            "ignore": base64.b64encode(self.png).decode(),
            "ignore_sha256": self.digest,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the view of :meth:`to_dict`; ValueError, TypeError or KeyError if it is damaged."""
        box = values["box"]
        if box is not None and (
            len(box) != 4 or not all(type(v) is int and v >= 0 for v in box) or not box[2] * box[3]
        ):
            raise ValueError(f"{box} is no box")
        try:
            view = cls(None if box is None else tuple(box), base64.b64decode(values["ignore"], validate=True))
        except binascii.Error as error:
            raise ValueError(f"the mask of ignored pixels is damaged ({error})") from error
        try:
            if view.png:
                _mask(view.png)
        except Exception as error:  # on damaged or huge files Pillow raises anything
            raise ValueError(f"the mask of ignored pixels is damaged ({error})") from error
        if view.digest != values["ignore_sha256"]:
            raise ValueError("the mask of ignored pixels is damaged")
        return view


def ignore_png(marked: np.ndarray) -> bytes:
    """Return a mask (H, W) bool as the PNG bytes that :class:`View` holds."""
    stream = io.BytesIO()
    Image.fromarray(marked).save(stream, "PNG", optimize=True)
    return stream.getvalue()


@lru_cache(4)
def _mask(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png), formats=["PNG"]).convert("L")


@lru_cache(4)
def _ignored(view: View, shape: tuple[int, int]) -> Tensor:
    hidden = view.hidden
    assert hidden is not None
    touched = np.asarray(hidden.resize(shape[::-1], Image.Resampling.BOX)) > 0
    if touched.all():
        raise DataError("the mask of ignored pixels leaves nothing to look at; paint only what shall be ignored white")
    return torch.from_numpy(touched)


def find_box(images: Sequence[Image.Image], size: tuple[int, int]) -> Box | None:
    """Return the box of what stands out from the background or varies between good images, with a margin.

    The background is the median colour along the borders, and so is what noise does there; a pixel of the box differs
    from it or varies much more, and belongs to a region of some size. None where that is nearly the whole photograph,
    or nothing: then there is no background to cut away.

    Parameters
    ----------
    images : sequence of Image
        Good images of one size, or reductions of them; see :data:`SAMPLE` and :data:`SIDE`.
    size : (int, int)
        Width and height of the photographs.
    """
    width, height = size
    scale = min(1.0, SIDE / max(size))
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.stack([np.asarray(i.resize((w, h), Image.Resampling.BOX), dtype=np.float32) for i in images])
    mean, rim = pixels.mean(0), max(1, round(0.03 * min(h, w)))
    border = np.ones((h, w), bool)
    border[rim : h - rim, rim : w - rim] = False
    differs = (np.abs(mean - np.median(mean[border], axis=0)) + pixels.std(0)).max(2)
    differs = ndimage.uniform_filter(differs, 3)
    middle = np.median(differs[border])
    noise = 1.4826 * np.median(np.abs(differs[border] - middle))
    regions, count = ndimage.label(differs > middle + max(6 * noise, 0.02 * (differs.max() - middle), 1))
    if not count:
        return None
    areas = np.bincount(regions.ravel())[1:]
    y, x = np.nonzero(np.isin(regions, 1 + np.flatnonzero(areas >= 0.02 * areas.max())))
    sides = np.array([x.min() / w, y.min() / h, (x.max() + 1) / w, (y.max() + 1) / h]) * [width, height, width, height]
    margin = MARGIN * max(sides[2] - sides[0], sides[3] - sides[1])
    left, top = (max(0, int(v - margin)) for v in sides[:2])
    right, bottom = min(width, int(np.ceil(sides[2] + margin))), min(height, int(np.ceil(sides[3] + margin)))
    if (right - left) * (bottom - top) > WHOLE * width * height:
        return None
    return left, top, right - left, bottom - top


def _times(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
