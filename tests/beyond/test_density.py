"""The Gaussian of good features against loops in float64, refits without an image, and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mlffn_lite.beyond.density import EIGENVALUE_FLOOR, DensityDetector, MultiscaleDensity, NormalDensity
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.features import Moments, upsample


def features(count: int, channels: int = 5, size: tuple[int, int] = (3, 4), seed: int = 0) -> torch.Tensor:
    """Correlated features that depend on the position and lie far from the origin."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=torch.Generator().manual_seed(7))
    place = torch.randn(channels, *size, generator=torch.Generator().manual_seed(8))
    noise = torch.randn(count, channels, *size, generator=g)
    return torch.einsum("cd,bdhw->bchw", mixing, noise) + 2 * place + 30


def reference(train: torch.Tensor, test: torch.Tensor, shrinkage: float) -> np.ndarray:
    """The docstring's distance with the full covariance, position by position."""
    x, y = (t.double().numpy() for t in (train, test))
    everything = x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
    mean, scale = everything.mean(0), everything.std(0)
    values, axes = np.linalg.eigh(np.cov(((everything - mean) / scale).T, bias=True))
    floor = EIGENVALUE_FLOOR + len(mean) / len(everything)
    whiten = axes / np.sqrt(values + floor * values.mean()) / scale[:, None]
    out = np.zeros((len(y), *y.shape[2:]))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            seen = (x[:, :, i, j] - mean) @ whiten
            inverse = np.linalg.inv(np.cov(seen.T) + shrinkage * np.eye(len(mean)))
            for b in range(len(y)):
                z = (y[b, :, i, j] - mean) @ whiten
                away = z - seen.mean(0)
                out[b, i, j] = np.sqrt(z @ z + away @ inverse @ away)
    return out


@pytest.mark.parametrize("count", [3, 12, 40])
def test_equals_loops_over_positions(count: int) -> None:
    train, test = features(count), features(6, seed=1)
    got = NormalDensity(5, shrinkage=0.3).fit(train.split(7))(test)
    assert got.shape == (6, 1, 3, 4)
    np.testing.assert_allclose(got[:, 0].numpy(), reference(train, test, 0.3), rtol=2e-3)  # directions are float16


def test_kept_eigenvectors_are_the_largest() -> None:
    """With as many as good images have, nothing is lost; with fewer the rest counts with its mean."""
    train, test = features(4), features(5, seed=1)
    full, enough = (NormalDensity(5, rank=r).fit([train])(test) for r in (5, 3))
    torch.testing.assert_close(enough, full, rtol=0.15, atol=0)
    one = NormalDensity(5, rank=1).fit([train])
    values = torch.linalg.eigvalsh(torch.stack([t.T.cov() for t in _whitened(one, train)]))
    torch.testing.assert_close(one.rest[:, 0], values[:, :-1].mean(1), rtol=1e-3, atol=1e-4)


def _whitened(density: NormalDensity, x: torch.Tensor) -> list[torch.Tensor]:
    return list(((x.permute(2, 3, 0, 1) - density.mean) @ density.whitening).flatten(0, 1))


@pytest.mark.parametrize("count", [2, 3, 10, 30])
def test_leave_one_out_equals_a_refit(count: int) -> None:
    """In closed form, every image's distance is the one from a Gaussian of the others (the whitening stays)."""
    train, shrinkage = features(count), 0.2
    density = NormalDensity(5, shrinkage=shrinkage).fit([train])
    got = density(train, left_out=True)[:, 0].flatten(1)
    for p, seen in enumerate(_whitened(density, train)):
        for b in range(count):
            others = torch.cat((seen[:b], seen[b + 1 :])).double()
            scatter = (others - others.mean(0)).T @ (others - others.mean(0)) / (count - 1)
            away, z = seen[b].double() - others.mean(0), seen[b].double()
            inverse = torch.linalg.inv(scatter + shrinkage * torch.eye(5, dtype=torch.float64))
            assert got[b, p].item() == pytest.approx(
                float((z @ z + away @ inverse @ away).sqrt()), rel=0.1 if count < 5 else 5e-3
            )  # directions are float16


def test_leave_one_out_looks_like_new_images() -> None:
    """Without it, images that were fitted look far more usual than new ones."""
    train, new = features(12, channels=8), features(200, channels=8, seed=3)
    density = NormalDensity(8).fit([train])
    inside, out, fresh = density(train), density(train, left_out=True), density(new)
    assert inside.median() < 0.9 * fresh.median()
    assert out.median() == pytest.approx(fresh.median().item(), rel=0.15)


