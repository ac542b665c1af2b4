"""Losses against loops in float64 written from equations (3) to (8), hand-computed values, and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mlffn_lite.losses as losses
from mlffn_lite import registry
from mlffn_lite.config import LossConfig
from mlffn_lite.errors import ConfigError
from mlffn_lite.losses import (
    consistency_loss,
    feature_loss,
    hypersphere_distance,
    own_loss,
    resize_mask,
    score_loss,
    total_loss,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def batch(
    b: int = 3, c: int = 5, h: int = 6, w: int = 7, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    g = seeded(seed)
    features = torch.randn(b, c, h, w, generator=g, dtype=torch.float64).to(dtype)
    score = 4 * torch.randn(b, 1, h, w, generator=g, dtype=torch.float64).to(dtype)
    return features, score, torch.rand(b, 1, h, w, generator=g) < 0.1


# ---- references: loops over pixels, straight from the equations


def reference_distance(features: Tensor) -> Tensor:
    b, _, h, w = features.shape
    out = torch.zeros(b, 1, h, w, dtype=torch.float64)
    for n in range(b):
        for y in range(h):
            for x in range(w):
                out[n, 0, y, x] = math.sqrt(1 + sum(v * v for v in features[n, :, y, x].double().tolist())) - 1
    return out


def split(x: Tensor, mask: Tensor) -> tuple[list[float], list[float]]:
    pairs = list(zip(x.flatten().tolist(), mask.flatten().tolist(), strict=True))
    return [v for v, m in pairs if not m], [v for v, m in pairs if m]


def reference_feature(distance: Tensor, mask: Tensor, balanced: bool) -> float:
    normal, anomalous = split(distance, mask)
    repelled = [-math.log(1 - math.exp(-a)) for a in anomalous]
    if balanced:
        return sum(normal) / (2 * len(normal)) + sum(repelled) / (2 * len(repelled))
    return (sum(normal) + sum(repelled)) / (len(normal) + len(repelled))


def reference_score(score: Tensor, mask: Tensor, gamma: float, lam: float, partners: list[float]) -> float:
    normal, anomalous = split(score, mask)
    first = sum(max(0.0, s - gamma) for s in normal) / len(normal)
    second = sum(max(0.0, lam - (s - p)) for s, p in zip(anomalous, partners, strict=True)) / len(anomalous)
    return first + second


def reference_area(x: Tensor, rows: int, columns: int) -> Tensor:
    """Mean over the area of every target cell, by the overlap of intervals."""
    height, width = x.shape
    out = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            for y in range(height):
                for k in range(width):
                    dy = min((i + 1) * height / rows, y + 1) - max(i * height / rows, y)
                    dx = min((j + 1) * width / columns, k + 1) - max(j * width / columns, k)
                    if dy > 1e-9 and dx > 1e-9:
                        out[i, j] += float(x[y, k]) * dy * dx * rows * columns / (height * width)
    return out


def reference_consistency(features: Tensor, score: Tensor, mask: Tensor, patches: int, sign: int) -> float:
    images = []
    for f, s, m in zip(features, score, mask, strict=True):
        rows, columns = min(f.shape[1], patches), min(f.shape[2], patches)
        pooled = torch.stack([reference_area(channel, rows, columns) for channel in f]).flatten(1)
        values = reference_area(s[0], rows, columns).flatten()
        keep = (reference_area(m[0].double(), rows, columns).flatten() == 0).nonzero().flatten().tolist()
        if len(keep) < 2:
            continue
        total = 0.0
        for i in keep:
            p = [sign * math.dist(pooled[:, i].tolist(), pooled[:, j].tolist()) for j in keep]
            q = [sign * abs(float(values[i] - values[j])) for j in keep]
            log_p = [v - math.log(sum(math.exp(u) for u in p)) for v in p]
            log_q = [v - math.log(sum(math.exp(u) for u in q)) for v in q]
            total += sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q, strict=True))
        images.append(total / len(keep))
    return sum(images) / len(images) if images else 0.0


# ---- distance and feature constraint


def test_distance_by_hand() -> None:
    features = torch.tensor([[1.0, 1, 1], [2, 2, 0], [0, 0, 0]])[:, :, None, None]  # squared norms 3, 8, 0
    assert hypersphere_distance(features).flatten().tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("magnitude", [1e-8, 1e-5, 1e-3, 1.0, 1e4])
def test_distance_is_exact_in_float32(magnitude: float) -> None:
    features = magnitude * batch()[0]
    squared = features.square().sum(1, keepdim=True)
    exact = torch.expm1(torch.log1p(squared) / 2)  # another form that does not cancel
    torch.testing.assert_close(hypersphere_distance(features), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(hypersphere_distance(features.float()), exact.float(), rtol=1e-6, atol=0)


def test_distance_equals_the_loop() -> None:
    features = batch()[0]
    torch.testing.assert_close(hypersphere_distance(features), reference_distance(features))


@pytest.mark.parametrize("balanced", [True, False])
def test_feature_loss_equals_the_loop(balanced: bool) -> None:
    features, _, mask = batch()
    distance = reference_distance(features)
    expected = reference_feature(distance, mask, balanced)
    assert float(feature_loss(distance, mask, balanced=balanced)) == pytest.approx(expected, rel=1e-12)
    assert float(feature_loss(distance.float(), mask, balanced=balanced)) == pytest.approx(expected, rel=1e-5)


def test_balance_matters_when_anomalies_are_rare() -> None:
    mask = torch.zeros(1, 1, 10, 10, dtype=torch.bool)
    mask[..., 0, 0] = True
    distance = torch.full(mask.shape, math.log(2))  # an anomalous pixel pays ln 2, as much as a normal one
    distance[mask] = math.log(4 / 3)  # now ln 4
    assert float(feature_loss(distance, mask)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    unbalanced = float(feature_loss(distance, mask, balanced=False))
    assert unbalanced == pytest.approx(0.99 * math.log(2) + 0.01 * math.log(4))
    # Repeating the normal pixels leaves (4) as it is and lets (3) forget the anomaly.
    wide, wide_mask = (torch.cat([x] + 9 * [x[..., 1:, :]], 2) for x in (distance, mask))
    assert float(feature_loss(wide, wide_mask)) == pytest.approx(float(feature_loss(distance, mask)), rel=1e-6)
    assert float(feature_loss(wide, wide_mask, balanced=False)) < unbalanced


def test_a_class_without_pixels_adds_nothing() -> None:
    distance, none = torch.full((2, 1, 3, 3), 0.7), torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    assert float(feature_loss(distance, none)) == pytest.approx(0.35)
    assert float(feature_loss(distance, ~none)) == pytest.approx(-math.log(1 - math.exp(-0.7)) / 2)


def test_near_the_centre_the_plain_form_fails_and_ours_does_not() -> None:
    plain = torch.full((1, 1, 1, 1), 3e-4, requires_grad=True)
    loss = -(1 - (-((plain.square().sum() + 1).sqrt() - 1)).exp() + 1e-31).log()
    loss.backward()
    assert loss.item() == pytest.approx(71.4, abs=0.1)
    assert gradient(plain).item() < -1e27
    features = torch.full((1, 1, 1, 1), 3e-4, requires_grad=True)
    loss = 2 * feature_loss(hypersphere_distance(features), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(-math.expm1(-4.5e-8)), rel=1e-5)
    assert gradient(features).item() == pytest.approx(-2 / 3e-4, rel=1e-5)


@pytest.mark.parametrize("distance", [1e-8, 1e-4, 0.3, 0.69, 0.70, 5.0, 20.0, 80.0])
def test_repulsion_is_exact_in_float32(distance: float) -> None:
    ones = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    a = torch.full(ones.shape, distance, requires_grad=True)
    (2 * feature_loss(a, ones)).backward()
    exact = -math.log(-math.expm1(-distance)) if distance < 1 else -math.log1p(-math.exp(-distance))
    assert 2 * feature_loss(a, ones).item() == pytest.approx(exact, rel=1e-5, abs=0)
    assert gradient(a).item() == pytest.approx(-1 / math.expm1(distance), rel=1e-5, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_branches_of_the_repulsion_have_the_gradient_where_they_meet(dtype: torch.dtype) -> None:
    """−1/(eᴬ − 1), which is −1 at A = ln 2."""
    distance = torch.full((1, 1, 1, 1), math.log(2), dtype=dtype, requires_grad=True)
    feature_loss(distance, torch.ones(1, 1, 1, 1, dtype=torch.bool), balanced=False).backward()
    assert float(gradient(distance)) == pytest.approx(-1, rel=1e-6)


def test_features_at_the_floor_are_still_repelled() -> None:
    ones = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    previous = math.inf
    for z in (1e-8, 1e-6, 4e-5, 4.4e-5, 4.5e-5, 5e-5, 1e-4):
        features = torch.full(ones.shape, z, requires_grad=True)
        loss = feature_loss(hypersphere_distance(features), ones)
        loss.backward()
        assert loss.item() <= previous
        assert -2.4e4 < gradient(features).item() < 0
        previous = loss.item()


# ---- score constraint


def test_score_loss_by_hand() -> None:
    score = torch.tensor([1.0, 3.5, 2.5, 6.0]).reshape(1, 1, 2, 2)
    mask = torch.tensor([False, False, True, True]).reshape(1, 1, 2, 2)
    # Normal: (0 + 1) / 2. Anomalous against the mean 2.25: (max(0, 5 - 0.25) + max(0, 5 - 3.75)) / 2.
    assert float(score_loss(score, mask, pairing="mean")) == pytest.approx(0.5 + 3.0)
    low, high = (5 - 1.5 + 0) / 2, (5 + 1 + 2.5) / 2  # both partners 1.0, both 3.5
    values = {round(float(score_loss(score, mask, generator=seeded(i))), 4) for i in range(40)}
    assert values == {0.5 + low, 0.5 + high, 0.5 + (3.5 + 2.5) / 2, 0.5 + (6.0 + 0.0) / 2}


def test_score_loss_equals_the_loop() -> None:
    _, score, mask = batch()
    normal, anomalous = split(score, mask)
    mean = [sum(normal) / len(normal)] * len(anomalous)
    expected = reference_score(score, mask, 1.5, 4.0, mean)
    assert float(score_loss(score, mask, gamma=1.5, lam=4.0, pairing="mean")) == pytest.approx(expected, rel=1e-12)
    draws = torch.rand(score.shape, generator=seeded(3))[mask].tolist()
    expected = reference_score(score, mask, 2.5, 5.0, [normal[int(u * len(normal))] for u in draws])
    assert float(score_loss(score, mask, generator=seeded(3))) == pytest.approx(expected, rel=1e-12)
    assert float(score_loss(score.float(), mask, generator=seeded(3))) == pytest.approx(expected, rel=1e-5)


def test_partners_are_normal_and_uniform_over_the_batch() -> None:
    score = torch.arange(200.0).reshape(2, 1, 10, 10)
    mask = score % 10 != 0  # 20 normal pixels, 0, 10, ..., 190, over both images
    drawn = torch.cat([losses._random_partner(score, mask, seeded(i)).flatten() for i in range(100)])
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [10.0 * i for i in range(20)]
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8  # chi-squared with 19 degrees of freedom, p = 0.001


def test_partners_are_drawn_anew_reproducibly_and_without_the_global_generator() -> None:
    _, score, mask = batch()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    g = seeded(5)
    first, second = score_loss(score, mask, generator=g), score_loss(score, mask, generator=g)
    assert first != second
    assert torch.equal(first, score_loss(score, mask, generator=seeded(5)))
    assert torch.equal(state, torch.get_rng_state())


def test_score_loss_without_one_class() -> None:
    score = torch.tensor([1.0, 3.5]).reshape(1, 1, 1, 2).requires_grad_()
    none = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
    for pairing in ("random", "mean"):
        assert score_loss(score, none, pairing=pairing).item() == 0.5
        loss = score_loss(score, ~none, pairing=pairing)
        loss.backward()
        assert loss.item() == 0
        assert not gradient(score).any()


# ---- consistency


@pytest.mark.parametrize("softmax", ["distance", "negative"])
@pytest.mark.parametrize("patches", [2, 3, 4, 16])
def test_consistency_loss_equals_the_loop(patches: int, softmax: str) -> None:
    features, score, _ = batch(b=3, c=2, h=6, w=5)
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[0, 0, 1, 1] = True
    mask[1, 0, :2, :] = True
    expected = reference_consistency(features, score, mask, patches, 1 if softmax == "distance" else -1)
    actual = consistency_loss(features, score, mask, patches=patches, softmax=softmax)
    assert float(actual) == pytest.approx(expected, rel=1e-9)
    actual = consistency_loss(features.float(), score.float(), mask, patches=patches, softmax=softmax)
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_consistency_by_hand() -> None:
    # Two patches: P = [[0, 3], [3, 0]], Q = [[0, 0], [0, 0]].
    features = torch.tensor([[0.0, 3.0]]).reshape(1, 1, 1, 2)
    score, mask = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2, dtype=torch.bool)
    p = math.exp(3) / (1 + math.exp(3))
    expected = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert float(consistency_loss(features, score, mask)) == pytest.approx(expected, rel=1e-6)
    assert float(consistency_loss(features, features, mask)) == 0  # scores as far apart as features


def test_anomalous_patches_take_no_part() -> None:
    features, score, _ = batch(b=2, h=8, w=8)
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[0, 0, 0, 3] = mask[1, 0, 5, 5] = True
    patch = resize_mask(resize_mask(mask, (4, 4)), (8, 8))
    features.requires_grad_()
    loss = consistency_loss(features, score, mask, patches=4)
    loss.backward()
    assert not gradient(features)[patch.expand_as(features)].any()
    assert gradient(features)[~patch.expand_as(features)].ne(0).all()
    changed = torch.where(patch, 100.0, features)
    torch.testing.assert_close(consistency_loss(changed, torch.where(patch, -9.0, score), mask, patches=4), loss)


def test_images_with_less_than_two_normal_patches_are_left_out() -> None:
    features, score, _ = batch(b=3, h=4, w=4)
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[1] = True
    mask[2] = True
    mask[2, 0, 0, 0] = False
    alone = consistency_loss(features[:1], score[:1], mask[:1])
    torch.testing.assert_close(consistency_loss(features, score, mask), alone)
    features.requires_grad_()
    loss = consistency_loss(features, score, torch.ones_like(mask))
    loss.backward()
    assert loss.item() == 0
    assert not gradient(features).any()


def test_equal_patches_give_finite_gradients() -> None:
    features = torch.full((1, 3, 4, 4), 7.3, requires_grad=True)
    score = torch.randn(1, 1, 4, 4, generator=seeded()).requires_grad_()
    consistency_loss(features, score, torch.zeros(1, 1, 4, 4, dtype=torch.bool)).backward()
    assert not gradient(features).any()
    assert gradient(score).isfinite().all()


def test_distances_between_close_patches_of_large_features() -> None:
    x = torch.randn(2, 40, 8, generator=seeded())
    x += 1e4 * torch.arange(40)[:, None].remainder(2)  # two far clusters
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(losses._pairwise_distance(x), exact.float(), rtol=1e-5, atol=1e-5)


# ---- gradients


@pytest.mark.parametrize(
    "name", ["distance", "balanced", "plain", "random", "mean", "consistency", "negative", "total"]
)
def test_gradients(name: str) -> None:
    features, score, mask = batch(b=2, c=3, h=3, w=5, seed=2)
    assert mask.any()
    functions = {
        "distance": lambda f, s: hypersphere_distance(f),
        "balanced": lambda f, s: feature_loss(hypersphere_distance(f), mask),
        "plain": lambda f, s: feature_loss(hypersphere_distance(f), mask, balanced=False),
        "random": lambda f, s: score_loss(s, mask, generator=seeded()),
        "mean": lambda f, s: score_loss(s, mask, pairing="mean"),
        "consistency": lambda f, s: consistency_loss(f, s, mask, patches=4),
        "negative": lambda f, s: consistency_loss(f, s, mask, softmax="negative"),
        "total": lambda f, s: total_loss(f, s, mask, LossConfig(), generator=seeded()).total,
    }
    inputs = (features.requires_grad_(), score.requires_grad_())
    assert functions[name](*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(functions[name], inputs)


MASKS = {
    "some": lambda shape: torch.rand(shape, generator=seeded(1)) < 0.2,
    "none": lambda shape: torch.zeros(shape, dtype=torch.bool),
    "all": lambda shape: torch.ones(shape, dtype=torch.bool),
    "one image": lambda shape: (torch.arange(shape[0]) == 0)[:, None, None, None].expand(shape),
}


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.one_of(st.none(), st.floats(-8, 4)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    autocast=st.sampled_from([None, torch.bfloat16, torch.float16]),
    kind=st.sampled_from(sorted(MASKS)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 9), st.integers(1, 9)),
    options=st.tuples(st.sampled_from(["random", "mean"]), st.sampled_from(["distance", "negative"])),
    seed=st.integers(0, 99),
)
def test_loss_and_gradient_are_finite(
    exponent: float | None,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    kind: str,
    size: tuple[int, int, int, int],
    options: tuple[Any, Any],
    seed: int,
) -> None:
    b, c, h, w = size
    scale = 0.0 if exponent is None else 10**exponent
    features = (scale * (2 * torch.rand(b, c, h, w, generator=seeded(seed)) - 1)).to(dtype).requires_grad_()
    score = torch.randn(b, 1, h, w, generator=seeded(seed)).to(dtype).requires_grad_()
    config = LossConfig(pairing=options[0], softmax=options[1], patches=4)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        terms = total_loss(features, score, MASKS[kind]((b, 1, h, w)), config, generator=seeded())
    terms.total.backward()
    assert all(t.isfinite() and t >= -1e-6 for t in terms)
    assert terms.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient(features).isfinite().all()
    assert gradient(score).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e4])
def test_autocast_changes_neither_value_nor_precision(dtype: torch.dtype, scale: float) -> None:
    features, score, mask = batch(h=7, dtype=dtype)
    features = scale * features.clamp(-2, 2)
    plain = total_loss(features.float(), score.float(), mask, LossConfig(patches=4), generator=seeded())
    with torch.autocast("cpu", dtype=dtype):
        cast = total_loss(features, score, mask, LossConfig(patches=4), generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


# ---- total and masks


@pytest.fixture
def half() -> Iterator[None]:
    """A term of one's own, half the mean score of normal pixels, for one test."""
    registry.register("terms", "half", lambda features, score, mask, *, generator: score[~mask].mean() / 2)
    yield
    del registry.OWN["terms"]["half"]


