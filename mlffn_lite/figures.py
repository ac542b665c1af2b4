"""Figures: heatmap overlays and panels, ROC and PRO curves, histograms of scores, training curves.

Every figure is a :class:`matplotlib.figure.Figure` of its own, never one of pyplot's: it works on a server and in a
notebook alike, and looks the same whatever style is set there. Colours tell apart under colour-vision deficiency;
figures are white, 9 inches wide, with type of at least 8 pt. Arrays may be NumPy's, or tensors on any device.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from .storage import write_atomic

COLOURS = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "pink": "#CC79A7", "black": "#222222"}
"""Okabe and Ito's palette, whose colours stay apart under every common colour-vision deficiency."""

WIDTH, DPI = 9.0, 144
# Inferno without its pale end, which would wash the image out under an overlay.
_CMAP = ListedColormap(mpl.colormaps["inferno"](np.linspace(0, 0.86, 256)), "inferno_short")
_RGB = (255 * _CMAP(np.arange(256))[:, :3].T).astype(np.float32)
# The defaults of everything that shows, so that no matplotlibrc or style of the caller leaks in.
_SHOWS = r"(axes|contour|figure|font|grid|hatch|image|legend|lines|mathtext|patch|path|savefig|text|[xy]tick)\."
STYLE = {key: value for key, value in mpl.rcParamsDefault.items() if re.match(_SHOWS, key)} | {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
}


def overlay(image: Any, score_map: Any, vmin: float, vmax: float, alpha: float = 0.6) -> np.ndarray:
    """Lay a score map over its image, the stronger the higher the score; pixels at or below ``vmin`` stay untouched.

    Parameters
    ----------
    image, score_map : array
        (3, H, W) uint8, and (H, W).
    vmin, vmax : float
        Scores at the cold and the hot end of the colours; take one scale for all images of a detector.
    alpha : float
        Opacity at the hot end, 0 to 1.

    Returns
    -------
    ndarray
        (H, W, 3), uint8.
    """
    image, heat = _array(image), _array(score_map)
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8 or heat.shape != image.shape[1:]:
        raise ValueError(f"need image (3, H, W) uint8 and map (H, W), got {image.shape} {image.dtype}, {heat.shape}")
    if np.isnan(heat).any():
        raise ValueError("the score map holds NaN, which has no colour")
    _check_scale(vmin, vmax)
    heat = np.clip((heat - vmin) / (vmax - vmin), 0, 1).astype(np.float32)
    weight = alpha * heat * heat * (3 - 2 * heat)  # smoothstep: faint scores hardly show
    level = np.minimum(heat * 256, 255).astype(np.uint8)
    mixed = np.empty((*heat.shape, 3), np.uint8)
    for channel, colours in enumerate(_RGB):  # a channel at a time stays in the cache
        mixed[..., channel] = np.rint(image[channel] + weight * (colours[level] - image[channel]))
    return mixed


