"""The experiments about Table 4: their columns, and what they attribute, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlffn_lite.config import Config
from mlffn_lite.errors import ConfigError
from mlffn_lite.studies.grid import ARMS, Grid, Place, arm_config, identity, plan, study_config
from mlffn_lite.studies.report import write_reports
from mlffn_lite.studies.run import run
from mlffn_lite.studies.store import Store
from mlffn_lite.studies.suspects import AS_IS, EXPERIMENTS, attribution, experiment

BASE = study_config("tiny")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_columns_differ_from_their_arm_in_what_the_condition_says(name: str) -> None:
    grid = experiment(BASE, name, list(ARMS))
    for label, stored in grid.columns.items():
        arm, _, condition = label.partition(", ")
        plain = arm_config(BASE, arm)
        changed = EXPERIMENTS[name].conditions[condition] if condition else {}
        assert Config().replace(**stored) == plain.replace(**changed)
        assert bool(condition) == (identity(stored) != identity(plain.to_dict()))
    named = {label.partition(", ")[2] for label in grid.columns}
    assert named == {"", *EXPERIMENTS[name].conditions}
    assert {name for step in grid.steps for name in step} == set(grid.columns)


def test_an_arm_that_a_condition_does_not_touch_stands_for_it_as_it_is() -> None:
    grid = experiment(BASE, "readings")
    assert ("baseline", "+stl, literal window") in grid.steps
    assert ("+stl", "+consistency, negative softmax") in grid.steps
    assert ("baseline, unbalanced", "+stl, unbalanced") in grid.steps
    assert "baseline, literal window" not in grid.columns


@pytest.mark.parametrize(
    ("name", "arms", "words"),
    [
        ("nonesuch", ["baseline", "+stl"], "unknown experiment 'nonesuch'; choose one of budget"),
        ("budget", ["baseline", "stl"], "unknown arm 'stl'"),
        ("budget", ["baseline"], "at least two"),
    ],
)
def test_what_is_no_experiment(name: str, arms: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment(BASE, name, arms)


def record(grid: Grid, column: str, place: str, seed: int, value: float, **probes: float) -> dict[str, Any]:
    def metrics(x: float) -> dict[str, float]:
        return {"image_auroc": x, "pixel_auroc": x, "pro": x}

    return {
        "config": grid.columns[column],
        "set": place,
        "seed": seed,
        "shape": [8, 8],
        **metrics(value),
        "probes": {name: metrics(x) for name, x in probes.items()},
    }


def test_gains_and_what_a_condition_changes_of_them() -> None:
    grid = experiment(BASE, "budget", ["baseline", "+stl"])
    rows, rng = [], np.random.default_rng(0)
    usual, longer = rng.uniform(-0.1, 0, 6), rng.uniform(0, 0.1, 6)
    for i, (a, b) in enumerate(zip(usual, longer, strict=True)):
        place, seed = ("nuts", "bolts")[i // 3], i % 3
        rows.append(record(grid, "baseline", place, seed, 0.8, pseudo=0.9))
        rows.append(record(grid, "+stl", place, seed, 0.8 + a, pseudo=0.95))
        rows.append(record(grid, "baseline, 640 steps", place, seed, 0.85, pseudo=0.9))
        rows.append(record(grid, "+stl, 640 steps", place, seed, 0.85 + b, pseudo=0.95))
    found = attribution(rows, [grid])
    pro = found[found["metric"] == "pro"].set_index("condition")
    assert set(pro.index) == {AS_IS, "640 steps", "held-out pseudo-anomalies"}
    assert pro.loc[AS_IS, "gain"] == pytest.approx(100 * usual.mean())
    assert pro["change"].isna()[AS_IS]
    assert pro.loc["640 steps", "gain"] == pytest.approx(100 * longer.mean())
    assert pro.loc["640 steps", "change"] == pytest.approx(100 * (longer - usual).mean())
    assert pro.loc["640 steps", "change_low"] < 100 * (longer - usual).mean() < pro.loc["640 steps", "change_high"]
    assert pro.loc["held-out pseudo-anomalies", "gain"] == pytest.approx(5)
    assert list(pro["experiment"]) == ["", "budget", "transfer"]
    assert set(pro["pairs"]) == {6}
    assert attribution([], [grid]).empty


def test_the_steps_of_every_grid_are_asked_of_the_networks_as_they_are() -> None:
    """Two experiments on one folder, with other arms: each step appears once, with all that is known of it."""
    two = experiment(BASE, "budget", ["baseline", "+stl"]), experiment(BASE, "long", ["+stl", "+consistency"])
    level = {"baseline": 0.8, "+stl": 0.7, "+consistency": 0.75}
    rows = [record(two[0], arm, "nuts", s, level[arm], pseudo=0.9) for arm in ("baseline", "+stl") for s in (0, 1)]
    rows += [record(two[1], "+consistency", "nuts", s, 0.75, pseudo=0.95, distance=0.8) for s in (0, 1)]
    found = attribution(rows, two).query("metric == 'pro'").set_index(["before", "after", "experiment"])["gain"]
    assert found.round(6).to_dict() == {
        ("baseline", "+stl", ""): -10,
        ("+stl", "+consistency", ""): 5,
        ("baseline", "+stl", "transfer"): 0,
        ("+stl", "+consistency", "transfer"): 5,
        ("+stl", "+consistency", "score"): 10,
    }


def test_the_report_has_the_attribution(base: Config, places: dict[str, Place], tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    grid = experiment(base, "readings", ["baseline", "+consistency"], "tiny")
    grid = replace(grid, columns={k: c for k, c in grid.columns.items() if "," not in k or "negative" in k})
    grid = replace(grid, steps=[step for step in grid.steps if {*step} <= set(grid.columns)])
    store.remember([grid], places)
    assert not run(plan([grid], places, [0]), store)
    (place,) = write_reports(store.folder)
    text = (place / "attribution.md").read_text("utf-8")
    assert "### What explains baseline → +consistency" in text
    assert "| Is the paper read wrongly? | negative softmax |" in text
    assert "| Is it the transfer to real defects? | held-out pseudo-anomalies |" in text
    assert "| Is it the score? | map A |" in text
    assert (place / "attribution.png").stat().st_size > 5000
    assert "What explains baseline" in (place / "report.html").read_text("utf-8")
    (one,) = {r["label"]: r for r in store.records() if r["label"] == "+consistency"}.values()
    assert one["probes"].keys() == {"distance", "pseudo"}
    assert one["probes"]["distance"] != {k: one[k] for k in one["probes"]["distance"]}
