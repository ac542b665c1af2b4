"""What the notebooks share: set-up, budgets, checkpoints, and figures with caption and alt text."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from PIL import Image as PILImage

from mlffn_lite import __version__
from mlffn_lite.errors import ConfigError
from mlffn_lite.figures import DPI, png_bytes
from mlffn_lite.storage import write_atomic

T = TypeVar("T")
MODES = ("small", "full", "explore")
_FIGURES = "MLFFN_FIGURES"


class Session(NamedTuple):
    """What a notebook runs with: its number (``"04"``), mode, seed, device and threads."""

    number: str
    mode: str
    seed: int
    device: torch.device
    threads: int


_session = Session("00", "small", 0, torch.device("cpu"), 1)


def setup(number: str, *, seed: int = 0, threads: int = 1, device: str = "cpu") -> Session:
    """Seed PyTorch, fix the number of threads, read the mode, and print all of it in a line.

    Parameters
    ----------
    number : str
        Number of the notebook, two digits; figures are named by it.
    seed : int
        Seed of PyTorch's global generator. The library draws from generators of its own.
    threads : int
        Threads to compute with; with another number sums round differently.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Raises
    ------
    ConfigError
        If the environment variable ``MLFFN_MODE`` is neither ``small`` (the default) nor ``full`` nor ``explore``.
    """
    global _session
    mode = os.environ.get("MLFFN_MODE", "small")
    if mode not in MODES:
        raise ConfigError(f"MLFFN_MODE is {mode!r}; set it to {', '.join(MODES)}")
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    _session = Session(number, mode, seed, torch.device(device), threads)
    version = torch.__version__.partition("+")[0]
    print(f"mlffn_lite {__version__}, torch {version}, {device}, {threads} thread(s), seed {seed}, mode {mode}")
    return _session


def budget(*, small: T, full: T) -> T:
    """Return the value for the mode of this run: ``steps = budget(small=60, full=400)``."""
    return full if _session.mode == "full" else small


def checkpoint(claim: str, holds: Any) -> None:
    """Print that a claim holds, or stop the notebook: what follows would not make sense.

    In the mode ``explore``, for who has changed something, a claim that fails is printed and the notebook goes on.
    """
    if not bool(holds) and _session.mode != "explore":
        raise AssertionError(f"does not hold: {claim}")
    print(f"✓ {claim}" if bool(holds) else f"✗ no longer holds: {claim}")


def show(figure: Figure | bytes, name: str, *, alt: str, caption: str, dpi: int = DPI) -> None:
    """Show a figure with its caption; its alt text is stored with the picture.

    The picture is written to the folder in ``MLFFN_FIGURES``, where that is set, as ``NN_name.png``.

    Parameters
    ----------
    figure : Figure or bytes
        A figure of :mod:`mlffn_lite.figures` or matplotlib, or a PNG.
    name : str
        Lower case, with underscores.
    alt : str
        What the picture shows, for who cannot see it.
    caption : str
        Markdown, shown beneath: what to notice.
    dpi : int
        Pixels per inch; fewer where many photographs would make the notebook large. A PNG stays as it is.
    """
    png = figure if isinstance(figure, bytes) else png_bytes(figure, alt=alt, dpi=dpi)
    display(Image(data=png, format="png"), metadata={"image/png": {"alt": alt}})
    display(Markdown(f"*{caption}*"))
    if folder := os.environ.get(_FIGURES):
        write_atomic(Path(folder) / f"{_session.number}_{name}.png", png)


def show_small(figure: Figure, name: str, *, alt: str, caption: str, dpi: int = 110) -> None:
    """Show a figure of many maps with 256 colours, in a third of the bytes."""
    picture, out = PILImage.open(io.BytesIO(png_bytes(figure, alt=alt, dpi=dpi))).convert("RGB"), io.BytesIO()
    picture.quantize(256, PILImage.Quantize.FASTOCTREE).save(out, "PNG", optimize=True)
    show(out.getvalue(), name, alt=alt, caption=caption)
