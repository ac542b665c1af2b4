"""The command ``mlffn``. User errors are one line and exit code 2."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from . import __version__, registry
from .config import PRESETS, Config
from .datasets.commands import data_app
from .deploy.commands import Engine, RunOrFile, export, say, say_left_out, serve, watch
from .errors import CheckpointError, ConfigError, DataError, MlffnError, UnreadableError, extra, first_line
from .escaped import printable
from .labels import METRIC_LABELS
from .options import Bad, DataFolder, Device, Good, Recursive, Threads, folder_name, out, use_threads
from .ownership import own
from .studies.commands import report, study_app


class Commands(TyperGroup):
    """The commands; an error of the user's is one line, and with ``--debug`` the traceback before it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was given."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has seen enough; typer ends quietly
            raise
        except (MlffnError, OSError, MemoryError, UnicodeError, RuntimeError) as error:
            memory = type(error).__name__ == "OutOfMemoryError"  # torch's, without importing torch
            if isinstance(error, RuntimeError) and not memory:
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            message = str(error) or type(error).__name__
            if isinstance(error, UnreadableError):
                message += ", or leave them out with --skip-bad"
            if memory:
                message = f"the device is out of memory ({first_line(error)}); lower train.batch or data.size"
            return fail(message)


# Help is plain text: as markup, [distributed] would vanish.
app = typer.Typer(
    name="mlffn", cls=Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")


def _version(asked: bool) -> None:
    if asked:
        out.print(f"mlffn-lite {__version__}")
        raise typer.Exit


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `mlffn train` wrote.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without files that cannot be read.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    megapixels: Annotated[
        int, typer.Option("--max-megapixels", min=1, help="Images of more pixels are refused.")
    ] = 150,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Image anomaly detection with the multi-level feature fusion network."""
    if megapixels != 150:
        from .datasets.folder import limit_pixels

        limit_pixels(megapixels * 10**6)


@app.command()
def demo(
    category: Annotated[str, typer.Option(help="MiniParts category.")] = "weave",
    folder: Annotated[
        Path, typer.Option("--out", parser=folder_name, metavar="DIR", help="Where to write the run and its report.")
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Fit to one MiniParts category, evaluate, and write a one-page report (less than a minute on two cores)."""
    from .datasets.miniparts import CATEGORIES, miniparts_path

    if category not in CATEGORIES:
        raise ConfigError(f"unknown MiniParts category {category!r}; choose one of {', '.join(CATEGORIES)}")
    from .datasets.sources import open_source
    from .demo import clear_demo, demo_config
    from .detector import AnomalyDetector
    from .run_report import write_run_report

    use_threads(threads)
    config = demo_config(seed, device or "auto")
    parts = open_source(miniparts_path() / category, config.data)
    with own(folder):
        clear_demo(folder)
        detector = AnomalyDetector(config).fit(parts, out=folder)
        preset = f"parts at {config.data.size} px"
        result, prediction = detector.complete_run(folder, parts, preset=preset)
        assert prediction is not None
        report = write_run_report(folder, detector, parts, result, prediction, command=_command())
    print_metrics(result)
    out.print(f"Report: {report.resolve()}")


@app.command()
def train(
    data: DataFolder,
    folder: Annotated[
        Path | None,
        typer.Option("--out", parser=folder_name, metavar="DIR", help="Run folder to write; by default runs/DATA."),
    ] = None,
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "parts",
    config_file: Annotated[Path | None, typer.Option("--config", help="TOML file instead of a preset.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed (train.seed).")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a value: train.steps=400.")] = None,
    device: Device = None,
    threads: Threads = None,
    good: Good = None,
    bad: Bad = None,
    recursive: Recursive = False,
    crop: Annotated[
        str | None, typer.Option(metavar="L,T,W,H|auto", help="Part of each photograph to look at (data.crop).")
    ] = None,
    ignore: Annotated[
        str | None, typer.Option(metavar="MASK", help="Image, white where pixels count for nothing (data.ignore).")
    ] = None,
    tile: Annotated[int | None, typer.Option(metavar="SIDE", help="Fit and score in tiles (data.tile).")] = None,
    overlap: Annotated[int | None, typer.Option(metavar="PX", help="That tiles share (data.overlap).")] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="Devices to train on; more than 1 needs the [distributed] extra.")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    skip_bad: SkipBad = False,
) -> None:
    """Train a detector on good images, evaluate it on the test images if there are any, and write a run folder."""
    config = Config.load(config_file) if config_file else Config.preset(preset)
    config = config.override(settings or [])
    given: dict[str, dict[str, Any]] = {
        "train": {"seed": seed, "device": device},
        "data": {
            "good": good,
            "bad": bad,
            "recursive": recursive or None,
            "crop": crop,
            "ignore": ignore,
            "tile": tile,
            "overlap": overlap,
        },
    }
    config = config.replace(**{k: {n: v for n, v in some.items() if v is not None} for k, some in given.items()})
    folder = folder or _run_folder(data)
    check_folder(folder, resume)
    if config.train.batch < devices:
        raise ConfigError(f"--devices {devices} must be at most train.batch = {config.train.batch}")

    from .datasets.sources import open_source
    from .datasets.verify import training_notices
    from .datasets.view import View
    from .detector import AnomalyDetector, fitted
    from .loop import Interrupted
    from .run_report import write_run_report

    use_threads(threads)
    parts = open_source(data, config.data, skip_bad=skip_bad)
    _say_unread(data, config, parts)
    say(training_notices(parts))
    fabric = launch(config, devices) if devices > 1 else None
    first = fabric is None or fabric.global_rank == 0  # of the processes, to speak for all
    options = {} if fabric is None else {"fabric": fabric}
    detector = AnomalyDetector(config, **options)
    with own(folder):
        check_folder(folder, resume)  # again: only now is it ours
        try:
            detector.fit(parts, out=folder, resume=resume)
        except Interrupted as stop:
            if first:
                out.print(f"Stopped after step {stop.step}; go on with the same command and --resume.")
            raise typer.Exit(130) from stop
        if first:
            result, prediction = detector.complete_run(folder, parts, preset=str(config_file or preset))
            report = write_run_report(folder, detector, parts, result, prediction, command=_command())
    if first:
        print_metrics(result)
        if detector.view != View():
            out.print(f"Looks at {detector.view.describe()}")
        out.print(f"Decision: {fitted(detector).describe()}")
        out.print(f"Run: {folder}\nReport: {report}")


@app.command()
def evaluate(
    run: RunFolder,
    data: DataFolder,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=folder_name, metavar="DIR", help="Where to write; by default RUN/evaluation/DATA."
        ),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    skip_bad: SkipBad = False,
) -> None:
    """Measure a trained detector on the test images of a folder: metrics, curves as CSV, and a report."""
    from .datasets.verify import measuring_notices
    from .detector import AnomalyDetector, fitted
    from .run_report import measure_and_report

    use_threads(threads)
    detector = AnomalyDetector.load(run, device=device)
    parts = detector.open(data, skip_bad=skip_bad)
    _say_unread(data, detector.config, parts)
    say(measuring_notices(parts))
    target = folder or run / "evaluation" / data.resolve().name
    result, page = measure_and_report(detector, parts, target, _command())
    print_metrics(result)
    out.print(f"Decision: {fitted(detector).describe()}\nReport: {page}")


