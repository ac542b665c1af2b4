"""What a finished cell may hold: the type and range of every value, and metrics that follow from its scores."""

from __future__ import annotations

import base64
import binascii
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

import torch
from pydantic import AfterValidator, Field, ValidationError, model_validator

from .. import metrics
from ..config import Config, DataConfig
from ..state import Finite, Positive, Strict, faults

_TOLERANCE = 1e-12


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds control characters")
    return text


def _inside(path: str) -> str:
    if not path or ".." in PurePosixPath(path.replace("\\", "/")).parts:
        raise ValueError("leads out of the data folder")
    return path


Text = Annotated[str, AfterValidator(_printable), Field(max_length=1000)]
Name = Annotated[str, AfterValidator(_printable), Field(pattern=r"^[^/\\]+$", max_length=255)]
ImagePath = Annotated[str, AfterValidator(_inside)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]


class CoarseMap(Strict):
    """A kept score map, see :func:`~mlffn_lite.studies.cell.read_map`."""

    shape: tuple[Some, Some]
    low: Finite
    high: Finite
    data: str

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            size = len(base64.b64decode(self.data, validate=True))
        except binascii.Error as error:
            raise ValueError(f"its data are no base64 ({error})") from error
        if size != math.prod(self.shape) or self.low > self.high:
            raise ValueError("its data do not fill its shape, or its ends do not ascend")
        return self


class Record(Strict):
    """What :func:`~mlffn_lite.studies.cell.measure` returns."""

    set: Name
    method: Text
    seed: Count
    image_auroc: Share | None
    pixel_auroc: Share | None
    pro: Share | None
    per_defect: dict[Text, Share | None]
    shape: tuple[Some, Some]
    images: Some
    train_images: Some
    fit_seconds: Positive
    predict_ms: Positive
    peak_memory_mb: Count
    gpu_memory_mb: Count | None
    label: Text
    fingerprint: Text
    precision: Text
    device: Text
    device_name: Text
    threads: Some
    versions: dict[str, Text]
    git_commit: Text | None
    numerics: Text
    config: dict[str, Any]
    history: dict[Text, list[Finite | None]]
    scores: dict[ImagePath, Finite]
    maps: dict[ImagePath, CoarseMap]
    code: Text = ""
    probes: dict[Text, dict[Text, Share | None]] = Field(default_factory=dict)
    converted_from: Text | None = None
    """Of cells that an earlier version wrote."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        config = Config().replace(**self.config)
        if (config.method, config.train.seed) != (self.method, self.seed):
            raise ValueError("method or seed are not those of its configuration")
        if unknown := sorted(self.maps.keys() - self.scores.keys()):
            raise ValueError(f"it has a map and no score of {unknown[0]}")
        if len(self.scores) != self.images:
            raise ValueError(f"it has scores of {len(self.scores)} images, and should of {self.images}")
        if config.data.source == "folder":  # where the folders say what is good
            self._follows([_defect(path, config.data) for path in self.scores])
        return self

    def _follows(self, defects: list[str]) -> None:
        scores = torch.tensor(list(self.scores.values()), dtype=torch.float64)
        labels = torch.tensor([int(defect != "good") for defect in defects])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one class alone has no AUROC
            self._same("image_auroc", self.image_auroc, metrics.image_auroc(scores, labels))
            kinds = {*defects} - {"good"}
            if kinds != self.per_defect.keys():
                raise ValueError("its defects are not those of its scores")
            for kind in kinds:
                chosen = torch.tensor([defect in (kind, "good") for defect in defects])
                found = metrics.image_auroc(scores[chosen], labels[chosen])
                self._same(f"per_defect.{kind}", self.per_defect[kind], found)

    def _same(self, name: str, stored: float | None, found: float) -> None:
        if (math.isnan(found) != (stored is None)) or (stored is not None and abs(stored - found) > _TOLERANCE):
            raise ValueError(f"{name} is {stored}, but its scores give {found:.6g}")


def _defect(path: str, data: DataConfig) -> str:
    """Return what the folder of a test image says that it shows, see :mod:`~mlffn_lite.datasets.listing`."""
    place = PurePosixPath(path)
    if data.good:
        names = [PurePosixPath(name).name for name in data.bad if place.is_relative_to(name)]
        return "good" if not names else "bad" if names[0] == "good" else names[0]
    return place.parts[1] if place.parts[0] == "test" and len(place.parts) > 2 else place.parent.name


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError, in words, if a record is not what a measurement gives."""
    try:
        Record.model_validate_json(json.dumps(record))
    except ValidationError as error:
        raise ValueError(faults(error)) from error
