"""Methods side by side, as a user meets them: processes, files, tables, interruptions."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from mlffn_lite import cli, comparison
from mlffn_lite.config import Config
from mlffn_lite.errors import StudyError
from mlffn_lite.storage import write_json
from mlffn_lite.studies.cell import Cell

FAST = ["--preset", "tiny", "--device", "cpu", "--methods", "padim,patchcore", "--seeds", "1"]
CONFIG = Config.preset("tiny", train={"device": "cpu"})


def mlffn(*arguments: object) -> int:
    """Run the command in this process; its cells run in others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mlffn", "peers", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def done(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder, printed = tmp_path_factory.mktemp("peers") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert mlffn(parts, "--out", folder, *FAST) == 0
    return folder, printed.getvalue()


def test_every_cell_is_a_file_that_says_all(done: tuple[Path, str]) -> None:
    cells = sorted((done[0] / "cells").iterdir())
    assert [c.name.rsplit("-", 1)[0] for c in cells] == ["parts-padim-seed0", "parts-patchcore-seed0"]
    for path in cells:
        cell = json.loads(path.read_text())
        assert all(0.5 < cell[k] <= 1 for k in ("image_auroc", "pixel_auroc", "pro"))
        assert (cell["shape"], cell["images"], cell["train_images"]) == ([64, 64], 8, 12)
        assert min(cell["fit_seconds"], cell["predict_ms"]) > 0
        assert 100 < cell["peak_memory_mb"] < 20_000
        assert cell["config"] == CONFIG.to_dict()
        assert {"precision", "threads", "versions", "device", "fingerprint"} <= cell.keys()


def test_tables_hold_the_numbers(done: tuple[Path, str]) -> None:
    folder, printed = done
    table = pd.read_csv(folder / "comparison.csv")
    cells = [json.loads(p.read_text()) for p in (folder / "cells").glob("*.json")]
    by_method = {c["method"]: c for c in cells}
    assert list(table["method"]) == ["patchcore", "padim"]  # the order of the registry
    for row in table.to_dict("records"):
        assert row["pro"] == pytest.approx(100 * by_method[row["method"]]["pro"])
        assert math.isnan(row["pro_std"])
        assert f"{row['pro']:.1f}" in printed
    markdown = (folder / "comparison.md").read_text()
    assert "± " not in markdown.partition("tiny;")[0]
    assert "tiny; seeds 0; cpu" in markdown
    (folder / "comparison.md").unlink()
    assert comparison.write_tables(folder) == markdown == (folder / "comparison.md").read_text()


def test_only_what_is_not_finished_is_run_and_a_failure_stops_no_other(
    done: tuple[Path, str], parts: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(done[0], tmp_path / "out"))
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "cells").iterdir()}
    gone = next(p for p in (folder / "cells").iterdir() if "padim" in p.name)
    numbers = json.loads(gone.read_text())
    gone.unlink()
    other = Path(shutil.copytree(parts, tmp_path / "other"))
    cells = comparison.plan([other], ["padim"], CONFIG, 1, "tiny")
    cells += comparison.plan([parts], ["padim", "patchcore"], CONFIG, 1, "tiny")
    (other / "test/good/000.png").unlink()
    failures = comparison.run(cells, folder, progress=False)

    after = {p.name: p.stat().st_mtime_ns for p in (folder / "cells").iterdir()}
    assert [name for name in before if before[name] != after[name]] == [gone.name]
    again = json.loads(gone.read_text())
    assert all(again[k] == numbers[k] for k in ("image_auroc", "pixel_auroc", "pro"))  # to the last bit
    failed = Path(cells[0].name)
    assert after.keys() - before.keys() == {f"{failed.stem}.failed.json"}
    assert list(failures) == [failed.stem]
    assert "has changed since" in failures[failed.stem]
    markdown = comparison.write_tables(folder)
    assert "| parts | 64x64 | padim | 1 |" in markdown
    assert "| other |" not in markdown
    assert f"Failed: {failed.stem} (" in markdown


