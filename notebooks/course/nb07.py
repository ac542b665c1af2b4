"""Exercises of notebook 07, the fusion network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mlffn_lite.config import ModelConfig, TextureConfig
from mlffn_lite.layers import resize
from mlffn_lite.network import MLFFN

from .checks import exercise


class _Stages(nn.Module):
    """Stands in for a backbone with three stages."""

    channels = (5, 6, 7)


def _work(function: Callable[..., Any], *arguments: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops() // 2


def _psi(
    network: MLFFN,
    low1: Tensor,
    low2: Tensor,
    high: Tensor,
    *,
    early: bool = False,
    once: bool = False,
    swap: bool = False,
) -> Tensor:
    """Forward pass of ψ, or one with a slip."""
    size = low2.shape[-2:]
    texture: Any = network.texture
    low = network.fuse_low(torch.cat([resize(low1, size), low2], 1))
    described = texture.tem(low)
    pairs = texture.ptfem(low if once else texture.fuse_tem(torch.cat([low, described], 1)))
    fine = texture.fuse_all(torch.cat([low, described, pairs], 1))
    coarse = network.project_high(resize(high, size) if early else high)
    both = [fine, resize(network.calibrate(coarse), size)]
    return network.embed(network.fuse(torch.cat(both[::-1] if swap else both, 1)))


@exercise(
    "07.1",
    wrong={
        "enlarges stage 3 too early": lambda *given: _psi(*given, early=True),
        "forgets TEM on the way to PTFEM": lambda *given: _psi(*given, once=True),
        "swaps texture and context": lambda *given: _psi(*given, swap=True),
        "forgets W": lambda network, *stages: network.fuse(network.embed(_psi(network, *stages)).repeat(1, 2, 1, 1)),
    },
)
def psi(answer: Callable[[MLFFN, Tensor, Tensor, Tensor], Tensor]) -> None:
    """ψ's forward pass."""
    torch.manual_seed(0)
    stages: Any = _Stages()
    network = MLFFN(ModelConfig(width=8, stride=8), TextureConfig(tem_levels=8), backbone=stages).eval()
    given = [torch.rand(2, c, side, side) for c, side in zip(stages.channels, (32, 16, 8), strict=True)]
    with torch.no_grad():
        got, expected = answer(network, *given), network.head(given).features
    assert isinstance(got, Tensor), "return the features F, a tensor"
    assert got.shape == expected.shape, f"the shape must be {tuple(expected.shape)}, it is {tuple(got.shape)}"
    assert torch.allclose(got, expected, atol=1e-5), "these are not the features of the network; follow the equations"


def _naively(weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return functional.conv2d(torch.cat([low, resize(high, low.shape[-2:])], 1), weight)


def _swapped(weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    second, first = weight.split([high.shape[1], low.shape[1]], dim=1)
    return functional.conv2d(low, first) + resize(functional.conv2d(high, second), low.shape[-2:])


@exercise("07.2", wrong={"saves nothing": _naively, "takes the wrong columns of the weight": _swapped})
def fuse_cheaply(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Fusion that multiplies the coarse map at its own resolution."""
    generator = torch.Generator().manual_seed(0)
    for outputs, first, second, size in ((8, 6, 6, 16), (5, 3, 7, 12)):
        weight, low, high = (
            torch.randn(shape, generator=generator)
            for shape in ((outputs, first + second, 1, 1), (2, first, size, size), (2, second, size // 2, size // 2))
        )
        expected, given = _naively(weight, low, high), answer(weight, low, high)
        assert isinstance(given, Tensor), "return a tensor"
        assert given.shape == expected.shape, f"the shape must be {tuple(expected.shape)}, it is {tuple(given.shape)}"
        error = float((given - expected).abs().max())
        assert error < 1e-4, f"the result differs from that of the concatenation by up to {error:.3g}"
        allowed = 2 * outputs * size**2 * (first + second / 4)
        used = _work(answer, weight, low, high)
        assert used <= allowed, f"right, but with {used} multiply-adds; {allowed:.0f} are enough"


class _Gated(nn.Module):
    """The gated fusion, or one with a slip."""

    def __init__(self, width: int, slip: str = "") -> None:
        super().__init__()
        self.slip, self.choose = slip, nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        texture, context = x.chunk(2, 1)
        gate = self.choose(x) if self.slip == "sigmoid" else self.choose(x).sigmoid()
        if self.slip == "swap":
            texture, context = context, texture
        return gate * texture + (gate if self.slip == "both" else 1 - gate) * context


@exercise(
    "07.3",
    wrong={
        "forgets the sigmoid": lambda width: _Gated(width, "sigmoid"),
        "gates both alike": lambda width: _Gated(width, "both"),
        "swaps the two": lambda width: _Gated(width, "swap"),
        "adds them": lambda width: nn.Conv2d(2 * width, width, 1),
    },
)
def gated_fuse(answer: Callable[[int], nn.Module]) -> None:
    """A fusion that chooses."""
    torch.manual_seed(0)
    module, x = answer(6), torch.rand(2, 12, 5, 5)
    assert isinstance(module, nn.Module), "GatedFuse(width) must be a torch.nn.Module"
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1, f"one 1 × 1 convolution is enough; found {len(convolutions)}"
    wanted = _Gated(6)
    assert convolutions[0].weight.shape == wanted.choose.weight.shape, "W_g maps 2·width channels to width, 1 × 1"
    assert convolutions[0].bias is not None, "W_g has a bias"
    wanted.choose.load_state_dict(convolutions[0].state_dict())
    with torch.no_grad():
        got = module(x)
        assert got.shape == (2, 6, 5, 5), f"expected (B, width, h, w) = (2, 6, 5, 5), got {tuple(got.shape)}"
        assert torch.allclose(got, wanted(x), atol=1e-5), (
            "the result is not g ⊙ T + (1 − g) ⊙ H with g = σ(W_g [T; H] + b)"
        )
