"""Folders of any names, folders in folders, lists, HEIC and pages: what is read, what is said, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlffn_lite.config import DataConfig
from mlffn_lite.datasets import folder as module
from mlffn_lite.datasets.folder import AnomalyFolder, open_image
from mlffn_lite.datasets.listing import find_layout, unused_folders
from mlffn_lite.datasets.sources import open_source
from mlffn_lite.datasets.verify import training_notices, verify
from mlffn_lite.errors import DataError

COUNT = itertools.count()


def picture(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(next(COUNT)).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """OK and NOK, some in sub-folders, a mask, and a folder that is neither."""
    for i in range(11):
        picture(tmp_path / f"shop/OK/{'monday/' if i > 7 else ''}{i:02}.png")
    for i in range(2):
        picture(tmp_path / f"shop/NOK/{i}.png")
    picture(tmp_path / "shop/NOK/late/0.png")
    picture(tmp_path / "shop/maybe/0.png")
    marked = np.zeros((24, 32), np.uint8)
    marked[3:9] = 255
    (tmp_path / "shop/ground_truth/NOK").mkdir(parents=True)
    Image.fromarray(marked).save(tmp_path / "shop/ground_truth/NOK/1_mask.png")
    return tmp_path / "shop"


def test_named_folders_are_good_and_bad(shop: Path) -> None:
    layout = find_layout(shop, "OK", ["NOK"])
    assert [e.path.name for e in layout.train] == [f"{i:02}.png" for i in (0, 1, 2, 3, 5, 6, 7)]
    assert [(e.path.name, e.defect) for e in layout.test] == [("04.png", "good"), ("0.png", "NOK"), ("1.png", "NOK")]
    assert [bool(e.mask) for e in layout.test] == [False, False, True]
    parts = open_source(shop, DataConfig(size=32, good="OK", bad=("NOK",), recursive=True))
    assert (len(parts.train), parts.test.defects.count("good"), parts.test.defects.count("NOK")) == (9, 2, 3)
    assert len(find_layout(shop, "OK").train) == 8  # nothing is held back where there is nothing to tell from
    assert "maybe" in unused_folders(shop, "OK", ["NOK"])[0]
    assert any("maybe" in f.reason for f in verify(shop, good="OK", bad=["NOK"]).findings)
    assert not verify(shop, good="OK", bad=["NOK"], recursive=True).faults


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("", ["NOK"], "data.bad needs data.good"),
        ("GOOD", [], "no folder GOOD; it holds NOK; OK"),
        ("OK", ["NOK", "OK"], "OK is named twice"),
        ("OK", ["./OK/"], "is named twice"),
        ("OK", ["../shop/NOK"], "must be the name of a folder in"),
        (str(Path(__file__).parent), [], "must be the name of a folder in"),
    ],
)
def test_names_that_are_not_there_are_refused(shop: Path, good: str, bad: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_layout(shop, good, bad)
    with pytest.raises(DataError, match="does not exist"):
        find_layout(shop / "none", "OK", ["NOK"])


@pytest.mark.parametrize(("good", "bad"), [(".", ["NOK"]), ("OK", ["NOK", "OK/more"]), ("OK", ["."])])
def test_no_image_is_good_and_bad(shop: Path, good: str, bad: list[str]) -> None:
    picture(shop / "OK/more/x.png")
    with pytest.raises(DataError, match="one lies in the other"):
        find_layout(shop, good, bad, recursive=True)


def test_an_image_is_not_its_own_mask(shop: Path) -> None:
    bad = str(shop / "NOK")  # below ground_truth it would be the folder itself
    with pytest.raises(DataError, match="must be the name of a folder in"):
        find_layout(shop, "OK", [bad])
    with pytest.raises(DataError, match="own mask"):
        find_layout(listed(shop, "path,label,mask\nOK/00.png,good,\nNOK/0.png,bad,NOK/0.png\n"))


def test_sub_folders_are_read_if_asked_for(shop: Path) -> None:
    with pytest.raises(DataError, match=r"no image directly in it.*--good and --bad"):
        AnomalyFolder(shop, size=32)
    assert len(find_layout(shop / "OK", recursive=True).train) == 11
    picture(shop / ".cache/9.png")
    assert (
        len(find_layout(shop, recursive=True).train) == 11 + 3 + 1 + 1
    )  # the mask is an image too: no layout is known
    root = shop.parent / "mvtec"
    for name in ("train/good/a/0.png", "test/hole/b/0.png", "test/hole/c/0.png", "ground_truth/hole/b/0_mask.png"):
        picture(root / name)
    layout = find_layout(root, recursive=True)
    assert len(layout.train) == 1
    assert [e.mask and e.mask.parent.name for e in layout.test] == ["b", None]


def listed(shop: Path, text: str) -> Path:
    (shop / "list.csv").write_text(text, encoding="utf-8-sig")
    return shop / "list.csv"


def test_a_list_says_what_is_what(shop: Path) -> None:
    lines = (
        "Path,label,mask,split\nOK/00.png,good,,\nOK/01.png,OK,,train\nOK/02.png,0,,test\nOK/03.png,ok,,validation\n"
    )
    lines += "NOK/0.png,1,,\nNOK/1.png,Scratch,ground_truth/NOK/1_mask.png,test\n"
    layout = find_layout(listed(shop, lines))
    assert [e.path.name for e in layout.train] == ["01.png", "00.png"]
    assert [(e.path.name, e.defect) for e in layout.test] == [
        ("02.png", "good"),
        ("1.png", "Scratch"),
        ("0.png", "defect"),
    ]
    parts = open_source(shop / "list.csv", DataConfig(size=32))
    assert [p.name for p in parts.validation] == ["03.png"]
    assert parts.test.masks()[1].any()
    assert not verify(shop / "list.csv").faults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column"),
        ("path\nOK/00.png\n", "no column label"),
        ("path,label\nOK/00.png,\n", "line 2: no label"),
        ("path,label\nOK/00.png,good\n,good\n", "line 3: no path"),
        ("path,label\nnone.png,good\n", r"line 2: .*none\.png does not exist"),
        ("path,label\nNOK/0.png,bad\n", "lists no good image"),
        ("path,label\nOK/00.png,good\nOK/00.png,good\n", "twice"),
        ("path,label,split\nOK/00.png,good,later\n", "split 'later' is unknown"),
        ("path,label,split\nOK/00.png,bad,train\n", "a defective image in train"),
        ("path,label,mask\nOK/00.png,good,OK/01.png\n", "a good image has no mask"),
        ("path,label\n\0,\n", "."),
    ],
)
def test_a_bad_list_is_refused(shop: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_layout(listed(shop, text))
    (shop / "list.csv").write_bytes(b"path,label\n\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        find_layout(shop / "list.csv")
    with pytest.raises(DataError, match="says itself"):
        find_layout(shop / "list.csv", "OK")


def test_heic_is_read_where_its_reader_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.full((48, 64, 3), (200, 30, 30), np.uint8))
    reader.from_pillow(image).save(tmp_path / "a.heic")
    found = open_image(tmp_path / "a.heic")
    assert found.size == (64, 48)
    assert abs(np.asarray(found.convert("RGB")).mean((0, 1)) - (200, 30, 30)).max() < 6
    assert len(AnomalyFolder(tmp_path, size=32).train) == 1
    module._heif_reader.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"mlffn-lite\[heic\]"):
        open_image(tmp_path / "a.heic")
    monkeypatch.setattr(module, "_SUFFIXES", module._SUFFIXES - {".heic"})
    with pytest.raises(DataError, match=r"1 HEIC files, which need .*mlffn-lite\[heic\]"):
        AnomalyFolder(tmp_path, size=32)
    module._heif_reader.cache_clear()


def test_huge_images_are_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (13_000, 13_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 50_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr(module, "_limit", module._limit)
    with pytest.raises(DataError, match="13000x13000 pixels are more than 150 million; allow more with"):
        open_image(tmp_path / "bomb.png")
    module.limit_pixels(500)
    with pytest.raises(DataError, match=r"32x24 pixels are more than 0\.0005 million"):
        open_image(picture(tmp_path / "a.png"))
    module.limit_pixels(200_000_000)
    assert open_image(tmp_path / "bomb.png").size == (13_000, 13_000)


def test_pages_and_turned_images_are_said(tmp_path: Path) -> None:
    pages = [Image.new("L", (16, 16), i * 40) for i in range(3)]
    (tmp_path / "train/good").mkdir(parents=True)
    pages[0].save(tmp_path / "train/good/pages.tiff", save_all=True, append_images=pages[1:])
    assert np.asarray(open_image(tmp_path / "train/good/pages.tiff")).max() == 0
    exif = Image.Exif()
    exif[274] = 3
    picture(tmp_path / "test/hole/0.jpg", exif=exif)
    (tmp_path / "ground_truth/hole").mkdir(parents=True)
    Image.fromarray(np.eye(24, 32, dtype=np.uint8) * 255).save(tmp_path / "ground_truth/hole/0_mask.png")
    reasons = {f.path.name: f.reason for f in verify(tmp_path).notices}
    assert "only the first is read" in reasons["pages.tiff"]
    assert "its mask has no such tag" in reasons["0.jpg"]


def test_sixteen_bits_that_are_nearly_black_are_said(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    for name, image in (("dark", values), ("full", values * 16)):
        Image.fromarray(image).save(tmp_path / f"{name}.tiff")
    dark = [f.path.name for f in verify(tmp_path).notices if "nearly black" in f.reason]
    assert dark == ["dark.tiff"]


def test_what_makes_training_doubtful_is_said(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / f"a/train/good/{i}.png")
    picture(tmp_path / "a/test/bad/0.png")
    assert training_notices(AnomalyFolder(tmp_path / "a", size=32)) == []
    same = (tmp_path / "a/train/good/0.png").read_bytes()
    (tmp_path / "a/train/good/1.png").write_bytes(same)
    (tmp_path / "a/test/bad/1.png").write_bytes(same)
    Image.new("RGB", (32, 24), (9, 9, 9)).save(tmp_path / "a/train/good/2.png")
    for i in range(5, 12):
        (tmp_path / f"a/train/good/{i}.png").unlink()
    said = "\n".join(training_notices(AnomalyFolder(tmp_path / "a", size=32)))
    for words in (
        "5 good images are few",
        "1 of 5 training images have",
        "1 of 5 training images are the same",
        "1 of 2",
    ):
        assert words in said
