"""The commands ``mlffn study`` and ``mlffn report``."""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..config import PRESETS, Config
from ..errors import ConfigError
from ..escaped import printable
from ..options import Bad, Good, Recursive, out

if TYPE_CHECKING:  # torch takes seconds to import; `mlffn --help` shall not
    from .grid import Grid
    from .run import Workers

study_app = typer.Typer(help="Grids of cells: run, stop, resume, compare, with deviations.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that a study wrote.")]
_SETS = "Categories, or folders of them; by default MiniParts."


@dataclass
class Options:
    """What every study can be told."""

    places: Annotated[list[Path] | None, typer.Argument(metavar="[DATA…]", help=_SETS)] = None
    data: Annotated[list[Path] | None, typer.Option(help="The same as DATA.")] = None
    categories: Annotated[str | None, typer.Option(help="Names, with commas between; by default all.")] = None
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = None
    small: Annotated[bool, typer.Option("--small/--full", help="A small budget at 128 px, or all of it.")] = False
    seeds: Annotated[str, typer.Option(help="How many, or which: 0,1,2.")] = "3"
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a value: data.size=128.")] = None
    crop: Annotated[str | None, typer.Option(metavar="L,T,W,H|auto", help="What to look at (data.crop).")] = None
    ignore: Annotated[str | None, typer.Option(metavar="MASK", help="White: counts for nothing (data.ignore).")] = None
    good: Good = None
    bad: Bad = None
    recursive: Recursive = False
    backend: Annotated[str, typer.Option(help="local, processes or ray.")] = "processes"
    workers: Annotated[int | None, typer.Option(help="Cells at a time; by default one per core.")] = None
    threads: Annotated[int, typer.Option(help="Threads per cell; another number rounds differently.")] = 1
    gpus: Annotated[float, typer.Option(help="Ray: GPUs per cell, such as 1 or 0.5.")] = 0.0
    address: Annotated[str | None, typer.Option(help="Ray: a running cluster, such as auto.")] = None
    part: Annotated[str, typer.Option(help="Run only the I-th of N parts: I/N.")] = "1/1"
    folder: Annotated[Path, typer.Option("--out", help="Where the cells are kept.")] = Path("runs/study")
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; by default CUDA if there is one.")] = None

    def base(self, name: str, preset: str) -> tuple[Config, str]:
        """Return the configuration that the columns of a grid share, and its name for people."""
        from .grid import study_config

        preset = self.preset or preset
        config = study_config(preset, name, small=self.small).override(self.settings or [])
        looks = {k: v for k, v in (("crop", self.crop), ("ignore", self.ignore)) if v is not None}
        folders = {"good": self.good, "bad": self.bad, "recursive": self.recursive or None}
        config = config.replace(data={**looks, **{k: v for k, v in folders.items() if v is not None}})
        config = config.replace(train={} if self.device is None else {"device": self.device})
        return config, " ".join(
            [preset, *["--small"] * self.small, *(f"--{k} {v}" for k, v in looks.items()), *(self.settings or [])]
        )

    def run(self, grids: Sequence[Grid], base: Config, *, show: bool = False) -> None:
        """Check everything that can be checked beforehand, and run the cells of grids; ``show`` prints their tables."""
        from .grid import find_data, open_places, parse_seeds, plan
        from .report import write_reports
        from .run import run
        from .store import Store

        seeds, share, workers = parse_seeds(self.seeds), _parse_part(self.part), self._workers(base, fresh=show)
        names = None if self.categories is None else _names(self.categories)
        source = "named folders" if base.data.good else base.data.source  # those are no categories to look for
        data = find_data([*(self.places or []), *(self.data or [])], names, source=source)
        places = open_places(data, base)
        cells = plan(grids, places, seeds, self.threads)[share]
        store = Store(self.folder)
        store.check(places)
        store.remember(grids, places)
        try:
            failures = run(cells, store, workers)
        except KeyboardInterrupt as stop:
            done = sum(map(store.done, cells))
            out.print(f"Stopped; {done} of {len(cells)} cells are in {self.folder}; go on with the same command.")
            raise typer.Exit(130) from stop
        for name, reason in failures.items():
            print(f"mlffn: {name} failed: {reason}", file=sys.stderr)
        done = len(cells) - len(failures)
        out.print(f"{done} of {len(cells)} cells are in {self.folder}; mlffn report {self.folder}")
        for place in write_reports(self.folder) if show and done else []:
            for grid in grids:
                if (table := place / f"{grid.name}_sets.md").is_file():
                    out.print(f"{table.read_text('utf-8')}\nReport: {place / 'report.html'}")
        if failures:
            raise typer.Exit(1)

    def _workers(self, base: Config, fresh: bool) -> Workers:
        from ..devices import resolve_device
        from .run import Workers

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if self.threads < 1:
            raise ConfigError(f"--threads {self.threads} must be at least 1")
        # A cluster has devices that this machine lacks.
        cpu = self.address is not None or resolve_device(base.train.device).type == "cpu"
        count = max(1, cores // self.threads) if cpu and self.backend != "local" else 1
        return Workers(self.backend, count if self.workers is None else self.workers, fresh, self.gpus, self.address)


def _study(name: str, text: str, function: Callable[..., None]) -> None:
    """Register a command: Typer sees the fields of :class:`Options` beside its own parameters, it gets them as one."""
    shared = inspect.signature(Options, eval_str=True).parameters
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared.values(), *own)]

    def command(**values: Any) -> None:
        function(Options(**{key: values.pop(key) for key in shared}), **values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    study_app.command(name, help=text)(command)


def _tables(*names: str) -> Callable[[Options], None]:
    def run(options: Options) -> None:
        from .grid import TABLES

        bases = [options.base(name, "small") for name in names]
        grids = [TABLES[name](*base) for name, base in zip(names, bases, strict=True)]
        options.run(grids, bases[0][0])

    return run


def _compare(
    options: Options,
    methods: Annotated[str, typer.Option(help="Names or import paths, with commas; or all.")] = "all",
) -> None:
    from .. import registry
    from .grid import compare

    base, label = options.base("compare", "parts")
    options.run(
        [compare(base, registry.names("methods") if methods == "all" else _names(methods), label)], base, show=True
    )


def _grid(
    options: Options,
    vary: Annotated[list[str], typer.Option(help="Values of a key: loss.gamma=1,2.5,5; of several: all pairs.")],
    methods: Annotated[str | None, typer.Option(help="Names or import paths; by default the preset's.")] = None,
) -> None:
    from .grid import vary as make

    base, label = options.base("compare", "parts")
    options.run([make(base, [base.method] if methods is None else _names(methods), vary, label)], base, show=True)


def _suspects(
    options: Options,
    experiments: Annotated[str | None, typer.Option(help="Names, with commas between; by default all.")] = None,
    arms: Annotated[str, typer.Option(help="Arms of Table 4 that are compared.")] = "baseline,+stl,+consistency",
) -> None:
    from .suspects import EXPERIMENTS, experiment

    names = list(EXPERIMENTS) if experiments is None else _names(experiments)
    base, label = options.base("table4", "small")
    options.run([experiment(base, name, _names(arms), label) for name in names], base)


_study("table1", "Run Tables 1 and 2: the compared methods beside the paper's.", _tables("methods"))
_study("table2", "The same as table1: one run of a method gives both.", _tables("methods"))
_study("table3", "Run Table 3: the share of pseudo-anomalies, 0 to 100 %.", _tables("table3"))
_study("table4", "Run Table 4: the ablation, from the baseline to the whole method.", _tables("table4"))
_study("tables", "Run Tables 3 and 4; the cell that they share runs once.", _tables("table3", "table4"))
_study("suspects", "Ask why Table 4 comes out as it does: an experiment for each explanation.", _suspects)
_study("compare", "Compare methods, as in Tables 1 and 2, with one configuration, in one table.", _compare)
_study("grid", "Vary values of the configuration, in one table.", _grid)


@study_app.command("status")
def study_status(folder: Folder) -> None:
    """Say what a study folder holds, what is running now, and what failed."""
    from .statistics import frame
    from .store import Store

    store = Store(folder)
    failures, running = store.failures(), store.under_way()
    records = [] if (failures or running) and not store.paths() else store.records()
    table = Table("set", "study", "column", "seeds", box=None)
    for grid in store.grids():
        for key, cells in frame(records, grid).groupby(["set", "column"], sort=False):
            name, column = map(str, key)
            table.add_row(name, grid.name, column, ", ".join(map(str, sorted(cells["seed"]))))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    methods = Counter(record["method"] for record in records)
    words = f" ({', '.join(f'{n} {k}' for k, n in methods.items())})" if methods else ""
    out.print(f"{len(records)} finished{words}, {len(running)} running, {len(failures)} failed")
    for name in running:
        out.print(f"running: {name}")
    for name, reason in failures.items():
        out.print(printable(f"failed: {name}: {reason}"))


@study_app.command("seal")
def study_seal(folder: Folder) -> None:
    """Add digests to the cells of an earlier version, if all else about them is right and you trust them."""
    from .store import Store

    out.print(f"{Store(folder).seal()} cells were given a digest")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study, or of a run.")],
    data: Annotated[Path | None, typer.Argument(metavar="[DATA]", help="Of a run: the data to measure it on.")] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="Where to write; by default DIR/report, or the run.")
    ] = None,
) -> None:
    """Write the report of a study, from what it holds; or of a run, measured on DATA's test images."""
    from ..storage import CHECKPOINT
    from .report import write_reports

    run = (folder / CHECKPOINT).is_file()
    if run != (data is not None):
        advice = f"give the data to measure it on: mlffn report {folder} DATA" if run else "leave out the data"
        raise ConfigError(f"{folder} is {'a run' if run else 'no run'}; {advice}")
    if data is not None:
        _run_report(folder, data, target or folder)
        return
    for place in write_reports(folder, target):
        out.print((place / "claims.md").read_text("utf-8").strip())
        out.print(f"Report: {place / 'report.html'}")


def _run_report(run: Path, data: Path, target: Path) -> None:
    """Measure a finished run and write its page."""
    from ..detector import AnomalyDetector
    from ..run_report import measure_and_report

    detector = AnomalyDetector.load(run)
    page = measure_and_report(detector, detector.open(data), target, f"mlffn report {run} {data}")[1]
    out.print(f"Report: {page}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _parse_part(text: str) -> slice:
    """Return which cells ``"2/8"`` names: every eighth, from the second on."""
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return slice(int(index) - 1, None, int(count))
    raise ConfigError(f"--part {text} must be I/N with I from 1 to N, such as 2/8")
