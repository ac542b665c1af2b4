"""A study that takes seconds: cells of about one second each, and the store of a run that nothing disturbed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from mlffn_lite.config import Config
from mlffn_lite.labels import METRIC_LABELS
from mlffn_lite.studies.cell import Cell, with_train
from mlffn_lite.studies.grid import TABLES, Grid, Place, open_places, plan, study_config, table4
from mlffn_lite.studies.run import run
from mlffn_lite.studies.store import Store

PATIENCE = 120.0
# One thread; and a Ray that neither reports its use nor leaves a token in the user's folder.
ALONE = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
TEXTURE = ["texture.tem_levels=4", "texture.ptfem_levels=2"]
FAST = ["data.size=32", "model.width=8", *TEXTURE, "train.batch=4", "train.steps=2"]
# What is measured on the clock, or says where and when.
VOLATILE = {"fit_seconds", "predict_ms", "peak_memory_mb", "gpu_memory_mb", "git_commit", "label"}


@pytest.fixture(scope="session")
def alone() -> dict[str, str]:
    """The environment of processes that tests start."""
    return {**os.environ, **ALONE}


@pytest.fixture(scope="session")
def base() -> Config:
    return study_config("tiny").override(FAST).replace(train={"device": "cpu"})


@pytest.fixture(scope="session")
def options(parts: Path) -> list[str]:
    """The same study on the command line."""
    changes = [word for text in FAST for word in ("--set", text)]
    return ["--data", str(parts), "--preset", "tiny", "--device", "cpu", "--seeds", "1", *changes]


@pytest.fixture(scope="session")
def places(parts: Path, base: Config) -> dict[str, Place]:
    return open_places([parts], base)


@pytest.fixture(scope="session")
def grid(base: Config) -> Grid:
    return table4(base, "tiny")


@pytest.fixture(scope="session")
def cells(places: dict[str, Place], grid: Grid) -> list[Cell]:
    """The five arms of Table 4 on one set, one seed."""
    return plan([grid], places, [0])


@pytest.fixture(scope="session")
def undisturbed(
    cells: list[Cell], grid: Grid, places: dict[str, Place], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """Those cells, run in this process from first to last. Tests read it, or copy it."""
    store = Store(tmp_path_factory.mktemp("studies") / "undisturbed")
    store.remember([grid], places)
    assert run(cells, store, progress=False) == {}
    return store


@pytest.fixture(scope="session")
def results() -> Callable[[Store], dict[str, Any]]:
    """What must be the same however a store came about, by cell: every number to its last bit."""

    def strip(record: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in record.items() if k not in VOLATILE}
        return {**kept, "history": {k: v for k, v in record["history"].items() if k != "images_per_s"}}

    return lambda store: {Cell.of(r).name: strip(r) for r in store.records()}


@pytest.fixture(scope="session")
def keep(undisturbed: Store, base: Config) -> Callable[..., Cell]:
    """Write a record with chosen metrics into a store; all else in it was measured."""
    template = undisturbed.records()[0]

    def write(
        store: Store, study: str, column: str, name: str, seed: int, *metrics: float | None, **other: Any
    ) -> Cell:
        grid = TABLES[study](base.replace(**other.pop("config", {})), "tiny")
        store.remember([grid], {})
        config = with_train(grid.columns[column], seed=seed)
        numbers = dict(zip(METRIC_LABELS, metrics, strict=True))
        about = {"set": name, "seed": seed, "config": config, "method": config["method"]}
        record = {**template, **about, **numbers, **scores_of(metrics[0]), **other}
        cell = Cell.of(record)
        store.write(cell, record)
        return cell

    return write


def scores_of(auroc: float | None) -> dict[str, Any]:
    """Scores of 500 good and 200 scratched images with an image AUROC of up to five decimals; None: of good ones."""
    good = {f"test/good/{i:03}.png": float(i) for i in range(500)}
    if auroc is None:
        return {"scores": good, "images": 500, "per_defect": {}, "maps": {}}
    won, more = divmod(round(auroc * 100_000), 200)  # how many good ones each of the others beats
    scratched = {f"test/scratch/{i:03}.png": won + (i < more) - 0.5 for i in range(200)}
    return {"scores": good | scratched, "images": 700, "per_defect": {"scratch": auroc}}


class Study:
    """A study in processes of its own; what is left of them is killed in the end, and nothing else."""

    def __init__(self, words: Sequence[object], log: Path) -> None:
        command = [sys.executable, "-m", "mlffn_lite", "study", *map(str, words)]
        environment = {**os.environ, **ALONE}
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        self.seen: dict[int, psutil.Process] = {}

    def family(self) -> list[psutil.Process]:
        """The live processes that this one started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.seen[child.pid] = child
        return [
            p
            for p in self.seen.values()
            if p.is_running() and _of(p, psutil.Process.status, psutil.STATUS_ZOMBIE) != psutil.STATUS_ZOMBIE
        ]

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds, while the run goes on."""
        until = time.monotonic() + PATIENCE
        while not (held := condition()):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < until, self.text()
            self.family()
            time.sleep(0.02)
        return held

    def end(self) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """End the run itself as a failing machine would."""
        self.family()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def clear(self) -> None:
        family = self.family()
        for process in (*family, self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(PATIENCE)


def _of(process: psutil.Process, ask: Callable[[psutil.Process], Any], gone: Any) -> Any:
    try:
        return ask(process)
    except psutil.NoSuchProcess:
        return gone


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Callable[..., Study]]:
    """Start ``python -m mlffn_lite study WORDS`` as a user does."""
    started: list[Study] = []

    def start(*words: object) -> Study:
        started.append(Study(words, tmp_path / f"log{len(started)}.txt"))
        return started[-1]

    yield start
    for one in started:
        one.clear()
