"""A watched folder: each image is judged once, when it is complete, whatever happens in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from systems import signals

pytest.importorskip("watchfiles")

from mlffn_lite.deploy import watch
from mlffn_lite.deploy.watch import Watcher
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.heatmaps import Outputs


@pytest.fixture(scope="module")
def detector(fitted_run: Path) -> AnomalyDetector:
    return AnomalyDetector.load(fitted_run, device="cpu")


@contextmanager
def watching(detector: AnomalyDetector, source: Path, folder: Path, **options: Any) -> Iterator[Watcher]:
    """A watcher at work in a thread; an error of its own is raised at the end."""
    watcher = Watcher(detector, source, folder, outputs=Outputs("jpeg"), settle=0.2, **options)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            watcher.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield watcher
    finally:
        watcher.stop.set()
        thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "too late"
        time.sleep(0.05)


def verdicts(folder: Path) -> dict[str, str]:
    """File names and verdicts in the journal, where every image has one line."""
    table = pd.read_csv(folder / "scores.csv")
    names = [Path(image).name for image in table["image"]]
    assert len(set(names)) == len(names)
    return dict(zip(names, table["verdict"], strict=True))


@pytest.fixture
def source(tmp_path: Path, parts: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(parts / "test/good/000.png", folder / "good.png")
    shutil.copy(parts / "test/scratch/000.png", folder / "scratch.png")
    return folder


def test_what_is_there_and_what_comes_is_judged_once_it_is_complete(
    detector: AnomalyDetector, source: Path, parts: Path, tmp_path: Path
) -> None:
    content = (parts / "test/scratch/001.png").read_bytes()
    with watching(detector, source, tmp_path / "out") as watcher:
        until(lambda: watcher.counts.total() == 2)
        with (source / "slow.png").open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(1)  # longer than settled, and still no image
            assert watcher.counts.total() == 2
            file.write(content[len(content) // 2 :])
        (source / "notes.txt").write_text("no image")
        (source / ".hidden.png").write_bytes(content)
        until(lambda: watcher.counts.total() == 3)
    assert verdicts(tmp_path / "out") == {"good.png": "OK", "scratch.png": "NOK", "slow.png": "NOK"}
    assert {p.name for p in (tmp_path / "out").glob("*.jpg")} == {
        f"{x}_heatmap.jpg" for x in ("good", "scratch", "slow")
    }
    assert {p.name for p in source.iterdir()} == {"good.png", "scratch.png", "slow.png", "notes.txt", ".hidden.png"}
    shutil.copy(parts / "test/good/001.png", source / "late.png")
    with watching(detector, source, tmp_path / "out") as watcher:  # only what is new
        until(lambda: watcher.counts.total() == 1)
        time.sleep(0.5)
    assert watcher.counts == {"OK": 1}
    assert len(verdicts(tmp_path / "out")) == 4


def test_what_cannot_be_read_is_an_error_until_it_changes(
    detector: AnomalyDetector, source: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.5)
    (source / "bad.png").write_bytes(b"not an image")
    with watching(detector, source, tmp_path / "out") as watcher:
        until(lambda: watcher.counts.total() == 3)
        assert watcher.counts["ERROR"] == 1
        shutil.copy(parts / "test/good/002.png", source / "bad.png")
        until(lambda: watcher.counts.total() == 4)
    table = pd.read_csv(tmp_path / "out/scores.csv")
    assert sorted(table[table["image"] == str(source / "bad.png")]["verdict"]) == ["ERROR", "OK"]
    with watching(detector, source, tmp_path / "out") as watcher:
        time.sleep(1)
    assert watcher.counts.total() == 0
    assert len(verdicts(tmp_path / "out")) == 3  # the error is settled


def test_judged_images_are_moved_where_that_is_asked_for(
    detector: AnomalyDetector, source: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, folder = tmp_path / "judged", tmp_path / "out"
    put_away = Watcher._put_away

    def crash(self: Watcher, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Watcher, "_put_away", crash)
    with pytest.raises(KeyboardInterrupt), watching(detector, source, folder, move=place) as watcher:
        until(lambda: watcher.counts.total() == 1)
    assert {p.name for p in source.iterdir()} == {"good.png", "scratch.png"}
    monkeypatch.setattr(Watcher, "_put_away", put_away)
    with watching(detector, source, folder, move=place) as watcher:
        until(lambda: watcher.counts.total() == 1)
        until(lambda: not list(source.iterdir()))
    assert verdicts(folder) == {"good.png": "OK", "scratch.png": "NOK"}
    assert sorted(p.relative_to(place).as_posix() for p in place.glob("*/*")) == ["NOK/scratch.png", "OK/good.png"]
    shutil.copy(parts / "test/scratch/002.png", source / "good.png")  # the name comes again
    with watching(detector, source, folder, move=place) as watcher:
        until(lambda: not list(source.iterdir()))
    assert watcher.counts == {"NOK": 1}
    table = pd.read_csv(folder / "scores.csv")
    assert list(table["picture"]) == ["good_heatmap.jpg", "scratch_heatmap.jpg", "good_2_heatmap.jpg"]
    assert sorted(p.name for p in place.glob("NOK/*")) == ["good.png", "scratch.png"]


def test_sub_folders_are_watched_where_that_is_asked_for(
    detector: AnomalyDetector, source: Path, parts: Path, tmp_path: Path
) -> None:
    place, folder = tmp_path / "judged", tmp_path / "out"
    (source / "left").mkdir()
    shutil.copy(parts / "test/good/000.png", source / "left/good.png")  # the name is there already
    with watching(detector, source, folder) as watcher:
        until(lambda: watcher.counts.total() == 2)
        time.sleep(0.5)
    assert watcher.counts.total() == 2
    with watching(detector, source, folder, recursive=True, move=place) as watcher:
        until(lambda: not list(source.rglob("*.png")))
        (source / "new/day").mkdir(parents=True)  # a folder that comes while it watches
        shutil.copy(parts / "test/scratch/001.png", source / "new/day/x.png")
        until(lambda: not list(source.rglob("*.png")))
    judged = sorted(p.relative_to(place).as_posix() for p in place.rglob("*.png"))
    assert judged == ["NOK/new/day/x.png", "NOK/scratch.png", "OK/good.png", "OK/left/good.png"]
    assert len({*pd.read_csv(folder / "scores.csv")["picture"]}) == len(pd.read_csv(folder / "scores.csv"))


@signals
@pytest.mark.slow
def test_a_killed_watcher_goes_on_and_sigterm_ends_it(fitted_run: Path, parts: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for index in range(30):
        shutil.copy(parts / f"test/scratch/{index % 4:03}.png", source / f"{index}.png")
    command = [sys.executable, "-m", "mlffn_lite", "watch", str(fitted_run), str(source)]
    command += ["--out", str(folder), "--settle", "0.1"]

    def lines() -> int:
        return len((folder / "scores.csv").read_text().splitlines()) - 1 if (folder / "scores.csv").exists() else 0

    with subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE) as first:
        until(lambda: lines() >= 3, 120)
        first.kill()
    before = pd.read_csv(folder / "scores.csv")
    assert len(before) < 30
    with (folder / "scores.csv").open("a") as file:
        file.write(f"{source}/29.png,NOK,1.2")  # a line that broke off
    with subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True) as second:
        until(lambda: lines() == 30, 120)
        os.kill(second.pid, signal.SIGTERM)
        out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert f"Stopped: {30 - len(before)} NOK" in out
    assert set(verdicts(folder)) == {f"{i}.png" for i in range(30)}
    assert len(list(folder.glob("*_heatmap.jpg"))) == 30


def test_bad_input_is_one_line(
    refused: Callable[..., str], fitted_run: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ["--out", tmp_path / "out"]
    assert "no folder" in refused("watch", fitted_run, tmp_path / "none", *new)
    assert "elsewhere" in refused("watch", fitted_run, source, "--out", source)
    assert "elsewhere" in refused("watch", fitted_run, source, *new, "--move", source)
    assert "lies in" in refused("watch", fitted_run, source, "--recursive", "--out", source / "a/b")
    assert "lies in" in refused("watch", fitted_run, source, "--recursive", *new, "--move", source / "done")
    assert "jpeg, png, none" in refused("watch", fitted_run, source, *new, "--pictures", "gif")
    assert "not a run folder" in refused("watch", tmp_path, source, *new)
    assert not (tmp_path / "out").exists()
    with FileLock(tmp_path / "busy/.lock") as lock:
        assert lock.is_locked
        assert "is in use" in refused("watch", fitted_run, source, "--out", tmp_path / "busy")
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    assert "pip install 'mlffn-lite[serve]'" in refused("watch", fitted_run, source, *new)
