from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_checks import check_resuming
from torch.nn import functional as F

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.devices import generator_for
from mlffn_lite.layers import resize
from mlffn_lite.peers.psvdd import (
    PatchSVDD,
    PatchSVDDNetwork,
    PositionClassifier,
    SmallEncoder,
    changed,
    crops,
    distributed,
    position_pairs,
    svdd_loss,
    svdd_pairs,
    working_size,
)

CONFIG = Config.preset("tiny", method="psvdd", train={"device": "cpu", "steps": 4})  # each image is seen at 256 px


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchSVDD, Path]:
    run = tmp_path_factory.mktemp("psvdd") / "r"
    return PatchSVDD(CONFIG).fit(folder, out=run, progress=False), run


def test_networks_have_the_published_sizes() -> None:
    """Channels and kernels of the authors' code, counted by hand."""
    widths = [3, 32, 64, 128, 128, 64, 32, 32, 64]
    small = sum(9 * a * b + b for a, b in itertools.pairwise(widths))
    assert sum(p.numel() for p in SmallEncoder().parameters()) == small
    whole = PatchSVDDNetwork()
    encoders = sum(p.numel() for m in (whole.small, whole.join, whole.last) for p in m.parameters())
    assert encoders == small + 64 * 4 * 128 + 128 + 128 * 64 + 64
    classifier = PositionClassifier()
    assert sum(p.numel() for p in classifier.parameters()) == 64 * 128 + 128 + 128 * 128 + 128 + 8
    torch.testing.assert_close(classifier.last.norm(dim=0), torch.ones(128))
    for side in (64, 32):
        assert whole.embed(torch.rand(2, 3, side, side), side).shape == (2, 64, 1, 1)


def test_all_patches_at_once_are_patches_one_by_one() -> None:
    torch.manual_seed(0)
    net = PatchSVDDNetwork().double()
    image = torch.rand(1, 3, 96, 112, dtype=torch.float64)
    with torch.inference_mode():
        large, small = net.dense(image)
        assert (large.shape, small.shape) == ((1, 64, 3, 4), (1, 64, 17, 21))
        for found, side, stride in ((large, 64, 16), (small, 32, 4)):
            for y, x in ((0, 0), (1, 2), (found.shape[2] - 1, found.shape[3] - 1)):
                patch = image[:, :, y * stride : y * stride + side, x * stride : x * stride + side]
                torch.testing.assert_close(found[:, :, y, x], net.embed(patch, side)[:, :, 0, 0])


