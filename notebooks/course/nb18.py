"""Exercises of notebook 18, your own parts, and a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from mlffn_lite.figures import COLOURS, STYLE, new_figure

from .checks import exercise


@mpl.rc_context(STYLE)
def promise_figure(counts: Sequence[int]) -> Figure:
    """Draw the false-alarm rate that a threshold at the highest of n scores may have, and what n parts promise."""
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2)
    grid = np.linspace(0, 0.12, 400)
    for n, colour in zip(counts, COLOURS.values(), strict=False):
        left.plot(100 * grid, stats.beta(1, n).pdf(grid) / 100, color=colour, label=f"{n} good parts")
    left.set(xlabel="false-alarm rate, %", ylabel="density", title="Threshold at the highest score", ylim=(0, 1.2))
    left.legend()
    many = np.arange(5, 1501)
    for above, style in ((0, "-"), (1, "--"), (5, ":")):
        few = many[many > above]
        right.plot(few, 100 * (above + 1) / (few + 1), style, color=COLOURS["blue"])
        right.plot(few, 100 * stats.beta.ppf(0.95, above + 1, few - above), style, color=COLOURS["orange"])
    for rate in (1, 5):
        right.axhline(rate, color=COLOURS["black"], lw=0.8)
    right.plot([], [], color=COLOURS["blue"], label="on average")
    right.plot([], [], color=COLOURS["orange"], label="with 95 % confidence")
    right.set(
        xscale="log", yscale="log", xlabel="good parts", ylabel="false-alarm rate, %", title="What can be promised"
    )
    right.set_xticks([10, 100, 1000], ["10", "100", "1000"])
    right.set_yticks([0.1, 1, 5, 20, 100], ["0.1", "1", "5", "20", "100"])
    right.legend()
    return figure


@exercise(
    "18.1",
    wrong={
        "on average, without confidence": lambda rate, confidence: math.ceil(1 / rate - 1),
        "rounds down": lambda rate, confidence: math.floor(math.log(1 - confidence) / math.log(1 - rate)),
        "the rule of three": lambda rate, confidence: math.ceil(3 / rate),
        "rate and confidence change places": lambda rate, confidence: math.ceil(math.log(rate) / math.log(confidence)),
        "not a whole number": lambda rate, confidence: math.log(1 - confidence) / math.log(1 - rate),
    },
)
def _parts_needed(answer: Callable[[float, float], int]) -> None:
    for rate, confidence in ((0.5, 0.9), (0.1, 0.95), (0.05, 0.95), (0.05, 0.5), (0.01, 0.99)):
        n = answer(rate, confidence)
        assert n == int(n), f"a number of parts is whole, not {n:.2f}"
        n = int(n)
        missed = (1 - rate) ** n
        assert missed <= 1 - confidence + 1e-12, (
            f"with {n} parts the rate is above {rate:g} in {missed:.1%} of the cases, which is more than "
            f"{1 - confidence:.0%}"
        )
        assert (1 - rate) ** (n - 1) > 1 - confidence, f"{n - 1} parts would do for {rate:g} with {confidence:.0%}"


@exercise(
    "18.2",
    wrong={
        "the share that was found": lambda above, n, confidence: above / n,
        "the lower end": lambda above, n, confidence: float(
            stats.beta.ppf(1 - confidence, above + 1e-9, n - above + 1)
        ),
        "both ends, half the doubt each": lambda above, n, confidence: float(
            stats.beta.ppf((1 + confidence) / 2, above + 1, n - above)
        ),
        "a normal approximation": lambda above, n, confidence: float(
            above / n + stats.norm.ppf(confidence) * math.sqrt(above / n * (1 - above / n) / n)
        ),
        "one alarm too few": lambda above, n, confidence: float(stats.beta.ppf(confidence, above, n - above + 1)),
    },
)
def _largest_rate(answer: Callable[[int, int, float], float]) -> None:
    for above, n, confidence in ((0, 20, 0.95), (1, 20, 0.95), (3, 100, 0.9), (0, 299, 0.95)):
        rate = float(answer(above, n, confidence))
        assert 0 < rate < 1, f"a rate between 0 and 1, not {rate:g}; {above} of {n} do not show that it is {rate:g}"
        left = float(stats.binom.cdf(above, n, rate))
        assert abs(left - (1 - confidence)) < 1e-4, (
            f"at a rate of {rate:.4f}, {above} of {n} alarms or fewer have the probability {left:.4f}; it should be "
            f"{1 - confidence:.4g}"
        )


@exercise(
    "18.3",
    wrong={
        "rounds to the nearest": lambda view, defect, pixels: 16 * round(view / defect * pixels / 16),
        "not a multiple of 16": lambda view, defect, pixels: math.ceil(view / defect * pixels),
        "upside down": lambda view, defect, pixels: 16 * math.ceil(defect / view * pixels / 16),
        "always one step more": lambda view, defect, pixels: 16 * (int(view / defect * pixels / 16) + 1),
    },
)
def _side_needed(answer: Callable[[float, float, int], int]) -> None:
    for view, defect, pixels in ((100, 2, 4), (96, 3, 8), (250, 0.5, 3), (30, 1, 8), (64, 1, 4)):
        side = answer(view, defect, pixels)
        assert side == int(side), f"{side} is no whole number of pixels"
        assert side % 16 == 0, f"{side} is not a multiple of 16"
        seen = side * defect / view
        assert seen >= pixels - 1e-9, (
            f"at {side} px across {view} mm a defect of {defect} mm has {seen:.1f} px, and {pixels} are wanted"
        )
        assert (side - 16) * defect / view < pixels, f"{side - 16} px would do for {defect} of {view} mm"
