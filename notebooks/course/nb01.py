"""Checks of notebook 01, the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.losses import resize_mask
from mlffn_lite.metrics import image_auroc

from .checks import exercise


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _relative(images: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (images - images.mean(dims, keepdim=True)) / images.std(dims, keepdim=True)


@exercise(
    "01.1",
    wrong={
        "equal scores count in full": lambda s, y: float((s[y == 1][:, None] >= s[y == 0]).double().mean()),
        "equal scores count nothing": lambda s, y: float((s[y == 1][:, None] > s[y == 0]).double().mean()),
        "compares the means": lambda s, y: float(s[y == 1].mean() > s[y == 0].mean()),
    },
)
def auroc(answer: Callable[[Tensor, Tensor], float]) -> None:
    """AUROC of scores with ties."""
    labels = torch.tensor([0, 1] * 20)
    constant = answer(torch.zeros(40), labels)
    assert abs(constant - 0.5) < 1e-6, f"a constant score knows nothing and has 0.5; got {constant:.3f}"
    for seed in range(3):
        scores = (5 * _noise(40, seed=seed) + labels).round()
        got, expected = float(answer(scores, labels)), image_auroc(scores, labels)
        assert abs(got - expected) < 1e-6, f"for scores with ties it should be {expected:.3f}; got {got:.3f}"
    assert answer(labels.float(), labels) > 0.999, "scores that rank perfectly have 1"


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
