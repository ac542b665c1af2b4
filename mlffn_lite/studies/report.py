"""The report of a study folder: tables with deviations, what they support, figures, and one page of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .. import escaped
from ..config import Config
from ..datasets.miniparts import CATEGORIES, miniparts_path
from ..datasets.sources import open_source
from ..errors import StudyError
from ..figures import png_bytes
from ..labels import METRIC_LABELS, PERCENT
from ..page import ReportFigure, write_report
from ..storage import write_atomic
from .cell import NUMERICS
from .grid import Grid
from .paper import PAPER
from .plots import dots, gain_plot, heat_table, map_panel, rank_plot, ratio_curve
from .statistics import COSTS, METRICS, SIDES, VERDICTS, by_set, differences, frame, ranks, table
from .store import Store
from .suspects import EXPERIMENTS, attribution, attribution_rows, question

TITLES = {
    "methods": "Compared methods (the paper's Tables 1 and 2)",
    "table3": "Share of pseudo-anomalies (the paper's Table 3)",
    "table4": "Ablation (the paper's Table 4)",
    "compare": "Methods side by side",
}
_KINDS = {
    "methods": "method",
    "table3": "share",
    "table4": "arm",
    "compare": "method",
}  # what a column is; else a configuration
_TICKS = ("self-calibration", "STLNet", "score constraint", "consistency")
_SYMBOLS = str.maketrans({"±": r"$\pm$", "✓": r"\checkmark", "×": r"$\times$", "–": "--"})

Cells = tuple[Grid, pd.DataFrame]
Layout = tuple[list[str], list[list[str]]]


def write_reports(folder: str | Path, out: str | Path | None = None) -> list[Path]:
    """Write the report of every setting that a study folder holds, without running anything, and return their folders.

    They are ``out``, by default the subfolder ``report``, or subfolders of that if there are several settings; each
    gets ``GRID`` and ``GRID_sets`` as ``.md``, ``.csv`` and ``.tex`` for every grid, ``differences.csv``,
    ``claims.md``, figures, and ``report.html``.

    Raises
    ------
    StudyError
        If there are no cells of a grid, cells of different data under one name, or a file is damaged.
    """
    folder, store = Path(folder), Store(folder)
    records = store.records()
    settings: dict[str, list[Cells]] = {}
    for grid in store.grids():
        cells = frame(records, grid)
        for name, prints in cells.groupby("set")["fingerprint"]:
            if prints.nunique() > 1:
                raise StudyError(f"{folder} holds cells of different data named {name!r}; keep them apart")
        if not cells.empty:
            settings.setdefault(grid.setting, []).append((grid, cells))
    if not settings:
        raise StudyError(f"{folder} holds no cell of a grid in its folder grids; give its `mlffn study` command again")
    target = folder / "report" if out is None else Path(out)
    places = [target if len(settings) == 1 else target / setting for setting in settings]
    for place, studies in zip(places, settings.values(), strict=True):
        _write_report(studies, records, store, place)
    return places


def _write_report(studies: Sequence[Cells], records: Sequence[dict[str, Any]], store: Store, place: Path) -> None:
    tables: list[tuple[str, pd.DataFrame]] = []
    for grid, cells in studies:
        summary, sets = table(cells, grid), by_set(cells, grid)
        for suffix, data, (head, rows), words, text in (
            ("", summary, layout(summary, grid), len(_TICKS) * (grid.name == "table4") + 1, caption(cells, grid)),
            ("_sets", sets, layout_sets(sets, grid), 3, caption(cells, grid, over="Mean ± sample")),
        ):
            file = f"{grid.name}{suffix}"
            write_atomic(
                place / f"{file}.md", f"{markdown_table(head, rows, text=words)}\n\n{escaped.markdown(text)}\n"
            )
            write_atomic(place / f"{file}.tex", latex(head, rows, text))
            write_atomic(place / f"{file}.csv", escaped.cells(data).to_csv(index=False, float_format="%.4f"))
            tables.append((f"{title(grid)}{', by set' if suffix else ''}", pd.DataFrame(rows, columns=head)))
    steps = [(grid, differences(cells, grid)) for grid, cells in studies]
    explained = attribution(records, [grid for grid, _ in studies if grid.name in EXPERIMENTS])
    tables += _write_attribution(explained, studies[0], place)
    listed = pd.concat([rows.assign(study=grid.name) for grid, rows in steps])
    write_atomic(place / "differences.csv", escaped.cells(listed).to_csv(index=False, float_format="%.4f"))
    write_atomic(place / "claims.md", claims(steps))
    shown: list[ReportFigure] = []
    for file, heading, figure, text, form in _figures(studies, records, explained):
        alt = f"{text} {form}."
        write_atomic(place / file, image := png_bytes(figure, alt=alt))
        shown.append(ReportFigure(heading, image, text, alt))
    write_report(
        place / "report.html",
        title=" · ".join(title(grid) for grid, _ in studies),
        metrics={},
        notes=[caption(cells, grid) for grid, cells in studies]
        + [f"Failed: {name} ({reason})." for name, reason in store.failures().items()],
        figures=shown,
        tables=[*tables, ("What the data support", _sentences(listed))],
        command=f"mlffn report {store.folder.name}",
        config_toml=Config().replace(**studies[0][0].base).to_toml(),
    )


def _write_attribution(found: pd.DataFrame, study: Cells, place: Path) -> list[tuple[str, pd.DataFrame]]:
    """Write what the experiments about Table 4 explain, where there are any; returns the tables with their headings."""
    if found.empty:
        return []
    parts = [(f"What explains {heading}", head, rows) for heading, head, rows in attribution_rows(found)]
    text = "\n\n".join(f"### {heading}\n\n{markdown_table(head, rows, text=2)}" for heading, head, rows in parts)
    grid, cells = study
    about = caption(cells, grid, over="Percentage points: mean over sets and seeds, 95 % interval on these sets.")
    write_atomic(place / "attribution.md", f"{text}\n\n{about}\n")
    write_atomic(place / "attribution.csv", escaped.cells(found).to_csv(index=False, float_format="%.4f"))
    return [(heading, pd.DataFrame(rows, columns=head)) for heading, head, rows in parts]


def title(grid: Grid) -> str:
    """Return the heading of a grid's tables."""
    if grid.name in EXPERIMENTS:
        return question(grid.name)
    return TITLES.get(grid.name, f"Varied: {grid.name.replace('+', ' and ')}")


