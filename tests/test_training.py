from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from systems import signals
from torch import Tensor

from mlffn_lite import registry
from mlffn_lite.config import Config, TrainConfig
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.devices import autocast_dtype, generator_for, resolve_device
from mlffn_lite.errors import CheckpointError, MlffnError, TrainingError
from mlffn_lite.loop import Interrupted, batch_indices, set_rate
from mlffn_lite.network import MLFFN
from mlffn_lite.training import Trainer, build_optimizer, total_steps

TIMING = ["images_per_s", "run"]


def tiny(**train: Any) -> Config:
    return Config.preset(
        "tiny",
        model={"width": 16},
        texture={"tem_levels": 8, "scales": [1, 2]},
        train={"steps": 12, "batch": 4, "device": "cpu", "checkpoint_every": 5} | train,
    )


def trainer(config: Config, folder: Path | None = None) -> Trainer:
    torch.manual_seed(config.train.seed)
    return Trainer(MLFFN(config.model, config.texture), config, folder=folder)


@pytest.fixture(scope="module")
def split(parts: Path) -> Any:
    return AnomalyFolder(parts, size=64).train


def weights(t: Trainer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in t.module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class StopAfter:
    """A data set that sends this process a signal once ``step`` batches were taken."""

    def __init__(self, split: Any, step: int, number: int = signal.SIGINT) -> None:
        self.split, self.left, self.number = split, step, number

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return self.split.batch(indices)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [3, 7])
def test_resumed_equals_uninterrupted_to_the_bit(
    split: Any, tmp_path: Path, optimizer: str, precision: str, stop: int
) -> None:
    config = tiny(optimizer=optimizer, precision=precision, backbone="train")
    whole = trainer(config, tmp_path / "whole")
    whole.fit(split, progress=False)
    with pytest.raises(Interrupted) as caught:
        trainer(config, tmp_path / "cut").fit(StopAfter(split, stop), progress=False)
    assert caught.value.step == stop
    torch.manual_seed(99)  # whatever else happened in between must not matter
    resumed = trainer(config, tmp_path / "cut")
    resumed.fit(split, resume=True, progress=False)
    assert same(weights(whole), weights(resumed))
    full, cut = (pd.read_csv(tmp_path / name / "history.csv").drop(columns=TIMING) for name in ("whole", "cut"))
    pd.testing.assert_frame_equal(cut[cut["step"].isin(full["step"])].reset_index(drop=True), full, check_exact=True)


def test_killed_between_checkpoints_resumes_from_the_last(split: Any, tmp_path: Path) -> None:
    config = tiny()
    whole = trainer(config)
    whole.fit(split, progress=False)

    class KilledError(Exception):
        pass

    class KillAfter(StopAfter):
        def batch(self, indices: Any) -> Any:
            if self.left == 1:
                raise KilledError
            self.left -= 1
            return self.split.batch(indices)

    with pytest.raises(KilledError):
        trainer(config, tmp_path).fit(KillAfter(split, 9), progress=False)
    resumed = trainer(config, tmp_path)
    resumed.load_checkpoint()
    assert resumed.step == 5
    resumed.fit(split, resume=True, progress=False)
    assert same(weights(whole), weights(resumed))


@signals
@pytest.mark.parametrize("names", [["SIGTERM"], ["SIGHUP"], ["SIGINT", "SIGINT"], ["SIGHUP", "SIGTERM"]])
def test_signals_keep_a_checkpoint_and_restore_handlers(names: list[str], split: Any, tmp_path: Path) -> None:
    numbers = [getattr(signal, name) for name in names]
    before = [signal.getsignal(number) for number in numbers]

    class Stop(StopAfter):
        def batch(self, indices: Any) -> Any:
            if self.left == 1:
                for number in numbers[1:]:
                    os.kill(os.getpid(), number)
            return super().batch(indices)

    with pytest.raises(Interrupted, match="step 2"):
        trainer(tiny(), tmp_path).fit(Stop(split, 2, numbers[0]), progress=False)
    assert [signal.getsignal(number) for number in numbers] == before
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_trains_outside_the_main_thread(split: Any) -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(len(trainer(tiny(steps=2)).fit(split, progress=False))))
    thread.start()
    thread.join(60)
    assert done == [1]


def test_same_seed_same_weights_and_other_seed_not(split: Any) -> None:
    runs = [trainer(tiny(steps=3, seed=seed)) for seed in (0, 0, 1)]
    for run in runs:
        run.fit(split, progress=False)
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


def test_the_loss_falls_and_separates(split: Any) -> None:
    config = tiny(steps=80, lr=5e-3, checkpoint_every=1000)
    run = trainer(config)
    history = run.fit(split, progress=False)
    assert history["total"].iloc[-1] < 0.6 * history["total"].iloc[0]
    assert history["images_per_s"].gt(0).all()


