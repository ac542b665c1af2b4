"""Means, deviations, intervals and verdicts, against numbers worked out by hand and against SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlffn_lite.errors import StudyError
from mlffn_lite.studies import statistics
from mlffn_lite.studies.grid import ARMS, METHODS, Grid, compare, study_config, table3, table4
from mlffn_lite.studies.paper import PAPER
from mlffn_lite.studies.statistics import (
    by_set,
    differences,
    frame,
    holm,
    of_sets_like_these,
    of_these_sets,
    ranks,
    table,
    verdict,
)
from mlffn_lite.studies.store import Store

Cells = Callable[..., Any]
TABLE3, TABLE4 = table3(study_config("tiny")), table4(study_config("tiny"))
finite = st.floats(-50, 50).map(lambda x: round(x, 3))


def cells_of(rows: Sequence[tuple[str, str, int, float]]) -> pd.DataFrame:
    """Cells (column, set, seed, image AUROC); the other metrics are 10 and 20 points lower."""
    head = ["column", "set", "seed", "image_auroc"]
    return pd.DataFrame(rows, columns=head).assign(
        pixel_auroc=lambda t: t["image_auroc"] - 10, pro=lambda t: t["image_auroc"] - 20
    )


BY_HAND = cells_of(
    [
        ("baseline", "nuts", 0, 90.0),
        ("baseline", "nuts", 1, 92.0),
        ("baseline", "nuts", 2, 97.0),
        ("baseline", "bolts", 0, 80.0),
        ("baseline", "bolts", 1, 84.0),
        ("baseline", "bolts", 2, 85.0),
        ("+self_calibration", "nuts", 0, 91.0),
        ("+self_calibration", "nuts", 1, 95.0),
        ("+self_calibration", "nuts", 2, 96.0),
        ("+self_calibration", "bolts", 0, 86.0),
        ("+self_calibration", "bolts", 1, 83.0),
        ("+self_calibration", "bolts", 2, 89.0),
        ("+stl", "nuts", 0, 91.0),
        ("+stl", "bolts", 0, 80.0),
        ("+stl", "bolts", 1, 99.0),
        ("+consistency", "nuts", 5, 70.0),
    ]
)


def row_of(found: pd.DataFrame, **where: Any) -> dict[str, Any]:
    for key, value in where.items():
        found = found[found[key] == value]
    assert len(found) == 1
    return {str(k): v for k, v in found.iloc[0].to_dict().items()}


def test_ranks_by_hand() -> None:
    grid = compare(study_config("tiny"), ["padim", "patchcore", "density"])
    rows = [("padim", "nuts", s, 90.0 + s) for s in range(6)] + [("patchcore", "nuts", s, 95.0) for s in range(6)]
    found = ranks(cells_of([*rows, ("padim", "bolts", 0, 1.0)]), grid)
    assert list(found["column"]) == ["padim", "patchcore"] * 3  # what has no cell has no rank
    # Padim is below in five pairs and ties in the sixth; bolts is no pair.
    first, second = (row_of(found, column=c, metric="pro") for c in ("padim", "patchcore"))
    assert (first["rank"], second["rank"], first["pairs"]) == (pytest.approx(11.5 / 6), pytest.approx(6.5 / 6), 6)
    # Ranks 2 five times and 1.5: t with 5 degrees of freedom, and no rank is above 2.
    reach = 2.5705818 * math.sqrt(((2 - 11.5 / 6) ** 2 * 5 + (1.5 - 11.5 / 6) ** 2) / 5 / 6)
    assert (first["low"], first["high"]) == pytest.approx((11.5 / 6 - reach, 2))
    assert (second["low"], second["high"]) == pytest.approx((1, 6.5 / 6 + reach))
    few = ranks(cells_of(rows[:1] + rows[6:7]), grid)
    assert few["low"].isna().all()
    assert ranks(cells_of([rows[0], rows[7]]), grid).empty  # no seed that both have


def test_a_table_by_hand() -> None:
    found = table(BY_HAND, TABLE4)
    assert list(found["column"]) == [c for c in ARMS for _ in range(3)]
    # Means over sets by seed: 85, 88, 91; 88.5, 89, 92.5; and for +stl only seed 0 is whole: 85.5.
    first = row_of(found, column="baseline", metric="image_auroc")
    assert (first["mean"], first["std"], first["seeds"], first["paper"]) == (88.0, 3.0, 3, 97.84)
    second = row_of(found, column="+self_calibration", metric="pro")
    assert second["mean"] == pytest.approx(70.0)
    assert second["std"] == pytest.approx(math.sqrt((1.5**2 + 1 + 2.5**2) / 2))
    third = row_of(found, column="+stl", metric="pixel_auroc")
    assert (third["mean"], third["seeds"]) == (75.5, 1)
    assert math.isnan(third["std"])
    for column in ("+score_constraint", "+consistency"):  # no cell; and no seed that both sets have
        missing = row_of(found, column=column, metric="pro")
        assert missing["seeds"] == 0
        assert math.isnan(missing["mean"])
        assert math.isnan(missing["std"])


def test_differences_by_hand() -> None:
    found = differences(BY_HAND, TABLE4)
    assert [(b, a) for b, a in zip(found["before"], found["after"], strict=True)][::3] == [
        ("baseline", "+self_calibration"),
        ("+self_calibration", "+stl"),
        ("+stl", "+score_constraint"),
        ("+score_constraint", "+consistency"),
        ("baseline", "+consistency"),
    ]
    first = row_of(found, before="baseline", after="+self_calibration", metric="image_auroc")
    assert first["pairs"] == 6  # nuts +1 +3 -1, bolts +6 -1 +4
    assert first["difference"] == 2.0
    # Within nuts 0, 2, -2 from the mean, within bolts 3, -4, 1: 34 in all, by 4 degrees of freedom; t is 2.776.
    reach = 2.7764451 * math.sqrt(34 / 4 * (1 / 3 + 1 / 3)) / 2
    assert (first["low"], first["high"]) == pytest.approx((2 - reach, 2 + reach))
    assert math.isnan(first["low_beyond"])  # of two sets nothing can be said about others
    assert (first["sets"], first["beyond"]) == (2, "not distinguishable")
    assert first["paper"] == pytest.approx(0.46)
    second = row_of(found, before="+self_calibration", after="+stl", metric="pro")
    assert second["pairs"] == 3  # nuts 0, bolts -6 +16: seeds pair even where a set lacks one
    assert second["difference"] == 2.5  # the mean of both sets' means, 0 and 5
    assert second["verdict"] == "not distinguishable"
    assert math.isnan(second["low"])  # one degree of freedom
    last = row_of(found, before="baseline", after="+consistency", metric="pro")
    assert last["pairs"] == 0  # seed 5 meets no other
    assert math.isnan(last["difference"])


def test_undefined_metrics_make_no_pair() -> None:
    cells = BY_HAND.assign(pro=np.nan)
    cells.loc[(cells["set"] == "bolts") & (cells["seed"] == 1), "image_auroc"] = np.nan
    found = differences(cells, TABLE4)
    assert row_of(found, before="baseline", after="+self_calibration", metric="pro")["pairs"] == 0
    assert row_of(found, before="baseline", after="+self_calibration", metric="image_auroc")["pairs"] == 5
    assert row_of(table(cells, TABLE4), column="baseline", metric="pro")["seeds"] == 3
    assert math.isnan(row_of(table(cells, TABLE4), column="baseline", metric="pro")["mean"])


def test_the_order_of_the_cells_does_not_matter() -> None:
    shuffled = BY_HAND.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(table(shuffled, TABLE4), table(BY_HAND, TABLE4))
    pd.testing.assert_frame_equal(differences(shuffled, TABLE4), differences(BY_HAND, TABLE4))


def pairs_of(values: Sequence[Sequence[float]]) -> pd.Series:
    """Differences by set and seed."""
    index = [(f"set{i}", seed) for i, line in enumerate(values) for seed in range(len(line))]
    return pd.Series(
        [x for line in values for x in line], pd.MultiIndex.from_tuples(index, names=["set", "seed"]), dtype=float
    )


def test_one_set_is_students_t_and_so_are_the_means_of_many() -> None:
    line = [1.0, 2.5, -0.5, 4.0, 3.0]
    found, theirs = of_these_sets(pairs_of([line])), stats.ttest_1samp(line, 0)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    many = [[x - 1, x + 1] for x in line]
    found = of_sets_like_these(pairs_of(many))
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_sets_that_differ_widen_the_second_interval_and_not_the_first() -> None:
    alike = [[1.0, 2.0, 3.0]] * 3
    apart = [[1.0 + d, 2.0 + d, 3.0 + d] for d in (-8, 0, 8)]
    a, b = of_these_sets(pairs_of(alike)), of_these_sets(pairs_of(apart))
    assert a == pytest.approx(b)
    narrow, wide = of_sets_like_these(pairs_of(alike)), of_sets_like_these(pairs_of(apart))
    assert narrow.low == narrow.high == 2
    assert wide.low < -10 < 14 < wide.high


@pytest.mark.parametrize("between", [0.0, 1.0, 5.0])
def test_each_interval_covers_what_it_is_about(between: float) -> None:
    """Of 400 drawn studies, three sets and three seeds each: the mean of their sets, and of all sets (0)."""
    rng, here, wider = np.random.default_rng(8), 0, 0
    for _ in range(400):
        sets = rng.normal(0, between, 3)
        pairs = pairs_of((sets[:, None] + rng.normal(0, 1, (3, 3))).tolist())
        first, second = of_these_sets(pairs), of_sets_like_these(pairs)
        here += first.low <= sets.mean() <= first.high
        wider += second.low <= 0 <= second.high
    assert 0.92 < here / 400 < 0.98
    assert 0.92 < wider / 400 < 0.98


def test_verdicts_allow_for_their_number() -> None:
    """Holm by hand, and how often any of 18 verdicts is wrong where nothing differs."""
    assert holm(np.array([0.01, np.nan, 0.04, 0.03, 0.9])) == pytest.approx(
        [0.04, np.nan, 0.09, 0.09, 0.9], nan_ok=True
    )
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(100):
        p = np.array([of_these_sets(pairs_of(rng.normal(0, 1, (3, 3)).tolist())).p for _ in range(18)])
        wrong += bool((holm(p) < 0.05).any())
    assert wrong <= 12


@pytest.mark.parametrize(
    ("low", "high", "claimed", "expected"),
    [
        (0.1, 0.5, 0.3, "supported"),
        (-0.5, -0.1, -0.2, "supported"),
        (0.1, 0.5, -0.3, "contradicted"),
        (-0.5, -0.1, 0.2, "contradicted"),
        (-0.1, 0.5, 0.3, "not distinguishable"),
        (0.0, 0.5, 0.3, "not distinguishable"),
        (-0.5, 0.0, 0.3, "not distinguishable"),
        (0.1, 0.5, 0.0, "not distinguishable"),
        (math.nan, math.nan, 0.3, "not distinguishable"),
        (0.0, 0.0, -0.3, "not distinguishable"),
        (0.1, 0.5, math.nan, "higher"),
        (-0.5, -0.1, math.nan, "lower"),
        (-0.5, 0.1, math.nan, "not distinguishable"),
        (math.nan, math.nan, math.nan, "not distinguishable"),
    ],
)
def test_verdicts(low: float, high: float, claimed: float, expected: str) -> None:
    assert verdict(low, high, claimed) == expected


ordered = st.tuples(finite, finite).map(sorted)


@given(ordered, finite)
def test_a_verdict_turns_with_the_signs(bounds: list[float], claimed: float) -> None:
    low, high = bounds
    found = verdict(low, high, claimed)
    assert found in statistics.VERDICTS
    assert found == verdict(-high, -low, -claimed)
    swapped = {"supported": "contradicted", "contradicted": "supported"}.get(found, found)
    assert verdict(low, high, -claimed) == swapped


@settings(max_examples=30)
@given(st.lists(st.tuples(finite, finite), min_size=6, max_size=12), st.booleans())
def test_what_is_one_sided_decides(values: list[tuple[float, float]], better: bool) -> None:
    rows: list[tuple[str, str, int, float]] = []
    for seed, (start, step) in enumerate(values):
        change = (100 + abs(step)) * (1 if better else -1)
        rows += [("0 %", "nuts", seed, start), ("5 %", "nuts", seed, start + change)]
    found = differences(cells_of(rows), TABLE3)
    first = row_of(found, before="0 %", after="5 %", metric="pro")
    assert first["verdict"] == ("supported" if better else "contradicted")  # in the paper: +58.1


@settings(max_examples=25)
@given(
    st.lists(st.lists(finite, min_size=2, max_size=4), min_size=1, max_size=4).filter(
        lambda rows: len({len(row) for row in rows}) == 1
    )
)
def test_a_table_is_the_plain_computation(values: list[list[float]]) -> None:
    """``values`` is by seed and set."""
    rows = [("25 %", f"set{j}", seed, value) for seed, line in enumerate(values) for j, value in enumerate(line)]
    found = row_of(table(cells_of(rows), TABLE3), column="25 %", metric="image_auroc")
    means = [sum(line) / len(line) for line in values]
    mean = sum(means) / len(means)
    assert found["mean"] == pytest.approx(mean, abs=1e-9)
    assert found["seeds"] == len(means)
    if len(means) == 1:
        assert math.isnan(found["std"])
    else:
        variance = sum((m - mean) ** 2 for m in means) / (len(means) - 1)
        assert found["std"] == pytest.approx(math.sqrt(variance), abs=1e-7)


def test_a_frame_has_a_row_per_cell_of_its_grid(tmp_path: Path, keep: Cells) -> None:
    store = Store(tmp_path)
    keep(store, "table4", "baseline", "nuts", 1, 0.5, 0.75, None)
    keep(store, "table4", "+consistency", "nuts", 2, 0.5, 0.75, 0.25)
    keep(store, "table3", "5 %", "bolts", 2, 0.5, 0.75, 0.25, config={"data": {"size": 64}})
    grids = {(g.name, g.base["data"]["size"]): g for g in store.grids()}
    assert grids.keys() == {("table4", 32), ("table3", 64)}
    found = frame(store.records(), grids["table4", 32])
    assert sorted(zip(found["column"], found["set"], found["seed"], strict=True)) == [
        ("+consistency", "nuts", 2),
        ("baseline", "nuts", 1),
    ]
    first = row_of(found, column="baseline")
    assert (first["image_auroc"], first["pixel_auroc"], first["steps"], first["shape"]) == (50.0, 75.0, 2, "32×32")
    assert math.isnan(first["pro"])
    (other,) = frame(store.records(), grids["table3", 64]).to_dict("records")
    assert (other["column"], other["set"]) == ("5 %", "bolts")
    assert frame([], TABLE4).empty


def test_of_two_versions_of_ones_own_code_todays_counts(tmp_path: Path, keep: Cells, monkeypatch: Any) -> None:
    store = Store(tmp_path)
    keep(store, "table4", "baseline", "nuts", 1, 0.5, 0.75, None)
    (record,) = store.records()
    (grid,) = store.grids()
    monkeypatch.setattr(statistics, "own_code", lambda config: "new")
    versions = [{**record, "pro": pro, **code} for pro, code in ((0.1, {"code": "old"}), (0.2, {"code": "new"}))]
    assert frame(versions, grid)["pro"].tolist() == [20.0]
    assert frame(versions[:1], grid)["pro"].tolist() == [10.0]
    monkeypatch.setattr(statistics, "own_code", lambda config: "newer")
    with pytest.raises(StudyError, match="measured with 2 versions of your code, none of which is here"):
        frame(versions, grid)


def test_a_table_by_set_has_means_deviations_and_costs() -> None:
    costs: dict[str, Any] = {
        "fit_seconds": 2.0,
        "predict_ms": 3.0,
        "peak_memory_mb": 500,
        "gpu_memory_mb": math.nan,
        "shape": "8×8",
    }
    cells = BY_HAND.assign(**costs)
    cells.loc[cells["seed"] == 1, "fit_seconds"] = 5.0
    found = by_set(cells, TABLE4)
    assert list(zip(found["set"], found["column"], found["seeds"], strict=True)) == [
        ("bolts", "baseline", 3),
        ("bolts", "+self_calibration", 3),
        ("bolts", "+stl", 2),
        ("nuts", "baseline", 3),
        ("nuts", "+self_calibration", 3),
        ("nuts", "+stl", 1),
        ("nuts", "+consistency", 1),
    ]
    first = row_of(found, set="nuts", column="baseline")
    assert (first["image_auroc"], first["fit_seconds"], first["predict_ms"]) == (93.0, 3.0, 3.0)
    assert first["image_auroc_std"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert math.isnan(row_of(found, set="nuts", column="+stl")["pro_std"])


def test_a_grid_without_the_papers_numbers_says_which_side() -> None:
    grid = Grid("compare", "", TABLE4.base, TABLE4.columns, [("baseline", "+self_calibration")])
    rows = [("baseline", "nuts", seed, 90.0 + seed) for seed in range(6)]
    rows += [("+self_calibration", "nuts", seed, 80.0 + 2 * seed) for seed in range(6)]
    found = differences(cells_of(rows), grid)
    assert set(found["verdict"]) == {"lower"}
    assert found["paper"].isna().all()
    assert table(cells_of(rows), grid)["paper"].isna().all()


def test_the_papers_numbers_are_there_for_every_column() -> None:
    assert {name: list(columns) for name, columns in PAPER.items()} == {
        "methods": ["us", "mf", *(m for m in METHODS[1:] if m != "efficientad")],
        **{grid.name: list(grid.columns) for grid in (TABLE3, TABLE4)},
    }
    for name, columns in PAPER.items():
        for numbers in columns.values():
            assert set(numbers) <= {"image_auroc", "pixel_auroc", "pro"}
            assert len(numbers) == 3 or name == "methods"
            assert all(0 < v < 100 for v in numbers.values())
    assert PAPER["methods"]["mlffn"] == PAPER["table3"]["50 %"]
    assert PAPER["table3"]["50 %"] == PAPER["table4"]["+consistency"]  # the cell that both share
