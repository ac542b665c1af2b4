"""MiniParts: a small synthetic set in MVTec AD's layout, drawn by this module and bundled with the repository.

Three categories (a cloth, a turned part, scattered caplets), each with 60 + 20 flawless pictures and 40 with one defect
of four kinds, at 256 × 256. Every picture depends on its own name and the seed only, so any one can be drawn alone.

A mask marks what can be seen: the pixels where the picture differs from its *twin*, the same scene, light and camera
without the defect, by more than `VISIBLE` grey levels (of 255, in any channel, before grain), closed over gaps of a few
pixels. The defects share no code with the pseudo-anomalies of §2.1.

``python -m mlffn_lite.datasets.miniparts OUT`` draws the set into OUT.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pooch
from PIL import Image
from tqdm.auto import tqdm

from ...errors import DataError, MlffnError
from . import scenes

__all__ = ["CATEGORIES", "COUNTS", "VISIBLE", "difficulty", "generate", "miniparts_path", "render", "verify_manifest"]

CATEGORIES: dict[str, tuple[str, ...]] = {
    "weave": ("broken_thread", "fibre", "hole", "stain"),
    "flange": ("dent", "rust", "scratch", "undrilled"),
    "pills": ("chip", "crack", "crumbs", "spot"),
}
COUNTS = {"train": 60, "good": 20, "defect": 10}  # pictures: train/good, test/good, each test/<defect>
VISIBLE = 4.0  # grey levels of 255 that a pixel must change by to count as defective
MANIFEST = "MANIFEST.sha256"

Name = tuple[str, str, str, int]  # category, split, defect, index

_LEVELS = ("hard", "medium", "medium", "obvious")
_MAX_SIDE = scenes.CANVAS


def difficulty(category: str, defect: str, index: int) -> str:
    """Level from which a defect's size and contrast are drawn: a quarter each hard and obvious, half medium.

    Parameters
    ----------
    category, defect : str
        Names as in `CATEGORIES`.
    index : int
        Number of the picture.

    Returns
    -------
    str
        ``"hard"``, ``"medium"`` or ``"obvious"``.
    """
    _check(category, "test", defect, index)
    return _LEVELS[(index + CATEGORIES[category].index(defect)) % len(_LEVELS)]


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
    _check(category, split, defect, index)
    if not 32 <= size <= _MAX_SIDE:
        raise DataError(f"size is {size}; MiniParts can be drawn at 32 to {_MAX_SIDE} pixels")
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more")
    name = zlib.crc32(f"{category}/{split}/{defect}".encode())
    draw_scene, elevation, steps = scenes.SCENES[category]

    def rng(purpose: int, attempt: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([seed, name, index, purpose, attempt]))

    look = scenes.Look.draw(rng(1), elevation)

    def shoot(flaw: scenes.Flaw | None) -> scenes.Field:
        return scenes.develop(scenes.light(draw_scene(rng(0), flaw), look), look, size)

    picture, mask = shoot(None), np.zeros((size, size), np.bool_)
    if defect != "good" and not twin:
        flawless, least = picture, max(3.0, 12 * (size / 256) ** 2)
        for attempt in range(24):  # a defect that fell where nobody sees it is drawn anew, a little stronger
            level = difficulty(category, defect, index)
            picture = shoot(scenes.Flaw.draw(defect, rng(2, attempt), level, boost=1.15**attempt))
            mask = scenes.visible_change(picture, flawless, VISIBLE)
            if mask.sum() >= least:
                break
    return scenes.store(picture + scenes.grain(rng(3), look, size), steps), mask


def generate(
    root: Path, *, categories: Sequence[str] | None = None, seed: int = 0, size: int = 256, progress: bool = True
) -> None:
    """Draw the whole set into `root`, in MVTec AD's layout, with a SHA-256 manifest.

    Parameters
    ----------
    root : Path
        Folder to create; an existing one must be empty. It appears complete or not at all.
    categories : sequence of str, optional
        Keys of `CATEGORIES`; all by default.
    seed, size : int
        As for `render`.
    progress : bool
        Whether to show a progress bar.

    Raises
    ------
    DataError
        If `root` is not empty or cannot be written, or a category does not exist.
    """
    root = Path(root)
    chosen = list(CATEGORIES if categories is None else categories)
    for category in chosen:
        _check(category, "train", "good", 0)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} exists and is not an empty folder; name a new folder or remove it first")
    names = [name for category in chosen for name in _names(category)]
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", suffix=".tmp", dir=root.parent))
    except OSError as error:
        raise DataError(f"cannot write next to {root}: {error.strerror}; choose another folder") from error
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(lambda name: _write(draft, name, seed, size), names)
            list(tqdm(done, "Drawing MiniParts", len(names), unit="image", disable=not progress))
        lines = [f"{_sha256(path)}  {path.relative_to(draft).as_posix()}\n" for path in _files(draft)]
        (draft / MANIFEST).write_text("".join(lines), encoding="utf-8", newline="\n")
        draft.chmod(0o755)
        if root.exists():
            root.rmdir()
        draft.rename(root)
    except OSError as error:
        raise DataError(f"cannot write {root}: {error.strerror}; free space or choose another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def verify_manifest(root: Path) -> None:
    """Check every file of a drawn set against its manifest.

    Parameters
    ----------
    root : Path
        Folder that `generate` wrote.

    Raises
    ------
    DataError
        Naming the files that differ, are missing or are extra, or the manifest if it is absent or unreadable.
    """
    root = Path(root)
    try:
        lines = (root / MANIFEST).read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise DataError(f"{root / MANIFEST} is missing or unreadable; draw the set again into a new folder") from error
    present = {path.relative_to(root).as_posix(): path for path in _files(root)}
    faults = {
        "differ": sorted(name for name in listed.keys() & present.keys() if _sha256(present[name]) != listed[name]),
        "are missing": sorted(listed.keys() - present.keys()),
        "are extra": sorted(present.keys() - listed.keys()),
    }
    told = [f"{_enumerate(names)} {what}" for what, names in faults.items() if names]
    if told:
        raise DataError(f"{root} does not match its manifest: {'; '.join(told)}; restore or draw the set again")


def miniparts_path() -> Path:
    """Folder of the set: the repository's, or else one drawn once into the user's cache folder.

    Returns
    -------
    Path
        Folder that holds the categories.

    Raises
    ------
    DataError
        If the set is not there and the cache folder cannot be written.
    """
    bundled = Path(__file__).resolve().parents[3] / "data" / "miniparts"
    if (bundled / MANIFEST).is_file():
        return bundled
    cached = Path(pooch.os_cache("mlffn-lite")) / "miniparts-1"  # the number grows when the pictures change
    if not (cached / MANIFEST).is_file():
        print(f"MiniParts is not bundled with this installation; drawing it once into {cached}", file=sys.stderr)
        try:
            generate(cached)
        except DataError:
            if not (cached / MANIFEST).is_file():  # otherwise another process was faster
                raise
    return cached


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m mlffn_lite.datasets.miniparts OUT``."""
    command = "python -m mlffn_lite.datasets.miniparts"
    parser = argparse.ArgumentParser(prog=command, description="Draw the MiniParts set.")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--category", action="append", dest="categories", help="only this one (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=256, help=f"side in pixels, 32 to {_MAX_SIDE} (default 256)")
    options = parser.parse_args(arguments)
    try:
        generate(options.out, categories=options.categories, seed=options.seed, size=options.size)
    except MlffnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check(category: str, split: str, defect: str, index: int) -> None:
    if category not in CATEGORIES:
        raise DataError(f"MiniParts has no category {category!r}; it has {', '.join(CATEGORIES)}")
    known = {"train": ("good",), "test": ("good", *CATEGORIES[category])}
    if split not in known:
        raise DataError(f"MiniParts has no split {split!r}; it has train and test")
    if defect not in known[split]:
        raise DataError(f"MiniParts has no {category}/{split}/{defect}; there are {', '.join(known[split])}")
    if index < 0:
        raise DataError(f"the number of a picture is {index}; it must be 0 or more")


def _names(category: str) -> Iterator[Name]:
    for index in range(COUNTS["train"]):
        yield category, "train", "good", index
    for index in range(COUNTS["good"]):
        yield category, "test", "good", index
    for defect in CATEGORIES[category]:
        for index in range(COUNTS["defect"]):
            yield category, "test", defect, index


def _write(root: Path, name: Name, seed: int, size: int) -> None:
    category, split, defect, index = name
    image, mask = render(category, split, defect, index, seed=seed, size=size)
    colours, indices = np.unique(image.reshape(-1, 3), axis=0, return_inverse=True)
    palette = Image.fromarray(indices.reshape(size, size).astype(np.uint8)).convert("L")
    palette.putpalette(colours.tobytes())
    _save(palette, root / category / split / defect / f"{index:03d}.png")
    if defect != "good":
        _save(
            Image.fromarray(mask * np.uint8(255)), root / category / "ground_truth" / defect / f"{index:03d}_mask.png"
        )


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def _files(root: Path) -> Iterable[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path != root / MANIFEST)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _enumerate(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
