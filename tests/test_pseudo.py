"""Pseudo-anomalies: against references in plain loops and float64, and what must hold for any input."""

from __future__ import annotations

import math
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
from torch import Tensor

from mlffn_lite.pseudo import (
    KINDS,
    VISIBLE_CHANGE,
    Canvas,
    ConfettiNoise,
    CutPaste,
    CutPasteScar,
    PseudoAnomalies,
    PseudoAnomaly,
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


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Soft patterns with dark and bright saturated areas, so that clamping and flipping are reached."""
    field = gaussian_filter(noise(*shape, seed=seed).double().numpy(), (0, 0, 4, 4))
    return torch.from_numpy(((field - field.mean()) / field.std() * 0.5 + 0.4).clip(0, 1)).float()


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
    ],
)
def test_equals_the_loop_reference(kind: ConfettiNoise | CutPaste | CutPasteScar, size: tuple[int, int]) -> None:
    images = smooth(5, 3, *size, seed=size[0])
    out, masks = kind(images, generator=seeded(11))
    count = 1 + 8 * kind.count[1] if isinstance(kind, ConfettiNoise) else 7 + 2 * kind.candidates
    draws = torch.rand((count, len(images)), generator=seeded(11)).double().numpy().T
    for image, draw, got, mask in zip(images, draws, out, masks[:, 0], strict=True):
        if isinstance(kind, ConfettiNoise):
            expected, expected_mask = confetti_reference(image.double().numpy(), draw, kind)
        else:
            expected, expected_mask = paste_reference(image.double().numpy(), draw, kind)
        # Rounding may decide otherwise only where a change is within 1e-5 of the threshold.
        change = np.abs(expected - image.numpy()).max(0)
        certain = np.abs(change - VISIBLE_CHANGE) > 1e-5
        tolerance = np.where(mask.numpy() == expected_mask, 1e-5, VISIBLE_CHANGE + 1e-5)
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


# What must hold for any input.

kinds = st.sampled_from(
    [ConfettiNoise(), CutPaste(), CutPasteScar(), ConfettiNoise(blur=0.0, count=(3, 3)), CutPaste(rotation=45.0)]
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
    weights=st.lists(st.floats(0, 5), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01),
    seed=st.integers(0, 2**31),
)
def test_ratio_and_shares_are_exact(batch: int, ratio: float, weights: list[float], seed: int) -> None:
    images = torch.zeros(batch, 3, 4, 4)
    stamps = {"confetti": Stamp(0.25), "cutpaste": Stamp(0.5), "scar": Stamp(0.75)}
    out, masks = PseudoAnomalies(ratio, *weights, kinds=stamps)(images, generator=seeded(seed))
    changed = round(ratio * batch)
    assert int(masks.flatten(1).any(1).sum()) == changed
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


def test_ratio_zero_and_one() -> None:
    images = noise(7, 3, 33, 50)
    out, masks = PseudoAnomalies(0.0)(images, generator=seeded())
    assert torch.equal(out, images)
    assert not masks.any()
    out, masks = PseudoAnomalies(1.0, scar=1.0)(images, generator=seeded())
    assert masks.flatten(1).any(1).all()
    check_contract(images, out, masks)
    assert PseudoAnomalies(1.0)(images[:1], generator=seeded())[1].any()


@pytest.mark.parametrize("kind", [ConfettiNoise(), CutPaste(), CutPasteScar(), PseudoAnomalies(0.7, scar=1.0)])
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


@pytest.mark.parametrize("kind", [ConfettiNoise(), CutPaste(), CutPasteScar(), PseudoAnomalies(0.7)])
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
        (lambda: PseudoAnomalies(1.5), "ratio must lie between 0 and 1"),
        (lambda: PseudoAnomalies(confetti=-1), "weights must be at least 0"),
        (lambda: PseudoAnomalies(confetti=math.nan), "weights must be at least 0"),
        (lambda: PseudoAnomalies(confetti=0, cutpaste=0), "not all 0"),
        (lambda: PseudoAnomalies(perlin=1.0), "unknown kinds perlin; choose from confetti, cutpaste, scar"),
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
    for kind in (ConfettiNoise(), PseudoAnomalies()):
        out, masks = kind(torch.zeros(0, 3, 8, 8), generator=seeded())
        assert (out.shape, masks.shape) == ((0, 3, 8, 8), (0, 1, 8, 8))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("kind", [ConfettiNoise(), CutPaste(), CutPasteScar(), PseudoAnomalies(0.5, scar=1.0)])
def test_a_cpu_generator_gives_the_same_anomalies_on_cuda(kind: PseudoAnomaly) -> None:
    images = noise(16, 3, 96, 80)
    out, masks = kind(images, generator=seeded(3))
    there, there_masks = kind(images.cuda(), generator=seeded(3))
    assert (there.cpu() - out).abs().max() < 1e-5 + VISIBLE_CHANGE
    assert (there_masks.cpu() != masks).float().mean() < 1e-4
    check_contract(images, there.cpu(), there_masks.cpu())
    kind(images.cuda(), generator=torch.Generator("cuda").manual_seed(0))
