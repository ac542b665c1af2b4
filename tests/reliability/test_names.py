"""Names that others chose do nothing: not in spreadsheets, not in Markdown, not in a terminal."""

from __future__ import annotations

import os
import re
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
from mlffn_lite.studies.store import Store

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


@pytest.fixture
def unreadable(parts: Path, tmp_path: Path) -> Path:
    """A data folder whose own name, and those of a training and of a test image, are no UTF-8."""
    try:
        copy = Path(shutil.copytree(parts, tmp_path / os.fsdecode(b"teil\xe9")))
        for image in (copy / "train/good/000.png", copy / "test/good/000.png"):
            image.rename(image.with_name(os.fsdecode(b"g\xfft.png")))
    except OSError:
        pytest.skip("this file system takes no names but UTF-8")
    return copy


def test_names_that_are_no_text_are_judged_and_resumed(run: Path, unreadable: Path, tmp_path: Path) -> None:
    detector, images = AnomalyDetector.load(run), [unreadable / "test/good"]
    first = write_predictions(detector, images, tmp_path / "out", coco=True, progress=False)
    assert any(image.endswith("g%FFt.png") for image in first["image"])
    written = pd.read_csv(tmp_path / "out/scores.csv", dtype=str)
    assert list(written["image"]) == list(first["image"])
    assert all((tmp_path / "out" / picture).is_file() for picture in written["picture"])
    again = write_predictions(detector, images, tmp_path / "out", resume=True, progress=False)
    assert list(again["score"]) == list(written["score"])


def test_names_that_are_no_text_are_verified_fitted_and_measured(unreadable: Path, tmp_path: Path) -> None:
    out, fit = str(tmp_path / "run"), ["--preset", "tiny", "--set", "method=density"]
    study = ["--preset", "tiny", "--methods", "density", "--seeds", "1", "--out", str(tmp_path / "study")]
    for command in (
        ["data", "verify", str(unreadable)],
        ["train", str(unreadable), *fit, "--out", out],
        ["report", out, str(unreadable)],
        ["study", "compare", str(unreadable), *study],
    ):
        cli.app(command, standalone_mode=False)
    (record,) = Store(tmp_path / "study").records()
    assert record["set"] == "teil%E9"
    assert "test/good/g%FFt.png" in record["scores"]


def test_names_are_no_html_in_any_page_or_table(parts: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(parts, tmp_path / "<b id=x>&"))
    for split in ("test", "ground_truth"):
        (copy / split / "scratch").rename(copy / split / "<i id=x>&")
    (copy / "test/good/000.png").rename(copy / "test/good/<u id=x>&.png")
    fit = ["--preset", "tiny", "--set", "method=density"]
    cli.app(["train", str(copy), *fit, "--out", str(tmp_path / "run")], standalone_mode=False)
    study = ["--preset", "tiny", "--methods", "density", "--seeds", "1", "--out", str(tmp_path / "study")]
    cli.app(["study", "compare", str(copy), *study], standalone_mode=False)
    cli.app(["report", str(tmp_path / "study")], standalone_mode=False)
    pages = [*tmp_path.glob("run/*.html"), *tmp_path.glob("study/**/*.html"), *tmp_path.glob("study/**/*.md")]
    assert {page.suffix for page in pages} == {".html", ".md"}
    for page in pages:
        assert not re.search("<[biu] id=x", page.read_text("utf-8")), page
