from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mlffn_lite.errors import CheckpointError, MlffnError
from mlffn_lite.state import CheckpointState
from mlffn_lite.storage import environment, load_tensors, new_run, save_tensors, write_atomic, write_json

STATE = CheckpointState(run=new_run(), step=1, seconds=0.5, config={})


def test_tensors_and_state_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.safetensors"
    tensors = {"w": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last), "n": torch.tensor(7)}
    tensors["view"] = tensors["w"][0]  # shares memory: safetensors would refuse it as it is
    written = STATE.model_copy(update={"step": 3, "config": {"a": [1, None]}})
    save_tensors(path, tensors, written)
    loaded, state = load_tensors(path)
    assert state == written
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"w": torch.randn(100)}, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated, damaged or not ours"):
        load_tensors(path)


def test_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not ours"):
        load_tensors(tmp_path / "x.safetensors")


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_tensors(tmp_path / "x.safetensors")


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MlffnError, match="No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MlffnError, match="cannot write"):
        write_atomic(tmp_path / "file" / "x.txt", "a")


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", b"1")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_json_is_readable_and_unicode(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"name": "缺陷", "value": 0.5, "inner": {"pro": float("nan")}})
    assert json.loads((tmp_path / "m.json").read_text()) == {"name": "缺陷", "value": 0.5, "inner": {"pro": None}}
    assert "缺陷" in (tmp_path / "m.json").read_text()


def test_environment_says_what_was_measured_on() -> None:
    found = environment(torch.device("cpu"))
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
