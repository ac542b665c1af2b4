"""MiniParts: the bundled files are whole and of the promised form, and are found with and without a checkout."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlffn_lite.datasets import miniparts
from mlffn_lite.datasets.miniparts import CATEGORIES, MANIFEST, miniparts_path, verify_manifest
from mlffn_lite.errors import DataError

BUNDLED = Path(__file__).resolve().parents[2] / "data" / "miniparts"
TRAIN, GOOD, DEFECT = 60, 20, 10  # pictures in train/good, in test/good, and in test/ of each defect
DEFECTS = [(category, defect) for category, defects in CATEGORIES.items() for defect in defects]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


# --- the committed set ------------------------------------------------------------------------------------------------


def test_bundled_set_is_found_and_matches_its_manifest() -> None:
    assert miniparts_path() == BUNDLED
    verify_manifest(BUNDLED)


@pytest.mark.parametrize("category", CATEGORIES)
def test_bundled_layout_counts_and_formats(category: str) -> None:
    root = BUNDLED / category
    assert sorted(p.name for p in root.iterdir()) == ["ground_truth", "test", "train"]
    assert sorted(p.name for p in (root / "test").iterdir()) == sorted((*CATEGORIES[category], "good"))
    assert sorted(p.name for p in (root / "ground_truth").iterdir()) == sorted(CATEGORIES[category])
    expected = {"train/good": TRAIN, "test/good": GOOD}
    expected |= {f"test/{defect}": DEFECT for defect in CATEGORIES[category]}
    for folder, count in expected.items():
        files = sorted(p.name for p in (root / folder).iterdir())
        assert files == [f"{i:03d}.png" for i in range(count)]
        for name in files:
            with Image.open(root / folder / name) as image:
                assert (image.size, image.mode) == ((256, 256), "P")


@pytest.mark.parametrize(("category", "defect"), DEFECTS)
def test_bundled_masks_are_binary_and_not_empty(category: str, defect: str) -> None:
    masks = sorted((BUNDLED / category / "ground_truth" / defect).iterdir())
    assert [p.name for p in masks] == [f"{i:03d}_mask.png" for i in range(DEFECT)]
    for path in masks:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((256, 256), "L")
            values, counts = np.unique(np.asarray(image), return_counts=True)
        assert values.tolist() == [0, 255]
        assert 12 <= counts[1] < 0.2 * 256**2


def test_bundled_set_is_small_enough_to_commit() -> None:
    assert sum(p.stat().st_size for p in BUNDLED.rglob("*") if p.is_file()) < 15e6


def test_no_picture_occurs_twice() -> None:
    pictures = [p for p in BUNDLED.rglob("*.png") if "ground_truth" not in p.parts]
    assert len({hashlib.sha256(pixels(p)).digest() for p in pictures}) == len(pictures) == 360


# --- the library's part -----------------------------------------------------------------------------------------------


def small(root: Path) -> Path:
    """A folder of two files with its manifest."""
    root.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(name.encode())
    lines = [f"{miniparts.sha256(root / name)}  {name}\n" for name in ("a.png", "b.png")]
    (root / MANIFEST).write_text("".join(lines), encoding="utf-8")
    return root


def test_manifest_names_what_differs_is_missing_or_extra(tmp_path: Path) -> None:
    root = small(tmp_path / "set")
    verify_manifest(root)
    (root / "a.png").write_bytes(b"changed")
    (root / "b.png").unlink()
    (root / "stray.txt").touch()
    with pytest.raises(DataError, match=r"b\.png is missing.*stray\.txt is extra.*a\.png differs"):
        verify_manifest(root)
    (root / MANIFEST).write_text("no manifest")
    with pytest.raises(DataError, match="missing or unreadable"):
        verify_manifest(root)
    with pytest.raises(DataError, match="missing or unreadable"):
        verify_manifest(tmp_path / "nowhere")


def test_checkout_comes_before_the_package_and_neither_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miniparts, "__file__", str(tmp_path / "mlffn_lite" / "datasets" / "miniparts.py"))
    with pytest.raises(DataError, match=r"not in .*data.miniparts or .*miniparts_data; install") as caught:
        miniparts_path()
    assert "\n" not in str(caught.value)
    packaged = small(tmp_path / "mlffn_lite" / "datasets" / "miniparts_data")
    assert miniparts_path() == packaged
    checkout = small(tmp_path / "data" / "miniparts")
    assert miniparts_path() == checkout