def layout(summary: pd.DataFrame, grid: Grid) -> Layout:
    """Return head and rows of the table over all sets; the paper's numbers, if any, in a row beneath each."""
    cells = {(r["column"], r["metric"]): r for r in summary.to_dict("records")}
    ticks = _TICKS if grid.name == "table4" else ()
    if grid.name == "table3":  # columns of the grid are columns here
        head = ["", *grid.columns]
        rows = [([PERCENT[m]], [cells[c, m] for c in grid.columns]) for m in METRICS]
    else:
        head = [_KINDS.get(grid.name, "configuration"), *ticks, *PERCENT.values()]
        marks = [["✓" if j < i else "" for j in range(len(ticks))] for i in range(len(grid.columns))]
        rows = [([c, *mark], [cells[c, m] for m in METRICS]) for c, mark in zip(grid.columns, marks, strict=True)]
    lines = []
    for words, numbers in rows:
        lines.append([*words, *(spread(n["mean"], n["std"], 1) for n in numbers)])
        if grid.name in PAPER:
            printed = [_printed(n["paper"]) for n in numbers]
            lines.append(["paper", *[""] * len(ticks), *printed])
    return head, lines


def _printed(value: float) -> str:
    """Return a number of the paper as the paper has it."""
    if pd.isna(value):
        return "–"
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def layout_sets(rows: pd.DataFrame, grid: Grid) -> Layout:
    """Return head and rows of the table by set, from :func:`by_set`, with what each column costs."""
    costs = {k: v for k, v in COSTS.items() if rows[k].notna().any()}
    head = ["set", "pixels", _KINDS.get(grid.name, "configuration"), "seeds", *PERCENT.values(), *costs.values()]
    return head, [
        [str(row[k]) for k in ("set", "shape", "column", "seeds")]
        + [spread(row[k], row[f"{k}_std"], 1) for k in METRICS]
        + [spread(row[k], float("nan"), 0 if k.endswith("_mb") else 1) for k in costs]
        for row in rows.to_dict("records")
    ]


