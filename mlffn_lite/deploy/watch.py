"""A folder that is watched: every image that appears in it is judged once, as soon as it is complete."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

from .. import escaped
from ..datasets.folder import list_images
from ..detector import AnomalyDetector
from ..errors import DataError, MlffnError, extra
from ..heatmaps import ERROR, Outputs, Tables, judge, kept_lines
from ..ownership import own
from ..storage import write_atomic

SETTLE = 1.0
"""Seconds for which size and time of a file must not change before it is complete."""
PATIENCE = 10.0
"""Seconds without a change after which a file that cannot be read is judged ERROR."""
RESCAN = 30.0
"""Seconds between looks at the folder, for what the system does not tell of."""
MOVING = ".moving"
"""File in the output that names the image that is moved next; a crash before leaves it there."""

Mark = tuple[int, int]
"""Size and time of a file."""


class Watcher:
    """Judges what appears in a folder.

    ``scores.csv`` in the output is the journal: an image that is OK or NOK there is not judged again, but for one that
    was moved away, whose name may come again. Pictures are written before the line, so what has one is whole. An ERROR
    is tried again where the file has changed, and at the next start.

    Parameters
    ----------
    detector : AnomalyDetector
        A fitted one.
    source, folder : Path
        Images come into the first; tables and pictures go to the second.
    outputs : Outputs
        What is written for every image.
    move : Path, optional
        Judged images are moved there, into ``OK``, ``NOK`` or ``ERROR``.
    recursive : bool
        Images in sub-folders are judged too; they are moved to sub-folders of the same names.
    settle : float
        See :data:`SETTLE`.
    say : callable, optional
        Is given the line of every judged image.

    Attributes
    ----------
    stop : Event
        Set, it ends :meth:`run` after the image that is being judged.
    counts : Counter
        Images judged since the start, by verdict.
    """

    def __init__(
        self,
        detector: AnomalyDetector,
        source: Path,
        folder: Path,
        *,
        outputs: Outputs,
        move: Path | None = None,
        recursive: bool = False,
        settle: float = SETTLE,
        say: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        if not source.is_dir():
            raise DataError(f"{source} is no folder; give the one that images come into")
        for other in filter(None, (folder, move)):
            if other.resolve() == source.resolve() or (recursive and source.resolve() in other.resolve().parents):
                where = "lies in" if other.resolve() != source.resolve() else "is"
                raise DataError(f"{other} {where} the folder that is watched; write and move elsewhere")
        self.detector, self.source, self.folder = detector, source, folder
        self.outputs, self.move, self.recursive, self.settle, self.say = outputs, move, recursive, settle, say
        self.stop, self.counts = Event(), Counter[str]()
        self._done: set[str] = set()
        self._lines = 0
        self._names: set[str] = set()
        self._numbers = Counter[str]()
        self._bad: dict[Path, Mark] = {}
        self._waiting: dict[Path, tuple[Mark, float]] = {}

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Judge what is there and what comes, until :attr:`stop` is set; ``ready`` is called once the output is ours.

        Raises
        ------
        MlffnError
            If another watcher writes to the same output, or a file cannot be written or moved.
        """
        with extra("serve"):
            from watchfiles import watch
        with own(self.folder):
            ready()
            self._run(watch)

    def _run(self, watch: Callable[..., Iterator[Any]]) -> None:
        rows, regions = kept_lines(self.folder)
        for row in rows:
            self._name(Path(row["image"]))  # as they were given
        self._done, self._lines = {row["image"] for row in rows}, len(rows)
        self._finish_move(rows)
        wake = round(1000 * min(self.settle, 1.0))
        with Tables(self.folder, rows, regions) as tables:
            self._forget(tables)
            changes = watch(
                self.source,
                stop_event=self.stop,
                recursive=self.recursive,
                rust_timeout=wake,
                yield_on_timeout=True,
                debounce=200,
            )
            looked = -RESCAN
            for changed in changes:
                if changed or self._waiting or time.monotonic() - looked > RESCAN:
                    self._scan(tables)
                    looked = time.monotonic()

    def _scan(self, tables: Tables) -> None:
        """Judge every image that is complete, and remember the others."""
        waiting: dict[Path, tuple[Mark, float]] = {}
        for path in self._images():
            if self.stop.is_set():
                break
            if self.move is None and escaped.name(path) in self._done:
                continue
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            mark, now = (about.st_size, about.st_mtime_ns), time.monotonic()
            before, since = self._waiting.get(path, (mark, now))
            since = since if before == mark else now
            if self._bad.get(path) == mark:
                continue
            if now - since < self.settle or not self._judge(tables, path, mark, now - since >= PATIENCE):
                waiting[path] = (mark, since)
        self._waiting = waiting

    def _images(self) -> list[Path]:
        """List the images; again where a folder vanished meanwhile."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                return list_images(self.source, self.recursive)

    def _judge(self, tables: Tables, path: Path, mark: Mark, last: bool) -> bool:
        """Judge an image; False if it cannot be read and this is not the ``last`` attempt, or it is gone."""
        found = judge(self.detector, path, self.outputs)
        if not path.exists() or (not found.readable and not last):
            return False
        verdict = found.row["verdict"]
        if verdict == ERROR:
            self._bad[path] = mark
        else:
            found.write(self.folder, self._name(path), self.detector, self.outputs)
            self._done.add(escaped.name(path))
            if self.move is not None:
                write_atomic(self.folder / MOVING, f"{self._lines}\n{path}")
            self._lines += 1
        tables.add(found.row, found.regions)
        self._forget(tables)
        self.counts[verdict] += 1
        if self.say is not None:
            self.say(found.row)
        if self.move is not None:
            self._put_away(self.move / verdict, path)
        return True

    @staticmethod
    def _forget(tables: Tables) -> None:
        """Drop lines that are on disk: a watcher may run for months."""
        tables.rows.clear()
        tables.regions.clear()

    def _put_away(self, folder: Path, path: Path) -> None:
        """Move a judged image into a folder; one of the same name that is there keeps its own."""
        if path.is_relative_to(self.source):
            folder /= path.parent.relative_to(self.source)
        target, number = folder / path.name, 2
        while target.exists():
            target, number = folder / f"{path.stem}_{number}{path.suffix}", number + 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
        except OSError as error:
            if path.exists():
                raise MlffnError(f"cannot move {path} to {folder}: {error.strerror or error}; free space") from error
        (self.folder / MOVING).unlink(missing_ok=True)

    def _finish_move(self, rows: list[dict[str, Any]]) -> None:
        """Move the image that a crash left where it was, after its verdict was written."""
        marker = self.folder / MOVING
        if self.move is None or not marker.exists():
            return
        before, _, name = marker.read_text("utf-8", "surrogateescape").partition("\n")
        if before.isdigit() and len(rows) > int(before) and rows[-1]["image"] == name and Path(name).exists():
            self._put_away(self.move / rows[-1]["verdict"], Path(name))
        marker.unlink(missing_ok=True)

    def _name(self, path: Path) -> str:
        """Return a name for an image's files that none had before."""
        name = path.stem
        while name in self._names:
            self._numbers[path.stem] += 1
            name = f"{path.stem}_{self._numbers[path.stem] + 1}"
        self._names.add(name)
        return name
