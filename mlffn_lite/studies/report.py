"""The report of a study: the paper's tables with deviations, what they support, figures, and one page of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..comparison import PERCENT, markdown_table, spread
from ..config import Config
from ..datasets.folder import AnomalyFolder
from ..datasets.miniparts import CATEGORIES, miniparts_path
from ..errors import StudyError
from ..figures import png_bytes
from ..page import ReportFigure, write_report
from ..storage import write_atomic
from .cell import METRICS, digest_of
from .grid import ARMS, setting_of
from .plots import ablation_dots, heat_table, map_panel, ratio_curve
from .statistics import COLUMNS, FEWEST_PAIRS, VERDICTS, differences, frame, study_names, table
from .store import Store

REPORT = "report"
TITLES = {"table3": "Share of pseudo-anomalies (the paper's Table 3)", "table4": "Ablation (the paper's Table 4)"}
NAMES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pro": "PRO"}
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%_#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "✓": r"\checkmark", "×": r"$\times$", "–": "--"}
)
_TICKS = ("self-calibration", "STLNet", "score constraint", "consistency")


def write_reports(folder: str | Path, out: str | Path | None = None) -> list[Path]:
    """Write the report of every setting that a study folder holds, without running anything.

    Parameters
    ----------
    folder : path
        What ``mlffn study`` wrote.
    out : path, optional
        Where to; by default its subfolder ``report``, and subfolders of that if there are several settings.

    Returns
    -------
    list of Path
        The folders, each with ``table3`` and ``table4`` as ``.md``, ``.csv`` and ``.tex``, ``differences.csv``,
        ``claims.md``, figures, and ``report.html``.

    Raises
    ------
    StudyError
        If there are no cells of a study, cells of different data under one name, or a file is damaged.
    """
    folder = Path(folder)
    settings: dict[str, list[dict[str, Any]]] = {}
    prints: dict[str, str] = {}
    for record in Store(folder).records():
        if not frame([record]).empty:
            if prints.setdefault(record["set"], record["fingerprint"]) != record["fingerprint"]:
                raise StudyError(f"{folder} holds cells of different data named {record['set']!r}; keep them apart")
            settings.setdefault(digest_of(setting_of(record["config"])), []).append(record)
    if not settings:
        raise StudyError(f"{folder} holds no cell of table3 or table4; run `mlffn study tables --out {folder}`")
    target = Path(out) if out is not None else folder / REPORT
    places = [target if len(settings) == 1 else target / name for name in settings]
    for place, records in zip(places, settings.values(), strict=True):
        _write_report(records, place, folder)
    return places


def _write_report(records: Sequence[dict[str, Any]], place: Path, folder: Path) -> None:
    cells = frame(records)
    studies = study_names(cells)
    steps = pd.concat([differences(cells, s).assign(study=s) for s in studies])
    for study in studies:
        summary = table(cells, study)
        head, rows = layout(summary, study)
        write_atomic(
            place / f"{study}.md", f"{markdown_table(head, rows, text=_words(study))}\n\n{caption(cells, study)}\n"
        )
        write_atomic(place / f"{study}.tex", latex(head, rows, caption(cells, study)))
        write_atomic(place / f"{study}.csv", summary.to_csv(index=False, float_format="%.4f"))
    write_atomic(place / "differences.csv", steps.to_csv(index=False, float_format="%.4f"))
    write_atomic(place / "claims.md", claims(steps))
    shown: list[ReportFigure] = []
    for figure, file in _figures(records, cells, studies):
        image = png_bytes(figure.image, alt=figure.alt)  # type: ignore[arg-type]
        write_atomic(place / file, image)
        shown.append(figure._replace(image=image))
    write_report(
        place / "report.html",
        title="Tables 3 and 4" if len(studies) == 2 else TITLES[studies[0]],
        metrics={},
        notes=[caption(cells, s) for s in studies],
        figures=shown,
        tables=[
            (TITLES[s], pd.DataFrame(rows, columns=head))
            for s in studies
            for head, rows in [layout(table(cells, s), s)]
        ]
        + [("What the data support", _sentences(steps))],
        command=f"mlffn report {folder.name}",
        config_toml=Config().replace(**setting_of(records[0]["config"])).to_toml(),
    )


def layout(summary: pd.DataFrame, study: str) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table as the paper lays it out, the paper's numbers in the row beneath each."""
    cell = {(r["column"], r["metric"]): r for r in summary.to_dict("records")}
    columns = COLUMNS[study]

    def here(column: str, metric: str) -> str:
        row = cell[column, metric]
        return spread(row["mean"], row["std"], 1)

    if study == "table3":
        lines = []
        for metric in METRICS:
            lines.append([PERCENT[metric], *(here(c, metric) for c in columns)])
            lines.append(["paper", *(_printed(cell[c, metric]["paper"]) for c in columns)])
        return ["", *(f"{c} %" for c in columns)], lines
    lines = []
    for i, column in enumerate(columns):
        ticks = ["✓" if j < i else "" for j in range(len(_TICKS))]
        lines.append([column, *ticks, *(here(column, m) for m in METRICS)])
        lines.append(["paper", *[""] * len(_TICKS), *(_printed(cell[column, m]["paper"]) for m in METRICS)])
    return ["arm", *_TICKS, *(PERCENT[m] for m in METRICS)], lines


