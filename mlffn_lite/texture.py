"""§1.2 Statistical texture: quantisation and counting (QCO), texture enhancement (TEM) and its pyramid (PTFEM).

The modules follow the equations, but not the textbook order of work:

* a pixel activates at most two levels (windows ``full_bin`` and ``half_bin``), so on a CPU the encoding E is kept as
  two indices and two weights per pixel; elsewhere it is dense: matrix products are fast and deterministic there;
* ``W [a; b] = W₁ a + W₂ b``: a mean shared by many levels or level pairs is multiplied once, not once for each;
* pooling into sub-regions and upsampling are products with small matrices, exact for any size. Unlike adaptive pooling
  and bilinear interpolation they have a deterministic backward pass on CUDA.

QCO runs in float32 (float64 for float64 input) also under autocast: a level is often narrower than bfloat16 resolves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .config import TextureConfig
from .layers import FuseConv, no_autocast

Placement = Literal["center", "edge"]
Window = Literal["full_bin", "half_bin", "literal"]
Neighbour = Literal["right", "diagonal"]
_DEFAULT = TextureConfig()


class Quantization(NamedTuple):
    """Result of :func:`quantize_1d`: encoding E (B, N, H*W), levels L and counts (B, N), global average g (B, C)."""

    encoding: Tensor
    levels: Tensor
    counts: Tensor
    mean: Tensor


def quantize_1d(
    x: Tensor, levels: int, *, placement: Placement = "center", window: Window = "full_bin"
) -> Quantization:
    """Quantise the cosine similarity of every pixel with the global average into levels and count them (QCO-1D).

    With g the average of x over its pixels, M_i = cos(x_i, g), Δ = (max M − min M)/N and n = 1…N, equations (1) and (2)
    are E_{i,n} = 1 − |L_n − M_i| inside the window and 0 outside; counts_n = Σ_i E_{i,n} / Σ_n Σ_i E_{i,n}.

    Parameters
    ----------
    x : Tensor
        Features, (B, C, H, W), floating point. A pixel shorter than 1e-6 has similarity 0.
    levels : int
        N, at least 2.
    placement : {"center", "edge"}
        L_n = min M + (n − ½)Δ, the bin centres; or min M + nΔ, the right bin edges as printed in the paper.
    window : {"full_bin", "half_bin", "literal"}
        ``full_bin``: |L_n − M_i| < Δ, up to two levels per pixel. ``half_bin``: −Δ/2 ≤ L_n − M_i < Δ/2, up to one.
        In both, pixels at min M count as just above it, so an open end does not lose them.
        ``literal``: −0.5/N ≤ L_n − M_i < 0.5/N, whatever the range.

    Returns
    -------
    Quantization
        Differentiable throughout (nothing is detached), float32 unless x is float64. Counts sum to 1, and are uniform
        where no window holds a pixel (``literal`` at a range above 1). In a constant map (range of M within rounding)
        all levels are equal: its pixels take the one or two levels in the middle, E = 1; under ``literal``, all levels.

    Raises
    ------
    ValueError
        If an argument has a wrong shape or value.
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    _check_choice("placement", placement, Placement)
    _check_choice("window", window, Window)
    encoding, counts, mean = _Bins(levels, placement, window).quantize(x)
    return Quantization(encoding.weight, encoding.levels, counts, mean)


def cooccurrence_2d(encoding: Tensor, size: tuple[int, int], *, neighbour: Neighbour = "right") -> Tensor:
    """Count how often two levels meet at adjacent pixels: P_{m,n} ∝ Σ E_m(i, j) E_n(i′, j′), which sums to 1 (QCO-2D).

    Parameters
    ----------
    encoding : Tensor
        (B, N, H*W), from :func:`quantize_1d`.
    size : tuple of int
        (H, W).
    neighbour : {"right", "diagonal"}
        (i′, j′) = (i, j + 1), or (i + 1, j + 1); pixels that have none in the map start no pair.

    Returns
    -------
    Tensor
        (B, N, N). Uniform, 1/N², where no two active pixels are neighbours, as in a map one pixel wide.

    Raises
    ------
    ValueError
        If an argument has a wrong shape or value.
    """
    if encoding.ndim != 3 or encoding.shape[-1] != size[0] * size[1]:
        raise ValueError(f"encoding must be (B, N, H*W) with H*W = {size[0]}*{size[1]}, got {tuple(encoding.shape)}")
    _check_choice("neighbour", neighbour, Neighbour)
    with no_autocast(encoding):
        return _cooccurrence(_wide(encoding).unflatten(-1, tuple(size)), neighbour)