def test_position_pairs_are_neighbours() -> None:
    generator = generator_for(0, "pairs")
    shape = (4000, 3, 256, 240)
    for side in (64, 32):
        first, label, second = position_pairs(shape, side, generator)
        assert label.bincount().tolist() == pytest.approx([500] * 8, rel=0.2)
        names = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
        limit = np.array([256 - side, 240 - side])
        moved = []
        for a, k, b in zip(first.numpy(), label.tolist(), second.numpy(), strict=True):
            assert (a >= 0).all()
            assert (a <= limit).all()
            for axis in (0, 1):
                low, high = sorted(names[k][axis] * d for d in (3 * side // 4, side - 1))
                bounds = np.clip([a[axis] + low, a[axis] + high], 0, limit[axis])
                assert bounds[0] <= b[axis] <= bounds[1]
                if names[k][axis] == 1 and a[axis] + side <= limit[axis]:
                    moved.append(b[axis] - a[axis])
        assert (min(moved), max(moved)) == (3 * side // 4, side - 1)


def test_svdd_pairs_are_close_and_different() -> None:
    for side, reach in ((64, 2), (32, 1)):
        first, second = svdd_pairs((3000, 3, 256, 256), side, generator_for(0, "svdd"))
        inner = ((first >= reach) & (first <= 256 - side - reach)).all(1)
        shift = second[inner] - first[inner]
        seen = {(int(a), int(b)) for a, b in shift}
        expected = {(a, b) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)} - {(0, 0)}
        assert seen == expected
        assert int(second.min()) >= 0
        assert int(second.max()) <= 256 - side
    assert torch.equal(*svdd_pairs((5, 3, 64, 64), 64, generator_for(0, "svdd")))  # there is one patch only


def test_crops_and_noise() -> None:
    images = torch.rand(3, 3, 40, 50)
    corners = torch.tensor([[0, 0], [8, 18], [3, 5]])
    found = crops(images, corners, 32)
    for image, (y, x), patch in zip(images, corners.tolist(), found, strict=True):
        assert torch.equal(patch, image[:, y : y + 32, x : x + 32])
    flat = changed(torch.zeros(500, 3, 32, 32), generator_for(0, "noise")).double()
    assert float(flat.mean((2, 3)).std()) == pytest.approx(0.02, rel=0.05)
    assert float(flat.std((2, 3)).mean()) == pytest.approx(0.02, rel=0.05)


def test_losses_against_loops() -> None:
    a, b = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = (
        sum(
            sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) ** 0.5
            for p, q in zip(a.tolist(), b.tolist(), strict=True)
        )
        / 6
    )
    assert svdd_loss(a, b).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(svdd_loss, (a, b))
    same = torch.ones(2, 5, requires_grad=True)
    svdd_loss(same, same.detach().clone()).backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize(("side", "stride"), [(64, 16), (32, 4)])
def test_scores_are_distributed_to_the_pixels_of_their_patches(side: int, stride: int) -> None:
    scores = torch.rand(2, 1, 3, 4, dtype=torch.float64)
    height, width = side + 2 * stride, side + 3 * stride
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    for i, j in np.ndindex(3, 4):
        part = np.s_[i * stride : i * stride + side, j * stride : j * stride + side]
        total[(slice(None), *part)] += scores[:, 0, i, j].numpy()[:, None, None]
        count[part] += 1
    np.testing.assert_allclose(distributed(scores, side, stride)[:, 0], total / count)


def test_working_size() -> None:
    assert working_size((256, 256)) == working_size((128, 128)) == working_size((900, 900)) == (256, 256)
    assert working_size((70, 50)) == (304, 224)
    assert working_size((2000, 32)) == (2016, 64)


def test_map_is_the_product_of_nearest_distances(fitted: tuple[PatchSVDD, Path], folder: AnomalyFolder) -> None:
    detector, _ = fitted
    network = detector.module
    good, new = folder.train.images().float() / 255, folder.test.images()[4:6].float() / 255
    large = resize(good, (256, 256))
    mean = large.mean(0)
    torch.testing.assert_close(network.mean, mean, atol=1e-5, rtol=0)
    maps = torch.ones(2, 1, 256, 256)
    with torch.inference_mode():
        for k, (side, stride) in enumerate(((64, 16), (32, 4))):
            bank = torch.cat([network.dense(x[None] - mean)[k].flatten(2).mT[0] for x in large])
            assert getattr(network, f"bank{side}").shape == (min(len(bank), 12 * (50_000 // 12)), 64)
            found = network.dense(resize(new, (256, 256)) - mean)[k]
            distance = torch.cdist(found.flatten(2).mT, bank, compute_mode="donot_use_mm_for_euclid_dist").amin(2)
            maps = maps * distributed(distance.view(2, 1, *found.shape[2:]), side, stride)
    expected = F.avg_pool2d(maps, 4)[:, 0]
    torch.testing.assert_close(detector.predict(new).maps, expected, rtol=1e-2, atol=1e-3 * float(expected.max()))


def test_a_hole_stands_out() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    shade = 0.5 + 0.3 * torch.sin(x * 0.8) * torch.sin(y * 0.8)
    generator = torch.Generator().manual_seed(0)
    good = shade + 0.03 * torch.randn(10, 3, 64, 64, generator=generator)
    good = good.clamp(0, 1)
    config = CONFIG.replace(train={"steps": 12})
    detector = PatchSVDD(config).fit(list(good), progress=False)
    bad = good[:4].clone()
    bad[:, :, 24:36, 30:42] = torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1)
    new = (shade + 0.03 * torch.randn(4, 3, 64, 64, generator=generator)).clamp(0, 1)
    maps, scores = detector.predict(bad)
    assert (scores > detector.predict(new).scores.max()).all()
    assert (maps[:, 24:36, 30:42].mean((1, 2)) > 2 * maps.mean((1, 2))).all()


def test_the_position_task_is_learned() -> None:
    """On one image with a gradient the classifier beats chance, log 8 for each scale, within a few steps."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    image = torch.stack([x, y, 0 * x])[None].repeat(8, 1, 1, 1)
    detector = PatchSVDD(CONFIG)
    network = detector.module.train()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    first: list[float] = []
    for step in range(24):
        losses = detector._losses(image, step, generator_for(0, "task", step))
        optimizer.zero_grad()
        losses[0].backward()
        optimizer.step()
        first.append(float(losses[1]))
        assert float(losses[0].detach()) == pytest.approx(float(losses[1]) + 1e-3 * float(losses[2]), rel=1e-5)
    assert first[0] == pytest.approx(2 * np.log(8), rel=0.1)
    assert np.mean(first[-5:]) < 0.85 * first[0]


def test_save_load_and_seed(fitted: tuple[PatchSVDD, Path], folder: AnomalyFolder) -> None:
    detector, run = fitted
    images = folder.test.images()
    maps = detector.predict(images).maps
    assert torch.equal(AnomalyDetector.load(run, device="cpu").predict(images).maps, maps)
    good = list(folder.train.images()[:4])
    once = PatchSVDD(CONFIG).fit(good, progress=False).predict(images[:2]).maps
    torch.manual_seed(7)
    assert torch.equal(PatchSVDD(CONFIG).fit(good, progress=False).predict(images[:2]).maps, once)
    other = PatchSVDD(CONFIG.replace(train={"seed": 1})).module.small[0].weight
    assert not torch.equal(other, PatchSVDD(CONFIG).module.small[0].weight)


@pytest.mark.parametrize("size", [(32, 32), (70, 50)])
def test_constant_images_of_any_size_are_scored(size: tuple[int, int]) -> None:
    images = [torch.full((3, *size), 0.5)] * 3
    config = CONFIG.replace(data={"size": 32, "aspect": "keep"}, train={"steps": 2, "batch": 2})
    assert PatchSVDD(config)._score(torch.rand(2, 3, *size)).shape == (2, *size)
    assert torch.isfinite(PatchSVDD(config).fit(images, progress=False).predict(images).maps).all()


def test_the_schedule_is_the_papers() -> None:
    assert PatchSVDD(CONFIG.replace(train={"steps": 0}))._paper_steps(200) == 300 * 313


def test_a_resumed_run_is_the_uninterrupted_one(folder: AnomalyFolder, tmp_path: Path) -> None:
    check_resuming(CONFIG, folder, tmp_path / "r", stop=2)
