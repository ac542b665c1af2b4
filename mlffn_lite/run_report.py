"""The report of one run: verdicts, pictures, curves and how it was made, as one page that works offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from . import metrics
from .datasets.folder import Split, image_tensor
from .datasets.sources import Parts
from .datasets.view import View
from .decision import Share
from .detector import AnomalyDetector, Calibration, Prediction, fitted
from .errors import MlffnError
from .evaluation import write_measured
from .figures import curve_figure, heatmap_panel, image_curves, overlay, save_figure, training_curves
from .ownership import own
from .page import Gallery, ReportFigure, Tile, write_report
from .storage import METRICS

REPORT = "report.html"
PANEL = "heatmaps.png"
EVALUATION, SUPERSEDED = "evaluation", "superseded"
"""In a run folder: what was measured on other data, and what was measured before the run was calibrated anew."""
TILES = 300
"""Pictures, at most; of more test images those with the highest and the lowest scores."""
SIDE = 192
"""Their longest side in pixels."""
_PANEL_ALT = "Rows of test images, outlined where masks are known, the score map, and the map laid over the image."


def write_run_report(
    folder: Path,
    detector: AnomalyDetector,
    parts: Parts,
    result: dict[str, Any],
    prediction: Prediction | None,
    *,
    command: str = "",
) -> Path:
    """Write ``report.html`` of a finished run, and a PNG with a typical image per defect; returns the report's path.

    Parameters
    ----------
    folder : Path
        The run folder.
    detector : AnomalyDetector
        Fitted.
    parts : Parts
        What it was fitted to and measured on; masks may be missing.
    result : dict
        The content of ``metrics.json``.
    prediction : Prediction or None
        Of the test images, if there are any.
    command : str
        What made the run.
    """
    notes = [f"Decision: {fitted(detector).describe()}."]
    figures, tables, gallery, verdicts = [], [], None, None
    if prediction is not None:
        save_figure(_panel(parts.test, prediction, detector, [0.5]), folder / PANEL, alt=_PANEL_ALT)
        figures = list(_figures(detector, parts.test, prediction, result))
        tables = [("At the threshold", _rates(result["decision"]))]
        called = _called(detector, prediction)
        gallery, verdicts = _gallery(detector, parts, prediction, called), _verdicts(parts, prediction, called)
    if (where := _where(detector, parts)) is not None:
        figures.append(where)
    return write_report(
        folder / REPORT,
        title=f"{parts.root.resolve().name}: {detector.method}",
        metrics=result,
        notes=notes,
        figures=[*figures, *_training(detector)],
        tables=tables,
        gallery=gallery,
        verdicts=verdicts,
        config_toml=detector.config.to_toml(),
        command=command,
    )


def measure_and_report(
    detector: AnomalyDetector, parts: Parts, folder: Path, command: str
) -> tuple[dict[str, Any], Path]:
    """Measure a finished run on any test images and write metrics, curves and the page; returns metrics and page."""
    measured, prediction = detector.measure(parts.test)
    about = {"run": detector.run_id, "method": detector.method, "data": parts.root.resolve().name, **measured}
    about |= detector.environment()
    with own(folder):
        if prediction is None:
            write_measured(folder, about)
        else:
            write_measured(folder, about, prediction.scores, prediction.maps, parts.test)
        return about, write_run_report(folder, detector, parts, about, prediction, command=command)


def set_aside(run: Path, old: Calibration) -> Path | None:
    """Move what a run folder holds of results with its old calibration into a folder named by that; returns it.

    Metrics, curves, report and evaluations go: where results stand, they are those of the threshold in the checkpoint.
    None where there was nothing. A MlffnError says that the disk does not take it.
    """
    names = (METRICS, REPORT, PANEL, EVALUATION)
    found = [path for path in (*(run / name for name in names), *sorted(run.glob("curve_*.csv"))) if path.exists()]
    if not found:
        return None
    taken = [int(first) for p in (run / SUPERSEDED).glob("*_*") if (first := p.name.partition("_")[0]).isdecimal()]
    place = run / SUPERSEDED / f"{1 + max(taken, default=0)}_threshold_{old.threshold:.6g}"
    try:
        place.mkdir(parents=True)
        for path in found:
            path.rename(place / path.name)
    except OSError as error:
        raise MlffnError(f"cannot move results in {run}: {error.strerror or error}; nothing was calibrated") from error
    return place


def _rates(decision: dict[str, Any]) -> pd.DataFrame:
    """Return the rates at the threshold, in words, and how many of each defect were found."""
    named = {"false_alarms": "false alarms", "detections": "defects found"}
    rows = [(words, str(Share(**decision[key]))) for key, words in named.items() if "rate" in decision[key]]
    rows += [("F1", f"{100 * decision['f1']:.1f} %")] if "f1" in decision else []
    rows += [(f"of {defect}", found) for defect, found in decision.get("detections_by_defect", {}).items()]
    return pd.DataFrame(rows, columns=["", "images"])


def _figures(
    detector: AnomalyDetector, test: Split, prediction: Prediction, result: dict[str, Any]
) -> Iterator[ReportFigure]:
    """Give the figures that the test images allow."""
    labels = test.labels()
    yield ReportFigure(
        "Which defects it finds",
        _panel(test, prediction, detector, [0.0, 1.0]),
        "The highest and the lowest image score among the good images and among those of every defect. Ground truth is "
        "outlined where there is any. The colours are fixed by the scores of good training images.",
        _PANEL_ALT,
    )
    known = test.has_mask
    maps, masks, ignored = prediction.maps[known], test.masks()[known], test.view.ignored(test.shape)
    seen = torch.ones(test.shape, dtype=torch.bool) if ignored is None else ~ignored
    if {"image_auroc", "pixel_auroc", "pro"} <= result.keys():
        yield ReportFigure(
            "Curves",
            curve_figure(
                metrics.roc_curve(prediction.scores, labels),
                metrics.roc_curve(maps[:, seen].flatten(), masks[:, seen].flatten()),
                metrics.region_curve(maps, masks, ignored=ignored),
                precision_recall=metrics.precision_recall_curve(prediction.scores, labels),
            ),
            "ROC of images and pixels, precision and recall of images, and the share of each defect found against "
            "false positive pixels.",
            f"ROC, precision-recall and PRO curves: image AUROC {result['image_auroc']:.3f}, "
            f"pixel AUROC {result['pixel_auroc']:.3f}, average precision {result['average_precision']:.3f}, "
            f"PRO {result['pro']:.3f}.",
        )
    elif "image_auroc" in result:
        scores = prediction.scores
        yield ReportFigure(
            "Curves",
            image_curves(metrics.roc_curve(scores, labels), metrics.precision_recall_curve(scores, labels)),
            "ROC, and precision and recall, of images. There are none of pixels without masks of the defects.",
            f"ROC and precision-recall curves: image AUROC {result['image_auroc']:.3f}, average precision "
            f"{result['average_precision']:.3f}.",
        )


def _where(detector: AnomalyDetector, parts: Parts) -> ReportFigure | None:
    """Show the box and the ignored pixels on a photograph, where not all of it is looked at."""
    view, entries = detector.view, parts.train.entries or parts.test.entries
    if view == View() or not entries:
        return None
    photo = entries[0].open()[0]
    left, top, width, height = view.box or (0, 0, *photo.size)
    pixels = image_tensor(photo, None).permute(1, 2, 0).numpy()
    seen = np.zeros(pixels.shape[:2], bool)
    ignored = view.ignored((height, width))
    seen[top : top + height, left : left + width] = True if ignored is None else ~ignored.numpy()
    picture = Image.fromarray(np.where(seen[..., None], pixels, pixels // 3 + 120).astype(np.uint8))
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return ReportFigure(
        "Where it looks",
        stream.getvalue(),
        f"Of every photograph it looks at {view.describe()}. What is pale here is not looked at.",
        "A photograph, pale where it is not looked at.",
    )


def _training(detector: AnomalyDetector) -> list[ReportFigure]:
    """Return the learning curves of a method that trains the paper's network."""
    if not {"feature", "score", "consistency"} <= set(detector.history):
        return []
    return [
        ReportFigure(
            "Training",
            training_curves(detector.history),
            "Terms of equation (8), unweighted, and the learning rate of the heads.",
            "Loss terms falling over the training steps, and the learning rate.",
        )
    ]


