"""Why Table 4 comes out here as it does: an experiment for each explanation, and how much each explains.

Every experiment repeats steps of the ablation under conditions that differ from the table's in one thing. What a step
gains under a condition, against what it gains as it is, is what that thing explains.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..config import Config
from ..errors import ConfigError
from ..labels import PERCENT
from .grid import ARMS, Grid, arm_config, make_grid
from .statistics import METRICS, frame, of_these_sets, paired

AS_IS = "as it is"
"""The condition of Table 4 itself."""
COMPARED = ("baseline", "+stl", "+consistency")
"""The arms that experiments compare, unless told others: nothing, all modules, all modules and losses."""

DEFECTS = "build/defects"
"""Where the experiment ``oracle`` looks for other defective images, a category for each set."""

Sections = Mapping[str, Mapping[str, Any]]
_SMALLER = {"confetti": {"side": [2 / 256, 20 / 256]}, "cutpaste": {"area": [0.0005, 0.02]}}


class Experiment(NamedTuple):
    """A suspect: the question, and what its conditions change."""

    question: str
    conditions: Mapping[str, Sections]


EXPERIMENTS: dict[str, Experiment] = {
    "budget": Experiment("Is the training too short?", {"640 steps": {"train": {"steps": 640}}}),
    "long": Experiment("Is it far too short?", {"2560 steps": {"train": {"steps": 2560}}}),
    "trained": Experiment(
        "Does too little of the network learn?",
        {
            "batch statistics": {"train": {"backbone": "batch_stats"}},
            "everything trained": {"train": {"backbone": "train"}},
        },
    ),
    "kinds": Experiment(
        "Are the pseudo-anomalies the wrong ones?",
        {
            "smaller": {"pseudo": {"options": _SMALLER}},
            "blemishes": {"pseudo": {"kinds": {"blemish": 1.0}}},
            "both kinds": {"pseudo": {"kinds": {"confetti": 1.0, "cutpaste": 1.0, "blemish": 2.0}}},
        },
    ),
    "resolution": Experiment(
        "Is the grid too coarse?",
        {
            "stride 4": {"model": {"stride": 4}},
            "rate 2": {"model": {"rate": 2}},
            "rate 1": {"model": {"rate": 1}},
        },
    ),
    "readings": Experiment(
        "Is the paper read wrongly?",
        {
            "half-bin window": {"texture": {"window": "half_bin"}},
            "literal window": {"texture": {"window": "literal"}},
            "levels at edges": {"texture": {"placement": "edge"}},
            "diagonal neighbour": {"texture": {"neighbour": "diagonal"}},
            "unscaled attention": {"texture": {"scaled_attention": False}},
            "mean partner": {"loss": {"pairing": "mean"}},
            "negative softmax": {"loss": {"softmax": "negative"}},
            "unbalanced": {"loss": {"balanced": False}},
        },
    ),
    "oracle": Experiment(
        "Do pseudo-anomalies teach what defects are not?",
        {"real defects": {"pseudo": {"kinds": {"defects": 1.0}, "options": {"defects": {"folder": DEFECTS}}}}},
    ),
}
"""Experiments by name."""

_PROBES = (("transfer", "pseudo", "held-out pseudo-anomalies"), ("score", "distance", "map A"))
"""What is asked of the networks as they are: the experiment, the probe, and what stands for a condition."""

_TOUCHES = {
    ("model", "rate"): "+self_calibration",
    ("texture", "*"): "+stl",
    ("loss", "pairing"): "+score_constraint",
    ("loss", "softmax"): "+consistency",
}
"""The first arm that a key changes; of others it is the baseline."""


def experiment(base: Config, name: str, arms: Sequence[str] = COMPARED, label: str = "") -> Grid:
    """Return an experiment's grid; a column is an arm under a condition.

    Its steps are those from arm to arm, each under one condition; arms that a condition does not touch stand for it as
    they are.

    Raises
    ------
    ConfigError
        If the experiment or an arm is unknown, or there are fewer than two arms.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"unknown experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}")
    order = [arm for arm in ARMS if arm in arms]
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ConfigError(f"unknown arm {unknown[0]!r}; choose some of {', '.join(ARMS)}")
    if len(order) < 2:
        raise ConfigError(f"--arms {','.join(arms)} must name at least two of {', '.join(ARMS)}")
    columns = {column(arm, AS_IS): arm_config(base, arm) for arm in order}
    steps = list(itertools.pairwise(columns))
    for condition, changed in EXPERIMENTS[name].conditions.items():
        names = []
        for arm in order:
            touched = _touches(arm, changed)
            names.append(column(arm, condition if touched else AS_IS))
            if touched:
                columns[names[-1]] = _changed(arm_config(base, arm), changed)
        steps += itertools.pairwise(names)
    return make_grid(name, base, columns, list(dict.fromkeys(steps)), label)


