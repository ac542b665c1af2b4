"""The series as files: its navigation, its map, and its outputs, all made from ``series.toml``.

python notebooks/series.py nav             write heads, feet and maps
python notebooks/series.py check           say whether they agree with series.toml
python notebooks/series.py run [04 05_…]   execute, normalise and write back, figures included
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, NbvalKernelspecManager

from mlffn_lite.errors import MlffnError
from mlffn_lite.storage import write_atomic

ROOT = Path(__file__).resolve().parents[1]
CELL_SECONDS = 180
IGNORED = "nbval-ignore-output"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_TEXT = "Interactive: run this cell in JupyterLab to use it."
MAP_LINK = "00_start_here.ipynb#The-series"
BUSY = "; on a slow or busy machine set MLFFN_PATIENCE=3"
MARKS = ("<!-- series -->", "<!-- /series -->")
FOLDED = "folded"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Entry:
    """A notebook as ``series.toml`` describes it."""

    file: str
    title: str
    promise: str
    goals: list[str]
    needs: str
    paper: str
    minutes: float
    strict: bool
    lessons: list[str] = field(default_factory=list)

    @property
    def number(self) -> str:
        """Two digits."""
        return self.file[:2]

    @property
    def name(self) -> str:
        """Number and title."""
        return f"{self.number} · {self.title}"

    @property
    def time(self) -> str:
        """Declared time in words."""
        return (
            f"{60 * self.minutes:.0f}\N{NO-BREAK SPACE}s"
            if self.minutes < 1
            else f"{self.minutes:g}\N{NO-BREAK SPACE}min"
        )


def load_series(root: Path = ROOT) -> list[Entry]:
    """Read ``series.toml``, in its order."""
    text = (root / "notebooks" / "series.toml").read_text(encoding="utf-8")
    return [Entry(**values) for values in tomllib.loads(text)["notebook"]]


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook; raises MlffnError if it is not one."""
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise MlffnError(f"{path.name}: not a notebook ({str(error).splitlines()[0]})") from error


def write_notebook(path: Path, nb: NotebookNode) -> None:
    """Write a notebook whole or not at all."""
    write_atomic(path, nbformat.writes(nb).rstrip("\n") + "\n")


# --- navigation and maps ---------------------------------------------------------------------------------------------


def head(series: Sequence[Entry], i: int) -> str:
    """Return the first cell of a notebook: title, promise, goals, what it needs, links."""
    entry = series[i]
    files = {e.number: e.file for e in series}
    needs = re.sub(r"\b\d\d\b", lambda m: f"[{m[0]}]({files[m[0]]})" if m[0] in files else m[0], entry.needs)
    goals = "\n".join(f"- {goal}" for goal in entry.goals)
    facts = f"Needs: {needs} · Paper: {entry.paper} · Runs in about {entry.time} on two cores"
    return f"# {entry.name}\n\n**{entry.promise}**\n\nWhat you will learn:\n\n{goals}\n\n{facts}\n\n{links(series, i)}"


def foot(series: Sequence[Entry], i: int) -> str:
    """Return the last cell of a notebook: what to take away, where that is said, and links."""
    lessons = "\n".join(f"- {lesson}" for lesson in series[i].lessons)
    said = ["What to take away:", lessons] if lessons else []
    return "\n\n".join(["---", *said, links(series, i)])


def links(series: Sequence[Entry], i: int) -> str:
    """Return links to the previous notebook, the map and the next one."""
    before = [f"[← {e.name}]({e.file})" for e in series[max(0, i - 1) : i]]
    after = [f"[{e.name} →]({e.file})" for e in series[i + 1 : i + 2]]
    return " · ".join([*before, f"[map of the series]({MAP_LINK})", *after])


def series_map(series: Sequence[Entry], folder: str = "") -> str:
    """Return the series as a table; ``folder`` is put before each link."""
    rows = [f"| [{e.name}]({folder}{e.file}) | {e.promise} | {e.paper} | {e.time} |" for e in series]
    return "\n".join(["| notebook | what it does | paper | time |", "|---|---|---|---:|", *rows])


def navigated(nb: NotebookNode, series: Sequence[Entry], i: int) -> NotebookNode:
    """Return a copy of a notebook with its head, its foot and, in a cell with the id ``map``, the map."""
    copy = nbformat.from_dict(nb)
    body = [cell for cell in copy.cells if cell.get("id") not in ("head", "foot")]
    for cell in body:
        if cell.get("id") == "map":
            cell.source = f"## The series\n\n{series_map(series)}"
    copy.cells = [_markdown("head", head(series, i)), *body, _markdown("foot", foot(series, i))]
    return copy


