"""Time and memory of the pixel metrics: ``python tests/benchmarks/bench_metrics.py [--maps 160] [--size 256] ...``.

With ``--rss`` each metric runs once in a process of its own, which prints its peak memory beside that of the inputs.
With ``--streamed`` maps are made and given a few at a time, as an evaluation of many images does: pixel AUROC and PRO,
CPU and wall time, peak memory of the process, and what its temporary files take.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlffn_lite import metrics
from mlffn_lite.streamed import PixelMetrics

METRICS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pro": metrics.pro,
    "pixel_auroc": metrics.pixel_auroc,
    "label_regions": lambda maps, masks: metrics.label_regions(masks),
    "region_curve .3": lambda maps, masks: metrics.region_curve(maps, masks, limit=0.3),
    "best_threshold": lambda maps, masks: metrics.best_threshold(maps.flatten(), masks.flatten()),
}


def inputs(count: int, size: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a block and a bar as defects in three images of four; about 3 % of the pixels are defective."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for i in range(count):
        if i % 4:
            y, x = torch.randint(0, size // 2, (2,), generator=generator).tolist()
            masks[i, y : y + size // 6, x : x + size // 6] = True
            masks[i, -size // 8 :, x : x + size // 16] = True
    maps = torch.empty(count, size, size)
    for image, mask in zip(maps, masks, strict=True):
        torch.randn(size, size, generator=generator, out=image)
        image += mask
    return maps.to(device), masks.to(device)


def timed(run: Callable[[], Any], repeats: int, device: str) -> list[float]:
    """Seconds of each repeat."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def one_peak(name: str, args: argparse.Namespace) -> None:
    """Run one metric once and print time and peak memory."""
    data = inputs(args.maps, args.size, args.device)
    before = peak_mib()
    (seconds,) = timed(lambda: METRICS[name](*data), 1, args.device)
    print(f"{name:16s} {seconds:8.2f} s   peak {peak_mib():7.0f} MiB, of which {before:7.0f} before the call")


def streamed(count: int, size: int) -> None:
    """Measure maps that are never in memory together."""
    started, cpu, few = time.perf_counter(), time.process_time(), 16
    with PixelMetrics() as pixels:
        for start in range(0, count, few):
            pixels.add(*inputs(min(few, count - start), size, "cpu", seed=start))
        given = time.process_time() - cpu
        auroc, pro = pixels.result()
        disk = sum(os.fstat(file.fileno()).st_size for file in pixels._files)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - started
    print(f"streamed: pixel AUROC {auroc:.6f}, PRO {pro:.6f}")
    print(
        f"CPU {cpu:.0f} s, of which {given:.0f} to make and store maps; wall {wall:.0f} s; disk {disk / 2**30:.2f} GiB"
    )
    print(f"peak {peak_mib():.0f} MiB, all of the process")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=160)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=METRICS, nargs="+", default=list(METRICS))
    parser.add_argument("--rss", action="store_true")
    parser.add_argument("--streamed", action="store_true")
    parser.add_argument("--child", choices=METRICS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        one_peak(args.child, args)
        return
    pixels = args.maps * args.size**2
    print(f"{args.maps} maps of {args.size}² ({pixels:,} pixels), {args.device}, {args.threads} threads")
    if args.streamed:
        streamed(args.maps, args.size)
        return
    if args.rss:
        for name in args.only:
            subprocess.run([sys.executable, *sys.argv, "--child", name], check=True)
        return
    data = inputs(args.maps, args.size, args.device)
    for name in args.only:
        seconds = timed(lambda run=METRICS[name]: run(*data), args.repeats, args.device)  # type: ignore[misc]
        print(f"{name:16s} min {min(seconds):6.3f} s   median {statistics.median(seconds):6.3f} s")


if __name__ == "__main__":
    main()
