"""EfficientAD-S (Batzner et al., 2024): a student and an autoencoder imitate a small distilled teacher."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import build_backbone
from ..config import Config
from ..datasets.folder import Split
from ..detector import batches
from ..features import upsample
from ..layers import no_autocast, resize
from .distillation import SHORT_RATE, DistillingPeer, sample_of, views

CHANNELS = 384
"""Channels of teacher and autoencoder; the student has twice as many, one half to imitate each."""
DISTIL_VIEWS = 4
"""Views that a step of a small schedule distils on, and …"""
PAPER_VIEWS = 16
"""… one of the paper's."""
DISTIL_STEPS, STUDENT_STEPS = 60_000, 70_000
"""The paper's steps of distillation, and of student and autoencoder; small schedules are divided in that ratio."""
P_HARD = 0.999
"""Share of the student's squared errors that the hard feature loss leaves out."""
QUANTILES = (0.9, 0.995)
"""Quantiles of good maps that are brought to 0 and 0.1."""


class EfficientAD(DistillingPeer):
    """How far a student is from a teacher in small patches, and from an autoencoder that sees the whole image.

    Parameters
    ----------
    config : Config
        See :class:`~mlffn_lite.peers.trained.TrainedPeer`.

    Notes
    -----
    The steps begin with the distillation (Algorithm 3) and go on with student and autoencoder (Algorithm 1). As in the
    authors' setting a step of the second part takes one image, the first of its batch. Differences:

    - There is no ImageNet: the teacher is distilled on :func:`~mlffn_lite.peers.distillation.views` of the good
      images, from the configuration's backbone instead of WideResNet-101, and the student's penalty on ImageNet images
      is left out. A teacher that saw good parts only is the weak place of this method here.
    - Small schedules have ten times the learning rate.
    - The backbone's features, which see twice the image's size as in the paper, are not averaged over 3×3 neighbours:
      those of EfficientNet-Lite0 have both signs and would cancel.
    - Networks without padding leave a border of 16 px without score, an eighth of 256 px but a quarter of 128 px: here
      the image is mirrored there. The autoencoder sees every image at 256×256, where it is defined.

    A fit to 60 images of 128 px took 246 s on one core of a busy machine with the teacher in bfloat16, as it was; in
    float32 it takes longer, and has not been timed.
    """

    terms = ("total", "distillation", "student", "autoencoder", "student_autoencoder")
    paper_batch = 1
    lr = 1e-4
    weight_decay: ClassVar[float] = 1e-5

    def _build(self) -> nn.Module:
        return EfficientADNetwork(self.config)

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        own = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.Adam(own, lr=self.lr, weight_decay=self.weight_decay)

    def _paper_steps(self, images: int) -> int:
        return DISTIL_STEPS + STUDENT_STEPS

    def _distil_steps(self) -> int:
        steps = round(self.config.train.steps * self.pace) or self._paper_steps(0)
        return round(steps * DISTIL_STEPS / (DISTIL_STEPS + STUDENT_STEPS))

    def _factor(self, step: int, steps: int) -> float:
        """A tenth in the last twentieth of the second part, as in the paper."""
        distilled = self._distil_steps()
        peak = SHORT_RATE if self.config.train.steps else 1.0
        return peak * (0.1 if step - distilled >= round(0.95 * (steps - distilled)) else 1.0)

    def _prepare(self, train: Split, step: int) -> None:
        """Standardise the backbone's features before the distillation, the teacher's after it."""
        network = self.module
        if step not in (0, self._distil_steps()):
            return
        sample = sample_of(train)
        see = network.features if step == 0 else network.teacher_raw
        mean, std = channel_moments([see(self._pixels(x)) for images in batches(sample) for x in images.split(1)])
        if step == 0:
            network.feature_mean.copy_(mean)
            network.feature_std.copy_(std)
        if step == self._distil_steps():
            network.teacher_mean.copy_(mean)
            network.teacher_std.copy_(std)

    def _losses(self, images: Tensor, step: int, generator: torch.Generator) -> Sequence[Tensor]:
        network = self.module
        zero = images.new_zeros(())
        if step < self._distil_steps():
            seen = views(images, DISTIL_VIEWS if self.config.train.steps else PAPER_VIEWS, generator)
            target = (network.features(seen) - network.feature_mean) / network.feature_std
            loss = (network.teacher_raw(seen).float() - target).square().mean()
            return loss, loss.detach(), zero, zero, zero
        image = images[:1]
        changed = jittered(image, generator)
        with torch.no_grad():
            teacher, teacher_changed = network.teach(torch.cat([image, changed])).chunk(2)
        student, student_changed = network.student(network.scaled(torch.cat([image, changed]))).float().chunk(2)
        with torch.random.fork_rng(devices=[image.device] if image.device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # the dropout's
            encoded = network.encode(changed, teacher.shape[-2:])
        hard = hard_mean((teacher - student[:, :CHANNELS]).square(), P_HARD)
        whole = (teacher_changed - encoded).square().mean()
        both = (encoded - student_changed[:, CHANNELS:]).square().mean()
        return hard + whole + both, zero, hard.detach(), whole.detach(), both.detach()

    def _finish(self, train: Split) -> None:
        """Quantiles of both maps of the images held out."""
        found = [self._run(x, lambda y: torch.stack(self.module.maps(y), 1)).flatten(2) for x in batches(self.held)]
        for place, values in enumerate(torch.cat(found).unbind(1)):
            self.module.quantiles[place] = torch.stack([quantile(values, q) for q in QUANTILES])

    def _score(self, images: Tensor) -> Tensor:
        """Both maps, normalised, averaged (Algorithm 2)."""
        normalised = [
            0.1 * (x - low) / (high - low).clamp(min=1e-12)
            for x, (low, high) in zip(self.module.maps(images), self.module.quantiles, strict=True)
        ]
        return upsample(0.5 * (normalised[0] + normalised[1])[:, None], images.shape[-2:])


class EfficientADNetwork(nn.Module):
    """Backbone, teacher, student, autoencoder, and what standardises their outputs.

    Attributes
    ----------
    feature_mean, feature_std, teacher_mean, teacher_std : Tensor
        Of the pooled backbone features and of the teacher's output, (1, 384, 1, 1).
    quantiles : Tensor
        Rows: student–teacher, autoencoder–student map; columns: :data:`QUANTILES`; (2, 2).
    """

    feature_mean: Tensor
    feature_std: Tensor
    teacher_mean: Tensor
    teacher_std: Tensor
    quantiles: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = build_backbone(config.model.backbone, config.model.weights).set_mode("frozen")
        self.teacher, self.student = PatchDescription(CHANNELS), PatchDescription(2 * CHANNELS)
        self.autoencoder = Autoencoder(CHANNELS)
        for name in ("feature", "teacher"):
            self.register_buffer(f"{name}_mean", torch.zeros(1, CHANNELS, 1, 1))
            self.register_buffer(f"{name}_std", torch.ones(1, CHANNELS, 1, 1))
        self.register_buffer("quantiles", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def scaled(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W) as the backbone does."""
        return (images - self.backbone.mean) / self.backbone.std

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return what the teacher learns of images: levels 2 and 3 at twice their size, (B, 384, h, w), float32."""
        large = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
        size = description_size(images.shape[-2:])
        levels = torch.cat([resize(level.float(), size) for level in self.backbone(large)[1:]], dim=1)
        # Means of neighbouring channels, as in PatchCore's code; fewer channels are repeated.
        return F.adaptive_avg_pool1d(levels.flatten(2).mT, CHANNELS).mT.unflatten(2, size)

    def teacher_raw(self, images: Tensor) -> Tensor:
        """Return the teacher's output, not standardised, (B, 384, h, w)."""
        return self.teacher(self.scaled(images))

    def teach(self, images: Tensor) -> Tensor:
        """Return the teacher's standardised output, (B, 384, h, w), float32: bfloat16 is too coarse for a small σ."""
        with no_autocast(images):
            return (self.teacher_raw(images) - self.teacher_mean) / self.teacher_std

    def encode(self, images: Tensor, size: torch.Size) -> Tensor:
        """Return the autoencoder's output on a grid of ``size``, (B, 384, h, w), float32."""
        return self.autoencoder(self.scaled(images), size).float()

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared differences, averaged over channels, (B, h, w): T − S and A − S′."""
        teacher = self.teach(images)
        student, imitated = self.student(self.scaled(images)).float().split(CHANNELS, dim=1)
        encoded = self.encode(images, teacher.shape[-2:])
        return (teacher - student).square().mean(1), (encoded - imitated).square().mean(1)


class PatchDescription(nn.Sequential):
    """The small patch description network: every output sees 33×33 px, (B, 3, H, W) → (B, C, ⌈H/4⌉, ⌈W/4⌉).

    The image is mirrored at the border, such that outputs are centred in their 4×4 pixels, to half a pixel.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__(
            nn.ReflectionPad2d((15, 17, 15, 17)),
            *(nn.Conv2d(3, 128, 4), nn.ReLU(inplace=True), nn.AvgPool2d(2)),
            *(nn.Conv2d(128, 256, 4), nn.ReLU(inplace=True), nn.AvgPool2d(2)),
            *(nn.Conv2d(256, 256, 3), nn.ReLU(inplace=True)),
            nn.Conv2d(256, outputs, 4),
        )


def description_size(size: Sequence[int]) -> tuple[int, int]:
    """Return the grid that :class:`PatchDescription` makes of an image of ``size``."""
    return -(-size[0] // 4), -(-size[1] // 4)


class Autoencoder(nn.Module):
    """From the image at 256×256 through 64 numbers to a map of features."""

    sides = (3, 8, 15, 32, 63, 127)

    def __init__(self, outputs: int) -> None:
        super().__init__()
        widths = (3, 32, 32, 64, 64, 64)
        down = [(nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(inplace=True)) for a, b in itertools.pairwise(widths)]
        self.encoder = nn.Sequential(*(x for pair in down for x in pair), nn.Conv2d(64, 64, 8))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 4, 1, 2), nn.ReLU(inplace=True), nn.Dropout(0.2)) for _ in self.sides
        )
        self.last = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(64, outputs, 3, 1, 1))

    def forward(self, images: Tensor, size: Sequence[int]) -> Tensor:
        """Return features of images (B, 3, H, W) on a grid of ``size``, (B, C, h, w)."""
        x = self.encoder(resize(images, (256, 256)))
        for side, layer in zip(self.sides, self.up, strict=True):
            x = layer(F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False))
        return self.last(F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False))


