from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from peer_checks import check_any_size, check_seeds_and_saving
from torch import Tensor, nn

from mlffn_lite.backbones import build_backbone
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.peers import fcdd
from mlffn_lite.peers.fcdd import (
    FCDD,
    FullyConvolutional,
    augmented,
    confetti,
    malformed,
    objective,
    pseudo_huber,
    receptive_field,
    receptive_upsample,
)

CONFIG = Config.preset("tiny", method="fcdd", train={"device": "cpu", "precision": "fp32", "steps": 50})


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[FCDD, Path]:
    run = tmp_path_factory.mktemp("fcdd") / "r"
    return FCDD(CONFIG).fit(folder, out=run, progress=False), run


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_objective_is_equation_3() -> None:
    phi = 2 * torch.randn(4, 5, 3, generator=generator(), dtype=torch.float64)
    anomalous = torch.tensor([False, True, True, False])
    expected = 0.0
    for i in range(4):
        mean = sum(math.sqrt(float(v) ** 2 + 1) - 1 for v in phi[i].flatten()) / 15
        expected += (-math.log(1 - math.exp(-mean)) if anomalous[i] else mean) / 4
    assert float(objective(pseudo_huber(phi), anomalous)) == pytest.approx(expected, rel=1e-12)
    phi.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(pseudo_huber(x), anomalous), phi)


def test_the_objective_is_finite_where_it_is_extreme() -> None:
    for value in (0.0, 1e-6, 1e4):
        phi = torch.full((2, 3, 3), value, requires_grad=True)
        for anomalous in (False, True):
            loss = objective(pseudo_huber(phi), torch.tensor([anomalous] * 2))
            (gradient,) = torch.autograd.grad(loss, phi)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()
    small = pseudo_huber(torch.tensor(1e-5))
    assert float(small) == pytest.approx(0.5e-10, rel=1e-5)  # √(φ² + 1) − 1 would be 0


class VGG(nn.Module):
    """The layers of VGG-11 with batch normalisation that the paper keeps, after the levels at strides 2, 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.vgg11_bn().features[:21]

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for k, layer in enumerate(self.features):
            x = layer(x)
            if k in (6, 13, 20):
                levels.append(x)
        return [*levels[1:], levels[2]]


@pytest.mark.parametrize(
    ("name", "start", "side"),
    [
        ("resnet18", 0.5, 99),
        ("resnet50", 0.5, 91),
        ("efficientnet_lite0", 7.5, 67),
    ],
)
def test_receptive_fields_are_those_of_the_arithmetic(name: str, start: float, side: int) -> None:
    """Sum of (kernel − 1)·jump over the layers, plus 1; centres of "same" padding lie to the right on even sides."""
    layers = {
        "resnet18": [(7, 1), (3, 2), *[(3, 4)] * 5, *[(3, 8)] * 3],
        "resnet50": [(7, 1), (3, 2), *[(3, 4)] * 4, *[(3, 8)] * 3],
        "efficientnet_lite0": [(3, 1), (3, 2), (3, 2), (3, 4), (5, 4), (5, 8)],
    }[name]
    assert 1 + sum((kernel - 1) * jump for kernel, jump in layers) == side
    assert receptive_field(build_backbone(name, "none").body, 1) == (start, side)


def test_the_papers_receptive_field() -> None:
    """62 pixels at stride 8 for VGG-11's first layers."""
    assert receptive_field(VGG(), 1)[1] == 62


def test_the_receptive_field_is_what_an_output_sees() -> None:
    """A change of a pixel inside it changes the output; one outside does not."""
    torch.manual_seed(0)
    body = build_backbone("efficientnet_lite0", "offline").body.eval()
    start, side = receptive_field(body, 1)
    image = torch.rand(1, 3, 192, 160)
    with torch.no_grad():
        before = body(image)[1][0, :, 12, 9]
        for row, seen in (
            (-side / 2 - 1, False),
            (-side / 2, True),
            (0, True),
            (side / 2 - 1, True),
            (side / 2, False),
        ):
            changed = image.clone()
            changed[0, :, int(start + 8 * 12 + row)] += 50
            assert bool((body(changed)[1][0, :, 12, 9] != before).any()) == seen, row


