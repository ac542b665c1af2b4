from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlffn_lite import metrics, registry
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector, Calibration, Prediction
from mlffn_lite.errors import CheckpointError, ConfigError, DataError
from mlffn_lite.mlffn import MLFFNDetector
from mlffn_lite.network import MLFFN, MLFFNOutput
from mlffn_lite.storage import read_config, write_config

CONFIG = Config.preset(
    "tiny",
    model={"width": 16},
    texture={"tem_levels": 8, "scales": [1, 2]},
    train={"steps": 40, "batch": 4, "device": "cpu", "lr": 5e-3},
)


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[AnomalyDetector, Path]:
    run = tmp_path_factory.mktemp("run") / "r"
    return AnomalyDetector(CONFIG).fit(folder, out=run, progress=False), run


def test_finds_obvious_defects(fitted: Any, folder: AnomalyFolder) -> None:
    detector, _ = fitted
    result = detector.evaluate(folder)
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] > 0.8
    assert result["per_defect"] == {"scratch": result["image_auroc"]}
    assert (result["shape"], result["images"]) == ([64, 64], 8)


def test_prediction_is_equation_9(fitted: Any, folder: AnomalyFolder) -> None:
    """The map is η(ψ(X)), upsampled; the image score is its maximum."""
    detector, _ = fitted
    images, network = folder.test.images()[:3], detector.network.eval()
    with torch.no_grad():
        score = network(images.float() / 255).score
    expected = torch.nn.functional.interpolate(score, size=(64, 64), mode="bilinear")[:, 0]
    maps, scores = detector.predict(images)
    torch.testing.assert_close(maps, expected, atol=1e-3, rtol=1e-3)  # batch and memory format change the order of sums
    assert torch.equal(scores, maps.amax((1, 2)))
    assert list(detector.maps(images)) == ["mlffn"]
    assert torch.equal(detector.maps(images)["mlffn"], maps)


def test_only_a_score_that_was_trained_to_rise_by_lambda_has_it_as_margin(folder: AnomalyFolder) -> None:
    config = CONFIG.replace(train={"steps": 1}, loss={"lam": 1000.0})
    learned = AnomalyDetector(config).fit(folder, progress=False)
    distance = config.replace(model={"score": "distance"}, loss={"score": 0.0, "consistency": 0.0})
    plain = AnomalyDetector(distance).fit(folder, progress=False)
    for detector, margin in ((learned, 1000.0), (plain, 0.0)):
        expected = Calibration.from_good(detector.predict_split(folder.train), margin=margin)
        assert detector.calibration == expected
    assert plain.calibration is not None
    assert plain.calibration.high - plain.calibration.low < 1000


def test_long_parts_keep_their_aspect(parts: Path, tmp_path: Path) -> None:
    """Fitted to a folder of 40x120 images, files are read, scored, saved and loaded at that aspect."""
    shutil.copytree(parts, tmp_path / "long")
    for path in (tmp_path / "long").rglob("*.png"):
        with Image.open(path) as picture:
            picture.resize((40, 120)).save(path)
    config = CONFIG.replace(data={"aspect": "keep"}, train={"steps": 3})
    detector = AnomalyDetector(config).fit(tmp_path / "long", out=tmp_path / "run", progress=False)
    assert detector.shape == (112, 32)  # 64² pixels in the ratio 3 : 1, in multiples of 16 and at least 32
    image = next((tmp_path / "long" / "test" / "good").iterdir())
    loaded = AnomalyDetector.load(tmp_path / "run", device="cpu")
    for each in (detector, loaded):
        assert each.predict(image).maps.shape == (1, 112, 32)
        assert each.evaluate(tmp_path / "long")["shape"] == [112, 32]
        assert each.evaluate(parts)["shape"] == [112, 32]  # other files, read as those it was fitted to


def test_input_kinds_agree(fitted: Any, folder: AnomalyFolder) -> None:
    detector, _ = fitted
    images = folder.test.images()[:2]
    by_bytes = detector.predict(images)
    assert torch.equal(by_bytes.maps, detector.predict(images.float() / 255).maps)
    assert torch.equal(by_bytes.maps, detector.predict(folder.test.paths[:2]).maps)


