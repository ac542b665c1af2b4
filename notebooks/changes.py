"""Make the changes that the notebooks invite to, and say whether each moves its number the way it is said to.

A cell tagged ``change`` has one line such as ``rate = 4  # change this line: try 1 (expected: higher)`` and prints a
number last. ``python notebooks/changes.py [04 05_…]`` runs every such cell as it stands, and with the line changed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode
from series import ROOT, execute, load_series, read_notebook, select

from mlffn_lite.errors import MlffnError

CHANGE = "change"
SAME = 0.02
_LINE = re.compile(r"^(\w+) = .+?  # change this line: try (.+) \(expected: (higher|lower|the same)\)$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Change(NamedTuple):
    """What a marked cell invites to: its source with the line changed, and which way its last number goes."""

    source: str
    expected: str


def read_change(cell: NotebookNode) -> Change:
    """Read a marked cell; raises MlffnError if it has no line to change, or several."""
    lines = list(_LINE.finditer(cell.source))
    if len(lines) != 1:
        raise MlffnError(f"cell {cell.id}: needs one line 'name = …  # change this line: try … (expected: …)'")
    name, value, expected = lines[0].groups()
    changed = cell.source.replace(lines[0][0], f"{name} = {value}")
    return Change(changed, expected)


def marked(nb: NotebookNode) -> list[NotebookNode]:
    """Return the cells that invite to a change."""
    return [c for c in nb.cells if CHANGE in c.metadata.get("tags", [])]


def moved(before: float, after: float) -> str:
    """Say which way a number went; two per cent are the same."""
    if abs(after - before) <= SAME * max(abs(before), abs(after)):
        return "the same"
    return "higher" if after > before else "lower"


def last_number(cell: NotebookNode) -> float:
    """Return the last number that a cell printed."""
    numbers = _NUMBER.findall("".join(o.get("text", "") for o in cell.outputs).replace("−", "-"))
    if not numbers:
        raise MlffnError(f"cell {cell.id}: prints no number")
    return float(numbers[-1])


def try_changes(path: Path) -> list[tuple[str, float, float, str]]:
    """Execute a notebook with every change made after its cell, and undone again.

    Returns
    -------
    list of tuple
        Of each marked cell: its id, its number before and after, and which way it was to go.
    """
    nb = nbformat.from_dict(read_notebook(path))
    rows = [(cell, read_change(cell)) for cell in marked(nb)]
    for cell, change in rows:
        at = nb.cells.index(cell) + 1
        copies = [nbformat.v4.new_code_cell(source) for source in (change.source, cell.source)]
        nb.cells[at:at] = copies
    with tempfile.TemporaryDirectory() as folder:
        if fault := execute(nb, path.parent, Path(folder)):
            raise MlffnError(f"{path.name}: {fault}")
    pairs = [(cell, nb.cells[nb.cells.index(cell) + 1], change) for cell, change in rows]
    return [(cell.id, last_number(cell), last_number(copy), change.expected) for cell, copy, change in pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the changes of notebooks and print a row each; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python notebooks/changes.py", description="Try what the notebooks suggest.")
    parser.add_argument("names", nargs="*", help="numbers or file names; all by default")
    failed = 0
    try:
        for entry in select(load_series(), parser.parse_args(arguments).names, ROOT):
            for name, before, after, expected in try_changes(ROOT / "notebooks" / entry.file):
                right = moved(before, after) == expected
                failed += not right
                print(
                    f"{entry.number} {name}: {before:g} → {after:g}, {expected}{'' if right else ': NOT SO'}",
                    flush=True,
                )
    except MlffnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
