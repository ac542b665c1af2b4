"""The losses of §2.2 to §2.5: feature, score and consistency constraints, equations (3) to (8).

Everywhere ``features`` ψ(X) are (B, C, h, w); ``distance`` A, ``score`` S and ``mask`` (bool, true where anomalous, see
:func:`resize_mask`) are (B, 1, h, w). All is computed in float32 at least, whatever autocast does; float64 is kept.
Value and gradient stay finite for features from exactly 0 to 1e4. Wrong shapes or types raise ``ValueError``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from . import registry
from .config import LossConfig
from .errors import ConfigError
from .layers import area_pool, no_autocast

# Below this distance -log(1 - exp(-A)) goes on along its tangent: features shorter than 4.5e-5 are still repelled, by a
# gradient of at most 4.5e4, which float16 can hold.
_FLOOR = 1e-9


class LossTerms(NamedTuple):
    """Equation (8): the weighted ``total`` and its unweighted terms, 0 where the weight is."""

    total: Tensor
    feature: Tensor
    score: Tensor
    consistency: Tensor


def hypersphere_distance(features: Tensor) -> Tensor:
    """Return A = √(‖ψ‖² + 1) − 1, the distance from the centre (§2.2), as s / (√(s + 1) + 1), which cannot cancel."""
    if features.ndim != 4:
        raise ValueError(f"features must have shape (B, C, h, w), got {tuple(features.shape)}")
    squared = _widen(features).square().sum(1, keepdim=True)
    return squared / ((squared + 1).sqrt() + 1)


def feature_loss(distance: Tensor, mask: Tensor, *, balanced: bool = True) -> Tensor:
    """Return the feature constraint: normal pixels pay A, anomalous ones −ln(1 − e^{−A}).

    ``balanced`` is (4): each class has half the weight however few its pixels, an absent one adds 0; else (3).
    """
    _check("distance", distance, mask)
    near, far = _widen(distance), _repulsion(_widen(distance))
    if not balanced:
        return torch.where(mask, far, near).mean()
    return (_masked_mean(near, ~mask) + _masked_mean(far, mask)) / 2


def score_loss(
    score: Tensor,
    mask: Tensor,
    *,
    gamma: float = 2.5,
    lam: float = 5.0,
    pairing: str = "random",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the score constraint, equation (5).

    Normal scores pay their excess over γ, anomalous scores what they lack to exceed a normal score by λ. Without normal
    pixels both terms are 0 (there is no partner), without anomalous ones the second.

    Parameters
    ----------
    pairing : {"random", "mean"}
        The partner: a normal pixel of the batch drawn anew for each anomalous pixel, or the normal mean.
    generator : torch.Generator, optional
        Source of the random partners, on any device.
    """
    _check("score", score, mask)
    if pairing not in ("random", "mean"):
        raise ValueError(f"pairing must be 'random' or 'mean', got {pairing!r}")
    score = _widen(score)
    partner = _random_partner(score, mask, generator) if pairing == "random" else _masked_mean(score, ~mask)
    excess = _masked_mean((score - gamma).relu(), ~mask)
    return excess + _masked_mean((lam - (score - partner)).relu(), mask) * (~mask).any()


def consistency_loss(
    features: Tensor, score: Tensor, mask: Tensor, *, patches: int = 16, softmax: str = "distance"
) -> Tensor:
    """Return the consistency between features and scores, equations (6) and (7).

    Both maps are averaged over at most ``patches`` × ``patches`` patches. P and Q hold the Euclidean distances between
    the features and between the scores of two patches; row i pays KL[σ(Q_i) ‖ σ(P_i)]. Patches with an anomalous pixel
    are neither rows nor columns. Mean over rows, then over images with at least two normal patches; 0 if there is none.

    Parameters
    ----------
    softmax : {"distance", "negative"}
        σ is the softmax of the distances, as the paper writes it, or of their negatives.
    """
    _check("score", score, mask)
    if features.ndim != 4 or features[:, :1].shape != score.shape:
        raise ValueError(f"features {tuple(features.shape)} and score {tuple(score.shape)} must agree in B, h and w")
    if softmax not in ("distance", "negative"):
        raise ValueError(f"softmax must be 'distance' or 'negative', got {softmax!r}")
    size = (min(score.shape[2], patches), min(score.shape[3], patches))
    normal = ~resize_mask(mask, size).flatten(2).mT  # (B, K, 1)
    with no_autocast(features):
        pooled = area_pool(_widen(features), size).flatten(2).mT  # (B, K, C)
        value = area_pool(_widen(score), size).flatten(2).mT  # (B, K, 1)
        sign, anomalous = (1 if softmax == "distance" else -1), ~normal.mT
        # A finite filling rather than -inf: masked entries must not make 0 * inf in the gradient.
        p = (sign * _pairwise_distance(pooled)).masked_fill(anomalous, -1e30).log_softmax(-1)
        q = (sign * (value - value.mT).abs()).masked_fill(anomalous, -1e30).log_softmax(-1)
        divergence = torch.where(normal, q.exp() * (q - p), 0).sum((1, 2))
    count = normal.sum((1, 2))
    return _masked_mean(divergence / count.clamp(min=1), count > 1)


