"""Uninformed students (Bergmann et al., 2020): an ensemble imitates descriptors of patches; it errs and disagrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import build_backbone
from ..config import Config
from ..datasets.folder import Split
from ..detector import batches
from ..features import upsample
from ..layers import no_autocast
from .distillation import SHORT_RATE, DistillingPeer, sample_of, views

FIELD = 33
"""Side p of the patches; of the paper's 17, 33 and 65 the best alone."""
DIMS = 128
"""Length d of a descriptor."""
STUDENTS = 3
"""Students M."""
PATCHES = 64
"""Patches that a step of the distillation sees, the paper's."""
ZOOM = (0.5, 2.0)
"""Patches for the distillation show between half and twice the patch's side of the image."""
TEACHER_STEPS, EPOCHS = 50_000, 100
"""Steps of the distillation, and passes of the students, in the paper."""


class UninformedStudents(DistillingPeer):
    """Squared error of the students' mean descriptor and their variance, each in units of good images.

    Parameters
    ----------
    config : Config
        See :class:`~mlffn_lite.peers.trained.TrainedPeer`.

    Notes
    -----
    The first half of the steps distils the teacher (§3.1), the second trains the students (§3.2), as in the paper on
    one image a step, the first of its batch. Differences:

    - The teacher is distilled on patches of :func:`~mlffn_lite.peers.distillation.views` of the good images, as there
      is no ImageNet, from the configuration's backbone: its last level, averaged over the patch, standardised, where
      the paper takes ResNet-18's last layer. A teacher that saw good parts only is the weak place of the method here.
    - L_m, metric learning, has no weight, as the paper ends up with; L_c sums the squares of the correlations, divided
      by d: the plain sum of equation (5) has no minimum where there is no correlation.
    - Small schedules have ten times the learning rate.
    - One receptive field of 33 px, not three; images are mirrored at the border, such that every pixel has a patch.
    - Descriptors are computed at every fourth pixel, whose grid moves in training from step to step so that all are
      learned; :attr:`stride` 1 scores at every pixel, in sixteen times the time.

    A fit to 60 images of 128 px took 126 to 158 s on one core of a busy machine.
    """

    terms = ("total", "distillation", "compactness", "students")
    paper_batch = 1
    lr = 1e-4
    teacher_lr: ClassVar[float] = 2e-4
    weight_decay: ClassVar[float] = 1e-5
    stride: ClassVar[int] = 4
    """Pixels between the patches that are scored: 4, 2 or 1."""

    def _build(self) -> nn.Module:
        return StudentsNetwork(self.config)

    def _optimizer(self, module: Any) -> torch.optim.Optimizer:
        teacher = [*module.teacher.parameters(), *module.decoder.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": teacher, "lr": self.teacher_lr},
            {"params": list(module.students.parameters())},
        ]
        return torch.optim.Adam(groups, lr=self.lr, weight_decay=self.weight_decay)

    def _paper_steps(self, images: int) -> int:
        return TEACHER_STEPS + EPOCHS * images

    def _factor(self, step: int, steps: int) -> float:
        return SHORT_RATE if self.config.train.steps else 1.0

    def _teacher_steps(self) -> int:
        return round(self.config.train.steps * self.pace) // 2 if self.config.train.steps else TEACHER_STEPS

    def _prepare(self, train: Split, step: int) -> None:
        """Standardise the backbone's descriptors before the distillation, the teacher's after it."""
        network = self.module
        if step not in (0, self._teacher_steps()):
            return
        sample = sample_of(train)
        if step == 0:
            generator = torch.Generator().manual_seed(self.config.train.seed)
            seen = torch.cat([self._patches(self._pixels(images), generator) for images in batches(sample)])
            target = network.target(seen)
            network.target_mean.copy_(target.mean(0))
            network.target_std.copy_(target.std(0).clamp(min=1e-4))
        if step == self._teacher_steps():
            taught = [
                network.teacher(mirrored(network.scaled(self._pixels(x)))) for y in batches(sample) for x in y.split(1)
            ]
            values = torch.cat([x.transpose(0, 1).flatten(1) for x in taught], dim=1)
            network.teacher_mean.copy_(values.mean(1).view(1, -1, 1, 1))
            network.teacher_std.copy_(values.std(1).clamp(min=1e-4).view(1, -1, 1, 1))

    def _patches(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return views(images, PATCHES, generator, size=(FIELD, FIELD), shown=ZOOM)

    def _losses(self, images: Tensor, step: int, generator: torch.Generator) -> Sequence[Tensor]:
        network = self.module
        zero = images.new_zeros(())
        if step < self._teacher_steps():
            patches = self._patches(images, generator)
            with torch.no_grad():
                target = (network.target(patches).float() - network.target_mean) / network.target_std
            descriptor = network.teacher(network.scaled(patches)).flatten(1)
            distilled = (network.decoder(descriptor).float() - target).square().sum(1).mean()
            compact = compactness(descriptor.float())
            return distilled + compact, distilled.detach(), compact.detach(), zero
        chosen = images[:1]
        top, left = torch.randint(4, (2,), generator=generator).tolist()  # the grid is every fourth pixel
        x = mirrored(network.scaled(chosen), more=3)[:, :, top:, left:]
        with torch.no_grad():
            surrogate = network.standardised(x)
        loss = sum(((s(x).float() - surrogate).square().sum(1).mean() for s in network.students), zero)
        return loss, zero, zero, loss.detach()

    def _finish(self, train: Split) -> None:
        """Mean and deviation of both terms on the images held out."""
        found = torch.cat([self._run(x, self._both) for x in batches(self.held)])  # (M, 2, h, w)
        values = found.transpose(0, 1).flatten(1).double()
        self.module.scale[:, 0] = values.mean(1)
        self.module.scale[:, 1] = values.std(1, correction=0).clamp(min=1e-12)

    def _both(self, images: Tensor) -> Tensor:
        """Return e and v (B, 2, h, w) of images, equations (8) and (9)."""
        x = mirrored(self.module.scaled(images), self.stride)
        predictions = torch.stack([s(x, self.stride) for s in self.module.students])
        return torch.stack(error_and_variance(predictions, self.module.standardised(x, self.stride)), dim=1)

    def _score(self, images: Tensor) -> Tensor:
        mean, deviation = self.module.scale.view(2, 2, 1, 1).unbind(1)
        return upsample((((self._both(images) - mean) / deviation).sum(1))[:, None], images.shape[-2:])


class StudentsNetwork(nn.Module):
    """Backbone, teacher with its decoder, students, and what standardises their outputs.

    Attributes
    ----------
    target_mean, target_std : Tensor
        Of the backbone's descriptors, (C,).
    teacher_mean, teacher_std : Tensor
        μ and σ of the teacher's descriptors of good images, (1, d, 1, 1).
    scale : Tensor
        Rows: e, v; columns: mean, deviation over good pixels; (2, 2).
    """

    target_mean: Tensor
    target_std: Tensor
    teacher_mean: Tensor
    teacher_std: Tensor
    scale: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = build_backbone(config.model.backbone, config.model.weights).set_mode("frozen")
        width = self.backbone.channels[-1]
        self.teacher, self.decoder = Descriptor(), nn.Linear(DIMS, width)
        self.students = nn.ModuleList(Descriptor() for _ in range(STUDENTS))
        self.register_buffer("target_mean", torch.zeros(width))
        self.register_buffer("target_std", torch.ones(width))
        self.register_buffer("teacher_mean", torch.zeros(1, DIMS, 1, 1))
        self.register_buffer("teacher_std", torch.ones(1, DIMS, 1, 1))
        self.register_buffer("scale", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def scaled(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W) as the backbone does."""
        return (images - self.backbone.mean) / self.backbone.std

    def target(self, patches: Tensor) -> Tensor:
        """Return the backbone's descriptors of patches (B, 3, p, p), (B, C)."""
        return self.backbone(patches)[-1].mean((2, 3))

    def standardised(self, images: Tensor, stride: int = 4) -> Tensor:
        """Return (y − μ) / σ of scaled images, (B, d, h, w), in float32: bfloat16 is too coarse for a small σ."""
        with no_autocast(images):
            return (self.teacher(images, stride) - self.teacher_mean) / self.teacher_std


class Descriptor(nn.Module):
    """Describes every patch of 33×33 px by 128 numbers; table 5 of the paper, leaky ReLU between the convolutions."""

    slope: ClassVar[float] = 5e-3

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 128, 5), nn.Conv2d(128, 256, 5), nn.Conv2d(256, 256, 2), nn.Conv2d(256, DIMS, 4)]
        )

    def forward(self, images: Tensor, stride: int = 4) -> Tensor:
        """Return descriptors of images (B, 3, H, W), of all patches in it at a stride of 4, 2 or 1, (B, 128, h, w).

        Where a pooling does not subsample, what follows it is dilated: the same numbers, at the places between too
        (Bailer et al., 2018).
        """
        x, dilation = images, 1
        layer: Any
        for index, layer in enumerate(self.layers):
            x = F.conv2d(x, layer.weight, layer.bias, dilation=dilation)
            if index < 3:
                x = F.leaky_relu(x, self.slope)
            if index < 2:
                keep = stride < 2 << index
                x = F.max_pool2d(x, 2, stride=1 if keep else 2, dilation=dilation)
                dilation *= 2 if keep else 1
        return x


