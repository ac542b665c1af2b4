"""Notebook 19: its picture, and the checks of its exercises."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mlffn_lite.figures import COLOURS, STYLE, new_figure
from mlffn_lite.labels import METRIC_LABELS
from mlffn_lite.studies import statistics

from .checks import exercise

_BLUE, _ORANGE, _GREEN, _PINK, _BLACK = COLOURS.values()
Streaks = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
Term = Callable[..., Tensor]


@mpl.rc_context(STYLE)
def gains(cells: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """Draw what every change gains: a dot per set and seed, and both intervals, a panel per metric.

    ``cells`` and ``found`` are those of :func:`~mlffn_lite.studies.statistics.frame` and ``differences``.
    """
    figure = new_figure(2.9)
    axes = figure.subplots(1, len(METRIC_LABELS), sharey=True)
    for ax, (metric, title) in zip(axes, METRIC_LABELS.items(), strict=True):
        rows = found[found["metric"] == metric]
        for place, (_, row) in enumerate(rows.iterrows()):
            pairs = statistics.paired(cells, row["before"], row["after"], metric)
            ax.plot(pairs, [place] * len(pairs), "o", ms=4.5, mfc="none", color=_BLACK)
            for ends, shift, colour in ((("low", "high"), 0.22, _BLUE), (("low_beyond", "high_beyond"), 0.38, _ORANGE)):
                ax.plot([row[end] for end in ends], [place + shift] * 2, "|-", color=colour, lw=2)
        ax.axvline(0, color=_BLACK, lw=0.8)
        ax.set(title=title, ylim=(len(rows) - 0.4, -0.4))
        ax.set_yticks(range(len(rows)), list(rows["after"]))
    axes[1].set_xlabel("points ahead of the unchanged method")
    return figure


def _streaks(
    images: Tensor,
    generator: torch.Generator,
    *,
    inside: bool = True,
    clamped: bool = True,
    seeded: bool = True,
    each: bool = True,
) -> tuple[Tensor, Tensor]:
    n, _, height, width = images.shape
    y, x, angle, length = torch.rand(4, n, 1, 1, generator=generator if seeded else None)
    if not each:
        y, x, angle, length = (t[:1].expand(n, 1, 1) for t in (y, x, angle, length))
    down, right = torch.arange(height)[:, None] / height - y, torch.arange(width) / width - x
    cos, sin = (torch.pi * angle).cos(), (torch.pi * angle).sin()
    across, along = (down * cos + right * sin).abs(), (right * cos - down * sin).abs()
    mask = ((across < 0.02) & (along < 0.05 + 0.2 * length))[:, None]
    sign = torch.where(images.mean((1, 2, 3), keepdim=True) > 0.5, -0.3, 0.3)
    changed = images + (mask if inside else 1) * sign
    return changed.clamp(0, 1) if clamped else changed, mask


@exercise(
    "19.1",
    wrong={
        "changes pixels outside the mask": lambda *given: _streaks(*given, inside=False),
        "leaves the range of a camera": lambda *given: _streaks(*given, clamped=False),
        "draws from nowhere": lambda *given: _streaks(*given, seeded=False),
        "draws one streak for all": lambda *given: _streaks(*given, each=False),
        "changes nothing": lambda images, generator: (images, torch.zeros_like(images[:, :1], dtype=torch.bool)),
    },
)
def streaks(answer: Streaks) -> None:
    """A generator: its contract, not its looks."""
    grey = torch.rand(6, 3, 40, 48, generator=torch.Generator().manual_seed(19))
    images = torch.cat([grey, torch.ones(2, 3, 40, 48), torch.zeros(2, 3, 40, 48)])
    found = answer(images.clone(), torch.Generator().manual_seed(1))
    assert isinstance(found, tuple), "return two tensors, images and masks"
    assert len(found) == 2, "return two tensors, images and masks"
    changed, masks = found
    assert changed.shape == images.shape, f"images must keep their shape {tuple(images.shape)}"
    assert masks.shape == (10, 1, 40, 48), f"masks must have the shape (10, 1, 40, 48), got {tuple(masks.shape)}"
    assert masks.dtype == torch.bool, "masks must be bool"
    assert changed.min() >= 0, "keep images in [0, 1]: clamp them"
    assert changed.max() <= 1, "keep images in [0, 1]: clamp them"
    moved = ((changed - images).abs() > 4 / 255).any(1, keepdim=True)
    assert not (moved & ~masks).any(), "a pixel outside the masks has changed"
    assert moved.flatten(1).any(1).all(), "every image must change visibly, also a white and a black one"
    again = answer(images.clone(), torch.Generator().manual_seed(1))
    assert torch.equal(again[0], changed), (
        "draw everything from the generator: the same state must give the same images"
    )
    other = answer(images.clone(), torch.Generator().manual_seed(2))
    assert not torch.equal(other[1], masks), "another state of the generator must give other streaks"
    assert len(masks.flatten(1).unique(dim=0)) > 1, "every image needs a streak of its own"


def _tail(score: Tensor, mask: Tensor, *, gamma: float = 2.5, normal: bool = True, relu: bool = True) -> Tensor:
    top = (score.masked_fill(mask, -1e9) if normal else score).flatten(1).amax(1)
    return ((top - gamma).relu() if relu else top - gamma).mean()


@exercise(
    "19.2",
    wrong={
        "looks at anomalous pixels too": lambda f, s, m, *, generator: _tail(s, m, normal=False),
        "pays for low scores": lambda f, s, m, *, generator: _tail(s, m, relu=False),
        "forgets γ": lambda f, s, m, *, generator: _tail(s, m, gamma=0.0),
        "takes one maximum of the batch": lambda f, s, m, *, generator: (s[~m].max() - 2.5).relu(),
        "stops the gradient": lambda f, s, m, *, generator: _tail(s.detach(), m),
    },
)
def tail(answer: Term) -> None:
    """A term of the loss: the excess of every image's highest normal score."""
    draws = torch.Generator().manual_seed(19)
    features = torch.randn(4, 5, 6, 7, generator=draws)
    score = (3 * torch.randn(4, 1, 6, 7, generator=draws)).requires_grad_()
    mask = torch.rand(4, 1, 6, 7, generator=draws) < 0.2
    score.data[0] -= 20  # an image that pays nothing
    score.data[1, 0, 0, 0], mask[1, 0, 0, 0] = 30.0, True
    found = answer(features, score, mask, generator=draws)
    assert isinstance(found, Tensor), "return a tensor"
    assert found.shape == (), f"return one number, of shape (), got {tuple(found.shape)}"
    wanted = _tail(score, mask)
    assert torch.allclose(found, wanted), (
        f"of these scores the term is {wanted.item():.3f}, yours is {found.item():.3f}"
    )
    assert found.requires_grad, "without a gradient nothing is learned from it"


