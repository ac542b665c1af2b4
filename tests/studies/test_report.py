"""The report of a study: what its files say, that they are the same every time, and that they can be read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.datasets.miniparts import miniparts_path
from mlffn_lite.errors import StudyError
from mlffn_lite.studies import plots, report
from mlffn_lite.studies.cell import Cell
from mlffn_lite.studies.grid import ARMS, Grid, compare, identity, study_config, table3, table4
from mlffn_lite.studies.paper import PAPER
from mlffn_lite.studies.report import claims, latex, markdown_table, sentence, write_reports
from mlffn_lite.studies.statistics import differences, frame, table
from mlffn_lite.studies.store import Failure, Store

from .conftest import scores_of

Keep = Callable[..., Cell]
SETS, SEEDS = ("nuts", "bolts"), (0, 1, 2)
COLUMNS = {g.name: list(g.columns) for g in (table3(study_config("tiny")), table4(study_config("tiny")))}


def fill(
    store: Store, keep: Keep, sets: tuple[str, ...] = SETS, seeds: tuple[int, ...] = SEEDS, **other: object
) -> None:
    """Both tables: each arm one point better than the one before; the ratio best at 75 %. Give or take some noise."""
    rng = np.random.default_rng(len(sets))
    for study, columns in COLUMNS.items():
        for i, column in enumerate(columns):
            if (study, column) == ("table3", "50 %"):
                continue  # the full arm
            gain = 0.01 * i if study == "table4" else (-0.3, -0.2, -0.15, 0, 0.07, -0.25)[i]
            for name in sets:
                for seed in seeds:
                    noise = 0.001 * rng.standard_normal(3)
                    values = np.array([0.90, 0.80, 0.70]) + gain - 0.05 * (name == "bolts") + 0.002 * seed + noise
                    keep(store, study, column, name, seed, *values.round(5).tolist(), **other)


@pytest.fixture(scope="module")
def filled(keep: Keep, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Both tables, two sets, three seeds."""
    store = Store(tmp_path_factory.mktemp("report") / "study")
    fill(store, keep)
    return store


@pytest.fixture(scope="module")
def place(filled: Store) -> Path:
    (place,) = write_reports(filled.folder)
    assert place == filled.folder / "report"
    return place


def grid_of(store: Store, name: str) -> Grid:
    (grid,) = (g for g in store.grids() if g.name == name)
    return grid


def cells_of(store: Store, name: str) -> pd.DataFrame:
    return frame(store.records(), grid_of(store, name))


def test_the_files(place: Path) -> None:
    assert {p.name for p in place.iterdir()} == {
        *(f"table{n}{sets}.{kind}" for n in (3, 4) for sets in ("", "_sets") for kind in ("md", "csv", "tex")),
        *("differences.csv", "claims.md", "report.html"),
        *("ratio.png", "ablation.png", "table3_sets.png", "table4_sets.png"),
    }


