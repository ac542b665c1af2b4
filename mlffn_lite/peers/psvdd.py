"""Patch SVDD (Yi and Yoon, 2020): patches embedded by what stands beside them; distance from the nearest good one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.folder import Split
from ..detector import batches
from ..devices import generator_for
from ..layers import no_autocast, resize
from ..neighbours import nearest
from .trained import TrainedPeer

SIDE = 256
"""Images are brought to about as many squared pixels, as in the paper."""
SCALES = ((64, 16), (32, 4))
"""Sides K of the patches, and strides S at which they are scored."""
DIMS = 64
"""Length D of an embedding."""
WEIGHT = 1e-3
"""λ of the SVDD loss."""
NOISE = 0.02
"""Standard deviation of the noise, and of the shift of colours, that the position task's patches are changed by."""
SLOPE = 0.1
"""Of the leaky ReLUs."""
EPOCHS, REPEATS = 300, 100
"""The authors' passes, over a training set repeated so often."""
BANK = 50_000
"""Embeddings of a scale, at most, that are kept: as many, drawn at random, from every image."""


class PatchSVDD(TrainedPeer):
    """Distance of every patch's embedding to the nearest good one, at two scales, multiplied.

    Parameters
    ----------
    config : Config
        See :class:`~mlffn_lite.peers.trained.TrainedPeer`; the method has no backbone.

    Notes
    -----
    Networks, tasks and inference follow the authors' code, whose position classifier ends in weights of unit columns
    that are not trained. Patches of 64 and 32 px belong to images of 256×256: others are brought to about as many
    pixels, sides multiples of 16, in their aspect ratio. As networks have no padding, embeddings of all patches of an
    image are computed at once. λ is 10⁻³, which the authors choose by category. Of many embeddings a random part is
    kept, where the authors keep all.

    Small schedules keep the paper's rate: at ten times that, on toothbrush, all embeddings became one and the position
    task stayed at chance (one run). At the paper's it was still at chance after 75 steps there.

    A fit to 60 images of 128 px took 185 s (in bfloat16) and 238 s (in float32, as now) on one core of
    a busy machine.
    """

    terms = ("total", "position", "svdd")
    paper_batch = 64
    lr = 1e-4

    def _build(self) -> nn.Module:
        return PatchSVDDNetwork()

    def _paper_steps(self, images: int) -> int:
        return EPOCHS * -(-REPEATS * images // self.paper_batch)

    def _prepare(self, train: Split, step: int) -> None:
        """Take the mean good image, which is subtracted from all."""
        if step == 0:
            seen = [resize(self._pixels(x), working_size(x.shape[-2:])).double().sum(0) for x in batches(train)]
            self.module.mean = (sum(seen[1:], seen[0]) / len(train)).float()

    def _losses(self, images: Tensor, step: int, generator: torch.Generator) -> Sequence[Tensor]:
        with no_autocast(images):  # patches of a good image differ by less than bfloat16's steps
            position, svdd = self._tasks(self.module.standardised(images), generator)
        return position + WEIGHT * svdd, position.detach(), svdd.detach()

    def _tasks(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the losses of the position task and of SVDD, each over both scales, of standardised images."""
        position, svdd = x.new_zeros(()), x.new_zeros(())
        for side, _ in SCALES:
            first, label, second = position_pairs(x.shape, side, generator)
            pair = [changed(crops(x, corner, side), generator) for corner in (first, second)]
            h1, h2 = self.module.embed(torch.cat(pair), side).flatten(1).chunk(2)
            position = position + F.cross_entropy(self.module.classifiers[str(side)](h1 - h2), label.to(x.device))
            pair = [crops(x, corner, side) for corner in svdd_pairs(x.shape, side, generator)]
            svdd = svdd + svdd_loss(*self.module.embed(torch.cat(pair), side).flatten(1).chunk(2))
        return position, svdd

    def _finish(self, train: Split) -> None:
        """Keep embeddings of good patches."""
        each = max(1, BANK // len(train))
        generator = generator_for(self.config.train.seed, "psvdd bank")
        kept: dict[int, list[Tensor]] = {side: [] for side, _ in SCALES}
        for images in batches(train):
            for (side, _), found in zip(SCALES, self._run(images, self._embeddings), strict=True):
                for points in found.flatten(2).mT:  # (P, D) of one image
                    order = torch.randperm(len(points), generator=generator)[:each].sort().values
                    kept[side].append(points[order.to(points.device)])
        for side, parts in kept.items():
            setattr(self.module, f"bank{side}", torch.cat(parts))

    def _embeddings(self, images: Tensor) -> list[Tensor]:
        return list(self.module.dense(self.module.standardised(images)))

    def _score(self, images: Tensor) -> Tensor:
        size, product = working_size(images.shape[-2:]), None
        for (side, stride), found in zip(SCALES, self._embeddings(images), strict=True):
            count, _, height, width = found.shape
            bank = getattr(self.module, f"bank{side}")
            distance = nearest(found.flatten(2).mT.flatten(0, 1), bank)[0].view(count, 1, height, width)
            spread = distributed(distance, side, stride)
            assert spread.shape[-2:] == size
            product = spread if product is None else product * spread
        assert product is not None
        return resize(product, images.shape[-2:])[:, 0]


class PatchSVDDNetwork(nn.Module):
    """Encoders of both scales, position classifiers, the mean good image, and embeddings of good patches.

    Attributes
    ----------
    mean : Tensor
        (3, H, W), at the working size.
    bank64, bank32 : Tensor
        Embeddings (M, 64) of good patches of 64 and 32 px.
    """

    learned = ("mean", "bank64", "bank32")
    mean: Tensor
    bank64: Tensor
    bank32: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.small = SmallEncoder()
        self.join, self.last = nn.Conv2d(DIMS, 128, 2), nn.Conv2d(128, DIMS, 1)
        self.classifiers = nn.ModuleDict({str(side): PositionClassifier() for side, _ in SCALES})
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        for side, _ in SCALES:
            self.register_buffer(f"bank{side}", torch.zeros(1, DIMS))

    def standardised(self, images: Tensor) -> Tensor:
        """Bring images (B, 3, H, W) to the working size and subtract the mean good one."""
        return resize(images, working_size(images.shape[-2:])) - self.mean

    def embed(self, patches: Tensor, side: int) -> Tensor:
        """Return embeddings (B, D, 1, 1) of patches (B, 3, K, K)."""
        if side == 32:
            return self.small(patches)
        quarters = [patches[:, :, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
        a, b, c, d = self.small(torch.cat(quarters)).chunk(4)
        return self.joined(torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2), 1)

    def joined(self, small: Tensor, apart: int) -> Tensor:
        """Return embeddings from those of four quarters, so many places apart."""
        x = F.conv2d(small, self.join.weight, self.join.bias, dilation=apart)
        embedding: Tensor = self.last(F.leaky_relu(x, SLOPE)).tanh()
        return embedding

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings of all patches of images (B, 3, H, W) of 64 and 32 px, at strides 16 and 4."""
        small = self.small(images)  # every second patch of 32 px
        return self.joined(small[:, :, ::8, ::8], 2), small[:, :, ::2, ::2]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take what fitting learned at the size that it has."""
        for name in self.learned:
            if (value := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.zeros_like(value, device=self.mean.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SmallEncoder(nn.Sequential):
    """Embeds every second patch of 32 px, (B, 3, H, W) → (B, 64, ⌊(H−32)/2⌋+1, …); it sees 31 px of them."""

    widths = (3, 32, 64, 128, 128, 64, 32, 32, DIMS)

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for index, (a, b) in enumerate(itertools.pairwise(self.widths)):
            layers += [nn.Conv2d(a, b, 3, 1 if index else 2), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers[:-1], nn.Tanh())


class PositionClassifier(nn.Module):
    """Tells the 8 positions from the difference of embeddings, (B, 64) → (B, 8)."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            *(nn.Linear(DIMS, 128), nn.LeakyReLU(SLOPE)), *(nn.Linear(128, 128), nn.LeakyReLU(SLOPE))
        )
        last = nn.Linear(128, 8)
        self.register_buffer("last", F.normalize(last.weight.detach(), dim=0))
        self.bias = last.bias

    def forward(self, difference: Tensor) -> Tensor:
        """Return logits."""
        return F.linear(self.hidden(difference), self.last, self.bias)


def working_size(size: Sequence[int]) -> tuple[int, int]:
    """Return sides, multiples of 16 and at least 64, of about 256² px in the aspect ratio of ``size``."""
    factor = SIDE / (size[0] * size[1]) ** 0.5
    height, width = (max(64, 16 * round(side * factor / 16)) for side in size)
    return height, width


def position_pairs(shape: Sequence[int], side: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a patch per image of ``shape`` (B, 3, H, W) and one of its 8 neighbours.

    Returns corners (B, 2) of the patches, the neighbour's position (B,), 0 to 7 row by row, and its corners. It is 3/4
    to 1 side away in each direction; where it would leave the image it is shifted back, as in the authors' code.
    """
    first, limit = _corners(shape, side, generator)
    label = torch.randint(8, (shape[0],), generator=generator)
    place = label + (label > 3)  # of 9, the fifth is the patch itself
    direction = torch.stack([place // 3 - 1, place % 3 - 1], dim=1)
    away = 3 * side // 4 + torch.randint(side // 4, (shape[0], 2), generator=generator)
    return first, label, torch.minimum((first + direction * away).clamp(min=0), limit)


def svdd_pairs(shape: Sequence[int], side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a patch per image of ``shape`` and another up to K/32 px away in each direction; corners (B, 2) of both."""
    first, limit = _corners(shape, side, generator)
    reach = side // 32
    row = 2 * reach + 1
    place = torch.randint(row * row - 1, (shape[0],), generator=generator)
    place = place + (place >= row * row // 2)  # the middle is the patch itself
    shift = torch.stack([place // row - reach, place % row - reach], dim=1)
    return first, torch.minimum((first + shift).clamp(min=0), limit)


def _corners(shape: Sequence[int], side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw corners (B, 2) of patches; returns the largest too."""
    limit = torch.tensor([shape[-2] - side, shape[-1] - side])
    drawn = [torch.randint(int(top) + 1, (shape[0],), generator=generator) for top in limit]
    return torch.stack(drawn, dim=1), limit


def crops(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return of every image (B, 3, H, W) the patch at its corner (B, 2), (B, 3, K, K)."""
    place = corners.to(images.device)[:, :, None] + torch.arange(side, device=images.device)  # (B, 2, K)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    found = images.permute(0, 2, 3, 1)[number, place[:, 0, :, None], place[:, 1, None]]
    return found.permute(0, 3, 1, 2)


def changed(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Shift the colours of patches (B, 3, K, K) and add noise, so that colour drifts do not give positions away."""
    count, _, height, width = patches.shape
    for size in ((count, 3, 1, 1), (count, 3, height, width)):
        patches = patches + NOISE * torch.randn(size, generator=generator).to(patches.device)
    return patches


def svdd_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean distance of embeddings (B, D) of neighbours, L_SVDD'."""
    return (first - second).norm(dim=1).mean()


def distributed(scores: Tensor, side: int, stride: int) -> Tensor:
    """Give every pixel the mean of the scores (B, 1, h, w) of the patches that contain it, (B, 1, H, W)."""

    def spread(x: Tensor) -> Tensor:
        rows, columns = x.new_ones(1, 1, side, 1), x.new_ones(1, 1, 1, side)
        return F.conv_transpose2d(F.conv_transpose2d(x, rows, stride=(stride, 1)), columns, stride=(1, stride))

    return spread(scores) / spread(torch.ones_like(scores[:1]))
