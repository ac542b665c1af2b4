"""What stands in a checkpoint beside its tensors, with the type and range of every value."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Source = Literal["training", "left out", "held out"]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Side = Annotated[int, Field(ge=8, le=1 << 16)]

T = TypeVar("T")


class Strict(BaseModel):
    """Values of exactly these names and types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Scaler(Strict):
    """State of torch's gradient scaler; all absent where it is off."""

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    growth_factor: Finite | None = None
    backoff_factor: Finite | None = None
    growth_interval: Annotated[int, Field(ge=1)] | None = None
    growth_tracker: Annotated[int, Field(ge=0)] | None = Field(None, alias="_growth_tracker")


class CheckpointState(Strict):
    """What :func:`~mlffn_lite.storage.save_tensors` keeps of a training under way, or of a fitted detector."""

    run: RunId
    """Of the run that it belongs to."""
    step: Annotated[int, Field(ge=0)]
    seconds: Positive
    config: dict[str, Any]
    """Checked against the configuration that reads it."""
    data: Annotated[str, Field(max_length=200)] = ""
    """Fingerprint of the training images."""
    history: Sha256 = ""
    """Digest of the logged steps up to ``step``."""
    scaler: Scaler = Field(default_factory=lambda: Scaler.model_validate({}))
    """Of a training under way."""
    method: str = ""
    shape: tuple[Side, Side] | None = None
    view: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    """Of a fitted detector; None where training has not finished."""


def faults(error: ValidationError) -> str:
    """Word the first fault of values that do not fit."""
    first, *rest = error.errors(include_url=False, include_input=False)
    place = ".".join(map(str, first["loc"])) or "it"
    return f"{place}: {first['msg']}" + f", and {len(rest)} more" * bool(rest)


def checked(kind: type[T], values: Any) -> T:
    """Return plain values, as JSON has them, as a ``kind``; raises ValueError in words."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ValueError(faults(error)) from error
