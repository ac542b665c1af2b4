"""One run as one HTML page: headline metrics, figures, tables and how to reproduce them, with nothing to load.

The page loads nothing (its own security policy forbids that, and every script but the one for judged images, which it
knows by its digest), follows the reader's light or dark setting, fits a phone, and prints.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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


class Tile(NamedTuple):
    """A judged image: its name, kind of defect, score, verdict, and its picture as a data address with its size."""

    name: str
    defect: str
    score: float
    nok: bool
    source: str
    width: int
    height: int


class Gallery(NamedTuple):
    """Judged images, and how many are left out; ``area_rule`` says that verdicts do not hang on the score alone."""

    threshold: float
    tiles: Sequence[Tile]
    left_out: int = 0
    area_rule: bool = False


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
    gallery: Gallery | None = None,
    verdicts: pd.DataFrame | None = None,
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
        ``per_defect``, a mapping of fractions, becomes a table, with ``pixel_auroc_by_defect`` and ``pro_by_defect``;
        every other plain value (seed, preset, device, size, seconds) is listed under its key.
    figures : sequence of ReportFigure or equal tuples
        In this order.
    tables : sequence of (str, DataFrame)
        Heading and content.
    config_toml, command : str
        How to reproduce the run.
    notes : sequence of str
        A paragraph each, shown under the metrics.
    gallery : Gallery, optional
        Judged images, with a slider for the threshold that changes verdicts and rates on the page.
    verdicts : DataFrame, optional
        A row per judged image, folded beneath the gallery.
    """
    if per_defect := metrics.get("per_defect"):
        more = {"pixel_auroc": "pixel AUROC", "pro": "PRO"}
        more = {key: label for key, label in more.items() if f"{key}_by_defect" in metrics}
        rows = [
            (name, _percent(value), *(_percent(metrics[f"{k}_by_defect"].get(name, math.nan)) for k in more))
            for name, value in per_defect.items()
        ]
        columns = ["defect", "image AUROC", *more.values()]
        tables = [("By defect", pd.DataFrame(rows, columns=columns)), *tables]
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
        gallery=_gallery(gallery) if gallery and gallery.tiles else None,
        verdicts=verdicts,
        script=_SCRIPT if gallery and gallery.tiles else "",
        digest=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
    )
    write_atomic(Path(path), text)
    return Path(path)


_SCRIPT = (Path(__file__).parent / "templates" / "gallery.js").read_text("utf-8")
_BINS = 50


def _gallery(gallery: Gallery) -> dict[str, Any]:
    """Return what the gallery's template shows: positions of slider and line, bars of the histogram, pictures."""
    scores = np.array([tile.score for tile in gallery.tiles])
    bad = np.array([tile.defect != "good" for tile in gallery.tiles])
    left, right = min(scores.min(), gallery.threshold), max(scores.max(), gallery.threshold)
    width = max(right - left, 1e-9)
    counts = [np.histogram(scores[kind], _BINS, (left, left + width))[0] for kind in (~bad, bad)]
    scale = 58 / max(1, *(int(c.max()) for c in counts))
    bars = [(12 * i, round(g * scale, 1), round(b * scale, 1)) for i, (g, b) in enumerate(zip(*counts, strict=True))]
    place = (gallery.threshold - left) / width
    return {
        "threshold": gallery.threshold,
        "low": float(left),
        "high": float(left + width),
        "start": round(1000 * math.sqrt(place)),
        "mark": round(600 * place, 1),
        "bars": bars,
        "defects": sorted({tile.defect for tile in gallery.tiles}, key=lambda d: (d != "good", d)),
        "tiles": gallery.tiles,
        "left_out": gallery.left_out,
        "area_rule": gallery.area_rule,
    }


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
