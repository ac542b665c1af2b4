"""One file per cell: whole or not there, never run twice, merged by copying, and nothing foreign taken for a result."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlffn_lite.config import Config
from mlffn_lite.errors import MlffnError, StudyError
from mlffn_lite.storage import read_sealed, write_sealed
from mlffn_lite.studies.cell import NUMERICS, Cell
from mlffn_lite.studies.grid import Place, compare, open_places, table4
from mlffn_lite.studies.report import write_reports
from mlffn_lite.studies.store import FAILED, Failure, Store

HOLD = """
import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(undisturbed: Store, tmp_path: Path) -> Store:
    return Store(shutil.copytree(undisturbed.folder, tmp_path / "store"))


def edit(path: Path, **changes: Any) -> None:
    write_sealed(path, {**read_sealed(path), **changes})


def test_a_finished_cell_is_one_readable_file(store: Store, cells: list[Cell]) -> None:
    assert sorted(p.name for p in (store.folder / "cells").iterdir()) == sorted(c.name for c in cells)
    assert all(store.done(c) for c in cells)
    assert not store.done(dataclasses.replace(cells[0], fingerprint="other"))
    assert [Cell.of(r).name for r in store.records()] == sorted(c.name for c in cells)
    assert store.paths() == [store.folder / "cells" / name for name in sorted(c.name for c in cells)]


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path: Path, places: dict[str, Place]) -> None:
    store = Store(tmp_path / "new")
    store.check(places)
    assert (store.failures(), store.under_way(), store.paths()) == ({}, [], [])
    with pytest.raises(StudyError, match="holds no finished cell"):
        store.records()
    assert not store.folder.exists()


def test_a_metric_that_is_undefined_is_null(store: Store, keep: Callable[..., Cell]) -> None:
    cell = keep(store, "table4", "baseline", "bolts", 0, 0.5, math.nan, math.nan)
    text = store.path(cell).read_text()
    assert "NaN" not in text
    record = next(r for r in store.records() if r["set"] == "bolts")
    assert (record["image_auroc"], record["pixel_auroc"], record["pro"]) == (0.5, None, None)


def test_a_failure_is_kept_until_the_cell_succeeds(store: Store, cells: list[Cell]) -> None:
    cell = dataclasses.replace(cells[0], fingerprint="other")
    name = cell.name.removesuffix(".json")
    store.fail(cell, Failure("no memory", "Traceback"))
    assert store.failures() == {name: "no memory"}
    assert not store.done(cell)
    assert store.settled(cell)
    assert store.claim(cell) is None
    store.retry([cell, *cells])
    assert not store.settled(cell)
    assert all(map(store.done, cells))
    assert len(store.records()) == len(cells)
    store.fail(cell, Failure("again"))
    assert store.failures() == {name: "again"}
    store.write(cell, {**store.records()[0], "config": cell.config, "fingerprint": "other"})
    assert store.failures() == {}
    assert len(store.records()) == len(cells) + 1


def test_concurrent_writers_never_show_half_a_file(store: Store, cells: list[Cell]) -> None:
    contents = [{**r, "padding": "x" * size} for r, size in zip(store.records(), (1, 10**5, 3 * 10**5), strict=False)]
    target, stop, errors, seen = store.path(cells[0]), threading.Event(), [], set()

    def write(content: dict[str, Any]) -> None:
        for _ in range(20):
            store.write(cells[0], content)

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add(len(json.loads(target.read_text())["padding"]))
            except (ValueError, OSError, KeyError) as error:
                errors.append(error)

    store.write(cells[0], contents[0])
    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=[c]) for c in contents]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not errors
    assert seen <= {1, 10**5, 3 * 10**5}
    assert len(seen) > 1
    assert not list(target.parent.glob(".*"))  # no temporary file is left


def test_only_one_may_run_a_cell_however_many_ask(cells: list[Cell], tmp_path: Path) -> None:
    store, holders, most, wins = Store(tmp_path), [0], [0], [0]
    guard = threading.Lock()

    def work() -> None:
        for _ in range(150):
            lock = store.claim(cells[0])
            if lock is None:
                continue
            with guard:
                holders[0] += 1
                wins[0] += 1
                most[0] = max(most[0], holders[0])
            os.sched_yield()
            with guard:
                holders[0] -= 1
            store.release(lock)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert wins[0] > 1
    assert store.under_way() == []


