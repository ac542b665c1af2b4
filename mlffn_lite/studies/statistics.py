"""What a study's cells say: tables with mean and deviation over seeds, and neighbours' differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from .cell import METRICS, digest_of
from .grid import ARMS, RATIOS, STUDIES, columns_of, setting_of
from .paper import PAPER

COLUMNS: dict[str, list[str]] = {"table3": [f"{100 * r:g}" for r in RATIOS], "table4": list(ARMS)}
VERDICTS = ("supported", "not distinguishable", "contradicted")
DRAWS = 10_000
FEWEST_PAIRS = 6
"""With five pairs or fewer, even all on one side happen by chance more often than in one case of twenty."""


def frame(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return a row per cell and study that it belongs to.

    ``setting``, ``study``, ``column``, ``set``, ``seed``, what it was measured with, and metrics in percent. The cell
    that both tables share has a row in each.
    """
    rows = []
    for record in records:
        about = {
            "setting": digest_of(setting_of(record["config"])),
            **{k: record[k] for k in ("set", "seed", "label", "device", "device_name", "threads", "precision")},
            "shape": "×".join(map(str, record["shape"])),
            "steps": record["config"]["train"]["steps"],
            "seconds": record["fit_seconds"],
            **{k: np.nan if record[k] is None else 100 * record[k] for k in METRICS},
        }
        rows += [{"study": s, "column": c, **about} for s, c in columns_of(record["config"]).items()]
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["setting", "study", "column"])


def table(cells: pd.DataFrame, study: str) -> pd.DataFrame:
    """Return mean and sample deviation over seeds of the mean over sets, beside the paper's number.

    Parameters
    ----------
    cells : DataFrame
        Of one setting, from :func:`frame`.
    study : {"table3", "table4"}
        Which table.

    Returns
    -------
    DataFrame
        A row per column of the study and metric: ``column``, ``metric``, ``mean``, ``std`` (NaN for one seed),
        ``seeds``, ``paper``. A seed counts where every set has it.
    """
    part = cells[cells["study"] == study]
    sets = part["set"].nunique()
    rows = []
    for column in COLUMNS[study]:
        by_seed = part[part["column"] == column].groupby("seed")
        whole = [seed for seed, group in by_seed if group["set"].nunique() == sets]
        for metric in METRICS:
            values = by_seed[metric].mean().reindex(whole)
            spread = values.std(ddof=1) if len(values) > 1 else np.nan
            mean = values.mean() if len(values) else np.nan
            paper = PAPER[study][column][metric]
            rows.append((column, metric, mean, spread, len(whole), paper))
    return pd.DataFrame(rows, columns=["column", "metric", "mean", "std", "seeds", "paper"])


def differences(cells: pd.DataFrame, study: str) -> pd.DataFrame:
    """Return the differences of neighbouring columns, and of the last from the first, with 95 % intervals.

    Pairs are those of one set and one seed; the interval is the paired bootstrap's over them.

    Returns
    -------
    DataFrame
        ``before``, ``after``, ``metric``, ``difference`` (percentage points), ``low``, ``high``, ``pairs``, ``paper``
        (the paper's difference) and ``verdict``.
    """
    part = cells[cells["study"] == study].set_index(["set", "seed"])
    names = COLUMNS[study]
    steps = [*pairwise(names), (names[0], names[-1])]
    rows = []
    for before, after in steps:
        first, second = (part[part["column"] == name] for name in (before, after))
        for metric in METRICS:
            pairs = (second[metric] - first[metric]).dropna().sort_index().to_numpy()
            low, high = interval(pairs)
            claimed = PAPER[study][after][metric] - PAPER[study][before][metric]
            mean = pairs.mean() if len(pairs) else np.nan
            rows.append((before, after, metric, mean, low, high, len(pairs), claimed, verdict(low, high, claimed)))
    names = ["before", "after", "metric", "difference", "low", "high", "pairs", "paper", "verdict"]
    return pd.DataFrame(rows, columns=names)


def interval(pairs: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap's percentile interval of the mean of differences (n,); NaN for too few."""
    if len(pairs) < FEWEST_PAIRS:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(DRAWS, len(pairs)))
    low, high = np.quantile(pairs[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(low: float, high: float, claimed: float) -> str:
    """Say whether an interval supports a claimed difference: it does if all of it is on the claimed side of 0."""
    side = np.sign(low) if low * high > 0 else 0.0
    if np.isnan(low) or not side or not claimed:
        return "not distinguishable"
    return "supported" if side == np.sign(claimed) else "contradicted"


def study_names(cells: pd.DataFrame) -> list[str]:
    """Return the studies that there are cells of."""
    return [s for s in STUDIES if (cells["study"] == s).any()]
