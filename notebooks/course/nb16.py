"""Notebook 16: its pictures, and the checks of its exercises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mlffn_lite.beyond.borders import fit_scale, zones
from mlffn_lite.canvas import VISIBLE_CHANGE
from mlffn_lite.figures import COLOURS, STYLE, new_figure
from mlffn_lite.neighbours import greedy_k_center

from .checks import exercise

_BLUE, _ORANGE, _GREEN, _PINK, _BLACK = COLOURS.values()
_BARE: dict[str, Any] = {"xticks": [], "yticks": []}


# ---- pictures


def panel(
    images: Tensor, masks: Tensor, maps: Mapping[str, Tensor], *, limits: tuple[float, float], names: Sequence[str]
) -> Figure:
    """Draw a row per image (3, H, W): the image with the outline of its mask, and a map (H, W) of each kind.

    ``maps`` holds (M, H, W) by title; all have the colours of ``limits``.
    """
    figure = Figure(figsize=(1.72 * (1 + len(maps)) + 1.4, 1.72 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(maps), subplot_kw=_BARE, squeeze=False)
    for i, (row, image, mask) in enumerate(zip(axes, images, masks, strict=True)):
        row[0].imshow(image.permute(1, 2, 0), interpolation="nearest")
        if mask.any():
            row[0].contour(mask, [0.5], colors=_ORANGE, linewidths=1.3)
        row[0].set_ylabel(names[i].replace("_", " "), fontsize=9)
        for ax, (title, found) in zip(row[1:], maps.items(), strict=True):
            shades = ax.imshow(found[i], cmap="inferno", vmin=limits[0], vmax=limits[1], interpolation="bilinear")
            if not i:
                ax.set_title(title, fontsize=9.5)
    figure.colorbar(shades, ax=axes, shrink=0.5, aspect=25, extend="both", pad=0.01)
    return figure


def kinds_figure(good: Tensor, made: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Draw a row per kind of pseudo-anomaly: changed versions of the images (B, 3, H, W), masks outlined."""
    figure = Figure(figsize=(9, 1.5 * len(made)), layout="constrained")
    axes = figure.subplots(len(made), len(good), subplot_kw=_BARE)
    for row, (name, (images, masks)) in zip(axes, made.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for ax, image, mask in zip(row, images, masks, strict=True):
            ax.imshow(image.permute(1, 2, 0), interpolation="nearest")
            ax.contour(mask[0], [0.5], colors=_ORANGE, linewidths=0.8)
    return figure


@mpl.rc_context(STYLE)
def sizes_figure(sizes: Mapping[str, np.ndarray]) -> Figure:
    """Draw the shares of the image that changes cover, a row of dots per source, the median as a line."""
    figure = new_figure(2.5)
    ax = figure.subplots()
    for row, values in enumerate(sizes.values()):
        spread = np.random.default_rng(row).uniform(-0.25, 0.25, len(values))
        ax.plot(100 * values, row + spread, ".", ms=4, alpha=0.5, color=_ORANGE if row == 0 else _BLUE)
        ax.plot([100 * np.median(values)] * 2, [row - 0.38, row + 0.38], color=_BLACK, lw=1.5)
    ax.set(xscale="log", xlabel="share of the image that it covers, %")
    ax.set_yticks(range(len(sizes)), list(sizes))
    ax.invert_yaxis()
    return figure


def neighbours_figure(pairs: Sequence[tuple[str, Tensor, tuple[int, int], Tensor, tuple[int, int]]]) -> Figure:
    """Draw pixels and the good patches nearest to them: name, image and place, good image and place, of each."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(2, len(pairs), subplot_kw=_BARE)
    for column, (name, image, at, near, there) in zip(axes.T, pairs, strict=True):
        for ax, picture, (y, x), colour in ((column[0], image, at, _ORANGE), (column[1], near, there, _BLUE)):
            ax.imshow(picture.permute(1, 2, 0), interpolation="nearest")
            ax.add_patch(mpl.patches.Rectangle((x - 16, y - 16), 32, 32, fill=False, ec=colour, lw=2))
        column[0].set_title(name.replace("_", " "), fontsize=9.5)
    axes[0, 0].set_ylabel("its strangest place")
    axes[1, 0].set_ylabel("the nearest good patch")
    return figure


def scales_figure(calm: Tensor, rings: Tensor, ratio: Tensor) -> Figure:
    """Draw the mean good map, the zones, and what the scale of zones divides by; (H, W) each."""
    figure = Figure(figsize=(9, 2.7), layout="constrained")
    axes = figure.subplots(1, 3, subplot_kw=_BARE)
    titles = ("mean score of good images", "zones", "width of the normal range")
    for ax, picture, title, shades in zip(
        axes, (calm, rings, ratio), titles, ("inferno", "tab20", "inferno"), strict=True
    ):
        shown = ax.imshow(picture, cmap=shades, interpolation="nearest")
        ax.set_title(title, fontsize=10)
        if title != "zones":
            figure.colorbar(shown, ax=ax, shrink=0.85)
    return figure


@mpl.rc_context(STYLE)
def kinds_of_defects(means: pd.DataFrame) -> Figure:
    """Draw by how much the memory is ahead of the density, in points of image AUROC, a bar per kind of defect.

    ``means`` has a row per (set, kind) with the columns ``density`` and ``memory``, in percent.
    """
    ahead = (means["memory"] - means["density"]).sort_values()
    figure = new_figure(0.19 * len(ahead) + 0.7)
    ax = figure.subplots()
    ax.barh(range(len(ahead)), ahead, color=[_ORANGE if value > 0 else _BLUE for value in ahead])
    ax.set_yticks(range(len(ahead)), [f"{name}: {kind.replace('_', ' ')}" for name, kind in ahead.index], fontsize=8)
    ax.axvline(0, color=_BLACK, lw=1)
    ax.set(xlabel="density ahead  ←  points of image AUROC  →  memory ahead", ylim=(-0.7, len(ahead) - 0.3))
    return figure


# ---- checks


def _paint(
    image: Tensor,
    v: Tensor,
    u: Tensor,
    rough: Tensor,
    soft: float,
    colour: Tensor,
    *,
    centred: bool = True,
    clamped: bool = True,
    seen: float = VISIBLE_CHANGE,
    back: bool = True,
) -> tuple[Tensor, Tensor]:
    opacity = (1 - v.square() - u.square() + 1.6 * (rough - (0.5 if centred else 0.0))) / soft
    opacity = opacity.clamp(0, 1) if clamped else opacity.clamp(min=0)
    changed = (image + opacity * colour[:, None, None]).clamp(0, 1)
    mask = ((changed - image).abs() > seen).any(0)
    return torch.where(mask, changed, image) if back else changed, mask


@exercise(
    "16.1",
    wrong={
        "lets the noise only add": lambda *given: _paint(*given, centred=False),
        "lets the opacity exceed 1": lambda *given: _paint(*given, clamped=False),
        "marks what nobody can see": lambda *given: _paint(*given, seen=0.0),
        "leaves invisible changes outside the mask": lambda *given: _paint(*given, back=False),
    },
)
def paint(answer: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """A blemish of one colour, and its mask."""
    generator = torch.Generator().manual_seed(16)
    image, rough = torch.rand(3, 20, 24, generator=generator), torch.rand(20, 24, generator=generator)
    v, u = torch.meshgrid(torch.linspace(-1.5, 1.5, 20), torch.linspace(-2, 2, 24), indexing="ij")
    for soft, colour in ((0.3, torch.tensor([0.4, 0.2, -0.3])), (1.0, torch.tensor([0.1, 0.05, 0.02]))):
        given = answer(image.clone(), v, u, rough, soft, colour)
        assert isinstance(given, tuple), "return two tensors, the image and the mask"
        assert len(given) == 2, "return two tensors, the image and the mask"
        changed, mask = given
        assert changed.shape == image.shape, f"the image must have the shape {tuple(image.shape)}"
        assert mask.shape == image.shape[1:], f"the mask must have the shape {tuple(image.shape[1:])}"
        assert mask.dtype == torch.bool, "the mask must be bool"
        assert changed.min() >= 0, "clamp the image to [0, 1]"
        assert changed.max() <= 1, "clamp the image to [0, 1]"
        wanted, where = _paint(image, v, u, rough, soft, colour)
        assert torch.equal(mask, where), "the mask must mark pixels of which a channel changed by more than 4/255"
        assert torch.equal(changed[:, ~mask], image[:, ~mask]), "pixels outside the mask must be those of the image"
        assert torch.allclose(changed, wanted, atol=1e-5), "inside the mask, x + o·c with the o of the equation differs"


def _distance(
    z: Tensor, centre: Tensor, covariance: Tensor, shrinkage: float, *, anywhere: bool = True, root: bool = True
) -> Tensor:
    away = z - centre[:, None]
    held = covariance + shrinkage * torch.eye(z.shape[2], dtype=z.dtype)
    squared = (away * torch.linalg.solve(held, away.mT).mT).sum(2) + anywhere * z.square().sum(2)
    return squared.sqrt() if root else squared


@exercise(
    "16.2",
    wrong={
        "leaves out what may occur anywhere": lambda *given: _distance(*given, anywhere=False),
        "forgets the root": lambda *given: _distance(*given, root=False),
        "does not invert the covariance": lambda z, c, s, m: (
            z.square().sum(2) + ((z - c[:, None]) @ (s + m * torch.eye(z.shape[2])) * (z - c[:, None])).sum(2)
        ).sqrt(),
        "forgets the shrinkage": lambda z, c, s, m: _distance(z, c, s, 1e-6),
        "takes the same centre everywhere": lambda z, c, s, m: _distance(z, c.mean(0, keepdim=True).expand_as(c), s, m),
    },
)
def distance(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """The density's distance at every position."""
    generator = torch.Generator().manual_seed(16)
    z, centre = (torch.randn(*size, 5, generator=generator) for size in ((7, 4), (7,)))
    some = torch.randn(7, 9, 5, generator=generator)
    covariance = some.mT @ some / 9
    for m in (0.2, 3.0):
        found = answer(z, centre, covariance, m)
        assert isinstance(found, Tensor), "return a tensor"
        assert found.shape == z.shape[:2], f"the shape must be (P, B) = {tuple(z.shape[:2])}, got {tuple(found.shape)}"
        zero = answer(0 * z[:, :1], 0 * centre, covariance, m)
        assert zero.abs().max() < 1e-4, "at the centre of everything the distance is 0"
        assert torch.allclose(found, _distance(z, centre, covariance, m), rtol=1e-3), f"for m = {m} distances differ"


def _from_the_last(points: Tensor, count: int, start: int) -> Tensor:
    chosen = [start]
    for _ in range(count - 1):
        far = (points - points[chosen[-1]]).norm(dim=1)
        far[chosen] = -1
        chosen.append(int(far.argmax()))
    return torch.tensor(chosen)


def _from_the_mean(points: Tensor, count: int, start: int) -> Tensor:
    far = (points - points.mean(0)).norm(dim=1)
    far[start] = torch.inf
    return far.topk(count).indices


def _nearest_first(points: Tensor, count: int, start: int) -> Tensor:
    return (points - points[start]).norm(dim=1).topk(count, largest=False).indices


@exercise(
    "16.3",
    wrong={
        "looks at the last choice alone": _from_the_last,
        "takes what is far from the mean": _from_the_mean,
        "takes the nearest": _nearest_first,
        "leaves out the start": lambda points, count, start: greedy_k_center(points, count + 1, start)[1:],
    },
)
def k_center(answer: Callable[[Tensor, int, int], Tensor]) -> None:
    """The greedy choice of a bank."""
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(16))
    for count, start in ((1, 5), (12, 0), (60, 33)):
        found = torch.as_tensor(answer(points.clone(), count, start))
        assert found.shape == (count,), f"return {count} indices, got the shape {tuple(found.shape)}"
        assert int(found[0]) == start, f"the first must be the start, {start}; yours is {int(found[0])}"
        assert len(found.unique()) == count, "no patch may be chosen twice"
        for step in range(1, count):
            gaps = torch.cdist(points, points[found[:step]]).amin(1)
            assert gaps[found[step]] >= gaps.max() - 1e-5, (
                f"choice {step + 1} lies {gaps[found[step]]:.2f} from the nearest chosen; another {gaps.max():.2f}"
            )


