"""``mlffn study`` and ``mlffn report`` as a user meets them: options, one-line errors, and what the exit code says."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlffn_lite import cli, registry
from mlffn_lite.config import Config
from mlffn_lite.errors import ConfigError
from mlffn_lite.storage import write_sealed
from mlffn_lite.studies import commands
from mlffn_lite.studies.cell import NUMERICS, Cell
from mlffn_lite.studies.grid import ARMS
from mlffn_lite.studies.store import Store

Mlffn = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mlffn(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Mlffn:
    """Run the command in this process; returns exit code, output and errors."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mlffn", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


@pytest.fixture
def store(undisturbed: Store, tmp_path: Path) -> Store:
    return Store(shutil.copytree(undisturbed.folder, tmp_path / "store"))


def refused(result: tuple[int, str, str]) -> str:
    """The one line that a user error is."""
    code, _, errors = result
    lines = errors.splitlines()
    assert code == 2, errors
    assert len(lines) == 1, errors
    assert lines[0].startswith("mlffn: ")
    return lines[0]


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def test_what_is_finished_is_not_run_again(mlffn: Mlffn, store: Store, options: list[str]) -> None:
    before = snapshot(store.folder)
    code, printed, errors = mlffn("study", "table4", *options, "--out", store.folder)
    assert (code, errors) == (0, "")
    assert printed == f"5 of 5 cells are in {store.folder}; mlffn report {store.folder}\n"
    before |= {p: p.read_bytes() for p in (store.folder / "grids").iterdir()}
    # The fourth column of Table 3 is the last arm of Table 4.
    code, printed, _ = mlffn("study", "table3", *options, "--out", store.folder, "--part", "4/6")
    assert (code, printed.partition(";")[0]) == (0, f"1 of 1 cells are in {store.folder}")
    (added,) = snapshot(store.folder).keys() - before.keys()
    assert added.name.startswith("table3-")  # it was asked for
    assert snapshot(store.folder).items() >= before.items()


