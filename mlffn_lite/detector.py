"""The detector: the paper's network, fitted to good images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Calibration, Detector, Prediction, upsample
from .config import Config
from .datasets.folder import AnomalyFolder
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
        split = parts.train
        run = Path(out) if out is not None else None
        if self.step:
            self.network = self._build()
        data = parts.fingerprint(test=False) if run is not None else ""
        trainer = Trainer(self.network, self.config, folder=run, data=data, fabric=fabric)
        self.device = trainer.device
        self.history = trainer.fit(split, resume=resume, progress=progress)
        self.step, self.seconds = trainer.step, trainer.seconds
        self._calibrate(split, margin=self.config.loss.lam if self.config.loss.score else 0.0)
        if run is not None and trainer.rank == 0:
            self._data = data
            self.save(run)
        return self

    def _score(self, images: Tensor) -> Tensor:
        """Score pixels by equation (9), upsampled."""
        self.network.to(self.device).to(memory_format=torch.channels_last).eval()
        return upsample(self.network(images).score, images.shape[-2:])

    def _tensors(self) -> dict[str, Tensor]:
        return {f"model.{k}": v for k, v in self.network.state_dict().items()}

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        load_model(self.network, tensors, path)

    def _build(self) -> MLFFN:
        """Return a network whose initial weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.train.seed)
            return MLFFN(self.config.model)
