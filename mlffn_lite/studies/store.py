"""The store of a study: one JSON file per finished cell. Stores merge by copying their files together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ..errors import StudyError
from ..storage import write_json
from .cell import METRICS, NUMERICS, Cell
from .grid import Place

CELLS, DATA, LOCKS = "cells", "data", "locks"
FAILED = ".failed.json"


class Failure(NamedTuple):
    """Why a cell has no record."""

    reason: str
    traceback: str = ""


class Store:
    """A folder of cells.

    ``cells/NAME.json`` is a finished cell, ``cells/NAME.failed.json`` why one failed last, ``data/SET.json`` the digest
    of every file of a data set, ``locks/`` says which cells are under way on this file system.

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

    def write(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Keep what :func:`~mlffn_lite.studies.cell.measure` returned."""
        write_json(self.path(cell), record)
        self.path(cell).with_suffix(FAILED).unlink(missing_ok=True)

    def fail(self, cell: Cell, failure: Failure) -> None:
        """Keep why a cell failed; it will run again next time."""
        write_json(self.path(cell).with_suffix(FAILED), {"cell": self.path(cell).stem, **failure._asdict()})

    def failures(self) -> dict[str, str]:
        """Return why cells failed last, by name."""
        paths = sorted((self.folder / CELLS).glob(f"*{FAILED}"))
        return {p.name.removesuffix(FAILED): str(_load(p, "reason")) for p in paths}

    def claim(self, cell: Cell) -> FileLock | None:
        """Lock a cell that is not finished; None if it is, or if another process has it. The lock dies with us."""
        folder = self.folder / LOCKS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{self.path(cell).stem}.lock", thread_local=False)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            raise StudyError(f"cannot write {folder}: {error.strerror or error}; choose another --out") from error
        if self.done(cell):
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
            raise StudyError(f"{self.folder} holds no finished cell; give the --out of `mlffn study` or `mlffn peers`")
        return [_read(path) for path in paths]

    def check(self, places: Mapping[str, Place]) -> None:
        """Refuse a store that holds damaged or incompatible cells, or cells of other data under the same name."""
        if self.paths():
            stored = {r["set"]: r["fingerprint"] for r in self.records()}
            for name, place in places.items():
                if stored.get(name, place.fingerprint) != place.fingerprint:
                    raise StudyError(self._difference(name, place))

    def remember(self, places: Mapping[str, Place]) -> None:
        """Keep the digests of the data, to say later which file changed."""
        for name, place in places.items():
            path = self.folder / DATA / f"{name}.json"
            if not path.exists():
                write_json(path, {"fingerprint": place.fingerprint, "files": place.digests})

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


def _load(path: Path, key: str) -> Any:
    """Return one value of a file that stands beside the cells."""
    try:
        return json.loads(path.read_text("utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is damaged ({error}); delete it, no result is lost") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
        numerics = record.get("numerics") or record["versions"]["mlffn_lite"]
        if numerics != NUMERICS:
            raise StudyError(f"{path} comes from numerics {numerics}, this is {NUMERICS}; move such cells elsewhere")
        missing = {*METRICS, "shape", "images", "device"} - record.keys()
        if missing or Cell.of(record).name != path.name:
            raise ValueError("not a cell of that name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path} is damaged or foreign ({error}); delete it and run its cell again") from error
    return dict(record)
