"""Checks of notebook 02, pseudo-anomalies."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.datasets import AnomalyFolder
from mlffn_lite.datasets.miniparts import miniparts_path
from mlffn_lite.pseudo import VISIBLE_CHANGE, ConfettiNoise, CutPaste

from .checks import exercise

Generated = tuple[Tensor, Tensor]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=_seeded(seed))


def _visible(before: Tensor, after: Tensor) -> Tensor:
    return ((after - before).abs() > VISIBLE_CHANGE).any(1, keepdim=True)


def _squares(
    centre: Tensor, side: Tensor, angle: Tensor, sigma: float, size: int, *, turn: float = 1.0, half: float = 2.0
) -> Tensor:
    pixel = torch.arange(size)
    dy, dx = pixel[:, None] - centre[:, 0, None, None], pixel - centre[:, 1, None, None]
    cos, sin, edge = (t[:, None, None] for t in (angle.cos(), turn * angle.sin(), side / half))
    scale = math.sqrt(2) * sigma
    along, across = (
        ((t + edge) / scale).erf() - ((t - edge) / scale).erf() for t in (dy * cos + dx * sin, dx * cos - dy * sin)
    )
    return (along * across / 4)[:, None]


@exercise(
    "02.1",
    wrong={
        "turns the other way": lambda *given: _squares(*given, turn=-1.0),
        "takes the side for half of it": lambda *given: _squares(*given, half=1.0),
        "swaps rows and columns": lambda centre, *given: _squares(centre.flip(1), *given),
        "sharp squares": lambda *given: (_squares(*given) > 0.5).float(),
        "forgets the channel": lambda *given: _squares(*given)[:, 0],
    },
)
def coverage(answer: Callable[[Tensor, Tensor, Tensor, float, int], Tensor]) -> None:
    """Blurred squares, one per image."""
    centre, side = torch.tensor([[10.0, 20.0], [15.5, 14.0]]), torch.tensor([8.0, 5.0])
    upright, turned = torch.zeros(2), torch.tensor([0.4, -0.7])
    got = answer(centre, side, upright, 1.5, 32)
    assert got.shape == (2, 1, 32, 32), f"expected (B, 1, size, size) = (2, 1, 32, 32), got {tuple(got.shape)}"
    assert got[0, 0, 10, 20] > 0.95, "in the middle of a square, which is at (row, column), the coverage is nearly 1"
    assert abs(float(got[0].sum()) - 64) < 1, "a blur keeps the area: the coverage of a square of side 8 sums to 64"
    assert torch.allclose(got, _squares(centre, side, upright, 1.5, 32), atol=1e-4), "the blur is another"
    found = answer(centre, side, turned, 1.5, 32)
    assert torch.allclose(found, _squares(centre, side, turned, 1.5, 32), atol=1e-4), "a turned square looks otherwise"


@exercise(
    "02.2",
    wrong={
        "the default": ConfettiNoise(),
        "one square of the default": ConfettiNoise(count=(1, 1)),
        "small squares with the default blur": ConfettiNoise(count=(2, 4), side=(4 / 256, 8 / 256)),
        "too faint to see": ConfettiNoise(count=(1, 1), dark=0.0, colour=(-0.03, 0.03), blur=1 / 256),
    },
)
def small(answer: Callable[..., Generated]) -> None:
    """Confetti of the size of real defects."""
    images = AnomalyFolder(miniparts_path() / "flange", size=128).train.images()
    _, masks = answer(images, generator=_seeded(0))
    share = 100 * masks.float().mean((1, 2, 3))
    empty = int((share == 0).sum())
    assert empty == 0, f"{empty} of {len(share)} masks are empty: such an image is no anomaly"
    median = float(share.median())
    assert 0.2 <= median <= 0.6, f"the median share is {median:.2f} % of the image; it should be 0.2 to 0.6 %"


@exercise(
    "02.3",
    wrong={
        "chooses images independently": lambda ratio, batch, batches: (1 - ratio) ** (batch * batches),
        "rounds the number": lambda ratio, batch, batches: float(round(ratio * batch) == 0),
        "forgets that probabilities end at 0": lambda ratio, batch, batches: (1 - ratio * batch) ** batches,
    },
)
def silent(answer: Callable[[float, int, int], float]) -> None:
    """The probability of batches without any pseudo-anomaly."""
    for ratio, batch, batches, expected in ((0.05, 8, 1, 0.6), (0.05, 8, 5, 0.07776), (0.02, 16, 3, 0.314432)):
        got = float(answer(ratio, batch, batches))
        claim = f"at a ratio of {ratio}, {batches} batch(es) of {batch}, the probability is not {got:.4f}"
        assert abs(got - expected) < 1e-6, claim
    for batches in (1, 2):
        got = float(answer(0.5, 8, batches))
        assert abs(got) < 1e-9, f"at a ratio of a half every batch of 8 holds one, so it should be 0; got {got:.3f}"
    assert abs(float(answer(0.0, 8, 3)) - 1) < 1e-9, "at a ratio of 0 nothing ever happens"


def _grey_box(images: Tensor, generator: torch.Generator) -> Generated:
    out = images.clone()
    out[:, :, 4:12, 4:12] = 0.5
    return out, _visible(images, out)


def _in_place(images: Tensor, generator: torch.Generator) -> Generated:
    before, (out, masks) = images.clone(), CutPaste()(images, generator=generator)
    images.copy_(out)
    return images, _visible(before, images) & masks


def _marks_a_box(images: Tensor, generator: torch.Generator) -> Generated:
    out, masks = ConfettiNoise()(images, generator=generator)
    return out, masks.any(2, keepdim=True) & masks.any(3, keepdim=True)


@exercise(
    "02.4",
    wrong={
        "always the same place": _grey_box,
        "global random numbers": lambda images, generator: ConfettiNoise()(
            images, generator=_seeded(int(torch.randint(0, 2**31, ())))
        ),
        "marks the bounding box": _marks_a_box,
        "changes its input": _in_place,
        "changes nothing": lambda images, generator: (images, torch.zeros_like(images[:, :1], dtype=torch.bool)),
    },
)
def smudge(answer: Callable[[Tensor, torch.Generator], Generated]) -> None:
    """A generator that keeps the contract."""
    images = torch.cat([_noise(4, 3, 40, 56), torch.zeros(2, 3, 40, 56), torch.ones(2, 3, 40, 56)])
    given = images.clone()
    out, masks = answer(given, _seeded(1))
    assert torch.equal(given, images), "the input was modified; work on a copy"
    assert out.shape == images.shape, f"the images should have shape {tuple(images.shape)}; got {tuple(out.shape)}"
    assert masks.shape == (8, 1, 40, 56), f"the masks should have shape (8, 1, 40, 56); got {tuple(masks.shape)}"
    assert masks.dtype == torch.bool, f"the masks should be bool; got {masks.dtype}"
    assert bool(((out >= 0) & (out <= 1)).all()), "some values leave the range from 0 to 1"
    unchanged = int((~masks.flatten(1).any(1)).sum())
    assert not unchanged, f"{unchanged} of 8 images have an empty mask; two of the images are black, two white"
    assert torch.equal(masks, _visible(images, out)), "the mask differs from the pixels that changed visibly"
    outside = ~masks.expand_as(out)
    assert torch.equal(out[outside], images[outside]), "pixels outside the mask should equal the input exactly"
    assert torch.equal(answer(images, _seeded(1))[0], out), "the same generator state should give the same images"
    assert not torch.equal(answer(images, _seeded(2))[1], masks), "another generator state should give other defects"