def _markdown(name: str, text: str) -> NotebookNode:
    return nbformat.from_dict({"cell_type": "markdown", "id": name, "metadata": {}, "source": text})


def mapped(readme: str, series: Sequence[Entry]) -> str:
    """Return the README's text with the map between its marks."""
    start, end = (readme.find(mark) for mark in MARKS)
    if not 0 <= start < end:
        raise MlffnError(f"README.md: needs a line {MARKS[0]} and, after it, a line {MARKS[1]}; the map goes between")
    return f"{readme[:start]}{MARKS[0]}\n{series_map(series, 'notebooks/')}\n{readme[end:]}"


def nav(root: Path = ROOT, *, write: bool = True) -> list[str]:
    """Bring heads, feet and maps in line with ``series.toml``; returns the names of the files that were not."""
    series, stale = load_series(root), []
    for i, entry in enumerate(series):
        path = root / "notebooks" / entry.file
        if path.is_file() and (nb := read_notebook(path)) != (wanted := navigated(nb, series, i)):
            stale.append(f"notebooks/{entry.file}")
            if write:
                write_notebook(path, wanted)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text != (wanted_text := mapped(text, series)):
        stale.append("README.md")
        if write:
            write_atomic(readme, wanted_text)
    return stale


# --- execution -------------------------------------------------------------------------------------------------------


def run(names: Sequence[str] = (), root: Path = ROOT, *, fresh: bool = False) -> int:
    """Execute notebooks one after the other, write them and their figures back, and print a table of seconds.

    Parameters
    ----------
    names : sequence of str
        Numbers, or beginnings of file names; all notebooks that exist by default.
    root : Path
        Of the repository.
    fresh : bool
        Write new outputs for cells tagged ``nbval-ignore-output`` too; otherwise such a cell keeps its output until
        its source changes, so that timings leave no difference.

    Returns
    -------
    int
        How many notebooks failed, or took more than twice their time.
    """
    faults = []
    print(f"{'notebook':<32}{'seconds':>9}{'declared':>10}")
    for entry in select(load_series(root), names, root):
        started = time.perf_counter()
        fault = run_one(entry, root, fresh=fresh)
        seconds, declared = time.perf_counter() - started, 60 * entry.minutes
        if fault is None and seconds > 2 * declared * patience():
            fault = f"{entry.file}: took {seconds:.0f} s, more than twice the {declared:.0f} s declared{BUSY}"
        print(f"{entry.file:<32}{seconds:>9.1f}{declared:>10.0f}{'  failed' if fault else ''}")
        faults += [fault] if fault else []
    for fault in faults:
        print(fault)
    return len(faults)


def patience() -> float:
    """Return by what factor a notebook, and a cell, may take longer here than on two free cores."""
    return float(os.environ.get("MLFFN_PATIENCE", "1"))


def select(series: Sequence[Entry], names: Sequence[str], root: Path) -> list[Entry]:
    """Return the notebooks that are meant and exist; raises MlffnError for a name that means none."""
    present = [e for e in series if (root / "notebooks" / e.file).is_file()]
    for name in names:
        if not any(e.file.startswith(Path(name).name) for e in present):
            raise MlffnError(f"no notebook {name!r}; there are {', '.join(e.number for e in present) or 'none'}")
    return [e for e in present if not names or any(e.file.startswith(Path(name).name) for name in names)]


def run_one(entry: Entry, root: Path, *, fresh: bool = False) -> str | None:
    """Execute a notebook and write it and its figures back; on a failure, returns a line and writes nothing."""
    path = root / "notebooks" / entry.file
    old = read_notebook(path)
    with tempfile.TemporaryDirectory() as folder:
        nb = nbformat.from_dict(old)
        if fault := execute(nb, path.parent, Path(folder)):
            return f"{entry.file}: {fault}"
        normalise(nb)
        kept = {} if fresh else keep_ignored(nb, old)
        drawn = {p.name: p.read_bytes() for p in sorted(Path(folder).glob("*.png"))}
    figures = root / "figures"
    for name, png in drawn.items():
        write_atomic(figures / name, kept.get(png, png))
    for stale in set(figures.glob(f"{entry.number}_*.png")) - {figures / name for name in drawn}:
        stale.unlink()
    write_notebook(path, nb)
    return None


