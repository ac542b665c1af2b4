"""Metrics against scikit-learn, against slow independent write-ups, and against values worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve
from torch import Tensor

from mlffn_lite import metrics

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Apple GPU")),
]


# ---- slow references: plain loops in float64, sharing nothing with the library -------------------------------------


def flood_fill(masks: NDArray[np.bool_]) -> list[list[tuple[int, int, int]]]:
    """8-connected regions of every image as lists of (image, row, column)."""
    todo, regions = {tuple(map(int, p)) for p in np.argwhere(masks)}, []
    while todo:
        region, front = [], [min(todo)]
        todo.remove(front[0])
        while front:
            m, y, x = front.pop()
            region.append((m, y, x))
            near = [(m, y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            for point in near:
                if point in todo:
                    todo.remove(point)
                    front.append(point)
        regions.append(region)
    return regions


def area_to_limit(points: list[tuple[float, float]], limit: float) -> float:
    """Trapezoids under a polyline from FPR 0 to the limit, interpolated there, divided by the limit."""
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def brute_curve(maps: NDArray[np.float64], masks: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Threshold every distinct score in turn and measure the coverage of each region anew."""
    regions, points = flood_fill(masks), [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        overlap = float(np.mean([np.mean([found[p] for p in region]) for region in regions]))
        points.append((float(found[~masks].mean()), overlap))
    return points


def sorted_curve(maps: NDArray[np.float64], masks: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Walk through the pixels from the highest score down; a point wherever the score changes."""
    regions = flood_fill(masks)
    weight = {p: 1.0 / (len(region) * len(regions)) for region in regions for p in region}
    normal, fpr, overlap, points = int((~masks).sum()), 0, 0.0, [(0.0, 0.0)]
    pixels = sorted(((float(maps[p]), p) for p in np.ndindex(*maps.shape)), reverse=True)
    for i, (score, p) in enumerate(pixels):
        fpr += p not in weight
        overlap += weight.get(p, 0.0)
        if i + 1 == len(pixels) or pixels[i + 1][0] != score:
            points.append((fpr / normal, overlap))
    return points


def example(seed: int, shape: tuple[int, int, int] = (5, 12, 9), levels: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with hidden defects; the last image is good. `levels` > 0 rounds the scores to so many values."""
    rng = np.random.default_rng(seed)
    masks = rng.random(shape) < 0.12
    masks[-1], masks[0, 0, 0] = False, True
    maps = rng.normal(size=shape) + 1.2 * masks
    if levels:
        maps = np.floor((maps - maps.min()) / np.ptp(maps) * (levels - 1e-9))
    return torch.from_numpy(maps), torch.from_numpy(masks)


@pytest.fixture(params=[None, 17], ids=["one chunk", "small chunks"])
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice, the second time in chunks far smaller than its data."""
    if request.param:
        monkeypatch.setattr(metrics, "_CHUNK", request.param)


# ---- against the references -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("levels", [0, 2, 3, 20], ids=["distinct", "2 levels", "3 levels", "20 levels"])
@pytest.mark.parametrize("limit", [0.05, 0.3, 0.9, 1.0])
def test_pro_and_its_curve_equal_the_slow_references(limit: float, levels: int) -> None:
    for seed in range(3):
        maps, masks = example(seed, levels=levels)
        brute = brute_curve(maps.numpy(), masks.numpy())
        expected = area_to_limit(brute, limit)
        assert area_to_limit(sorted_curve(maps.numpy(), masks.numpy()), limit) == pytest.approx(expected, abs=1e-12)
        assert metrics.pro(maps, masks, limit=limit) == pytest.approx(expected, abs=1e-12)

        fpr, overlap = metrics.region_curve(maps, masks)
        np.testing.assert_allclose(torch.stack([fpr, overlap], 1), brute, atol=1e-12)
        fpr, overlap = metrics.region_curve(maps, masks, limit=limit)
        assert float(torch.trapezoid(overlap, fpr)) / limit == pytest.approx(expected, abs=1e-12)
        assert float(fpr[-1]) == limit
        assert bool((fpr.diff() >= 0).all() and (overlap.diff() >= 0).all())


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("levels", [0, 2, 7])
def test_auroc_and_roc_curve_equal_scikit_learn(levels: int) -> None:
    for seed in range(3):
        maps, masks = example(seed, (6, 16, 16), levels)
        scores, labels = maps.flatten(), masks.flatten()
        expected = roc_auc_score(labels, scores)
        assert metrics.pixel_auroc(maps, masks) == pytest.approx(expected, abs=1e-12)
        assert metrics.image_auroc(scores, labels) == pytest.approx(expected, abs=1e-12)
        fpr, tpr, _ = sklearn_roc_curve(labels, scores, drop_intermediate=False)
        np.testing.assert_allclose(torch.stack(metrics.roc_curve(scores, labels)), [fpr, tpr], atol=1e-12)


def test_larger_maps_equal_an_independent_ranking() -> None:
    """A size at which pruning and sorting matter: weighted AUROC (limit 1) by scikit-learn, weights by flood fill."""
    maps, masks = example(7, (8, 64, 64), levels=500)
    weight = np.ones(masks.shape)
    for region in flood_fill(masks.numpy()):
        weight[tuple(np.transpose(region))] = 1 / len(region)
    expected = roc_auc_score(masks.flatten(), maps.flatten(), sample_weight=weight.flatten())
    assert metrics.pro(maps, masks, limit=1.0) == pytest.approx(expected, abs=1e-10)
    partial = area_to_limit(sorted_curve(maps.numpy(), masks.numpy()), 0.3)
    assert metrics.pro(maps, masks) == pytest.approx(partial, abs=1e-10)


def test_best_threshold_equals_a_search_over_all_scores() -> None:
    for seed in range(5):
        maps, masks = example(seed, (2, 10, 10), levels=15)
        scores, labels = maps.flatten(), masks.flatten()
        f1 = {float(t): f1_score(labels, scores >= t) for t in scores.unique()}
        best = max(f1.values())
        assert metrics.best_threshold(scores, labels) == max(t for t, value in f1.items() if value == best)


# ---- by hand --------------------------------------------------------------------------------------------------------

# One row: regions A = column 0 and B = column 4; N = 3 defect-free pixels with scores .8, .5, .1.
ROW = torch.tensor([[[0.9, 0.8, 0.5, 0.1, 0.2]]]), torch.tensor([[[1, 0, 0, 0, 1]]])


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        # Points: .9 → (0, ½); .8 → (⅓, ½); .5 → (⅔, ½); .2 → (⅔, 1); .1 → (1, 1).
        (0.3, 0.5),  # height ½ all the way to .3, between two points
        (2 / 3, 0.5),  # ends at the foot of the vertical step
        (1.0, 2 / 3),  # ⅔ · ½ + ⅓ · 1
    ],
)
def test_pro_by_hand_without_ties(limit: float, expected: float) -> None:
    assert metrics.pro(*ROW, limit=limit) == pytest.approx(expected, abs=1e-7)


def test_a_curve_cut_at_one_of_its_points_ends_there() -> None:
    fpr, overlap = metrics.region_curve(*ROW, limit=2 / 3)
    expected = [[0.0, 0.0, 1 / 3, 2 / 3, 2 / 3], [0.0, 0.5, 0.5, 0.5, 1.0]]
    np.testing.assert_allclose(torch.stack([fpr, overlap]), expected, atol=1e-12)


def test_pro_by_hand_interpolates_a_tie_at_the_limit() -> None:
    # Defect and one of two normal pixels share .5: (0, 0) → (½, 1) → (1, 1). The slope is 2, so the height at .3 is .6,
    # the triangle's area .3 · .6 / 2 = .09 and PRO .09 / .3 = .3.
    maps, masks = torch.tensor([[[0.5, 0.5, 0.1]]]), torch.tensor([[[1, 0, 0]]])
    assert metrics.pro(maps, masks) == pytest.approx(0.3, abs=1e-12)
    fpr, overlap = metrics.region_curve(maps, masks, limit=0.3)
    np.testing.assert_allclose(torch.stack([fpr, overlap]), [[0.0, 0.3], [0.0, 0.6]], atol=1e-12)
    # Whole curve: ½ · ½ + ½ = ¾, which is also AUROC: one tie (½) and one win (1) of two pairs.
    assert metrics.pro(maps, masks, limit=1.0) == pytest.approx(0.75, abs=1e-12)
    assert metrics.pixel_auroc(maps, masks) == 0.75


def test_regions_count_alike_whatever_their_size() -> None:
    # A 1-pixel region is found, a 4-pixel one is not: ½, although only one of five defective pixels is found.
    masks = torch.zeros(1, 4, 6, dtype=torch.uint8)
    masks[0, 0, 0] = masks[0, 2:, 4:] = 255
    maps = torch.full((1, 4, 6), 0.5)
    maps[0, 0, 0], maps[0, 2:, 4:] = 1.0, 0.0
    assert metrics.pro(maps, masks) == pytest.approx(0.5, abs=1e-12)
    # Pixels: the found one wins its pairs, the other four lose theirs.
    assert metrics.pixel_auroc(maps, masks) == pytest.approx(0.2, abs=1e-12)


def test_diagonal_contact_joins_a_region_but_images_do_not_touch() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 3, 3] = True  # a diagonal pair and a single
    masks[1, 3, 3] = True  # same place as in the image before, yet another region
    labels = metrics.label_regions(masks)
    assert labels.dtype == torch.int32
    assert labels.unique().tolist() == [0, 1, 2, 3]
    assert labels[0, 0, 0] == labels[0, 1, 1] != labels[0, 3, 3]
    assert labels[1, 3, 3] == 3
    assert bool((labels[2] == 0).all())
    # Of the pair only (1, 1) is found, the single is: (½ + 1) / 2 = ¾. With 4-connectivity 2 of 3 regions, ⅔.
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 1] = maps[0, 3, 3] = 1.0
    fpr, overlap = metrics.region_curve(maps, masks[:1])
    np.testing.assert_allclose(torch.stack([fpr, overlap]), [[0.0, 0.0, 1.0], [0.0, 0.75, 1.0]], atol=1e-12)


def test_label_regions_equals_the_flood_fill() -> None:
    masks = example(3, (7, 11, 13))[1]
    labels = metrics.label_regions(masks.to(torch.int64) * 7)
    assert bool(((labels > 0) == masks).all())
    expected = flood_fill(masks.numpy())
    assert int(labels.max()) == len(expected)
    assert all(len({int(labels[p]) for p in region}) == 1 for region in expected)


@pytest.mark.parametrize("limit", [0.1, 0.3, 1.0])
def test_perfect_inverted_and_constant_maps(limit: float) -> None:
    masks = example(1)[1]
    assert metrics.pro(masks.float(), masks, limit=limit) == 1.0
    assert metrics.pro(-masks.float(), masks, limit=limit) == pytest.approx(0.0, abs=1e-15)
    assert metrics.pro(torch.full(masks.shape, 3.0), masks, limit=limit) == pytest.approx(limit / 2, abs=1e-12)


def test_auroc_of_perfect_inverted_and_constant_maps() -> None:
    masks = example(1)[1]
    assert metrics.pixel_auroc(masks.float(), masks) == 1.0
    assert metrics.pixel_auroc(-masks.float(), masks) == 0.0
    assert metrics.pixel_auroc(torch.zeros(masks.shape), masks) == 0.5


def test_good_images_count_in_the_false_positive_rate() -> None:
    # One defect at .5; of its image's 3 normal pixels one scores .9: (0, 0) → (⅓, 0) → (⅓, 1): nothing before .3.
    maps, masks = torch.tensor([[[0.5, 0.9, 0.1, 0.1]]]), torch.tensor([[[1, 0, 0, 0]]])
    assert metrics.pro(maps, masks) == 0.0
    # A clean good image makes it 1 of 7: (1/7, 1), so PRO = (.3 − 1/7) / .3.
    good = torch.full((1, 1, 4), 0.1)
    both = torch.cat([maps, good]), torch.cat([masks, torch.zeros_like(masks)])
    assert metrics.pro(*both) == pytest.approx((0.3 - 1 / 7) / 0.3, abs=1e-12)
    # The same good image with false alarms everywhere: 5 of 7 normal pixels come first.
    assert metrics.pro(torch.cat([maps, good + 0.8]), both[1]) == 0.0


def test_average_precision_equals_scikit_learn_s() -> None:
    from sklearn.metrics import average_precision_score

    generator = torch.Generator().manual_seed(0)
    for ties in (3, 1000):
        scores = torch.randint(ties, (60,), generator=generator).float()
        labels = torch.randint(2, (60,), generator=generator)
        expected = average_precision_score(labels.numpy(), scores.numpy())
        assert metrics.average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand() -> None:
    scores, labels = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0])
    assert metrics.average_precision(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    with pytest.warns(UserWarning, match="average precision"):
        assert math.isnan(metrics.average_precision(scores, torch.zeros(4, dtype=torch.long)))


def test_best_threshold_by_hand() -> None:
    # ≥ .9: TP 1, F1 2/(1+2) = ⅔; ≥ .7: 2/(2+2) = ½; ≥ .6: TP 2, 4/(3+2) = .8; ≥ .1: 4/(4+2) = ⅔.
    scores, labels = torch.tensor([0.9, 0.7, 0.6, 0.1]), torch.tensor([1, 0, 1, 0])
    threshold = metrics.best_threshold(scores, labels)
    assert threshold == float(scores[2])
    assert (scores >= threshold).tolist() == [True, True, True, False]
    # ≥ 3: 2·1/(1+2) = ⅔; ≥ 2: 2·1/(2+2) = ½, ≥ 1: 2·1/(3+2) = .4, ≥ 0: 2·2/(4+2) = ⅔. The tie goes to the highest.
    assert metrics.best_threshold(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 0, 0, 1])) == 3.0
    assert metrics.best_threshold(torch.tensor([3.0, 2.0]), torch.tensor([1, 1])) == 2.0  # no normal score is needed


# ---- properties -----------------------------------------------------------------------------------------------------

TRANSFORMS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.exp(),
    lambda x: x**3 - 5,
    lambda x: -1 / (x + 1),
    lambda x: torch.where(x == x.max(), math.inf, x),
    lambda x: torch.where(x == x.min(), -math.inf, x),
]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(2, 40), limit=st.floats(0.01, 1.0), which=st.integers(0, 4))
def test_a_monotone_transform_changes_nothing(seed: int, levels: int, limit: float, which: int) -> None:
    maps, masks = example(seed, (3, 8, 8), levels)
    other = TRANSFORMS[which](maps)
    assert metrics.pro(other, masks, limit=limit) == metrics.pro(maps, masks, limit=limit)
    assert metrics.pixel_auroc(other, masks) == metrics.pixel_auroc(maps, masks)
    for ours, theirs in zip(metrics.region_curve(other, masks), metrics.region_curve(maps, masks), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(0, 12))
def test_order_of_images_and_symmetries_change_nothing(seed: int, levels: int) -> None:
    maps, masks = example(seed, (4, 7, 9), levels)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    for moved in (lambda x: x[order], lambda x: x.flip(1), lambda x: x.transpose(1, 2)):
        assert metrics.pro(moved(maps), moved(masks)) == pytest.approx(metrics.pro(maps, masks), abs=1e-12)
        assert metrics.pixel_auroc(moved(maps), moved(masks)) == metrics.pixel_auroc(maps, masks)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(0, 12))
def test_swapping_the_classes_or_the_sign_mirrors_auroc(seed: int, levels: int) -> None:
    maps, masks = example(seed, (3, 6, 6), levels)
    auroc = metrics.pixel_auroc(maps, masks)
    assert 0 <= auroc <= 1
    assert metrics.pixel_auroc(-maps, masks) == pytest.approx(1 - auroc, abs=1e-12)
    assert metrics.pixel_auroc(maps, ~masks) == pytest.approx(1 - auroc, abs=1e-12)


def test_heavy_tails_do_not_hurt() -> None:
    """Scores over 80 decades: a grid of thresholds would see one of them."""
    maps, masks = example(5, (5, 24, 24))
    tails = (20 * maps).exp()
    assert float(tails.max() / tails.min()) > 1e40
    assert metrics.pro(tails, masks) == metrics.pro(maps, masks)
    assert metrics.pixel_auroc(tails, masks) == metrics.pixel_auroc(maps, masks)


# ---- dtypes, devices, errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_devices_and_half_precision_evaluate_the_values_given(device: str, dtype: torch.dtype) -> None:
    maps, masks = example(11, (4, 20, 20))
    rounded = maps.to(dtype)
    exact = rounded.double()
    there = rounded.to(device), masks.to(device)
    brute = brute_curve(exact.numpy(), masks.numpy())
    assert metrics.pro(*there) == pytest.approx(area_to_limit(brute, 0.3), abs=1e-12)
    assert metrics.pixel_auroc(*there) == metrics.pixel_auroc(exact, masks)
    np.testing.assert_allclose(torch.stack(metrics.region_curve(*there), 1).cpu(), brute, atol=1e-12)
    flat = [x.flatten() for x in there]
    assert metrics.best_threshold(*flat) == metrics.best_threshold(exact.flatten(), masks.flatten())
    assert metrics.label_regions(there[1]).device == there[1].device


def test_float64_scores_are_not_rounded() -> None:
    maps, masks = torch.tensor([[[1.0, 1.0 + 1e-12]]], dtype=torch.float64), torch.tensor([[[0, 1]]])
    assert metrics.pixel_auroc(maps, masks) == 1.0


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
def test_any_integer_mask_will_do(dtype: torch.dtype) -> None:
    maps, masks = example(2)
    as_given = masks.to(dtype) if dtype == torch.bool else masks.to(dtype) * 100
    assert metrics.pro(maps, as_given) == metrics.pro(maps, masks)


def test_arguments_are_left_as_they_were() -> None:
    maps, masks = example(4)
    maps.requires_grad_()
    before = maps.detach().clone()
    for run in (metrics.pro, metrics.pixel_auroc, metrics.region_curve):
        run(maps, masks)
    assert torch.equal(maps, before)


def test_infinite_scores_are_ordinary_extremes() -> None:
    scores, labels = torch.tensor([math.inf, 1.0, -math.inf, -math.inf]), torch.tensor([1, 0, 0, 1])
    assert metrics.image_auroc(scores, labels) == (2 + 0.5) / 4  # wins both; loses one and ties one
    assert metrics.best_threshold(scores, labels) == math.inf


def test_nan_scores_are_refused_with_their_number() -> None:
    maps, masks = example(0)
    maps[0, 1, 2] = maps[3, 4, 5] = math.nan
    for run in (metrics.pro, metrics.pixel_auroc, metrics.region_curve):
        with pytest.raises(ValueError, match=r"^maps hold 2 NaN among 540 values"):
            run(maps, masks)
    with pytest.raises(ValueError, match=r"^scores hold 1 NaN among 2 values"):
        metrics.image_auroc(torch.tensor([1.0, math.nan]), torch.tensor([0, 1]))


MAP, MASK = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: metrics.pro(MAP[:, None], MASK[:, None]), r"^maps must have shape \(M, H, W\), got \(2, 1, 4, 4\)$"),
        (lambda: metrics.pro(MAP[:1], MASK), r"^maps and masks differ in shape: \(1, 4, 4\) and \(2, 4, 4\)$"),
        (lambda: metrics.pixel_auroc(MAP, MASK[0]), r"^masks must have shape \(M, H, W\), got \(4, 4\)$"),
        (lambda: metrics.pro(MASK, MAP), "^maps must have a floating-point dtype, got torch.bool$"),
        (lambda: metrics.pro(MAP, MASK.float()), "^masks must have dtype bool or integer, got torch.float32$"),
        (lambda: metrics.label_regions(MAP), "^masks must have dtype bool or integer, got torch.float32$"),
        (lambda: metrics.image_auroc(MAP, MASK), r"^scores must have shape \(M,\), got \(2, 4, 4\)$"),
        (
            lambda: metrics.image_auroc(MAP[0, 0], MASK[0, 0, :3]),
            r"^scores and labels differ .* \(4,\) and \(3,\)$",
        ),
        (lambda: metrics.pro(MAP, MASK, limit=0.0), r"^limit must be a false-positive rate in \(0, 1\], got 0.0$"),
        (lambda: metrics.region_curve(MAP, MASK, limit=30), r"^limit must be .* got 30$"),
    ],
)
def test_unfit_arguments_are_refused_in_one_line(run: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize("masks", [MASK, ~MASK, MASK[:0]], ids=["no normal pixel", "no region", "no image"])
def test_a_missing_class_gives_nan_and_a_warning(masks: Tensor) -> None:
    maps = MAP[: len(masks)]
    absent = "normal" if masks.any() else "defective"
    for run in (metrics.pro, metrics.pixel_auroc):
        with pytest.warns(UserWarning, match=f"undefined without any {absent} pixel") as caught:
            assert math.isnan(run(maps, masks))
        assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="the PRO curve is undefined"):
        fpr, overlap = metrics.region_curve(maps, masks)
    assert fpr.isnan().tolist() == overlap.isnan().tolist() == [True]
    with pytest.warns(UserWarning, match=f"image AUROC is undefined without any {absent} image"):
        assert math.isnan(metrics.image_auroc(maps.flatten(), masks.flatten()))
    with pytest.warns(UserWarning, match="the ROC curve is undefined"):
        assert bool(metrics.roc_curve(maps.flatten(), masks.flatten())[1].isnan().all())


def test_best_threshold_without_anomalies_is_nan() -> None:
    with pytest.warns(UserWarning, match="the best threshold is undefined"):
        assert math.isnan(metrics.best_threshold(MAP.flatten(), ~MASK.flatten()))
