"""The command ``mlffn``. User errors are one line and exit code 2."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from .config import PRESETS, Config
from .errors import CheckpointError, ConfigError, DataError, MlffnError
from .studies.commands import report, study_app

if TYPE_CHECKING:  # torch takes seconds to import; `mlffn --help` shall not
    from .datasets.folder import AnomalyFolder

app = typer.Typer(
    name="mlffn",
    help="Image anomaly detection with the multi-level feature fusion network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Check data folders, list and download public sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
app.command()(report)
# Paths are printed as they are: no markup, no emoji, no wrapping.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

DataFolder = Annotated[Path, typer.Argument(metavar="DATA", help="MVTec-layout folder, or a folder of good images.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `mlffn train` wrote.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default CUDA if there is one.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Image anomaly detection with the multi-level feature fusion network."""


@app.command()
def demo(
    category: Annotated[str, typer.Option(help="MiniParts category.")] = "weave",
    folder: Annotated[Path, typer.Option("--out", help="Where to write the run and its report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Device = None,
) -> None:
    """Train on one MiniParts category, evaluate, and write a one-page report (a few minutes on two cores)."""
    from .datasets.miniparts import CATEGORIES, miniparts_path

    if category not in CATEGORIES:
        raise ConfigError(f"unknown MiniParts category {category!r}; choose one of {', '.join(CATEGORIES)}")
    from .demo import clear_demo, demo_config, write_run_report
    from .detector import AnomalyDetector

    config = demo_config(seed, device or "auto")
    parts = open_folder(miniparts_path() / category, **dataclasses.asdict(config.data))
    clear_demo(folder)
    detector = AnomalyDetector(config).fit(parts, out=folder)
    preset = f"lite at {config.data.size} px, {config.train.steps} steps"
    result, prediction = detector.complete_run(folder, parts, preset=preset)
    assert prediction is not None
    report = write_run_report(folder, detector, parts, result, prediction)
    print_metrics(result)
    out.print(f"Report: {report.resolve()}")


@app.command()
def train(
    data: DataFolder,
    folder: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "lite",
    config_file: Annotated[Path | None, typer.Option("--config", help="TOML file instead of a preset.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed (train.seed).")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a value: train.steps=400.")] = None,
    device: Device = None,
    devices: Annotated[int, typer.Option(help="Devices to train on; more than 1 needs the [distributed] extra.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    skip_bad: SkipBad = False,
) -> None:
    """Train a detector on good images, evaluate it on the test images if there are any, and write a run folder."""
    config = Config.load(config_file) if config_file else Config.preset(preset)
    config = config.override(settings or [])
    config = config.replace(train={k: v for k, v in (("seed", seed), ("device", device)) if v is not None})
    source = str(config_file) if config_file else preset

    from .detector import AnomalyDetector
    from .training import Interrupted

    check_folder(folder, resume)
    if devices < 1 or config.train.batch < devices:
        raise ConfigError(f"--devices {devices} must be at least 1, and at most train.batch = {config.train.batch}")
    parts = open_folder(data, **dataclasses.asdict(config.data), skip_bad=skip_bad)
    fabric = launch(config.train.device, devices) if devices > 1 else None
    try:
        detector = AnomalyDetector(config).fit(parts, out=folder, resume=resume, fabric=fabric)
    except Interrupted as stop:
        if fabric is None or fabric.global_rank == 0:
            out.print(f"Stopped after step {stop.step}; go on with the same command and --resume.")
        raise typer.Exit(130) from stop
    if fabric is None or fabric.global_rank == 0:
        print_metrics(detector.complete_run(folder, parts, preset=source)[0])
        out.print(f"Run: {folder}")


@app.command()
def evaluate(run: RunFolder, data: DataFolder, device: Device = None, skip_bad: SkipBad = False) -> None:
    """Measure a trained detector on the test images of a folder and print the metrics."""
    from .peers import load_run

    detector = load_run(run, device=device)
    result = detector.evaluate(open_folder(data, shape=detector.shape, skip_bad=skip_bad))
    print_metrics({**result, **detector.environment()})


@app.command()
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files or folders of them.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write heatmaps and scores.csv.")],
    device: Device = None,
    skip_bad: SkipBad = False,
) -> None:
    """Score images: heatmap overlays on a fixed colour scale, and scores.csv."""
    from .peers import load_run
    from .prediction import write_predictions

    detector = load_run(run, device=device)
    table = write_predictions(detector, images, folder, skip_bad=skip_bad)
    count = int(table["anomalous"].sum())
    out.print(f"{len(table)} images, {count} above the threshold; heatmaps and scores.csv are in {folder}")


@app.command()
def peers(
    data: Annotated[
        list[Path] | None, typer.Argument(metavar="[DATA…]", help="Folders; by default the MiniParts categories.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Names, with commas between; by default all.")] = None,
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "lite",
    seeds: Annotated[int, typer.Option(help="How many seeds, from train.seed on.")] = 3,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a value: data.size=128.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where cells and tables are kept.")] = Path("runs/peers"),
    device: Device = None,
) -> None:
    """Compare methods on data folders over seeds, in one table; stop it at any time, it goes on where it was."""
    config = Config.preset(preset).override(settings or [])
    config = config.replace(train={} if device is None else {"device": device})

    from . import comparison
    from .datasets.miniparts import CATEGORIES, miniparts_path
    from .peers import METHODS
    from .training import resolve_device

    resolve_device(config.train.device)
    places = data or [miniparts_path() / name for name in CATEGORIES]
    names = list(METHODS) if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    cells = comparison.plan(places, names, config, seeds, " ".join([preset, *(settings or [])]))
    try:
        failures = comparison.run(cells, folder)
    except KeyboardInterrupt as stop:
        out.print(f"Stopped; finished cells are in {folder}; go on with the same command.")
        raise typer.Exit(130) from stop
    for name, reason in failures.items():
        print(f"mlffn: {name} failed: {reason}", file=sys.stderr)
    if len(failures) < len(cells):
        comparison.write_tables(folder)
        comparison.print_tables(folder, Console(width=None if sys.stdout.isatty() else 120))
        out.print(f"Tables: {folder / comparison.MARKDOWN}, {folder / comparison.CSV}")
    if failures:
        raise typer.Exit(1)


@data_app.command("verify")
def data_verify(path: DataFolder) -> None:
    """Print what a data folder holds and every fault; exit code 2 if there is one."""
    from .datasets.verify import verify

    report = verify(path)
    for line in report.lines():
        out.print(line)
    if report.faults:
        raise typer.Exit(2)


@data_app.command("list")
def data_list() -> None:
    """List the public sets in the catalogue with licence and size."""
    from .datasets.catalog import CATALOG

    table = Table("name", "title", "licence", "size", "checksum", box=None)
    for entry in CATALOG.values():
        table.add_row(*entry.row())
    Console().print(table)


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="A name from `mlffn data list`.")],
    category: Annotated[
        str | None, typer.Option(help="Category whose folder to print; the archive is always fetched whole.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder that the set is put into.")] = Path("datasets"),
) -> None:
    """Download a public set, verify it, and bring it into MVTec layout."""
    from .datasets.catalog import download

    out.print(f"{name} is in {download(name, root, category=category)}")


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse to mix a new run with an old one, before anything is read or computed."""
    from .storage import CHECKPOINT, METRICS

    if ((folder / CHECKPOINT).exists() or (folder / METRICS).exists()) and not resume:
        raise CheckpointError(f"{folder} holds a run already; add --resume to go on, or choose another --out")


def open_folder(data: Path, **options: Any) -> AnomalyFolder:
    """Read a data folder; the hint names the option of this command line."""
    from .datasets.folder import AnomalyFolder

    try:
        return AnomalyFolder(data, **options)
    except DataError as error:
        raise DataError(str(error).replace("skip bad files", "use --skip-bad")) from error


def launch(device: str, devices: int) -> Any:
    """Start one process per device through Lightning Fabric and return this process's Fabric."""
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise ConfigError("several devices need lightning-fabric: pip install 'mlffn-lite[distributed]'") from error
    accelerator = "auto" if device == "auto" else device.partition(":")[0]
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp_find_unused_parameters_true")
        fabric.launch()
    except (ValueError, RuntimeError) as error:  # Fabric's own words for a device that is not there
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"cannot use {devices} devices of kind {device!r}: {reason}") from error
    return fabric


def print_metrics(result: dict[str, Any]) -> None:
    """Print metrics in percent with what they were measured on."""
    if "image_auroc" not in result:
        out.print("No test images: nothing was measured.")
        return
    height, width = result["shape"]
    names = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pro": "PRO"}
    out.print("  ".join(f"{label} {100 * result[key]:.1f}" for key, label in names.items()) + " (percent)")
    out.print(f"seed {result['seed']}, {height}x{width} px, {result['images']} test images, {result['device']}")


def main() -> None:
    """Run the command line; the entry point of ``mlffn``."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app()
    except (MlffnError, OSError, MemoryError, UnicodeError) as error:
        fail(str(error) or type(error).__name__)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without importing torch
            raise
        fail(f"the device is out of memory ({str(error).splitlines()[0]}); lower train.batch or data.size")


def fail(message: str) -> NoReturn:
    """Print one line, or first the traceback if ``--debug`` is given, and exit with code 2."""
    if "--debug" in sys.argv:
        traceback.print_exc()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of several processes speaks for all
        print(f"mlffn: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"mlffn: {message}", file=sys.stderr)
