"""One run as one HTML page: headline metrics, figures, tables and how to reproduce them, with nothing to load.

The page has no script and no external resource (its own security policy forbids both), follows the reader's light or
dark setting, fits a phone, and prints.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from .figures import png_bytes
from .storage import write_atomic

HEADLINES = {"image_auroc": "Image AUROC", "pixel_auroc": "Pixel AUROC", "pro": "PRO (to 30 % FPR)"}


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
    body = [
        f"<h1>{escape(title)}</h1>",
        _cards(metrics),
        *(f"<p>{escape(note)}</p>" for note in notes),
        *(_figure(ReportFigure(*figure)) for figure in figures),
        *(_table(heading, table) for heading, table in tables),
        _facts(metrics),
        _reproduce(command, config_toml),
    ]
    write_atomic(Path(path), _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, body))))
    return Path(path)


def _percent(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{100 * value:.1f} %"


def _cards(metrics: Mapping[str, Any]) -> str:
    cards = (f"<div><dt>{v}</dt><dd>{_percent(metrics[k])}</dd></div>" for k, v in HEADLINES.items() if k in metrics)
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _facts(metrics: Mapping[str, Any]) -> str:
    rows = []
    for key, value in metrics.items():
        if key not in HEADLINES and isinstance(value, str | int | float):
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append(f"<div><dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(text)}</dd></div>")
    return f'<h2>Measured with</h2>\n<dl class="facts">{"".join(rows)}</dl>' if rows else ""


def _figure(figure: ReportFigure) -> str:
    image = figure.image if isinstance(figure.image, bytes) else png_bytes(figure.image, alt=figure.alt)
    if image[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"figure {figure.title!r} is neither a Figure nor PNG bytes")
    # With its size the image keeps its place from the start.
    width, height = (int.from_bytes(image[i : i + 4], "big") for i in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return (
        f"<h2>{escape(figure.title)}</h2>\n<figure>"
        f'<img src="{source}" width="{width}" height="{height}" alt="{escape(figure.alt)}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _table(heading: str, table: pd.DataFrame) -> str:
    html = table.to_html(index=False, border=0, escape=True, float_format="{:.4g}".format, justify="left")
    region = f'class="scroll" tabindex="0" role="region" aria-label="{escape(heading)}"'
    return f"<h2>{escape(heading)}</h2>\n<div {region}>{html}</div>"


def _reproduce(command: str, config_toml: str) -> str:
    parts = []
    if command:
        parts.append(f'<pre tabindex="0"><code>{escape(command)}</code></pre>')
    if config_toml:
        code = f'<pre tabindex="0"><code>{escape(config_toml.strip())}</code></pre>'
        parts.append(f"<details><summary>Configuration (config.toml)</summary>{code}</details>")
    return "\n".join(["<h2>Reproduce</h2>", *parts]) if parts else ""


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --card: #f3f5f7; --line: #d0d7de; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa6b2; --page: #0d1117; --card: #161b22; --line: #30363d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
dl, dd, figure { margin: 0; }
dt, figcaption, summary { color: var(--soft); font-size: .9rem; }
.cards, .facts { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.cards > div, pre, img { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.cards > div, pre { padding: .8rem 1rem; }
.cards dd { font-size: 2rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.facts { gap: .6rem 1.2rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; }
.scroll, pre { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.4rem .35rem 0; border-bottom: 1px solid var(--line); }
pre, code { font: .875rem/1.5 ui-monospace, monospace; overflow-wrap: normal; }
summary { cursor: pointer; margin: .8rem 0; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
