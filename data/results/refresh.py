"""Make every table and figure of the committed results anew, without training: ``python data/results/refresh.py``.

Cells that an earlier version measured are given their digest, once; one whose digest is wrong stops everything. Tables
go beside their cells and, between markers, into README.md and the pages of ``docs``; figures go to ``figures``. A page
shows a table between the lines ``<!-- results: FOLDER/report/TABLE.md -->`` and ``<!-- /results -->``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mlffn_lite.storage import write_atomic
from mlffn_lite.studies.report import write_reports
from mlffn_lite.studies.store import Store

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STUDIES = (
    "compare_real",
    "compare_miniparts",
    "methods_miniparts",
    "methods_real",
    "miniparts",
    "miniparts_smaller",
    "real",
)
SUSPECTS = (
    "suspects_miniparts",
    "suspects_rows",
    "suspects_kinds",
    "suspects_trained",
    "suspects_settings",
    "suspects_real",
)
"""Experiments about Table 4, of which only what they explain is drawn."""


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages that may show tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main() -> None:
    """Refresh all that is there."""
    for name in (*STUDIES, *SUSPECTS):
        if (HERE / name / "cells").is_dir():
            Store(HERE / name).seal()
            (report,) = write_reports(HERE / name)
            panels = sorted(report.glob("maps_*.png"))[1:]  # one set's heatmaps are enough to commit
            figures = {report / "attribution.png"} if name in SUSPECTS else {*report.glob("*.png")} - {*panels}
            for figure in figures:
                shutil.copyfile(figure, ROOT / "figures" / f"{name}_{figure.name}")
    for page in pages():
        if (new := with_tables(text := page.read_text("utf-8"))) != text:
            write_atomic(page, new)


def with_tables(text: str, results: Path = HERE) -> str:
    """Return a page with what stands between ``<!-- results: FILE -->`` and ``<!-- /results -->`` read anew.

    A file that is not there leaves its block as it is.
    """

    def block(match: re.Match[str]) -> str:
        file = results / match[2]
        return f"{match[1]}\n\n{file.read_text('utf-8').strip()}\n\n{match[3]}" if file.is_file() else match[0]

    # No other comment lies between the markers: nothing that people wrote is swallowed where an end is missing.
    return re.sub(r"(<!-- results: (\S+) -->)\n(?:(?!<!-- ).)*?(<!-- /results -->)", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
