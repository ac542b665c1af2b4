"""One run as one HTML page: headline metrics, figures, tables and how to reproduce them, with nothing to load.

The page has no script and no external resource (its own security policy forbids both), follows the reader's light or
dark setting, fits a phone, and prints.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from .figures import png_bytes
from .labels import METRIC_LABELS
from .storage import write_atomic

HEADLINES = {key: f"{label[:1].upper()}{label[1:]}" for key, label in METRIC_LABELS.items()} | {
    "pro": "PRO (to 30 % FPR)"
}


class ReportFigure(NamedTuple):
    """A figure of a report: heading, figure or PNG bytes, visible caption, and a description for who cannot see it."""

    title: str
    image: Figure | bytes
    caption: str
    alt: str


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: Mapping[str, Any],
    figures: Sequence[tuple[str, Figure | bytes, str, str]] = (),
    tables: Sequence[tuple[str, pd.DataFrame]] = (),
    config_toml: str = "",
    command: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write the page, whole or not at all, and return its path; the same input gives the same bytes.

    Parameters
    ----------
    path : path
        The HTML file.
    title : str
        Heading, for example the category and the preset.
    metrics : mapping
        ``image_auroc``, ``pixel_auroc`` and ``pro`` as fractions, shown large in percent, NaN as undefined;
        ``per_defect``, a mapping of fractions, becomes a table; every other plain value (seed, preset, device,
        size, seconds) is listed under its key.
    figures : sequence of ReportFigure or equal tuples
        In this order.
    tables : sequence of (str, DataFrame)
        Heading and content.
    config_toml, command : str
        How to reproduce the run.
    notes : sequence of str
        A paragraph each, shown under the metrics.
    """
    if per_defect := metrics.get("per_defect"):
        rows = [(name, _percent(value)) for name, value in per_defect.items()]
        tables = [("Image AUROC by defect", pd.DataFrame(rows, columns=["defect", "image AUROC"])), *tables]
    pages = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = pages.get_template("report.html.j2").render(
        title=title,
        cards=[(name, _percent(metrics[key])) for key, name in HEADLINES.items() if key in metrics],
        facts=_facts(metrics),
        figures=[_embed(ReportFigure(*figure)) for figure in figures],
        tables=tables,
        config_toml=config_toml,
        command=command,
        notes=notes,
    )
    write_atomic(Path(path), text)
    return Path(path)


def _percent(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{100 * value:.1f} %"


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    plain = {k: v for k, v in metrics.items() if k not in HEADLINES and isinstance(v, str | int | float)}
    return [(k.replace("_", " "), f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in plain.items()]


def _embed(figure: ReportFigure) -> dict[str, Any]:
    """Return a figure as the page shows it: with its size, so that it keeps its place from the start."""
    image = figure.image if isinstance(figure.image, bytes) else png_bytes(figure.image, alt=figure.alt)
    if image[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"figure {figure.title!r} is neither a Figure nor PNG bytes")
    width, height = (int.from_bytes(image[i : i + 4], "big") for i in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return {**figure._asdict(), "source": source, "width": width, "height": height}
