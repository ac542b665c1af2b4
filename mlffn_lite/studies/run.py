"""Running cells: in this process, in joblib's processes, or on a Ray cluster; the same results from all of them.

Whoever runs cells claims each in the store first, so that several runs may share a store, and keeps its record as soon
as it is there. Killed at any point, a run loses the cells under way and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import resource_tracker
from typing import Any

from filelock import FileLock
from joblib import Parallel, delayed

from ..errors import ConfigError, MlffnError
from .cell import Cell, measure
from .progress import Display
from .store import Failure, Store

BACKENDS = ("local", "joblib", "ray")
_TRIES = 3
_PATIENCE = 0.5  # seconds between looks at cells that another run has claimed

Outcome = tuple[Cell, "dict[str, Any] | Failure"]
Executor = Callable[[Iterator[Cell]], Generator[Outcome, None, None]]
"""Takes cells one by one, as it has room for them, and yields their outcomes as they come."""


class WorkerLost(Exception):  # noqa: N818 - an event, like KeyboardInterrupt
    """A worker process died, and which of the cells under way it had is not known."""


@dataclass(frozen=True)
class Workers:
    """Where cells run.

    Attributes
    ----------
    backend : {"local", "joblib", "ray"}
        This process, processes on this machine, or a Ray cluster.
    count : int
        Cells at a time.
    gpus : float
        Ray only: share of a GPU that a cell asks for.
    address : str, optional
        Ray only: a running cluster; without it one is started on this machine and stopped afterwards.
    """

    backend: str = "local"
    count: int = 1
    gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(f"unknown backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        if self.count < 1:
            raise ConfigError(f"--workers {self.count} must be at least 1")
        if self.backend == "local" and self.count > 1:
            raise ConfigError(f"--workers {self.count} needs --backend joblib or ray; local runs one cell at a time")
        if self.backend != "ray" and (self.gpus or self.address):
            raise ConfigError("--gpus and --address are for --backend ray")

    def executor(self, threads: int) -> Executor:
        """Return the executor; each cell computes with ``threads`` threads."""
        if self.backend == "local":
            return _here
        if self.backend == "joblib":
            return partial(_on_joblib, self.count)
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ConfigError("--backend ray needs Ray: pip install 'mlffn-lite[distributed]'") from error
        return partial(_on_ray, self, threads)


def attempt(cell: Cell) -> Outcome:
    """Measure a cell; an error is an outcome too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cell, measure(cell)
    except Exception as error:  # whatever it is, it must not stop the other cells
        words = " ".join(str(error).split())
        known = isinstance(error, MlffnError) and words
        return cell, Failure(words if known else f"{type(error).__name__}: {words}", traceback.format_exc())


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
    if not cells:
        return {}
    workers = workers or Workers()
    executor = workers.executor(cells[0].threads)
    with Display(len(cells), enabled=progress) as display:
        state = _Run(cells, store, display)
        while todo := state.todo():
            outcomes = executor(state.claim(todo))
            try:
                for cell, outcome in outcomes:
                    state.settle(cell, outcome)
            except WorkerLost:
                state.lost()
            finally:
                outcomes.close()
                state.release()
            if state.error is not None:
                raise state.error
            if state.idle:
                time.sleep(_PATIENCE)
    return state.failures