def execute(nb: NotebookNode, folder: Path, figures: Path) -> str | None:
    """Execute a notebook in place, in a kernel of this interpreter; returns what went wrong, in a line."""
    at: list[int] = []
    client = NotebookClient(
        nb,
        km=AsyncKernelManager(kernel_name=CURRENT_ENV_KERNEL_NAME, kernel_spec_manager=NbvalKernelspecManager()),
        timeout=(seconds := round(CELL_SECONDS * patience())),
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=lambda cell, cell_index: at.append(cell_index),
    )
    settings = {"MLFFN_MODE": "small", "MLFFN_FIGURES": str(figures), "OMP_NUM_THREADS": "1"}
    try:
        client.execute(env={**os.environ, **settings}, stderr=subprocess.DEVNULL)  # the kernel's own, not a cell's
    except CellTimeoutError:
        return f"{_place(nb, at)} took more than {seconds} s{BUSY}"
    except DeadKernelError:
        return f"{_place(nb, at)} ended the kernel, perhaps for want of memory"
    except CellExecutionError as error:
        return f"{_place(nb, at)} raised {error.ename}: {(error.evalue.splitlines() or [''])[0]}"
    return None


def _place(nb: NotebookNode, at: Sequence[int]) -> str:
    return f"cell {at[-1]} ({nb.cells[at[-1]].id})" if at else "the kernel's start"


def normalise(nb: NotebookNode) -> None:
    """Take out, in place, what depends on the machine, the moment or the editor."""
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        folded = {"jupyter": {"source_hidden": True}} if FOLDED in tags else {}
        cell.metadata = nbformat.from_dict({**folded, **({"tags": tags} if tags else {})})
        if cell.cell_type == "code":
            cell.outputs = [_without_widget(output) for output in _merged(cell.outputs) if not _is_bar(output)]


def _is_bar(output: NotebookNode) -> bool:
    """Say whether an output is a progress bar: a widget that no cell ends with. It shows on slow machines only."""
    return output.output_type == "display_data" and WIDGET in output.data


def _merged(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Join the parts of each stream, as nbval does before it compares."""
    kept: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        if output.output_type == "stream" and output.name in streams:
            streams[output.name].text += output.text
            continue
        if output.output_type == "stream":
            streams[output.name] = output
        kept.append(output)
    return kept


def _without_widget(output: NotebookNode) -> NotebookNode:
    """Put a sentence in the place of a widget: its model's number is random, and no page shows it without a kernel."""
    if WIDGET in output.get("data", {}):
        output.data = nbformat.from_dict({"text/plain": WIDGET_TEXT})
    return output


def keep_ignored(nb: NotebookNode, old: NotebookNode) -> dict[bytes, bytes]:
    """Give cells whose outputs are not compared their old outputs, if their source is old.

    Returns the old PNG of each new one that it takes the place of; a cell that draws another number of pictures than
    before keeps its new outputs.
    """
    known = {c.source: c for c in old.cells if c.cell_type == "code" and c.outputs and c.execution_count is not None}
    kept: dict[bytes, bytes] = {}
    for cell in nb.cells:
        if IGNORED not in cell.metadata.get("tags", []) or cell.source not in known:
            continue
        outputs = [_without_widget(output) for output in _merged(known[cell.source].outputs)]
        new_pngs, old_pngs = ([png for o in some for png in pngs(o)] for some in (cell.outputs, outputs))
        if len(new_pngs) != len(old_pngs):
            continue
        kept |= dict(zip(new_pngs, old_pngs, strict=True))
        cell.outputs = outputs
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = cell.execution_count
    return kept


def pngs(output: Any) -> list[bytes]:
    """Return the picture that an output holds, if it does."""
    png = output.get("data", {}).get("image/png")
    return [base64.b64decode(png)] if png else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python notebooks/series.py", description="Navigation and outputs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("nav", help="write heads, feet and maps from series.toml")
    commands.add_parser("check", help="say whether they agree with series.toml")
    runner = commands.add_parser("run", help="execute notebooks, write them and their figures back")
    runner.add_argument("names", nargs="*", help="numbers or file names; all by default")
    runner.add_argument("--fresh", action="store_true", help="renew the outputs that are not compared, too")
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            return min(1, run(options.names, fresh=options.fresh))
        stale = nav(write=options.command == "nav")
    except MlffnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in stale:
        print(f"{name}: {'written' if options.command == 'nav' else 'differs from series.toml; run make notebooks'}")
    return int(options.command == "check" and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
