"""Exercises of notebook 09, the score constraint."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mlffn_lite.losses import score_loss

from .checks import exercise


def _example(seed: int = 9) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    score = 4 * torch.randn(2, 1, 5, 6, generator=g, dtype=torch.float64)
    return score, torch.rand(score.shape, generator=g) < 0.25


def _constraint(
    score: Tensor,
    mask: Tensor,
    generator: torch.Generator | None,
    gamma: float = 2.5,
    lam: float = 5.0,
    *,
    partners: Callable[[Tensor, int, torch.Generator | None], Tensor],
) -> Tensor:
    normal, anomalous = score[~mask], score[mask]
    if len(normal) == 0:
        return 0 * score.sum()
    ceiling = (normal - gamma).relu().mean()
    if len(anomalous) == 0:
        return ceiling
    return ceiling + (lam - anomalous + partners(normal, len(anomalous), generator)).relu().mean()


def _draw(normal: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    return normal[torch.randint(len(normal), (count,), generator=generator)]


def _with_nan(score: Tensor, mask: Tensor, generator: torch.Generator, gamma: float = 2.5, lam: float = 5.0) -> Tensor:
    partners = score[~mask][torch.randint(max(1, int((~mask).sum())), (int(mask.sum()),), generator=generator)]
    return (score[~mask] - gamma).relu().mean() + (lam - score[mask] + partners).relu().mean()


def _own_image(score: Tensor, mask: Tensor, generator: torch.Generator, gamma: float = 2.5, lam: float = 5.0) -> Tensor:
    parts = [_constraint(s, m, generator, gamma, lam, partners=_draw) for s, m in zip(score, mask, strict=True)]
    return torch.stack(parts).mean()


@exercise(
    "09.1",
    wrong={
        "the mean as partner": partial(_constraint, partners=lambda normal, count, _: normal.mean().expand(count)),
        "one partner for all": partial(_constraint, partners=lambda normal, count, g: _draw(normal, 1, g)),
        "no gradient for the partner": partial(_constraint, partners=lambda *given: _draw(*given).detach()),
        "draws without the generator": partial(_constraint, partners=lambda normal, n, _: _draw(normal, n, None)),
        "NaN without anomalous pixels": _with_nan,
        "partners from the same image only": _own_image,
        "forgets the ceiling": lambda s, m, g, gamma=2.5, lam=5.0: _constraint(s, m, g, 1e9, lam, partners=_draw),
    },
)
def score_constraint(answer: Callable[..., Tensor]) -> None:
    """Equation (5) with a random partner for each anomalous pixel."""
    g = torch.Generator().manual_seed(5)
    score = torch.tensor([1.0, 3.5, 2.5, 6.0]).reshape(1, 1, 2, 2)
    mask = torch.tensor([False, False, True, True]).reshape(1, 1, 2, 2)
    first = torch.as_tensor(answer(score, mask, g))
    assert first.ndim == 0, "return one number"
    found = {round(float(answer(score, mask, g)), 4) for _ in range(80)}
    what = "normal scores 1 and 3.5, anomalous ones 2.5 and 6: the partners make"
    assert found == {2.25, 3.5, 4.75}, f"{what} 2.25, 3.5 or 4.75, not {', '.join(map(str, sorted(found)))}"
    same = [float(answer(score, mask, torch.Generator().manual_seed(n // 2))) for n in range(20)]
    assert same[::2] == same[1::2], "the same state of the generator must give the same partners"
    apart = score.reshape(2, 1, 1, 2), mask.reshape(2, 1, 1, 2)
    found = {round(float(answer(*apart, g)), 4) for _ in range(80)}
    assert found == {2.25, 3.5, 4.75}, "partners come from all normal pixels of the batch, not from one image"
    pair = torch.tensor([4.0, 3.0]).reshape(1, 1, 1, 2).requires_grad_()
    right = torch.tensor([False, True]).reshape(1, 1, 1, 2)
    for gamma, lam in ((2.5, 5.0), (1.0, 3.0)):
        ours, expected = answer(pair, right, g, gamma, lam).item(), 4 - gamma + lam + 1
        assert math.isclose(ours, expected), f"γ = {gamma}, λ = {lam}, one pair: {expected} and not {ours:.3f}"
    (slope,) = torch.autograd.grad(answer(pair, right, g), pair)
    assert slope.flatten().tolist() == [2, -1], f"4 and 3 have slopes 2 and −1, not {slope.flatten().tolist()}"
    ours = float(answer(score, torch.zeros_like(mask), g))
    assert math.isclose(ours, 1.125), f"without anomalous pixels only the ceiling is left: 1.125 and not {ours:.3f}"
    assert float(answer(score, torch.ones_like(mask), g)) == 0, "without normal pixels the loss is 0"


@exercise(
    "09.2",
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
    "09.3",
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
    "09.4",
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
