from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peer_checks import check_hole, check_resuming, good_and_with_hole
from torch.nn import functional as F

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.devices import generator_for
from mlffn_lite.peers.distillation import views
from mlffn_lite.peers.efficientad import (
    Autoencoder,
    EfficientAD,
    EfficientADNetwork,
    PatchDescription,
    channel_moments,
    description_size,
    hard_mean,
    jittered,
    quantile,
)

CONFIG = Config.preset("tiny", method="efficientad", train={"device": "cpu", "steps": 8})


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[EfficientAD, Path]:
    run = tmp_path_factory.mktemp("efficientad") / "r"
    return EfficientAD(CONFIG).fit(folder, out=run, progress=False), run


@pytest.fixture(scope="module")
def network() -> EfficientADNetwork:
    torch.manual_seed(0)
    return EfficientADNetwork(CONFIG).eval()


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_networks_have_the_published_sizes() -> None:
    """Tables of the paper's appendix: kernels, channels; counted by hand, weights and biases."""
    teacher = 3 * 16 * 128 + 128 + 128 * 16 * 256 + 256 + 256 * 9 * 256 + 256
    assert parameters(PatchDescription(384)) == teacher + 256 * 16 * 384 + 384 == 2_694_144
    assert parameters(PatchDescription(768)) == teacher + 256 * 16 * 768 + 768
    encoder = 3 * 16 * 32 + 32 + 32 * 16 * 32 + 32 + 32 * 16 * 64 + 64 + 2 * (64 * 16 * 64 + 64) + 64 * 64 * 64 + 64
    decoder = 6 * (64 * 16 * 64 + 64) + 64 * 9 * 64 + 64 + 64 * 9 * 384 + 384
    assert parameters(Autoencoder(384)) == encoder + decoder
    plain = torch.nn.Sequential(*list(PatchDescription(4))[1:])
    assert plain(torch.zeros(1, 3, 256, 256)).shape[-2:] == (56, 56)  # the paper's grid, without a margin


def test_an_output_sees_33_pixels_around_its_own() -> None:
    layers = PatchDescription(1).double()
    image = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    (layers(image)[0, 0, 16, 15]).backward()
    assert image.grad is not None
    rows, columns = (image.grad.abs().sum(1)[0].sum(d).nonzero()[:, 0] for d in (1, 0))
    assert (int(rows[0]), int(rows[-1])) == (64 - 15, 64 + 17)
    assert (int(columns[0]), int(columns[-1])) == (60 - 15, 60 + 17)


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (70, 50), (64, 128), (95, 45)])
def test_every_size_has_its_grid(size: tuple[int, int], network: EfficientADNetwork) -> None:
    with torch.inference_mode():
        images = torch.rand(1, 3, *size)
        assert network.teach(images).shape[-2:] == description_size(size)
        assert network.features(images).shape == (1, 384, *description_size(size))
        assert network.maps(images)[1].shape == (1, *description_size(size))


def test_features_are_means_of_neighbouring_channels(network: EfficientADNetwork) -> None:
    image = torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        large = F.interpolate(image, scale_factor=2, mode="bilinear")
        middle, deep = network.backbone(large)[1:]
        levels = torch.cat([middle, F.interpolate(deep, size=(8, 12), mode="bilinear")], 1)[0].double()
        found = network.features(image)[0]
    count = len(levels)
    for channel in (0, 1, 200, 383):
        first, last = channel * count // 384, -(-(channel + 1) * count // 384)
        torch.testing.assert_close(found[channel].double(), levels[first:last].mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 1000, 3001])
def test_the_hard_loss_is_the_mean_above_the_quantile(count: int) -> None:
    errors = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    for share in (0.0, 0.9, 0.999):
        values = errors.numpy()
        chosen = [v for v in values if v >= np.quantile(values, share)]
        assert float(hard_mean(errors, share)) == pytest.approx(sum(chosen) / len(chosen))


def test_gradient_of_the_hard_loss() -> None:
    x = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: hard_mean(y.square(), 0.8), (x,))


def test_quantiles_and_moments_are_numpys() -> None:
    x = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for q in (0.0, 0.3, 0.9, 0.995, 1.0):
        assert float(quantile(x, q)) == pytest.approx(np.quantile(x.numpy(), q))
    mean, std = channel_moments(list(x.split(1)))
    np.testing.assert_allclose(mean.flatten(), x.numpy().mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std.flatten(), x.numpy().std((0, 2, 3)), rtol=1e-5)


def test_jitter_changes_one_property() -> None:
    """Pillow's definitions: a blend with black, with the mean grey, or with the grey image."""
    image = 0.3 + 0.3 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pixel = image[0].double().numpy()
    grey = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
    seen = set()
    for step in range(20):
        found = jittered(image, generator_for(0, "jitter", step))[0].double().numpy()
        generator = generator_for(0, "jitter", step)
        kind, factor = (
            int(torch.randint(3, (), generator=generator)),
            0.8 + 0.4 * float(torch.rand((), generator=generator)),
        )
        other = (0.0, grey.mean(), grey[None])[kind]
        np.testing.assert_allclose(found, factor * pixel + (1 - factor) * other, atol=1e-6)
        seen.add(kind)
    assert seen == {0, 1, 2}


