"""The method ``density``: how unusual features are among those of good images, by Gaussians in closed form.

Not in the paper. A learned score knows the anomalies it was shown; this knows nothing but good images, as PaDiM does
(Defard et al., 2021), and misses less of what no pseudo-anomaly resembles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import STRIDES
from ..config import Config
from ..features import FrozenDetector, Moments, upsample
from ..layers import area_pool, eigh, no_autocast, resize
from ..storage import load_module

EIGENVALUE_FLOOR = 0.01
"""Added at least to the eigenvalues of the correlation matrix, as a share of their mean: noise is not blown up."""


class NormalDensity(nn.Module):
    """Distance of features from those of good images, at their own position and over all positions.

    All features of good images are whitened together: z has mean 0 and covariance 1. At each position p the good
    images have mean c and covariance S of their own. The distance is ``√(|z|² + (z − c)ᵀ (S + m·1)⁻¹ (z − c))``: the
    first term knows what may occur anywhere, the second what may occur here. The shrinkage m holds S in check, which
    few images determine badly. Of S the ``rank`` largest eigenvalues are kept, the others are replaced by their mean.

    Parameters
    ----------
    channels : int
        Channels C of the features.
    rank : int
        Eigenvectors kept per position.
    shrinkage : float
        m, in units of the variance of a whitened channel.

    Attributes
    ----------
    images : Tensor
        Number of good images it was fitted to, 0 before.
    """

    images: Tensor
    mean: Tensor
    whitening: Tensor
    centre: Tensor
    directions: Tensor
    gain: Tensor
    rest: Tensor

    def __init__(self, channels: int, rank: int = 64, shrinkage: float = 0.2) -> None:
        super().__init__()
        self.rank, self.shrinkage = min(rank, channels), shrinkage
        self.register_buffer("images", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("whitening", torch.eye(channels))
        for name, shape in self._shapes(0, 0).items():
            self.register_buffer(name, torch.zeros(shape))

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit` has run, here or where the state was loaded from."""
        return self.centre.numel() > 0

    def _shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        channels, count = len(self.mean), height * width
        return {
            "centre": (height, width, channels),
            "directions": (count, channels, self.rank),
            "gain": (count, self.rank),
            "rest": (count, 1),
        }

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> NormalDensity:
        """Fit to the features of good images, in one pass with fixed memory; returns self.

        Parameters
        ----------
        batches : iterable of Tensor
            (B, C, h, w), of one size; every image once.
        """
        moments = Moments()
        for features in batches:
            moments.add_maps(features)
        return self.fit_moments(moments)

    @torch.no_grad()
    def fit_moments(self, moments: Moments) -> NormalDensity:
        """Fit to what has been gathered of the maps of good images; returns self."""
        if not moments.count:
            raise ValueError("there are no features to fit to")
        height, width = moments.size
        self.mean = moments.mean.mean(0)
        away = moments.mean - self.mean
        covariance = (moments.scatter.sum(0) / moments.count + away.mT @ away) / len(away)
        self.whitening = _whitening(covariance, moments.count * len(away)).contiguous()
        scatter = self.whitening.mT @ moments.covariance() @ self.whitening
        values, vectors = eigh(scatter)
        values = values.clamp(min=0)
        largest, others = values[:, -self.rank :], values[:, : -self.rank]
        rest = others.mean(1, keepdim=True) if others.shape[1] else torch.zeros_like(largest[:, :1])
        self.centre = (away @ self.whitening).unflatten(0, (height, width)).contiguous()
        self.directions = vectors[..., -self.rank :].half().float().contiguous()  # as they are stored
        self.gain, self.rest = (largest - rest) / (largest + self.shrinkage), rest
        self.images.fill_(moments.count)
        return self

    def forward(self, features: Tensor, *, left_out: bool = False) -> Tensor:
        """Return distances (B, 1, h, w) ≥ 0 of features (B, C, h', w'), at the size (h, w) that was fitted to.

        Parameters
        ----------
        features : Tensor
            Of another size, they are averaged over areas first.
        left_out : bool
            The images are among those fitted to: return each one's distance from all the others, in closed form.
        """
        height, width, _ = self.centre.shape
        if features.shape[-2:] != (height, width):
            features = area_pool(features, (height, width))
        with no_autocast(features):
            z = (features.float().permute(2, 3, 0, 1) - self.mean) @ self.whitening  # (h, w, B, C)
            away = (z - self.centre.unsqueeze(2)).flatten(0, 1)
            along = (away @ self.directions).square() @ self.gain.unsqueeze(2)
            here = (away.square().sum(-1) - along.squeeze(-1)).clamp(min=0) / (self.rest + self.shrinkage)
            if left_out:
                here = _leave_one_out(here, int(self.images))
            squared = z.square().sum(-1) + here.unflatten(0, (height, width))
            return squared.sqrt().permute(2, 0, 1).unsqueeze(1)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Store the directions, by far the largest part of a checkpoint, in half precision."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}directions"] = destination[f"{prefix}directions"].half()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take over the size of the maps that were fitted to, then load as usual."""
        stored = state_dict.get(f"{prefix}centre")
        if stored is not None and stored.ndim == 3:
            for name, shape in self._shapes(*stored.shape[:2]).items():
                setattr(self, name, getattr(self, name).new_zeros(shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class MultiscaleDensity(nn.Module):
    """Distance at several strides, finest first: the mean over strides of d/√C, for C channels at that stride.

    A stride's features are meant to be those of the levels that are no coarser, averaged over areas. Interpolated, a
    coarse level would have nothing of its own to say between its points, and with its many channels outvote the others.

    Parameters
    ----------
    channels : sequence of int
        Channels per stride.
    rank, shrinkage
        Of each :class:`NormalDensity`.
    """

    def __init__(self, channels: Sequence[int], rank: int = 64, shrinkage: float = 0.2) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.scales = nn.ModuleList(NormalDensity(c, rank, shrinkage) for c in channels)

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit` has run, here or where the state was loaded from."""
        return all(density.fitted for density in self.scales)

    def fit(self, batches: Iterable[Sequence[Tensor]]) -> MultiscaleDensity:
        """Fit to the features of good images, in one pass with fixed memory; returns self.

        Parameters
        ----------
        batches : iterable of sequences of Tensor
            Per batch and stride (B, C, h, w); every image once.
        """
        moments = [Moments() for _ in self.scales]
        for features in batches:
            for gathered, x in zip(moments, features, strict=True):
                gathered.add_maps(x)
        for density, gathered in zip(self.scales, moments, strict=True):
            cast(NormalDensity, density).fit_moments(gathered)
        return self

    def forward(self, features: Sequence[Tensor], *, left_out: bool = False) -> Tensor:
        """Return distances (B, 1, h, w) ≥ 0 at the finest stride; see :meth:`NormalDensity.forward`."""
        found = self.distances(features, left_out=left_out)
        size = found[0].shape[-2:]
        coarse = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in found[1:]]
        return torch.stack([found[0], *coarse]).mean(0)

    def distances(self, features: Sequence[Tensor], *, left_out: bool = False) -> list[Tensor]:
        """Return d/√C, (B, 1, h, w) per stride."""
        both = zip(self.scales, features, self.channels, strict=True)
        return [density(x, left_out=left_out) / channels**0.5 for density, x, channels in both]


