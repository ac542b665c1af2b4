"""Check a data folder in one pass and list everything that is wrong with it."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from torch import Tensor

from ..errors import DataError
from .folder import (
    Entry,
    Layout,
    Parts,
    Split,
    image_tensor,
    left_out,
    map_threads,
    mask_tensor,
    mask_values,
    mismatch,
    missing_good,
    open_file,
    open_image,
    pages_of,
    several_pages,
    times,
)
from .listing import find_layout, searched_folders, unused_folders

FEWEST = 10
"""Good images below which a notice says that there are few."""
_TWELVE_BITS = 1 << 12
_DARK = "16 bits of which at most 12 are used: it is read as nearly black; multiply its values by 16"
_FEW = "{} good images are few: thresholds promise little, and what varies is hardly known"


@dataclass(frozen=True, order=True)
class Finding:
    """A file and what is the matter with it; a notice, unlike a fault, does no harm."""

    path: Path
    reason: str
    fault: bool = True


@dataclass
class VerifyReport:
    """What :func:`verify` found.

    Attributes
    ----------
    root : Path
        The folder.
    counts : dict of str to (int, int)
        Images and masks of each image folder, such as ``"test/scratch"``.
    sizes, modes : Counter
        Images per size (``"640x480"``, upright) and per Pillow colour mode (``"RGB"``, ``"L"``, ``"I;16"``).
    findings : list of Finding
        Faults and notices, ordered by path.
    """

    root: Path
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """What must be mended: files that cannot be used, or data that would give wrong numbers."""
        return [f for f in self.findings if f.fault]

    @property
    def notices(self) -> list[Finding]:
        """What is worth knowing but does no harm."""
        return [f for f in self.findings if not f.fault]

    def lines(self, limit: int = 20) -> list[str]:
        """Return the report as plain lines, with every fault and at most ``limit`` notices."""
        out = [str(self.root)]
        for name, (images, masks) in self.counts.items():
            out.append(f"  {name}: {images} images" + (f", {masks} masks" if masks else ""))
        for name, counter in (("sizes", self.sizes), ("colour modes", self.modes)):
            listed = ", ".join(f"{key} ({count})" for key, count in counter.most_common(5))
            if counter:
                out.append(f"  {name}: {listed}" + (f", {len(counter) - 5} others" if len(counter) > 5 else ""))
        for kind, found in (("fault", self.faults), ("notice", self.notices[:limit])):
            places = (self.root if f.path == self.root else _relative(f.path, self.root) for f in found)
            out += [f"{kind}: {place}: {f.reason}" for place, f in zip(places, found, strict=True)]
        out += [f"... and {len(self.notices) - limit} more notices"] if len(self.notices) > limit else []
        return [*out, f"{len(self.faults)} faults, {len(self.notices)} notices"]


def verify(root: str | Path, *, good: str = "", bad: Sequence[str] = (), recursive: bool = False) -> VerifyReport:
    """Check a data folder completely, without stopping at the first fault.

    Faults: no good images; an image or mask that cannot be read; a mask of another size than its image, empty, of a
    good image, or of no image; the same pixels in the training and the test split. Notices: a defective image without
    a mask; a mask that is not binary or marks every pixel; the same pixels twice in one split; a test split with good
    or with defective images only; folders below ``train`` that are not used; fewer than ten good images, or images
    that are constant; an image of 16 bits that uses 12 or fewer; one of several pages or frames, of which the first is
    read; one that its EXIF tag turns, and whose mask has no such tag; files and folders that are left out, by reason.
    What several images share is one line.

    Parameters
    ----------
    root : path
        Folder or list.
    good, bad, recursive
        See :func:`~mlffn_lite.datasets.listing.find_layout`.

    Raises
    ------
    DataError
        If there is no such folder, or the list cannot be understood.
    """
    layout = find_layout(root, good, bad, recursive)
    report = VerifyReport(layout.root)
    first: dict[bytes, int] = {}
    entries = layout.train + layout.test
    for i, (found, image, digest) in enumerate(map_threads(_inspect, entries, "checking images")):
        name = _relative(entries[i].path.parent, layout.root)
        images, masks = report.counts.get(name, (0, 0))
        report.counts[name] = images + 1, masks + (entries[i].mask is not None)
        report.findings += found
        if image:
            report.sizes[image[0]] += 1
            report.modes[image[1]] += 1
            j = first.setdefault(digest, i)
            if j != i:
                same = f"same pixels as {_relative(entries[j].path, layout.root)}"
                report.findings.append(Finding(entries[i].path, same, j < len(layout.train) <= i))
    report.findings += _check_layout(layout, recursive)
    places = (searched_folders(root, good, bad) or {e.path.parent for e in entries}) if entries else ()
    for place in places:  # where there is no image at all, the fault says what there is instead
        report.findings += [Finding(p, f"left out: {line}", fault=False) for p, line in left_out(place, recursive)]
    report.findings += [Finding(layout.root, line, fault=False) for line in unused_folders(root, good, bad)]
    report.findings = sorted(_together(report.findings))
    return report


def _inspect(entry: Entry) -> tuple[list[Finding], tuple[str, str] | None, bytes]:
    """Check one image and its mask; returns findings, the image's size and mode, and a hash of its pixels."""
    found: list[Finding] = []
    image = _open(entry.path, found)
    about, digest = None, b""
    if image is not None:
        if pages_of(image) > 1:
            found.append(Finding(entry.path, "several pages or frames; only the first is read", fault=False))
        found += _header(entry)
        about = times(image), image.mode
        if all(low == high for low, high in _extrema(image)):
            found.append(Finding(entry.path, "every pixel has the same colour", fault=False))
        elif image.mode.startswith("I") and max(high for _, high in _extrema(image)) < _TWELVE_BITS:
            found.append(Finding(entry.path, _DARK, fault=False))
        digest = hashlib.sha256(about[0].encode() + image_tensor(image, None).numpy().tobytes()).digest()
    if not entry.has_mask:
        found.append(Finding(entry.path, "no mask; pixel metrics cannot use it", fault=False))
    if entry.mask is None or (mask := _open(entry.mask, found)) is None:
        return found, about, digest
    marked, values = mask_tensor(mask, None), mask_values(mask)
    if image is not None and mask.size != image.size:
        found.append(Finding(entry.mask, mismatch(mask, image)))
    if not marked.any():
        found.append(Finding(entry.mask, "the mask of a defective image is empty"))
    elif marked.all():
        found.append(Finding(entry.mask, "the mask marks every pixel", fault=False))
    if ((values != 0) & (values != values.max())).any():
        found.append(Finding(entry.mask, "the mask is not binary; read_mask says what counts", fault=False))
    return found, about, digest


