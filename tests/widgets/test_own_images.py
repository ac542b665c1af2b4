"""Images of one's own in an explorer: what is opened, what is said about the rest, and in one line."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from explored import SIDE, detector, prediction, split
from PIL import Image

from mlffn_lite.errors import DataError
from mlffn_lite.widgets import HeatmapExplorer
from mlffn_lite.widgets import own as own_module


def explorer() -> HeatmapExplorer:
    parts = split()
    return HeatmapExplorer(detector(parts), parts)


def png(level: int = 120, side: int = 40) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    for name, level in (("a", 120), ("b", 255)):
        (tmp_path / "new" / f"{name}.png").write_bytes(png(level))
    return tmp_path / "new"


def test_a_folder(folder: Path) -> None:
    shown = explorer()
    threshold = shown.threshold.value
    shown.path.value = str(folder)
    assert shown.status.value == "2 images opened"
    assert shown.picker.chosen == ("own: new", 0)
    assert shown.threshold.value == threshold
    assert shown.label.value.startswith("own: new own/a: image score")
    assert shown.label.value.endswith(": good. The truth is not known.")
    assert shown.overall.value == "2 images: 1 anomalous, 1 good; the truth is not known."
    shown.picker.next.click()
    assert shown.anomalous is True
    assert ">unknown<" in shown.table.value
    assert "true mask" not in shown.readout.value
    assert shown.picker.children[0].children[0].description == "Category"
    shown.picker.category.value = ""
    assert shown.label.value.startswith("good/000")


def test_a_file_and_again(folder: Path) -> None:
    shown = explorer()
    shown.open_own(folder / "b.png")
    assert shown.picker.chosen == ("own: b.png", 0)
    (folder / "b.png").write_bytes(png(120))
    shown.open_own(folder / "b.png")
    assert not shown.anomalous
    assert len(shown.picker.category.options) == 2


def test_a_data_folder_knows_its_truth(folder: Path) -> None:
    for defect, level in (("good", 120), ("stain", 255)):
        (folder / "test" / defect).mkdir(parents=True)
        (folder / "test" / defect / "0.png").write_bytes(png(level))
    shown = explorer()
    shown.open_own(folder)
    assert shown.overall.value.startswith("2 images: misses 0.0 % (0 of 1;")
    assert shown.picker.defect.options == ("all", "good", "stain")


def test_an_upload(folder: Path) -> None:
    shown = explorer()
    content = {"type": "image/png", "size": 1, "last_modified": datetime.now(tz=UTC)}
    files = [("c.png", png(255)), ("d.txt", b"no image")]
    shown.upload.value = tuple({**content, "name": n, "content": memoryview(c)} for n, c in files)
    assert shown.picker.chosen == ("own: uploaded", 0)
    assert shown.anomalous
    assert shown.status.value.startswith("1 images opened; left out 1: d.txt: cannot be read")
    assert shown.upload.value == ()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "does not exist; give an image file"),
        (lambda p: p.mkdir(), "holds no image"),
        (lambda p: p.write_bytes(b"no image"), "not a known image format"),
        (lambda p: p.write_bytes(png(side=4)), "each side must have at least 8"),
    ],
)
def test_bad_input_is_told_in_a_line_and_changes_nothing(tmp_path: Path, make: object, says: str) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]
    shown = explorer()
    label = shown.label.value
    shown.path.value = str(path)
    assert says in shown.status.value
    assert "\n" not in shown.status.value
    assert shown.label.value == label
    assert shown.picker.category.options == ("",)
    with pytest.raises(DataError, match=says):
        shown.open_own(path)


def test_too_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_module, "MOST", 1)
    with pytest.raises(DataError, match="holds 2 images, more than 1"):
        explorer().open_own(folder)


def test_a_prediction_scores_nothing_else(folder: Path) -> None:
    parts = split()
    shown = HeatmapExplorer(prediction(parts), parts)
    assert not any(shown.path in getattr(child, "children", ()) for child in shown.children)
    with pytest.raises(ValueError, match="give the explorer a detector"):
        shown.open_own(folder)


def test_images_are_seen_at_the_detector_s_size(folder: Path) -> None:
    shown = explorer()
    shown.open_own({"a": png(side=100)})
    assert shown._views["own: uploaded"].split.shape == (SIDE, SIDE)