@pytest.mark.parametrize(("start", "side", "size"), [(0.5, 15, (24, 40)), (7.5, 67, (64, 48)), (3.5, 9, (30, 21))])
def test_upsampling_is_a_transposed_convolution(start: float, side: int, size: tuple[int, int]) -> None:
    a = torch.rand(2, *(-(-x // 8) for x in size), generator=generator())
    found = receptive_upsample(a, size, start, side, 3.0)
    offsets = torch.arange(side) - side // 2
    kernel = torch.exp(-0.5 * (offsets / 3.0) ** 2)
    whole = torch.nn.functional.conv_transpose2d(a[:, None], (kernel[:, None] * kernel)[None, None], stride=8)[:, 0]
    cut = side // 2 - int(start)
    padded = torch.nn.functional.pad(whole, (side, side, side, side))[:, side + cut :, side + cut :]
    torch.testing.assert_close(found, padded[:, : size[0], : size[1]])
    one = torch.zeros(1, 4, 4)
    one[0, 2, 1] = 1
    peak = receptive_upsample(one, (32, 32), 0.5, 99, 3.0)[0]
    assert peak.argmax() == 16 * 32 + 8  # the pixel that the output stands at
    assert float(peak[19, 8]) == pytest.approx(math.exp(-0.5))


def test_what_is_trained_is_the_stage_at_stride_8() -> None:
    for name, stage in (("efficientnet_lite0", "blocks.2."), ("resnet18", "layer2.")):
        module = FullyConvolutional(build_backbone(name, "none").set_mode("train"))
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        expected = {n for n, _ in module.named_parameters() if n.startswith((f"backbone.body.{stage}", "last."))}
        assert trained == expected


def test_confetti_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against pixels in turn: inside a square turned by its angle, the last square's colour, white ones added."""
    monkeypatch.setattr(fcdd, "smooth", lambda x, _: x)
    height, width, count = 48, 40, 3
    found = confetti(count, height, width, generator())
    g, scale = generator(), math.sqrt(height * width) / 224
    expected = np.zeros((count, 3, height, width))
    for mean, coloured in ((1.8e-5 * 224**2, True), (1.2e-5 * 224**2, False)):
        odds = torch.tensor([mean**k / math.factorial(k) for k in range(1, 9)])
        number = (torch.multinomial(odds, count, replacement=True, generator=g) + 1).tolist()
        draws = torch.rand(8, 7, count, generator=g).numpy()
        for i, y, x in np.ndindex(count, height, width):
            colour = np.zeros(3)
            for k in range(number[i]):
                side, angle, row, column, *rgb = draws[k, :, i]
                offset = complex(y + 0.5 - height * row, x + 0.5 - width * column)
                offset *= np.exp(1j * math.radians(-45 + 90 * angle))
                if max(abs(offset.real), abs(offset.imag)) < scale * (8 + 46 * side) / 2:
                    colour = np.array(rgb) if coloured else np.ones(3)
            expected[i, :, y, x] += colour
    assert (np.abs(found.numpy() - expected) > 1e-5).mean() < 1e-3  # rounding at the edges


def test_confetti_is_as_frequent_and_large_as_in_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of 8 to 54 px at 1.8e-5 and 1.2e-5 of 224² pixels, none without: expected area by Monte Carlo."""
    noise = confetti(200, 64, 64, generator())
    assert float(noise.min()) >= 0
    assert float(noise.max()) <= 2 + 1e-5
    assert (noise.flatten(1).amax(1) > 0.02).all()
    monkeypatch.setattr(fcdd, "smooth", lambda x, _: x)
    noise = confetti(2000, 64, 64, generator())
    covered = (noise > 0).any(1).float().mean().item()
    area = np.mean(np.linspace(8, 54, 1000) ** 2) / 224**2
    mean = sum(p / (1 - math.exp(-p)) for p in (1.8e-5 * 224**2, 1.2e-5 * 224**2))
    # Squares meet each other and the border, but not often.
    assert 0.75 * mean * area < covered < mean * area


def test_noise_is_added_or_where_that_does_nothing_subtracted() -> None:
    images = torch.stack([torch.full((3, 8, 8), v) for v in (0.2, 1.0, 1.0)])
    noise = torch.zeros(3, 3, 8, 8)
    noise[:2, :, 2:4] = 0.5
    found = malformed(images, noise)
    expected = images.clone()
    expected[0, :, 2:4], expected[1, :, 2:4] = 0.7, 0.5
    torch.testing.assert_close(found, expected)


def test_augmentation_keeps_images_nearly_as_they_are() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 60), torch.linspace(0, 1, 60), indexing="ij")
    images = (0.2 + 0.5 * torch.stack([y, x, (x + y) / 2])).expand(16, -1, -1, -1)
    found = augmented(images, generator())
    assert found.shape == images.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    difference = (found - images).abs().mean((1, 2, 3))
    assert difference.min() > 0
    assert difference.max() < 0.1
    assert torch.equal(found, augmented(images, generator()))


def test_crops_are_windows_of_14_fifteenths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a ramp, a crop is a flatter ramp: slope and offset say what was cut."""
    monkeypatch.setattr(fcdd, "jitter", lambda x, *_, **__: x)
    monkeypatch.setattr(torch, "randn", lambda size, **_: torch.zeros(size))
    ramp = (torch.arange(60) + 0.5) / 60
    found = augmented(ramp.expand(40, 3, 60, 60).contiguous(), generator())[:, 0, 30]
    slopes = 60 * (found[:, 40] - found[:, 20]) / 20
    starts = found[:, 20] - slopes * (20.5 / 60)
    cropped = slopes < 0.97
    torch.testing.assert_close(slopes[cropped], torch.full((int(cropped.sum()),), 14 / 15), atol=1e-3, rtol=0)
    assert 10 < int(cropped.sum()) < 30
    assert -1e-4 < float(starts[cropped].min()) < 0.02
    assert 0.04 < float(starts[cropped].max()) < 1 / 15 + 1e-4
    torch.testing.assert_close(found[~cropped], ramp.expand_as(found[~cropped]), atol=1e-4, rtol=0)


def test_half_of_the_images_are_anomalous_and_the_loss_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, seen = FCDD(CONFIG), []

    def module(x: Tensor) -> Tensor:
        seen.append(x)
        return x.amax(1)

    monkeypatch.setattr(FCDD, "module", property(lambda _: module))
    monkeypatch.setattr(fcdd, "augmented", lambda x, _: x)
    (loss,) = detector._losses(torch.full((64, 3, 32, 32), 0.25), 0, generator())
    changed = (seen[0] - 0.25).abs().amax((1, 2, 3)) > 0
    assert 20 < int(changed.sum()) < 44
    assert float(loss) == pytest.approx(float(objective(seen[0].amax(1), changed)))


def test_the_loss_falls_and_defects_stand_out(fitted: tuple[FCDD, Path], folder: AnomalyFolder) -> None:
    detector = fitted[0]
    total = detector.history.total
    assert total.iloc[-2:].mean() < 0.8 * total.iloc[:2].mean()
    result = detector.evaluate(folder)
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] > 0.8


def test_maps_are_upsampled_norms(fitted: tuple[FCDD, Path], folder: AnomalyFolder) -> None:
    detector, image = fitted[0], folder.test.images()[:1]
    with torch.inference_mode():
        levels = detector.module.backbone(image / 255.0)
        phi = torch.einsum("bchw,c->bhw", levels[1], detector.module.last.weight.flatten()) + detector.module.last.bias
    a = ((phi.double() ** 2 + 1).sqrt() - 1).float()
    expected = receptive_upsample(a, (64, 64), 7.5, 67, 12 * 64 / 224)
    torch.testing.assert_close(detector.predict(image).maps, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (70, 50), (96, 160)])
def test_any_size_and_constant_images(size: tuple[int, int], fitted: tuple[FCDD, Path]) -> None:
    check_any_size(fitted[0], size)
    images = torch.stack([torch.rand(3, *size), torch.zeros(3, *size), torch.ones(3, *size)])
    (loss,) = FCDD(CONFIG)._losses(images, 0, generator())
    assert torch.isfinite(loss)


def test_same_seed_and_saved_runs_give_the_same_maps(fitted: tuple[FCDD, Path], folder: AnomalyFolder) -> None:
    check_seeds_and_saving(*fitted, folder, steps=2)


def test_the_papers_schedule() -> None:
    detector = FCDD(CONFIG)
    assert detector._paper_steps(209) == 200 * 17  # ten passes over 209 bottles, 128 at a time
    assert detector._factor(0, 3400) == detector._factor(16, 3400) == 1
    assert detector._factor(17, 3400) == 0.985
    assert detector._factor(3399, 3400) == pytest.approx(0.985**199)
    defaults = detector._optimizer(detector.module).defaults
    assert (defaults["lr"], defaults["momentum"], defaults["nesterov"]) == (1e-3, 0.9, True)