def mirrored(images: Tensor, stride: int = 4, more: int = 0) -> Tensor:
    """Return images (B, 3, H, W) with mirrored margins, so that each square of stride × stride px has a centred patch.

    The poolings drop the last row and column of a patch: it sees 32 px. ``more`` px are added below and to the right.
    """
    before = FIELD // 2 - stride // 2
    after = FIELD - 2 - before + more
    return F.pad(images, (before, after, before, after), mode="reflect")


def compactness(descriptors: Tensor) -> Tensor:
    """Return Σ c² / d over the correlations c, i ≠ j, of the elements of descriptors (B, d): L_c."""
    with no_autocast(descriptors):
        centred = descriptors - descriptors.mean(0)
        unit = centred / centred.square().sum(0).add(1e-12).sqrt()
        correlation = unit.T @ unit
        return (correlation.square().sum() - correlation.diagonal().square().sum()) / descriptors.shape[1]


def error_and_variance(predictions: Tensor, surrogate: Tensor) -> tuple[Tensor, Tensor]:
    """Return e = ‖μ̄ − y‖² and v = Σ ‖μ_i‖² / M − ‖μ̄‖² (B, h, w) of predictions (M, B, d, h, w), y (B, d, h, w).

    v is computed as the mean of ‖μ_i − μ̄‖², which is the same and does not cancel.
    """
    mean = predictions.mean(0)
    return (mean - surrogate).square().sum(1), (predictions - mean).square().sum(2).mean(0)
