"""Names that others chose do nothing: not in spreadsheets, not in Markdown, not in a terminal."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlffn_lite import cli, escaped
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.heatmaps import write_predictions
from mlffn_lite.studies.report import markdown_table

FORMULAS = ["=HYPERLINK(1)", "@SUM(1)", "+1+cmd|' /C calc'!A0", "-2+3", "\t=1", "'=1", "''@x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text(text: str) -> None:
    assert escaped.cell(text).startswith("'")
    assert escaped.uncell(escaped.cell(text)) == text


@pytest.mark.parametrize("text", ["", "a", "+stl", "+score_constraint", "-0.5", "50 %", "'quoted'", "a=b"])
def test_other_text_stays(text: str) -> None:
    assert escaped.cell(text) == text


@given(st.text())
def test_what_is_written_is_read_back(text: str) -> None:
    assert escaped.uncell(escaped.cell(text)) == text


@given(st.text())
def test_nothing_steers_the_terminal(text: str) -> None:
    assert escaped.printable(text).isprintable()


def test_a_name_is_no_formula_in_the_tables_and_still_resumed(
    run: Path, folder: AnomalyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "=HYPERLINK(1).png"
    shutil.copy(folder.test.paths[-1], name)
    detector = AnomalyDetector.load(run)
    first = write_predictions(detector, [Path(name)], tmp_path / "out", progress=False)
    written = pd.read_csv(tmp_path / "out/scores.csv", dtype=str)
    assert written["image"][0] == f"'{name}"
    assert written["picture"][0].startswith("'=")
    again = write_predictions(detector, [Path(name)], tmp_path / "out", resume=True, progress=False)
    assert list(again["image"]) == list(first["image"]) == [name]
    assert len(pd.read_csv(tmp_path / "out/scores.csv")) == 1


def test_markdown_holds_no_html_and_no_link() -> None:
    table = markdown_table(["set"], [["<img src=x onerror=alert(1)>"], ["[a](javascript:b)"], ["a|b\n| c"]], text=1)
    assert "<" not in table
    assert "\\[a\\]" in table
    assert len(table.splitlines()) == 5


def test_a_files_name_forges_no_line_of_verify(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))
    (copy / "train/good" / "x.png\n0 faults, 0 notices\n\x1b[2Jall is well.png").write_bytes(b"no image")
    monkeypatch.setattr(sys, "argv", ["mlffn", "data", "verify", str(copy)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr().out
    assert caught.value.code == 2
    assert "\x1b" not in said
    assert "0 faults, 0 notices" not in said.splitlines()
    assert said.splitlines()[-1].startswith("1 faults")
