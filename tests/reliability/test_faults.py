"""A disk that fails at any write leaves every file old or new, whole, and says so in one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector, read_metrics
from mlffn_lite.errors import MlffnError
from mlffn_lite.heatmaps import write_predictions
from mlffn_lite.network import MLFFN
from mlffn_lite.run_report import set_aside, write_run_report
from mlffn_lite.storage import CHECKPOINT, CONFIG, load_tensors, read_config
from mlffn_lite.studies.report import write_reports
from mlffn_lite.studies.store import Store
from mlffn_lite.training import Trainer

from .conftest import CONFIG as SETTINGS
from .test_cells import measured  # noqa: F401 - a fixture

FULL = OSError(28, "No space left on device")


class Disk:
    """Counts what is done to files that are written, and fails at one of these operations, and at all after it."""

    def __init__(self, last: int | None) -> None:
        self.done, self.last = 0, last

    def operation(self) -> None:
        """Be asked before each."""
        self.done += 1
        if self.last is not None and self.done > self.last:
            raise FULL

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.operation()
            return function(*arguments, **options)

        return call

    def opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Of files that are opened to write, what is written is half there if it fails."""

        def call(place: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            stream = function(place, mode, *arguments, **options)
            return Half(stream, self) if set(mode) & set("wa") else stream

        return call


class Half:
    """A stream that a full disk cuts in the middle of a write."""

    def __init__(self, stream: Any, disk: Disk) -> None:
        self._stream, self._disk = stream, disk

    def write(self, data: Any) -> Any:
        try:
            self._disk.operation()
        except OSError:
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()
            raise
        return self._stream.write(data)

    def __enter__(self) -> Half:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def failing(last: int | None) -> Iterator[Disk]:
    disk = Disk(last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", disk.before(tempfile.mkstemp))
        patch.setattr(os, "fsync", disk.before(os.fsync))
        patch.setattr(os, "replace", disk.before(os.replace))
        patch.setattr(os, "fdopen", disk.opening(os.fdopen))
        patch.setattr(Path, "open", disk.opening(Path.open))
        yield disk


def every_write(work: Callable[[Path], object], check: Callable[[Path], object], start: Path, tries: int) -> None:
    """Do the work on copies of ``start``; each time the disk fails at another write; check what is there."""
    place = start.parent / "counted"
    shutil.copytree(start, place)
    with failing(None) as disk:
        work(place)
    check(place)
    assert disk.done > 3
    chosen = range(disk.done) if tries > 100 else sorted({round(i * (disk.done - 1) / 7) for i in range(8)})
    for last in chosen:
        copy = Path(shutil.copytree(start, start.parent / f"copy{last}"))
        with failing(last), pytest.raises(MlffnError, match="No space left on device") as caught:
            work(copy)
        assert "\n" not in str(caught.value)
        assert not list(copy.rglob("*.tmp"))
        check(copy)
        shutil.rmtree(copy)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    place = tmp_path / "start"
    place.mkdir()
    return place


def test_a_fit_and_its_measurement(folder: AnomalyFolder, empty: Path, tries: int) -> None:
    def work(place: Path) -> None:
        detector = AnomalyDetector(SETTINGS).fit(folder, out=place, progress=False)
        result, prediction = detector.complete_run(place, folder)
        write_run_report(place, detector, folder, result, prediction)

    def check(place: Path) -> None:
        if (place / CHECKPOINT).exists():
            AnomalyDetector.load(place)
        if (place / "metrics.json").exists():
            read_metrics(place)
        if (place / "report.html").exists():
            assert (place / "report.html").read_text("utf-8").rstrip().endswith("</html>")

    every_write(work, check, empty, tries)


def test_a_training_with_checkpoints(folder: AnomalyFolder, empty: Path, tries: int) -> None:
    config = SETTINGS.replace(method="mlffn", train={"checkpoint_every": 1})

    def trainer(place: Path) -> Trainer:
        return Trainer(MLFFN(config.model, config.texture), config, folder=place)

    def check(place: Path) -> None:
        if (place / CHECKPOINT).exists():
            assert load_tensors(place / CHECKPOINT)[1].run == read_config(place)[1]
            resumed = trainer(place)
            resumed.load_checkpoint()  # history and all
            assert resumed.step in (1, 2)
        elif (place / CONFIG).exists():
            read_config(place)

    every_write(lambda place: trainer(place).fit(folder.train, progress=False), check, empty, tries)


def test_a_calibration_leaves_the_old_threshold_or_the_new(run: Path, empty: Path, tries: int) -> None:
    shutil.copytree(run, empty, dirs_exist_ok=True)
    old = AnomalyDetector.load(run).calibration
    assert old is not None

    def work(place: Path) -> None:
        detector = AnomalyDetector.load(place)
        detector.calibrate(threshold=123.0)
        set_aside(place, old)
        detector.save(place)

    def check(place: Path) -> None:
        found = AnomalyDetector.load(place).calibration
        assert found is not None
        assert found.threshold in (old.threshold, 123.0)
        assert not (place / "metrics.json").exists() or found == old

    every_write(work, check, empty, tries)


def test_a_prediction_can_be_gone_on_with(run: Path, folder: AnomalyFolder, empty: Path, tries: int) -> None:
    detector, images = AnomalyDetector.load(run), folder.test.paths[:3]
    whole = dict(zip(map(str, images), detector.predict(images).scores.tolist(), strict=True))

    def check(place: Path) -> None:
        table = write_predictions(detector, images, place, resume=True, progress=False)
        # In any order: an image whose picture was not written, while its neighbour's was, is judged again at the end.
        assert dict(zip(table["image"], map(float, table["score"]), strict=True)) == pytest.approx(whole)
        assert len(table) == len(images)
        assert len((place / "scores.csv").read_text().splitlines()) == 1 + len(images)

    every_write(lambda place: write_predictions(detector, images, place, progress=False), check, empty, tries)


def test_a_cell_and_its_report(measured: Store, empty: Path, tries: int) -> None:  # noqa: F811
    shutil.copytree(measured.folder, empty, dirs_exist_ok=True)
    shutil.rmtree(empty / "cells")
    (record,) = measured.records()
    from mlffn_lite.studies.cell import Cell

    def work(place: Path) -> None:
        Store(place).write(Cell.of(record), record)
        write_reports(place)

    def check(place: Path) -> None:
        store = Store(place)
        if store.paths():
            assert store.records() == [record]
        for path in (place / "report").glob("*.html"):
            assert path.read_text("utf-8").rstrip().endswith("</html>")

    every_write(work, check, empty, tries)
