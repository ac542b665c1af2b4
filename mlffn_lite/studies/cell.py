"""One cell of a study or comparison: what it is, and measuring it. A cell is a pure function of its specification."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..base import PREDICT_BATCH, Detector
from ..config import Config
from ..datasets.folder import AnomalyFolder, Split
from ..detector import AnomalyDetector
from ..errors import DataError
from ..peers import load_method

NUMERICS = "0.1.0"
"""Raised whenever the library gives other numbers than before: cells of two values never stand in one table."""

METRICS = ("image_auroc", "pixel_auroc", "pro")
_KEPT_MAPS, _MAP_STRIDE, _KEPT_ROWS = 6, 8, 20


@dataclass(frozen=True)
class Cell:
    """One training: a method on one data folder with one configuration.

    Attributes
    ----------
    method : str
        A key of :data:`~mlffn_lite.peers.METHODS`.
    data : str
        The data folder.
    fingerprint : str
        SHA-256 of its files, see :meth:`AnomalyFolder.fingerprint`.
    config : dict
        ``Config.to_dict()``, seed included.
    label : str
        Name of the configuration for people: preset and changed values.
    threads : int
        Threads that torch computes with.
    """

    method: str
    data: str
    fingerprint: str
    config: dict[str, dict[str, Any]]
    label: str
    threads: int

    @property
    def name(self) -> str:
        """File name: folder, method, seed, and a hash of all that determines the result.

        Device and threads are not part of it: they change the rounding only, and stand in the file.
        """
        config = {section: dict(values) for section, values in self.config.items()}
        config["train"]["device"] = "auto"
        if self.method != AnomalyDetector.method or not config["model"]["density"]:
            config["model"].pop("density_strides", None)  # it came later; without a density all is as it was
        digest = digest_of(NUMERICS, self.method, self.fingerprint, config)
        return f"{Path(self.data).name}-{self.method}-seed{self.seed}-{digest}.json"

    @property
    def seed(self) -> int:
        """The seed that it runs with."""
        return int(self.config["train"]["seed"])

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Cell:
        """Return the specification that a record of :func:`measure` was made from."""
        keys = ("method", "fingerprint", "config", "label", "threads")
        return cls(data=record["set"], **{k: record[k] for k in keys})


def measure(cell: Cell) -> dict[str, Any]:
    """Fit and evaluate a cell here and now.

    Returns
    -------
    dict
        The specification; ``image_auroc``, ``pixel_auroc``, ``pro``; ``parts``, the same of the network's score and
        of the density apart; ``fit_seconds``, without reading the images; ``predict_ms`` per image after a first batch;
        ``peak_memory_mb`` of the whole process up to then, without the metrics, and ``gpu_memory_mb`` of its tensors on
        a CUDA device; ``history``, some rows of the training curve; ``scores`` of all test images by path; ``maps``, a
        few score maps, see :func:`read_map`.

    Raises
    ------
    DataError
        If the data are not those that the cell names.
    """
    with _threads(cell.threads):
        config = Config().replace(**cell.config)
        parts = AnomalyFolder(cell.data, **dataclasses.asdict(config.data))
        if parts.fingerprint() != cell.fingerprint:
            raise DataError(f"{cell.data} has changed since this was started; start it again")
        _forget_peak()
        detector = load_method(cell.method)(config).fit(parts, progress=False)
        detector.predict(parts.test.batch(range(min(PREDICT_BATCH, len(parts.test))))[0])
        memory = _memory(detector)
        measured, prediction = detector.evaluate_split(parts.test)
        return {
            "set": Path(cell.data).name,
            "method": cell.method,
            "seed": cell.seed,
            **{k: measured[k] for k in (*METRICS, "per_defect", "shape", "images")},
            "parts": detector.evaluate_parts(parts) if isinstance(detector, AnomalyDetector) else {},
            "train_images": len(parts.train),
            "fit_seconds": round(detector.seconds, 3),
            "predict_ms": round(1000 * measured["predict_seconds"] / measured["images"], 3),
            **memory,
            "label": cell.label,
            "fingerprint": cell.fingerprint,
            **detector.environment(),
            "numerics": NUMERICS,
            "config": cell.config,
            "history": _summary(detector.history) if isinstance(detector, AnomalyDetector) else {},
            "scores": dict(zip(relative_paths(parts.test, parts.root), prediction.scores.tolist(), strict=True)),
            "maps": _some_maps(prediction.maps, parts.test, parts.root),
        }


def read_map(kept: Mapping[str, Any]) -> np.ndarray:
    """Return a kept score map, (h, w) float32: the full map at every eighth pixel, in 255 steps between its ends."""
    steps = np.frombuffer(base64.b64decode(kept["data"]), np.uint8).reshape(kept["shape"])
    return (kept["low"] + steps / 255 * (kept["high"] - kept["low"])).astype(np.float32)


def relative_paths(split: Split, root: Path) -> list[str]:
    """Return the path of each image below its data folder."""
    return [path.relative_to(root).as_posix() for path in split.paths]


def digest_of(*values: Any) -> str:
    """Return ten hexadecimal digits of the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def peak_memory() -> int:
    """Return the largest memory in bytes that this process has held.

    On Linux, ``ru_maxrss`` starts from the memory of the process that started this one; ``VmHWM`` does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    """Start the peak anew where the system can (Linux): a process may run several cells."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(detector: Detector) -> dict[str, int | None]:
    cuda = detector.device.type == "cuda"
    return {
        "peak_memory_mb": round(peak_memory() / 2**20),
        "gpu_memory_mb": round(torch.cuda.max_memory_allocated(detector.device) / 2**20) if cuda else None,
    }


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summary(history: pd.DataFrame) -> dict[str, list[float | None]]:
    """Return about twenty rows of a history, the first and the last among them, by column; None is not finite."""
    rows = np.unique(np.linspace(0, len(history) - 1, min(len(history), _KEPT_ROWS)).round().astype(int))
    kept = history.iloc[rows]
    return {str(k): [float(f"{v:.6g}") if np.isfinite(v) else None for v in kept[k]] for k in kept}


def _some_maps(maps: Tensor, split: Split, root: Path) -> dict[str, dict[str, Any]]:
    """Keep the maps of a first good image and of the first of some kinds of defect, coarsely: pictures need no more."""
    first: dict[str, int] = {}
    for i, defect in enumerate(split.defects):
        first.setdefault(defect, i)
    chosen = ["good", *sorted(first.keys() - {"good"})][:_KEPT_MAPS]
    paths, start = relative_paths(split, root), _MAP_STRIDE // 2
    kept = {}
    for i in (first[d] for d in chosen if d in first):
        coarse = maps[i, start::_MAP_STRIDE, start::_MAP_STRIDE]
        low, high = float(coarse.min()), float(coarse.max())
        steps = ((coarse - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)
        data = base64.b64encode(steps.numpy().tobytes()).decode()
        kept[paths[i]] = {"shape": list(steps.shape), "low": low, "high": high, "data": data}
    return kept
