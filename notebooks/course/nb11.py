"""Exercises of notebook 11, training and scoring."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite import metrics

from .checks import exercise


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _top(maps: Tensor, share: float, least: int = 1) -> Tensor:
    pixels = maps.flatten(1)
    return pixels.topk(max(least, round(share * pixels.shape[1])), dim=1).values


@exercise(
    "11.1",
    wrong={
        "the quantile, not the mean above it": lambda maps, share: _top(maps, share)[:, -1],
        "rounds the number of pixels down": lambda maps, share: (
            maps.flatten(1).topk(max(1, int(share * maps[0].numel())), dim=1).values.mean(1)
        ),
        "still the maximum": lambda maps, share: maps.flatten(1).amax(1),
        "a mean over nothing for small maps": lambda maps, share: _top(maps, share, least=0).mean(1),
        "the largest pixels of all maps together": lambda maps, share: (
            torch.where(maps >= _top(maps[None].flatten(1), share)[0, -1], maps, 0).flatten(1).mean(1)
        ),
    },
)
def top_mean(answer: Callable[[Tensor, float], Tensor]) -> None:
    """Mean of the largest pixels of each map."""
    maps = _noise(5, 12, 10) + torch.arange(5)[:, None, None]
    for share in (1.0, 0.25, 0.13, 0.1, 1e-4):
        expected, given = _top(maps, share).mean(1), answer(maps, share)
        assert isinstance(given, Tensor), "return a tensor"
        assert given.shape == (5,), f"five maps must give five scores, not {tuple(given.shape)}"
        assert not given.isnan().any(), f"NaN for share {share}: at least one pixel counts"
        what = f"for share {share} of 120 pixels the first map's score must be {expected[0]:.4f}"
        assert torch.allclose(given, expected), f"{what}, not {given[0]:.4f}"


def _ranks(scores: Tensor, labels: Tensor, *, ties_won: bool = False) -> float:
    bad = labels != 0
    if ties_won:
        return (scores[bad][:, None] >= scores[~bad]).double().mean().item()
    rank = scores.argsort(stable=True).argsort().double() + 1
    defective = int(bad.sum())
    return (rank[bad].sum().item() - defective * (defective + 1) / 2) / (defective * int((~bad).sum()))


@exercise(
    "11.2",
    wrong={
        "ties in the order in which they come": _ranks,
        "ties count as won": lambda scores, labels: _ranks(scores, labels, ties_won=True),
        "ranks from 0": lambda scores, labels: (
            metrics.image_auroc(scores, labels) - 1 / max(1, int((labels == 0).sum()))
        ),
    },
)
def auroc_by_ranks(answer: Callable[[Tensor, Tensor], float]) -> None:
    """Image AUROC by mid-ranks."""
    labels = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    assert math.isclose(float(answer(labels.float(), labels)), 1), "a perfect score must give 1"
    assert math.isclose(float(answer(-labels.float(), labels)), 0, abs_tol=1e-9), "an inverted score must give 0"
    assert math.isclose(float(answer(torch.ones(8), labels)), 0.5), "a constant score must give one half"
    for seed, levels in ((1, 5), (2, 40), (3, 10**6)):
        scores, truth = (levels * _noise(300, seed=seed)).floor(), (_noise(300, seed=seed + 10) < 0.3).long()
        expected, given = metrics.image_auroc(scores, truth), float(answer(scores, truth))
        kind = f"{len(scores.unique())} distinct scores among 300"
        assert math.isclose(given, expected, abs_tol=1e-6), f"with {kind} it must be {expected:.4f}, not {given:.4f}"


def _squares(found: float) -> tuple[Tensor, Tensor]:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 2:6, 2:6] = masks[0, 10:14, 10:14] = True
    maps = masks.float()
    maps[0, 10:14, 10:14] = found
    return maps, masks


@exercise(
    "11.3",
    wrong={
        "a perfect map": _squares(1.0),
        "misses one of two equal defects": _squares(-1.0),
        "no opinion": (torch.zeros(1, 16, 16), _squares(1.0)[1]),
        "no defect": (torch.rand(1, 16, 16), torch.zeros(1, 16, 16, dtype=torch.bool)),
    },
)
def fool_pixel_auroc(answer: tuple[Tensor, Tensor]) -> None:
    """Maps and masks with a high pixel AUROC and a low PRO."""
    assert isinstance(answer, tuple), "give a tuple (maps, masks)"
    assert len(answer) == 2, "give a tuple of two tensors, maps and masks"
    maps, masks = answer
    assert masks.any(), "the masks hold no defect"
    assert not masks.all(), "the masks hold no normal pixel"
    auroc, pro = metrics.pixel_auroc(maps, masks), metrics.pro(maps, masks)
    assert auroc > 0.95, f"pixel AUROC is {auroc:.3f}; it must be above 0.95"
    assert pro < 0.55, f"pixel AUROC is {auroc:.3f}, but PRO is {pro:.3f}; it must be below 0.55"
