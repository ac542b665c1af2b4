"""What each ingredient of the preset ``parts`` buys: ``python tests/benchmarks/ablation.py DATA… --out FOLDER``.

Every arm changes the preset in one thing and is a column of a grid like any other; in the folder of a comparison its
cells serve both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlffn_lite.config import Config
from mlffn_lite.studies.commands import Options
from mlffn_lite.studies.grid import Grid, make_grid

PAPERS = {"confetti": 1.0, "cutpaste": 1.0}
ARMS: dict[str, dict[str, Any]] = {
    "preset parts": {},
    "mlffn alone, as in the paper": {"method": "mlffn"},
    "mlffn alone, trained on blemishes": {"method": "mlffn", "pseudo": {"kinds": {"blemish": 1.0}}},
    "density alone": {"method": "density"},
    "pseudo-anomalies of the paper": {"ensemble": {"kinds": PAPERS}},
    "the paper's and blemishes, half each": {"ensemble": {"kinds": {**PAPERS, "blemish": 2.0}}},
    "backbone's statistics follow the data": {"train": {"backbone": "batch_stats"}},
    "density at stride 8 only": {"density": {"strides": [8]}},
    "density at stride 16 only": {"density": {"strides": [16]}},
}


def ingredients(base: Config, label: str = "") -> Grid:
    """Return the grid of all arms; each one's difference is from the preset."""
    first, *others = ARMS
    columns = {arm: base.replace(**changes) for arm, changes in ARMS.items()}
    return make_grid("ingredients", base, columns, [(other, first) for other in others], label)


def main(
    data: Annotated[list[Path] | None, typer.Argument()] = None,
    folder: Annotated[Path, typer.Option("--out")] = Path("runs/study"),
    small: bool = False,
    seeds: str = "3",
    workers: int | None = None,
) -> None:
    """Run what has not been run yet, and write the tables."""
    options = Options(places=data, folder=folder, small=small, seeds=seeds, workers=workers)
    base, label = options.base("compare", "parts")
    options.run([ingredients(base, label)], base, show=True)


if __name__ == "__main__":
    typer.run(main)
