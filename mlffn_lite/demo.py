"""The demonstration: one bundled category from good images to a one-page report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from . import metrics
from .config import Config
from .datasets.folder import Split
from .datasets.sources import Parts
from .detector import AnomalyDetector, Prediction, fitted
from .errors import CheckpointError
from .figures import curve_figure, heatmap_panel, save_figure, score_histogram, training_curves
from .page import ReportFigure, write_report
from .storage import CHECKPOINT, HISTORY, METRICS, write_atomic

REPORT = "report.html"
PANEL = "heatmaps.png"
MARK = ".demo"
_PANEL_ALT = "Rows of test images with the outline of the defect, the score map, and the map laid over the image."


def demo_config(seed: int = 0, device: str = "auto") -> Config:
    """Return the preset ``parts`` at 128 px, seconds on two cores."""
    return Config.preset("parts", data={"size": 128}, train={"seed": seed, "device": device})


def clear_demo(folder: Path) -> None:
    """Remove an earlier demonstration's files, and nothing else, from a folder.

    Raises
    ------
    CheckpointError
        If the folder holds a run that no demonstration wrote.
    """
    if (folder / CHECKPOINT).exists() and not (folder / MARK).exists():
        raise CheckpointError(f"{folder} holds a run that is not a demonstration; choose another folder")
    write_atomic(folder / MARK, "written by mlffn demo, which may replace this folder's run\n")
    for name in (CHECKPOINT, HISTORY, METRICS, REPORT, PANEL):
        (folder / name).unlink(missing_ok=True)


def write_run_report(
    folder: Path, detector: AnomalyDetector, parts: Parts, result: dict[str, Any], prediction: Prediction
) -> Path:
    """Write the report of a finished run, and a PNG with a typical image per defect; returns the report's path.

    Parameters
    ----------
    folder : Path
        The run folder.
    detector : AnomalyDetector
        Fitted.
    parts : Parts
        What it was fitted to and measured on; its test images all have masks.
    result : dict
        The content of ``metrics.json``.
    prediction : Prediction
        Of the test images.
    """
    labels, masks = parts.test.labels(), parts.test.masks()
    image_roc = metrics.roc_curve(prediction.scores, labels)
    pixel_roc = metrics.roc_curve(prediction.maps.flatten(), masks.flatten())
    region = metrics.region_curve(prediction.maps, masks)
    save_figure(_panel(parts.test, prediction, detector, [0.5]), folder / PANEL, alt=_PANEL_ALT)
    return write_report(
        folder / REPORT,
        title=f"{parts.root.name}: {detector.method}",
        metrics=result,
        figures=[
            ReportFigure(
                "Which defects it finds",
                _panel(parts.test, prediction, detector, [0.0, 1.0]),
                "The highest and the lowest image score among the good images and among those of every defect. Ground "
                "truth is outlined. The colours are fixed by the scores of good training images.",
                _PANEL_ALT,
            ),
            ReportFigure(
                "Curves",
                curve_figure(image_roc, pixel_roc, region),
                "ROC of images and pixels, and the share of each defect found against false positive pixels.",
                f"ROC and PRO curves: image AUROC {result['image_auroc']:.3f}, pixel AUROC "
                f"{result['pixel_auroc']:.3f}, PRO {result['pro']:.3f}.",
            ),
            ReportFigure(
                "Image scores",
                score_histogram(prediction.scores, labels, fitted(detector).threshold),
                "The threshold is the 99th percentile of the scores of the good training images.",
                "Histogram of the scores of good and anomalous test images with the threshold.",
            ),
            *_training(detector),
        ],
        config_toml=detector.config.to_toml(),
        command=f"mlffn demo --category {parts.root.name} --seed {detector.config.train.seed}",
    )


def _training(detector: AnomalyDetector) -> list[ReportFigure]:
    """Return the learning curves of a method that trains."""
    if not len(detector.history):
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
        masks=test.masks()[chosen],
        scores=prediction.scores[chosen].tolist(),
        titles=[test.defects[i].replace("_", " ") for i in chosen],
    )
