"""Compared methods that take optimiser steps: what they share, so that a file holds nothing but the method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import Config
from ..datasets.folder import Split
from ..detector import AnomalyDetector
from ..devices import generator_for
from ..loop import Images, Loop, scale_rates
from ..storage import load_module


class TrainedPeer(AnomalyDetector):
    """A compared method with a module of its own, trained on good images, whose buffers hold all else that it learns.

    A subclass says what the module is (:meth:`_build`), what a step minimises (:meth:`_losses`), and how images are
    scored (``_score``, with :attr:`module` in evaluation); where it has to, what is learned without steps before
    (:meth:`_prepare`) and after (:meth:`_finish`). The schedule is the method's own, not that of the section ``train``,
    of which seed, precision, clipping and device count; ``train.steps`` is scaled by :attr:`pace`, and 0 means the
    method's paper's schedule.

    Parameters
    ----------
    config : Config
        The method's name, size, seed, backbone.

    Attributes
    ----------
    module : nn.Module
        Everything that is learned; initial weights depend on the seed alone.
    """

    trains = True
    terms: ClassVar[tuple[str, ...]] = ("total",)
    """Names of the losses in the history; the first is minimised."""
    pace: ClassVar[float] = 1.0
    """Steps for one of ``train.steps``."""
    paper_batch: ClassVar[int]
    """Images per step in the method's paper."""
    lr: ClassVar[float]
    """Learning rate in the method's paper."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._module: nn.Module | None = None

    @property
    def module(self) -> Any:
        """Everything that is learned."""
        if self._module is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.train.seed)
                self._module = self._build().to(self.device).to(memory_format=torch.channels_last).eval()
        return self._module

    @abstractmethod
    def _build(self) -> nn.Module:
        """Return the module; the global generator is seeded."""

    @abstractmethod
    def _losses(self, images: Tensor, step: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the losses, named by :attr:`terms`, of images (B, 3, H, W) in [0, 1]; the generator is the step's.

        Called with the module in training mode, under autocast where the processor is fast in bfloat16.
        """

    @abstractmethod
    def _paper_steps(self, images: int) -> int:
        """Return the number of steps in the method's paper, for so many training images."""

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=self.lr)

    def _factor(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a share of the peak."""
        return 1.0

    def _prepare(self, train: Split, step: int) -> None:
        """Learn what a step needs and no step teaches, into buffers of the module; called before every step.

        Nothing may be learned twice differently: a resumed run calls it again, with the buffers as they were.
        """

    def _finish(self, train: Split) -> None:
        """Learn, after the last step, what scoring needs, into buffers of the module, which is in evaluation."""

    def _fit(self, train: Split, *, run: Path | None, progress: bool, resume: bool) -> float:
        self._module = None
        loop = _PeerLoop(self, train, run)
        self.history = loop.fit(train, resume=resume, progress=progress)
        self.step, self._run_id = loop.step, loop.run
        self.module.eval()
        with torch.inference_mode():
            self._finish(train)
        return loop.seconds

    def _tensors(self) -> dict[str, Tensor]:
        return {f"model.{k}": v for k, v in self.module.state_dict().items()}

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        load_module(self.module, tensors, "model.", path)


class _PeerLoop(Loop):
    """The loop over a method's steps."""

    def __init__(self, peer: TrainedPeer, train: Split, folder: Path | None) -> None:
        self.peer, self.terms = peer, peer.terms
        optimizer = peer._optimizer(peer.module)
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
        own = peer.config.train
        batch = own.batch if own.steps else peer.paper_batch
        super().__init__(
            peer.module, optimizer, peer.config, folder=folder, data=peer._data, batch=batch, run=peer._run_id
        )
        self.train = train

    def total_steps(self, images: int) -> int:
        return round(self.config.train.steps * self.peer.pace) or self.peer._paper_steps(images)

    def set_rate(self, steps: int) -> float:
        return scale_rates(self.optimizer, self.peer._factor(self.step, steps))

    def losses(self, images: Images) -> Sequence[Tensor]:
        with torch.no_grad():
            self.peer._prepare(self.train, self.step)
        self.module.train()
        batch = self.peer._pixels(self.draw(images))
        generator = generator_for(self.config.train.seed, self.peer.method, self.step)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.peer._losses(batch, self.step, generator)
