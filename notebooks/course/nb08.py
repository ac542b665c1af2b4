"""Exercises of notebook 08, the feature constraint."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.losses import feature_loss

from .checks import exercise


@exercise(
    "08.1",
    wrong={
        "gives the distance instead of the radius": lambda p: -math.log(p),
        "forgets that the distance has 1 taken off": lambda p: math.sqrt(math.log(p) ** 2 + 1),
        "drops the square root": lambda p: (1 - math.log(p)) ** 2 - 1,
    },
)
def radius(answer: Callable[[float], float]) -> None:
    """The radius of a feature that is normal with probability p."""
    assert math.isclose(float(answer(1.0)), 0, abs_tol=1e-9), "a pixel that is normal for certain lies at the centre"
    for p in (0.9, 0.5, 0.1, 1e-3):
        r = float(answer(p))
        assert math.isfinite(r), f"radius({p}) must be a finite number"
        again = math.exp(1 - math.sqrt(r * r + 1))
        assert math.isclose(again, p, rel_tol=1e-6), f"at radius({p}) = {r:.3f} the probability is {again:.3f}, not {p}"


@exercise(
    "08.2",
    wrong={
        "naive everywhere": lambda a: torch.log(1 - torch.exp(-a)),
        "expm1 everywhere": lambda a: torch.log(-torch.expm1(-a)),
        "log1p everywhere": lambda a: torch.log1p(-torch.exp(-a)),
        "computes in float64": lambda a: torch.where(
            a < 1, (-torch.expm1(-a.double())).log(), torch.log1p(-torch.exp(-a.double()))
        ),
        "gives minus the logarithm": lambda a: (
            -torch.where(a < 0.69, (-torch.expm1(-a)).log(), torch.log1p(-(-a).exp()))
        ),
    },
)
def log1mexp(answer: Callable[[Tensor], Tensor]) -> None:
    """ln(1 − e^−a) in float32, accurate for small and for large a."""
    a = torch.logspace(-8, math.log10(80), 60)
    wide = a.double()
    exact = torch.where(wide < 1, torch.log(-torch.expm1(-wide)), torch.log1p(-torch.exp(-wide)))
    ours = answer(a)
    assert isinstance(ours, Tensor), "return a tensor"
    assert ours.shape == a.shape, "return a tensor of the shape of the argument"
    assert ours.dtype == torch.float32, "stay in float32"
    assert not (ours > 0).any(), "1 − e^−a is below 1, so its logarithm is never above 0"
    error = (ours.double() / exact - 1).abs().nan_to_num(math.inf, math.inf)
    worst = int(error.argmax())
    assert error[worst] < 1e-5, f"at a = {a[worst]:.1e} the relative error is {error[worst]:.0e}"


def _parts(distance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return distance[~mask], -torch.log(-torch.expm1(-distance[mask]))


def _swapped(distance: Tensor, mask: Tensor, weight: float) -> Tensor:
    near, far = _parts(distance, mask)
    return weight * near.mean() + (1 - weight) * far.mean()


def _per_pixel(distance: Tensor, mask: Tensor, weight: float) -> Tensor:
    near, far = _parts(distance, mask)
    return ((1 - weight) * near.sum() + weight * far.sum()) / mask.numel()


@exercise(
    "08.3",
    wrong={
        "swaps the weights": _swapped,
        "weighs pixels instead of classes": _per_pixel,
        "ignores the weight": lambda distance, mask, weight: feature_loss(distance, mask),
    },
)
def weighted_loss(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """The feature constraint with a free weight of the anomalous class."""
    g = torch.Generator().manual_seed(8)
    distance = 0.1 + 4.9 * torch.rand(2, 1, 6, 6, generator=g)
    mask = torch.rand(distance.shape, generator=g) < 0.2
    near, far = (part.mean() for part in _parts(distance, mask))
    share = float(mask.float().mean())
    cases = (
        (0.5, feature_loss(distance, mask), "weight 0.5 must equal (4)"),
        (share, feature_loss(distance, mask, balanced=False), "the share of the pixels as weight must equal (3)"),
        (0.0, near, "with weight 0 only normal pixels pay"),
        (0.9, 0.1 * near + 0.9 * far, "each class's mean loss is multiplied by that class's weight"),
    )
    for weight, expected, sentence in cases:
        ours = torch.as_tensor(answer(distance, mask, weight))
        assert ours.ndim == 0, "return one number"
        assert torch.isclose(ours.to(expected.dtype), expected, rtol=1e-4), sentence
