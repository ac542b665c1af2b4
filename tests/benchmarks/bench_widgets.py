"""Time what a step of a slider costs: ``python tests/benchmarks/bench_widgets.py``, with ``notebooks`` in PYTHONPATH.

Each step sets a control to a new value; the time includes everything up to the encoded picture. The painter also runs a
detector of the preset small on one image; how well that is trained does not matter here. Beside the time of the wall
clock stands that of the processor, which says what remains when nothing else runs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from course.explorers import PseudoExplorer, PseudoPainter
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.datasets.miniparts import miniparts_path
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.widgets import HeatmapExplorer, RunComparison


def between(control: Any) -> list[float]:
    """Return values over the range of a slider, up and down."""
    steps = [control.min + (control.max - control.min) * i / 24 for i in range(1, 24)]
    return [*steps, *reversed(steps)]


def timed(control: Any, values: Iterable[Any], steps: int) -> tuple[list[float], float]:
    """Return the milliseconds of every step, and the mean milliseconds of the processor."""
    laps, busy = [], 0.0
    for value in itertools.islice(itertools.cycle(values), steps + 3):
        started, before = time.perf_counter(), time.process_time()
        control.value = value
        laps.append(1000 * (time.perf_counter() - started))
        busy += 1000 * (time.process_time() - before)
    return laps[3:], busy / len(laps)  # the first ones warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = AnomalyFolder(miniparts_path() / "weave", size=options.size)
    config = Config.preset("small", data={"size": options.size}, train={"steps": 2, "device": "cpu"})
    with tempfile.TemporaryDirectory() as run:
        detector = AnomalyDetector(config).fit(folder, out=Path(run), progress=False)
    prediction = detector.predict_split(folder.test)
    heat = HeatmapExplorer(prediction, folder.test)
    two = RunComparison({"one": prediction, "two": prediction}, folder.test)
    painter, pseudo = PseudoPainter(detector, folder.test), PseudoExplorer(folder.train)
    rows: dict[str, tuple[Any, Iterable[Any]]] = {
        "heatmaps, opacity": (heat.opacity, between(heat.opacity)),
        "heatmaps, threshold": (heat.threshold, between(heat.threshold)),
        "heatmaps, colours": (heat.colours, [(heat.colours.min, v) for v in between(heat.colours)]),
        "heatmaps, image": (heat.picker.image, range(len(folder.test))),
        "two runs, strictness": (two.strictness, between(two.strictness)),
        "two runs, image": (two.picker.image, range(len(folder.test))),
        "painter, x": (painter.x, between(painter.x)),
        "painter, size": (painter.size, between(painter.size)),
    }
    for kind, name in {"confetti": "blur", "cutpaste": "area", "scar": "length", "blemish": "contrast"}.items():
        control = pseudo.parameters[kind][name]
        pair = isinstance(control.value, tuple)
        rows[f"{kind}, {name}"] = (control, [(control.min, v) if pair else v for v in between(control)])
    print(f"torch {torch.__version__}, {options.threads} threads, images of {options.size} px, {options.steps} steps")
    print(f"{'ms per step':24}{'median':>10}{'worst':>10}{'processor':>12}")
    for label, (control, values) in rows.items():
        if (kind := label.partition(",")[0]) in pseudo.parameters:
            pseudo.kind.value = kind
        laps, busy = timed(control, values, options.steps)
        print(f"{label:24}{statistics.median(laps):10.1f}{max(laps):10.1f}{busy:12.1f}")


if __name__ == "__main__":
    main()
