"""The set as files: drawn, checked against its manifest, and found."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pooch
from PIL import Image
from tqdm.auto import tqdm

from ...errors import DataError
from ..folder import few
from .drawing import render
from .names import CATEGORIES, Name, check_name, pictures

MANIFEST = "MANIFEST.sha256"


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
        check_name(category, "train", "good", 0)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} exists and is not an empty folder; name a new folder or remove it first")
    names = [name for category in chosen for name in pictures(category)]
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", suffix=".tmp", dir=root.parent))
    except OSError as error:
        raise DataError(f"cannot write next to {root}: {error.strerror}; choose another folder") from error
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(lambda name: _write(draft, name, seed, size), names)
            list(tqdm(done, "Drawing MiniParts", len(names), unit="image", disable=not progress))
        lines = [f"{pooch.file_hash(path)}  {path.relative_to(draft).as_posix()}\n" for path in _files(draft)]
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
    faults = [f"{name} is missing" for name in sorted(listed.keys() - present.keys())]
    faults += [f"{name} is extra" for name in sorted(present.keys() - listed.keys())]
    both = sorted(listed.keys() & present.keys())
    faults += [f"{name} differs" for name in both if pooch.file_hash(present[name]) != listed[name]]
    if faults:
        raise DataError(f"{root} does not match its manifest: {few(faults)}; restore or draw the set again")


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
        where = f"drawing them once, in about a minute, into {cached}"
        print(f"The images of MiniParts are not part of this installation: {where}", file=sys.stderr)
        try:
            generate(cached)
        except DataError:
            if not (cached / MANIFEST).is_file():  # otherwise another process was faster
                raise
    return cached


def _write(root: Path, name: Name, seed: int, size: int) -> None:
    category, split, defect, index = name
    image, mask = render(category, split, defect, index, seed=seed, size=size)
    colours, indices = np.unique(image.reshape(-1, 3), axis=0, return_inverse=True)
    palette = Image.fromarray(indices.reshape(size, size).astype(np.uint8)).convert("L")
    palette.putpalette(colours.tobytes())
    _save(palette, root / category / split / defect / f"{index:03d}.png")
    if defect != "good":
        path = root / category / "ground_truth" / defect / f"{index:03d}_mask.png"
        _save(Image.fromarray(mask * np.uint8(255)), path)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path != root / MANIFEST)
