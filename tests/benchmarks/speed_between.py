"""Compare the speed of two checkouts: ``python tests/benchmarks/speed_between.py OLD NEW [--repeats 5]``.

Runs alternate, each in a fresh process that imports the library of its checkout and nothing of the other: a training,
a fit with the preset ``parts``, the prediction of the test images, saving and loading. Data, seed and threads are the
same. Printed are the medians over the repeats of CPU time (all threads) and wall time, and the ratios new to old; on a
busy machine only CPU time says something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]

# It must run with every version of the library that is compared.
WORK = """
import json, sys, tempfile, time, warnings
from pathlib import Path
import torch
import mlffn_lite
from mlffn_lite import AnomalyDetector, Config
from mlffn_lite.datasets.sources import open_source

checkout, data, size, steps, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
assert Path(mlffn_lite.__file__).is_relative_to(checkout), f"{mlffn_lite.__file__} was imported"
warnings.simplefilter("ignore")
torch.set_num_threads(threads)
found = {}

def timed(name, work, times=1):
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        result = work()
    found[name] = [(time.process_time() - cpu) / times, (time.perf_counter() - wall) / times]
    return result

chosen = {"data": {"size": size}, "train": {"device": "cpu"}}
small = Config.preset("small", **chosen).replace(train={"steps": steps})
parts = open_source(data, small.data)
timed(f"train {steps} steps, small", lambda: AnomalyDetector(small).fit(parts, progress=False))
detector = AnomalyDetector(Config.preset("parts", **chosen))
timed("fit, parts", lambda: detector.fit(parts, progress=False))
images = parts.test.images()
timed(f"predict {len(images)} images", lambda: detector.predict(images))
with tempfile.TemporaryDirectory() as folder:
    timed("save", lambda: detector.save(folder), 3)
    timed("load", lambda: AnomalyDetector.load(folder, device="cpu"), 3)
print(json.dumps(found))
"""


def run(checkout: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return CPU and wall seconds of every piece of work, measured in a fresh process."""
    words = [checkout, options.data.resolve(), options.size, options.steps, options.threads]
    variables = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-c", WORK, *map(str, words)]
    done = subprocess.run(command, env=variables, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--data", type=Path, default=HERE / "data/miniparts/weave")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    pair: list[Any] = [options.old.resolve(), options.new.resolve()]
    laps: dict[Path, list[dict[str, list[float]]]] = {checkout: [] for checkout in pair}
    for repeat in range(options.repeats):
        for checkout in pair if repeat % 2 == 0 else pair[::-1]:  # whoever comes second finds files in memory
            laps[checkout].append(run(checkout, options))
            print(f"{repeat + 1} of {options.repeats}: {checkout.name} done", file=sys.stderr)
    print(f"medians of {options.repeats}, {options.data.name}, {options.size} px, {options.threads} threads, seconds")
    print(f"{'':28}{'CPU old':>9}{'new':>9}{'ratio':>8}{'spread':>8}{'wall old':>10}{'new':>9}{'ratio':>8}")
    for name in laps[pair[0]][0]:
        line = f"{name:28}"
        for kind in (0, 1):
            values = [[lap[name][kind] for lap in laps[checkout]] for checkout in pair]
            old, new = map(statistics.median, values)
            line += f"{old:{'9' if kind == 0 else '10'}.3f}{new:9.3f}{new / old:8.3f}"
            if kind == 0:  # how far runs of the same code lie apart: a smaller difference says nothing
                line += f"{max((max(v) - min(v)) / statistics.median(v) for v in values):8.3f}"
        print(line)


if __name__ == "__main__":
    main()
