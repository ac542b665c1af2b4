"""Pseudo-anomalies (§2.1): confetti noise, CutPaste, CutPaste-Scar and blemishes, each with the mask of its changes.

Synthesis works on images in [0, 1], before any normalisation. Lengths are fractions of the image side, the shorter of
height and width. All windows of a batch are laid end to end in one list of pixels, so the work is proportional to what
changes. Parameters are drawn and derived on the generator's device, pixels computed on the images' device: a CPU
generator gives the same anomalies on every device, and CUDA never has to wait for a size.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VISIBLE_CHANGE = 4 / 255
"""A pixel counts as changed if a channel moves by more than this, four grey levels of an 8-bit image. Smaller changes,
such as the far tail of a blur, nobody can see: they are taken back, and every pixel outside a mask equals the input."""

_GRID = 8  # probes per side with which a shape is judged before it is drawn
_LUMA = (0.299, 0.587, 0.114)
_CELLS = 8  # cells per side of the lattice of a smooth noise


class Canvas:
    """A batch being changed: lists of pixels of ``images`` and ``out`` are read and written, ``masks`` stays true."""

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"images must be floating point or uint8, got {images.dtype}")
        elif images.numel() and not (torch.stack((images.amin(), 1 - images.amax())) >= 0).all():
            raise ValueError("images must lie in [0, 1]; synthesise pseudo-anomalies before normalising")
        if not images.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous()
        self.images, self.out = images.detach(), images.detach().clone()
        self.masks = torch.zeros((len(images), 1, *images.shape[2:]), dtype=torch.bool, device=images.device)
        self._precise = torch.promote_types(images.dtype, torch.float32)  # half precision is too coarse to compute in
        # Both memory layouts are dense, so a flat view and the strides address every value.
        self._before, self._after = (t.as_strided((t.numel(),), (1,)) for t in (self.images, self.out))

    def locate(self, image: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the flat positions of pixels, given as (N,) int64, in the images (3, N) and in the masks (N,)."""
        s = self.images.stride()
        channels = torch.arange(3, device=image.device)[:, None] * s[1]
        height, width = self.images.shape[2:]
        return image * s[0] + y * s[2] + x * s[3] + channels, (image * height + y) * width + x

    def read(self, at: tuple[Tensor, Tensor], *, changed: bool = False) -> Tensor:
        """Return the values (3, N), at least float32, of located pixels of ``images``, or of ``out`` if ``changed``."""
        flat = self._after if changed else self._before
        return flat.index_select(0, at[0].flatten()).view(at[0].shape).to(self._precise)

    def write(self, at: tuple[Tensor, Tensor], values: Tensor) -> None:
        """Set located pixels of ``out``, each listed once, to values (3, N), clamped to [0, 1]; update their masks."""
        before = self.read(at)
        values = values.clamp(0, 1).to(self.out.dtype).to(self._precise)  # the mask is about what is stored
        seen = ((values - before).abs() > VISIBLE_CHANGE).any(dim=0)
        self._after.scatter_(0, at[0].flatten(), torch.where(seen, values, before).to(self.out.dtype).flatten())
        self.masks.view(-1).scatter_(0, at[1], seen)


class PseudoAnomaly(ABC):
    """A kind of pseudo-anomaly; a new one implements :meth:`apply` and joins :data:`KINDS`."""

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change every image.

        Parameters
        ----------
        images : Tensor
            (B, 3, H, W), floating point in [0, 1] or uint8 (which is divided by 255). Not modified.
        generator : torch.Generator
            Source of all randomness; the same state gives the same result.

        Returns
        -------
        images : Tensor
            (B, 3, H, W) in [0, 1], computed in float32, in the dtype of the input (float32 for uint8).
        masks : Tensor
            (B, 1, H, W) bool: the pixels that changed by more than ``VISIBLE_CHANGE``; all others equal the input.

        Raises
        ------
        ValueError
            If shape, dtype or range of the images is wrong.
        """
        canvas = Canvas(images)
        if len(images):
            self.apply(canvas, torch.arange(len(images), device=images.device), generator)
        return canvas.out, canvas.masks

    @abstractmethod
    def apply(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Change the canvas's images with the numbers ``images``, (n,) int64, n ≥ 1, in place."""


