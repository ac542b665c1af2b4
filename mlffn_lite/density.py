"""How unusual features are among those of good images: a Gaussian in closed form, beside the learned score.

Not in the paper. The learned score knows the anomalies it was shown; this knows nothing but good images, as PaDiM does
(Defard et al., 2021), and misses less of what no pseudo-anomaly resembles.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .layers import area_pool

EIGENVALUE_FLOOR = 0.01
"""Added to the eigenvalues of the correlation matrix, as a share of their mean, so that noise is not blown up."""


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
        moments, height, width = Moments(), 0, 0
        for features in batches:
            x = features.float().permute(2, 3, 0, 1)  # (h, w, B, C)
            height, width = x.shape[:2]
            moments.add(x.flatten(0, 1))
        if not moments.count:
            raise ValueError("there are no features to fit to")
        self.mean = moments.mean.mean(0)
        away = moments.mean - self.mean
        covariance = (moments.scatter.sum(0) / moments.count + away.mT @ away) / len(away)
        self.whitening = _whitening(covariance).contiguous()
        scatter = self.whitening.mT @ moments.covariance() @ self.whitening
        values, vectors = _eigh(scatter)
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
        with torch.autocast(features.device.type, enabled=False):
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


class Moments:
    """Mean and covariance at every position, gathered batch by batch without cancellation (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.scatter = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in features (P, B, D) of B more images."""
        seen, new = self.count, x.shape[1]
        centre = x.mean(1)
        x = x - centre[:, None]
        shift = centre - self.mean
        outer = shift[:, :, None] * shift[:, None]
        self.scatter = self.scatter + x.mT @ x + outer * (seen * new / (seen + new))
        self.mean = self.mean + shift * (new / (seen + new))
        self.count += new

    def covariance(self) -> Tensor:
        """Return the sample covariance (P, D, D); zero if there is one image only."""
        return self.scatter / max(self.count - 1, 1)


def _whitening(covariance: Tensor) -> Tensor:
    """Return W (C, C) with Wᵀ·covariance·W ≈ 1: channels to unit variance, then along the principal axes."""
    scale = covariance.diagonal().clamp(min=1e-12).rsqrt()
    values, axes = _eigh(scale[:, None] * covariance * scale)
    values = values.clamp(min=0)
    return scale[:, None] * axes * (values + EIGENVALUE_FLOOR * values.mean().clamp(min=1e-12)).rsqrt()


def _eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; on the CPU where the device has no such routine."""
    home = x.cpu() if x.device.type == "mps" else x
    values, vectors = torch.linalg.eigh(home)
    return values.to(x.device), vectors.to(x.device)


def _leave_one_out(squared: Tensor, count: int) -> Tensor:
    """Squared distance of each of ``count`` samples from the Gaussian of the others (Sherman and Morrison)."""
    if count < 2:
        return squared
    leverage = squared / (count - 1)
    return count * leverage * (count / (count - 1)) / (1 - count / (count - 1) * leverage).clamp(min=1e-3)
