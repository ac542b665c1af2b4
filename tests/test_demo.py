from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlffn_lite import cli, demo
from mlffn_lite.config import Config


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same demonstration with a small budget; what it writes is what is tested here."""

    def config(seed: int = 0, device: str = "auto") -> Config:
        texture = {"tem_levels": 8, "scales": [1, 2]}
        return Config.preset(
            "tiny", model={"width": 16}, texture=texture, train={"steps": 5, "batch": 4, "seed": seed, "device": "cpu"}
        )

    monkeypatch.setattr(demo, "demo_config", config)


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mlffn", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return int(caught.value.code or 0)


@pytest.mark.usefixtures("quick")
def test_demo_writes_a_self_contained_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = tmp_path / "d" / "mine.txt"
    keep.parent.mkdir()
    keep.write_text("not the demonstration's")
    for _ in range(2):  # a second run replaces the first
        assert run("demo", "--category", "pills", "--out", tmp_path / "d") == 0
    assert str(tmp_path / "d" / "report.html") in capsys.readouterr().out
    assert keep.exists()
    html = (tmp_path / "d" / "report.html").read_text()
    metrics = json.loads((tmp_path / "d" / "metrics.json").read_text())
    for key in ("image_auroc", "pixel_auroc", "pro"):
        assert f"{100 * metrics[key]:.1f} %" in html
    assert html.count('src="data:image/png;base64,') == 3
    assert html.count('src="data:image/jpeg;base64,') == metrics["images"]  # every judged image
    assert html.count("<img") == 3 + metrics["images"]
    assert "mlffn demo --category pills" in html
    assert not re.search(r"https?://", html)
    assert "seed" in html
    assert Image.open(tmp_path / "d" / "heatmaps.png").info["Description"]


@pytest.mark.usefixtures("quick")
def test_demo_leaves_other_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"weeks of work")
    assert run("demo", "--out", tmp_path) == 2
    assert "not a demonstration" in capsys.readouterr().err
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == b"weeks of work"
    (tmp_path / "file").write_text("")
    assert run("demo", "--out", tmp_path / "file") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.usefixtures("quick")
def test_unknown_category_names_the_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--category", "bolts", "--out", tmp_path) == 2
    assert "pills" in capsys.readouterr().err


def test_demo_is_the_recommended_preset_with_a_small_budget() -> None:
    config = demo.demo_config(3, "cpu")
    parts = Config.preset("parts")
    assert config.replace(data={"size": parts.data.size}, train={"seed": 0, "device": "auto"}) == parts
    assert (config.data.size, config.train.seed, config.train.device) == (128, 3, "cpu")


def test_a_method_that_is_not_trained_has_no_learning_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "demo_config", lambda *_: Config.preset("tiny", method="density"))
    assert run("demo", "--category", "pills", "--threads", 1, "--out", tmp_path / "d") == 0
    html = (tmp_path / "d" / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == 2
    assert "Terms of equation (8)" not in html
