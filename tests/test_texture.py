"""QCO, TEM and PTFEM against loops written from the equations, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mlffn_lite import texture
from mlffn_lite.config import TextureConfig
from mlffn_lite.texture import (
    PyramidTexture,
    StatisticalTexture,
    TextureEnhancement,
    cooccurrence_2d,
    quantize_1d,
)

PLACEMENTS = ("center", "edge")
WINDOWS = ("full_bin", "half_bin", "literal")
NEIGHBOURS: tuple[Any, ...] = ("right", "diagonal")
UNKNOWN: Any = "left"


def small(**options: Any) -> TextureConfig:
    return TextureConfig(**({"tem_levels": 6, "ptfem_levels": 4} | options))


MODULES: dict[str, Callable[..., nn.Module]] = {
    "tem": lambda **options: TextureEnhancement(8, small(**options)),
    "ptfem": lambda **options: PyramidTexture(8, small(**options)),
    "texture": lambda **options: StatisticalTexture(8, small(**options)),
}


def ready(module: Any) -> Any:
    """Switch to evaluation in float64, with weights and running statistics that no mix-up leaves unnoticed."""
    generator = torch.Generator().manual_seed(1)
    layers: list[Any] = list(module.modules())
    for layer in layers:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(layer.weight, 1, 0.3, generator=generator)
            nn.init.normal_(layer.bias, 0, 0.3, generator=generator)
        if hasattr(layer, "running_mean"):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.05, 0.5, generator=generator)
    return module.double().eval()


def random_map(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- references -----------------------------------------------------------------------------------------------------


def reference_encoding(x: Tensor, levels: int, placement: Any, window: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Equations (1) and (2) for one map (C, H, W), pixel by pixel and level by level."""
    pixels = x.flatten(1).T
    mean = pixels.mean(0)
    similarity = [float(p @ mean / (p.norm() * mean.norm())) for p in pixels]
    low, high = min(similarity), max(similarity)
    step = (high - low) / levels
    ladder = [low + (n - 0.5 if placement == "center" else n) * step for n in range(1, levels + 1)]
    encoding = torch.zeros(levels, len(similarity), dtype=x.dtype)
    for (n, level), (i, value) in itertools.product(enumerate(ladder), enumerate(similarity)):
        d = level - value
        nudged = d - 1e-9 if value == low else d  # pixels at the minimum count as just above it
        if window == "full_bin":
            inside = abs(nudged) < step - 1e-12
        else:
            half = step / 2 if window == "half_bin" else 0.5 / levels
            inside = -half - 1e-12 <= (d if window == "literal" else nudged) < half - 1e-12
        encoding[n, i] = 1 - abs(d) if inside else 0.0
    total = encoding.sum()
    counts = encoding.sum(1) / total if total > 0 else torch.full((levels,), 1 / levels, dtype=x.dtype)
    return encoding, torch.tensor(ladder, dtype=x.dtype), counts, mean


def reference_pairs(encoding: Tensor, neighbour: Any) -> Tensor:
    """QCO-2D for E (N, H, W), pair by pair."""
    levels, height, width = encoding.shape
    down = 1 if neighbour == "diagonal" else 0
    pairs = torch.zeros(levels, levels, dtype=encoding.dtype)
    for i, j in itertools.product(range(height - down), range(width - 1)):
        pairs += torch.outer(encoding[:, i, j], encoding[:, i + down, j + 1])
    return pairs / pairs.sum() if pairs.sum() > 0 else torch.full_like(pairs, 1 / levels**2)


def reference_tem(module: TextureEnhancement, x: Tensor, placement: Any, window: Any) -> Tensor:
    """TEM for one map (C, H, W): D = Cat(MLP(B), g), attention level by level, R = D′ᵀE pixel by pixel."""
    levels = module.bins.levels
    encoding, ladder, counts, mean = reference_encoding(x, levels, placement, window)
    rows = [module.statistics(torch.stack((ladder[n], counts[n] * levels))) for n in range(levels)]
    described = torch.stack([torch.cat((row, module.reduce(mean))) for row in rows])
    assert described.shape == (levels, len(x))
    queries, keys, values = (described @ module.qkv.weight.T).chunk(3, 1)
    updated = []
    for n in range(levels):
        logits = torch.stack([queries[n] @ keys[m] for m in range(levels)]) * module.scale
        attended = sum(a * v for a, v in zip(logits.softmax(0), values, strict=True))
        updated.append(module.out((values[n] + attended)[None])[0])
    out = torch.zeros_like(x).flatten(1)
    for i in range(out.shape[1]):
        out[:, i] = sum(encoding[n, i] * updated[n] for n in range(levels))
    return out.view_as(x)


