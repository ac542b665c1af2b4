from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
import torch

from course import session
from mlffn_lite.errors import ConfigError

PNG_START = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFFN_MODE", raising=False)
    monkeypatch.delenv("MLFFN_FIGURES", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def drawing() -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure(figsize=(3, 2), layout="constrained")
    figure.subplots().plot([0, 1], [0, 1])
    return figure


def test_setup_seeds_and_says_what_it_runs_with(capsys: pytest.CaptureFixture[str]) -> None:
    started = session.setup("04", seed=3, threads=2)
    drawn = torch.rand(4)
    assert started == ("04", "small", 3, torch.device("cpu"), 2)
    assert torch.get_num_threads() == 2
    said = capsys.readouterr().out
    assert said.startswith("mlffn_lite ")
    assert said.endswith("cpu, 2 thread(s), seed 3, mode small\n")
    assert "+" not in said  # a build of torch for CUDA or for the CPU prints the same
    session.setup("04", seed=3)
    assert torch.equal(torch.rand(4), drawn)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("mode", "steps"), [("small", 60), ("full", 400)])
def test_budget_follows_the_mode(mode: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFFN_MODE", mode)
    assert session.setup("01").mode == mode
    assert session.budget(small=60, full=400) == steps


def test_another_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFFN_MODE", "fast")
    with pytest.raises(ConfigError, match="MLFFN_MODE is 'fast'; set it to small, full, explore"):
        session.setup("01")


@pytest.mark.parametrize("holds", [True, torch.tensor(True), 1])
def test_a_checkpoint_that_holds_is_printed(holds: Any, capsys: pytest.CaptureFixture[str]) -> None:
    session.checkpoint("sums to one", holds)
    assert capsys.readouterr().out == "✓ sums to one\n"


@pytest.mark.parametrize("holds", [False, torch.tensor(False), 0, None])
def test_a_checkpoint_that_does_not_hold_stops(holds: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="does not hold: sums to one"):
        session.checkpoint("sums to one", holds)
    assert capsys.readouterr().out == ""


def test_in_mode_explore_the_notebook_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFFN_MODE", "explore")
    session.setup("01")
    session.checkpoint("sums to one", False)
    session.checkpoint("is finite", True)
    assert capsys.readouterr().out.endswith("mode explore\n✗ no longer holds: sums to one\n✓ is finite\n")
    assert session.budget(small=60, full=400) == 60


def test_show_displays_picture_and_caption_and_keeps_the_alt_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[Any, Any]] = []
    monkeypatch.setattr(session, "display", lambda x, metadata=None: shown.append((x, metadata)))
    session.show(drawing(), "line", alt="A rising line", caption="Figure 04.1. It rises.")
    (image, metadata), (caption, _) = shown
    assert image.data.startswith(PNG_START)
    assert metadata == {"image/png": {"alt": "A rising line"}}
    assert caption.data == "*Figure 04.1. It rises.*"
    for dpi in (50, 100):
        session.show(drawing(), "line", alt="A rising line", caption="It rises.", dpi=dpi)
        assert struct.unpack(">II", shown[-2][0].data[16:24]) == (3 * dpi, 2 * dpi)


def test_show_writes_the_same_file_every_time_and_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session.setup("07")
    session.show(drawing(), "line", alt="A rising line", caption="It rises.")
    monkeypatch.setenv("MLFFN_FIGURES", str(tmp_path / "figures"))
    session.show(drawing(), "line", alt="A rising line", caption="It rises.")
    (path,) = (tmp_path / "figures").iterdir()
    first = path.read_bytes()
    assert path.name == "07_line.png"
    assert first.startswith(PNG_START)
    session.show(drawing(), "line", alt="A rising line", caption="It rises.")
    assert path.read_bytes() == first
    session.show(b"a PNG", "given", alt="Bytes as they are", caption="Given.")
    assert (tmp_path / "figures" / "07_given.png").read_bytes() == b"a PNG"
