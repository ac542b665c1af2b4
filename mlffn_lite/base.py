"""What every method of this library can do once it is fitted: score, evaluate, save, load; :class:`Detector`."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from . import metrics
from .config import Config
from .datasets.folder import MIN_SIDE, AnomalyFolder, Split, map_threads, read_image
from .errors import CheckpointError, DataError, TrainingError
from .layers import normal_range
from .runs import CHECKPOINT, CONFIG, METRICS, environment, load_tensors, save_tensors, write_atomic, write_json
from .training import autocast_dtype, resolve_device

T = TypeVar("T")
PREDICT_BATCH = 16
CALIBRATION_IMAGES = 256
"""Good training images, at most, that colours and threshold are taken from, evenly spread over the set."""


class Prediction(NamedTuple):
    """Scores of a batch, on the CPU.

    Attributes
    ----------
    maps : Tensor
        Score of every input pixel, (B, H, W), float32; higher is more anomalous, the unit is the network's own.
    scores : Tensor
        Score of every image, (B,): the maximum of its map (§2.6).
    """

    maps: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Calibration:
    """What scores of the good training images look like, to colour heatmaps and to call an image anomalous.

    Attributes
    ----------
    low, high : float
        Colour scale: the median pixel score, and a score well above nearly all good pixels, so that good images look
        cold on every heatmap.
    threshold : float
        Image score above which an image is called anomalous.
    """

    low: float
    high: float
    threshold: float

    @classmethod
    def from_good(cls, prediction: Prediction, *, margin: float = 0.0) -> Calibration:
        """Derive the scale from the scores of good images.

        ``high`` lies twice as far above the median as the 99.9th percentile of the pixels, or by ``margin`` if that is
        more: where the score was trained to rise by λ on anomalies, λ is the scale on which differences show.
        ``threshold`` is the 99th percentile of the image scores.  Training images score lower than new ones do, so
        expect more than 1 % of new good images above it.
        """
        if not torch.isfinite(prediction.maps).all():
            raise TrainingError(
                "the trained network gives scores that are not finite; lower train.lr or set train.clip"
            )
        low, top = map(float, normal_range(prediction.maps))
        threshold = float(prediction.scores.quantile(0.99))
        return cls(low, low + max(2 * (top - low), margin, 1e-6), threshold)


class Detector(ABC):
    """A method of anomaly detection for one category of parts: fitted to good images, it scores any image.

    A subclass says how it is fitted (:meth:`fit`), how it scores a batch (:meth:`_score`), and which tensors are its
    memory (:meth:`_tensors`, :meth:`_restore`); all else is shared, so that methods are compared like for like.

    Parameters
    ----------
    config : Config
        Image size, backbone, device, precision and seed are every method's; the rest is the network's.

    Attributes
    ----------
    method : str
        Name of the method in files, tables and on the command line.
    shape : (int, int)
        Height and width that files are read at: those of the images it was fitted to.
    calibration : Calibration or None
        Present once fitted.
    history : DataFrame
        What was logged in training; empty where nothing is trained.
    step : int
        Optimiser steps done; 0 where nothing is trained.
    seconds : float
        Time that fitting took.
    """

    method: ClassVar[str]

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = resolve_device(config.train.device)
        self.shape = (config.data.size, config.data.size)
        self.calibration: Calibration | None = None
        self.history = pd.DataFrame()
        self.step, self.seconds = 0, 0.0
        self._data = ""

    @abstractmethod
    def fit(self, folder: AnomalyFolder | str | Path, *, out: str | Path | None = None, progress: bool = True) -> Self:
        """Fit, from the beginning, to the good training images of a folder, calibrate on them; returns self.

        Parameters
        ----------
        folder : AnomalyFolder or path
            Only its training split is read.
        out : path, optional
            Run folder; without it nothing is written.
        progress : bool
            Show a progress bar.
        """

    @abstractmethod
    def _score(self, images: Tensor) -> Tensor:
        """Return score maps (B, H, W), float32, of images (B, 3, H, W) float in [0, 1], both on the device.

        Called in inference mode and under the configured autocast, with channels-last images.
        """

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return everything that fitting learned."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Take over what :meth:`_tensors` returned, read from the file ``path``; raises CheckpointError on a misfit."""

    @torch.inference_mode()
    def predict(self, images: Tensor | str | Path | Sequence[str | Path]) -> Prediction:
        """Score images.

        Parameters
        ----------
        images : Tensor, or one path or several
            (B, 3, H, W), uint8 or float in [0, 1], of any size ≥ 8; or image files, which are read at the
            configured size.

        Returns
        -------
        Prediction
            Maps at the size of the images given.

        Raises
        ------
        ValueError
            If a tensor has another shape or type.
        DataError
            If a file cannot be read.
        """
        if not isinstance(images, Tensor):
            shape, paths = self.shape, [images] if isinstance(images, str | Path) else list(images)
            read = list(map_threads(lambda path: read_image(path, shape), paths, None))
            images = torch.stack(read) if read else torch.zeros(0, 3, *shape)
        _check_images(images)
        if not len(images):
            return Prediction(torch.zeros(0, *images.shape[-2:]), torch.zeros(0))
        maps = torch.cat([self._run(chunk, self._score).cpu() for chunk in images.split(PREDICT_BATCH)])
        return Prediction(maps, maps.flatten(1).amax(1))

    def predict_split(self, split: Split) -> Prediction:
        """Score every image of a split, a batch at a time."""
        parts = [self.predict(images) for images in batches(split)]
        return Prediction(*(torch.cat(p) for p in zip(*parts, strict=True)))

    def evaluate(self, folder: AnomalyFolder | str | Path) -> dict[str, Any]:
        """Measure the detector on the test split of a folder.

        Returns
        -------
        dict
            ``image_auroc``, ``pixel_auroc``, ``pro`` as fractions, at the resolution ``shape``, masks resized to it;
            ``per_defect`` with the image AUROC of each defect against all good images; counts and seconds. Pixel
            metrics leave out anomalous images without a mask, and are NaN if none has one.

        Raises
        ------
        DataError
            If there is no test image.
        """
        return self.evaluate_split(self._open(folder).test)[0]

    def evaluate_split(self, split: Split) -> tuple[dict[str, Any], Prediction]:
        """As :meth:`evaluate`, and return the prediction too."""
        if not len(split):
            raise DataError("there are no test images; put some into test/good and test/<defect>")
        started = time.perf_counter()
        prediction = self.predict_split(split)
        seconds = time.perf_counter() - started
        labels = split.labels()
        defects = sorted(set(split.defects) - {"good"})
        of_defect = {d: torch.tensor([x in (d, "good") for x in split.defects]) for d in defects}
        return {
            **measure(prediction, split),
            "per_defect": {d: metrics.image_auroc(prediction.scores[i], labels[i]) for d, i in of_defect.items()},
            "shape": list(split.shape),
            "images": len(split),
            "predict_seconds": round(seconds, 3),
        }, prediction

    def save(self, folder: str | Path) -> None:
        """Write ``config.toml`` and ``checkpoint.safetensors`` to a folder, each atomically."""
        folder = Path(folder)
        state = {
            "method": self.method,
            "step": self.step,
            "seconds": self.seconds,
            "config": self.config.to_dict(),
            "data": self._data,
            "shape": list(self.shape),
            "calibration": self.calibration and dataclasses.asdict(self.calibration),
        }
        write_atomic(folder / CONFIG, self.config.to_toml())
        save_tensors(folder / CHECKPOINT, self._tensors(), state)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> Self:
        """Read a detector that :meth:`save` or a finished :meth:`fit` wrote.

        Parameters
        ----------
        folder : path
            The run folder.
        device : str, optional
            Where to run; by default CUDA where there is one, else the CPU.

        Raises
        ------
        CheckpointError
            If files are missing, damaged, of another method, do not belong together, or training has not finished.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder} is not a run folder (no {CONFIG}); give one that `mlffn train` wrote")
        config = Config.load(folder / CONFIG)
        tensors, state = load_tensors(folder / CHECKPOINT)
        if (method := state.get("method", "mlffn")) != cls.method:
            raise CheckpointError(f"{folder} holds a run of {method}, not of {cls.method}")
        if not config.matches(state.get("config") or {}):
            raise CheckpointError(f"{folder / CHECKPOINT} and {folder / CONFIG} do not belong together; restore either")
        if not state.get("calibration"):
            raise CheckpointError(f"training in {folder} stopped at step {state.get('step')}; finish it with --resume")
        offline = config.replace(model={"weights": "none"}, train={"device": device or "auto"})
        detector = cls(offline)  # pretrained weights are not needed: the checkpoint holds them all
        detector.config = config
        detector._restore(tensors, folder / CHECKPOINT)
        detector._data = str(state.get("data", ""))
        detector.step, detector.seconds = int(state["step"]), float(state["seconds"])
        detector.shape = tuple(state.get("shape", detector.shape))
        detector.calibration = Calibration(**state["calibration"])
        return detector

    def environment(self) -> dict[str, Any]:
        """Return seed, device, precision, threads, versions and commit, to stand beside a result."""
        dtype = autocast_dtype(self.config.train.precision, self.device) or torch.float32
        precision = str(dtype).removeprefix("torch.")
        return {"seed": self.config.train.seed, "precision": precision, **environment(self.device)}

    def complete_run(
        self, run: str | Path, folder: AnomalyFolder | str | Path, *, preset: str = ""
    ) -> tuple[dict[str, Any], Prediction | None]:
        """Measure the fitted detector and complete its run folder with ``metrics.json``.

        Parameters
        ----------
        run : path
            Folder that :meth:`fit` wrote.
        folder : AnomalyFolder or path
            Data with test images; without any, the file says only how the detector was trained.
        preset : str
            Name of the configuration, to stand beside the numbers.

        Returns
        -------
        dict, Prediction or None
            The content of ``metrics.json``, and the prediction for the test images if there are any.
        """
        parts = self._open(folder)
        measured, prediction = self.evaluate_split(parts.test) if len(parts.test) else ({}, None)
        result = {
            **measured,
            "shape": list(parts.shape),
            "method": self.method,
            "data": parts.root.resolve().name,
            "preset": preset,
            "steps": self.step,
            "train_images": len(parts.train),
            "seconds": round(self.seconds, 1),
            **self.environment(),
        }
        write_json(Path(run) / METRICS, result)
        return result, prediction

    def _calibrate(self, train: Split, *, margin: float = 0.0) -> None:
        self.calibration = Calibration.from_good(self.predict_split(self._sample(train)), margin=margin)

    def _sample(self, train: Split) -> Split:
        """Return the training images to calibrate on."""
        return train.subset(range(0, len(train), -(-len(train) // CALIBRATION_IMAGES)))

    def _run(self, images: Tensor, function: Callable[[Tensor], T]) -> T:
        """Apply a function to images (B, 3, H, W), uint8 or float in [0, 1], as :meth:`_score` is applied."""
        images = images.to(self.device, non_blocking=True)
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        dtype = autocast_dtype(self.config.train.precision, self.device)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return function(scaled.contiguous(memory_format=torch.channels_last))

    def _open(self, folder: AnomalyFolder | str | Path) -> AnomalyFolder:
        if isinstance(folder, AnomalyFolder):
            return folder
        fitted = self.shape if self.calibration else None
        return AnomalyFolder(folder, **dataclasses.asdict(self.config.data), shape=fitted)


def measure(prediction: Prediction, split: Split) -> dict[str, float]:
    """Return ``image_auroc``, ``pixel_auroc`` and ``pro`` of a split's prediction, see :meth:`Detector.evaluate`."""
    known = split.has_mask
    maps, masks = prediction.maps[known], split.masks()[known]
    return {
        "image_auroc": metrics.image_auroc(prediction.scores, split.labels()),
        "pixel_auroc": metrics.pixel_auroc(maps, masks),
        "pro": metrics.pro(maps, masks),
    }


def upsample(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bring maps (B, 1, h, w) to ``size`` bilinearly; returns (B, H, W), float32."""
    return functional.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f"images must be (B, 3, H, W), uint8 or float, got {tuple(images.shape)} {images.dtype}")
    if min(images.shape[-2:]) < MIN_SIDE:
        raise ValueError(f"images must have at least {MIN_SIDE} pixels a side, got {tuple(images.shape)}")
    if images.is_floating_point() and images.numel() and not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise ValueError("float images must lie in [0, 1], without NaN; divide 8-bit values by 255, do not normalise")


def batches(split: Split) -> Iterator[Tensor]:
    """Yield the images of a split, uint8, as many at a time as are scored together."""
    for start in range(0, len(split), PREDICT_BATCH):
        yield split.batch(range(start, min(start + PREDICT_BATCH, len(split))))[0]
