"""Checks of notebook 03, what a backbone sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .checks import exercise

Layers = Sequence[tuple[int, int, int]]


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@exercise(
    "03.1",
    wrong={
        "those of ResNet-50": (35, 91, 267),
        "forgets the pooling": (39, 95, 207),
        "counts each kernel at the stride of its output": (58, 122, 250),
    },
)
def fields_of_resnet18(answer: tuple[int, int, int]) -> None:
    """Receptive fields of ResNet-18: 7×7 and pooling, then four 3×3 convolutions per stage."""
    field, jump, expected = 1, 1, []
    stages = ([(7, 2), (3, 2), *[(3, 1)] * 4], [(3, 2), *[(3, 1)] * 3], [(3, 2), *[(3, 1)] * 3])
    for stage in stages:
        for kernel, stride in stage:
            field, jump = field + (kernel - 1) * jump, jump * stride
        expected.append(field)
    got = list(answer)
    assert len(got) == 3, f"give three numbers, for strides 4, 8 and 16; got {len(got)}"
    assert got == sorted(got), "a later stage sees at least as far as an earlier one"
    right = [g == e for g, e in zip(got, expected, strict=True)]
    assert all(right), f"{sum(right)} of the three numbers are right; did you ask the network without its weights?"


def _sum_of_kernels(layers: Layers) -> tuple[int, int]:
    jump = 1
    for _, stride, _ in layers:
        jump *= stride
    return 1 + sum(d * (k - 1) for k, _, d in layers), jump


def _no_dilation(layers: Layers) -> tuple[int, int]:
    size, jump = 1, 1
    for kernel, stride, _ in layers:
        size, jump = size + (kernel - 1) * jump, jump * stride
    return size, jump


def _jump_too_early(layers: Layers) -> tuple[int, int]:
    size, jump = 1, 1
    for kernel, stride, dilation in layers:
        jump *= stride
        size += dilation * (kernel - 1) * jump
    return size, jump


@exercise(
    "03.2",
    wrong={"ignores jumps": _sum_of_kernels, "ignores dilation": _no_dilation, "uses the new jump": _jump_too_early},
)
def field(answer: Callable[[Layers], tuple[int, int]]) -> None:
    """Receptive fields with dilation."""
    cases: list[tuple[Layers, tuple[int, int]]] = [
        ([(3, 1, 1)], (3, 1)),
        ([(3, 1, 2)], (5, 1)),
        ([(3, 2, 1), (3, 1, 1)], (7, 2)),
        ([(7, 2, 1), (3, 2, 1), (3, 1, 4), (1, 1, 1)], (43, 4)),
    ]
    for layers, expected in cases:
        size, jump = answer(layers)
        assert jump == expected[1], f"the jump after {layers} is the product of the strides; got {jump}"
        assert size == expected[0], f"the field after {layers} should be {expected[0]}; got {size}"


def _rows(features: Tensor) -> Tensor:
    return features.movedim(1, 3).flatten(0, 2)


def _project(features: Tensor, directions: Tensor, mean: Tensor) -> Tensor:
    return ((features.movedim(1, 3) - mean) @ directions).movedim(3, 1)


def _directions(features: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(features)
    mean = rows.mean(0)
    return mean, torch.linalg.eigh((rows - mean).T @ (rows - mean))[1]


def _smallest(features: Tensor, count: int) -> Tensor:
    mean, directions = _directions(features)
    return _project(features, directions[:, :count], mean)


def _not_centred(features: Tensor, count: int) -> Tensor:
    mean, directions = _directions(features)
    return _project(features, directions.flip(1)[:, :count], torch.zeros_like(mean))


def _widest_channels(features: Tensor, count: int) -> Tensor:
    centred = features - features.mean((0, 2, 3), keepdim=True)
    return centred[:, features.var((0, 2, 3)).argsort(descending=True)[:count]]


@exercise(
    "03.3",
    wrong={
        "takes the smallest variances": _smallest,
        "does not centre": _not_centred,
        "picks channels": _widest_channels,
    },
)
def components(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Principal components of feature maps."""
    mixing = _noise(6, 6, seed=1)
    features = torch.einsum("dc,bchw->bdhw", mixing, _noise(3, 6, 5, 7)) + 2
    got = answer(features, 3)
    assert got.shape == (3, 3, 5, 7), f"the shape should be (3, 3, 5, 7); got {tuple(got.shape)}"
    rows = _rows(got)
    assert rows.mean(0).abs().max() < 1e-3, "the means over the batch should be 0"
    covariance = rows.T @ rows / len(rows)
    variances = covariance.diagonal()
    assert bool((variances.diff() < 0).all()), "the variances should fall from the first component to the last"
    loose = (covariance - variances.diag()).abs().max() / variances.max()
    assert loose < 1e-3, "two of the components are correlated"
    centred = _rows(features) - _rows(features).mean(0)
    expected = torch.linalg.svdvals(centred)[:3].square() / len(rows)
    assert torch.allclose(variances, expected, rtol=1e-2), "other directions of unit length have more variance"


