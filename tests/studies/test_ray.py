"""Studies on a real Ray cluster of two nodes: the same bits, and nothing lost when a worker or a node is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from mlffn_lite.errors import ConfigError
from mlffn_lite.studies.cell import Cell
from mlffn_lite.studies.grid import compare, plan
from mlffn_lite.studies.run import Workers, run
from mlffn_lite.studies.store import Store

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'mlffn-lite[distributed]'")
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


def wait(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + 240
    while not (held := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return held


@pytest.fixture
def cluster(alone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes on this machine, a cell each."""
    from ray.cluster_utils import Cluster

    for name in ("OMP_NUM_THREADS", "RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, alone[name])
    try:
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
    except Exception as error:  # Ray gives its nodes a fixed time to start, too short on a busy machine
        pytest.skip(f"Ray's own nodes did not start here: {type(error).__name__}: {str(error)[:200]}")
    yield nodes
    nodes.shutdown()


def test_a_cluster_of_two_nodes_gives_the_same_bits_and_survives_one_of_them(
    undisturbed: Store, cells: list[Cell], results: Results, cluster: Any, tmp_path: Path
) -> None:
    """A node is killed while it runs a cell; what it ran is run again on the other."""
    store, failures = Store(tmp_path / "store"), list[dict[str, str]]()
    workers = Workers("ray", 2, address=cluster.address)
    study = threading.Thread(target=lambda: failures.append(run(cells, store, workers, progress=False)))
    study.start()
    mine = psutil.Process()
    wait(lambda: len(workers_of(mine.children(recursive=True))) == 2)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    study.join(600)
    assert failures == [{}]
    assert results(store) == results(undisturbed)
    assert store.under_way() == []


def test_a_method_of_ones_own_reaches_the_nodes(
    places: Any, base: Any, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_padim.py").write_text("from mlffn_lite.peers.padim import PaDiM\n\nclass Own(PaDiM):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    planned = plan([compare(base, ["own_padim:Own", "padim"])], places, [0])
    store = Store(tmp_path / "store")
    assert run(planned, store, Workers("ray", 2, address=cluster.address), progress=False) == {}
    own, padim = (next(r for r in store.records() if r["method"] == m) for m in ("own_padim:Own", "padim"))
    assert own["scores"] == padim["scores"]


def test_a_killed_worker_costs_only_time_and_ctrl_c_stops_the_run_and_its_cluster(
    undisturbed: Store, cells: list[Cell], results: Results, options: list[str], study: Start, tmp_path: Path
) -> None:
    """On a cluster of its own, which it stops in the end."""
    store = Store(tmp_path / "store")
    words = ["table4", *options, "--backend", "ray", "--workers", 2, "--out", store.folder]
    one = study(*words)
    one.wait(lambda: workers_of(one.family()))[0].kill()
    assert one.end() == 0, one.text()
    assert results(store) == results(undisturbed)
    assert "Traceback" not in one.text()
    for process in one.family():
        process.wait(60)

    two = study(*words[:-1], tmp_path / "other", "--set", "train.steps=10000000")
    two.wait(lambda: workers_of(two.family()))
    os.killpg(two.process.pid, signal.SIGINT)
    assert two.end() == 130, two.text()
    assert f"Stopped; 0 of 5 cells are in {tmp_path / 'other'}; go on with the same command." in two.text()
    assert "Traceback" not in two.text()
    for process in two.family():
        process.wait(240)
    assert Store(tmp_path / "other").under_way() == []


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:{port}", "refused"), ("no.such.host.invalid:6379", ""), ("nonsense", "Invalid")]
)
def test_a_cluster_that_is_not_there_is_one_line(address: str, reason: str, cells: list[Cell], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        there = address.format(port=free.getsockname()[1])
    with pytest.raises(ConfigError, match=rf"cannot reach a Ray cluster at {there}: .*{reason}"):
        run(cells, Store(tmp_path), Workers("ray", 1, address=there), progress=False)
    assert Store(tmp_path).paths() == []