def test_what_determines_a_result_determines_its_file(parts: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))

    def names(data: Path, config: Config = CONFIG, seeds: int = 1, label: str = "") -> list[str]:
        return [c.name for c in comparison.plan([data], ["padim"], config, seeds, label)]

    assert names(parts) == names(copy, label="other words")
    assert names(parts) == names(parts, seeds=2)[:1]
    assert names(parts, seeds=2)[1:] == names(parts, CONFIG.replace(train={"seed": 1}))
    assert names(parts) != names(parts, CONFIG.replace(data={"size": 96}))
    (copy / "test/good/000.png").unlink()
    assert names(parts) != names(copy)


def test_failures_are_exit_code_1(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # no process can measure anything
    assert mlffn(parts, "--out", tmp_path / "out", *FAST) == 1
    assert capsys.readouterr().err.count("failed: ended with code 1") == 2


def test_an_interrupted_comparison_says_how_to_go_on(parts: Path, tmp_path: Path) -> None:
    arguments = [parts, "--out", tmp_path / "out", *FAST[:4], "--methods", "mlffn", "--set", "train.steps=100000"]
    command = [sys.executable, "-m", "mlffn_lite", "peers", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        while "parts-mlffn-seed0" not in seen and process.poll() is None:
            seen += process.stderr.read(1)
        time.sleep(1)
        os.kill(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with the same command" in printed
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob("cells/*"))


def test_spread_is_the_sample_standard_deviation(tmp_path: Path, done: tuple[Path, str]) -> None:
    cell = json.loads(next((done[0] / "cells").glob("*padim*")).read_text())
    values = [0.90, 0.95, 0.85]
    for seed, value in enumerate(values):
        config = {**cell["config"], "train": {**cell["config"]["train"], "seed": seed}}
        changed = {**cell, "seed": seed, "image_auroc": value, "pro": float("nan"), "config": config}
        write_json(tmp_path / "cells" / Cell.of(changed).name, changed)
    larger = {**cell, "config": CONFIG.replace(data={"size": 96}).to_dict()}
    write_json(tmp_path / "cells" / Cell.of(larger).name, larger)
    markdown = comparison.write_tables(tmp_path)
    assert "90.0 ± 5.0 |" in markdown
    assert "| – |" in markdown  # no mask, no PRO
    assert markdown.count("| set | pixels | method |") == 2  # another size is another table
    table = pd.read_csv(tmp_path / "comparison.csv")
    mine = table[table["seeds"] == 3].iloc[0]
    assert mine["image_auroc_std"] == pytest.approx(100 * statistics.stdev(values))


def test_peak_memory_is_that_of_the_process_itself() -> None:
    """What is freed again counts, and what the process that started it holds does not."""
    code = "b = b'x' * 500_000_000; del b; from mlffn_lite.studies.cell import peak_memory; print(peak_memory())"
    ballast = b"x" * 2_000_000_000
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    del ballast
    assert 500e6 < peak < 1.9e9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "padim,magic"], "unknown method 'magic'"),
        (["--methods", "padim,padim"], "must name each method once"),
        (["--methods", ","], "must name each method once"),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
        (["--set", "data.sizes=4"], "unknown key data.sizes"),
        (["--device", "warp"], "cannot be used here"),
    ],
)
def test_bad_options_are_one_line(
    parts: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mlffn(parts, "--out", tmp_path / "out", *FAST, *options) == 2
    assert message in only_line(capsys)
    assert not (tmp_path / "out").exists()


def test_bad_folders_are_one_line(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin = Path(shutil.copytree(parts, tmp_path / "twin" / "parts"))

    def refused(*data: Path) -> str:
        assert mlffn(*data, "--out", tmp_path / "out", *FAST) == 2
        assert not (tmp_path / "out").exists()
        return only_line(capsys)

    assert "does not exist" in refused(parts, tmp_path / "gone")
    assert "same name" in refused(parts, twin)
    assert "no test images" in refused(parts / "train/good")
    shutil.rmtree(twin / "test/scratch")
    assert "needs good and defective" in refused(twin)
    (twin / "train/good/000.png").write_bytes(b"broken")
    assert "000.png" in refused(twin)


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_folder_without_cells_and_a_damaged_cell_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no finished cell"):
        comparison.write_tables(tmp_path)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/a.json").write_text("{")
    with pytest.raises(StudyError, match=r"a\.json is damaged"):
        comparison.write_tables(tmp_path)
