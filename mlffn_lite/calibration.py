"""§1.3 Self-calibration: a convolution that is gated by a wider view of its own input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import SafeBatchNorm2d


class SelfCalibratedConv(nn.Module):
    """Self-calibrated convolution: ``F1 = ConvBN(X); G = σ(X + Up(ConvBN(AvgPool_r(X)))); out = ConvBN(F1 ⊙ G)``.

    All three convolutions are 3×3, without bias, and keep the width. AvgPool averages blocks of ``rate``×``rate``
    pixels; where ``rate`` does not divide the size, the last block of a row or column averages the pixels it has. Up
    copies each block's value back to just the pixels of that block (nearest neighbour, as in SCNet): nothing shifts.

    Parameters
    ----------
    channels : int
        Width C of input and output.
    rate : int
        Side r of the pooled blocks, in pixels.
    """

    def __init__(self, channels: int, rate: int = 4) -> None:
        super().__init__()
        if channels < 1 or rate < 1:
            raise ValueError(f"channels and rate must be at least 1, got channels={channels}, rate={rate}")
        self.rate = rate
        self.feature = _conv_bn(channels)
        self.context = _conv_bn(channels)
        self.out = _conv_bn(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape; H and W are at least 1."""
        pooled = F.avg_pool2d(x, self.rate, ceil_mode=True)
        gate = torch.sigmoid(x + _repeat(self.context(pooled), self.rate, x.shape[-2:]))
        return self.out(self.feature(x) * gate)


def _conv_bn(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), SafeBatchNorm2d(channels))


def _repeat(x: Tensor, rate: int, size: torch.Size) -> Tensor:
    """Copy every pixel to a block of rate×rate and crop to ``size``; its backward pass is a plain sum."""
    blocks = x[:, :, :, None, :, None].expand(-1, -1, -1, rate, -1, rate)
    return blocks.flatten(4, 5).flatten(2, 3)[..., : size[0], : size[1]]
