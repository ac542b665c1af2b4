"""Options that several commands have, as typer takes them."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default CUDA if there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one per core.")]
Recursive = Annotated[bool, typer.Option("--recursive", help="Read images in sub-folders too.")]
Good = Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder of good images in DATA (data.good).")]
Bad = Annotated[
    list[str] | None,
    typer.Option(metavar="FOLDER", help="Folder of defective ones in DATA; may be repeated (data.bad)."),
]