def test_the_cells_are_those_of_the_command_line(
    mlffn: Mlffn, undisturbed: Store, options: list[str], results: Callable[[Store], dict[str, Any]], tmp_path: Path
) -> None:
    store = Store(tmp_path / "new")
    words = ["study", "tables", *options, "--backend", "local", "--out", store.folder, "--part", "10/10"]
    code, printed, errors = mlffn(*words)
    assert code == 0
    assert printed.startswith("1 of 1 cells are in")
    assert re.fullmatch(r"\[1/1\] parts \+score_constraint seed 0: .* \(\d+ s\)\n", errors)
    assert results(store).items() <= results(undisturbed).items()
    (record,) = store.records()
    assert record["label"] == "+score_constraint"
    label = "tiny data.size=32 model.width=8 texture.tem_levels=4 texture.ptfem_levels=2 train.batch=4 train.steps=2"
    assert {g.label for g in store.grids()} == {label}
    assert record["threads"] == 1
    assert json.loads((store.folder / "data/parts.json").read_text())["fingerprint"] == record["fingerprint"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "dask"], "unknown backend 'dask'; choose one of local, processes, ray"),
        (["--backend", "local", "--workers", "2"], "--workers 2 needs --backend processes or ray"),
        (["--workers", "0"], "--workers 0 must be at least 1"),
        (["--gpus", "1"], "--gpus and --address are for --backend ray"),
        (["--address", "auto"], "--gpus and --address are for --backend ray"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
        (["--seeds", "two"], "--seeds two must be how many, or integers"),
        (["--seeds", "0,1.5"], "--seeds 0,1.5 must be how many, or integers"),
        (["--seeds", "0"], "--seeds 0 must name at least one seed"),
        (["--seeds", "1,1"], "none twice"),
        (["--seeds", f"0,{2**31}"], "train.seed"),
        (["--part", "3/2"], "--part 3/2 must be I/N"),
        (["--part", "0/2"], "--part 0/2 must be I/N"),
        (["--part", "half"], "--part half must be I/N"),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--set", "data.sizes=4"], "data.sizes"),
        (["--set", "train.steps=many"], "train.steps"),
        (["--set", "model.texture=false"], "take them out of --set"),
        (["--set", "pseudo.ratio=0.3"], "take them out of --set"),
        (["--set", "method=padim"], "take them out of --set"),
        (["--set", "train.seed=1"], "give --seeds"),
        (["--device", "warp"], "device 'warp' cannot be used here"),
        (["--data", "nowhere"], "nowhere does not exist or is not a folder"),
        (["--categories", "nuts"], "unknown category 'nuts'; there are parts"),
        (["--good", "OK"], "has no folder OK"),
        (["--bad", "NOK"], "data.bad needs data.good too"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    mlffn: Mlffn, options: list[str], words: list[str], message: str, tmp_path: Path
) -> None:
    for table in ("table3", "tables"):
        assert message in refused(mlffn("study", table, *options, "--out", tmp_path / "new", *words))
    assert not (tmp_path / "new").exists()


def test_folders_of_any_names_are_compared_on(mlffn: Mlffn, options: list[str], parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "train/good", tmp_path / "shop/OK/monday")
    shutil.copytree(parts / "test/scratch", tmp_path / "shop/NOK")
    words = ["study", "compare", *options[2:], "--methods", "density", "--backend", "local", "--out", tmp_path / "new"]
    shop = [tmp_path / "shop", "--good", "OK", "--bad", "NOK"]
    assert "sub-folders with --recursive" in refused(mlffn(*words, *shop))
    code, printed, _ = mlffn(*words, *shop, "--recursive")
    assert code == 0
    assert "| shop |" in printed
    (record,) = Store(tmp_path / "new").records()
    assert record["config"]["data"]["good"] == "OK"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--categories", ","], "--categories names none; there are bolts, nuts"),
        (["--categories", "bolts,screws"], "unknown category 'screws'; there are bolts, nuts"),
        ([], "bolts/train/good holds no image"),
    ],
)
def test_bad_categories_are_one_line_and_write_nothing(
    mlffn: Mlffn, options: list[str], words: list[str], message: str, tmp_path: Path
) -> None:
    for name in ("bolts", "nuts"):
        (tmp_path / "data" / name / "train/good").mkdir(parents=True)
    line = refused(mlffn("study", "table4", tmp_path / "data", *options[2:], "--out", tmp_path / "new", *words))
    assert message in line
    assert not (tmp_path / "new").exists()


def test_a_store_that_does_not_fit_is_refused_and_left_as_it_is(
    mlffn: Mlffn, store: Store, options: list[str], parts: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))
    (copy / "test/good/001.png").write_bytes((copy / "test/good/002.png").read_bytes())
    before = snapshot(store.folder)
    line = refused(mlffn("study", "table4", copy, *options[2:], "--out", store.folder))
    assert re.search(r"parts has changed since .* ran \(test/good/001\.png differs\); restore it or choose", line)
    assert snapshot(store.folder) == before

    path = store.paths()[3]
    original = path.read_text()
    record = json.loads(original)
    write_sealed(path, {k: v for k, v in record.items() if k != "seal"} | {"numerics": "0.0.9"})
    for content, message in (
        (path.read_text(), "comes from numerics 0.0.9"),
        (original.replace(f'"numerics": "{NUMERICS}"', '"numerics": "0.0.9"'), "is damaged or foreign"),
        (original[:1000], "is damaged or foreign"),
        ("{}", "is damaged or foreign"),
    ):
        path.write_text(content)
        for words in (["study", "table4", *options, "--out"], ["study", "status"], ["report"]):
            line = refused(mlffn(*words, store.folder))
            assert message in line
            assert path.name in line
        assert path.read_text() == content
    path.write_text(original)
    assert snapshot(store.folder) == before