@pytest.mark.usefixtures("half")
def test_terms_of_ones_own_are_summed_with_their_weights() -> None:
    features, score, mask = batch()
    torch.testing.assert_close(own_loss(features, score, mask, {"half": 3.0}), 1.5 * score[~mask].mean())
    assert own_loss(features, score, mask, {"half": 1.0, "nowhere:at_all": 0.0}) == score[~mask].mean() / 2
    assert own_loss(features, score, mask, {}) == 0


@pytest.mark.parametrize(
    ("value", "found"),
    [(1.0, "got float"), (torch.ones(1), r"got \(1,\) torch.float32"), (torch.tensor(1), "torch.int64")],
)
def test_a_term_that_is_no_scalar_is_named(value: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.OWN["terms"], "odd", lambda *_, generator: value)
    with pytest.raises(ConfigError, match=f"the term 'odd' must return a floating-point tensor of shape .*{found}"):
        own_loss(*batch(), {"odd": 1.0})


def test_total_is_the_weighted_sum_of_the_terms() -> None:
    features, score, mask = batch()
    terms = total_loss(features, score, mask, LossConfig(feature=0.5, score=2.0, consistency=3.0), generator=seeded())
    feature = feature_loss(hypersphere_distance(features), mask)
    ranked = score_loss(score, mask, generator=seeded())
    consistency = consistency_loss(features, score, mask)
    assert terms[1:] == (feature, ranked, consistency)
    torch.testing.assert_close(terms.total, 0.5 * feature + 2 * ranked + 3 * consistency)
    config = LossConfig(gamma=0.0, lam=1.0, pairing="mean", patches=3, softmax="negative")
    terms = total_loss(features, score, mask, config)
    assert terms.score == score_loss(score, mask, gamma=0.0, lam=1.0, pairing="mean")
    assert terms.consistency == consistency_loss(features, score, mask, patches=3, softmax="negative")


