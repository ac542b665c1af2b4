"""Image folders: the MVTec AD layout or a plain folder of good images, read into uint8 tensors of one size."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from .. import escaped
from ..errors import DataError, MissingExtraError, UnreadableError, extra
from .cache import DiskArray, fits
from .view import FILL, SAMPLE, Box, View, find_box, ignore_png

MIN_SIDE = 8
"""Images with a shorter side, in pixels, are refused."""
CACHE_BYTES = 2 * 1024**3
"""Memory for the decoded pixels of one source."""

# Not pictures, or handed by Pillow to an outside program (Ghostscript): never opened, whatever the suffix says.
_REFUSED = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
_SUFFIXES = {s for s, f in Image.registered_extensions().items() if f in Image.OPEN and f not in _REFUSED}
_FORMATS = sorted(set(Image.OPEN) - _REFUSED)
_HEIC = {".heic", ".heif"} - _SUFFIXES  # pillow-heif reads them, if it is there
_SUFFIXES |= _HEIC if find_spec("pillow_heif") else set()
_SYSTEM = {"thumbs.db", "desktop.ini", "license", "readme", "readme.md", "readme.txt", "license.txt"}
_GREY = ("1", "L", "LA", "La")
_PAGES = "mlffn pages"  # in the info of an image
_TOP = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}  # the value that is white

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known about it.

    ``image`` is RGB, (3, H, W) uint8; ``mask`` its defective pixels, (H, W) bool; ``label`` 0 good or 1 anomalous;
    ``defect`` the name of its folder, ``"good"`` or the kind of defect. ``has_mask`` is False for an anomalous image
    whose defective pixels are unknown: its mask is all False, and pixel metrics must leave it out.
    """

    image: Tensor
    mask: Tensor
    label: int
    defect: str
    path: Path
    has_mask: bool = True


@dataclass(frozen=True)
class Entry:
    """An image file that is not decoded yet, and its mask file if it has one."""

    path: Path
    defect: str = "good"
    mask: Path | None = None

    @property
    def label(self) -> int:
        """0 good, 1 anomalous."""
        return int(self.defect != "good")

    @property
    def has_mask(self) -> bool:
        """Whether the defective pixels are known (a good image has none)."""
        return self.label == 0 or self.mask is not None

    def open(self) -> tuple[Image.Image, Image.Image | None]:
        """Return the image and its mask, None without one, at their own size; raises DataError."""
        return open_image(self.path), None if self.mask is None else open_image(self.mask)

    def log_aspect(self) -> float | None:
        """Return log(height / width) from the header alone; None, for the reader to report, if it cannot be read."""
        try:
            with open_file(self.path) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
                ratio = float(np.log(image.height / image.width))
        except Exception:
            return None
        return -ratio if turned else ratio

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the image file; its mask is a file of its own."""
        return _sha256(self.path)


@dataclass(frozen=True)
class Layout:
    """The files of a data folder; ``stray`` holds masks that belong to no defective image."""

    root: Path
    train: list[Entry]
    test: list[Entry]
    stray: list[Path]
    validation: list[Path] = field(default_factory=list)


_limit = 150_000_000  # pixels


def limit_pixels(count: int) -> None:
    """Refuse images of more than so many pixels from now on: a small file may need all memory."""
    global _limit
    _limit = count
    Image.MAX_IMAGE_PIXELS = max(count, Image.MAX_IMAGE_PIXELS or 0)


def open_file(path: str | Path | BinaryIO, name: object = None) -> Image.Image:
    """Open an image file of a format that is safe to read, HEIC included where pillow-heif is installed.

    A DataError says that it has more pixels than :func:`limit_pixels` allows; ``name`` stands there for a stream.
    """
    named = isinstance(path, str | Path)
    heic = Path(str(path)).suffix.lower() in _HEIC if named else find_spec("pillow_heif") is not None
    source = _regular(path) if isinstance(path, str | Path) else path
    image = Image.open(source, formats=[*_FORMATS, *_heif_reader()] if heic else _FORMATS)
    if image.width * image.height > _limit:
        size = times(image)
        image.close()
        allowed = f"{_limit / 1e6:g} million; allow more with mlffn --max-megapixels"
        raise DataError(f"{name or path}: {size} pixels are more than {allowed}")
    return image


@cache
def _heif_reader() -> list[str]:
    with extra("heic"):
        import pillow_heif
    pillow_heif.register_heif_opener(thumbnails=False)
    return ["HEIF"]


def open_image(path: str | Path | BinaryIO, name: object = None) -> Image.Image:
    """Decode an image file to its end and turn it upright as its EXIF tag says; the colour mode stays.

    ``name`` stands in errors instead of the path, for a stream that has none.

    Raises
    ------
    DataError
        If the file cannot be decoded, is too large to be safe, or has a side shorter than 8 pixels.
    """
    name = name or path
    try:
        with open_file(path, name) as image:
            return upright(image, name)
    except DataError:
        raise
    except MissingExtraError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        why = "not a known image format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DataError(f"{name}: cannot be read ({why})") from error


def _regular(path: str | Path) -> Path:
    """Return the path of a regular file, or of none; a pipe or a device is never opened."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no regular file")
    return path


