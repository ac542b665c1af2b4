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
from ..detector import PREDICT_BATCH, AnomalyDetector, calibration_places, calibration_sample
from ..errors import CheckpointError
from ..features import BackboneDetector, FrozenDetector
from ..storage import CHECKPOINT, write_config
from .borders import Scale, fields, fit_scale

MEMBERS = "members"
"""Folder in a run where members that are trained keep their checkpoints until the whole is fitted."""


RESIDUAL_WEIGHT = 1.0
"""Weight of the network in :class:`TrainedEnsemble`, beside 2 of the density and 3 of the memory."""


class EnsembleDetector(AnomalyDetector):
    """The weighted mean of its members' maps, each in units of what good images have, see :mod:`.borders`.

    Good images are scored as if they had not been fitted to, by the members that can. Of a member whose score has
    several parts, such as the density's strides, each part is a map of its own and has an equal share of the member's
    weight. While the backbone is frozen, members share one pass through it.

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
    scales : Tensor
        (maps, 2, 4 · rings + 1): the :class:`~mlffn_lite.beyond.borders.Scale` of every map.
    """

    def __init__(self, config: Config, *, fabric: Any = None) -> None:
        super().__init__(config)
        own = {"kinds": config.ensemble.kinds}
        self.members = {
            name: AnomalyDetector(config.replace(method=name, pseudo=own)) for name in config.ensemble.members
        }
        weights = zip(self.members.values(), config.ensemble.members.values(), strict=True)
        shares = torch.tensor([weight / member.parts for member, weight in weights for _ in range(member.parts)])
        self.weights = shares / shares.sum()
        self.scales = torch.tensor([[0.0], [1.0]]).expand(len(shares), 2, 4 * config.ensemble.rings + 1)
        self._fields: Tensor | None = None
        trained = [m for m in self.members.values() if m.trains]
        for member in trained:
            member.fabric = fabric  # type: ignore[attr-defined]
        self._share(trained)

    def _share(self, trained: list[AnomalyDetector]) -> None:
        """Let members that see the same frozen backbone have one: a trained member's, which has it already."""
        if self.config.train.backbone != "frozen":
            trained = []
        frozen = [m for m in self.members.values() if isinstance(m, FrozenDetector)]
        sighted = [*(m for m in trained if isinstance(m, BackboneDetector)), *frozen]
        if sighted:
            sighted[0].backbone.set_mode("frozen")
        for member in frozen:
            if member is not sighted[0]:
                member.share(sighted[0].backbone)

    @property
    def trains(self) -> bool:  # type: ignore[override]
        """Whether a member does."""
        return any(m.trains for m in self.members.values())

    @property
    def leaves_out(self) -> bool:  # type: ignore[override]
        """Whether every member does."""
        return all(m.leaves_out for m in self.members.values())

    def fit(self, source: Any, *, out: str | Path | None = None, progress: bool = True, resume: bool = False) -> Self:
        """Fit every member and standardise; see :meth:`AnomalyDetector.fit`."""
        super().fit(source, out=out, progress=progress, resume=resume)
        if out is not None and self.rank == 0:
            shutil.rmtree(Path(out) / MEMBERS, ignore_errors=True)
        return self

    def _fit(self, train: Split, *, run: Path | None, progress: bool, resume: bool) -> float:
        if run is not None:
            write_config(run, self.config, self._run_id)
        seconds = 0.0
        for name, member in self.members.items():
            folder = run / MEMBERS / re.sub(r"\W", "_", name) if run is not None and member.trains else None
            member.shape, member.view = self.shape, self.view
            member._data, member._run_id = self._data, self._run_id
            seconds += member._fit(train, run=folder, progress=progress, resume=resume)
            self.rank = max(self.rank, member.rank)
            if member.trains:
                self.device, self.history, self.step = member.device, member.history, member.step
                self._run_id = member._run_id  # that of the run which is resumed
        return seconds

    def held_out(self, images: int) -> Tensor | None:
        """Return the places that no member is fitted to, where a member holds some out."""
        found = [held for m in self.members.values() if (held := m.held_out(images)) is not None]
        return None if not found else found[0][torch.stack([torch.isin(found[0], x) for x in found]).all(0)]

    @torch.inference_mode()
    def _calibrate(self, train: Split) -> None:
        held, rings = self._held(train), self.config.ensemble.rings
        sample = calibration_sample(train, held)
        maps = torch.cat([self._run(images, self._maps, numbers).cpu() for images, numbers in sample])
        ignored = self._ignored(calibration_places(len(train), held))
        self.scales = torch.stack([torch.stack(fit_scale(part, rings, ignored)) for part in maps.unbind(1)])
        self._fields = None
        self.calibration = self._calibrated(self._combine(self._standardise(maps)))

    def _ignored(self, numbers: Tensor) -> Tensor | None:
        """Return the ignored pixels of all images (H, W), or of each of the tiles of these numbers (N, h, w)."""
        ignored, tiles = self.view.ignored(self.shape), self.tiles
        if ignored is None or tiles is None:
            return ignored
        return torch.stack([tiles.cut(ignored, n) for n in (numbers % len(tiles.places)).tolist()])

    @torch.inference_mode()
    def maps(self, images: Any) -> dict[str, Tensor]:
        """Return every member's standardised map (B, H, W) by name, and last the combined one."""
        counts = [m.parts for m in self.members.values()]
        found: dict[str, list[Tensor]] = {name: [] for name in (*self.members, self.method)}
        for batch in iterate_batches(images, self.shape, PREDICT_BATCH, self.view):
            maps = self._run_whole(batch, lambda x: self._standardise(self._maps(x)))
            members = [part.mean(1) for part in maps.split(counts, dim=1)]
            for kept, new in zip(found.values(), (*members, self._combine(maps)), strict=True):
                kept.append(self.view.quiet(new.cpu()))
        return {name: torch.cat(kept) if kept else torch.zeros(0, *self.shape) for name, kept in found.items()}

    def _score(self, images: Tensor) -> Tensor:
        return self._combine(self._standardise(self._maps(images)))

    def _score_left_out(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self._combine(self._standardise(self._maps(images, numbers)))

    def _maps(self, images: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Return the maps as members give them, (B, maps, H, W)."""
        shared, levels, maps = None, [], []
        for member in self.members.values():
            if isinstance(member, BackboneDetector):
                if member.backbone is not shared:
                    shared = member.backbone
                    levels = member._ready(shared)(images)
                maps.append(member._score_parts(levels, images.shape[-2:], left_out=left_out))
            elif left_out is None:
                maps.append(member._score(images)[:, None])
            else:
                maps.append(member._score_left_out(images, left_out)[:, None])
        return torch.cat(maps, dim=1)

    def _standardise(self, maps: Tensor) -> Tensor:
        if self._fields is None:
            spread = [torch.stack(fields(Scale(*scale), *maps.shape[-2:])) for scale in self.scales]
            self._fields = torch.stack(spread, dim=1).to(maps.device)  # (2, maps, H, W)
        centre, width = self._fields
        return (maps - centre) / width

    def _combine(self, maps: Tensor) -> Tensor:
        """Return the weighted mean (B, H, W) of standardised maps; 1 is the edge of the normal range."""
        return torch.einsum("m,bmhw->bhw", self.weights.to(maps.device), maps)

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {"scales": self.scales}
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
        if (scales := tensors.get("scales")) is None or scales.shape != self.scales.shape:
            raise CheckpointError(f"checkpoint {path} does not fit its configuration; restore its config.toml")
        self.scales, self._fields = scales, None

    def _take_over(self, run: Path, *, resume: bool = False) -> bool:
        return (run / CHECKPOINT).exists() and super()._take_over(run, resume=resume)


class TrainedEnsemble(EnsembleDetector):
    """The ensemble with the paper's network, on residuals, as one more member: see :mod:`.residual`.

    It takes minutes to fit where the ensemble takes seconds. As the network is not fitted to every fourth training
    image, these are what all members are calibrated on.

    Parameters
    ----------
    config, fabric
        See :class:`EnsembleDetector`; ``residual`` is added to ``ensemble.members`` where it is not there.
    """

    def __init__(self, config: Config, *, fabric: Any = None) -> None:
        members = {"residual": RESIDUAL_WEIGHT, **config.ensemble.members}
        super().__init__(config.replace(ensemble={"members": members}), fabric=fabric)
