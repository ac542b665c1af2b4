"""Checks of notebook 00."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.metrics import image_auroc

from .checks import exercise


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
