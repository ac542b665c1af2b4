"""An arm that changes nothing must be shown to be wired: its component learns, and the score listens to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.losses import LossTerms, consistency_loss, resize_mask
from mlffn_lite.mlffn import MLFFNDetector
from mlffn_lite.network import MLFFN
from mlffn_lite.pseudo import PseudoAnomalies
from mlffn_lite.studies.grid import ARMS, arm_config, study_config
from mlffn_lite.training import Trainer, generator_for

# Without weight decay: a parameter without a gradient stays where it was.
TRAIN: dict[str, object] = {
    "backbone": "train",
    "steps": 4,
    "batch": 8,
    "weight_decay": 0.0,
    "precision": "fp32",
    "device": "cpu",
    "schedule": "constant",
}
NAMES = list(ARMS)


class Trained(NamedTuple):
    """A network before and after a few steps, and the gradients of the last."""

    config: Config
    network: MLFFN
    before: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    terms: LossTerms


@pytest.fixture(scope="module")
def images(parts: Path) -> AnomalyFolder:
    return AnomalyFolder(parts, size=64)


@pytest.fixture(scope="module")
def trained(images: AnomalyFolder) -> Callable[[str], Trained]:
    @cache
    def train(arm: str) -> Trained:
        config = arm_config(study_config("tiny").replace(train=TRAIN), arm)
        network = MLFFNDetector(config).network
        before = {k: v.detach().clone() for k, v in network.named_parameters()}
        trainer = Trainer(network, config)
        network.train()
        for _ in range(config.train.steps):
            terms = LossTerms(*trainer.train_step(images.train)[0])
            trainer.step += 1
        gradients = {k: None if v.grad is None else v.grad.clone() for k, v in network.named_parameters()}
        return Trained(config, network.eval(), before, gradients, terms)

    return train


COMPONENTS = [
    ("+self_calibration", "calibrate"),
    ("+stl", "texture.tem"),
    ("+stl", "texture.ptfem"),
    ("+stl", "texture.fuse_tem"),
    ("+stl", "texture.fuse_all"),
    ("+score_constraint", "score"),
]


@pytest.mark.parametrize(("arm", "name"), COMPONENTS)
def test_a_component_is_there_from_its_arm_on(trained: Callable[[str], Trained], arm: str, name: str) -> None:
    for other in NAMES:
        keys = [k for k in trained(other).before if k.startswith(f"{name}.")]
        assert bool(keys) is (NAMES.index(other) >= NAMES.index(arm))


@pytest.mark.parametrize(("arm", "name"), COMPONENTS)
def test_every_parameter_of_a_component_has_a_gradient_and_moves(
    trained: Callable[[str], Trained], arm: str, name: str
) -> None:
    for later in NAMES[NAMES.index(arm) :]:
        run = trained(later)
        component = run.network.get_submodule(name)
        for key, parameter in component.named_parameters(prefix=name):
            gradient = run.gradients[key]
            assert gradient is not None, key
            assert torch.isfinite(gradient).all(), key
            assert gradient.abs().max() > 0, key
            assert not torch.equal(parameter.detach(), run.before[key]), key


@pytest.mark.parametrize("arm", NAMES)
def test_all_that_an_arm_has_is_trained(trained: Callable[[str], Trained], arm: str) -> None:
    """Nothing hangs loose: the backbone, the fusions and the embedding learn too."""
    run = trained(arm)
    still = [k for k, v in run.network.named_parameters() if torch.equal(v.detach(), run.before[k])]
    assert still == []


def score_with(network: MLFFN, images: Tensor, name: str, replace: Callable[..., Any]) -> Tensor:
    """The score map where a component's output is replaced."""
    handle = network.get_submodule(name).register_forward_hook(lambda module, inputs, output: replace(inputs, output))
    try:
        with torch.no_grad():
            return network(images).score
    finally:
        handle.remove()


