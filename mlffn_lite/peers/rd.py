"""Reverse distillation (Deng and Li, CVPR 2022): a student that decodes the teacher's features from a bottleneck."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone, build_backbone
from ..features import smooth, upsample
from ..layers import SafeBatchNorm2d, no_autocast
from .trained import TrainedPeer

EPOCHS = 200
SIGMA = 4.0


class ReverseDistillation(TrainedPeer):
    """Cosine distance between a teacher's features and those that a student decodes from their compact embedding.

    The student is trained on good images, and the bottleneck lets nothing else through: it cannot restore what the
    teacher sees of a defect.

    Notes
    -----
    As in the paper and its code: Adam with rate 0.005 and β = (0.5, 0.999), 16 images, 200 epochs; three levels; maps
    upsampled, added, smoothed with σ = 4. The loss is the paper's (2), the mean of the distances at all positions; the
    authors' code has the distance between whole levels instead, flattened. ResNet teachers have the authors' student;
    others one of ResNet-18's blocks with the teacher's own channels. Where a teacher's features are of both signs, as
    EfficientNet-Lite0's are, the student's stages end without ReLU.

    With the preset ``small`` it takes 70 to 140 s for 60 images of 128 px on two busy cores, one thread.
    """

    terms = ("total", "level_1", "level_2", "level_3")
    paper_batch = 16
    lr = 0.005

    def _build(self) -> nn.Module:
        name = self.config.model.backbone
        backbone = build_backbone(name, self.config.model.weights)
        return Distillation(backbone.set_mode("frozen"), wide=name.startswith("wide_resnet"))

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        student = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.Adam(student, lr=self.lr, betas=(0.5, 0.999))

    def _paper_steps(self, images: int) -> int:
        return EPOCHS * -(-images // self.paper_batch)

    def _losses(self, images: Tensor, step: int, generator: torch.Generator) -> Sequence[Tensor]:
        levels = [x.mean() for x in distances(*self.module(images))]
        return [torch.stack(levels).sum(), *levels]

    def _score(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        return smooth(anomaly_map(distances(*self.module(images)), size), SIGMA)


def distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    """Return equation (1), M = 1 − cos(f_E, f_D) at every position, (B, h, w) of levels (B, C, h, w).

    In float32: the cosines are near 1, of which bfloat16 knows three digits.
    """
    with no_autocast(student[0]):
        return [1 - F.cosine_similarity(a.float(), b.float()) for a, b in zip(teacher, student, strict=True)]


def anomaly_map(maps: Sequence[Tensor], size: torch.Size | tuple[int, int]) -> Tensor:
    """Return equation (3), the sum (B, H, W) of maps (B, h, w) upsampled bilinearly to ``size``."""
    return torch.stack([upsample(x[:, None], size) for x in maps]).sum(0)


class Distillation(nn.Module):
    """Teacher, bottleneck and student.

    Parameters
    ----------
    teacher : Backbone
        Frozen.
    wide : bool
        Whether it is a Wide ResNet, whose bottleneck blocks are twice as wide inside.
    """

    def __init__(self, teacher: Backbone, *, wide: bool = False) -> None:
        super().__init__()
        one, two, three = channels = teacher.channels
        deep = tuple(channels) == (256, 512, 1024)  # ResNet-50 and wider: bottleneck blocks
        squeeze = (4 if not wide else 2) if deep else 0
        with torch.no_grad():
            probe = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            signed = min(float(x.min()) for x in teacher.eval()(probe)) < 0
        self.fuse_1 = nn.Sequential(*_halve(one, two), *_halve(two, three))
        self.fuse_2 = nn.Sequential(*_halve(two, three))
        self.embed = _stage(3 * three, 2 * three, 3 if deep else 2, squeeze, up=False)
        # The authors count blocks from the deepest stage as ResNet does from the first.
        blocks = (3, 4, 6) if deep else (2, 2, 2)
        sides = zip((2 * three, three, two), (three, two, one), blocks, strict=True)
        self.decoder = nn.ModuleList(_stage(a, b, n, squeeze, up=True, signed=signed) for a, b, n in sides)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        self.teacher = teacher  # after the initialisation, which is not for it

    def embedding(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the one-class embedding (B, 2·C₃, ⌈h₃/2⌉, ⌈w₃/2⌉) of the teacher's levels (§3.3)."""
        return self.embed(torch.cat([self.fuse_1(levels[0]), self.fuse_2(levels[1]), levels[2]], dim=1))

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's and the student's levels, of equal shapes, finest first, of images (B, 3, H, W)."""
        levels = self.teacher(images)
        x, decoded = self.embedding(levels), []
        for stage, level in zip(self.decoder, reversed(levels), strict=True):
            x = stage(x)[..., : level.shape[2], : level.shape[3]]  # odd sides were rounded up on the way down
            decoded.append(x)
        return levels, decoded[::-1]


class Block(nn.Module):
    """Residual block of ResNet, which may halve or double the sides.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    squeeze : int
        Its bottleneck has ``outputs / squeeze`` channels; 0 means the basic block of two 3×3 convolutions.
    scale : {"keep", "down", "up"}
        What becomes of the sides; ``up`` is a transposed convolution, 2×2 with stride 2.
    signed : bool
        Leave out the last ReLU.
    """

    def __init__(self, inputs: int, outputs: int, squeeze: int, scale: str, *, signed: bool = False) -> None:
        super().__init__()
        inner = outputs // squeeze if squeeze else outputs
        before, after = (1, 1) if squeeze else (0, 3)  # sides of the kernels around the one that scales; 0: none
        layers = [] if not before else [nn.Conv2d(inputs, inner, 1, bias=False), SafeBatchNorm2d(inner), nn.ReLU()]
        layers += [_scaling(inner if before else inputs, inner, scale, 3), SafeBatchNorm2d(inner), nn.ReLU()]
        layers += [nn.Conv2d(inner, outputs, after, padding=after // 2, bias=False), SafeBatchNorm2d(outputs)]
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if scale != "keep" or inputs != outputs:
            self.shortcut = nn.Sequential(_scaling(inputs, outputs, scale, 1), SafeBatchNorm2d(outputs))
        self.end: nn.Module = nn.Identity() if signed else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, h', w') for (B, inputs, h, w), h' = h, ⌈h/2⌉ or 2·h."""
        return self.end(self.body(x) + self.shortcut(x))


def _scaling(inputs: int, outputs: int, scale: str, side: int) -> nn.Module:
    if scale == "up":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    return nn.Conv2d(inputs, outputs, side, stride=2 if scale == "down" else 1, padding=side // 2, bias=False)


def _halve(inputs: int, outputs: int) -> list[nn.Module]:
    return [_scaling(inputs, outputs, "down", 3), SafeBatchNorm2d(outputs), nn.ReLU()]


def _stage(inputs: int, outputs: int, blocks: int, squeeze: int, *, up: bool, signed: bool = False) -> nn.Sequential:
    first = Block(inputs, outputs, squeeze, "up" if up else "down", signed=signed and blocks == 1)
    rest = [Block(outputs, outputs, squeeze, "keep", signed=signed and i == blocks - 1) for i in range(1, blocks)]
    return nn.Sequential(first, *rest)
