"""Example: a backbone of one's own, named ``own_backbone:small`` in ``model.backbone``."""

from __future__ import annotations

from torch import Tensor, nn

from mlffn_lite.backbones import Backbone


class Body(nn.ModuleList):
    """Three stages, at strides 4, 8 and 16."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map normalised images to the three levels."""
        return [x := stage(x) for stage in self]


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolution, normalisation, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 5, stride, 2), nn.BatchNorm2d(outputs), nn.ReLU())


def small(weights: str) -> Backbone:
    """Build it; ``model.weights`` might name a file to load."""
    return Backbone(Body([stage(3, 8, 4), stage(8, 12, 2), stage(12, 16, 2)]), channels=(8, 12, 16))
