"""What is committed as measured must follow from the committed cells, without training."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mlffn_lite.beyond.ensemble import EnsembleDetector
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.studies.grid import identity
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
    assert set(STORES) <= {*refresh.STUDIES, *refresh.SUSPECTS}
    shown = []
    for page in refresh.pages():
        text = page.read_text("utf-8")
        files = re.findall(r"^<!-- results: (\S+) -->$", text, re.MULTILINE)
        assert text.count("<!-- results: ") == text.count("<!-- /results -->") == len(files), page
        assert refresh.with_tables(text) == text, f"{page}: run make results"
        shown += files
    assert len(shown) >= 7
    assert [file for file in shown if not (RESULTS / file).is_file()] == []


def test_a_block_of_a_page_is_read_anew(refresh: ModuleType, tmp_path: Path) -> None:
    text = (
        "a\n<!-- results: s/t.md -->\n\n| old |\n\n<!-- /results -->\nb\n<!-- results: u.md -->\nc\n<!-- /results -->\n"
    )
    assert refresh.with_tables(text, tmp_path) == text  # nothing is there yet
    (tmp_path / "s").mkdir()
    (tmp_path / "s/t.md").write_text("| new |\n")
    assert refresh.with_tables(text, tmp_path) == text.replace("old", "new")
    empty = "<!-- results: s/t.md -->\n<!-- /results -->\nwritten\n<!-- results: u.md -->\n<!-- /results -->\n"
    assert refresh.with_tables(empty, tmp_path) == empty.replace("-->\n<", "-->\n\n| new |\n\n<", 1)


def test_arms_of_the_ablation_are_means_of_the_ensembles_own_maps(folder: AnomalyFolder) -> None:
    """The first arm is what the ensemble predicts; each of the others leaves out what it says."""
    ablation = load(ROOT / "tests/benchmarks/ablation.py")
    config = Config.preset("tiny", method="ensemble", memory={"patches": 60}, train={"device": "cpu"})
    detector = EnsembleDetector(config).fit(folder, progress=False)
    good, test = ablation.maps_of(detector, folder)
    found = ablation.arms(good, test, list(ablation.PARTS), config.ensemble.rings)
    expected = detector.predict_split(folder.test).maps
    torch.testing.assert_close(found["preset parts"], expected, rtol=1e-4, atol=1e-4)
    left = torch.stack([found[f"without {part}"] for part in ablation.PARTS]).mean(0)
    torch.testing.assert_close(left, expected, rtol=1e-4, atol=1e-4)
    both = (2 * found["density"] + 3 * found["memory"]) / 5
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found["without rings"], expected, atol=1e-2)