class _Run:
    """What one run knows of its cells."""

    def __init__(self, cells: Sequence[Cell], store: Store, display: Display) -> None:
        self.cells, self.store, self.display = cells, store, display
        self.failures: dict[str, str] = {}
        self.claims: dict[str, tuple[Cell, FileLock]] = {}
        self.losses: Counter[str] = Counter()
        self.error: MlffnError | None = None
        self.idle = True

    def todo(self) -> list[Cell]:
        """Return the cells that are neither finished nor failed; one that has its last try alone, to blame no other."""
        left = [c for c in self.cells if not self.store.done(c) and self.store.path(c).stem not in self.failures]
        self.display.left(len(left))
        self.idle = True
        last = [c for c in left if self.losses[c.name] == _TRIES - 1]
        return last[:1] or left

    def claim(self, todo: Iterable[Cell]) -> Iterator[Cell]:
        """Yield the cells that no other run has, claiming each when it is asked for.

        Executors may ask from threads of their own, where an exception would be lost: it is kept.
        """
        for cell in todo:
            try:
                lock = self.store.claim(cell)
            except MlffnError as error:
                self.error = error
                return
            if lock is not None:
                self.idle = False
                self.claims[cell.name] = cell, lock
                self.display.started(cell)
                yield cell

    def settle(self, cell: Cell, outcome: dict[str, Any] | Failure) -> None:
        """Keep an outcome and give the claim back."""
        if isinstance(outcome, Failure):
            self.failures[self.store.path(cell).stem] = outcome.reason
            self.store.fail(cell, outcome)
        else:
            self.store.write(cell, outcome)
        self.store.release(self.claims.pop(cell.name)[1])
        self.display.finished(cell, outcome)

    def lost(self) -> None:
        """Count the cells under way when a worker died; those that were there too often have failed."""
        for name, (cell, _) in list(self.claims.items()):
            self.losses[name] += 1
            if self.losses[name] >= _TRIES:
                reason = f"a process died {_TRIES} times while it ran, perhaps for want of memory"
                self.settle(cell, Failure(reason))

    def release(self) -> None:
        """Give all claims back."""
        for cell, lock in self.claims.values():
            self.store.release(lock)
            self.display.dropped(cell)
        self.claims.clear()


def _here(cells: Iterator[Cell]) -> Generator[Outcome, None, None]:
    """Run cells in this process, one after another."""
    yield from map(attempt, cells)


def _on_joblib(count: int, cells: Iterator[Cell]) -> Generator[Outcome, None, None]:
    """Run cells in joblib's processes, as many as ``count`` at a time."""
    pool = Parallel(n_jobs=count, backend="loky", batch_size=1, pre_dispatch=count, return_as="generator_unordered")
    outcomes = None
    try:
        with _children_without_ctrl_c():
            outcomes = pool(delayed(_attempt_in_worker)(cell) for cell in cells)
        yield from outcomes
    except BrokenProcessPool as error:
        raise WorkerLost from error
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # it came while joblib started its processes
            raise KeyboardInterrupt from error
        raise
    finally:
        if outcomes is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib warns of what it drops
                outcomes.close()


@contextlib.contextmanager
def _children_without_ctrl_c() -> Iterator[None]:
    """Start processes that never take Ctrl-C.

    A terminal sends it to them too, but only this process should answer; joblib then ends the others.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it lets Ctrl-C through again, and the first process would do that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _attempt_in_worker(cell: Cell) -> Outcome:
    _end_with_parent()
    return attempt(cell)


@cache
def _end_with_parent() -> None:
    """End this process when the one that started it does; joblib's and Ray's would finish their cell first."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_ray(workers: Workers, threads: int, cells: Iterator[Cell]) -> Generator[Outcome, None, None]:
    """Run cells as Ray tasks; Ray runs a task again elsewhere if its worker or node dies."""
    import ray

    own = not ray.is_initialized()
    if own:
        _start_ray(workers, threads)
    task = ray.remote(num_cpus=threads, num_gpus=workers.gpus, max_retries=_TRIES)(_attempt_in_worker)
    pending: dict[Any, Cell] = {}
    try:
        while True:
            while len(pending) < workers.count and (cell := next(cells, None)) is not None:
                pending[task.remote(cell)] = cell
            if not pending:
                return
            (ready, *_), _ = ray.wait(list(pending))
            cell = pending.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                yield cell, Failure(" ".join(str(error).split()))
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if own:
            ray.shutdown()


def _start_ray(workers: Workers, threads: int) -> None:
    import ray

    cores = None if workers.address else workers.count * threads
    host, _, port = (workers.address or "").rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdecimal():  # where nothing listens, Ray itself would try for a quarter of an hour
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(
            address=workers.address or "local",
            num_cpus=cores,
            include_dashboard=None if workers.address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises anything, even Exception itself
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"cannot reach a Ray cluster at {workers.address or 'this machine'}: {reason}") from error
