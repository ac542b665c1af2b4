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
from mlffn_lite.peers.distillation import hold_out
from mlffn_lite.peers.us import Descriptor, UninformedStudents, compactness, error_and_variance, mirrored

CONFIG = Config.preset("tiny", method="us", train={"device": "cpu", "steps": 8})


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[UninformedStudents, Path]:
    run = tmp_path_factory.mktemp("us") / "r"
    return UninformedStudents(CONFIG).fit(folder, out=run, progress=False), run


def test_a_patch_of_33_pixels_becomes_one_descriptor() -> None:
    """The sizes of the paper's table, layer by layer: 29, 14, 10, 5, 4, 1; and its channels."""
    net = Descriptor()
    sides, x = [], torch.zeros(1, 3, 33, 33)
    for index, layer in enumerate(net.layers):
        x = layer(x)
        sides.append(x.shape[-1])
        if index < 2:
            x = F.max_pool2d(x, 2)
            sides.append(x.shape[-1])
    assert sides == [29, 14, 10, 5, 4, 1]
    assert [m.out_channels for m in net.layers] == [128, 256, 256, 128]
    expected = (75 + 1) * 128 + (128 * 25 + 1) * 256 + (256 * 4 + 1) * 256 + (256 * 16 + 1) * 128
    assert sum(p.numel() for p in net.parameters()) == expected
    assert net(torch.zeros(1, 3, 33, 33)).shape == net(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 1, 1)


