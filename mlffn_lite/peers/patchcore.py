"""PatchCore (Roth et al., 2022): distance to the nearest of the good patches in a memory bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..devices import generator_for
from ..errors import ConfigError
from ..features import FeatureDetector, FeatureParameters
from ..neighbours import coreset, nearest


@dataclass(frozen=True)
class PatchCoreParameters(FeatureParameters):
    """Parameters of PatchCore, beside those of :class:`FeatureParameters`; defaults as in the paper.

    Attributes
    ----------
    levels : tuple of int
        The paper takes levels 2 and 3.
    average : int
        The paper averages over 3×3 neighbours.
    ratio : float
        Share of the candidates that the memory bank keeps.
    candidates : int
        Patches, at most, that the bank is chosen from: as many, drawn at random, from every image.  The greedy choice
        costs ``ratio * candidates²``; without a bound, 760 images of 256 px would take hours.
    projection : int
        Features are projected at random to so many dimensions for the choice (128 in the authors' code), where they
        have more; 0 never does.
    """

    levels: tuple[int, ...] = (2, 3)
    average: int = 3
    ratio: float = 0.1
    candidates: int = 100_000
    projection: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1 or self.candidates < 1 or self.projection < 0:
            raise ConfigError(
                f"ratio = {self.ratio} must lie in (0, 1], candidates = {self.candidates} be at least 1,"
                f" projection = {self.projection} at least 0"
            )


class PatchCore(FeatureDetector):
    """Distance of every patch to its nearest neighbour in a coreset of good patches.

    Parameters
    ----------
    config : Config
        See :class:`~mlffn_lite.features.FeatureDetector`; the seed draws candidates, projection and first patch.
    parameters : PatchCoreParameters, optional
        By default the paper's.

    Notes
    -----
    As published, the grid is that of the finest level, and coarser ones are interpolated bilinearly.  The image score
    is the maximum of the smooth map, as for every method here; the paper's is the largest patch distance, re-weighted.
    The authors' code further pools every patch's channels to 1024 values, more than small networks have, and smooths
    squared distances; neither is in the paper.

    Attributes
    ----------
    bank : Tensor
        Memory bank, (M, C).
    """

    memory = ("bank",)
    bank: Tensor

    def __init__(self, config: Config, parameters: PatchCoreParameters | None = None) -> None:
        super().__init__(config, parameters or PatchCoreParameters())

    def _learn(self, features: Iterator[Tensor], images: int) -> None:
        own = self.parameters
        generator = generator_for(self.config.train.seed, "patchcore", 0)
        each = max(1, own.candidates // images)
        kept = []
        for batch in features:
            for x in batch.flatten(2).mT:  # (P, C) of one image
                kept.append(x if each >= len(x) else x[torch.randperm(len(x), generator=generator)[:each].to(x.device)])
        points = torch.cat(kept)
        chosen = coreset(points, max(1, round(own.ratio * len(points))), own.projection, generator)
        self.bank = points[chosen]

    def _distances(self, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        return nearest(features.flatten(2).mT.flatten(0, 1), self.bank)[0].view(batch, height, width)


class FinePatchCore(PatchCore):
    """PatchCore without averaging over neighbours.

    The paper averages features that end in ReLU.  Those of EfficientNet-Lite0 are of both signs and cancel, and what
    they saw of fine texture is lost: PRO falls from 75 to 51 % on MiniParts flange, 75 to 52 on weave and 85 to 51 on
    pills (128 px), 91 to 83 on MVTec AD's toothbrush (256 px, seed 0).  A baseline has a claim to both settings.
    """

    def __init__(self, config: Config, parameters: PatchCoreParameters | None = None) -> None:
        super().__init__(config, parameters or PatchCoreParameters(average=1))
