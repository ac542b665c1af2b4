"""The method ``mlffn`` (§2.6): the paper's network, trained on its pseudo-anomalies, scores by equation (9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .backbones import Backbone
from .config import Config
from .datasets.folder import Split
from .detector import Prediction, batches, measure, measure_maps
from .devices import generator_for
from .features import BackboneDetector, upsample
from .network import MLFFN
from .pseudo import PseudoAnomalies
from .storage import load_module
from .training import Generator, Trainer


class MLFFNDetector(BackboneDetector):
    """The multi-level feature fusion network, trained on good images that are made anomalous on the way.

    Parameters
    ----------
    config : Config
        All but the sections of other methods; its seed determines the initial weights.
    network : MLFFN, optional
        One that is built already, perhaps with parts of one's own; by default ``config`` says how.
    generator : callable, optional
        ``(images, *, generator) -> images, masks``, instead of the pseudo-anomalies that ``config`` names.
    fabric : lightning.fabric.Fabric, optional
        Trains on several devices, see :class:`~mlffn_lite.training.Trainer`.

    Attributes
    ----------
    network : MLFFN
        ψ and η.
    """

    trains = True
    network_class: ClassVar[type[MLFFN]] = MLFFN

    def __init__(
        self, config: Config, *, network: MLFFN | None = None, generator: Generator | None = None, fabric: Any = None
    ) -> None:
        super().__init__(config)
        self.network = network if network is not None else self._build()
        self.generator, self.fabric = generator, fabric
        self._initial = None if network is None else {k: v.clone() for k, v in network.state_dict().items()}

    @property
    def backbone(self) -> Backbone:
        """The network's own."""
        return self.network.backbone

    def _fit(self, train: Split, *, run: Path | None, progress: bool, resume: bool) -> float:
        if self.step and self._initial is None:
            self.network = self._build()
        elif self.step:
            self.network.load_state_dict(self._initial)  # type: ignore[arg-type]
        with torch.no_grad():
            self._prepare(train)
        options = {"generator": self.generator, "fabric": self.fabric}
        trainer = Trainer(self.network, self.config, folder=run, data=self._data, run=self._run_id, **options)
        self.device, self.rank = trainer.device, trainer.rank
        self.history = trainer.fit(train, resume=resume, progress=progress)
        self.step, self._run_id = trainer.step, trainer.run
        return trainer.seconds

    def _prepare(self, train: Split) -> None:
        """Learn, before the first step, what the network needs of the good images; here nothing."""

    def _score_levels(self, levels: list[Tensor], size: torch.Size, *, left_out: Tensor | None = None) -> Tensor:
        """Score pixels by equation (9); training images are not left out, which would take as many trainings."""
        return upsample(self._ready(self.network).head(levels).score, size)

    def _score(self, images: Tensor) -> Tensor:
        return upsample(self._ready(self.network)(images).score, images.shape[-2:])

    @torch.inference_mode()
    def probe(self, test: Split) -> dict[str, dict[str, float]]:
        """Return the metrics of other questions asked of the same network.

        ``distance`` are those of the map A (§2.2) instead of η, where both exist. ``pseudo`` are those of the score on
        what it was trained to find: the good test images against themselves made anomalous, all of them.
        """
        found = {}
        if self.network.score is not None:
            maps = torch.cat([self._run(images, self._distance).cpu() for images in batches(test)])
            found["distance"] = measure(Prediction(maps, maps.flatten(1).amax(1)), test)
        good = test.subset((test.labels() == 0).nonzero()[:, 0])
        own = self.config.pseudo
        pseudo = self.generator or PseudoAnomalies(1.0, own.kinds, own.options)
        if isinstance(pseudo, PseudoAnomalies):
            pseudo.prepare(good)
        draws = generator_for(self.config.train.seed, "probe")
        changed, masks = zip(*(pseudo(images, generator=draws) for images in batches(good)), strict=True)
        maps = torch.cat([self._run(x, self._score).cpu() for images in (batches(good), changed) for x in images])
        truth = torch.cat([torch.zeros(len(good), *maps.shape[1:], dtype=torch.bool), torch.cat(masks)[:, 0]])
        labels = torch.arange(2 * len(good)) >= len(good)
        found["pseudo"] = measure_maps(
            maps, truth, maps.flatten(1).amax(1), labels, ignored=test.view.ignored(test.shape)
        )
        return found

    def _distance(self, images: Tensor) -> Tensor:
        return upsample(self._ready(self.network)(images).distance, images.shape[-2:])

    @property
    def _margin(self) -> float:
        return self.config.loss.lam if self.config.loss.score else 0.0  # the score was trained to rise by λ

    def _own_tensors(self) -> dict[str, Tensor]:
        return {f"model.{k}": v for k, v in self.network.state_dict().items() if not k.startswith("backbone.")}

    def _restore_own(self, tensors: dict[str, Tensor], path: Path) -> None:
        shared = {f"model.backbone.{k}": v for k, v in self.backbone.state_dict().items()}
        load_module(self.network, shared | tensors, "model.", path)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"model.{k}": v for k, v in self.network.state_dict().items()}

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        load_module(self.network, tensors, "model.", path)

    def _build(self) -> MLFFN:
        """Return a network whose initial weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.train.seed)
            return self.network_class(self.config.model, self.config.texture)
