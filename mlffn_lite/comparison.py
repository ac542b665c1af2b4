"""Methods side by side: every (data folder, method, seed) is a cell, run in a process of its own and never twice.

A cell's file holds its whole specification and what was measured; tables are made from the files alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from . import __version__
from .base import PREDICT_BATCH
from .config import Config
from .datasets.folder import AnomalyFolder
from .detector import AnomalyDetector
from .errors import ConfigError, DataError, MlffnError
from .peers import METHODS, load_method
from .runs import write_atomic, write_json

CELLS = "cells"
FAILED = ".failed.json"
MARKDOWN, CSV = "comparison.md", "comparison.csv"
PERCENT = {"image_auroc": "image AUROC %", "pixel_auroc": "pixel AUROC %", "pro": "PRO %"}
_COSTS = {
    "fit_seconds": "fit s",
    "predict_ms": "predict ms/image",
    "peak_memory_mb": "peak memory MB",
    "gpu_memory_mb": "GPU memory MB",
}


@dataclass(frozen=True)
class Cell:
    """One method on one data folder with one seed.

    Attributes
    ----------
    method : str
        A key of :data:`~mlffn_lite.peers.METHODS`.
    data : str
        The data folder.
    fingerprint : str
        SHA-256 of its files, see :meth:`AnomalyFolder.fingerprint`.
    config : dict
        ``Config.to_dict()``, seed and device included.
    label : str
        Name of the configuration for people: preset and changed values.
    threads : int
        Threads that torch computes with.
    """

    method: str
    data: str
    fingerprint: str
    config: dict[str, dict[str, Any]]
    label: str
    threads: int

    @property
    def name(self) -> str:
        """File name: folder, method, seed, and a hash of all that determines the result."""
        digest = _hash(__version__, self.method, self.fingerprint, self.config)
        return f"{Path(self.data).name}-{self.method}-seed{self.seed}-{digest}.json"

    @property
    def seed(self) -> int:
        """The seed that it runs with."""
        return int(self.config["train"]["seed"])


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
    folders: dict[str, tuple[Path, str]] = {}
    for path in (p.resolve() for p in data):
        if path.name in folders:
            raise DataError(f"{path} and {folders[path.name][0]} have the same name; rename one, tables go by it")
        parts = AnomalyFolder(path, **dataclasses.asdict(config.data), cache_bytes=0)  # decodes every file, keeps none
        if not len(parts.test):
            raise DataError(f"{path} has no test images; put some into test/good and test/<defect>")
        if len(set(parts.test.labels().tolist())) < 2:
            raise DataError(f"{path} needs good and defective test images; put some into test/good and test/<defect>")
        folders[path.name] = path, parts.fingerprint()
    configs = [config.replace(train={"seed": config.train.seed + i}).to_dict() for i in range(seeds)]
    return [
        Cell(method, str(path), fingerprint, settings, label, torch.get_num_threads())
        for settings in configs
        for path, fingerprint in folders.values()
        for method in methods
    ]


def run(cells: Sequence[Cell], folder: Path, *, progress: bool = True) -> dict[str, str]:
    """Run the cells that ``folder`` does not hold yet, one after another; returns the reason of every failure by name.

    Interrupted, it loses the cell in progress only.
    """
    failures: dict[str, str] = {}
    with tqdm(cells, "cells", disable=not progress, unit="cell") as bar:
        for cell in bar:
            path = folder / CELLS / cell.name
            bar.set_postfix_str(path.stem)
            if not path.exists() and (reason := _run_apart(cell, path)):
                failures[path.stem] = reason
    return failures


def _run_apart(cell: Cell, path: Path) -> str | None:
    """Run a cell in a new process, which writes ``path``; returns why it failed, None if it did not."""
    order = json.dumps({"cell": dataclasses.asdict(cell), "path": str(path.resolve())})
    done = subprocess.run([sys.executable, "-m", __name__], input=order, capture_output=True, text=True)
    failed = path.with_suffix(FAILED)
    if done.returncode == 0:
        failed.unlink(missing_ok=True)
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1].strip() if done.returncode > 0 and lines else f"ended with code {done.returncode}"
    if done.returncode == -9:
        reason = "was killed, perhaps for want of memory"
    write_json(failed, {"cell": path.stem, "reason": reason})
    return reason


def measure(cell: Cell) -> dict[str, Any]:
    """Fit and evaluate a cell here and now.

    Returns
    -------
    dict
        The specification; ``image_auroc``, ``pixel_auroc``, ``pro``; ``parts``, the same of the network's score and
        of the density apart; ``fit_seconds``, without reading the images; ``predict_ms`` per image after a first batch;
        ``peak_memory_mb`` of the whole process up to then, without the metrics, and ``gpu_memory_mb`` of its tensors on
        a CUDA device.
    """
    torch.set_num_threads(cell.threads)
    config = Config().replace(**cell.config)
    parts = AnomalyFolder(cell.data, **dataclasses.asdict(config.data))
    if parts.fingerprint() != cell.fingerprint:
        raise DataError(f"{cell.data} has changed since the comparison was started; start it again")
    detector = load_method(cell.method)(config).fit(parts, progress=False)
    detector.predict(parts.test.batch(range(min(PREDICT_BATCH, len(parts.test))))[0])
    cuda = detector.device.type == "cuda"
    memory = {
        "peak_memory_mb": round(peak_memory() / 2**20),
        "gpu_memory_mb": round(torch.cuda.max_memory_allocated(detector.device) / 2**20) if cuda else None,
    }
    measured = detector.evaluate(parts)
    return {
        "set": Path(cell.data).name,
        "method": cell.method,
        "seed": cell.seed,
        **{k: measured[k] for k in (*PERCENT, "per_defect", "shape", "images")},
        "parts": detector.evaluate_parts(parts) if isinstance(detector, AnomalyDetector) else {},
        "train_images": len(parts.train),
        "fit_seconds": round(detector.seconds, 3),
        "predict_ms": round(1000 * measured["predict_seconds"] / measured["images"], 3),
        **memory,
        "label": cell.label,
        "fingerprint": cell.fingerprint,
        **detector.environment(),
        "config": cell.config,
    }


def peak_memory() -> int:
    """Return the largest memory in bytes that this process has held.

    On Linux, ``ru_maxrss`` starts from the memory of the process that started this one; ``VmHWM`` does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_cells(folder: Path) -> pd.DataFrame:
    """Return the finished cells of a folder, a row each, in the order of the registry; DataError if there are none."""
    rows = []
    for path in sorted((folder / CELLS).glob("*.json")):
        if path.name.endswith(FAILED):
            continue
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            config = row.pop("config")
            del config["train"]["seed"]
            size = "x".join(map(str, row["shape"]))
            rows.append({**row, "shape": size, "setting": _hash(row["versions"]["mlffn_lite"], config)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error}); delete it and run the comparison again") from error
    if not rows:
        raise DataError(f"{folder} holds no finished cell")
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
    DataError
        If there is no finished cell, or a file is damaged.
    """
    folder = Path(folder)
    cells = read_cells(folder)
    parts = ["# Comparison"]
    for head, rows, caption in tables(cells):
        parts += [markdown_table(head, rows, text=3), caption]
    failures = [json.loads(p.read_text()) for p in sorted((folder / CELLS).glob(f"*{FAILED}"))]
    parts += [f"Failed: {f['cell']} ({f['reason']})" for f in failures]
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


def _hash(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def _main() -> int:
    """Run the cell that standard input names, in this process, and write its file."""
    order = json.load(sys.stdin)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_json(Path(order["path"]), measure(Cell(**order["cell"])))
    except (MlffnError, OSError, MemoryError) as error:
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
