"""Training of the paper's network (§3.1): what a step of the :class:`~mlffn_lite.loop.Loop` is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from .config import Config, TrainConfig
from .datasets.folder import Split
from .devices import generator_for
from .loop import Images, Loop
from .losses import LossTerms, own_loss, resize_mask, total_loss
from .network import MLFFN
from .pseudo import PseudoAnomalies


class Generator(Protocol):
    """What the trainer needs of pseudo-anomalies; see :class:`~mlffn_lite.pseudo.PseudoAnomalies`."""

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) in [0, 1] and masks (B, 1, H, W) bool of images uint8 or in [0, 1]."""
        ...


class Trainer(Loop):
    """Train an :class:`~mlffn_lite.network.MLFFN` on good images that are made anomalous on the way.

    Parameters
    ----------
    network : MLFFN
        Trained in place.
    config : Config
        Everything else.
    folder, data, fabric, run
        See :class:`~mlffn_lite.loop.Loop`.
    generator : callable, optional
        What makes images anomalous; by default the pseudo-anomalies that ``config`` names.
    """

    module: MLFFN

    def __init__(
        self,
        network: MLFFN,
        config: Config,
        *,
        folder: Path | None = None,
        data: str = "",
        generator: Generator | None = None,
        fabric: Any = None,
        run: str = "",
    ) -> None:
        network.backbone.set_mode(config.train.backbone)
        optimizer = build_optimizer(network, config.train)
        super().__init__(network, optimizer, config, folder=folder, data=data, fabric=fabric, run=run)
        self.terms = (*LossTerms._fields, "own") if config.loss.own else LossTerms._fields
        own = config.pseudo
        self.pseudo = generator or PseudoAnomalies(own.ratio, own.kinds, own.options)

    def total_steps(self, images: int) -> int:
        """Return ``train.steps``, or the paper's number."""
        return total_steps(self.config.train, images)

    def fit(self, images: Images, *, resume: bool = False, progress: bool = True) -> pd.DataFrame:
        """Train, see :meth:`~mlffn_lite.loop.Loop.fit`; kinds of pseudo-anomalies may look at the images first."""
        if isinstance(self.pseudo, PseudoAnomalies) and isinstance(images, Split):
            self.pseudo.prepare(images)
        return super().fit(images, resume=resume, progress=progress)

    def losses(self, images: Images) -> tuple[Tensor, ...]:
        """Return the losses of a step: (8) and its terms, with those of one's own where ``loss.own`` names some."""
        seed = self.config.train.seed
        batch = self.draw(images)
        with torch.no_grad():
            batch, mask = self.pseudo(batch, generator=generator_for(seed, f"pseudo{self.rank}", self.step))
            batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output = self.network(batch)
        mask = resize_mask(mask, output.score.shape[-2:], coverage=self.config.loss.coverage)
        partners = generator_for(seed, f"pairs{self.rank}", self.step)
        terms = total_loss(output.features, output.score, mask, self.config.loss, generator=partners)
        if not (weights := self.config.loss.own):
            return terms
        own = own_loss(output.features, output.score, mask, weights, generator=partners)
        return (terms.total + own, *terms[1:], own)


def total_steps(train: TrainConfig, images: int) -> int:
    """Return ``steps``, or the paper's epochs × repeats × images / batch where it is 0."""
    return train.steps or math.ceil(train.epochs * train.repeats * images / train.batch)


def build_optimizer(network: MLFFN, train: TrainConfig) -> torch.optim.Optimizer:
    """Return SGD or AdamW over the heads and, where it is trained, the backbone at its own rate."""
    groups = [{"params": network.heads(), "lr": train.lr, "peak": train.lr}]
    backbone = [p for p in network.backbone.parameters() if p.requires_grad]
    if backbone:
        groups.append({"params": backbone, "lr": train.backbone_lr, "peak": train.backbone_lr})
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)
    betas = (train.momentum, 0.999)
    return torch.optim.AdamW(groups, lr=train.lr, betas=betas, weight_decay=train.weight_decay)
