"""What each ingredient of the preset ``lite`` buys: ``python tests/benchmarks/ablation.py DATA… --out FOLDER``.

Every arm changes the preset in one thing and is trained on every data folder with every seed. The preset itself, and
what its network's score and its density reach alone, come from a comparison that ``mlffn peers`` has run (``--base``).
Finished cells are not run again. With ``--table`` nothing is run: the table is made from the cells that are there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from mlffn_lite import comparison
from mlffn_lite.config import Config
from mlffn_lite.storage import write_atomic

ARMS: dict[str, list[str]] = {
    "pseudo-anomalies of the paper": ["pseudo.confetti=1", "pseudo.cutpaste=1", "pseudo.blemish=0"],
    "the paper's and blemishes, half each": ["pseudo.confetti=1", "pseudo.cutpaste=1", "pseudo.blemish=2"],
    "backbone's statistics follow the data": ["train.backbone=batch_stats"],
    "density at stride 8 only": ["model.density_strides=[8]"],
    "density at stride 16 only": ["model.density_strides=[16]"],
}
PARTS = {"score": "lite, network's score alone", "density": "lite, density alone"}
METRICS = list(comparison.PERCENT)


def rows(folder: Path, base: Path) -> pd.DataFrame:
    """Return arm, set, seed and metrics of all cells; the parts of the preset's cells count as arms."""
    preset, arms = comparison.read_cells(base).query("method == 'mlffn'"), comparison.read_cells(folder)
    found = [preset.assign(arm="lite"), arms.assign(arm=arms["label"])]
    for part, arm in PARTS.items():
        measured = pd.DataFrame([parts[part] for parts in preset["parts"]], index=preset.index)
        found.append(preset.assign(arm=arm, **measured))
    cells = pd.concat(found)
    return cells.assign(set=cells["set"] + " " + cells["shape"])[["arm", "set", "seed", *METRICS]]


def table(folder: Path, base: Path) -> str:
    """Return the arms' metrics in percent, image AUROC / pixel AUROC / PRO, mean ± sample standard deviation."""
    cells = rows(folder, base)
    known = ["lite", *PARTS.values(), *ARMS]
    earlier = sorted(set(cells["arm"]) - set(known))  # what was measured before the preset changed
    sets = sorted(cells[cells["arm"].isin([*ARMS, *earlier])]["set"].unique())
    lines = []
    for arm in (*known, *earlier):
        if (cells["arm"] == arm).any():
            chosen = [100 * cells[(cells["arm"] == arm) & (cells["set"] == name)][METRICS] for name in sets]
            lines.append([arm, *map(_entry, chosen)])
    seeds = ", ".join(map(str, sorted(cells["seed"].unique())))
    text = comparison.markdown_table(["", *sets], lines, text=1 + len(sets))
    return f"{text}\n\nSeeds {seeds}; image AUROC / pixel AUROC / PRO.\n"


def _entry(cells: pd.DataFrame) -> str:
    """Return the metrics of one arm on one set, a dash where it was not run."""
    spreads = [comparison.spread(cells[k].mean(), cells[k].std(ddof=1), 1) for k in METRICS]
    return "–" if cells.empty else " / ".join(spreads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of the comparison that holds the preset")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all arms")
    parser.add_argument("--arm", action="append", choices=[*ARMS], help="only these")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    failures: dict[str, str] = {}
    for arm in [] if options.table else options.arm or ARMS:
        config = Config.preset("lite").override([*options.set, *ARMS[arm]])
        cells = comparison.plan(options.data, ["mlffn"], config, options.seeds, arm)
        failures |= comparison.run(cells, options.out)
    for name, reason in failures.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    text = table(options.out, options.base)
    write_atomic(options.out / "ablation.md", text)
    print(text)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
