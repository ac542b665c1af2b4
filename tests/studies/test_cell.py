"""A cell is a pure function of its specification, and its name a hash of all that determines the result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mlffn_lite import registry
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import DataError
from mlffn_lite.storage import CHECKPOINT
from mlffn_lite.studies import cell as module
from mlffn_lite.studies.cell import Cell, digest_of, measure, own_code, read_map
from mlffn_lite.studies.store import Store
from mlffn_lite.training import Trainer

CELL = Cell("/data/bolts", "f00", Config.preset("tiny").to_dict(), "tiny", 1)
# Another permitted value where half of the first or one more is none.
OTHER = {"str": "x", "bool": None, "list": [1, 2], "dict": {"scar": 1.0}}
KEYS = [(s, k) for s, section in CELL.config.items() if isinstance(section, dict) for k in section]


def changed(section: str, key: str) -> Cell:
    value: Any = CELL.config[section][key]
    value = not value if isinstance(value, bool) else OTHER.get(type(value).__name__) or value + 1
    config = {**CELL.config, section: {**CELL.config[section], key: value}}
    return dataclasses.replace(CELL, config=config)


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_value_of_the_configuration_is_part_of_the_identity_but_the_device(section: str, key: str) -> None:
    same = changed(section, key).name == CELL.name
    assert same is ((section, key) == ("train", "device"))


def test_what_else_is_part_of_the_identity() -> None:
    other = dataclasses.replace(CELL, config={**CELL.config, "method": "padim"})
    names = {CELL.name, other.name, dataclasses.replace(CELL, fingerprint="f01").name}
    names.add(dataclasses.replace(CELL, numerics="another").name)
    assert len({name.rpartition("-")[2] for name in names}) == 4
    own = dataclasses.replace(CELL, config={**CELL.config, "method": "mypackage.module:Own"})
    assert own.name.startswith("bolts-Own-seed0-")


def test_changed_code_of_ones_own_is_another_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.preset("tiny").replace(loss={"own": {"own_term:of_mine": 1.0}})
    assert own_code(CELL.config) == own_code(config.to_dict()) == ""
    found = set()
    for factor in (1, 2):
        term = eval(f"lambda features, score, mask, *, generator: {factor} * score.mean()")
        monkeypatch.setitem(registry.OWN["terms"], "mine", term)
        named = config.replace(loss={"own": {"mine": 1.0}}).to_dict()
        found |= {dataclasses.replace(CELL, config=named, code=own_code(named)).name for _ in range(2)}
    assert len(found) == 2


def test_what_is_no_part_of_the_identity() -> None:
    shuffled = dict(reversed(CELL.config.items()))
    shuffled["train"] = dict(reversed(shuffled["train"].items()))
    other = Cell("/elsewhere/bolts", "f00", shuffled, "other words", 64)
    assert other.name == CELL.name


def test_the_name_reads_well_and_its_hash_is_sha256() -> None:
    text = json.dumps([module.NUMERICS, "f00", CELL.config], sort_keys=True)
    assert CELL.name == f"bolts-mlffn-seed0-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
    assert changed("train", "seed").name.startswith("bolts-mlffn-seed1-")
    assert digest_of("a", [1, {"b": 2, "a": None}]) == digest_of("a", [1, {"a": None, "b": 2}])
    assert digest_of(1) != digest_of("1") != digest_of(1.0)


def test_a_record_tells_its_cell(undisturbed: Store, cells: list[Cell]) -> None:
    records = {Cell.of(r).name: r for r in undisturbed.records()}
    assert records.keys() == {c.name for c in cells}
    for cell in cells:
        again = Cell.of(records[cell.name])
        assert again == dataclasses.replace(cell, data="parts")


def test_a_cell_gives_the_same_numbers_again_whatever_the_state_of_the_process(
    undisturbed: Store, cells: list[Cell], results: Callable[[Store], dict[str, Any]], tmp_path: Path
) -> None:
    cell, again = cells[-1], Store(tmp_path)
    torch.manual_seed(12345)
    np.random.seed(54321)  # noqa: NPY002 - the global state is what must not matter
    before = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        again.write(cell, measure(cell))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert results(again) == {cell.name: results(undisturbed)[cell.name]}


def test_arms_and_seeds_give_different_numbers(undisturbed: Store, cells: list[Cell]) -> None:
    scores = {json.dumps(r["scores"]) for r in undisturbed.records()}
    assert len(scores) == len(cells)
    other = dataclasses.replace(cells[0], config={**cells[0].config, "train": {**cells[0].config["train"], "seed": 1}})
    assert json.dumps(measure(other)["scores"]) not in scores


def test_a_record_says_all(undisturbed: Store, parts: Path) -> None:
    for record in undisturbed.records():
        assert (record["set"], record["method"], record["seed"], record["threads"]) == ("parts", "mlffn", 0, 1)
        assert (record["shape"], record["images"], record["train_images"]) == ([32, 32], 8, 12)
        assert {"versions", "device", "device_name", "precision", "fingerprint", "numerics", "label"} <= record.keys()
        assert min(record["fit_seconds"], record["predict_ms"]) > 0
        assert 100 < record["peak_memory_mb"] < 20_000
        assert record["gpu_memory_mb"] is None
        history = record["history"]
        assert history["step"][-1] == 2
        assert {len(column) for column in history.values()} == {len(history["step"])}
        assert {"total", "feature", "score", "consistency"} <= history.keys()


def test_the_kept_scores_are_those_that_the_metric_was_computed_from(undisturbed: Store, parts: Path) -> None:
    images = sorted(p.relative_to(parts).as_posix() for p in (parts / "test").glob("*/*.png"))
    for record in undisturbed.records():
        assert sorted(record["scores"]) == images
        labels = [int("/good/" not in path) for path in record["scores"]]
        assert record["image_auroc"] == pytest.approx(roc_auc_score(labels, list(record["scores"].values())))


def test_kept_maps_are_the_detectors_at_every_eighth_pixel(undisturbed: Store, cells: list[Cell], parts: Path) -> None:
    record = next(r for r in undisturbed.records() if Cell.of(r).name == cells[-1].name)
    folder = AnomalyFolder(parts, size=32)
    detector = AnomalyDetector(Config().replace(**cells[-1].config)).fit(folder, progress=False)
    maps = detector.predict(folder.test.images()).maps.numpy()
    paths = [folder.name(path) for path in folder.test.paths]
    assert list(record["maps"]) == ["test/good/000.png", "test/scratch/000.png"]
    for path, kept in record["maps"].items():
        full = maps[paths.index(path)]
        coarse = read_map(kept)
        assert coarse.shape == (4, 4)
        half_step = (kept["high"] - kept["low"]) / 255 / 2
        np.testing.assert_allclose(coarse, full[4::8, 4::8], atol=half_step * 1.01 + 1e-6)
        assert record["scores"][path] == full.max()


def test_a_flat_map_is_kept_too(parts: Path) -> None:
    kept = module._some_maps(torch.full((8, 32, 32), 3.5), AnomalyFolder(parts, size=32))
    assert all((read_map(k) == 3.5).all() for k in kept.values())


def test_changed_data_are_refused(cells: list[Cell], parts: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))
    (copy / "train/good/003.png").write_bytes((copy / "train/good/004.png").read_bytes())
    with pytest.raises(DataError, match="has changed since"):
        measure(dataclasses.replace(cells[0], data=str(copy)))


@pytest.mark.parametrize("rows", [1, 2, 19, 20, 21, 40, 1000])
def test_some_rows_of_a_history_are_kept(rows: int) -> None:
    steps = np.arange(10, 10 * rows + 1, 10)
    kept: dict[str, Any] = dict(module._summary(pd.DataFrame({"step": steps, "total": 1 / steps})))
    assert len(kept["step"]) == min(rows, 20)
    assert (kept["step"][0], kept["step"][-1]) == (10, 10 * rows)
    assert kept["step"] == sorted(set(kept["step"]))
    assert kept["total"] == [float(f"{1 / s:.6g}") for s in kept["step"]]


def test_a_history_that_is_not_finite_can_be_kept(tmp_path: Path) -> None:
    """Under fp16 the scaler meets infinite gradients on purpose."""
    kept = module._summary(pd.DataFrame({"step": [1, 2, 3], "grad_norm": [np.inf, np.nan, 2.5]}))
    assert kept == {"step": [1.0, 2.0, 3.0], "grad_norm": [None, None, 2.5]}
    Store(tmp_path).write(CELL, {"history": kept})
    assert json.loads((tmp_path / "cells" / CELL.name).read_text())["history"] == kept


def test_peak_memory_starts_anew_with_each_cell() -> None:
    ballast = b"x" * 600_000_000
    high = module.peak_memory()
    del ballast
    module._forget_peak()
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system keeps the peak of a process for good")
    assert module.peak_memory() < high - 400_000_000


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cell_goes_on_where_it_was_killed(
    damaged: bool, undisturbed: Store, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cells[-1]
    config = Config().replace(**cell.config).replace(train={"checkpoint_every": 1})
    cell = dataclasses.replace(cell, config=config.to_dict())
    losses = Trainer.losses
    seen: list[int] = []

    def dying(self: Trainer, images: Any) -> Any:
        if len(seen) == 1:
            raise SystemExit("killed")
        seen.append(self.step)
        return losses(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "losses", dying)
        with pytest.raises(SystemExit):
            measure(cell, tmp_path / "partial")
    if damaged:
        (tmp_path / "partial" / CHECKPOINT).write_bytes(b"rubbish")
    steps = []

    def counted(self: Trainer, images: Any) -> Any:
        steps.append(self.step)
        return losses(self, images)

    monkeypatch.setattr(Trainer, "losses", counted)
    record = measure(cell, tmp_path / "partial")
    assert steps == ([0, 1] if damaged else [1])
    (whole,) = (r for r in undisturbed.records() if Cell.of(r).name == cells[-1].name)
    assert record["scores"] == whole["scores"]
    assert record["history"]["total"][-1] == whole["history"]["total"][-1]
