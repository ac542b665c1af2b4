"""Exercises of notebook 13, the share of pseudo-anomalies."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mlffn_lite.studies.statistics import of_these_sets

from .checks import exercise


@exercise(
    "13.1",
    wrong={
        "swaps the two rules": lambda p, batch: (1 - (1 - p) ** (1 / batch), p / batch),
        "divides for both": lambda p, batch: (p / batch, p / batch),
        "asks for one image on average": lambda p, batch: (1 / batch, 1 - (1 - p) ** (1 / batch)),
    },
)
def ratio_for(answer: Callable[[float, int], tuple[float, float]]) -> None:
    """The ratio at which a batch holds an anomalous image with a given probability."""
    for p, batch in ((0.9, 16), (0.5, 8), (0.99, 32), (0.1, 2)):
        library, coins = (float(v) for v in answer(p, batch))
        met = min(1.0, library * batch)
        assert math.isclose(met, p, rel_tol=1e-6), (
            f"by the library's rule, at {library:.4f} {met:.1%} of the batches of {batch} have one, not {p:.0%}"
        )
        met = 1 - (1 - coins) ** batch
        assert math.isclose(met, p, rel_tol=1e-6), (
            f"with coins, at {coins:.4f} {met:.1%} of the batches of {batch} have one or more, not {p:.0%}"
        )


@exercise(
    "13.2",
    wrong={
        "takes the classes as always present": lambda r, batch, area, balanced: 0.5 if balanced else r * area,
        "lets the balanced weight follow the share of images": lambda r, batch, area, balanced: (
            r / 2 if balanced else r * area
        ),
        "lets the weight grow without bound": lambda r, batch, area, balanced: r * batch / 2 if balanced else r * area,
        "swaps the two losses": lambda r, batch, area, balanced: r * area if balanced else min(1.0, r * batch) / 2,
    },
)
def weight(answer: Callable[[float, int, float, bool], float]) -> None:
    """The mean weight of anomalous pixels in the feature constraint."""
    for ratio, batch, area in ((0.5, 16, 0.1), (0.05, 16, 0.1), (0.0, 16, 0.1), (1.0, 4, 0.3), (0.01, 32, 0.2)):
        wanted = min(1.0, ratio * batch) / 2
        ours = float(answer(ratio, batch, area, True))
        assert math.isclose(ours, wanted, abs_tol=1e-9), (
            f"(4), ratio {ratio}, batch {batch}: {ours:.3f} is not it; how many of the batches have an anomalous image?"
        )
        ours = float(answer(ratio, batch, area, False))
        assert math.isclose(ours, ratio * area, abs_tol=1e-9), (
            f"(3), ratio {ratio}, area {area}: {ours:.3f} is not it; in (3) every pixel has the same weight"
        )


def _cells(gains: dict[str, float], noise: float = 0.3) -> pd.DataFrame:
    """Four sets of different difficulty with two seeds; each column above the set's level by its gain."""
    rng = np.random.default_rng(13)
    rows = [
        {"set": f"set{i}", "seed": seed, "column": column, "pro": 50 + 12 * i + gain + noise * rng.normal()}
        for i in range(4)
        for seed in range(2)
        for column, gain in gains.items()
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=13).reset_index(drop=True)


def _by_means(cells: pd.DataFrame, column: str, metric: str) -> bool:
    return bool(cells.groupby("column")[metric].mean().idxmax() == column)


def _some_other(cells: pd.DataFrame, column: str, metric: str) -> bool:
    table = cells.pivot(index=["set", "seed"], columns="column", values=metric)
    others = table.columns.drop(column)
    return any(of_these_sets(table[column] - table[other]).low > 0 for other in others)


def _unpaired(cells: pd.DataFrame, column: str, metric: str) -> bool:
    groups = cells.groupby("column")[metric]
    low, high = groups.mean() - 2 * groups.sem(), groups.mean() + 2 * groups.sem()
    return bool((low[column] > high.drop(column)).all())


@exercise(
    "13.3",
    wrong={
        "compares means alone": _by_means,
        "is content with one worse column": _some_other,
        "compares groups instead of pairs": _unpaired,
    },
)
def is_best(answer: Callable[[pd.DataFrame, str, str], bool]) -> None:
    """Whether a column is distinguishably better than every other."""
    clear = _cells({"0 %": -20.0, "25 %": 0.0, "50 %": 2.0, "100 %": 0.5})
    tied = _cells({"0 %": -20.0, "25 %": 0.0, "50 %": 2.0, "100 %": 1.9}, noise=3.0)
    assert answer(clear.copy(), "50 %", "pro"), (
        "a column that is better in every pair of every other column is the best, however much the sets differ"
    )
    assert not answer(clear.copy(), "25 %", "pro"), "a column that is worse than one other is not the best"
    assert tied.groupby("column")["pro"].mean().idxmax() in ("50 %", "100 %")
    for column in ("50 %", "100 %"):
        assert not answer(tied.copy(), column, "pro"), "of two columns that cannot be told apart neither is the best"


def _range(before: Tensor, after: Tensor) -> bool:
    return bool((after.max() - after.min()) / after.mean() < (before.max() - before.min()) / before.mean() / 10)


@exercise(
    "13.4",
    wrong={
        "compares means": lambda before, after: bool(after.abs().mean() < before.abs().mean() / 10),
        "divides by the mean": _range,
        "uses a fixed limit": lambda before, after: bool(not after.isfinite().all() or after.std() < 0.05),
        "lets NaN pass": lambda before, after: bool(after.std() < before.std() / 10),
    },
)
def collapsed(answer: Callable[[Tensor, Tensor], bool]) -> None:
    """Whether training has collapsed the scores."""
    g = torch.Generator().manual_seed(13)
    before, after = torch.randn(60, generator=g), torch.randn(60, generator=g)
    cases = (
        (before, 5 * after, False, "scores that spread more than before have not collapsed"),
        (before, 5 * after + 1000, False, "a constant added to all scores changes nothing"),
        (before, 0.01 * after, True, "a hundredth of the spread is a collapse"),
        (before, 0.01 * after + 1000, True, "a hundredth of the spread is a collapse, whatever the level"),
        (100 * before, after, True, "compare with the spread before, not with a fixed number"),
        (0.01 * before, 0.01 * after, False, "compare with the spread before, not with a fixed number"),
        (before, torch.full((60,), 0.3), True, "scores that are all equal have collapsed"),
        (before, torch.where(torch.arange(60) == 7, torch.nan, after), True, "a score that is not finite is an alarm"),
        (before, torch.where(torch.arange(60) == 7, torch.inf, after), True, "a score that is not finite is an alarm"),
    )
    for first, second, wanted, sentence in cases:
        assert bool(answer(first.clone(), second.clone())) is wanted, sentence
