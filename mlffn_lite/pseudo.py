"""Pseudo-anomalies (§2.1): confetti noise, CutPaste and CutPaste-Scar, with masks of their changes, and their mix.

Synthesis works on images in [0, 1], before any normalisation. Lengths are fractions of the image side, the shorter of
height and width.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from . import registry
from .canvas import PROBES, VISIBLE_CHANGE, Canvas, Pixels, Shapes, lerp, list_pixels, log_lerp, window_around
from .errors import ConfigError

if TYPE_CHECKING:
    from .datasets.folder import Split

_LUMA = (0.299, 0.587, 0.114)
Limits = Mapping[str, tuple[float, float]]


class PseudoAnomaly(ABC):
    """A kind of pseudo-anomaly; a new one implements :meth:`apply` and is named by its import path.

    A function like :meth:`apply` is one too; its keyword arguments are then the kind's options.
    """

    def prepare(self, good: Split) -> None:  # noqa: B027  # most need nothing
        """Learn what is needed of the good images, before the first of them is changed; by default nothing."""

    @abstractmethod
    def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change every image.

        Parameters
        ----------
        images : Tensor
            (B, 3, H, W), floating point in [0, 1], B ≥ 1; a copy, which may be changed in place.
        generator : torch.Generator
            Source of all randomness, perhaps on another device; the same state must give the same result.

        Returns
        -------
        images : Tensor
            (B, 3, H, W) in [0, 1].
        masks : Tensor
            (B, 1, H, W) bool: the pixels that changed. What changed by more than ``VISIBLE_CHANGE`` must be in it.
        """

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
            (B, 3, H, W) in [0, 1], in the dtype of the input (float32 for uint8).
        masks : Tensor
            (B, 1, H, W) bool: the pixels that changed; all others equal the input. The kinds of this library compute
            in float32 and mark what changed by more than ``VISIBLE_CHANGE``.

        Raises
        ------
        ValueError
            If shape, dtype or range of the images is wrong.
        ConfigError
            If a kind of one's own returns something else than it should.
        """
        canvas = Canvas(images)
        if len(images):
            self.draw(canvas, torch.arange(len(images), device=images.device), generator)
        return canvas.out, canvas.masks

    def draw(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Change the canvas's images with the numbers ``images``, (n,) int64, n ≥ 1, in place."""
        good = canvas.images[images]
        changed, masks = self._checked(good, self.apply(good.clone(), generator))
        canvas.out[images] = torch.where(masks, changed.to(good.dtype), good)
        canvas.masks[images] = masks

    @property
    def _called(self) -> str:
        """What changes the images, for people."""
        return f"{type(self).__name__}.apply"

    def _checked(self, good: Tensor, result: Any) -> tuple[Tensor, Tensor]:
        """Return what :meth:`apply` gave, or say in which way it is not images and their masks."""
        size, kept = good.shape, f"{self._called} must return"
        wanted = [tuple(size), (size[0], 1, *size[2:])]
        found = [tuple(getattr(t, "shape", ())) for t in result] if isinstance(result, tuple) else type(result).__name__
        if found != wanted:
            raise ConfigError(f"{kept} images and masks of shapes {wanted}, got {found}")
        changed, masks = result
        if not changed.is_floating_point() or masks.dtype != torch.bool:
            raise ConfigError(f"{kept} floating-point images and bool masks, got {changed.dtype} and {masks.dtype}")
        if not ((changed >= 0) & (changed <= 1)).all():
            raise ConfigError(f"{kept} images in [0, 1]; clamp them")
        if not (masks | ((changed - good).abs() <= VISIBLE_CHANGE).all(1, keepdim=True)).all():
            raise ConfigError(f"{kept} masks of all that changed; it changed pixels outside of them")
        return changed, masks


