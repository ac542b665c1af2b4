"""Configuration: frozen pydantic models, presets from ``tiny`` to ``paper``, and TOML in and out.

A bound, a choice and a meaning stand beside their field. ``Config.model_json_schema()`` gives them to editors.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from . import registry
from .errors import ConfigError
from .sealed import read_regular

Weight = Annotated[float, Field(ge=0, le=1e6)]


def _weights(group: str, *, optional: bool = False) -> AfterValidator:
    """Check names of a registry group with weights; the order in which they are written does not count."""

    def check(weights: dict[str, float]) -> dict[str, float]:
        for name in weights:
            if not registry.known(group, name):
                raise ValueError(f"names {name!r}; {registry.choices(group)}")
        if not any(weights.values()) and (weights or not optional):
            raise ValueError(f"gives no {group[:-1]} a weight; give one a weight above 0")
        return dict(sorted(weights.items()))

    return AfterValidator(check)


_LONGEST = 1 << 30  # pixels a side that no photograph has


Kinds = Annotated[dict[str, Weight], _weights("kinds")]


def _crop(value: Any) -> Any:
    """Read a box, written as a list or as ``"10,20,300,200"``."""
    if value in ("none", "auto"):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*){3}", value):
        value = list(map(int, value.split(",")))
    whole = isinstance(value, list | tuple) and len(value) == 4
    whole = whole and all(type(v) is int and 0 <= v < _LONGEST for v in value)
    if not whole or min(value[2:]) < 8:
        raise ValueError(f"must be auto, none or left,top,width,height in pixels, 8 or more a side, got {value!r}")
    return tuple(value)


class Section(BaseModel):
    """A section of the configuration: its values never change, types are strict, unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_words(type(self), error.errors()[0])) from error


class DataConfig(Section):
    """How images are read."""

    size: Annotated[int, Field(ge=32, le=8192)] = 256
    """Side in pixels of the square that every image and mask is resized to."""
    aspect: Literal["square", "keep"] = "square"
    """Squeeze them to that square, or resize to about as many pixels in the training images' median aspect ratio."""
    source: str = "folder"
    """What opens the data: image folders, or a source of one's own by import path, see ``datasets.sources``."""
    # Younger than stored results, whose names depend on what stands in them: all below are left out where default.
    good: Annotated[str, Field(exclude_if=lambda value: not value)] = ""
    """Folder of the good images, where the layout is not that of MVTec AD."""
    bad: Annotated[tuple[str, ...], Field(strict=False, exclude_if=lambda value: not value)] = ()
    """Folders of defective images beside it; then every fifth good image is for testing."""
    recursive: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    """Read images in sub-folders too."""
    crop: Annotated[
        Literal["none", "auto"] | tuple[int, int, int, int],
        BeforeValidator(_crop),
        Field(exclude_if=lambda value: value == "none"),
    ] = "none"
    """Part of every photograph that is looked at: left, top, width, height in its pixels; or ``auto``, the box of what
    stands out or varies in the good training images."""
    ignore: Annotated[str, Field(exclude_if=lambda value: not value)] = ""
    """Image of the photographs' size, white where pixels count for nothing."""
    tile: Annotated[int, Field(ge=0, le=4096, exclude_if=lambda value: not value)] = 0
    """Side of the tiles that images, once resized, are fitted and scored in; 0 for whole images."""
    overlap: Annotated[int, Field(ge=0, le=2048, exclude_if=lambda value: value == 64)] = 64
    """Pixels that neighbouring tiles share."""

    @model_validator(mode="after")
    def _tiles(self) -> Self:
        if 0 < self.tile < max(32, 2 * self.overlap):
            raise ValueError(
                f"data.tile = {self.tile} must be 0, or at least 32 and twice data.overlap = {self.overlap}"
            )
        return self