def test_a_second_report_is_the_same_to_the_byte(filled: Store, place: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    shuffled = Store(tmp_path / "study")
    shutil.copytree(filled.folder / "grids", shuffled.folder / "grids")
    (shuffled.folder / "cells").mkdir()
    for path in reversed(filled.paths()):
        shutil.copy(path, shuffled.folder / "cells")
    (again,) = write_reports(shuffled.folder, tmp_path / "elsewhere")
    assert again == tmp_path / "elsewhere"
    assert {p.name: p.read_bytes() for p in again.iterdir()} == before


def test_the_numbers_of_the_csv(filled: Store, place: Path) -> None:
    for study in COLUMNS:
        grid = grid_of(filled, study)
        found = pd.read_csv(place / f"{study}.csv", dtype={"column": str})
        assert list(found["column"].unique()) == COLUMNS[study]
        for row in found.to_dict("records"):
            same = identity(grid.columns[row["column"]])
            cells = [r for r in filled.records() if identity(r["config"]) == same]
            assert len(cells) == 6
            by_seed = [np.mean([100 * r[row["metric"]] for r in cells if r["seed"] == s]) for s in SEEDS]
            assert row["mean"] == pytest.approx(np.mean(by_seed), abs=1e-4)
            assert row["std"] == pytest.approx(np.std(by_seed, ddof=1), abs=1e-4)
            assert (row["seeds"], row["paper"]) == (3, PAPER[study][row["column"]][row["metric"]])


def rows_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_markdown_is_laid_out_as_the_paper(filled: Store, place: Path) -> None:
    text = (place / "table4.md").read_text()
    head, _, *rows = rows_of(text)
    assert head[0] == "arm"
    assert head[-3:] == ["image AUROC %", "pixel AUROC %", "PRO %"]
    assert [row[0] for row in rows] == [name for arm in ARMS for name in (arm, "paper")]
    assert [row[1:5].count("✓") for row in rows[::2]] == [0, 1, 2, 3, 4]
    assert rows[1][-3:] == ["97.84", "97.37", "92.33"]
    assert rows[-1][-3:] == ["98.7", "97.9", "94.2"]
    summary = table(cells_of(filled, "table4"), grid_of(filled, "table4"))
    first = summary[(summary["column"] == "baseline") & (summary["metric"] == "pro")].iloc[0]
    assert rows[0][-1] == f"{first['mean']:.1f} ± {first['std']:.1f}"
    assert re.search(r"tiny, 2 steps; bolts 32×32, nuts 32×32 px; seeds 0, 1, 2; cpu \(.*\), 1 thread", text)
    assert "sample standard deviation" in text

    head, _, *rows = rows_of((place / "table3.md").read_text())
    assert head == ["", "0 %", "5 %", "25 %", "50 %", "75 %", "100 %"]
    assert [row[0] for row in rows] == ["image AUROC %", "paper", "pixel AUROC %", "paper", "PRO %", "paper"]
    assert rows[-1][1:] == ["32.2", "90.3", "93.5", "94.2", "93.8", "93.0"]
    assert rows[0][4] == rows_of((place / "table4.md").read_text())[-2][-3]  # one cell, two tables


def test_the_latex_is_the_same_table(place: Path) -> None:
    for study in (*COLUMNS, "table3_sets", "table4_sets"):
        text = (place / f"{study}.tex").read_text()
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        lines = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines() if line.endswith(r" \\")]
        markdown = [row for row in rows_of((place / f"{study}.md").read_text()) if "---" not in row]
        plain = [[c.replace(r"\%", "%").replace(r"\_", "_").replace(r"$\pm$", "±") for c in line] for line in lines]
        plain = [[c.replace(r"\checkmark", "✓").replace(r"$\times$", "×") for c in line] for line in plain]
        assert plain == markdown
        assert rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}" in text
        assert not re.search(r"(?<!\\)[%_&#]", re.sub(" & ", " ", text)), "a character that LaTeX reads as a command"
        assert text.isascii()
        for name in ("table", "tabular"):
            assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
        assert text.count("{") == text.count("}")


def test_what_latex_would_read_as_commands_is_escaped() -> None:
    text = latex(["a_b", "50 %"], [["x & y", "–"]], r"model.scales=[1], {#1} ~ $5 ^ \ x")
    assert r"a\_b & 50 \%" in text
    assert r"x \& y & -- \\" in text
    (caption,) = (line for line in text.splitlines() if line.startswith(r"\caption{"))
    assert r"\{\#1\}" in caption
    assert r"\$5" in caption
    assert re.search(r"\\textasciitilde.*\\textasciicircum.*\\textbackslash.* x}$", caption)