def _header(entry: Entry) -> list[Finding]:
    """Say what only the headers of an image and its mask tell together; the image can be read."""
    found: list[Finding] = []
    if entry.mask is None:
        return found
    with open_file(entry.path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    if turned > 1:
        with contextlib.suppress(Exception), open_file(entry.mask) as mask:
            if mask.getexif().get(ExifTags.Base.Orientation, 1) != turned:
                reason = "its EXIF tag turns it, and its mask has no such tag: look whether the mask is upright"
                found.append(Finding(entry.path, reason, fault=False))
    return found


def training_notices(parts: Parts) -> list[str]:
    """Say what makes numbers doubtful: few, identical or constant training images, tested ones, several pages."""
    train, pages = parts.train, [*parts.train.several_pages, *parts.test.several_pages]
    said = [several_pages(pages, len(parts.train) + len(parts.test))] if pages else []
    if len(train) < FEWEST:
        said.append(_FEW.format(len(train)))
    seen: dict[bytes, int] = {}
    constant = 0
    for i, (pixels, _) in enumerate(_samples(train)):
        constant += bool((pixels == pixels[:, :1, :1]).all())
        seen.setdefault(_digest(pixels), i)
    if constant:
        said.append(f"{constant} of {len(train)} training images have the same colour everywhere")
    if len(seen) < len(train):
        said.append(f"{len(train) - len(seen)} of {len(train)} training images are the same as others of them")
    return said + measuring_notices(parts, set(seen))


def measuring_notices(parts: Parts, trained: set[bytes] | None = None) -> list[str]:
    """Say what makes metrics doubtful: test images that are training images, defects with empty masks.

    ``trained`` are the digests of the training images, where they are known.
    """
    if parts.overlap:
        return []
    trained = {_digest(pixels) for pixels, _ in _samples(parts.train)} if trained is None else trained
    shared = empty = 0
    for entry, (pixels, mask) in zip(parts.test.entries, _samples(parts.test), strict=True):
        shared += _digest(pixels) in trained
        empty += entry.mask is not None and not mask.any()
    several = f"of {len(parts.test)} test images"
    said = [f"{shared} {several} are training images: the numbers look too good"] if shared else []
    return said + ([f"{empty} {several} have an empty mask, as if nothing were wrong with them"] if empty else [])


def _samples(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image with its mask."""
    for i in range(len(split)):
        images, masks = split.batch([i])
        yield images[0], masks[0]


def _digest(pixels: Tensor) -> bytes:
    return hashlib.sha256(pixels.numpy().tobytes()).digest()


def _relative(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _open(path: Path, found: list[Finding]) -> Image.Image | None:
    try:
        return open_image(path)
    except DataError as error:
        found.append(Finding(path, str(error).removeprefix(f"{path}: ")))
        return None


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    """Return the smallest and largest value of every band."""
    found: Any = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]


def _together(findings: list[Finding]) -> list[Finding]:
    """Make one finding of notices that more than two files of a folder share."""
    groups: dict[tuple[Path, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.path.parent, finding.reason), []).append(finding)
    kept: list[Finding] = []
    for (folder, reason), group in groups.items():
        if len(group) < 3 or group[0].fault:
            kept += group
        else:
            kept.append(Finding(folder, f"{len(group)} images: {reason}", fault=False))
    return kept


def _check_layout(layout: Layout, recursive: bool) -> list[Finding]:
    found: list[Finding] = []
    if missing := missing_good(layout, recursive):
        found.append(Finding(layout.root, missing))
    for path in layout.stray:
        mask = _open(path, found)
        if path.parent.name != "good":
            found.append(Finding(path, "mask without an image, or a second mask of one"))
        elif mask is not None and mask_tensor(mask, None).any():
            found.append(Finding(path, "mask that marks defects in a good image"))
        elif mask is not None:
            found.append(Finding(path, "empty mask of a good image; not used", fault=False))
    if len({e.label for e in layout.test}) == 1:
        lacks = "good" if layout.test[0].label else "defective"
        found.append(Finding(layout.root / "test", f"no {lacks} images; AUROC is undefined", fault=False))
    if 0 < len(layout.train) < FEWEST:
        found.append(Finding(layout.train[0].path.parent, _FEW.format(len(layout.train)), fault=False))
    unused = [p for p in layout.root.glob("train/*/") if p.name != "good" and p.is_dir()]
    return found + [Finding(p, "not used; only train/good is trained on", fault=False) for p in unused]
