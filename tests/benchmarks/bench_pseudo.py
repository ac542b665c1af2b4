"""Time pseudo-anomalies: ``python tests/benchmarks/bench_pseudo.py [--batch 32] [--size 256] [--device cpu] ...``.

The row ``input`` is what every call pays: the range check of the images, their copy, and an empty mask.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from mlffn_lite.beyond.blemish import Blemish
from mlffn_lite.canvas import Canvas
from mlffn_lite.pseudo import ConfettiNoise, CutPaste, CutPasteScar, PseudoAnomalies

KINDS: dict[str, Callable[..., object]] = {
    "input": lambda images, *, generator: Canvas(images),
    "confetti": ConfettiNoise(),
    "cutpaste": CutPaste(),
    "scar": CutPasteScar(),
    "blemish": Blemish(),
    "default, ratio 1": PseudoAnomalies(1.0),
    "default, ratio 0.5": PseudoAnomalies(0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((options.batch, 3, options.size, options.size), generator=generator).to(options.device)
    wait = torch.cuda.synchronize if images.is_cuda else lambda: None
    name = torch.cuda.get_device_name() if images.is_cuda else f"CPU, {options.threads} threads"
    print(f"torch {torch.__version__}, {name}, {options.batch} images of {options.size} px, generator on the CPU")
    print(f"{'':20}{'ms/image min':>14}{'median':>10}{'images/s':>12}  (from the minimum)")
    for label, kind in KINDS.items():
        times = []
        for _ in range(options.repeats + 2):
            wait()
            start = time.perf_counter()
            kind(images, generator=generator)
            wait()
            times.append((time.perf_counter() - start) / options.batch * 1e3)
        times = times[2:]
        print(f"{label:20}{min(times):14.3f}{statistics.median(times):10.3f}{1e3 / min(times):12.0f}")


if __name__ == "__main__":
    main()
