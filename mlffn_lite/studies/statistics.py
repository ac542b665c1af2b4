"""What the cells of a grid say: means with deviations over seeds, and differences of columns with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..labels import METRIC_LABELS
from .grid import Grid, identity
from .paper import PAPER

METRICS = list(METRIC_LABELS)
COSTS = {
    "fit_seconds": "fit s",
    "predict_ms": "predict ms/image",
    "peak_memory_mb": "peak memory MB",
    "gpu_memory_mb": "GPU memory MB",
}
"""What a cell costs: keys of its record, and what tables call them."""
VERDICTS = ("supported", "not distinguishable", "contradicted")
"""What an interval says of the paper's claim."""

SIDES = ("higher", "not distinguishable", "lower")
"""What it says where the paper claims nothing."""

DRAWS = 10_000
FEWEST_PAIRS = 6
"""With five pairs or fewer, even all on one side happen by chance more often than in one case of twenty."""

_ABOUT = ["set", "seed", "fingerprint", "device", "device_name", "threads", "precision", "numerics"]
_FIELDS = ["column", *_ABOUT, "shape", "steps", *COSTS, *METRICS]


def frame(records: Sequence[Mapping[str, Any]], grid: Grid, probe: str = "") -> pd.DataFrame:
    """Return a row per cell of a grid: ``column``, ``set``, ``seed``, what it was measured with, metrics in percent.

    With ``probe``, the metrics are that probe's (see :meth:`AnomalyDetector.probe`), of the cells that have it.
    """
    columns = {identity(config): name for name, config in grid.columns.items()}
    rows = []
    for record in records:
        if (column := columns.get(identity(record["config"]))) is not None:
            shape, steps = "×".join(map(str, record["shape"])), record["config"]["train"]["steps"]
            if (found := record.get("probes", {}).get(probe) if probe else record) is not None:
                values = {metric: found[metric] for metric in METRICS}
                rows.append({**record, **values, "column": column, "shape": shape, "steps": steps})
    cells = pd.DataFrame(rows, columns=_FIELDS).astype(dict.fromkeys([*COSTS, *METRICS], float))
    return cells.assign(**{metric: 100 * cells[metric] for metric in METRICS})


def table(cells: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Return mean and sample deviation over seeds of the mean over sets, beside the paper's number.

    A row per column and metric: ``column``, ``metric``, ``mean``, ``std`` (NaN for one seed), ``seeds``, ``paper``
    (NaN where it says nothing). A seed counts where every set has it.
    """
    rows = []
    for column in grid.columns:
        by_seed = cells[cells["column"] == column].groupby("seed")
        whole = by_seed["set"].nunique() == cells["set"].nunique()
        means = by_seed[METRICS].mean()[whole]
        rows += [(column, m, means[m].mean(), means[m].std(), len(means), _paper(grid, column, m)) for m in METRICS]
    return pd.DataFrame(rows, columns=["column", "metric", "mean", "std", "seeds", "paper"])


def by_set(cells: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Return mean and sample deviation over seeds of metrics and costs, a row per set and column that has cells."""
    rank = {name: i for i, name in enumerate(grid.columns)}
    groups = cells.assign(rank=cells["column"].map(rank)).groupby(["set", "rank"])
    numbers = [*METRICS, *COSTS]
    about = [groups[["column", "shape"]].first(), groups.size().rename("seeds")]
    spread = groups[numbers].std(ddof=1).add_suffix("_std")
    return pd.concat([*about, groups[numbers].mean(), spread], axis=1).reset_index().drop(columns="rank")


def differences(cells: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Return the differences between columns that a grid names as its steps, with 95 % intervals.

    Pairs are those of one set and one seed; the interval is the paired bootstrap's over them. A row holds ``before``,
    ``after``, ``metric``, ``difference`` (percentage points), ``low``, ``high``, ``pairs``, ``paper`` (the paper's
    difference, NaN where it has none) and ``verdict``.
    """
    indexed = cells.set_index(["set", "seed"])
    rows = []
    for before, after in grid.steps:
        first, second = (indexed[indexed["column"] == name] for name in (before, after))
        for metric in METRICS:
            pairs = (second[metric] - first[metric]).dropna().sort_index()
            low, high = interval(pairs.to_numpy())
            claimed = _paper(grid, after, metric) - _paper(grid, before, metric)
            said = verdict(low, high, claimed)
            rows.append((before, after, metric, pairs.mean(), low, high, len(pairs), claimed, said))
    names = ["before", "after", "metric", "difference", "low", "high", "pairs", "paper", "verdict"]
    return pd.DataFrame(rows, columns=names)


def ranks(cells: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Return the mean rank of every column, 1 for the best, with the 95 % interval of the bootstrap over pairs.

    Pairs are those of one set and one seed that all columns with cells have; ties share a rank. A row per metric and
    column: ``metric``, ``column``, ``rank``, ``low``, ``high`` (NaN for too few pairs), ``pairs``; none without a pair.
    """
    names = [c for c in grid.columns if c in set(cells["column"])]
    rows = []
    for metric in METRICS:
        wide = cells.pivot(index=["set", "seed"], columns="column", values=metric)[names].dropna()
        placed = wide.rank(axis=1, ascending=False)
        bounds = {name: interval(placed[name].to_numpy()) for name in names}
        rows += [(metric, n, placed[n].mean(), *bounds[n], len(placed)) for n in names if len(placed)]
    return pd.DataFrame(rows, columns=["metric", "column", "rank", "low", "high", "pairs"])


def interval(pairs: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap's percentile interval of the mean of differences (n,); NaN for too few."""
    if len(pairs) < FEWEST_PAIRS:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(DRAWS, len(pairs)))
    low, high = np.quantile(pairs[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(low: float, high: float, claimed: float = np.nan) -> str:
    """Say whether an interval supports a claimed difference: it does if all of it is on the claimed side of 0.

    Without a claim (NaN), say on which side it is.
    """
    side = np.sign(low) if low * high > 0 else 0.0
    if np.isnan(low) or not side or claimed == 0:
        return "not distinguishable"
    if np.isnan(claimed):
        return "higher" if side > 0 else "lower"
    return "supported" if side == np.sign(claimed) else "contradicted"


def _paper(grid: Grid, column: str, metric: str) -> float:
    return PAPER.get(grid.name, {}).get(column, {}).get(metric, np.nan)
