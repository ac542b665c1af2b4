"""How pytest runs the notebooks with nbval: each once, strictly where ``series.toml`` says so, and within its time.

    cd notebooks
    pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=180 --nbval-sanitize-with=sanitise.cfg .

The session fails if a notebook took more than twice its declared minutes (times MLFFN_PATIENCE, where that is set), or
if none of its cells ran.
"""

from __future__ import annotations

import os
import tomllib
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SERIES = {e["file"]: e for e in tomllib.loads((FOLDER / "series.toml").read_text(encoding="utf-8"))["notebook"]}

BUSY = "; on a slow or busy machine set MLFFN_PATIENCE=3"


def pytest_configure(config: pytest.Config) -> None:
    """Let kernels compute as the stored outputs were computed, and write no figures."""
    os.environ.update(MLFFN_MODE="small", OMP_NUM_THREADS="1")
    os.environ.pop("MLFFN_FIGURES", None)
    if not hasattr(config, "workerinput"):  # with xdist the reports come together where the workers are started
        config.pluginmanager.register(Times(config), "notebook-times")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Compare the outputs of strict notebooks too, whatever nbval was told."""
    files = yield
    for file in files:
        if file_path.suffix == ".ipynb" and SERIES.get(file_path.name, {}).get("strict"):
            file.compare_outputs = True  # type: ignore[attr-defined]  # nbval's; its cells take their default from it
    return files


class Times:
    """Adds up what each notebook took, and judges it at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.on = (config.getoption("nbval_lax") or config.getoption("nbval")) and not config.getoption("collectonly")
        asked = [Path(config.invocation_params.dir, a.partition("::")[0]).resolve() for a in config.args]
        files = [FOLDER / name for name in SERIES]
        self.asked = [f for f in files if f.is_file() and any(f == a or a in f.parents for a in asked)]
        self.seconds: dict[str, float] = defaultdict(float)
        self.ran: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a cell's time; a skipped cell has not run."""
        name = Path(report.nodeid.partition("::")[0]).name
        self.seconds[name] += report.duration
        if report.when == "call" and not report.skipped:
            self.ran.add(name)

    def faults(self) -> list[str]:
        """Return a line per notebook that did not run, or not in its time."""
        lines = []
        for name in (f.name for f in self.asked if self.on):
            declared, seconds = 60 * SERIES[name]["minutes"], self.seconds[name]
            if name not in self.ran:
                lines.append(f"{name} did not run: none of its cells was executed")
            elif seconds > 2 * declared * float(os.environ.get("MLFFN_PATIENCE", "1")):
                lines.append(f"{name} took {seconds:.0f} s, more than twice the {declared:.0f} s declared{BUSY}")
        return lines

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the session for them."""
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and self.faults():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print them."""
        for line in self.faults():
            terminalreporter.write_line(f"FAILED {line}", red=True)