def test_what_markdown_would_read_as_a_column_is_escaped() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]], text=1) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_claims_count_and_say_what_the_differences_say(filled: Store, place: Path) -> None:
    text = (place / "claims.md").read_text()
    steps = pd.read_csv(place / "differences.csv")
    assert list(steps["study"].value_counts()[["table3", "table4"]]) == [18, 15]
    for study in COLUMNS:
        expected = differences(cells_of(filled, study), grid_of(filled, study))
        mine = steps[steps["study"] == study].reset_index(drop=True)
        assert list(mine["verdict"]) == list(expected["verdict"])
        np.testing.assert_allclose(mine["difference"], expected["difference"], atol=6e-5)
        counts = expected["verdict"].value_counts()
        words = ", ".join(f"{counts.get(v, 0)} {v}" for v in ("supported", "not distinguishable", "contradicted"))
        assert f"{len(expected)} differences: {words}." in text
    assert text.count("\n- ") == 33
    # 12 of the 15 gains of 1 point here are gains in the paper too; the pixel AUROC falls there from +stl on, once.
    assert "baseline → +self_calibration, PRO: +1.0 here (95 % +" in text
    assert re.search(r"\+stl → \+score_constraint, pixel AUROC: \+1\.0 here .*: \*\*contradicted\*\*\.", text)
    assert re.search(
        r"0 % → 5 %, image AUROC: \+10\.\d here \(95 % .*, \+29\.4 in the paper: \*\*supported\*\*\.", text
    )
    assert re.search(r"50 % → 75 %, PRO: \+3\.\d here .*, -0\.4 in the paper: \*\*contradicted\*\*\.", text)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (0, "baseline → +stl, PRO: not measured."),
        (1, "baseline → +stl, PRO: -1.3 here (1 pair: too few for an interval), +0.7 in the paper: **unclear**."),
        (6, "baseline → +stl, PRO: -1.3 here (95 % -2.0 to +0.4), +0.7 in the paper: **unclear**."),
        (
            9,
            "baseline → +stl, PRO: -1.3 here (95 % -2.0 to +0.4; sets like these -9.0 to +7.0), +0.7 in the paper:"
            " **unclear**, **lower** for sets like these.",
        ),
    ],
)
def test_a_sentence(pairs: int, expected: str) -> None:
    row = {"before": "baseline", "after": "+stl", "metric": "pro", "pairs": pairs, "difference": -1.26}
    row |= {"low": -2.0 if pairs > 1 else np.nan, "high": 0.4, "paper": 0.7, "verdict": "unclear"}
    row |= {"low_beyond": -9.0 if pairs > 6 else np.nan, "high_beyond": 7.0}
    assert sentence({**row, "beyond": "lower" if pairs > 6 else "not distinguishable"}) == expected


def test_missing_cells_leave_gaps_and_are_said(filled: Store, tmp_path: Path) -> None:
    store = Store(shutil.copytree(filled.folder, tmp_path / "study", ignore=shutil.ignore_patterns("report")))
    for record in store.records():
        columns = frame([record], grid_of(store, "table4"))["column"].tolist()
        if columns == ["+stl"] or (columns == ["baseline"] and record["seed"] == 2 and record["set"] == "nuts"):
            store.path(Cell.of(record)).unlink()
    (place,) = write_reports(store.folder)
    text = (place / "table4.md").read_text()
    _, _, *rows = rows_of(text)
    assert rows[4][-3:] == ["–", "–", "–"]
    assert "seeds 0, 1, 2, not all of them in every row and column;" in text
    found = pd.read_csv(place / "table4.csv").set_index(["column", "metric"])["seeds"]
    assert (found["baseline", "pro"], found["+stl", "pro"], found["+consistency", "pro"]) == (2, 0, 3)
    said = (place / "claims.md").read_text()
    assert "+self_calibration → +stl, PRO: not measured." in said
    assert re.search(r"baseline → \+self_calibration, PRO: \+\d\.\d here \(95 % ", said)  # five pairs
    assert (place / "table3.md").read_text().count("–") == 0


