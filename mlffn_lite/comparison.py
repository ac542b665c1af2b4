"""Methods side by side: every (data folder, method, seed) is a cell, run in a process of its own and never twice.

A cell's file holds its whole specification and what was measured; tables are made from the files alone.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from .config import Config
from .errors import ConfigError
from .peers import METHODS, load_method
from .storage import write_atomic
from .studies.cell import Cell, digest_of
from .studies.grid import open_places
from .studies.run import attempt
from .studies.store import Failure, Store

MARKDOWN, CSV = "comparison.md", "comparison.csv"
PERCENT = {"image_auroc": "image AUROC %", "pixel_auroc": "pixel AUROC %", "pro": "PRO %"}
_COSTS = {
    "fit_seconds": "fit s",
    "predict_ms": "predict ms/image",
    "peak_memory_mb": "peak memory MB",
    "gpu_memory_mb": "GPU memory MB",
}


def plan(data: Sequence[Path], methods: Sequence[str], config: Config, seeds: int, label: str) -> list[Cell]:
    """Check everything that can be checked beforehand and list the cells, seed by seed from ``train.seed`` on.

    Raises
    ------
    ConfigError
        If a method or the number of seeds makes no sense.
    DataError
        If a folder is missing, damaged, without good or without defective test images, or its name is taken.
    """
    for method in methods:
        load_method(method)
    if not methods or len(set(methods)) < len(methods):
        raise ConfigError(f"--methods {','.join(methods)} must name each method once; there are {', '.join(METHODS)}")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds} must be at least 1")
    places = open_places(data, config)
    configs = [config.replace(train={"seed": config.train.seed + i}).to_dict() for i in range(seeds)]
    return [
        Cell(method, str(place.path), place.fingerprint, settings, label, torch.get_num_threads())
        for settings in configs
        for place in places.values()
        for method in methods
    ]


def run(cells: Sequence[Cell], folder: Path, *, progress: bool = True) -> dict[str, str]:
    """Run the cells that ``folder`` does not hold yet, one after another; returns the reason of every failure by name.

    Each runs in a process of its own, so that memory is that of one method. Interrupted, it loses the cell in progress.
    """
    store, failures = Store(folder), {}
    with tqdm(cells, "cells", disable=not progress, unit="cell") as bar:
        for cell in bar:
            name = store.path(cell).stem
            bar.set_postfix_str(name)
            if not store.done(cell) and (failure := _run_apart(cell, store)):
                store.fail(cell, failure)
                failures[name] = failure.reason
    return failures


def _run_apart(cell: Cell, store: Store) -> Failure | None:
    """Run a cell in a new process, which keeps its record; returns why it failed, None if it did not."""
    order = json.dumps({"cell": dataclasses.asdict(cell), "folder": str(store.folder.resolve())})
    done = subprocess.run([sys.executable, "-m", __name__], input=order, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if done.returncode == -9:
        return Failure("was killed, perhaps for want of memory")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1].strip() if done.returncode > 0 and lines else f"ended with code {done.returncode}"
    return Failure(reason, done.stderr)


def read_cells(folder: Path) -> pd.DataFrame:
    """Return the finished cells of a folder, a row each, in the order of the registry."""
    rows = []
    for record in Store(folder).records():
        config = {s: {k: v for k, v in values.items() if k != "seed"} for s, values in record["config"].items()}
        config["model"].setdefault("density_strides", [8, 16])  # it came later, and matters to no peer
        size = "x".join(map(str, record["shape"]))
        rows.append({**record, "shape": size, "setting": digest_of(record["versions"]["mlffn_lite"], config)})
    table = pd.DataFrame(rows)
    rank = table["method"].map({name: i for i, name in enumerate(METHODS)})
    return table.assign(rank=rank).sort_values(["setting", "set", "fingerprint", "rank", "seed"]).drop(columns="rank")


def summarise(cells: pd.DataFrame) -> pd.DataFrame:
    """Return mean and sample standard deviation over seeds, a row per setting, data and method; metrics in percent."""
    numbers = [*PERCENT, *_COSTS]
    values = cells.assign(**{k: pd.to_numeric(cells[k]) * (100 if k in PERCENT else 1) for k in numbers})
    groups = values.groupby(["setting", "set", "fingerprint", "method"], sort=False)
    mean, std = groups[numbers].mean(), groups[numbers].std(ddof=1).add_suffix("_std")
    about = [groups["label"].first(), groups["shape"].first(), groups.size().rename("seeds")]
    return pd.concat([*about, mean, std], axis=1).reset_index()


def write_tables(folder: str | Path) -> str:
    """Write ``comparison.md`` and ``comparison.csv`` from the cells in a folder, without running any.

    Cells of different settings get a table each: their numbers do not compare.

    Returns
    -------
    str
        The Markdown.

    Raises
    ------
    StudyError
        If there is no finished cell, or a file is damaged.
    """
    folder = Path(folder)
    cells = read_cells(folder)
    parts = ["# Comparison"]
    for head, rows, caption in tables(cells):
        parts += [markdown_table(head, rows, text=3), caption]
    parts += [f"Failed: {name} ({reason})" for name, reason in Store(folder).failures().items()]
    markdown = "\n\n".join(parts) + "\n"
    write_atomic(folder / CSV, summarise(cells).to_csv(index=False))
    write_atomic(folder / MARKDOWN, markdown)
    return markdown


def markdown_table(head: list[str], rows: list[list[str]], *, text: int) -> str:
    """Return a Markdown table whose first ``text`` columns are words, the others numbers."""
    lines = [head, ["---"] * text + ["---:"] * (len(head) - text), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(cells: pd.DataFrame) -> list[tuple[list[str], list[list[str]], str]]:
    """Return head, rows and caption of every setting's table, as text."""
    found = []
    for setting, summary in summarise(cells).groupby("setting", sort=False):
        costs = {k: v for k, v in _COSTS.items() if summary[k].notna().any()}
        head = ["set", "pixels", "method", "seeds", *PERCENT.values(), *costs.values()]
        rows = [
            [str(row["set"]), str(row["shape"]), str(row["method"]), str(row["seeds"])]
            + [spread(row[k], row[f"{k}_std"], 1) for k in PERCENT]
            + [spread(row[k], float("nan"), 0 if k.endswith("_mb") else 1) for k in costs]
            for row in summary.to_dict("records")
        ]
        found.append((head, rows, _caption(cells[cells["setting"] == setting])))
    return found


def spread(mean: float, std: float, digits: int) -> str:
    """Return ``mean ± std``; without the second where there is a single value, a dash where there is none."""
    if pd.isna(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")


def _caption(cells: pd.DataFrame) -> str:
    """Say what the numbers of a table were measured with."""

    def each(key: str) -> str:
        return " / ".join(map(str, cells[key].unique()))

    seeds = ", ".join(map(str, sorted(cells["seed"].unique())))
    return (
        f"{each('label')}; seeds {seeds}; {each('device')} ({each('device_name')}),"
        f" {each('threads')} threads, {each('precision')}. Mean ± sample standard deviation over seeds."
    )


def print_tables(folder: Path, console: Console) -> None:
    """Print the tables of a folder."""
    for head, rows, caption in tables(read_cells(folder)):
        table = Table(box=None, caption=caption, caption_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, no_wrap=i < 3, justify="left" if i < 3 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _main() -> int:
    """Run the cell that standard input names, in this process, and keep its record."""
    order = json.load(sys.stdin)
    cell, outcome = attempt(Cell(**order["cell"]))
    if isinstance(outcome, Failure):
        print(f"{outcome.traceback}{outcome.reason}", file=sys.stderr)
        return 2
    Store(order["folder"]).write(cell, outcome)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