def total_loss(
    features: Tensor, score: Tensor, mask: Tensor, config: LossConfig, *, generator: torch.Generator | None = None
) -> LossTerms:
    """Return L = αL_f + βL_s + ξL_fs, equation (8), and its terms; those of weight 0 are not computed."""
    c = config
    first = second = third = _widen(features.new_zeros(()))
    if c.feature:
        first = feature_loss(hypersphere_distance(features), mask, balanced=c.balanced)
    if c.score:
        second = score_loss(score, mask, gamma=c.gamma, lam=c.lam, pairing=c.pairing, generator=generator)
    if c.consistency:
        third = consistency_loss(features, score, mask, patches=c.patches, softmax=c.softmax)
    return LossTerms(c.feature * first + c.score * second + c.consistency * third, first, second, third)


def own_loss(
    features: Tensor,
    score: Tensor,
    mask: Tensor,
    weights: Mapping[str, float],
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the weighted sum of terms of one's own, which training adds to equation (8).

    Parameters
    ----------
    weights : mapping of str to float
        By name or import path, see :func:`mlffn_lite.registry.find`: ``loss.own``. A term is a function
        ``term(features, score, mask, *, generator)`` that returns a scalar. What it draws it must draw from the
        generator, or a resumed run is another one.

    Raises
    ------
    ConfigError
        If a name is not known, or its term returns something else.
    """
    total = _widen(features.new_zeros(()))
    for name in (name for name, weight in weights.items() if weight):
        with no_autocast(features):
            value = registry.find("terms", name)(_widen(features), _widen(score), mask, generator=generator)
        if not isinstance(value, Tensor) or value.shape != () or not value.is_floating_point():
            found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"the term {name!r} must return a floating-point tensor of shape (), got {found}")
        total = total + weights[name] * value
    return total


def resize_mask(mask: Tensor, size: tuple[int, int], *, coverage: float = 0.0) -> Tensor:
    """Bring masks (B, 1, H, W) to feature resolution (B, 1, h, w), ``size`` = (h, w) of any ratio.

    A feature pixel is anomalous if more than ``coverage``, in [0, 1), of its area is; 0 keeps the thinnest defect.
    """
    _check("mask", mask, mask)
    if not 0 <= coverage < 1:
        raise ValueError(f"coverage must be at least 0 and below 1, got {coverage}")
    with no_autocast(mask):
        return area_pool(mask.float(), size) > coverage


def _repulsion(distance: Tensor) -> Tensor:
    """−ln(1 − e^{−A}) in two branches, each clamped to where it is exact, so that neither yields NaN gradients."""
    near = -(-torch.expm1(-distance.clamp(_FLOOR, 1))).log() + (1 - distance / _FLOOR).relu()
    far = -torch.log1p(-(-distance.clamp(min=math.log(2))).exp())
    return torch.where(distance <= math.log(2), near, far)  # clamp passes no gradient where the two are equal


def _random_partner(score: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
    """A normal score, uniform over the batch, for every pixel; nothing is copied back to the host."""
    device = score.device if generator is None else generator.device
    draw = torch.rand(score.shape, generator=generator, device=device).to(score.device)
    order = mask.flatten().byte().argsort(stable=True)  # normal pixels first
    count = (~mask).sum()
    rank = torch.minimum((draw * count).long(), (count - 1).clamp(min=0))  # rounding can reach count
    return score.flatten()[order[rank]]


def _pairwise_distance(x: Tensor) -> Tensor:
    """Distances between the rows of (B, K, C); exactly 0, gradient too, where rows agree to rounding."""
    # |a|² + |b|² − 2ab in float64 is as exact as differences in float32, and much faster. MPS has no float64: there
    # rows closer than about 2e-3 of their norm merge.
    wide = x if x.device.type == "mps" else x.double()
    wide = wide - wide.mean(1, keepdim=True).detach()  # distances do not change, rounding shrinks
    norm = wide.square().sum(-1, keepdim=True)
    squared = norm + norm.mT - 2 * wide @ wide.mT
    apart = squared > 16 * torch.finfo(wide.dtype).eps * (norm + norm.mT)
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0).to(x.dtype)


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true pixels, 0 if there are none."""
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(name: str, x: Tensor, mask: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 1 or mask.shape != x.shape or mask.dtype != torch.bool:
        found = f"{name} {tuple(x.shape)} and mask {tuple(mask.shape)} {mask.dtype}"
        raise ValueError(f"{found}: both must be (B, 1, h, w), the mask bool; see resize_mask")