def test_one_study_alone_and_sets_without_masks(keep: Keep, tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    for seed in (0, 1):
        for column in ("baseline", "+self_calibration"):
            keep(store, "table4", column, "nuts", seed, 0.9, 0.8 + 0.01 * seed, 0.7)
            keep(store, "table4", column, "bolts", seed, 0.9, None, None)
    (place,) = write_reports(store.folder)
    names = {p.name for p in place.iterdir()}
    assert {n for n in names if n.endswith((".html", ".png"))} == {"report.html", "ablation.png", "table4_sets.png"}
    for ax in drawn(plots.heat_table(cells_of(store, "table4"), grid_of(store, "table4"))).axes:
        assert [t.get_text() for t in ax.get_yticklabels()] == ["bolts", "nuts"]
    for cell in list(store.paths()):
        if "nuts" in cell.name:
            cell.unlink()
    write_reports(store.folder)  # no set has a mask
    assert rows_of((place / "table4.md").read_text())[2][-3:] == ["90.0 ± 0.0", "–", "–"]


def test_several_settings_are_several_reports(keep: Keep, tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    for size in (32, 64):
        for column in ("baseline", "+self_calibration"):
            keep(store, "table4", column, "nuts", 0, size / 100, 0.8, 0.7, config={"data": {"size": size}})
    places = write_reports(store.folder)
    assert len(places) == 2
    assert {p.parent for p in places} == {store.folder / "report"}
    means = [pd.read_csv(p / "table4.csv")["mean"][0] for p in places]
    assert sorted(means) == [32.0, 64.0]
    for place, mean in zip(places, means, strict=True):
        assert f"size = {mean:.0f}" in (place / "report.html").read_text()


def test_what_holds_no_study_is_refused(keep: Keep, undisturbed: Store, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="holds no finished cell"):
        write_reports(tmp_path / "gone")
    store = Store(shutil.copytree(undisturbed.folder, tmp_path / "study"))
    shutil.rmtree(store.folder / "grids")
    with pytest.raises(StudyError, match=r"holds no cell of a grid .*; give its `mlffn study` command again"):
        write_reports(store.folder)
    keep(store, "table4", "baseline", "nuts", 0, 0.9, 0.8, 0.7, config={"data": {"size": 64}})
    write_reports(store.folder)  # a foreign cell beside those of a study does not matter


def test_methods_side_by_side(undisturbed: Store, base: Config, tmp_path: Path) -> None:
    """A table of any other grid: no paper, costs by set, and what failed on the page."""
    store, template = Store(tmp_path / "study"), undisturbed.records()[0]
    grid = compare(base, ["mlffn", "padim"], "tiny")
    store.remember([grid], {})
    costs = {"fit_seconds": 2.0, "predict_ms": 3.5, "peak_memory_mb": 512}
    for i, method in enumerate(grid.columns):
        for seed in range(3):
            for name in SETS:
                config = {**grid.columns[method], "train": {**grid.columns[method]["train"], "seed": seed}}
                auroc = round(0.9 - 0.1 * i + 0.01 * seed, 5)
                numbers = {"image_auroc": auroc, "pixel_auroc": 0.8, "pro": None, **scores_of(auroc), **costs}
                record = {**template, "set": name, "seed": seed, "config": config, **numbers}
                store.write(Cell.of(record), {**record, "method": method})
    store.fail(Cell.of({**template, "set": "screws"}), Failure("no memory"))
    (place,) = write_reports(store.folder)
    assert {p.name for p in place.glob("*.png")} == {"compare.png", "compare_ranks.png", "compare_sets.png"}
    assert rows_of((place / "compare.md").read_text()) == [
        ["method", "image AUROC %", "pixel AUROC %", "PRO %"],
        ["---", "---:", "---:", "---:"],
        ["mlffn", "91.0 ± 1.0", "80.0 ± 0.0", "–"],
        ["padim", "81.0 ± 1.0", "80.0 ± 0.0", "–"],
    ]
    head, _, *rows = rows_of((place / "compare_sets.md").read_text())
    assert head[:4] + head[-3:] == ["set", "pixels", "method", "seeds", "fit s", "predict ms/image", "peak memory MB"]
    assert [row[:4] for row in rows] == [[s, "32×32", m, "3"] for s in sorted(SETS) for m in ("mlffn", "padim")]
    assert all(row[-3:] == ["2.0", "3.5", "512"] for row in rows)
    said = (place / "claims.md").read_text()
    assert "- padim → mlffn, image AUROC: +10.0 (95 % +10.0 to +10.0): **higher**." in said
    assert "3 differences: 1 higher, 2 not distinguishable, 0 lower." in said
    page = (place / "report.html").read_text()
    assert "no memory" in page
    assert "Methods side by side" in page
    assert "paper:" not in said


def test_merged_cells_of_different_data_under_one_name_are_refused(keep: Keep, tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    keep(store, "table4", "baseline", "nuts", 0, 0.9, 0.8, 0.7)
    keep(store, "table4", "+stl", "nuts", 0, 0.9, 0.8, 0.7, fingerprint="other")
    with pytest.raises(StudyError, match="holds cells of different data named 'nuts'"):
        write_reports(store.folder)
    assert not (store.folder / "report").exists()


class Page(HTMLParser):
    """Open tags in order, and what is closed; images and their texts."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_parses_and_holds_all(place: Path) -> None:
    text = (place / "report.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert len(page.images) == 4
    assert all(image["alt"] and str(image["src"]).startswith("data:image/png;base64,") for image in page.images)
    assert "script" not in page.tags
    words = " ".join(page.words)
    for expected in (
        "Share of pseudo-anomalies (the paper's Table 3)",
        "Ablation (the paper's Table 4)",
        "What the data support",
        "+self_calibration → +stl, PRO",
        "contradicted",
        "mlffn report study",
        "[pseudo]",
    ):
        assert expected in words
    assert str(place) not in text  # no path of this machine
    assert page.tags.count("table") == 5
    assert page.tags.count("tr") == 5 + 6 + 10 + 2 * 6 + 2 * 5 + 33


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def figures(cells: Callable[[str], pd.DataFrame]) -> dict[str, Figure]:
    tables = {g.name: g for g in (table3(study_config("tiny")), table4(study_config("tiny")))}
    return {
        "ratio": plots.ratio_curve(cells("table3"), tables["table3"]),
        "ablation": plots.dots(cells("table4"), tables["table4"]),
        **{name: plots.heat_table(cells(name), grid) for name, grid in tables.items()},
    }


def test_figures_are_not_blank_and_say_what_they_show(place: Path) -> None:
    for path in place.glob("*.png"):
        with Image.open(path) as image:
            assert image.text["Description"]  # type: ignore[attr-defined]
            pixels = np.asarray(image.convert("RGB"), int)
        assert pixels.shape[1] == 1296
        ink = (np.abs(pixels - 255).sum(2) > 60).mean()
        assert 0.01 < ink < 0.95, path.name
        columns = np.flatnonzero((pixels < 200).any(2).any(0))
        assert columns[0] < 1296 // 3
        assert columns[-1] > 2 * 1296 // 3


@pytest.mark.parametrize("sets", [("nuts", "bolts"), tuple(f"a_rather_long_name_{i}" for i in range(15))])
def test_no_text_is_cut_or_covers_another(sets: tuple[str, ...]) -> None:
    def cells(study: str) -> pd.DataFrame:
        rows = [
            (column, name, seed, 50 + 3.0 * i + seed, 70 + i, 60 + i)
            for i, column in enumerate(COLUMNS[study])
            for name in sets
            for seed in (0, 1)
        ]
        return pd.DataFrame(rows, columns=["column", "set", "seed", "image_auroc", "pixel_auroc", "pro"])

    for name, figure in figures(cells).items():
        drawn(figure)
        width, height = figure.canvas.get_width_height()
        boxes = []
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            if text.get_text().strip() and text.get_visible() and _shown(text, figure):
                box = text.get_window_extent()
                inside = min(box.x0, box.y0, width - box.x1, height - box.y1) >= -1
                assert inside, (name, text.get_text())
                if not text.get_rotation():
                    boxes.append((text.get_text(), box))
        for i, (first, a) in enumerate(boxes):
            for second, b in boxes[i + 1 :]:
                apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
                assert apart, (name, first, second)


def _shown(text: Text, figure: Figure) -> bool:
    """Whether it is drawn: ticks outside their axis are not."""
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if text in (tick.label1, tick.label2):
                    return bool(low <= tick.get_loc() <= high) and bool(text.get_visible())
    return True


def line_of(ax: Axes, label: str) -> np.ndarray:
    return next(np.asarray(line.get_ydata(), float) for line in ax.lines if line.get_label() == label)


def rows_for(store: Store, study: str, metric: str) -> pd.DataFrame:
    found = table(cells_of(store, study), grid_of(store, study))
    return found[found["metric"] == metric]


def test_figures_show_the_tables(filled: Store) -> None:
    metrics = ("image_auroc", "pixel_auroc", "pro")
    shown = figures(lambda name: cells_of(filled, name))
    for ax, metric in zip(shown["ratio"].axes, metrics, strict=True):
        rows = rows_for(filled, "table3", metric)
        np.testing.assert_allclose(line_of(ax, "here, mean ± std over seeds"), rows["mean"])
        np.testing.assert_allclose(line_of(ax, "paper, MVTec AD"), rows["paper"])
        band = np.asarray(ax.collections[0].get_paths()[0].vertices)
        assert band[:, 1].min() == pytest.approx((rows["mean"] - rows["std"]).min())
        assert band[:, 1].max() == pytest.approx((rows["mean"] + rows["std"]).max())
    for ax, metric in zip(shown["ablation"].axes, metrics, strict=True):
        rows = rows_for(filled, "table4", metric)
        np.testing.assert_allclose(line_of(ax, "mean here"), rows["mean"])
        assert len(ax.lines) == len(SETS) * len(SEEDS) + 2
        dots = np.mean([np.asarray(line.get_ydata(), float) for line in ax.lines[:6]], axis=0)
        np.testing.assert_allclose(dots, rows["mean"])
    for study, columns in COLUMNS.items():
        for ax, metric in zip(shown[study].axes, metrics, strict=True):
            part = cells_of(filled, study).query("set == 'bolts'")
            means = [part[part["column"] == c][metric].mean() for c in columns]
            assert [t.get_text() for t in ax.texts[: len(columns)]] == [f"{m:.1f}" for m in means]


def test_numbers_in_a_heat_table_can_be_read(filled: Store) -> None:
    """Contrast of at least 4.5 to 1 (WCAG) on every shade."""

    def luminance(rgb: np.ndarray) -> float:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for ax in drawn(plots.heat_table(cells_of(filled, "table3"), grid_of(filled, "table3"))).axes:
        mesh = ax.collections[0]
        for text, face in zip(ax.texts, np.asarray(mesh.get_facecolor()), strict=True):
            pair = sorted([luminance(face[:3]), luminance(np.array(to_rgb(text.get_color())))])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


def test_bundled_sets_get_heatmaps_unless_they_have_changed(undisturbed: Store, keep: Keep, tmp_path: Path) -> None:
    """Down the columns the images, the first seed's maps of every arm that is there."""
    parts = AnomalyFolder(miniparts_path() / "flange", size=32)
    kept = next(iter(undisturbed.records()[0]["maps"].values()))
    chosen = [p for p in parts.test.paths if p.parent.name in ("good", "scratch") and p.stem in ("000", "001")][:3]
    maps = {p.relative_to(parts.root).as_posix(): kept for p in chosen}
    store, changed = Store(tmp_path / "study"), Store(tmp_path / "changed")
    for column in ("baseline", "+stl"):
        for seed in (1, 0):
            keep(store, "table4", column, "flange", seed, 0.9, 0.8, 0.7, maps=maps, fingerprint=parts.fingerprint())
            keep(changed, "table4", column, "flange", seed, 0.9, 0.8, 0.7, maps=maps)
    (place,) = write_reports(store.folder)
    with Image.open(place / "maps_flange.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
    assert not (write_reports(changed.folder)[0] / "maps_flange.png").exists()
    records = store.records()
    assert [r["seed"] for r in plots.first_seed(records, grid_of(store, "table4"), "flange").values()] == [0, 0]
    figure = plots.map_panel(records, grid_of(store, "table4"), "flange", miniparts_path() / "flange")
    assert len(figure.axes) == 3 * (1 + 2)
    labels = [ax.get_ylabel().replace("\n", " ") for ax in figure.axes[::3]]
    assert labels == ["image", "baseline", "+ STLNet"]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown.transpose(2, 0, 1), parts.test.images()[parts.test.paths.index(chosen[0])])


def test_names_that_the_report_uses_exist() -> None:
    assert list(report.TITLES) == ["methods", *COLUMNS, "compare"]
    assert ["methods", *COLUMNS] == list(PAPER)
    assert list(plots.ARM_NAMES) == list(ARMS)
    assert claims([]).startswith("# What the data support")
