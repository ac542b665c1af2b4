"""Load on `mlffn serve` over localhost: requests per second, p50 and p99, and that none is lost.

python tests/benchmarks/load_serve.py RUN IMAGE [--clients 8] [--requests 400] [-- options of serve]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np


def main() -> None:
    """Start the service, send the requests, print what was measured, and stop it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("image", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=400)
    known, options = parser.parse_known_args()
    command = [sys.executable, "-m", "mlffn_lite", "serve", known.run, "--port", "0", *filter("--".__ne__, options)]
    body = known.image.read_bytes()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+/", process.stdout.readline())
        assert found is not None
        with httpx.Client(base_url=found.group(), timeout=120) as client, ThreadPoolExecutor(known.clients) as pool:

            def ask(_: int) -> tuple[int, float]:
                started = time.perf_counter()
                try:
                    code = client.post("/predict", content=body).status_code
                except httpx.TransportError:
                    code = 0
                return code, time.perf_counter() - started

            for _ in range(3):
                ask(0)
            started = time.perf_counter()
            answers = list(pool.map(ask, range(known.requests)))
            seconds = time.perf_counter() - started
            counted = re.search(r'requests_total\{code="200"\} (\d+)', client.get("/metrics").text)
        process.terminate()
    times = 1000 * np.array([t for code, t in answers if code == 200])
    lost = sum(code == 0 for code, _ in answers)
    others = sorted({code for code, _ in answers} - {0, 200})
    print(f"{known.requests} requests by {known.clients} clients in {seconds:.1f} s: {known.requests / seconds:.1f} /s")
    print(
        f"p50 {np.percentile(times, 50):.0f} ms, p99 {np.percentile(times, 99):.0f} ms; {lost} lost, others {others}",
    )
    print(f"the service counted {counted.group(1) if counted else 0}, three to warm up included")


if __name__ == "__main__":
    main()
