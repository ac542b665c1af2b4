"""What the peers share: frozen multi-level features in, smooth score maps out; :class:`FeatureDetector`."""

from __future__ import annotations

import dataclasses
import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..backbones import STRIDES, build_backbone
from ..base import PREDICT_BATCH, Detector, batches, upsample
from ..config import Config
from ..datasets.folder import AnomalyFolder, Split
from ..errors import CheckpointError, ConfigError
from ..network import resize


@dataclass(frozen=True)
class FeatureParameters:
    """How a peer sees an image.

    Attributes
    ----------
    levels : tuple of int
        Levels of the backbone that are concatenated: 1, 2, 3 are those at strides 4, 8, 16.
    average : int
        Side, odd, of the neighbourhood that every level is averaged over; 1 leaves features as they are.
    sigma : float
        Standard deviation of the Gaussian that smooths the score map, in pixels of an image of 256 px; it grows and
        shrinks with the image.  Both papers take 4 and name no other size; 0 leaves the map as it is.
    """

    levels: tuple[int, ...] = (1, 2, 3)
    average: int = 1
    sigma: float = 4.0

    def __post_init__(self) -> None:
        if not self.levels or not set(self.levels) <= {1, 2, 3}:
            raise ConfigError(f"levels = {self.levels} must be some of 1, 2, 3")
        if self.average < 1 or self.average % 2 == 0 or self.sigma < 0:
            raise ConfigError(f"average = {self.average} must be odd, sigma = {self.sigma} at least 0")


class FeatureDetector(Detector):
    """A method that remembers what frozen features of good images look like; nothing is trained.

    A subclass says what it remembers (:meth:`_learn`, :attr:`memory`) and how far features are from it
    (:meth:`_distances`).  Backbone, input size, fused resolution ``model.stride`` and precision come from the
    configuration, and are the network's own.

    Parameters
    ----------
    config : Config
        Only ``data.size``, ``model.backbone``, ``model.weights``, ``model.stride``, ``train.seed``,
        ``train.precision`` and ``train.device`` count.
    parameters : FeatureParameters
        The method's own parameters.
    """

    memory: ClassVar[tuple[str, ...]]
    """Names of the attributes, tensors all, that fitting fills."""

    def __init__(self, config: Config, parameters: FeatureParameters) -> None:
        super().__init__(config)
        self.parameters: Any = parameters  # of the subclass's own type
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)  # initial weights, where none are loaded
            backbone = build_backbone(config.model.backbone, config.model.weights)
        self.backbone = backbone.set_mode("frozen").eval().to(self.device).to(memory_format=torch.channels_last)

    @abstractmethod
    def _learn(self, features: Iterator[Tensor], images: int) -> None:
        """Fill the memory from batches of features (B, C, h, w), float32 on the device, of so many images in all."""

    @abstractmethod
    def _distances(self, features: Tensor) -> Tensor:
        """Return the distance (B, h', w') of features (B, C, h, w) from the memory."""

    @torch.inference_mode()
    def fit(self, folder: AnomalyFolder | str | Path, *, out: str | Path | None = None, progress: bool = True) -> Self:
        """Remember the features of the good training images of a folder; arguments as in :meth:`Detector.fit`."""
        parts = self._open(folder)
        self.shape = parts.shape
        started = time.perf_counter()
        self._learn(self._walk(parts.train, progress), len(parts.train))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - started
        self._calibrate(parts.train)
        if out is not None:
            self._data = parts.fingerprint(test=False)
            self.save(out)
        return self

    def _walk(self, split: Split, progress: bool) -> Iterator[Tensor]:
        total = -(-len(split) // PREDICT_BATCH)
        for images in tqdm(batches(split), f"{self.method}: features", total, leave=False, disable=not progress):
            yield self._run(images, self._features)

    def _features(self, images: Tensor) -> Tensor:
        """Return the levels of images (B, 3, H, W) in [0, 1] side by side at the fused resolution, (B, C, h, w).

        Called as :meth:`_score` is.
        """
        levels = self.backbone(images)
        size = levels[STRIDES.index(self.config.model.stride)].shape[-2:]
        side = self.parameters.average
        with torch.autocast(self.device.type, enabled=False):
            chosen = [levels[i - 1].float() for i in self.parameters.levels]
            if side > 1:  # at the border, over the neighbours that exist
                chosen = [F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False) for x in chosen]
            return torch.cat([resize(x, size) for x in chosen], dim=1)

    def _score(self, images: Tensor) -> Tensor:
        """Upsample distances bilinearly, then smooth them."""
        features = self._features(images)
        with torch.autocast(self.device.type, enabled=False):
            return smooth(upsample(self._distances(features)[:, None], images.shape[-2:]), self.parameters.sigma)

    def _tensors(self) -> dict[str, Tensor]:
        own = dataclasses.asdict(self.parameters)
        return {
            **{f"backbone.{k}": v for k, v in self.backbone.state_dict().items()},
            **{f"parameters.{k}": torch.tensor(v, dtype=torch.float64) for k, v in own.items()},
            **{f"memory.{k}": getattr(self, k) for k in self.memory},
        }

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        try:
            own = {f.name: tensors[f"parameters.{f.name}"].tolist() for f in dataclasses.fields(self.parameters)}
            memory = {k: tensors[f"memory.{k}"].to(self.device) for k in self.memory}
            weights = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
            self.backbone.load_state_dict(weights)
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"checkpoint {path} does not fit {self.method} ({reason}); fit again") from error
        default = dataclasses.asdict(self.parameters)
        self.parameters = dataclasses.replace(self.parameters, **{k: _like(default[k], v) for k, v in own.items()})
        for name, tensor in memory.items():
            setattr(self, name, tensor)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Convolve maps (B, H, W) with a Gaussian of ``sigma`` 256ths of a side, cut at 4σ, mirrored at the border."""
    for _ in range(2):  # rows, then columns
        side = maps.shape[2]
        deviation = sigma * side / 256
        radius = min(math.ceil(4 * deviation), side - 1)
        if radius:
            offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
            kernel = torch.softmax(-(offsets**2) / (2 * deviation**2), 0)
            padded = F.pad(maps, (radius, radius), mode="reflect")
            maps = F.conv1d(padded.reshape(-1, 1, padded.shape[2]), kernel.view(1, 1, -1)).view(maps.shape)
        maps = maps.mT
    return maps


def _like(default: Any, value: Any) -> Any:
    """Bring a number or list read as float to the type that a parameter has."""
    return tuple(int(v) for v in value) if isinstance(default, tuple) else type(default)(value)
