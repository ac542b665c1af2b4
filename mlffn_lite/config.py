"""Configuration: frozen dataclasses, the presets ``tiny``, ``lite`` and ``paper``, and TOML in and out."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from .errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """How images are read.

    Attributes
    ----------
    size : int
        Side in pixels of the square that every image and mask is resized to.
    aspect : {"square", "keep"}
        Squeeze them to that square, or resize to about as many pixels in the training images' median aspect ratio.
    """

    size: int = 256
    aspect: Literal["square", "keep"] = "square"


@dataclass(frozen=True)
class PseudoConfig:
    """Pseudo-anomalies of §2.1; ``ratio`` is the quantity of Table 3.

    Attributes
    ----------
    ratio : float
        Share of each batch that is made anomalous, 0 to 1.
    confetti, cutpaste, scar : float
        Relative weights of the generators among the changed images (paper: confetti and CutPaste, half each).
    blemish : float
        Weight of a generator that the paper does not have: spots, stains and scratches of all sizes and strengths.
    """

    ratio: float = 0.5
    confetti: float = 1.0
    cutpaste: float = 1.0
    scar: float = 0.0
    blemish: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """The network of §1; the switches are the arms of Table 4.

    Attributes
    ----------
    backbone : str
        ``"efficientnet_lite0"``, ``"resnet18"``, ``"resnet50"``, or any timm model with ``features_only``.
    weights : str
        ``"none"`` (random), ``"offline"`` (weights that come with an installed package), ``"default"`` (the
        library's download), or the path of a ``.safetensors`` or weights-only ``.pth`` file.
    width : int
        Channels C1 of the fused feature.
    stride : int
        Input pixels per fused feature pixel, 4, 8 or 16.
    self_calibration, texture : bool
        Whether §1.3 and §1.2 take part; off, the levels are fused directly (Table 4's baseline).
    score : {"learned", "distance"}
        Score map: the layer η of equation (9), or the distance A of §2.2 (Table 4 before the score constraint).
    tem_levels, ptfem_levels : int
        Quantisation levels N of QCO-1D and QCO-2D.
    scales : tuple of int
        Sub-regions per side of PTFEM's branches.
    placement, window, neighbour : str
        Readings of QCO that the paper leaves open, see :mod:`mlffn_lite.texture`.
    scaled_attention : bool
        Whether TEM's attention is divided by √d.
    rate : int
        Pooling rate r of the self-calibration.
    density : float
        Weight of the distance from the features of good images (:class:`~mlffn_lite.density.NormalDensity`) beside
        the network's own score, both standardised on good images; 0 (the paper) leaves it out.
    density_strides : tuple of int
        Strides at which it is fitted, among 4, 8 and 16, ascending; at each, to the levels that are no coarser.
    density_rank, density_shrinkage
        Its parameters.
    """

    backbone: str = "efficientnet_lite0"
    weights: str = "offline"
    width: int = 128
    stride: int = 8
    self_calibration: bool = True
    texture: bool = True
    score: Literal["learned", "distance"] = "learned"
    tem_levels: int = 64
    ptfem_levels: int = 8
    scales: tuple[int, ...] = (1, 2, 4, 8)
    placement: Literal["center", "edge"] = "center"
    window: Literal["full_bin", "half_bin", "literal"] = "full_bin"
    neighbour: Literal["right", "diagonal"] = "right"
    scaled_attention: bool = True
    rate: int = 4
    density: float = 0.0
    density_strides: tuple[int, ...] = (8, 16)
    density_rank: int = 64
    density_shrinkage: float = 0.2


@dataclass(frozen=True)
class LossConfig:
    """Weights α, β, ξ of equation (8) and the parameters of (5) to (7).

    Attributes
    ----------
    feature, score, consistency : float
        α, β, ξ; 0 leaves a term out.
    gamma, lam : float
        γ and λ of equation (5).
    pairing : {"random", "mean"}
        The normal pixel that an anomalous pixel is compared with in (5): one drawn anew, or the normal mean.
    patches : int
        Side of the pooled map on which (6) is computed, at most.
    softmax : {"distance", "negative"}
        Rows of (6) are softmaxes of distances (as written) or of their negatives.
    balanced : bool
        Feature constraint (4), or (3) without balance.
    coverage : float
        A feature pixel counts as anomalous if more than this share of its area is.
    """

    feature: float = 1.0
    score: float = 1.0
    consistency: float = 1.0
    gamma: float = 2.5
    lam: float = 5.0
    pairing: Literal["random", "mean"] = "random"
    patches: int = 16
    softmax: Literal["distance", "negative"] = "distance"
    balanced: bool = True
    coverage: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """The schedule of §3.1 and how it is run.

    Attributes
    ----------
    steps : int
        Optimiser steps; 0 means ``epochs * repeats * images / batch``, rounded up.
    epochs, repeats : int
        The paper's 200 passes over a training set repeated 10 times; used when ``steps`` is 0.
    batch : int
        Images per step, over all devices.
    optimizer : {"sgd", "adamw"}
        SGD with momentum (the paper), or AdamW.
    lr, backbone_lr : float
        Peak learning rates of the heads and of the backbone.
    momentum, weight_decay : float
        SGD momentum (AdamW: β1) and weight decay.
    schedule : {"constant", "one_cycle"}
        Constant rate, or linear warm-up and cosine decay to zero.
    backbone : {"train", "batch_stats", "frozen"}
        Train the backbone; or keep its weights and only let its normalisation follow the data; or freeze both.
    clip : float
        Largest gradient norm; 0 switches clipping off.
    precision : {"auto", "fp32", "bf16", "fp16"}
        Autocast type; ``auto`` takes bf16 where the processor computes in it, fp32 elsewhere.
    seed : int
        Seeds initial weights, order of images, pseudo-anomalies and pairings.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; ``auto`` takes CUDA if present, else the CPU.
    checkpoint_every : int
        Steps between checkpoints.
    """

    steps: int = 0
    epochs: int = 200
    repeats: int = 10
    batch: int = 32
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    backbone_lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 3e-5
    schedule: Literal["constant", "one_cycle"] = "constant"
    backbone: Literal["train", "batch_stats", "frozen"] = "train"
    clip: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 100


@dataclass(frozen=True)
class Config:
    """Everything that determines a run, in five sections."""

    data: DataConfig = field(default_factory=DataConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _check_ranges(self)

    @classmethod
    def preset(cls, name: str, **sections: Mapping[str, Any]) -> Config:
        """Return a preset, with values replaced by section.

        Parameters
        ----------
        name : {"tiny", "lite", "paper"}
            Preset.
        **sections : mapping
            For example ``train={"steps": 400, "seed": 1}``.

        Raises
        ------
        ConfigError
            If the preset, a section, a key or a value is unknown.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(sorted(PRESETS))}")
        return PRESETS[name].replace(**sections)

    def replace(self, **sections: Mapping[str, Any]) -> Config:
        """Return a copy with values replaced by section, checked for key, type and range."""
        known = {f.name for f in fields(self)}
        changed = {}
        for section, values in sections.items():
            if section not in known:
                raise ConfigError(f"unknown section {section!r}; choose one of {', '.join(sorted(known))}")
            changed[section] = _replace_section(section, getattr(self, section), values)
        return dataclasses.replace(self, **changed)

    def override(self, assignments: Sequence[str]) -> Config:
        """Apply assignments such as ``"train.steps=400"``, values written as in TOML (quotes optional)."""
        config = self
        for text in assignments:
            key, sep, value = text.partition("=")
            section, dot, name = key.strip().partition(".")
            if not sep or not dot:
                raise ConfigError(f"cannot read {text!r}; write section.key=value, such as train.steps=400")
            config = config.replace(**{section: {name: _parse_value(value.strip())}})
        return config

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain nested dictionaries (tuples become lists)."""
        return {
            s: {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
            for s, section in dataclasses.asdict(self).items()
        }

    def to_toml(self) -> str:
        """Return the configuration as TOML; :meth:`from_toml` reads it back unchanged."""
        lines = []
        for section, values in self.to_dict().items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {_format_value(value)}" for key, value in values.items()]
            lines.append("")
        return "\n".join(lines)

    @classmethod
    def from_toml(cls, text: str, *, source: str = "configuration") -> Config:
        """Read a configuration from TOML text; missing keys take their defaults, unknown ones are refused."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
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
            text = path.read_text(encoding="utf-8")
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


def _replace_section(section: str, current: Any, values: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section} must be a table of keys, got {values!r}")
    hints = typing.get_type_hints(type(current))
    checked = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"unknown key {section}.{key}; choose one of {', '.join(sorted(hints))}")
        checked[key] = _check_type(f"{section}.{key}", value, hints[key])
    return dataclasses.replace(current, **checked)