def test_dense_descriptors_are_those_of_patches_one_by_one() -> None:
    torch.manual_seed(0)
    net = Descriptor().double().eval()
    with torch.inference_mode():
        image = torch.rand(1, 3, 42, 44, dtype=torch.float64)
        dense = net(image, stride=1)
        assert dense.shape[-2:] == (11, 13)
        for y, x in ((0, 0), (3, 5), (9, 8), (10, 12)):
            alone = net(image[:, :, y : y + 32, x : x + 32])
            torch.testing.assert_close(dense[:, :, y, x], alone[:, :, 0, 0])
        torch.testing.assert_close(net(image, stride=4), dense[:, :, ::4, ::4])
        torch.testing.assert_close(net(image, stride=2), dense[:, :, ::2, ::2])


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (70, 51)])
def test_every_square_of_the_grid_has_a_patch_in_its_middle(size: tuple[int, int]) -> None:
    net = Descriptor().double()
    for stride in (1, 2, 4):
        image = torch.rand(1, 3, *size, dtype=torch.float64, requires_grad=True)
        out = net(mirrored(image, stride), stride)
        assert out.shape[-2:] == tuple(-(-s // stride) for s in size)
    image = torch.rand(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    net(mirrored(image))[0, :, 12, 10].sum().backward()
    assert image.grad is not None
    rows, columns = (image.grad.abs().sum(1)[0].sum(d).nonzero()[:, 0] for d in (1, 0))
    assert (int(rows[0]) + int(rows[-1])) / 2 == 12 * 4 + 1.5
    assert (int(columns[0]) + int(columns[-1])) / 2 == 10 * 4 + 1.5


def test_error_and_variance_are_equations_8_and_9() -> None:
    rng = np.random.default_rng(0)
    predictions, label = rng.normal(1, 1, (3, 2, 5, 2, 3)), rng.normal(0, 1, (2, 5, 2, 3))
    error, variance = error_and_variance(torch.tensor(predictions), torch.tensor(label))
    for b, y, x in np.ndindex(2, 2, 3):
        mus = predictions[:, b, :, y, x]
        mean = (mus[0] + mus[1] + mus[2]) / 3
        assert float(error[b, y, x]) == pytest.approx(sum((mean - label[b, :, y, x]) ** 2))
        assert float(variance[b, y, x]) == pytest.approx(sum(m @ m for m in mus) / 3 - mean @ mean)


def test_compactness_by_numpys_correlations() -> None:
    x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    c = np.corrcoef(x.detach().numpy(), rowvar=False)
    expected = sum(c[i, j] ** 2 for i in range(6) for j in range(6) if i != j) / 6
    assert float(compactness(x)) == pytest.approx(expected)
    assert torch.autograd.gradcheck(compactness, (x,))
    same = torch.randn(20, 1, dtype=torch.float64).repeat(1, 6)
    assert float(compactness(same)) == pytest.approx(5.0)


def test_each_part_trains_its_own(folder: AnomalyFolder) -> None:
    """And the loss of the students is the sum of their squared distances from the standardised teacher."""
    detector = UninformedStudents(CONFIG)
    images = folder.train.images()[:4].float() / 255
    for step, parts in ((0, {"teacher", "decoder"}), (15, {"students"})):
        detector._prepare(folder.train, step)
        detector._prepare(folder.train, detector._teacher_steps())
        losses = detector._losses(images, step, generator_for(0, "x"))
        detector.module.zero_grad(set_to_none=True)
        losses[0].backward()
        assert {n.split(".")[0] for n, p in detector.module.named_parameters() if p.grad is not None} == parts
        assert losses[0].item() == pytest.approx(sum(map(float, losses[1:])))
    network = detector.module
    top, left = torch.randint(4, (2,), generator=generator_for(0, "x")).tolist()
    with torch.inference_mode():
        x = mirrored(network.scaled(images[:1]), more=3)[:, :, top:, left:]
        label = (network.teacher(x) - network.teacher_mean) / network.teacher_std
        expected = sum(float(((s(x) - label) ** 2).sum()) / label[:, 0].numel() for s in network.students)
        assert float(losses[0]) == pytest.approx(expected, rel=1e-4)
        taught = torch.cat(
            [network.standardised(mirrored(network.scaled(i[None]))) for i in folder.train.images().float() / 255]
        )
        torch.testing.assert_close(taught.mean((0, 2, 3)), torch.zeros(128), atol=1e-3, rtol=0)
        torch.testing.assert_close(taught.std((0, 2, 3)), torch.ones(128), atol=1e-3, rtol=0)


def test_score_is_the_sum_of_both_terms_in_units_of_held_out_images(
    fitted: tuple[UninformedStudents, Path], folder: AnomalyFolder
) -> None:
    detector, _ = fitted
    network = detector.module
    rest, held = hold_out(folder.train)
    assert [e.path.name for e in held.entries] == ["009.png"]
    assert len(rest) == 11
    with torch.inference_mode():
        both = []
        for images in (held.images(), folder.test.images()[:2]):
            x = mirrored((images.float() / 255 - 0.5) / 0.5)
            label = (network.teacher(x) - network.teacher_mean) / network.teacher_std
            predictions = torch.stack([s(x) for s in network.students])
            mean = predictions.mean(0)
            variance = predictions.square().sum(2).mean(0) - mean.square().sum(1)
            both.append(((mean - label).square().sum(1), variance))
    expected = sum((new - good.mean()) / good.std() for good, new in zip(*both, strict=True))
    expected = F.interpolate(expected[:, None], size=(64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(detector.predict(folder.test.images()[:2]).maps, expected, rtol=2e-2, atol=2e-2)
    weights = [s.layers[0].weight for s in network.students]
    assert not torch.equal(weights[0], weights[1])


def test_losses_fall_and_a_hole_stands_out() -> None:
    good, bad = good_and_with_hole()
    detector = UninformedStudents(CONFIG.replace(train={"steps": 120})).fit(list(good), progress=False)
    history, part = detector.history, detector._teacher_steps() // 10
    assert history["distillation"][part - 1] < 0.9 * history["distillation"][0]
    assert history["students"].iloc[-2:].mean() < 0.8 * history["students"][part]
    check_hole(detector, good, bad, around=(slice(8, 52), slice(14, 58)))


def test_save_load_and_seed(fitted: tuple[UninformedStudents, Path], folder: AnomalyFolder) -> None:
    detector, run = fitted
    images = folder.test.images()
    maps = detector.predict(images).maps
    assert torch.equal(AnomalyDetector.load(run, device="cpu").predict(images).maps, maps)
    torch.manual_seed(7)
    assert torch.equal(UninformedStudents(CONFIG).fit(folder, progress=False).predict(images).maps, maps)
    other = UninformedStudents(CONFIG.replace(train={"seed": 1})).module.students[0].layers[0].weight
    assert not torch.equal(other, UninformedStudents(CONFIG).module.students[0].layers[0].weight)


@pytest.mark.parametrize("size", [(32, 32), (70, 50)])
def test_constant_images_of_any_size_are_scored(size: tuple[int, int]) -> None:
    images = [torch.full((3, *size), 0.5)] * 3
    config = CONFIG.replace(data={"size": 32, "aspect": "keep"}, train={"steps": 2, "batch": 2})
    assert UninformedStudents(config)._score(torch.rand(2, 3, *size)).shape == (2, *size)
    assert torch.isfinite(UninformedStudents(config).fit(images, progress=False).predict(images).maps).all()


def test_the_schedule_is_the_papers() -> None:
    detector = UninformedStudents(CONFIG.replace(train={"steps": 0}))
    assert (detector._paper_steps(200), detector._teacher_steps()) == (70_000, 50_000)
    assert [g["lr"] for g in detector._optimizer(detector.module).param_groups] == [2e-4, 1e-4]


def test_a_resumed_run_is_the_uninterrupted_one(folder: AnomalyFolder, tmp_path: Path) -> None:
    check_resuming(CONFIG, folder, tmp_path / "r", stop=4)
