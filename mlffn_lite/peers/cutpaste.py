"""CutPaste (Li et al., CVPR 2021): features that tell patches from tampered ones, and a Gaussian of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone, build_backbone
from ..datasets.folder import Split
from ..detector import batches
from ..features import Moments
from ..layers import SafeBatchNorm2d
from .augment import jitter, turned, uniform
from .padim import mahalanobis, whitening
from .trained import TrainedPeer

PATCHES = 32
"""Patches of each of the three classes in a step."""
AREA, ASPECT = (0.02, 0.15), 0.3
SCAR_WIDTH, SCAR_HEIGHT, SCAR_ANGLE = (2, 16), (10, 25), 45
PATCH = 64
"""Side of the paper's patches, in pixels; σ and scars are given for it and scale with the patch."""
SIGMA = 10.0
STEPS = 256 * 256
CHUNK = 128
"""Patches that pass the network together."""


class CutPaste(TrainedPeer):
    """Distance of patches' features from the Gaussian that good ones have, where features tell three classes apart.

    The classes are good patches, those with a rectangle cut out and pasted elsewhere (CutPaste), and those with a long
    thin one pasted at an angle (CutPaste-scar).

    Notes
    -----
    The paper's patch version, which localises: patches of a quarter of the image's shorter side, in multiples of 16
    and at least 32 (the paper: 64 of 256 px), each cut from its image and passed through the network on its own, so
    that what is scored has the borders of what was trained on; every eighth of a side (the paper: sixteenth, at four
    times the cost). As in its transfer learning, a pretrained network is fine-tuned; the embedding is its deepest
    level, averaged over the patch, before the projection head. SGD with rate 0.03, momentum 0.9, decay 3e-5, one
    cosine to zero, 3·32 patches a step: as many from every image as that takes. Scores are spread by a Gaussian of
    10/64 of a patch, the σ of FCDD's receptive-field upsampling for 64 px, but as a weighted mean: there, pixels at
    the border, which fewer patches cover, would score low whatever they show. Hue is turned in YIQ, not in HSV.

    With the preset ``small`` it takes 105 to 140 s for 60 images of 128 px on two busy cores, one thread.
    """

    paper_batch = PATCHES
    lr = 0.03

    def _build(self) -> nn.Module:
        backbone = build_backbone(self.config.model.backbone, self.config.model.weights)
        return PatchClassifier(backbone.set_mode("train"))

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=self.lr, momentum=0.9, weight_decay=3e-5)

    def _factor(self, step: int, steps: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / steps))

    def _paper_steps(self, images: int) -> int:
        return STEPS

    def _losses(self, images: Tensor, step: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Return equation (3), the cross-entropy of the three classes of patches."""
        batch, _, height, width = images.shape
        side = patch_side(height, width)
        index = torch.arange(batch).repeat_interleave(-(-PATCHES // batch))
        tops, lefts = (_whole(len(index), 0, x - side, generator) for x in (height, width))
        good = jitter(crop(images, index, tops, lefts, side), generator)
        x = torch.cat([good, cut_paste(good, generator), scar(good, generator)])
        logits = self.module(x.contiguous(memory_format=torch.channels_last))
        labels = torch.arange(3, device=images.device).repeat_interleave(len(good))
        return [F.cross_entropy(logits.float(), labels)]

    def _finish(self, train: Split) -> None:
        moments = Moments()
        for images in batches(train):
            moments.add(self._run(images, self._embed).flatten(0, 2)[None])
        covariance = moments.covariance()
        variance = float(covariance.diagonal(dim1=1, dim2=2).mean())
        self.module.mean.copy_(moments.mean[0])
        self.module.factor.copy_(whitening(covariance, 1e-3 * variance + 1e-9)[0])  # of channels that are constant

    def _embed(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, n, m, D) of the patches of images (B, 3, H, W), row by row."""
        batch, _, height, width = images.shape
        side = patch_side(height, width)
        rows, columns = (corners_of(x, side) for x in (height, width))
        grid = torch.cartesian_prod(torch.arange(batch), rows, columns)
        found = []
        for index, tops, lefts in (part.unbind(1) for part in grid.split(CHUNK)):
            patches = crop(images, index, tops, lefts, side)
            found.append(self.module.embedding(patches.contiguous(memory_format=torch.channels_last)))
        return torch.cat(found).view(batch, len(rows), len(columns), -1)

    def _score(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        x = self._embed(images)
        distance = mahalanobis(x.flatten(0, 2)[None], self.module.mean[None], self.module.factor[None])
        return spread(0.5 * distance.view(x.shape[:3]) ** 2, size, patch_side(*size))


class PatchClassifier(nn.Module):
    """A network's deepest level, averaged, and the projection head that classifies it.

    Attributes
    ----------
    mean, factor : Tensor
        Of the Gaussian of good embeddings: mean (D,), and L⁻¹ (D, D) of Σ = LLᵀ.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, backbone: Backbone, hidden: int = 128) -> None:
        super().__init__()
        width = backbone.channels[-1]
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False), SafeBatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, 3, 1)
        )
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("factor", torch.eye(width))

    def embedding(self, patches: Tensor) -> Tensor:
        """Return the representation f (B, D) of patches (B, 3, p, p)."""
        return self.backbone(patches)[-1].mean((2, 3))

    def forward(self, patches: Tensor) -> Tensor:
        """Return the logits (B, 3) of patches (B, 3, p, p): good, CutPaste, scar."""
        return self.head(self.embedding(patches)[:, :, None, None]).flatten(1)


def patch_side(height: int, width: int) -> int:
    """Return the side of patches: a quarter of the image's shorter side, in multiples of 16, at least 32."""
    return max(32, 16 * round(min(height, width) / 64))


def corners_of(length: int, side: int) -> Tensor:
    """Return where patches start along a side: evenly from end to end, at most an eighth of a patch apart."""
    count = -(-(length - side) // (side // 8)) + 1
    return torch.linspace(0, length - side, count).round().long()


def spread(scores: Tensor, size: tuple[int, int] | torch.Size, side: int) -> Tensor:
    """Bring scores (B, n, m) of patches to pixels (B, H, W): at each, their mean, weighted by a Gaussian of centres."""
    weights = []
    for length in size:
        centres = corners_of(length, side).to(scores) + side / 2
        pixels = torch.arange(length).to(scores) + 0.5
        offsets = (pixels[:, None] - centres) / (SIGMA * side / PATCH)
        weights.append(torch.softmax(-0.5 * offsets**2, dim=1))
    return weights[0] @ scores @ weights[1].mT


def crop(images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, side: int) -> Tensor:
    """Return patches (N, 3, side, side) of images (B, 3, H, W): of which image, from which corner."""
    offsets = torch.arange(side)
    rows, columns = (x[:, None] + offsets for x in (tops, lefts))
    index, rows, columns = (x.to(images.device) for x in (index[:, None, None], rows[:, :, None], columns[:, None]))
    return images.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)


def cut_paste(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a rectangle out of each image (B, 3, H, W), jitter its colours, paste it elsewhere in the image.

    Its area is 2 to 15 % of the image, its aspect in (0.3, 1) or (1, 3.3), as often one as the other.
    """
    batch, _, height, width = images.shape
    area = uniform(batch, *AREA, generator) * height * width
    flat, tall = uniform(batch, ASPECT, 1, generator), uniform(batch, 1, 1 / ASPECT, generator)
    aspect = torch.where(uniform(batch, 0, 1, generator) < 0.5, flat, tall)
    h = (area * aspect).sqrt().round().clamp(1, height)
    w = (area / aspect).sqrt().round().clamp(1, width)
    source, target = (
        torch.stack([(uniform(batch, 0, 1, generator) * (x - s + 1)).floor() + s / 2 for x, s in sides], 1)
        for sides in [((height, h), (width, w))] * 2
    )
    return paste(images, torch.stack([h, w], 1), source, target, torch.zeros(batch), generator)


def scar(images: Tensor, generator: torch.Generator) -> Tensor:
    """As :func:`cut_paste`, a rectangle of 2–16 × 10–25 px, turned by up to 45° either way.

    The paper names pixels; here they are those of a patch of 64.
    """
    batch, _, height, width = images.shape
    scale = min(height, width) / PATCH
    w, h = uniform(batch, *SCAR_WIDTH, generator) * scale, uniform(batch, *SCAR_HEIGHT, generator) * scale
    angle = uniform(batch, -SCAR_ANGLE, SCAR_ANGLE, generator) * math.pi / 180
    cos, sin = angle.cos(), angle.sin().abs()
    boxes = ((h, w), (h * cos + w * sin, w * cos + h * sin))  # upright, and what the turned one fits into
    source, target = (
        torch.stack(
            [s / 2 + uniform(batch, 0, 1, generator) * (x - s) for x, s in zip((height, width), box, strict=True)], 1
        )
        for box in boxes
    )
    return paste(images, torch.stack([h, w], 1), source, target, angle, generator)


def paste(
    images: Tensor, size: Tensor, source: Tensor, target: Tensor, angle: Tensor, generator: torch.Generator
) -> Tensor:
    """Paste a rectangle of each image (B, 3, H, W) into it.

    Parameters
    ----------
    images : Tensor
        In [0, 1].
    size, source, target : Tensor
        Height and width, centre where it is cut out, centre where it is pasted, all (B, 2) in pixels.
    angle : Tensor
        By which it is turned, (B,).
    generator : torch.Generator
        Draws the colours' jitter.
    """
    _, _, height, width = images.shape
    v, u = turned(height, width, target, angle)
    inside = ((v.abs() < size[:, :1, None] / 2) & (u.abs() < size[:, 1:, None] / 2))[:, None].to(images.device)
    rows = (source[:, :1, None] + v).floor().long().clamp(0, height - 1)
    columns = (source[:, 1:, None] + u).floor().long().clamp(0, width - 1)
    index = (rows * width + columns).flatten(1)[:, None].expand(-1, 3, -1).to(images.device)
    pasted = images.flatten(2).gather(2, index).view(images.shape)
    return torch.where(inside, jitter(pasted, generator, inside), images)


def _whole(count: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, (count,), generator=generator)