def test_views_differ_and_stay_colours() -> None:
    images = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    found = views(images, 7, generator_for(0, "views"))
    assert found.shape == (7, 3, 40, 56)
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    assert torch.equal(found, views(images, 7, generator_for(0, "views")))
    assert all(not torch.allclose(found[i], found[j], atol=0.05) for i in range(7) for j in range(i))
    flat = views(torch.full((1, 3, 40, 56), 0.5), 50, generator_for(0, "views"))  # a view of one colour has one
    assert float(flat.std((2, 3)).max()) < 1e-6
    assert 0.25 <= float(flat.min()) < 0.3
    assert 0.7 < float(flat.max()) <= 0.75


def test_map_is_both_normalised_differences(fitted: tuple[EfficientAD, Path], folder: AnomalyFolder) -> None:
    """Algorithm 2; on the held-out image, and only there, 0.9 of the pixels lie below 0, 0.995 below 0.1."""
    detector, _ = fitted
    network, images = detector.module, folder.test.images()[:2].float() / 255
    with torch.inference_mode():
        x = network.scaled(images)
        teacher = (network.teacher(x) - network.teacher_mean) / network.teacher_std
        student, encoded = network.student(x), network.autoencoder(x, (16, 16))
    pair = []
    for error, (low, high) in zip(
        ((teacher - student[:, :384]) ** 2, (encoded - student[:, 384:]) ** 2), network.quantiles, strict=True
    ):
        pair.append(0.1 * (error.mean(1) - low) / (high - low))
    expected = F.interpolate(0.5 * (pair[0] + pair[1])[:, None], size=(64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(detector.predict(images).maps, expected, rtol=1e-2, atol=1e-3)
    held = folder.train.images()[9:10].float() / 255
    with torch.inference_mode():
        for values, (low, high) in zip(network.maps(held), network.quantiles, strict=True):
            assert float((values < low).float().mean()) == pytest.approx(0.9, abs=0.01)
            assert float((values < high).float().mean()) == pytest.approx(0.995, abs=0.006)


def test_the_teacher_is_standardised_and_left_alone_by_the_second_part(folder: AnomalyFolder) -> None:
    detector = EfficientAD(CONFIG)
    train = folder.train.subset(range(9))
    images = train.images().float() / 255
    detector._prepare(train, 0)
    detector._prepare(train, detector._distil_steps())
    with torch.inference_mode():
        taught = torch.cat([detector.module.teach(x[None]) for x in images])
    torch.testing.assert_close(taught.mean((0, 2, 3)), torch.zeros(384), atol=1e-3, rtol=0)
    torch.testing.assert_close(taught.std((0, 2, 3)), torch.ones(384), atol=1e-2, rtol=0)
    first = detector._losses(images[:2], 0, generator_for(0, "a"))
    first[0].backward()
    learning = {name.split(".")[0] for name, p in detector.module.named_parameters() if p.grad is not None}
    assert learning == {"teacher"}
    detector.module.zero_grad(set_to_none=True)
    second = detector._losses(images[:2], 30, generator_for(0, "a"))
    second[0].backward()
    learning = {name.split(".")[0] for name, p in detector.module.named_parameters() if p.grad is not None}
    assert learning == {"student", "autoencoder"}
    assert second[0].item() == pytest.approx(sum(map(float, second[2:])), rel=1e-5)


def test_losses_fall_and_a_hole_stands_out() -> None:
    """A hole in a regular pattern."""
    good, bad = good_and_with_hole()
    config = CONFIG.replace(train={"steps": 90})
    detector = EfficientAD(config).fit(list(good), progress=False)
    history, part = detector.history, detector._distil_steps() // 10
    assert history["distillation"][part - 1] < 0.95 * history["distillation"][0]
    assert history["student"].iloc[-2:].mean() < 0.8 * history["student"][part]
    check_hole(detector, good, bad, around=(slice(12, 48), slice(18, 54)))


def test_save_load_and_seed(fitted: tuple[EfficientAD, Path], folder: AnomalyFolder) -> None:
    detector, run = fitted
    images = folder.test.images()
    maps = detector.predict(images).maps
    assert torch.equal(AnomalyDetector.load(run, device="cpu").predict(images).maps, maps)
    torch.manual_seed(7)
    assert torch.equal(EfficientAD(CONFIG).fit(folder, progress=False).predict(images).maps, maps)
    other = EfficientAD(CONFIG.replace(train={"seed": 1, "steps": 1})).module.student[1].weight
    assert not torch.equal(other, EfficientAD(CONFIG).module.student[1].weight)


@pytest.mark.parametrize("size", [(32, 32), (70, 50)])
def test_constant_images_of_any_size_are_scored(size: tuple[int, int]) -> None:
    images = [torch.full((3, *size), 0.5)] * 3
    config = CONFIG.replace(data={"size": 32, "aspect": "keep"}, train={"steps": 2, "batch": 2})
    detector = EfficientAD(config)
    detector.shape = size
    maps = detector._score(torch.rand(2, 3, *size))
    assert maps.shape == (2, *size)
    fitted = detector.fit(images, progress=False)
    assert torch.isfinite(fitted.predict(images).maps).all()


def test_the_schedule_is_the_papers() -> None:
    detector = EfficientAD(CONFIG.replace(train={"steps": 0}))
    assert detector._paper_steps(200) == 130_000
    assert detector._distil_steps() == 60_000
    assert [detector._factor(s, 130_000) for s in (0, 60_000, 126_499, 126_500)] == [1.0, 1.0, 1.0, 0.1]


def test_a_resumed_run_is_the_uninterrupted_one(folder: AnomalyFolder, tmp_path: Path) -> None:
    check_resuming(CONFIG, folder, tmp_path / "r", stop=4)