def left_out(inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return inputs[0]


def flat(inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """The same at every pixel of an image."""
    return output.mean((2, 3), keepdim=True).expand_as(output)


@pytest.mark.parametrize(
    ("arm", "name", "replace"),
    [
        ("+self_calibration", "calibrate", left_out),
        ("+self_calibration", "calibrate", flat),
        ("+stl", "texture", left_out),
        ("+stl", "texture.tem", flat),
        ("+stl", "texture.ptfem", flat),
    ],
)
def test_the_score_depends_on_where_a_component_says_what(
    trained: Callable[[str], Trained], images: AnomalyFolder, arm: str, name: str, replace: Callable[..., Tensor]
) -> None:
    """Not only its level: the ranking of pixels, which is all that the metrics see, is another."""
    batch = images.test.images().float() / 255
    for later in NAMES[NAMES.index(arm) :]:
        network = trained(later).network
        with torch.no_grad():
            score = network(batch).score
        other = score_with(network, batch, name, replace)
        change = (other - score).abs().max() / (score.max() - score.min())
        assert change > 1e-3, f"{later}: {change}"
        assert spearmanr(score.flatten(), other.flatten()).statistic < 1 - 1e-6


@pytest.mark.parametrize(("arm", "learned"), [(a, i >= 3) for i, a in enumerate(NAMES)])
def test_from_the_score_constraint_on_the_score_is_that_of_eta(
    trained: Callable[[str], Trained], images: AnomalyFolder, arm: str, learned: bool
) -> None:
    network = trained(arm).network
    batch = images.test.images().float() / 255
    with torch.no_grad():
        features, distance, score = network(batch)
    if not learned:
        assert network.score is None
        assert torch.equal(score, distance)
        return
    assert isinstance(network.score, nn.Conv2d)
    weight, bias = network.score.weight.detach().double(), network.score.bias
    assert bias is not None
    by_hand = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], features.double()) + bias.detach().double()
    torch.testing.assert_close(score.double(), by_hand, rtol=1e-4, atol=1e-4)
    assert spearmanr(score.flatten(), distance.flatten()).statistic < 0.999


@pytest.mark.parametrize("arm", ["+score_constraint", "+consistency"])
def test_what_a_detector_predicts_listens_to_eta(
    trained: Callable[[str], Trained], images: AnomalyFolder, arm: str
) -> None:
    detector = MLFFNDetector(trained(arm).config).fit(images, progress=False)
    before = detector.predict(images.test.images()).maps
    assert isinstance(detector.network.score, nn.Conv2d)
    with torch.no_grad():
        for parameter in detector.network.score.parameters():
            parameter.neg_()
    after = detector.predict(images.test.images()).maps
    assert before.std() > 0
    torch.testing.assert_close(after, -before, rtol=1e-3, atol=1e-3)


def test_consistency_pulls_features_and_scores_of_a_real_batch(
    trained: Callable[[str], Trained], images: AnomalyFolder
) -> None:
    run = trained("+score_constraint")  # where nothing has made them agree yet
    batch = images.train.batch(range(8))[0]
    batch, mask = PseudoAnomalies()(batch, generator=generator_for(0, "pseudo", 0))
    assert 0 < mask.flatten(1).any(1).sum() < 8  # good and anomalous ones
    with torch.no_grad():
        features, _, score = run.network(batch)
    features, score = features.requires_grad_(), score.requires_grad_()
    small = resize_mask(mask, score.shape[-2:])
    loss = consistency_loss(features, score, small)
    loss.backward()
    assert loss > 0
    for gradient in (features.grad, score.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        by_image = gradient.abs().flatten(1).amax(1)
        assert (by_image > 1e-8).all()
        assert (gradient.abs().amax(1, keepdim=True)[~small] > 0).float().mean() > 0.9  # nearly every normal pixel
    direction = [g / g.norm() for g in (features.grad, score.grad) if g is not None]
    stepped = consistency_loss(features.detach() - 0.01 * direction[0], score.detach() - 0.01 * direction[1], small)
    assert stepped < loss.detach()


def test_consistency_changes_what_is_learned(trained: Callable[[str], Trained], images: AnomalyFolder) -> None:
    without, whole = trained("+score_constraint"), trained("+consistency")
    assert without.before.keys() == whole.before.keys()
    assert all(torch.equal(without.before[k], whole.before[k]) for k in whole.before)
    assert without.terms.consistency == 0
    assert whole.terms.consistency > 0
    weights = whole.config.loss
    total = weights.feature * whole.terms.feature + weights.score * whole.terms.score
    torch.testing.assert_close(whole.terms.total, total + weights.consistency * whole.terms.consistency)
    ends = dict(without.network.named_parameters())
    for key, parameter in whole.network.named_parameters():
        assert not torch.equal(parameter, ends[key]), key
    batch = images.test.images().float() / 255
    with torch.no_grad():
        scores = [np.asarray(t.network(batch).score.flatten()) for t in (without, whole)]
    assert spearmanr(*scores).statistic < 1 - 1e-6