@pytest.mark.parametrize("name", ["feature", "score", "consistency"])
def test_terms_of_weight_zero_are_not_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, score, mask = batch(dtype=torch.float16)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("computed a term of weight 0")

    monkeypatch.setattr(losses, f"{name}_loss", refuse)
    weight: dict[str, Any] = {name: 0.0}
    terms = total_loss(features, score, mask, LossConfig(**weight), generator=seeded())
    assert getattr(terms, name) == 0
    assert getattr(terms, name).dtype == torch.float32
    torch.testing.assert_close(terms.total, terms.feature + terms.score + terms.consistency)


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (7, 2), (8, 10), (16, 20), (9, 13), (1, 1)])
@pytest.mark.parametrize("coverage", [0.0, 0.11, 0.53])
def test_resize_mask_equals_the_loop(size: tuple[int, int], coverage: float) -> None:
    mask = torch.rand(2, 1, 8, 10, generator=seeded()) < 0.15
    expected = torch.stack([reference_area(m[0].double(), *size) > coverage for m in mask])[:, None]
    assert torch.equal(resize_mask(mask, size, coverage=coverage), expected)


def test_resize_mask_keeps_the_smallest_defect() -> None:
    mask = torch.zeros(1, 1, 512, 509, dtype=torch.bool)
    mask[0, 0, 511, 508] = True
    small = resize_mask(mask, (32, 31))
    assert small.nonzero().tolist() == [[0, 0, 31, 30]]
    assert not resize_mask(mask, (32, 31), coverage=0.01).any()
    assert torch.equal(resize_mask(mask, (512, 509)), mask)
    half = torch.tensor([[True, False], [True, False]])[None, None]
    assert not resize_mask(half, (1, 1), coverage=0.5).any()  # exactly half is not more than half
    assert resize_mask(half, (1, 1), coverage=0.49).all()


