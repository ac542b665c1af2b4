"""Checks of notebook 05: QCO-2D, the neighbour below, maps that the right one confuses, and both in the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.texture import PyramidTexture, cooccurrence_2d, quantize_1d

from .checks import exercise


def _pairs(levels: Tensor, count: int, down: int = 0) -> Tensor:
    found = torch.zeros(count, count)
    for above, row in zip(levels[: len(levels) - down], levels[down:], strict=True):
        for left, right in zip(above[:-1].tolist(), row[1:].tolist(), strict=True):
            found[left, right] += 1
    return found / found.sum()


def _products(encoding: Tensor, size: tuple[int, int], *, step: int = 1, across: bool = False) -> Tensor:
    e = encoding.unflatten(1, size)
    first, second = (
        (encoding[:, :-1], encoding[:, 1:]) if across else (e[..., :-step].flatten(1), e[..., step:].flatten(1))
    )
    pairs = first @ second.T
    return pairs / pairs.sum()


@exercise(
    "05.1",
    wrong={
        "pairs the end of a row with the start of the next": lambda e, size: _products(e, size, across=True),
        "swaps left and right": lambda e, size: _products(e, size).T,
        "counts without normalising": lambda e, size: _products(e, size) * 7,
        "takes the pixel after the next": lambda e, size: _products(e, size, step=2),
    },
)
def co_occurrence(answer: Callable[[Tensor, tuple[int, int]], Tensor]) -> None:
    """Co-occurrence of right neighbours."""
    one_hot = torch.eye(4)[torch.tensor([0, 1, 1, 2, 0, 1])].T  # a map of 2 × 3 pixels
    got = answer(one_hot, (2, 3))
    assert isinstance(got, Tensor), "return a tensor"
    assert got.shape == (4, 4), (
        f"expected one row and one column per level, also for empty ones, got {tuple(got.shape)}"
    )
    assert abs(float(got.sum()) - 1) < 1e-5, "the matrix must sum to 1"
    assert got[1, 2] == 0, "the last pixel of a row and the first of the next are no neighbours"
    assert got[2, 0] > 0, "a 2 stands left of a 0: that belongs to row 2, column 0"
    x = torch.randn(1, 3, 9, 13, generator=torch.Generator().manual_seed(3))
    encoding = quantize_1d(x, 5).encoding
    expected = cooccurrence_2d(encoding, (9, 13))[0]
    assert torch.allclose(answer(encoding[0], (9, 13)), expected, atol=1e-5), "wrong sums for weights between 0 and 1"


def _turned_matrix(encoding: Tensor, size: tuple[int, int]) -> Tensor:
    return cooccurrence_2d(encoding, size).mT


def _swapped_size(encoding: Tensor, size: tuple[int, int]) -> Tensor:
    return cooccurrence_2d(encoding, (size[1], size[0]))


@exercise("05.2", wrong={"transposes the matrix": _turned_matrix, "swaps only the size": _swapped_size})
def pairs_below(answer: Callable[[Tensor, tuple[int, int]], Tensor]) -> None:
    """Co-occurrence with the pixel below."""
    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(5))
    encoding = quantize_1d(x, 3).encoding
    got = answer(encoding, (6, 4))
    assert got.shape == (2, 3, 3), f"expected (B, N, N) = (2, 3, 3), got {tuple(got.shape)}"
    rows = encoding.unflatten(2, (6, 4))
    expected = torch.einsum("bmij,bnij->bmn", rows[:, :, :-1], rows[:, :, 1:])
    expected = expected / expected.sum((1, 2), keepdim=True)
    assert torch.allclose(got.mT, expected, atol=1e-5) <= torch.allclose(got, expected, atol=1e-5), (
        "rows must be the level of the upper pixel, columns that of the lower one"
    )
    assert torch.allclose(got, expected, atol=1e-5), "these are not the pairs of each pixel with the one below it"


def _grid() -> tuple[Tensor, Tensor]:
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    return row, column


@exercise(
    "05.3",
    wrong={
        "differs at the border": (_grid()[1] % 2, sum(_grid()) % 2),
        "the same map twice": (_grid()[1] % 2, _grid()[1] % 2),
        "the pair that the diagonal confuses": (_grid()[0] % 2, _grid()[1] % 2),
    },
)
def blind_pair(answer: tuple[Tensor, Tensor]) -> None:
    """Two maps that are equal for the right neighbour and far apart for the diagonal one."""
    assert isinstance(answer, tuple | list), "give a tuple (a, b)"
    assert len(answer) == 2, "give two maps, (a, b)"
    a, b = (torch.as_tensor(m).long() for m in answer)
    for m in (a, b):
        assert m.shape == (8, 8), "both maps must be 8 × 8"
        assert set(m.unique().tolist()) <= {0, 1}, "the maps hold only 0 and 1"
    assert a.sum() == b.sum(), "the maps do not have the same number of ones"
    right, diagonal = ((_pairs(a, 2, down) - _pairs(b, 2, down)).abs().sum().item() for down in (0, 1))
    assert right < 1e-6, f"for the right neighbour the matrices are {right:.3f} apart; they must be equal"
    assert diagonal >= 1, f"for the diagonal neighbour the matrices are {diagonal:.3f} apart; that must be at least 1"


def _both(ptfem: PyramidTexture, x: Tensor, *, half: float = 0.5, back: bool = True) -> Tensor:
    turned = ptfem(x.transpose(2, 3))
    return half * (ptfem(x) + (turned.transpose(2, 3) if back else turned))


@exercise(
    "05.4",
    wrong={
        "one direction": lambda ptfem, x: ptfem(x),
        "does not turn back": lambda ptfem, x: _both(ptfem, x, back=False),
        "the sum": lambda ptfem, x: _both(ptfem, x, half=1.0),
        "only below": lambda ptfem, x: ptfem(x.transpose(2, 3)).transpose(2, 3),
    },
)
def both_ways(answer: Callable[[PyramidTexture, Tensor], Tensor]) -> None:
    """PTFEM of both neighbours."""
    torch.manual_seed(0)
    ptfem, x = PyramidTexture(8).train(), torch.randn(2, 8, 16, 16)  # BN of these pairs lets it see them (section 5)
    with torch.no_grad():
        got, turned = answer(ptfem, x), answer(ptfem, x.transpose(2, 3))
        assert got.shape == x.shape, f"expected the shape of x, {tuple(x.shape)}, got {tuple(got.shape)}"
        assert torch.allclose(got, turned.transpose(2, 3), atol=1e-5), "a turned map must give the turned result"
        assert torch.allclose(got, _both(ptfem, x), atol=1e-5), "that is not the mean of both directions"
