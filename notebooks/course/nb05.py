"""Checks of notebook 05: pairs by counting, the neighbour below, and two maps that the right neighbour confuses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlffn_lite.texture import cooccurrence_2d, quantize_1d

from .checks import exercise


def _pairs(levels: Tensor, count: int, down: int = 0) -> Tensor:
    found = torch.zeros(count, count)
    for above, row in zip(levels[: len(levels) - down], levels[down:], strict=True):
        for left, right in zip(above[:-1].tolist(), row[1:].tolist(), strict=True):
            found[left, right] += 1
    return found / found.sum()


def _across_rows(levels: Tensor, count: int) -> Tensor:
    flat = levels.flatten()
    found = torch.bincount(flat[:-1] * count + flat[1:], minlength=count * count).float()
    return (found / found.sum()).view(count, count)


@exercise(
    "05.1",
    wrong={
        "pairs the end of a row with the start of the next": _across_rows,
        "swaps left and right": lambda levels, count: _pairs(levels, count).T,
        "counts without normalising": lambda levels, count: _pairs(levels, count) * 7,
    },
)
def pairs_of(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Co-occurrence of right neighbours, by counting."""
    levels = torch.tensor([[0, 1, 1], [2, 0, 1]])
    got = answer(levels, 4)
    assert isinstance(got, Tensor), "return a tensor"
    assert got.shape == (4, 4), (
        f"expected one row and one column per level, also for absent ones, got {tuple(got.shape)}"
    )
    assert abs(float(got.sum()) - 1) < 1e-5, "the matrix must sum to 1"
    assert got[1, 2] == 0, "the last pixel of a row and the first of the next are no neighbours"
    assert got[2, 0] > 0, "a 2 stands left of a 0: that belongs to row 2, column 0"
    drawn = torch.randint(0, 5, (9, 13), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(answer(drawn, 5).float(), _pairs(drawn, 5), atol=1e-5), "wrong counts for a larger map"


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
