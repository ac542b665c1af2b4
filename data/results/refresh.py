"""Make every table and figure of the committed results anew, without training: ``python data/results/refresh.py``.

Tables go beside their cells and into the README, between its markers; figures of the studies go to ``figures``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from mlffn_lite import comparison
from mlffn_lite.runs import write_atomic
from mlffn_lite.studies.report import write_reports

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STUDIES = ("miniparts", "real")
README = ROOT / "README.md"


def main() -> None:
    """Refresh all."""
    comparison.write_tables(HERE / "peers")
    ablation = [sys.executable, ROOT / "tests/benchmarks/ablation.py", "--table"]
    subprocess.run([*ablation, "--base", HERE / "peers", "--out", HERE / "ablation"], check=True, capture_output=True)
    for name in STUDIES:
        if (HERE / name).is_dir():
            (report,) = write_reports(HERE / name)
            panels = sorted(report.glob("maps_*.png"))[1:]  # one set's heatmaps are enough to commit
            for figure in {*report.glob("*.png")} - {*panels}:
                shutil.copyfile(figure, ROOT / "figures" / f"{name}_{figure.name}")
    write_atomic(README, with_tables(README.read_text("utf-8")))


def with_tables(text: str) -> str:
    """Return the README with what stands between ``<!-- results: FILE -->`` and ``<!-- /results -->`` read anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{(HERE / match[2]).read_text('utf-8').strip()}\n\n{match[3]}"

    return re.sub(r"(<!-- results: (\S+) -->)\n.*?\n(<!-- /results -->)", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
