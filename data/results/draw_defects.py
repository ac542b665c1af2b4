"""Draw defective images that MiniParts does not have: ``python data/results/draw_defects.py OUT``.

``OUT/CATEGORY`` gets four times as many as the bundled set has, drawn with other seeds. ``mlffn study suspects``
looks for them in ``build/defects``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

SEEDS = (101, 102, 103, 104)


def main(out: Path) -> None:
    """Draw all categories into a folder."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "notebooks"))
    from course.miniparts.files import generate

    with tempfile.TemporaryDirectory() as scratch:
        for seed in SEEDS:
            root = Path(scratch, str(seed))
            generate(root, seed=seed, wanted=lambda name: name[1] == "test" or name[3] == 0)
            for path in root.glob("*/*/*/*.png"):
                folder = out / path.relative_to(root).parent
                folder.mkdir(parents=True, exist_ok=True)
                shutil.move(path, folder / f"{seed}_{path.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
