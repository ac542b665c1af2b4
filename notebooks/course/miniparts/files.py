"""The whole set, drawn into files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from mlffn_lite.datasets.miniparts import CATEGORIES, MANIFEST, sha256
from mlffn_lite.errors import DataError

from .drawing import render
from .names import Name, check_name, pictures


def generate(
    root: Path,
    *,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    size: int = 256,
    progress: bool = True,
    wanted: Callable[[Name], bool] = lambda name: True,
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
    wanted : callable
        Which images to draw; by default all.

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
    names = [name for category in chosen for name in pictures(category) if wanted(name)]
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", suffix=".tmp", dir=root.parent))
    except OSError as error:
        raise DataError(f"cannot write next to {root}: {error.strerror}; choose another folder") from error
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(lambda name: _write(draft, name, seed, size), names)
            list(tqdm(done, "Drawing MiniParts", len(names), unit="image", disable=not progress))
        paths = sorted(draft.rglob("*.png"))
        lines = [f"{sha256(path)}  {path.relative_to(draft).as_posix()}\n" for path in paths]
        (draft / MANIFEST).write_text("".join(lines), encoding="utf-8", newline="\n")
        draft.chmod(0o755)
        if root.exists():
            root.rmdir()
        draft.rename(root)
    except OSError as error:
        raise DataError(f"cannot write {root}: {error.strerror}; free space or choose another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
