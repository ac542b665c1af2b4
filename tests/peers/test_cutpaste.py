from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_checks import check_any_size, check_seeds_and_saving
from torch import Tensor

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.peers import cutpaste
from mlffn_lite.peers.augment import jitter
from mlffn_lite.peers.cutpaste import CutPaste, corners_of, crop, cut_paste, paste, patch_side, scar, spread

CONFIG = Config.preset("tiny", method="cutpaste", train={"device": "cpu", "precision": "fp32", "steps": 80})
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[CutPaste, Path]:
    run = tmp_path_factory.mktemp("cutpaste") / "r"
    return CutPaste(CONFIG).fit(folder, out=run, progress=False), run


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave colours as they are."""
    monkeypatch.setattr(cutpaste, "jitter", lambda x, *_: x)


@pytest.mark.usefixtures("plain")
def test_pasting_upright_copies_a_rectangle() -> None:
    images = torch.rand(2, 3, 12, 9, generator=generator())
    size, source, target = (torch.tensor(x) for x in ([[3.0, 4], [5, 2]], [[1.5, 2], [7.5, 3]], [[8.5, 6], [2.5, 8]]))
    found = paste(images, size, source, target, torch.zeros(2), generator())
    expected = images.clone()
    expected[0, :, 7:10, 4:8] = images[0, :, 0:3, 0:4]
    expected[1, :, 0:5, 7:9] = images[1, :, 5:10, 2:4]
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("degrees", [-45.0, -20.0, 10.0, 30.0])
def test_pasting_turned_is_a_rotation_pixel_by_pixel(degrees: float) -> None:
    images = torch.rand(1, 3, 24, 20, generator=generator())
    (h, w), (sy, sx), (ty, tx), angle = (9.3, 5.1), (8.2, 7.7), (13.4, 10.6), math.radians(degrees)
    boxes = torch.tensor([[h, w]]), torch.tensor([[sy, sx]]), torch.tensor([[ty, tx]])
    found = paste(images, *boxes, torch.tensor([angle]), generator())
    changed = 0
    for y, x in np.ndindex(24, 20):
        # Complex numbers turn the offset from the target's centre back onto the rectangle's own axes.
        offset = complex(y + 0.5 - ty, x + 0.5 - tx) * complex(math.cos(angle), math.sin(angle))
        value = images[0, :, y, x]
        if abs(offset.real) < h / 2 and abs(offset.imag) < w / 2:
            value = images[0, :, math.floor(sy + offset.real), math.floor(sx + offset.imag)]
            changed += 1
        assert torch.equal(found[0, :, y, x], value)
    assert changed == pytest.approx(h * w, rel=0.15)


def test_a_quarter_turn_by_hand(plain: None) -> None:
    """A column of three turned by 90° is a row; (v, u) = (−dx, dy): left becomes bottom."""
    images = torch.zeros(1, 3, 7, 7)
    images[0, :, 0:3, 0] = torch.tensor([0.25, 0.5, 0.75])
    centre = torch.tensor([[1.5, 0.5]]), torch.tensor([[4.5, 4.5]])
    found = paste(images, torch.tensor([[3.0, 1.0]]), *centre, torch.tensor([math.pi / 2]), generator())
    assert found[0, 0, 4, 3:6].tolist() == [0.75, 0.5, 0.25]
    assert int((found != images).sum()) == 9


@pytest.mark.usefixtures("plain")
def test_rectangles_have_the_papers_sizes() -> None:
    """Area 2 to 15 %, aspect 0.3 to 3.3, as often tall as wide, wherever they fit."""
    side, count = 64, 300
    images = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side).expand(count, 3, -1, -1)
    changed = (cut_paste(images, generator()) != images).any(1)
    tall, areas = 0, []
    for mask in changed:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if not len(rows):  # pasted onto itself
            continue
        h, w = (int(x.max() - x.min()) + 1 for x in (rows, columns))
        assert int(mask.sum()) <= h * w
        areas.append(h * w / side**2)
        assert 0.25 < h / w < 4  # sides are rounded
        tall += h > w
    assert len(areas) > 0.99 * count
    assert 0.015 < min(areas) < 0.03
    assert 0.14 < max(areas) < 0.16
    assert sum(areas) / len(areas) == pytest.approx(0.085, abs=0.01)
    assert 0.4 < tall / len(areas) < 0.6
    assert changed.float().mean(0)[8:-8, 8:-8].min() > 0  # no place is left out
    assert changed[:, 0].any()
    assert changed[:, :, -1].any()


@pytest.mark.usefixtures("plain")
def test_scars_have_the_papers_sizes() -> None:
    """2–16 × 10–25 px of a patch of 64, inside it; half of that in one of 32."""
    for side in (64, 32):
        images = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side).expand(400, 3, -1, -1)
        changed = (scar(images, generator()) != images).any(1)
        areas = changed.flatten(1).sum(1) * (64 / side) ** 2
        assert areas.max() <= 16 * 25 * 1.05
        assert float(areas.float().mean()) == pytest.approx(9 * 17.5, rel=0.1)
        assert changed[:, :, 0].any()


def test_jitter_is_the_change_of_each_colour() -> None:
    """Against scalars: hue in YIQ, saturation, brightness, then contrast about the mean grey."""
    images = 0.3 + 0.4 * torch.rand(1, 3, 4, 5, generator=generator())
    inside = torch.rand(1, 1, 4, 5, generator=generator(1)) < 0.5
    draws = generator(3)
    values = [float(torch.rand(1, generator=draws)) for _ in range(4)]
    b, c, s = (0.8 + 0.4 * v for v in values[:3])
    turn = 2 * math.pi * (-0.2 + 0.4 * values[3])
    expected = np.zeros((3, 4, 5))
    for y, x in np.ndindex(4, 5):
        luma, i, q = YIQ @ images[0, :, y, x].double().numpy()
        # Amplitude and phase of the colour.
        phase, chroma = math.atan2(q, i) + turn, math.hypot(i, q)
        rgb = np.linalg.solve(YIQ, [luma, chroma * math.cos(phase), chroma * math.sin(phase)])
        rgb = s * rgb + (1 - s) * luma
        expected[:, y, x] = np.clip(b * rgb, 0, 1)
    grey = np.tensordot([0.299, 0.587, 0.114], expected, 1)
    mean = grey[inside[0, 0].numpy()].mean()
    found = jitter(images, generator(3), inside, amount=0.2)
    np.testing.assert_allclose(found[0], np.clip(c * expected + (1 - c) * mean, 0, 1), atol=1e-5)
    whole = jitter(images, generator(3), amount=0.2)
    np.testing.assert_allclose(whole[0], np.clip(c * expected + (1 - c) * grey.mean(), 0, 1), atol=1e-5)
    torch.testing.assert_close(jitter(images, generator(), amount=0.0), images)


def test_jitter_depends_on_nothing_beside() -> None:
    images = torch.rand(3, 3, 8, 8, generator=generator())
    found = jitter(images, generator())
    assert not torch.equal(found, images)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert (found - images).abs().max() < 0.6


def test_crops_are_slices() -> None:
    images = torch.rand(2, 3, 40, 50, generator=generator())
    index, tops, lefts = torch.tensor([1, 0, 1]), torch.tensor([0, 8, 3]), torch.tensor([18, 0, 7])
    found = crop(images, index, tops, lefts, 32)
    for k in range(3):
        y, x = int(tops[k]), int(lefts[k])
        assert torch.equal(found[k], images[index[k], :, y : y + 32, x : x + 32])


def test_patches_of_the_papers_images() -> None:
    assert patch_side(256, 256) == 64
    assert (patch_side(128, 128), patch_side(32, 300), patch_side(288, 224)) == (32, 32, 64)
    assert corners_of(256, 64).tolist() == list(range(0, 193, 8))
    assert corners_of(32, 32).tolist() == [0]
    odd = corners_of(70, 32)
    assert (int(odd[0]), int(odd[-1])) == (0, 38)
    assert int(odd.diff().max()) <= 4


@pytest.mark.parametrize("size", [(64, 96), (70, 50), (32, 32)])
def test_spreading_is_a_weighted_mean(size: tuple[int, int]) -> None:
    side = patch_side(*size)
    rows, columns = (corners_of(x, side).tolist() for x in size)
    scores = torch.rand(2, len(rows), len(columns), generator=generator())
    found, sigma = spread(scores, size, side), 10 * side / 64
    for y, x in ((0, 0), (size[0] // 2, size[1] // 3), (size[0] - 1, size[1] - 1)):
        total, weights = np.zeros(2), 0.0
        for i, top in enumerate(rows):
            for j, left in enumerate(columns):
                square = (y + 0.5 - top - side / 2) ** 2 + (x + 0.5 - left - side / 2) ** 2
                weight = math.exp(-square / (2 * sigma**2))
                total, weights = total + weight * scores[:, i, j].numpy(), weights + weight
        np.testing.assert_allclose(found[:, y, x], total / weights, rtol=1e-4)
    torch.testing.assert_close(spread(torch.ones_like(scores), size, side), torch.ones(2, *size))


def test_the_loss_is_the_cross_entropy_of_three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many patches of each; by hand: logits that say 0.7, 0.2, 0.1 whatever they see."""
    detector = CutPaste(CONFIG)
    seen = []

    def module(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.tensor([0.7, 0.2, 0.1]).log().expand(len(x), 3)

    monkeypatch.setattr(CutPaste, "module", property(lambda _: module))
    (loss,) = detector._losses(torch.rand(5, 3, 64, 64, generator=generator()), 0, generator())
    assert float(loss) == pytest.approx(-(math.log(0.7) + math.log(0.2) + math.log(0.1)) / 3)
    assert seen[0].shape == (3 * 35, 3, 32, 32)
    good, pasted, scarred = seen[0].chunk(3)
    for changed in (good != pasted, good != scarred):
        share = changed.any(1).float().mean((1, 2))
        assert 0 < share.min() <= share.max() < 0.2


def test_the_score_is_equation_4(fitted: tuple[CutPaste, Path], folder: AnomalyFolder) -> None:
    """½(f − μ)ᵀΣ⁻¹(f − μ) of patches cut one by one, with numpy's covariance of all good ones."""
    detector = fitted[0]
    with torch.inference_mode():
        good = torch.cat([detector._embed(x[None] / 255.0).flatten(0, 2) for x in folder.train.images()]).double()
        image = folder.test.images()[:1] / 255.0
        cut = image[:, :, 8:40, 32:64]
        new = detector.module.embedding(cut).double()[0]
        embedded = detector._embed(image)
        maps = detector._score(image)
    torch.testing.assert_close(embedded[0, 2, 8].double(), new, atol=1e-4, rtol=1e-4)
    covariance = np.cov(good.numpy().T)
    covariance += (1e-3 * covariance.trace() / len(covariance) + 1e-9) * np.eye(len(covariance))
    d = embedded[0].double().numpy() - good.mean(0).numpy()
    scores = 0.5 * np.einsum("nmi,ij,nmj->nm", d, np.linalg.inv(covariance), d)
    expected = spread(torch.tensor(scores, dtype=torch.float32)[None], (64, 64), 32)
    torch.testing.assert_close(maps, expected, rtol=1e-2, atol=1e-2)


def test_the_classes_are_learned_and_defects_stand_out(fitted: tuple[CutPaste, Path], folder: AnomalyFolder) -> None:
    detector = fitted[0]
    assert detector.history.total.iloc[-1] < 0.9 * math.log(3)
    result = detector.evaluate(folder)
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] > 0.8


@pytest.mark.parametrize("size", [(32, 32), (70, 50), (64, 100)])
def test_any_size_and_constant_images(size: tuple[int, int], fitted: tuple[CutPaste, Path]) -> None:
    check_any_size(fitted[0], size)
    (loss,) = CutPaste(CONFIG)._losses(torch.zeros(4, 3, *size), 0, generator())
    assert torch.isfinite(loss)


def test_same_seed_and_saved_runs_give_the_same_maps(fitted: tuple[CutPaste, Path], folder: AnomalyFolder) -> None:
    check_seeds_and_saving(*fitted, folder, steps=2)


def test_the_papers_schedule() -> None:
    detector = CutPaste(CONFIG)
    assert detector._paper_steps(209) == 65536  # 256 epochs of 256 steps
    assert [detector._factor(s, 100) for s in (0, 50)] == pytest.approx([1.0, 0.5])
    assert detector._factor(99, 100) < 1e-3
    defaults = detector._optimizer(detector.module).defaults
    assert (defaults["lr"], defaults["momentum"], defaults["weight_decay"]) == (0.03, 0.9, 3e-5)
