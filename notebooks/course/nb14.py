"""Exercises of notebook 14, where it fails."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import exercise


@exercise(
    "14.1",
    wrong={
        "the rule of thumb itself": lambda count, confidence: 3 / count,
        "confidence and its complement exchanged": lambda count, confidence: 1 - confidence ** (1 / count),
        "one image is enough": lambda count, confidence: confidence,
    },
)
def rule_of_three(answer: Callable[[int, float], float]) -> None:
    """Upper limit of a rate of which nothing was seen."""
    for count, confidence in ((1, 0.9), (20, 0.95), (300, 0.95), (59, 0.99)):
        rate = float(answer(count, confidence))
        assert 0 < rate < 1, f"a rate lies between 0 and 1, yours is {rate:.3f} for {count} images"
        calm = (1 - rate) ** count
        assert math.isclose(calm, 1 - confidence, rel_tol=1e-6), (
            f"at your rate of {rate:.4f} all of {count} images stay calm with probability {calm:.4f};"
            f" at a confidence of {confidence} it must be {1 - confidence:.4f}"
        )


def _cost(threshold: float, good: Tensor, bad: Tensor, share: float, miss: float, alarm: float) -> float:
    missed, false = (bad <= threshold).double().mean(), (good > threshold).double().mean()
    return float(share * miss * missed + (1 - share) * alarm * false)


def _cheapest(good: Tensor, bad: Tensor, share: float, miss: float, alarm: float, *, infinite: bool = True) -> float:
    choices = sorted({*([-math.inf] if infinite else []), *good.tolist(), *bad.tolist()})
    return min(choices, key=lambda t: _cost(t, good, bad, share, miss, alarm))


@exercise(
    "14.2",
    wrong={
        "forgets how rare defects are": lambda g, b, share, miss, alarm: _cheapest(g, b, 0.5, miss, alarm),
        "takes the mix of the test set": lambda g, b, share, miss, alarm: _cheapest(
            g, b, len(b) / (len(g) + len(b)), miss, alarm
        ),
        "exchanges the costs": lambda g, b, share, miss, alarm: _cheapest(g, b, share, alarm, miss),
        "cannot reject everything": lambda g, b, share, miss, alarm: _cheapest(
            g, b, share, miss, alarm, infinite=False
        ),
    },
)
def cheapest(answer: Callable[[Tensor, Tensor, float, float, float], float]) -> None:
    """Threshold of least expected cost."""
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(200, generator=generator).mul(20).round() / 20
    bad = (torch.randn(60, generator=generator) + 1.5).mul(20).round() / 20
    invisible = torch.cat([bad, good.min()[None] - 1])  # one defect scores below all that is good
    for hidden, share, miss, alarm in (
        (bad, 0.01, 100.0, 1.0),
        (bad, 0.01, 10.0, 1.0),
        (bad, 0.2, 1.0, 1.0),
        (bad, 0.5, 1000.0, 1.0),
        (invisible, 0.5, 1000.0, 1.0),
    ):
        costs = (good, hidden, share, miss, alarm)
        given, best = float(answer(*costs)), _cheapest(*costs)
        case = f"with {share:.0%} defective, a miss at {miss:g} and an alarm at {alarm:g}"
        least, mine = _cost(best, *costs), _cost(given, *costs)
        assert math.isclose(mine, least, rel_tol=1e-9), f"{case} your cost is {mine:.4f}, {least:.4f} can be had"
        assert given <= best + 1e-6, f"{case} a lower threshold costs the same; the task asks for the lowest"
        assert given >= best - 1e-6, f"{case} the threshold is none of the scores"


@exercise(
    "14.3",
    wrong={
        "a mean of raw scores": lambda scores, reference: scores.mean(0),
        "one scale for all seeds": lambda scores, reference: (
            (scores - reference.median()) / (reference.quantile(0.9) - reference.median())
        ).mean(0),
        "does not take the median off the percentile": lambda scores, reference: (
            (scores - reference.quantile(0.5, 1, True)) / reference.quantile(0.9, 1, True)
        ).mean(0),
        "adds the seeds up": lambda scores, reference: (
            (scores - reference.quantile(0.5, 1, True))
            / (reference.quantile(0.9, 1, True) - reference.quantile(0.5, 1, True))
        ).sum(0),
    },
)
def ensemble(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Mean of standardised scores over seeds."""
    generator = torch.Generator().manual_seed(1)
    reference, scores = torch.rand(3, 50, generator=generator), 3 * torch.rand(3, 8, generator=generator)
    given = answer(scores, reference)
    assert isinstance(given, Tensor), "return a tensor"
    assert given.shape == (8,), f"eight images must get eight scores, not a tensor of shape {tuple(given.shape)}"
    stretch, shift = torch.tensor([[1.0], [40.0], [0.1]]), torch.tensor([[0.0], [7.0], [-3.0]])
    moved = answer(scores * stretch + shift, reference * stretch + shift)
    assert torch.allclose(moved, given, atol=1e-3), "a seed with another scale must not change the result"
    middle = reference.quantile(0.5, dim=1, keepdim=True)
    marks = torch.cat([middle, reference.quantile(0.9, dim=1, keepdim=True)], 1)
    at = answer(marks, reference)
    what = "an image at every seed's median must get 0, one at every seed's 90th percentile 1"
    assert torch.allclose(at, torch.tensor([0.0, 1.0]), atol=1e-4), f"{what}; yours get {at[0]:.3f} and {at[1]:.3f}"
