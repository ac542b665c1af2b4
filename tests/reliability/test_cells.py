"""A cell is believed if it is whole, possible, and agrees with itself."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from systems import pipes

from mlffn_lite.config import Config
from mlffn_lite.errors import StudyError
from mlffn_lite.storage import read_sealed, write_sealed
from mlffn_lite.studies.cell import Cell, measure
from mlffn_lite.studies.grid import compare, open_places, plan
from mlffn_lite.studies.report import write_reports
from mlffn_lite.studies.store import Store


@pytest.fixture(scope="session")
def measured(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of one measured cell."""
    base = Config.preset("tiny", density={"rank": 4}, data={"size": 32}, train={"device": "cpu"})
    grid, places = compare(base, ["density"]), open_places([parts], base)
    store = Store(tmp_path_factory.mktemp("cells") / "study")
    store.remember([grid], places)
    (cell,) = plan([grid], places, [0])
    store.write(cell, measure(cell))
    return store


@pytest.fixture
def store(measured: Store, tmp_path: Path) -> Store:
    return Store(shutil.copytree(measured.folder, tmp_path / "study"))


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(StudyError) as caught:
        read()
    assert "\n" not in str(caught.value).strip()
    return str(caught.value)


def test_no_flipped_bit_of_a_cell_is_believed(store: Store, tries: int, draws: np.random.Generator) -> None:
    (path,) = store.paths()
    assert len(store.records()) == 1
    whole = path.read_bytes()
    for place in draws.integers(8 * len(whole), size=tries):
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        path.write_bytes(content)
        refused(store.records)


@pytest.mark.parametrize("kind", ["grids", "data"])
def test_no_flipped_bit_beside_the_cells_is_believed(
    kind: str, store: Store, parts: Path, tries: int, draws: np.random.Generator
) -> None:
    places = open_places([parts], Config.preset("tiny"))
    other = {name: place._replace(fingerprint="0" * 64) for name, place in places.items()}
    (path,) = (store.folder / kind).glob("*.json")
    whole = path.read_bytes()
    for place in draws.integers(8 * len(whole), size=tries):
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        path.write_bytes(content)
        said = refused(store.grids if kind == "grids" else lambda: store.check(other))
        assert path.name in said


IMPOSSIBLE: dict[str, Any] = {
    **{f"image_auroc {x!r}": {"image_auroc": x} for x in (0.999, 7.5, -1, None, True, 1e999, "0.9", [1])},
    **{f"pixel_auroc {x!r}": {"pixel_auroc": x} for x in (7.5, -1, True, "0.9", [1])},
    "no scores": {"scores": {}},
    "other scores": {"scores": {"test/good/a.png": 1.0, "test/scratch/b.png": 0.0}, "images": 2},
    "a score that is text": {"scores": {"test/good/000.png": "1"}},
    "a path that leads out": {"maps": {"../../secret.png": {"shape": [1, 1], "low": 0, "high": 1, "data": "AA=="}}},
    "a map of another shape": {"maps": {"test/good/000.png": {"shape": [2, 2], "low": 0, "high": 1, "data": "AA=="}}},
    "a map of no shape": {"maps": {"test/good/000.png": {"shape": "x", "low": 0, "high": 1, "data": "AA=="}}},
    "a shape": {"shape": "x"},
    "a set that is a path": {"set": "../x"},
    "a set that steers the terminal": {"set": "x\x1b[2J"},
    "a label of two lines": {"label": "x\n0 faults"},
    "one more": {"more": 1},
    "another seed": {"seed": 1},
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_or_forged_cell_is_one_line(what: str, store: Store) -> None:
    (path,) = store.paths()
    record = {**read_sealed(path), **IMPOSSIBLE[what]}
    path.unlink()
    path = store.folder / "cells" / Path(Cell.of(record).name).name
    content = json.dumps({"seal": "sha256:" + "0" * 64, **record}).encode()
    from mlffn_lite.sealed import seal

    path.write_bytes(seal(content))
    refused(lambda: write_reports(store.folder))


def test_a_deeply_nested_cell_is_one_line(store: Store) -> None:
    from mlffn_lite.sealed import seal

    (path,) = store.paths()
    path.write_bytes(seal(b'{"seal": "sha256:' + b"0" * 64 + b'", "a": ' + b"[" * 50_000))
    refused(store.records)


def test_a_cell_without_digest_is_refused_and_sealed_only_if_it_is_right(store: Store) -> None:
    (path,) = store.paths()
    record = read_sealed(path)
    path.write_text(json.dumps(record, indent=2))
    assert "mlffn study seal" in refused(store.records)
    path.write_text(json.dumps({**record, "image_auroc": 0.123}))
    assert "its scores give" in refused(store.seal)
    path.write_text(json.dumps(record, indent=2))
    assert (store.seal(), store.seal()) == (1, 0)
    assert store.records() == [record]
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert store.seal() == 0  # what has a digest is not sealed again
    assert "damaged" in refused(store.records)


@pipes
def test_a_pipe_in_place_of_a_cell_is_not_waited_for(store: Store) -> None:
    (path,) = store.paths()
    path.unlink()
    os.mkfifo(path)
    assert "no regular file" in refused(store.records)


def test_a_picture_outside_the_data_folder_is_not_drawn(store: Store, tmp_path: Path) -> None:
    """By a link too."""
    from mlffn_lite.studies.plots import map_panel

    (record,) = store.records()
    (grid,) = store.grids()
    data = tmp_path / "data"
    data.mkdir()
    (data / "test").symlink_to(tmp_path)
    with pytest.raises(StudyError, match="not in its data folder"):
        map_panel([record], grid, record["set"], data)


def test_maps_hold_what_they_say(store: Store) -> None:
    (record,) = store.records()
    for kept in record["maps"].values():
        assert len(base64.b64decode(kept["data"])) == np.prod(kept["shape"])


def test_sealing_twice_gives_the_same_file(store: Store) -> None:
    (path,) = store.paths()
    before = path.read_bytes()
    write_sealed(path, read_sealed(path))
    assert path.read_bytes() == before
