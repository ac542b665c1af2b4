"""notebooks/conftest.py really fails the sessions that it should fail: a small series, run by pytest and nbval."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lessons import FOLDER

ENTRY = '[[notebook]]\nfile = "{0}"\nminutes = {1}\nstrict = {2}\n'
TIDY = 'import os\nprint(os.environ["MLFFN_MODE"], os.environ["OMP_NUM_THREADS"], os.environ.get("MLFFN_FIGURES"))'


def notebook(path: Path, source: str, printed: str, tags: list[str]) -> None:
    """Write a notebook of one executed cell."""
    said = nbformat.v4.new_output("stream", text=printed)
    cell = nbformat.v4.new_code_cell(source, outputs=[said], execution_count=1, metadata={"tags": tags})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A series in which only 00 is as it should be; 05 is not there."""
    for name in ("conftest.py", "sanitise.cfg"):
        shutil.copy(FOLDER / name, tmp_path)
    notebook(tmp_path / "00_good.ipynb", TIDY, "small 1 None\n", [])
    notebook(tmp_path / "01_lax.ipynb", "print(object())", "<object object at 0xffffffffff>", [])
    notebook(tmp_path / "02_strict.ipynb", "print(object(), 1)", "<object object at 0xffffffffff> 1\n", [])
    notebook(tmp_path / "03_strict.ipynb", "print(1)", "2\n", [])
    notebook(tmp_path / "04_slow.ipynb", "import time; time.sleep(3)", "", [])
    notebook(tmp_path / "06_never.ipynb", "print(1)", "1\n", ["nbval-skip"])
    minutes = {"04_slow.ipynb": 0.02}
    names = [*sorted(p.name for p in tmp_path.glob("*.ipynb")), "05_absent.ipynb"]
    entries = [ENTRY.format(n, minutes.get(n, 5), str("strict" in n).lower()) for n in names]
    (tmp_path / "series.toml").write_text("".join(entries), "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --dist loadfile\n", "utf-8")
    return tmp_path


def session(folder: Path, *arguments: str, patience: str = "1") -> tuple[int, str]:
    """Run the notebooks; returns exit code and output."""
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=60", "--nbval-sanitize-with=sanitise.cfg"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *options, *arguments]
    noisy = {
        **os.environ,
        "MLFFN_PATIENCE": patience,
        "MLFFN_MODE": "full",
        "MLFFN_FIGURES": str(folder),
        "OMP_NUM_THREADS": "7",
    }
    done = subprocess.run(command, cwd=folder, env=noisy, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_fault_fails_the_session(folder: Path, workers: str) -> None:
    code, said = session(folder, "-n", workers, ".")
    assert code == 1
    failed = set(re.findall(r"^FAILED (\w+\.ipynb)", said, re.MULTILINE))
    assert failed == {"03_strict.ipynb", "04_slow.ipynb", "06_never.ipynb"}
    assert re.search(r"04_slow.ipynb took \d+ s, more than twice the 1 s declared", said)
    assert "06_never.ipynb did not run: none of its cells was executed" in said
    assert "05_absent" not in said
    assert "4 passed" in said
    assert "1 failed" in said


@pytest.mark.slow
def test_good_notebooks_pass_and_slow_or_idle_ones_alone_fail_the_session(folder: Path) -> None:
    code, said = session(folder, "00_good.ipynb", "01_lax.ipynb", "02_strict.ipynb")
    assert code == 0, said
    code, said = session(folder, "04_slow.ipynb", "06_never.ipynb")
    assert code == 1
    assert "1 passed, 1 skipped" in said
    assert said.count("FAILED") == 2
    assert session(folder, "04_slow.ipynb", patience="60")[0] == 0
