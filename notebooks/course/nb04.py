"""Checks of notebook 04: equation (1), the read-out, the literal window, and a window that trades weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import exercise


def _centres(m: Tensor, levels: int, first: float = 0.5) -> Tensor:
    return m.min() + (torch.arange(levels).to(m) + first) * (m.max() - m.min()) / levels


def _equation_1(m: Tensor, levels: int, *, first: float = 0.5, bins: float = 1.0, flat: bool = False) -> Tensor:
    distance = (_centres(m, levels, first)[:, None] - m).abs()
    return (1 - distance * (not flat)) * (distance < bins * (m.max() - m.min()) / levels)


@exercise(
    "04.1",
    wrong={
        "levels at the right edges": lambda m, count: _equation_1(m, count, first=1.0),
        "a window of half a bin": lambda m, count: _equation_1(m, count, bins=0.5),
        "no window": lambda m, count: _equation_1(m, count, bins=1e9),
        "all weights 1": lambda m, count: _equation_1(m, count, flat=True),
        "a row per pixel": lambda m, count: _equation_1(m, count).T,
    },
)
def quantise(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Equation (1) with levels at centres and the window full_bin."""
    m = torch.rand(97, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.4 - 0.5
    got = answer(m, 6)
    assert got.shape == (6, 97), f"expected a row per level and a column per pixel, (6, 97), got {tuple(got.shape)}"
    expected, active = _equation_1(m, 6), (got > 0).sum(0)
    assert active.min() >= 1, "every pixel must be active at a level"
    assert active.max() <= 2, "a pixel is active at two levels at most"
    assert torch.equal(got > 0, expected > 0), "some pixel is active at another level than at those nearer than a bin"
    assert torch.allclose(got, expected, atol=1e-6), (
        "the weight of an active level is 1 − |ℓ − M|, not divided by anything"
    )


@exercise(
    "04.2",
    wrong={
        "swaps levels and channels": lambda d, e, size: (d @ d.mT @ e).unflatten(2, size),
        "divides by the weights": lambda d, e, size: (d.mT @ (e / e.sum(1, keepdim=True))).unflatten(2, size),
        "swaps rows and columns": lambda d, e, size: (d.mT @ e).unflatten(2, size[::-1]).mT,
    },
)
def read_out(answer: Callable[[Tensor, Tensor, tuple[int, int]], Tensor]) -> None:
    """R = D′ᵀE, as a map."""
    draws = torch.Generator().manual_seed(0)
    described, encoding = (torch.rand(2, 5, k, generator=draws) for k in (3, 12))
    got = answer(described, encoding, (3, 4))
    assert got.shape == (2, 3, 3, 4), f"expected (B, C, H, W) = (2, 3, 3, 4), got {tuple(got.shape)}"
    pixel = torch.stack([described[1, n] * encoding[1, n, 6] for n in range(5)]).sum(0)
    assert torch.allclose(got[1, :, 1, 2], pixel, atol=1e-5), (
        "row 1, column 2 is pixel 6: it gets Σ E of its levels times D′"
    )
    assert torch.allclose(got.flatten(2), described.mT @ encoding, atol=1e-5), "that is not the sum over the levels"


@exercise("04.3", wrong={"negative below 1": lambda span: 1 - 1 / span, "inverted": lambda span: max(0.0, 1 - span)})
def lost_share(answer: Callable[[float], float]) -> None:
    """Share of evenly spread similarities outside all literal windows."""
    for span, expected in ((1.8, 4 / 9), (1.25, 0.2), (2.0, 0.5)):
        got = float(answer(span))
        assert abs(got - expected) < 0.01, f"at a range of {span} that is not the share that the table shows"
    for span in (1.0, 0.5, 0.05):
        assert abs(float(answer(span))) < 1e-6, f"a range of {span} is covered; a share is never < 0"


def _loses_the_ends(m: Tensor, levels: int) -> Tensor:
    step = (m.max() - m.min()) / levels
    centres = m.min() + (torch.arange(levels).to(m) + 0.5) * step
    return (1 - (centres[:, None] - m).abs() / step).clamp(min=0)


def _without_gradient(m: Tensor, levels: int) -> Tensor:
    return _loses_the_ends(m, levels).div(_loses_the_ends(m, levels).sum(0)).detach()


@exercise(
    "04.4",
    wrong={
        "keeps the flat weights": _equation_1,
        "loses weight at the ends": _loses_the_ends,
        "cuts the gradient": _without_gradient,
    },
)
def linear_encoding(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Weights 1 − |ℓ − M|/Δ that sum to 1."""
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
