"""Notebook 17, the compared methods: its pictures, and the checks of its exercises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor

from mlffn_lite.datasets.folder import read_image, read_mask
from mlffn_lite.datasets.miniparts import miniparts_path
from mlffn_lite.figures import COLOURS, new_figure
from mlffn_lite.studies.cell import read_map

from .checks import exercise
from .session import show_small

Pair = tuple[int, int]
Picture = tuple[str, str]
"""A set of MiniParts, and a path in it."""

_BLUE, _ORANGE, _GREEN, _PINK, _BLACK = COLOURS.values()


# ---- pictures


def truth(name: str, path: str) -> Tensor:
    """Return the mask of a test picture, (128, 128) bool."""
    _, kind, file = path.split("/")
    return read_mask(miniparts_path() / name / "ground_truth" / kind / file.replace(".png", "_mask.png"), 128) > 0


def words(name: str, path: str) -> str:
    """Name a picture."""
    return f"{name}, {path.split('/')[1].replace('_', ' ')}"


@dataclass(frozen=True)
class Gallery:
    """Test pictures with the maps that methods made of them.

    Attributes
    ----------
    kept : mapping
        By set and method, a cell's maps by path.
    found : DataFrame
        A row per picture and a column per method: how well its defect is found, for the titles.
    pictures : sequence of Picture
        Those that every method is shown with.
    """

    kept: Mapping[str, Mapping[str, Mapping[str, Any]]]
    found: pd.DataFrame
    pictures: Sequence[Picture]

    def originals(self) -> Figure:
        """Draw the pictures themselves."""
        figure = new_figure(2.4)
        figure.set_size_inches(6.4, 2.4)
        for ax, picture in zip(figure.subplots(1, len(self.pictures)), self.pictures, strict=True):
            _photograph(ax, *picture)
            ax.contour(truth(*picture), levels=[0.5], colors=[_PINK], linewidths=2)
            ax.set_title(words(*picture))
        return figure

    def _shown(self, picture: Picture, method: str) -> str:
        return f"{self.found[method].astype(float)[picture]:.2f}"

    def strip(self, method: str, number: int) -> None:
        """Show a method's maps of the pictures as Figure 17.``number``."""
        figure = new_figure(2.1)
        figure.set_size_inches(5.6, 2.1)
        values = [f"{words(*p)}: {self._shown(p, method)}" for p in self.pictures]
        for ax, picture, value in zip(figure.subplots(1, len(self.pictures)), self.pictures, values, strict=True):
            self._draw(ax, method, *picture)
            ax.set_title(value, fontsize=8)
        alt = f"Score maps of {method} over the three pictures, defects outlined. Found, {'; '.join(values)}."
        caption = f"Figure 17.{number}. `{method}` on the three pictures of Figure 17.1, with `found`."
        show_small(figure, f"maps_{method}", alt=alt, caption=caption)

    def ends(self, ends: Mapping[str, tuple[Picture, Picture]]) -> Figure:
        """Draw, for every method, the picture it leads on and the one it lags on, each with its map."""
        half = -(-len(ends) // 2)
        figure = new_figure(1.25 * half + 0.3)
        cells = figure.subplots(half, 8)
        for place, (method, pair) in enumerate(ends.items()):
            row = cells[place % half, 4 * (place // half) :][:4]
            row[0].set_ylabel(method.replace("_", "\n"), fontsize=8)
            for k, (picture, how) in enumerate(zip(pair, ("leads", "lags"), strict=True)):
                _photograph(row[2 * k], *picture)
                self._draw(row[2 * k + 1], method, *picture)
                row[2 * k].set_title(words(*picture).replace(", ", "\n"), fontsize=7.5)
                row[2 * k + 1].set_title(f"{how}\n{self._shown(picture, method)}", fontsize=7.5)
        for ax in cells.ravel()[2 * len(ends) * 2 :]:
            ax.set_axis_off()
        return figure

    def _draw(self, ax: Any, method: str, name: str, path: str) -> None:
        """Draw a kept map and the defect's outline; colours go from the median good score to its own highest."""
        kept = self.kept[name][method]
        calm = np.median([read_map(v) for k, v in kept.items() if "/good/" in k])
        heat = torch.from_numpy(read_map(kept[path]))[None, None]
        large = F.interpolate(heat, size=(128, 128), mode="bilinear")[0, 0]
        ax.imshow(large, cmap="inferno", vmin=calm, vmax=max(large.max(), calm + 1e-6))
        ax.contour(truth(name, path), levels=[0.5], colors=["white"], linewidths=1.2)
        _bare(ax)


def _photograph(ax: Any, name: str, path: str) -> None:
    ax.imshow(read_image(miniparts_path() / name / path, 128).permute(1, 2, 0))
    _bare(ax)


def _bare(ax: Any) -> None:
    """Take off what a photograph does not need."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def distances_figure(across: Tensor, fields: Mapping[str, Tensor], cloud: Tensor, bank: Tensor, cross: Pair) -> Figure:
    """Draw two distances on a grid of 121 × 89 points (P, 2), with the cloud, the bank and a cross."""
    figure = new_figure(3.0)
    for ax, (title, values) in zip(figure.subplots(1, 2), fields.items(), strict=True):
        x, y = across.view(121, 89, 2).unbind(-1)
        ax.contourf(x, y, values.view(121, 89), levels=12, cmap="Blues")
        ax.scatter(cloud[:, 0], cloud[:, 1], s=5, color=_BLACK, alpha=0.5)
        ax.plot(*cross, "X", ms=10, color=_ORANGE, mec="white")
        ax.set(title=title, aspect="equal", xlabel="first feature", ylabel="second feature")
        ax.grid(False)
    figure.axes[1].scatter(bank[:, 0], bank[:, 1], s=30, color=_PINK, edgecolor="white")
    return figure


def spoiled_figure(spoiled: Mapping[str, Tensor]) -> Figure:
    """Draw a column per way to spoil images (B, 3, H, W), the good ones first, with outlines of what changed."""
    good = next(iter(spoiled.values()))
    figure = new_figure(4.9)
    figure.set_size_inches(6.6, 4.9)
    axes = figure.subplots(len(good), len(spoiled))
    for column, (title, images) in zip(axes.T, spoiled.items(), strict=True):
        column[0].set_title(title)
        for ax, image, before in zip(column, images, good, strict=True):
            ax.imshow(image.permute(1, 2, 0).clamp(0, 1))
            changed = ((image - before).abs().amax(0) > 0.02).numpy()
            if changed.any():
                filled = ndimage.binary_fill_holes(ndimage.binary_closing(changed, iterations=2))  # no specks
                ax.contour(filled, levels=[0.5], colors=["white"], linewidths=0.7)
            _bare(ax)
    return figure


def distilled_figure(curve: Tensor, shown: Tensor, seen: Mapping[str, Tensor], mask: Tensor, title: str) -> Figure:
    """Draw losses (steps, levels), a picture (3, H, W), and its maps (H, W) by title with the defect outlined."""
    figure = new_figure(2.6)
    left, *panels = figure.subplots(1, 2 + len(seen), width_ratios=[1.7, *[1] * (1 + len(seen))])
    for k, (colour, marker) in enumerate(zip((_BLUE, _GREEN, _PINK), "osD", strict=True)):
        left.plot(curve[:, k], color=colour, marker=marker, ms=3, lw=1.5, markevery=4, label=f"level {k + 1}")
    left.set(xlabel="step", ylabel="mean of 1 − cosine", ylim=(0, None))
    left.legend()
    panels[0].imshow(shown.permute(1, 2, 0))
    panels[0].set_title(title)
    for ax, (name, heat) in zip(panels[1:], seen.items(), strict=True):
        ax.imshow(heat, cmap="inferno")
        ax.contour(mask, levels=[0.5], colors=["white"], linewidths=1.2)
        ax.set_title(name)
    for ax in panels:
        _bare(ax)
    return figure


# ---- exercises


def _standard(values: Tensor, good: Tensor) -> Tensor:
    return (values - good.mean()) / good.std(correction=0)


@exercise(
    "17.1",
    wrong={
        "adds them as they are": lambda e, v, good_e, good_v: e + v,
        "does not take the mean off": lambda e, v, good_e, good_v: (
            e / good_e.std(correction=0) + v / good_v.std(correction=0)
        ),
        "takes the image's own mean and deviation": lambda e, v, good_e, good_v: _standard(e, e) + _standard(v, v),
        "divides by the variance": lambda e, v, good_e, good_v: (
            (e - good_e.mean()) / good_e.var(correction=0) + (v - good_v.mean()) / good_v.var(correction=0)
        ),
        "multiplies the two": lambda e, v, good_e, good_v: _standard(e, good_e) * _standard(v, good_v),
        "leaves out the variance": lambda e, v, good_e, good_v: _standard(e, good_e),
    },
)
def students_score(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Error and variance in units of good images, added."""
    generator = torch.Generator().manual_seed(17)
    good_error = 40 + 8 * torch.rand(5, 6, 6, generator=generator)
    good_variance = 0.1 + 0.02 * torch.rand(200, generator=generator)
    error, variance = 60 * torch.rand(2, 4, 4, generator=generator), 0.3 * torch.rand(2, 4, 4, generator=generator)
    given = answer(error, variance, good_error, good_variance)
    assert isinstance(given, Tensor), "return a tensor"
    assert given.shape == error.shape, f"the result must have the shape {tuple(error.shape)} of the error"
    calm = answer(good_error.mean()[None], good_variance.mean()[None], good_error, good_variance)
    assert abs(float(calm)) < 1e-3, f"where both are as on good images, the score must be 0, yours is {float(calm):.2f}"
    for name, values in (
        ("error", (good_error.mean() + good_error.std(correction=0), good_variance.mean())),
        ("variance", (good_error.mean(), good_variance.mean() + good_variance.std(correction=0))),
    ):
        one = float(answer(values[0][None], values[1][None], good_error, good_variance))
        assert abs(one - 1) < 1e-3, f"{name} one deviation above its mean must give 1, yours gives {one:.3f}"
    wanted = _standard(error, good_error) + _standard(variance, good_variance)
    assert torch.allclose(given, wanted, rtol=1e-4, atol=1e-4), "each term must be in units of its own good values"


def _pasted(image: Tensor, size: Pair, source: Pair, target: Pair) -> tuple[Tensor, Tensor]:
    (height, width), (top, left), (row, column) = size, source, target
    result, mask = image.clone(), torch.zeros(image.shape[1:], dtype=torch.bool)
    result[:, row : row + height, column : column + width] = image[:, top : top + height, left : left + width]
    mask[row : row + height, column : column + width] = True
    return result, mask


def _in_place(image: Tensor, size: Pair, source: Pair, target: Pair) -> tuple[Tensor, Tensor]:
    result, mask = _pasted(image, size, source, target)
    image.copy_(result)
    return image, mask


def _moved(image: Tensor, size: Pair, source: Pair, target: Pair) -> tuple[Tensor, Tensor]:
    holed = image.clone()
    holed[:, source[0] : source[0] + size[0], source[1] : source[1] + size[1]] = 0
    result, mask = _pasted(image, size, source, target)
    return torch.where(mask, result, holed), mask


def _mask_of_source(image: Tensor, size: Pair, source: Pair, target: Pair) -> tuple[Tensor, Tensor]:
    return _pasted(image, size, source, target)[0], _pasted(image, size, target, source)[1]


def _changed_only(image: Tensor, size: Pair, source: Pair, target: Pair) -> tuple[Tensor, Tensor]:
    result, _ = _pasted(image, size, source, target)
    return result, (result != image).any(0)


@exercise(
    "17.2",
    wrong={
        "pastes into the image that it was given": _in_place,
        "moves the rectangle and leaves a hole": _moved,
        "exchanges source and target": lambda image, size, source, target: _pasted(image, size, target, source),
        "exchanges height and width": lambda image, size, source, target: _pasted(image, size[::-1], source, target),
        "marks where it was cut out": _mask_of_source,
        "marks only the pixels that changed": _changed_only,
    },
)
def cut_paste(answer: Callable[[Tensor, Pair, Pair, Pair], tuple[Tensor, Tensor]]) -> None:
    """A rectangle copied to another place, and its mask."""
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(3, 20, 24, generator=generator)
    image[:, :4] = 0.5  # a plain part: what is pasted from and to it changes nothing
    cases: Sequence[tuple[Pair, Pair, Pair]] = (
        ((6, 3), (5, 2), (12, 15)),
        ((5, 8), (6, 4), (8, 7)),  # overlap
        ((2, 5), (0, 0), (1, 12)),  # nothing changes
    )
    for size, source, target in cases:
        before = image.clone()
        given = answer(image, size, source, target)
        assert isinstance(given, tuple), "return two tensors, the image and its mask"
        assert len(given) == 2, "return two tensors, the image and its mask"
        result, mask = given
        assert torch.equal(image, before), "the image that you were given must stay as it is"
        assert mask.dtype == torch.bool, f"the mask must be of booleans, not of {mask.dtype}"
        assert mask.shape == image.shape[1:], f"the mask must have the shape {tuple(image.shape[1:])}"
        wanted, where = _pasted(image, size, source, target)
        what = f"size {size}, from {source} to {target}"
        assert torch.equal(mask, where), f"{what}: the mask must be true in all of the target's rectangle, nowhere else"
        assert torch.equal(result[:, where], wanted[:, where]), f"{what}: the target must show what the source shows"
        assert torch.equal(result, wanted), f"{what}: outside the target nothing may change"


def _upsampled(maps: Sequence[Tensor], size: Pair) -> Tensor:
    return torch.stack([F.interpolate(m[:, None], size, mode="bilinear")[:, 0] for m in maps]).sum(0)


def _maps(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    return [1 - F.cosine_similarity(a, b, dim=1) for a, b in zip(teacher, student, strict=True)]


def _whole_level(teacher: Sequence[Tensor], student: Sequence[Tensor], size: Pair) -> Tensor:
    flat = [1 - F.cosine_similarity(a.flatten(1), b.flatten(1)) for a, b in zip(teacher, student, strict=True)]
    return _upsampled([x[:, None, None] for x in flat], size)


def _dot_only(teacher: Sequence[Tensor], student: Sequence[Tensor], size: Pair) -> Tensor:
    return _upsampled([1 - (a * b).sum(1) for a, b in zip(teacher, student, strict=True)], size)


@exercise(
    "17.3",
    wrong={
        "one cosine for a whole level": _whole_level,
        "forgets to subtract from one": lambda t, s, size: _upsampled([1 - m for m in _maps(t, s)], size),
        "does not divide by the lengths": _dot_only,
        "takes the mean of the levels": lambda t, s, size: _upsampled(_maps(t, s), size) / len(t),
        "multiplies the levels": lambda t, s, size: torch.stack([_upsampled([m], size) for m in _maps(t, s)]).prod(0),
        "upsamples to the nearest": lambda t, s, size: torch.stack(
            [F.interpolate(m[:, None], size)[:, 0] for m in _maps(t, s)]
        ).sum(0),
    },
)
def cosine_map(answer: Callable[[list[Tensor], list[Tensor], Pair], Tensor]) -> None:
    """One minus the cosine at every place, upsampled and summed over the levels."""
    generator = torch.Generator().manual_seed(3)
    shapes, size = ((2, 4, 16, 12), (2, 6, 8, 6), (2, 9, 4, 3)), (32, 24)
    teacher = [torch.randn(shape, generator=generator) for shape in shapes]
    student = [torch.randn(shape, generator=generator) for shape in shapes]
    given = answer(teacher, student, size)
    assert isinstance(given, Tensor), "return a tensor"
    assert given.shape == (2, *size), f"the map must be (2, 32, 24), yours is {tuple(given.shape)}"
    same = answer(teacher, teacher, size)
    assert same.abs().max() < 1e-4, "a student equal to its teacher must score 0 everywhere"
    longer = answer(teacher, [3 * x for x in teacher], size)
    assert longer.abs().max() < 1e-4, "only directions count: a student three times as long must score 0 too"
    against = answer(teacher, [-x for x in teacher], size)
    assert torch.allclose(against, torch.full_like(against, 6.0), atol=1e-4), (
        "a student opposite to its teacher scores 2 at every level: the sum of three must be 6"
    )
    one = [x.clone() for x in teacher]
    one[2][0, :, 0, 0] *= -1
    spoiled = answer(teacher, one, size)
    assert spoiled[0, -1, -1].abs() < 1e-4, "one spoiled place must not change the other end of the image"
    wanted = _upsampled(_maps(teacher, student), size)
    assert torch.allclose(given, wanted, atol=1e-4), "bring each map bilinearly to the size, with align_corners=False"
