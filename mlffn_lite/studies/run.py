"""Running cells: in this process, in several on this machine, or on a Ray cluster; the same results from all of them.

Whoever runs cells claims each in the store first and keeps its record as soon as it is there; processes, runs and
machines that share a store share its cells out in that way and know nothing else of each other. Killed at any point, a
run loses the cells under way and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import ConfigError, MlffnError, StudyError, extra, first_line
from ..labels import METRIC_LABELS
from .cell import Cell, measure
from .store import Failure, Store
from .worker import end_with

BACKENDS = ("local", "processes", "ray")
_TRIES = 3
_PATIENCE = 0.5  # seconds between looks at cells, processes and tasks

Outcome = dict[str, Any] | Failure
Look = Callable[[], list[Cell]]


@dataclass(frozen=True)
class Workers:
    """Where cells run."""

    backend: str = "local"
    """``local``, ``processes`` or ``ray``: this process, processes on this machine, or a Ray cluster."""
    count: int = 1
    """Cells at a time."""
    fresh: bool = False
    """Processes only: a new one for every cell, so that its peak memory is that of one method."""
    gpus: float = 0.0
    """Ray only: share of a GPU that a cell asks for."""
    address: str | None = None
    """Ray only: a running cluster; without it one is started on this machine and stopped afterwards."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(f"unknown backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        if self.count < 1:
            raise ConfigError(f"--workers {self.count} must be at least 1")
        if self.backend == "local" and self.count > 1:
            raise ConfigError(f"--workers {self.count} needs --backend processes or ray; local runs one cell at a time")
        if self.backend != "ray" and (self.gpus or self.address):
            raise ConfigError("--gpus and --address are for --backend ray")


def run(
    cells: Sequence[Cell], store: Store, workers: Workers | None = None, *, progress: bool = True
) -> dict[str, str]:
    """Run the cells that the store does not hold yet and return why some failed, by name.

    A cell that another run has claimed is waited for, and run here should that one die.

    Raises
    ------
    MlffnError
        If the store cannot be written, or the backend is not there.
    KeyboardInterrupt
        If the user stops it; finished cells are kept.
    """
    workers = workers or Workers()
    store.retry(cells)
    with _watch(cells, store, progress) as look:
        if workers.backend == "local":
            work(store, look, attempt)
        elif workers.backend == "processes":
            _run_processes(cells, store, workers, look)
        else:
            _run_on_ray(store, workers, look)
    names = {store.path(cell).stem for cell in cells}
    return {name: reason for name, reason in store.failures().items() if name in names}


def work(store: Store, look: Look, do: Callable[[Cell, Path], Outcome], *, fresh: bool = False) -> None:
    """Claim, measure and keep cells, one after another, until none is left; ``fresh`` stops after the first."""
    while left := look():
        idle = True
        for cell in left:
            if (lock := store.claim(cell)) is not None:
                idle = False
                try:
                    store.keep(cell, do(cell, store.partial(cell)))
                finally:
                    store.release(lock)
                look()
                if fresh:
                    return
        if idle:
            time.sleep(_PATIENCE)


