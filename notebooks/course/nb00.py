"""Notebook 00: its flow chart, and the checks of its exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from mlffn_lite.figures import COLOURS
from mlffn_lite.metrics import image_auroc

from .checks import exercise

_BLUE, _ORANGE, _GREEN, _PINK, _BLACK = COLOURS.values()
_GREY = "#777777"
_BOXES = {  # left, bottom, width, height, colour
    "": (36, 7, 34, 40, _BLUE),
    "backbone,\nstages 1, 2": (38.5, 31, 8, 8, _BLUE),
    "texture:\nTEM, PTFEM": (50.5, 31, 9, 8, _BLUE),
    "backbone,\nstage 3": (38.5, 13, 8, 8, _BLUE),
    "self-\ncalibration": (50.5, 13, 9, 8, _BLUE),
    "fuse": (63.5, 22, 4.5, 8, _BLUE),
    "η": (79, 23, 3, 6, _ORANGE),
    "score map S": (88, 22, 10, 8, _ORANGE),
    "three losses,\nin training": (73, 38, 9.5, 8, _GREEN),
    "highest score above\nthe threshold?": (83.5, 7, 15, 7, _PINK),
    "density: how far the backbone's features are\nfrom those of good images": (36, -4.5, 34, 6, _GREY),
}
_ARROWS = (  # from x, y to x, y
    (13.5, 38, 17.5, 38), (30.5, 38, 35.1, 33), (30.5, 16, 35.1, 21), (47.3, 35, 49.7, 35), (47.3, 17, 49.7, 17),
    (42.5, 30.2, 42.5, 21.8), (60.3, 33, 63, 30.5), (60.3, 19, 63, 21.5), (70.8, 26, 78.2, 26), (82.8, 26, 87.2, 26),
    (93, 21.2, 93, 14.8), (86.7, 42, 83.3, 42), (74.5, 28.8, 76.5, 37.2), (88, 30.8, 80, 37.2), (42.5, 12.2, 42.5, 2.3),
    (70.8, -1.5, 83.5, 6.2),
)  # fmt: skip


def draw_idea(good: Tensor, damaged: Tensor, mask: Tensor, new: Tensor) -> Figure:
    """Draw the flow chart of the method, with the density beside it.

    Parameters
    ----------
    good, damaged, new : Tensor
        Images (3, H, W), uint8 or in [0, 1].
    mask : Tensor
        (H, W) bool, of the damage.
    """
    figure = Figure(figsize=(9, 4.8))
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(-6.5, 50.5))
    ax.axis("off")
    pictures: dict[str, tuple[float, float, Tensor]] = {
        "good image": (1, 32, good),
        "damaged": (18, 32, damaged),
        "a new image, in use": (18, 10, new),
    }
    for text, (left, bottom, image) in pictures.items():
        _picture(ax, text, left, bottom, image.permute(1, 2, 0))
    _picture(ax, "mask of damage", 87, 34, mask)
    for text, (x, y, width, height, colour) in _BOXES.items():
        look: dict[str, Any] = {
            "facecolor": "white",
            "edgecolor": colour,
            "lw": 1.8,
            "ls": "--" if colour == _GREY else "-",
        }
        ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.6", **look))
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, color=_BLACK)
    ax.text(53, 43, "ψ: a feature for every pixel", ha="center", fontsize=9)
    ax.text(74.5, 26.6, "F", ha="center", va="bottom", fontsize=9)
    for x1, y1, x2, y2 in _ARROWS:
        ax.annotate("", (x2, y2), (x1, y1), arrowprops={"arrowstyle": "-|>", "color": _BLACK, "lw": 1.4})
    return figure


def _picture(ax: Axes, text: str, x: float, y: float, pixels: Tensor) -> None:
    spot = ax.inset_axes((x, y, 12, 12), transform=ax.transData, xticks=[], yticks=[])
    spot.imshow(pixels, cmap="gray", interpolation="nearest")
    ax.text(x + 6, y - 0.6, text, ha="center", va="top", fontsize=8.5)


@exercise(
    "00.1",
    wrong={
        "column before row": lambda m: divmod(int(m.argmax()), m.shape[1])[::-1],
        "counts through a square map": lambda m: divmod(int(m.argmax()), m.shape[0]),
        "where it is best": lambda m: divmod(int(m.argmin()), m.shape[1]),
        "one number": lambda m: int(m.argmax()),
    },
)
def _worst_pixel(answer: Callable[[Tensor], tuple[int, int]]) -> None:
    for row, column in ((0, 0), (2, 5), (3, 1)):
        score_map = torch.zeros(4, 7)
        score_map[row, column], score_map[1, 6] = 3.0, -1.0
        found = answer(score_map)
        assert not isinstance(found, int), "return two numbers: row, column"
        assert len(found) == 2, "return two numbers: row, column"
        assert tuple(map(int, found)) == (row, column), (
            f"a map of 4 rows and 7 columns has its highest score at row {row}, column {column}, not at {tuple(found)}"
        )


@exercise(
    "00.2",
    wrong={
        "always the highest": lambda s, rate: float(s.max()),
        "rounds the number": lambda s, rate: float(s.sort(descending=True).values[round(rate * len(s))]),
        "from the wrong end": lambda s, rate: float(s.sort().values[int(rate * len(s))]),
        "one too many above": lambda s, rate: float(s.sort(descending=True).values[int(rate * len(s)) + 1]),
        "between two scores": lambda s, rate: float(s.quantile(1 - rate)),
    },
)
def _threshold_for(answer: Callable[[Tensor, float], float]) -> None:
    scores = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5, 0.2, 0.8, 0.4, 0.6, 1.0])
    for rate in (0.0, 0.1, 0.25, 0.29, 0.3):
        threshold, allowed = float(answer(scores, rate)), int(rate * 10)
        above = int((scores > threshold + 1e-6).sum())
        assert above <= allowed, f"of ten scores {allowed} may lie above at a rate of {rate}, not {above}"
        assert (scores - threshold).abs().min() < 1e-6, f"{threshold:.3f} is not one of the scores"
        assert above == allowed, f"at a rate of {rate} a lower score would do: {allowed} may lie above, only {above} do"


@exercise(
    "00.3",
    wrong={
        "ties do not count": lambda s, y: float((s[y][:, None] > s[~y][None]).float().mean()),
        "ties count in full": lambda s, y: float((s[y][:, None] >= s[~y][None]).float().mean()),
        "good above anomalous": lambda s, y: float((s[~y][:, None] > s[y][None]).float().mean()),
        "share of right verdicts": lambda s, y: float(((s > s.median()) == y).float().mean()),
    },
)
def _auroc_by_pairs(answer: Callable[[Tensor, Tensor], float]) -> None:
    labels = torch.tensor([True, True, False, False, False])
    for scores, what in (
        ([0.9, 0.8, 0.1, 0.2, 0.3], "all anomalous images above all good ones"),
        ([0.9, 0.25, 0.1, 0.2, 0.3], "five of six pairs in the right order"),
        ([0.5, 0.5, 0.5, 0.5, 0.5], "nothing but ties"),
        ([0.9, 0.2, 0.1, 0.2, 0.3], "one tie"),
    ):
        given = torch.tensor(scores)
        found = float(answer(given, labels))
        assert abs(found - image_auroc(given, labels)) < 1e-6, f"with {what}, {found:.3f} is not right"