def test_no_space_and_no_folder_are_one_line(
    mlffn: Mlffn, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(mlffn("study", "table4", *options, "--out", tmp_path / "file"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(mlffn("study", "table4", *options, "--out", tmp_path / "new"))
    assert "No space left on device; free space or choose another folder" in line
    assert not [p for p in (tmp_path / "new").rglob("*") if p.is_file()]


def test_without_ray_it_says_what_to_install(
    mlffn: Mlffn, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(mlffn("study", "table4", *options, "--backend", "ray", "--out", tmp_path / "new"))
    assert line == "mlffn: the package ray is not installed; it comes with pip install 'mlffn-lite[distributed]'"


def test_a_failed_cell_is_exit_code_1_and_in_the_status(mlffn: Mlffn, options: list[str], tmp_path: Path) -> None:
    overflow = ["optimizer=sgd", "weight_decay=10", "lr=1000", "backbone_lr=1000", "steps=20"]
    changes = [word for text in overflow for word in ("--set", f"train.{text}")]
    words = ["study", "table4", *options, *changes, "--backend", "local", "--part", "1/5", "--out", tmp_path / "s"]
    code, printed, errors = mlffn(*words)
    assert code == 1
    assert printed.startswith(f"0 of 1 cells are in {tmp_path / 's'};")
    live, last = errors.splitlines()
    assert live.startswith("[1/1] parts baseline seed 0: loss is not finite at step ")
    assert re.match(r"mlffn: parts-mlffn-seed0-[0-9a-f]{10} failed: loss is not finite at step ", last)
    code, printed, _ = mlffn("study", "status", tmp_path / "s")
    assert code == 0
    assert "0 finished, 0 running, 1 failed" in printed
    assert "failed: parts-mlffn-seed0-" in printed
    assert "Traceback" in next((tmp_path / "s/cells").glob("*.failed.json")).read_text()
    assert "holds no finished cell" in refused(mlffn("report", tmp_path / "s"))
    assert mlffn(*words)[0] == 1  # it has run again


def test_status_says_what_is_there_and_what_runs(mlffn: Mlffn, store: Store, cells: list[Cell], tmp_path: Path) -> None:
    code, printed, _ = mlffn("study", "status", store.folder)
    assert code == 0
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0] == ["set", "study", "column", "seeds"]
    assert ["parts", "table4", "baseline", "0"] in lines
    assert {line[2] for line in lines if line[1:2] == ["table4"]} == set(ARMS)
    assert "5 finished (5 mlffn), 0 running, 0 failed" in printed

    store.path(cells[1]).unlink()
    lock = store.claim(cells[1])
    assert lock is not None
    name = cells[1].name.removesuffix(".json")
    code, printed, _ = mlffn("study", "status", store.folder)
    assert "4 finished (4 mlffn), 1 running, 0 failed" in printed
    assert f"running: {name}" in printed
    store.release(lock)

    fresh = Store(tmp_path / "fresh")
    lock = fresh.claim(cells[1])
    assert lock is not None
    code, printed, _ = mlffn("study", "status", fresh.folder)  # a study that has just begun
    assert code == 0
    assert f"0 finished, 1 running, 0 failed\nrunning: {name}" in printed
    fresh.release(lock)
    assert "holds no finished cell" in refused(mlffn("study", "status", fresh.folder))
    assert "holds no finished cell" in refused(mlffn("study", "status", tmp_path / "gone"))


def test_report_runs_nothing_and_says_where_it_is(mlffn: Mlffn, store: Store, tmp_path: Path) -> None:
    before = snapshot(store.folder)
    code, printed, errors = mlffn("report", store.folder, "--out", tmp_path / "page")
    assert (code, errors) == (0, "")
    assert printed.startswith("# What the data support")
    assert printed.endswith(f"Report: {tmp_path / 'page/report.html'}\n")
    assert (tmp_path / "page/report.html").is_file()
    assert snapshot(store.folder) == before
    assert "holds no finished cell" in refused(mlffn("report", tmp_path / "gone"))


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, 40))))
def test_parts_share_the_cells_out(case: tuple[int, int]) -> None:
    count, cells = case
    shares = [list(range(cells))[commands._parse_part(f"{i}/{count}")] for i in range(1, count + 1)]
    assert sorted(c for share in shares for c in share) == list(range(cells))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("cores", "threads", "backend", "workers", "expected"),
    [
        (8, 1, "processes", None, 8),
        (8, 3, "processes", None, 2),  # cells times threads stay within the cores
        (8, 16, "processes", None, 1),
        (8, 1, "local", None, 1),
        (8, 1, "processes", 3, 3),
        (8, 1, "ray", None, 8),
    ],
)
def test_by_default_cells_fill_the_cores_and_no_more(
    cores: int, threads: int, backend: str, workers: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    options = commands.Options(threads=threads, backend=backend, workers=workers)
    found = options._workers(Config.preset("tiny", train={"device": "cpu"}), fresh=False)
    assert (found.backend, found.count) == (backend, expected)


def test_parts_that_are_none() -> None:
    for text in ("", "1", "1/", "/2", "1/0", "2/1", "-1/2", "1/2/3", "a/b"):
        with pytest.raises(ConfigError, match="must be I/N with I from 1 to N"):
            commands._parse_part(text)


def test_one_table_of_varied_values_in_the_order_given(mlffn: Mlffn, options: list[str], tmp_path: Path) -> None:
    words = ["--vary", "loss.gamma=5,1", "--methods", "mlffn", "--backend", "local", "--out", tmp_path / "s"]
    code, printed, errors = mlffn("study", "grid", *options, *words)
    assert code == 0, errors
    assert printed.startswith(f"2 of 2 cells are in {tmp_path / 's'};")
    rows = [[c.strip() for c in line.split("|")] for line in printed.splitlines() if line.startswith("| parts |")]
    assert [row[1:5] for row in rows] == [["parts", "32×32", f"loss.gamma={g}", "1"] for g in (5, 1)]
    assert f"Report: {tmp_path / 's/report/report.html'}" in printed
    assert "loss.gamma=5 → loss.gamma=1, PRO" in (tmp_path / "s/report/claims.md").read_text()


def test_all_methods_are_a_word_and_the_default(mlffn: Mlffn, options: list[str], tmp_path: Path) -> None:
    names = registry.names("methods")
    for words in ([], ["--methods", "all"]):
        folder = tmp_path / f"study{len(words)}"
        code, _, _ = mlffn(
            "study", "compare", *options, *words, "--backend", "local", "--out", folder, "--part", "2/99"
        )
        assert code == 0
        (grid,) = Store(folder).grids()
        assert list(grid.columns) == names


def test_a_method_that_fails_hides_no_other(
    mlffn: Mlffn, parts: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "never.py").write_text(
        "from mlffn_lite.detector import AnomalyDetector\n\nclass Never(AnomalyDetector):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--methods", "never:Never,padim", "--backend", "local", "--out", tmp_path / "s"]
    code, printed, errors = mlffn("study", "compare", parts, *options[2:], *words)
    assert code == 1
    assert re.search(r"mlffn: parts-Never-seed0-\w+ failed: ", errors)
    assert "| parts | 32×32 | padim | 1 |" in printed
    assert printed.startswith(f"1 of 2 cells are in {tmp_path / 's'};")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--methods", "padim,magic"], "unknown method 'magic'"),
        (["compare", "--methods", "padim,padim"], "must name each method once"),
        (["compare", "--methods", ","], "must name each method once"),
        (["compare", "--set", "train.seed=2"], "give --seeds"),
        (["grid", "--vary", "loss.gama=1,2"], "loss.gama"),
        (["grid", "--vary", "loss.gamma=1,1.0"], "are the same configuration"),
        (["grid", "--vary", "train.seed=1,2"], "methods, seeds and device are options"),
    ],
)
def test_bad_columns_are_one_line_and_write_nothing(
    mlffn: Mlffn, options: list[str], words: list[str], message: str, tmp_path: Path
) -> None:
    assert message in refused(mlffn("study", words[0], *options, "--out", tmp_path / "new", *words[1:]))
    assert not (tmp_path / "new").exists()