@dataclass(frozen=True, kw_only=True)
class CanvasAnomaly(PseudoAnomaly):
    """A kind that changes just the pixels of its shapes, of all images at once; a new one implements :meth:`draw`.

    Parameters
    ----------
    place : (float, float), optional
        Centre (y, x) of every shape, in heights and widths of the image, 0 to 1, instead of random ones.
    """

    place: tuple[float, float] | None = None

    limits: ClassVar[Limits] = {}
    """Between what parameters, or pairs of them in rising order, must lie."""

    def __post_init__(self) -> None:
        if self.place is not None and not (len(self.place) == 2 and all(0 <= p <= 1 for p in self.place)):
            raise ValueError(f"place must be two numbers between 0 and 1, got {self.place}")
        for name, (low, high) in self.limits.items():
            value = getattr(self, name)
            first, last = value if isinstance(value, tuple) else (value, value)
            if not low <= first <= last <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, smaller value first, got {value}")

    @abstractmethod
    def draw(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Change the canvas's images with the numbers ``images``, (n,) int64, n ≥ 1, in place."""

    def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change every image, see :meth:`PseudoAnomaly.apply`."""
        return self(images, generator=generator)

    def _placed(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return uniform draws of a centre, or ``place`` in their shape."""
        return (y, x) if self.place is None else (torch.full_like(y, self.place[0]), torch.full_like(x, self.place[1]))


@dataclass(frozen=True, kw_only=True)
class ConfettiNoise(CanvasAnomaly):
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

    limits: ClassVar[Limits] = {
        "count": (1, 64),
        "rotation": (0, 180),
        "colour": (-1, 1),
        **dict.fromkeys(("side", "blur", "dark", "min_change"), (0, 1)),
    }

    def draw(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Add squares one after the other, each to the result of those before."""
        short, most, device = min(canvas.size), self.count[1], images.device
        draws = torch.rand((1 + 8 * most, len(images)), generator=generator, device=generator.device)
        count = lerp(draws[0], self.count[0], most + 1).floor()
        y, x, side, angle, dark, *colour = draws[1:].unflatten(0, (most, 8)).unbind(1)  # (most, n) each
        y, x = self._placed(y, x)
        y, x = y * canvas.size[0] - 0.5, x * canvas.size[1] - 0.5
        # A smaller square could fall between the pixel centres and change nothing.
        side = (lerp(side, *self.side) * short).clamp(min=2)
        angle = (2 * angle - 1) * math.radians(self.rotation)
        cos, sin = angle.cos(), angle.sin()
        colours = lerp(torch.stack(colour, 1), *self.colour).masked_fill(dark[:, None] < self.dark, -1.0).to(device)

        reach = side / 2 * (cos.abs() + sin.abs()) + 3 * self.blur * short  # further out: < VISIBLE_CHANGE
        (tops, heights), (lefts, widths) = (
            window_around(c, reach, s) for c, s in zip((y, x), canvas.size, strict=True)
        )
        heights = heights * (count > torch.arange(most, device=count.device)[:, None])
        squares = torch.stack((y, x, cos, sin, side, side), 1).to(device)
        for square, colour, top, left, tall, wide in zip(squares, colours, tops, lefts, heights, widths, strict=True):
            square, colour = Shapes(*square), colour * self._sign(canvas, images, Shapes(*square), colour)
            pixels = list_pixels(top, left, tall, wide, device)
            at = canvas.locate(images.index_select(0, pixels.shape), pixels.y, pixels.x)
            canvas.write(at, canvas.read(at, changed=True) + self._noise(canvas, square, colour, pixels))

    def _noise(self, canvas: Canvas, squares: Shapes, colours: Tensor, pixels: Pixels) -> Tensor:
        """Return what squares add to pixels (3, N): their colours times the product of two blurred intervals."""
        square = squares.pick(pixels.shape)
        scale = math.sqrt(0.5) / max(self.blur * min(canvas.size), 1e-6)
        v, u = (t * scale for t in square.local(pixels.y, pixels.x))
        edge = square.tall * (scale / 2)
        coverage = 0.25 * ((v + edge).erf() - (v - edge).erf()) * ((u + edge).erf() - (u - edge).erf())
        return colours.index_select(1, pixels.shape) * coverage

    def _sign(self, canvas: Canvas, images: Tensor, squares: Shapes, colours: Tensor) -> Tensor:
        """Return -1 where adding a square changes too little and subtracting it changes more, else 1; (n,)."""
        probes = squares.probe(*canvas.size)
        old = canvas.read(canvas.locate(images[probes.shape], probes.y, probes.x), changed=True)
        noise = self._noise(canvas, squares, colours, probes)
        plus, minus = (((old + s * noise).clamp(0, 1) - old).abs().view(3, -1, PROBES**2).mean((0, 2)) for s in (1, -1))
        return torch.where((plus < self.min_change) & (minus > plus), -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Paste(CanvasAnomaly):
    """What CutPaste and CutPaste-Scar share: choose a source and a target per image, copy, jitter, paste."""

    rotation: float = 0.0
    jitter: float = 0.1
    candidates: int = 4
    min_change: float = 0.025

    limits: ClassVar[Limits] = {"rotation": (0, 180), "jitter": (0, 0.5), "candidates": (1, 64), "min_change": (0, 1)}

    @abstractmethod
    def _size(self, draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return heights and widths in pixels, before rounding, from two draws per image."""

    def draw(self, canvas: Canvas, images: Tensor, generator: torch.Generator) -> None:
        """Paste one rectangle into each image."""
        device, tried = images.device, self.candidates
        draws = torch.rand((7 + 2 * tried, len(images)), generator=generator, device=generator.device)
        size, angle, jitter, take, put = draws.split((2, 1, 4, tried, tried))
        target, source, corner, tall, wide = self._pairs(size, angle[0], take, put, *canvas.size)
        target, source = target.to(device), source.to(device)
        pick, luma = self._choose(canvas, images, target, source)
        target, source, (top, left) = target.pick(pick), source[:, pick], corner.to(device)[:, pick]
        matrix, gain = (t.to(device) for t in _jitter(jitter, self.jitter))

        pixels = list_pixels(top, left, tall, wide, device)
        image = images.index_select(0, pixels.shape)
        inside, source_y, source_x = _source_of(pixels, target, source)
        red, green, blue = canvas.read(canvas.locate(image, source_y, source_x))
        m = matrix.index_select(1, pixels.shape).unflatten(0, (3, 3))
        values = m[:, 0] * red + m[:, 1] * green + m[:, 2] * blue + (gain * luma)[pixels.shape]
        at = canvas.locate(image, pixels.y, pixels.x)
        canvas.write(at, torch.where(inside, values, canvas.read(at, changed=True)) if self.rotation else values)

    def _pairs(
        self, size: Tensor, angle: Tensor, take: Tensor, put: Tensor, height: int, width: int
    ) -> tuple[Shapes, Tensor, Tensor, Tensor, Tensor]:
        """Return N = ``candidates``·n targets, the centres (2, N) of their sources, and their windows.

        These are upper left corners (2, N), and heights and widths (n,), int64, which all candidates of an image share.
        """
        h, w = self._size(size, height, width)
        # A rotated rectangle thinner than 2 px could fall between the pixel centres.
        h, w = h.round().clamp(2, height), w.round().clamp(2, width)
        angle = (2 * angle - 1) * math.radians(self.rotation)
        cos, sin = angle.cos(), angle.sin()
        tall = (h * cos.abs() + w * sin.abs()).ceil().clamp(max=height)
        wide = (w * cos.abs() + h * sin.abs()).ceil().clamp(max=width)
        # Corners are numbered row by row; where there is a choice, the target's number differs from the source's.
        columns = (width - w + 1).long()
        number = _below(take, (height - h + 1).long() * columns)
        source = torch.stack((number // columns + (h - 1) / 2, number % columns + (w - 1) / 2))
        columns = (width - wide + 1).long()
        total = (height - tall + 1).long() * columns
        number = (number + 1 + _below(put, (total - 1).clamp(min=1))) % total
        top, left = number // columns, number % columns
        if self.place is not None:  # or as near to it as the window lies inside the image
            y, x = self.place
            top = (y * height - tall / 2).round().clamp(min=0).minimum(height - tall).long().expand_as(top)
            left = (x * width - wide / 2).round().clamp(min=0).minimum(width - wide).long().expand_as(left)
        target = (top + (tall - 1) / 2, left + (wide - 1) / 2, cos, sin, h, w)
        targets = Shapes(*(t.expand(top.shape).flatten() for t in target))
        return targets, source.flatten(1), torch.stack((top, left)).flatten(1), tall.long(), wide.long()

    def _choose(self, canvas: Canvas, images: Tensor, targets: Shapes, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of the pair to use for each image, and the mean luma of its source's probes, (n,)."""
        n = len(images)
        probes = targets.probe(*canvas.size)
        image = images[probes.shape % n]
        source = canvas.read(canvas.locate(image, *_source_of(probes, targets, sources)[1:]))
        target = canvas.read(canvas.locate(image, probes.y, probes.x))
        change = (source - target).abs().view(3, -1, n, PROBES**2).mean((0, 3))
        order = 2 - torch.arange(self.candidates, device=images.device)[:, None] / self.candidates  # above any change
        rank = torch.where(change >= self.min_change, order, change)
        pick = rank.argmax(0) * n + torch.arange(n, device=images.device)
        red, green, blue = source.unflatten(1, (-1, PROBES**2)).mean(2)[:, pick]
        return pick, _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


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

    limits: ClassVar[Limits] = {**_Paste.limits, "area": (0, 1), "aspect": (1e-3, 1e3)}

    def _size(self, draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        area = lerp(draws[0], *self.area) * (height * width)
        aspect = log_lerp(draws[1], *self.aspect)
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

    limits: ClassVar[Limits] = {**_Paste.limits, "width": (0, 1), "length": (0, 1)}

    def _size(self, draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        return lerp(draws[0], *self.length) * min(height, width), lerp(draws[1], *self.width) * min(height, width)


class _Plain(PseudoAnomaly):
    """A kind that is a function ``(images, generator, **options)``, see :meth:`PseudoAnomaly.apply`."""

    def __init__(self, function: Callable[..., tuple[Tensor, Tensor]], **options: Any) -> None:
        try:
            inspect.signature(function).bind(None, None, **options)
        except TypeError as error:
            raise TypeError(f"{function.__name__} must take images, a generator and these ({error})") from error
        self.function, self.options = function, options

    def apply(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change every image."""
        return self.function(images, generator, **self.options)

    @property
    def _called(self) -> str:
        return self.function.__name__


class PseudoAnomalies:
    """Turn a share of a batch into pseudo-anomalies (§2.1); the share is the quantity of Table 3.

    Parameters
    ----------
    ratio : float
        Share of the images that is changed: ``ratio * B`` of each batch, rounded up or down at random, so that small
        shares are met over many batches.
    kinds : mapping of str to float
        Relative weights of the kinds, by name or import path, see :func:`mlffn_lite.registry.find`. Each gets its
        share of the changed images, rounded up or down at random.
    options : mapping of str to mapping
        Keyword arguments of kinds by their names; of those that have no weight they are not used.
    generators : mapping of str to PseudoAnomaly
        Ready-made kinds, whose names need not be known elsewhere.

    Raises
    ------
    ConfigError
        If a name is not known, or a number out of range.
    """

    def __init__(
        self,
        ratio: float = 0.5,
        kinds: Mapping[str, float] = {"confetti": 1.0, "cutpaste": 1.0},
        options: Mapping[str, Mapping[str, Any]] = {},
        *,
        generators: Mapping[str, PseudoAnomaly] = {},
    ) -> None:
        if not 0 <= ratio <= 1:
            raise ConfigError(f"the ratio of pseudo-anomalies must lie between 0 and 1, got {ratio}")
        if not 0 < sum(kinds.values()) < math.inf or min(kinds.values()) < 0:  # NaN included
            raise ConfigError(f"weights of kinds must be at least 0, finite and not all 0, got {dict(kinds)}")
        if unused := generators.keys() - kinds.keys():
            raise ConfigError(f"generators {', '.join(sorted(unused))} have no weight in kinds; give them one")
        for name in options.keys() - kinds.keys():
            registry.find("kinds", name)  # a misspelt one would go unnoticed
        self.ratio, self.weights = ratio, dict(kinds)
        self.kinds = {name: generators.get(name) or _build(name, options.get(name, {})) for name in kinds}

    def prepare(self, good: Split) -> None:
        """Let every kind learn what it needs of the good images."""
        for kind in self.kinds.values():
            kind.prepare(good)

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change about ``ratio * B`` images; parameters, results and errors as in :class:`PseudoAnomaly`.

        Images that are not chosen come back bit for bit, with an empty mask.
        """
        canvas = Canvas(images)
        share = round(self.ratio * len(images), 9)
        count = math.floor(share)
        if share > count:  # no draw where there is nothing to decide
            count += int(torch.rand((), generator=generator, device=generator.device).item() < share - count)
        order = torch.randperm(len(images), generator=generator, device=generator.device)[:count].to(images.device)
        offset = torch.rand((), generator=generator, device=generator.device).item()
        # Systematic sampling: a kind takes the points j + offset, j = 0, 1, …, within its stretch of [0, count).
        ends = [count * w / sum(self.weights.values()) for w in itertools.accumulate(self.weights.values())]
        stops = [0] + [min(max(math.ceil(round(end, 9) - offset), 0), count) for end in ends]
        for kind, (start, stop) in zip(self.kinds.values(), itertools.pairwise(stops), strict=True):
            if start < stop:
                kind.draw(canvas, order[start:stop], generator)
        return canvas.out, canvas.masks


def _build(name: str, options: Mapping[str, Any]) -> PseudoAnomaly:
    """Make a kind by name; lists, as TOML has them, become tuples."""
    kind = registry.find("kinds", name)
    if isinstance(kind, FunctionType):
        kind = functools.partial(_Plain, kind)
    try:
        made = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"kind {name!r} cannot be made with the options {dict(options)}: {error}") from error
    if not isinstance(made, PseudoAnomaly):
        raise ConfigError(f"kind {name!r} is no PseudoAnomaly; derive it from mlffn_lite.pseudo.PseudoAnomaly")
    return made


def _below(draws: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum((draws * limit).long(), limit - 1)  # the product may round up to the limit


def _source_of(pixels: Pixels, targets: Shapes, sources: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether pixels lie inside their turned targets, and the nearest pixels of the upright sources."""
    target, (y, x) = targets.pick(pixels.shape), sources.index_select(1, pixels.shape)
    v, u = target.local(pixels.y, pixels.x)
    h, w = target.tall / 2, target.wide / 2
    inside = (v.abs() < h) & (u.abs() < w)
    v, u = torch.maximum(torch.minimum(v, h - 0.5), 0.5 - h), torch.maximum(torch.minimum(u, w - 0.5), 0.5 - w)
    return inside, (y + v).round().long(), (x + u).round().long()


def _jitter(draws: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Return M (9, n) and g (n,): brightness, contrast, saturation and hue in turn map x to Mx + g·mean luma."""
    *scales, hue = draws
    brightness, contrast, saturation = (lerp(t, 1 - jitter, 1 + jitter) for t in scales)
    angle = (2 * hue - 1) * (2 * math.pi * jitter)
    eye = torch.eye(3, device=draws.device)[:, :, None]
    # Rotation about the grey axis (Rodrigues); grey is its fixed point, so the other steps pass through it.
    turn = angle.cos() * eye + (1 - angle.cos()) / 3 + angle.sin() / math.sqrt(3) * (eye.roll(1, 0) - eye.roll(-1, 0))
    grey = torch.tensor(_LUMA, device=draws.device)[:, None]
    matrix = brightness * contrast * (saturation * turn + (1 - saturation) * grey)
    return matrix.flatten(0, 1), brightness * (1 - contrast)
