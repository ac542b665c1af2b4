"""Exercises of notebook 11, training and scoring."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from mlffn_lite import metrics
from mlffn_lite.config import Config
from mlffn_lite.losses import LossTerms, resize_mask, total_loss
from mlffn_lite.network import MLFFN

from .checks import exercise


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _top(maps: Tensor, share: float, least: int = 1) -> Tensor:
    pixels = maps.flatten(1)
    return pixels.topk(max(least, round(share * pixels.shape[1])), dim=1).values


@cache
def _start() -> tuple[MLFFN, Config, Tensor, Tensor]:
    """A network of the preset tiny, and a batch for it."""
    config = Config.preset("tiny", train={"clip": 0.05})
    torch.manual_seed(0)
    network = MLFFN(config.model, config.texture)
    network.backbone.set_mode("frozen")
    mask = torch.zeros(4, 1, 64, 64, dtype=torch.bool)
    mask[:2, :, 20:33, 11:40] = True
    return network, config, _noise(4, 3, 64, 64, seed=4), mask


def _step(
    network: MLFFN,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    mask: Tensor,
    config: Config,
    generator: torch.Generator,
    *,
    order: str = "zero backward clip step",
    coverage: float = 0.0,
    term: str = "total",
) -> LossTerms:
    output = network(images)
    mask = resize_mask(mask, output.score.shape[-2:], coverage=coverage)
    terms = total_loss(output.features, output.score, mask, config.loss, generator=generator)
    acts: dict[str, Callable[[], object]] = {
        "zero": optimizer.zero_grad,
        "backward": lambda: getattr(terms, term).backward(),
        "clip": lambda: torch.nn.utils.clip_grad_norm_(network.heads(), config.train.clip),
        "each": lambda: [torch.nn.utils.clip_grad_norm_([p], config.train.clip) for p in network.heads()],
        "step": optimizer.step,
    }
    for name in order.split():
        acts[name]()
    return terms


@exercise(
    "11.1",
    wrong={
        "keeps the old gradients": partial(_step, order="backward clip step"),
        "does not clip": partial(_step, order="zero backward step"),
        "clips after the step": partial(_step, order="zero backward step clip"),
        "clips each parameter by itself": partial(_step, order="zero backward each step"),
        "takes no step": partial(_step, order="zero backward clip"),
        "removes the gradients that it has computed": partial(_step, order="backward zero clip step"),
        "loses thin defects on the way to the mask": partial(_step, coverage=0.5),
        "only the score constraint": partial(_step, term="score"),
    },
)
def train_step(answer: Callable[..., LossTerms]) -> None:
    """One step of training."""
    start, config, images, mask = _start()
    ends, found = [], []
    for step in (_step, answer):
        network = copy.deepcopy(start).train()
        optimizer = torch.optim.SGD(network.heads(), lr=0.5)
        draws = torch.Generator().manual_seed(3)
        found.append([step(network, optimizer, images, mask, config, draws) for _ in range(3)])
        ends.append(torch.cat([p.detach().flatten() for p in network.heads()]))
    first, last = found[1][0], found[1][-1]
    assert isinstance(first, LossTerms), "return the terms that total_loss gives"
    expected = found[0][0].total.item()
    what = f"for the first batch (8) is {expected:.3f}, not {first.total.item():.3f}; is the mask the right one?"
    assert math.isclose(first.total.item(), expected, rel_tol=1e-4), what
    origin = torch.cat([p.detach().flatten() for p in start.heads()])
    assert not torch.equal(ends[1], origin), "the parameters have not moved"
    far, right = (float((end - origin).norm()) for end in (ends[1], ends[0]))
    what = f"after three steps the parameters have moved by {far:.4f}, and should have by {right:.4f}"
    assert torch.allclose(ends[0], ends[1], rtol=1e-3, atol=1e-6), f"{what}, or in another direction"
    assert math.isclose(last.total.item(), found[0][-1].total.item(), rel_tol=1e-3), "the third step's loss differs"


def _pro(
    maps: Tensor, regions: Tensor, limit: float = 0.3, *, ties: bool = True, divide: bool = True, by: str = "region"
) -> float:
    score, order = maps.double().flatten().sort(descending=True, stable=True)
    region = regions.flatten()[order].long()
    size = torch.bincount(region).double()
    share = torch.where(region > 0, 1 / size[region], 0) / (len(size) - 1)
    if by == "pixel":
        share = (region > 0) / size[1:].sum()
    last = torch.cat([score[1:] != score[:-1], torch.tensor([True])]) if ties else torch.ones_like(score).bool()
    zero = torch.zeros(1, dtype=torch.float64)
    x = torch.cat([zero, ((region == 0).double().cumsum(0) / size[0])[last]]).numpy()
    y = torch.cat([zero, share.cumsum(0)[last]]).numpy()
    inside = x < limit
    end = np.interp(limit, x, y) if by != "step" else y[inside][-1]
    area = np.trapezoid(np.append(y[inside], end), np.append(x[inside], limit))
    return float(area / limit if divide else area)


@exercise(
    "11.2",
    wrong={
        "ties in the order in which they come": partial(_pro, ties=False),
        "forgets to divide by the limit": partial(_pro, divide=False),
        "weights regions by their pixels": partial(_pro, by="pixel"),
        "level to the limit, not interpolated": partial(_pro, by="step"),
        "always up to 0.3": lambda maps, regions, limit=0.3: _pro(maps, regions, 0.3),
        "any defect is one region": lambda maps, regions, limit=0.3: _pro(maps, regions > 0, limit),
        "a mean over images": lambda maps, regions, limit=0.3: np.mean(
            [_pro(m, r.unique(return_inverse=True)[1], limit) for m, r in zip(maps, regions, strict=True) if r.any()]
        ),
    },
)
def pro_of(answer: Callable[..., float]) -> None:
    """PRO of maps and numbered regions."""
    regions = torch.zeros(3, 16, 16, dtype=torch.long)
    regions[0, 2:7, 2:9], regions[0, 10:12, 10:12], regions[1, 4:5, 1:13] = 1, 2, 3
    noise = _noise(3, 16, 16, seed=6)
    assert math.isclose(answer(regions.float(), regions), 1, abs_tol=1e-6), "a perfect map has PRO 1"
    flat = float(answer(torch.zeros(3, 16, 16), regions))
    assert math.isclose(flat, 0.15, abs_tol=1e-6), f"a constant map is one point, (1, 1): PRO 0.15 and not {flat:.3f}"
    cases = {
        "few distinct scores": (4 * noise + (regions > 0) * noise).round(),
        "no two scores alike": noise + 0.4 * (regions > 0),
    }
    for what, maps in cases.items():
        for limit in (0.3, 0.05, 1.0):
            ours, expected = float(answer(maps, regions, limit)), _pro(maps, regions, limit)
            assert math.isclose(ours, expected, abs_tol=1e-6), f"{what}, limit {limit}: {expected:.4f}, not {ours:.4f}"


@exercise(
    "11.3",
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


def _squares(found: float) -> tuple[Tensor, Tensor]:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 2:6, 2:6] = masks[0, 10:14, 10:14] = True
    maps = masks.float()
    maps[0, 10:14, 10:14] = found
    return maps, masks


@exercise(
    "11.4",
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