@dataclass(frozen=True, kw_only=True)
class ConfettiNoise(PseudoAnomaly):
    """Confetti noise (§2.1, after FCDD): blurred, rotated squares of one colour each, added to the image.

    A rotated square blurred by a Gaussian is the product of two blurred intervals along its axes, each
    ½ [erf((u + s/2) / (√2 blur)) - erf((u - s/2) / (√2 blur))]: no convolution is needed.

    Parameters
    ----------
    count : (int, int)
        Fewest and most squares per image, at most 64.
    side : (float, float)
        Range of a square's side, in image sides; never drawn smaller than 2 px.
    rotation : float
        Largest rotation in degrees, either way.
    blur : float
        Standard deviation of the Gaussian blur, in image sides.
    dark : float
        Probability that a square adds -1 to every channel instead of a random colour.
    colour : (float, float)
        Range of each channel of a random colour, within [-1, 1].
    min_change : float
        If adding a square changes the image by less (mean over the square and the channels, after clamping) and
        subtracting it changes more, it is subtracted: a dark square on black turns white.
    """

    count: tuple[int, int] = (1, 4)
    side: tuple[float, float] = (8 / 256, 54 / 256)
    rotation: float = 45.0
    blur: float = 5 / 256
    dark: float = 0.4
    colour: tuple[float, float] = (-1.0, 1.0)
    min_change: float = 0.025

    def __post_init__(self) -> None:
        _check(self, count=(1, 64), rotation=(0, 180), colour=(-1, 1), side=(0, 1), blur=(0, 1), dark=(0, 1))
        _check(self, min_change=(0, 1))

    def apply(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Add squares one after the other, each to the result of those before."""
        height, width = canvas.out.shape[2:]
        short, most, device = min(height, width), self.count[1], images.device
        draws = torch.rand((1 + 8 * most, len(images)), generator=generator, device=generator.device)
        count, draws = _lerp(draws[0], self.count[0], most + 1).floor(), draws[1:].unflatten(0, (most, 8)).movedim(1, 0)
        # A smaller square could fall between the pixel centres and change nothing.
        side = (_lerp(draws[2], *self.side) * short).clamp(min=2)
        angle = (2 * draws[3] - 1) * math.radians(self.rotation)
        pose = torch.stack((draws[0] * height - 0.5, draws[1] * width - 0.5, angle.cos(), angle.sin(), side, side))
        colour = _lerp(draws[5:], *self.colour).masked_fill(draws[4] < self.dark, -1.0)

        reach = side / 2 * (pose[2].abs() + pose[3].abs()) + 3 * self.blur * short  # further out: < VISIBLE_CHANGE
        start, (tall, wide) = _windows(pose[:2], reach, height, width)
        tall = tall * (count > torch.arange(most, device=count.device)[:, None])
        pose, colour = pose.to(device), colour.to(device)
        for k in range(most):
            colour[:, k] *= self._sign(canvas, images, pose[:, k], colour[:, k])
            shape, y, x = _pixels(start[:, k], tall[k], wide[k], device)
            at = canvas.locate(images.index_select(0, shape), y, x)
            canvas.write(at, canvas.read(at, changed=True) + self._noise(canvas, pose[:, k], colour[:, k], shape, y, x))

    def _noise(self, canvas: Canvas, pose: Tensor, colour: Tensor, shape: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Return what squares add to pixels (3, N): their colour times the product of two blurred intervals."""
        pose = pose.index_select(1, shape)
        scale = math.sqrt(0.5) / max(self.blur * min(canvas.out.shape[2:]), 1e-6)
        v, u = (t * scale for t in _local(pose, y, x))
        edge = pose[4] * (scale / 2)
        coverage = 0.25 * ((v + edge).erf() - (v - edge).erf()) * ((u + edge).erf() - (u - edge).erf())
        return colour.index_select(1, shape) * coverage

    def _sign(self, canvas: Canvas, images: Tensor, pose: Tensor, colour: Tensor) -> Tensor:
        """Return -1 where adding a square changes too little and subtracting it changes more, else 1; (n,)."""
        shape, y, x = _probe(pose, *canvas.out.shape[2:])
        old = canvas.read(canvas.locate(images[shape], y, x), changed=True)
        noise = self._noise(canvas, pose, colour, shape, y, x)
        plus, minus = (((old + s * noise).clamp(0, 1) - old).abs().view(3, -1, _GRID**2).mean((0, 2)) for s in (1, -1))
        return torch.where((plus < self.min_change) & (minus > plus), -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Paste(PseudoAnomaly):
    """What CutPaste and CutPaste-Scar share: choose a source and a target per image, copy, jitter, paste."""

    rotation: float = 0.0
    jitter: float = 0.1
    candidates: int = 4
    min_change: float = 0.025

    def __post_init__(self) -> None:
        _check(self, rotation=(0, 180), jitter=(0, 0.5), candidates=(1, 64), min_change=(0, 1))

    @abstractmethod
    def _size(self, draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return heights and widths in pixels, before rounding, from two draws per image."""

    def apply(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Paste one rectangle into each image."""
        device = images.device
        draws = torch.rand((7 + 2 * self.candidates, len(images)), generator=generator, device=generator.device)
        pose, corner, extent = self._place(draws[:3], draws[7:], *canvas.out.shape[2:])
        pose, corner = pose.to(device), corner.to(device)
        pick, pivot = self._choose(canvas, images, pose)
        pose = pose[:, pick]
        matrix, gain = (t.to(device) for t in _jitter(draws[3:7], self.jitter))

        shape, y, x = _pixels(corner[:, pick], extent[0], extent[1], device)
        image = images.index_select(0, shape)
        inside, source_y, source_x = _source(pose, shape, y, x)
        red, green, blue = canvas.read(canvas.locate(image, source_y, source_x))
        m = matrix.index_select(1, shape).unflatten(0, (3, 3))
        values = m[:, 0] * red + m[:, 1] * green + m[:, 2] * blue + (gain * pivot)[shape]
        at = canvas.locate(image, y, x)
        canvas.write(at, torch.where(inside, values, canvas.read(at, changed=True)) if self.rotation else values)

    def _place(self, draws: Tensor, places: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return poses (8, candidates·n), corners (2, candidates·n) and extents (2, n) of the target windows."""
        # A rotated rectangle thinner than 2 px could fall between the pixel centres.
        size = torch.stack(self._size(draws, height, width)).round().clamp(min=2)
        h, w = torch.minimum(size, size.new_tensor([[height], [width]]))
        angle = (2 * draws[2] - 1) * math.radians(self.rotation)
        cos, sin = angle.cos(), angle.sin()
        tall = (h * cos.abs() + w * sin.abs()).ceil().clamp(max=height)
        wide = (w * cos.abs() + h * sin.abs()).ceil().clamp(max=width)
        # Corners are numbered row by row; where there is a choice, the target's number differs from the source's.
        take, put = places.chunk(2)
        columns = (width - w + 1).long()
        number = _below(take, (height - h + 1).long() * columns)
        source = (number // columns + (h - 1) / 2, number % columns + (w - 1) / 2)
        columns = (width - wide + 1).long()
        total = (height - tall + 1).long() * columns
        number = (number + 1 + _below(put, (total - 1).clamp(min=1))) % total
        top, left = number // columns, number % columns
        pose = (top + (tall - 1) / 2, left + (wide - 1) / 2, cos, sin, h, w, *source)
        return (
            torch.stack([p.expand(top.shape) for p in pose]).flatten(1),
            torch.stack((top, left)).flatten(1),
            torch.stack((tall, wide)).long(),
        )

    def _choose(self, canvas: Canvas, images: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Return the column of ``pose`` to use for each image, and the mean luma of its source's probes; both (n,)."""
        n = len(images)
        shape, y, x = _probe(pose, *canvas.out.shape[2:])
        image = images[shape % n]
        source = canvas.read(canvas.locate(image, *_source(pose, shape, y, x)[1:]))
        change = (source - canvas.read(canvas.locate(image, y, x))).abs().view(3, -1, n, _GRID**2).mean((0, 3))
        order = 2 - torch.arange(self.candidates, device=pose.device)[:, None] / self.candidates  # above any change
        rank = torch.where(change >= self.min_change, order, change)
        pick = rank.argmax(0) * n + torch.arange(n, device=pose.device)
        luma = source.unflatten(1, (-1, _GRID**2)).mean(2)[:, pick]
        return pick, _LUMA[0] * luma[0] + _LUMA[1] * luma[1] + _LUMA[2] * luma[2]


@dataclass(frozen=True, kw_only=True)
class CutPaste(_Paste):
    """CutPaste (§2.1): a rectangle of the image, its colours jittered, pasted elsewhere into the same image.

    Parameters
    ----------
    rotation : float
        Largest rotation in degrees, either way; pixels are the nearest ones of an upright source.
    jitter : float
        Brightness, contrast and saturation are scaled by factors in [1 - jitter, 1 + jitter], then the hue is turned
        by up to ± jitter of a full turn about the grey axis. At most 0.5.
    candidates : int
        Pairs of source and target tried per image, at most 64. The first whose mean difference is at least
        ``min_change`` is taken, or else the one that differs most: black is not pasted on black where the image allows
        it. On a constant image only the jitter acts, and on a black one nothing: its mask is empty.
    min_change : float
        See ``candidates``.
    area : (float, float)
        Range of the rectangle's area, as a share of the image.
    aspect : (float, float)
        Range of its height/width, drawn log-uniformly.
    """

    area: tuple[float, float] = (0.02, 0.15)
    aspect: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, area=(0, 1), aspect=(1e-3, 1e3))

    def _size(self, draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        area = _lerp(draws[0], *self.area) * (height * width)
        aspect = _lerp(draws[1], math.log(self.aspect[0]), math.log(self.aspect[1])).exp()
        return (area * aspect).sqrt(), (area / aspect).sqrt()


@dataclass(frozen=True, kw_only=True)
class CutPasteScar(_Paste):
    """CutPaste-Scar (§2.1): a small rectangle of the image, jittered, rotated, pasted elsewhere.

    Parameters
    ----------
    rotation, jitter, candidates, min_change
        See :class:`CutPaste`; the rotation is up to 45°.
    width, length : (float, float)
        Ranges of the rectangle's sides, in image sides; never drawn smaller than 2 px.
    """

    rotation: float = 45.0
    width: tuple[float, float] = (2 / 256, 16 / 256)
    length: tuple[float, float] = (10 / 256, 25 / 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, width=(0, 1), length=(0, 1))

    def _size(self, draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        return _lerp(draws[0], *self.length) * min(height, width), _lerp(draws[1], *self.width) * min(height, width)


@dataclass(frozen=True, kw_only=True)
class Blemish(PseudoAnomaly):
    """Blemishes (not in the paper): irregular spots, stains and scratches of all sizes and strengths.

    A blemish is an ellipse whose border is roughened by smooth noise; its opacity falls from at most 1 inside to 0 at
    the border over a random width. What fills it is drawn per blemish: a change of colour, the image's own content from
    elsewhere with a quarter of such a change, or a cloudy texture. Lengths and contrasts are log-uniform: small and
    faint ones are as frequent as large and strong ones, which the paper's generators hardly make.

    Parameters
    ----------
    count : (int, int)
        Fewest and most blemishes per image, at most 64.
    length : (float, float)
        Range of the long axis, in image sides, log-uniform; never drawn smaller than 3 px.
    aspect : (float, float)
        Range of long over short axis, log-uniform; the short one is never smaller than 2 px.
    contrast : (float, float)
        Range of the largest change of a channel by colour or texture, log-uniform.
    colour, elsewhere, texture : float
        Relative weights of the fillings.
    grey : float
        Probability that all channels change alike.
    """

    count: tuple[int, int] = (1, 3)
    length: tuple[float, float] = (4 / 256, 128 / 256)
    aspect: tuple[float, float] = (1.0, 12.0)
    contrast: tuple[float, float] = (0.08, 0.8)
    colour: float = 0.4
    elsewhere: float = 0.4
    texture: float = 0.2
    grey: float = 0.6

    def __post_init__(self) -> None:
        _check(self, count=(1, 64), length=(1e-6, 4), aspect=(1, 1e3), contrast=(1e-6, 1), grey=(0, 1))
        _check(self, colour=(0, 1e6), elsewhere=(0, 1e6), texture=(0, 1e6))
        if not self.colour + self.elsewhere + self.texture:
            raise ValueError("colour, elsewhere and texture are all 0; give one a weight")

    def apply(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Draw blemishes one after the other, each onto the result of those before."""
        size, n, most = canvas.out.shape[2:], len(images), self.count[1]
        home = generator.device
        draws = torch.rand((1 + 15 * most, n), generator=generator, device=home)
        lattices = torch.rand((most, 2, n, _CELLS + 1, _CELLS + 1), generator=generator, device=home).to(images.device)
        count = _lerp(draws[0], self.count[0], most + 1).floor()
        for k, d in enumerate(draws[1:].unflatten(0, (most, 15))):
            pose, start, extent = self._place(d[:5], *size)
            tall, wide = extent * (count > k)
            shape, y, x = _pixels(start, tall, wide, images.device)
            at = canvas.locate(images.index_select(0, shape), y, x)
            old = canvas.read(at, changed=True)
            pose, d = pose.to(images.device), d.to(images.device)
            v, u = _local(pose.index_select(1, shape), y, x)
            v, u = v * (2 / pose[4])[shape], u * (2 / pose[5])[shape]  # the ellipse is the unit circle
            rough = _value_noise(lattices[k, 0], shape, v, u, 2 + 4 * d[5])
            soft = _log_lerp(d[6], 0.1, 1.0)[shape]
            alpha = ((1 - v.square() - u.square() + 1.6 * (rough - 0.5)) / soft).clamp(0, 1)
            cloud = _value_noise(lattices[k, 1], shape, v, u, 3 + 5 * d[5]) - 0.5
            colour = self._colour(canvas, images, d)
            height, width = size
            shift = (d[13:] * d.new_tensor([[height], [width]])).long()
            source = canvas.locate(images[shape], (y + shift[0][shape]) % height, (x + shift[1][shape]) % width)
            colour, pick = colour.index_select(1, shape), d[7][shape] * (self.colour + self.elsewhere + self.texture)
            moved = canvas.read(source) + colour / 4  # some of a blank image's surroundings equal it
            filling = torch.where(pick < self.colour + self.elsewhere, moved, old + 2 * cloud * colour)
            filling = torch.where(pick < self.colour, old + colour, filling)
            canvas.write(at, old + alpha * (filling - old))

    def _place(self, draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return poses (6, n), corners (2, n) and extents (2, n) of the windows that hold the roughened ellipses."""
        short = min(height, width)
        tall = (_log_lerp(draws[0], *self.length) * short).clamp(min=3)
        wide = (tall / _log_lerp(draws[1], *self.aspect)).clamp(min=2)
        angle = math.pi * draws[2]
        cos, sin = angle.cos(), angle.sin()
        pose = torch.stack((draws[3] * height - 0.5, draws[4] * width - 0.5, cos, sin, tall, wide))
        reach = torch.stack((torch.hypot(tall * cos, wide * sin), torch.hypot(tall * sin, wide * cos)))
        reach = reach * (math.sqrt(1.8) / 2)  # opacity is 0 outside: 1 - r² + 1.6 · ½ < 0
        return pose, *_windows(pose[:2], reach, height, width)

    def _colour(self, canvas: Canvas, images: Tensor, draws: Tensor) -> Tensor:
        """Return the change of colour of each blemish, (3, n); darker instead of lighter where that shows more."""
        centre = ((t * s).long().clamp(max=s - 1) for t, s in zip(draws[3:5], canvas.out.shape[2:], strict=True))
        tint = torch.where(draws[9] < self.grey, torch.where(draws[10] < 0.5, -1.0, 1.0), 2 * draws[10:13] - 1)
        colour = tint / tint.abs().amax(0) * _log_lerp(draws[8], *self.contrast)
        seen = canvas.read(canvas.locate(images, *centre), changed=True)
        more, less = (((seen + s * colour).clamp(0, 1) - seen).abs().mean(0) for s in (1, -1))
        return torch.where(more < 0.4 * less, -colour, colour)


KINDS: dict[str, Callable[[], PseudoAnomaly]] = {
    "confetti": ConfettiNoise,
    "cutpaste": CutPaste,
    "scar": CutPasteScar,
    "blemish": Blemish,
}
"""Kinds of pseudo-anomalies by name."""


class PseudoAnomalies:
    """Turn a share of a batch into pseudo-anomalies (§2.1); the share is the quantity of Table 3.

    Parameters
    ----------
    ratio : float
        Share of the images that is changed: ``ratio * B`` of each batch, rounded up or down at random, so that small
        shares are met over many batches.
    confetti, cutpaste, scar : float
        Relative weights of the kinds. Each gets its share of the changed images, rounded up or down at random.
    kinds : mapping, optional
        Generators by name that replace or extend those of :data:`KINDS`.
    **weights : float
        Weights of further kinds.
    """

    def __init__(
        self,
        ratio: float = 0.5,
        kinds: Mapping[str, float] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        generators: Mapping[str, PseudoAnomaly] | None = None,
    ) -> None:
        weights = {"confetti": 1.0, "cutpaste": 1.0} if kinds is None else dict(kinds)
        known = {n: KINDS[n](**(options or {}).get(n, {})) for n in weights if n in KINDS} | dict(generators or {})
        if not 0 < sum(weights.values()) < math.inf or min(weights.values()) < 0:  # NaN included
            raise ValueError(f"weights must be at least 0, finite and not all 0, got {weights}")
        self.ratio, self.weights = ratio, weights
        self.kinds = {name: known[name] for name in weights}
        _check(self, ratio=(0, 1))

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change about ``ratio * B`` images; parameters, results and errors as in :class:`PseudoAnomaly`.

        Images that are not chosen come back bit for bit, with an empty mask.
        """
        canvas = Canvas(images)
        count = self._count(len(images), generator)
        order = torch.randperm(len(images), generator=generator, device=generator.device)[:count].to(images.device)
        offset = torch.rand((), generator=generator, device=generator.device).item()
        # Systematic sampling: a kind takes the points j + offset, j = 0, 1, …, within its stretch of [0, count).
        ends = [count * w / sum(self.weights.values()) for w in itertools.accumulate(self.weights.values())]
        stops = [0] + [min(max(math.ceil(round(end, 9) - offset), 0), count) for end in ends]
        for kind, (start, stop) in zip(self.kinds.values(), itertools.pairwise(stops), strict=True):
            if start < stop:
                kind.apply(canvas, order[start:stop], generator)
        return canvas.out, canvas.masks

    def _count(self, images: int, generator: torch.Generator) -> int:
        share = round(self.ratio * images, 9)
        count = math.floor(share)
        if share > count:  # no draw where there is nothing to decide
            count += int(torch.rand((), generator=generator, device=generator.device).item() < share - count)
        return count


def _check(owner: object, **limits: tuple[float, float]) -> None:
    for name, (low, high) in limits.items():
        value = getattr(owner, name)
        first, last = value if isinstance(value, tuple) else (value, value)
        if not low <= first <= last <= high:
            raise ValueError(f"{name} must lie between {low:g} and {high:g}, smaller value first, got {value}")


def _lerp(draws: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draws


def _log_lerp(draws: Tensor, low: float, high: float) -> Tensor:
    return _lerp(draws, math.log(low), math.log(high)).exp()


def _below(draws: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum((draws * limit).long(), limit - 1)  # the product may round up to the limit


def _windows(centre: Tensor, reach: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return corners and extents, (2, …) int64, of the windows that reach so far about centres, cut at the border."""
    limit = centre.new_tensor([height, width]).view(2, *[1] * (centre.ndim - 1))
    start, stop = ((centre + r + 1).clamp(min=0).minimum(limit).long() for r in (-reach, reach))
    return start, stop - start


def _pixels(corner: Tensor, heights: Tensor, widths: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """List the pixels of n windows end to end: each one's window, row and column; (N,) int64."""
    corner, total = corner.to(device), int((heights * widths).sum())
    window, y = _spread(heights.to(device), int(heights.sum()))
    line, x = _spread(widths.to(device)[window], total)
    window, y = window.index_select(0, line), (y + corner[0][window]).index_select(0, line)
    return window, y, x + corner[1].index_select(0, window)


def _spread(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Number ``total = counts.sum()`` items: the owner of each, and its place among the owner's."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=total)
    start = counts.cumsum(0) - counts
    return owner, torch.arange(total, device=counts.device) - start.index_select(0, owner)


def _probe(pose: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Spread _GRID² points over each of n shapes: their shape and the nearest pixels' row and column, (n·_GRID²,)."""
    steps = (torch.arange(_GRID, device=pose.device) + 0.5) / _GRID - 0.5
    cy, cx, cos, sin, tall, wide = pose[:6, :, None, None]
    v, u = tall * steps[:, None], wide * steps
    shape = torch.arange(pose.shape[1], device=pose.device).repeat_interleave(_GRID**2)
    y, x = (cy + v * cos - u * sin).flatten().round().long(), (cx + v * sin + u * cos).flatten().round().long()
    return shape, y.clamp(0, height - 1), x.clamp(0, width - 1)


def _local(pose: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of pixels along the axes of their shapes."""
    dy, dx = y - pose[0], x - pose[1]
    return dy * pose[2] + dx * pose[3], dx * pose[2] - dy * pose[3]


def _source(pose: Tensor, shape: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether pixels lie inside their rotated rectangles, and the nearest pixels of the upright sources."""
    pose = pose.index_select(1, shape)
    v, u = _local(pose, y, x)
    h, w = pose[4] / 2, pose[5] / 2
    inside = (v.abs() < h) & (u.abs() < w)
    v, u = torch.maximum(torch.minimum(v, h - 0.5), 0.5 - h), torch.maximum(torch.minimum(u, w - 0.5), 0.5 - w)
    return inside, (pose[6] + v).round().long(), (pose[7] + u).round().long()


def _value_noise(lattice: Tensor, shape: Tensor, v: Tensor, u: Tensor, cells: Tensor) -> Tensor:
    """Smooth noise in [0, 1] at points (N,), |v|, |u| < 1.35, of shapes whose lattices are (n, _CELLS + 1, _CELLS + 1).

    ``cells``, (n,), at most _CELLS, is how many of them a shape and its surroundings are across.
    """
    half = cells.index_select(0, shape) / 2
    v, u = ((t.clamp(-1.35, 1.35) * half / 1.35 + _CELLS / 2).clamp(0, _CELLS - 1e-3) for t in (v, u))
    i, j = v.long(), u.long()
    v, u = (t * t * (3 - 2 * t) for t in (v - i, u - j))
    corner, values = (shape * (_CELLS + 1) + i) * (_CELLS + 1) + j, lattice.flatten()
    top, bottom = (
        torch.lerp(values.index_select(0, corner + down), values.index_select(0, corner + down + 1), u)
        for down in (0, _CELLS + 1)
    )
    return torch.lerp(top, bottom, v)


def _jitter(draws: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Return M (9, n) and g (n,): brightness, contrast, saturation and hue in turn map x to Mx + g·mean luma."""
    brightness, contrast, saturation = _lerp(draws[:3], 1 - jitter, 1 + jitter)
    angle = (2 * draws[3] - 1) * (2 * math.pi * jitter)
    eye = torch.eye(3, device=draws.device)[:, :, None]
    # Rotation about the grey axis (Rodrigues); grey is its fixed point, so the other steps pass through it.
    turn = angle.cos() * eye + (1 - angle.cos()) / 3 + angle.sin() / math.sqrt(3) * (eye.roll(1, 0) - eye.roll(-1, 0))
    grey = torch.tensor(_LUMA, device=draws.device)[:, None]
    matrix = brightness * contrast * (saturation * turn + (1 - saturation) * grey)
    return matrix.flatten(0, 1), brightness * (1 - contrast)
