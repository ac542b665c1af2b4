"""Methods on a backbone's features: one pass that several share, and those that remember good features."""

from __future__ import annotations

import dataclasses
import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .backbones import Backbone, build_backbone
from .config import Config
from .datasets.folder import Split
from .detector import PREDICT_BATCH, AnomalyDetector, batches
from .errors import CheckpointError, ConfigError
from .storage import load_module

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class FeatureParameters:
    """How a peer sees an image.

    Attributes
    ----------
    levels : tuple of int
        Levels of the backbone that are concatenated: 1, 2, 3 are those at strides 4, 8, 16.  The finest one's grid
        is the method's.
    average : int
        Side, odd, of the neighbourhood that every level is averaged over, zeros outside the map; 1 leaves features
        as they are.
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


class BackboneDetector(AnomalyDetector):
    """A method that scores what a backbone sees, so that several can share one pass through it."""

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """The backbone, whose levels :meth:`_score_levels` takes."""

    @abstractmethod
    def _score_levels(self, levels: list[Tensor], size: torch.Size, *, left_out: Tensor | None = None) -> Tensor:
        """Return score maps (B, H, W), float32, of ``size``, from the backbone's levels of images.

        ``left_out`` (B,) are places in the training set, of images that were fitted to: each is scored as if it had
        not been, where the method can. Called as :meth:`_score` is.
        """

    def _score_parts(self, levels: list[Tensor], size: torch.Size, *, left_out: Tensor | None = None) -> Tensor:
        """As :meth:`_score_levels`, the maps (B, parts, H, W) that the score is made of."""
        return self._score_levels(levels, size, left_out=left_out)[:, None]

    def _score(self, images: Tensor) -> Tensor:
        return self._score_levels(self._ready(self.backbone)(images), images.shape[-2:])

    def _score_left_out(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self._score_levels(self._ready(self.backbone)(images), images.shape[-2:], left_out=numbers)

    def _ready(self, module: M) -> M:
        """Return a module in evaluation, on the device, in the layout that convolutions are fastest in."""
        if module.training or next(module.parameters()).device.type != self.device.type:  # "cuda" is not "cuda:0"
            module.to(self.device).to(memory_format=torch.channels_last).eval()
        return module

    @abstractmethod
    def _own_tensors(self) -> dict[str, Tensor]:
        """Return what fitting learned, without the backbone."""

    @abstractmethod
    def _restore_own(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Take over what :meth:`_own_tensors` returned; the backbone has its weights."""

    def _tensors(self) -> dict[str, Tensor]:
        return {**{f"backbone.{k}": v for k, v in self.backbone.state_dict().items()}, **self._own_tensors()}

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        load_module(self.backbone, tensors, "backbone.", path)
        self._restore_own(tensors, path)


