"""``python -m course.miniparts OUT``, run in ``notebooks``, draws the set into OUT."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlffn_lite.errors import MlffnError

from .canvas import CANVAS
from .files import generate


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the set; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m course.miniparts", description="Draw the MiniParts set.")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--category", action="append", dest="categories", help="only this one (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=256, help=f"side in pixels, 32 to {CANVAS} (default 256)")
    options = parser.parse_args(arguments)
    try:
        generate(options.out, categories=options.categories, seed=options.seed, size=options.size)
    except MlffnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
