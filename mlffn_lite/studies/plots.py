"""Figures of a grid: the ratio curve, paired dots, a heat table by set, and heatmaps down the columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..datasets.folder import read_image
from ..errors import StudyError, extra
from ..figures import COLOURS, STYLE, WIDTH, new_figure, overlay
from ..labels import PERCENT
from .cell import read_map
from .grid import Grid, identity
from .statistics import METRICS, table

with extra("studies"):
    import seaborn as sns

ARM_NAMES = {
    "baseline": "baseline",
    "+self_calibration": "+ self-calibration",
    "+stl": "+ STLNet",
    "+score_constraint": "+ score constraint",
    "+consistency": "+ consistency",
}
_MARKERS, _SHADES = "osD^vP*X", [COLOURS[name] for name in ("blue", "green", "pink")]


@mpl.rc_context(STYLE)
def ratio_curve(cells: pd.DataFrame, grid: Grid) -> Figure:
    """Draw the three metrics over the share of pseudo-anomalies: mean, a band of ± std over seeds, and the paper's."""
    summary = table(cells, grid)
    figure = new_figure(3.3)
    for ax, metric in zip(figure.subplots(1, 3), METRICS, strict=True):
        rows = summary[summary["metric"] == metric]
        x, y, std = rows["column"].str.rstrip(" %").astype(float), rows["mean"], rows["std"].fillna(0)
        ax.fill_between(x, y - std, y + std, color=COLOURS["blue"], alpha=0.25, lw=0)
        ax.plot(x, y, color=COLOURS["blue"], marker="o", ms=4, lw=1.8, label="here, mean ± std over seeds")
        ax.plot(x, rows["paper"], color=COLOURS["orange"], marker="s", ms=4, lw=1.4, ls="--", label="paper, MVTec AD")
        ax.set(xlabel="pseudo-anomalous images, %", title=PERCENT[metric], xticks=[0, 25, 50, 75, 100])
    _legend_below(figure)
    return figure


