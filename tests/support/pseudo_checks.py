"""What the tests of pseudo-anomalies share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mlffn_lite.canvas import VISIBLE_CHANGE
from mlffn_lite.pseudo import PseudoAnomaly


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


def take_back(image: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = np.abs(out - image).max(0) > VISIBLE_CHANGE
    return np.where(mask, out, image), mask


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Soft patterns with dark and bright saturated areas, so that clamping and flipping are reached."""
    field = gaussian_filter(noise(*shape, seed=seed).double().numpy(), (0, 0, 4, 4))
    return torch.from_numpy(((field - field.mean()) / field.std() * 0.5 + 0.4).clip(0, 1)).float()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Draw and compute in this dtype: the library takes it from torch's default and from the images."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(usual)


def check_against(
    kind: PseudoAnomaly, images: Tensor, expectations: list[tuple[np.ndarray, np.ndarray]], close: float
) -> None:
    """Images and masks, made with seed 11, equal a reference; masks may differ where rounding decides."""
    out, masks = kind(images, generator=seeded(11))
    for image, (expected, expected_mask), got, mask in zip(images, expectations, out, masks[:, 0], strict=True):
        # Rounding may decide otherwise only where a change is within this of the threshold.
        change = np.abs(expected - image.numpy()).max(0)
        certain = np.abs(change - VISIBLE_CHANGE) > close
        tolerance = np.where(mask.numpy() == expected_mask, close, VISIBLE_CHANGE + close)
        assert np.all(np.abs(got.numpy() - expected) < tolerance)
        assert np.array_equal(mask.numpy()[certain], expected_mask[certain])
        assert mask.any()
