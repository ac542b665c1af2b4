"""What a grid costs: training images per cell, measured images per second, and how cells fill 1, 8 or 64 devices."""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from ..config import Config
from ..detector import AnomalyDetector
from ..training import Trainer, total_steps
from .grid import ARMS, FULL_RATIO, STUDIES, arm_config, study_configs

_REPEATS = 3


class Noise:
    """Smooth random images (count, 3, size, size), uint8, that cost a training step what real ones cost."""

    def __init__(self, count: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        small = torch.rand(count, 3, size // 8, size // 8, generator=generator)
        large = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
        self.images = (255 * large).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return the images of some indices, and no masks."""
        return self.images[torch.as_tensor(indices)], torch.empty(0)


def measure_rates(base: Config, *, repeats: int = _REPEATS) -> dict[str, float]:
    """Time training steps of every arm here and now; returns images per second by arm (median of ``repeats``)."""
    return {arm: _rate(arm_config(base, arm), repeats) for arm in ARMS}


def _rate(config: Config, repeats: int) -> float:
    data = Noise(config.train.batch, config.data.size)
    trainer = Trainer(AnomalyDetector(config).network, config)
    trainer.network.train()
    laps = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        trainer.train_step(data)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        laps.append(time.perf_counter() - started)
    return config.train.batch / statistics.median(laps[1:])  # the first step warms up


def cell_seconds(
    base: Config, images: Mapping[str, int], seeds: int, rates: Mapping[str, float], studies: Sequence[str] = STUDIES
) -> list[float]:
    """Return the seconds of every cell of a grid.

    Parameters
    ----------
    base : Config
        Preset with schedule.
    images : mapping
        Good training images by category.
    seeds : int
        How many.
    rates : mapping
        Training images per second of each arm; every ratio of Table 3 costs what the whole method costs.
    studies : sequence
        Which; a cell that two of them share counts once.
    """
    configs = {c.to_toml(): c for study in studies for c in study_configs(study, base).values()}
    speed = {arm_config(base, arm).to_toml(): rates[arm] for arm in ARMS}
    return [
        total_steps(base.train, count) * base.train.batch / speed[_usual_ratio(config)]
        for config in configs.values()
        for count in images.values()
        for _ in range(seeds)
    ]


def _usual_ratio(config: Config) -> str:
    return config.replace(pseudo={"ratio": FULL_RATIO}).to_toml()


def makespan(seconds: Sequence[float], devices: int) -> float:
    """Return when the last cell ends if each device takes the longest cell that is left (at most 4/3 of the best)."""
    ends = [0.0] * devices
    for cell in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + cell)
    return max(ends)


def cost_table(seconds: Sequence[float], devices: Sequence[int], faster: Sequence[float]) -> pd.DataFrame:
    """Return the hours of a grid by number of devices (rows) and by how much faster than measured each is (columns)."""
    rows = [[n, *(makespan(seconds, n) / factor / 3600 for factor in faster)] for n in devices]
    return pd.DataFrame(rows, columns=["devices", *(f"{factor:g}×" for factor in faster)])
