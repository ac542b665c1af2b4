"""Exercises of notebook 10, the consistency constraint."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.losses import consistency_loss

from .checks import exercise


def _divergence(q: Tensor, p: Tensor) -> Tensor:
    log_q, log_p = q.log_softmax(-1), p.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def _overflowing(q: Tensor, p: Tensor) -> Tensor:
    a, b = (x.exp() / x.exp().sum(-1, keepdim=True) for x in (q, p))
    return (a * (a / b).log()).sum(-1)


def _rows(x: Tensor) -> Tensor:
    return torch.cdist(x.flatten(2).mT, x.flatten(2).mT)


@exercise(
    "10.1",
    wrong={
        "turns the divergence round": lambda f, s: _divergence(_rows(f), _rows(s)).mean(),
        "takes negatives": lambda f, s: _divergence(-_rows(s), -_rows(f)).mean(),
        "overflows": lambda f, s: _overflowing(_rows(s), _rows(f)).mean(),
        "adds rows up": lambda f, s: _divergence(_rows(s), _rows(f)).sum(),
        "compares channels, not pixels": lambda f, s: _divergence(
            _rows(s), torch.cdist(f.flatten(2).mT[..., :1], f.flatten(2).mT[..., :1])
        ).mean(),
    },
)
def consistency(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Equation (6) of maps without an anomalous pixel."""
    g = torch.Generator().manual_seed(10)
    for size, what in ((1.0, "small distances"), (300.0, "distances of up to 1000")):
        features, score = (size * torch.randn(2, c, 3, 4, generator=g) for c in (5, 1))
        normal = torch.zeros(score.shape, dtype=torch.bool)
        ours, expected = torch.as_tensor(answer(features, score)), consistency_loss(features, score, normal)
        assert ours.ndim == 0, "return one number"
        assert ours.isfinite(), f"for {what} it is not finite"
        assert torch.isclose(ours, expected, rtol=1e-3), f"for {what} (6) is {expected:.4f}, not {ours.item():.4f}"
    assert abs(float(answer(score, score + 10))) < 1e-5, "scores that differ by a constant have the same distances"


def _effective(distances: Tensor, tau: float) -> float:
    log = (distances.double() / tau).log_softmax(-1)
    return float((-(log.exp() * log).sum(-1)).exp().mean())


def _search(distances: Tensor, target: float, sign: int = 1, base: float = math.e) -> float:
    low, high = -14.0, 14.0
    for _ in range(60):
        middle = (low + high) / 2
        log = (sign * distances.double() / math.exp(middle)).log_softmax(-1)
        value = float(base ** (-(log.exp() * log).sum(-1).mean()))
        low, high = (middle, high) if value < target else (low, middle)
    return math.exp((low + high) / 2)


@exercise(
    "10.2",
    wrong={
        "always 1": lambda distances, target: 1.0,
        "takes the mean distance": lambda distances, target: float(distances.mean()),
        "takes negatives": lambda distances, target: _search(distances, target, sign=-1),
        "returns the inverse": lambda distances, target: 1 / _search(distances, target),
        "takes bits for a number": lambda distances, target: _search(distances, target, base=2.0),
    },
)
def temperature(answer: Callable[[Tensor, float], float]) -> None:
    """The temperature for a wanted effective number of patches."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(60, 5, generator=g)
    for scale, target in ((1.0, 20.0), (1.0, 5.0), (100.0, 40.0), (0.01, 10.0)):
        distances = scale * torch.cdist(x, x)
        tau = float(answer(distances.clone(), target))
        assert math.isfinite(tau), "the temperature must be finite"
        assert tau > 0, "the temperature must be above 0"
        found = _effective(distances, tau)
        message = f"mean distance {float(distances.mean()):.2f}, target {target:g}: τ = {tau:.3g} gives {found:.1f}"
        assert abs(found / target - 1) < 0.01, message


def _log_rows(distances: Tensor, unit: float | Tensor) -> Tensor:
    return (distances / unit).log_softmax(-1)


@exercise(
    "10.3",
    wrong={
        "keeps the unit": lambda d: _log_rows(d, 1.0),
        "a unit per row": lambda d: _log_rows(d, d.mean(-1, keepdim=True).clamp(min=1e-12)),
        "no logarithm": lambda d: _log_rows(d, d.mean().clamp(min=1e-12)).exp(),
        "divides by 0": lambda d: _log_rows(d, d.mean()),
        "takes negatives": lambda d: _log_rows(-d, d.mean().clamp(min=1e-12)),
        "columns, not rows": lambda d: (d / d.mean().clamp(min=1e-12)).log_softmax(-2),
    },
)
def unitless(answer: Callable[[Tensor], Tensor]) -> None:
    """Log-softmax of distances over their mean."""
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(12))
    distances = torch.cdist(x, x)
    expected = distances.divide(distances.mean()).log_softmax(-1)
    for scale in (1.0, 100.0, 0.01):
        ours = answer(scale * distances)
        assert ours.shape == distances.shape, f"return a matrix of 20 × 20, not {tuple(ours.shape)}"
        sums = ours.exp().sum(-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-3), "the exponentials of each row must sum to 1"
        message = (
            f"for a mean distance of {float(scale * distances.mean()):.3g} the first entry is {expected[0, 0]:.3f}"
        )
        assert torch.allclose(ours, expected, atol=1e-3), f"{message}, not {float(ours[0, 0]):.3f}"
    assert answer(torch.zeros(5, 5)).isfinite().all(), "distances that are all 0 must give finite rows"
