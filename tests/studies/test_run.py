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
from systems import signals

from mlffn_lite.errors import ConfigError, MlffnError, StudyError
from mlffn_lite.studies.cell import Cell
from mlffn_lite.studies.grid import Grid, Place, compare, open_places, plan
from mlffn_lite.studies.report import write_reports
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
        ({"backend": "dask"}, "unknown backend 'dask'; choose one of local, processes, ray"),
        ({"backend": "processes", "count": 0}, "--workers 0 must be at least 1"),
        ({"backend": "local", "count": 2}, "--workers 2 needs --backend processes or ray"),
        ({"backend": "processes", "gpus": 1.0}, "--gpus and --address are for --backend ray"),
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
    parts: Path, base: Any, grid: Grid, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(parts, tmp_path / "other"))
    places = open_places([other, parts], base)
    cells = [c for c in plan([grid], places, [0]) if c.label == "baseline"]
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
    outcome = attempt(dataclasses.replace(cells[0], threads=-1))
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
    for workers in (Workers(), Workers("processes", 2)):
        with pytest.raises(MlffnError, match=r"cannot write .*locks"):
            run(cells, Store(tmp_path), workers, progress=False)


OWN = """
import os, signal, torch
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.features import FeatureDetector, FeatureParameters

class Far(FeatureDetector):
    memory = ("mean",)

    def __init__(self, config, parameters=FeatureParameters()):
        super().__init__(config, parameters)

    def _learn(self, features, images):
        self.mean = sum(f.mean((0, 2, 3)) * len(f) for f in features) / images

    def _distances(self, features):
        return (features - self.mean[:, None, None]).norm(dim=1)

class Deadly(AnomalyDetector):
    def fit(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of one's own beside one's script."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/own_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "beside")
    return "own_methods"


@signals
@pytest.mark.slow
def test_a_method_of_ones_own_stands_in_one_table_and_one_that_kills_its_process_takes_no_other_along(
    undisturbed: Store,
    cells: list[Cell],
    results: Results,
    places: dict[str, Place],
    base: Any,
    own: str,
    tmp_path: Path,
) -> None:
    grid = compare(base, [f"{own}:Far", "padim", f"{own}:Deadly"], "tiny")
    store = Store(tmp_path / "store")
    store.remember([grid], places)
    planned = [*plan([grid], places, [0]), *cells]
    failures = run(planned, store, Workers("processes", 2), progress=False)
    name = planned[2].name.removesuffix(".json")
    assert name.startswith("parts-Deadly-seed0-")
    assert failures == store.failures() == {name: "a process died 3 times while it ran, perhaps for want of memory"}
    assert store.under_way() == []
    assert results(undisturbed).items() <= results(store).items()  # the same bits as in this process
    (place,) = write_reports(store.folder)
    table = (place / "compare.md").read_text()
    assert f"| {own}:Far | " in table
    assert "| padim | " in table
    assert f"| {own}:Deadly | – | – | – |" in table


def test_processes_that_cannot_even_start_are_one_clear_error(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(StudyError, match="no process can run cells: they say nothing"):
        run(cells, Store(tmp_path), Workers("processes", 1), progress=False)


@pytest.mark.slow
def test_a_new_process_for_every_cell(cells: list[Cell], tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert run(cells[:2], store, Workers("processes", 1, fresh=True), progress=False) == {}
    assert len(store.paths()) == 2


@signals
@pytest.mark.slow
def test_killed_half_way_and_resumed_equals_undisturbed(
    undisturbed: Store, cells: list[Cell], results: Results, options: list[str], study: Start, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    first = study("table4", *options, "--workers", 2, "--out", store.folder)
    first.wait(store.paths)
    first.kill()
    kept = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.paths()}
    assert 1 <= len(kept) < len(cells), "killed too late to mean anything"
    assert first.process.returncode == -signal.SIGKILL
    for worker in first.family():  # they notice, and do not linger
        worker.wait(120)
    until = time.monotonic() + 60  # a process that is dead to its parent may still be putting its memory away
    while store.under_way():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert store.failures() == {}
    assert results(store).items() <= results(undisturbed).items()

    assert run(cells, store, progress=False) == {}
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.paths()}
    assert {name: after[name] for name in kept} == kept
    assert results(store) == results(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["table4", "--backend", "local"], ["compare", "--methods", "padim,patchcore,mlffn"]])
def test_two_runs_share_a_folder_and_no_cell_runs_twice(
    words: list[str], options: list[str], study: Start, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    both = [study(*words, *options, "--out", store.folder, "--workers", 1) for _ in range(2)]
    written = Counter[tuple[str, int]]()
    while any(one.process.poll() is None for one in both):
        written |= Counter((p.name, p.stat().st_mtime_ns) for p in store.paths())
        time.sleep(0.01)
    assert [one.end() for one in both] == [0, 0], [one.text() for one in both]
    count = 5 if words[0] == "table4" else 3
    assert len({name for name, _ in written}) == len(written) == count  # no file was written a second time
    assert all(f"{count} of {count} cells are in" in one.text() for one in both)
    assert (store.under_way(), store.failures()) == ([], {})


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
@pytest.mark.parametrize("backend", ["local", "processes"])
def test_ctrl_c_says_how_to_go_on(
    backend: str, cells: list[Cell], options: list[str], study: Start, tmp_path: Path
) -> None:
    """A terminal sends it to the whole group. Nobody has died: no cell has failed."""
    store = Store(tmp_path / "store")
    workers = 2 if backend == "processes" else 1
    one = study("table4", *options, *ENDLESS, "--backend", backend, "--workers", workers, "--out", store.folder)
    one.wait(lambda: len(store.under_way()) == workers)
    family = one.family()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.process.pid, signal.SIGINT)
    assert one.end() == 130, one.text()
    assert f"Stopped; 0 of 5 cells are in {store.folder}; go on with the same command." in one.text()
    assert "Traceback" not in one.text()
    assert len(family) == (2 if backend == "processes" else 0)
    assert not one.family()
    assert (store.paths(), store.under_way(), store.failures()) == ([], [], {})


def test_one_live_line_in_a_terminal_and_a_line_per_cell_elsewhere(
    undisturbed: Store, cells: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        store = Store(shutil.copytree(undisturbed.folder, tmp_path / str(terminal)))
        store.path(cells[1]).unlink()
        assert run(cells, store) == {}
        text = capsys.readouterr().err
        (record,) = (r for r in store.records() if Cell.of(r).name == cells[1].name)
        metrics = " / ".join(f"{100 * record[k]:.1f}" for k in ("image_auroc", "pixel_auroc", "pro"))
        line = f"parts +self_calibration seed 0: {metrics} ({record['fit_seconds']:.0f} s)"
        if terminal:
            assert "5/5" in text.split("\r")[-1]
            assert line in text.split("\r")[-1]
        else:
            assert text == f"[5/5] {line}\n"
        assert run(cells, store, progress=False) == {}
        assert capsys.readouterr().err == ""
