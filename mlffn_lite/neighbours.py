"""Nearest neighbours: which of many points to keep, and how far others are from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def coreset(points: Tensor, count: int, projection: int, generator: torch.Generator) -> Tensor:
    """Choose ``count`` of the points (N, C) so that the others lie close to them; returns indices (count,)."""
    start = int(torch.randint(len(points), (), generator=generator))
    if 0 < projection < points.shape[1]:
        points = points @ sparse_projection(points.shape[1], projection, generator).to(points.device)
    return greedy_k_center(points, count, start)


def greedy_k_center(points: Tensor, count: int, start: int) -> Tensor:
    """Choose points one after another, always the one farthest from all chosen so far (minimax facility location).

    Parameters
    ----------
    points : Tensor
        (N, C), float.
    count : int
        How many, 1 to N.
    start : int
        The first one.

    Returns
    -------
    Tensor
        Indices (count,), all different, in the order of choice.
    """
    points = points - points.mean(0)  # small squares: they are subtracted below
    half = points.square().sum(1) / 2
    distance = torch.full_like(half, math.inf)  # half the square, to the nearest chosen point
    chosen = torch.empty(count, dtype=torch.long, device=points.device)
    index = torch.tensor(start, device=points.device)  # stays on the device: no transfer per step
    for step in range(count):
        chosen[step] = index
        torch.minimum(distance, torch.mv(points, points[index]).neg_().add_(half).add_(half[index]), out=distance)
        distance[index] = -math.inf  # not again, even where points coincide
        index = distance.argmax()
    return chosen


def sparse_projection(channels: int, dims: int, generator: torch.Generator) -> Tensor:
    """Draw a very sparse random projection (channels, dims) that keeps distances (Li et al., 2006).

    One entry in √channels is not zero, and ±√(√channels / dims).
    """
    density = channels**-0.5
    draw = torch.rand(channels, dims, generator=generator)
    return ((draw < density / 2).float() - (draw > 1 - density / 2).float()) / math.sqrt(density * dims)


def nearest(queries: Tensor, bank: Tensor, *, cells: int = 2**24) -> tuple[Tensor, Tensor]:
    """Find the nearest point of a bank.

    Parameters
    ----------
    queries, bank : Tensor
        (N, C) and (M, C), float32.
    cells : int
        Entries of the N × M table that exist at a time.

    Returns
    -------
    Tensor, Tensor
        Euclidean distance and index in the bank, (N,) each.  The table ranks by ‖b‖²/2 − q·b; the distance itself is
        computed from the difference, and so keeps its precision where it is small.
    """
    centre = bank.mean(0)  # small squares: they are subtracted below
    queries, bank = queries - centre, bank - centre
    half = bank.square().sum(1) / 2
    rows = max(1, cells // len(bank))
    index = torch.cat([torch.addmm(half, part, bank.T, alpha=-1).argmin(1) for part in queries.split(rows)])
    return (queries - bank[index]).norm(dim=1), index


def smallest(table: Tensor, count: int, *, groups: int = 8) -> Tensor:
    """Find the smallest entries of every row.

    Parameters
    ----------
    table : Tensor
        (N, M), float.
    count : int
        How many, 1 to M.
    groups : int
        A row is cut into as many pieces, one below the other. Of the columns that this makes, those with the smallest
        minima hold the smallest entries; a minimum over pieces is far faster than a search through a row.

    Returns
    -------
    Tensor
        Columns (N, count), smallest entry first.
    """
    rows, columns = table.shape
    length = columns // groups
    if length <= count:
        return table.topk(count, dim=1, largest=False).indices
    stacked = table[:, : length * groups].unflatten(1, (groups, length))
    column = stacked.amin(1).topk(count, dim=1, largest=False).indices  # (N, count)
    places = (column[:, None] + length * torch.arange(groups, device=table.device)[:, None]).flatten(1)
    rest = torch.arange(length * groups, columns, device=table.device).expand(rows, -1)
    places = torch.cat([places, rest], dim=1)
    return places.gather(1, table.gather(1, places).topk(count, dim=1, largest=False).indices)
