"""Exercises of notebook 09, the score constraint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.losses import score_loss

from .checks import exercise


def _example(seed: int = 9) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    score = 4 * torch.randn(2, 1, 5, 6, generator=g, dtype=torch.float64)
    return score, torch.rand(score.shape, generator=g) < 0.25


@exercise(
    "09.1",
    wrong={
        "stretches only": lambda w, b, gamma, lam: (w * lam / 5, b * lam / 5),
        "moves only": lambda w, b, gamma, lam: (w, b + gamma - 2.5),
        "moves before it stretches": lambda w, b, gamma, lam: (w * lam / 5, (b + gamma - 2.5) * lam / 5),
    },
)
def convert(answer: Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]) -> None:
    """The score layer for another ceiling and margin."""
    g = torch.Generator().manual_seed(1)
    features = torch.randn(2, 7, 5, 6, generator=g, dtype=torch.float64)
    weight = torch.randn(1, 7, 1, 1, generator=g, dtype=torch.float64)
    bias = torch.randn(1, generator=g, dtype=torch.float64)
    mask = _example()[1]
    old = score_loss(torch.conv2d(features, weight, bias), mask, pairing="mean")
    for gamma, lam in ((2.5, 5.0), (0.0, 5.0), (2.5, 1.0), (-1.0, 30.0)):
        result = answer(weight, bias, gamma, lam)
        assert isinstance(result, tuple | list), "return a weight and a bias"
        assert len(result) == 2, "return a weight and a bias"
        score = torch.conv2d(features, *result)
        ratio = float(score_loss(score, mask, gamma=gamma, lam=lam, pairing="mean") / old)
        message = f"for γ = {gamma} and λ = {lam} the loss is {ratio:.3f} times the old one, not {lam / 5:.3f} times"
        assert abs(ratio - lam / 5) < 1e-6 * lam, message


@exercise(
    "09.2",
    wrong={
        "separates the classes": lambda: ([0.0, 1.0], [7.0]),
        "does not reach loss 0": lambda: ([2.0, -2.0], [1.0]),
        "breaks the ceiling": lambda: ([9.0, -40.0], [5.0]),
    },
)
def scores_that_fool(answer: Callable[[], tuple[list[float], list[float]]]) -> None:
    """Scores of loss 0 with mean pairing that do not separate the classes."""
    result = answer()
    assert isinstance(result, tuple | list), "return two lists, normal and anomalous scores"
    assert len(result) == 2, "return two lists, normal and anomalous scores"
    normal, anomalous = (torch.as_tensor(part, dtype=torch.float64).flatten() for part in result)
    assert len(normal) > 0, "there must be a normal score"
    assert len(anomalous) > 0, "there must be an anomalous score"
    assert len(normal) + len(anomalous) <= 20, "at most 20 numbers in all"
    score = torch.cat([normal, anomalous])[None, None, None]
    assert score.isfinite().all(), "scores must be finite"
    mask = (torch.arange(score.numel()) >= len(normal))[None, None, None]
    loss = float(score_loss(score, mask, pairing="mean"))
    assert loss == 0, f"the loss is {loss:.3f}, not 0"
    assert anomalous.min() < normal.max(), "every anomalous score is above every normal one: nobody is fooled"


def _mean_partner(score: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    return score_loss(score, mask, gamma=gamma, lam=lam, pairing="mean")


def _no_ceiling(score: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    return (lam - (score[mask][:, None] - score[~mask])).relu().mean()


def _turned(score: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    normal, anomalous = score[~mask], score[mask]
    return (normal - gamma).relu().mean() + (lam - (normal - anomalous[:, None])).relu().mean()


@exercise(
    "09.3",
    wrong={
        "takes the mean as the partner": _mean_partner,
        "forgets the ceiling": _no_ceiling,
        "turns the difference round": _turned,
    },
)
def all_pairs(answer: Callable[[Tensor, Tensor, float, float], Tensor]) -> None:
    """The score constraint over all pairs, the expectation of random pairing."""
    score, mask = _example()
    normal, anomalous = score[~mask].tolist(), score[mask].tolist()
    for gamma, lam in ((2.5, 5.0), (0.0, 1.0)):
        ceiling = sum(max(0.0, s - gamma) for s in normal) / len(normal)
        margin = sum(max(0.0, lam - (a - n)) for a in anomalous for n in normal) / (len(normal) * len(anomalous))
        ours = torch.as_tensor(answer(score, mask, gamma, lam))
        assert ours.ndim == 0, "return one number"
        message = (
            f"for γ = {gamma} and λ = {lam} it gives {float(ours):.3f}, the loop over all pairs {ceiling + margin:.3f}"
        )
        assert abs(float(ours) - ceiling - margin) < 1e-6, message