@pytest.mark.parametrize("mode", ["train", "batch_stats", "frozen"])
def test_backbone_modes(split: Any, mode: str) -> None:
    run = trainer(tiny(steps=2, backbone=mode))
    before = weights(run)
    run.fit(split, progress=False)
    after = weights(run)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    body = {k for k in changed if k.startswith("backbone")}
    statistics = {k for k in body if "running" in k or "num_batches" in k}
    assert changed - body
    assert bool(body - statistics) == (mode == "train")
    assert bool(statistics) == (mode != "frozen")


def test_nan_stops_with_step_and_terms(split: Any, tmp_path: Path) -> None:
    run = trainer(tiny(steps=20, lr=1e3, backbone_lr=1e3, clip=0.0, optimizer="sgd"), tmp_path)
    with torch.no_grad():
        run.module.embed.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"not finite at step 1 \(total nan, feature nan, score nan"):
        run.fit(split, progress=False)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_an_infinite_gradient_does_not_reach_the_checkpoint(split: Any, tmp_path: Path) -> None:
    run = trainer(tiny(steps=20, checkpoint_every=5), tmp_path)
    steps = iter(range(100))

    def poison(gradient: Tensor) -> Tensor:
        return gradient * math.nan if next(steps) == 7 else gradient

    run.module.embed.weight.register_hook(poison)
    with pytest.raises(TrainingError, match=r"not finite at step 8 .*grad_norm nan"):
        run.fit(split, progress=False)
    resumed = trainer(tiny(steps=20, checkpoint_every=5), tmp_path)
    resumed.load_checkpoint()
    assert resumed.step == 5
    assert all(torch.isfinite(v).all() for v in weights(resumed).values())


def test_a_damaged_history_is_one_clear_error(split: Any, tmp_path: Path) -> None:
    trainer(tiny(steps=2), tmp_path).fit(split, progress=False)
    (tmp_path / "history.csv").write_text("step,total\n1,half a num")
    with pytest.raises(CheckpointError, match=r"history\.csv cannot be read"):
        trainer(tiny(steps=2), tmp_path).load_checkpoint()


def test_other_training_images_are_refused(split: Any, tmp_path: Path) -> None:
    config = tiny(steps=2)
    first = Trainer(MLFFN(config.model, config.texture), config, folder=tmp_path, data="a")
    first.fit(split, progress=False)
    with pytest.raises(CheckpointError, match="not those of"):
        Trainer(MLFFN(config.model, config.texture), config, folder=tmp_path, data="b").load_checkpoint()


# Table 4 row by row: what is in the network, and which constraints are in the loss.
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "baseline": (
        {"self_calibration": False, "texture": False, "score": "distance"},
        {"score": 0.0, "consistency": 0.0},
    ),
    "+self_calibration": ({"texture": False, "score": "distance"}, {"score": 0.0, "consistency": 0.0}),
    "+stl": ({"score": "distance"}, {"score": 0.0, "consistency": 0.0}),
    "+score_constraint": ({}, {"consistency": 0.0}),
    "+consistency": ({}, {}),
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_table_4_trains_as_a_configuration(split: Any, arm: str) -> None:
    model, loss = ARMS[arm]
    run = trainer(tiny(steps=2, checkpoint_every=1).replace(model=model, loss=loss))
    before = weights(run)
    history = run.fit(split, progress=False)
    assert math.isfinite(history["total"].iloc[-1])
    assert (history["score"].iloc[-1] > 0) == (loss.get("score", 1.0) > 0)
    assert (history["consistency"].iloc[-1] > 0) == (loss.get("consistency", 1.0) > 0)
    heads = {id(p) for p in run.module.heads()}
    for name, parameter in run.module.named_parameters():
        assert id(parameter) not in heads or not torch.equal(parameter, before[name]), f"{name} did not move"


def test_clipping_bounds_the_step(split: Any) -> None:
    config = tiny(steps=1, optimizer="sgd", lr=1.0, backbone_lr=1.0, schedule="constant", weight_decay=0.0, clip=1e-3)
    run = trainer(config)
    before = [p.detach().clone() for p in run.module.parameters()]
    run.fit(split, progress=False)
    moved = torch.stack([(p - b).square().sum() for p, b in zip(run.module.parameters(), before, strict=True)])
    torch.testing.assert_close(moved.sum().sqrt(), torch.tensor(1e-3), rtol=1e-2, atol=0)


def test_another_configuration_is_refused(split: Any, tmp_path: Path) -> None:
    trainer(tiny(steps=2), tmp_path).fit(split, progress=False)
    with pytest.raises(CheckpointError, match="another configuration"):
        trainer(tiny(steps=2, lr=0.5), tmp_path).fit(split, resume=True, progress=False)
    with pytest.raises(CheckpointError, match="holds a run already"):
        trainer(tiny(steps=2), tmp_path).fit(split, progress=False)


