"""PatchCore (Roth et al., 2022): distance to the nearest of the good patches in a memory bank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..devices import generator_for
from ..errors import ConfigError
from ..features import FeatureDetector, FeatureParameters


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


def coreset(points: Tensor, count: int, projection: int, generator: torch.Generator) -> Tensor:
    """Choose ``count`` of the points (N, C) so that the others lie close to them; returns indices (count,)."""
    start = int(torch.randint(len(points), (), generator=generator))
    if 0 < projection < points.shape[1]:
        points = points @ sparse_projection(points.shape[1], projection, generator).to(points.device)
    return greedy_k_center(points, count, start)


def greedy_k_center(points: Tensor, count: int, start: int) -> Tensor:
    """Choose points one after another, always the one farthest from all chosen so far (minimax facility location).

    Parameters
    ----------
    points : Tensor
        (N, C), float.
    count : int
        How many, 1 to N.
    start : int
        The first one.

    Returns
    -------
    Tensor
        Indices (count,), all different, in the order of choice.
    """
    points = points - points.mean(0)  # small squares: they are subtracted below
    half = points.square().sum(1) / 2
    distance = torch.full_like(half, math.inf)  # half the square, to the nearest chosen point
    chosen = torch.empty(count, dtype=torch.long, device=points.device)
    index = torch.tensor(start, device=points.device)  # stays on the device: no transfer per step
    for step in range(count):
        chosen[step] = index
        torch.minimum(distance, torch.mv(points, points[index]).neg_().add_(half).add_(half[index]), out=distance)
        distance[index] = -math.inf  # not again, even where points coincide
        index = distance.argmax()
    return chosen


def sparse_projection(channels: int, dims: int, generator: torch.Generator) -> Tensor:
    """Draw a very sparse random projection (channels, dims) that keeps distances (Li et al., 2006).

    One entry in √channels is not zero, and ±√(√channels / dims).
    """
    density = channels**-0.5
    draw = torch.rand(channels, dims, generator=generator)
    return ((draw < density / 2).float() - (draw > 1 - density / 2).float()) / math.sqrt(density * dims)


def nearest(queries: Tensor, bank: Tensor, *, cells: int = 2**24) -> tuple[Tensor, Tensor]:
    """Find the nearest point of a bank.

    Parameters
    ----------
    queries, bank : Tensor
        (N, C) and (M, C), float32.
    cells : int
        Entries of the N × M table that exist at a time.

    Returns
    -------
    Tensor, Tensor
        Euclidean distance and index in the bank, (N,) each.  The table ranks by ‖b‖²/2 − q·b; the distance itself is
        computed from the difference, and so keeps its precision where it is small.
    """
    centre = bank.mean(0)  # small squares: they are subtracted below
    queries, bank = queries - centre, bank - centre
    half = bank.square().sum(1) / 2
    rows = max(1, cells // len(bank))
    index = torch.cat([torch.addmm(half, part, bank.T, alpha=-1).argmin(1) for part in queries.split(rows)])
    return (queries - bank[index]).norm(dim=1), index