def attempt(cell: Cell, partial: Path | None = None) -> Outcome:
    """Measure a cell, see :func:`~.cell.measure`; an error is an outcome too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return measure(cell, partial)
    except Exception as error:  # whatever it is, it must not stop the other cells
        words = " ".join(str(error).split())
        known = isinstance(error, MlffnError) and words
        return Failure(words if known else f"{type(error).__name__}: {words}", traceback.format_exc())


@contextlib.contextmanager
def _watch(cells: Sequence[Cell], store: Store, progress: bool) -> Iterator[Look]:
    """Give a function that shows the cells settled since its last call, whoever ran them, and returns those left."""
    left = [cell for cell in cells if not store.settled(cell)]
    options: dict[str, Any] = {"total": len(cells), "initial": len(cells) - len(left), "unit": "cell"}
    with tqdm(**options, disable=None if progress else True) as bar:  # None: only in a terminal

        def look() -> list[Cell]:
            for cell in [cell for cell in left if store.settled(cell)]:
                left.remove(cell)
                text = f"{cell.set} {cell.label} seed {cell.seed}: {_outcome(cell, store)}"
                bar.set_postfix_str(text, refresh=False)
                bar.update()
                if progress and bar.disable:
                    print(f"[{len(cells) - len(left)}/{len(cells)}] {text}", file=sys.stderr, flush=True)
            return list(left)

        yield look


def _outcome(cell: Cell, store: Store) -> str:
    """Return the metrics in percent and the seconds of a settled cell, or why it failed."""
    if store.done(cell):
        record = store.read(cell)
        values = ["–" if record[k] is None else f"{100 * record[k]:.1f}" for k in METRIC_LABELS]
        return f"{' / '.join(values)} ({record['fit_seconds']:.0f} s)"
    return store.failures().get(store.path(cell).stem, "failed")


def _run_processes(cells: Sequence[Cell], store: Store, workers: Workers, look: Look) -> None:
    """Keep up to ``count`` processes at work until no cell is left; none of them outlives this function."""
    planned = {cell.name: cell for cell in cells}
    running: dict[subprocess.Popen[bytes], Path] = {}  # with what each says
    deaths = Counter[str]()  # by cell; those before the first cell under no name
    order = {"folder": str(store.folder.resolve()), "cells": [dataclasses.asdict(cell) for cell in cells]}
    with tempfile.TemporaryDirectory() as scratch:
        source, logs = Path(scratch, "order.json"), (Path(scratch, f"{i}.txt") for i in itertools.count())
        source.write_text(json.dumps({**order, "fresh": workers.fresh}), "utf-8")
        try:
            while left := look():
                for worker in [w for w in running if w.poll() is not None]:
                    lines = [line for line in running.pop(worker).read_text("utf-8", "replace").split("\n") if line]
                    reason = lines[-1] if lines else "they say nothing"
                    name = next((line for line in reversed(lines) if line in planned), "")
                    if worker.returncode == 2:
                        raise StudyError(reason)
                    deaths[name] += worker.returncode != 0
                    if deaths[name] == _TRIES and not name:
                        raise StudyError(f"no process can run cells: {reason}")
                    if deaths[name] == _TRIES and not store.done(planned[name]):  # it would take all others along
                        words = f"a process died {_TRIES} times while it ran, perhaps for want of memory"
                        store.fail(planned[name], Failure(words))
                while len(running) < min(workers.count, len(left)):
                    log = next(logs)
                    running[_start(source, log, cells[0].threads)] = log
                time.sleep(_PATIENCE)
        finally:
            for worker in running:
                worker.kill()
            for worker in running:
                worker.wait()


def _start(source: Path, log: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start a worker. Ctrl-C in the terminal does not reach it: this process answers and ends it."""
    environment = {**os.environ, "PYTHONPATH": _python_path(), "OMP_NUM_THREADS": str(threads)}
    # -P: nothing in this folder hides a library.
    command = [sys.executable, "-P", "-m", "mlffn_lite.studies.worker", str(os.getpid())]
    with source.open("rb") as order, log.open("ab") as said:
        return subprocess.Popen(command, stdin=order, stdout=said, stderr=said, env=environment, start_new_session=True)


def _python_path() -> str:
    """Return ``sys.path`` for other processes, so that a method beside the user's script is found there too."""
    return os.pathsep.join(dict.fromkeys(entry or os.getcwd() for entry in sys.path))


def serve() -> int:
    """Work on the cells that standard input names: a store's ``folder``, ``cells``, and ``fresh``.

    Prints the name of each before it begins. Returns 2 and prints one line if the store cannot be used.
    """
    order = json.load(sys.stdin)
    store, cells = Store(order["folder"]), [Cell(**cell) for cell in order["cells"]]

    def announced(cell: Cell, partial: Path) -> Outcome:
        print(f"\n{cell.name}", flush=True)
        return attempt(cell, partial)

    try:
        work(store, lambda: [c for c in cells if not store.settled(c)], announced, fresh=order["fresh"])
    except MlffnError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _run_on_ray(store: Store, workers: Workers, look: Look) -> None:
    """Run cells as Ray tasks, claimed here: Ray runs a task again elsewhere if its worker or node dies."""
    if not (left := look()):
        return
    with extra("distributed"):
        import ray
    threads, own = left[0].threads, not ray.is_initialized()
    if own:
        _start_ray(workers, threads)
    environment = {"env_vars": {"PYTHONPATH": _python_path()}}
    options: Any = {"num_gpus": workers.gpus, "max_retries": _TRIES, "runtime_env": environment}
    task = ray.remote(num_cpus=threads, **options)(_attempt_on_ray)
    pending: dict[Any, tuple[Cell, Any]] = {}
    try:
        while left := look():
            for cell in left:
                if len(pending) < workers.count and (lock := store.claim(cell)) is not None:
                    pending[task.remote(cell)] = cell, lock
            if not pending:
                time.sleep(_PATIENCE)
                continue
            for reference in ray.wait(list(pending), timeout=_PATIENCE)[0]:
                cell, lock = pending.pop(reference)
                try:
                    store.keep(cell, ray.get(reference))
                except ray.exceptions.RayError as error:
                    store.fail(cell, Failure(" ".join(str(error).split())))
                finally:
                    store.release(lock)
    finally:
        for reference, (_, lock) in pending.items():
            ray.cancel(reference, force=True)
            store.release(lock)
        if own:
            ray.shutdown()


def _attempt_on_ray(cell: Cell) -> Outcome:
    end_with(os.getppid(), at_once=False)
    return attempt(cell)


def _start_ray(workers: Workers, threads: int) -> None:
    import ray

    there = workers.address or "this machine"
    own: Any = {} if workers.address else {"num_cpus": workers.count * threads, "include_dashboard": False}
    host, _, port = there.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdecimal():  # where nothing listens, Ray itself would try for a quarter of an hour
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(workers.address or "local", **own, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray raises anything, even Exception itself
        raise ConfigError(f"cannot reach a Ray cluster at {there}: {first_line(error)}") from error
