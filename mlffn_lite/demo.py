"""The demonstration: one bundled category from good images to a one-page report."""

from __future__ import annotations

from pathlib import Path

from .config import Config
from .errors import CheckpointError
from .run_report import PANEL, REPORT
from .storage import CHECKPOINT, HISTORY, METRICS, write_atomic

MARK = ".demo"


def demo_config(seed: int = 0, device: str = "auto") -> Config:
    """Return the preset ``parts`` at 128 px, seconds on two cores."""
    return Config.preset("parts", data={"size": 128}, train={"seed": seed, "device": device})


def clear_demo(folder: Path) -> None:
    """Remove an earlier demonstration's files, and nothing else, from a folder.

    Raises
    ------
    CheckpointError
        If the folder holds a run that no demonstration wrote.
    """
    if (folder / CHECKPOINT).exists() and not (folder / MARK).exists():
        raise CheckpointError(f"{folder} holds a run that is not a demonstration; choose another folder")
    write_atomic(folder / MARK, "written by mlffn demo, which may replace this folder's run\n")
    for name in (CHECKPOINT, HISTORY, METRICS, REPORT, PANEL):
        (folder / name).unlink(missing_ok=True)