def upright(image: Image.Image, name: object) -> Image.Image:
    """Do the work of :func:`open_image` on an image that is open; ``name`` begins the message of an error."""
    try:
        kind = image.format
        image.load()
        pages = _count_pages(image)
        image = ImageOps.exif_transpose(image)
        image.format, image.info[_PAGES] = kind, pages
    except Exception as error:  # on damaged files Pillow's decoders raise anything, from SyntaxError to struct.error
        raise DataError(f"{name}: cannot be read ({error})") from error
    if min(image.size) < MIN_SIDE:
        raise DataError(f"{name}: {times(image)} pixels; each side must have at least {MIN_SIDE}")
    if image.mode == "LAB" or (image.mode in _TOP and not in_range(np.asarray(image), _TOP[image.mode])):
        raise DataError(f"{name}: mode {image.mode} with values that have no known range; save it with 8 or 16 bits")
    return image


def _count_pages(image: Image.Image) -> int:
    """Count the pages or frames of an open file; a photograph with its preview or its depth (MPO) is one."""
    try:
        return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except Exception:  # what comes after the first page is damaged
        return 1


def pages_of(image: Image.Image) -> int:
    """Return how many pages or frames the file has that :func:`open_image` read an image from."""
    return int(image.info.get(_PAGES, 1))


def several_pages(paths: Sequence[Path], total: int) -> str:
    """Say which of so many images have several pages or frames; empty if none has."""
    said = f"{len(paths)} of {total} images have several pages or frames, of which the first is read: "
    return said + few([str(path) for path in paths]) if paths else ""


def in_range(values: np.ndarray | Tensor, top: float = 1) -> bool:
    """Whether all values lie between 0 and ``top``; False for NaN."""
    return bool(values.min() >= 0 and values.max() <= top)


def read_image(path: str | Path, shape: tuple[int, int] | int | None = None) -> Tensor:
    """Read an image file as RGB, uint8, (3, H, W).

    Grey images get three equal channels and an alpha channel is dropped. 16-bit values are divided by 257 (0…65535
    to 0…255), float values must lie in [0, 1]. Of several frames the first is taken. Resizing is bilinear with
    antialiasing and does not keep the aspect ratio of its own accord.

    Parameters
    ----------
    path : str or Path
        Any image file that Pillow reads.
    shape : (int, int) or int, optional
        Height and width to resize to, or the side of a square; without it the image keeps its size.

    Raises
    ------
    DataError
        If the file cannot be decoded, is too large to be safe, or has a side shorter than 8 pixels.
    """
    return image_tensor(open_image(path), shape)


def seen_tensor(image: Image.Image, name: object, shape: tuple[int, int], view: View) -> Tensor:
    """Return what a view lets see of an open photograph, as :func:`read_image` would; DataError if it does not fit."""
    return view.fill(image_tensor(view.cut(image, name), shape, view.hidden))


