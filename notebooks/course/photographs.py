"""Photographs of MiniParts as people take them: a folder with everything that goes wrong in one."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from mlffn_lite.datasets.miniparts import CATEGORIES, miniparts_path

BENCH = (171, 143, 112)
SUFFIXES = (*([".jpg", ".JPG", ".jpg", ".jpeg"] * 3), ".png", ".webp", ".heic")
TURNED = 5
"""Every so many photographs the phone was held sideways: an EXIF tag says how to turn it."""


def photograph(picture: Image.Image, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Lay a picture of a part, as a mat, on a bench, and photograph that at a width and height in changing light."""
    width = size[0]
    side = round(width * rng.uniform(0.78, 0.8))
    coarse = Image.fromarray(rng.integers(110, 146, (24, 18), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    scene = np.array(BENCH, np.float32) * np.asarray(coarse, np.float32)[..., None] / 128
    left, top = (round((n - side) / 2 + rng.uniform(-0.02, 0.02) * n) for n in size)
    part = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    scene[top : top + side, left : left + side] = np.asarray(part)
    across, down = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    light = rng.uniform(0.92, 1.08) * (1 + rng.uniform(-0.06, 0.06) * across + rng.uniform(-0.06, 0.06) * down[:, None])
    scene *= light[..., None] * rng.uniform(0.98, 1.02, 3).astype(np.float32)
    noise = 2 * rng.standard_normal(scene.shape[:2], np.float32)[..., None]
    return Image.fromarray(np.clip(scene + noise, 0, 255).astype(np.uint8))


def save(photo: Image.Image, path: Path, *, turned: bool = False) -> Path:
    """Write a photograph; ``turned``, as a phone that was held sideways does: lying, with a tag. Returns the file.

    HEIC becomes JPEG where pillow-heif is not installed.
    """
    exif = Image.Exif()
    if turned:
        photo, exif[ExifTags.Base.Orientation] = photo.transpose(Image.Transpose.ROTATE_90), 6
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".heic" and find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.from_pillow(photo).save(path, quality=90, exif=exif.tobytes() if turned else None)
        return path
    path = path.with_suffix(".jpg") if path.suffix == ".heic" else path
    options: dict[str, Any] = {} if path.suffix == ".png" else {"quality": 92}
    photo.save(path, exif=exif, **options)
    return path


def take(folder: Path, *, size: tuple[int, int] = (384, 512), part: str = "flange", seed: int = 0) -> None:
    """Photograph the parts of a category of MiniParts into ``folder/OK``, ``folder/NOK`` and ``folder/wednesday``.

    ``OK`` has a folder per day, with all training images; ``NOK`` four of every defect; ``wednesday`` the good test
    images and six more of every defect, whose names tell what they show. Formats change from file to file; every
    fifth photograph lies on its side, with a tag; there are a copy, a file that broke off, notes and a video.
    """
    source, rng, number = miniparts_path() / part, np.random.default_rng(seed), 4000

    def shoot(paths: list[Path], place: Path, name: str = "IMG_{}") -> list[Path]:
        nonlocal number
        files = []
        for path in paths:
            number += 1
            with Image.open(path) as picture:
                photo = photograph(picture, rng, size)
            file = place / (name.format(number) + SUFFIXES[number % len(SUFFIXES)])
            files.append(save(photo, file, turned=number % TURNED == 0))
        return files

    good = sorted((source / "train/good").glob("*.png"))
    monday, tuesday = (
        shoot(half, folder / "OK" / day) for day, half in (("monday", good[:30]), ("tuesday", good[30:]))
    )
    shutil.copy(monday[3], monday[3].with_stem(f"{monday[3].stem} (copy)"))
    whole = next(p for p in tuesday if p.suffix.lower() == ".jpg").read_bytes()
    (folder / "OK/tuesday/IMG_4999.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "OK/notes.txt").write_text("monday: new lamp. tuesday: the old one.\n", encoding="utf-8")
    (folder / "OK/monday/MOV_0007.mp4").write_bytes(b"no image")
    for defect in CATEGORIES[part]:
        found = sorted((source / "test" / defect).glob("*.png"))
        shoot(found[:4], folder / "NOK")
        shoot(found[4:], folder / "wednesday", f"{defect}_{{}}")
    shoot(sorted((source / "test/good").glob("*.png")), folder / "wednesday", "good_{}")