class TextureEnhancement(nn.Module):
    """TEM: D = Cat(MLP(B), g) → self-attention over the N levels → D′; every pixel reads R = D′ᵀE.

    MLP(B) and the reduced g have C/2 columns each, so D is N×C as in the paper; queries, keys and values have C/2 too.
    The learned adjacency A has self-loops, D′ = ReLU(BN(W (I + A) V)): at first A is nearly uniform and would make all
    levels alike. BN normalises over all levels of the batch. The counts enter the MLP times N: mean 1 for any N.

    Parameters
    ----------
    channels : int
        C.
    config : TextureConfig, optional
        N (``tem_levels``), the reading of QCO-1D, and whether attention logits are divided by √d (STLNet's code does
        not).
    """

    def __init__(self, channels: int, config: TextureConfig = _DEFAULT) -> None:
        super().__init__()
        self.bins = _Bins(config.tem_levels, config.placement, config.window)
        width = max(channels // 2, 4)
        self.scale = width**-0.5 if config.scaled_attention else 1.0
        self.statistics = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.reduce = nn.Linear(channels, width, bias=False)
        self.qkv = nn.Linear(2 * width, 3 * width, bias=False)
        self.out = nn.Sequential(nn.Linear(width, channels, bias=False), nn.BatchNorm1d(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to R of the same shape and type; H and W are at least 1."""
        encoding, counts, mean = self.bins.quantize(x, sparse=x.device.type == "cpu")
        table = self.describe(encoding.levels, counts, mean)
        with no_autocast(x):
            out = encoding.read_out(_wide(table)).to(x.dtype)
        return out.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)

    def describe(self, levels: Tensor, counts: Tensor, mean: Tensor) -> Tensor:
        """Return D′, (B, N, C), from levels (B, N), counts (B, N) and g (B, C)."""
        statistics = self.statistics(torch.stack((levels, counts * self.bins.levels), -1))
        own, shared = self.qkv.weight.chunk(2, 1)
        q, k, v = (F.linear(statistics, own) + F.linear(self.reduce(mean), shared).unsqueeze(1)).chunk(3, -1)
        adjacency = torch.softmax(q @ k.mT * self.scale, -1).to(v.dtype)
        return self.out((v + adjacency @ v).flatten(0, 1)).unflatten(0, levels.shape)


class PyramidTexture(nn.Module):
    """PTFEM: QCO-2D in 1×1, 2×2, 4×4, … sub-regions, each described by a texture unit; upsampled and fused.

    Along an axis of H pixels, scale s makes min(s, H) regions; region r covers pixels ⌊rH/s⌋ to ⌊(r+1)H/s⌋ − 1: every
    pixel lies in one region of each scale, and none is empty. A region has its own mean and its own range of
    similarity, and its pairs of neighbours stay inside it. Upsampling is linear between the centres of the regions
    (constant outside the outermost), which for divisible sizes is bilinear interpolation with half-pixel centres.

    Parameters
    ----------
    channels : int
        C. Each texture unit has a width of C/4.
    config : TextureConfig, optional
        Sub-regions per side of each branch (``scales``), N (``ptfem_levels``), and the reading of QCO-1D and QCO-2D.
    """

    def __init__(self, channels: int, config: TextureConfig = _DEFAULT) -> None:
        super().__init__()
        self.bins = _Bins(config.ptfem_levels, config.placement, config.window)
        self.neighbour, self.scales = config.neighbour, config.scales
        width = max(channels // 4, 4)
        self.units = nn.ModuleList(_TextureUnit(channels, width) for _ in self.scales)
        self.fuse = nn.Linear(width * len(self.scales), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape and type; H and W are at least 1."""
        rows = _rows(x)
        height, width = x.shape[-2:]
        grids = [(min(s, height), min(s, width)) for s in self.scales]
        with no_autocast(x):
            means, cosines = _region_cosines(rows, grids)
            counted = [self._count_pairs(cosine, grid) for cosine, grid in zip(cosines, grids, strict=True)]
        described = [unit(*pairs, mean) for unit, pairs, mean in zip(self.units, counted, means, strict=True)]
        # Fusing and upsampling are both linear, so the fusing layer runs on regions instead of pixels. Upsampling keeps
        # a constant, so one branch carries the bias.
        weights = self.fuse.weight.chunk(len(grids), 1)
        biases = (self.fuse.bias, *[None] * (len(grids) - 1))
        fused = [
            _wide(F.linear(branch, weight, bias))
            for branch, weight, bias in zip(described, weights, biases, strict=True)
        ]
        with no_autocast(x):
            return _upsample(fused, (height, width)).to(x.dtype).permute(0, 3, 1, 2)

    def _count_pairs(self, cosine: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return levels (B, s, s, N) and co-occurrence (B, s, s, N, N) of a similarity map (B, H, W)."""
        regions, valid = _regions(cosine, grid)
        encoding = self.bins.encode(regions.flatten(-2))
        weight = encoding.weight.unflatten(-1, regions.shape[-2:])
        return encoding.levels, _cooccurrence(weight, self.neighbour, valid)


class StatisticalTexture(nn.Module):
    """Low-level texture of §1.1: low → TEM → fuse(low, TEM) → PTFEM → fuse(low, TEM, PTFEM).

    Parameters
    ----------
    channels : int
        C.
    config : TextureConfig, optional
        Of both modules.
    """

    def __init__(self, channels: int, config: TextureConfig = _DEFAULT) -> None:
        super().__init__()
        self.tem = TextureEnhancement(channels, config)
        self.ptfem = PyramidTexture(channels, config)
        self.fuse_tem = FuseConv(2 * channels, channels)
        self.fuse_all = FuseConv(3 * channels, channels)

    def forward(self, low: Tensor) -> Tensor:
        """Map the fused low level, (B, C, H, W), to the texture feature of the same shape."""
        low = low.contiguous(memory_format=torch.channels_last)
        tem = self.tem(low)
        ptfem = self.ptfem(self.fuse_tem(torch.cat((low, tem), 1)))
        return self.fuse_all(torch.cat((low, tem, ptfem), 1))


class _TextureUnit(nn.Module):
    """Describe a region by its level pairs (L_m, L_n, P_mn) and its mean: MLP, then the mean over the pairs.

    Batch normalisation over the pairs of all regions, at least N² values, makes their small differences visible.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.pair = nn.Linear(3, width)
        self.mix = nn.Linear(width, width, bias=False)
        self.mean = nn.Linear(channels, width, bias=False)
        self.pair_norm = nn.BatchNorm1d(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, levels: Tensor, pairs: Tensor, mean: Tensor) -> Tensor:
        """Levels (..., N), co-occurrence (..., N, N), region mean (..., C) → (..., width)."""
        first, second = levels.unsqueeze(-1).expand_as(pairs), levels.unsqueeze(-2).expand_as(pairs)
        pairs = pairs * levels.shape[-1] ** 2  # mean 1 for any N
        hidden = F.relu(self.pair(torch.stack((first, second, pairs), -1)))
        hidden = self.mix(hidden) + self.mean(mean)[..., None, None, :]
        hidden = F.relu(self.pair_norm(hidden.flatten(0, -2))).view_as(hidden)
        return F.relu(self.norm(hidden.mean((-3, -2))))


@dataclass(frozen=True)
class _Bins:
    """A reading of equation (1): how the range of the similarity is cut into levels."""

    levels: int
    placement: str
    window: str

    def quantize(self, x: Tensor, *, sparse: bool = False) -> tuple[_Encoding, Tensor, Tensor]:
        """QCO-1D of a map: its encoding, counts (B, N) and mean (B, C)."""
        rows = _rows(x).flatten(1, 2)
        with no_autocast(x):
            mean = rows.mean(1)
            encoding = self.encode(_Cosine.apply(rows, _unit(mean).unsqueeze(1)).squeeze(1), sparse=sparse)
            return encoding, encoding.counts(), mean

    def encode(self, similarity: Tensor, *, sparse: bool = False) -> _Encoding:
        """Encode similarities (..., K) at all levels, or where possible only at the two around each pixel."""
        sparse = sparse and self.window != "literal"
        first = 0.5 if self.placement == "center" else 1.0  # position of L_1, in bins above the minimum
        low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
        step = (high - low) / self.levels
        ladder = torch.arange(self.levels, device=similarity.device, dtype=similarity.dtype)
        with torch.no_grad():  # which levels are active; the weights carry the gradient
            span = high - low
            flat = span <= 64 * torch.finfo(span.dtype).eps
            position = (similarity - low) / span.masked_fill(flat, 1.0) * self.levels
            position = (position.clamp_min(1e-6).masked_fill(flat, self.levels / 2) - first).unsqueeze(-2)
            below = position.floor()
            level = torch.cat((below, below + 1), -2) if sparse else ladder.unsqueeze(-1)
            away = level - position  # how many bins a level lies above a pixel
        distance = low.unsqueeze(-2) + (level + first) * step.unsqueeze(-2) - similarity.unsqueeze(-2)
        if self.window == "full_bin":
            inside = away.abs() < 1
        elif self.window == "half_bin":
            inside = (away >= -0.5) & (away < 0.5)
        else:
            inside = (distance >= -0.5 / self.levels) & (distance < 0.5 / self.levels)
        if sparse:
            inside &= (level >= 0) & (level < self.levels)
        # NaN has no level, but must come out as NaN, for the trainer to report, and not as a bad index.
        index = level.nan_to_num(0).clamp(0, self.levels - 1).long() if sparse else None
        return _Encoding((1 - distance.abs()) * inside, index, low + (ladder + first) * step)


class _Encoding(NamedTuple):
    weight: Tensor  # (..., J, K): E at all N levels, or at J = 2 levels per pixel
    which: Tensor | None  # (..., J, K): those levels; None where J = N
    levels: Tensor  # (..., N)

    def counts(self) -> Tensor:
        """Equation (2): (B, N), sums to 1."""
        if self.which is None:
            return _normalise(self.weight.sum(-1), 1)
        zeros = torch.zeros_like(self.levels)
        return _normalise(zeros.scatter_add(-1, self.which.flatten(1), self.weight.flatten(1)), 1)

    def read_out(self, table: Tensor) -> Tensor:
        """R = D′ᵀE: level descriptors (B, N, C) → pixels (B, K, C)."""
        if self.which is None:
            return self.weight.mT @ table
        batch, levels, _ = table.shape
        index = self.which + torch.arange(batch, device=table.device).view(-1, 1, 1) * levels
        index, weight = index.mT.flatten(0, 1), self.weight.mT.flatten(0, 1)
        pixels = F.embedding_bag(index, table.flatten(0, 1), mode="sum", per_sample_weights=weight)
        return pixels.unflatten(0, (batch, -1))


def _cooccurrence(encoding: Tensor, neighbour: str, valid: Tensor | None = None) -> Tensor:
    """(..., N, h, w) → (..., N, N); pairs whose second pixel is not ``valid`` (..., 1, h, w) are left out."""
    down = int(neighbour == "diagonal")
    second = encoding if valid is None else encoding * valid
    first, second = encoding[..., : encoding.shape[-2] - down, :-1], second[..., down:, 1:]
    return _normalise(first.flatten(-2) @ second.flatten(-2).mT, 2)


def _normalise(sums: Tensor, dims: int) -> Tensor:
    """Divide by the sum over the last ``dims`` axes; uniform where that is 0."""
    flat = sums.flatten(-dims)
    total = flat.sum(-1, keepdim=True)
    empty = total <= 0
    return torch.where(empty, 1 / flat.shape[-1], flat / total.masked_fill(empty, 1.0)).view_as(sums)


class _Cosine(torch.autograd.Function):
    """Cosine of every row (G, P, C) with every unit vector (G, R, C) → (G, R, P); 0 for a row shorter than 1e-6.

    By hand, because the backward pass then fills one buffer of the size of the rows where autograd fills five.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, units: Tensor) -> Tensor:
        inverse = _inverse_norm(rows).unsqueeze(-2)
        cosine = (units @ rows.mT) * inverse
        ctx.save_for_backward(rows, units, inverse, cosine)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        rows, units, inverse, cosine = ctx.saved_tensors
        radial = (grad * cosine).sum(-2).mul_(-inverse.squeeze(-2).square()).unsqueeze(-1)
        grad = grad * inverse
        with no_autocast(rows):
            return (rows * radial).baddbmm_(grad.mT, units), grad @ rows


def _inverse_norm(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1)
    return norm.masked_fill(norm < 1e-6, torch.inf).reciprocal()


def _unit(x: Tensor) -> Tensor:
    return x * _inverse_norm(x).unsqueeze(-1)


def _region_cosines(rows: Tensor, grids: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return, per grid, region means (B, s, s, C) and the cosine of each pixel with its region's mean (B, H, W).

    The rows of pixels are read twice, whatever the number of grids: once for the means, and once by :class:`_Cosine`,
    with the regions of all grids that a row crosses. A pixel's cosines with those of other columns are dropped.
    """
    height, width = rows.shape[1:3]
    across = [grid[1] for grid in grids]
    columns = torch.cat([_membership(width, s, rows) for s in across], 1)  # (W, Σs)
    strips = (columns / columns.sum(0)).mT @ rows  # (B, H, Σs, C): means over a row's pixels within a region
    means, units = [], []
    for strip, grid in zip(strips.split(across, 2), grids, strict=True):
        lines = _membership(height, grid[0], rows)
        means.append(torch.einsum("hr,bhsc->brsc", lines / lines.sum(0), strip))
        units.append(torch.einsum("hr,brsc->bhsc", lines, _unit(means[-1])))  # of the regions that a row crosses
    cosines = _Cosine.apply(rows.flatten(0, 1), torch.cat(units, 2).flatten(0, 1)).unflatten(0, (-1, height))
    return means, [own.sum(-2) for own in (cosines * columns.mT).split(across, -2)]


def _upsample(branches: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum of the branches (B, s, s, C), each upsampled to (B, H, W, C)."""
    columns = torch.cat([_interpolation(size[1], b.shape[2], b) @ b for b in branches], 1)  # (B, Σs, W, C)
    rows = torch.cat([_interpolation(size[0], b.shape[1], b) for b in branches], 1)  # (H, Σs)
    return (rows @ columns.flatten(2)).unflatten(-1, columns.shape[2:])


def _starts(size: int, parts: int, like: Tensor) -> Tensor:
    return torch.tensor([r * size // parts for r in range(parts + 1)], device=like.device)


def _membership(size: int, parts: int, like: Tensor) -> Tensor:
    """(size, parts): 1 where a pixel lies in a region."""
    starts, pixel = _starts(size, parts, like), torch.arange(size, device=like.device).unsqueeze(1)
    return ((pixel >= starts[:-1]) & (pixel < starts[1:])).to(like.dtype)


def _interpolation(size: int, parts: int, like: Tensor) -> Tensor:
    """(size, parts): linear interpolation between the centres of the regions; rows sum to 1."""
    starts = _starts(size, parts, like).to(like.dtype)
    centres = (starts[:-1] + starts[1:] - 1) / 2
    pixel = torch.arange(size, device=like.device, dtype=like.dtype).unsqueeze(1)
    share = ((pixel - centres[:-1]) / centres.diff()).clamp(0, 1)  # how far a pixel is from each centre to the next
    return torch.cat((torch.ones_like(pixel), share), 1) - torch.cat((share, torch.zeros_like(pixel)), 1)


def _regions(cosine: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Cut a map (B, H, W) into regions (B, s, s, h, w).

    Where they differ in size, the smaller ones repeat pixels of their own and the mask (s, s, 1, h, w) excludes those.
    """
    height, width = cosine.shape[1:]
    if height % grid[0] == 0 and width % grid[1] == 0:
        return cosine.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1)).transpose(2, 3), None
    (rows, rows_valid), (columns, columns_valid) = _slots(height, grid[0], cosine), _slots(width, grid[1], cosine)
    valid = rows_valid[:, None, None, :, None] & columns_valid[None, :, None, None, :]
    return cosine[:, rows[:, None, :, None], columns[None, :, None, :]], valid


def _slots(size: int, parts: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(parts, longest): the pixels of each region, the last one repeated; and which are no repeats."""
    starts = _starts(size, parts, like)
    length, slot = starts.diff().unsqueeze(1), torch.arange(-(-size // parts), device=like.device)
    return starts[:-1, None] + torch.minimum(slot, length - 1), slot < length


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H, W, C), contiguous, at least float32."""
    if x.ndim != 4 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(f"expected a floating-point map (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    return _wide(x).permute(0, 2, 3, 1).contiguous()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
