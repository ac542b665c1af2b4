"""The command line as tests of this folder call it, and a small fitted run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlffn_lite import cli
from mlffn_lite.config import Config
from mlffn_lite.detector import AnomalyDetector

Mlffn = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mlffn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mlffn:
    """Call the command line; returns exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mlffn", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def refused(mlffn: Mlffn) -> Callable[..., str]:
    """Call it with what it must refuse; returns the one line that it says."""

    def call(*arguments: object) -> str:
        code, _, err = mlffn(*arguments)
        (line,) = (x for x in err.splitlines() if x.strip())
        assert code == 2, err
        assert line.startswith("mlffn: ")
        return line

    return call


@pytest.fixture(scope="session")
def fitted_run(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``density`` on the small set, whose test images are right for the most part."""
    run = tmp_path_factory.mktemp("runs") / "density"
    config = Config.preset("tiny", train={"device": "cpu"}).replace(method="density")
    AnomalyDetector(config).fit(parts, out=run, progress=False)
    return run