def _zone_scale(good: Tensor, where: Tensor, *, q: float = 0.999, floor: bool = True) -> tuple[Tensor, Tensor]:
    values = [good[:, where == zone].flatten().sort().values for zone in range(int(where.max()) + 1)]
    low, top = (torch.stack([v[int(share * (len(v) - 1))] for v in values]) for share in (0.5, q))
    width = top - low
    return (low.clamp(min=low[0]), width.clamp(min=width[0])) if floor else (low, width)


@exercise(
    "16.4",
    wrong={
        "gives the top instead of the width": lambda good, where: (
            _zone_scale(good, where)[0],
            sum(_zone_scale(good, where)),
        ),
        "lets quiet borders be raised": lambda good, where: _zone_scale(good, where, floor=False),
        "takes the highest score for the edge": lambda good, where: _zone_scale(good, where, q=1.0),
        "takes one scale for all": lambda good, where: tuple(
            x.expand(int(where.max()) + 1) for x in _zone_scale(good, torch.zeros_like(where))
        ),
    },
)
def zone_scale(answer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Median and width in every zone."""
    good = -torch.rand(5, 64, 64, generator=torch.Generator().manual_seed(16)).log() / 8
    good[:, :, :8] += 0.5
    good[:, -8:] *= 0.1
    where = zones(8, 8, 1).repeat_interleave(8, 0).repeat_interleave(8, 1)
    low, width = answer(good, where)
    wanted = fit_scale(good, 1)
    assert len(low) == len(width) == 5, "return the medians and the widths of all five zones"
    assert torch.allclose(low, wanted.centre, atol=2e-3), "the medians differ; none may lie below that of zone 0"
    assert torch.allclose(width, wanted.width, rtol=2e-2), (
        "the widths differ: from the median to the 99.9th percentile, and at least that of zone 0"
    )


def _residual(levels: list[Tensor], good: list[Tensor], *, here: bool = True, root: bool = True) -> list[Tensor]:
    found = []
    for x, known in zip(levels, good, strict=True):
        mean = known.mean(0, keepdim=True) if here else known.mean((0, 2, 3), keepdim=True)
        variance = (known - mean).square().mean((0, 2, 3), keepdim=True)
        found.append((x - mean) / (variance.sqrt() if root else variance))
    return found


@exercise(
    "16.5",
    wrong={
        "takes one mean for all positions": lambda levels, good: _residual(levels, good, here=False),
        "divides by the variance": lambda levels, good: _residual(levels, good, root=False),
        "takes the mean of what is judged": lambda levels, good: _residual(levels, levels),
        "does not divide": lambda levels, good: [x - g.mean(0) for x, g in zip(levels, good, strict=True)],
    },
)
def residual(answer: Callable[[list[Tensor], list[Tensor]], list[Tensor]]) -> None:
    """Features in units of what good images have at a position."""
    generator = torch.Generator().manual_seed(16)
    sizes = ((4, 8), (6, 4), (5, 2))
    good = [
        3 * torch.rand(7, c, s, s, generator=generator) + torch.rand(c, s, s, generator=generator) for c, s in sizes
    ]
    levels = [x[:2] + torch.rand(2, *x.shape[1:], generator=generator) for x in good]
    found = answer(levels, good)
    assert len(found) == 3, "return a list of three levels"
    for number, (ours, wanted) in enumerate(zip(found, _residual(levels, good), strict=True), 1):
        assert ours.shape == wanted.shape, f"level {number} must keep its shape {tuple(wanted.shape)}"
        assert torch.allclose(ours, wanted, rtol=5e-2, atol=1e-3), f"level {number} differs from (x − μ) / σ"