def spread(mean: float, std: float, digits: int) -> str:
    """Return ``mean ± std``; without the second where there is a single value, a dash where there is none."""
    if pd.isna(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: int) -> str:
    """Return a Markdown table whose first ``text`` columns are words, the others numbers."""
    lines = [head, ["---"] * text + ["---:"] * (len(head) - text), *rows]
    return "\n".join(f"| {' | '.join(map(escaped.markdown, line))} |" for line in lines)


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], text: str) -> str:
    """Return a table for LaTeX with booktabs and amssymb."""

    def styled(cells: pd.DataFrame, **options: Any) -> str:
        style = cells.style.format(escape="latex").format_index(escape="latex", axis=1).hide(axis="index")
        return style.to_latex(**options).translate(_SYMBOLS)

    # Styler escapes cells but no captions: the caption is a cell of a table of its own first.
    escaped = styled(pd.DataFrame([[text]])).splitlines()[2].removesuffix(r" \\")
    form = "l" + "r" * (len(head) - 1)
    return styled(pd.DataFrame(list(rows), columns=list(head)), caption=escaped, column_format=form, hrules=True)


def caption(cells: pd.DataFrame, grid: Grid, *, over: str = "Mean over sets, ± sample") -> str:
    """Say what the numbers of a table were measured with."""

    def each(key: str) -> str:
        return " / ".join(map(str, cells[key].drop_duplicates()))

    sets = cells[["set", "shape"]].drop_duplicates().sort_values("set").values
    short = "" if table(cells, grid)["seeds"].nunique() == 1 else ", not all of them in every row and column"
    compared = "Mean over sets" in over and grid.name in PAPER
    older = f", numerics {each('numerics')} (this is {NUMERICS})" if {*cells["numerics"]} != {NUMERICS} else ""
    paper = " Paper: MVTec AD, 15 categories, ResNet-50, one run." if compared else ""
    return (
        f"{grid.label}, {each('steps')} steps; {', '.join(f'{name} {shape}' for name, shape in sets)} px;"
        f" seeds {', '.join(map(str, sorted(cells['seed'].unique())))}{short};"
        f" {each('device')} ({each('device_name')}), {each('threads')} thread(s), {each('precision')}{older}."
        f" {over}{' standard deviation over seeds.' * over.endswith('sample')}{paper}"
    )


def claims(steps: Sequence[Cells]) -> str:
    """Return a sentence for each difference, and how many are on which side; ``steps`` are grids' differences."""
    parts = ["# What the data support"]
    for grid, rows in steps:
        usual = VERDICTS if grid.name in PAPER else SIDES
        found = rows["verdict"].value_counts()
        counts = ", ".join(f"{found.get(v, 0)} {v}" for v in usual)
        silent = ", ".join(f"{found[v]} {v}" for v in SIDES if v not in usual and v in found)
        silent = f"; where the paper has no number: {silent}" * bool(silent)
        parts += [f"## {title(grid)}", f"{len(rows)} differences: {counts}{silent}."]
        parts += ["\n".join(f"- {sentence(row)}" for row in rows.to_dict("records"))]
    parts.append(
        "Differences are in percentage points: the mean over sets of the mean over seeds, with two 95 % intervals of"
        " Student's t. The first is about these sets and other seeds (what varies is seeds within a set), the second"
        " about sets like these (what varies is the sets' means). Verdicts allow for their number (Holm): where nothing"
        " differs, all of a table's are right with a probability of 95 %."
    )
    return "\n\n".join(filter(None, parts)) + "\n"


