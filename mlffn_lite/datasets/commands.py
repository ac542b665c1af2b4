"""The commands ``mlffn data verify``, ``list`` and ``download``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..escaped import printable
from ..options import Bad, DataFolder, Good, Recursive, folder_name, out

data_app = typer.Typer(help="Check data folders, list and download public sets.", no_args_is_help=True)


@data_app.command("verify")
def data_verify(path: DataFolder, good: Good = None, bad: Bad = None, recursive: Recursive = False) -> None:
    """Print what a data folder or list holds and every fault; exit code 2 if there is one."""
    from .verify import verify

    report = verify(path, good=good or "", bad=bad or (), recursive=recursive)
    for line in report.lines():
        out.print(printable(line))
    if report.faults:
        raise typer.Exit(2)


@data_app.command("list")
def data_list() -> None:
    """List the public sets in the catalogue with licence and size."""
    from .catalog import CATALOG

    table = Table("name", "title", "licence", "size", "checksum", box=None)
    for entry in CATALOG.values():
        table.add_row(*entry.row())
    Console().print(table)


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="A name from `mlffn data list`.")],
    category: Annotated[
        str | None, typer.Option(help="Category whose folder to print; the archive is always fetched whole.")
    ] = None,
    root: Annotated[
        Path, typer.Option(parser=folder_name, metavar="DIR", help="Folder that the set is put into.")
    ] = Path("datasets"),
) -> None:
    """Download a public set, verify it, and bring it into MVTec layout."""
    from .catalog import download

    out.print(f"{name} is in {download(name, root, category=category)}")
