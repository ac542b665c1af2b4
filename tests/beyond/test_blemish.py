"""Blemishes: against a reference in plain loops and float64, and their statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pseudo_checks import check_against, check_contract, default_dtype, noise, seeded, smooth, take_back
from scipy.stats import kstest, loguniform

from mlffn_lite.beyond.blemish import Blemish, value_noise
from mlffn_lite.pseudo import PseudoAnomalies


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(33, 50), (48, 31), (8, 8)])
@pytest.mark.parametrize(
    "kind",
    [
        Blemish(),
        Blemish(count=(2, 3), length=(0.4, 2.0), aspect=(1.0, 40.0), contrast=(0.5, 1.0), grey=0.0),
        Blemish(length=(0.3, 0.6), aspect=(2.0, 2.0), colour=0.0, elsewhere=2.0, texture=0.0),
        Blemish(length=(0.3, 0.9), contrast=(1.0, 1.0), colour=0.0, elsewhere=0.0, texture=0.5, grey=1.0),
    ],
)
def test_equals_the_loop_reference(kind: Blemish, size: tuple[int, int], dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        images, generator = smooth(5, 3, *size, seed=size[0]).to(dtype), seeded(11)
        draws = torch.rand((1 + 15 * kind.count[1], 5), generator=generator).double().numpy().T
        lattices = torch.rand((kind.count[1], 2, 5, 9, 9), generator=generator).double().numpy()
        given = zip(images.double().numpy(), draws, np.moveaxis(lattices, 2, 0), strict=True)
        # The rough border is steep: opacity magnifies the rounding of a pixel's place.
        close = 1e-9 if dtype == torch.float64 else 5e-5
        check_against(kind, images, [blemish_reference(*g, kind) for g in given], close)


def test_value_noise_equals_the_loop_reference() -> None:
    lattices, shape = noise(6, 9, 9), torch.arange(6).repeat_interleave(400)
    v, u = 1.35 * (2 * noise(2, 2400, seed=1) - 1)
    cells = torch.tensor([2.0, 3.7, 5.0, 6.0, 7.3, 8.0])
    got = value_noise(lattices, shape, v, u, cells)
    given = zip(shape.tolist(), v.tolist(), u.tolist(), strict=True)
    expected = [value_noise_reference(lattices[i].double().numpy(), y, x, float(cells[i])) for i, y, x in given]
    assert np.abs(got.numpy() - np.array(expected)).max() < 1e-5
    zero_one = value_noise(lattices.round(), shape, v, u, cells)
    assert bool(((zero_one >= 0) & (zero_one <= 1)).all())
    assert zero_one.min() < 0.01
    assert zero_one.max() > 0.99


def test_value_noise_passes_through_its_lattice_without_jumps() -> None:
    lattices, zeros = noise(1, 9, 9).double().round(), torch.zeros(81, dtype=torch.long)
    places = torch.linspace(-1.35, 1.35, 9, dtype=torch.float64)
    cells = torch.tensor([8.0], dtype=torch.float64)
    v, u = torch.meshgrid(places, places, indexing="ij")
    got = value_noise(lattices, zeros, v.flatten(), u.flatten(), cells)
    assert (got.view(9, 9) - lattices[0]).abs().max() < 1e-5
    # Along lines that cross the whole lattice: the slope is at most 1.5 per cell of 2.7 / 8, and 0 at a lattice point.
    line = torch.linspace(-1.4, 1.4, 28_001, dtype=torch.float64)
    zeros = torch.zeros(len(line), dtype=torch.long)
    for across in (-1.35, -0.4, 0.0, 1.0, 1.349):
        for points in ((line, torch.full_like(line, across)), (torch.full_like(line, across), line)):
            steps = value_noise(lattices, zeros, *points, cells).diff().abs()
            assert steps.max() <= 1e-4 * 1.5 * 8 / 2.7 * 1.001
            assert steps.max() > 0
            at_points = ((places[1:-1] - line[0]) / 1e-4).round().long()
            assert steps[at_points].max() < 1e-6


@pytest.mark.parametrize("size", [(33, 50), (48, 31), (1, 7), (1, 1)])
def test_blemish_windows_hold_every_pixel_that_noise_can_reach(size: tuple[int, int]) -> None:
    kind = Blemish(length=(0.05, 1.5), aspect=(1.0, 20.0))
    draws = torch.rand((15, 300), generator=seeded(6))
    _, found = kind._outline(size, *draws[:5])
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
    tight = 0
    top_left, extents = (torch.stack(t, 1).tolist() for t in (found[:2], found[2:]))
    for d, corner, shape in zip(draws.double().numpy().T, top_left, extents, strict=True):
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


def test_lengths_and_contrasts_of_blemishes_are_log_uniform() -> None:
    kind = Blemish(count=(1, 1), length=(0.1, 0.8), aspect=(1.0, 1.0), contrast=(0.1, 0.4), elsewhere=0, texture=0)
    draws = torch.rand((15, 3000), generator=seeded(1))
    ellipse, _ = replace(kind, aspect=(1.0, 12.0))._outline((256, 300), *draws[:5])
    assert kstest(ellipse.tall / 256, loguniform(0.1, 0.8).cdf).pvalue > 0.01
    # The short axis of the shortest is cut off at 2 px.
    assert kstest((ellipse.tall / ellipse.wide)[ellipse.tall > 26], loguniform(1, 12).cdf).pvalue > 0.01
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
    ],
)
def test_wrong_parameters_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_blemishes_join_by_weight() -> None:
    images = noise(8, 3, 32, 32)
    out, masks = PseudoAnomalies(1.0, {"blemish": 1.0})(images, generator=seeded())
    check_contract(images, out, masks)
    assert masks.flatten(1).any(1).all()
    # All images are blemished, in an order of the generator's choice.
    generator = seeded()
    order = torch.randperm(8, generator=generator)
    torch.rand((), generator=generator)
    assert torch.equal(Blemish()(images[order], generator=generator)[0], out[order])
    quiet = PseudoAnomalies(1.0, {"blemish": 0.5}, {"blemish": {"contrast": [1e-6, 1e-6], "elsewhere": 0}})
    assert not quiet(images, generator=seeded())[1].any()
    # Asked for none, it leaves the other kinds what they were.
    pair = PseudoAnomalies(), PseudoAnomalies(kinds={"confetti": 1.0, "cutpaste": 1.0, "blemish": 0.0})
    without, zero = (p(images, generator=seeded())[0] for p in pair)
    assert torch.equal(without, zero)