def _panel(test: Split, prediction: Prediction, detector: AnomalyDetector, ranks: list[float]) -> Figure:
    """Images of the good ones and of every defect, by their rank in score: 0 is the highest, 1 the lowest."""
    chosen: list[int] = []
    for defect in sorted(set(test.defects), key=lambda d: (d != "good", d)):
        members = torch.tensor([i for i, d in enumerate(test.defects) if d == defect])
        order = members[prediction.scores[members].argsort(descending=True)]
        chosen += [int(order[round(rank * (len(order) - 1))]) for rank in ranks]
    scale = fitted(detector)
    return heatmap_panel(
        test.images()[chosen],
        prediction.maps[chosen],
        vmin=scale.low,
        vmax=scale.high,
        masks=test.masks()[chosen] if any(test.mask_paths) or bool(test.masks().any()) else None,
        scores=prediction.scores[chosen].tolist(),
        titles=[test.defects[i].replace("_", " ") for i in chosen],
    )


def _called(detector: AnomalyDetector, prediction: Prediction) -> list[int]:
    """Count the regions of every image that count."""
    rule = fitted(detector).rule
    return [len(rule.regions(heat)) for heat in prediction.maps.numpy()]


def _verdicts(parts: Parts, prediction: Prediction, called: list[int]) -> pd.DataFrame:
    """Return a row for every test image, the highest score first."""
    test = parts.test
    rows = [
        (_name(parts, i), test.defects[i], "NOK" if called[i] else "OK", float(prediction.scores[i]), called[i])
        for i in prediction.scores.argsort(descending=True).tolist()
    ]
    return pd.DataFrame(rows, columns=["image", "folder", "verdict", "score", "regions"])


def _name(parts: Parts, index: int) -> str:
    return parts.name(parts.test.paths[index]).removeprefix("test/")


def _gallery(detector: AnomalyDetector, parts: Parts, prediction: Prediction, called: list[int]) -> Gallery:
    """Return the judged test images, the highest score first."""
    scale, test = fitted(detector), parts.test
    order = prediction.scores.argsort(descending=True).tolist()
    kept = order if len(order) <= TILES else [*order[: TILES // 2], *order[-(TILES // 2) :]]
    tiles = [
        Tile(
            _name(parts, i),
            test.defects[i],
            float(prediction.scores[i]),
            bool(called[i]),
            *_picture(test[i].image.numpy(), prediction.maps[i].numpy(), scale.low, scale.high),
        )
        for i in kept
    ]
    return Gallery(scale.threshold, tiles, len(order) - len(kept), bool(scale.min_area or scale.min_peak is not None))


def _picture(image: np.ndarray, heat: np.ndarray, low: float, high: float) -> tuple[str, int, int]:
    """Return a small JPEG of the heatmap over the image as a data address, its width and its height."""
    picture = Image.fromarray(overlay(image, heat, low, high))
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}", *picture.size
