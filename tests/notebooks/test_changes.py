"""The cells that invite to change a line: there are two a notebook, each well-formed, and the tool that tries them."""

from __future__ import annotations

from pathlib import Path

import changes
import nbformat
import pytest
from changes import CHANGE, last_number, marked, moved, read_change, try_changes
from lessons import FOLDER, printed, read
from nbformat import NotebookNode
from series import write_notebook

from mlffn_lite.errors import MlffnError

NOTEBOOKS = sorted(path for path in FOLDER.glob("*.ipynb") if path.name[:2] <= "15")


def cell(source: str, out: str = "") -> NotebookNode:
    outputs = [nbformat.v4.new_output("stream", text=out)] if out else []
    return nbformat.v4.new_code_cell(source, id="one", metadata={"tags": [CHANGE]}, outputs=outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name[:2])
def test_a_notebook_has_two_lines_to_change(path: Path) -> None:
    cells = marked(read(path))
    assert len(cells) == 2
    for one in cells:
        read_change(one)
        last_number(one)
        assert len(one.source.splitlines()) <= 8, f"{one.id} is long"
        assert len(printed(one).splitlines()) < 6


def test_a_change_is_read_from_its_line() -> None:
    change = read_change(cell("rate = 4  # change this line: try 1 (expected: higher)\nprint(rate)"))
    assert change.source == "rate = 1\nprint(rate)"
    assert change.expected == "higher"


@pytest.mark.parametrize(
    "line", ["rate = 4", "rate = 4  # change this line", "f(4)  # change this line: try 1 (expected: lower)"]
)
def test_a_line_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(MlffnError, match="cell one: needs one line"):
        read_change(cell(line))


@pytest.mark.parametrize(
    ("before", "after", "way"),
    [(1, 2, "higher"), (2, 1, "lower"), (-1, -2, "lower"), (1, 1.01, "the same"), (0, 0, "the same")],
)
def test_two_per_cent_are_the_same(before: float, after: float, way: str) -> None:
    assert moved(before, after) == way


def test_the_last_number_counts() -> None:
    assert last_number(cell("1", "r = 4: 12 of −3.5\n")) == -3.5
    assert last_number(cell("1", "about 1e-3")) == 0.001
    with pytest.raises(MlffnError, match="prints no number"):
        last_number(cell("1", "nothing"))


@pytest.mark.slow
def test_a_change_is_tried_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "n = 4  # change this line: try 1 (expected: lower)\nprint(n)"
    cells = [cell(line), nbformat.v4.new_code_cell("assert n == 4", id="two")]
    write_notebook(tmp_path / "98_sample.ipynb", nbformat.v4.new_notebook(cells=cells))
    assert try_changes(tmp_path / "98_sample.ipynb") == [("one", 4, 1, "lower")]
    monkeypatch.setattr(changes, "try_changes", lambda _: [("one", 4, 1, "lower"), ("two", 4, 1, "higher")])
    assert changes.main(["02"]) == 1
    assert capsys.readouterr().out == "02 one: 4 → 1, lower\n02 two: 4 → 1, higher: NOT SO\n"
    assert changes.main(["99"]) == 2
    assert "no notebook '99'" in capsys.readouterr().err
