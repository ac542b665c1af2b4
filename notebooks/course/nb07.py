"""Exercises of notebook 07, the fusion network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mlffn_lite.config import ModelConfig
from mlffn_lite.layers import resize
from mlffn_lite.network import MLFFN

from .checks import exercise

Stride = Literal[4, 8, 16]


class _Levels(nn.Module):
    """Stands in for a backbone: noise at strides 4, 8 and 16."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the levels of images (B, 3, H, W)."""
        side = images.shape[-1]
        return [
            torch.rand(len(images), c, side // s, side // s) for c, s in zip(self.channels, (4, 8, 16), strict=True)
        ]


def _baseline(channels: tuple[int, int, int], width: int, stride: Stride = 8) -> MLFFN:
    config = ModelConfig(width=width, stride=stride, self_calibration=False, texture=False, score="distance")
    levels: Any = _Levels(channels)
    return MLFFN(config, backbone=levels).eval()


def _work(function: Callable[..., Any], *arguments: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops() // 2


@exercise(
    "07.1",
    wrong={
        "forgets batch normalisation": lambda c, w: (sum(c) + 3 * w) * w + w,
        "gives the fusions a bias too": lambda c, w: (sum(c) + 3 * w) * w + w + 9 * w,
        "forgets the last layer": lambda c, w: (sum(c) + 2 * w) * w + 6 * w,
    },
)
def baseline_parameters(answer: Callable[[tuple[int, int, int], int], int]) -> None:
    """Parameters of the baseline outside the backbone."""
    for channels, width in (((24, 40, 112), 128), ((256, 512, 1024), 256), ((3, 5, 7), 8)):
        expected, given = sum(p.numel() for p in _baseline(channels, width).heads()), answer(channels, width)
        assert given == expected, (
            f"for levels of {channels} channels and width {width} the library's network has {expected} parameters,"
            f" you say {given}: a difference of {given - expected}"
        )


@exercise(
    "07.2",
    wrong={
        "projects stage 3 on the fused map": lambda c, w, n, s: (n // s) ** 2 * (sum(c) + 3 * w) * w,
        "counts multiplications and additions": lambda c, w, n, s: (
            2 * ((n // s) ** 2 * (c[0] + c[1] + 3 * w) * w + (n // 16) ** 2 * c[2] * w)
        ),
        "fuses the first level at its own resolution": lambda c, w, n, s: (
            (n // 4) ** 2 * c[0] * w + (n // s) ** 2 * (c[1] + 3 * w) * w + (n // 16) ** 2 * c[2] * w
        ),
    },
)
def baseline_work(answer: Callable[[tuple[int, int, int], int, int, int], int]) -> None:
    """Multiply-adds of the baseline outside the backbone."""
    cases: tuple[tuple[tuple[int, int, int], int, int, Stride], ...] = (
        ((24, 40, 112), 32, 64, 8),
        ((24, 40, 112), 32, 64, 4),
        ((3, 5, 7), 8, 96, 8),
    )
    for channels, width, side, stride in cases:
        expected = _work(_baseline(channels, width, stride), torch.zeros(1, 3, side, side))
        given = answer(channels, width, side, stride)
        assert given == expected, (
            f"for {channels} channels, width {width}, {side} px and stride {stride} the counter finds {expected}"
            f" multiply-adds, you say {given}: {given / expected:.3f} times as many"
        )


def _naively(weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return functional.conv2d(torch.cat([low, resize(high, low.shape[-2:])], 1), weight)


def _swapped(weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    second, first = weight.split([high.shape[1], low.shape[1]], dim=1)
    return functional.conv2d(low, first) + resize(functional.conv2d(high, second), low.shape[-2:])


@exercise("07.3", wrong={"saves nothing": _naively, "takes the wrong columns of the weight": _swapped})
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
