"""Figures: what they show, that they are the same every time, and that they can be read."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from mlffn_lite import figures, metrics
from mlffn_lite.figures import (
    curve_figure,
    encode_png,
    heatmap_panel,
    overlay,
    png_bytes,
    save_figure,
    score_histogram,
    training_curves,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 3, 40, 56), dtype=np.uint8)
MAPS = RNG.normal(size=(3, 40, 56))
MASKS = np.zeros((3, 40, 56), dtype=bool)
MASKS[1, :10, :20] = True
MASKS[2] = True
SCORES, LABELS = torch.tensor([0.5, 1.5, 2.5, 2.0]), torch.tensor([0, 0, 1, 1])


def panel() -> Figure:
    return heatmap_panel(
        IMAGES, MAPS, vmin=0, vmax=2, masks=MASKS, scores=[0.1, 2, 3], labels=[False, True, True], titles=["a", "b", ""]
    )


def curves() -> Figure:
    maps, masks = torch.from_numpy(MAPS), torch.from_numpy(MASKS)
    pixel = metrics.roc_curve(maps.flatten(), masks.flatten())
    return curve_figure(metrics.roc_curve(SCORES, LABELS), pixel, metrics.region_curve(maps, masks))


def history() -> pd.DataFrame:
    step = np.arange(10, 510, 10)
    terms = {"feature": 1 / step, "score": 5 / step, "consistency": 0.0 * step}
    return pd.DataFrame({"step": step, "total": 6 / step, **terms, "lr": 1e-3})


BUILDERS = {
    "panel": panel,
    "curves": curves,
    "histogram": lambda: score_histogram(SCORES, LABELS, 1.7),
    "training": lambda: training_curves(history()),
}


def legend(figure: Figure, axes: int = 0) -> list[str]:
    found = figure.axes[axes].get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


# ---- overlay


@settings(max_examples=25)
@given(seed=st.integers(0, 99), vmin=st.floats(-5, 5), span=st.floats(0.1, 10))
def test_overlay_leaves_cold_pixels_untouched(seed: int, vmin: float, span: float) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, 7, 9), dtype=np.uint8)
    heat = rng.normal(scale=5, size=(7, 9))
    result = overlay(image, heat, vmin, vmin + span)
    cold = heat <= vmin
    assert result.shape == (7, 9, 3)
    assert result.dtype == np.uint8
    assert np.array_equal(result[cold], image.transpose(1, 2, 0)[cold])
    hot = heat >= vmin + span
    assert np.array_equal(result[hot], overlay(image, heat + 100, vmin, vmin + span)[hot])


def test_overlay_mixes_by_hand() -> None:
    image = np.full((3, 1, 3), 100, dtype=np.uint8)
    result = overlay(image, torch.tensor([[0.0, 0.5, 2.0]]), 0.0, 2.0, alpha=0.5)
    hot, quarter = 255 * figures._CMAP(1.0)[0], 255 * figures._CMAP(0.25)[0]
    weight = 0.5 * 0.15625  # smoothstep of a quarter: 3/16 - 2/64
    assert result[0, :, 0].tolist() == [100, round(100 * (1 - weight) + weight * quarter), round(50 + 0.5 * hot)]


def test_the_colours_grow_lighter_with_the_score() -> None:
    light = figures._CMAP(np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()


def test_overlay_refuses_what_it_cannot_colour() -> None:
    with pytest.raises(ValueError, match="uint8"):
        overlay(IMAGES[0] / 255, MAPS[0], 0, 1)
    with pytest.raises(ValueError, match="map"):
        overlay(IMAGES[0], MAPS[0][:-1], 0, 1)
    with pytest.raises(ValueError, match="scale must rise"):
        overlay(IMAGES[0], MAPS[0], 1, 1)
    with pytest.raises(ValueError, match="NaN"):
        overlay(IMAGES[0], MAPS[0] * np.nan, 0, 1)


# ---- panels and plots


def test_panel_shows_every_image_on_one_scale() -> None:
    axes = panel().axes
    assert len(axes) == 3 * 4 + 1  # and the colour bar
    assert [ax.get_title() for ax in axes[:4]] == ["image", "ground truth", "score map", "overlay"]
    labels = [axes[4 * i].get_ylabel() for i in range(3)]
    assert labels == ["a\ngood\nscore 0.10", "b\nanomalous\nscore 2.00", "anomalous\nscore 3.00"]
    for i in range(3):
        shown = axes[4 * i + 2].images[0]
        assert shown.get_clim() == (0, 2)
        assert np.array_equal(np.asarray(shown.get_array()), MAPS[i])
        assert np.array_equal(np.asarray(axes[4 * i + 3].images[0].get_array()), overlay(IMAGES[i], MAPS[i], 0, 2))
        outlines = [c for c in axes[4 * i + 1].get_children() if isinstance(c, ContourSet)]
        assert len(outlines) == (1 if MASKS[i].any() else 0)


def test_outline_follows_the_mask_to_the_border() -> None:
    outline = next(c for c in panel().axes[5].get_children() if isinstance(c, ContourSet))
    points = np.concatenate([path.vertices for path in outline.get_paths()])
    assert points.min(0).tolist() == [-0.5, -0.5]
    assert points.max(0).tolist() == [19.5, 9.5]


def test_panel_without_masks_and_names() -> None:
    figure = heatmap_panel(torch.from_numpy(IMAGES[:1]), torch.from_numpy(MAPS[:1]), vmin=0, vmax=1)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["image", "score map", "overlay"]
    with pytest.raises(ValueError, match="same number of images"):
        heatmap_panel(IMAGES, MAPS[:2], vmin=0, vmax=1)
    with pytest.raises(ValueError, match="at least one"):
        heatmap_panel(IMAGES[:0], MAPS[:0], vmin=0, vmax=1)


def test_areas_in_the_legends_are_the_metrics() -> None:
    figure = curves()
    pixel = roc_auc_score(MASKS.flatten(), MAPS.flatten())
    assert legend(figure) == ["image AUROC 100.0 %", f"pixel AUROC {100 * pixel:.1f} %", "chance"]
    area = metrics.pro(torch.from_numpy(MAPS), torch.from_numpy(MASKS))
    assert legend(figure, 1) == [f"PRO {100 * area:.1f} %", "chance"]


def test_long_curves_are_thinned_only_for_the_eye() -> None:
    labels = RNG.random(200_000) < 0.3
    scores = RNG.normal(size=200_000) + labels
    curve = metrics.roc_curve(torch.from_numpy(scores), torch.from_numpy(labels))
    figure = curve_figure(curve, curve, curve)
    drawn = np.asarray(figure.axes[0].lines[0].get_xydata())
    assert len(drawn) < 5000 < len(curve[0])
    assert legend(figure)[0] == f"image AUROC {100 * roc_auc_score(labels, scores):.1f} %"
    gap = np.interp(curve[0], drawn[:, 0], drawn[:, 1]) - curve[1].numpy()
    assert abs(gap).max() < 1e-3
    assert drawn[-1].tolist() == [1.0, 1.0]


def test_precision_and_recall_stand_between_with_their_area_in_steps() -> None:
    scores, labels = torch.from_numpy(RNG.normal(size=60)), torch.from_numpy(RNG.random(60) < 0.4)
    curve = metrics.precision_recall_curve(scores, labels)
    roc = metrics.roc_curve(scores, labels)
    figure = curve_figure(roc, roc, roc, precision_recall=curve)
    assert len(figure.axes) == 3
    assert legend(figure, 1) == [f"average precision {100 * average_precision_score(labels, scores):.1f} %"]
    nan = torch.tensor([torch.nan])
    assert legend(curve_figure(roc, roc, roc, precision_recall=(nan, nan)), 1) == ["average precision undefined"]


def test_undefined_curves_say_so() -> None:
    nan = torch.tensor([torch.nan])
    figure = curve_figure((nan, nan), (nan, nan), (nan, nan))
    assert legend(figure)[:2] == ["image AUROC undefined", "pixel AUROC undefined"]
    assert legend(figure, 1)[0] == "PRO undefined"


def test_histogram_counts_every_image() -> None:
    figure = score_histogram(SCORES, LABELS, 1.7)
    assert legend(figure) == ["good (2)", "anomalous (2)", "threshold 1.7"]
    heights = [np.asarray(patch.get_path().vertices)[:, 1].max() for patch in figure.axes[0].patches]
    assert heights == [1, 1]  # no two of these scores share a bin
    assert legend(score_histogram(np.ones(3), np.zeros(3))) == ["good (3)", "anomalous (0)"]
    with pytest.raises(ValueError, match=r"\(M,\)"):
        score_histogram(SCORES, LABELS[:-1])


def test_training_curves_leave_out_terms_of_weight_zero() -> None:
    assert legend(training_curves(history())) == ["total", "feature", "score"]
    assert legend(training_curves(history()[["step", "total"]].head(1))) == ["total"]
    with pytest.raises(ValueError, match="no steps"):
        training_curves(pd.DataFrame())


# ---- files


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_same_bytes_every_time_whatever_the_style(name: str, tmp_path: Path) -> None:
    figure = BUILDERS[name]()
    first = save_figure(figure, tmp_path / "deep" / "a.png", alt="A figure.").read_bytes()
    assert png_bytes(figure, alt="A figure.") == first
    before = dict(mpl.rcParams)
    with mpl.rc_context(), plt.style.context("dark_background"):
        mpl.rcParams["font.size"] = 23
        assert png_bytes(BUILDERS[name](), alt="A figure.") == first
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_figures_are_white_wide_and_readable(name: str) -> None:
    figure = BUILDERS[name]()
    image = Image.open(io.BytesIO(png_bytes(figure, alt="x")))
    assert image.width == 9 * 144
    assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text() and t.get_visible()]
    assert min(float(t.get_fontsize()) for t in texts) >= 8


def test_the_alt_text_is_stored() -> None:
    figure = score_histogram(SCORES, LABELS)
    image = Image.open(io.BytesIO(png_bytes(figure, alt="Scores, σ = 1")))
    assert image.info["Description"] == "Scores, σ = 1"
    assert set(image.info) <= {"Description", "dpi"}  # neither date nor software
    with pytest.raises(ValueError, match="alt must"):
        png_bytes(figure, alt=" ")


@pytest.mark.parametrize("alt", ["µ – text", ""])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 33)])
def test_pixels_come_back_from_a_png(shape: tuple[int, int], alt: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    png = encode_png(rgb, alt)
    image = Image.open(io.BytesIO(png))
    image.load()
    assert (np.asarray(image) == rgb).all()
    assert image.text.get("Description", "") == alt  # type: ignore[attr-defined]
    assert (b"iTXt" in png) == bool(alt)


def test_a_png_is_no_larger_than_one_that_pillow_is_quick_with() -> None:
    """On a smooth picture with noise, as photographs are, and on a flat one, as diagrams are."""
    noise = np.random.default_rng(0).normal(0, 3, (200, 300, 3))
    photograph = np.linspace(40, 200, 300)[:, None] + noise
    for pixels in (photograph, np.full_like(noise, 255)):
        rgb, stream = pixels.astype(np.uint8), io.BytesIO()
        Image.fromarray(rgb).save(stream, "PNG", compress_level=1)
        assert len(encode_png(rgb)) < 1.05 * len(stream.getvalue())