def _check_type(key: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        raise ConfigError(f"{key} = {value!r} is unknown; choose one of {', '.join(map(str, choices))}")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
            return tuple(value)
        raise ConfigError(f"{key} must be a list of integers, got {value!r}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{key} must be of type {hint.__name__}, got {value!r}")
    return value


# Closed ranges; every bound here is one that later code relies on.
_RANGES: dict[str, tuple[float, float]] = {
    "data.size": (32, 8192),
    "pseudo.ratio": (0, 1),
    "pseudo.confetti": (0, 1e6),
    "pseudo.cutpaste": (0, 1e6),
    "pseudo.scar": (0, 1e6),
    "pseudo.blemish": (0, 1e6),
    "model.width": (8, 4096),
    "model.tem_levels": (2, 4096),
    "model.ptfem_levels": (2, 64),
    "model.rate": (1, 64),
    "model.density": (0, 1e3),
    "model.density_rank": (1, 4096),
    "model.density_shrinkage": (1e-6, 1e3),
    "loss.feature": (0, 1e6),
    "loss.score": (0, 1e6),
    "loss.consistency": (0, 1e6),
    "loss.gamma": (-1e6, 1e6),
    "loss.lam": (0, 1e6),
    "loss.coverage": (0, 0.999),
    "loss.patches": (2, 64),
    "train.steps": (0, 10**9),
    "train.epochs": (1, 10**6),
    "train.repeats": (1, 10**6),
    "train.batch": (2, 65536),
    "train.lr": (0, 1e3),
    "train.backbone_lr": (0, 1e3),
    "train.momentum": (0, 0.9999),
    "train.weight_decay": (0, 10),
    "train.clip": (0, 1e9),
    "train.seed": (0, 2**31 - 1),
    "train.checkpoint_every": (1, 10**9),
}


def _check_ranges(config: Config) -> None:
    for key, (low, high) in _RANGES.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if not low <= value <= high:
            raise ConfigError(f"{key} = {value} is out of range; it must lie between {low} and {high}")
    if config.model.stride not in (4, 8, 16):
        raise ConfigError(f"model.stride = {config.model.stride} is unknown; choose 4, 8 or 16")
    if any(s < 1 for s in config.model.scales):
        raise ConfigError(f"model.scales = {list(config.model.scales)} must all be at least 1")
    strides = config.model.density_strides
    if not strides or strides != tuple(s for s in (4, 8, 16) if s in strides):
        raise ConfigError(f"model.density_strides = {list(strides)} must be some of 4, 8 and 16, ascending")
    kinds = {k: v for k, v in dataclasses.asdict(config.pseudo).items() if k != "ratio"}
    if not any(kinds.values()):
        raise ConfigError(f"pseudo.{', '.join(kinds)} are all 0; give one a weight")
    if not any((config.loss.feature, config.loss.score, config.loss.consistency)):
        raise ConfigError("loss.feature, loss.score and loss.consistency are all 0; nothing would be learned")
    if config.model.score == "learned" and not config.loss.score:
        raise ConfigError("model.score = learned needs loss.score above 0; or set model.score to distance")
    if config.model.score == "distance" and (config.loss.score or config.loss.consistency):
        raise ConfigError(
            "loss.score and loss.consistency shape the learned score: set both to 0, or model.score to learned"
        )


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # an unquoted word, such as train.optimizer=adamw


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # otherwise escaped as in TOML
    return repr(value)


PRESETS: dict[str, Config] = {
    "tiny": Config().replace(
        data={"size": 64},
        model={"width": 32, "tem_levels": 16, "scales": (1, 2, 4), "density": 1.0, "density_rank": 16},
        train={"steps": 20, "batch": 8, "optimizer": "adamw", "lr": 3e-3, "schedule": "one_cycle"},
    ),
    "lite": Config().replace(
        data={"aspect": "keep"},
        pseudo={"confetti": 0.0, "cutpaste": 0.0, "blemish": 1.0},
        model={"density": 2.0},
        train={
            "steps": 400,
            "batch": 16,
            "optimizer": "adamw",
            "lr": 3e-3,
            "schedule": "one_cycle",
            "backbone": "frozen",
            "clip": 1.0,
        },
    ),
    "paper": Config().replace(
        model={"backbone": "resnet50", "weights": "default", "width": 256, "stride": 4, "tem_levels": 128},
    ),
}
"""Named configurations; the tables of results name the preset beside every number."""