def encode_png(rgb: np.ndarray, alt: str = "") -> bytes:
    """Return pixels (H, W, 3) uint8 as a PNG, with ``alt`` in its field Description if there is any.

    Every row is stored as differences from the pixel on the left, of which only repetitions of one byte are looked for.
    To choose the best of five ways for each row and to look for longer matches, as Pillow does at its lowest
    compression, takes two to four times as long, and on photographs the file is larger.
    """
    height, width = rgb.shape[:2]
    flat = rgb.reshape(height, -1)
    rows = np.empty((height, 3 * width + 1), np.uint8)
    rows[:, 0], rows[:, 1:4] = 1, flat[:, :3]
    np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        **({b"iTXt": b"Description\0\0\0\0\0" + alt.encode()} if alt else {}),
        b"IDAT": packer.compress(rows.data) + packer.flush(),
        b"IEND": b"",
    }
    parts = [struct.pack(">I", len(x)) + k + x + struct.pack(">I", zlib.crc32(k + x)) for k, x in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@mpl.rc_context(STYLE)
def heatmap_panel(
    images: Any,
    maps: Any,
    *,
    vmin: float,
    vmax: float,
    masks: Any = None,
    scores: Sequence[float] | None = None,
    labels: Sequence[bool] | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Show a row per image: image, image with the outline of its mask, score map, overlay; one colour scale for all.

    Parameters
    ----------
    images, maps : array
        (M, 3, H, W) uint8, and (M, H, W); M at least 1.
    vmin, vmax : float
        Ends of the colour scale.
    masks : array, optional
        (M, H, W), true where defective; without it that column is left out.
    scores, labels, titles : sequence, optional
        Per row: image score, whether it is anomalous, name; written on the left.
    """
    images, maps = _array(images), _array(maps)
    masks = None if masks is None else _array(masks).astype(bool)
    if not len(images) or len(images) != len(maps) or (masks is not None and masks.shape != maps.shape):
        raise ValueError("images, maps and masks must hold the same number of images, at least one, of one size")
    columns = ["image", *(["ground truth"] if masks is not None else []), "score map", "overlay"]
    height = (WIDTH - 2.2) / len(columns) * images.shape[2] / images.shape[3]  # of a row; the rest is text and bar
    figure = new_figure(len(images) * (height + 0.06) + 0.45)
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for i, row in enumerate(axes):
        picture = images[i].transpose(1, 2, 0)
        for ax, column in zip(row, columns, strict=True):
            shown = {"score map": maps[i], "overlay": overlay(images[i], maps[i], vmin, vmax)}.get(column, picture)
            ax.imshow(shown, cmap=_CMAP, vmin=vmin, vmax=vmax, interpolation="antialiased")
            ax.set(xticks=[], yticks=[], title=column if i == 0 else "")
            ax.spines[:].set_visible(False)
        if masks is not None:
            _outline(row[1], masks[i])
        text = [titles[i]] if titles is not None and titles[i] else []
        text += [] if labels is None else ["anomalous" if labels[i] else "good"]
        text += [] if scores is None else [f"score {scores[i]:.2f}"]
        row[0].set_ylabel("\n".join(text), rotation=0, ha="right", va="center", labelpad=6)
    shrink = min(1.0, 3.5 / (len(images) * height))
    bar = ScalarMappable(_scale(vmin, vmax), _CMAP)
    figure.colorbar(bar, ax=axes, label="score", extend="both", shrink=shrink, aspect=22, pad=0.015)
    figure.draw_without_rendering()  # each layout starts from the last: freeze the first, so that every drawing agrees
    figure.set_layout_engine("none")
    return figure


@mpl.rc_context(STYLE)
def curve_figure(
    image_roc: Any, pixel_roc: Any, region: Any, *, precision_recall: Any = None, limit: float = 0.3
) -> Figure:
    """Draw the ROC curves of images and pixels, and the PRO curve up to ``limit``, areas in the legends.

    Parameters
    ----------
    image_roc, pixel_roc : pair of arrays
        False and true positive rates, as :func:`mlffn_lite.metrics.roc_curve` returns them; NaN where undefined.
    region : pair of arrays
        False positive rate and mean overlap, as :func:`mlffn_lite.metrics.region_curve` returns them.
    precision_recall : pair of arrays, optional
        Recall and precision of images, as :func:`mlffn_lite.metrics.precision_recall_curve` returns them: drawn between
        the others, with its area in steps, the average precision.
    limit : float
        Largest false positive rate of the PRO curve.
    """
    figure = new_figure(3.7 if precision_recall is None else 3.2)
    left, *middle, right = figure.subplots(1, 2 if precision_recall is None else 3)
    for ax in middle:
        _steps(ax, precision_recall)
    _roc(left, image_roc, pixel_roc)
    _curve(right, region, limit, "PRO", COLOURS["green"], "-")
    right.set(title=f"PRO, up to a false positive rate of {limit:g}", xlabel="false positive rate of pixels")
    right.set(ylabel="mean share of a region found", xlim=(-0.01 * limit, limit), ylim=(0, 1.01))
    _chance(right, limit)
    return figure


@mpl.rc_context(STYLE)
def image_curves(roc: Any, precision_recall: Any) -> Figure:
    """Draw the ROC curve, and precision over recall, of images alone; arguments as those of :func:`curve_figure`."""
    figure = new_figure(3.4)
    left, right = figure.subplots(1, 2)
    _roc(left, roc)
    _steps(right, precision_recall)
    return figure


def _roc(ax: Axes, images: Any, pixels: Any = None) -> None:
    """Draw the ROC curves of images, and of pixels if there is one."""
    _curve(ax, images, 1.0, "image AUROC", COLOURS["blue"], "-")
    if pixels is not None:
        _curve(ax, pixels, 1.0, "pixel AUROC", COLOURS["orange"], "--")
    ax.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.01))
    _chance(ax, 1.0)


def _chance(ax: Axes, end: float) -> None:
    """Draw what chance would give up to a rate, and the legend."""
    ax.plot([0, end], [0, end], color="#888888", lw=1, ls=":", label="chance")
    ax.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")


def _steps(ax: Axes, curve: Any) -> None:
    """Draw precision over recall, which between two thresholds is that of the lower one."""
    recall, precision = (_array(v).astype(np.float64) for v in curve[:2])
    area = float((np.diff(recall, prepend=0) * precision).sum())
    label = "undefined" if np.isnan(area) else f"{100 * area:.1f} %"
    x, y = np.concatenate([[0], recall]), np.concatenate([precision[:1], precision])
    ax.step(x, y, where="pre", color=COLOURS["blue"], lw=1.8, label=f"average precision {label}")
    ax.set(title="Precision and recall of images", xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    ax.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")


@mpl.rc_context(STYLE)
def score_histogram(scores: Any, labels: Any, threshold: float | None = None) -> Figure:
    """Draw image scores (M,) of good and anomalous images, labels (M,) true where anomalous, with the threshold."""
    scores, labels = _array(scores).astype(np.float64), _array(labels).astype(bool)
    if scores.ndim != 1 or scores.shape != labels.shape or not len(scores):
        raise ValueError(f"scores and labels must both be (M,), M at least 1, got {scores.shape} and {labels.shape}")
    figure = new_figure(3.0)
    ax = figure.subplots()
    edges = np.histogram_bin_edges(scores, bins=30)
    for name, part, key, hatch in (("good", ~labels, "blue", None), ("anomalous", labels, "orange", "////")):
        look: dict[str, Any] = {"edgecolor": COLOURS[key], "facecolor": to_rgba(COLOURS[key], 0.35), "hatch": hatch}
        ax.hist(scores[part], list(edges), histtype="stepfilled", label=f"{name} ({part.sum()})", **look)
    if threshold is not None:
        ax.axvline(threshold, color=COLOURS["black"], lw=1.5, ls="--", label=f"threshold {threshold:.3g}")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="image score", ylabel="images")
    ax.legend()
    return figure


@mpl.rc_context(STYLE)
def training_curves(history: pd.DataFrame) -> Figure:
    """Draw the loss terms, on a logarithmic axis, and the learning rate over the steps of a training history.

    Parameters
    ----------
    history : DataFrame
        Columns ``step``, ``total``, ``feature``, ``score``, ``consistency`` and, if present, ``own`` and ``lr``, as in
        ``history.csv``. Terms that are 0 throughout were left out of the loss and are not drawn.
    """
    if not {"step", "total"} <= set(history.columns) or history.empty:
        raise ValueError("the history has no steps; it needs the columns step and total and at least one row")
    figure = new_figure(3.4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    terms = ("total", "feature", "score", "consistency", "own")
    for name, colour, style in zip(terms, COLOURS.values(), ("-", "--", "-.", ":", (0, (5, 1))), strict=True):
        if name in history and (history[name] > 0).any():
            left.plot(history["step"], history[name], color=colour, lw=0.7, alpha=0.35)
            smooth = history[name].rolling(max(1, len(history) // 20), min_periods=1).mean()
            left.plot(history["step"], smooth, color=colour, lw=1.8, ls=style, label=name)
    left.set(xlabel="step", ylabel="loss", title="Loss terms", yscale="log")
    left.legend(ncols=2)
    if "lr" in history:
        right.plot(history["step"], history["lr"], color=COLOURS["black"], lw=1.8)
    right.set(xlabel="step", ylabel="learning rate", title="Learning rate", ylim=(0, None))
    right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


@mpl.rc_context(STYLE)
def png_bytes(figure: Figure, *, alt: str, dpi: int = DPI) -> bytes:
    """Render a figure as PNG: the same bytes every time, ``alt`` in its field Description."""
    if not alt.strip():
        raise ValueError("alt must describe the figure to someone who cannot see it")
    buffer = io.BytesIO()
    metadata = {"Software": None, "Description": alt}
    figure.savefig(buffer, format="png", dpi=dpi, metadata=metadata, facecolor="white", pil_kwargs={"optimize": True})
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path, *, alt: str) -> Path:
    """Write a figure as :func:`png_bytes` renders it, whole or not at all; returns the path."""
    write_atomic(Path(path), png_bytes(figure, alt=alt))
    return Path(path)


def new_figure(height: float) -> Figure:
    """Return an empty figure of the common width and the given height in inches; draw on it inside ``STYLE``."""
    x, y = 0.08 / WIDTH, 0.08 / height  # a margin, so that nothing touches a rounded frame
    return Figure((WIDTH, height), DPI, layout=ConstrainedLayoutEngine(rect=(x, y, 1 - 2 * x, 1 - 2 * y)))


def _array(x: Any) -> np.ndarray:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def _check_scale(vmin: float, vmax: float) -> None:
    if not vmin < vmax:
        raise ValueError(f"the colour scale must rise, got vmin {vmin} and vmax {vmax}")


def _scale(vmin: float, vmax: float) -> Normalize:
    _check_scale(vmin, vmax)
    return Normalize(vmin, vmax, clip=True)


def _outline(ax: Axes, mask: np.ndarray) -> None:
    padded = np.pad(mask, 1).astype(float)  # so that a defect at the border has an outline too
    if mask.any():
        height, width = mask.shape
        lines = ax.contour(range(-1, width + 1), range(-1, height + 1), padded, [0.5], colors="#00E5FF", linewidths=1.2)
        lines.set_path_effects([withStroke(linewidth=2.6, foreground="black")])
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _curve(ax: Axes, curve: Any, limit: float, name: str, colour: str, style: str) -> None:
    x, y = (_array(v).astype(np.float64) for v in curve)
    if np.isnan(x).any() or np.isnan(y).any():
        ax.plot([], [], color=colour, ls=style, label=f"{name} undefined")
        return
    inside = x <= limit
    x, y = np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))
    area = np.trapezoid(y, x) / limit
    grid = np.linspace(0, 1, 2001)  # pixel curves have millions of points; keep those that can show
    keep = np.unique(np.concatenate([np.searchsorted(x, limit * grid), np.searchsorted(y, grid), [len(x) - 1]]))
    keep = keep[keep < len(x)]
    ax.plot(x[keep], y[keep], color=colour, ls=style, lw=1.8, label=f"{name} {100 * area:.1f} %")
