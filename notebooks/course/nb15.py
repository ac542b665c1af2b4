"""Exercises of notebook 15, the heatmap explorer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np
from scipy import ndimage

from mlffn_lite.widgets import find_regions

from .checks import exercise


@exercise(
    "15.1",
    wrong={
        "ignores the size": lambda m, t, n: bool((m > t).any()),
        "counts pixels, not those of a region": lambda m, t, n: bool((m > t).sum() >= n),
        "does not join over corners": lambda m, t, n: bool(
            max(np.bincount(ndimage.label(m > t)[0].ravel())[1:], default=0) >= n
        ),
        "takes scores at the threshold": lambda m, t, n: any(r.area >= n for r in find_regions(m, t - 1e-6)[1]),
        "wants more than the smallest": lambda m, t, n: any(r.area > n for r in find_regions(m, t)[1]),
    },
)
def verdict(answer: Callable[[np.ndarray, float, int], bool]) -> None:
    """Whether a region of some size lies above the threshold."""
    score_map = np.zeros((6, 8))
    score_map[[0, 1, 2], [0, 1, 2]] = 3.0  # joined over corners
    score_map[4, 4:6], score_map[0, 5], score_map[5, 0:5] = 2.0, 2.0, 1.0
    assert not answer(np.zeros((4, 4)), 1.0, 1), "a map without a score above the threshold is good"
    assert answer(score_map, 1.5, 1), "with smallest = 1 any pixel above the threshold is enough"
    assert answer(score_map, 1.5, 3), "three pixels that touch at their corners are one region of three pixels"
    assert not answer(score_map, 1.5, 4), "there are six pixels above 1.5 here, but no region of four"
    assert not answer(score_map, 2.0, 4), "a score equal to the threshold does not count"
    assert answer(score_map, 1.0, 3), "a region of exactly the smallest size counts"
    assert not answer(score_map, 1.0, 5), "the scores equal to the threshold 1.0 do not count"


@exercise(
    "15.2",
    wrong={
        "a quantile between two scores": lambda s, share: float(np.quantile(np.asarray(s, dtype=float), 1 - share)),
        "one too high": lambda s, share: sorted(map(float, s), reverse=True)[max(int(share * len(s) + 1e-9) - 1, 0)],
        "one too low": lambda s, share: sorted(map(float, s), reverse=True)[
            min(int(share * len(s) + 1e-9) + 1, len(s) - 1)
        ],
        "the smallest first": lambda s, share: sorted(map(float, s))[int(share * len(s) + 1e-9)],
        "always the largest": lambda s, share: max(map(float, s)),
    },
)
def threshold_for(answer: Callable[[Any, float], float]) -> None:
    """The lowest threshold with at most a share of false alarms."""
    plain, tied = np.array([0.5, 2.5, 1.5, 4.5, 3.5, 7.0, 6.0, 9.0]), np.array([1.0, 3.0, 3.0, 3.0, 2.0, 5.0, 0.0, 4.0])
    for scores in (plain, tied):
        for share in (0.0, 0.125, 0.25, 0.3, 0.5, 0.75):
            found = float(answer(scores, share))
            assert math.isfinite(found), f"the threshold for a share of {share} must be a finite number"
            above = int((scores > found).sum())
            case = f"of the scores {sorted(scores.tolist())}, {above} of 8 lie above {found:g}"
            assert above <= 8 * share, f"{case}: more than a share of {share}"
            below = scores[scores < found - 1e-9]
            least = max(below, default=-math.inf)
            lower = (found + least) / 2 if len(below) else found - 1
            assert (scores > lower).sum() > 8 * share, f"{case}: a lower threshold keeps the share of {share} too"


def _without_a_first_picture(slider: Any, picture: Any, draw: Callable[[Any], bytes]) -> Any:
    slider.observe(lambda change: setattr(picture, "value", draw(change["new"])), names="value")
    return picture


def _for_every_trait(slider: Any, picture: Any, draw: Callable[[Any], bytes]) -> Any:
    slider.observe(lambda change: setattr(picture, "value", draw(slider.value)))
    picture.value = draw(slider.value)
    return picture


def _only_once(slider: Any, picture: Any, draw: Callable[[Any], bytes]) -> Any:
    picture.value = draw(slider.value)
    return picture


def _old_value(slider: Any, picture: Any, draw: Callable[[Any], bytes]) -> Any:
    slider.observe(lambda change: setattr(picture, "value", draw(change["old"])), names="value")
    picture.value = draw(slider.value)
    return picture


@exercise(
    "15.3",
    wrong={
        "waits for the first change": _without_a_first_picture,
        "draws for every change of the slider": _for_every_trait,
        "draws only once": _only_once,
        "draws the value before": _old_value,
    },
)
def bind(answer: Callable[[Any, Any, Callable[[Any], bytes]], Any]) -> None:
    """A slider, a picture, and a function that draws."""
    slider, picture, drawn = ipywidgets.IntSlider(3, min=0, max=10), ipywidgets.Image(), []

    def draw(value: int) -> bytes:
        drawn.append(value)
        return b"picture %d" % value

    returned = answer(slider, picture, draw)
    assert bytes(picture.value) == b"picture 3", "the picture must show the slider's value at once"
    assert returned is picture, "return the picture"
    for value in (4, 9):
        slider.value = value
        assert bytes(picture.value) == b"picture %d" % value, (
            f"the slider is at {value}, but the picture shows {drawn[-1:]}"
        )
    slider.description = "new name"
    assert drawn == [3, 4, 9], f"draw once at first, and once per change of the value, not for {drawn}"


def _scan(respond: Callable[[float], float], threshold: float) -> float | None:
    return next((i / 100 for i in range(101) if respond(i / 100) > threshold), None)


def _halve(
    respond: Callable[[float], float], threshold: float, *, upper: bool, ask: bool, steps: int = 7
) -> float | None:
    if ask and not respond(1.0) > threshold:
        return None
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if respond(middle) > threshold else (middle, high)
    return high if upper else low


@exercise(
    "15.4",
    wrong={
        "tries a hundred strengths": _scan,
        "returns the one that is not enough": lambda r, t: _halve(r, t, upper=False, ask=True),
        "does not ask whether 1 is enough": lambda r, t: _halve(r, t, upper=True, ask=False),
        "stops too early": lambda r, t: _halve(r, t, upper=True, ask=True, steps=4),
    },
)
def least_strength(answer: Callable[[Callable[[float], float], float], float | None]) -> None:
    """The least strength that makes an image anomalous."""
    for least in (0.0, 0.004, 0.123, 0.5, 0.777, 0.996, None):
        calls: list[float] = []

        def respond(strength: float, least: float | None = least, calls: list[float] = calls) -> float:
            assert 0 <= strength <= 1, f"respond was asked for the strength {strength}; stay between 0 and 1"
            calls.append(strength)
            return 1.0 + strength + (10 if least is not None and strength >= least else 0)

        found = answer(respond, 5.0)
        assert len(calls) <= 12, f"respond was called {len(calls)} times; 12 are allowed"
        if least is None:
            assert found is None, "where strength 1 is not enough, return None"
            continue
        assert found is not None, f"there is a strength that is enough, {least}"
        assert found >= least, f"{found} is not enough here, the score there is not above the threshold"
        assert found <= least + 0.01 + 1e-9, f"{found} is more than 0.01 above the least strength, {least}"