class PseudoConfig(Section):
    """Pseudo-anomalies of §2.1; ``ratio`` is the quantity of Table 3."""

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of each batch that is made anomalous."""
    kinds: Kinds = {"confetti": 1.0, "cutpaste": 1.0}
    """Relative weights of the generators among the changed images, by name or import path (the paper: half each)."""
    options: dict[str, dict[str, Any]] = {}
    """Keyword arguments of a generator, by its name."""


class ModelConfig(Section):
    """The network of §1; the switches are the arms of Table 4."""

    backbone: str = "efficientnet_lite0"
    """``efficientnet_lite0``, ``efficientnet_lite2``, ``resnet18``, ``resnet50``, any timm model with
    ``features_only``, or an import path."""
    weights: str = "offline"
    """``none`` (random), ``offline`` (from an installed package), ``default`` (the library's download), or the path of
    a ``.safetensors`` or weights-only ``.pth`` file."""
    width: Annotated[int, Field(ge=8, le=4096)] = 128
    """Channels C1 of the fused feature."""
    stride: Literal[4, 8, 16] = 8
    """Input pixels per fused feature pixel."""
    self_calibration: bool = True
    """Whether §1.3 takes part; without it and ``texture`` the levels are fused directly (Table 4's baseline)."""
    texture: bool = True
    """Whether §1.2 takes part."""
    score: Literal["learned", "distance"] = "learned"
    """Score map: the layer η of equation (9), or the distance A of §2.2 (Table 4 before the score constraint)."""
    rate: Annotated[int, Field(ge=1, le=64)] = 4
    """Pooling rate r of the self-calibration."""


class TextureConfig(Section):
    """The texture modules of §1.2, and the readings of QCO that the paper leaves open (:mod:`mlffn_lite.texture`)."""

    tem_levels: Annotated[int, Field(ge=2, le=4096)] = 64
    """Quantisation levels N of QCO-1D."""
    ptfem_levels: Annotated[int, Field(ge=2, le=64)] = 8
    """Quantisation levels N of QCO-2D."""
    scales: Annotated[tuple[Annotated[StrictInt, Field(ge=1)], ...], Field(strict=False, min_length=1)] = (1, 2, 4, 8)
    """Sub-regions per side of PTFEM's branches."""
    placement: Literal["center", "edge"] = "center"
    """Levels at the centres of their bins, or at their right edges."""
    window: Literal["full_bin", "half_bin", "literal"] = "full_bin"
    """How near a pixel must be to a level to count."""
    neighbour: Literal["right", "diagonal"] = "right"
    """Which neighbour makes a pair of pixels in QCO-2D."""
    scaled_attention: bool = True
    """Whether TEM's attention is divided by √d."""


class LossConfig(Section):
    """Weights α, β, ξ of equation (8) and the parameters of (5) to (7)."""

    feature: Weight = 1.0
    """α; 0 leaves the term out."""
    score: Weight = 1.0
    """β, likewise."""
    consistency: Weight = 1.0
    """ξ, likewise."""
    gamma: Annotated[float, Field(ge=-1e6, le=1e6)] = 2.5
    """γ of equation (5)."""
    lam: Weight = 5.0
    """λ of equation (5)."""
    pairing: Literal["random", "mean"] = "random"
    """The normal pixel that an anomalous one is compared with in (5): one drawn anew, or the normal mean."""
    patches: Annotated[int, Field(ge=2, le=64)] = 16
    """Side of the pooled map on which (6) is computed, at most."""
    softmax: Literal["distance", "negative"] = "distance"
    """Rows of (6) are softmaxes of distances (as written) or of their negatives."""
    balanced: bool = True
    """Feature constraint (4), or (3) without balance."""
    coverage: Annotated[float, Field(ge=0, le=0.999)] = 0.0
    """A feature pixel counts as anomalous if more than this share of its area is."""
    own: Annotated[dict[str, Weight], _weights("terms", optional=True), Field(exclude_if=lambda value: not value)] = {}
    """Weights of terms of one's own beside those of (8), by name or import path, see ``losses.own_loss``."""


class TrainConfig(Section):
    """The schedule of §3.1 and how it is run."""

    steps: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Optimiser steps; 0 means ``epochs * repeats * images / batch``, rounded up."""
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 200
    """The paper's 200 passes, used when ``steps`` is 0 …"""
    repeats: Annotated[int, Field(ge=1, le=10**6)] = 10
    """… over a training set repeated 10 times."""
    batch: Annotated[int, Field(ge=2, le=65536)] = 32
    """Images per step, over all devices."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum (the paper), or AdamW."""
    lr: Annotated[float, Field(ge=0, le=1e3)] = 1e-3
    """Peak learning rate of the heads."""
    backbone_lr: Annotated[float, Field(ge=0, le=1e3)] = 1e-3
    """Peak learning rate of the backbone."""
    momentum: Annotated[float, Field(ge=0, le=0.9999)] = 0.9
    """SGD's momentum; AdamW's β1."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 3e-5
    """Weight decay."""
    schedule: Literal["constant", "one_cycle"] = "constant"
    """Constant rate, or linear warm-up and cosine decay to zero."""
    backbone: Literal["train", "batch_stats", "frozen"] = "train"
    """Train the backbone; or keep its weights and only let its normalisation follow the data; or freeze both."""
    clip: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Largest gradient norm; 0 switches clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type of training; ``auto`` takes bf16 where the processor computes in it, fp32 elsewhere. Scores are
    float32."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seeds initial weights, order of images, pseudo-anomalies and pairings."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes CUDA if present, else the CPU."""
    checkpoint_every: Annotated[int, Field(ge=1, le=10**9)] = 100
    """Steps between checkpoints."""


class DensityConfig(Section):
    """The method ``density``, not in the paper: distance from the features of good images (``beyond/density.py``)."""

    strides: Annotated[tuple[Literal[4, 8, 16], ...], Field(strict=False, min_length=1)] = (8, 16)
    """Strides at which it is fitted, ascending; at each, to the levels that are no coarser."""
    rank: Annotated[int, Field(ge=1, le=4096)] = 64
    """Eigenvectors kept per position."""
    shrinkage: Annotated[float, Field(ge=1e-6, le=1e3)] = 0.2
    """Added to every position's covariance, in units of the variance of a whitened channel."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.strides) != sorted(set(self.strides)):
            raise ValueError(f"density.strides = {list(self.strides)} must be some of 4, 8 and 16, ascending")
        return self


class BankConfig(Section):
    """One of a memory's banks of patches: how they are seen, and how far others are from them."""

    levels: Annotated[tuple[Literal[1, 2, 3], ...], Field(strict=False, min_length=1)] = (1, 2, 3)
    """Levels of the backbone that are concatenated, those at strides 4, 8 and 16."""
    average: Literal[1, 3, 5, 7] = 1
    """Side of the neighbourhood that features are averaged over, zeros outside the image."""
    floor: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Added to the eigenvalues of the whitening, as a share of their mean; 0 leaves features unwhitened."""
    dims: Annotated[int, Field(ge=1, le=4096)] = 4096
    """Principal axes kept, at most."""
    neighbours: Annotated[int, Field(ge=1, le=64)] = 1
    """Nearest patches whose distances are averaged."""


class MemoryConfig(Section):
    """The method ``memory``, not in the paper: distance from rare good patches (``beyond/memory.py``)."""

    banks: Annotated[tuple[BankConfig, ...], Field(strict=False, min_length=1)] = (
        BankConfig(floor=0.1, dims=64, neighbours=3),
        BankConfig(levels=(2, 3)),
        BankConfig(levels=(2, 3), average=3),
    )
    """The banks, each a map of its own: whitened; as PatchCore's without, and with averaging over neighbours."""
    stride: Literal[4, 8, 16] = 8
    """Input pixels per patch; 4 for small defects."""
    patches: Annotated[int, Field(ge=1, le=10**6)] = 1024
    """Patches in a bank."""
    candidates: Annotated[int, Field(ge=1, le=10**7)] = 100_000
    """Patches that a bank is chosen from, as many of every image."""
    sigma: Annotated[float, Field(ge=0, le=64)] = 0.0
    """Standard deviation of the Gaussian that smooths the maps, in 256ths of a side."""


class EnsembleConfig(Section):
    """The method ``ensemble``, not in the paper: several methods' maps, standardised and averaged."""

    members: Annotated[dict[str, Weight], _weights("methods")] = {"density": 2.0, "memory": 3.0}
    """Weights of the members, by name or import path."""
    kinds: Kinds = {"blemish": 1.0}
    """What a member that is trained learns from, instead of ``pseudo.kinds``."""

    rings: Annotated[int, Field(ge=0, le=64)] = 6
    """Rows of 8 pixels along each border of the image that have a scale of their own; 0 gives the image one scale."""

    @model_validator(mode="after")
    def _no_circle(self) -> Self:
        for name in ("ensemble", "ensemble_trained"):
            if name in self.members:
                raise ValueError(f"ensemble.members names {name} itself; name methods of one map each")
        return self


class Config(Section):
    """Everything that determines a run: the method and its sections."""

    method: str = "mlffn"
    """Name of the method, or its import path."""
    data: DataConfig = DataConfig()
    pseudo: PseudoConfig = PseudoConfig()
    model: ModelConfig = ModelConfig()
    texture: TextureConfig = TextureConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    density: DensityConfig = DensityConfig()
    memory: MemoryConfig = MemoryConfig()
    ensemble: EnsembleConfig = EnsembleConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        loss, learned = self.loss, self.model.score == "learned"
        if not registry.known("methods", self.method):
            known = ", ".join(registry.names("methods"))
            raise ValueError(f"method = {self.method!r} is unknown; choose from {known}, or package.module:Name")
        if not any((loss.feature, loss.score, loss.consistency, loss.own)):
            raise ValueError("loss.feature, loss.score and loss.consistency are all 0; nothing would be learned")
        if learned and not loss.score:
            raise ValueError("model.score = learned needs loss.score above 0; or set model.score to distance")
        if not learned and (loss.score or loss.consistency):
            raise ValueError(
                "loss.score and loss.consistency shape the learned score: set both to 0, or model.score to learned"
            )
        return self

    @classmethod
    def preset(cls, name: str, **sections: Any) -> Config:
        """Return a preset, with values replaced by section.

        Parameters
        ----------
        name : {"tiny", "small", "parts", "thorough", "paper"}
            Preset.
        **sections : mapping
            For example ``train={"steps": 400, "seed": 1}``, or ``method="density"``.

        Raises
        ------
        ConfigError
            If the preset, a section, a key or a value is unknown.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(sorted(PRESETS))}")
        return PRESETS[name].replace(**sections)

    def replace(self, **sections: Any) -> Config:
        """Return a copy with values replaced by section, checked for key, type and range."""
        values = self.model_dump()
        for name, changed in sections.items():
            if name not in values:
                raise ConfigError(f"unknown section {name!r}; choose one of {', '.join(sorted(values))}")
            if isinstance(values[name], dict):
                if not isinstance(changed, Mapping):
                    raise ConfigError(f"{name} must be a table of keys, got {changed!r}")
                changed = {**values[name], **changed}
            values[name] = changed
        return Config(**values)

    def override(self, assignments: Sequence[str]) -> Config:
        """Apply assignments such as ``"train.steps=400"``, values written as in TOML (quotes optional).

        They are checked together: of two keys that must change at once, either may come first.
        """
        changes: dict[str, Any] = {}
        for text in assignments:
            key, sep, value = text.partition("=")
            section, dot, name = key.strip().partition(".")
            if not sep or not (dot or section == "method"):
                raise ConfigError(f"cannot read {text!r}; write section.key=value, such as train.steps=400")
            if dot:
                changes.setdefault(section, {})[name] = _parse_value(value.strip())
            else:
                changes[section] = _parse_value(value.strip())
        return self.replace(**changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, nested by section (tuples become lists)."""
        return self.model_dump(mode="json")

    def to_toml(self) -> str:
        """Return the configuration as TOML; :meth:`from_toml` reads it back unchanged."""
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str, *, source: str = "configuration") -> Config:
        """Read a configuration from TOML text; missing keys take their defaults, unknown ones are refused."""
        try:
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"{source} is not valid TOML: {error}") from error
        try:
            return cls().replace(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read a configuration from a TOML file."""
        path = Path(path)
        try:
            text = read_regular(path).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read configuration {path}: {error}") from error
        return cls.from_toml(text, source=str(path))

    def matches(self, stored: Mapping[str, Any]) -> bool:
        """Whether a stored :meth:`to_dict` describes the same training; keys it lacks count as their defaults.

        Where a run computes and how often it writes checkpoints may differ.
        """
        free = {"device": "auto", "checkpoint_every": 1}
        try:
            return Config().replace(**stored).replace(train=free) == self.replace(train=free)
        except (ConfigError, TypeError):
            return False


def _words(section: type[Section], error: ErrorDetails) -> str:
    """Say in one line which key is wrong, what was found, and what it may be."""
    prefix = section.__name__.removesuffix("Config").lower()
    key, value = ".".join(map(str, (prefix, *error["loc"]) if prefix else error["loc"])), error["input"]
    field = section.model_fields.get(str(error["loc"][0])) if len(error["loc"]) == 1 else None
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key}; choose one of {', '.join(sorted(section.model_fields))}"
        case "literal_error":
            choices = error["ctx"]["expected"] if field is None else ", ".join(map(str, get_args(field.annotation)))
            return f"{key} = {value!r} is unknown; choose one of {choices}"
        case "greater_than_equal" | "less_than_equal":
            metadata = field.metadata if field is not None else []
            bounds = {k: getattr(bound, k) for bound in metadata for k in ("ge", "le") if hasattr(bound, k)}
            limits = error["msg"].removeprefix("Input should ")
            if len(bounds) == 2:
                limits = f"lie between {bounds['ge']:g} and {bounds['le']:g}"
            return f"{key} = {value} is out of range; it must {limits}"
        case "value_error":  # a check of a whole section names its keys itself
            return f"{key} {error['ctx']['error']}" if error["loc"] else str(error["ctx"]["error"])
        case "too_short":
            return f"{key} is empty; give at least one value"
        case "finite_number":
            return f"{key} = {value} is not a finite number"
    kind = error["type"].partition("_")[0]
    name = {"string": "a word", "dict": "a table of keys", "tuple": "a list of integers"}.get(kind, f"of type {kind}")
    return f"{key} must be {name}, got {value!r}"


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text  # an unquoted word, such as train.optimizer=adamw


_QUICK: dict[str, Any] = {"batch": 16, "optimizer": "adamw", "lr": 3e-3, "schedule": "one_cycle"}
_SMALL = Config().replace(data={"aspect": "keep"}, train={**_QUICK, "steps": 400, "backbone": "frozen", "clip": 1.0})

PRESETS: dict[str, Config] = {
    "tiny": Config().replace(
        data={"size": 64},
        model={"width": 32},
        texture={"tem_levels": 16, "scales": (1, 2, 4)},
        train={**_QUICK, "steps": 20, "batch": 8, "backbone": "frozen"},
        density={"rank": 16},
    ),
    "small": _SMALL,
    "parts": _SMALL.replace(method="ensemble"),
    "thorough": _SMALL.replace(method="ensemble_trained"),
    "paper": Config().replace(
        model={"backbone": "resnet50", "weights": "default", "width": 256, "stride": 4}, texture={"tem_levels": 128}
    ),
}
"""Named configurations; the tables of results name the preset beside every number."""