def image_tensor(image: Image.Image, shape: tuple[int, int] | int | None, hidden: Image.Image | None = None) -> Tensor:
    """Do the work of :func:`read_image` on an image that is open; pixels that are ``hidden`` become grey before it."""
    if image.mode in _TOP:  # convert() would clip 16-bit and float values instead of scaling them
        values, factor = np.asarray(image), 255 / _TOP[image.mode]
        scaled = np.empty(values.shape, np.uint8)
        for start in range(0, len(values), 256):  # in strips: the products are eight bytes a pixel
            scaled[start : start + 256] = np.rint(values[start : start + 256] * factor)
        image = Image.fromarray(scaled)
    image = image.convert("L" if image.mode in _GREY else "RGB")
    if hidden is not None:
        image.paste(FILL if image.mode == "L" else (FILL, FILL, FILL), mask=hidden)
    if shape is not None:
        height, width = _pair(shape)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def read_mask(path: str | Path, shape: tuple[int, int] | int | None = None) -> Tensor:
    """Read a mask file, bool, (H, W): a pixel that is not black is defective (in a JPEG, one of 128 or more).

    Resizing takes the nearest pixel, as is usual in the field. Only where that would leave nothing at all of a small
    defect, every pixel it touches is taken instead.
    """
    return mask_tensor(open_image(path), shape)


def mask_values(image: Image.Image) -> np.ndarray:
    """Return a mask's values (H, W); of a coloured mask the largest channel, without alpha."""
    if image.mode not in _TOP:
        image = image.convert("L" if image.mode in _GREY else "RGB")
    values = np.asarray(image)
    return values.max(axis=2) if values.ndim == 3 else values


