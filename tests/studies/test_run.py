"""Running cells: the same numbers wherever they run, and nothing lost but the cells under way, whoever dies."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from mlffn_lite.errors import ConfigError, MlffnError
from mlffn_lite.studies.cell import Cell
from mlffn_lite.studies.grid import Place, open_places, plan
from mlffn_lite.studies.progress import Display, summary, title
from mlffn_lite.studies.run import Workers, attempt, run
from mlffn_lite.studies.store import Failure, Store

Results = Callable[[Store], dict[str, Any]]
Start = Callable[..., Any]
HOLD = """
import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
ENDLESS = ["--set", "train.steps=10000000"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "dask"}, "unknown backend 'dask'; choose one of local, joblib, ray"),
        ({"backend": "joblib", "count": 0}, "--workers 0 must be at least 1"),
        ({"backend": "local", "count": 2}, "--workers 2 needs --backend joblib or ray"),
        ({"backend": "joblib", "gpus": 1.0}, "--gpus and --address are for --backend ray"),
        ({"backend": "local", "address": "auto"}, "--gpus and --address are for --backend ray"),
    ],
)
def test_workers_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Workers(**arguments)


def test_no_cells_is_nothing_to_do(tmp_path: Path) -> None:
    assert run([], Store(tmp_path / "new"), progress=False) == {}
    assert not (tmp_path / "new").exists()


def test_finished_cells_never_run_again(
    undisturbed: Store, cells: list[Cell], results: Results, tmp_path: Path
) -> None:
    store = Store(shutil.copytree(undisturbed.folder, tmp_path / "store"))
    gone = store.path(cells[2])
    gone.unlink()
    before = {p.name: p.stat().st_mtime_ns for p in store.paths()}
    assert run(cells, store, progress=False) == {}
    after = {p.name: p.stat().st_mtime_ns for p in store.paths()}
    assert after.keys() - before.keys() == {gone.name}
    assert {name: after[name] for name in before} == before
    assert results(store) == results(undisturbed)
    assert store.under_way() == []


def test_a_failing_cell_stops_no_other_and_runs_again_next_time(
    parts: Path, base: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(parts, tmp_path / "other"))
    places = open_places([other, parts], base)
    cells = [c for c in plan(["table4"], places, base, [0], "tiny", 1) if not c.config["model"]["self_calibration"]]
    assert [Path(c.data).name for c in cells] == ["other", "parts"]
    image = other / "test/good/000.png"
    content = image.read_bytes()
    image.unlink()
    store = Store(tmp_path / "store")

    failures = run(cells, store)
    name = cells[0].name.removesuffix(".json")
    assert list(failures) == [name]
    assert "other has changed since this was started" in failures[name]
    assert store.failures() == failures
    assert "Traceback" in (store.folder / "cells" / f"{name}.failed.json").read_text()
    assert [r["set"] for r in store.records()] == ["parts"]
    assert store.under_way() == []
    printed = capfd.readouterr().err.splitlines()
    assert printed[0].startswith("[1/2] other baseline seed 0: ")
    assert "has changed since" in printed[0]
    assert re.fullmatch(r"\[2/2\] parts baseline seed 0: \d+\.\d / \d+\.\d / \d+\.\d \(\d+ s\)", printed[1])

    image.write_bytes(content)
    assert run(cells, store, progress=False) == {}
    assert store.failures() == {}
    assert [r["set"] for r in store.records()] == ["other", "parts"]


def test_whatever_a_cell_raises_is_its_outcome(cells: list[Cell]) -> None:
    same, outcome = attempt(dataclasses.replace(cells[0], threads=-1))
    assert same.threads == -1
    assert isinstance(outcome, Failure)
    assert outcome.reason.startswith("RuntimeError: ")
    assert "\n" not in outcome.reason
    assert "Traceback" in outcome.traceback


