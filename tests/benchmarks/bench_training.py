"""Time a training step and its parts, prediction, and peak memory: ``python tests/benchmarks/bench_training.py``.

The floor is the backbone's forward pass alone; the last column is the ratio of the medians. Each figure is the minimum
and the median over the repeats, in milliseconds per image.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mlffn_lite.config import Config
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.devices import generator_for
from mlffn_lite.losses import resize_mask, total_loss
from mlffn_lite.mlffn import MLFFNDetector
from mlffn_lite.training import Trainer


class Noise:
    """As many random images, uint8, instead of a data set."""

    def __init__(self, count: int, size: int) -> None:
        draws = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draws)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the chosen images and empty masks."""
        images = self.images[list(indices)]
        return images, torch.zeros_like(images[:, 0], dtype=torch.bool)


def timed(function: Callable[[], Any], repeats: int, images: int, device: torch.device) -> tuple[float, float]:
    """Return minimum and median milliseconds per image."""
    laps = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        laps.append(1000 * (time.perf_counter() - started) / images)
    return min(laps[1:]), statistics.median(laps[1:])  # the first call warms up


def parts(trainer: Trainer, data: Noise) -> dict[str, Callable[[], Any]]:
    """Return the pieces of a training step as functions of nothing."""
    config, network = trainer.config, trainer.module
    batch = data.batch(range(config.train.batch))[0].to(trainer.device)
    images = (batch.float() / 255).contiguous(memory_format=torch.channels_last)

    def autocast() -> torch.autocast:
        return torch.autocast(trainer.device.type, trainer.autocast, enabled=trainer.autocast is not None)

    def synthesis() -> tuple[Tensor, Tensor]:
        return trainer.pseudo(batch, generator=generator_for(0, "bench", 0))

    def backbone() -> None:
        with torch.no_grad(), autocast():
            network.backbone(images)

    with torch.no_grad(), autocast():
        output = network(images)
        low = torch.rand_like(output.features)
    mask = resize_mask(synthesis()[1], output.score.shape[-2:])

    def texture() -> None:
        x = low.clone().requires_grad_()
        with autocast():
            network.texture(x).float().sum().backward()

    def loss() -> None:
        features, score = output.features.clone().requires_grad_(), output.score.clone().requires_grad_()
        generator = generator_for(0, "bench", 1)
        total_loss(features, score, mask, config.loss, generator=generator).total.backward()

    return {
        "backbone forward (floor)": backbone,
        "synthesis": synthesis,
        "texture, forward + backward": texture,
        "loss, forward + backward": loss,
        "training step": lambda: trainer.train_step(data),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = Config.preset(options.preset).override(options.set)
    data = Noise(4 * config.train.batch, config.data.size)
    detector = MLFFNDetector(config)
    trainer = Trainer(detector.network, config)
    trainer.network.train()
    batch = config.train.batch
    print(
        f"{config.model.backbone}, {config.data.size} px, stride {config.model.stride}, batch {batch}, backbone "
        f"{config.train.backbone}, {trainer.autocast or 'float32'}, {trainer.device}, {options.threads} threads"
    )
    print(f"{'ms per image':32} {'min':>8} {'median':>8} {'/ floor':>8}")
    floor = 0.0

    def show(name: str, function: Callable[[], Any]) -> None:
        nonlocal floor
        low, middle = timed(function, options.repeats, batch, trainer.device)
        floor = floor or middle
        print(f"{name:32} {low:8.2f} {middle:8.2f} {middle / floor:8.2f}")

    for name, function in parts(trainer, data).items():
        show(name, function)
    few = data.images[:batch]
    with torch.inference_mode():
        floor = 0.0  # scores are float32: from here on that is what counts
        show("backbone forward, as in scoring", lambda: detector._run(few, detector._ready(detector.backbone)))
    for method in ("mlffn", "density", "memory", "ensemble", "patchcore", "padim"):
        other = detector if method == "mlffn" else AnomalyDetector(config.replace(method=method))
        if method != "mlffn":
            other.fit(data.images, progress=False)
        show(f"prediction, {method}", lambda other=other: other.predict(few))  # type: ignore[misc]
    if trainer.device.type == "cuda":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated(trainer.device) / 2**20:.0f} MiB")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, all of the process")


if __name__ == "__main__":
    main()
