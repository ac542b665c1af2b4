"""Exercises of notebook 12, the ablation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from mlffn_lite.config import Config
from mlffn_lite.studies.grid import arm_config, ratio_config, study_config

from .checks import exercise

Ends = tuple[float, float]


def _study(sizes: Sequence[int]) -> list[np.ndarray]:
    """Differences of sets that lie far apart, with as many seeds each."""
    rng = np.random.default_rng(12)
    return [10 * i + rng.normal(size=n) for i, n in enumerate(sizes)]


def _around(groups: Sequence[np.ndarray], error: float, free: int) -> Ends:
    mean = float(np.mean([g.mean() for g in groups]))
    reach = float(stats.t.ppf(0.975, free)) * error
    return mean - reach, mean + reach


def _of_all_pairs(groups: Sequence[np.ndarray]) -> Ends:
    pairs = np.concatenate(groups)
    return _around(groups, pairs.std(ddof=1) / math.sqrt(len(pairs)), len(pairs) - 1)


def _of_sets(groups: Sequence[np.ndarray]) -> Ends:
    means = np.array([g.mean() for g in groups])
    return _around(groups, means.std(ddof=1) / math.sqrt(len(means)), len(means) - 1)


def _within(groups: Sequence[np.ndarray], *, lost: int = 1, normal: bool = False) -> Ends:
    free = sum(len(g) - lost for g in groups)
    variance = sum(((g - g.mean()) ** 2).sum() for g in groups) / free
    error = math.sqrt(variance * sum(1 / len(g) for g in groups)) / len(groups)
    return _around(groups, error, 10**6 if normal else free)


@exercise(
    "12.1",
    wrong={
        "puts all pairs into one pot": _of_all_pairs,
        "answers the other question": _of_sets,
        "divides by the number of pairs": lambda groups: _within(groups, lost=0),
        "takes the normal distribution's quantile": lambda groups: _within(groups, normal=True),
    },
)
def these_sets(answer: Callable[[list[np.ndarray]], Ends]) -> None:
    """The interval of the mean over these sets."""
    for sizes in ((3, 3, 3), (2, 4, 3), (5, 5)):
        groups = _study(sizes)
        low, high = (float(x) for x in answer([g.copy() for g in groups]))
        wanted = _within(groups)
        mean = sum(wanted) / 2
        assert math.isclose((low + high) / 2, mean, abs_tol=1e-6), (
            f"the middle is {(low + high) / 2:.2f}, not {mean:.2f}: the mean over sets of each set's mean"
        )
        assert math.isclose(high - low, wanted[1] - wanted[0], rel_tol=1e-4), (
            f"sets of {sizes} seeds: the interval reaches {(high - low) / 2:.2f} to either side, not"
            f" {(wanted[1] - wanted[0]) / 2:.2f}; what varies is seeds around their own set's mean, with f free"
        )


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