def test_a_claim_is_exclusive_between_processes_and_dies_with_its_holder(cells: list[Cell], tmp_path: Path) -> None:
    store, cell = Store(tmp_path), cells[0]
    path = tmp_path / "locks" / f"{cell.name.removesuffix('.json')}.lock"
    path.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert store.claim(cell) is None
        assert store.under_way() == [path.stem]
        other = store.claim(cells[1])
        assert other is not None
        assert set(store.under_way()) == {path.stem, cells[1].name.removesuffix(".json")}
        store.release(other)
        holder.kill()
        holder.wait()
    assert store.under_way() == []
    lock = store.claim(cell)
    assert lock is not None
    assert store.claim(cell) is None  # not even in the process that has it
    store.release(lock)
    assert store.under_way() == []


def test_a_finished_cell_cannot_be_claimed(store: Store, cells: list[Cell]) -> None:
    assert all(store.claim(c) is None for c in cells)
    assert store.under_way() == []


@settings(max_examples=40)
@given(data=st.data())
def test_a_file_cut_anywhere_is_named(undisturbed: Store, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    source = undisturbed.paths()[0]
    content = source.read_bytes().rstrip()
    copy = tmp_path_factory.mktemp("cut") / "cells" / source.name
    copy.parent.mkdir()
    copy.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(StudyError, match=rf"{source.name} is damaged or foreign .*; delete it and run its cell again"):
        Store(copy.parent.parent).records()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b'{"numerics": "%s"}' % NUMERICS.encode(),
        b'{"versions": null}',
        b'{"numerics": "%s", "config": []}' % NUMERICS.encode(),
        b"\xff\xfe\x00not text",
        b'{"name": "package", "version": "1.0"}',
    ],
)
def test_a_foreign_file_is_named(store: Store, places: dict[str, Place], content: bytes) -> None:
    (store.folder / "cells/a_foreign.json").write_bytes(content)
    for read in (store.records, lambda: store.check(places)):
        with pytest.raises(StudyError, match=r"a_foreign\.json is damaged or foreign"):
            read()


def test_a_folder_in_place_of_a_cell_is_named(store: Store) -> None:
    (store.folder / "cells/a.json").mkdir()
    with pytest.raises(StudyError, match=r"a\.json is damaged or foreign"):
        store.records()


def test_a_record_that_is_not_that_of_its_name_is_refused(store: Store) -> None:
    path = store.paths()[0]
    original = path.read_text()
    path.rename(path.with_name("renamed-mlffn-seed0-0123456789.json"))
    with pytest.raises(StudyError, match=r"renamed.* is damaged or foreign"):
        store.records()
    path.with_name("renamed-mlffn-seed0-0123456789.json").rename(path)
    for changes in ({"fingerprint": "other"}, {"seed": 1, "config": {}}, {"set": "bolts"}):
        edit(path, **changes)
        with pytest.raises(StudyError, match="is damaged or foreign"):
            store.records()
        path.write_text(original)
    path.write_text(original)
    record = read_sealed(path)
    record["config"]["train"]["lr"] *= 2
    write_sealed(path, record)
    with pytest.raises(StudyError, match="is damaged or foreign"):
        store.records()
    write_sealed(path, {k: v for k, v in json.loads(original).items() if k not in ("pro", "seal")})
    with pytest.raises(StudyError, match="is damaged or foreign"):
        store.records()
    path.write_text(original)
    assert len(store.records()) == 5


def test_an_incompatible_version_is_refused(store: Store, places: dict[str, Place]) -> None:
    edit(store.paths()[2], numerics="9.9")
    for read in (store.records, lambda: store.check(places)):
        with pytest.raises(StudyError, match=rf"comes from numerics 9\.9, this is {NUMERICS}; move such cells"):
            read()


def test_what_an_earlier_version_measured_is_reported_and_not_gone_on_with(
    store: Store, places: dict[str, Place]
) -> None:
    for path in store.paths():
        record = {**read_sealed(path), "numerics": "0.0.9"}
        path.unlink()
        write_sealed(path.with_name(Cell.of(record).name), record)
    assert {r["numerics"] for r in store.records()} == {"0.0.9"}
    (report,) = write_reports(store.folder)
    assert f"numerics 0.0.9 (this is {NUMERICS})" in next(report.glob("*_sets.md")).read_text("utf-8")
    with pytest.raises(StudyError, match=r"comes from numerics 0\.0\.9"):
        store.check(places)


def test_damaged_files_beside_the_cells_are_named_and_no_result_is_lost(store: Store, cells: list[Cell]) -> None:
    broken = store.folder / "cells" / f"bolts-mlffn-seed0-0123456789{FAILED}"
    for text in ("", "{", "[]", '{"cell": "bolts"}'):
        broken.write_text(text)
        with pytest.raises(StudyError, match=r"0123456789\.failed\.json is damaged .*; delete it, no result is lost"):
            store.failures()
    assert len(store.records()) == len(cells)
    (store.folder / "data/parts.json").write_text('{"fingerprint": "f')
    with pytest.raises(StudyError, match=r"data/parts.json is damaged .*; delete it, no result is lost"):
        store.check({"parts": Place(Path("/data/parts"), "f01", {})})


