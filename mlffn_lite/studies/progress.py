"""The one live line of a study: cells done, running and left, the time left, and the last metrics."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .cell import METRICS, Cell
from .grid import columns_of
from .store import Failure


class Display:
    """Progress over ``total`` cells: a live bar in a terminal, a line per cell elsewhere.

    Parameters
    ----------
    total : int
        Cells of the study, finished ones included.
    enabled : bool
        Whether to show anything.
    """

    def __init__(self, total: int, *, enabled: bool = True) -> None:
        self.total, self.enabled = total, enabled
        self._running: set[str] = set()
        self._done = self._failed = 0
        self._last = ""
        console = Console(stderr=True, highlight=False)
        self._live = enabled and console.is_terminal
        self._bar = Progress(
            TextColumn("[bold]{task.completed:.0f}/{task.total:.0f} cells"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}, left"),
            TimeRemainingColumn(),
            TextColumn("· {task.fields[last]}"),
            console=console,
            disable=not self._live,
            speed_estimate_period=3600,
        )
        self._task = self._bar.add_task("cells", total=total, state="", last="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def left(self, count: int) -> None:
        """Say how many cells are neither finished nor failed, whoever ran them."""
        self._done = self.total - count
        self._show()

    def started(self, cell: Cell) -> None:
        """Say that a cell is under way."""
        self._running.add(cell.name)
        self._show()

    def finished(self, cell: Cell, outcome: Mapping[str, Any] | Failure) -> None:
        """Say how a cell ended."""
        self._done += 1
        self._failed += isinstance(outcome, Failure)
        text = f"{title(cell)}: {summary(outcome)}"
        if self.enabled and not self._live:
            print(f"[{self._done}/{self.total}] {text}", file=sys.stderr, flush=True)
        self.dropped(cell, text)

    def dropped(self, cell: Cell, last: str | None = None) -> None:
        """Say that a cell is no longer under way."""
        self._running.discard(cell.name)
        self._show(last)

    def _show(self, last: str | None = None) -> None:
        state = f"{len(self._running)} running" + (f", [red]{self._failed} failed[/red]" if self._failed else "")
        self._last = self._last if last is None else last.replace("[", "(")
        self._bar.update(self._task, completed=self._done, state=state, last=self._last)


def title(cell: Cell) -> str:
    """Name a cell for people: category, arm or ratio, seed."""
    column = columns_of(cell.config)
    arm = column.get("table4") or (f"{column['table3']} %" if column else cell.method)
    return f"{Path(cell.data).name} {arm} seed {cell.seed}"


def summary(outcome: Mapping[str, Any] | Failure) -> str:
    """Return the metrics in percent and the seconds of a cell, or why it failed."""
    if isinstance(outcome, Failure):
        return outcome.reason
    values = " / ".join(f"{100 * outcome[k]:.1f}" for k in METRICS)
    return f"{values} ({outcome['fit_seconds']:.0f} s)"
