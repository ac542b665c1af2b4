"""The commands ``mlffn export``, ``watch`` and ``serve``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import ConfigError
from ..escaped import printable
from ..options import Device, Recursive, Threads, out, use_threads

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `mlffn train` wrote.")]
RunOrFile = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a file that `mlffn export` wrote.")]
Engine = Annotated[str, typer.Option(metavar="torch|onnx|openvino", help="What computes; export the others first.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write scores.csv, regions.csv and heatmaps.")]


def export(
    run: Run,
    form: Annotated[str, typer.Option("--format", metavar="onnx|openvino|torch", help="What to write.")] = "onnx",
    path: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where; by default model.onnx, .xml or .pt2 in RUN.")
    ] = None,
) -> None:
    """Write a run as a file that runs without this library, and check it against the run.

    Beside an ONNX file stands run.py, which judges images with numpy, Pillow and onnxruntime only: python run.py
    model.onnx IMAGE…
    """
    from .export import RUNNER, export

    with Console(stderr=True).status("tracing and checking"):
        done = export(run, form, path)
    out.print(f"{done.path} is written; on noise its map deviates by {done.deviation:.1g} of the largest score")
    if form == "onnx":
        out.print(f"Judge with it: python {done.path.parent / RUNNER} {done.path} IMAGE…")


def watch(
    run: RunOrFile,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder that images come into.")],
    folder: Out,
    pictures: Annotated[str, typer.Option(metavar="jpeg|png|none", help="Heatmaps over the images.")] = "jpeg",
    move: Annotated[
        Path | None, typer.Option("--move", metavar="DIR", help="Move judged images to OK, NOK and ERROR in there.")
    ] = None,
    recursive: Recursive = False,
    settle: Annotated[
        float, typer.Option(min=0.05, max=3600, help="Seconds without a change after which a file is complete.")
    ] = 1.0,
    engine: Engine = "torch",
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Judge every image that appears in a folder, once, until Ctrl-C or SIGTERM; start again to go on.

    scores.csv in --out is the journal: what is OK or NOK there is not judged again. Nothing is moved without --move;
    with it a name may come again.
    """
    if pictures not in ("jpeg", "png", "none"):
        raise ConfigError(f"--pictures {pictures} is unknown; choose one of jpeg, png, none")
    from ..heatmaps import Outputs
    from .engine import open_detector
    from .watch import Watcher

    use_threads(threads)
    outputs = Outputs(pictures)  # type: ignore[arg-type]
    detector = open_detector(run, engine, device=device)
    about: dict[str, Any] = {"move": move, "recursive": recursive, "settle": settle, "say": _say}
    watcher = Watcher(detector, source, folder, outputs=outputs, **about)
    say_left_out(source, recursive)
    with _signals(watcher.stop.set):
        watcher.run(lambda: out.print(f"Watching {source}; verdicts go to {folder}; stop with Ctrl-C"))
    counts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(watcher.counts.items())) or "no image"
    out.print(f"Stopped: {counts}; the same command goes on")


def serve(
    run: RunOrFile,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str, typer.Option(envvar="MLFFN_TOKEN", help="Wanted from clients as Authorization: Bearer TOKEN.")
    ] = "",
    megabytes: Annotated[float, typer.Option("--max-mb", min=0.001, help="Of an image, as it is sent.")] = 20.0,
    megapixels: Annotated[float, typer.Option("--max-megapixels", min=0.001, help="Of an image, when read.")] = 100.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request.")] = 30.0,
    engine: Engine = "torch",
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Answer POST /predict with a verdict: an image as the body, JSON back; / is a page to drop photographs on.

    curl --data-binary @photo.jpg localhost:8000/predict; with ?picture=1 the heatmap, with ?heatmap=1 it is in the
    JSON. /health and /metrics (Prometheus) tell of the service.
    """
    from .engine import open_detector
    from .serve import Limits, create_app, listen

    use_threads(threads)
    app = create_app(
        open_detector(run, engine, device=device), limits=Limits(megabytes, megapixels, timeout), token=token
    )

    def ready(address: str) -> None:
        out.print(f"Serving at {address}; stop with Ctrl-C")
        if not token and host not in ("127.0.0.1", "localhost", "::1"):
            print("mlffn: whoever reaches this machine may use the service; --token asks for a word", file=sys.stderr)

    with _signals(lambda: None):  # uvicorn has its own, and raises the signal again when it has ended
        listen(app, host, port, ready)


def say_left_out(folder: Path, recursive: bool) -> None:
    """Name what a folder of images holds that is not read."""
    from ..datasets.folder import left_out

    say([f"{place}: left out {line}" for place, line in left_out(folder, recursive)])


def say(notices: Sequence[str]) -> None:
    """Print what is worth knowing and no fault, a line each."""
    for line in notices:
        print(f"mlffn: {printable(line)}", file=sys.stderr)


def _say(row: dict[str, Any]) -> None:
    about = row["error"] if row["verdict"] == "ERROR" else f"{row['score']:.4g}"
    out.print(printable(f"{row['verdict']:<5} {row['image']} {about}"))


@contextmanager
def _signals(end: Callable[[], None]) -> Iterator[None]:
    """Call ``end`` when Ctrl-C or SIGTERM asks to."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(name, lambda *_: end()) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
