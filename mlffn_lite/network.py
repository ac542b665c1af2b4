"""The multi-level feature fusion network (§1): ψ fuses low-level texture and high-level semantics, η scores pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import STRIDES, Backbone, build_backbone
from .calibration import SelfCalibratedConv
from .config import ModelConfig
from .density import MultiscaleDensity
from .layers import FuseConv, area_pool, normal_range
from .losses import hypersphere_distance
from .texture import StatisticalTexture


class MLFFNOutput(NamedTuple):
    """What the network says of a batch, at the fused resolution.

    Attributes
    ----------
    features : Tensor
        ψ(X), shape (B, C1, h, w).
    distance : Tensor
        A(X) = √(‖ψ(X)‖² + 1) − 1 per pixel (§2.2), shape (B, 1, h, w), ≥ 0.
    score : Tensor
        η(ψ(X)) (§2.3), shape (B, 1, h, w); the distance itself where the configuration has no η.
    """

    features: Tensor
    distance: Tensor
    score: Tensor


class MLFFN(nn.Module):
    """The network ψ with its score layer η.

    Parameters
    ----------
    config : ModelConfig
        Backbone, widths and the switches that make Table 4's arms. Where it asks for a density, the module is made
        here and fitted by the detector; :meth:`forward` does not use it.
    backbone : Backbone, optional
        One that is built already; by default ``config`` names it.

    Notes
    -----
    The paper fixes which levels meet where; it leaves open how they are fused.  Here every fusion is a concatenation
    followed by 1×1 convolution, batch normalisation and ReLU, at the resolution ``config.stride``; a last 1×1
    convolution without activation gives ψ, so that it can lie anywhere around the origin.
    """

    scales: Tensor

    def __init__(self, config: ModelConfig, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone = backbone if backbone is not None else build_backbone(config.backbone, config.weights)
        channels = self.backbone.channels
        low1, low2, high = channels
        width = config.width
        self.level = STRIDES.index(config.stride)
        self.fuse_low = FuseConv(low1 + low2, width)
        self.texture = (
            StatisticalTexture(
                width,
                tem_levels=config.tem_levels,
                ptfem_levels=config.ptfem_levels,
                scales=config.scales,
                placement=config.placement,
                window=config.window,
                neighbour=config.neighbour,
                scaled_attention=config.scaled_attention,
            )
            if config.texture
            else nn.Identity()
        )
        self.project_high = FuseConv(high, width)
        self.calibrate = SelfCalibratedConv(width, config.rate) if config.self_calibration else nn.Identity()
        self.fuse = FuseConv(2 * width, width)
        self.embed = nn.Conv2d(width, width, 1)
        self.score = nn.Conv2d(width, 1, 1) if config.score == "learned" else None
        self.weight, self.known = config.density, [STRIDES.index(stride) for stride in config.density_strides]
        known = [sum(channels[: level + 1]) for level in self.known]
        rank, shrinkage = config.density_rank, config.density_shrinkage
        self.density = MultiscaleDensity(known, rank, shrinkage) if config.density else None
        if self.density is not None:  # per part: median on good images, and distance from it to the 99.9th percentile
            self.register_buffer("scales", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def forward(self, images: Tensor) -> MLFFNOutput:
        """Score every pixel.

        Parameters
        ----------
        images : Tensor
            Shape (B, 3, H, W) with H, W ≥ 8, values in [0, 1]; the backbone's normalisation is applied here.

        Returns
        -------
        MLFFNOutput
            At ⌈H/stride⌉ × ⌈W/stride⌉; distance and score in float32 whatever the autocast type.
        """
        return self.head(self.backbone(images))

    def head(self, levels: list[Tensor]) -> MLFFNOutput:
        """Score pixels from the backbone's levels; :meth:`forward` after the backbone."""
        size = levels[self.level].shape[-2:]
        low = self.fuse_low(torch.cat([resize(x, size) for x in levels[:2]], dim=1))
        high = resize(self.calibrate(self.project_high(levels[2])), size)
        features = self.embed(self.fuse(torch.cat([self.texture(low), high], dim=1)))
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            distance = hypersphere_distance(features)
            score = distance if self.score is None else self.score(features)
        return MLFFNOutput(features, distance, score)

    def stacks(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the density's features, (B, ΣC, h, w) per stride: the levels that are no coarser, side by side."""
        return [
            torch.cat([resize(x.float(), levels[known].shape[-2:]) for x in levels[: known + 1]], dim=1)
            for known in self.known
        ]

    def standardise(self, score: Tensor, distance: Tensor) -> None:
        """Learn what scores and distances of good images look like, for :meth:`fuse_scores`."""
        for row, values in zip(self.scales, (score, distance), strict=True):
            low, high = normal_range(values)
            row.copy_(torch.stack((low, (high - low).clamp(min=1e-6))))

    def fuse_scores(self, score: Tensor, distance: Tensor) -> Tensor:
        """Return the mean of score η and distance, (B, 1, h, w), standardised: 1 is the edge of the normal range.

        The distance has the weight ``config.density``, the score 1.
        """
        distance = resize(distance, score.shape[-2:])
        first, second = (
            (x.float() - low) / width for x, (low, width) in zip((score, distance), self.scales, strict=True)
        )
        return (first + self.weight * second) / (1 + self.weight)

    def heads(self) -> list[nn.Parameter]:
        """Return the trainable parameters outside the backbone."""
        return [p for name, p in self.named_parameters() if not name.startswith("backbone.")]


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bring a map (B, C, H, W) to ``size``: area averaging when it shrinks, bilinear when it grows."""
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    if height > size[0] or width > size[1]:
        return area_pool(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
