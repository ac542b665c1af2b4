"""The store of a study: one JSON file per finished cell. Stores merge by copying their files together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ..config import Config
from ..datasets.folder import fingerprint_of
from ..errors import ConfigError, StudyError
from ..ownership import remove_old_orphans
from ..sealed import read_regular
from ..state import checked
from ..storage import read_sealed, write_json, write_sealed
from .cell import NUMERICS, Cell, digest_of
from .grid import Grid, Place, merge
from .record import check_record

CELLS, DATA, GRIDS, LOCKS, PARTIAL = "cells", "data", "grids", "locks", "partial"
FAILED = ".failed.json"


class Failure(NamedTuple):
    """Why a cell has no record."""

    reason: str
    traceback: str = ""


class Store:
    """A folder of cells, made when the first file is written.

    ``cells/NAME.json`` is a finished cell, ``cells/NAME.failed.json`` why one failed last, ``grids/`` what was asked
    for, ``data/SET.json`` the digest of every file of a data set, ``locks/`` says which cells are under way on this
    file system, ``partial/`` holds their checkpoints.
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
        write_sealed(self.path(cell), record)
        self._failed(cell).unlink(missing_ok=True)

    def read(self, cell: Cell) -> dict[str, Any]:
        """Return a finished cell, checked as :meth:`records` does."""
        return _record(self.path(cell))

    def seal(self) -> int:
        """Add the digest that cells of an earlier version lack; returns how many there were.

        Only what is otherwise a whole and consistent cell is sealed; a digest that is wrong stays wrong.
        """
        count = 0
        for path in self.paths():
            with _content(path, " and run its cell again") as record:
                if "seal" not in record:
                    _check(path, record)
                    write_sealed(path, record)
                    count += 1
        return count

    def fail(self, cell: Cell, failure: Failure) -> None:
        """Keep why a cell failed; it will run again next time."""
        write_json(self._failed(cell), {"cell": self.path(cell).stem, **failure._asdict()})

    def keep(self, cell: Cell, outcome: Mapping[str, Any] | Failure) -> None:
        """Keep how a cell ended."""
        if isinstance(outcome, Failure):
            self.fail(cell, outcome)
        else:
            self.write(cell, outcome)
            shutil.rmtree(self.partial(cell), ignore_errors=True)

    def partial(self, cell: Cell) -> Path:
        """Return the folder for what a cell under way has learned so far."""
        return self.folder / PARTIAL / self.path(cell).stem

    def retry(self, cells: Sequence[Cell]) -> None:
        """Let cells that have failed run again, and remove what a run that was killed has left half-written."""
        for name in (CELLS, DATA, GRIDS):
            remove_old_orphans(self.folder / name)
        for cell in cells:
            self._failed(cell).unlink(missing_ok=True)

    def _failed(self, cell: Cell) -> Path:
        return self.path(cell).with_suffix(FAILED)

    def failures(self) -> dict[str, str]:
        """Return why cells failed last, by name."""
        paths = sorted((self.folder / CELLS).glob(f"*{FAILED}"))
        return {p.name.removesuffix(FAILED): str(_beside(p, "reason")) for p in paths}

    def claim(self, cell: Cell) -> FileLock | None:
        """Lock a cell that is not settled; None if it is, or if another process has it. The lock dies with us."""
        folder = self.folder / LOCKS
        lock = FileLock(folder / f"{self.path(cell).stem}.lock", thread_local=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            raise StudyError(f"cannot write {folder}: {error.strerror or error}; choose another --out") from error
        if not self.settled(cell):
            return lock
        self.release(lock)
        return None

    def release(self, lock: FileLock) -> None:
        """Give a claim back. Its file stays: were it deleted, two processes could hold the same claim."""
        lock.release()

    def under_way(self) -> list[str]:
        """Return the names of the cells that some process holds now."""
        held = []
        for path in sorted((self.folder / LOCKS).glob("*.lock")):
            try:
                with FileLock(path, blocking=False):
                    pass
            except Timeout:
                held.append(path.stem)
        return held

    def paths(self) -> list[Path]:
        """Return the files of all finished cells, by name."""
        return [p for p in sorted((self.folder / CELLS).glob("*.json")) if not p.name.endswith(FAILED)]

    def records(self) -> list[dict[str, Any]]:
        """Return all finished cells, by name.

        A StudyError says that there is none, or a file is damaged, foreign, renamed, or from another version than the
        others. What an earlier version measured can be reported, but not gone on with.
        """
        if not (paths := self.paths()):
            raise StudyError(f"{self.folder} holds no finished cell; give the --out of `mlffn study`")
        found = [_record(path) for path in paths]
        if len({record["numerics"] for record in found}) > 1:
            _refuse_other(paths, found)
        return found

    def check(self, places: Mapping[str, Place]) -> None:
        """Refuse a store that holds damaged or incompatible cells, or cells of other data under the same name."""
        records = self.records() if self.paths() else []
        _refuse_other(self.paths(), records)
        stored = {r["set"]: r["fingerprint"] for r in records}
        for name, place in places.items():
            if stored.get(name, place.fingerprint) == place.fingerprint:
                continue
            path = self.folder / DATA / f"{name}.json"
            before = _files(path) if path.exists() else place.digests
            changed = sorted({file for file, _ in before.items() ^ place.digests.items()})
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            said = f" ({changed[0]} differs{more})" if changed else ""
            raise StudyError(
                f"{place.path} has changed since the cells in {self.folder} ran{said}; restore it or choose another"
                " --out"
            )

    def remember(self, grids: Sequence[Grid], places: Mapping[str, Place]) -> None:
        """Keep what was asked for, to make tables of it, and the digests of the data, to say which file changed."""
        asked = map(dataclasses.asdict, grids)
        files = {f"{GRIDS}/{content['name']}-{digest_of(content)}": content for content in asked}
        files |= {f"{DATA}/{k}": {"fingerprint": p.fingerprint, "files": p.digests} for k, p in places.items()}
        for name, content in files.items():
            path = self.folder / f"{name}.json"
            if not path.exists():
                write_json(path, content)

    def grids(self) -> list[Grid]:
        """Return the grids that were asked for; those of one name and setting are one."""
        found = []
        for path in sorted((self.folder / GRIDS).glob("*.json")):
            with _content(path, " and give its command again") as content:
                if not path.stem.endswith(f"-{digest_of(content)}"):
                    raise ValueError("it is not what its name is the digest of")
                grid = checked(Grid, content)
                for config in (grid.base, *grid.columns.values()):
                    Config().replace(**config)
                found.append(Grid(**{**content, "steps": [tuple(pair) for pair in content["steps"]]}))
        return merge(found)


@contextlib.contextmanager
def _content(path: Path, advice: str, whole: Callable[[Path], Any] | None = None) -> Iterator[Any]:
    """Give what a JSON file holds; one that cannot be read or lacks something is an error that says what to do."""
    try:
        yield json.loads(read_regular(path)) if whole is None else whole(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError, RecursionError) as error:
        raise StudyError(f"{path} is damaged or foreign ({error}); delete it{advice}") from error


def _beside(path: Path, key: str) -> Any:
    """Return one value of a file that stands beside the cells."""
    with _content(path, ", no result is lost") as content:
        return content[key]


def _files(path: Path) -> dict[str, str]:
    """Return the digests of a data set's files, which its fingerprint confirms."""
    with _content(path, ", no result is lost") as content:
        if fingerprint_of(content["files"]) != content["fingerprint"]:
            raise ValueError("its fingerprint is not that of its files")
        return dict(content["files"])


def _record(path: Path) -> dict[str, Any]:
    try:
        with _content(path, " and run its cell again", read_sealed) as record:
            _check(path, record)
            return dict(record)
    except StudyError as error:
        if "carries no digest" in str(error):
            advice = "or, if an earlier version wrote it, give all cells here their digests with `mlffn study seal`"
            raise StudyError(f"{error}, {advice}") from error
        raise


def _check(path: Path, record: Mapping[str, Any]) -> None:
    """Raise what :func:`_content` understands if a record is none, or not that of its file's name."""
    if Cell.of(record).name != path.name:
        _refuse_other([path], [record])
        raise ValueError("not a cell of that name")
    check_record(record)


def _refuse_other(paths: Sequence[Path], records: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the first cell that another version measured."""
    for path, record in zip(paths, records, strict=True):
        if (numerics := record["numerics"]) != NUMERICS:
            raise StudyError(f"{path} comes from numerics {numerics}, this is {NUMERICS}; move such cells elsewhere")
