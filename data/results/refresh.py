"""Make every table and figure of the committed results anew, without training: ``python data/results/refresh.py``.

Tables go beside their cells and into the README, between its markers; figures of the studies go to ``figures``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from mlffn_lite import comparison
from mlffn_lite.storage import write_atomic
from mlffn_lite.studies.report import write_reports

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STUDIES = ("miniparts", "real")
COSTS = ["fit_seconds", "predict_ms", "peak_memory_mb"]
README = ROOT / "README.md"
SETS = {
    "toothbrush": "MVTec AD toothbrush",
    "kolektor_sdd": "KolektorSDD",
    "magnetic_tile": "Magnetic tiles",
    **{name: f"MiniParts {name}" for name in ("weave", "flange", "pills")},
}
NAMES = {
    "mlffn": "**this network**",
    "patchcore": "PatchCore",
    "patchcore_fine": "PatchCore, no averaging",
    "padim": "PaDiM",
}


def main() -> None:
    """Refresh all."""
    comparison.write_tables(HERE / "peers")
    write_atomic(HERE / "peers/summary.md", summary(comparison.read_cells(HERE / "peers")))
    ablation = [sys.executable, ROOT / "tests/benchmarks/ablation.py", "--table"]
    subprocess.run([*ablation, "--base", HERE / "peers", "--out", HERE / "ablation"], check=True, capture_output=True)
    for name in STUDIES:
        if (HERE / name).is_dir():
            (report,) = write_reports(HERE / name)
            panels = sorted(report.glob("maps_*.png"))[1:]  # one set's heatmaps are enough to commit
            for figure in {*report.glob("*.png")} - {*panels}:
                shutil.copyfile(figure, ROOT / "figures" / f"{name}_{figure.name}")
    write_atomic(README, with_tables(README.read_text("utf-8")))


def summary(cells: pd.DataFrame) -> str:
    """Return the comparison as the README has it; costs are of cells that had the machine to themselves."""
    head = ["set, pixels", "method", *comparison.PERCENT.values(), "fit", "predict, ms/image", "peak memory, GB"]
    every, alone = (comparison.summarise(c).set_index(["set", "method"]) for c in (cells, cells[cells["threads"] == 2]))
    rows = []
    for place, its in SETS.items():
        for method, name in NAMES.items():
            found, costs = every.loc[(place, method)], ["", "", ""]
            if (place, method) in alone.index:
                seconds, milliseconds, megabytes = alone.loc[(place, method), COSTS]
                costs = [f"{seconds:.0f}", f"{milliseconds:.1f}", f"{megabytes / 1024:.1f}"]
            title = f"{its}, {found['shape'].replace('x', '×')}" if method == "mlffn" else ""
            metrics = [comparison.spread(found[k], found[f"{k}_std"], 1) for k in comparison.PERCENT]
            rows.append([title, name, *metrics, *costs])
    seeds = ", ".join(map(str, sorted(cells["seed"].unique())))
    return f"{comparison.markdown_table(head, rows, text=2)}\n\nSeeds {seeds}: mean ± sample standard deviation.\n"


def with_tables(text: str) -> str:
    """Return the README with what stands between ``<!-- results: FILE -->`` and ``<!-- /results -->`` read anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{(HERE / match[2]).read_text('utf-8').strip()}\n\n{match[3]}"

    return re.sub(r"(<!-- results: (\S+) -->)\n.*?\n(<!-- /results -->)", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
