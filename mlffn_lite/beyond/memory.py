"""The method ``memory``: distance from the rarest of good patches, chosen one by one. Not in the paper.

As PatchCore (Roth et al., 2022) it remembers patches; it whitens them first, so that no channel outvotes the others,
and keeps a fixed number, so that memory and time do not grow with the training set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import STRIDES
from ..config import BankConfig, Config
from ..devices import generator_for
from ..features import FrozenDetector, averaged, smooth, upsample
from ..layers import eigh, resize
from ..neighbours import greedy_k_center, smallest
from ..storage import load_module

SEARCHED = 64
"""Principal axes in which neighbours are looked for; of unwhitened features they hold nearly all there is."""


class PatchMemory(nn.Module):
    """Mean distance of patches to the nearest few of a bank of good ones, in units of what good patches have.

    Features are turned to their principal axes; whitened, they have covariance 1 there, but for a floor under the
    eigenvalues. The bank is a greedy coreset (k-center): always the patch that is farthest from all chosen so far.
    Neighbours are the nearest in the first 64 axes, distances those in all.

    Parameters
    ----------
    channels : int
        Channels C of the features.
    patches : int
        Size of the bank, at most.
    own : BankConfig
        Principal axes kept, floor and neighbours.

    Attributes
    ----------
    bank, owner : Tensor
        Turned patches (M, D), and the training image that each is from (M,).
    unit : Tensor
        Median distance of good patches from those of other images.
    """

    mean: Tensor
    axes: Tensor
    bank: Tensor
    owner: Tensor
    unit: Tensor

    def __init__(self, channels: int, patches: int, own: BankConfig) -> None:
        super().__init__()
        self.patches, self.own = patches, own
        self.dims = min(own.dims, channels)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("axes", torch.zeros(channels, self.dims))
        self.register_buffer("bank", torch.zeros(0, self.dims))
        self.register_buffer("owner", torch.zeros(0, dtype=torch.long))
        self.register_buffer("unit", torch.ones(()))

    @torch.no_grad()
    def fit(self, points: Tensor, owner: Tensor, generator: torch.Generator) -> PatchMemory:
        """Choose the bank from patches (N, C) of the training images ``owner`` (N,); returns self."""
        self.mean = points.mean(0)
        centred = points - self.mean
        values, axes = eigh(centred.mT @ centred / len(points))
        if self.own.floor:
            values = values.clamp(min=0)
            axes = axes * (values + self.own.floor * values.mean().clamp(min=1e-12)).rsqrt()
        self.axes = axes.flip(1)[:, : self.dims].contiguous()  # the largest eigenvalue first
        turned = centred @ self.axes
        start = int(torch.randint(len(turned), (), generator=generator))
        chosen = greedy_k_center(turned, min(self.patches, len(turned)), start)
        self.bank, self.owner = turned[chosen], owner[chosen]
        some = torch.randperm(len(turned), generator=generator)[:4096].to(turned.device)
        self.unit = self._distances(turned[some], owner[some]).median().clamp(min=1e-6)
        return self

    def forward(self, features: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Return distances (B, 1, h, w) ≥ 0 of features (B, C, h, w); 1 is usual for good ones.

        ``left_out`` (B,) are places in the training set: what the bank has of an image is not its neighbour.
        """
        batch, _, height, width = features.shape
        turned = (features.flatten(2).mT.flatten(0, 1) - self.mean) @ self.axes
        owner = None if left_out is None else left_out.to(turned.device).repeat_interleave(height * width)
        return (self._distances(turned, owner) / self.unit).view(batch, 1, height, width)

    def _distances(self, turned: Tensor, owner: Tensor | None) -> Tensor:
        """Return mean distances (N,) from the nearest of the bank."""
        size, near = min(SEARCHED, self.dims), min(self.own.neighbours, len(self.bank))
        bank = self.bank[:, :size].mT.contiguous()
        half = bank.square().sum(0) / 2
        cells = 2**19 if turned.device.type == "cpu" else 2**24  # a table that a CPU's cache holds
        parts = []
        for rows in torch.arange(len(turned), device=turned.device).split(max(1, cells // len(half))):
            table = torch.addmm(half, turned[rows, :size], bank, alpha=-1)  # half the square, but for that of the patch
            if owner is not None:
                own = owner[rows, None] == self.owner
                table.masked_fill_(own & ~own.all(1, keepdim=True), torch.inf)  # where there is another
            found = smallest(table, near)
            others = table.gather(1, found).isfinite()  # they may be fewer than the neighbours asked for
            gaps = (turned[rows, None] - self.bank[found]).norm(dim=2)
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
    """Distance of a frozen backbone's features from banks of good ones.

    Parameters
    ----------
    config : Config
        The section ``memory``; of the others backbone, size, seed and device.

    Attributes
    ----------
    memories : nn.ModuleList of PatchMemory
        One for each of ``memory.banks``.
    """

    leaves_out = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.own = config.memory
        self.parts = len(self.own.banks)
        self._memories: nn.ModuleList | None = None

    @property
    def memories(self) -> nn.ModuleList:
        """The banks, empty before they are fitted."""
        if self._memories is None:
            channels = [sum(self.backbone.channels[i - 1] for i in bank.levels) for bank in self.own.banks]
            pairs = zip(channels, self.own.banks, strict=True)
            self._memories = nn.ModuleList(PatchMemory(c, self.own.patches, bank) for c, bank in pairs).to(self.device)
        return self._memories

    def _learn_levels(self, batches: Iterator[list[Tensor]], images: int) -> None:
        generator = generator_for(self.config.train.seed, "memory", 0)
        each = max(1, self.own.candidates // images)
        kept: list[list[Tensor]] = [[] for _ in self.own.banks]
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
        """Return the features (B, C, h, w) that each bank sees."""
        size = levels[STRIDES.index(self.own.stride)].shape[-2:]
        return [
            torch.cat([resize(averaged(levels[i - 1], b.average), size) for i in b.levels], 1) for b in self.own.banks
        ]

    def _own_tensors(self) -> dict[str, Tensor]:
        return {f"memory.{k}": v for k, v in self.memories.state_dict().items()}

    def _restore_own(self, tensors: dict[str, Tensor], path: Path) -> None:
        load_module(self.memories, tensors, "memory.", path)
