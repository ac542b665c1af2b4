"""Doors for data: whatever holds images, opened as training and test splits, or brought to one size to be scored.

An image is a file, a PIL image, a NumPy array (H, W[, C]) or a tensor ([C, ]H, W), C being 1 to 4; values are uint8,
uint16, bool, or float in [0, 1]. The same pixels give the same image by every way. A sequence is a list or tuple of
images, an array (N, H, W[, 3]), a tensor (N, 3, H, W), or a map-style ``torch.utils.data.Dataset``. Its items are

- an image;
- ``(image, target, ...)``, a target being a label (0 good, 1 or more a defect), a mask, or a defect's name as ``str``;
- a dict with ``"image"`` and any of ``"mask"``, ``"label"``, ``"defect"``;
- a :class:`~mlffn_lite.datasets.folder.Sample`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import DataConfig
from ..errors import DataError, MlffnError
from ..registry import find
from . import folder
from .folder import (
    AnomalyFolder,
    Entry,
    Parts,
    Sample,
    Split,
    image_tensor,
    map_threads,
    open_image,
    seen_tensor,
    upright,
)
from .listing import find_layout
from .view import View

__all__ = ["Parts", "iterate_batches", "open_source", "to_batch"]

_KINDS = "give a folder, image files, PIL images, arrays, tensors, or a map-style Dataset"


def open_source(
    source: Any,
    data: DataConfig,
    *,
    shape: tuple[int, int] | None = None,
    view: View | None = None,
    skip_bad: bool = False,
    cache_bytes: int = folder.CACHE_BYTES,
) -> Parts:
    """Open what holds the images of one category of parts, all brought to one size.

    Of a sequence (see the module) the good and the unlabelled items are the training split, and *all* labelled ones,
    the good first, the test split: fit to one labelled data set and measure on another, or give a pair. Where one data
    set gave both splits, ``parts.overlap`` is True. Items are fetched several times, by one thread at a time.

    Parameters
    ----------
    source : Parts, path, sequence, or pair of them
        A path is a folder, or what ``data.source`` opens: a callable ``(root, *, size, aspect, shape, skip_bad)`` that
        returns anything this function takes. Of a pair (a tuple), the first gives the training split and the second
        the test split.
    data : DataConfig
        Size, aspect, crop and ignored pixels, and the name of the callable.
    shape : (int, int), optional
        Height and width to use instead, those a detector was fitted to.
    view : View, optional
        What of every photograph to look at, instead of what ``data`` says: that of a detector.
    skip_bad : bool
        Leave out images that cannot be used, with a warning that lists them, instead of raising.
    cache_bytes : int
        Memory for pixels; what does not fit is fetched anew at each use.

    Raises
    ------
    DataError
        If the source cannot be used, holds an image that cannot, or was opened at another size than asked for.
    """
    return _open(source, _Asked(data, shape, view), skip_bad, cache_bytes)


class _Asked(NamedTuple):
    """At which size and through which view images are asked for: by the configuration, or by a detector."""

    data: DataConfig
    shape: tuple[int, int] | None
    view: View | None

    def resolved(self, entries: Sequence[Entry]) -> tuple[tuple[int, int], View]:
        """Return both for these good images."""
        view = self.view or folder.find_view(entries, self.data.crop, self.data.ignore)
        return self.shape or folder.common_shape(entries, self.data.size, self.data.aspect, view), view


def _open(source: Any, asked: _Asked, skip_bad: bool, cache: int, prefix: str = "") -> Parts:
    data = asked.data
    if isinstance(source, Parts):
        return _checked(source, asked)
    if isinstance(source, str | Path):
        options: dict[str, Any] = {
            "size": data.size,
            "aspect": data.aspect,
            "shape": asked.shape,
            "skip_bad": skip_bad,
        }
        if data.source == "folder":
            looks: Any = {"crop": data.crop, "ignore": data.ignore, "view": asked.view}
            layout = find_layout(source, data.good, data.bad, data.recursive)
            looks["recursive"] = data.recursive
            return AnomalyFolder(source, **options, **looks, cache_bytes=cache, layout=layout)
        try:
            opened = find("sources", data.source)(Path(source), **options)
        except MlffnError:
            raise
        except Exception as error:  # code of one's own may raise anything
            raise DataError(f"{source}: the source {data.source} failed ({_reason(error)})") from error
        return _open(opened, asked._replace(data=data.model_copy(update={"source": "folder"})), skip_bad, cache, prefix)
    if isinstance(source, tuple) and len(source) == 2 and all(_is_source(part, data) for part in source):
        first = _open(source[0], asked, skip_bad, cache, "train")
        second = _open(source[1], _Asked(data, first.shape, first.view), skip_bad, cache, "test")
        if not first.train:
            raise DataError("the first source of the pair has no good image to train on")
        if not second.test:
            raise DataError("the second source of the pair has no labelled image; give labels: 0 good, 1 a defect")
        return Parts(first.root, first.train, second.test)
    return _read(_Items(_sequence(source), prefix), asked, skip_bad, cache)


def _checked(parts: Parts, asked: _Asked) -> Parts:
    data, view = asked.data, parts.view
    if asked.view is not None:
        fits = view == asked.view
    else:  # what auto found need not be found anew
        box = view.box if data.crop == "auto" else None if data.crop == "none" else data.crop
        fits = view.box == box and bool(view.png) == bool(data.ignore)
    if not fits:
        raise DataError(
            f"{parts.root} was opened with another crop or ignore mask than asked for; give the path itself"
        )
    entries = parts.train.entries or parts.test.entries
    wanted = asked.shape or folder.common_shape(entries, data.size, data.aspect, view)
    if parts.shape != wanted:
        by = (
            "the detector was fitted to"
            if asked.shape
            else f"data.size={data.size} and data.aspect={data.aspect} ask for"
        )
        found = f"{parts.root} was opened at (height, width) {parts.shape}, but {by} {wanted}"
        raise DataError(f"{found}; give the path itself, or open it with shape={wanted}")
    return parts


def _is_source(part: Any, data: DataConfig) -> bool:
    """Whether one half of a tuple is itself a source, not an image or a labelled item."""
    if isinstance(part, str | Path):
        return data.source != "folder" or Path(part).is_dir()
    if isinstance(part, np.ndarray | Tensor):
        return not _is_image(part)
    return isinstance(part, Parts) or (_indexable(part) and not isinstance(part, tuple))


def _indexable(values: Any) -> bool:
    return all(hasattr(values, name) for name in ("__len__", "__getitem__")) and not isinstance(values, Mapping)


def _is_image(pixels: np.ndarray | Tensor) -> bool:
    """Whether an array is one image; a NumPy array of three axes is many grey ones if its last is no channel."""
    return pixels.ndim == 2 or (pixels.ndim == 3 and (isinstance(pixels, Tensor) or pixels.shape[2] <= 4))


def _sequence(images: Any) -> Any:
    """Return what is given as something with a length and an index."""
    if isinstance(images, Iterator):
        return list(images)
    if isinstance(images, np.ndarray | Tensor):
        if not _is_image(images) and images.ndim not in (1, 3, 4):
            raise DataError(f"an array of {images.ndim} axes holds no images; {_KINDS}")
        if images.ndim == 4 and images.shape[1 if isinstance(images, Tensor) else 3] == 1:
            raise DataError(f"a batch of grey images {tuple(images.shape)}; repeat the channel three times")
        return [images] if _is_image(images) else images
    if isinstance(images, str | Path | Image.Image | Sample):
        return [images]
    if not _indexable(images):
        raise DataError(f"{type(images).__name__} holds no images; {_KINDS}")
    return images


class _Items:
    """A sequence whose items are named, and fetched by one thread at a time, as a Dataset need not bear more."""

    def __init__(self, values: Any, prefix: str = "") -> None:
        self.values, self.prefix, self.lock = values, prefix, Lock()

    def path(self, index: int) -> Path:
        return Path(self.prefix, f"{index:04}")

    def fetch(self, index: int) -> tuple[Any, Any, str]:
        """Return the image of an item, its targets as a mapping or a tuple, and its name in messages."""
        name = f"image {self.path(index)}"
        try:
            with self.lock:
                item = self.values[index]
                if isinstance(item, Image.Image):
                    item.load()  # one image may stand in a list twice
        except Exception as error:  # code of one's own may raise anything
            raise DataError(f"{name}: cannot be fetched ({_reason(error)})") from error
        if isinstance(item, Sample):
            return item.image, {"mask": item.mask if item.has_mask else None, "defect": item.defect}, name
        if isinstance(item, Mapping):
            if "image" not in item:
                raise DataError(f"{name}: the dict has no key 'image'")
            return item["image"], item, name
        return (item[0], item[1:], name) if isinstance(item, tuple | list) and item else (item, (), name)

    def entry(self, index: int) -> _Item | str:
        """Return an item as an entry of a split, or what is wrong with it."""
        try:
            image, targets, name = self.fetch(index)
            defect, mask = _target(targets, name)
        except DataError as error:
            return str(error)
        path = Path(image).absolute() if isinstance(image, str | Path) else self.path(index)
        masked = mask is not None
        return _Item(path, defect or "good", items=self, index=index, known=defect is not None, masked=masked)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Item(Entry):
    """An item of a sequence; ``known`` is False where nothing says whether it is good."""

    items: _Items
    index: int
    known: bool
    masked: bool

    @property
    def has_mask(self) -> bool:
        return self.label == 0 or self.masked

    def open(self) -> tuple[Image.Image, Image.Image | None]:
        image, targets, name = self.items.fetch(self.index)
        mask = _target(targets, name)[1] if self.label else None
        return _to_image(image, name), mask

    def log_aspect(self) -> float | None:
        if self.path.is_absolute():
            return super().log_aspect()
        try:
            image = self.open()[0]
        except DataError:
            return None
        return float(np.log(image.height / image.width))

    def digest(self) -> str:
        digest = hashlib.sha256(f"{self.known} {self.defect}".encode())
        for image in self.open():
            if image is not None:
                digest.update(f"\0{image.mode} {image.size}\0".encode() + image.tobytes())
        return digest.hexdigest()


def _read(items: _Items, asked: _Asked, skip_bad: bool, cache: int) -> Parts:
    found = list(map_threads(items.entry, range(len(items.values)), "inspecting"))
    # In this order training and test split are parts of one block of memory.
    entries = sorted((e for e in found if isinstance(e, _Item)), key=lambda e: (e.label, e.known))
    shape, view = asked.resolved([e for e in entries if not e.label] or entries)
    split, faults = Split.read(entries, shape, "reading images", cache, view)
    folder.report_faults([e for e in found if isinstance(e, str)] + faults, len(found), skip_bad)
    if not split:
        raise DataError(f"there is no image{' that can be used' if found else ''}; {_KINDS}")
    good, unknown = split.defects.count("good"), sum(not e.known for e in split.entries if isinstance(e, _Item))
    files = [path.parent for path in split.paths if path.is_absolute()]
    root = Path(os.path.commonpath(files)) if len(files) == len(split) else Path(type(items.values).__name__)
    train, test = split.subset(range(good)), split.subset(range(unknown, len(split)))
    return Parts(root, train, test, overlap=unknown < good)


def _target(targets: Any, name: str) -> tuple[str | None, Image.Image | None]:
    """Return the name of the defect, ``"good"``, or None if nothing is known; and the mask."""
    label, defect, mask = _sort(targets, name)
    mask = None if mask is None else _to_mask(mask, name)
    marked = mask is not None and bool(folder.mask_values(mask).any())
    if label is None and defect is None and mask is not None:
        label = int(marked)
    if label is not None and defect is not None and (label == 0) != (defect == "good"):
        raise DataError(f"{name}: label {label} and defect {defect!r} contradict each other")
    if label is not None and defect is None:
        defect = ("good", "defect")[label] if label < 2 else f"defect{label}"
    if defect == "good" and marked:
        raise DataError(f"{name}: it is labelled good, but its mask marks defects")
    return defect, mask


def _sort(targets: Any, name: str) -> tuple[int | None, str | None, Any]:
    """Return label, defect and mask, None where there is none; in a tuple they are told apart by their types."""
    if isinstance(targets, Mapping):
        return *_sort([targets.get("label"), targets.get("defect")], name)[:2], targets.get("mask")
    label, defect, mask = None, None, None
    for target in targets:
        value = _array(target)
        number = value.item() if value.size == 1 and value.dtype.kind in "biuf" else -1
        if isinstance(target, str):
            defect = target
        elif isinstance(target, Path | Image.Image) or value.ndim > 1:
            mask = target
        elif number >= 0 and number % 1 == 0:
            label = int(number)
        elif target is not None:
            raise DataError(f"{name}: {str(target)[:30]!r} is no label; give 0 for good, 1 or more for a defect")
    return label, defect, mask


def _array(values: Any) -> np.ndarray:
    """Return anything as an array; a tensor's channels come last."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _to_mask(mask: Any, name: str) -> Image.Image:
    """Return a mask of any kind as a PIL image; in an array, what is above 0 is defective."""
    if isinstance(mask, str | Path):
        return open_image(mask)
    if isinstance(mask, Image.Image):
        return upright(mask, f"mask of {name}")
    marked = _array(mask).squeeze()
    if marked.ndim != 2 or marked.dtype.kind not in "biuf":
        raise DataError(f"{name}: a mask must be (H, W) numbers, got {type(mask).__name__} {marked.shape}")
    return Image.fromarray(marked > 0)


