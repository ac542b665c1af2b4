"""What a small file can take is bounded before it is opened."""

from __future__ import annotations

import io
import math
import os
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from systems import pipes

from mlffn_lite import metrics, streamed
from mlffn_lite.config import Config
from mlffn_lite.datasets import archive
from mlffn_lite.datasets import folder as files
from mlffn_lite.datasets.archive import extract
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import ConfigError, DataError, DownloadError, MlffnError
from mlffn_lite.network import MLFFN
from mlffn_lite.training import Trainer

from .conftest import CONFIG as SETTINGS


def test_an_image_that_claims_to_be_huge_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (13_000, 13_000)).save(path)
    assert path.stat().st_size < 30_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="13000x13000 pixels are more than 150 million"):
        files.open_image(path)


def test_sixteen_bits_are_scaled_in_strips_as_before(tmp_path: Path) -> None:
    values = np.arange(700 * 9, dtype=np.uint16).reshape(700, 9) * 10
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.rint(values * (255 / 65535)).astype(np.uint8)
    assert torch.equal(files.read_image(tmp_path / "a.png")[0], torch.from_numpy(expected))


@pipes
def test_pipes_and_devices_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(DataError, match="is no regular file"):
            files.open_image(tmp_path / name)
        assert files.Entry(tmp_path / name).log_aspect() is None
        with pytest.raises(ConfigError, match="is no regular file"):
            Config.load(tmp_path / name)


def refused(path: Path, out: Path, match: str) -> None:
    started = time.perf_counter()
    with pytest.raises(DownloadError, match=match):
        extract(path, out)
    assert time.perf_counter() - started < 20
    assert not [p for p in out.rglob("*") if p.is_file()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 50)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("what", ["grows", "many"])
def test_an_archive_that_grows_or_has_too_many_members_is_refused(kind: str, what: str, tmp_path: Path) -> None:
    path, content = tmp_path / f"a.{kind}", b"\0" * (1 << 24 if what == "grows" else 0)
    names = [f"{i}.png" for i in range(1 if what == "grows" else 60)]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name in names:
                file.writestr(name, content)
    else:
        mode = "w:" + kind.partition(".")[2]
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    if (kind, what) == ("tar", "grows"):
        extract(path, tmp_path)  # it is as large as what is in it
        return
    refused(path, tmp_path / "out", "more than its size explains")


@pytest.mark.parametrize(
    ("name", "headers", "match"),
    [
        ("a" * 300 + ".png", {}, "too long"),
        ("a.png", {"mtime": "inf"}, "damaged"),
        ("a.png", {"mtime": "nan"}, "damaged"),
    ],
)
def test_headers_that_no_file_system_takes_are_one_line(
    name: str, headers: dict[str, str], match: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo(name)
        info.pax_headers = headers
        file.addfile(info, io.BytesIO(b""))
    (tmp_path / "out").mkdir()
    with pytest.raises(DownloadError, match=match):
        extract(path, tmp_path / "out")


def test_a_damaged_bz2_in_a_zip_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("a.png", os.urandom(5000))
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(DownloadError, match="damaged"):
        extract(path, tmp_path / "out")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
def test_streamed_metrics_are_those_of_all_maps_at_once(
    ties: bool, ignore: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "_RUN", 1000)
    monkeypatch.setattr(streamed, "_BLOCK", 100)
    draws = torch.Generator().manual_seed(0)
    maps = torch.randn(30, 16, 20, generator=draws)
    maps = (maps * 3).round() if ties else maps
    masks = torch.rand(30, 16, 20, generator=draws) > 0.9
    masks[::3] = False
    ignored = torch.rand(16, 20, generator=draws) > 0.8 if ignore else None
    with streamed.PixelMetrics(ignored=ignored) as pixels:
        for part, marks in zip(maps.split(4), masks.split(4), strict=True):
            pixels.add(part, marks)
        pixel_auroc, pro = pixels.result()
    assert pixel_auroc == metrics.pixel_auroc(maps, masks, ignored=ignored)  # whole numbers up to the last division
    assert pro == pytest.approx(metrics.pro(maps, masks, ignored=ignored), rel=1e-12)


@given(arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False)), st.integers(1, 9))
def test_scores_are_packed_exactly(values: np.ndarray, at_once: int) -> None:
    run = np.sort(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "_SLICE", at_once)
        steps, larger = streamed.packed(run)
        found = streamed.unpacked(np.concatenate([steps, larger.view(np.uint8)]), len(run))
    assert steps.dtype == np.uint8
    assert len(steps) == len(run)
    np.testing.assert_array_equal(found, run)