def _whitening(covariance: Tensor, samples: int) -> Tensor:
    """Return W (C, C) with Wᵀ·covariance·W ≈ 1: channels to unit variance, then along the principal axes.

    The fewer samples per channel, the more the smallest eigenvalues are too small; C/samples is added to all of them.
    """
    scale = covariance.diagonal().clamp(min=1e-12).rsqrt()
    values, axes = eigh(scale[:, None] * covariance * scale)
    values = values.clamp(min=0)
    floor = EIGENVALUE_FLOOR + len(covariance) / samples
    return scale[:, None] * axes * (values + floor * values.mean().clamp(min=1e-12)).rsqrt()


def _leave_one_out(squared: Tensor, count: int) -> Tensor:
    """Squared distance of each of ``count`` samples from the Gaussian of the others (Sherman and Morrison)."""
    if count < 2:
        return squared
    leverage = squared / (count - 1)
    return count * leverage * (count / (count - 1)) / (1 - count / (count - 1) * leverage).clamp(min=1e-3)


class DensityDetector(FrozenDetector):
    """Distance of a frozen backbone's features from those of good images.

    Parameters
    ----------
    config : Config
        The section ``density``; of the others backbone, size, precision, seed and device.

    Attributes
    ----------
    density : MultiscaleDensity
        Fitted to the levels, at each stride to those that are no coarser.
    """

    leaves_out = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.finest = [STRIDES.index(stride) for stride in config.density.strides]
        self._density: MultiscaleDensity | None = None
        self.parts = len(self.finest)

    @property
    def density(self) -> MultiscaleDensity:
        """The density, empty before it is fitted."""
        if self._density is None:
            own, channels = self.config.density, self.backbone.channels
            known = [sum(channels[: level + 1]) for level in self.finest]
            self._density = MultiscaleDensity(known, own.rank, own.shrinkage).to(self.device)
        return self._density

    def _learn_levels(self, batches: Iterator[list[Tensor]], images: int) -> None:
        self.density.fit(map(self._stacks, batches))

    def _score_levels(self, levels: list[Tensor], size: torch.Size, *, left_out: Tensor | None = None) -> Tensor:
        return upsample(self.density(self._stacks(levels), left_out=left_out is not None), size)

    def _score_parts(self, levels: list[Tensor], size: torch.Size, *, left_out: Tensor | None = None) -> Tensor:
        parts = self.density.distances(self._stacks(levels), left_out=left_out is not None)
        return torch.stack([upsample(part, size) for part in parts], dim=1)

    def _stacks(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the features, (B, ΣC, h, w) per stride: the levels that are no coarser, side by side."""
        return [
            torch.cat([resize(x, levels[finest].shape[-2:]) for x in levels[: finest + 1]], dim=1)
            for finest in self.finest
        ]

    def _own_tensors(self) -> dict[str, Tensor]:
        return {f"density.{k}": v for k, v in self.density.state_dict().items()}

    def _restore_own(self, tensors: dict[str, Tensor], path: Path) -> None:
        load_module(self.density, tensors, "density.", path)