def test_a_store_that_cannot_be_written_stops_the_run_and_frees_its_cells(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = Store(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MlffnError, match="No space left on device"):
        run(cells, store, progress=False)
    assert list((tmp_path / "cells").iterdir()) == []
    assert store.under_way() == []


def test_a_folder_where_no_cell_can_be_claimed_stops_the_run(cells: list[Cell], tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("in the way")
    for workers in (Workers(), Workers("joblib", 2)):
        with pytest.raises(MlffnError, match=r"cannot write .*locks"):
            run(cells, Store(tmp_path), workers, progress=False)


@pytest.mark.slow
def test_processes_give_the_same_bits_and_a_cell_that_kills_them_takes_no_other_along(
    undisturbed: Store, cells: list[Cell], results: Results, tmp_path: Path
) -> None:
    class Deadly:
        """Kills the process that unpickles it, as the kernel does for want of memory."""

        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return signal.raise_signal, (signal.SIGKILL,)

    deadly = dataclasses.replace(cells[0], fingerprint="none", label=Deadly())  # type: ignore[arg-type]
    store = Store(tmp_path)
    failures = run([deadly, *cells], store, Workers("joblib", 2), progress=False)
    name = deadly.name.removesuffix(".json")
    assert failures == store.failures() == {name: "a process died 3 times while it ran, perhaps for want of memory"}
    assert results(store) == results(undisturbed)
    assert store.under_way() == []


@pytest.mark.slow
def test_killed_half_way_and_resumed_equals_undisturbed(
    undisturbed: Store, cells: list[Cell], results: Results, options: list[str], study: Start, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    first = study("table4", *options, "--backend", "joblib", "--workers", 2, "--out", store.folder)
    first.wait(store.paths)
    first.kill()
    kept = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.paths()}
    assert 1 <= len(kept) < len(cells), "killed too late to mean anything"
    assert first.process.returncode == -signal.SIGKILL
    for worker in first.family():  # they notice, and do not linger
        worker.wait(120)
    assert store.under_way() == []
    assert store.failures() == {}
    assert results(store).items() <= results(undisturbed).items()

    assert run(cells, store, progress=False) == {}
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.paths()}
    assert {name: after[name] for name in kept} == kept
    assert results(store) == results(undisturbed)


@pytest.mark.slow
def test_two_runs_share_a_folder_and_no_cell_runs_twice(
    undisturbed: Store, cells: list[Cell], results: Results, options: list[str], study: Start, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    both = [study("table4", *options, "--backend", "local", "--out", store.folder) for _ in range(2)]
    assert [one.end() for one in both] == [0, 0], [one.text() for one in both]
    ran = Counter(name for one in both for name in re.findall(r"^\[\d/5\] (.*): ", one.text(), re.MULTILINE))
    assert ran == {title(c): 1 for c in cells}
    assert all("5 of 5 cells are in" in one.text() for one in both)
    assert results(store) == results(undisturbed)


def test_a_cell_of_a_run_that_dies_is_taken_over_by_the_one_that_waits(cells: list[Cell], tmp_path: Path) -> None:
    store = Store(tmp_path)
    lock = tmp_path / "locks" / cells[0].name.replace(".json", ".lock")
    lock.parent.mkdir()
    failures: list[dict[str, str]] = []
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        waiting = threading.Thread(target=lambda: failures.append(run(cells[:2], store, progress=False)))
        waiting.start()
        while not store.done(cells[1]) and waiting.is_alive():
            time.sleep(0.05)
        waiting.join(1.5)  # it has looked again more than once
        assert waiting.is_alive()
        assert store.paths() == [store.path(cells[1])]
        other.kill()
    waiting.join(120)
    assert failures == [{}]
    assert store.done(cells[0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "joblib"])
def test_ctrl_c_says_how_to_go_on(
    backend: str, undisturbed: Store, cells: list[Cell], options: list[str], study: Start, tmp_path: Path
) -> None:
    """A terminal sends it to the whole group: to the workers too."""
    store = Store(tmp_path / "store")
    workers = 2 if backend == "joblib" else 1
    one = study("table4", *options, *ENDLESS, "--backend", backend, "--workers", workers, "--out", store.folder)
    one.wait(lambda: len(store.under_way()) == workers)
    one.wait(lambda: backend == "local" or one.at_work() == workers)  # joblib itself prints of one still starting
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.process.pid, signal.SIGINT)
    assert one.end() == 130, one.text()
    assert f"Stopped; 0 of 5 cells are in {store.folder}; go on with the same command." in one.text()
    assert "Traceback" not in one.text()
    for worker in one.family():
        worker.wait(120)
    assert (store.paths(), store.under_way(), store.failures()) == ([], [], {})


def test_a_line_per_cell_where_there_is_no_terminal(
    undisturbed: Store, cells: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    records = {Cell.of(r).name: r for r in undisturbed.records()}
    with Display(5) as display:
        display.left(4)
        for cell in cells[:2]:
            display.started(cell)
        display.finished(cells[1], records[cells[1].name])
        display.finished(cells[0], Failure("no [memory]"))
    first, second = capsys.readouterr().err.splitlines()
    metrics = [100 * records[cells[1].name][k] for k in ("image_auroc", "pixel_auroc", "pro")]
    assert first.startswith("[2/5] parts +self_calibration seed 0: " + " / ".join(f"{m:.1f}" for m in metrics))
    assert second == "[3/5] parts baseline seed 0: no [memory]"
    with Display(5, enabled=False) as display:
        display.finished(cells[1], records[cells[1].name])
    assert capsys.readouterr().err == ""


def test_one_live_line_in_a_terminal(
    undisturbed: Store, cells: list[Cell], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "150"}.items():
        monkeypatch.setenv(name, value)
    records = {Cell.of(r).name: r for r in undisturbed.records()}
    with Display(5) as display:
        display.left(5)
        for cell in cells[:3]:
            display.started(cell)
        display.finished(cells[0], Failure("no [memory]"))
        display.finished(cells[1], records[cells[1].name])
        display._bar.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    last = text.strip().splitlines()[-1]
    assert "2/5 cells" in last
    assert "1 running, 1 failed, left" in last
    assert f"· parts +self_calibration seed 0: {summary(records[cells[1].name])}" in last
    assert re.search(r"left +\d:\d\d:\d\d|left +-:--:--", last)


def test_cells_have_names_for_people(places: dict[str, Place], base: Any) -> None:
    names = [title(c) for c in plan(["table3"], places, base, [3], "x", 1)]
    assert names[1] == "parts 5 % seed 3"
    assert names[3] == "parts +consistency seed 3"  # the same cell as the 50 % of Table 3
    other = dataclasses.replace(plan(["table4"], places, base, [0], "x", 1)[0], method="padim")
    config = {**other.config, "model": {**other.config["model"], "texture": True}}
    assert title(dataclasses.replace(other, config=config)) == "parts padim seed 0"
