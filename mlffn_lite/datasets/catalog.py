"""Known public data sets: licence, source, checksum, and how each becomes the MVTec layout."""

from __future__ import annotations

import csv
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, DownloadError
from .archive import extract, fetch
from .folder import mask_values, open_image, read_mask


@dataclass(frozen=True)
class PublicSet:
    """A public data set, as ``catalog.toml`` describes it.

    ``url`` is None if the archive must be fetched by hand, ``sha256`` if no checksum is known for certain;
    ``categories`` is empty if the set is one category; ``layout`` names the converter of its archive.
    """

    name: str
    title: str
    licence: str
    citation: str
    homepage: str
    filename: str
    layout: str
    categories: tuple[str, ...] = ()
    url: str | None = None
    sha256: str | None = None
    gigabytes: float | None = None
    note: str = ""

    def row(self) -> tuple[str, str, str, str, str]:
        """Return name, title, licence, size and kind of checksum as words."""
        size = "?" if self.gigabytes is None else f"{self.gigabytes:g} GB"
        checksum = "SHA-256" if self.sha256 else "unknown"
        return self.name, self.title, self.licence, size, checksum if self.url else f"{checksum}, fetch by hand"


def download(
    name: str, root: str | Path, *, category: str | None = None, base_url: str | None = None, progress: bool = True
) -> Path:
    """Download a public set, verify it, unpack it and bring it into MVTec layout; what is there is not done again.

    The archive goes to ``root/downloads`` and stays there (it may be deleted), the set to ``root/name``. A download
    that broke off is resumed if the checksum is known. An archive put into ``root/downloads`` by hand is taken.

    Parameters
    ----------
    name : str
        A key of :data:`CATALOG`.
    root : str or Path
        Folder for data sets.
    category : str, optional
        Return this category's folder instead of the set's. The archive holds all categories and is fetched whole.
    base_url : str, optional
        Folder of a mirror that holds the archive under its usual name.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        A folder for :class:`~mlffn_lite.datasets.folder.AnomalyFolder`; with several categories and none chosen, the
        folder of these folders.

    Raises
    ------
    DownloadError
        If the name or category is unknown, or the archive cannot be fetched, verified or unpacked. Nothing
        half-written is left in ``root/name``.
    """
    if name not in CATALOG:
        raise DownloadError(f"unknown data set {name!r}; choose one of {', '.join(CATALOG)}")
    entry, root = CATALOG[name], Path(root)
    if category is not None and category not in entry.categories:
        raise DownloadError(f"{name} has no category {category!r}; it has {', '.join(entry.categories) or 'only one'}")
    target = root / name
    try:
        if not target.exists():
            archive = _archive(entry, root / "downloads", base_url, progress)
            _install(entry, archive, target)
    except OSError as error:
        raise DownloadError(f"cannot write {name} to {root}: {error}") from error
    return target / category if category else target


def _archive(entry: PublicSet, folder: Path, base_url: str | None, progress: bool) -> Path:
    archive = folder / entry.filename
    url = f"{base_url.rstrip('/')}/{entry.filename}" if base_url else entry.url
    by_hand = f"get {entry.filename} from {entry.homepage}, save it as {archive}, and run this again"
    if url is None and not archive.exists():
        raise DownloadError(f"{entry.title} has no direct link: {by_hand}")
    print(f"{entry.title}, licence {entry.licence}. Please cite {entry.citation}. {entry.note}".rstrip())
    try:
        fetch(url or "", archive, entry.sha256, progress=progress)  # without a link the file is there already
    except DownloadError as error:
        raise DownloadError(f"{error}. Or {by_hand}") from error
    return archive


def _install(entry: PublicSet, archive: Path, target: Path) -> None:
    """Unpack and convert beside the target, then rename: the target appears complete or not at all."""
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=target.parent) as scratch:
        raw, out = Path(scratch, "raw"), Path(scratch, "out")
        print(f"unpacking {archive.name}")
        extract(archive, raw)
        try:
            _CONVERTERS[entry.layout](raw, out)
        except _MISFIT as error:
            raise DownloadError(f"{archive} does not have the layout of {entry.title}: {error}") from error
        lacking = [c for c in entry.categories or (".",) if not (out / c / "train" / "good").is_dir()]
        if lacking:
            raise DownloadError(f"{archive} does not have the layout of {entry.title}: no {lacking[0]}/train/good")
        os.replace(out, target)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _inside(raw: Path, name: str) -> Path:
    """Return the file that a table in the archive names; tables are as little to be trusted as member names."""
    path = (raw / name).resolve()
    if not path.is_relative_to(raw.resolve()):
        raise ValueError(f"{name!r} leaves the folder")
    return path


