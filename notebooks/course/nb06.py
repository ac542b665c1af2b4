"""Checks of notebook 06: the gate, how far a row reaches, and a gate without hard borders."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mlffn_lite.calibration import SelfCalibratedConv

from .checks import exercise

Gate = Callable[[SelfCalibratedConv, Tensor], Tensor]


def _copied(block: SelfCalibratedConv, x: Tensor, *, keep: bool = True, most: bool = False) -> Tensor:
    context = block.context((F.max_pool2d if most else F.avg_pool2d)(x, block.rate))
    return torch.sigmoid(keep * x + F.interpolate(context, size=x.shape[2:], mode="nearest"))


@exercise(
    "06.1",
    wrong={
        "leaves out x": lambda block, x: _copied(block, x, keep=False),
        "adds x behind the sigmoid": lambda block, x: x + _copied(block, x, keep=False),
        "takes the largest of a block": lambda block, x: _copied(block, x, most=True),
        "does not pool": lambda block, x: torch.sigmoid(x + block.context(x)),
        "leaves out the sigmoid": lambda block, x: _copied(block, x).logit(),
    },
)
def gate(answer: Gate) -> None:
    """The gate of the block, with copied blocks."""
    torch.manual_seed(0)
    block = SelfCalibratedConv(6, 4).eval()
    x = torch.randn(2, 6, 12, 16)
    with torch.no_grad():
        got = answer(block, x)
        assert got.shape == x.shape, f"expected the shape of x, {tuple(x.shape)}, got {tuple(got.shape)}"
        assert got.min() >= 0, "a gate lies between 0 and 1"
        assert got.max() <= 1, "a gate lies between 0 and 1"
        blocks = (got.double().logit() - x).unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
        assert blocks.std((3, 5)).max() < 1e-3, "the logit of the gate less x must be the same in all of a block"
        assert torch.allclose(block.out(block.feature(x) * got), block(x), atol=1e-5), (
            "σ(x + Up(ConvBN(AvgPool(x)))) gives another gate"
        )


def _three_blocks(row: int, rate: int, size: int) -> tuple[int, int]:
    first = row // rate
    return max(first - 1, 0) * rate, min((first + 2) * rate, size) - 1


def _no_border(row: int, rate: int, size: int) -> tuple[int, int]:
    return ((row - 1) // rate - 1) * rate, ((row + 1) // rate + 2) * rate - 1


def _exclusive_end(row: int, rate: int, size: int) -> tuple[int, int]:
    top, bottom = max(row - 1, 0), min(row + 1, size - 1)
    return max(top // rate - 1, 0) * rate, min((bottom // rate + 2) * rate, size)


@exercise(
    "06.2",
    wrong={
        "forgets the last convolution": _three_blocks,
        "leaves the map": _no_border,
        "gives the row after the last": _exclusive_end,
    },
)
def reach(answer: Callable[[int, int, int], tuple[int, int]]) -> None:
    """First and last input row of an output row, against the gradient of a real block."""
    for rate, size in ((1, 9), (3, 12), (4, 24)):
        torch.manual_seed(0)
        block = SelfCalibratedConv(2, rate).double().eval()
        for row in range(0, size, 2):
            x = torch.randn(1, 2, size, 1, dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(block(x)[0, :, row].sum(), x)
            rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
            got = tuple(int(r) for r in answer(row, rate, size))
            assert len(got) == 2, "return two rows, the first and the last"
            where = f"row {row} of {size} at r = {rate}: you say {got[0]} to {got[1]}"
            assert 0 <= got[0] <= got[1] < size, f"{where}; the map has the rows 0 to {size - 1}"
            assert got == (int(rows[0]), int(rows[-1])), f"{where}; the gradient of a real block says otherwise"


def _gate(block: SelfCalibratedConv, x: Tensor, keep: bool = True, **options: object) -> Tensor:
    context = block.context(F.avg_pool2d(x, block.rate))
    up = F.interpolate(context, size=x.shape[2:], **options)  # type: ignore[arg-type]
    return torch.sigmoid(keep * x + up)


@exercise(
    "06.3",
    wrong={
        "copies blocks": lambda block, x: _gate(block, x, mode="nearest"),
        "aligns the corners": lambda block, x: _gate(block, x, mode="bilinear", align_corners=True),
        "leaves out x": lambda block, x: _gate(block, x, keep=False, mode="bilinear", align_corners=False),
        "leaves out the sigmoid": lambda block, x: _gate(block, x, mode="bilinear", align_corners=False).logit(),
    },
)
def smooth_gate(answer: Gate) -> None:
    """The gate with bilinear upsampling."""
    torch.manual_seed(0)
    block = SelfCalibratedConv(6, 4).eval()
    x = torch.randn(2, 6, 12, 16)
    with torch.no_grad():
        got, expected = answer(block, x), _gate(block, x, mode="bilinear", align_corners=False)
        assert got.shape == x.shape, f"expected the shape of x, {tuple(x.shape)}, got {tuple(got.shape)}"
        assert got.min() >= 0, "a gate lies between 0 and 1"
        assert got.max() <= 1, "a gate lies between 0 and 1"
        rest = got.double().logit() - x
        assert rest.std() < 2, "without x, the gate's logit must be the upsampled context"
        assert torch.allclose(got, expected, atol=1e-5), (
            "x + Up(ConvBN(AvgPool(x))) with bilinear Up gives another gate"
        )
