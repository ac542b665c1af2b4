"""Pseudo-anomalies: against references in plain loops and float64, and what must hold for any input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from scipy.stats import kstest, loguniform
from torch import Tensor

from mlffn_lite.pseudo import (
    KINDS,
    VISIBLE_CHANGE,
    Blemish,
    Canvas,
    ConfettiNoise,
    CutPaste,
    CutPasteScar,
    PseudoAnomalies,
    PseudoAnomaly,
    _value_noise,
)

LUMA = np.array([0.299, 0.587, 0.114])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed))


def check_contract(images: Tensor, out: Tensor, masks: Tensor) -> None:
    """The mask is exactly what changed visibly, all else is untouched, and values stay in range."""
    assert out.shape == images.shape
    assert masks.shape == (len(images), 1, *images.shape[2:])
    assert masks.dtype == torch.bool
    change = (out.double() - images.double()).abs().amax(1, keepdim=True)
    assert torch.equal(masks, change > VISIBLE_CHANGE)
    assert torch.equal(out.masked_select(~masks), images.masked_select(~masks))
    assert bool(((out >= 0) & (out <= 1)).all())


# References in float64, one pixel at a time, from the same uniform draws.


def take_back(image: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = np.abs(out - image).max(0) > VISIBLE_CHANGE
    return np.where(mask, out, image), mask


def blurred_interval(t: float, side: float, sigma: float) -> float:
    scale = math.sqrt(2) * max(sigma, 1e-9)
    return 0.5 * (math.erf((t + side / 2) / scale) - math.erf((t - side / 2) / scale))


def square_coverage(y: float, x: float, square: tuple[float, ...], sigma: float) -> float:
    cy, cx, side, angle = square
    v = (y - cy) * math.cos(angle) + (x - cx) * math.sin(angle)
    u = (x - cx) * math.cos(angle) - (y - cy) * math.sin(angle)
    return blurred_interval(v, side, sigma) * blurred_interval(u, side, sigma)


def confetti_reference(image: np.ndarray, draws: np.ndarray, kind: ConfettiNoise) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[1:]
    short = min(height, width)
    sigma, out = kind.blur * short, image.copy()
    count = math.floor(kind.count[0] + draws[0] * (kind.count[1] + 1 - kind.count[0]))
    for d in draws[1:].reshape(-1, 8)[:count]:
        side = max(2.0, short * (kind.side[0] + d[2] * (kind.side[1] - kind.side[0])))
        square = (d[0] * height - 0.5, d[1] * width - 0.5, side, math.radians(kind.rotation) * (2 * d[3] - 1))
        colour = kind.colour[0] + d[5:] * (kind.colour[1] - kind.colour[0]) if d[4] >= kind.dark else -np.ones(3)
        changes: dict[int, list[float]] = {1: [], -1: []}
        for v in (np.arange(8) - 3.5) * side / 8:
            for u in (np.arange(8) - 3.5) * side / 8:
                y = square[0] + v * math.cos(square[3]) - u * math.sin(square[3])
                x = square[1] + v * math.sin(square[3]) + u * math.cos(square[3])
                y, x = min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)
                for sign in (1, -1):
                    new = np.clip(out[:, y, x] + sign * colour * square_coverage(y, x, square, sigma), 0, 1)
                    changes[sign].append(np.abs(new - out[:, y, x]).mean())
        plus, minus = np.mean(changes[1]), np.mean(changes[-1])
        sign = -1 if plus < kind.min_change and minus > plus else 1
        # The tail further than 3 sigma outside the square's bounding box is cut off: it is below the threshold.
        reach = side / 2 * (abs(math.cos(square[3])) + abs(math.sin(square[3]))) + 3 * sigma
        for y in range(height):
            for x in range(width):
                if max(abs(y - square[0]), abs(x - square[1])) > reach:
                    continue
                out[:, y, x] = np.clip(out[:, y, x] + sign * colour * square_coverage(y, x, square, sigma), 0, 1)
        out, mask = take_back(image, out)
    return out, mask


def jitter_reference(patch: np.ndarray, mean_luma: float, draws: np.ndarray, jitter: float) -> np.ndarray:
    """Brightness, contrast, saturation and hue, one after the other, of colours (3, n)."""
    brightness, contrast, saturation = 1 - jitter + 2 * jitter * draws[:3]
    patch = patch * brightness
    patch = brightness * mean_luma + contrast * (patch - brightness * mean_luma)
    grey = LUMA @ patch
    patch = grey + saturation * (patch - grey)
    turn = Rotation.from_rotvec((2 * draws[3] - 1) * 2 * math.pi * jitter * np.ones(3) / math.sqrt(3))
    return np.asarray(turn.as_matrix() @ patch)


def paste_reference(
    image: np.ndarray, draws: np.ndarray, kind: CutPaste | CutPasteScar
) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[1:]
    if isinstance(kind, CutPaste):
        area = height * width * (kind.area[0] + draws[0] * (kind.area[1] - kind.area[0]))
        aspect = kind.aspect[0] * (kind.aspect[1] / kind.aspect[0]) ** draws[1]
        h, w = math.sqrt(area * aspect), math.sqrt(area / aspect)
    else:
        h = min(height, width) * (kind.length[0] + draws[0] * (kind.length[1] - kind.length[0]))
        w = min(height, width) * (kind.width[0] + draws[1] * (kind.width[1] - kind.width[0]))
    h, w = min(max(round(h), 2), height), min(max(round(w), 2), width)
    angle = math.radians(kind.rotation) * (2 * draws[2] - 1)
    cos, sin = math.cos(angle), math.sin(angle)
    tall = min(math.ceil(h * abs(cos) + w * abs(sin)), height)
    wide = min(math.ceil(w * abs(cos) + h * abs(sin)), width)

    def origin(y: float, x: float, where: tuple[int, ...]) -> tuple[bool, int, int]:
        cy, cx = where[2] + (tall - 1) / 2, where[3] + (wide - 1) / 2
        v, u = (y - cy) * cos + (x - cx) * sin, (x - cx) * cos - (y - cy) * sin
        row = round(where[0] + (h - 1) / 2 + min(max(v, (1 - h) / 2), (h - 1) / 2))
        column = round(where[1] + (w - 1) / 2 + min(max(u, (1 - w) / 2), (w - 1) / 2))
        return abs(v) < h / 2 and abs(u) < w / 2, row, column

    best: tuple[float, float, tuple[int, ...]] = (-1.0, 0.0, ())
    for take, put in zip(*draws[7:].reshape(2, -1), strict=True):
        number = int(take * (height - h + 1) * (width - w + 1))
        total = (height - tall + 1) * (width - wide + 1)
        target = (number + 1 + int(put * (total - 1))) % total
        where = (*divmod(number, width - w + 1), *divmod(target, width - wide + 1))
        change, luma = [], []
        for v in (np.arange(8) - 3.5) * h / 8:
            for u in (np.arange(8) - 3.5) * w / 8:
                y = where[2] + (tall - 1) / 2 + v * cos - u * sin
                x = where[3] + (wide - 1) / 2 + v * sin + u * cos
                y, x = min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)
                source = image[:, *origin(y, x, where)[1:]]
                change.append(np.abs(source - image[:, y, x]).mean())
                luma.append(LUMA @ source)
        if np.mean(change) > best[0]:
            best = (float(np.mean(change)), float(np.mean(luma)), where)
        if best[0] >= kind.min_change:
            break
    out = image.copy()
    for y in range(best[2][2], best[2][2] + tall):
        for x in range(best[2][3], best[2][3] + wide):
            inside, row, column = origin(y, x, best[2])
            if inside:
                out[:, y, x] = jitter_reference(image[:, row, column], best[1], draws[3:7], kind.jitter).clip(0, 1)
    return take_back(image, out)


def value_noise_reference(lattice: np.ndarray, v: float, u: float, cells: float) -> float:
    """Values at the points 0, 1, …, 8 of a lattice whose middle ``cells`` cells are spread over [-1.35, 1.35]²."""
    row, column = (min(max(4 + t / 1.35 * cells / 2, 0), 8) for t in (v, u))
    i, j = min(int(row), 7), min(int(column), 7)
    down, right = ((3 - 2 * t) * t**2 for t in (row - i, column - j))
    top = (1 - right) * lattice[i, j] + right * lattice[i, j + 1]
    bottom = (1 - right) * lattice[i + 1, j] + right * lattice[i + 1, j + 1]
    return float((1 - down) * top + down * bottom)


def log_uniform(draw: float, limits: tuple[float, float]) -> float:
    return limits[0] * (limits[1] / limits[0]) ** draw


def blemish_reference(
    image: np.ndarray, draws: np.ndarray, lattices: np.ndarray, kind: Blemish
) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[1:]
    out, mask = image.copy(), np.zeros((height, width), bool)
    count = math.floor(kind.count[0] + draws[0] * (kind.count[1] + 1 - kind.count[0]))
    for d, (border, cloud) in zip(draws[1:].reshape(-1, 15)[:count], lattices, strict=False):
        tall = max(3.0, min(height, width) * log_uniform(d[0], kind.length))
        wide = max(2.0, tall / log_uniform(d[1], kind.aspect))
        angle, cy, cx = math.pi * d[2], d[3] * height - 0.5, d[4] * width - 0.5
        softness = log_uniform(d[6], (0.1, 1.0))
        pick = d[7] * (kind.colour + kind.elsewhere + kind.texture)
        tint = 2 * d[10:13] - 1 if d[9] >= kind.grey else np.full(3, -1.0 if d[10] < 0.5 else 1.0)
        change = tint / np.abs(tint).max() * log_uniform(d[8], kind.contrast)
        middle = out[:, min(int(d[3] * height), height - 1), min(int(d[4] * width), width - 1)]
        more, less = (np.abs(np.clip(middle + c, 0, 1) - middle).mean() for c in (change, -change))
        change = -change if more < 0.4 * less else change
        for y in range(height):
            for x in range(width):
                v = ((y - cy) * math.cos(angle) + (x - cx) * math.sin(angle)) / (tall / 2)
                u = ((x - cx) * math.cos(angle) - (y - cy) * math.sin(angle)) / (wide / 2)
                bulge = 1.6 * (value_noise_reference(border, v, u, 2 + 4 * d[5]) - 0.5)
                opacity = min(max((1 - v**2 - u**2 + bulge) / softness, 0), 1)
                if pick < kind.colour:
                    filling = out[:, y, x] + change
                elif pick < kind.colour + kind.elsewhere:
                    there = (y + math.floor(d[13] * height)) % height, (x + math.floor(d[14] * width)) % width
                    filling = image[:, there[0], there[1]] + change / 4
                else:
                    clouds = 2 * value_noise_reference(cloud, v, u, 3 + 5 * d[5]) - 1
                    filling = out[:, y, x] + clouds * change
                out[:, y, x] = np.clip((1 - opacity) * out[:, y, x] + opacity * filling, 0, 1)
        out, mask = take_back(image, out)
    return out, mask


def references(kind: PseudoAnomaly, images: Tensor, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Changed images and masks, from what the generator draws for the kind."""
    generator, n = seeded(seed), len(images)
    pixels = images.double().numpy()

    def drawn(*shape: int) -> np.ndarray:
        return torch.rand(shape, generator=generator).double().numpy()

    if isinstance(kind, Blemish):
        draws, lattices = drawn(1 + 15 * kind.count[1], n).T, np.moveaxis(drawn(kind.count[1], 2, n, 9, 9), 2, 0)
        return [blemish_reference(*given, kind) for given in zip(pixels, draws, lattices, strict=True)]
    if isinstance(kind, ConfettiNoise):
        draws = drawn(1 + 8 * kind.count[1], n).T
        return [confetti_reference(*given, kind) for given in zip(pixels, draws, strict=True)]
    assert isinstance(kind, CutPaste | CutPasteScar)
    draws = drawn(7 + 2 * kind.candidates, n).T
    return [paste_reference(*given, kind) for given in zip(pixels, draws, strict=True)]


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Soft patterns with dark and bright saturated areas, so that clamping and flipping are reached."""
    field = gaussian_filter(noise(*shape, seed=seed).double().numpy(), (0, 0, 4, 4))
    return torch.from_numpy(((field - field.mean()) / field.std() * 0.5 + 0.4).clip(0, 1)).float()


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Draw and compute in this dtype: the library takes it from torch's default and from the images."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(usual)


@pytest.mark.parametrize("size", [(33, 50), (48, 31), (8, 8)])
@pytest.mark.parametrize(
    "kind",
    [
        ConfettiNoise(),
        ConfettiNoise(count=(2, 3), side=(0.05, 0.4), rotation=90, blur=0, dark=0.7, colour=(0.2, 0.6)),
        ConfettiNoise(dark=1.0, min_change=0.4),
        CutPaste(),
        CutPaste(area=(0.3, 0.9), aspect=(0.5, 2.0), jitter=0.4, min_change=0.2),
        CutPaste(rotation=30.0, candidates=1),
        CutPasteScar(),
        CutPasteScar(width=(0.1, 0.3), length=(0.3, 0.8), rotation=180.0, jitter=0.3, candidates=7, min_change=0.3),
        Blemish(),
        Blemish(count=(2, 3), length=(0.4, 2.0), aspect=(1.0, 40.0), contrast=(0.5, 1.0), grey=0.0),
        Blemish(length=(0.3, 0.6), aspect=(2.0, 2.0), colour=0.0, elsewhere=2.0, texture=0.0),
        Blemish(length=(0.3, 0.9), contrast=(1.0, 1.0), colour=0.0, elsewhere=0.0, texture=0.5, grey=1.0),
    ],
)
def test_equals_the_loop_reference(kind: PseudoAnomaly, size: tuple[int, int], dtype: torch.dtype) -> None:
    images = smooth(5, 3, *size, seed=size[0]).to(dtype)
    # The rough border of a blemish is steep: opacity magnifies the rounding of a pixel's place.
    close = 1e-9 if dtype == torch.float64 else 5e-5 if isinstance(kind, Blemish) else 1e-5
    out, masks = kind(images, generator=seeded(11))
    expectations = references(kind, images, 11)
    for image, (expected, expected_mask), got, mask in zip(images, expectations, out, masks[:, 0], strict=True):
        # Rounding may decide otherwise only where a change is within this of the threshold.
        change = np.abs(expected - image.numpy()).max(0)
        certain = np.abs(change - VISIBLE_CHANGE) > close
        tolerance = np.where(mask.numpy() == expected_mask, close, VISIBLE_CHANGE + close)
        assert np.all(np.abs(got.numpy() - expected) < tolerance)
        assert np.array_equal(mask.numpy()[certain], expected_mask[certain])
        assert mask.any()


@pytest.mark.parametrize(("side", "sigma", "degrees"), [(8.0, 5.0, 30.0), (20.0, 2.0, -45.0), (14.0, 1.5, 0.0)])
def test_confetti_is_a_square_convolved_with_a_gaussian(side: float, sigma: float, degrees: float) -> None:
    size, fine = 64, 9
    kind = ConfettiNoise(
        count=(1, 1), side=(side / size,) * 2, rotation=45, blur=sigma / size, dark=0, colour=(0.5,) * 2, min_change=0
    )
    # A generator state whose square has the wanted pose is not to be had: rotate the one it gives.
    draws = torch.rand((9, 400), generator=seeded(3))
    cy, cx = draws[1] * size - 0.5, draws[2] * size - 0.5
    angles = (2 * draws[4] - 1) * 45
    fits = (cy - 31.5).abs().maximum((cx - 31.5).abs()) < 8
    i = int((angles - degrees).abs().where(fits, torch.inf).argmin())
    out, masks = kind(torch.full((400, 3, size, size), 0.25), generator=seeded(3))
    steps = (np.arange(size * fine) - fine // 2) / fine
    angle = math.radians(float(angles[i]))
    dy, dx = steps[:, None] - float(cy[i]), steps - float(cx[i])
    v, u = dy * math.cos(angle) + dx * math.sin(angle), dx * math.cos(angle) - dy * math.sin(angle)
    sharp = (np.abs(v) < side / 2) & (np.abs(u) < side / 2)
    blurred = gaussian_filter(sharp.astype(float), sigma * fine, truncate=6)[fine // 2 :: fine, fine // 2 :: fine]
    # 2 %: the staircase of the sampled edge (1/9 px). Outside the mask is what was too small to see.
    added, mask = out[i, 0].double().numpy() - 0.25, masks[i, 0].numpy()
    assert np.abs(added - 0.5 * blurred)[mask].max() < 0.01
    assert 0.5 * blurred[~mask].max() < VISIBLE_CHANGE + 0.01
    assert blurred.max() > 0.25


def test_cutpaste_without_jitter_is_an_integer_shift_of_the_image() -> None:
    images = noise(6, 3, 40, 56)
    out, masks = CutPaste(jitter=0)(images, generator=seeded(2))
    for image, new, mask in zip(images, out, masks[:, 0], strict=True):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        patch = new[:, top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        windows = image.unfold(1, patch.shape[1], 1).unfold(2, patch.shape[2], 1)
        found = (windows == patch[:, None, None]).flatten(3).all(3).all(0).nonzero().tolist()
        assert len(found) == 1
        assert found != [[top, left]]


def test_value_noise_equals_the_loop_reference() -> None:
    lattices, shape = noise(6, 9, 9), torch.arange(6).repeat_interleave(400)
    v, u = 1.35 * (2 * noise(2, 2400, seed=1) - 1)
    cells = torch.tensor([2.0, 3.7, 5.0, 6.0, 7.3, 8.0])
    got = _value_noise(lattices, shape, v, u, cells)
    given = zip(shape.tolist(), v.tolist(), u.tolist(), strict=True)
    expected = [value_noise_reference(lattices[i].double().numpy(), y, x, float(cells[i])) for i, y, x in given]
    assert np.abs(got.numpy() - np.array(expected)).max() < 1e-5
    zero_one = _value_noise(lattices.round(), shape, v, u, cells)
    assert bool(((zero_one >= 0) & (zero_one <= 1)).all())
    assert zero_one.min() < 0.01
    assert zero_one.max() > 0.99


def test_value_noise_passes_through_its_lattice_without_jumps() -> None:
    lattices, zeros = noise(1, 9, 9).double().round(), torch.zeros(81, dtype=torch.long)
    places = torch.linspace(-1.35, 1.35, 9, dtype=torch.float64)
    cells = torch.tensor([8.0], dtype=torch.float64)
    v, u = torch.meshgrid(places, places, indexing="ij")
    got = _value_noise(lattices, zeros, v.flatten(), u.flatten(), cells)
    assert (got.view(9, 9) - lattices[0]).abs().max() < 1e-5
    # Along lines that cross the whole lattice: the slope is at most 1.5 per cell of 2.7 / 8, and 0 at a lattice point.
    line = torch.linspace(-1.4, 1.4, 28_001, dtype=torch.float64)
    zeros = torch.zeros(len(line), dtype=torch.long)
    for across in (-1.35, -0.4, 0.0, 1.0, 1.349):
        for points in ((line, torch.full_like(line, across)), (torch.full_like(line, across), line)):
            steps = _value_noise(lattices, zeros, *points, cells).diff().abs()
            assert steps.max() <= 1e-4 * 1.5 * 8 / 2.7 * 1.001
            assert steps.max() > 0
            at_points = ((places[1:-1] - line[0]) / 1e-4).round().long()
            assert steps[at_points].max() < 1e-6


@pytest.mark.parametrize("size", [(33, 50), (48, 31), (1, 7), (1, 1)])
def test_blemish_windows_hold_every_pixel_that_noise_can_reach(size: tuple[int, int]) -> None:
    kind = Blemish(length=(0.05, 1.5), aspect=(1.0, 20.0))
    draws = torch.rand((5, 300), generator=seeded(6))
    _, start, extent = kind._place(draws, *size)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
    tight = 0
    for d, corner, shape in zip(draws.double().numpy().T, start.T.tolist(), extent.T.tolist(), strict=True):
        tall = max(3.0, min(size) * log_uniform(d[0], kind.length))
        wide = max(2.0, tall / log_uniform(d[1], kind.aspect))
        dy, dx = rows - (d[3] * size[0] - 0.5), columns - (d[4] * size[1] - 0.5)
        cos, sin = math.cos(math.pi * d[2]), math.sin(math.pi * d[2])
        v, u = (dy * cos + dx * sin) / (tall / 2), (dx * cos - dy * sin) / (wide / 2)
        reached = 1 - v**2 - u**2 + 1.6 * (1 - 0.5) > 1e-5  # noise is at most 1
        window = np.zeros(size, bool)
        assert min(corner) >= 0
        assert corner[0] + shape[0] <= size[0]
        assert corner[1] + shape[1] <= size[1]
        window[corner[0] : corner[0] + shape[0], corner[1] : corner[1] + shape[1]] = True
        assert not reached[~window].any()
        tight += reached.any(1).sum() == shape[0] and reached.any(0).sum() == shape[1]
    assert tight > 100  # no row or column to spare


# What must hold for any input.

kinds = st.sampled_from(
    [
        ConfettiNoise(),
        CutPaste(),
        CutPasteScar(),
        Blemish(),
        ConfettiNoise(blur=0.0, count=(3, 3)),
        CutPaste(rotation=45.0),
        Blemish(count=(4, 4), length=(1e-6, 4.0), aspect=(1.0, 1e3), contrast=(1e-6, 1.0)),
    ]
)


@examples(max_examples=60)
@given(
    kind=kinds,
    batch=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    levels=st.sampled_from([1, 2, 256]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_contract(
    kind: PseudoAnomaly, batch: int, height: int, width: int, levels: int, dtype: torch.dtype, seed: int
) -> None:
    images = (torch.randint(0, levels, (batch, 3, height, width), generator=seeded(seed)) / 255).to(dtype)
    before = images.clone()
    out, masks = kind(images, generator=seeded(seed))
    assert torch.equal(images, before)
    assert out.dtype == dtype
    check_contract(images, out, masks)


@examples(max_examples=60)
@given(
    batch=st.integers(0, 33),
    ratio=st.floats(0, 1),
    weights=st.lists(st.floats(0, 5), min_size=4, max_size=4).filter(lambda w: sum(w) > 0.01),
    seed=st.integers(0, 2**31),
)
def test_ratio_and_shares_are_exact(batch: int, ratio: float, weights: list[float], seed: int) -> None:
    images = torch.zeros(batch, 3, 4, 4)
    stamps = {"confetti": Stamp(0.25), "cutpaste": Stamp(0.5), "scar": Stamp(0.75), "blemish": Stamp(1.0)}
    pseudo = PseudoAnomalies(ratio, *weights[:3], blemish=weights[3], kinds=stamps)
    out, masks = pseudo(images, generator=seeded(seed))
    changed = int(masks.flatten(1).any(1).sum())
    assert abs(changed - ratio * batch) < 1
    check_contract(images, out, masks)
    for stamp, weight in zip(stamps.values(), weights, strict=True):
        count = int((out[:, 0, 0, 0] == stamp.value).sum())
        assert abs(count - changed * weight / sum(weights)) < 1 + 1e-6


class Stamp(PseudoAnomaly):
    """Set the first pixel: shows which kind changed which image, and that a new kind needs only this much."""

    def __init__(self, value: float) -> None:
        self.value = value

    def apply(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        first = torch.zeros_like(images)
        canvas.write(canvas.locate(images, first, first), torch.full((3, len(images)), self.value))


def test_further_kinds_join_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(8, 3, 6, 6)
    out, _ = PseudoAnomalies(1.0, 0, 0, kinds={"stamp": Stamp(0.5)}, stamp=1)(images, generator=seeded())
    assert (out[:, :, 0, 0] == 0.5).all()
    monkeypatch.setitem(KINDS, "half", lambda: Stamp(0.5))
    assert torch.equal(PseudoAnomalies(1.0, 0, 0, half=2)(images, generator=seeded())[0], out)


def test_blemishes_join_by_weight() -> None:
    images = noise(8, 3, 32, 32)
    out, masks = PseudoAnomalies(1.0, 0, 0, blemish=1.0)(images, generator=seeded())
    check_contract(images, out, masks)
    assert masks.flatten(1).any(1).all()
    # All images are blemished, in an order of the generator's choice.
    generator = seeded()
    order = torch.randperm(8, generator=generator)
    torch.rand((), generator=generator)
    assert torch.equal(Blemish()(images[order], generator=generator)[0], out[order])
    quiet = PseudoAnomalies(1.0, 0, 0, blemish=0.5, kinds={"blemish": Blemish(contrast=(1e-6, 1e-6), elsewhere=0)})
    assert not quiet(images, generator=seeded())[1].any()
    # Asked for none, it leaves the other kinds what they were.
    pair = PseudoAnomalies(), PseudoAnomalies(blemish=0.0)
    without, zero = (p(images, generator=seeded())[0] for p in pair)
    assert torch.equal(without, zero)


def test_chosen_images_and_kinds_vary_with_the_seed() -> None:
    images = torch.full((10, 3, 16, 16), 0.5)
    stamps = {"confetti": Stamp(0.25), "cutpaste": Stamp(0.75)}
    pseudo = PseudoAnomalies(0.5, kinds=stamps)
    picked = torch.stack([pseudo(images, generator=seeded(s))[0][:, 0, 0, 0] for s in range(400)])
    assert ((picked != 0.5).sum(1) == 5).all()
    # Five changed images, shared half and half: two or three of a kind, either being as likely.
    assert set((picked == 0.25).sum(1).tolist()) == {2, 3}
    assert float((picked == 0.25).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float((picked != 0.5).float().mean(0).sub(0.5).abs().max()) < 0.1


@pytest.mark.parametrize(("ratio", "batch"), [(0.05, 8), (0.05, 16), (0.25, 2), (0.5, 7)])
def test_a_ratio_is_met_over_many_batches(ratio: float, batch: int) -> None:
    """Rounded to the nearest, 5 % of 8 images would be none for ever."""
    pseudo, generator = PseudoAnomalies(ratio, 1, 0, kinds={"confetti": Stamp(1.0)}), seeded()
    images = torch.zeros(batch, 3, 4, 4)
    counts = torch.stack([pseudo(images, generator=generator)[1].flatten(1).any(1).sum() for _ in range(2000)])
    assert set(counts.tolist()) == {math.floor(ratio * batch), math.ceil(ratio * batch)}
    share = ratio * batch % 1
    assert float(counts.float().mean()) == pytest.approx(ratio * batch, abs=4 * math.sqrt(share * (1 - share) / 2000))


def test_ratio_zero_and_one() -> None:
    images = noise(7, 3, 33, 50)
    out, masks = PseudoAnomalies(0.0)(images, generator=seeded())
    assert torch.equal(out, images)
    assert not masks.any()
    out, masks = PseudoAnomalies(1.0, scar=1.0)(images, generator=seeded())
    assert masks.flatten(1).any(1).all()
    check_contract(images, out, masks)
    assert PseudoAnomalies(1.0)(images[:1], generator=seeded())[1].any()


@pytest.mark.parametrize(
    "kind", [ConfettiNoise(), CutPaste(), CutPasteScar(), Blemish(), PseudoAnomalies(0.7, scar=1.0, blemish=1.0)]
)
def test_the_seed_decides_everything(kind: PseudoAnomaly) -> None:
    images = noise(260, 3, 24, 20)
    state = torch.random.get_rng_state()
    out, masks = kind(images, generator=seeded(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    again = kind(images, generator=seeded(1))
    assert torch.equal(again[0], out)
    assert torch.equal(again[1], masks)
    assert not torch.equal(kind(images, generator=seeded(2))[0], out)
    torch.set_num_threads(3)
    try:
        threaded = kind(images, generator=seeded(1))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(threaded[0], out)
    assert torch.equal(threaded[1], masks)


@pytest.mark.parametrize("kind", [ConfettiNoise(), CutPaste(), CutPasteScar(), Blemish(), PseudoAnomalies(0.7)])
def test_layout_and_type_do_not_matter(kind: PseudoAnomaly) -> None:
    raw = torch.randint(0, 256, (5, 3, 33, 50), generator=seeded(4), dtype=torch.uint8)
    images = raw.float() / 255
    out, masks = kind(images, generator=seeded(5))
    strided = torch.zeros(5, 3, 70, 120)[:, :, 3:69:2, 10:110:2].copy_(images)
    lasting = images.contiguous(memory_format=torch.channels_last)
    for same in (raw, strided, lasting, images.clone().requires_grad_()):
        again, again_masks = kind(same, generator=seeded(5))
        assert torch.equal(again, out)
        assert torch.equal(again_masks, masks)
        assert again.dtype == torch.float32
        assert not again.requires_grad
    assert kind(lasting, generator=seeded(5))[0].is_contiguous(memory_format=torch.channels_last)
    half, _ = kind(images.bfloat16(), generator=seeded(5))
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(8, 8), (9, 64), (128, 128)])
def test_confetti_always_changes_something(size: tuple[int, int], value: float) -> None:
    _, masks = ConfettiNoise()(torch.full((150, 3, *size), value), generator=seeded(9))
    assert masks.flatten(1).any(1).all()


def test_confetti_turns_its_sign_where_adding_would_not_show() -> None:
    black, white = torch.zeros(4, 3, 64, 64), torch.ones(4, 3, 64, 64)
    dark, bright = ConfettiNoise(dark=1), ConfettiNoise(dark=0, colour=(0.5, 1.0))
    assert dark(black, generator=seeded())[0].amax() > 0.5
    assert bright(white, generator=seeded())[0].amin() < 0.5
    assert not replace(dark, min_change=0.0)(black, generator=seeded())[1].any()
    assert dark(white, generator=seeded())[0].amin() < 0.5
    # Subtracting from near black changes even less: the sign stays.
    near_black, faint = torch.full((4, 3, 64, 64), 0.1), ConfettiNoise(dark=0, colour=(0.2, 0.3), min_change=1.0)
    assert faint(near_black, generator=seeded())[0].amin() == near_black.amin()


def test_cutpaste_where_little_or_nothing_can_change() -> None:
    black = torch.zeros(8, 3, 32, 32)
    out, masks = CutPaste()(black, generator=seeded())
    assert torch.equal(out, black)
    assert not masks.any()
    grey = torch.full((8, 3, 32, 32), 0.5)
    assert CutPaste()(grey, generator=seeded())[1].flatten(1).any(1).sum() >= 4  # by the jitter, where it can be seen
    assert not CutPaste(jitter=0)(grey, generator=seeded())[1].any()


def test_candidates_avoid_pasting_background_on_background() -> None:
    images = torch.zeros(300, 3, 64, 64)
    images[:, :, 20:44, 20:44] = 0.8
    shown = [CutPaste(candidates=c)(images, generator=seeded())[1].flatten(1).any(1).float().mean() for c in (1, 8)]
    assert shown[0] < 0.9
    assert shown[1] > 0.99


def test_sizes_follow_the_parameters() -> None:
    images = noise(80, 3, 128, 96)
    _, masks = CutPaste(area=(0.05, 0.1), aspect=(0.5, 2.0), jitter=0)(images, generator=seeded())
    tall, wide = masks.any(3).sum((1, 2)), masks.any(2).sum((1, 2))
    area, aspect = tall * wide / (128 * 96), tall / wide
    assert 0.048 < area.min() < 0.06
    assert 0.09 < area.max() < 0.104
    assert 0.47 < aspect.min() < 0.6
    assert 1.7 < aspect.max() < 2.15
    assert 0.8 < float(aspect.log().mean().exp()) < 1.25  # log-uniform: as often tall as wide
    white = torch.ones(80, 3, 128, 96)
    _, masks = ConfettiNoise(count=(1, 1), side=(0.25, 0.25), blur=0, dark=1)(white, generator=seeded())
    inner = masks[~(masks[:, 0, [0, -1]].flatten(1).any(1) | masks[:, 0, :, [0, -1]].flatten(1).any(1))]
    assert len(inner) > 20
    assert (inner.flatten(1).sum(1) - 24**2).abs().max() < 24  # sides are parts of the shorter side, 96 px
    _, masks = CutPasteScar(width=(0.1, 0.1), length=(0.25, 0.25), jitter=0)(images, generator=seeded())
    assert (masks.flatten(1).sum(1) - 10 * 24).abs().max() < 40


def test_lengths_and_contrasts_of_blemishes_are_log_uniform() -> None:
    kind = Blemish(count=(1, 1), length=(0.1, 0.8), aspect=(1.0, 1.0), contrast=(0.1, 0.4), elsewhere=0, texture=0)
    pose, _, _ = replace(kind, aspect=(1.0, 12.0))._place(torch.rand((5, 3000), generator=seeded(1)), 256, 300)
    assert kstest(pose[4] / 256, loguniform(0.1, 0.8).cdf).pvalue > 0.01
    # The short axis of the shortest is cut off at 2 px.
    assert kstest((pose[4] / pose[5])[pose[4] > 26], loguniform(1, 12).cdf).pvalue > 0.01
    grey = torch.full((600, 3, 64, 64), 0.5)
    out, masks = kind(grey, generator=seeded(2))
    change = (out - grey).abs().flatten(1).amax(1)
    assert kstest(change[change > 0], loguniform(0.05, 0.4).cdf).pvalue < 0.01  # the test can tell
    strong = replace(kind, grey=1.0)(grey, generator=seeded(2))[0]
    assert kstest((strong - grey).abs().flatten(1).amax(1), loguniform(0.1, 0.4).cdf).pvalue > 0.01
    # Masks follow the lengths: their diameters, in lengths, are the same for short and long ones.
    length, cy, cx = torch.rand((6, 600), generator=seeded(2))[[1, 4, 5]]
    length = 6.4 * 8**length
    inside = torch.stack((cy, 1 - cy, cx, 1 - cx)).amin(0) * 64 > 0.6 * length
    diameter = (masks[inside].flatten(1).sum(1) * 4 / math.pi).sqrt() / length[inside]
    short = length[inside] < 18
    assert min(short.sum(), (~short).sum()) > 40
    assert float(diameter[short].median()) == pytest.approx(float(diameter[~short].median()), rel=0.1)
    assert 0.7 < float(diameter.median()) < 1.1


@pytest.mark.parametrize("weights", [(0.4, 0.4, 0.2), (3.0, 0.0, 1.0), (0.0, 5.0, 5.0), (0.0, 1.0, 0.0)])
def test_fillings_of_blemishes_follow_their_weights(weights: tuple[float, float, float]) -> None:
    colour, elsewhere, texture = weights
    kind = Blemish(
        count=(1, 1),
        length=(0.5, 0.5),
        aspect=(1.0, 1.0),
        contrast=(0.4, 0.4),
        grey=1.0,
        colour=colour,
        elsewhere=elsewhere,
        texture=texture,
    )
    out, _ = kind(torch.full((600, 3, 48, 48), 0.5), generator=seeded(8))
    change = out.flatten(1) - 0.5
    assert bool(((change == 0).any(1) & (change != 0).any(1)).all())
    # On one grey, clouds make both lighter and darker, and content from elsewhere shows by a quarter of the contrast.
    cloudy = (change.amin(1) < 0) & (change.amax(1) > 0)
    faint = ~cloudy & (change.abs().amax(1) < 0.1 + 1e-5)
    for got, weight in ((~cloudy & ~faint, colour), (faint, elsewhere), (cloudy, texture)):
        share = weight / sum(weights)
        assert float(got.float().mean()) == pytest.approx(share, abs=0.05 if 0 < share < 1 else 0.01)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_blemishes_show_on_blank_images(value: float) -> None:
    _, masks = Blemish()(torch.full((400, 3, 64, 64), value), generator=seeded(5))
    assert float(masks.flatten(1).any(1).float().mean()) > 0.98


def test_grey_blemishes_change_all_channels_alike() -> None:
    images = torch.full((400, 3, 32, 32), 0.5)
    kind = Blemish(count=(1, 1), contrast=(0.4, 0.4), length=(0.4, 0.4), grey=0.6)
    out, _ = kind(images, generator=seeded(4))
    alike = (out == out[:, :1]).flatten(1).all(1)
    assert float(alike.float().mean()) == pytest.approx(0.6, abs=0.06)
    assert float((out[alike] > 0.5).flatten(1).any(1).float().mean()) > 0.45  # lighter as often as darker


def test_content_from_elsewhere_is_a_shift_of_the_image() -> None:
    images = noise(20, 3, 24, 31)
    kind = Blemish(count=(1, 1), length=(0.8, 0.8), aspect=(1.0, 1.0), contrast=(1e-6, 1e-6), colour=0, texture=0)
    out, masks = kind(images, generator=seeded(3))
    fits = []
    for image, new, mask in zip(images, out, masks[:, 0], strict=True):
        rolls = [image.roll((-y, -x), (1, 2)) for y in range(24) for x in range(31)]
        opaque = torch.stack([((roll - new).abs().amax(0) < 1e-5) & mask for roll in rolls]).flatten(1).sum(1)
        first, second = opaque.topk(2).values.tolist()
        fits.append(first)
        assert second == 0  # every other shift fits nowhere
    assert sum(pixels > 8 for pixels in fits) >= 15  # the softest are nowhere opaque


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConfettiNoise(count=(0, 3)), "count must lie between 1 and 64"),
        (lambda: ConfettiNoise(side=(0.3, 0.2)), "side must lie between 0 and 1, smaller value first"),
        (lambda: ConfettiNoise(blur=-1.0), "blur must"),
        (lambda: ConfettiNoise(dark=math.nan), "dark must"),
        (lambda: CutPaste(area=(0.0, 1.5)), "area must"),
        (lambda: CutPaste(aspect=(0.0, 1.0)), "aspect must"),
        (lambda: CutPaste(jitter=0.6), "jitter must"),
        (lambda: CutPaste(candidates=0), "candidates must"),
        (lambda: CutPasteScar(width=(-0.1, 0.1)), "width must"),
        (lambda: CutPasteScar(rotation=181.0), "rotation must"),
        (lambda: Blemish(count=(1, 65)), "count must lie between 1 and 64"),
        (lambda: Blemish(length=(0.0, 1.0)), "length must"),
        (lambda: Blemish(length=(0.2, 0.1)), "length must .* smaller value first"),
        (lambda: Blemish(aspect=(0.5, 2.0)), "aspect must lie between 1 and 1000"),
        (lambda: Blemish(contrast=(0.0, 1.0)), "contrast must"),
        (lambda: Blemish(contrast=(0.1, 1.1)), "contrast must"),
        (lambda: Blemish(grey=1.5), "grey must lie between 0 and 1"),
        (lambda: Blemish(colour=-1.0), "colour must"),
        (lambda: Blemish(elsewhere=math.inf), "elsewhere must"),
        (lambda: Blemish(texture=math.nan), "texture must"),
        (lambda: Blemish(colour=0.0, elsewhere=0.0, texture=0.0), "all 0; give one a weight"),
        (lambda: PseudoAnomalies(1.5), "ratio must lie between 0 and 1"),
        (lambda: PseudoAnomalies(confetti=-1), "weights must be at least 0"),
        (lambda: PseudoAnomalies(confetti=math.nan), "weights must be at least 0"),
        (lambda: PseudoAnomalies(confetti=0, cutpaste=0), "not all 0"),
        (lambda: PseudoAnomalies(perlin=1.0), "unknown kinds perlin; choose from blemish, confetti, cutpaste, scar"),
        (lambda: PseudoAnomalies(blemish=-1.0), "weights must be at least 0"),
    ],
)
def test_wrong_parameters_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"shape \(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), "shape"),
        (torch.zeros(1, 3, 0, 8), "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "floating point or uint8, got torch.int64"),
        (torch.full((1, 3, 8, 8), 1.5), "before normalising"),
        (torch.full((1, 3, 8, 8), -0.1), "before normalising"),
        (torch.full((1, 3, 8, 8), math.nan), "before normalising"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PseudoAnomalies()(images, generator=seeded())


def test_empty_batch() -> None:
    for kind in (ConfettiNoise(), Blemish(), PseudoAnomalies()):
        out, masks = kind(torch.zeros(0, 3, 8, 8), generator=seeded())
        assert (out.shape, masks.shape) == ((0, 3, 8, 8), (0, 1, 8, 8))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize(
    "kind", [ConfettiNoise(), CutPaste(), CutPasteScar(), Blemish(), PseudoAnomalies(0.5, scar=1.0, blemish=1.0)]
)
def test_a_cpu_generator_gives_the_same_anomalies_on_cuda(kind: PseudoAnomaly) -> None:
    images = noise(16, 3, 96, 80)
    out, masks = kind(images, generator=seeded(3))
    there, there_masks = kind(images.cuda(), generator=seeded(3))
    assert (there.cpu() - out).abs().max() < 1e-5 + VISIBLE_CHANGE
    assert (there_masks.cpu() != masks).float().mean() < 1e-4
    check_contract(images, there.cpu(), there_masks.cpu())
    kind(images.cuda(), generator=torch.Generator("cuda").manual_seed(0))
