"""No number changes unless ``NUMERICS`` does; what to do then is said in ``golden.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlffn_lite.studies.cell import NUMERICS

from . import golden

GOLDEN = golden.read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.data(tmp_path_factory.mktemp("golden"))


def test_the_numbers_are_those_of_this_numerics() -> None:
    assert GOLDEN["numerics"] == NUMERICS, "run python tests/studies/golden.py"
    assert list(GOLDEN["methods"]) == golden.METHODS


@pytest.mark.parametrize("method", golden.METHODS)
def test_a_method_gives_its_golden_numbers(method: str, folder: Path) -> None:
    found = golden.numbers(method, folder)
    assert golden.changes(method, GOLDEN["methods"][method], found) == [], "raise NUMERICS, then run golden.py"


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("mlffn", {"loss": {"lam": 5.5}}),
        ("mlffn", {"loss": {"consistency": 0.5}}),
        ("mlffn", {"pseudo": {"kinds": {"confetti": 1.0}}}),
        ("density", {"density": {"shrinkage": 0.21}}),
        ("ensemble", {"ensemble": {"members": {"density": 1.0, "mlffn": 1.0}}}),
        ("padim", {"train": {"seed": 1}}),
    ],
)
def test_a_small_change_of_a_method_is_noticed(method: str, change: dict[str, Any], folder: Path) -> None:
    found = golden.numbers(method, folder, golden.CONFIG.replace(**change))
    assert golden.changes(method, GOLDEN["methods"][method], found)


def test_other_numbers_are_written_with_another_numerics_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**GOLDEN, "methods": {"padim": {**GOLDEN["methods"]["padim"], "pro": 0.0}}}
    file = tmp_path / "golden.json"
    file.write_text(before := json.dumps(other))
    monkeypatch.setattr(golden, "FILE", file)
    monkeypatch.setattr(golden, "METHODS", ["padim"])
    assert golden.main() == 1
    assert file.read_text() == before
    monkeypatch.setattr(golden, "NUMERICS", "another")
    assert golden.main() == 0
    assert golden.read()["numerics"] == "another"
    assert golden.changes("padim", GOLDEN["methods"]["padim"], golden.read()["methods"]["padim"]) == []
    assert golden.main() == 0  # the same numbers may always be written
