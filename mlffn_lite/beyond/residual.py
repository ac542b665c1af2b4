"""The method ``residual``: the paper's network on what sets features apart from good images'. Not in the paper.

Trained on pseudo-anomalies, the network learns what separates them from these parts, and little of it holds for real
defects. Told of every feature only how far it is from what good images have at that place, it transfers better.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import Backbone
from ..config import Config, ModelConfig, TextureConfig
from ..datasets.folder import Split
from ..detector import batches
from ..errors import ConfigError
from ..layers import resize
from ..mlffn import MLFFNDetector
from ..network import MLFFN, MLFFNOutput

HELD_OUT = 4
"""Of so many good images one is not trained on: a network scores what it was trained on lower than what is new."""


class ResidualMLFFN(MLFFN):
    """The network on residuals: features less the good images' mean at the position, over the channel's deviation.

    Parameters
    ----------
    config, texture, backbone
        See :class:`~mlffn_lite.network.MLFFN`.

    Attributes
    ----------
    mean1, mean2, mean3 : Tensor
        Of good images' levels, (1, C, h, w).
    scale1, scale2, scale3 : Tensor
        Standard deviation of a level's channels about these means, over images and positions, (1, C, 1, 1).
    """

    def __init__(
        self, config: ModelConfig, texture: TextureConfig | None = None, backbone: Backbone | None = None
    ) -> None:
        super().__init__(config, texture, backbone)
        for i, channels in enumerate(self.backbone.channels, 1):
            self.register_buffer(f"mean{i}", torch.zeros(1, channels, 1, 1))
            self.register_buffer(f"scale{i}", torch.ones(1, channels, 1, 1))

    def fit(self, levels: Iterable[list[Tensor]]) -> ResidualMLFFN:
        """Take means and deviations from the levels of good images, a batch (B, C, h, w) at a time; returns self."""
        count, sums, squares = 0, [torch.zeros(())] * 3, [torch.zeros(())] * 3
        for batch in levels:
            count += len(batch[0])
            sums = [s + x.double().sum(0, keepdim=True) for s, x in zip(sums, batch, strict=True)]
            squares = [s + x.double().square().sum(0, keepdim=True) for s, x in zip(squares, batch, strict=True)]
        for i, (total, square) in enumerate(zip(sums, squares, strict=True), 1):
            mean = total / count
            variance = (square / count - mean.square()).mean((2, 3), keepdim=True)
            setattr(self, f"mean{i}", mean.float())
            setattr(self, f"scale{i}", variance.clamp(min=1e-12).sqrt().float())
        return self

    def head(self, levels: list[Tensor]) -> MLFFNOutput:
        """Score pixels from the backbone's levels, standardised first."""
        return super().head([self.residual(x.float(), i) for i, x in enumerate(levels, 1)])

    def residual(self, level: Tensor, number: int) -> Tensor:
        """Return a level (B, C, h, w), 1 to 3, in units of what good images have."""
        mean, scale = getattr(self, f"mean{number}"), getattr(self, f"scale{number}")
        return (level - resize(mean, level.shape[-2:])) / scale

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take over the size of the images that were fitted to, then load as usual."""
        for i in (1, 2, 3):
            stored, own = state_dict.get(f"{prefix}mean{i}"), getattr(self, f"mean{i}")
            if stored is not None and stored.shape[:2] == own.shape[:2]:
                setattr(self, f"mean{i}", own.new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ResidualDetector(MLFFNDetector):
    """The paper's network, trained as the method ``mlffn`` is, on residuals of a frozen backbone's features.

    Parameters
    ----------
    config, **options
        See :class:`~mlffn_lite.mlffn.MLFFNDetector`; the backbone must be frozen.
    """

    network: ResidualMLFFN
    network_class = ResidualMLFFN
    leaves_out = True

    def __init__(self, config: Config, **options: Any) -> None:
        if config.train.backbone != "frozen":
            raise ConfigError("the method residual needs a backbone that stays as it is; set train.backbone=frozen")
        super().__init__(config, **options)

    def held_out(self, images: int) -> Tensor:
        """Return every fourth place; of fewer images than four, the last."""
        places = torch.arange(images)
        return places[places % HELD_OUT == HELD_OUT - 1] if images >= HELD_OUT else places[-1:]

    def _fit(self, train: Split, *, run: Path | None, progress: bool, resume: bool) -> float:
        held = self._held(train)
        assert held is not None
        fitted = ~torch.isin(torch.arange(len(train)), held)
        self.leaves_out = bool(fitted.any())
        rest = train.subset(fitted.nonzero()[:, 0]) if self.leaves_out else train
        return super()._fit(rest, run=run, progress=progress, resume=resume)

    def _prepare(self, train: Split) -> None:
        self.network.fit(self._run(images, self._ready(self.backbone)) for images in batches(train))
