"""One cell of a study: method × configuration × data × seed, and measuring it. It is a pure function of these."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import escaped, registry
from ..config import Config
from ..datasets.sources import Parts, open_source
from ..detector import PREDICT_BATCH, AnomalyDetector
from ..errors import CheckpointError, DataError
from ..labels import METRIC_LABELS

NUMERICS = "0.3.0"
"""Raised whenever the library gives other numbers than before: cells of two values never stand in one table."""

_KEPT_MAPS, _MAP_STRIDE, _KEPT_ROWS = 6, 8, 20


@dataclass(frozen=True)
class Cell:
    """One fit: a configuration, which names the method, on one data folder."""

    data: str
    """The data folder."""
    fingerprint: str
    """SHA-256 of its files, see :meth:`AnomalyFolder.fingerprint`."""
    config: dict[str, Any]
    """``Config.to_dict()``, method and seed included."""
    label: str
    """Name of the configuration for people: its column in the table that asked for it."""
    threads: int
    """Threads that torch computes with."""
    numerics: str = NUMERICS
    """Which version's numbers it has; it is run by this version only."""
    code: str = ""
    """Digest of the code of one's own that it names, see :func:`own_code`."""

    @property
    def name(self) -> str:
        """File name: folder, method, seed, and a hash of all that determines the result.

        Device and threads are not part of it: they change the rounding only, and stand in the file.
        """
        own = [self.code] if self.code else []
        digest = digest_of(self.numerics, self.fingerprint, with_train(self.config, device="auto"), *own)
        method = self.method.rpartition(":")[2]  # of an import path
        return f"{self.set}-{method}-seed{self.seed}-{digest}.json"

    @property
    def set(self) -> str:
        """Name of the data folder."""
        return escaped.name(Path(self.data).name)

    @property
    def method(self) -> str:
        """Name or import path of the method."""
        return str(self.config["method"])

    @property
    def seed(self) -> int:
        """The seed that it runs with."""
        return int(self.config["train"]["seed"])

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Cell:
        """Return the specification that a record of :func:`measure` was made from."""
        keys = ("fingerprint", "config", "label", "threads", "numerics")
        return cls(data=record["set"], code=record.get("code", ""), **{k: record[k] for k in keys})


