"""Studies on a real Ray cluster: the same bits, and nothing lost when a worker, a node or the run itself is killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from mlffn_lite.studies.cell import Cell
from mlffn_lite.studies.run import run
from mlffn_lite.studies.store import Store

pytest.importorskip("ray", reason="needs Ray: pip install 'mlffn-lite[distributed]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform == "win32", reason="kills processes as POSIX does"),
]
Results = Callable[[Store], dict[str, Any]]
Start = Callable[..., Any]


def workers_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run a cell now: Ray names them after their task."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if any("ray::_attempt" in word for word in process.cmdline()):
                found.append(process)
    return found


def cells_run(text: str) -> Counter[str]:
    return Counter(re.findall(r"^\[\d/5\] (.*?): \d", text, re.MULTILINE))


class Node:
    """A process of ``ray start --block`` with all that it started; ended alone, whatever else runs here."""

    def __init__(self, folder: Path, environment: dict[str, str], *words: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *words]
        self.log = folder / f"node-{len(list(folder.glob('node-*')))}.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self.seen: dict[int, psutil.Process] = {}
        self.wait(lambda: "Ray runtime started" in self.log.read_text())

    def wait(self, condition: Callable[[], Any]) -> None:
        until = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.seen[child.pid] = child
        return [p for p in self.seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def kill(self) -> None:
        """As if its machine lost power."""
        for process in (*self.family(), self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(60)


@pytest.fixture
def node(alone: dict[str, str]) -> Iterator[Callable[..., Node]]:
    """Start Ray nodes; their folder has a short name, because sockets in it must."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    nodes: list[Node] = []

    def start(*words: str) -> Node:
        nodes.append(Node(folder, alone, *words, *([f"--temp-dir={folder}"] if "--head" in words else [])))
        return nodes[-1]

    yield start
    for one in nodes:
        one.kill()
    shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_killed_worker_costs_only_time_and_the_bits_are_the_same(
    undisturbed: Store, cells: list[Cell], results: Results, options: list[str], study: Start, tmp_path: Path
) -> None:
    """On a cluster of its own, which it stops in the end."""
    store = Store(tmp_path / "store")
    one = study("table4", *options, "--backend", "ray", "--workers", 2, "--out", store.folder)
    worker = one.wait(lambda: workers_of(one.family()))[0]
    under_way = store.under_way()
    worker.kill()
    assert 1 <= len(under_way) <= 2
    assert one.end() == 0, one.text()
    assert results(store) == results(undisturbed)
    assert cells_run(one.text()) == dict.fromkeys(cells_run(one.text()), 1)
    assert len(cells_run(one.text())) == 5
    assert "Traceback" not in one.text()
    for process in one.family():
        process.wait(60)


def test_a_cluster_that_is_there_survives_a_node_and_the_run(
    undisturbed: Store,
    cells: list[Cell],
    results: Results,
    options: list[str],
    study: Start,
    node: Callable[..., Node],
    tmp_path: Path,
) -> None:
    """Two nodes, a worker each: one node is killed while it runs a cell, later the run itself; another one finishes."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = node("--head", f"--port={port}", "--include-dashboard=false")
    second = node(f"--address={address}")
    store = Store(tmp_path / "store")
    words = ["table4", *options, "--backend", "ray", "--workers", 2, "--address", address, "--out", store.folder]
    first = study(*words)
    first.wait(lambda: workers_of(second.family()))
    second.kill()
    first.wait(store.paths)
    first.kill()
    kept = {p.name: p.read_bytes() for p in store.paths()}
    assert 1 <= len(kept) < len(cells), "killed too late to mean anything"
    assert store.under_way() == []
    assert store.failures() == {}
    head.wait(lambda: not workers_of(head.family()))  # the cluster drops what nobody waits for

    again = study(*words)
    assert again.end() == 0, again.text()
    assert results(store) == results(undisturbed)
    assert {name: (store.folder / "cells" / name).read_bytes() for name in kept} == kept
    assert len(cells_run(again.text())) == len(cells) - len(kept)
    assert head.process.poll() is None  # it was not ours to stop


def test_ctrl_c_stops_the_run_and_its_cluster(
    cells: list[Cell], options: list[str], study: Start, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    endless = ["--set", "train.steps=10000000"]
    one = study("table4", *options, *endless, "--backend", "ray", "--workers", 2, "--out", store.folder)
    one.wait(lambda: workers_of(one.family()))
    os.killpg(one.process.pid, signal.SIGINT)
    assert one.end() == 130, one.text()
    assert f"Stopped; 0 of 5 cells are in {store.folder}; go on with the same command." in one.text()
    assert "Traceback" not in one.text()
    for process in one.family():
        process.wait(60)
    assert (store.paths(), store.under_way(), store.failures()) == ([], [], {})


def test_a_killed_run_takes_its_cluster_along(
    cells: list[Cell], options: list[str], study: Start, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    endless = ["--set", "train.steps=10000000"]
    one = study("table4", *options, *endless, "--backend", "ray", "--workers", 1, "--out", store.folder)
    one.wait(lambda: workers_of(one.family()))
    one.kill()
    assert store.under_way() == []
    for process in one.family():
        process.wait(240)  # Ray notices late on a busy machine


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:{port}", "refused"), ("no.such.host.invalid:6379", ""), ("nonsense", "Invalid")]
)
def test_a_cluster_that_is_not_there_is_one_line(address: str, reason: str, cells: list[Cell], tmp_path: Path) -> None:
    from mlffn_lite.errors import ConfigError
    from mlffn_lite.studies.run import Workers

    there = address.format(port=free_port())
    with pytest.raises(ConfigError, match=rf"cannot reach a Ray cluster at {there}: .*{reason}"):
        run(cells, Store(tmp_path), Workers("ray", 1, address=there), progress=False)
    assert Store(tmp_path).paths() == []
