"""The store of a study: one JSON file per finished cell. Stores merge by copying their files together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import StudyError, extra
from ..labels import METRIC_LABELS
from ..storage import write_json
from .cell import NUMERICS, Cell, digest_of
from .grid import Grid, Place, merge

with extra("studies"):
    from filelock import FileLock, Timeout

CELLS, DATA, GRIDS, LOCKS = "cells", "data", "grids", "locks"
FAILED = ".failed.json"


class Failure(NamedTuple):
    """Why a cell has no record."""

    reason: str
    traceback: str = ""


class Store:
    """A folder of cells.

    ``cells/NAME.json`` is a finished cell, ``cells/NAME.failed.json`` why one failed last, ``grids/`` what was asked
    for, ``data/SET.json`` the digest of every file of a data set, ``locks/`` says which cells are under way on this
    file system, and how often the processes that ran one have died.

    Parameters
    ----------
    folder : path
        Made when the first file is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, cell: Cell) -> Path:
        """Return the file of a cell, finished or not."""
        return self.folder / CELLS / cell.name

    def done(self, cell: Cell) -> bool:
        """Whether a cell is finished; it never runs again."""
        return self.path(cell).exists()

    def settled(self, cell: Cell) -> bool:
        """Whether a cell is finished or has failed since :meth:`retry`."""
        return self.done(cell) or self._failed(cell).exists()

    def write(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Keep what :func:`~mlffn_lite.studies.cell.measure` returned."""
        write_json(self.path(cell), record)
        self._failed(cell).unlink(missing_ok=True)

    def fail(self, cell: Cell, failure: Failure) -> None:
        """Keep why a cell failed; it will run again next time."""
        write_json(self._failed(cell), {"cell": self.path(cell).stem, **failure._asdict()})

    def keep(self, cell: Cell, outcome: Mapping[str, Any] | Failure) -> None:
        """Keep how a cell ended."""
        if isinstance(outcome, Failure):
            self.fail(cell, outcome)
        else:
            self.write(cell, outcome)

    def retry(self, cells: Sequence[Cell]) -> None:
        """Let cells that have failed run again."""
        for cell in cells:
            self._failed(cell).unlink(missing_ok=True)

    def tries(self, cell: Cell) -> int:
        """Return how many processes have died while they ran a cell."""
        path = self._tries(cell)
        return len(path.read_text().split()) if path.exists() else 0

    def begin(self, cell: Cell) -> None:
        """Count a try of a claimed cell: whoever dies leaves its process number behind."""
        with self._tries(cell).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def end(self, cell: Cell) -> None:
        """Forget the tries of a claimed cell."""
        self._tries(cell).unlink(missing_ok=True)

    def forgive(self, processes: Collection[int]) -> None:
        """Forget the tries of processes that were told to end."""
        for path in (self.folder / LOCKS).glob("*.tries"):
            with contextlib.suppress(FileNotFoundError):  # its cell has ended
                if others := [n for n in path.read_text().split() if int(n) not in processes]:
                    path.write_text("".join(f"{n}\n" for n in others))
                else:
                    path.unlink()

    def _failed(self, cell: Cell) -> Path:
        return self.path(cell).with_suffix(FAILED)

    def _tries(self, cell: Cell) -> Path:
        return self.folder / LOCKS / f"{self.path(cell).stem}.tries"

    def failures(self) -> dict[str, str]:
        """Return why cells failed last, by name."""
        paths = sorted((self.folder / CELLS).glob(f"*{FAILED}"))
        return {p.name.removesuffix(FAILED): str(_load(p, "reason")) for p in paths}

    def claim(self, cell: Cell) -> FileLock | None:
        """Lock a cell that is not settled; None if it is, or if another process has it. The lock dies with us."""
        folder = self.folder / LOCKS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{self.path(cell).stem}.lock", thread_local=False)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            raise StudyError(f"cannot write {folder}: {error.strerror or error}; choose another --out") from error
        if self.settled(cell):
            self.release(lock)
            return None
        return lock

    def release(self, lock: FileLock) -> None:
        """Give a claim back. Its file stays: were it deleted, two processes could hold the same claim."""
        lock.release()

    def under_way(self) -> list[str]:
        """Return the names of the cells that some process holds now."""
        held = []
        for path in sorted((self.folder / LOCKS).glob("*.lock")):
            lock = FileLock(path)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                held.append(path.stem)
            else:
                lock.release()
        return held

    def paths(self) -> list[Path]:
        """Return the files of all finished cells, by name."""
        return [p for p in sorted((self.folder / CELLS).glob("*.json")) if not p.name.endswith(FAILED)]

    def records(self) -> list[dict[str, Any]]:
        """Return all finished cells, by name.

        Raises
        ------
        StudyError
            If there is none, or a file is damaged, foreign, renamed, or from an incompatible version.
        """
        paths = self.paths()
        if not paths:
            raise StudyError(f"{self.folder} holds no finished cell; give the --out of `mlffn study`")
        return [_read(path) for path in paths]

    def check(self, places: Mapping[str, Place]) -> None:
        """Refuse a store that holds damaged or incompatible cells, or cells of other data under the same name."""
        if self.paths():
            stored = {r["set"]: r["fingerprint"] for r in self.records()}
            for name, place in places.items():
                if stored.get(name, place.fingerprint) != place.fingerprint:
                    raise StudyError(self._difference(name, place))

    def remember(self, grids: Sequence[Grid], places: Mapping[str, Place]) -> None:
        """Keep what was asked for, to make tables of it, and the digests of the data, to say which file changed."""
        for grid in grids:
            content = dataclasses.asdict(grid)
            path = self.folder / GRIDS / f"{grid.name}-{digest_of(content)}.json"
            if not path.exists():
                write_json(path, content)
        for name, place in places.items():
            path = self.folder / DATA / f"{name}.json"
            if not path.exists():
                write_json(path, {"fingerprint": place.fingerprint, "files": place.digests})

    def grids(self) -> list[Grid]:
        """Return the grids that were asked for; those of one name and setting are one."""
        paths = sorted((self.folder / GRIDS).glob("*.json"))
        return merge([_grid(path) for path in paths])

    def _difference(self, name: str, place: Place) -> str:
        """Say which files of a data set are not those that the cells ran on."""
        found, path = "", self.folder / DATA / f"{name}.json"
        if path.exists():
            before = _load(path, "files")
            changed = sorted(p for p in before.keys() | place.digests.keys() if before.get(p) != place.digests.get(p))
            found = f" ({changed[0]} differs{f' and {len(changed) - 1} more' * (len(changed) > 1)})" if changed else ""
        return (
            f"{place.path} has changed since the cells in {self.folder} ran{found}; restore it or choose another --out"
        )


def _grid(path: Path) -> Grid:
    try:
        content = json.loads(path.read_text("utf-8"))
        return Grid(**{**content, "steps": [(before, after) for before, after in content["steps"]]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is damaged ({error}); delete it and give its command again") from error


def _load(path: Path, key: str) -> Any:
    """Return one value of a file that stands beside the cells."""
    try:
        return json.loads(path.read_text("utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is damaged ({error}); delete it, no result is lost") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
        if (numerics := record["numerics"]) != NUMERICS:
            raise StudyError(f"{path} comes from numerics {numerics}, this is {NUMERICS}; move such cells elsewhere")
        missing = {*METRIC_LABELS, "shape", "images", "device"} - record.keys()
        if missing or Cell.of(record).name != path.name:
            raise ValueError("not a cell of that name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path} is damaged or foreign ({error}); delete it and run its cell again") from error
    return dict(record)