class FrozenDetector(BackboneDetector):
    """A method that trains nothing: its backbone is frozen, and may be shared with others of the configuration."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._backbone: Backbone | None = None

    @property
    def backbone(self) -> Backbone:
        """The backbone that the configuration names, built when it is first used."""
        if self._backbone is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.train.seed)  # initial weights, where none are loaded
                self._backbone = build_backbone(self.config.model.backbone, self.config.model.weights)
            self._backbone.set_mode("frozen")
        return self._backbone

    def share(self, backbone: Backbone) -> None:
        """Use a backbone that another method has."""
        self._backbone = backbone

    @torch.inference_mode()
    def _fit(self, train: Split, *, run: Path | None, progress: bool, resume: bool) -> float:
        started = time.perf_counter()
        self._learn_levels(self._levels(train, progress), len(train))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    @abstractmethod
    def _learn_levels(self, batches: Iterator[list[Tensor]], images: int) -> None:
        """Learn from the backbone's levels, on the device, of so many images in all."""

    def _levels(self, train: Split, progress: bool) -> Iterator[list[Tensor]]:
        """Yield the backbone's levels of all images of a split, a batch at a time."""
        total = -(-len(train) // PREDICT_BATCH)
        for images in tqdm(batches(train), f"{self.method}: features", total, leave=False, disable=not progress):
            yield self._run(images, self._ready(self.backbone))


class FeatureDetector(FrozenDetector):
    """A method that remembers what frozen features of good images look like; nothing is trained.

    A subclass says what it remembers (:meth:`_learn`, :attr:`memory`) and how far features are from it
    (:meth:`_distances`).  Backbone and input size come from the configuration, and are the network's own; the grid is
    that of the finest level in use, as published, whatever ``model.stride`` is.

    Parameters
    ----------
    config : Config
        Only ``data.size``, ``model.backbone``, ``model.weights``, ``train.seed`` and
        ``train.device`` count.
    parameters : FeatureParameters, optional
        The method's own parameters.
    """

    memory: ClassVar[tuple[str, ...]]
    """Names of the attributes, tensors all, that fitting fills."""
    upsampling: ClassVar[Literal["bilinear", "nearest"]] = "bilinear"
    """How coarser levels are brought to the finest one's grid."""

    def __init__(self, config: Config, parameters: FeatureParameters | None = None) -> None:
        super().__init__(config)
        self.parameters: Any = parameters or FeatureParameters()  # of the subclass's own type

    @abstractmethod
    def _learn(self, features: Iterator[Tensor], images: int) -> None:
        """Fill the memory from batches of features (B, C, h, w), on the device, of so many images in all."""

    @abstractmethod
    def _distances(self, features: Tensor) -> Tensor:
        """Return the distance (B, h', w') of features (B, C, h, w) from the memory."""

    def _learn_levels(self, batches: Iterator[list[Tensor]], images: int) -> None:
        self._learn(map(self._features, batches), images)

    def _features(self, levels: list[Tensor]) -> Tensor:
        """Return the chosen levels side by side on the grid of the finest of them, (B, C, h, w)."""
        size = levels[min(self.parameters.levels) - 1].shape[-2:]
        chosen = [averaged(levels[i - 1], self.parameters.average) for i in self.parameters.levels]
        return torch.cat([F.interpolate(x, size=size, mode=self.upsampling) for x in chosen], dim=1)

    def _score_levels(self, levels: list[Tensor], size: torch.Size, *, left_out: Tensor | None = None) -> Tensor:
        """Upsample distances bilinearly, then smooth them."""
        return smooth(upsample(self._distances(self._features(levels))[:, None], size), self.parameters.sigma)

    def _own_tensors(self) -> dict[str, Tensor]:
        own = dataclasses.asdict(self.parameters)
        return {
            **{f"parameters.{k}": torch.tensor(v, dtype=torch.float64) for k, v in own.items()},
            **{f"memory.{k}": getattr(self, k) for k in self.memory},
        }

    def _restore_own(self, tensors: dict[str, Tensor], path: Path) -> None:
        try:
            own = {f.name: tensors[f"parameters.{f.name}"].tolist() for f in dataclasses.fields(self.parameters)}
            memory = {k: tensors[f"memory.{k}"].to(self.device) for k in self.memory}
        except KeyError as error:
            raise CheckpointError(f"checkpoint {path} does not fit {self.method} (no {error}); fit again") from error
        default = dataclasses.asdict(self.parameters)
        typed = {k: _typed(default[k], v) for k, v in own.items()}
        self.parameters = dataclasses.replace(self.parameters, **typed)
        for name, tensor in memory.items():
            setattr(self, name, tensor)


def averaged(level: Tensor, side: int) -> Tensor:
    """Average features over ``side`` × ``side`` neighbours, with zeros outside as in PatchCore's code."""
    return F.avg_pool2d(level, side, 1, side // 2) if side > 1 else level


def upsample(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bring maps (B, 1, h, w) to ``size`` bilinearly; returns (B, H, W), float32."""
    return F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)[:, 0]


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


def _typed(default: Any, value: Any) -> Any:
    """Bring a number or list read as float to the type that a parameter has."""
    return tuple(int(v) for v in value) if isinstance(default, tuple) else type(default)(value)


class Moments:
    """Mean and covariance at every position, gathered batch by batch without cancellation (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count, self.size = 0, (0, 0)
        self.mean = self.scatter = torch.zeros(())

    def add_maps(self, features: Tensor) -> None:
        """Take in maps (B, C, h, w) of B more images; ``size`` is then (h, w)."""
        x = features.float().permute(2, 3, 0, 1)  # (h, w, B, C)
        self.size = (x.shape[0], x.shape[1])
        self.add(x.flatten(0, 1))

    def add(self, x: Tensor) -> None:
        """Take in features (P, B, D) of B more images."""
        seen, new = self.count, x.shape[1]
        centre = x.mean(1)
        shift = centre - self.mean
        # The shift counts as one more difference: the scatter, much the largest here, is written once, in place.
        last = shift * math.sqrt(seen * new / (seen + new))
        x = torch.cat([x - centre[:, None], last[:, None]], dim=1)
        self.scatter = self.scatter.baddbmm_(x.mT, x) if seen else x.mT @ x
        self.mean = self.mean + shift * (new / (seen + new))
        self.count += new

    def covariance(self) -> Tensor:
        """Return the sample covariance (P, D, D); zero if there is one image only."""
        return self.scatter / max(self.count - 1, 1)