def test_a_folder_that_cannot_be_written_fails_before_training(split: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    started = time.perf_counter()
    with pytest.raises(MlffnError, match="cannot write"):
        trainer(tiny(steps=10**6), tmp_path / "file").fit(split, progress=False)
    assert time.perf_counter() - started < 60


def test_order_covers_every_image_once_per_epoch() -> None:
    count, batch = 7, 3
    flat = [i for step in range(14) for i in batch_indices(count, batch, step, seed=5)]
    for epoch in range(6):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert flat[:7] != flat[7:14]
    assert batch_indices(2, 5, 0, seed=0).count(0) >= 2  # a batch may be larger than the set


def test_generators_depend_on_seed_purpose_and_step_only() -> None:
    def draw(*key: Any) -> list[int]:
        return torch.randint(0, 10**6, (4,), generator=generator_for(*key)).tolist()

    assert draw(0, "order", 3) == draw(0, "order", 3)
    assert len({tuple(draw(*k)) for k in ((0, "order", 3), (1, "order", 3), (0, "pairs", 3), (0, "order", 4))}) == 4


def test_a_generator_of_ones_own_is_trained_on(split: Any) -> None:
    seen: list[tuple[int, ...]] = []

    def bar(images: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mask = torch.zeros(len(images), 1, *images.shape[-2:], dtype=torch.bool)
        mask[::2, :, 10:14] = True
        seen.append(tuple(images.shape))
        return torch.where(mask, 1.0, images.float() / 255), mask

    config = tiny(steps=3)
    run = Trainer(MLFFN(config.model, config.texture), config, generator=bar)
    run.fit(split, progress=False)
    assert seen == [(4, 3, 64, 64)] * 3
    plain = trainer(config)
    plain.fit(split, progress=False)
    assert not same(weights(run), weights(plain))


def test_a_term_of_ones_own_is_trained_on_and_stands_in_the_history(
    split: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.OWN["terms"], "small", lambda _, score, mask, *, generator: score.square().mean())
    histories = []
    for own in ({}, {"small": 2.0}):
        config = tiny().replace(loss={"own": own})
        histories.append(trainer(config, tmp_path / str(len(own))).fit(split, progress=False))
    plain, added = histories
    assert "own" not in plain
    first = added.iloc[0]
    assert first["own"] > 0
    assert first["total"] == pytest.approx(first[["feature", "score", "consistency", "own"]].sum(), rel=1e-5)
    assert not plain["score"].equals(added["score"])


def test_paper_schedule_counts_repeats() -> None:
    assert total_steps(TrainConfig(), 209) == math.ceil(200 * 10 * 209 / 32)
    assert total_steps(TrainConfig(steps=5), 209) == 5


def test_one_cycle_rises_and_falls_to_zero() -> None:
    network = MLFFN(tiny().model)
    train = TrainConfig(lr=1.0, backbone_lr=0.1, schedule="one_cycle")
    optimizer = build_optimizer(network, train)
    rates = [set_rate(optimizer, train, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    assert rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * rates[-1])
    assert set_rate(build_optimizer(network, TrainConfig(lr=0.5)), TrainConfig(lr=0.5), 77, 100) == 0.5


def test_precision_and_device_names() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("auto", cpu) in (None, torch.bfloat16)
    assert autocast_dtype("auto", torch.device("mps")) is None
    assert resolve_device("cpu") == cpu
    for name in ("cuda:99", "warp"):
        with pytest.raises(TrainingError, match="cannot be used here"):
            resolve_device(name)


class SlowDown:
    """A data set whose batches move a clock: 0.1 s each, and more from a step on, as beside another busy program."""

    def __init__(self, split: Any, step: int, seconds: float) -> None:
        self.split, self.left, self.seconds, self.now = split, step, seconds, 0.0

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Any) -> Any:
        self.left -= 1
        self.now += 0.1 if self.left >= 0 else self.seconds
        return self.split.batch(indices)

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("slow", [True, False])
def test_steps_that_became_slow_are_said_once(
    split: Any, slow: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = SlowDown(split, 10, 1.0 if slow else 0.1)
    monkeypatch.setattr("mlffn_lite.loop.time", data)
    trainer(tiny(steps=40)).fit(data, progress=False)
    said = capfd.readouterr().err
    assert said.count("times as long as they did") == slow
    assert said.count("--threads 1") == slow


def test_waiting_threads_do_not_spin_for_long() -> None:
    """Spinning, they ruin a computation that shares its cores; what the user set stays."""
    script = "import mlffn_lite, os, torch; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for given, expected in (({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")):
        run = subprocess.run([sys.executable, "-c", script], env=clean | given, capture_output=True, text=True)
        assert run.stdout.strip() == expected