def mask_tensor(image: Image.Image, shape: tuple[int, int] | int | None) -> Tensor:
    """Do the work of :func:`read_mask` on a mask that is open."""
    mask = mask_values(image) > (127 if image.format == "JPEG" else 0)
    if shape is not None:
        (height, width), (h, w) = mask.shape, _pair(shape)
        y, x = (2 * np.arange(n) + 1 for n in (h, w))  # middles of new pixels, in half pixels; integers: ties are exact
        small = mask[np.ix_(y * height // (2 * h), x * width // (2 * w))]
        if mask.any() and not small.any():
            y, x = np.nonzero(mask)
            small[y * h // height, x * w // width] = True
        mask = small
    return torch.from_numpy(np.array(mask))


def _pair(shape: tuple[int, int] | int) -> tuple[int, int]:
    return (shape, shape) if isinstance(shape, int) else shape


def find_view(entries: Sequence[Entry], crop: str | Box = "none", ignore: str = "") -> View:
    """Return the view that ``data.crop`` and ``data.ignore`` ask for; ``auto`` looks at good training images.

    Raises
    ------
    DataError
        If the mask of ignored pixels cannot be read or marks nothing, or ``auto`` is asked for images of several sizes.
    """
    png = b""
    if ignore:
        mask = open_image(ignore)
        marked = mask_values(mask) > (127 if mask.format == "JPEG" else 0)
        if not marked.any():
            raise DataError(f"{ignore}: black everywhere; paint white what shall be ignored")
        png = ignore_png(marked)
    if isinstance(crop, str):
        return View(_automatic(entries) if crop == "auto" else None, png)
    return View(crop, png)


def _automatic(entries: Sequence[Entry]) -> Box | None:
    """Find the box of some good images; those that cannot be read are left for the reader to report."""

    def read(entry: Entry) -> tuple[tuple[int, int], Image.Image] | None:
        try:
            image = entry.open()[0]
        except DataError:
            return None
        pixels = image_tensor(image, _within(image.size, 256)).permute(1, 2, 0).numpy()
        return image.size, Image.fromarray(pixels)

    found = [x for x in map_threads(read, entries[:: -(-len(entries) // SAMPLE)], "finding the crop") if x]
    if len(sizes := {size for size, _ in found}) > 1:
        named = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:3])
        raise DataError(
            f"data.crop = auto needs good images of one size, found {named}; give the box: left,top,width,height"
        )
    return find_box([image for _, image in found], found[0][0]) if found else None


def _within(size: tuple[int, int], longest: int) -> tuple[int, int] | None:
    """Return height and width of an image reduced to a longest side, None where it is no larger."""
    if max(size) <= longest:
        return None
    factor = longest / max(size)
    return max(1, round(size[1] * factor)), max(1, round(size[0] * factor))


def common_shape(
    entries: Sequence[Entry], size: int, aspect: str = "keep", view: View | None = None
) -> tuple[int, int]:
    """Return the height and width that keep the images' median aspect ratio at about size² pixels, or a square.

    A crop's aspect ratio is its own. Both are multiples of 16, the coarsest stride of the network, and at least 32. Of
    files only headers are read; those that cannot be read are left out.
    """
    if aspect == "square":
        return size, size
    if view is not None and view.box is not None:
        ratios = [float(np.log(view.box[3] / view.box[2]))]
    else:
        ratios = [r for r in map_threads(lambda entry: entry.log_aspect(), entries, None) if r is not None]
    ratio = float(np.exp(np.median(ratios))) if ratios else 1.0
    sides = size * np.sqrt(ratio), size / np.sqrt(ratio)
    height, width = (max(32, 16 * round(side / 16)) for side in sides)
    return (size, size) if height == width else (height, width)


def scan(root: str | Path, recursive: bool = False) -> Layout:
    """List the files of a data folder, ordered by name, without opening them; DataError if there is no such folder."""
    try:
        return _scan(Path(root), recursive)
    except OSError as error:
        raise DataError(f"cannot list {root}: {error}") from error


def _scan(root: Path, recursive: bool) -> Layout:
    if not root.exists():
        raise DataError(f"data folder {root} does not exist; check the path, or create it")
    if not root.is_dir():
        raise DataError(f"{root} is a file; give the folder that holds train/good, or a folder of good images")
    if not (root / "train").exists() and not (root / "test").exists():
        return Layout(root, [Entry(p) for p in list_images(root, recursive)], [], [])
    test = []
    for folder in folders_in(root / "test"):
        masks = masks_in(root / "ground_truth" / folder.name, recursive) if folder.name != "good" else {}
        for path in list_images(folder, recursive):
            test.append(Entry(path, folder.name, mask_of(path, folder, masks)))
    used = {e.mask for e in test}
    stray = [p for f in folders_in(root / "ground_truth") for p in list_images(f, recursive) if p not in used]
    train, held = ([*list_images(root / name / "good", recursive)] for name in ("train", "validation"))
    return Layout(root, [Entry(p) for p in train], test, stray, held)


def masks_in(folder: Path, recursive: bool) -> dict[Path, Path]:
    """Return the masks of a folder by their path in it, without suffix."""
    return {p.relative_to(folder).with_suffix(""): p for p in list_images(folder, recursive)}


def mask_of(path: Path, folder: Path, masks: Mapping[Path, Path]) -> Path | None:
    """Return the mask of an image of a folder: of the same name, or with ``_mask`` behind it."""
    name = path.relative_to(folder).with_suffix("")
    return masks.get(name.with_name(f"{name.name}_mask")) or masks.get(name)


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """List image files by suffix; hidden files and folders (``._a.png``) and a missing folder give none."""
    found = (folder.rglob("*") if recursive else folder.iterdir()) if folder.is_dir() else ()
    hidden = len(folder.parts)
    return sorted(
        p
        for p in found
        if p.suffix.lower() in _SUFFIXES and not any(x[0] == "." for x in p.parts[hidden:]) and p.is_file()
    )


def subfolders(folder: Path) -> list[Path]:
    """Return a folder and all folders below it but hidden ones; none if it is missing."""
    found = []
    for place, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if name[0] != ".")
        found.append(Path(place))
    return found


def left_out(folder: Path, recursive: bool = False) -> list[tuple[Path, str]]:
    """Say what a folder holds beside the images directly in it, a line per reason; hidden files do not count.

    Sub-folders count if there are images in them: an image that is not read shall not vanish without a word. With
    ``recursive`` they are read, and each is looked at like the folder.

    Returns
    -------
    list of (Path, str)
        The folder that a line is about, and the line.
    """
    places = subfolders(folder) if recursive else [folder]
    return [(place, line) for place in places for line in _left_out(place, recursive)]


def _left_out(folder: Path, recursive: bool) -> list[str]:
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name[0] == "." or path.name.lower() in _SYSTEM:
            continue
        suffix = path.suffix.lower()
        if path.is_dir() and suffix in _SUFFIXES:
            reason = "folders named like images"
        elif path.is_dir() and recursive:
            continue
        elif path.is_dir():
            reason = "folders, whose images are not read" if any(map(_is_image, path.rglob("*"))) else ""
        elif not path.exists():
            reason = "links that lead nowhere"
        elif not path.is_file():
            reason = "devices or pipes"
        elif suffix in _HEIC:
            reason = "" if suffix in _SUFFIXES else "HEIC files, which need pip install 'mlffn-lite[heic]'"
        else:
            reason = "" if suffix in _SUFFIXES else f"{suffix or 'nameless'} files, which are no images"
        if reason:
            found.setdefault(reason, []).append(path.name)
    return [
        f"{len(names)} {reason}: {', '.join(names[:3])}" + f" and {len(names) - 3} more" * (len(names) > 3)
        for reason, names in found.items()
    ]


def but_holds(folder: Path, recursive: bool = False) -> str:
    """Return what :func:`left_out` says, to go on after "holds no image"; empty if that is nothing."""
    found = left_out(folder, recursive)
    rest = [f"{place}: {line}" if place != folder else line for place, line in found]
    return f", but {'; '.join(rest)}" if rest else ""


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES | _HEIC and path.name[0] != "." and path.is_file()


def folders_in(folder: Path) -> list[Path]:
    """Return the folders directly in a folder but hidden ones, by name; none if it is missing."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".") if folder.is_dir() else []


def missing_good(layout: Layout, recursive: bool = False) -> str | None:
    """Say what to do if a folder has no good training images; None if it has."""
    root, good = layout.root, layout.root / "train" / "good"
    categories = [f.name for f in folders_in(root) if (f / "train" / "good").is_dir()]
    if layout.train:
        return None
    if categories:
        return f"{root} holds several categories ({few(categories)}); choose one, such as {root / categories[0]}"
    if good.is_dir():
        return f"{good} holds no image{but_holds(good, recursive)}; put good images there"
    if (root / "train").exists() or (root / "test").exists():
        return f"{root} has no train/good; put the good images for training there"
    if recursive and (rest := but_holds(root, recursive)):
        return f"{root} and the folders in it hold no image{rest}; give a folder of images"
    if rest := but_holds(root):
        named = "name the folders with --good and --bad, or read all as good with --recursive"
        advice = named if "folders, whose" in rest else "give a folder of images"
        return f"{root} holds no image directly in it{rest}; {advice}"
    return f"{root} is empty or holds no images; put good images into it, or into train/good below it"


def map_threads(function: Callable[[T], R], items: Sequence[T], what: str | None) -> Iterator[R]:
    """Map in order over a few threads (Pillow decodes outside the GIL); a bar named ``what`` shows after 2 seconds."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from tqdm(pool.map(function, items), what, len(items), leave=False, delay=2, disable=what is None)


class Split(Sequence[Sample]):
    """The samples of a training or test set, all of one size; ``split[i]`` is a :class:`Sample`.

    Made by :class:`AnomalyFolder` and :func:`~mlffn_lite.datasets.sources.open_source`. Pixels are kept in memory as
    uint8; on disk if they do not fit; and are decoded at each use if they do not fit there either. All are what
    :attr:`view` lets see of the photographs.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        shape: tuple[int, int],
        pixels: tuple[Tensor, Tensor] | tuple[DiskArray, DiskArray] | None,
        view: View | None = None,
        several: Collection[Path] = (),
    ) -> None:
        self._entries, self._pixels, self.shape, self.view = list(entries), pixels, shape, view or View()
        self._several = several

    @classmethod
    def read(
        cls,
        entries: Sequence[Entry],
        shape: tuple[int, int],
        what: str,
        cache_bytes: int = CACHE_BYTES,
        view: View | None = None,
    ) -> tuple[Split, list[str]]:
        """Decode all entries once, and keep them if they fit; returns the usable ones and what is wrong with others."""
        size, count = pixel_bytes(entries, shape), len(entries)
        pixels: Any = None
        if size <= cache_bytes:
            pixels = _zeros(count, shape)
        elif fits(size):
            pixels = DiskArray(count, (3, *shape), np.uint8), DiskArray(count, shape, np.bool_)
        several: set[Path] = set()
        bad = _decode(entries, shape, what, view or View(), pixels, several)
        split = cls(entries, shape, pixels, view, several)
        return split.subset([i for i in range(len(split)) if i not in bad]) if bad else split, list(bad.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # subset() is what a slice would be
        entry = self._entries[index]
        images, masks = self.batch([index])
        return Sample(images[0], masks[0], entry.label, entry.defect, entry.path, entry.has_mask)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen images (B, 3, H, W) uint8 and masks (B, H, W) bool."""
        index = torch.as_tensor(indices, dtype=torch.long)
        if self._pixels is not None:
            return self._pixels[0][index], self._pixels[1][index]
        pixels = _zeros(len(index), self.shape)
        faults = _decode([self._entries[i] for i in index.tolist()], self.shape, None, self.view, pixels)
        if faults:
            raise DataError(few(list(faults.values())))
        return pixels

    def subset(self, indices: Sequence[int] | Tensor) -> Split:
        """Return the chosen samples as a split of their own; a range without gaps shares the memory of this one."""
        if isinstance(indices, range) and indices.step == 1:
            chosen = slice(indices.start, indices.stop)
            pixels: Any = self._pixels and (self._pixels[0][chosen], self._pixels[1][chosen])
            return Split(self._entries[chosen], self.shape, pixels, self.view, self._several)
        index = torch.as_tensor(indices, dtype=torch.long)
        if self._pixels is not None and isinstance(self._pixels[0], DiskArray):
            pixels = tuple(part.take(index) for part in self._pixels)
        else:
            pixels = self._pixels and self.batch(index)
        return Split([self._entries[i] for i in index.tolist()], self.shape, pixels, self.view, self._several)

    def images(self) -> Tensor:
        """Return all images, (M, 3, H, W) uint8. This is the memory the split itself uses: do not write to it."""
        return self._all()[0]

    def masks(self) -> Tensor:
        """Return all masks, (M, H, W) bool; where :attr:`has_mask` is False they say nothing. Do not write to it."""
        return self._all()[1]

    def _all(self) -> tuple[Tensor, Tensor]:
        kept: Any = self._pixels
        return self.batch(range(len(self))) if kept is None or self.in_background else kept

    @property
    def in_background(self) -> bool:
        """Whether images are not in memory, so that it pays to read the next ones while these are computed with."""
        return self._pixels is None or isinstance(self._pixels[0], DiskArray)

    def labels(self) -> Tensor:
        """Return 0 (good) or 1 (anomalous) for every image, (M,) int64."""
        return torch.tensor([e.label for e in self._entries], dtype=torch.long)

    @property
    def has_mask(self) -> Tensor:
        """Whether each image's defective pixels are known, (M,) bool: True for good images and those with a mask."""
        return torch.tensor([e.has_mask for e in self._entries], dtype=torch.bool)

    @property
    def entries(self) -> list[Entry]:
        """What every sample is read from."""
        return list(self._entries)

    @property
    def defects(self) -> list[str]:
        """The defect of every image, ``"good"`` for good ones."""
        return [e.defect for e in self._entries]

    @property
    def paths(self) -> list[Path]:
        """The file of every image; a number where there is none."""
        return [e.path for e in self._entries]

    @property
    def several_pages(self) -> list[Path]:
        """The files of several pages or frames, of which the first was read."""
        return [e.path for e in self._entries if e.path in self._several]

    @property
    def mask_paths(self) -> list[Path | None]:
        """The mask file of every image, None where there is none."""
        return [e.mask for e in self._entries]


class Parts:
    """Training and test images of one category of parts: what every source of data is opened as.

    Parameters
    ----------
    root : Path
        The folder of the files, or a name.
    train, test : Split
        Good images, and images whose label is known; each may be empty.
    overlap : bool
        Whether training images are in the test split too, as where one labelled data set is opened: fit to it or
        measure on it, not both.
    """

    def __init__(self, root: Path, train: Split, test: Split, *, overlap: bool = False) -> None:
        self.root, self.train, self.test, self.overlap = root, train, test, overlap

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of all images and masks."""
        return self.train.shape

    @property
    def view(self) -> View:
        """What of every photograph is looked at."""
        return self.train.view

    @property
    def validation(self) -> list[Path]:
        """Good images that nothing is fitted to, to choose a threshold by; none but of a folder that has some."""
        return []

    def fingerprint(self, *, test: bool = True) -> str:
        """Return the SHA-256 (hex) of all names and contents in use, with or without the test split."""
        return fingerprint_of(self.digests(test=test))

    def digests(self, *, test: bool = True) -> dict[str, str]:
        """Return the SHA-256 (hex) of each image and mask in use by its name, with or without the test split.

        The mask of ignored pixels is among them, as ``data.ignore``.
        """
        jobs: list[tuple[Path, Callable[[], str]]] = []
        for split in (self.train, self.test)[: 1 + test]:
            jobs += [(e.path, e.digest) for e in split.entries]
            jobs += [(path, partial(_sha256, path)) for path in split.mask_paths if path is not None]
        contents = map_threads(lambda job: job[1](), jobs, "hashing")
        files = dict(zip((self.name(path) for path, _ in jobs), contents, strict=True))
        return files | ({"data.ignore": self.view.digest} if self.view.png else {})

    def name(self, path: Path) -> str:
        """Return the name of an image: its path below :attr:`root`, or the path itself if it lies elsewhere."""
        return escaped.name((path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix())


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 (hex) of names and the digests of their contents, in their order."""
    digest = hashlib.sha256()
    for path, content in digests.items():
        digest.update(f"{path}\0{content}\n".encode())
    return digest.hexdigest()


class AnomalyFolder(Parts):
    """A data folder in the layout of MVTec AD, or a plain folder of good images.

    The layout is ``train/good/*``, ``test/good/*``, ``test/<defect>/*`` and, optionally per image,
    ``ground_truth/<defect>/<stem>_mask.*`` or ``<stem>.*``. In a plain folder all images directly below it are good
    and for training, and the test split is empty. Files that are not images by their suffix, and hidden files, are
    ignored. All files are decoded once, here, so that a damaged one is found now and not after hours of training.

    Parameters
    ----------
    root : str or Path
        The folder.
    size : int
        Side in pixels of the square that images and masks are resized to, see :func:`read_image`, :func:`read_mask`.
    aspect : {"square", "keep"}
        Squeeze to that square, or to as many pixels in the training images' median aspect ratio, :func:`common_shape`.
    shape : (int, int), optional
        Height and width to resize to instead, such as those a detector was fitted to.
    skip_bad : bool
        Leave out files that cannot be used, with a warning that lists them, instead of raising.
    cache_bytes : int
        Memory for decoded pixels. A split that does not fit is decoded anew at each use.
    crop, ignore
        What of each photograph is looked at, as ``data.crop`` and ``data.ignore`` of the configuration say.
    view : View, optional
        Instead of these, such as that of a detector.
    layout : Layout, optional
        The files of ``root``, where :func:`~mlffn_lite.datasets.listing.find_layout` knows them by other rules.
    recursive : bool
        Read images in sub-folders too.

    Raises
    ------
    DataError
        If the folder is missing or empty, has no good images, or holds an image or mask that cannot be used: damaged,
        cut short, too large or too small, or a mask of another size than its image.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        size: int = 256,
        aspect: str = "square",
        shape: tuple[int, int] | None = None,
        skip_bad: bool = False,
        cache_bytes: int = CACHE_BYTES,
        crop: str | Box = "none",
        ignore: str = "",
        view: View | None = None,
        layout: Layout | None = None,
        recursive: bool = False,
    ) -> None:
        if min(shape or (size,)) < MIN_SIDE:
            raise ValueError(f"images must have at least {MIN_SIDE} pixels a side, got {shape or size}")
        if aspect not in ("square", "keep"):
            raise ValueError(f"aspect must be 'square' or 'keep', got {aspect!r}")
        layout = layout or scan(root, recursive)
        if missing := missing_good(layout, recursive):
            raise DataError(missing)
        view = view or find_view(layout.train, crop, ignore)
        shape = shape or common_shape(layout.train, size, aspect, view)
        train, faults = Split.read(layout.train, shape, "reading train", cache_bytes, view)
        if (needed := pixel_bytes(layout.train, shape)) <= cache_bytes:
            cache_bytes -= needed
        test, more = Split.read(layout.test, shape, "reading test", cache_bytes, view)
        super().__init__(layout.root, train, test)
        held = layout.validation
        bad = unreadable(held)
        self._validation = [path for path, fault in zip(held, bad, strict=True) if not fault]
        faults = [*faults, *more, *filter(None, bad)]
        report_faults(faults, len(layout.train) + len(layout.test) + len(held), skip_bad)
        if not train:
            raise DataError(f"{root} has no good image that can be read")

    @property
    def validation(self) -> list[Path]:
        """Good images in ``validation/good``, which nothing is fitted to, to choose a threshold by."""
        return self._validation


def unreadable(paths: Sequence[Path], what: str | None = None) -> list[str | None]:
    """Return why each image file cannot be read, None where it can; ``what`` names the work on a progress bar."""

    def fault(path: Path) -> str | None:
        try:
            open_image(path)
        except DataError as error:
            return str(error)
        return None

    return list(map_threads(fault, paths, what))


def pixel_bytes(entries: Sequence[Entry], shape: tuple[int, int]) -> int:
    """Return the memory that decoded images and masks take."""
    return len(entries) * 4 * shape[0] * shape[1]


def report_faults(faults: Sequence[str], total: int, skip_bad: bool) -> None:
    """Raise UnreadableError if there are faults in ``total`` images; with ``skip_bad`` warn."""
    if faults and not skip_bad:
        found = f"{len(faults)} of {total} images cannot be used: {few(faults)}"
        raise UnreadableError(f"{found}; repair or remove them")
    if faults:
        warnings.warn(f"skipped {len(faults)} of {total} images: {few(faults)}", stacklevel=3)


def _decode(
    entries: Sequence[Entry],
    shape: tuple[int, int],
    what: str | None,
    view: View,
    pixels: Any,
    several: set[Path] | None = None,
) -> dict[int, str]:
    """Decode entries into images and masks, or nowhere; returns faults by position.

    Files of several pages or frames are added to ``several``.
    """

    def read(i: int) -> str | None:
        entry = entries[i]
        try:
            image, mask = entry.open()
            seen = seen_tensor(image, entry.path, shape, view)
        except DataError as error:
            return str(error)
        if mask is not None and mask.size != image.size:
            return f"{entry.mask or entry.path}: {mismatch(mask, image)}"
        if several is not None and pages_of(image) > 1:
            several.add(entry.path)
        if pixels is not None:
            pixels[0][i] = seen
            if mask is not None:
                pixels[1][i] = mask_tensor(view.cut(mask, entry.path), shape)
        return None

    found = enumerate(map_threads(read, range(len(entries)), what))
    return {i: fault for i, fault in found if fault}


def _zeros(count: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return images and masks to fill."""
    return torch.zeros((count, 3, *shape), dtype=torch.uint8), torch.zeros((count, *shape), dtype=torch.bool)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(mask: Image.Image, image: Image.Image) -> str:
    """Word the fault of a mask that does not fit its image."""
    return f"the mask has {times(mask)} pixels, its image {times(image)}"


def times(image: Image.Image) -> str:
    """Word an image's size, width first."""
    return f"{image.width}x{image.height}"


def few(items: Sequence[str], limit: int = 5) -> str:
    """Join the first few items and count the rest."""
    return "; ".join(items[:limit]) + (f"; and {len(items) - limit} more" if len(items) > limit else "")
