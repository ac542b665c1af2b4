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
from own_kind import Stripe
from pseudo_checks import check_against, check_contract, default_dtype, noise, seeded, smooth, take_back
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from torch import Tensor

from mlffn_lite.beyond.blemish import Blemish
from mlffn_lite.canvas import VISIBLE_CHANGE
from mlffn_lite.errors import ConfigError
from mlffn_lite.pseudo import CanvasAnomaly, ConfettiNoise, CutPaste, CutPasteScar, PseudoAnomalies, PseudoAnomaly

LUMA = np.array([0.299, 0.587, 0.114])
EACH = {"confetti": 1.0, "cutpaste": 1.0, "scar": 1.0, "blemish": 1.0}


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


def references(kind: PseudoAnomaly, images: Tensor, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Changed images and masks, from what the generator draws for the kind."""
    generator, n = seeded(seed), len(images)
    pixels = images.double().numpy()

    def drawn(*shape: int) -> np.ndarray:
        return torch.rand(shape, generator=generator).double().numpy()

    if isinstance(kind, ConfettiNoise):
        draws = drawn(1 + 8 * kind.count[1], n).T
        return [confetti_reference(*given, kind) for given in zip(pixels, draws, strict=True)]
    assert isinstance(kind, CutPaste | CutPasteScar)
    draws = drawn(7 + 2 * kind.candidates, n).T
    return [paste_reference(*given, kind) for given in zip(pixels, draws, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
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
def test_equals_the_loop_reference(kind: PseudoAnomaly, size: tuple[int, int], dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        images = smooth(5, 3, *size, seed=size[0]).to(dtype)
        check_against(kind, images, references(kind, images, 11), 1e-9 if dtype == torch.float64 else 1e-5)


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
    pseudo = PseudoAnomalies(ratio, dict(zip(stamps, weights, strict=True)), generators=stamps)
    out, masks = pseudo(images, generator=seeded(seed))
    changed = int(masks.flatten(1).any(1).sum())
    assert abs(changed - ratio * batch) < 1
    check_contract(images, out, masks)
    for stamp, weight in zip(stamps.values(), weights, strict=True):
        count = int((out[:, 0, 0, 0] == stamp.value).sum())
        assert abs(count - changed * weight / sum(weights)) < 1 + 1e-6


class Stamp(PseudoAnomaly):
    """Set the first pixel: shows which kind changed which image."""

    def __init__(self, value: float) -> None:
        self.value = value

    def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        before = images[:, :, :1, :1].clone()
        images[:, :, 0, 0] = self.value
        masks = torch.zeros_like(images[:, :1], dtype=torch.bool)
        masks[:, :, :1, :1] = (images[:, :, :1, :1] != before).any(1, keepdim=True)
        return images, masks


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_a_kind_of_ones_own_joins_by_its_import_path(dtype: torch.dtype) -> None:
    images = (255 * noise(9, 3, 40, 32)).to(torch.uint8)
    images = images if dtype == torch.uint8 else (images / 255).to(dtype)
    before = images.clone()
    pseudo = PseudoAnomalies(
        1.0, {"confetti": 1.0, "own_kind:Stripe": 2.0}, {"own_kind:Stripe": {"thickness": 0.2}, "scar": {"jitter": 0}}
    )
    out, masks = pseudo(images, generator=seeded(1))
    assert torch.equal(images, before)
    check_contract(images / 255 if dtype == torch.uint8 else images, out, masks)
    rows = masks.all(3).sum((1, 2))  # of a stripe: 0.2 of 40, and one for the middle, or fewer at the border
    assert (rows > 0).sum() == 6
    assert rows.max() == 9
    stripe = pseudo.kinds["own_kind:Stripe"]
    assert isinstance(stripe, Stripe)
    alone, alone_masks = stripe(images, generator=seeded(2))
    check_contract(images / 255 if dtype == torch.uint8 else images, alone, alone_masks)


def test_lists_of_a_configuration_become_ranges() -> None:
    pseudo = PseudoAnomalies(1.0, {"confetti": 1}, {"confetti": {"side": [0.1, 0.2], "place": [0.5, 0.5]}})
    assert pseudo.kinds["confetti"] == ConfettiNoise(side=(0.1, 0.2), place=(0.5, 0.5))


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda x: x, "images and masks of shapes .* got Tensor"),
        (lambda x: (x, x), r"got \[\(2, 3, 6, 6\), \(2, 3, 6, 6\)\]"),
        (lambda x: (x[:1], x[:, :1] > 2), r"got \[\(1, 3, 6, 6\)"),
        (lambda x: (x, None), r"got \[\(2, 3, 6, 6\), \(\)\]"),
        (lambda x: (x, x[:, :1]), "bool masks, got torch.float32 and torch.float32"),
        (lambda x: (x.long(), x[:, :1] > 2), "floating-point images .* got torch.int64"),
        (lambda x: (x + 2, x[:, :1] < 2), r"images in \[0, 1\]; clamp them"),
        (lambda x: (x * math.nan, x[:, :1] < 2), r"images in \[0, 1\]"),
        (lambda x: (1 - x.round(), x[:, :1] > 2), "it changed pixels outside of them"),
    ],
)
def test_a_kind_that_breaks_its_contract_is_named(returns: Any, message: str) -> None:
    class Careless(PseudoAnomaly):
        def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return returns(images)

    for kind in (Careless(), PseudoAnomalies(1.0, {"own": 1}, generators={"own": Careless()})):
        with pytest.raises(ConfigError, match=rf"^Careless.apply must return .*{message}") as error:
            kind(noise(2, 3, 6, 6), generator=seeded())
        assert "\n" not in str(error.value)


def test_changes_outside_of_a_mask_are_taken_back() -> None:
    class Faint(PseudoAnomaly):
        def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return images + 0.01, torch.zeros_like(images[:, :1], dtype=torch.bool)

    images = 0.5 * noise(2, 3, 6, 6)
    assert torch.equal(Faint()(images, generator=seeded())[0], images)


@pytest.mark.parametrize("kind", [ConfettiNoise, CutPaste, CutPasteScar, Blemish])
def test_a_place_moves_a_shape_and_changes_no_other_draw(kind: type[CanvasAnomaly]) -> None:
    images = noise(30, 3, 60, 80)
    small: dict[str, Any] = {"count": (1, 1)} if kind in (ConfettiNoise, Blemish) else {}
    placed = kind(**small, place=(0.4, 0.7))
    _, masks = placed(images, generator=seeded(3))
    check_contract(images, *placed(images, generator=seeded(3)))
    inside = [mask[0].nonzero().double().mean(0) for mask in masks if mask.any()]
    assert len(inside) >= 25
    # A pixel's place is its centre; a large shape is cut off at the border, or moved inside.
    middle = torch.stack(inside).median(0).values
    assert torch.allclose(middle, torch.tensor([0.4 * 60 - 0.5, 0.7 * 80 - 0.5], dtype=torch.float64), atol=1.5)
    assert torch.equal(placed(images, generator=(after := seeded(3)))[1], masks)
    kind(**small)(images, generator=(without := seeded(3)))
    assert torch.equal(after.get_state(), without.get_state())


def test_chosen_images_and_kinds_vary_with_the_seed() -> None:
    images = torch.full((10, 3, 16, 16), 0.5)
    stamps = {"confetti": Stamp(0.25), "cutpaste": Stamp(0.75)}
    pseudo = PseudoAnomalies(0.5, generators=stamps)
    picked = torch.stack([pseudo(images, generator=seeded(s))[0][:, 0, 0, 0] for s in range(400)])
    assert ((picked != 0.5).sum(1) == 5).all()
    # Five changed images, shared half and half: two or three of a kind, either being as likely.
    assert set((picked == 0.25).sum(1).tolist()) == {2, 3}
    assert float((picked == 0.25).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float((picked != 0.5).float().mean(0).sub(0.5).abs().max()) < 0.1


@pytest.mark.parametrize(("ratio", "batch"), [(0.05, 8), (0.05, 16), (0.25, 2), (0.5, 7)])
def test_a_ratio_is_met_over_many_batches(ratio: float, batch: int) -> None:
    """Rounded to the nearest, 5 % of 8 images would be none for ever."""
    pseudo, generator = PseudoAnomalies(ratio, {"stamp": 1}, generators={"stamp": Stamp(1.0)}), seeded()
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
    out, masks = PseudoAnomalies(1.0, {"confetti": 1, "cutpaste": 1, "scar": 1})(images, generator=seeded())
    assert masks.flatten(1).any(1).all()
    check_contract(images, out, masks)
    assert PseudoAnomalies(1.0)(images[:1], generator=seeded())[1].any()


@pytest.mark.parametrize("kind", [ConfettiNoise(), CutPaste(), CutPasteScar(), Blemish(), PseudoAnomalies(0.7, EACH)])
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
        (lambda: ConfettiNoise(place=(0.5, 1.5)), "place must be two numbers between 0 and 1"),
        (lambda: ConfettiNoise(place=(0.5,)), "place must"),  # type: ignore[arg-type]
    ],
)
def test_wrong_parameters_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio of pseudo-anomalies must lie between 0 and 1, got 1.5"),
        ({"kinds": {"confetti": -1}}, "weights of kinds must be at least 0"),
        ({"kinds": {"confetti": math.nan}}, "weights of kinds must be at least 0"),
        ({"kinds": {"confetti": 0, "cutpaste": 0}}, "not all 0"),
        ({"kinds": {}}, "not all 0"),
        ({"kinds": {"perlin": 1}}, "unknown kind 'perlin'; choose from confetti, cutpaste, scar, blemish"),
        ({"kinds": {"own_kind:Strip": 1}}, "cannot import the kind 'own_kind:Strip'"),
        ({"kinds": {"pseudo_checks:seeded": 1}}, "seeded must take images, a generator and these"),
        ({"kinds": {"builtins:dict": 1}}, "kind 'builtins:dict' is no PseudoAnomaly"),
        ({"options": {"confeti": {}}}, "unknown kind 'confeti'"),
        ({"options": {"confetti": {"blur": -1}}}, "kind 'confetti' cannot be made with .*: blur must lie between 0"),
        ({"options": {"confetti": {"fuzz": 1}}}, "kind 'confetti' cannot be made with .*'fuzz'"),
        ({"generators": {"own": ConfettiNoise()}}, "generators own have no weight"),
    ],
)
def test_wrong_mixtures_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        PseudoAnomalies(**options)
    assert "\n" not in str(error.value)


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
@pytest.mark.parametrize("kind", [ConfettiNoise(), CutPaste(), CutPasteScar(), Blemish(), PseudoAnomalies(0.5, EACH)])
def test_a_cpu_generator_gives_the_same_anomalies_on_cuda(kind: PseudoAnomaly) -> None:
    images = noise(16, 3, 96, 80)
    out, masks = kind(images, generator=seeded(3))
    there, there_masks = kind(images.cuda(), generator=seeded(3))
    assert (there.cpu() - out).abs().max() < 1e-5 + VISIBLE_CHANGE
    assert (there_masks.cpu() != masks).float().mean() < 1e-4
    check_contract(images, there.cpu(), there_masks.cpu())
    kind(images.cuda(), generator=torch.Generator("cuda").manual_seed(0))