def _reference(
    features: Tensor,
    reference: Tensor,
    *,
    diagonal: bool = False,
    root: bool = True,
    own: bool = False,
    counted: bool = True,
) -> Tensor:
    rows, asked = _rows(reference), _rows(features)
    basis = asked if own else rows
    mean, deviation = basis.mean(0), rows.std(0, correction=0)
    standard = (rows - rows.mean(0)) / deviation
    floor = 0.01 + (rows.shape[1] / len(rows) if counted else 0)
    correlation = torch.eye(rows.shape[1]) if diagonal else standard.T @ standard / len(rows)
    f = (asked - mean) / deviation
    squared = (f * torch.linalg.solve(correlation + floor * torch.eye(rows.shape[1]), f.T).T).sum(1)
    out = squared.sqrt() if root else squared
    return out.view(len(features), 1, *features.shape[2:])


@exercise(
    "03.4",
    wrong={
        "ignores correlations": lambda f, r: _reference(f, r, diagonal=True),
        "has the floor without C/n": lambda f, r: _reference(f, r, counted=False),
        "forgets the root": lambda f, r: _reference(f, r, root=False),
        "takes the mean of the test features": lambda f, r: _reference(f, r, own=True),
    },
)
def distance(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Gaussian distances of feature maps."""
    mixing = _noise(5, 5, seed=1)
    reference = torch.einsum("dc,bchw->bdhw", mixing, _noise(6, 5, 6, 6)) + 1
    features = torch.einsum("dc,bchw->bdhw", mixing, _noise(2, 5, 4, 3, seed=2)) + 1.5
    got, expected = answer(features, reference), _reference(features, reference)
    assert got.shape == expected.shape, f"the shape should be {tuple(expected.shape)}; got {tuple(got.shape)}"
    assert torch.allclose(got, expected, rtol=1e-3), "the distances differ from those of distances_by_loops"
    moved = answer(3 * features + 2, 3 * reference + 2)
    assert torch.allclose(moved, expected, rtol=1e-2), "scaling and shifting all features should change no distance"


Stages = list[Tensor]


def _standard(stages: Stages, good: Stages, *, own: bool = False, dims: tuple[int, ...] = (0, 2, 3)) -> Stages:
    pairs = zip(stages, stages if own else good, strict=True)
    return [(x - r.mean(dims, keepdim=True)) / r.std(dims, keepdim=True) for x, r in pairs]


@exercise(
    "03.5",
    wrong={
        "uses the stages' own statistics": lambda x, good: _standard(x, good, own=True),
        "all channels together": lambda x, good: _standard(x, good, dims=(0, 1, 2, 3)),
        "only centres": lambda x, good: [a - g.mean((0, 2, 3), keepdim=True) for a, g in zip(x, good, strict=True)],
        "forgets all stages but the first": lambda x, good: _standard(x[:1], good[:1]),
    },
)
def standardise(answer: Callable[[Stages, Stages], Stages]) -> None:
    """Stages on the scale of the good images."""
    scales = torch.tensor([1.0, 5.0, 0.2]).view(1, 3, 1, 1)
    good = [scales * _noise(6, 3, side, side) + 2 for side in (8, 4)]
    stages = [3 * scales * _noise(2, 3, side, side, seed=1) for side in (8, 4)]
    got = answer(stages, good)
    assert len(got) == 2, f"return as many stages as are given, 2; got {len(got)}"
    assert [x.shape for x in got] == [x.shape for x in stages], "every stage keeps its shape"
    for x in answer(good, good):
        assert x.mean((0, 2, 3)).abs().max() < 1e-3, "the good images themselves must have the mean 0 in every channel"
        assert (x.std((0, 2, 3)) - 1).abs().max() < 0.05, "and the deviation 1"
    for x, expected in zip(got, _standard(stages, good), strict=True):
        assert torch.allclose(x, expected, rtol=2e-2, atol=1e-2), "mean and deviation must be those of the good images"
