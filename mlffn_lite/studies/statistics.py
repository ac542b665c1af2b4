"""What the cells of a grid say: means with deviations over seeds, and differences of columns with intervals.

Two questions have two intervals. Would other seeds say the same *of these sets*? What varies there is seeds within a
set. And would *other sets of parts* say the same? What varies there is sets, which are few: the interval is wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import StudyError
from ..labels import METRIC_LABELS
from .cell import own_code
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
"""What the data say of the paper's claim."""

SIDES = ("higher", "not distinguishable", "lower")
"""What they say where the paper claims nothing."""

LEVEL = 0.95
"""Of intervals; what is left is the chance that any verdict of a grid is wrong where nothing differs."""
FEWEST_FREE = 2
"""Degrees of freedom that an interval needs."""
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
    for record in _of_one_code(records):
        if (column := columns.get(identity(record["config"]))) is not None:
            shape, steps = "×".join(map(str, record["shape"])), record["config"]["train"]["steps"]
            if (found := record.get("probes", {}).get(probe) if probe else record) is not None:
                values = {metric: found[metric] for metric in METRICS}
                rows.append({**record, **values, "column": column, "shape": shape, "steps": steps})
    cells = pd.DataFrame(rows, columns=_FIELDS).astype(dict.fromkeys([*COSTS, *METRICS], float))
    return cells.assign(**{metric: 100 * cells[metric] for metric in METRICS})


def _of_one_code(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out cells of code of one's own that has changed since: of several versions, today's counts."""
    versions: dict[str, set[str]] = {}
    for record in records:
        versions.setdefault(identity(record["config"]), set()).add(record.get("code", ""))
    chosen: dict[str, str] = {}
    for record in records:
        key = identity(record["config"])
        if key in chosen:
            continue
        chosen[key] = own_code(record["config"]) if len(versions[key]) > 1 else record.get("code", "")
        if chosen[key] not in versions[key]:
            raise StudyError(
                f"{record['label']} was measured with {len(versions[key])} versions of your code, none of which is"
                " here; keep the cells of one"
            )
    return [r for r in records if r.get("code", "") == chosen[identity(r["config"])]]


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

    Pairs are those of one set and one seed. A row holds ``before``, ``after``, ``metric``, ``difference`` (percentage
    points), its interval on these sets ``low``, ``high`` and for sets like them ``low_beyond``, ``high_beyond``,
    ``pairs``, ``sets``, ``paper`` (the paper's difference, NaN where it has none), ``verdict`` about these sets and
    ``beyond`` about sets like them. Verdicts, unlike intervals, take into account how many there are (Holm): where
    nothing differs, all of a grid's are right with 95 % probability.
    """
    rows = []
    for before, after in grid.steps:
        for metric in METRICS:
            pairs = paired(cells, before, after, metric)
            claimed = _paper(grid, after, metric) - _paper(grid, before, metric)
            here, wider = of_these_sets(pairs), of_sets_like_these(pairs)
            sets = pairs.index.get_level_values("set").nunique()
            rows.append((before, after, metric, *here, *wider[1:], len(pairs), sets, claimed))
    names = ["before", "after", "metric", "difference", "low", "high", "p", "low_beyond", "high_beyond", "p_beyond"]
    found = pd.DataFrame(rows, columns=[*names, "pairs", "sets", "paper"])
    for name, p in (("verdict", "p"), ("beyond", "p_beyond")):
        found[p] = holm(found[p].to_numpy(float))
        sure = found["difference"].where(found[p] < 1 - LEVEL)
        found[name] = [verdict(x, x, claimed) for x, claimed in zip(sure, found["paper"], strict=True)]
    return found


def paired(cells: pd.DataFrame, before: str, after: str, metric: str) -> pd.Series:
    """Return a metric's differences of two columns, by set and seed that both have."""
    indexed = cells.set_index(["set", "seed"])
    first, second = (indexed.loc[indexed["column"] == name, metric] for name in (before, after))
    return (second - first).dropna().sort_index()


class Estimate(NamedTuple):
    """A mean difference, its interval, and the probability of one as far from 0 if there were none; NaN: unknown."""

    mean: float
    low: float
    high: float
    p: float


def of_these_sets(pairs: pd.Series) -> Estimate:
    """Estimate the mean over these sets for seeds like these, from differences by set and seed.

    Student's t of the mean over sets of each set's mean over its seeds; its variance is that of seeds within a set,
    taken to be one for all sets, so that sets that differ from each other make the interval no wider.
    """
    groups = [group.to_numpy() for _, group in pairs.groupby(level="set")]
    free = sum(len(g) - 1 for g in groups)
    if not groups:
        return Estimate(*[np.nan] * 4)
    mean = float(np.mean([g.mean() for g in groups]))
    if free < FEWEST_FREE:
        return Estimate(mean, np.nan, np.nan, np.nan)
    variance = sum(((g - g.mean()) ** 2).sum() for g in groups) / free
    return _student(mean, np.sqrt(variance * sum(1 / len(g) for g in groups)) / len(groups), free)


def of_sets_like_these(pairs: pd.Series) -> Estimate:
    """Estimate the mean over all sets that these might have been drawn from: Student's t over the sets' means."""
    means = pairs.groupby(level="set").mean().to_numpy()
    if len(means) - 1 < FEWEST_FREE:
        return Estimate(float(means.mean()) if len(means) else np.nan, np.nan, np.nan, np.nan)
    return _student(float(means.mean()), means.std(ddof=1) / np.sqrt(len(means)), len(means) - 1)


def _student(mean: float, error: float, free: int) -> Estimate:
    reach = float(stats.t.ppf((1 + LEVEL) / 2, free)) * error
    if error == 0:
        return Estimate(mean, mean, mean, float(mean == 0))
    return Estimate(mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, free)))


def holm(p: np.ndarray) -> np.ndarray:
    """Return p values (n,) made larger for their number, as Holm (1979) does; NaN ones do not count."""
    found = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN is sorted last
    raised = p[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(raised), 1)
    return found


def ranks(cells: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Return the mean rank of every column, 1 for the best, with its 95 % interval on these sets.

    Pairs are those of one set and one seed that all columns with cells have; ties share a rank. A row per metric and
    column: ``metric``, ``column``, ``rank``, ``low``, ``high`` (NaN for too few seeds), ``pairs``; none without a pair.
    """
    names = [c for c in grid.columns if c in set(cells["column"])]
    rows = []
    for metric in METRICS:
        wide = cells.pivot(index=["set", "seed"], columns="column", values=metric)[names].dropna()
        placed = wide.rank(axis=1, ascending=False)
        found = {name: of_these_sets(placed[name]) for name in names}
        bounds = {name: np.clip([x.low, x.high], 1, len(names)) for name, x in found.items()}
        rows += [(metric, n, found[n].mean, *bounds[n], len(placed)) for n in names if len(placed)]
    return pd.DataFrame(rows, columns=["metric", "column", "rank", "low", "high", "pairs"])


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
