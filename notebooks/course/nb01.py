"""Checks of notebook 01, the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.losses import resize_mask

from .checks import exercise


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _relative(images: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (images - images.mean(dims, keepdim=True)) / images.std(dims, keepdim=True)


def _golden(images: Tensor, mean: Tensor, deviation: Tensor, *, floor: float = 0.02, signed: bool = False) -> Tensor:
    away = images - mean if signed else (images - mean).abs()
    return (away / (deviation + floor)).amax(1)


@exercise(
    "01.1",
    wrong={
        "darker pixels do not count": lambda x, m, s: _golden(x, m, s, signed=True),
        "forgets the floor": lambda x, m, s: _golden(x, m, s, floor=0.0),
        "the mean over channels": lambda x, m, s: ((x - m).abs() / (s + 0.02)).mean(1),
        "keeps the channels": lambda x, m, s: (x - m).abs() / (s + 0.02),
    },
)
def golden_sample(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Deviation from the mean of good images, in units of theirs."""
    images, mean, deviation = _noise(4, 3, 6, 8), _noise(3, 6, 8, seed=1), 0.1 * _noise(3, 6, 8, seed=2)
    deviation[:, 0, 0] = 0
    got = answer(images, mean, deviation)
    assert got.shape == (4, 6, 8), f"expected a map per image, (4, 6, 8), got {tuple(got.shape)}"
    assert bool(torch.isfinite(got).all()), "where the good images are all alike, the score is not finite"
    assert float(got.min()) >= 0, "no score is negative; darker than the mean is as unusual as brighter"
    assert torch.allclose(got, _golden(images, mean, deviation), rtol=1e-4), (
        "that is not the largest |x − μ| / (σ + 0.02)"
    )


@exercise(
    "01.2",
    wrong={
        "subtracts the mean only": lambda x: x - x.mean((2, 3), keepdim=True),
        "all channels together": lambda x: _relative(x, (1, 2, 3)),
        "all images together": lambda x: _relative(x, (0, 2, 3)),
        "throws the part away": lambda x: torch.zeros_like(x),
    },
)
def relight(answer: Callable[[Tensor], Tensor]) -> None:
    """A representation that no lamp changes."""
    images = 0.2 + 0.6 * _noise(3, 3, 12, 12)
    gain, offset = 0.5 + _noise(3, 3, 1, 1, seed=1), 0.2 * _noise(3, 3, 1, 1, seed=2)
    plain, lit = answer(images), answer(gain * images + offset)
    assert plain.shape == images.shape, f"the shape should stay {tuple(images.shape)}; got {tuple(plain.shape)}"
    assert torch.allclose(plain, lit, atol=1e-3), "another gain and offset per image and channel changed the result"
    alone = answer(images[:1])
    assert torch.allclose(alone, plain[:1], atol=1e-3), "the result of an image must not depend on the others"
    assert (plain[0] - plain[1]).abs().mean() > 1e-3, "two different parts must stay different"
    flat = answer(torch.full((1, 3, 8, 8), 0.5))
    assert bool(torch.isfinite(flat).all()), "a constant image gave values that are not finite"


@exercise(
    "01.3",
    wrong={
        "takes the nearest pixel": lambda m, s: m[:, s // 2 :: s, s // 2 :: s],
        "wants most of the cell": lambda m, s: m.unflatten(2, (-1, s)).unflatten(1, (-1, s)).float().mean((2, 4)) > 0.5,
        "wants the whole cell": lambda m, s: m.unflatten(2, (-1, s)).unflatten(1, (-1, s)).all(4).all(2),
    },
)
def coarse(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Masks at the resolution of features."""
    masks = _noise(5, 32, 48) > 0.97
    for stride in (4, 8):
        got = answer(masks, stride)
        size = 32 // stride, 48 // stride
        assert got.shape == (5, *size), f"the shape should be {(5, *size)}; got {tuple(got.shape)}"
        assert got.dtype == torch.bool, f"the mask should be bool; got {got.dtype}"
        expected = resize_mask(masks[:, None], size)[:, 0]
        assert not bool((expected & ~got).any()), "a cell with a defective pixel in it is not marked"
        assert not bool((got & ~expected).any()), "a cell without any defective pixel is marked"
