from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlffn_lite.backbones import Backbone
from mlffn_lite.calibration import SelfCalibratedConv
from mlffn_lite.config import ModelConfig, TextureConfig
from mlffn_lite.layers import resize
from mlffn_lite.network import MLFFN
from mlffn_lite.texture import StatisticalTexture

# Table 4's rows as configurations, from the baseline to the whole network.
ARMS: dict[str, dict[str, Any]] = {
    "baseline": {"self_calibration": False, "texture": False, "score": "distance"},
    "+self_calibration": {"self_calibration": True, "texture": False, "score": "distance"},
    "+stl": {"self_calibration": True, "texture": True, "score": "distance"},
    "+score_constraint": {"self_calibration": True, "texture": True, "score": "learned"},
}

TEXTURE = TextureConfig(tem_levels=8, scales=(1, 2))


def small(**changes: Any) -> MLFFN:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"weights": "none", "width": 16}
    return MLFFN(ModelConfig(**(settings | changes)), TEXTURE)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("size", [(64, 64), (8, 8), (45, 70)])
def test_shapes_and_meaning(arm: str, stride: int, size: tuple[int, int]) -> None:
    network = small(stride=stride, **ARMS[arm]).eval()
    with torch.no_grad():
        output = network(torch.rand(2, 3, *size))
    h, w = (-(-s // stride) for s in size)
    assert output.features.shape == (2, 16, h, w)
    assert output.distance.shape == output.score.shape == (2, 1, h, w)
    squared = output.features.double().square().sum(1, keepdim=True)
    torch.testing.assert_close(output.distance.double(), (squared + 1).sqrt() - 1, rtol=1e-5, atol=1e-6)
    if ARMS[arm]["score"] == "distance":
        assert torch.equal(output.score, output.distance)
    else:  # η is a fully connected layer on each pixel's feature
        assert network.score is not None
        weight, bias = network.score.parameters()
        pixel = output.features[1, :, h - 1, 0] @ weight.flatten() + bias[0]
        torch.testing.assert_close(output.score[1, 0, h - 1, 0], pixel, rtol=1e-5, atol=1e-5)


def test_arms_hold_the_parts_they_name() -> None:
    def parts(**arm: Any) -> tuple[bool, bool, bool]:
        modules = list(small(**arm).modules())
        return (
            any(isinstance(m, SelfCalibratedConv) for m in modules),
            any(isinstance(m, StatisticalTexture) for m in modules),
            small(**arm).score is not None,
        )

    assert [parts(**arm) for arm in ARMS.values()] == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]


def test_every_parameter_gets_a_gradient_and_matters() -> None:
    network = small(stride=4).train()
    images = torch.rand(4, 3, 64, 64)
    output = network(images)
    (output.score.square().mean() + output.distance.mean()).backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_low_level_and_high_level_both_reach_the_score() -> None:
    class Levels(torch.nn.Module):
        """Returns leaves, so that the gradient of each level can be read."""

        def __init__(self) -> None:
            super().__init__()
            self.levels: list[Tensor] = []

        def forward(self, x: Tensor) -> list[Tensor]:
            b, _, h, w = x.shape
            shapes = zip((4, 6, 8), (4, 8, 16), strict=True)
            self.levels = [torch.randn(b, c, h // s, w // s, requires_grad=True) for c, s in shapes]
            return self.levels

    body = Levels()
    network = MLFFN(ModelConfig(width=16), TEXTURE, Backbone(body, (4, 6, 8)))
    with torch.enable_grad():
        network(torch.rand(2, 3, 64, 64)).score.sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in body.levels)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("training", [False, True])
def test_constant_images_give_no_nan(value: float, training: bool) -> None:
    network = small().train(training)
    output = network(torch.full((2, 3, 40, 40), value))
    (output.score.sum() + output.distance.sum()).backward()
    assert all(torch.isfinite(x).all() for x in output)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close_to_float32(dtype: torch.dtype) -> None:
    network = small(weights="offline", width=32).eval()
    images = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=96, mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        exact = network(images).score
        with torch.autocast("cpu", dtype):
            fast = network(images.contiguous(memory_format=torch.channels_last)).score
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().max() < 0.15 * exact.std() + 0.15


def test_heads_are_everything_but_the_backbone() -> None:
    network = small()
    heads = {id(p) for p in network.heads()}
    backbone = {id(p) for p in network.backbone.parameters()}
    assert not heads & backbone
    assert heads | backbone == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(("source", "target"), [((8, 8), (4, 4)), ((9, 7), (4, 4)), ((4, 4), (4, 4)), ((3, 5), (6, 9))])
def test_resize_keeps_constants_and_averages_areas(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.full((1, 2, *source), 3.0)
    torch.testing.assert_close(resize(x, target), torch.full((1, 2, *target), 3.0))
    x = torch.rand(1, 1, 8, 6)
    torch.testing.assert_close(resize(x, (4, 3))[0, 0, 1, 2], x[0, 0, 2:4, 4:6].mean())
