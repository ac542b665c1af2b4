"""The method ``memory``: distance from the rarest of good patches, chosen one by one. Not in the paper.

As PatchCore (Roth et al., 2022) it remembers patches; it whitens them first, so that no channel outvotes the others,
and keeps a fixed number, so that memory and time do not grow with the training set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import STRIDES
from ..config import Config, MemoryConfig
from ..devices import generator_for
from ..features import FrozenDetector, smooth, upsample
from ..layers import eigh, resize
from ..neighbours import greedy_k_center, smallest
from ..storage import load_module


class PatchMemory(nn.Module):
    """Mean distance of patches to the nearest few of a bank of good ones, in units of what good patches have.

    Features are brought to mean 0 and, but for a floor under the eigenvalues, covariance 1, and cut to the principal
    axes. The bank is a greedy coreset (k-center): always the patch that is farthest from all chosen so far.

    Parameters
    ----------
    channels : int
        Channels C of the features.
    patches : int
        Size of the bank, at most.
    dims : int
        Principal axes kept, at most.
    floor : float
        Added to the eigenvalues of the covariance, as a share of their mean; the larger, the less is whitened.
    neighbours : int
        Number k of neighbours that the distance is averaged over.

    Attributes
    ----------
    bank, owner : Tensor
        Whitened patches (M, D), and the training image that each is from (M,).
    unit : Tensor
        Median distance of good patches from those of other images.
    """

    mean: Tensor
    axes: Tensor
    bank: Tensor
    owner: Tensor
    unit: Tensor

    def __init__(self, channels: int, patches: int, dims: int, floor: float, neighbours: int) -> None:
        super().__init__()
        self.patches, self.dims, self.floor, self.neighbours = patches, min(dims, channels), floor, neighbours
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("axes", torch.zeros(channels, self.dims))
        self.register_buffer("bank", torch.zeros(0, self.dims))
        self.register_buffer("owner", torch.zeros(0, dtype=torch.long))
        self.register_buffer("unit", torch.ones(()))

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit` has run, here or where the state was loaded from."""
        return len(self.bank) > 0

    @torch.no_grad()
    def fit(self, points: Tensor, owner: Tensor, generator: torch.Generator) -> PatchMemory:
        """Choose the bank from patches (N, C) of the training images ``owner`` (N,); returns self."""
        self.mean = points.mean(0)
        centred = points - self.mean
        values, axes = eigh(centred.mT @ centred / len(points))
        values = values.clamp(min=0)
        gains = (values + self.floor * values.mean().clamp(min=1e-12)).rsqrt()
        self.axes = (axes * gains)[:, -self.dims :].contiguous()
        white = centred @ self.axes
        start = int(torch.randint(len(white), (), generator=generator))
        chosen = greedy_k_center(white, min(self.patches, len(white)), start)
        self.bank, self.owner = white[chosen], owner[chosen]
        some = torch.randperm(len(white), generator=generator)[:4096].to(white.device)
        self.unit = self._distances(white[some], owner[some]).median().clamp(min=1e-6)
        return self

    def forward(self, features: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Return distances (B, 1, h, w) ≥ 0 of features (B, C, h, w); 1 is usual for good ones.

        ``left_out`` (B,) are places in the training set: what the bank has of an image is not its neighbour.
        """
        batch, _, height, width = features.shape
        white = (features.flatten(2).mT.flatten(0, 1) - self.mean) @ self.axes
        owner = None if left_out is None else left_out.to(white.device).repeat_interleave(height * width)
        return (self._distances(white, owner) / self.unit).view(batch, 1, height, width)

    def _distances(self, white: Tensor, owner: Tensor | None) -> Tensor:
        """Return mean distances (N,) from the nearest of the bank; a CPU's cache holds the table of as many at a time."""
        cells = 2**19 if white.device.type == "cpu" else 2**24
        half = self.bank.square().sum(1) / 2
        parts = []
        for rows in torch.arange(len(white), device=white.device).split(max(1, cells // len(half))):
            table = torch.addmm(half, white[rows], self.bank.mT, alpha=-1)  # half the square, but for that of the patch
            if owner is not None:
                own = owner[rows, None] == self.owner
                table.masked_fill_(own & ~own.all(1, keepdim=True), torch.inf)  # where there is another
            near = smallest(table, min(self.neighbours, len(half)))
            others = table.gather(1, near).isfinite()  # they may be fewer than the neighbours asked for
            gaps = (white[rows, None] - self.bank[near]).norm(dim=2)
            parts.append((gaps * others).sum(1) / others.sum(1))
        return torch.cat(parts)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take over the size of the bank that was fitted, then load as usual."""
        for name in ("bank", "owner"):
            stored, own = state_dict.get(f"{prefix}{name}"), getattr(self, name)
            if stored is not None and stored.ndim == own.ndim:
                setattr(self, name, own.new_zeros(len(stored), *own.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)


class MemoryDetector(FrozenDetector):
    """Distance of a frozen backbone's features from banks of good ones, one bank for each neighbourhood.

    Parameters
    ----------
    config : Config
        The section ``memory``; of the others backbone, size, seed and device.

    Attributes
    ----------
    memories : nn.ModuleList of PatchMemory
        One for each of ``memory.averages``.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.parts = len(config.memory.averages)
        self._memories: nn.ModuleList | None = None

    @property
    def own(self) -> MemoryConfig:
        """The section of the configuration."""
        return self.config.memory

    @property
    def memories(self) -> nn.ModuleList:
        """The banks, empty before they are fitted."""
        if self._memories is None:
            channels = sum(self.backbone.channels[i - 1] for i in self.own.levels)
            patches, dims, neighbours = self.own.patches, self.own.dims, self.own.neighbours
            banks = (PatchMemory(channels, patches, dims, floor, neighbours) for floor in self.own.floors)
            self._memories = nn.ModuleList(banks).to(self.device)
        return self._memories

    def _learn_levels(self, batches: Iterator[list[Tensor]], images: int) -> None:
        generator = generator_for(self.config.train.seed, "memory", 0)
        each = max(1, self.own.candidates // images)
        kept: list[list[Tensor]] = [[] for _ in self.own.averages]
        owner: list[Tensor] = []
        for levels in batches:
            views = [x.flatten(2).mT for x in self._views(levels)]  # (B, P, C)
            count, patches = views[0].shape[:2]
            for i in range(count):
                some = torch.randperm(patches, generator=generator)[:each].to(self.device)
                for points, view in zip(kept, views, strict=True):
                    points.append(view[i, some])
                owner.append(torch.full_like(some, len(owner)))
        for memory, points in zip(self.memories, kept, strict=True):
            memory.fit(torch.cat(points), torch.cat(owner), generator)  # type: ignore[operator]
            points.clear()

    def _score_levels(self, levels: list[Tensor], size: torch.Size, *, left_out: Tensor | None = None) -> Tensor:
        return self._score_parts(levels, size, left_out=left_out).mean(1)

    def _score_parts(self, levels: list[Tensor], size: torch.Size, *, left_out: Tensor | None = None) -> Tensor:
        pairs = zip(self.memories, self._views(levels), strict=True)
        maps = [smooth(upsample(memory(view, left_out), size), self.own.sigma) for memory, view in pairs]
        return torch.stack(maps, dim=1)

    def _views(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the features (B, C, h, w) that each bank sees: levels averaged over neighbours, zeros outside."""
        size = levels[STRIDES.index(self.own.stride)].shape[-2:]
        chosen = [levels[i - 1] for i in self.own.levels]
        averaged = [[F.avg_pool2d(x, n, 1, n // 2) for x in chosen] if n > 1 else chosen for n in self.own.averages]
        return [torch.cat([resize(x, size) for x in view], dim=1) for view in averaged]

    def _own_tensors(self) -> dict[str, Tensor]:
        return {f"memory.{k}": v for k, v in self.memories.state_dict().items()}

    def _restore_own(self, tensors: dict[str, Tensor], path: Path) -> None:
        load_module(self.memories, tensors, "memory.", path)
