"""What a threshold makes of a whole set: verdicts against counts by hand, and their table as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explored import NAMES, SCALE, prediction, split
from hypothesis import given
from hypothesis import strategies as st

from mlffn_lite.datasets.folder import Entry, Split
from mlffn_lite.detector import Prediction
from mlffn_lite.errors import MlffnError
from mlffn_lite.widgets import Verdicts, write_verdicts
from mlffn_lite.widgets.views import COLUMNS, View, unit


def verdicts(**options: Any) -> Verdicts:
    parts = split()
    return Verdicts(parts, prediction(parts), **options)


@given(st.floats(-1, 3))
def test_verdicts_are_those_of_a_loop(threshold: float) -> None:
    found = verdicts()
    scores = prediction(split()).scores.tolist()
    words = []
    for name, score in zip(NAMES, scores, strict=True):
        defective, called = not name.startswith("good"), score > threshold
        words.append("right" if defective == called else "a miss" if defective else "a false alarm")
    said = [word.partition(",")[0] for word in found.outcomes(threshold)]
    assert said == words
    assert found.misses(threshold).sum() == words.count("a miss")
    assert found.false_alarms(threshold).sum() == words.count("a false alarm")
    assert (found.called(threshold) == [s > threshold for s in scores]).all()


def test_found_beside_the_defect() -> None:
    parts, found = split(), prediction(split())
    turned = Verdicts(parts, Prediction(found.maps.flip(1), found.scores))
    assert turned.beside(1.0).tolist() == [False, False, True, True, False]
    assert turned.outcomes(1.0)[2] == "right, but not where the defect is"
    assert not turned.beside(0.2).any()  # all of the image is above, the defect too
    assert not Verdicts(split(masks=False), Prediction(found.maps.flip(1), found.scores)).beside(1.0).any()


def test_the_summary_counts() -> None:
    assert verdicts().summary(1.0) == (
        "5 images: misses 33.3 % (1 of 3; 95 % 6.1 to 79.2), false alarms 0.0 % (0 of 2; 95 % 0.0 to 65.8)."
    )
    assert "1 found, but not" not in verdicts().summary(1.0)
    assert verdicts(labelled=False).summary(1.0) == "5 images: 2 anomalous, 3 good; the truth is not known."


def test_without_truth_nothing_is_right_or_wrong() -> None:
    found = verdicts(labelled=False)
    assert found.says(2, 1.0) == "image score 1.75 > threshold 1.00: anomalous. The truth is not known."
    assert found.outcomes(1.0) == [""] * 5
    assert not found.misses(9.0).any()
    assert not found.false_alarms(-9.0).any()
    assert {row[2] for row in found.rows(1.0)} == {""}


def test_the_table_of_verdicts(tmp_path: Path) -> None:
    path = write_verdicts(tmp_path / "new" / "v.csv", verdicts().rows(1.0, "weave"))
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    hole = lines[2]
    assert hole == {
        "category": "weave",
        "image": str(Path("test/hole/000.png")),
        "defect": "hole",
        "verdict": "NOK",
        "score": "1.75",
        "threshold": "1.0",
        "outcome": "right",
        "peak_x": "6",
        "peak_y": "12",
    }
    assert [line["verdict"] for line in lines] == ["OK", "OK", "NOK", "NOK", "OK"]
    assert lines[4]["outcome"] == "a miss"


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    parts = split(["good/000"])
    named = Split([Entry(Path('=HYPERLINK("x")'))], parts.shape, parts.batch([0]))
    path = write_verdicts(tmp_path / "v.csv", Verdicts(named, prediction(parts)).rows(1.0, "@own"))
    with path.open(newline="") as file:
        line = list(csv.reader(file))[1]
    assert line[:2] == ["'@own", '\'=HYPERLINK("x")']


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(MlffnError, match="cannot write"):
        write_verdicts(tmp_path / "file" / "v.csv", [])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_units_that_runs_share() -> None:
    parts = split()
    view = View(prediction(parts), parts, SCALE)
    assert unit(view, np.array([0.0, 1.0, 2.0])).tolist() == [0.0, 1.0, 2.0]
