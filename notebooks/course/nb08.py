"""Exercises of notebook 08, the feature constraint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mlffn_lite.losses import feature_loss

from .checks import exercise


def _balanced(distance: Tensor, mask: Tensor, *, log: bool = True, halves: bool = True) -> Tensor:
    near, far = distance[~mask], distance[mask]
    far = -torch.log(-torch.expm1(-far)) if log else -torch.log(1 - torch.exp(-far) + 1e-31)
    if not halves:
        return (near.sum() + far.sum()) / mask.numel()
    return (near.sum() / max(1, len(near)) + far.sum() / max(1, len(far))) / 2


@exercise(
    "08.1",
    wrong={
        "adds 1e-31 under the logarithm": lambda a, y: _balanced(a, y, log=False),
        "is equation (3)": lambda a, y: _balanced(a, y, halves=False),
        "takes the mean of nothing": lambda a, y: (a[~y].mean() - torch.log(-torch.expm1(-a[y])).mean()) / 2,
        "forgets the halves": lambda a, y: 2 * _balanced(a, y),
    },
)
def stable_loss(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Equation (4) in a form that holds near the centre."""
    g = torch.Generator().manual_seed(8)
    usual = 0.1 + 4.9 * torch.rand(2, 1, 6, 6, generator=g)
    some, none = torch.rand(usual.shape, generator=g) < 0.2, torch.zeros(usual.shape, dtype=torch.bool)
    cases = {
        "distances from 0.1 to 5": (usual, some),
        "no pixel is anomalous": (usual, none),
        "all pixels are anomalous": (usual, ~none),
        "anomalous pixels near the centre": (torch.where(some, 1e-8, usual), some),
    }
    for what, (distance, mask) in cases.items():
        given = distance.clone().requires_grad_()
        ours, expected = torch.as_tensor(answer(given, mask)), feature_loss(distance, mask)
        assert ours.ndim == 0, "return one number"
        assert torch.isclose(ours.to(expected.dtype), expected, rtol=1e-4), (
            f"{what}: (4) is {expected.item():.4f}, not {ours.item():.4f}"
        )
        (slope,) = torch.autograd.grad(ours, given)
        assert slope.isfinite().all(), f"{what}: the gradient is not finite"


class _Float32(TorchFunctionMode):
    """Refuse float64 in between."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert getattr(result, "dtype", None) != torch.float64, "it computes in float64 in between; use float32 only"
        return result


@exercise(
    "08.2",
    wrong={
        "naive everywhere": lambda a: torch.log(1 - torch.exp(-a)),
        "expm1 everywhere": lambda a: torch.log(-torch.expm1(-a)),
        "log1p everywhere": lambda a: torch.log1p(-torch.exp(-a)),
        "computes in float64": lambda a: torch.where(
            a < 1, (-torch.expm1(-a.double())).log(), torch.log1p(-torch.exp(-a.double()))
        ),
        "computes in float64 and rounds": lambda a: (-torch.expm1(-a.double())).log().float(),
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
    with _Float32():
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