def _centred(levels: list[Tensor], *, over: tuple[int, ...] = (2, 3)) -> list[Tensor]:
    return [x - x.mean(over, keepdim=True) for x in levels]


@exercise(
    "19.3",
    wrong={
        "takes the mean over channels": lambda levels: _centred(levels, over=(1, 2, 3)),
        "takes the mean over the batch": lambda levels: _centred(levels, over=(0, 2, 3)),
        "divides, too": lambda levels: [x / x.std((2, 3), keepdim=True) for x in _centred(levels)],
        "returns one level": lambda levels: _centred(levels)[0],
    },
)
def centred(answer: Callable[[list[Tensor]], list[Tensor]]) -> None:
    """Levels less their mean over the image."""
    draws = torch.Generator().manual_seed(19)
    levels = [torch.randn(3, c, s, s, generator=draws) + c for c, s in ((4, 8), (6, 4), (5, 2))]
    found = answer([x.clone() for x in levels])
    assert isinstance(found, list | tuple), "return a list of three levels"
    assert len(found) == 3, "return a list of three levels"
    for number, (ours, wanted) in enumerate(zip(found, _centred(levels), strict=True), 1):
        assert ours.shape == wanted.shape, f"level {number} must keep its shape {tuple(wanted.shape)}"
        assert torch.allclose(ours.mean((2, 3)), torch.zeros(3, ours.shape[1]), atol=1e-4), (
            f"level {number}: the mean over every image's pixels must be 0 in every channel"
        )
        assert torch.allclose(ours, wanted, atol=1e-4), f"level {number} is not what it was less its mean"
