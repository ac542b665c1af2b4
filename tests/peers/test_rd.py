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
from mlffn_lite.features import smooth
from mlffn_lite.peers.rd import Block, Distillation, ReverseDistillation, anomaly_map, distances

CONFIG = Config.preset("tiny", method="rd", train={"device": "cpu", "steps": 40, "precision": "fp32"})


@pytest.fixture(scope="module")
def fitted(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReverseDistillation, Path]:
    run = tmp_path_factory.mktemp("rd") / "r"
    return ReverseDistillation(CONFIG).fit(folder, out=run, progress=False), run


def levels(*sizes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def test_distance_is_equation_1() -> None:
    sizes = [(2, 5, 4, 3), (2, 7, 2, 2)]
    teacher, student = levels(*sizes), levels(*sizes, seed=1)
    for found, a, b in zip(distances(teacher, student), teacher, student, strict=True):
        assert found.dtype == torch.float32
        for i, y, x in np.ndindex(*found.shape):
            u, v = a[i, :, y, x].tolist(), b[i, :, y, x].tolist()
            dot = sum(p * q for p, q in zip(u, v, strict=True))
            norms = math.sqrt(sum(p * p for p in u)) * math.sqrt(sum(q * q for q in v))
            assert float(found[i, y, x]) == pytest.approx(1 - dot / norms, abs=1e-6)


def test_distance_by_hand() -> None:
    """Equal directions, right angle, opposite: 0, 1, 2, whatever the lengths."""
    a = torch.tensor([[[[1.0, 3.0, 2.0]], [[0.0, 0.0, 0.0]]]])
    b = torch.tensor([[[[5.0, 0.0, -1.0]], [[0.0, 2.0, 0.0]]]])
    torch.testing.assert_close(distances([a], [b])[0], torch.tensor([[[0.0, 1.0, 2.0]]]))


def test_autocast_does_not_round_distances() -> None:
    a, b = (x.float() for x in levels((1, 8, 4, 4), (1, 8, 4, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distances([a], [b])[0], distances([a], [b])[0].float())
        found = distances([a], [b])[0]
    assert torch.equal(found, distances([a], [b])[0])


def test_loss_is_equation_2_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean of the distances at all positions, then the sum over levels: not the distance of flattened levels."""
    sizes = [(2, 3, 4, 3), (2, 4, 2, 2), (2, 5, 1, 1)]
    teacher, student = levels(*sizes), [x.requires_grad_() for x in levels(*sizes, seed=1)]
    expected = 0.0
    for a, b in zip(teacher, student, strict=True):
        count, _, height, width = a.shape
        for i, y, x in np.ndindex(count, height, width):
            cosine = torch.cosine_similarity(a[i, :, y, x], b[i, :, y, x].detach(), dim=0)
            expected += (1 - float(cosine)) / (count * height * width)
    detector = ReverseDistillation(CONFIG)
    detector._module = Fixed(teacher, [x.detach() for x in student])
    total, *parts = detector._losses(torch.zeros(2, 3, 8, 8), 0, torch.Generator())
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert torch.stack(parts).sum().item() == pytest.approx(expected, rel=1e-5)
    assert len(parts) + 1 == len(ReverseDistillation.terms)

    def loss(*x: Tensor) -> Tensor:
        return torch.stack([m.mean() for m in distances(teacher, x)]).sum()

    # Computed in float32, so the check's own differences are coarse.
    assert torch.autograd.gradcheck(loss, student, eps=1e-2, atol=1e-3, rtol=1e-2)


class Fixed(nn.Module):
    def __init__(self, teacher: list[Tensor], student: list[Tensor]) -> None:
        super().__init__()
        self.levels = teacher, student

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.levels


def test_map_is_the_sum_of_upsampled_maps() -> None:
    maps = [x.float() for x in levels((2, 8, 6), (2, 4, 3), (2, 2, 2))]
    expected = torch.zeros(2, 16, 12)
    for x in maps:
        _, h, w = x.shape
        for y, z in np.ndindex(16, 12):
            r, c = ((p + 0.5) * n / m - 0.5 for p, n, m in ((y, h, 16), (z, w, 12)))
            r, c = min(max(r, 0), h - 1), min(max(c, 0), w - 1)
            top, left = min(int(r), h - 2), min(int(c), w - 2)
            u, v = r - top, c - left
            expected[:, y, z] += (1 - u) * ((1 - v) * x[:, top, left] + v * x[:, top, left + 1])
            expected[:, y, z] += u * ((1 - v) * x[:, top + 1, left] + v * x[:, top + 1, left + 1])
    torch.testing.assert_close(anomaly_map(maps, (16, 12)), expected, atol=1e-5, rtol=1e-5)


def test_blocks_are_those_of_resnet() -> None:
    """With torchvision's weights, a block that keeps or halves the sides computes what torchvision's does."""
    torch.manual_seed(0)
    basic, bottleneck = torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck
    x = torch.randn(2, 16, 7, 6)
    for ours, theirs in (
        (Block(16, 16, 0, "keep"), basic(16, 16)),
        (Block(16, 32, 0, "down"), basic(16, 32, 2, _shortcut(16, 32))),
        (Block(16, 64, 4, "down"), bottleneck(16, 16, 2, _shortcut(16, 64))),
        (Block(16, 64, 2, "down"), bottleneck(16, 16, 2, _shortcut(16, 64), base_width=128)),
    ):
        values = theirs.state_dict().values()
        ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
        torch.testing.assert_close(ours(x), theirs(x))
        assert (ours(x) >= 0).all()
    assert (Block(16, 8, 0, "up", signed=True)(x) < 0).any()
    assert Block(16, 8, 0, "up")(x).shape == (2, 8, 14, 12)


def _shortcut(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "three"), [("resnet18", 256), ("resnet50", 1024)])
def test_sizes_are_the_papers(name: str, three: int) -> None:
    """The embedding has the shape of ResNet's fourth stage (§3.3), which its blocks are but for the first's inputs."""
    module = Distillation(build_backbone(name, "none").set_mode("frozen")).eval()
    with torch.no_grad():
        teacher, student = module(torch.rand(1, 3, 256, 256))
        embedding = module.embedding(teacher)
    assert embedding.shape == (1, 2 * three, 8, 8)
    assert [x.shape for x in teacher] == [x.shape for x in student]
    assert [tuple(x.shape[1:]) for x in student] == [(three // 4, 64, 64), (three // 2, 32, 32), (three, 16, 16)]
    assert all((x >= 0).all() for x in student)
    stage = getattr(torchvision.models, name)().layer4
    first = stage[0].conv1.weight.shape[0] * math.prod(stage[0].conv1.kernel_size) + 2 * three
    assert count(module.embed) == count(stage) + 2 * three * first  # 3·C₃ inputs, not C₃
    # A stage of the decoder is ResNet's with 2×2 kernels for the 3×3 and the 1×1 of the shortcut that change sides.
    widths = [stage[0].conv1.out_channels // 2**i for i in (1, 2, 3)]
    blocks = (2, 2, 2) if name == "resnet18" else (3, 4, 6)
    for part, inner, blocks_of in zip(module.decoder, widths, blocks, strict=True):
        outputs = inner * (1 if name == "resnet18" else 4)
        inputs = 2 * outputs
        if name == "resnet18":
            first = 4 * inputs * inner + 9 * inner * inner + 4 * inner
            rest = 18 * inner * inner + 4 * inner
        else:
            first = inputs * inner + 4 * inner**2 + inner * outputs + 4 * inner + 2 * outputs
            rest = 2 * inner * outputs + 9 * inner**2 + 4 * inner + 2 * outputs
        first += 4 * inputs * outputs + 2 * outputs
        assert count(part) == first + (blocks_of - 1) * rest


def test_a_wide_resnets_blocks_are_twice_as_wide() -> None:
    backbone = build_backbone("resnet50", "none").set_mode("frozen")
    narrow, wide = (count(Distillation(backbone, wide=w).embed) for w in (False, True))
    theirs = [torchvision.models.resnet50, torchvision.models.wide_resnet50_2]
    stages = [count(build(weights=None).layer4) for build in theirs]
    assert wide - narrow == stages[1] - stages[0] + 2 * 1024 * 512  # 3·1024 inputs, not 1024


def test_signed_teachers_have_signed_students() -> None:
    module = ReverseDistillation(CONFIG).module
    with torch.no_grad():
        teacher, student = module(torch.rand(2, 3, 64, 64))
    assert all((x < 0).any() for x in (*teacher, *student))


def test_the_teacher_stays_as_it_was(fitted: tuple[ReverseDistillation, Path]) -> None:
    module, backbone = fitted[0].module, build_backbone("efficientnet_lite0", "offline")
    for key, value in backbone.state_dict().items():
        assert torch.equal(module.teacher.state_dict()[key], value), key


def test_the_loss_falls_and_defects_stand_out(fitted: tuple[ReverseDistillation, Path], folder: AnomalyFolder) -> None:
    detector = fitted[0]
    assert list(detector.history.columns[1:5]) == list(ReverseDistillation.terms)
    total = detector.history.total
    assert total.iloc[-1] < 0.8 * total.iloc[0]  # of steps 40 and 10
    result = detector.evaluate(folder)
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] > 0.9


def test_maps_are_smoothed(fitted: tuple[ReverseDistillation, Path], folder: AnomalyFolder) -> None:
    detector, images = fitted[0], folder.test.images()[:2]
    with torch.inference_mode():
        maps = [anomaly_map(distances(*detector.module(x[None].float() / 255)), (64, 64)) for x in images]
    torch.testing.assert_close(detector.predict(images).maps, smooth(torch.cat(maps), 4.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (70, 50), (96, 160)])
def test_any_size_and_constant_images(size: tuple[int, int], fitted: tuple[ReverseDistillation, Path]) -> None:
    check_any_size(fitted[0], size)


def test_same_seed_and_saved_runs_give_the_same_maps(
    fitted: tuple[ReverseDistillation, Path], folder: AnomalyFolder
) -> None:
    check_seeds_and_saving(*fitted, folder, steps=3)


def test_the_papers_schedule() -> None:
    detector = ReverseDistillation(CONFIG)
    assert detector._paper_steps(209) == 200 * 14  # 209 bottles, 16 at a time
    optimizer = detector._optimizer(detector.module)
    assert optimizer.defaults["lr"] == 0.005
    assert optimizer.defaults["betas"] == (0.5, 0.999)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in detector.module.teacher.parameters()}