def sentence(row: Mapping[Any, Any]) -> str:
    """Say in a plain sentence what a difference shows, and what that means for the paper's claim if there is one."""
    change, pairs = f"{_word(row['before'])} → {_word(row['after'])}, {METRIC_LABELS[row['metric']]}", row["pairs"]
    if not pairs:
        return f"{change}: not measured."
    few = f"{pairs} pair{'s' * (pairs > 1)}: too few for an interval"
    here = few if pd.isna(row["low"]) else f"95 % {row['low']:+.1f} to {row['high']:+.1f}"
    wider = (
        "" if pd.isna(row["low_beyond"]) else f"; sets like these {row['low_beyond']:+.1f} to {row['high_beyond']:+.1f}"
    )
    paper = "" if pd.isna(row["paper"]) else f", {row['paper']:+.1f} in the paper"
    beyond = "" if row["beyond"] == "not distinguishable" else f", **{row['beyond']}** for sets like these"
    shown = f"{row['difference']:+.1f}{' here' * bool(paper)} ({here}{wider}){paper}"
    return f"{change}: {shown}: **{row['verdict']}**{beyond}."


def _word(column: str) -> str:
    return escaped.markdown(column)


def _sentences(steps: pd.DataFrame) -> pd.DataFrame:
    rows = [sentence(row).rstrip(".").rpartition(": ") for row in steps.to_dict("records")]
    return pd.DataFrame([(first, last.replace("**", "")) for first, _, last in rows], columns=["difference", "verdict"])


def _figures(
    studies: Sequence[Cells], records: Sequence[dict[str, Any]], explained: pd.DataFrame
) -> Iterator[tuple[str, str, Figure, str, str]]:
    """Give each figure with its file before it and its heading, and behind it its caption and what it consists of."""
    for grid, cells in studies:
        heading = title(grid)
        if grid.name == "table3":
            text = "Metrics over the share of pseudo-anomalous images, with the paper's numbers."
            yield "ratio.png", heading, ratio_curve(cells, grid), text, "Three line charts"
        else:
            text = "Every set and seed; thick: the mean" + ("; dashed: the paper." if grid.name in PAPER else ".")
            file = "ablation.png" if grid.name == "table4" else f"{grid.name}.png"
            yield file, heading, dots(cells, grid), text, "Three charts of paired dots"
            if _KINDS.get(grid.name) == "method" and len(ranked := ranks(cells, grid)):
                text = "Mean rank, 1 is best, over the pairs of set and seed that all have; bars: 95 % interval."
                yield f"{grid.name}_ranks.png", "Ranks", rank_plot(ranked, grid), text, "Three charts of dots and bars"
        text = f"{heading} by set: mean over seeds, each row shaded from its worst (dark) to its best (light)."
        yield f"{grid.name}_sets.png", "By set", heat_table(cells, grid), text, "Three tables"
    if not explained.empty:
        text = "What steps of the ablation gain under each condition, 95 % intervals; line: as it is."
        yield "attribution.png", "What explains Table 4", gain_plot(explained), text, "Charts of dots and bars"
    grid, cells = studies[-1]
    for name in _bundled(cells):
        text = f"{name}: the same test images, first seed; colours of each row from its median good score up."
        panel = map_panel(records, grid, name, miniparts_path() / name)
        yield f"maps_{name}.png", f"Heatmaps: {name}", panel, text, "Rows of heatmaps"


def _bundled(cells: pd.DataFrame) -> list[str]:
    """Return the sets whose images come with the library, unchanged since the cells ran."""
    prints = dict(cells[["set", "fingerprint"]].drop_duplicates().values)
    small = Config.preset("tiny").data
    names = sorted(prints.keys() & set(CATEGORIES))
    return [n for n in names if open_source(miniparts_path() / n, small).fingerprint() == prints[n]]
