"""Exported models as detectors: the same images and outputs, computed by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ..config import Config
from ..datasets.sources import iterate_batches
from ..datasets.view import View
from ..detector import AnomalyDetector, Calibration, Prediction, batch_size
from ..errors import CheckpointError, ConfigError, extra, first_line
from ..state import checked
from ..storage import CHECKPOINT

ENGINES = ("torch", "onnx", "openvino")
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""Of files by the name of their format."""
KEY = "mlffn"
"""Under which a file keeps what it says of itself, as JSON."""

ScoreMap = Callable[[np.ndarray], np.ndarray]
"""From an image (1, H, W, 3) uint8 to its map (1, H, W) float32."""


def open_detector(run: Path, engine: str = "torch", *, device: str | None = None) -> AnomalyDetector:
    """Open a run, or what was exported from it, to be scored by an engine.

    Parameters
    ----------
    run : Path
        A run folder, which holds the exported file too where the engine is not torch; or that file itself.
    engine : {"torch", "onnx", "openvino"}
        What computes; of a file, its suffix says it.
    device : str, optional
        For torch.

    Raises
    ------
    ConfigError
        If the engine is unknown.
    CheckpointError
        If there is no such file, it is damaged, or the run has changed since.
    """
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine} is unknown; choose one of {', '.join(ENGINES)}")
    if run.suffix in (SUFFIXES["onnx"], SUFFIXES["openvino"]) and run.is_file():
        return ExportedDetector(run)
    if engine == "torch":
        return AnomalyDetector.load(run, device=device)
    path = run / f"model{SUFFIXES[engine]}"
    command = f"`mlffn export {run}" + f" --format {engine}" * (engine != "onnx") + "`"
    if not path.is_file():
        raise CheckpointError(f"there is no {path}; write it with {command}")
    detector = ExportedDetector(path)
    if detector.meta["checkpoint"] != digest(run):
        raise CheckpointError(f"{path} was exported before {run} was last changed; write it anew with {command}")
    return detector


def digest(run: Path) -> str:
    """Return the SHA-256 (hex) of a run's checkpoint; empty where it has none."""
    path = run / CHECKPOINT
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


class ExportedDetector(AnomalyDetector):
    """A detector that scores with an exported model; it is never fitted nor calibrated anew.

    Parameters
    ----------
    path : Path
        An ONNX file, or OpenVINO's XML file.

    Attributes
    ----------
    meta : dict
        What the file says of itself, see :func:`~mlffn_lite.deploy.export.metadata`.

    Raises
    ------
    CheckpointError
        If it is damaged, or not from ``mlffn export``.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._map, self.meta = open_model(path)
            super().__init__(Config(**self.meta["config"]).replace(train={"device": "cpu"}))
            self.config = self.config.replace(method=self.meta["method"])
            self.shape = (int(self.meta["shape"][0]), int(self.meta["shape"][1]))
            self.view = View.from_dict(self.meta["view"])
            self.calibration = checked(Calibration, self.meta["calibration"])
        except (KeyError, IndexError, TypeError, ValueError, ConfigError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else first_line(error)
            raise CheckpointError(f"{path} is no model of `mlffn export` ({what}); export the run again") from error

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> Self:
        """Open an exported file; it is computed on the CPU."""
        return cls(Path(folder))

    @torch.inference_mode()
    def predict(self, images: Any) -> Prediction:
        """Score images as :meth:`AnomalyDetector.predict` does; values of float tensors are rounded to 8 bits."""
        maps = []
        for batch in iterate_batches(images, self.shape, batch_size(self.shape), self.view):
            pixels = batch if batch.dtype == torch.uint8 else (batch * 255).round().to(torch.uint8)
            maps += [self._map(x[None]) for x in pixels.permute(0, 2, 3, 1).contiguous().numpy()]
        found = torch.from_numpy(np.concatenate(maps)) if maps else torch.zeros(0, *self.shape)
        return Prediction(found, found.flatten(1).amax(1) if maps else torch.zeros(0))

    def calibrate(self, good: Any = None, **_: Any) -> Calibration:
        """Refuse: the file does not change."""
        raise ConfigError("an exported model keeps its threshold; calibrate its run and export that again")


def open_model(path: Path) -> tuple[ScoreMap, dict[str, Any]]:
    """Open an ONNX or OpenVINO file, to be computed by as many threads as torch uses, and read what it says."""
    return _open_onnx(path) if path.suffix == SUFFIXES["onnx"] else _open_openvino(path)


def _open_onnx(path: Path) -> tuple[ScoreMap, dict[str, Any]]:
    with extra("export"):
        import onnxruntime

        from .runner import Model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        model = Model(str(path), options)
    except (KeyError, ValueError):  # of what it says of itself
        raise
    except Exception as error:  # ONNX Runtime has an exception for every status, all below Exception
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); export the run again") from error
    return lambda image: model.session.run(["map"], {"image": image})[0], model.meta


def _open_openvino(path: Path) -> tuple[ScoreMap, dict[str, Any]]:
    with extra("openvino"):
        import openvino
    try:
        model = openvino.Core().read_model(path)
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.compile_model(model, "CPU", hints)
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); export the run again") from error
    if not model.has_rt_info([KEY]):
        raise KeyError(KEY)
    meta = json.loads(model.get_rt_info([KEY]).astype(str))
    return lambda image: compiled({"image": image})["map"].copy(), meta
