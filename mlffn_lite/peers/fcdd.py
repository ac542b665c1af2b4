"""FCDD (Liznerski et al., ICLR 2021): a fully convolutional network whose output is the explanation."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import STRIDES, Backbone, build_backbone
from ..features import smooth
from ..layers import no_autocast
from .augment import jitter, turned
from .trained import TrainedPeer

EPOCHS, REPEATS, DECAY = 200, 10, 0.985
SIDE = 224
"""Side of the paper's images; the pixels below are of such images, and scale."""
SIGMA = 12.0
"""Standard deviation of the Gaussian that brings the map to the image."""
CONFETTI, BLUR = (8.0, 54.0), 5.0
COLOURED, WHITE = 1.8e-5 * SIDE**2, 1.2e-5 * SIDE**2
"""Squares expected in an image, were none allowed."""
MOST = 8
LEVEL = 1
"""The level whose stage is trained, at stride 8 as in the paper."""


class FCDD(TrainedPeer):
    """Distance from the origin, small on good images and large on those with confetti, at every output position.

    Notes
    -----
    The paper keeps VGG-11 up to stride 8, freezes it up to stride 4, trains the rest and a 1×1 convolution to one
    channel; here the backbone's level at stride 8 takes that place, and its stage is what is trained (the coarser
    level is computed in vain), with the running statistics of all (as in the authors' code, which freezes parameters
    only). Images are confetti's with chance ½. As in the code for MVTec AD: SGD with Nesterov's momentum 0.9, rate
    1e-3 times 0.985 an epoch, decay 1e-5, 128 images, 200 epochs of ten passes; crops of 14/15, slight colour jitter
    and noise; σ = 12 of 224 px. The preset ``small`` takes a tenth of that many images, of a set of 60, and clips
    gradients; its rate falls as much. Square confetti, plain and white, is smoothed and added, or subtracted where
    adding changes nothing. Receptive fields are found by a gradient, so that also the shift of a network's padding is
    undone; being sums, not means, maps are low near borders, as the paper's are.

    With the preset ``small`` it takes 135 to 175 s for 60 images of 128 px on two busy cores, one thread. On held-out
    good images it then finds its own confetti (image AUROC 100, pixel 99 %); subtle defects it does not.
    """

    pace = 2.0  # 400 steps of 16 images leave the loss far from its end
    paper_batch = 128
    lr = 1e-3

    def _build(self) -> nn.Module:
        backbone = build_backbone(self.config.model.backbone, self.config.model.weights)
        return FullyConvolutional(backbone.set_mode("train"))

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        trained = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=1e-5)

    def _factor(self, step: int, steps: int) -> float:
        return float(DECAY ** (EPOCHS * step // steps))

    def _paper_steps(self, images: int) -> int:
        return EPOCHS * -(-REPEATS * images // self.paper_batch)

    def _losses(self, images: Tensor, step: int, generator: torch.Generator) -> Sequence[Tensor]:
        chosen = torch.rand(len(images), generator=generator) < 0.5
        anomalous = chosen.to(images.device)
        noise = confetti(len(images), images.shape[2], images.shape[3], generator).to(images)
        images = torch.where(anomalous.view(-1, 1, 1, 1), malformed(images, noise), images)
        return [objective(self.module(augmented(images, generator)), anomalous)]

    def _score(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        sigma = SIGMA * math.sqrt(size[0] * size[1]) / SIDE
        return receptive_upsample(self.module(images), size, self.module.start, self.module.side, sigma)


class FullyConvolutional(nn.Module):
    """The backbone up to stride 8, of which the last stage is trained, and a 1×1 convolution.

    Attributes
    ----------
    start, side : float, int
        Centre of the first output's receptive field, and every one's side, in pixels.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.last = backbone, nn.Conv2d(backbone.channels[LEVEL], 1, 1)
        self.start, self.side = receptive_field(backbone.body, LEVEL)
        weights = list(backbone.body.parameters())
        levels = backbone.eval()(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        before, used = (
            [x is not None for x in torch.autograd.grad(levels[i].sum(), weights, allow_unused=True, retain_graph=True)]
            for i in (LEVEL - 1, LEVEL)
        )
        for weight, frozen, reached in zip(weights, before, used, strict=True):
            weight.requires_grad_(reached and not frozen)

    def forward(self, images: Tensor) -> Tensor:
        """Return the pseudo-Huber norm A = √(φ² + 1) − 1 at every position, (B, h, w), of images (B, 3, H, W)."""
        phi = self.last(self.backbone(images)[LEVEL])[:, 0]
        with no_autocast(phi):
            return pseudo_huber(phi.float())


def pseudo_huber(phi: Tensor) -> Tensor:
    """Return √(φ² + 1) − 1, without cancellation where φ is small."""
    square = phi**2
    return square / ((square + 1).sqrt() + 1)


def objective(a: Tensor, anomalous: Tensor) -> Tensor:
    """Return equation (3) for A (B, h, w): the mean of A, and −log(1 − exp(−mean A)) for anomalous images (B,)."""
    mean = a.flatten(1).mean(1)
    return torch.where(anomalous, -torch.log(-torch.expm1(-mean.clamp(min=1e-6))), mean).mean()


@torch.no_grad()
def receptive_field(body: nn.Module, level: int) -> tuple[float, int]:
    """Return the centre of the first output's receptive field, and its side, in pixels of an image of even sides.

    It is where the gradient of an output is not 0, in a copy without non-linearities that could hide it: weights all
    alike, pixels small and positive, means for maxima.
    """
    body = copy.deepcopy(body).double().eval()
    for part in list(body.modules()):
        if isinstance(part, nn.Conv2d):
            part.weight.fill_(1 / part.weight[0].numel())
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        for name, child in part.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(part, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    with torch.enable_grad():
        image = torch.full((1, 3, 256, 256), 1e-3, dtype=torch.float64, requires_grad=True)
        output = body(image)[level]
        middle = output.shape[2] // 2
        (gradient,) = torch.autograd.grad(output[0, :, middle, middle].sum(), image)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    return (rows[0] + rows[-1] + 1) / 2 - STRIDES[level] * middle, rows[-1] - rows[0] + 1


def receptive_upsample(a: Tensor, size: tuple[int, int] | torch.Size, start: float, side: int, sigma: float) -> Tensor:
    """Return algorithm 1's map (B, H, W) of A (B, h, w): a transposed convolution with a Gaussian of fixed variance.

    Each output stands at the centre of its receptive field, and reaches as far as that. The kernel is separable, so a
    matrix for the rows and one for the columns do it.
    """
    kernels = []
    for length, count in zip(size, a.shape[1:], strict=True):
        centres = start + STRIDES[LEVEL] * torch.arange(count).to(a)
        offsets = torch.arange(length).to(a)[:, None] + 0.5 - centres
        kernels.append(torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets.abs() <= side / 2))
    return kernels[0] @ a @ kernels[1].mT


def confetti(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return noise (count, 3, height, width) in [0, 2]: squares of a colour each and white ones, turned, smoothed."""
    scale = math.sqrt(height * width) / SIDE
    noise = torch.zeros(count, 3, height, width)
    for expected, coloured in ((COLOURED, True), (WHITE, False)):
        # As many as a Poisson variable says that is not 0: every image gets one.
        odds = torch.tensor([expected**k / math.factorial(k) for k in range(1, MOST + 1)])
        number = torch.multinomial(odds, count, replacement=True, generator=generator) + 1
        layer = torch.zeros_like(noise)
        draws = torch.rand(MOST, 7, count, generator=generator)
        for k, draw in enumerate(draws[: int(number.max())]):
            side = scale * (CONFETTI[0] + (CONFETTI[1] - CONFETTI[0]) * draw[0])
            centre = torch.stack([height * draw[2], width * draw[3]], 1)
            v, u = turned(height, width, centre, math.pi / 2 * (draw[1] - 0.5))
            inside = (torch.maximum(v.abs(), u.abs()) < side[:, None, None] / 2) & (k < number)[:, None, None]
            colour = draw[4:].T[:, :, None, None] if coloured else torch.ones(count, 3, 1, 1)
            layer = torch.where(inside[:, None], colour, layer)
        noise += layer
    return smooth(noise.flatten(0, 1), 256 * BLUR / SIDE).view_as(noise)


def malformed(images: Tensor, noise: Tensor) -> Tensor:
    """Add noise to images (B, 3, H, W), or subtract it where adding changes them by less than 0.025 levels of 255."""
    added, subtracted = (images + noise).clamp(0, 1), (images - noise).clamp(0, 1)
    plus, minus = ((x - images).abs().mean((1, 2, 3), keepdim=True) for x in (added, subtracted))
    return torch.where((plus < 0.025 / 255) & (minus > plus), subtracted, added)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop half of the images (B, 3, H, W) to 14/15 of their sides, jitter colours, add noise to half of them."""
    batch = len(images)
    draw = torch.rand(4, batch, generator=generator).to(images)
    zoom = torch.where(draw[0] < 0.5, 14 / 15, 1.0)
    theta = torch.zeros(batch, 2, 3).to(images)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = ((2 * draw[1:3] - 1) * (1 - zoom)).T
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    images = jitter(images, generator, amount=0.04)
    strength = 0.1 * (draw[3] < 0.5) * images.flatten(1).std(1)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return (images + strength.view(-1, 1, 1, 1) * noise).clamp(0, 1).contiguous(memory_format=torch.channels_last)
