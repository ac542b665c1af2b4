"""What is committed as measured must follow from the committed cells, without training."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlffn_lite import comparison
from mlffn_lite.studies.report import write_reports
from mlffn_lite.studies.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "results"
STUDIES = sorted(p.parent.name for p in RESULTS.glob("*/report"))


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh", RESULTS / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_comparison_follows_from_its_cells(tmp_path: Path, refresh: ModuleType) -> None:
    shutil.copytree(RESULTS / "peers" / "cells", tmp_path / "cells")
    comparison.write_tables(tmp_path)
    for name in (comparison.MARKDOWN, comparison.CSV):
        assert (tmp_path / name).read_bytes() == (RESULTS / "peers" / name).read_bytes()
    assert refresh.summary(comparison.read_cells(tmp_path)) == (RESULTS / "peers" / "summary.md").read_text("utf-8")


def test_the_ablation_of_the_preset_follows_from_its_cells(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "ablation" / "cells", tmp_path / "cells")
    options = ["--table", "--base", str(RESULTS / "peers"), "--out", str(tmp_path)]
    script = [sys.executable, str(ROOT / "tests/benchmarks/ablation.py"), *options]
    subprocess.run(script, check=True, capture_output=True)
    assert (tmp_path / "ablation.md").read_bytes() == (RESULTS / "ablation" / "ablation.md").read_bytes()


def test_the_studies_follow_from_their_cells(tmp_path: Path) -> None:
    assert "miniparts" in STUDIES
    for name in STUDIES:
        shutil.copytree(RESULTS / name / "cells", tmp_path / name / "cells")
        for place in write_reports(tmp_path / name):
            committed = RESULTS / name / place.relative_to(tmp_path / name)
            made = {p.name: p.read_bytes() for p in place.iterdir() if p.suffix in (".md", ".csv", ".tex")}
            assert made
            assert {p.name: p.read_bytes() for p in committed.iterdir() if p.name in made} == made


def test_the_readme_shows_the_committed_tables(refresh: ModuleType) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count("<!-- results: ") >= 2
    assert refresh.with_tables(text) == text
    (broken, *_) = (line for line in text.splitlines() if line.startswith("| baseline |"))
    assert refresh.with_tables(text.replace(broken, "| baseline | 100 |")) == text


@pytest.mark.parametrize("name", ["peers", "ablation", *STUDIES])
def test_no_image_and_no_absolute_path_is_among_the_results(name: str) -> None:
    ignored = {*(RESULTS / name / "report").glob("*.png"), RESULTS / name / "report" / "report.html"}
    files = [p for p in (RESULTS / name).rglob("*") if p.is_file() and p not in ignored]
    assert {p.suffix for p in files} <= {".json", ".md", ".csv", ".tex"}
    path = re.compile(r"[\"'(]/[^\"'()\n]{1,150}[\"')]")  # maps in base64 may begin with a slash, but are longer
    assert not [p for p in files if path.search(p.read_text("utf-8"))]


def test_miniparts_holds_all_arms_and_ratios_of_three_seeds() -> None:
    records = Store(RESULTS / "miniparts").records()
    found = {
        (r["set"], r["seed"], r["config"]["pseudo"]["ratio"], str(r["config"]["model"]), str(r["config"]["loss"]))
        for r in records
    }
    assert len(found) == len(records) == 3 * 3 * 10