def test_arguments_are_checked() -> None:
    features, score, mask = batch()
    with pytest.raises(ValueError, match="mask bool"):
        score_loss(score, mask.float())
    with pytest.raises(ValueError, match="resize_mask"):
        feature_loss(hypersphere_distance(features), mask[..., :-1])
    with pytest.raises(ValueError, match="features must have shape"):
        hypersphere_distance(features[0])
    with pytest.raises(ValueError, match="must agree in B, h and w"):
        consistency_loss(features[..., :-1], score, mask)
    with pytest.raises(ValueError, match="pairing must be"):
        score_loss(score, mask, pairing="nearest")
    with pytest.raises(ValueError, match="softmax must be"):
        consistency_loss(features, score, mask, softmax="none")
    with pytest.raises(ValueError, match="coverage must be"):
        resize_mask(mask, (2, 2), coverage=1.0)


@pytest.mark.parametrize("balanced", [True, False])
def test_total_loss_takes_equation_3_or_4_as_configured(balanced: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    features, score = torch.randn(2, 4, 6, 6, generator=generator), torch.randn(2, 1, 6, 6, generator=generator)
    mask = torch.rand(2, 1, 6, 6, generator=generator) < 0.1
    terms = total_loss(features, score, mask, LossConfig(balanced=balanced), generator=generator)
    distance = hypersphere_distance(features)
    assert torch.equal(terms.feature, feature_loss(distance, mask, balanced=balanced))
    assert not torch.isclose(terms.feature, feature_loss(distance, mask, balanced=not balanced))
