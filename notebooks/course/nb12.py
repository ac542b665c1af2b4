"""Exercises of notebook 12, the ablation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mlffn_lite.config import Config
from mlffn_lite.studies.grid import arm_config, ratio_config, study_config
from mlffn_lite.studies.statistics import interval

from .checks import exercise

Effect = tuple[float, float, float]


def _cells() -> pd.DataFrame:
    """Two arms on four sets of very different difficulty, three seeds, in disorder; one cell is missing."""
    rng = np.random.default_rng(12)
    rows = [
        {"set": f"set{i}", "seed": seed, "column": arm, "pro": 60 + 10 * i + gain + rng.normal()}
        for i in range(4)
        for seed in range(3)
        for arm, gain in (("a", 0.0), ("b", 2.0), ("c", -5.0))
    ]
    return pd.DataFrame(rows).drop(index=4).sample(frac=1, random_state=12).reset_index(drop=True)


def _by_position(cells: pd.DataFrame, before: str, after: str, metric: str) -> Effect:
    first, second = (cells.loc[cells["column"] == arm, metric].to_numpy() for arm in (before, after))
    count = min(len(first), len(second))
    pairs = second[:count] - first[:count]
    return (float(pairs.mean()), *interval(pairs))


def _backwards(cells: pd.DataFrame, before: str, after: str, metric: str) -> Effect:
    table = cells.pivot(index=["set", "seed"], columns="column", values=metric)
    pairs = (table[before] - table[after]).dropna().to_numpy()
    return (float(pairs.mean()), *interval(pairs))


def _normal(cells: pd.DataFrame, before: str, after: str, metric: str) -> Effect:
    table = cells.pivot(index=["set", "seed"], columns="column", values=metric)
    pairs = (table[after] - table[before]).dropna()
    return pairs.mean(), pairs.mean() - pairs.std(), pairs.mean() + pairs.std()


@exercise(
    "12.1",
    wrong={
        "subtracts rows by position": _by_position,
        "subtracts the wrong way round": _backwards,
        "gives the deviation instead of the interval": _normal,
    },
)
def effect(answer: Callable[[pd.DataFrame, str, str, str], Effect]) -> None:
    """The mean paired difference of two arms, and its interval."""
    cells = _cells()
    for before, after in (("a", "b"), ("b", "c")):
        table = cells.pivot(index=["set", "seed"], columns="column", values="pro")
        pairs = (table[after] - table[before]).dropna().to_numpy()
        mean, low, high = (float(v) for v in answer(cells.copy(), before, after, "pro"))
        assert all(map(math.isfinite, (mean, low, high))), (
            "all three numbers must be finite; leave incomplete pairs out"
        )
        assert math.isclose(mean, pairs.mean(), abs_tol=1e-9), (
            f"the mean is {mean:.2f}; subtract cells of the same set and seed, after minus before, whatever their order"
        )
        assert np.allclose((low, high), interval(pairs), atol=0.05), "the ends must be the bootstrap's of these pairs"


@exercise(
    "12.2",
    wrong={
        "goes by the middle of the interval": ["supported", "supported", "supported", "contradicted"],
        "asks for a claim inside the interval": [
            "supported",
            "supported",
            "contradicted",
            "contradicted",
        ],
        "takes every drop for a contradiction": ["supported", "not distinguishable", "contradicted", "contradicted"],
    },
)
def verdicts(answer: Sequence[str]) -> None:
    """What four intervals say about four claims."""
    assert not isinstance(answer, str), "give a list of four words"
    assert len(answer) == 4, "give a list of four words"
    known = ("supported", "contradicted", "not distinguishable")
    assert set(answer) <= set(known), f"the words are {', '.join(known)}"
    assert answer[1] == "not distinguishable", "B: look at where 0 is"
    assert answer[0] == "supported", "A: compare the side of the interval with the sign of the claim"
    assert answer[2] == "supported", "C: what direction was claimed?"
    assert answer[3] == "contradicted", "D: what direction was claimed, and what was measured?"


def _from_baseline(base: Config, part: str) -> Config:
    off = {"self_calibration": False, "texture": False, "score": "distance"}
    loss = {"score": 0.0, "consistency": 0.0}
    if part in ("self_calibration", "texture"):
        return base.replace(model={**off, part: True}, loss=loss)
    return base.replace(model={**off, "score": "learned"}, loss={**loss, "score": 1.0})


def _cut_short(base: Config, part: str) -> Config:
    arms = {"self_calibration": "baseline", "texture": "+self_calibration", "consistency": "+score_constraint"}
    return arm_config(base, arms.get(part, "+stl"))


def _from_preset(base: Config, part: str) -> Config:
    return _left_out(Config.preset("small"), part)


def _left_out(base: Config, part: str) -> Config:
    whole = ratio_config(base, 0.5)
    if part == "consistency":
        return whole.replace(loss={"consistency": 0.0})
    if part == "score_constraint":
        return whole.replace(model={"score": "distance"}, loss={"score": 0.0, "consistency": 0.0})
    return whole.replace(model={part: False})


@exercise(
    "12.3",
    wrong={
        "adds one part to the baseline": _from_baseline,
        "cuts the table off before the part": _cut_short,
        "starts from the preset": _from_preset,
    },
)
def leave_out(answer: Callable[[Config, str], Config]) -> None:
    """The whole method without one part."""
    base = study_config("small", small=True)
    for part in ("self_calibration", "texture", "consistency", "score_constraint"):
        ours = answer(base, part)
        assert isinstance(ours, Config), "return a configuration"
        wanted = _left_out(base, part).to_dict()
        assert ours.method == wanted.pop("method"), "stay with the paper's method"
        for section, values in wanted.items():
            found = ours.to_dict()[section]
            wrong = [f"{section}.{key}" for key, value in values.items() if found[key] != value]
            assert not wrong, f"without {part}: {', '.join(wrong)} is not what it should be"


def _pairs_only(deviation: float, half: float, sets: int) -> int:
    return math.ceil((1.96 * deviation / half) ** 2)


def _without_square(deviation: float, half: float, sets: int) -> int:
    return math.ceil(1.96 * deviation / half / sets)


def _whole_width(deviation: float, half: float, sets: int) -> int:
    return math.ceil((1.96 * deviation / (2 * half)) ** 2 / sets)


@exercise(
    "12.4",
    wrong={
        "counts pairs instead of seeds": _pairs_only,
        "forgets the square": _without_square,
        "takes the half for the whole width": _whole_width,
    },
)
def seeds_needed(answer: Callable[[float, float, int], int]) -> None:
    """Seeds for an interval of a given half width."""
    for deviation, half, sets in ((3.0, 0.5, 3), (1.0, 0.5, 15), (10.0, 1.0, 4), (0.1, 1.0, 3)):
        ours = answer(deviation, half, sets)
        assert ours == int(ours), "seeds come in whole numbers"
        assert ours >= 1, "without a seed there is nothing to measure"
        reach = 1.96 * deviation / math.sqrt(ours * sets)
        assert reach <= half * 1.01, f"with {ours} seeds on {sets} sets the interval reaches {reach:.2f}, not {half}"
        fewer = 1.96 * deviation / math.sqrt((ours - 1) * sets) if ours > 1 else math.inf
        assert fewer > half * 0.99, f"{ours} seeds on {sets} sets are more than needed; a seed gives a pair per set"