def _move_categories(raw: Path, out: Path, good: str = "good") -> Iterator[Path]:
    """Move every folder that holds ``train/<good>`` to ``out``, and yield its new place."""
    for path in sorted(raw.rglob(f"train/{good}")):
        category = out / path.parents[1].name
        _move(path.parents[1], category)
        yield category


def _from_mvtec(raw: Path, out: Path) -> None:
    list(_move_categories(raw, out))


def _from_ad2(raw: Path, out: Path) -> None:
    """``test_public`` with its own ground truth becomes the test split; the other folders stay beside it."""
    for category in _move_categories(raw, out):
        _move(category / "test_public", category / "test")
        _move(category / "test" / "ground_truth", category / "ground_truth")


def _from_loco(raw: Path, out: Path) -> None:
    """An image's masks ``<stem>/000.png``, ``001.png``, ... (one per defect, of any grey value) become one."""
    for category in _move_categories(raw, out):
        for folder in sorted(p for p in category.glob("ground_truth/*/*") if p.is_dir()):
            files = sorted(folder.iterdir())
            union = np.any([mask_values(open_image(p)) > 0 for p in files], axis=0)
            Image.fromarray(union).save(folder.with_name(f"{folder.name}_mask.png"))
            for path in files:
                path.unlink()
            folder.rmdir()


def _from_btad(raw: Path, out: Path) -> None:
    for category in _move_categories(raw, out, "ok"):
        for folder in ("train", "test", "ground_truth"):
            if (category / folder / "ok").exists():
                _move(category / folder / "ok", category / folder / "good")


def _from_visa(raw: Path, out: Path) -> None:
    """The one-class split of ``split_csv/1cls.csv``, a table of object, split, label, image, mask."""
    table = next(raw.rglob("split_csv/1cls.csv"))
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            defect = "good" if row["label"] == "normal" else "bad"
            if row["object"] not in CATALOG["visa"].categories or row["split"] not in ("train", "test"):
                raise ValueError(f"unexpected row {row}")
            image = _inside(table.parents[1], row["image"])
            _move(image, out / row["object"] / row["split"] / defect / image.name)
            if defect == "bad":
                mask = _inside(table.parents[1], row["mask"])
                _move(mask, out / row["object"] / "ground_truth" / defect / f"{image.stem}_mask{mask.suffix}")


def _from_kolektor_sdd2(raw: Path, out: Path) -> None:
    """Every image has a mask ``<stem>_GT.png``, empty if it is good; defective training images are left out."""
    for split in ("train", "test"):
        masks = sorted(next(p for p in sorted(raw.rglob(split)) if p.is_dir()).glob("*_GT.png"))
        for mask in masks:
            image = mask.with_name(mask.name.replace("_GT", ""))
            if not read_mask(mask).any():
                _move(image, out / split / "good" / image.name)
            elif split == "test":
                _move(image, out / "test" / "defect" / image.name)
                _move(mask, out / "ground_truth" / "defect" / f"{image.stem}_mask.png")


def _from_elpv(raw: Path, out: Path) -> None:
    """``labels.csv`` lists image, probability of a defect (0, 1/3, 2/3, 1) and kind of cell.

    The set has no split. Here the last fifth of the sound cells, in its order, is for testing (neighbours in the list
    come from one module, so a random split would test on modules seen in training), and so are all other cells.
    """
    table = next(raw.rglob("labels.csv"))
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    for kind in CATALOG["elpv"].categories:
        cells = [(_inside(table.parent, name), float(p)) for name, p, of in rows if of == kind]
        if bad := [p for _, p in cells if not 0 <= p <= 1]:
            raise ValueError(f"{bad[0]} is no probability")
        good = [image for image, p in cells if p == 0]
        for i, image in enumerate(good):
            _move(image, out / kind / ("train" if 5 * i < 4 * len(good) else "test") / "good" / image.name)
        for image, p in cells:
            if p > 0:
                _move(image, out / kind / "test" / f"p{round(100 * p):03d}" / image.name)


_MISFIT = (FileNotFoundError, StopIteration, LookupError, ArithmeticError, TypeError, ValueError, DataError)
"""What reading an archive of another layout gives."""

_CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "mvtec": _from_mvtec,
    "ad2": _from_ad2,
    "loco": _from_loco,
    "btad": _from_btad,
    "visa": _from_visa,
    "kolektor_sdd2": _from_kolektor_sdd2,
    "elpv": _from_elpv,
}


CATALOG: dict[str, PublicSet] = {
    name: PublicSet(name=name, **{**table, "categories": tuple(table.get("categories", ()))})
    for name, table in tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8")).items()
}
"""The known sets by name."""
