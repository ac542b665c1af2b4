"""Small pieces that several sections share: a safe batch normalisation, the fusing convolution, exact area pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SafeBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that falls back on its running statistics where a channel has a single value.

    In training, one value per channel (one image pooled to 1×1) has no variance, and the ordinary layer raises.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` of shape (B, C, H, W)."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class FuseConv(nn.Sequential):
    """1×1 convolution, batch normalisation, ReLU: (B, inputs, h, w) → (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 1, bias=False), SafeBatchNorm2d(outputs), nn.ReLU(inplace=True))


def normal_range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median and the 99.9th percentile of what good pixels have, scalars on the device of ``values``."""
    ordered = values.float().flatten().sort().values
    low, high = (ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.999))
    return low, high


def area_pool(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Average a map (B, C, H, W) over the area of each pixel of a map of ``size``.

    Exact where sides do not divide, on every device; adaptive pooling is neither exact nor, on MPS, free in its sizes,
    and its gradient is not deterministic on CUDA.
    """
    (height, width), (h, w) = x.shape[2:], size
    if height % h == 0 and width % w == 0:
        return F.avg_pool2d(x, (height // h, width // w))
    return _overlaps(height, h).to(x) @ x @ _overlaps(width, w).to(x).mT / (height * width)


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bring a map (B, C, H, W) to ``size``: area averaging when it shrinks, bilinear when it grows."""
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    if height > size[0] or width > size[1]:
        return area_pool(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def no_autocast(x: Tensor) -> torch.autocast:
    """Return a context that computes on the device of ``x`` in the types that tensors have."""
    return torch.autocast(x.device.type, enabled=False)


def eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors; on the CPU where the device has no such routine."""
    home = x.cpu() if x.device.type == "mps" else x
    values, vectors = torch.linalg.eigh(home)
    return values.to(x.device), vectors.to(x.device)


def _overlaps(source: int, target: int) -> Tensor:
    """Overlap of target cell i with source cell j, (target, source), in whole units of 1/target source cells."""
    i, j = torch.arange(target)[:, None] * source, torch.arange(source) * target
    return (torch.minimum(i + source, j + target) - torch.maximum(i, j)).clamp(min=0)
