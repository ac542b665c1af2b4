"""The ensemble: members share a pass, each is standardised on good images, the combination is their weighted mean."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mlffn_lite.beyond.borders import Scale, fields
from mlffn_lite.beyond.ensemble import EnsembleDetector
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.errors import CheckpointError
from mlffn_lite.features import BackboneDetector
from mlffn_lite.loop import Interrupted
from mlffn_lite.training import Trainer

CONFIG = Config.preset(
    "tiny",
    method="ensemble",
    ensemble={"members": {"density": 2.0, "memory": 3.0, "mlffn": 1.0}},
    memory={"patches": 60},
    model={"width": 16},
    texture={"tem_levels": 8, "scales": [1, 2]},
    train={"steps": 12, "batch": 4, "device": "cpu", "lr": 5e-3},
)


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[EnsembleDetector, Path]:
    run = tmp_path_factory.mktemp("ensemble") / "r"
    detector = AnomalyDetector(CONFIG).fit(folder, out=run, progress=False)
    assert isinstance(detector, EnsembleDetector)
    return detector, run


def test_the_combination_is_the_weighted_mean_of_standardised_maps(fitted: Any, folder: AnomalyFolder) -> None:
    detector, _ = fitted
    images = folder.test.images()
    maps = detector.maps(images)
    assert list(maps) == ["density", "memory", "mlffn", "ensemble"]
    expected = (2 * maps["density"] + 3 * maps["memory"] + maps["mlffn"]) / 6
    torch.testing.assert_close(maps["ensemble"], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(detector.predict(images).maps, maps["ensemble"])
    centre, width = fields(Scale(*detector.scales[-1]), 64, 64)
    alone = (detector.members["mlffn"].predict(images).maps - centre) / width
    torch.testing.assert_close(maps["mlffn"], alone, rtol=1e-4, atol=1e-4)


def test_each_part_of_a_member_is_standardised_by_itself(fitted: Any, folder: AnomalyFolder) -> None:
    """The density's strides and the memory's banks are maps of their own, with equal shares of the weight."""
    detector, _ = fitted
    assert [m.parts for m in detector.members.values()] == [2, 3, 1]
    torch.testing.assert_close(detector.weights, torch.full((6,), 1 / 6))
    images = folder.test.images()
    with torch.inference_mode():
        parts = detector._run(images, lambda x: detector._standardise(detector._maps(x)))
    maps = detector.maps(images)
    torch.testing.assert_close(parts[:, :2].mean(1), maps["density"])
    torch.testing.assert_close(parts[:, 2:5].mean(1), maps["memory"])
    torch.testing.assert_close(parts.mean(1), maps["ensemble"])


def test_members_are_standardised_on_good_images_left_out_where_that_can_be(fitted: Any, folder: AnomalyFolder) -> None:
    """Of the scores of good images, the median is 0 and the 99.9th percentile 1 at most, map by map."""
    detector, _ = fitted
    with torch.inference_mode():
        good = detector._run(folder.train.images(), detector._maps, torch.arange(len(folder.train)))
        inside = detector._run(folder.train.images(), detector._maps)
    for values in detector._standardise(good).unbind(1):
        ordered = values.flatten().sort().values
        assert float(ordered.median()) < 0.05
        assert 0.5 < ordered[int(0.999 * (len(ordered) - 1))] < 1.2
    *left_out, network = (good - inside).abs().amax((0, 2, 3))
    assert min(left_out) > 0.1
    assert network < 1e-4  # training cannot be undone image by image


def test_members_see_one_pass_through_the_backbone(fitted: Any, folder: AnomalyFolder) -> None:
    detector, _ = fitted
    passes: list[int] = []
    backbone = detector.members["mlffn"].network.backbone
    hook = backbone.register_forward_hook(lambda *_: passes.append(1))
    detector.predict(folder.test.images()[:1])
    hook.remove()
    assert len(passes) == 1
    apart = EnsembleDetector(CONFIG.replace(train={"backbone": "train"}))
    density, memory, network = apart.members.values()
    assert isinstance(density, BackboneDetector)
    assert isinstance(memory, BackboneDetector)
    assert density.backbone is memory.backbone
    assert isinstance(network, BackboneDetector)
    assert density.backbone is not network.backbone  # training would change it


def test_trained_members_learn_from_the_ensembles_kinds() -> None:
    detector = EnsembleDetector(CONFIG.replace(ensemble={"kinds": {"scar": 1.0}}))
    assert detector.members["mlffn"].config.pseudo.kinds == {"scar": 1.0}
    assert detector.config.pseudo.kinds == {"confetti": 1.0, "cutpaste": 1.0}


def test_save_and_load_give_the_same_scores(fitted: Any, folder: AnomalyFolder) -> None:
    detector, run = fitted
    images = folder.test.images()
    loaded = AnomalyDetector.load(run, device="cpu")
    assert type(loaded) is EnsembleDetector
    for name, maps in detector.maps(images).items():
        assert torch.equal(loaded.maps(images)[name], maps)
    assert (loaded.calibration, loaded.config, loaded.step) == (detector.calibration, CONFIG, 12)
    assert len(loaded.history) == len(detector.history) > 0
    assert sorted(p.name for p in run.glob("[!.]*")) == ["checkpoint.safetensors", "config.toml", "history.csv"]


def test_any_method_may_be_a_member(folder: AnomalyFolder, tmp_path: Path) -> None:
    config = CONFIG.replace(ensemble={"members": {"padim": 1.0, "patchcore": 3.0}})
    detector = AnomalyDetector(config).fit(folder, out=tmp_path / "r", progress=False)
    assert not detector.trains
    maps = detector.maps(folder.test.images())
    torch.testing.assert_close(maps["ensemble"], (maps["padim"] + 3 * maps["patchcore"]) / 4, rtol=1e-5, atol=1e-5)
    loaded = AnomalyDetector.load(tmp_path / "r", device="cpu")
    assert torch.equal(loaded.predict(folder.test.paths).maps, maps["ensemble"])


def test_interrupted_it_resumes_to_the_bit(
    folder: AnomalyFolder, fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while a member is trained leaves a folder that says so, and goes on as if nothing had been."""
    step = Trainer.train_step

    def interrupted(self: Trainer, images: Any) -> Any:
        if self.step == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(Interrupted):
            AnomalyDetector(CONFIG).fit(folder, out=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="has not finished; finish it with --resume"):
        AnomalyDetector.load(tmp_path)
    with pytest.raises(CheckpointError, match="holds a run already"):
        AnomalyDetector(CONFIG).fit(folder, out=tmp_path, progress=False)
    resumed = AnomalyDetector(CONFIG).fit(folder, out=tmp_path, resume=True, progress=False)
    images = folder.test.images()
    assert torch.equal(resumed.predict(images).maps, fitted[0].predict(images).maps)
    again = AnomalyDetector(CONFIG).fit(folder, out=tmp_path, resume=True, progress=False)  # finished: it is read
    assert torch.equal(again.predict(images).maps, fitted[0].predict(images).maps)
