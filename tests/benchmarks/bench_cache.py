"""Speed of training from pixels in memory, on disk, and decoded anew: ``python tests/benchmarks/bench_cache.py``.

The same steps are done by each in turn; before a lap from disk the system is asked to forget the file, so that it is
read and not remembered. Printed are images per second of CPU time (all threads) and of wall time, the medians of the
laps, and their ratios to those from memory: promised are 0.9 from disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

from mlffn_lite.config import Config
from mlffn_lite.datasets import folder
from mlffn_lite.datasets.folder import AnomalyFolder, Split
from mlffn_lite.network import MLFFN
from mlffn_lite.training import Trainer

DATA = Path(__file__).resolve().parents[2] / "data/miniparts/weave"


def splits(data: Path, size: int) -> dict[str, Split]:
    """Open the training images in three ways."""
    found = {
        "in memory": AnomalyFolder(data, size=size).train,
        "on disk": AnomalyFolder(data, size=size, cache_bytes=0).train,
    }
    fits, folder.fits = folder.fits, lambda size: False
    found["decoded anew"] = AnomalyFolder(data, size=size, cache_bytes=0).train
    folder.fits = fits
    return found


def forget(split: Split) -> None:
    """Ask the system to read a file of pixels anew."""
    for pixels in split._pixels or ():
        if (file := getattr(pixels, "_file", None)) is not None and hasattr(os, "posix_fadvise"):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def lap(trainer: Trainer, split: Split, steps: int) -> tuple[float, float]:
    """Return images per second of CPU time and of wall time."""
    forget(split)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(steps):
        trainer.train_step(split)
        trainer.step += 1
    count = steps * trainer.batch
    return count / (time.process_time() - cpu), count / (time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="of a lap")
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = Config.preset(options.preset, data={"size": options.size}, train={"device": "cpu"})
    ways = splits(options.data, options.size)
    trainers = {way: Trainer(MLFFN(config.model, config.texture), config) for way in ways}
    speeds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for trainer in trainers.values():
        trainer.network.train()
    for number in range(options.laps + 1):
        for way, split in ways.items():
            speed = lap(trainers[way], split, options.steps)
            if number:  # the first warms up
                speeds[way].append(speed)
    print(f"{options.preset}, {options.size} px, batch {config.train.batch}, {options.threads} threads")
    print(f"{'images per second':20}{'CPU':>8}{'ratio':>8}{'wall':>8}{'ratio':>8}")
    base = None
    for way, found in speeds.items():
        cpu, wall = (statistics.median(values) for values in zip(*found, strict=True))
        base = base or (cpu, wall)
        print(f"{way:20}{cpu:8.2f}{cpu / base[0]:8.3f}{wall:8.2f}{wall / base[1]:8.3f}")


if __name__ == "__main__":
    main()
