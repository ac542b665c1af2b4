"""The short training of the exercises: what it measures against, and that a change reaches the network."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from course import trial
from course.trial import BASELINE, Trial, judge
from mlffn_lite.network import MLFFN


@pytest.mark.slow
def test_the_stored_runs_are_those_of_the_unchanged_network() -> None:
    first, stored = Trial().run(0), pd.read_csv(BASELINE).iloc[0]
    assert abs(first["image_auroc"] - stored["image_auroc"]) < 0.02  # another processor sums in another order
    assert abs(first["pro"] - stored["pro"]) < 0.02


@pytest.mark.slow
def test_a_change_reaches_the_network_and_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "steps", 2)
    monkeypatch.setattr(Trial, "batches", 2)
    monkeypatch.setattr(trial, "SEEDS", (0,))
    changed: list[MLFFN] = []
    seen: list[tuple[int, int]] = []

    def prepare(levels: list[Tensor], good: list[Tensor]) -> list[Tensor]:
        seen.append((len(levels[0]), len(good[0])))
        return levels

    def change(network: MLFFN) -> None:
        network.calibrate = nn.Identity()
        changed.append(network)

    def loss(features: Tensor, score: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        assert mask.shape == score.shape
        losses.append(torch.rand((), generator=generator).item())
        return features.mean() + score.mean()

    losses: list[float] = []
    table = Trial(prepare=prepare).compare(change, loss=loss)
    assert len(losses) == 2
    assert len(changed) == 1
    assert seen == [(16, 60), (16, 60), (60, 60)]
    assert list(table.index) == ["image_auroc", "pro"]
    assert table["verdict"]["pro"] == "more than seeds do"  # two steps teach nothing


def test_a_difference_is_judged_by_the_spread_of_seeds() -> None:
    before = pd.DataFrame({"pro": [0.89, 0.91, 0.90]})  # standard deviation 0.01
    for mean, verdict in ((0.91, "within the spread"), (0.93, "more than seeds do"), (0.87, "more than seeds do")):
        table = judge(before, pd.DataFrame({"pro": [mean - 0.01, mean, mean + 0.01]}))
        assert table["noise"]["pro"] == 1.6  # 2 · 0.01 · √(1/3 + 1/3), in percent
        assert table["difference"]["pro"] == pytest.approx(100 * mean - 90)
        assert table["verdict"]["pro"] == verdict
