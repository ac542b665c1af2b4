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

from mlffn_lite import cli
from mlffn_lite.config import Config
from mlffn_lite.errors import ConfigError
from mlffn_lite.studies import commands
from mlffn_lite.studies.cell import Cell
from mlffn_lite.studies.cost import makespan
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
    # The fourth column of Table 3 is the last arm of Table 4.
    code, printed, _ = mlffn("study", "table3", *options, "--out", store.folder, "--part", "4/6")
    assert (code, printed.partition(";")[0]) == (0, f"1 of 1 cells are in {store.folder}")
    assert snapshot(store.folder) == before


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
    assert (
        record["label"]
        == "tiny data.size=32 model.width=8 model.tem_levels=4 model.ptfem_levels=2 train.batch=4 train.steps=2"
    )
    assert record["threads"] == 1
    assert json.loads((store.folder / "data/parts.json").read_text())["fingerprint"] == record["fingerprint"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "dask"], "unknown backend 'dask'; choose one of local, joblib, ray"),
        (["--backend", "local", "--workers", "2"], "--workers 2 needs --backend joblib or ray"),
        (["--backend", "joblib", "--workers", "0"], "--workers 0 must be at least 1"),
        (["--backend", "joblib", "--gpus", "1"], "--gpus and --address are for --backend ray"),
        (["--address", "auto"], "--gpus and --address are for --backend ray"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
        (["--seeds", "two"], "--seeds two must be how many, or integers"),
        (["--seeds", "0,1.5"], "--seeds 0,1.5 must be how many, or integers"),
        (["--seeds", "0"], "--seeds 0 must name at least one seed"),
        (["--seeds", "1,1"], "none twice"),
        (["--seeds", f"0,{2**31}"], "train.seed = 2147483648 is out of range"),
        (["--part", "3/2"], "--part 3/2 must be I/N"),
        (["--part", "0/2"], "--part 0/2 must be I/N"),
        (["--part", "half"], "--part half must be I/N"),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--set", "data.sizes=4"], "unknown key data.sizes"),
        (["--set", "train.steps=many"], "train.steps must be of type int"),
        (["--set", "model.texture=false"], "take them out of --set"),
        (["--set", "pseudo.ratio=0.3"], "take them out of --set"),
        (["--device", "warp"], "device 'warp' cannot be used here"),
        (["--data", "nowhere"], "nowhere does not exist or is not a folder"),
        (["--categories", "parts"], "is one category; leave out --categories"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    mlffn: Mlffn, options: list[str], words: list[str], message: str, tmp_path: Path
) -> None:
    for table in ("table3", "tables"):
        assert message in refused(mlffn("study", table, *options, "--out", tmp_path / "new", *words))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--categories", ","], "--categories names none; there are bolts, nuts"),
        (["--categories", "bolts,screws"], "unknown category 'screws' in"),
        ([], "bolts: no images in train/good"),
    ],
)
def test_bad_categories_are_one_line_and_write_nothing(
    mlffn: Mlffn, options: list[str], words: list[str], message: str, tmp_path: Path
) -> None:
    for name in ("bolts", "nuts"):
        (tmp_path / "data" / name / "train/good").mkdir(parents=True)
    line = refused(mlffn("study", "table4", *options, "--data", tmp_path / "data", "--out", tmp_path / "new", *words))
    assert message in line or "bolts" in line
    assert not (tmp_path / "new").exists()


def test_a_store_that_does_not_fit_is_refused_and_left_as_it_is(
    mlffn: Mlffn, store: Store, options: list[str], parts: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))
    (copy / "test/good/001.png").write_bytes((copy / "test/good/002.png").read_bytes())
    before = snapshot(store.folder)
    line = refused(mlffn("study", "table4", *options, "--data", copy, "--out", store.folder))
    assert re.search(r"parts has changed since .* ran \(test/good/001\.png differs\); restore it or choose", line)
    assert snapshot(store.folder) == before

    path = store.paths()[3]
    original = path.read_text()
    for content, message in (
        (original.replace('"numerics": "0.1.0"', '"numerics": "0.0.9"'), "comes from numerics 0.0.9"),
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
    assert line == "mlffn: --backend ray needs Ray: pip install 'mlffn-lite[distributed]'"


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
    assert ["parts", "table3", "50", "0"] in lines
    assert {line[2] for line in lines if line[1:2] == ["table4"]} == set(ARMS)
    assert "5 finished (5 tiny), 0 running, 0 failed" in printed

    store.path(cells[1]).unlink()
    lock = store.claim(cells[1])
    assert lock is not None
    name = cells[1].name.removesuffix(".json")
    code, printed, _ = mlffn("study", "status", store.folder)
    assert "4 finished (4 tiny), 1 running, 0 failed" in printed
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
        (8, 1, None, None, ("joblib", 8)),
        (8, 3, None, None, ("joblib", 2)),  # cells times threads stay within the cores
        (8, 16, None, None, ("local", 1)),
        (1, 1, None, None, ("local", 1)),
        (8, 1, "local", None, ("local", 1)),
        (8, 1, None, 3, ("joblib", 3)),
        (8, 1, "ray", None, ("ray", 8)),
        (1, 1, "joblib", None, ("joblib", 1)),
    ],
)
def test_by_default_cells_fill_the_cores_and_no_more(
    cores: int, threads: int, backend: str | None, workers: int | None, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    base = Config.preset("tiny", train={"device": "cpu"})
    found = commands._workers(backend, workers, threads, 0.0, None, base)
    assert (found.backend, found.count) == expected


def test_plan_lays_cells_out(mlffn: Mlffn, parts: Path) -> None:
    """An hour per cell: 45 000 steps of 8 images at 100 images per second; 10 cells per seed."""
    words = ["study", "plan", "--preset", "tiny", "--set", "train.steps=45000", "--data", parts, "--seeds", "2"]
    code, printed, _ = mlffn(*words, "--rate", 100, "--devices", "1,3,64", "--faster", "1,4")
    assert code == 0
    assert "20 cells: 10 configurations, 1 categories,\n2 seeds." in printed
    rows = [line.split() for line in printed.splitlines()]
    assert rows[-4:] == [["devices", "1×", "4×"], ["1", "20.0", "5.0"], ["3", "7.0", "1.8"], ["64", "1.0", "0.2"]]
    for option, value in (
        ("--devices", "0"),
        ("--devices", "1,x"),
        ("--faster", "-1"),
        ("--rate", "0"),
        ("--seeds", "0"),
    ):
        assert option in refused(mlffn(*words, "--rate", "1", option, value))


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20), st.integers(1, 8))
def test_a_makespan_is_within_its_bounds(seconds: list[float], devices: int) -> None:
    best = max(sum(seconds) / devices, max(seconds))
    found = makespan(seconds, devices)
    assert best - 1e-9 <= found <= sum(seconds) + 1e-9
    assert found <= sum(seconds) / devices + max(seconds) + 1e-9
    assert makespan(seconds, 1) == pytest.approx(sum(seconds))


def test_parts_that_are_none() -> None:
    for text in ("", "1", "1/", "/2", "1/0", "2/1", "-1/2", "1/2/3", "a/b"):
        with pytest.raises(ConfigError, match="must be I/N with I from 1 to N"):
            commands._parse_part(text)
