"""What several commands share: options as typer takes them, the console, and the number of threads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# Paths are printed as they are: no markup, no emoji, no wrapping.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

DataFolder = Annotated[Path, typer.Argument(metavar="DATA", help="MVTec-layout folder, or a folder of good images.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default CUDA if there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one per core.")]
Recursive = Annotated[bool, typer.Option("--recursive", help="Read images in sub-folders too.")]
Good = Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder of good images in DATA (data.good).")]
Bad = Annotated[
    list[str] | None,
    typer.Option(metavar="FOLDER", help="Folder of defective ones in DATA; may be repeated (data.bad)."),
]


def folder_name(text: str) -> Path:
    """Return the path that an option names, which must not be empty."""
    if not str(text):
        raise typer.BadParameter("a folder must have a name; . is this one")
    return Path(text)


def use_threads(threads: int | None) -> None:
    """Compute with so many threads, if a number was given."""
    if threads is not None:
        import torch  # takes seconds to import; `mlffn --help` shall not

        torch.set_num_threads(threads)
