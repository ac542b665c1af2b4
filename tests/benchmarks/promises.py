"""Promised and found false alarms: ``python tests/benchmarks/promises.py SETS`` prints a table of a folder of sets.

Each set (MVTec layout) is fitted to once per seed. Its threshold is then chosen for each rate from the good images that
the run keeps: of ``validation/good``, or the training images, left out; and judged on ``test/good``, which nothing was
fitted to or calibrated on. The promise bounds the expected rate: what is found may lie above it by chance, so the
interval (Wilson, 95 %) counts. ``--out`` keeps the rows as CSV, and goes on with what is in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mlffn_lite import AnomalyDetector, Config
from mlffn_lite.decision import share
from mlffn_lite.detector import fitted
from mlffn_lite.errors import MlffnError
from mlffn_lite.storage import write_atomic

COLUMNS = ("set", "seed", "calibrated on", "asked %", "promised %", "found %", "95 %", "alarms", "defects found %")


def rows(path: Path, config: Config, rates: list[float]) -> Iterator[dict[str, Any]]:
    """Fit to a set and give a row per rate."""
    detector = AnomalyDetector(config)
    parts = detector.open(path)
    detector.fit(parts)
    prediction = detector.predict_split(parts.test)
    kept = fitted(detector)
    for rate in rates:
        if kept.source == "training":
            raise MlffnError(f"{config.method} scores its own training images, which promise nothing; --set method=…")
        calibration = detector.calibrate(false_alarms=rate)
        decided = detector.decide(prediction, parts.test)
        found, hits = decided["false_alarms"], decided["detections"]
        alarms = share(found["images"], found["total"])
        values = (
            *(path.name, config.train.seed, f"{len(calibration.scores)} {calibration.source}", 100 * rate),
            *(100 * calibration.promise, 100 * alarms.rate, f"{100 * alarms.low:.1f} to {100 * alarms.high:.1f}"),
            *(f"{alarms.images} of {alarms.total}", 100 * hits["rate"]),
        )
        yield dict(zip(COLUMNS, values, strict=True))


def main() -> int:
    """Measure what is not in ``--out`` yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, help="a folder of sets, or one set")
    parser.add_argument("--rates", default="0.01,0.02,0.05,0.1", help="rates of false alarms to ask for")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--preset", default="parts")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="section.key=value")
    parser.add_argument("--out", type=Path, help="CSV file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = Config.preset(options.preset).override(options.settings)
    sets = (
        [options.sets] if (options.sets / "train").is_dir() else sorted(p.parent for p in options.sets.glob("*/train"))
    )
    if not sets:
        print(f"{options.sets} holds no set: no folder with train/good in it", file=sys.stderr)
        return 2
    known: list[Any] = pd.read_csv(options.out).to_dict("records") if options.out and options.out.exists() else []
    done = {(row["set"], row["seed"]) for row in known}
    for seed in range(options.seeds):
        for path in sets:
            if (path.name, seed) in done:
                continue
            try:
                known += rows(path, base.replace(train={"seed": seed}), [float(r) for r in options.rates.split(",")])
            except MlffnError as error:
                print(f"{path.name}: {error}", file=sys.stderr)
                continue
            if options.out:
                write_atomic(options.out, pd.DataFrame(known, columns=list(COLUMNS)).to_csv(index=False))
    table = pd.DataFrame(known, columns=list(COLUMNS))
    print(table.to_string(index=False, float_format="{:.1f}".format))
    for rate, group in table.groupby("asked %"):
        counts = group["alarms"].str.split(" of ", expand=True).astype(int).sum()
        print(f"asked for {rate:g} %: {share(int(counts[0]), int(counts[1]))} over all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
