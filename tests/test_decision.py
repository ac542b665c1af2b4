"""Decisions: regions by hand, a threshold whose promise holds, intervals against their formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlffn_lite.decision import Region, Rule, decision_rates, find_regions, promise_of, promised_threshold, share
from mlffn_lite.metrics import label_regions


class TestRegions:
    def test_connects_diagonals_and_sorts_by_peak(self) -> None:
        heat = np.zeros((5, 6))
        heat[0, 0], heat[1, 1], heat[2, 2] = 2, 3, 2  # one region, over the corners
        heat[4, 4:6] = 5, 4
        labels, regions = find_regions(heat, 1.0)
        assert regions == [Region(2, 5.0, 4, 4, 4, 4, 2, 1), Region(3, 3.0, 1, 1, 0, 0, 3, 3)]
        assert labels.tolist() == [
            [2, 0, 0, 0, 0, 0],
            [0, 2, 0, 0, 0, 0],
            [0, 0, 2, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1],
        ]

    def test_a_pixel_at_the_threshold_is_below_it(self) -> None:
        heat = np.array([[1.0, np.nextafter(1.0, 2.0)]])
        assert find_regions(heat, 1.0)[1] == [Region(1, heat[0, 1], 1, 0, 1, 0, 1, 1)]
        single = heat.astype(np.float32)  # the threshold must not be rounded to the map's precision
        assert [r.area for r in find_regions(single, 1.0 - 1e-12)[1]] == [2]
        assert find_regions(single, 1.0 + 1e-12)[1] == []

    def test_none(self) -> None:
        labels, regions = find_regions(torch.zeros(3, 4), 0.0)
        assert labels.shape == (3, 4)
        assert not labels.any()
        assert regions == []

    @pytest.mark.parametrize("heat", [np.zeros(4), np.zeros((1, 2, 2)), np.full((2, 2), np.nan), [[np.inf]]])
    def test_bad_maps(self, heat: Any) -> None:
        with pytest.raises(ValueError, match="need a finite score map"):
            find_regions(heat, 0.0)

    def test_bad_threshold(self) -> None:
        with pytest.raises(ValueError, match="nan"):
            find_regions(np.zeros((2, 2)), math.nan)

    @given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-2, 2, width=16)), st.floats(-2, 2))  # fmt: skip  # noqa: E501
    def test_agrees_with_the_metrics(self, heat: np.ndarray, threshold: float) -> None:
        labels, regions = find_regions(heat, threshold)
        above = heat.astype(np.float64) > threshold
        assert ((labels > 0) == above).all()
        assert len(regions) == int(label_regions(torch.from_numpy(above)[None]).max())
        assert sum(r.area for r in regions) == above.sum()
        for number, region in enumerate(regions, 1):
            member = labels == number
            assert member.sum() == region.area
            assert heat[member].max() == region.peak == heat[region.y, region.x]
            assert member[region.y, region.x]
        assert [r.peak for r in regions] == sorted((r.peak for r in regions), reverse=True)
        assert bool(regions) == (float(heat.max()) > threshold)  # so mask and image score never disagree


class TestRule:
    heat = np.array([[5.0, 0, 0, 3], [0, 0, 0, 3], [0, 0, 0, 2], [9, 0, 0, 0]])

    def test_small_and_weak_regions_do_not_count(self) -> None:
        assert [r.area for r in Rule(1.0).regions(self.heat)] == [1, 1, 3]
        assert [r.peak for r in Rule(1.0, min_area=2).regions(self.heat)] == [3.0]
        assert [r.peak for r in Rule(1.0, min_peak=5.0).regions(self.heat)] == [9.0, 5.0]
        assert Rule(1.0, min_area=2, min_peak=3.5).regions(self.heat) == []

    @given(st.integers(0, 2**16), st.floats(-1, 1), st.integers(0, 5))
    def test_a_stricter_rule_never_calls_more(self, seed: int, threshold: float, area: int) -> None:
        heat = np.random.default_rng(seed).normal(size=(6, 7))
        loose, strict = Rule(threshold), Rule(threshold, min_area=area, min_peak=threshold + 0.5)
        assert set(strict.regions(heat)) <= set(loose.regions(heat))
        assert bool(loose.regions(heat)) == (heat.max() > threshold)

    def test_regions_that_count_are_numbered_anew(self) -> None:
        rule = Rule(1.0, min_area=3)
        labels, regions = rule.find(self.heat)
        assert regions == rule.regions(self.heat)
        assert (labels == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]).all()
        assert (rule.mask(self.heat) == (labels > 0)).all()
        assert Rule(99.0).find(self.heat)[0].shape == self.heat.shape

    def test_limits_by_hand(self) -> None:
        assert Rule(0.0).limit(self.heat) == 9
        assert Rule(0.0, min_area=2).limit(self.heat) == 3
        assert Rule(0.0, min_area=3).limit(self.heat) == 2
        assert Rule(0.0, min_area=4).limit(self.heat) == 0  # all of the image
        assert Rule(0.0, min_area=17).limit(self.heat) == Rule(0.0, min_peak=9.5).limit(self.heat) == -math.inf
        corner = np.zeros((4, 4), bool)
        assert Rule(0.0).limit(self.heat, corner) == -math.inf
        corner[0, 0] = True
        assert Rule(0.0).limit(self.heat, corner) == 5
        assert Rule(0.0, min_peak=9.0).limit(self.heat, corner) == 0

    @given(
        hnp.arrays(np.float32, (6, 7), elements=st.floats(-2, 2, width=16)),
        st.floats(-3, 3),
        st.integers(0, 9),
        st.floats(-2, 2) | st.just(-math.inf),
        hnp.arrays(bool, (6, 7)),
    )
    def test_below_its_limit_and_nowhere_else_an_image_is_anomalous(
        self, heat: np.ndarray, threshold: float, area: int, peak: float, on: np.ndarray
    ) -> None:
        rule = Rule(threshold, area, peak)
        for level in (threshold, rule.limit(heat)):
            if math.isfinite(level):
                assert bool(Rule(level, area, peak).regions(heat)) == (rule.limit(heat) > level)
                assert Rule(level, area, peak).mask(heat)[on].any() == (rule.limit(heat, on) > level)

    def test_demands_in_words(self) -> None:
        assert Rule(1.0).demands == ""
        assert Rule(1.0, 4).demands == "at least 4 px"
        assert Rule(1.0, 4, 2.5).demands == "at least 4 px and a peak of at least 2.5"


class TestPromise:
    def test_by_hand(self) -> None:
        scores = [4.0, 1.0, 3.0, 2.0]  # of five exchangeable scores, each is the largest with probability 1/5
        assert promised_threshold(scores, 0.2) == (4.0, 0.2)
        assert promised_threshold(scores, 0.4) == (3.0, 0.4)
        assert promised_threshold(scores, 0.01) == (4.0, 0.2)  # so few cannot promise more
        assert promised_threshold(range(99), 0.01) == (98.0, 0.01)
        assert promised_threshold(range(199), 0.01) == (197.0, 0.01)

    @given(st.integers(1, 60), st.floats(0.01, 0.9), st.integers(0, 2**16))
    def test_the_threshold_is_the_lowest_that_keeps_the_promise(self, count: int, rate: float, seed: int) -> None:
        scores = np.random.default_rng(seed).permutation(count).astype(float)
        threshold, promise = promised_threshold(scores, rate)
        assert promise == pytest.approx(promise_of(scores, threshold))
        assert promise <= max(rate, 1 / (count + 1)) + 1e-9
        lower = promise_of(scores, threshold - 1)
        assert lower > rate - 1e-9

    def test_it_is_kept_whatever_the_distribution(self) -> None:
        """Over many draws of 49 good scores and a new one, a tenth of the new ones exceed the threshold for a tenth."""
        rng = np.random.default_rng(0)
        for draw in (rng.standard_normal, rng.standard_cauchy, rng.standard_exponential):
            scores = draw((20_000, 50))
            thresholds = np.array([promised_threshold(row[1:], 0.1)[0] for row in scores[:4000]])
            found = float((scores[:4000, 0] > thresholds).mean())
            assert abs(found - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 4000)

    @pytest.mark.parametrize(("scores", "rate"), [([], 0.1), ([1.0], 0.0), ([1.0], 1.0), ([math.nan], 0.1)])
    def test_bad_values(self, scores: list[float], rate: float) -> None:
        with pytest.raises(ValueError, match="need finite scores"):
            promised_threshold(scores, rate)


class TestShares:
    @given(st.integers(0, 40), st.integers(1, 40))
    def test_the_interval_is_wilsons(self, hits: int, total: int) -> None:
        hits = min(hits, total)
        found = share(hits, total)
        z, p, n = 1.959963984540054, hits / total, total
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert found.low == pytest.approx(max(0, centre - half), abs=1e-9)
        assert found.high == pytest.approx(min(1, centre + half), abs=1e-9)

    def test_words(self) -> None:
        assert str(share(1, 25)) == "4.0 % (1 of 25; 95 % 0.7 to 19.5)"
        assert str(share(0, 0)) == "–"

    def test_rates_by_hand(self) -> None:
        called = torch.tensor([True, False, True, True, False])
        labels = torch.tensor([0, 0, 1, 1, 1])
        found = decision_rates(called, labels)
        assert found["false_alarms"][:3] == (1, 2, 0.5)
        assert found["detections"][:2] == (2, 3)
        assert found["f1"] == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
        only = decision_rates([False, True], [0, 0])
        assert math.isnan(only["f1"])
        assert only["detections"].total == 0
