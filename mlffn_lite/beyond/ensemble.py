"""The method ``ensemble``: maps of several methods, each standardised on good images, averaged. Not in the paper."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..config import Config
from ..datasets.folder import Split
from ..datasets.sources import iterate_batches
from ..detector import PREDICT_BATCH, AnomalyDetector, Calibration, Prediction, batches
from ..errors import CheckpointError
from ..features import BackboneDetector, FrozenDetector
from ..layers import no_autocast, normal_range
from ..storage import CHECKPOINT, CONFIG, HISTORY, write_atomic

MEMBERS = "members"
"""Folder in a run where members that are trained keep their checkpoints until the whole is fitted."""


class EnsembleDetector(AnomalyDetector):
    """The weighted mean of its members' maps, (m − median) / (99.9th percentile − median) each, over good pixels.

    Good images are scored as if they had not been fitted to, by the members that can. While the backbone is frozen,
    members share one pass through it.

    Parameters
    ----------
    config : Config
        ``ensemble.members`` names the members; each gets the same configuration, with ``ensemble.kinds`` to learn from.
    fabric : lightning.fabric.Fabric, optional
        For members that are trained.

    Attributes
    ----------
    members : dict of str to AnomalyDetector
        By name.
    ranges : Tensor
        (members, 2): the median of good pixels, and its distance to their 99.9th percentile.
    """

    def __init__(self, config: Config, *, fabric: Any = None) -> None:
        super().__init__(config)
        own = {"kinds": config.ensemble.kinds}
        self.members = {
            name: AnomalyDetector(config.replace(method=name, pseudo=own)) for name in config.ensemble.members
        }
        self.weights = torch.tensor(list(config.ensemble.members.values()))
        self.ranges = torch.tensor([[0.0, 1.0]]).repeat(len(self.members), 1)
        trained = [m for m in self.members.values() if m.trains]
        for member in trained:
            member.fabric = fabric  # type: ignore[attr-defined]
        self._share(trained)

    def _share(self, trained: list[AnomalyDetector]) -> None:
        """Let members that see the same frozen backbone have one: a trained member's, which has it already."""
        if self.config.train.backbone != "frozen" and trained:
            return
        sighted = [m for m in (*trained, *self.members.values()) if isinstance(m, BackboneDetector)]
        if sighted:
            sighted[0].backbone.set_mode("frozen")
        for member in sighted[1:]:
            if isinstance(member, FrozenDetector):
                member.share(sighted[0].backbone)

    @property
    def trains(self) -> bool:  # type: ignore[override]
        """Whether a member does."""
        return any(m.trains for m in self.members.values())

    def fit(self, source: Any, *, out: str | Path | None = None, progress: bool = True, resume: bool = False) -> Self:
        """Fit every member and standardise; see :meth:`AnomalyDetector.fit`."""
        super().fit(source, out=out, progress=progress, resume=resume)
        if out is not None and self.rank == 0:
            if len(self.history):
                write_atomic(Path(out) / HISTORY, self.history.to_csv(index=False, na_rep="nan"))
            shutil.rmtree(Path(out) / MEMBERS, ignore_errors=True)
        return self

    def _fit(self, train: Split, *, run: Path | None, progress: bool, resume: bool) -> float:
        if run is not None:
            write_atomic(run / CONFIG, self.config.to_toml())
        seconds = 0.0
        for name, member in self.members.items():
            folder = run / MEMBERS / re.sub(r"\W", "_", name) if run is not None and member.trains else None
            member.shape, member._data = self.shape, self._data
            seconds += member._fit(train, run=folder, progress=progress, resume=resume)
            self.rank = max(self.rank, member.rank)
            if member.trains:
                self.device, self.history, self.step = member.device, member.history, member.step
        return seconds

    @torch.inference_mode()
    def _calibrate(self, good: Split) -> None:
        parts = [self._run(images, lambda x: self._member_maps(x, left_out=True)).cpu() for images in batches(good)]
        maps = torch.cat(parts, dim=1)
        for row, values in zip(self.ranges, maps, strict=True):
            low, high = normal_range(values)
            row.copy_(torch.stack((low, (high - low).clamp(min=1e-6))))
        combined = self._combine(self._standardise(maps))
        self.calibration = Calibration.from_good(Prediction(combined, combined.flatten(1).amax(1)))

    @torch.inference_mode()
    def maps(self, images: Any) -> dict[str, Tensor]:
        """Return every member's standardised map (B, H, W) by name, and last the combined one."""
        found = []
        for batch in iterate_batches(images, self.shape, PREDICT_BATCH):
            maps = self._run(batch, lambda x: self._standardise(self._member_maps(x)))
            found.append(torch.cat((maps, self._combine(maps)[None])).cpu())
        stacked = torch.cat(found, dim=1) if found else torch.zeros(len(self.members) + 1, 0, *self.shape)
        return dict(zip((*self.members, self.method), stacked, strict=True))

    def _score(self, images: Tensor) -> Tensor:
        return self._combine(self._standardise(self._member_maps(images)))

    def _member_maps(self, images: Tensor, *, left_out: bool = False) -> Tensor:
        """Return the maps as members give them, (members, B, H, W)."""
        shared, levels, maps = None, [], []
        for member in self.members.values():
            if isinstance(member, BackboneDetector):
                if member.backbone is not shared:
                    shared = member.backbone
                    levels = member._ready(shared)(images)
                maps.append(member._score_levels(levels, images.shape[-2:], left_out=left_out))
            else:
                maps.append(member._score_left_out(images) if left_out else member._score(images))
        return torch.stack(maps)

    def _standardise(self, maps: Tensor) -> Tensor:
        low, width = self.ranges.to(maps.device).T[:, :, None, None, None]
        return (maps - low) / width

    def _combine(self, maps: Tensor) -> Tensor:
        """Return the weighted mean (B, H, W) of standardised maps; 1 is the edge of the normal range."""
        weights = self.weights.to(maps.device)
        with no_autocast(maps):
            return torch.einsum("m,mbhw->bhw", weights / weights.sum(), maps)

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {"ranges": self.ranges}
        stored: Any = None
        for name, member in self.members.items():
            shares = isinstance(member, BackboneDetector) and member.backbone is stored
            own = member._own_tensors() if shares else member._tensors()  # type: ignore[attr-defined]
            stored = getattr(member, "backbone", stored)
            tensors |= {f"{name}/{k}": v for k, v in own.items()}
        return tensors

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        stored: Any = None
        for name, member in self.members.items():
            own = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
            if isinstance(member, BackboneDetector) and member.backbone is stored:
                member._restore_own(own, path)
            else:
                member._restore(own, path)
            stored = getattr(member, "backbone", stored)
        if (ranges := tensors.get("ranges")) is None or ranges.shape != self.ranges.shape:
            raise CheckpointError(f"checkpoint {path} does not fit its configuration; restore its config.toml")
        self.ranges = ranges

    def _take_over(self, run: Path) -> bool:
        return (run / CHECKPOINT).exists() and super()._take_over(run)