@app.command()
def calibrate(
    run: RunFolder,
    good: Annotated[
        list[Path] | None, typer.Argument(metavar="[GOOD…]", help="Good images that were not trained on, or a folder.")
    ] = None,
    false_alarms: Annotated[
        float | None, typer.Option(help="Share of good images that may be called anomalous: 0.01.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Score above which an image is called anomalous.")] = None,
    min_area: Annotated[int | None, typer.Option(help="Pixels of the scored image that a region must have.")] = None,
    min_peak: Annotated[float | None, typer.Option(help="Score that a region must reach.")] = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Choose when an image is called anomalous, from good images or by hand, and say what that promises.

    Without images it goes by the scores that the run keeps: of validation/good, or of the training images. Metrics and
    reports of the old decision are moved to RUN/superseded.
    """
    from .detector import AnomalyDetector, fitted
    from .heatmaps import collect_images
    from .run_report import set_aside
    from .storage import read_config

    use_threads(threads)
    chosen = {"false_alarms": false_alarms, "threshold": threshold, "min_area": min_area, "min_peak": min_peak}
    if not good and all(value is None for value in chosen.values()):
        raise ConfigError("say what to change: give good images, --false-alarms, --threshold, --min-area or --min-peak")
    read_config(run)  # before a lock is put there
    for place in good or ():
        say_left_out(place, False)
    with own(run):
        detector = AnomalyDetector.load(run, device=device)
        old = fitted(detector)
        calibration = detector.calibrate(collect_images(good) if good else None, **chosen)  # type: ignore[arg-type]
        aside = set_aside(run, old) if calibration != old else None
        detector.save(run)
    out.print(f"Decision: {calibration.describe()}")
    if aside is not None:
        out.print(f"Results with the old one are in {aside} now; `mlffn evaluate` measures the new.")


@app.command()
def predict(
    run: RunOrFile,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files or folders of them.")],
    folder: Annotated[
        Path, typer.Option("--out", parser=folder_name, metavar="DIR", help="Where to write heatmaps and scores.csv.")
    ],
    pictures: Annotated[
        str, typer.Option(metavar="jpeg|png|none", help="Heatmaps over the images, at their size.")
    ] = "jpeg",
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="The same as --pictures none.")] = False,
    maps: Annotated[str, typer.Option(metavar="none|npy|tiff16", help="Score maps, to compute with.")] = "none",
    masks: Annotated[bool, typer.Option("--masks", help="Masks of the regions that count.")] = False,
    form: Annotated[str, typer.Option("--format", metavar="csv|coco", help="Regions as COCO JSON too.")] = "csv",
    recursive: Recursive = False,
    resume: Annotated[bool, typer.Option("--resume", help="Judge only what --out has no verdict for.")] = False,
    engine: Engine = "torch",
    device: Device = None,
    threads: Threads = None,
    skip_bad: SkipBad = False,
) -> None:
    """Judge images: OK or NOK with regions in scores.csv and regions.csv, and heatmaps on a fixed colour scale."""
    from .deploy.engine import open_detector
    from .detector import fitted
    from .heatmaps import NOK, NOT_FINITE, Outputs, collect_images, not_judged, write_predictions

    for value, allowed, name in (
        (pictures, ("jpeg", "png", "none"), "--pictures"),
        (maps, ("none", "npy", "tiff16"), "--maps"),
        (form, ("csv", "coco"), "--format"),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} {value} is unknown; choose one of {', '.join(allowed)}")
    use_threads(threads)
    outputs = Outputs("none" if no_pictures else pictures, maps, masks)  # type: ignore[arg-type]
    detector = open_detector(run, engine, device=device)
    places = [path for path in images if path.is_dir()]
    if recursive and any(place.resolve() in folder.resolve().parents for place in places):
        raise DataError(f"--out {folder} lies in a folder of images to judge; write elsewhere")
    found = collect_images(images, recursive)
    for place in dict.fromkeys(places):
        say_left_out(place, recursive)
    table = write_predictions(
        detector, found if recursive else images, folder, outputs=outputs, resume=resume, coco=form == "coco"
    )
    count = int((table["verdict"] == NOK).sum())
    out.print(f"{len(table)} images, {count} NOK; scores.csv and regions.csv are in {folder}")
    out.print(f"Decision: {fitted(detector).describe()}")
    if words := not_judged(table):
        print(f"mlffn: {printable(words)}", file=sys.stderr)
        if not skip_bad or (table["error"] == NOT_FINITE).any():  # that is no fault of the file
            raise typer.Exit(2)


app.command()(report)
app.command()(export)
app.command()(watch)
app.command()(serve)


@app.command("config")
def show_config(
    preset: Annotated[str, typer.Argument(help=f"One of {', '.join(PRESETS)}.")] = "parts",
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema of every setting instead.")] = False,
) -> None:
    """Print a preset as TOML, to change and give to `train --config`, or what an editor needs to check such a file."""
    chosen = Config.preset(preset)
    out.print(json.dumps(Config.model_json_schema(), indent=2) if schema else chosen.to_toml().strip())


def _say_unread(data: Path, config: Config, parts: Any) -> None:
    """Name what the folders of the data hold that is not read."""
    from .datasets.listing import searched_folders, unused_folders

    asked = config.data
    places = searched_folders(data, asked.good, asked.bad) if asked.source == "folder" else []
    named = {p.parent for p in (*parts.train.paths, *parts.test.paths) if p.is_file()}
    for place in places or sorted(named):
        say_left_out(place, asked.recursive)
    say(unused_folders(data, asked.good, asked.bad))


def _run_folder(data: Path) -> Path:
    """Return where a run on these data goes if nothing is said."""
    place = data.resolve()
    return Path("runs") / ((place.stem if place.is_file() else place.name) or "run")


def _command() -> str:
    """Return the command that runs now, as one would type it."""
    return shlex.join(["mlffn", *sys.argv[1:]])


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse to mix a new run with an old one, before anything is read or computed."""
    from .storage import CHECKPOINT, METRICS

    if ((folder / CHECKPOINT).exists() or (folder / METRICS).exists()) and not resume:
        raise CheckpointError(f"{folder} holds a run already; add --resume to go on, or choose another --out")


def launch(config: Config, devices: int) -> Any:
    """Start one process per device through Lightning Fabric and return this process's Fabric."""
    if not registry.find("methods", config.method).trains:
        raise ConfigError(f"the method {config.method} is not trained; leave out --devices")
    with extra("distributed"):
        from lightning_fabric import Fabric
    device = config.train.device
    accelerator = "auto" if device == "auto" else device.partition(":")[0]
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp_find_unused_parameters_true")
        fabric.launch()
    except (ValueError, RuntimeError) as error:  # Fabric's own words for a device that is not there
        raise ConfigError(f"cannot use {devices} devices of kind {device!r}: {first_line(error)}") from error
    return fabric


_RATES = {"false_alarms": "false alarms", "detections": "defects found"}


def print_metrics(result: dict[str, Any]) -> None:
    """Print metrics in percent with what they were measured on; one that is not defined says why."""
    if "images" not in result:
        out.print("No test images: nothing was measured.")
        return
    height, width = result["shape"]
    shown = [f"{label} {100 * result[key]:.1f}" for key, label in METRIC_LABELS.items() if key in result]
    undefined = [label for key, label in METRIC_LABELS.items() if key not in result]
    out.print("  ".join(shown) + " (percent)" if shown else "No metric is defined.")
    if undefined:
        reason = "good and defective test images" if "image_auroc" not in result else "masks of the defects"
        out.print(f"Not defined without {reason}: {', '.join(undefined)}")
    if (rates := result.get("decision")) is not None:
        from .decision import Share

        found = [f"{words} {Share(**rates[k])}" for k, words in _RATES.items() if rates[k]["total"]]
        out.print("At the threshold: " + "; ".join(found))
    out.print(f"seed {result['seed']}, {height}x{width} px, {result['images']} test images, {result['device']}")


def main() -> None:
    """Run the command line; the entry point of ``mlffn``."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; ours is --max-megapixels
            code = app(prog_name="mlffn", standalone_mode=False)
    except typer.Abort:
        code = 130
    except _USAGE_ERROR as error:
        text = error.format_message()
        if type(error).__name__ != "NoArgsIsHelpError":  # whose message is the help
            place = f"; see {error.ctx.command_path} --help" if error.ctx else ""
            fail(f"{text[:1].lower()}{text[1:].rstrip('.')}{place}")
        print(text, file=sys.stderr)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


# Click's, which typer brings along; where it lies depends on typer's version.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of several processes speaks for all
        print(f"mlffn: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"mlffn: {printable(str(message))}", file=sys.stderr)
