"""The three scenes, seen from above, and the defects that are put into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .camera import Scene
from .canvas import PX, Field, Rng, X, Y, blob, curve, mix, noise, rgb, step


@dataclass(frozen=True)
class Flaw:
    """A defect to put into a scene: its kind, its own random numbers, its level, and factors on size and contrast."""

    kind: str
    rng: Rng
    level: str  # "hard", "medium" or "obvious"
    size: float
    contrast: float

    @classmethod
    def draw(cls, kind: str, rng: Rng, level: str, boost: float = 1.0) -> Flaw:
        """Draw size and contrast log-uniformly within the level; what the one lacks the other partly makes up for."""
        low, high = {"hard": (0.40, 0.70), "medium": (0.70, 1.20), "obvious": (1.20, 2.0)}[level]
        strength, tilt = np.exp(rng.uniform(np.log(low), np.log(high))), np.exp(rng.normal(0, 0.2))
        return cls(kind, rng, level, float(strength * tilt), float(boost * strength / tilt))


# --- weave: a plain-woven cloth ---------------------------------------------------------------------------------------

_SPAN, _SAMPLES = 28, 1024  # threads on either axis; samples along a thread
Spoil = Callable[[bool, Field, Field], Field | float]


def _yarns(rng: Rng, across: Field, along: Field, index: Field) -> tuple[Field, ...]:
    """Offset, width, tone and twist phase at every pixel: each varies from thread to thread and along the thread."""
    sigma, drift, spread = (14, 12, 8, 9), (0.04, 0.10, 0.05, 0.22), (0.02, 0.05, 0.07, 1.0)
    tables = np.empty((_SPAN, _SAMPLES, 4), np.float32)
    for k in range(4):
        walk = ndimage.gaussian_filter1d(rng.standard_normal((_SPAN, _SAMPLES), dtype=np.float32), sigma[k], axis=1)
        tables[..., k] = walk * (drift[k] / walk.std()) + rng.normal(0, spread[k], (_SPAN, 1))
    tables[..., 1:3] = np.exp(tables[..., 1:3])
    row = np.clip(index + _SPAN // 2, 0, _SPAN - 1).astype(np.int32)
    column = np.clip((along + _SPAN / 2) * (_SAMPLES / _SPAN), 0, _SAMPLES - 1).astype(np.int32)
    return tuple(np.moveaxis(tables.reshape(-1, 4)[row * _SAMPLES + column], 2, 0))


def weave(rng: Rng, flaw: Flaw | None) -> Scene:
    """Linen cloth: two sets of twisted yarns over and under each other, every yarn a little different."""
    turn, pitch = np.deg2rad(rng.uniform(-2, 2)), np.float32(12.4 * np.exp(rng.normal(0, 0.012)))
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u = (X * c + Y * s) / pitch + 0.10 * noise(rng, 3, 2) + np.float32(rng.uniform(-0.5, 0.5))
    v = (Y * c - X * s) / pitch + 0.10 * noise(rng, 3, 2) + np.float32(rng.uniform(-0.5, 0.5))
    spoil = _weave_spoil(flaw)
    layers = []
    for across, along, warp in ((u, v, True), (v, u, False)):
        index = np.rint(across)
        offset, width, tone, phase = _yarns(rng, across, along, index)
        fill = np.maximum(0.46 * width * (1 - spoil(warp, index, along)), 1e-3)
        d = (across - index + offset) / fill
        body = np.sqrt(np.maximum(1 - d * d, 0))
        bend = np.cos(np.float32(np.pi) * (along + index)) * (1 if warp else -1)
        twist = np.sin(np.float32(2 * np.pi) * (3.2 * along + 0.6 * d + phase))
        z = np.where(body > 0, 2.4 * bend + 0.75 * pitch * fill * body + 0.22 * twist * body, np.float32(-9))
        layers.append((z, tone * (1 + 0.06 * twist) * (1.0 if warp else 0.80)))
    (za, ta), (zb, tb) = layers
    yarn = np.maximum(za, zb)
    tone = np.where(za >= zb, ta, tb) * (1 + 0.04 * noise(rng, 120) + 0.03 * noise(rng, 4))
    tone = np.where(yarn > -8, tone, np.float32(0.10))
    height = np.maximum(yarn, -3.5 + 0.3 * noise(rng, 100)) + 0.13 * noise(rng, 150)
    return _weave_lay(flaw, Scene(height, 9.0, rgb(0.47, 0.385, 0.275) * tone[..., None], 0.02, 6.0))


def _weave_spoil(flaw: Flaw | None) -> Spoil:
    """How much of each thread is gone, 0 to 1: broken threads and holes."""
    if flaw is None or flaw.kind not in ("broken_thread", "hole"):
        return lambda warp, index, along: 0.0
    rng = flaw.rng
    if flaw.kind == "hole":
        x, y = rng.uniform(-100, 100, 2)
        gone = step(1.15, 0.85, blob(rng, x, y, 9.5 * flaw.size, 0.22)) * min(1.0, 0.55 * flaw.contrast + 0.30)
        return lambda warp, index, along: gone
    which, vertical = int(rng.integers(-8, 9)), bool(rng.integers(2))
    start, length, ends = rng.uniform(-8, 5), 3.2 * flaw.size, rng.uniform(0.15, 0.6, 2)
    worn = min(1.0, 0.60 * flaw.contrast + 0.25)

    def broken(warp: bool, index: Field, along: Field) -> Field | float:
        if warp != vertical:
            return 0.0
        hit = step(start - ends[0], start, along) * step(start + length + ends[1], start + length, along)
        return np.where(index == which, worn * hit, np.float32(0))

    return broken


def _weave_lay(flaw: Flaw | None, scene: Scene) -> Scene:
    """Put a stain into, or a foreign fibre onto, the cloth."""
    if flaw is None or flaw.kind not in ("stain", "fibre"):
        return scene
    rng = flaw.rng
    x, y = rng.uniform(-98, 98, 2)
    if flaw.kind == "stain":
        edge = blob(rng, x, y, 17 * flaw.size)
        soak = step(1.1, 0.8, edge) * (0.75 + 0.25 * step(0.4, 1.0, edge))
        tint = np.array([(0.9, 1.2, 1.5), (1.1, 1.0, 0.9), (1.3, 1.1, 0.8)], np.float32)[rng.integers(3)]
        scene.albedo = scene.albedo * np.exp(-0.42 * flaw.contrast * soak[..., None] * tint)
        return scene
    radius = 1.05 * flaw.size**0.4
    d = curve(rng, x, y, 52 * flaw.size, 0.10) / radius
    colours = ((0.03, 0.03, 0.04), (0.30, 0.04, 0.03), (0.03, 0.08, 0.25), (0.80, 0.79, 0.75))
    colour = colours[rng.integers(len(colours))]
    over = ndimage.maximum_filter(scene.height, 5) + 1.6 * radius * np.sqrt(np.maximum(1 - d * d, 0))
    scene.height = np.where(d < 1, over, scene.height)
    scene.albedo = mix(scene.albedo, colour, step(1.2, 0.8, d) * min(1.0, 0.30 + 0.5 * flaw.contrast))
    return scene


# --- flange: a turned steel disc --------------------------------------------------------------------------------------

_BENCH = -13.0  # height of the bench below the flange's face
_RADII = (29.5, 30.2, 33.0, 50.0, 52.0, 53.0, 60.0, 61.0, 63.0, 64.0, 101.0, 104.5, 105.2)
_HEIGHTS = (_BENCH, 3.0, 5.0, 5.0, 3.5, 0.0, 0.0, -1.6, -1.6, 0.0, 0.0, -3.0, _BENCH)


def flange(rng: Rng, flaw: Flaw | None) -> Scene:
    """Lathe-turned flange with bore, keyway, hub, groove and six countersunk holes on a dark bench, in a fixed pose."""
    cx, cy = rng.uniform(-2.5, 2.5, 2)
    turn, scale = np.deg2rad(rng.uniform(-2, 2)), np.exp(rng.normal(0, 0.004))
    c, s = np.float32(np.cos(turn) / scale), np.float32(np.sin(turn) / scale)
    x, y = (X - np.float32(cx)) * c + (Y - np.float32(cy)) * s, (Y - np.float32(cy)) * c - (X - np.float32(cx)) * s
    r = np.hypot(x, y)
    height = np.interp(r, _RADII, _HEIGHTS).astype(np.float32)
    keyway = np.interp(np.maximum(np.abs(x) - 5.0, -y - 38.0), (-0.8, 0, 1), (_BENCH, 3, 9))
    height = np.where(y < 0, np.minimum(height, keyway), height).astype(np.float32)
    _drill(rng, flaw, x, y, height)
    marks = ndimage.gaussian_filter1d(rng.standard_normal((2, 1200)), 1.2, axis=1).astype(np.float32)
    marks /= marks.std()
    ring = np.minimum(r * 8, 1199).astype(np.int32)
    metal = step(_BENCH + 4, _BENCH + 6, height)
    tone = 1 + 0.05 * marks[1][ring] + 0.03 * noise(rng, 5, 2)
    height += metal * (0.030 * marks[0][ring] + 0.06 * noise(rng, 7))
    bench = rgb(0.040, 0.043, 0.050) * (1 + 0.14 * noise(rng, 110) + 0.05 * noise(rng, 5))[..., None]
    steel = rgb(0.150, 0.153, 0.163) * tone[..., None]
    brushed = -y / (r + 1e-3), x / (r + 1e-3)
    scene = Scene(height, 18.0, mix(bench, steel, metal), 0.01 + 0.62 * metal * tone, 20.0, brushed)
    return _flange_flaw(flaw, scene, cx, cy, metal)


def _drill(rng: Rng, flaw: Flaw | None, x: Field, y: Field, height: Field) -> None:
    """Drill the six holes into the height map; a flawed one is too narrow, blind, or absent."""
    spoiled = int(flaw.rng.integers(6)) if flaw and flaw.kind == "undrilled" else -1
    for k in range(6):
        a = np.pi / 6 + k * np.pi / 3
        bore, floor = 8.0 * np.exp(rng.normal(0, 0.01)), _BENCH
        if flaw and k == spoiled:
            if flaw.level == "obvious":
                continue
            if flaw.level == "medium":
                floor = -4.5 - 2.5 / flaw.contrast
            else:
                bore *= 1 - 0.22 * flaw.size**0.5
        i, j = (int((128 + 82 * f(a)) * PX) for f in (np.sin, np.cos))
        here = np.s_[i - 36 : i + 36, j - 36 : j + 36]
        d = np.hypot(x[here] - 82 * np.cos(a), y[here] - 82 * np.sin(a))
        height[here] = np.minimum(height[here], np.interp(d, (bore - 0.6, bore, bore + 2.2, 30), (floor, -2.2, 0, 30)))


def _flange_flaw(flaw: Flaw | None, scene: Scene, cx: float, cy: float, metal: Field) -> Scene:
    """Scratch, dent or rust on the metal."""
    if flaw is None or flaw.kind == "undrilled":
        return scene
    rng = flaw.rng
    a, r = rng.uniform(0, 2 * np.pi), rng.uniform(38, 97)
    x, y = cx + r * np.cos(a), cy + r * np.sin(a)
    if flaw.kind == "scratch":
        length, width = 36 * flaw.size, 0.72 * flaw.size**0.4
        taper = np.clip(1.15 - (np.hypot(X - x, Y - y) / (0.5 * length)) ** 2, 0, 1) * (1 + 0.2 * noise(rng, 40))
        groove = metal * taper * np.exp(-((curve(rng, x, y, length, 0.012) / width) ** 2))
        scene.height = scene.height - np.float32(0.6 * flaw.contrast * width) * groove
        scene.albedo = scene.albedo + np.float32(0.30 * flaw.contrast) * groove[..., None]
    elif flaw.kind == "dent":
        d = np.maximum(blob(rng, x, y, 6.8 * flaw.size, 0.04, 2.2), 0)
        scene.height = scene.height - metal * np.float32(1.1 * flaw.contrast * flaw.size) * np.exp(-(d**3))
    else:
        edge = blob(rng, x, y, 11 * flaw.size, 0.35)
        patchy = 0.45 * flaw.contrast + 0.25 * noise(rng, 60, 2) * step(1.0, 0.5, edge)
        cover = step(1.1, 0.6, edge) * metal * np.clip(patchy, 0, 1)
        scene.albedo = mix(scene.albedo, (0.20, 0.085, 0.035), cover)
        scene.gloss = scene.gloss * (1 - 0.9 * cover)
        scene.height = scene.height + 0.25 * cover * noise(rng, 90)
    return scene


# --- pills: caplets scattered on a tray -------------------------------------------------------------------------------


def _scatter(rng: Rng, count: int) -> list[tuple[float, float, float]]:
    """Positions and angles of caplets that do not touch."""
    placed: list[tuple[float, float, float]] = []
    taken: list[npt.NDArray[np.float64]] = []
    for _ in range(600):
        x, y, a = *rng.uniform(-87, 87, 2), rng.uniform(0, 2 * np.pi)
        axis = np.array([[x + t * np.cos(a), y + t * np.sin(a)] for t in (-25, -12, 0, 12, 25)])
        if all(np.linalg.norm(axis[:, None] - other, axis=2).min() > 47 for other in taken):
            placed.append((x, y, a))
            taken.append(axis)
        if len(placed) == count:
            break
    return placed


def pills(rng: Rng, flaw: Flaw | None) -> Scene:
    """Four to six scored caplets, scattered and turned at random, on a blue-grey tray."""
    height = 0.20 * noise(rng, 90, 2)
    albedo = rgb(0.050, 0.078, 0.097) * (1 + 0.05 * noise(rng, 128) + 0.04 * noise(rng, 4))[..., None]
    gloss = np.full_like(height, 0.03)
    places = _scatter(rng, int(rng.integers(4, 7)))
    batch = rgb(0.64, 0.33, 0.15) * np.exp(rng.normal(0, 0.02, 3)).astype(np.float32)
    speckle, grit = noise(rng, 100), noise(rng, 150)
    victim = int(flaw.rng.integers(len(places))) if flaw and flaw.kind != "crumbs" else -1
    for k, (x, y, a) in enumerate(places):
        i, j = int((128 + y) * PX), int((128 + x) * PX)
        here = np.s_[max(i - 90, 0) : i + 90, max(j - 90, 0) : j + 90]
        c, s = np.float32(np.cos(a) / 1.32), np.float32(np.sin(a) / 1.32)
        dx, dy = X[here] - np.float32(x), Y[here] - np.float32(y)
        pill = _caplet(rng, dx * c + dy * s, dy * c - dx * s, speckle[here], grit[here])
        if flaw and k == victim:
            _pill_flaw(flaw, pill)
        height[here] = np.where(pill.inside, pill.height, height[here])
        colour = pill.tone[..., None] * mix(batch, pill.core, pill.bare)
        albedo[here] = np.where(pill.inside[..., None], colour, albedo[here])
        gloss[here] = np.where(pill.inside, 0.16 * (1 - pill.bare), gloss[here])
    scene = Scene(height, 13.5, albedo, gloss, 22.0)
    if flaw and flaw.kind == "crumbs":
        _crumbs(flaw, scene, batch)
    return scene


@dataclass
class _Caplet:
    """One caplet in its own coordinates: p along, q across; bare is the share of a second colour, `core`."""

    p: Field
    q: Field
    edge: Field  # 0 on the axis, 1 on the outline
    inside: npt.NDArray[np.bool_]
    height: Field
    tone: Field
    bare: Field
    core: tuple[float, float, float] = (0.80, 0.70, 0.56)


def _caplet(rng: Rng, p: Field, q: Field, speckle: Field, grit: Field) -> _Caplet:
    """A caplet with a score line; size, bulge, tilt and tone differ a little from one to the next."""
    half, radius = 15.5 * np.exp(rng.normal(0, 0.01)), 14.5 * np.exp(rng.normal(0, 0.01))
    edge = np.hypot(np.maximum(np.abs(p) - np.float32(half), 0), q) / np.float32(radius)
    dome = np.sqrt(1 - np.minimum(edge, 1) ** 2.4)
    tilt = rng.normal(0, 0.012, 2).astype(np.float32)
    height = 1.5 + 3.0 * step(1.0, 0.9, edge) + np.float32(8.5 * np.exp(rng.normal(0, 0.05))) * dome
    height += tilt[0] * p + tilt[1] * q + 0.05 * grit - 1.7 * np.exp(-((p / 1.3) ** 2)) * step(1.02, 0.75, edge)
    tone = np.float32(np.exp(rng.normal(0, 0.025))) * (1 + 0.025 * speckle + 0.015 * grit)
    return _Caplet(p, q, edge, edge < 1, height, tone, np.zeros_like(p))


def _pill_flaw(flaw: Flaw, pill: _Caplet) -> None:
    """Crack, chip or spot on one caplet."""
    rng = flaw.rng
    texture = rng.standard_normal(pill.p.shape, dtype=np.float32)
    if flaw.kind == "crack":
        knots = np.linspace(-16, 16, 12)
        path = np.interp(pill.q, knots, rng.uniform(4, 16) * rng.choice((-1, 1)) + np.cumsum(rng.normal(0, 0.9, 12)))
        reach = min(1.0, 0.45 * flaw.size + 0.20) * 30 - 15
        open_ = step(reach + 2, reach - 2, pill.q * rng.choice((-1, 1)))
        gap = np.exp(-(((pill.p - path) / (0.9 * flaw.size**0.4)) ** 2)) * open_
        pill.height -= np.float32(1.9 * flaw.contrast) * gap.astype(np.float32)
        pill.tone *= 1 - np.float32(min(0.7, 0.48 * flaw.contrast)) * gap.astype(np.float32)
        return
    rough = ndimage.gaussian_filter(texture, 3)
    rough /= rough.std()
    if flaw.kind == "chip":
        side, radius = rng.choice((-1, 1), 2), 7.8 * flaw.size**0.7
        x, y = side[0] * rng.uniform(3, 22), side[1] * 14.5
        y *= np.sqrt(1 - (max(abs(x) - 15.5, 0) / 14.5) ** 2)
        bite = np.hypot(pill.p - x, pill.q - y) / radius + 0.12 * rough
        face = 12.5 - np.float32(7.0 * min(1.5, flaw.contrast)) * np.sqrt(np.maximum(1.3 - bite, 0)) + 0.35 * rough
        broken = (bite < 1.0) & (face < pill.height)
        pill.height = np.where(broken, face, pill.height)
        pill.bare = np.where(broken, np.float32(min(1.0, 0.45 + 0.5 * flaw.contrast)), pill.bare)
        pill.inside &= ~(broken & (face < 1.0))
    else:
        x, y = rng.uniform(-20, 20), rng.uniform(-8, 8)
        blot = np.hypot(pill.p - x, pill.q - y) / (6.4 * flaw.size) + 0.2 * rough
        pill.core = ((0.30, 0.15, 0.06), (0.36, 0.36, 0.34), (0.55, 0.12, 0.08))[rng.integers(3)]
        pill.bare = step(1.1, 0.6, blot) * np.float32(min(1.0, 0.75 * flaw.contrast))


def _crumbs(flaw: Flaw, scene: Scene, batch: Field) -> None:
    """Grains broken off caplets, or dirt, lying about."""
    rng = flaw.rng
    while True:  # most of the tray is free
        x, y = rng.uniform(-95, 95, 2)
        if scene.height[int((y + 128) * PX), int((x + 128) * PX)] < 1.5:
            break
    dirt = rng.random() < 0.4
    colour = (0.012, 0.012, 0.014) if dirt else tuple(batch * 0.95)
    for _ in range(int(rng.integers(1, 3 + round(3 * flaw.size)))):
        spread = 9 * flaw.size
        radius = 3.2 * flaw.size**0.7 * np.exp(rng.normal(0, 0.25))
        d = blob(rng, x + rng.normal(0, spread), y + rng.normal(0, spread), radius, 0.2, 1.8)
        on = (d < 1) & (scene.height < 1.5)
        grain_height = scene.height + 1.3 * radius * np.sqrt(np.maximum(1 - d * d, 0))
        scene.height = np.where(on, grain_height, scene.height)
        scene.albedo = mix(scene.albedo, colour, on * np.float32(min(1.0, 0.25 + 0.6 * flaw.contrast)))


SCENES: dict[str, tuple[Callable[[Rng, Flaw | None], Scene], float, tuple[int, float]]] = {
    "weave": (weave, 42.0, (3, 0.015)),  # scene, elevation of its light in degrees, steps of luma and hue when stored
    "flange": (flange, 52.0, (3, 0.022)),
    "pills": (pills, 48.0, (4, 0.040)),
}
