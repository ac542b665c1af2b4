"""The multi-level feature fusion network (§1): ψ fuses low-level texture and high-level semantics, η scores pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .backbones import STRIDES, Backbone, build_backbone
from .calibration import SelfCalibratedConv
from .config import ModelConfig, TextureConfig
from .layers import FuseConv, no_autocast, resize
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
        Backbone, width and the switches that make Table 4's arms.
    texture : TextureConfig, optional
        How TEM and PTFEM quantise; by default as the paper is read here.
    backbone : Backbone, optional
        One that is built already; by default ``config`` names it.

    Notes
    -----
    The paper fixes which levels meet where; it leaves open how they are fused.  Here every fusion is a concatenation
    followed by 1×1 convolution, batch normalisation and ReLU, at the resolution ``config.stride``; a last 1×1
    convolution without activation gives ψ, so that it can lie anywhere around the origin.
    """

    def __init__(
        self, config: ModelConfig, texture: TextureConfig | None = None, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone if backbone is not None else build_backbone(config.backbone, config.weights)
        low1, low2, high = self.backbone.channels
        width = config.width
        self.level = STRIDES.index(config.stride)
        self.fuse_low = FuseConv(low1 + low2, width)
        self.texture = StatisticalTexture(width, texture or TextureConfig()) if config.texture else nn.Identity()
        self.project_high = FuseConv(high, width)
        self.calibrate = SelfCalibratedConv(width, config.rate) if config.self_calibration else nn.Identity()
        self.fuse = FuseConv(2 * width, width)
        self.embed = nn.Conv2d(width, width, 1)
        self.score = nn.Conv2d(width, 1, 1) if config.score == "learned" else None

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
        with no_autocast(features):
            features = features.float()
            distance = hypersphere_distance(features)
            score = distance if self.score is None else self.score(features)
        return MLFFNOutput(features, distance, score)

    def heads(self) -> list[nn.Parameter]:
        """Return the trainable parameters outside the backbone."""
        return [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
