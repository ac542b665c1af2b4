"""What is committed as measured must follow from the committed cells, without training."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from mlffn_lite.config import Config
from mlffn_lite.studies.grid import compare, identity, study_config
from mlffn_lite.studies.report import write_reports
from mlffn_lite.studies.statistics import frame
from mlffn_lite.studies.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "results"
STORES = sorted(p.parent.name for p in RESULTS.glob("*/cells"))
TABLES = (".md", ".csv", ".tex")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    return load(RESULTS / "refresh.py")


@pytest.mark.parametrize("name", STORES)
def test_the_tables_follow_from_their_cells(name: str, tmp_path: Path) -> None:
    for part in ("cells", "grids"):
        shutil.copytree(RESULTS / name / part, tmp_path / name / part)
    (place,) = write_reports(tmp_path / name)
    made = {p.name: p.read_bytes() for p in place.iterdir() if p.suffix in TABLES}
    assert made
    assert {p.name: p.read_bytes() for p in (RESULTS / name / "report").iterdir() if p.suffix in TABLES} == made


@pytest.mark.parametrize("name", STORES)
def test_every_column_has_every_seed_on_every_set(name: str) -> None:
    store = Store(RESULTS / name)
    records = store.records()
    for grid in store.grids():
        cells = frame(records, grid)
        assert len(cells) == len(grid.columns) * cells["set"].nunique() * cells["seed"].nunique()
        assert not cells.duplicated(["column", "set", "seed"]).any()
    used = {identity(config) for grid in store.grids() for config in grid.columns.values()}
    assert {identity(r["config"]) for r in records} <= used  # no cell is left over


@pytest.mark.parametrize("name", STORES)
def test_no_image_and_no_absolute_path_is_among_the_results(name: str) -> None:
    ignored = {*(RESULTS / name / "report").glob("*.png"), RESULTS / name / "report" / "report.html"}
    files = [p for p in (RESULTS / name).rglob("*") if p.is_file() and p not in ignored and p.suffix != ".lock"]
    assert {p.suffix for p in files} <= {".json", *TABLES}
    path = re.compile(r"[\"'(]/[^\"'()\n]{1,150}[\"')]")  # maps in base64 may begin with a slash, but are longer
    assert not [p for p in files if path.search(p.read_text("utf-8"))]


def test_what_is_committed_is_refreshed(refresh: ModuleType) -> None:
    assert set(STORES) <= set(refresh.STUDIES)
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count("<!-- results: ") == text.count("<!-- /results -->") >= 2
    assert refresh.with_tables(text) == text


def test_a_block_of_the_readme_is_read_anew(refresh: ModuleType, tmp_path: Path) -> None:
    text = (
        "a\n<!-- results: s/t.md -->\n\n| old |\n\n<!-- /results -->\nb\n<!-- results: u.md -->\nc\n<!-- /results -->\n"
    )
    assert refresh.with_tables(text, tmp_path) == text  # nothing is there yet
    (tmp_path / "s").mkdir()
    (tmp_path / "s/t.md").write_text("| new |\n")
    assert refresh.with_tables(text, tmp_path) == text.replace("old", "new")


def test_the_ingredients_of_the_preset_share_cells_with_the_comparison() -> None:
    ablation = load(ROOT / "tests/benchmarks/ablation.py")
    base = study_config("parts", "compare", small=True)
    found, methods = ablation.ingredients(base), compare(base, ["mlffn", "density", "ensemble"])
    assert found.setting == methods.setting
    assert len(found.columns) == len(ablation.ARMS)
    shared = {identity(c) for c in found.columns.values()} & {identity(c) for c in methods.columns.values()}
    assert len(shared) == 3
    assert all(Config().replace(**c).data.size == 128 for c in found.columns.values())
