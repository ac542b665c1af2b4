"""The commands ``mlffn study`` and ``mlffn report``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..config import PRESETS, Config
from ..errors import ConfigError

if TYPE_CHECKING:  # torch takes seconds to import; `mlffn --help` shall not
    from .cell import Cell
    from .run import Workers

study_app = typer.Typer(help="Tables 3 and 4 of the paper as studies: run, stop, resume, spread.", no_args_is_help=True)
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that a study wrote.")]
_RUNS = {
    "table3": (("table3",), "Run Table 3: the share of pseudo-anomalies, 0 to 100 %."),
    "table4": (("table4",), "Run Table 4: the ablation, from the baseline to the whole method."),
    "tables": (("table3", "table4"), "Run both; the cell that they share runs once."),
}


def _command(studies: tuple[str, ...]) -> Callable[..., None]:
    def command(
        data: Annotated[
            Path | None, typer.Option(help="A category, or a folder of them; by default MiniParts.")
        ] = None,
        categories: Annotated[str | None, typer.Option(help="Names, with commas between; by default all.")] = None,
        preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "lite",
        small: Annotated[
            bool, typer.Option("--small/--full", help="Few steps at 128 px, or all of the preset.")
        ] = False,
        seeds: Annotated[str, typer.Option(help="How many, or which: 0,1,2.")] = "3",
        settings: Annotated[list[str] | None, typer.Option("--set", help="Change a value: data.size=128.")] = None,
        backend: Annotated[str | None, typer.Option(help="local, joblib or ray.")] = None,
        workers: Annotated[int | None, typer.Option(help="Cells at a time; by default one per core.")] = None,
        threads: Annotated[int, typer.Option(help="Threads per cell; another number rounds differently.")] = 1,
        gpus: Annotated[float, typer.Option(help="Ray: GPUs per cell, such as 1 or 0.5.")] = 0.0,
        address: Annotated[str | None, typer.Option(help="Ray: a running cluster, such as auto.")] = None,
        part: Annotated[str, typer.Option(help="Run only the I-th of N parts: I/N.")] = "1/1",
        folder: Annotated[Path, typer.Option("--out", help="Where the cells are kept.")] = Path("runs/study"),
        device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; by default CUDA if there is one.")] = None,
    ) -> None:
        from .grid import find_data, open_places, parse_seeds, plan, study_config
        from .store import Store

        base = study_config(preset, small=small).override(settings or [])
        base = base.replace(train={} if device is None else {"device": device})
        names = None if categories is None else [c.strip() for c in categories.split(",") if c.strip()]
        chosen, share = parse_seeds(seeds), _parse_part(part)
        where = _workers(backend, workers, threads, gpus, address, base)
        places = open_places(find_data(data, names), base)
        label = " ".join([preset, *["small"] * small, *(settings or [])])
        cells = plan(studies, places, base, chosen, label, threads)[share]
        store = Store(folder)
        store.check(places)
        store.remember(places)
        _run(cells, store, where)

    return command


for _name, (_studies, _help) in _RUNS.items():
    study_app.command(_name, help=_help)(_command(_studies))


def _run(cells: list[Cell], store: object, workers: Workers) -> None:
    from .run import run
    from .store import Store

    assert isinstance(store, Store)
    try:
        failures = run(cells, store, workers)
    except KeyboardInterrupt as stop:
        done = sum(map(store.done, cells))
        out.print(f"Stopped; {done} of {len(cells)} cells are in {store.folder}; go on with the same command.")
        raise typer.Exit(130) from stop
    for name, reason in failures.items():
        print(f"mlffn: {name} failed: {reason}", file=sys.stderr)
    out.print(f"{len(cells) - len(failures)} of {len(cells)} cells are in {store.folder}; mlffn report {store.folder}")
    if failures:
        raise typer.Exit(1)


@study_app.command("status")
def study_status(folder: Folder) -> None:
    """Say what a study folder holds, what is running now, and what failed."""
    from .grid import STUDIES, columns_of
    from .store import Store

    store = Store(folder)
    failures, running = store.failures(), store.under_way()
    records = [] if (failures or running) and not store.paths() else store.records()
    table = Table("set", "study", "column", "seeds", box=None)
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for record in records:
        for study, column in columns_of(record["config"]).items():
            seeds.setdefault((record["set"], study, column), []).append(record["seed"])
    order = {name: i for i, name in enumerate(STUDIES)}
    for (name, study, column), found in sorted(seeds.items(), key=lambda item: (item[0][0], order[item[0][1]])):
        table.add_row(name, study, column, ", ".join(map(str, sorted(found))))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    kinds = Counter(record["label"] for record in records)
    words = f" ({', '.join(f'{n} {k}' for k, n in kinds.items())})" if kinds else ""
    out.print(f"{len(records)} finished{words}, {len(running)} running, {len(failures)} failed")
    for name in running:
        out.print(f"running: {name}")
    for name, reason in failures.items():
        out.print(f"failed: {name}: {reason}")


@study_app.command("plan")
def study_plan(
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "paper",
    data: Annotated[Path | None, typer.Option(help="Categories to count; by default MVTec AD's 15.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    devices: Annotated[str, typer.Option(help="How many, with commas between.")] = "1,8,64",
    faster: Annotated[str, typer.Option(help="Devices so many times as fast as measured.")] = "1",
    rate: Annotated[float | None, typer.Option(help="Training images per second, instead of measuring here.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a value: data.size=128.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to measure: cpu, cuda, mps.")] = None,
) -> None:
    """Say what Tables 3 and 4 cost: measure training here, and lay the cells out on several devices."""
    from .cost import cell_seconds, cost_table, measure_rates
    from .grid import ARMS, find_data, study_config
    from .paper import TRAIN_IMAGES

    base = study_config(preset).override(settings or [])
    base = base.replace(train={} if device is None else {"device": device})
    counts, factors = _numbers("--devices", devices, int), _numbers("--faster", faster, float)
    if seeds < 1 or (rate is not None and rate <= 0):
        raise ConfigError("--seeds must be at least 1 and --rate above 0")
    folders = [] if data is None else find_data(data, None)
    images = {p.name: sum(f.is_file() for f in (p / "train" / "good").iterdir()) for p in folders} or TRAIN_IMAGES
    rates = measure_rates(base) if rate is None else dict.fromkeys(ARMS, rate)
    seconds = cell_seconds(base, images, seeds, rates)
    source = "measured here" if rate is None else "given"
    out.print(f"{len(seconds)} cells: {len(seconds) // seeds // len(images)} configurations, {len(images)} categories,")
    out.print(f"{seeds} seeds. Images per second, {source}: " + ", ".join(f"{k} {v:.3g}" for k, v in rates.items()))
    table = cost_table(seconds, counts, factors)
    out.print("Hours until the last cell ends, by number of devices and by their speed:")
    shown = Table(*table.columns, box=None)
    for row in table.itertuples(index=False):
        shown.add_row(str(row[0]), *(f"{hours:,.1f}" for hours in row[1:]))
    Console(width=None if sys.stdout.isatty() else 120).print(shown)


def report(
    folder: Folder,
    target: Annotated[Path | None, typer.Option("--out", help="Where to write; by default DIR/report.")] = None,
) -> None:
    """Write the tables, figures and one-page report of a study folder, without running anything."""
    from .report import write_reports

    for place in write_reports(folder, target):
        out.print((place / "claims.md").read_text("utf-8").strip())
        out.print(f"Report: {place / 'report.html'}")


def _workers(
    backend: str | None, count: int | None, threads: int, gpus: float, address: str | None, base: Config
) -> Workers:
    from ..training import resolve_device
    from .run import Workers

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise ConfigError(f"--threads {threads} must be at least 1")
    device = None if address else resolve_device(base.train.device)  # a cluster has devices that this machine lacks
    if count is None:
        count = 1 if backend == "local" or (device is not None and device.type != "cpu") else max(1, cores // threads)
    return Workers(backend or ("joblib" if count > 1 else "local"), count, gpus, address)


def _numbers(option: str, text: str, kind: Callable[[str], float]) -> list[Any]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise ConfigError(f"{option} {text} must be numbers above 0, with commas between")
    return numbers


def _parse_part(text: str) -> slice:
    """Return which cells ``"2/8"`` names: every eighth, from the second on."""
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return slice(int(index) - 1, None, int(count))
    raise ConfigError(f"--part {text} must be I/N with I from 1 to N, such as 2/8")