def reference_ptfem(module: PyramidTexture, x: Tensor, placement: Any, window: Any, neighbour: Any) -> Tensor:
    """PTFEM for one map (C, H, W), region by region, with full-size branches that are concatenated and fused."""
    height, width = x.shape[1:]
    branches = []
    for scale, unit in zip(module.scales, module.units, strict=True):
        edges = [[r * n // min(scale, n) for r in range(min(scale, n) + 1)] for n in (height, width)]
        grid = [
            [reference_unit(unit, x[:, a:b, c:d], module.bins.levels, placement, window, neighbour)
             for c, d in itertools.pairwise(edges[1])]
            for a, b in itertools.pairwise(edges[0])
        ]  # fmt: skip
        described = torch.stack([torch.stack(row) for row in grid]).detach().numpy()
        centres = [[(a + b - 1) / 2 for a, b in itertools.pairwise(e)] for e in edges]
        across = np.stack([[interpolate(v, centres[1], width) for v in row.T] for row in described])  # (s, C, W)
        full = np.stack([[interpolate(v, centres[0], height) for v in row] for row in across.T])  # (W, C, H)
        branches.append(torch.from_numpy(full).permute(2, 0, 1))
    return module.fuse(torch.cat(branches, -1)).permute(2, 0, 1)


def interpolate(values: np.ndarray, centres: list[float], size: int) -> np.ndarray:
    return np.interp(range(size), centres, values)


def reference_unit(unit: Any, region: Tensor, levels: int, placement: Any, window: Any, neighbour: Any) -> Tensor:
    """Describe one region (C, h, w): MLP over (L_m, L_n, P_mn) and the mean, averaged over the pairs."""
    encoding, ladder, _, mean = reference_encoding(region, levels, placement, window)
    pairs = reference_pairs(encoding.view(levels, *region.shape[1:]), neighbour)
    weight = torch.cat((unit.mix.weight, unit.mean.weight), 1)
    hidden = []
    for m, n in itertools.product(range(levels), repeat=2):
        pair = F.relu(unit.pair(torch.stack((ladder[m], ladder[n], pairs[m, n] * levels**2))))
        hidden.append(F.relu(unit.pair_norm(F.linear(torch.cat((pair, mean)), weight)[None])[0]))
    return F.relu(unit.norm(sum(hidden) / levels**2))


# --- QCO-1D ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("levels", [2, 5, 16])
def test_quantize_matches_the_equations(placement: Any, window: Any, levels: int) -> None:
    x = random_map(2, 3, 5, 7, seed=1)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = quantize_1d(x.to(dtype), levels, placement=placement, window=window)
        for b in range(2):
            expected = reference_encoding(x[b], levels, placement, window)
            for ours, theirs in zip(got, expected, strict=True):
                assert ours.dtype == dtype
                torch.testing.assert_close(ours[b].double(), theirs, rtol=0, atol=tolerance)


def test_quantize_by_hand() -> None:
    """Three pixels (1, 0) and one (0, 1): g = (3, 1)/4, M = 3/√10 three times and 1/√10 once; Δ = 1/√10."""
    x = torch.tensor([[[1.0, 1, 1, 0]], [[0, 0, 0, 1]]], dtype=torch.float64)[None]
    bin_ = 1 / math.sqrt(10)
    center = quantize_1d(x, 2)
    torch.testing.assert_close(center.mean, torch.tensor([[0.75, 0.25]], dtype=torch.float64))
    torch.testing.assert_close(center.levels, torch.tensor([[1.5 * bin_, 2.5 * bin_]], dtype=torch.float64))
    torch.testing.assert_close(center.counts, torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    near = 1 - bin_ / 2
    expected = torch.tensor([[[0, 0, 0, near], [near, near, near, 0]]], dtype=torch.float64)
    torch.testing.assert_close(center.encoding, expected)
    edge = quantize_1d(x, 2, placement="edge")
    expected = torch.tensor([[[0, 0, 0, 1 - bin_], [1, 1, 1, 0]]], dtype=torch.float64)
    torch.testing.assert_close(edge.encoding, expected)
    lost = quantize_1d(x, 2, placement="edge", window="half_bin")  # the lowest half bin has no level
    torch.testing.assert_close(lost.counts, torch.tensor([[0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("levels", [4, 5])
def test_constant_map_takes_the_middle(levels: int) -> None:
    x = torch.full((2, 3, 4, 5), 0.3)
    expected = {4: [0, 0.5, 0.5, 0], 5: [0, 0, 1, 0, 0]}[levels]
    got = quantize_1d(x, levels)
    torch.testing.assert_close(got.counts, torch.tensor([expected] * 2, dtype=torch.float32))
    assert got.encoding.amax().item() == pytest.approx(1, abs=1e-5)
    uniform = quantize_1d(x, levels, window="literal").counts
    torch.testing.assert_close(uniform, torch.full((2, levels), 1 / levels))


def test_counts_are_uniform_where_no_level_is_active() -> None:
    """M = ±1, so Δ/2 = 1/8 is wider than the literal half window of 1/16."""
    x = torch.tensor([[[[3.0, 1.0, -1.0]]]])
    got = quantize_1d(x, 8, window="literal")
    assert got.encoding.count_nonzero() == 0
    torch.testing.assert_close(got.counts, torch.full((1, 8), 1 / 8))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    levels=st.integers(2, 12),
    placement=st.sampled_from(PLACEMENTS),
    window=st.sampled_from(WINDOWS),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_properties(seed: int, size: tuple[int, int], levels: int, placement: Any, window: Any, scale: float) -> None:
    x = random_map(2, 4, *size, seed=seed)
    q = quantize_1d(x, levels, placement=placement, window=window)
    ones = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(q.counts.sum(1), ones)
    assert q.encoding.min() >= 0
    assert q.encoding.max() <= 1 + 1e-12
    assert (q.levels.diff(dim=1) >= 0).all()
    active = (q.encoding > 0).sum(1)
    if window == "half_bin" and placement == "center":
        assert (active == 1).all()
    elif window == "full_bin":
        assert (active >= 1).all()
        assert (active <= 2).all()
    for neighbour in NEIGHBOURS:
        pairs = cooccurrence_2d(q.encoding, size, neighbour=neighbour)
        torch.testing.assert_close(pairs.sum((1, 2)), ones)
    scaled = quantize_1d(x * scale, levels, placement=placement, window="full_bin")
    plain = quantize_1d(x, levels, placement=placement, window="full_bin")
    torch.testing.assert_close(scaled.levels, plain.levels)
    torch.testing.assert_close(scaled.counts, plain.counts, rtol=0, atol=0.5)  # a pixel at a cut may fall either way


def test_order_of_pixels_and_scale() -> None:
    """QCO-1D forgets where the pixels are and how long; QCO-2D remembers where."""
    x = random_map(1, 4, 6, 6)
    shuffled = x.flatten(2)[..., torch.randperm(36, generator=torch.Generator().manual_seed(3))].view_as(x)
    a, b, c = (quantize_1d(y, 5) for y in (x, shuffled, x * 7))
    torch.testing.assert_close(a.counts, b.counts)
    torch.testing.assert_close(a.counts, c.counts)
    torch.testing.assert_close(a.encoding, c.encoding)
    assert (cooccurrence_2d(a.encoding, (6, 6)) - cooccurrence_2d(b.encoding, (6, 6))).abs().max() > 1e-3


# --- QCO-2D ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize("size", [(4, 5), (1, 3), (3, 1), (2, 2)])
def test_cooccurrence_matches_the_definition(neighbour: Any, size: tuple[int, int]) -> None:
    encoding = quantize_1d(random_map(2, 3, *size), 4).encoding
    got = cooccurrence_2d(encoding, size, neighbour=neighbour)
    for b in range(2):
        expected = reference_pairs(encoding[b].view(4, *size), neighbour)
        torch.testing.assert_close(got[b], expected, rtol=0, atol=1e-12)


def test_equal_histograms_differ_only_in_cooccurrence() -> None:
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    stripes, checkers = row % 2, (row + column) % 2
    features = random_map(2, 16, dtype=torch.float32)
    a, b = (quantize_1d(features[m].permute(2, 0, 1)[None], 4) for m in (stripes, checkers))
    torch.testing.assert_close(a.counts, b.counts)
    pairs_a, pairs_b = (cooccurrence_2d(q.encoding, (8, 8))[0] for q in (a, b))
    assert pairs_a[0, 3] + pairs_a[3, 0] == 0
    assert pairs_a[0, 0] > 0.3
    assert pairs_a[3, 3] > 0.3
    assert pairs_b[0, 0] + pairs_b[3, 3] == 0
    assert pairs_b[0, 3] > 0.3
    assert pairs_b[3, 0] > 0.3
    torch.manual_seed(0)
    tem, ptfem = TextureEnhancement(16, small(tem_levels=4)), PyramidTexture(16, small(scales=(1,)))
    seen = [
        [module(features[m].permute(2, 0, 1)[None]).mean((2, 3)) for m in (stripes, checkers)]
        for module in (tem, ptfem)
    ]
    torch.testing.assert_close(seen[0][0], seen[0][1])
    assert (seen[1][0] - seen[1][1]).abs().max() > 1e-3


# --- modules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("scaled", [True, False])
def test_tem_matches_the_equations(placement: Any, window: Any, scaled: bool) -> None:
    torch.manual_seed(0)
    module = ready(TextureEnhancement(8, small(placement=placement, window=window, scaled_attention=scaled)))
    assert module.scale == (0.5 if scaled else 1.0)
    x = random_map(2, 8, 5, 3)
    got = module(x)
    for b in range(2):
        expected = reference_tem(module, x[b], placement, window)
        torch.testing.assert_close(got[b], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (1, 1), (3, 1), (16, 10)])
@pytest.mark.parametrize(
    ("neighbour", "placement", "window"),
    [("right", "center", "full_bin"), ("diagonal", "edge", "half_bin"), ("right", "center", "literal")],
)
def test_ptfem_matches_the_equations(size: tuple[int, int], neighbour: Any, placement: Any, window: Any) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"neighbour": neighbour, "placement": placement, "window": window}
    module = ready(PyramidTexture(4, small(scales=(1, 3, 8), ptfem_levels=3, **options)))
    x = random_map(1, 4, *size)
    expected = reference_ptfem(module, x[0], placement, window, neighbour)
    torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", ["full_bin", "half_bin"])
def test_sparse_and_dense_paths_agree(monkeypatch: pytest.MonkeyPatch, window: Any) -> None:
    torch.manual_seed(0)
    module = TextureEnhancement(16, small(tem_levels=32, window=window))
    x = random_map(2, 16, 24, 24, dtype=torch.float32).requires_grad_()
    results, original = [], texture._Bins.encode
    for sparse in (True, False):
        monkeypatch.setattr(texture._Bins, "encode", lambda self, x, s=sparse, **_: original(self, x, sparse=s))
        out = module(x)
        probe = random_map(*out.shape, dtype=torch.float32)
        results.append([out, *torch.autograd.grad(out, [x, *module.parameters()], probe)])
    for sparse_result, dense_result in zip(*results, strict=True):
        scale = dense_result.abs().max()
        torch.testing.assert_close(sparse_result / scale, dense_result / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("window", WINDOWS)
def test_gradients_of_qco(placement: Any, window: Any) -> None:
    x = random_map(1, 3, 3, 4, seed=2).requires_grad_()

    def both(y: Tensor) -> tuple[Tensor, ...]:
        q = quantize_1d(y, 4, placement=placement, window=window)
        return (*q, cooccurrence_2d(q.encoding, (3, 4)), cooccurrence_2d(q.encoding, (3, 4), neighbour="diagonal"))

    assert torch.autograd.gradcheck(both, (x,))
    assert all(y.requires_grad for y in both(x))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ["tem", "ptfem"])
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_gradients_of_modules(name: str, window: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = MODULES[name](window=window).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)  # at its initial values a unit may sit on the kink of a ReLU
    x = random_map(2, 8, *size, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)
    names, weights = zip(*module.named_parameters(), strict=True)

    def of_weights(*values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x.detach(),))

    assert torch.autograd.gradcheck(of_weights, tuple(w.detach().requires_grad_() for w in weights), fast_mode=True)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (9, 13), (16, 16)])
@pytest.mark.parametrize("window", WINDOWS)
def test_any_size_and_any_content_is_finite(name: str, size: tuple[int, int], window: Any) -> None:
    module = MODULES[name](window=window).train()
    contents = (
        random_map(1, 8, *size, dtype=torch.float32),
        torch.zeros(1, 8, *size),
        torch.full((1, 8, *size), -0.7),
        torch.relu(random_map(1, 8, *size, dtype=torch.float32) - 1.5),  # many pixels of length 0
    )
    for content in contents:
        x = content.requires_grad_()
        out = module(x)
        assert out.shape == x.shape
        gradients = torch.autograd.grad(out.sum(), [x, *module.parameters()])
        assert all(t.isfinite().all() for t in (out, *gradients))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    x = random_map(2, 8, 12, 10, dtype=torch.float32).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        out = module(x)
        levels = quantize_1d(x, 6)
        inside = torch.autograd.grad(out.float().square().mean(), x, retain_graph=True)  # also legal within autocast
    assert out.dtype == dtype
    assert levels.levels.dtype == torch.float32
    gradients = torch.autograd.grad(out.float().square().mean(), [x, *module.parameters()])
    assert all(t.isfinite().all() for t in (out, *gradients, *inside))
    exact = module(x.detach().float())
    assert (out.float() - exact).abs().max() < 0.06 * exact.abs().max()


@pytest.mark.parametrize("name", MODULES)
def test_memory_format_batch_and_repetition(name: str) -> None:
    """The layout changes nothing, images do not mix, and the same call returns the same bits."""
    module = MODULES[name]().eval()
    x = random_map(3, 8, 11, 9, dtype=torch.float32)
    probe = random_map(3, 8, 11, 9, seed=1, dtype=torch.float32)
    results = []
    for y in (x, x.to(memory_format=torch.channels_last), x):
        y = y.detach().requires_grad_()
        out = module(y)
        results.append((out, *torch.autograd.grad(out, [y, *module.parameters()], probe)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))
    single = torch.cat([module(image[None]) for image in x])
    torch.testing.assert_close(single, results[0][0], rtol=1e-4, atol=1e-5)


def test_upsampling_does_not_shift() -> None:
    """A branch that holds the centres of its regions returns the coordinates; even sizes agree with bilinear."""
    for size, parts in (((9, 13), (8, 4)), ((7, 5), (2, 3)), ((6, 6), (6, 1))):
        grids = [[(r * n // p + (r + 1) * n // p - 1) / 2 for r in range(p)] for n, p in zip(size, parts, strict=True)]
        branch = torch.stack(torch.meshgrid(*map(torch.tensor, grids), indexing="ij"), -1)[None]
        got = texture._upsample([branch], size)
        for axis in (0, 1):
            line = torch.arange(size[axis]).clamp(grids[axis][0], grids[axis][-1])
            expected = line.float().unsqueeze(1 - axis).expand(size)
            torch.testing.assert_close(got[0, ..., axis], expected)
    branches = [random_map(2, s, s, 3) for s in (1, 2, 4)]
    bilinear = sum(F.interpolate(b.permute(0, 3, 1, 2), (8, 12), mode="bilinear") for b in branches)
    torch.testing.assert_close(texture._upsample(branches, (8, 12)).permute(0, 3, 1, 2), bilinear)


def test_statistical_texture_composition() -> None:
    torch.manual_seed(0)
    own = TextureConfig(
        tem_levels=5, ptfem_levels=3, scales=(1, 2), placement="edge", window="half_bin", neighbour="diagonal"
    )
    module = StatisticalTexture(8, own)
    assert module.tem.bins == texture._Bins(5, "edge", "half_bin")
    assert module.ptfem.bins == texture._Bins(3, "edge", "half_bin")
    assert (module.ptfem.neighbour, module.ptfem.scales) == ("diagonal", (1, 2))
    low = random_map(2, 8, 6, 6, dtype=torch.float32)
    out = module(low)
    tem = module.tem(low)
    ptfem = module.ptfem(module.fuse_tem(torch.cat((low, tem), 1)))
    torch.testing.assert_close(out, module.fuse_all(torch.cat((low, tem, ptfem), 1)), rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    unused = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_1d(torch.zeros(3, 4, 5), 4), r"\(B, C, H, W\)"),
        (lambda: quantize_1d(torch.zeros(1, 3, 0, 5), 4), r"\(B, C, H, W\)"),
        (lambda: quantize_1d(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), 4), "floating-point"),
        (lambda: quantize_1d(torch.zeros(1, 3, 4, 5), 1), "levels must be at least 2"),
        (lambda: quantize_1d(torch.zeros(1, 3, 4, 5), 4, placement=UNKNOWN), "placement"),
        (lambda: quantize_1d(torch.zeros(1, 3, 4, 5), 4, window=UNKNOWN), "window"),
        (lambda: cooccurrence_2d(torch.zeros(1, 4, 20), (4, 4)), r"H\*W"),
        (lambda: cooccurrence_2d(torch.zeros(1, 4, 20), (4, 5), neighbour=UNKNOWN), "neighbour"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("module", [TextureEnhancement(8, small()), PyramidTexture(8, small(scales=(1, 2)))])
def test_nan_comes_out_as_nan(module: torch.nn.Module) -> None:
    x = torch.rand(2, 8, 9, 9)
    x[1, 3, 4, 5] = float("nan")
    out = module.eval()(x)
    assert torch.isfinite(out[0]).all()
    assert out[1].isnan().any()