@given(seed=st.integers(0, 1000), batch=st.integers(1, 9), gain=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_units_and_batches_do_not_matter(seed: int, batch: int, gain: float, shift: float) -> None:
    train, test = features(9, seed=seed), features(2, seed=seed + 1)
    once = NormalDensity(5).fit([train])(test)
    again = NormalDensity(5).fit((gain * train + shift).split(batch))(gain * test + shift)
    torch.testing.assert_close(again, once, rtol=2e-2, atol=1e-2)
    assert (once >= 0).all()


def test_a_strange_feature_stands_out_where_it_is() -> None:
    train, test = features(20), features(1, seed=2)
    test[0, :, 1, 2] += 60
    maps = NormalDensity(5).fit([train])(test)[0, 0]
    assert maps.flatten().argmax() == 1 * 4 + 2


@pytest.mark.parametrize(
    "train",
    [features(1), torch.ones(6, 5, 3, 4), torch.zeros(2, 5, 1, 1), features(4)[:, :1]],
    ids=["one image", "constant", "zero", "one channel"],
)
def test_degenerate_sets_stay_finite(train: torch.Tensor) -> None:
    density = NormalDensity(train.shape[1]).fit([train])
    for left_out in (False, True):
        assert density(train, left_out=left_out).isfinite().all()
    assert density(train + 1).isfinite().all()


def test_nothing_to_fit() -> None:
    with pytest.raises(ValueError, match="no features"):
        NormalDensity(5).fit([])


def test_other_sizes_are_averaged_to_the_fitted_one() -> None:
    train = features(8)
    density = NormalDensity(5).fit([train])
    twice = train.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(density(twice), density(train))


def test_state_goes_through_a_file_and_keeps_its_size(tmp_path: Path) -> None:

    density = NormalDensity(5, rank=3).fit([features(8)])
    save_file(density.state_dict(), tmp_path / "x.safetensors")
    fresh = NormalDensity(5, rank=3)
    fresh.load_state_dict(load_file(tmp_path / "x.safetensors"))
    test = features(2, seed=5)
    assert torch.equal(fresh(test), density(test))
    assert torch.equal(fresh(test, left_out=True), density(test, left_out=True))
    with pytest.raises(RuntimeError, match="size mismatch"):
        NormalDensity(5, rank=2).load_state_dict(density.state_dict())


def test_moments_do_not_cancel() -> None:
    x = 1000 + torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(0))
    moments = Moments()
    for part in x.split(16, dim=1):
        moments.add(part)
    expected = torch.stack([torch.cov(p.double().T) for p in x])
    torch.testing.assert_close(moments.covariance().double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("left_out", [False, True])
def test_several_strides_are_averaged_per_channel(left_out: bool, tmp_path: Path) -> None:
    fine, coarse = torch.randn(9, 4, 4, 6), torch.randn(9, 7, 2, 3)
    several = MultiscaleDensity([4, 7], rank=3, shrinkage=0.5)
    assert not several.fitted
    assert several.fit(zip(fine.split(4), coarse.split(4), strict=True)).fitted
    a, b = (NormalDensity(x.shape[1], 3, 0.5).fit([x])(x, left_out=left_out) for x in (fine, coarse))
    between = torch.nn.functional.interpolate(b, (4, 6), mode="bilinear")
    expected = (a / 2 + between / 7**0.5) / 2
    torch.testing.assert_close(several([fine, coarse], left_out=left_out), expected, rtol=1e-3, atol=1e-4)
    save_file(several.state_dict(), tmp_path / "x.safetensors")
    fresh = MultiscaleDensity([4, 7], rank=3, shrinkage=0.5)
    fresh.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert torch.equal(fresh([fine, coarse]), several([fine, coarse]))


def test_one_stride_is_the_density_itself() -> None:
    train, test = torch.randn(9, 4, 3, 3), torch.randn(2, 4, 3, 3)
    alone = MultiscaleDensity([4]).fit([[train]])
    torch.testing.assert_close(alone([test]), NormalDensity(4).fit([train])(test) / 2)


def test_a_stride_too_few_or_too_many_is_refused() -> None:
    density = MultiscaleDensity([4, 4])
    with pytest.raises(ValueError, match="argument"):
        density.fit([[torch.randn(3, 4, 2, 2)]])


TINY = Config.preset("tiny", method="density", train={"device": "cpu", "precision": "fp32"})


@pytest.mark.parametrize("strides", [(4,), (8,), (16,), (4, 16), (8, 16), (4, 8, 16)])
def test_it_sees_at_each_stride_the_levels_that_are_no_coarser(strides: tuple[int, ...]) -> None:
    detector = DensityDetector(TINY.replace(model={"weights": "none"}, density={"strides": strides}))
    with torch.no_grad():
        levels = detector.backbone.eval()(torch.rand(2, 3, 64, 48))
        stacks = detector._stacks(levels)
    assert detector.density.channels == tuple(x.shape[1] for x in stacks)
    for stride, stack in zip(strides, stacks, strict=True):
        seen = [level for level, its in zip(levels, (4, 8, 16), strict=True) if its <= stride]
        size = (64 // stride, 48 // stride)
        averaged = [torch.nn.functional.adaptive_avg_pool2d(x.float(), size) for x in seen]
        torch.testing.assert_close(stack, torch.cat(averaged, 1))


def test_the_method_is_the_density_of_the_levels(folder: AnomalyFolder, tmp_path: Path) -> None:
    detector = AnomalyDetector(TINY).fit(folder, out=tmp_path / "r", progress=False)
    assert isinstance(detector, DensityDetector)
    with torch.inference_mode():
        train, test = (detector.backbone(x.float() / 255) for x in (folder.train.images(), folder.test.images()))
        expected = MultiscaleDensity(detector.density.channels, rank=16).fit([detector._stacks(train)])
        maps = upsample(expected(detector._stacks(test)), (64, 64))
        good = upsample(expected(detector._stacks(train), left_out=True), (64, 64)).flatten(1)
    torch.testing.assert_close(detector.predict(folder.test.images()).maps, maps, rtol=1e-2, atol=1e-2)
    assert detector.calibration is not None
    assert detector.calibration.threshold == pytest.approx(float(good.amax(1).quantile(0.99)), rel=1e-2)
    assert detector.evaluate(folder)["image_auroc"] > 0.9
    loaded = AnomalyDetector.load(tmp_path / "r", device="cpu")
    assert torch.equal(loaded.predict(folder.test.paths).maps, detector.predict(folder.test.paths).maps)