@mpl.rc_context(STYLE)
def dots(cells: pd.DataFrame, grid: Grid) -> Figure:
    """Draw every set and seed as a line of dots through the columns, the mean as a thick line, the paper's if any."""
    summary, columns = table(cells, grid), list(grid.columns)
    sets = sorted(cells["set"].unique())
    figure = new_figure(3.7 + 0.2 * (1 + len(sets) // 5))  # the legend grows with the sets
    for ax, metric in zip(figure.subplots(1, 3), METRICS, strict=True):
        for (name, _), group in cells.groupby(["set", "seed"]):
            values = group.set_index("column")[metric].reindex(columns)
            place = sets.index(name)
            style = {"color": _SHADES[place % len(_SHADES)], "marker": _MARKERS[place % len(_MARKERS)], "ms": 3.5}
            ax.plot(range(len(columns)), values, **style, lw=0.7, alpha=0.75, label=name)
        rows = summary[summary["metric"] == metric]
        ax.plot(range(len(columns)), rows["mean"], color=COLOURS["black"], lw=2.4, label="mean here")
        if rows["paper"].notna().any():
            style = {
                "color": COLOURS["orange"],
                "lw": 1.6,
                "ls": "--",
                "marker": "s",
                "ms": 3.5,
            }  # a lone value shows too
            ax.plot(range(len(columns)), rows["paper"], **style, label="paper, MVTec AD")
        ax.set(title=PERCENT[metric], xticks=range(len(columns)))
        ax.set_xticklabels([_name(c) for c in columns], rotation=40, ha="right", rotation_mode="anchor")
    _legend_below(figure)
    return figure


@mpl.rc_context(STYLE)
def rank_plot(ranked: pd.DataFrame, grid: Grid) -> Figure:
    """Draw mean ranks with their intervals, from :func:`~.statistics.ranks`, a panel per metric, the best on top."""
    columns = list(dict.fromkeys(ranked["column"]))
    figure = new_figure(1.0 + 0.28 * len(columns))
    for ax, metric in zip(figure.subplots(1, 3), METRICS, strict=True):
        rows = ranked[ranked["metric"] == metric].sort_values("rank", ascending=False)
        places = range(len(rows))
        ax.hlines(places, rows["low"], rows["high"], color=COLOURS["blue"], lw=2.5, alpha=0.45)
        ax.plot(rows["rank"], places, "o", ms=6, color=COLOURS["blue"])
        ax.set(title=PERCENT[metric].removesuffix(" %"), xlabel="mean rank", xlim=(0.7, len(columns) + 0.3))
        ax.set_yticks(places, [_name(c) for c in rows["column"]])
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.invert_xaxis()
    return figure


@mpl.rc_context(STYLE)
def gain_plot(found: pd.DataFrame) -> Figure:
    """Draw what steps gain under conditions, from :func:`~.suspects.attribution`: a row of panels per step."""
    steps = [(str(a), str(b), step) for (a, b), step in found.groupby(["before", "after"], sort=False)]
    heights = [0.9 + 0.2 * step["condition"].nunique() for _, _, step in steps]
    figure = new_figure(sum(heights))
    panels = figure.subplots(len(steps), 3, sharey="row", squeeze=False, height_ratios=heights)
    for axes, (before, after, step) in zip(panels, steps, strict=True):
        conditions = list(dict.fromkeys(step["condition"]))
        for ax, metric in zip(axes, METRICS, strict=True):
            rows = step[step["metric"] == metric].set_index("condition").reindex(conditions)
            places = np.arange(len(rows))[::-1]
            ax.axvline(0, color=COLOURS["black"], lw=0.8)
            ax.axvline(rows["gain"].iloc[0], color=COLOURS["orange"], lw=1.2, ls="--")
            ax.hlines(places, rows["low"], rows["high"], color=COLOURS["blue"], lw=2.2, alpha=0.45)
            ax.plot(rows["gain"], places, "o", ms=4, color=COLOURS["blue"])
            ax.set(title=PERCENT[metric].removesuffix(" %"), ylim=(-0.7, len(rows) - 0.3))
            ax.set_yticks(places, conditions)
        axes[1].set_xlabel(f"{_name(before)} → {_name(after)}, percentage points")
    return figure


@mpl.rc_context(STYLE)
def heat_table(cells: pd.DataFrame, grid: Grid) -> Figure:
    """Draw the mean over seeds by set and column, a panel per metric, each row shaded from its worst to its best."""
    names = list(grid.columns)
    sets = sorted(cells["set"].unique())
    figure = new_figure(1.3 + 0.42 * 3 * len(sets))
    for ax, metric in zip(figure.subplots(3, 1), METRICS, strict=True):
        means = cells.pivot_table(index="set", columns="column", values=metric).reindex(sets, columns=names)
        low, high = means.min(axis=1), means.max(axis=1)
        shade = means.sub(low, axis=0).div((high - low).where(high > low, 1), axis=0)
        ax.grid(False)
        # Only the light half of the colours is used, on which dark numbers can be read.
        text = {"annot": means, "fmt": ".1f", "annot_kws": {"color": COLOURS["black"]}}
        sns.heatmap(shade, **text, cmap="cividis", vmin=-1.4, vmax=1, cbar=False, linewidths=1, ax=ax)
        ax.set(title=PERCENT[metric], xlabel="", ylabel="")
        ax.set_xticklabels([textwrap.fill(_name(n), max(8, 96 // len(names))) for n in names], rotation=0)
        ax.tick_params(length=0, labelbottom=metric == METRICS[-1])
        ax.set_yticklabels(ax.get_yticklabels(), rotation=0)
    return figure


@mpl.rc_context(STYLE)
def map_panel(records: Sequence[Mapping[str, Any]], grid: Grid, name: str, data: Path) -> Figure:
    """Show the kept score maps of a set, first seed, down the columns of a grid, over the images in ``data``.

    ``records`` may hold cells of other grids and sets too.
    """
    chosen = first_seed(records, grid, name)
    first = next(iter(chosen.values()))
    paths, (height, width) = list(first["maps"]), first["shape"]
    for path in paths:
        if not (data / path).resolve().is_relative_to(data.resolve()):
            raise StudyError(
                f"a cell of {name} names the image {path!r}, which is not in its data folder; delete the cell"
            )
    images = [read_image(data / path, (height, width)).numpy() for path in paths]
    side = (WIDTH - 1.5) / len(paths)
    figure = new_figure((len(chosen) + 1) * (side * height / width + 0.05) + 0.5)
    axes = figure.subplots(len(chosen) + 1, len(paths), squeeze=False)
    for ax, path, image in zip(axes[0], paths, images, strict=True):
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        ax.set_title(path.split("/")[-2].replace("_", " "), fontsize=9)
    axes[0][0].set_ylabel("image", rotation=0, ha="right", va="center")
    for row, (column, record) in zip(axes[1:], chosen.items(), strict=True):
        coarse = [Image.fromarray(read_map(record["maps"][path])) for path in paths]
        maps = np.stack([np.asarray(m.resize((width, height), Image.Resampling.BILINEAR)) for m in coarse])
        good = ["/good/" in path for path in paths]
        low, high = np.median(maps[good] if any(good) else maps), maps.max()
        for ax, image, heat in zip(row, images, maps, strict=True):
            ax.imshow(overlay(image, heat, low, max(high, low + 1e-6), alpha=0.85), interpolation="nearest")
        row[0].set_ylabel(textwrap.fill(_name(column), 13), rotation=0, ha="right", va="center")
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure


def first_seed(records: Sequence[Mapping[str, Any]], grid: Grid, name: str) -> dict[str, Mapping[str, Any]]:
    """Return the first seed's record of each column of a grid, in its order."""
    found: dict[str, Mapping[str, Any]] = {}
    for record in sorted((r for r in records if r["set"] == name), key=lambda r: r["seed"]):
        found.setdefault(identity(record["config"]), record)
    return {column: found[i] for column, c in grid.columns.items() if (i := identity(c)) in found}


def _name(column: str) -> str:
    return ARM_NAMES.get(column, column)


def _legend_below(figure: Figure) -> None:
    labels = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    columns = max(1, min(5, 120 // (max(map(len, labels)) + 7)))  # as many as fit into the width
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=columns)
