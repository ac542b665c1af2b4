"""The detector: the paper's network, fitted to good images."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Calibration, Detector, Prediction, batches, measure, upsample
from .config import Config
from .datasets.folder import AnomalyFolder, Split
from .network import MLFFN
from .training import Trainer, load_model

__all__ = ["AnomalyDetector", "Calibration", "Prediction"]


class AnomalyDetector(Detector):
    """A network with its configuration, fitted to one category of parts.

    Parameters
    ----------
    config : Config
        For example ``Config.preset("lite")``; its seed determines the initial weights.

    Attributes
    ----------
    network : MLFFN
        ψ and η.
    history : DataFrame
        Loss terms and rate per logged step, once fitted.

    Examples
    --------
    >>> detector = AnomalyDetector(Config.preset("lite")).fit(AnomalyFolder("data/miniparts/weave"))
    >>> maps, scores = detector.predict(images)
    """

    method = "mlffn"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.network = self._build()

    def fit(
        self,
        folder: AnomalyFolder | str | Path,
        *,
        out: str | Path | None = None,
        progress: bool = True,
        resume: bool = False,
        fabric: Any = None,
    ) -> AnomalyDetector:
        """Train, from the beginning, on the good training images of a folder and calibrate on them; returns self.

        Parameters
        ----------
        folder : AnomalyFolder or path
            Only its training split is read.
        out : path, optional
            Run folder for checkpoints; without it nothing is written.
        progress : bool
            Show a progress bar.
        resume : bool
            Go on from the checkpoint in ``out``.
        fabric : lightning.fabric.Fabric, optional
            See :class:`~mlffn_lite.training.Trainer`.
        """
        parts = self._open(folder)
        split, self.shape = parts.train, parts.shape
        run = Path(out) if out is not None else None
        if self.step:
            self.network = self._build()
        data = parts.fingerprint(test=False) if run is not None else ""
        trainer = Trainer(self.network, self.config, folder=run, data=data, fabric=fabric)
        self.device = trainer.device
        self.history = trainer.fit(split, resume=resume, progress=progress)
        self.step, self.seconds = trainer.step, trainer.seconds
        started = time.perf_counter()
        if self.network.density is None:
            self._calibrate(split, margin=self.config.loss.lam if self.config.loss.score else 0.0)
        else:
            self._fit_density(split)
            self.calibration = self._calibrate_fused(self._sample(split))
        self.seconds += time.perf_counter() - started
        if run is not None and trainer.rank == 0:
            self._data = data
            self.save(run)
        return self

    @torch.inference_mode()
    def evaluate_parts(self, folder: AnomalyFolder | str | Path) -> dict[str, dict[str, float]]:
        """Measure the network's own ``score`` and the ``density`` apart, where a detector has both.

        Returns
        -------
        dict
            Per part, metrics as :meth:`evaluate` gives them for both together; empty without a density.
        """
        if self.network.density is None:
            return {}
        split = self._open(folder).test
        found = []
        for images in batches(split):
            score, distance = self._run(images, self._parts)
            assert distance is not None
            found.append([upsample(x, images.shape[-2:]).cpu() for x in (score, distance)])
        maps = dict(zip(("score", "density"), map(torch.cat, zip(*found, strict=True)), strict=True))
        return {name: measure(Prediction(m, m.flatten(1).amax(1)), split) for name, m in maps.items()}

    def _score(self, images: Tensor) -> Tensor:
        """Score pixels by equation (9), beside the density where there is one; upsampled."""
        score, distance = self._parts(images)
        return upsample(score if distance is None else self.network.fuse_scores(score, distance), images.shape[-2:])

    def _parts(self, images: Tensor, *, left_out: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return η's score and the density's distance, (B, 1, h, w) each; None for a density that is not fitted."""
        network = self.network.to(self.device).to(memory_format=torch.channels_last).eval()
        levels = network.backbone(images)
        score = network.head(levels).score
        if network.density is None or not network.density.fitted:
            return score, None
        return score, network.density(network.stacks(levels), left_out=left_out)

    @torch.inference_mode()
    def _fit_density(self, split: Split) -> None:
        network = self.network.to(self.device).to(memory_format=torch.channels_last).eval()
        assert network.density is not None
        features = (self._run(images, lambda x: network.stacks(network.backbone(x))) for images in batches(split))
        network.density.fit(features)

    @torch.inference_mode()
    def _calibrate_fused(self, split: Split) -> Calibration:
        """Standardise score and distance on good training images, each image's distance being from the others."""
        parts = [self._run(images, partial(self._parts, left_out=True)) for images in batches(split)]
        score, distance = (torch.cat(p) for p in zip(*parts, strict=True))
        self.network.standardise(score, distance)
        maps = upsample(self.network.fuse_scores(score, distance), split.shape).cpu()
        return Calibration.from_good(Prediction(maps, maps.flatten(1).amax(1)))

    def _tensors(self) -> dict[str, Tensor]:
        return {f"model.{k}": v for k, v in self.network.state_dict().items()}

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        load_model(self.network, tensors, path)

    def _build(self) -> MLFFN:
        """Return a network whose initial weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.train.seed)
            return MLFFN(self.config.model)