@pytest.mark.parametrize("value", [0, 1])
def test_streamed_metrics_of_one_class_are_undefined(value: int) -> None:
    with streamed.PixelMetrics() as pixels:
        pixels.add(torch.zeros(1, 4, 4), torch.full((1, 4, 4), value))
        with pytest.warns(UserWarning, match="undefined"):
            assert all(math.isnan(x) for x in pixels.result())
        with pytest.raises(ValueError, match="no NaN"):
            pixels.add(torch.full((1, 4, 4), math.nan), torch.zeros(1, 4, 4, dtype=torch.bool))


def test_a_full_disk_under_streamed_scores_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    with streamed.PixelMetrics() as pixels:
        monkeypatch.setattr(pixels, "_files", [Full()] * 3)
        with pytest.raises(MlffnError, match="No space left on device"):
            pixels.add(torch.ones(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool))


def test_an_evaluation_that_keeps_no_map_gives_the_same(
    run: Path, folder: AnomalyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = AnomalyDetector.load(run)
    kept = detector.evaluate(folder)
    monkeypatch.setattr("mlffn_lite.detector.MAPS_BYTES", 0)
    monkeypatch.setattr(detector, "predict_split", lambda _: pytest.fail("all maps were asked for"))
    found = detector.evaluate(folder)
    assert found.pop("pro") == pytest.approx(kept.pop("pro"), rel=1e-12)
    apart = {"predict_seconds", "pixel_auroc_by_defect", "pro_by_defect"}  # the last two need all maps
    assert {k: v for k, v in found.items() if k not in apart} == {k: v for k, v in kept.items() if k not in apart}


def test_pixels_on_disk_are_those_in_memory(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = AnomalyFolder(parts, size=64)
    stored = AnomalyFolder(parts, size=64, cache_bytes=0)
    monkeypatch.setattr(files, "fits", lambda _: False)
    decoded = AnomalyFolder(parts, size=64, cache_bytes=0)
    assert [x.test.in_background for x in (kept, stored, decoded)] == [False, True, True]
    monkeypatch.setattr(files.Entry, "open", lambda _: pytest.fail("it was decoded again"))
    for some in ([3, 0, 7], range(2, 6), torch.tensor([5, 1])):
        for one, other in zip(kept.test.batch(some), stored.test.batch(some), strict=True):
            assert torch.equal(one, other)
        pair = zip(kept.test.subset(some).batch([1, 0]), stored.test.subset(some).batch([1, 0]), strict=True)
        assert all(torch.equal(one, other) for one, other in pair)
    assert torch.equal(stored.test.images(), kept.test.images())
    assert torch.equal(stored.test.masks(), kept.test.masks())


def test_a_training_from_disk_is_the_same_to_the_bit(parts: Path) -> None:
    config = SETTINGS.replace(method="mlffn", train={"steps": 4})
    found: list[Any] = []
    for memory in (1 << 30, 0):
        loop = Trainer(MLFFN(config.model, config.texture), config)
        loop.module.load_state_dict(found[0][0] if found else loop.module.state_dict())
        before = {k: v.clone() for k, v in loop.module.state_dict().items()}
        loop.fit(AnomalyFolder(parts, size=64, cache_bytes=memory).train, progress=False)
        found.append((before, loop.module.state_dict()))
        assert loop._reader is None
    assert all(torch.equal(v, found[1][1][k]) for k, v in found[0][1].items())


def test_a_full_disk_under_pixels_is_one_line(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, _: int) -> None: ...

        def truncate(self, _: int) -> None: ...

        def write(self, _: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(MlffnError, match="No space left on device"):
        AnomalyFolder(parts, size=64, cache_bytes=0)
