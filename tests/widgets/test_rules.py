"""Explorers of a detector whose regions must be large or strong: their verdicts are those of ``mlffn predict``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explored import NAMES, SCALE, Brightness, detector, prediction, split
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from course.explorers import PseudoPainter
from mlffn_lite.datasets.folder import Entry, Split
from mlffn_lite.detector import Calibration
from mlffn_lite.heatmaps import Outputs, write_predictions
from mlffn_lite.widgets import HeatmapExplorer, RunComparison, Verdicts

DEMANDS = [{}, {"min_area": 30}, {"min_peak": 0.42}, {"min_area": 12, "min_peak": 0.3}, {"min_area": 2000}]


def squares(folder: Path) -> Split:
    """Good images and squares of several sizes and strengths, as files."""
    kinds = {"good": [(0, 0), (0, 0), (1, 255)], "hole": [(2, 255), (3, 200), (6, 160), (6, 255)]}
    entries = []
    for defect, shapes in kinds.items():
        for number, (side, grey) in enumerate(shapes):
            pixels = np.random.default_rng(number).integers(100, 140, (32, 32, 3), dtype=np.uint8)
            pixels[10 : 10 + side, 4 : 4 + side] = grey
            path, mask = folder / f"{defect}{number}.png", folder / f"{defect}{number}_mask.png"
            Image.fromarray(pixels).save(path)
            area = np.zeros((32, 32), np.uint8)
            area[10 : 10 + side, 4 : 4 + side] = 255
            Image.fromarray(area).save(mask)
            entries.append(Entry(path, defect, mask if defect != "good" else None))
    return Split.read(entries, (32, 32), "reading")[0]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return squares(tmp_path_factory.mktemp("parts"))


def calibrated(demands: dict[str, Any], parts: Split) -> Brightness:
    made = detector(split())
    made.calibrate(threshold=0.2, **demands)
    return made


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("demands", DEMANDS, ids=str)
def test_verdicts_are_those_of_predict(demands: dict[str, Any], parts: Split, tmp_path: Path) -> None:
    made = calibrated(demands, parts)
    table = write_predictions(made, parts.paths, tmp_path / "out", outputs=Outputs(pictures="none"), progress=False)
    verdicts = table["verdict"].tolist()
    assert len(set(verdicts)) > 1 or demands == {"min_area": 2000}
    explorer = HeatmapExplorer(made, parts)
    saved = lines(explorer.save_verdicts(tmp_path / "verdicts.csv"))
    assert [line["verdict"] for line in saved] == verdicts
    assert [float(line["score"]) for line in saved] == pytest.approx(table["score"].tolist())
    for index, found in enumerate(table["regions"]):
        explorer.picker.image.value = index
        assert len(explorer.regions) == found
        assert explorer.anomalous == (verdicts[index] == "NOK")
        assert (": anomalous. Truth" in explorer.label.value) == explorer.anomalous
        assert int(explorer.labels.max()) == found


@pytest.mark.parametrize("demands", DEMANDS, ids=str)
def test_the_whole_set_is_counted_by_the_rule(demands: dict[str, Any], parts: Split) -> None:
    made = calibrated(demands, parts)
    explorer = HeatmapExplorer(made, parts)
    decided = made.decide(made.predict_split(parts), parts)
    assert f"false alarms {100 * decided['false_alarms']['rate']:.1f} %" in explorer.overall.value
    assert f"misses {100 * (1 - decided['detections']['rate']):.1f} %" in explorer.overall.value
    explorer.picker.filter.value = "misses"
    total = len(explorer.picker.listed)
    assert total == decided["detections"]["total"] - decided["detections"]["images"]


def test_what_does_not_count_is_said(parts: Split) -> None:
    explorer = HeatmapExplorer(calibrated({"min_area": 30}, parts), parts)
    explorer.picker.select("good/good2")
    assert " > threshold 0.20, but no region with at least 30 px: good. Truth: good; right." in explorer.label.value
    assert "0 regions above the threshold with at least 30 px" in explorer.table.value
    assert explorer.overall.value.endswith(" Regions need at least 30 px.")


@given(st.floats(0, 2), st.integers(0, 40), st.none() | st.floats(0, 2))
@settings(max_examples=30)
def test_at_any_threshold(threshold: float, area: int, peak: float | None) -> None:
    shown, scale = split(), Calibration(0.0, 2.0, threshold, min_area=area, min_peak=peak)
    found = prediction(shown)
    wanted = [bool(scale.rule.regions(heat)) for heat in found.maps.numpy()]
    verdicts = Verdicts(shown, found, rule=scale.rule)
    assert verdicts.called(threshold).tolist() == wanted
    on = [scale.rule.mask(h)[m].any() for h, m in zip(found.maps.numpy(), shown.masks().numpy(), strict=True)]
    beside = [not n.startswith("good") and w and not o for n, w, o in zip(NAMES, wanted, on, strict=True)]
    assert verdicts.beside(threshold).tolist() == beside


def test_two_runs(parts: Split) -> None:
    strict, loose = calibrated({"min_area": 30}, parts), calibrated({}, parts)
    runs = RunComparison({"strict": strict, "loose": loose}, parts)
    runs.picker.select("hole/hole0")
    assert runs.verdicts == {"strict": False, "loose": True}
    assert runs.regions["strict"] == []
    assert runs.differ()[runs.picker.chosen[1]]
    assert "strict: " in runs.label.value
    assert runs.label.value.count("anomalous.") == 2  # the truth, and one run


def test_the_painter(parts: Split) -> None:
    painter = PseudoPainter(calibrated({"min_area": 1000}, parts), parts)
    assert float(painter.after.scores[0]) > 0.2
    assert painter.anomalous is False
    assert painter.label.value.endswith(": good.")


def test_without_demands_scores_decide() -> None:
    shown = split()
    found = prediction(shown)
    assert (Verdicts(shown, found, rule=SCALE.rule).limits == found.scores.numpy()).all()
