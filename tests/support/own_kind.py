"""Example: a kind of pseudo-anomaly of one's own, named ``own_kind:Stripe`` in ``pseudo.kinds``."""

from __future__ import annotations

import torch
from torch import Tensor

from mlffn_lite.pseudo import PseudoAnomaly


class Stripe(PseudoAnomaly):
    """A horizontal line in the opposite brightness."""

    def __init__(self, thickness: float = 0.05) -> None:
        self.thickness = thickness

    def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one line across each image."""
        middle = torch.rand(len(images), generator=generator, device=generator.device).to(images.device)
        rows = torch.linspace(0, 1, images.shape[2], device=images.device)
        near = (rows - middle[:, None]).abs() <= self.thickness / 2 + 0.5 / images.shape[2]
        masks = near[:, None, :, None].expand(-1, 1, -1, images.shape[3])
        return torch.where(masks, (images < 0.5).to(images.dtype), images), masks
