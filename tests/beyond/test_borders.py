"""Zones and scales against loops over pixels, and what they do to a noisy and to a quiet border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlffn_lite.beyond.borders import CELL, fields, fit_scale, zones

RINGS = 3
ZONES = 13


def reference_zone(y: int, x: int, height: int, width: int) -> int:
    """The nearest border, top first, and the row along it; beyond the last ring 0."""
    gaps = [y, height - 1 - y, x, width - 1 - x]
    ring = min(gaps)
    rings = min(RINGS, (min(height, width) - 1) // 4)
    return 1 + 4 * ring + gaps.index(ring) if ring < rings else 0


@given(st.integers(1, 40), st.integers(1, 40))
def test_zones_equal_loops(height: int, width: int) -> None:
    expected = [[reference_zone(y, x, height, width) for x in range(width)] for y in range(height)]
    found = zones(height, width, RINGS)
    assert found.tolist() == expected
    assert int(found.max()) < ZONES
    inside = (found == 0).nonzero()
    span = inside.amax(0) - inside.amin(0) + 1
    assert bool((2 * span >= torch.tensor([height, width])).all())  # the inside is always there, and half of each side


@settings(deadline=None)
@given(st.integers(33, 90), st.integers(33, 90), st.integers(0, 99))
def test_scale_is_that_of_the_zones_pixels(height: int, width: int, seed: int) -> None:
    maps = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) + 0.1
    scale = fit_scale(maps, RINGS)
    rows, columns = -(-height // CELL), -(-width // CELL)
    where = np.array(
        [
            [reference_zone(y * rows // height, x * columns // width, rows, columns) for x in range(width)]
            for y in range(height)
        ]
    )
    expected = np.zeros((2, ZONES))
    for zone in range(ZONES):
        values = np.sort(maps.numpy()[:, where == zone].ravel())
        if len(values):
            low, high = (values[int(q * (len(values) - 1))] for q in (0.5, 0.999))
            expected[:, zone] = low, high - low
    expected = np.maximum(expected, expected[:, :1])
    np.testing.assert_allclose(torch.stack(scale).numpy(), expected, rtol=1e-5)


def standardise(maps: torch.Tensor) -> torch.Tensor:
    """As an ensemble does with the maps that it takes the scale from."""
    centre, width = fields(fit_scale(maps, RINGS), *maps.shape[-2:])
    return (maps - centre) / width


def bordered(noise: float) -> torch.Tensor:
    """Good maps whose outermost 8 pixels at the left have another spread than the rest."""
    maps = torch.randn(40, 128, 96, generator=torch.Generator().manual_seed(1))
    maps[:, :, :8] = maps[:, :, :8] * noise + noise
    return maps


def test_a_noisy_border_is_damped_and_a_quiet_one_left_alone() -> None:
    noisy = bordered(4.0)
    scaled = standardise(noisy)
    assert scaled[:, :, :4].amax() < 2 * scaled[:, :, 30:60].amax() < scaled[:, :, 30:60].amax() / noisy.std() * 100
    quiet = bordered(0.1)
    scaled = standardise(quiet)
    torch.testing.assert_close(scaled, (quiet - quiet[:, 24:-24, 24:-24].median()) / 3.09, atol=0.05, rtol=0.1)


def test_a_good_map_has_median_0_and_the_edge_of_the_normal_range_at_1() -> None:
    maps = torch.rand(20, 96, 96, generator=torch.Generator().manual_seed(2))
    inside = standardise(maps)[:, 32:-32, 32:-32].flatten().sort().values
    assert float(inside.median()) == pytest.approx(0, abs=0.02)
    assert float(inside[int(0.999 * len(inside))]) == pytest.approx(1, abs=0.02)


def test_constant_maps_stay_finite() -> None:
    maps = torch.full((2, 40, 40), 3.0)
    assert standardise(maps).abs().max() == 0


def test_without_rings_the_image_has_one_scale() -> None:
    maps = torch.rand(4, 40, 56, generator=torch.Generator().manual_seed(3))
    scale = fit_scale(maps, 0)
    ordered = maps.flatten().sort().values
    low, high = (ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.999))
    assert [x.tolist() for x in scale] == [[float(low)], [float(high - low)]]
    assert int(zones(5, 7, 0).max()) == 0


def test_ignored_pixels_do_not_count() -> None:
    """The scale is that of what is seen; a zone that is ignored whole has that of the inside, and that of all."""
    maps = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(4)) + 1
    ignored = torch.zeros(64, 64, dtype=torch.bool)
    ignored[:, 28:] = True
    other = torch.where(ignored, -100 * torch.rand(64, 64), maps)
    found = fit_scale(other, 1, ignored)
    cells = zones(8, 8, 1).repeat_interleave(8, 0).repeat_interleave(8, 1)
    for zone in range(5):
        values = maps[:, (cells == zone) & ~ignored].flatten().sort().values
        if zone == 4:  # at the right
            assert not len(values)
            assert [float(x[4]) for x in found] == [float(x[0]) for x in found]
        else:
            low, high = (float(values[int(q * (len(values) - 1))]) for q in (0.5, 0.999))
            assert float(found.centre[zone]) == pytest.approx(max(low, float(found.centre[0])))
            assert float(found.width[zone]) == pytest.approx(max(high - low, float(found.width[0])))
    apart = torch.stack([ignored, ignored.flip(1), ~ignored, torch.ones_like(ignored)])  # as tiles of an image are
    expected = torch.cat([part[~hidden] for part, hidden in zip(maps, apart, strict=True)]).median()
    assert float(fit_scale(maps, 0, apart).centre) == float(expected)
    ignored[:] = True
    ignored[:8] = False  # nothing inside is seen
    assert float(fit_scale(maps, 1, ignored).centre[0]) == float(maps[:, :8].median())
