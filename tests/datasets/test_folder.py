"""Reading folders: every kind of image, every fault, and the check of a whole folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlffn_lite.datasets import folder
from mlffn_lite.datasets.folder import AnomalyFolder, Entry, common_shape, read_image, read_mask
from mlffn_lite.datasets.verify import Finding, VerifyReport, verify
from mlffn_lite.errors import DataError

SIZE = 32


def pixels(seed: int, height: int = 40, width: int = 30, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def mask_array(height: int = 40, width: int = 30, top: int = 5, left: int = 6, side: int = 12) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """4 good training images; 2 good, 2 scratched and 1 dented test images, the dent without a mask."""
    root = tmp_path / "part"
    for i in range(4):
        save(root / "train" / "good" / f"{i:03d}.png", pixels(i))
    for i in range(2):
        save(root / "test" / "good" / f"{i:03d}.png", pixels(10 + i))
        save(root / "test" / "scratch" / f"{i:03d}.png", pixels(20 + i))
    save(root / "test" / "dent" / "007.png", pixels(30))
    save(root / "ground_truth" / "scratch" / "000_mask.png", mask_array())
    save(root / "ground_truth" / "scratch" / "001.bmp", mask_array(top=20))
    return root


# --- images ---------------------------------------------------------------------------------------------------------


def resize_reference(array: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear resizing from its definition: a triangle as wide as one output pixel (at least 1)."""

    def axis(values: np.ndarray) -> np.ndarray:
        count = len(values)
        scale = count / size
        reach = max(scale, 1.0)
        out = np.zeros((size, *values.shape[1:]))
        for i in range(size):
            weights = [max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / reach) for j in range(count)]
            out[i] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        return out

    return axis(axis(array.astype(float).swapaxes(0, 1)).swapaxes(0, 1))


@given(st.integers(8, 40), st.integers(8, 40), st.integers(8, 40), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_resizing_equals_its_definition(
    tmp_path_factory: object, height: int, width: int, size: int, seed: int
) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "resize.png"  # type: ignore[attr-defined]
    array = pixels(seed, height, width)
    save(path, array)
    fast = read_image(path, size).permute(1, 2, 0).numpy().astype(float)
    assert fast.shape == (size, size, 3)
    assert np.abs(fast - resize_reference(array, size)).max() <= 1.01  # Pillow rounds after each axis


def test_image_is_read_exactly_without_size(tmp_path: Path) -> None:
    array = pixels(0)
    image = read_image(save(tmp_path / "a.png", array))
    assert image.dtype == torch.uint8
    assert image.shape == (3, 40, 30)
    assert image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), array)


def test_grey_alpha_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    rgb = pixels(1) // 64 * 64
    grey = pixels(2, channels=1)
    save(tmp_path / "grey.png", grey)
    save(tmp_path / "rgba.png", np.dstack([rgb, pixels(3, channels=1)]))
    Image.fromarray(np.dstack([grey, 255 - grey]), "LA").save(tmp_path / "la.png")
    Image.fromarray(rgb).quantize(256).save(tmp_path / "palette.png")
    Image.fromarray(grey > 99).save(tmp_path / "bilevel.png")
    expected_grey = torch.from_numpy(grey).expand(3, -1, -1)
    assert torch.equal(read_image(tmp_path / "grey.png"), expected_grey)
    assert torch.equal(read_image(tmp_path / "la.png"), expected_grey)  # alpha is dropped, not blended
    assert torch.equal(read_image(tmp_path / "rgba.png"), torch.from_numpy(rgb).permute(2, 0, 1))
    assert torch.equal(read_image(tmp_path / "palette.png"), torch.from_numpy(rgb).permute(2, 0, 1))
    assert torch.equal(read_image(tmp_path / "bilevel.png"), torch.from_numpy(grey > 99).expand(3, -1, -1) * 255)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    save(tmp_path / f"a.{suffix}", values)
    expected = np.rint(values / 257).astype(np.uint8)
    assert expected.max() == 255
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}")[0].numpy(), expected)


