"""The tool that makes navigation, maps and outputs, on a small series of its own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import series
from series import IGNORED, WIDGET, load_series, nav, read_notebook, run, write_notebook

from mlffn_lite.errors import MlffnError

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYPgPAAEEAQB9ssjfAAAAAElFTkSuQmCC"
ENTRY = """
[[notebook]]
file = "{0}.ipynb"
title = "{1}"
promise = "See it."
goals = ["one thing", "another"]
needs = "{2}"
paper = "§1"
minutes = 0.5
strict = false
"""
DRAW = f"""
import base64, os, pathlib
png = base64.b64decode("{PNG}")
pathlib.Path(os.environ["MLFFN_FIGURES"], "01_dot.png").write_bytes(png)
print(os.environ["MLFFN_MODE"], os.environ["OMP_NUM_THREADS"])
"""
TIMED = """
import time
from IPython.display import Image, display
print(time.time_ns())
stamp = png + str(time.time_ns()).encode()
pathlib.Path(os.environ["MLFFN_FIGURES"], "01_time.png").write_bytes(stamp)
display(Image(stamp, format="png"))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a series of three, of which the last is not written yet."""
    entries = [("00_start", "Start", "some Python"), ("01_dot", "Dot", "00"), ("02_later", "Later", "00, 01")]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "series.toml").write_text("".join(ENTRY.format(*e) for e in entries), "utf-8")
    (tmp_path / "README.md").write_text("# Project\n\n<!-- series -->\n<!-- /series -->\n\nEnd.\n", "utf-8")
    new = nbformat.v4
    make(tmp_path, "00_start", [new.new_markdown_cell("old", id="map"), new.new_code_cell("1", id="one")])
    timed = new.new_code_cell(TIMED, id="timed", metadata={"tags": [IGNORED], "scrolled": True})
    make(tmp_path, "01_dot", [new.new_code_cell(DRAW, id="draw"), timed])
    return tmp_path


def make(root: Path, name: str, cells: list[nbformat.NotebookNode]) -> Path:
    """Write a notebook; returns its path."""
    path = root / "notebooks" / f"{name}.ipynb"
    write_notebook(path, nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {}, "editor": "some"}))
    return path


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_nav_writes_heads_feet_and_maps_once(root: Path) -> None:
    assert nav(root, write=False) == nav(root) == ["notebooks/00_start.ipynb", "notebooks/01_dot.ipynb", "README.md"]
    written = contents(root)
    assert nav(root) == []
    assert contents(root) == written
    nb = read_notebook(root / "notebooks" / "01_dot.ipynb")
    assert [c.id for c in nb.cells] == ["head", "draw", "timed", "foot"]
    top = nb.cells[0].source
    assert top.startswith("# 01 · Dot\n\n**See it.**")
    assert "Needs: [00](00_start.ipynb) · Paper: §1 · Runs in about 30\N{NO-BREAK SPACE}s" in top
    assert "[← 00 · Start](00_start.ipynb) · [map of the series]" in top
    assert "[02 · Later →](02_later.ipynb)" in nb.cells[-1].source
    assert "| [02 · Later](notebooks/02_later.ipynb) |" in (root / "README.md").read_text("utf-8")
    start = read_notebook(root / "notebooks" / "00_start.ipynb")
    assert "| [02 · Later](02_later.ipynb) |" in start.cells[1].source
    assert "←" not in start.cells[0].source


def test_nav_leaves_everything_else_alone(root: Path) -> None:
    before = read_notebook(root / "notebooks" / "01_dot.ipynb")
    nav(root)
    after = read_notebook(root / "notebooks" / "01_dot.ipynb")
    assert after.cells[1:-1] == before.cells
    assert after.metadata == before.metadata
    assert (root / "README.md").read_text("utf-8").endswith("<!-- /series -->\n\nEnd.\n")


def test_nav_needs_the_marks(root: Path) -> None:
    (root / "README.md").write_text("# Project\n")
    with pytest.raises(MlffnError, match=r"README\.md: needs a line <!-- series -->"):
        nav(root)


def test_a_second_run_leaves_no_difference(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "figures").mkdir()
    (root / "figures" / "01_stale.png").touch()
    (root / "figures" / "00_other.png").touch()
    assert run(["01"], root) == 0
    first = contents(root)
    assert sorted(f for f in first if f.startswith("fig")) == [
        f"figures/{n}.png" for n in ("00_other", "01_dot", "01_time")
    ]
    nb = read_notebook(root / "notebooks" / "01_dot.ipynb")
    assert dict(nb.metadata) == series.METADATA
    assert [dict(c.metadata) for c in nb.cells] == [{}, {"tags": [IGNORED]}]
    assert [c.execution_count for c in nb.cells] == [1, 2]
    assert nb.cells[0].outputs[0].text == "small 1\n"
    assert run(["01_dot"], root) == 0
    assert contents(root) == first
    assert run(["01_dot.ipynb"], root, fresh=True) == 0
    changed = contents(root)
    assert [f for f in changed if changed[f] != first[f]] == ["figures/01_time.png", "notebooks/01_dot.ipynb"]
    assert capsys.readouterr().out.splitlines()[1].split()[::2] == ["01_dot.ipynb", "30"]


def test_an_ignored_cell_is_renewed_when_its_source_changes(root: Path) -> None:
    nb = read_notebook(root / "notebooks" / "01_dot.ipynb")
    nb.cells[1].source += "\n1"
    old = read_notebook(root / "notebooks" / "01_dot.ipynb")
    old.cells[1].update(execution_count=7, outputs=[nbformat.v4.new_output("stream", text="then")])
    assert series.keep_ignored(nb, old) == {}
    assert nb.cells[1].outputs == []
    nb.cells[1].source = old.cells[1].source
    series.keep_ignored(nb, old)
    assert nb.cells[1].outputs[0].text == "then"


@pytest.mark.parametrize("there", [b"of another run", None], ids=["differs", "missing"])
def test_a_figure_is_the_picture_of_the_notebook_also_where_its_cell_kept_its_output(
    root: Path, there: bytes | None
) -> None:
    assert run(["01"], root) == 0
    file = root / "figures" / "01_time.png"
    shown = file.read_bytes()
    file.unlink()
    if there is not None:
        file.write_bytes(there)
    assert run(["01"], root) == 0
    cell = read_notebook(root / "notebooks" / "01_dot.ipynb").cells[1]
    assert [png for output in cell.outputs for png in series.pngs(output)] == [shown] == [file.read_bytes()]


def test_a_cell_that_draws_another_number_of_pictures_is_renewed() -> None:
    new = nbformat.v4
    picture = new.new_output("display_data", data={"image/png": PNG})
    tagged = {"source": "draw()", "execution_count": 1, "metadata": {"tags": [IGNORED]}}
    nb = new.new_notebook(cells=[new.new_code_cell(**tagged, outputs=[picture, picture])])
    old = new.new_notebook(cells=[new.new_code_cell(**tagged, outputs=[picture])])
    assert series.keep_ignored(nb, old) == {}
    assert len(nb.cells[0].outputs) == 2


def test_widgets_torn_streams_and_progress_bars_are_normalised() -> None:
    new = nbformat.v4
    texts = [new.new_output("stream", text=t) for t in ("a\n", "b\n")]
    shown = {WIDGET: {"model_id": "f00"}, "text/plain": "VBox(children=())"}
    widget, bar = new.new_output("execute_result", data=shown), new.new_output("display_data", data=shown)
    nb = new.new_notebook(cells=[new.new_code_cell("x", outputs=[bar, texts[0], widget, texts[1]])])
    series.normalise(nb)
    assert [o.get("text") or o.data for o in nb.cells[0].outputs] == ["a\nb\n", {"text/plain": series.WIDGET_TEXT}]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("assert 1 > 2, 'one is\\nsmall'", "cell 0 (bad) raised AssertionError: one is"),
        ("import time; time.sleep(60)", "cell 0 (bad) took more than 2 s"),
        ("import os; os._exit(1)", "cell 0 (bad) ended the kernel"),
    ],
    ids=["error", "timeout", "death"],
)
def test_a_failure_is_one_line_and_nothing_is_written(
    root: Path, source: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "CELL_SECONDS", 2)
    make(root, "01_dot", [nbformat.v4.new_code_cell(source, id="bad")])
    before = contents(root)
    assert run(["01"], root) == 1
    assert contents(root) == before
    assert capsys.readouterr().out.splitlines()[2].startswith(f"01_dot.ipynb: {told}")


def test_too_slow_is_a_failure_but_the_notebook_is_written(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "notebooks" / "series.toml"
    path.write_text(path.read_text("utf-8").replace("minutes = 0.5", "minutes = 0.001"), "utf-8")
    monkeypatch.setenv("MLFFN_PATIENCE", "1")
    assert run(["00"], root) == 1
    assert "00_start.ipynb: took" in capsys.readouterr().out
    monkeypatch.setenv("MLFFN_PATIENCE", "10000")
    assert run(["00"], root) == 0
    assert read_notebook(root / "notebooks" / "00_start.ipynb").cells[1].execution_count == 1


def test_names_that_mean_nothing_are_refused(root: Path) -> None:
    with pytest.raises(MlffnError, match="no notebook '02'; there are 00, 01"):
        run(["02"], root)
    (root / "notebooks" / "01_dot.ipynb").write_text("{")
    with pytest.raises(MlffnError, match=r"01_dot\.ipynb: not a notebook"):
        nav(root)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(series, "nav", lambda write: ["README.md"])
    assert series.main(["check"]) == 1
    assert capsys.readouterr().out == "README.md: differs from series.toml; run make notebooks\n"
    assert series.main(["nav"]) == 0
    assert series.main(["run", "99"]) == 2
    assert capsys.readouterr().err.startswith("error: no notebook '99'")


def test_the_series_is_well_described() -> None:
    for entry in load_series():
        assert entry.promise.endswith("."), entry.file
        assert 2 <= len(entry.goals) <= 5, entry.file
        assert not set(entry.lessons) & set(entry.goals), f"{entry.file}: its foot repeats its head"
        assert 0 < entry.minutes <= 1, entry.file
    assert sum(e.minutes for e in load_series()) <= 15