@pytest.mark.parametrize("method", registry.names("methods"))
def test_scores_depend_on_nothing_but_the_image(method: str, folder: AnomalyFolder, tmp_path: Path) -> None:
    """To the last bit: neither on the company it is scored in, nor on the precision of training; never coarser."""
    config = CONFIG.replace(method=method, train={"precision": "bf16", "steps": 4})
    detector = AnomalyDetector(config).fit(folder, out=tmp_path / "r", progress=False)
    images = folder.test.images()
    maps, scores = detector.predict(images)
    assert maps.dtype == scores.dtype == torch.float32
    assert (maps.bfloat16().float() != maps).float().mean() > 0.9
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    many = torch.cat([images[:1].expand(18, -1, -1, -1), images[order]])
    expected = torch.cat([maps[:1].expand(18, -1, -1), maps[order]])
    assert torch.equal(detector.predict(many).maps, expected)
    assert torch.equal(torch.cat([detector.predict(x[None]).maps for x in images]), maps)
    other = AnomalyDetector.load(tmp_path / "r")
    other.config = config.replace(train={"precision": "fp32"})
    assert torch.equal(other.predict(images).maps, maps)


@pytest.mark.parametrize("bad", [torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int32)])
def test_bad_tensors_are_refused(fitted: Any, bad: torch.Tensor) -> None:
    with pytest.raises(DataError):
        fitted[0].predict(bad)


def test_every_image_is_scored_at_the_fitted_size(fitted: Any, folder: AnomalyFolder) -> None:
    """The verdict does not depend on whether an image comes as a file or as pixels of another size."""
    detector, _ = fitted
    maps, scores = detector.predict(torch.randint(0, 255, (2, 3, 40, 90), dtype=torch.uint8))
    assert maps.shape == (2, 64, 64)
    assert scores.shape == (2,)
    large = [Image.open(p).resize((200, 150)) for p in folder.test.paths[:2]]
    arrays = torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in large])
    assert torch.equal(detector.predict(large).maps, detector.predict(arrays).maps)


def test_a_folder_opened_otherwise_than_configured_is_refused(fitted: Any, parts: Path, tmp_path: Path) -> None:
    other = AnomalyFolder(parts, size=96)
    with pytest.raises(DataError, match="96"):
        AnomalyDetector(CONFIG).fit(other, progress=False)
    with pytest.raises(DataError, match="96"):
        fitted[0].evaluate(other)


def test_a_network_of_ones_own_is_trained(folder: AnomalyFolder) -> None:
    class Doubled(MLFFN):
        def head(self, levels: list[torch.Tensor]) -> MLFFNOutput:
            features, distance, score = super().head(levels)
            return MLFFNOutput(features, distance, 2 * score)

    config = CONFIG.replace(train={"steps": 2})
    network = Doubled(config.model, config.texture)
    detector = AnomalyDetector(config, network=network)
    assert isinstance(detector, MLFFNDetector)
    first = detector.fit(folder, progress=False).predict(folder.test.images()).maps
    assert detector.network is network
    assert torch.equal(detector.fit(folder, progress=False).predict(folder.test.images()).maps, first)  # from the start


def test_save_and_load_give_the_same_scores(fitted: Any, folder: AnomalyFolder, tmp_path: Path) -> None:
    detector, run = fitted
    images = folder.test.images()
    detector.save(tmp_path / "copy")
    for place in (run, tmp_path / "copy"):
        loaded = AnomalyDetector.load(place, device="cpu")
        assert torch.equal(loaded.predict(images).maps, detector.predict(images).maps)
        assert (loaded.calibration, loaded.config, loaded.step) == (detector.calibration, CONFIG, 40)


def test_the_door_gives_the_class_of_the_method(tmp_path: Path) -> None:
    detector = AnomalyDetector(CONFIG)
    assert type(detector) is MLFFNDetector
    assert detector.method == "mlffn"
    with pytest.raises(ConfigError, match="is no subclass"):
        AnomalyDetector(CONFIG.replace(method="mlffn_lite.network:MLFFN"))
    with pytest.raises(TypeError, match="network"):
        AnomalyDetector(CONFIG.replace(method="padim"), network=MLFFN(CONFIG.model))
    with pytest.raises(ConfigError, match="cannot import the method 'nowhere:Mine'"):
        AnomalyDetector(CONFIG.replace(method="nowhere:Mine"))


MINE = """
import torch
from mlffn_lite.features import FeatureDetector

class MeanDistance(FeatureDetector):
    memory = ("centre",)
    def _learn(self, features, images):
        self.centre = torch.cat([x.mean((0, 2, 3))[None] for x in features]).mean(0)
    def _distances(self, features):
        return (features - self.centre[:, None, None]).norm(dim=1)
"""


