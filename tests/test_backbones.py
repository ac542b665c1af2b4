from __future__ import annotations

import builtins
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from own_backbone import small
from safetensors.torch import save_file

from mlffn_lite.backbones import Backbone, build_backbone, fold_batch_norm
from mlffn_lite.config import Config
from mlffn_lite.errors import ConfigError, WeightsError
from mlffn_lite.network import MLFFN


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return build_backbone("efficientnet_lite0").eval()


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "efficientnet_lite2", "resnet18", "resnet50", "mobilenetv3_small_100"]
)
@pytest.mark.parametrize("size", [(64, 64), (8, 8), (37, 50)])
def test_levels_have_strides_4_8_16(name: str, size: tuple[int, int]) -> None:
    backbone = build_backbone(name, "none").eval()
    levels = backbone(torch.rand(2, 3, *size))
    assert len(levels) == 3
    for level, stride, channels in zip(levels, (4, 8, 16), backbone.channels, strict=True):
        assert level.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_offline_weights_are_a_working_imagenet_model(name: str) -> None:
    """A pretrained stem has smooth oriented filters; and shuffled names would break the batch statistics."""
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    whole: Any = timm.create_model(f"tf_{name}", pretrained=False)
    assert (whole.default_cfg["mean"], whole.default_cfg["std"]) == ((0.5,) * 3, (0.5,) * 3)
    assert backbone.mean.flatten().tolist() == [0.5] * 3
    weight = backbone.body.conv_stem.weight
    neighbours = torch.corrcoef(torch.stack([weight[..., :-1].flatten(), weight[..., 1:].flatten()]))[0, 1]
    assert neighbours > 0.3  # random filters: about 0
    # Running statistics must fit what the layers before them put out, here on smooth random pictures.
    smooth = torch.nn.functional.interpolate(torch.rand(8, 3, 12, 12), size=128, mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        levels = backbone(smooth)
    assert all(0.05 < float(level.std()) < 20 for level in levels)


def test_late_stages_are_left_out(lite0: Backbone) -> None:
    assert sum(p.numel() for p in lite0.parameters()) < 1e6  # the whole network has 4.65 million


def test_normalisation_is_applied_once(lite0: Backbone) -> None:
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        got, plain = lite0(images)[0], lite0.body((images - 0.5) / 0.5)[0]
    torch.testing.assert_close(got, plain, rtol=1e-3, atol=1e-3)  # folded against plain


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "mobilenetv3_small_100"])
def test_folded_normalisation_gives_the_same_levels(name: str) -> None:
    backbone = build_backbone(name, "none")
    for norm in backbone.body.modules():
        if isinstance(norm, torch.nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, std=0.1)
            torch.nn.init.normal_(norm.running_mean, std=0.1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    folded = fold_batch_norm(backbone.body)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    images = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        for a, b in zip(backbone.body.eval()(images), folded(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


def scaled(backbone: Backbone) -> Backbone:
    with torch.no_grad():
        next(iter(backbone.body.parameters())).mul_(2)
    return backbone


def train_step(backbone: Backbone) -> None:
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(level.square().mean() for level in backbone(torch.rand(2, 3, 32, 32))).backward()
    optimizer.step()


def train_and_evaluate(backbone: Backbone) -> None:
    train_step(backbone.train())
    backbone.eval()


def follow_the_data(backbone: Backbone) -> None:
    backbone.set_mode("batch_stats").train()(torch.rand(2, 3, 32, 32))
    backbone.eval()


def load(module: torch.nn.Module, key: str) -> None:
    state = {k: v.clone() for k, v in module.state_dict().items()}
    state[key] *= 2
    module.load_state_dict(state)


WAYS: dict[str, Callable[[Backbone], object]] = {
    "training": train_and_evaluate,
    "a step in evaluation": train_step,
    "statistics": follow_the_data,
    "its state": lambda b: load(b, "body.conv1.weight"),
    "the state of what it is in": lambda b: load(torch.nn.Sequential(b), "0.body.conv1.weight"),
    "another type": lambda b: b.double(),
    "another type of what it is in": lambda b: torch.nn.Sequential(b).double(),
    "by hand, then eval": lambda b: scaled(b).eval(),
    "by hand, then eval of what it is in": lambda b: torch.nn.Sequential(scaled(b)).eval(),
    "by hand, then set_mode": lambda b: scaled(b).set_mode("frozen"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_folded_copy_follows_the_weights(way: str) -> None:
    torch.manual_seed(0)
    backbone, images = build_backbone("resnet18", "none").eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = backbone(images)
    assert backbone._folded
    WAYS[way](backbone)
    with torch.no_grad():
        images = images.to(backbone.mean)
        after, plain = backbone(images), backbone.body((images - backbone.mean) / backbone.std)
    for a, b, c in zip(after, plain, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert a.dtype == torch.float64 or not torch.allclose(a, c, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["frozen", "batch_stats", "train"])
def test_the_folded_copy_is_kept_while_nothing_changes(lite0: Backbone, mode: Any) -> None:
    backbone = copy.deepcopy(lite0).set_mode(mode).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        backbone(images)
        (folded,) = backbone._folded
        backbone(images)
    assert backbone._folded == (folded,)
    assert backbone(images)[2].requires_grad == (mode == "train")  # with gradients, the original computes
    assert bool(backbone._folded) == (mode != "train")  # for a step may follow
    assert not any("_folded" in key for key in backbone.state_dict())
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in backbone.body.parameters())
    backbone.train()(images)
    assert bool(backbone._folded) == (mode == "frozen")  # it alone stays as it is in training


def test_what_cannot_be_folded_stays() -> None:
    """A normalisation that sees more than one convolution's output is not folded, and nothing is if it would differ."""

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(3)
            torch.nn.init.normal_(self.norm.bias)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.conv(x)
            return [self.norm(y) + y]  # y is used twice: folding would change the second use

    body, images = Odd().eval(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(fold_batch_norm(body)(images)[0], body(images)[0])


@pytest.mark.parametrize(
    ("mode", "statistics", "weights"), [("train", True, True), ("batch_stats", True, False), ("frozen", False, False)]
)
def test_modes_change_what_they_say(mode: Any, statistics: bool, weights: bool) -> None:
    backbone = build_backbone("resnet18", "none").set_mode(mode).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    levels = backbone(torch.rand(2, 3, 32, 32))
    assert levels[0].requires_grad == weights
    if weights:
        sum(level.sum() for level in levels).backward()
        assert all(p.grad is not None for p in backbone.parameters())
    changed = any(not torch.equal(v, before[k]) for k, v in backbone.state_dict().items() if "running" in k)
    assert changed == statistics
    assert not backbone.eval().body.training


def test_weights_from_files(tmp_path: Path, lite0: Backbone) -> None:
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        backbone = build_backbone("efficientnet_lite0", str(tmp_path / name))
        assert torch.equal(backbone.body.conv_stem.weight, state["conv_stem.weight"])


def test_misfit_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("mobilenetv3_small_100").state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "bad.pth").write_bytes(b"PK\x03\x04 not a weights file")
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 5)
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        build_backbone("efficientnet_lite0", str(tmp_path / "other.safetensors"))
    for name in ("bad.pth", "bad.safetensors"):
        with pytest.raises(WeightsError, match="cannot read weights"):
            build_backbone("resnet18", str(tmp_path / name))
    with pytest.raises(WeightsError, match="does not exist"):
        build_backbone("resnet18", str(tmp_path / "none.pth"))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return builtins.exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError):
        build_backbone("resnet18", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_no_weights_and_no_network_names_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth.*put it into") as caught:
        build_backbone("resnet18", "default")
    assert str(tmp_path / "checkpoints") in str(caught.value)


def test_a_copy_placed_by_hand_is_used_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    state = torchvision.models.resnet18().state_dict()
    target = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    torch.save(state, target)
    with pytest.raises(WeightsError, match="checksum"):  # random weights are not the published file
        build_backbone("resnet18", "default")


def test_unknown_or_unfit_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'nonesuch'"):
        build_backbone("nonesuch", "none")
    with pytest.raises(ConfigError, match="strides 4, 8 and 16"):
        build_backbone("vit_tiny_patch16_224", "none")
    with pytest.raises(WeightsError, match="no installed package"):
        build_backbone("resnet50", "offline")
    for name in ("swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224"):
        with pytest.raises(ConfigError, match=rf"{name}' cannot take 64×64 images \(.*\); choose one for any") as error:
            build_backbone(name, "none")
        assert "\n" not in str(error.value)


def test_a_backbone_of_ones_own_is_named_by_its_import_path() -> None:
    config = Config.preset("tiny", model={"backbone": "own_backbone:small"})
    network = MLFFN(config.model, config.texture).eval()
    assert network.backbone.channels == (8, 12, 16)
    with torch.no_grad():
        assert network(torch.rand(2, 3, 40, 56)).score.shape[:2] == (2, 1)


class _Unfit:
    """Backbones that do not keep what they promise."""

    @staticmethod
    def nothing(weights: str) -> None:
        return None

    @staticmethod
    def channels(weights: str) -> Backbone:
        return Backbone(small(weights).body, (8, 12, 24))

    @staticmethod
    def two(weights: str) -> Backbone:
        return Backbone(small(weights).body[:2], (8, 12))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_backbone:tiny", "cannot import the backbone 'own_backbone:tiny'"),
        ("test_backbones:_Unfit.nothing", "returns NoneType; let it return a Backbone"),
        ("test_backbones:_Unfit.channels", r"should have the shapes .*\(1, 24, 4, 4\)\], but have .*\(1, 16, 4, 4\)"),
        ("test_backbones:_Unfit.two", "three levels .* should have the shapes"),
    ],
)
def test_unfit_backbones_of_ones_own_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_backbone(name, "none")
    assert "\n" not in str(error.value)