def jittered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast or saturation, one of them, of images (B, 3, H, W) by a factor of 0.8 to 1.2."""
    kind = int(torch.randint(3, (), generator=generator))
    factor = 0.8 + 0.4 * float(torch.rand((), generator=generator))
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    other = (images.new_zeros(()), grey.mean((2, 3), keepdim=True), grey)[kind]
    return (factor * images + (1 - factor) * other).clamp(0, 1)


def hard_mean(errors: Tensor, share: float) -> Tensor:
    """Return the mean of the errors, any shape, that are not below their quantile ``share``: the hard feature loss."""
    values = errors.flatten()
    return values.topk(len(values) - math.ceil(share * (len(values) - 1)), sorted=False).values.mean()


def quantile(values: Tensor, q: float) -> Tensor:
    """Return the quantile of any number of values, interpolated; torch's takes 2²⁴ at most."""
    ordered = values.flatten().sort().values
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], place - low)


def channel_moments(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel of maps (B, C, h, w) of one size, (1, C, 1, 1) each."""
    count = len(maps)
    mean = sum((x.float().mean((0, 2, 3), keepdim=True) for x in maps), torch.zeros(())) / count
    square = sum(((x.float() - mean).square().mean((0, 2, 3), keepdim=True) for x in maps), torch.zeros(())) / count
    return mean, square.sqrt().clamp(min=1e-4)