def test_a_method_of_ones_own_is_named_by_its_import_path(
    folder: AnomalyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mymethods.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    config = CONFIG.replace(method="mymethods:MeanDistance")
    detector = AnomalyDetector(config).fit(folder, out="run", progress=False)
    assert detector.evaluate(folder)["image_auroc"] > 0.6
    order = "import sys, torch; torch.set_num_threads(1); from mlffn_lite.detector import AnomalyDetector; "
    order += "d = AnomalyDetector.load('run', device='cpu'); print(d.method, float(d.predict(sys.argv[1]).scores[0]))"
    found = subprocess.run(
        [sys.executable, "-c", order, folder.test.paths[0]], capture_output=True, text=True, check=True
    )
    method, score = found.stdout.split()
    assert method == "mymethods:MeanDistance"
    assert float(score) == pytest.approx(float(detector.predict(folder.test.paths[0]).scores[0]))


def test_initial_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a = MLFFNDetector(CONFIG).network.embed.weight
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    torch.manual_seed(6)
    assert torch.equal(a, MLFFNDetector(CONFIG).network.embed.weight)
    assert not torch.equal(a, MLFFNDetector(CONFIG.replace(train={"seed": 1})).network.embed.weight)


def test_resuming_a_finished_run_changes_nothing(fitted: Any, folder: AnomalyFolder, tmp_path: Path) -> None:
    detector, run = fitted
    shutil.copytree(run, tmp_path / "again")
    again = AnomalyDetector(CONFIG).fit(folder, out=tmp_path / "again", resume=True, progress=False)
    images = folder.test.images()
    assert torch.equal(again.predict(images).maps, detector.predict(images).maps)
    assert len(again.history) == len(detector.history)


def test_damaged_or_foreign_run_folders_are_refused(fitted: Any, tmp_path: Path) -> None:
    _, run = fitted
    with pytest.raises(CheckpointError, match="not a run folder"):
        AnomalyDetector.load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    whole = (copy / "checkpoint.safetensors").read_bytes()
    (copy / "checkpoint.safetensors").write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        AnomalyDetector.load(copy)
    (copy / "checkpoint.safetensors").write_bytes(whole)
    write_config(copy, CONFIG.replace(model={"width": 24}), read_config(copy)[1])
    with pytest.raises(CheckpointError, match="another configuration"):
        AnomalyDetector.load(copy)


def test_no_test_images_is_a_clear_error(fitted: Any, parts: Path) -> None:
    with pytest.raises(DataError, match="no test images"):
        fitted[0].evaluate(AnomalyFolder(parts / "train" / "good", size=64))


def test_one_labelled_set_is_not_measured_on_what_it_was_fitted_to(folder: AnomalyFolder, tmp_path: Path) -> None:
    items = [(s.image, s.label) for s in folder.test]
    detector = AnomalyDetector(CONFIG.replace(method="density")).fit(items, progress=False)
    result, prediction = detector.complete_run(tmp_path, items)
    assert prediction is None
    assert "image_auroc" not in result
    assert detector.evaluate(items)["images"] == len(items)  # but may be asked for
    with pytest.raises(DataError, match="no good image to fit to"):
        AnomalyDetector(CONFIG).fit([(s.image, 1) for s in folder.test], progress=False)


def test_anomalous_images_without_mask_leave_pixel_metrics_out(fitted: Any, parts: Path, tmp_path: Path) -> None:
    detector, _ = fitted
    shutil.copytree(parts, tmp_path / "p")
    (tmp_path / "p/ground_truth/scratch/000_mask.png").unlink()
    result = detector.evaluate(tmp_path / "p")
    split = AnomalyFolder(tmp_path / "p", size=64).test
    known = split.has_mask
    assert int(known.sum()) == 7
    maps = detector.predict(split.images()).maps
    assert result["pixel_auroc"] == pytest.approx(metrics.pixel_auroc(maps[known], split.masks()[known]))
    assert result["image_auroc"] == pytest.approx(metrics.image_auroc(maps.amax((1, 2)), split.labels()))


def test_calibration_from_hand_made_scores() -> None:
    maps = torch.arange(1001, dtype=torch.float32).view(1, 7, 143).repeat(2, 1, 1)
    found = Calibration.from_good(Prediction(maps, torch.tensor([0.0, 100.0])))
    assert (found.low, found.high) == (500.0, 500.0 + 2 * 499.0)
    assert found.threshold == pytest.approx(99.0)
    assert Calibration.from_good(Prediction(maps, torch.zeros(2)), margin=5000.0).high == 5500.0
    flat = Calibration.from_good(Prediction(torch.zeros(1, 8, 8), torch.zeros(1)))
    assert flat.high > flat.low