def _to_image(image: Any, name: str) -> Image.Image:
    """Return an image of any kind as a PIL image, upright; raises DataError, which begins with ``name``."""
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        return upright(image, name)
    if not isinstance(image, np.ndarray | Tensor):
        raise DataError(f"{name}: {type(image).__name__} is no image; {_KINDS}")
    pixels = _array(image)
    pixels = pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels
    if pixels.ndim < 2 or pixels.shape[2:] not in ((), (2,), (3,), (4,)):
        raise DataError(f"{name}: neither an array (H, W, 3) nor a tensor (3, H, W), but of shape {tuple(image.shape)}")
    return upright(Image.fromarray(_eight_bits(pixels, name)), name)


def _eight_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    """Return pixels as uint8, scaled as :func:`~mlffn_lite.datasets.folder.image_tensor` scales those of files."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return np.rint(pixels * (255 / 65535)).astype(np.uint8)
    if pixels.dtype.kind != "f":
        raise DataError(f"{name}: {pixels.dtype} values have no known range; give uint8, uint16, or float in [0, 1]")
    if pixels.size and not folder.in_range(pixels):
        advice = "divide 8-bit values by 255, do not normalise"
        raise DataError(f"{name}: float images must lie in [0, 1], without NaN; {advice}")
    return np.rint((pixels.astype(np.float32) if pixels.dtype == np.float16 else pixels) * 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


def to_batch(images: Any, shape: tuple[int, int], view: View | None = None) -> Tensor:
    """Return all images as one batch (B, 3, H, W), B being 0 if there is none; see :func:`iterate_batches`."""
    return next(iterate_batches(images, shape, sys.maxsize, view), torch.zeros(0, 3, *shape, dtype=torch.uint8))


def iterate_batches(images: Any, shape: tuple[int, int], batch: int, view: View | None = None) -> Iterator[Tensor]:
    """Bring images to one size, a batch at a time, so that not all are in memory.

    Parameters
    ----------
    images : image, folder, or sequence
        See the module. Of a folder, the images directly below it, by name; of labelled items only the image is used.
    shape : (int, int)
        Height and width. Images of another size are resized as those of files are.
    batch : int
        Images per batch, at most.
    view : View, optional
        What of every photograph to look at. A tensor (3, H, W) of that height and width is what it leaves already.

    Yields
    ------
    Tensor
        (B, 3, H, W), uint8. Only batches with float tensors (3, H, W) that have the size already are float32 in [0, 1],
        so that these keep their precision.

    Raises
    ------
    DataError
        If an image cannot be read, or its axes, type or values cannot be those of an image.
    """
    if isinstance(images, str | Path) and Path(images).is_dir():
        root, images = images, folder.list_images(Path(images))
        if not images:
            raise DataError(f"folder {root} holds no image; give image files or a folder of them")
    items, view = _Items(_sequence(images)), view or View()

    def read(index: int) -> Tensor:
        image, _, name = items.fetch(index)
        ready = isinstance(image, Tensor) and image.shape == (3, *shape)
        if ready and image.is_floating_point() and folder.in_range(image):
            return view.fill(image.detach().float().cpu())
        found = _to_image(image, name)
        return view.fill(image_tensor(found, shape)) if ready else seen_tensor(found, name, shape, view)

    for start in range(0, len(items.values), batch):
        chunk = range(start, min(start + batch, len(items.values)))
        if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1:] == (3, *shape):
            ready = images[start : chunk.stop]
            if ready.dtype == torch.uint8 or (ready.is_floating_point() and folder.in_range(ready)):
                yield view.fill(ready if ready.dtype == torch.uint8 else ready.float())
                continue
        pixels = list(map_threads(read, chunk, None))
        exact = any(x.is_floating_point() for x in pixels)
        yield torch.stack([x.float() / 255 if exact and x.dtype == torch.uint8 else x for x in pixels])
