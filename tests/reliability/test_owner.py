"""A run folder has one writer at a time; whoever dies leaves nothing behind that stays."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from systems import links

from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import BusyError, MlffnError
from mlffn_lite.ownership import LOCK, OWNER, own

from .conftest import CONFIG

HOLD = """
import sys
from mlffn_lite.ownership import own
with own(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_and_told_who_is_there(folder: AnomalyFolder, run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        detector = AnomalyDetector.load(run)
        for write in (
            lambda: AnomalyDetector(CONFIG).fit(folder, out=tmp_path, progress=False),
            lambda: detector.save(tmp_path),
            lambda: detector.complete_run(tmp_path, folder),
        ):
            with pytest.raises(BusyError, match=f"in use by process {other.pid} on "):
                write()
        assert not list(tmp_path.glob("[!.]*"))
        other.kill()  # its lock dies with it
    detector.save(tmp_path)
    assert AnomalyDetector.load(tmp_path).calibration == detector.calibration


def test_a_thread_may_hold_a_folder_twice_and_another_may_not(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with own(tmp_path / "."):
                said.append("held")
        except BusyError as error:
            said.append(str(error))

    with own(tmp_path), own(tmp_path):
        for _ in range(2):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    other()
    assert [text == "held" for text in said] == [False, False, True]


@links
@pytest.mark.parametrize("name", [OWNER, LOCK])
def test_nothing_is_written_through_a_link_that_somebody_left(name: str, tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "run"
    folder.mkdir()
    precious.write_text("as it was")
    (folder / name).symlink_to(precious)
    with contextlib.suppress(MlffnError), own(folder):
        assert precious.read_text() == "as it was"
    assert precious.read_text() == "as it was"


def test_temporary_files_of_the_dead_are_removed_and_no_others(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.safetensors.ab12_cd9.tmp").write_bytes(b"half")
    for name in ("mine.tmp", ".hidden", "x.ab12_cd9.tmp"):
        (tmp_path / name).touch()
    with own(tmp_path):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"mine.tmp", ".hidden", "x.ab12_cd9.tmp", ".lock"}