def latex(head: list[str], rows: list[list[str]], text: str) -> str:
    """Return a table for LaTeX with booktabs and amssymb."""

    def line(cells: list[str]) -> str:
        return " & ".join(map(_escape, cells)) + r" \\"

    body = "\n".join([r"\toprule", line(head), r"\midrule", *map(line, rows), r"\bottomrule"])
    columns = "l" + "r" * (len(head) - 1)
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escape(text)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        body,
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def caption(cells: pd.DataFrame, study: str) -> str:
    """Say what the numbers of a table were measured with."""
    part = cells[cells["study"] == study]

    def each(key: str) -> str:
        return " / ".join(map(str, part[key].drop_duplicates()))

    sets = ", ".join(
        f"{name} {shape}" for name, shape in part[["set", "shape"]].drop_duplicates().sort_values("set").values
    )
    counts = table(cells, study)["seeds"]
    short = "" if counts.nunique() == 1 else ", not all of them in every column"
    return (
        f"{each('label')}, {each('steps')} steps; {sets} px; seeds {', '.join(map(str, sorted(part['seed'].unique())))}"
        f"{short}; {each('device')} ({each('device_name')}), {each('threads')} thread(s), {each('precision')}."
        " Mean over sets, ± sample standard deviation over seeds. Paper: MVTec AD, 15 categories, ResNet-50, one run."
    )


def claims(steps: pd.DataFrame) -> str:
    """Return a sentence for each difference, and how many of the paper's are supported."""
    parts = ["# What the data support"]
    for study, rows in steps.groupby("study", sort=False):
        counts = ", ".join(f"{(rows['verdict'] == v).sum()} {v}" for v in VERDICTS)
        parts += [f"## {TITLES[str(study)]}", f"{len(rows)} differences: {counts}."]
        parts += ["\n".join(f"- {sentence(row)}" for row in rows.to_dict("records"))]
    parts.append(
        "Differences are in percentage points, with the 95 % interval of a paired bootstrap over sets and seeds. The"
        " interval is about these sets; one in twenty would miss by chance."
    )
    return "\n\n".join(parts) + "\n"


def sentence(row: Mapping[Any, Any]) -> str:
    """Say in a plain sentence what a difference shows about the paper's claim."""
    change = f"{_column(row['before'])} → {_column(row['after'])}, {NAMES[row['metric']]}"
    if not row["pairs"]:
        return f"{change}: not measured."
    few = row["pairs"] < FEWEST_PAIRS
    count = "1 pair" if row["pairs"] == 1 else f"{row['pairs']} pairs"
    between = f"{count}: too few for an interval" if few else f"95 % {row['low']:+.1f} to {row['high']:+.1f}"
    return (
        f"{change}: {row['difference']:+.1f} here ({between}), {row['paper']:+.1f} in the paper: **{row['verdict']}**."
    )


def _sentences(steps: pd.DataFrame) -> pd.DataFrame:
    rows = [sentence(row).rstrip(".").rpartition(": ") for row in steps.to_dict("records")]
    return pd.DataFrame(
        [(first, last.strip("*")) for first, _, last in rows], columns=["difference", "the paper's claim"]
    )


def _figures(
    records: Sequence[dict[str, Any]], cells: pd.DataFrame, studies: list[str]
) -> list[tuple[ReportFigure, str]]:
    found = []
    if "table3" in studies:
        text = "Metrics over the share of pseudo-anomalous images, with the paper's numbers."
        found.append((ReportFigure("Ratio", ratio_curve(cells), text, f"{text} Three line charts."), "ratio.png"))
    if "table4" in studies:
        text = "Every set and seed through the arms of the ablation; thick: the mean; dashed: the paper."
        found.append(
            (
                ReportFigure("Ablation", ablation_dots(cells), text, f"{text} Three charts of paired dots."),
                "ablation.png",
            )
        )
    for study in studies:
        text = f"{TITLES[study]} by set: mean over seeds, each row shaded from its worst (dark) to its best (light)."
        found.append(
            (ReportFigure("By set", heat_table(cells, study), text, f"{text} Three tables."), f"{study}_sets.png")
        )
    if "table4" in studies:
        for name in _bundled(cells[cells["study"] == "table4"]["set"], records):
            text = (
                f"{name}: the same test images down the arms, first seed; colours from each arm's median good score up."
            )
            panel = map_panel(records, "table4", name, miniparts_path() / name)
            found.append(
                (ReportFigure(f"Heatmaps: {name}", panel, text, f"{text} Rows of heatmaps."), f"maps_{name}.png")
            )
    return found


def _bundled(sets: pd.Series, records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the sets whose images come with the library, unchanged since the cells ran."""
    names = sorted(set(sets) & set(CATEGORIES))
    prints = {r["set"]: r["fingerprint"] for r in records}
    return [n for n in names if AnomalyFolder(miniparts_path() / n, size=32).fingerprint() == prints[n]]


def _printed(number: float) -> str:
    """Return a number with the one or two decimals that the paper prints."""
    return f"{number:.1f}" if round(number, 1) == number else f"{number:.2f}"


def _column(name: str) -> str:
    return name if name in ARMS else f"{name} %"


def _words(study: str) -> int:
    return 1 if study == "table3" else 1 + len(_TICKS)


def _escape(text: str) -> str:
    return text.translate(_LATEX)