def measure(cell: Cell, partial: Path | None = None) -> dict[str, Any]:
    """Fit and evaluate a cell here and now.

    Parameters
    ----------
    cell : Cell
        What to measure.
    partial : path, optional
        Where a method that is trained keeps its checkpoints, and goes on from those that are there.

    Returns
    -------
    dict
        The specification; ``image_auroc``, ``pixel_auroc``, ``pro``; ``fit_seconds``, without reading the images;
        ``predict_ms`` per image after a first batch; ``peak_memory_mb`` of the whole process up to then, without the
        metrics, and ``gpu_memory_mb`` of its tensors on a CUDA device; ``history``, some rows of the training curve,
        empty where nothing is trained; ``probes``, see :meth:`AnomalyDetector.probe`; ``scores`` of all test images
        by path; ``maps``, a few score maps, see :func:`read_map`.

    Raises
    ------
    DataError
        If the data are not those that the cell names.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(cell.threads)
    try:
        config = Config().replace(**cell.config)
        parts = open_source(cell.data, config.data)
        if parts.fingerprint() != cell.fingerprint:
            raise DataError(f"{cell.data} has changed since this was started; start it again")
        _forget_peak()
        detector = _fitted(config, parts, partial)
        detector.predict(parts.test.batch(range(min(PREDICT_BATCH, len(parts.test))))[0])
        cuda = detector.device.type == "cuda"
        memory = {
            "peak_memory_mb": round(peak_memory() / 2**20),
            "gpu_memory_mb": round(torch.cuda.max_memory_allocated(detector.device) / 2**20) if cuda else None,
        }
        measured, prediction = detector.evaluate_split(parts.test)
        return {
            "set": cell.set,
            "method": cell.method,
            "seed": cell.seed,
            **{k: measured[k] for k in (*METRIC_LABELS, "per_defect", "shape", "images")},
            "train_images": len(parts.train),
            "fit_seconds": round(detector.seconds, 3),
            "predict_ms": round(1000 * measured["predict_seconds"] / measured["images"], 3),
            **memory,
            "label": cell.label,
            "fingerprint": cell.fingerprint,
            **detector.environment(),
            "numerics": NUMERICS,
            **({"code": cell.code} if cell.code else {}),
            "config": cell.config,
            "history": {} if detector.history.empty else _summary(detector.history),
            "probes": detector.probe(parts.test),
            "scores": dict(zip(map(parts.name, parts.test.paths), prediction.scores.tolist(), strict=True)),
            "maps": _some_maps(prediction.maps, parts),
        }
    finally:
        torch.set_num_threads(before)


def _fitted(config: Config, parts: Parts, partial: Path | None) -> AnomalyDetector:
    detector = AnomalyDetector(config)
    if partial is None or not detector.trains:
        return detector.fit(parts, progress=False)
    try:
        return detector.fit(parts, out=partial, resume=True, progress=False)
    except CheckpointError:  # damaged, or another version's: it is not worth more than the time it took
        shutil.rmtree(partial, ignore_errors=True)
        return AnomalyDetector(config).fit(parts, out=partial, progress=False)


def read_map(kept: Mapping[str, Any]) -> np.ndarray:
    """Return a kept score map, (h, w) float32: the full map at every eighth pixel, in 255 steps between its ends."""
    steps = np.frombuffer(base64.b64decode(kept["data"]), np.uint8).reshape(kept["shape"])
    return (kept["low"] + steps / 255 * (kept["high"] - kept["low"])).astype(np.float32)


def with_train(config: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return a ``Config.to_dict()`` with some of its values of ``train`` replaced."""
    return {**config, "train": {**config["train"], **values}}


def own_code(config: Mapping[str, Any]) -> str:
    """Return the digest of all code of one's own that a ``Config.to_dict()`` names, "" if it names none."""
    loss, kinds = config.get("loss", {}), {*config["pseudo"]["kinds"], *config["ensemble"]["kinds"]}
    named = [("methods", config["method"]), *(("methods", name) for name in config["ensemble"]["members"])]
    named += [("backbones", config["model"]["backbone"]), ("sources", config["data"]["source"])]
    named += [*(("kinds", name) for name in kinds), *(("terms", name) for name in loss.get("own", {}))]
    found = {f"{group}:{name}": text for group, name in named if (text := registry.source(group, name))}
    return digest_of(found) if found else ""


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


def _summary(history: pd.DataFrame) -> dict[str, list[float | None]]:
    """Return about twenty rows of a history, the first and the last among them, by column; None is not finite."""
    rows = np.unique(np.linspace(0, len(history) - 1, min(len(history), _KEPT_ROWS)).round().astype(int))
    kept = history.iloc[rows]
    return {str(k): [float(f"{v:.6g}") if np.isfinite(v) else None for v in kept[k]] for k in kept}


def _some_maps(maps: Tensor, parts: Parts) -> dict[str, dict[str, Any]]:
    """Keep the maps of a first good image and of the first of some kinds of defect, coarsely: pictures need no more."""
    defects = list(parts.test.defects)
    kinds = sorted(set(defects), key=lambda kind: (kind != "good", kind))[:_KEPT_MAPS]
    kept, start = {}, _MAP_STRIDE // 2
    for i in map(defects.index, kinds):
        coarse = maps[i, start::_MAP_STRIDE, start::_MAP_STRIDE]
        low, high = float(coarse.min()), float(coarse.max())
        steps = ((coarse - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)
        data = base64.b64encode(steps.numpy().tobytes()).decode()
        kept[parts.name(parts.test.paths[i])] = {"shape": list(steps.shape), "low": low, "high": high, "data": data}
    return kept
