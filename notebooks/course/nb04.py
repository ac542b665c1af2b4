"""Checks of notebook 04: levels, the literal window, and a window that trades weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import exercise


def _rounded(x: Tensor, low: float, high: float, levels: int) -> Tensor:
    return ((x - low) / (high - low) * levels).round().long().clamp(0, levels - 1)


def _one_too_many(x: Tensor, low: float, high: float, levels: int) -> Tensor:
    return ((x - low) / (high - low) * levels).floor().long()


@exercise("04.1", wrong={"takes the nearest edge": _rounded, "gives the maximum a level of its own": _one_too_many})
def level_of(answer: Callable[[Tensor, float, float, int], Tensor]) -> None:
    """Index of the level whose centre is nearest."""
    x = torch.tensor([-0.5, -0.3, 0.1, 0.24, 0.26, 0.9, 1.0])
    got = answer(x, -0.5, 1.0, 6)
    assert isinstance(got, Tensor), "return a tensor"
    assert got.shape == x.shape, "return one level for each similarity"
    assert not got.is_floating_point(), "return integers"
    assert got[0] == 0, "the minimum belongs to the first level, which has the index 0"
    assert got[-1] == 5, "the maximum belongs to the last level"
    assert got.tolist() == [0, 0, 2, 2, 3, 5, 5], "some similarity does not get the level whose centre is nearest"
    fine = torch.linspace(-0.2, 0.7, 997)
    centres = -0.2 + (torch.arange(7) + 0.5) * 0.9 / 7
    gap = (centres[answer(fine, -0.2, 0.7, 7)] - fine).abs().max()
    assert gap < 0.5 * 0.9 / 7 + 1e-4, "no similarity lies farther than half a bin from the centre of its level"


@exercise("04.2", wrong={"negative below 1": lambda span: 1 - 1 / span, "inverted": lambda span: max(0.0, 1 - span)})
def lost_share(answer: Callable[[float], float]) -> None:
    """Share of evenly spread similarities outside all literal windows."""
    for span, expected in ((1.8, 4 / 9), (1.25, 0.2), (2.0, 0.5)):
        got = float(answer(span))
        assert abs(got - expected) < 0.01, f"at a range of {span} that is not the share which Figure 04.4 shows"
    for span in (1.0, 0.5, 0.05):
        assert abs(float(answer(span))) < 1e-6, f"a range of {span} is covered; a share is never < 0"


def _weights_of_equation_1(m: Tensor, levels: int) -> Tensor:
    step = (m.max() - m.min()) / levels
    distance = (m.min() + (torch.arange(levels).to(m) + 0.5)[:, None] * step - m).abs()
    return (1 - distance) * (distance < step)


def _loses_the_ends(m: Tensor, levels: int) -> Tensor:
    step = (m.max() - m.min()) / levels
    centres = m.min() + (torch.arange(levels).to(m) + 0.5) * step
    return (1 - (centres[:, None] - m).abs() / step).clamp(min=0)


def _without_gradient(m: Tensor, levels: int) -> Tensor:
    return _loses_the_ends(m, levels).div(_loses_the_ends(m, levels).sum(0)).detach()


@exercise(
    "04.3",
    wrong={
        "keeps the flat weights": _weights_of_equation_1,
        "loses weight at the ends": _loses_the_ends,
        "cuts the gradient": _without_gradient,
    },
)
def linear_encoding(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Weights 1 − |L − M|/Δ that sum to 1."""
    m = torch.linspace(-0.3, 0.9, 241, dtype=torch.float64).requires_grad_()
    got = answer(m, 6)
    assert got.shape == (6, 241), f"expected a row per level and a column per pixel, (6, 241), got {tuple(got.shape)}"
    assert got.min() >= 0, "no weight may be negative"
    assert ((got > 1e-9).sum(0) <= 2).all(), "a pixel is active at two levels at most"
    inner = (m > -0.2) & (m < 0.8)  # between the first and the last centre
    assert torch.allclose(got[:, inner].sum(0), torch.ones(1, dtype=m.dtype)), "inside, the two weights must sum to 1"
    assert torch.allclose(got.sum(0), torch.ones(1, dtype=m.dtype)), "near the ends they do not"
    assert abs(got[0, 30].item() - 0.75) < 1e-6, "a quarter of a bin above the first centre its weight must be 3/4"
    assert got.requires_grad, "no gradient flows back to m"
    (gradient,) = torch.autograd.grad(got[2].sum(), m)
    assert gradient.abs().sum() > 0, "no gradient flows back to m"