def test_float_and_wide_integers(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert torch.equal(read_image(save(tmp_path / "unit.tif", ramp))[1].flatten(), torch.arange(256).to(torch.uint8))
    for name, bad in (("big", ramp * 300), ("nan", ramp * np.nan), ("wide", (ramp * 1e6).astype(np.int32))):
        with pytest.raises(DataError, match=r"no known range; save it with 8 or 16 bits"):
            read_image(save(tmp_path / f"{name}.tif", bad))


def test_cmyk_jpeg_and_lab(tmp_path: Path) -> None:
    colour = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert (read_image(tmp_path / "a.jpg").float().mean((1, 2)) - torch.tensor([200.0, 40, 90])).abs().max() < 3
    Image.new("LAB", (16, 16)).save(tmp_path / "lab.tif")
    with pytest.raises(DataError, match="LAB"):
        read_image(tmp_path / "lab.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = pixels(4)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), upright)


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save(tmp_path / "whole.png", pixels(0)).read_bytes()
    jpeg = save(tmp_path / "whole.jpg", pixels(0, 200, 200)).read_bytes()
    cases = {
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "text.png": b"not an image",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n",  # would be run by Ghostscript
        "bad_header.png": whole[:16] + struct.pack(">I", 0) + whole[20:],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(DataError, match="7x40 pixels; each side must have at least 8"):
        read_image(save(tmp_path / "thin.png", pixels(0, 40, 7)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"whole.png: cannot be read .*bomb"):
        read_image(tmp_path / "whole.png")


# --- masks ----------------------------------------------------------------------------------------------------------


def test_mask_kinds(tmp_path: Path) -> None:
    mask = mask_array()
    truth = torch.from_numpy(mask > 0)
    save(tmp_path / "a.png", mask)
    save(tmp_path / "ones.png", mask // 255)
    save(tmp_path / "rgb.png", np.dstack([mask * 0, mask, mask * 0]))
    save(tmp_path / "rgba.png", np.dstack([mask, mask, mask, mask * 0 + 255]))  # opaque everywhere
    save(tmp_path / "16.png", mask.astype(np.uint16))
    save(tmp_path / "bool.png", mask > 0)
    save(tmp_path / "a.jpg", mask, quality=60)  # ringing leaves small values around the edge
    for path in sorted(tmp_path.iterdir()):
        assert torch.equal(read_mask(path), truth), path.name


@given(st.integers(8, 40), st.integers(8, 40), st.integers(8, 40), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_mask_resizing_takes_the_nearest_pixel(
    tmp_path_factory: object, height: int, width: int, size: int, seed: int
) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "mask.png"  # type: ignore[attr-defined]
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    save(path, mask)
    expected = torch.zeros(size, size, dtype=torch.bool)
    for i in range(size):
        for j in range(size):
            expected[i, j] = bool(mask[(2 * i + 1) * height // (2 * size), (2 * j + 1) * width // (2 * size)])
    assert expected.any()
    assert torch.equal(read_mask(path, size), expected)


def test_smallest_defect_survives_resizing(tmp_path: Path) -> None:
    for y, x in ((0, 0), (63, 63), (17, 30), (63, 1)):
        mask = np.zeros((64, 64), dtype=bool)
        mask[y, x] = True
        small = read_mask(save(tmp_path / "dot.png", mask), 8)
        assert small.nonzero().tolist() == [[y // 8, x // 8]]
    assert not read_mask(save(tmp_path / "none.png", np.zeros((64, 64), dtype=bool)), 8).any()


# --- folders --------------------------------------------------------------------------------------------------------


def test_mvtec_layout(mvtec: Path) -> None:
    folder = AnomalyFolder(mvtec, size=SIZE)
    train, test = folder.train, folder.test
    assert (len(train), len(test)) == (4, 5)
    assert train.images().shape == (4, 3, SIZE, SIZE)
    assert train.images().dtype == torch.uint8
    assert train.masks().dtype == torch.bool
    assert not train.masks().any()
    assert train.labels().tolist() == [0, 0, 0, 0]
    assert test.defects == ["dent", "good", "good", "scratch", "scratch"]
    assert test.labels().tolist() == [1, 0, 0, 1, 1]
    assert test.has_mask.tolist() == [False, True, True, True, True]
    assert test.paths[0].relative_to(mvtec).as_posix() == "test/dent/007.png"
    assert torch.equal(test.images()[3], read_image(mvtec / "test" / "scratch" / "000.png", SIZE))
    assert torch.equal(test.masks()[3], read_mask(mvtec / "ground_truth" / "scratch" / "000_mask.png", SIZE))
    assert torch.equal(test.masks()[4], read_mask(mvtec / "ground_truth" / "scratch" / "001.bmp", SIZE))
    assert test.masks()[3:].flatten(1).any(1).all()
    assert not test.masks()[:3].any()


def test_samples_and_subsets(mvtec: Path) -> None:
    test = AnomalyFolder(mvtec, size=SIZE).test
    samples = list(test)
    assert [s.defect for s in samples] == test.defects
    assert torch.equal(torch.stack([s.image for s in samples]), test.images())
    assert (samples[0].label, samples[0].has_mask) == (1, False)
    assert test[-1].path == test.paths[-1]
    with pytest.raises(IndexError):
        test[5]
    part = test.subset([3, 0])
    assert part.defects == ["scratch", "dent"]
    assert torch.equal(part.images(), test.images()[[3, 0]])
    assert torch.equal(part.masks(), test.masks()[torch.tensor([3, 0])])
    assert len(test.subset([])) == 0


def test_decoding_on_demand_gives_the_same(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlffn_lite.datasets.folder.fits", lambda _: False)  # nor is there room on disk
    cached, lazy = AnomalyFolder(mvtec, size=SIZE), AnomalyFolder(mvtec, size=SIZE, cache_bytes=0)
    mixed = AnomalyFolder(mvtec, size=SIZE, cache_bytes=4 * 4 * SIZE**2)  # room for the training split only
    assert lazy.train._pixels is None
    assert mixed.train._pixels is not None
    assert mixed.test._pixels is None
    for a, b in ((cached.train, lazy.train), (cached.test, lazy.test), (cached.test, mixed.test)):
        assert torch.equal(a.images(), b.images())
        assert torch.equal(a.masks(), b.masks())
        order = torch.tensor([2, 0, 2])
        for x, y in zip(a.batch(order), b.subset([1, 2, 0]).batch([1, 2, 1]), strict=True):
            assert torch.equal(x, y)
    (mvtec / "test" / "dent" / "007.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"007.png: cannot be read"):
        lazy.test.batch([0])


def test_plain_folder_of_good_images(tmp_path: Path) -> None:
    for i, suffix in enumerate(("png", "JPG", "bmp", "tiff", "webp")):
        save(tmp_path / f"{i}.{suffix}", pixels(i, 20 + i, 30 - i))
    for name in ("notes.txt", ".DS_Store", "Thumbs.db", "._0.png", "data.h5"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    folder = AnomalyFolder(tmp_path, size=SIZE)
    assert [p.name for p in folder.train.paths] == ["0.png", "1.JPG", "2.bmp", "3.tiff", "4.webp"]
    assert len(folder.test) == 0
    assert folder.test.images().shape == (0, 3, SIZE, SIZE)
    assert folder.test.masks().shape == (0, SIZE, SIZE)
    assert folder.test.labels().shape == (0,)


@pytest.fixture
def _no_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    monkeypatch.setattr(folder, "_SUFFIXES", folder._SUFFIXES - {".heic", ".heif"})


@pytest.mark.usefixtures("_no_heic")
def test_layout_faults_say_what_to_do(tmp_path: Path, mvtec: Path) -> None:
    def fails(path: Path, match: str) -> None:
        with pytest.raises(DataError, match=match):
            AnomalyFolder(path)

    fails(tmp_path / "nowhere", "does not exist")
    fails(save(tmp_path / "x" / "file.png", pixels(0)), "is a file")
    (tmp_path / "void").mkdir()
    fails(tmp_path / "void", "is empty or holds no images")
    for place in ("days/monday", "days/tuesday"):
        (tmp_path / place).mkdir(parents=True)
        save(tmp_path / place / "a.png", pixels(0))
    (tmp_path / "days/phone.HEIC").write_bytes(b"")
    fails(tmp_path / "days", "2 folders, whose images are not read: monday, tuesday; 1 HEIC files.*: phone.HEIC")
    fails(mvtec.parent, r"several categories \(part\); choose one, such as .*part")
    shutil.rmtree(mvtec / "train" / "good")
    fails(mvtec, "has no train/good")
    (mvtec / "train" / "good").mkdir()
    (mvtec / "train" / "good" / "readme.txt").write_text("images go here")
    fails(mvtec, "good holds no image")
    with pytest.raises(ValueError, match="at least 8 pixels a side"):
        AnomalyFolder(mvtec, size=4)


def test_all_bad_files_are_named_or_skipped(mvtec: Path) -> None:
    (mvtec / "train" / "good" / "001.png").write_bytes(b"x")
    (mvtec / "test" / "good" / "000.png").write_bytes(b"x")
    save(mvtec / "ground_truth" / "scratch" / "000_mask.png", mask_array(height=41))
    match = r"3 of 9 images cannot be used: .*good/001.png: .*; .*good/000.png: .*; .*000_mask.png: .*30x41.*30x40"
    with pytest.raises(DataError, match=match) as caught:
        AnomalyFolder(mvtec, size=SIZE)
    assert "\n" not in str(caught.value)
    for cache_bytes in (0, 2**30):
        with pytest.warns(UserWarning, match="skipped 3 of 9 images"):
            folder = AnomalyFolder(mvtec, size=SIZE, skip_bad=True, cache_bytes=cache_bytes)
        assert [p.name for p in folder.train.paths] == ["000.png", "002.png", "003.png"]
        assert folder.test.defects == ["dent", "good", "scratch"]
        assert torch.equal(folder.train.images()[1], read_image(mvtec / "train" / "good" / "002.png", SIZE))
        assert torch.equal(folder.test.masks()[2], read_mask(mvtec / "ground_truth" / "scratch" / "001.bmp", SIZE))


def test_many_bad_files_are_counted_and_no_good_one_is_an_error(tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"9 of 9 images cannot be used: .*4.png: [^;]*; and 4 more;"):
        AnomalyFolder(tmp_path)
    with (
        pytest.warns(UserWarning, match="skipped 9 of 9"),
        pytest.raises(DataError, match="no good image that can be read"),
    ):
        AnomalyFolder(tmp_path, skip_bad=True)


def test_fingerprint_follows_names_and_contents(mvtec: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path = mvtec, **options: int) -> str:
        return AnomalyFolder(path, **{"size": SIZE, **options}).fingerprint()  # type: ignore[arg-type]

    first = fingerprint()
    assert len(first) == 64
    assert fingerprint(size=16) == first
    assert fingerprint(cache_bytes=0) == first
    assert fingerprint(Path(shutil.copytree(mvtec, tmp_path / "copy"))) == first
    (mvtec / "train" / "good" / "notes.txt").write_text("ignored")
    assert fingerprint() == first
    save(mvtec / "ground_truth" / "scratch" / "000_mask.png", mask_array(top=6))
    second = fingerprint()
    assert second != first
    os.rename(mvtec / "train" / "good" / "000.png", mvtec / "train" / "good" / "00.png")
    assert fingerprint() not in (first, second)


# --- verify ---------------------------------------------------------------------------------------------------------


def found(report: VerifyReport, findings: list[Finding]) -> set[tuple[str, str]]:
    """Path and first words of each finding; that four training images are few goes without saying here."""
    told = [f for f in findings if "good images are few" not in f.reason]
    return {(f.path.relative_to(report.root).as_posix(), f.reason.split(";")[0].split(" (")[0]) for f in told}


def test_verify_of_a_sound_folder(mvtec: Path) -> None:
    report = verify(mvtec)
    assert report.faults == []
    assert report.counts == {"train/good": (4, 0), "test/dent": (1, 0), "test/good": (2, 0), "test/scratch": (2, 2)}
    assert report.sizes == {"30x40": 9}
    assert report.modes == {"RGB": 9}
    assert found(report, report.notices) == {("test/dent/007.png", "no mask")}
    lines = report.lines()
    assert lines[0] == str(mvtec)
    assert "  test/scratch: 2 images, 2 masks" in lines
    assert lines[-1] == "0 faults, 2 notices"
    assert any(line.startswith("notice: train/good: 4 good images are few") for line in lines)


@pytest.mark.usefixtures("_no_heic")
def test_verify_says_what_is_left_out_and_what_many_share_once(mvtec: Path) -> None:
    good = mvtec / "train" / "good"
    for name in (".hidden.png", "Thumbs.db", "a.heic", "notes.txt"):
        (good / name).write_bytes(b"")
    (good / "gone.png").symlink_to(mvtec / "nowhere.png")
    (good / "like.png").mkdir()
    (good / "empty").mkdir()
    save(good / "more" / "x.png", pixels(0))
    for i in range(12):
        save(mvtec / "test" / "dent" / f"1{i:02}.png", pixels(50 + i))
    save(good / "flat.png", np.full_like(pixels(0), 7))
    report = verify(mvtec)
    assert report.faults == []
    assert found(report, report.notices) == {
        ("test/dent", "13 images: no mask"),
        ("train/good", "left out: 1 HEIC files, which need pip install 'mlffn-lite[heic]': a.heic"),
        ("train/good", "left out: 1 .txt files, which are no images: notes.txt"),
        ("train/good", "left out: 1 links that lead nowhere: gone.png"),
        ("train/good", "left out: 1 folders named like images: like.png"),
        ("train/good", "left out: 1 folders, whose images are not read: more"),
        ("train/good/flat.png", "every pixel has the same colour"),
    }


def test_verify_finds_everything_in_one_pass(mvtec: Path) -> None:
    truth = mvtec / "ground_truth"
    (mvtec / "train" / "good" / "000.png").write_bytes(b"x")
    (truth / "scratch" / "000_mask.png").write_bytes(b"x")
    save(truth / "scratch" / "001.bmp", mask_array(width=31))
    save(truth / "scratch" / "999_mask.png", mask_array())
    save(truth / "good" / "000_mask.png", mask_array())
    save(truth / "good" / "001_mask.png", mask_array() * 0)
    save(truth / "dent" / "007_mask.png", mask_array() * 0)
    save(mvtec / "test" / "dent" / "008.png", pixels(31, channels=1))
    save(truth / "dent" / "008_mask.png", mask_array() // 2 + 1)
    shutil.copy(mvtec / "train" / "good" / "001.png", mvtec / "test" / "good" / "copy.png")
    Image.open(mvtec / "train" / "good" / "002.png").save(mvtec / "train" / "good" / "same.bmp")  # other bytes
    save(mvtec / "train" / "bad" / "0.png", pixels(50))
    save(mvtec / "test" / "good" / "tiny.png", pixels(51, 1, 1))
    report = verify(mvtec)
    assert found(report, report.faults) == {
        ("train/good/000.png", "cannot be read"),
        ("ground_truth/scratch/000_mask.png", "cannot be read"),
        ("ground_truth/scratch/001.bmp", "the mask has 31x40 pixels, its image 30x40"),
        ("ground_truth/scratch/999_mask.png", "mask without an image, or a second mask of one"),
        ("ground_truth/good/000_mask.png", "mask that marks defects in a good image"),
        ("ground_truth/dent/007_mask.png", "the mask of a defective image is empty"),
        ("test/good/copy.png", "same pixels as train/good/001.png"),
        ("test/good/tiny.png", "1x1 pixels"),
    }
    assert found(report, report.notices) == {
        ("ground_truth/good/001_mask.png", "empty mask of a good image"),
        ("ground_truth/dent/008_mask.png", "the mask marks every pixel"),
        ("ground_truth/dent/008_mask.png", "the mask is not binary"),
        ("train/good/same.bmp", "same pixels as train/good/002.png"),
        ("train/bad", "not used"),
    }
    assert report.modes == {"RGB": 10, "L": 1}
    assert report.counts["train/good"] == (5, 0)
    assert report.lines()[-1] == "8 faults, 6 notices"
    assert report.lines(limit=2)[-2] == "... and 4 more notices"


def test_verify_reports_missing_good_images_and_one_sided_tests(mvtec: Path, tmp_path: Path) -> None:
    shutil.rmtree(mvtec / "train")
    shutil.rmtree(mvtec / "test" / "good")
    report = verify(mvtec)
    assert [f.path for f in report.faults] == [mvtec]
    assert "has no train/good" in report.faults[0].reason
    assert ("test", "no good images") in found(report, report.notices)
    (tmp_path / "void").mkdir()
    assert "is empty" in "\n".join(verify(tmp_path / "void").lines())
    with pytest.raises(DataError, match="does not exist"):
        verify(tmp_path / "nowhere")


@given(st.binary(max_size=200), st.sampled_from(["png", "jpg", "tif", "bmp", "gif", "webp", "pgm"]))
@settings(max_examples=60, deadline=None)
def test_no_bytes_escape_as_another_error(tmp_path_factory: object, content: bytes, suffix: str) -> None:
    """Random bytes behind a true header: a DataError or an image, never another exception."""
    path = Path(tmp_path_factory.getbasetemp()) / f"fuzz.{suffix}"  # type: ignore[attr-defined]
    save(path, pixels(0, 12, 12))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3] + content + whole[len(whole) // 3 + len(content) :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(DataError):
            assert read_image(path, 16).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(100, 100)], (256, 256)),
        ([(320, 808)] * 3, (400, 160)),  # width 320, height 808
        ([(808, 320)] * 3, (160, 400)),
        ([(50, 100), (100, 100), (100, 50)], (256, 256)),
        ([(104, 100)], (256, 256)),  # nearly square is square
        ([(8, 800)], (2560, 32)),
    ],
)
def test_common_shape_keeps_the_median_aspect(tmp_path: Path, sizes: list[tuple[int, int]], shape: Any) -> None:
    for i, size in enumerate(sizes):
        Image.new("L", size, 90).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    entries = [Entry(p) for p in sorted(tmp_path.iterdir())]
    assert common_shape(entries, 256) == shape
    assert common_shape([Entry(tmp_path / "broken.png")], 64) == (64, 64)


def test_common_shape_obeys_the_exif_tag(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("L", (400, 100), 90).save(tmp_path / "turned.jpg", exif=exif)
    assert common_shape([Entry(tmp_path / "turned.jpg")], 64) == (128, 32)
    assert read_image(tmp_path / "turned.jpg").shape[1:] == (400, 100)


def test_folders_are_read_in_the_shape_asked_for(tmp_path: Path) -> None:
    for place, value in (("train/good/a", 90), ("test/good/b", 90), ("test/crack/c", 90), ("ground_truth/crack/c", 0)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 90), value).save(tmp_path / f"{place}.png")
    mask = Image.new("L", (30, 90), 0)
    mask.putpixel((29, 89), 255)
    mask.save(tmp_path / "ground_truth" / "crack" / "c.png")
    folder = AnomalyFolder(tmp_path, size=64, aspect="keep")
    assert folder.shape == folder.train.shape == (112, 32)
    assert folder.test.images().shape == (2, 3, 112, 32)
    assert folder.test.masks()[0, -1, -1] or folder.test.masks()[1, -1, -1]  # the lone pixel stays, in its corner
    assert int(folder.test.masks().sum()) == 1
    assert AnomalyFolder(tmp_path, shape=(48, 80)).train.images().shape == (1, 3, 48, 80)
    with pytest.raises(ValueError, match="aspect must be"):
        AnomalyFolder(tmp_path, aspect="crop")