def test_stores_merge_by_copying(
    undisturbed: Store, results: Callable[[Store], dict[str, Any]], tmp_path: Path
) -> None:
    halves = [Store(tmp_path / "first"), Store(tmp_path / "second")]
    for i, path in enumerate(undisturbed.paths()):
        for half in halves[i % 2 : i % 2 + 1] if i else halves:  # one cell is in both
            (half.folder / "cells").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, half.folder / "cells")
    assert sorted(len(h.records()) for h in halves) == [3, 3]
    merged = Store(shutil.copytree(halves[0].folder, tmp_path / "merged"))
    shutil.copytree(halves[1].folder, merged.folder, dirs_exist_ok=True)
    assert results(merged) == results(undisturbed)


def test_changed_data_are_refused_and_the_file_is_named(
    store: Store, places: dict[str, Place], base: Any, parts: Path, tmp_path: Path
) -> None:
    store.check(places)
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))
    store.check(open_places([copy], base))  # elsewhere, the same
    (copy / "test/scratch/002.png").write_bytes((copy / "test/scratch/001.png").read_bytes())
    with pytest.raises(StudyError, match=r"parts has changed since .* \(test/scratch/002\.png differs\); restore"):
        store.check(open_places([copy], base))
    (copy / "train/good/000.png").unlink()
    (copy / "train/good/new.png").write_bytes((copy / "test/good/001.png").read_bytes())
    with pytest.raises(StudyError, match=r"\(test/scratch/002\.png differs and 2 more\)"):
        store.check(open_places([copy], base))
    (store.folder / "data/parts.json").unlink()
    with pytest.raises(StudyError, match=r"parts has changed since the cells in \S+ ran; restore it"):
        store.check(open_places([copy], base))


def test_digests_are_remembered_once(store: Store, places: dict[str, Place]) -> None:
    path = store.folder / "data/parts.json"
    before = path.read_text(), path.stat().st_mtime_ns
    assert json.loads(before[0])["files"] == places["parts"].digests
    store.remember([], {name: Place(Path("/data") / name, "f02", {"a": "b"}) for name in ("parts", "bolts")})
    assert (path.read_text(), path.stat().st_mtime_ns) == before
    assert json.loads((store.folder / "data/bolts.json").read_text()) == {"fingerprint": "f02", "files": {"a": "b"}}


def test_grids_of_one_setting_are_one_and_of_two_are_two(tmp_path: Path) -> None:
    base, store = Config.preset("tiny"), Store(tmp_path)
    asked = [
        compare(base, ["padim"], "tiny"),
        compare(base, ["patchcore", "mlffn"], "tiny"),
        compare(base.replace(data={"size": 96}), ["padim"], "tiny larger"),
        table4(base, "tiny"),
    ]
    for grid in asked:
        store.remember([grid], {})
        store.remember([grid], {})
    assert len(list((tmp_path / "grids").iterdir())) == 4
    found = {(g.name, g.label): g for g in store.grids()}
    assert found.keys() == {("compare", "tiny"), ("compare", "tiny larger"), ("table4", "tiny")}
    assert list(found["compare", "tiny"].columns) == ["patchcore", "mlffn", "padim"]
    assert found["table4", "tiny"] == asked[3]
    path = next((tmp_path / "grids").glob("table4-*"))
    for text in ("", "{", "[]", '{"name": "table4"}'):
        path.write_text(text)
        with pytest.raises(StudyError, match=r"table4-\w+\.json is damaged .*; delete it and give its command again"):
            store.grids()


def test_a_full_disk_leaves_what_was_there(store: Store, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for write in (
            lambda: store.write(cells[0], {"new": 1}),
            lambda: store.fail(cells[0], Failure("x")),
            lambda: store.remember([], {"bolts": Place(Path("/data/bolts"), "f02", {})}),
        ):
            with pytest.raises(MlffnError, match=r"cannot write .*No space left on device; free space or"):
                write()
    assert {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_made_is_one_clear_error(cells: list[Cell], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StudyError, match=r"cannot write .*file/locks.*choose another --out"):
        Store(tmp_path / "file").claim(cells[0])
    (tmp_path / "locks").write_text("in the way")
    with pytest.raises(StudyError, match="cannot write"):
        Store(tmp_path).claim(cells[0])