def column(arm: str, condition: str) -> str:
    """Return the label of an arm under a condition."""
    return arm if condition == AS_IS else f"{arm}, {condition}"


def _changed(config: Config, sections: Sections) -> Config:
    options = {**config.pseudo.options, **sections.get("pseudo", {}).get("options", {})}
    changed = config.replace(**sections)
    return changed.replace(pseudo={"options": options})


def _touches(arm: str, sections: Sections) -> bool:
    """Whether what a condition changes has a part in an arm."""
    keys = [(section, key) for section, values in sections.items() for key in values]
    first = [_TOUCHES.get(key, _TOUCHES.get((key[0], "*"), "baseline")) for key in keys]
    order = list(ARMS)
    return any(order.index(arm) >= order.index(name) for name in first)


def attribution(records: Sequence[Mapping[str, Any]], grids: Sequence[Grid]) -> pd.DataFrame:
    """Return what every step gains under every condition, beside what it gains as it is.

    Of steps with cells: ``experiment``, ``condition``, ``before`` and ``after`` (arms), ``metric``, ``gain`` with its
    95 % interval on these sets ``low``, ``high`` (percentage points), ``pairs``, and ``change`` with ``change_low``,
    ``change_high``: the gain less that of the same sets and seeds as it is. The experiments
    ``transfer`` and ``score`` ask other questions of the networks as they are, see :meth:`MLFFNDetector.probe`.
    """
    rows: list[dict[str, Any]] = []
    measured = [(grid, frame(records, grid)) for grid in grids]
    for grid, usual in measured:
        rows += _attributed(usual, usual, [(_condition(*step), *step) for step in grid.steps], grid.name)
    for (name, probe, words), (grid, usual) in itertools.product(_PROBES, measured):
        found = frame(records, grid, probe)
        asked = set(found["column"])
        # What has no other map is its own answer: a baseline has the map A only.
        cells = pd.concat([found, usual[~usual["column"].isin(asked)]]) if name == "score" else found
        steps = [(words, *s) for s in grid.steps if _condition(*s) == AS_IS and s[1] in asked]
        rows += _attributed(cells, usual, steps, name)
    table = pd.DataFrame(rows)
    return table.drop_duplicates(["experiment", "condition", "before", "after", "metric"]) if rows else table


def _attributed(
    cells: pd.DataFrame, usual: pd.DataFrame, steps: Sequence[tuple[str, str, str]], name: str
) -> Iterator[dict[str, Any]]:
    """Give the rows of an experiment's steps: each a condition, the column before and the one after."""
    for condition, before, after in steps:
        arms = before.partition(", ")[0], after.partition(", ")[0]
        for metric in METRICS:
            gain = paired(cells, before, after, metric)
            if gain.empty:
                continue
            change = (gain - paired(usual, *arms, metric)).dropna() if condition != AS_IS else gain.iloc[:0]
            found, changed = of_these_sets(gain), of_these_sets(change)
            yield {
                "experiment": "" if condition == AS_IS else name,
                "condition": condition,
                "before": arms[0],
                "after": arms[1],
                "metric": metric,
                "gain": found.mean,
                "low": found.low,
                "high": found.high,
                "pairs": len(gain),
                "change": changed.mean,
                "change_low": changed.low,
                "change_high": changed.high,
            }


def _condition(before: str, after: str) -> str:
    """Return the condition of a step: the later column's, or the earlier one's, where one of them is as it is."""
    return after.partition(", ")[2] or before.partition(", ")[2] or AS_IS


def attribution_rows(found: pd.DataFrame) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Give every step's heading, and head and rows of its table, from :func:`attribution`.

    A cell is what the step gains under a condition, and in brackets by how much that differs from what it gains as it
    is; bold where the interval of that leaves out 0.
    """
    head = ["question", "condition", *(f"{name}: gain (change)" for name in PERCENT.values())]
    for (before, after), step in found.groupby(["before", "after"], sort=False):
        rows = []
        for (name, condition), values in step.groupby(["experiment", "condition"], sort=False):
            by_metric = {row["metric"]: row for row in values.to_dict("records")}
            rows.append([question(str(name)), str(condition), *(_cell(by_metric[m]) for m in METRICS)])
        yield f"{before} → {after}", head, rows


def question(name: str) -> str:
    """Return what an experiment asks; nothing for the name of none."""
    others = {"": "", "transfer": "Is it the transfer to real defects?", "score": "Is it the score?"}
    return others[name] if name in others else EXPERIMENTS[name].question


def _cell(row: Mapping[Any, Any]) -> str:
    gain = f"{row['gain']:+.1f}" + _between(row["low"], row["high"])
    if np.isnan(row["change"]):
        return gain
    mark = "**" * bool(row["change_low"] * row["change_high"] > 0)
    return f"{gain} ({mark}{row['change']:+.1f}{_between(row['change_low'], row['change_high'])}{mark})"


def _between(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
