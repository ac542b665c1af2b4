"""The pixel metrics of any number of maps, exact, in memory that does not grow: what does not fit goes to disk."""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .errors import MlffnError
from .metrics import region_weights

_RUN = 1 << 26
"""Scores of normal pixels that are sorted at once and written as one run: 256 MiB."""
_BLOCK = 1 << 24
"""Defective pixels that are ranked at once."""
_SLICE = 1 << 20
"""Scores that are packed or unpacked at once."""
_ESCAPE = 255
"""In a run's bytes: the step to the next score is larger, and stands behind them."""
_TOP_BIT = np.uint32(1 << 31)


class PixelMetrics:
    """Pixel AUROC and PRO of maps that come a few at a time; equal to those of :mod:`.metrics` on all of them.

    Scores of normal pixels are kept in temporary files as sorted runs, in about a byte each (:func:`packed`), those of
    defective pixels with their weight, in twelve; the files have no name and vanish with the process. Every defective
    pixel is then ranked in every run. Memory: about 1.5 GB, whatever the number of maps.

    Parameters
    ----------
    ignored : Tensor, optional
        (H, W) bool: pixels that take part in no image.
    limit : float
        Largest false-positive rate of PRO, in (0, 1].

    Examples
    --------
    >>> with PixelMetrics() as pixels:
    ...     for maps, masks in batches:
    ...         pixels.add(maps, masks)
    ...     pixel_auroc, pro = pixels.result()
    """

    def __init__(self, *, ignored: Tensor | None = None, limit: float = 0.3) -> None:
        if not 0 < limit <= 1:
            raise ValueError(f"limit must be a false-positive rate in (0, 1], got {limit}")
        self.seen, self.limit = None if ignored is None else ~ignored.cpu().numpy(), limit
        self._stack = contextlib.ExitStack()
        files = (tempfile.TemporaryFile() for _ in range(3))  # noqa: SIM115 - the stack closes them
        self._files: list[Any] = [self._stack.enter_context(file) for file in files]
        self._waiting: list[np.ndarray] = []
        self._runs: list[tuple[int, int]] = []
        self._defective = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, maps: Tensor, masks: Tensor) -> None:
        """Take in maps (B, H, W), float32, and masks (B, H, W), bool or integer, non-zero being defective.

        Raises
        ------
        ValueError
            If a score is NaN, or shapes differ.
        MlffnError
            If the disk is full.
        """
        scores, marked = maps.detach().float().cpu().numpy(), (masks != 0).cpu().numpy()
        if scores.shape != marked.shape or np.isnan(scores).any():
            raise ValueError(f"maps {scores.shape} need masks of the same shape, and no NaN")
        if self.seen is not None:
            marked = marked & self.seen
        if marked.any():
            self._write(1, scores[marked])
            self._write(2, region_weights(torch.from_numpy(marked)).numpy())
            self._defective += int(marked.sum())
        self._waiting.append(scores[~marked if self.seen is None else ~marked & self.seen])
        if sum(map(len, self._waiting)) >= _RUN:
            self._flush()

    def result(self) -> tuple[float, float]:
        """Return pixel AUROC and PRO, 0 to 1; NaN, with a warning, without any defective or any normal pixel."""
        self._flush()
        normal = sum(length for length, _ in self._runs)
        if not (normal and self._defective):
            absent = "normal" if self._defective else "defective"
            warnings.warn(f"pixel metrics are undefined without any {absent} pixel: returning NaN", stacklevel=2)
            return math.nan, math.nan
        twice_lost, area, total = 0, 0.0, 0.0
        for above, beside, weights in self._ranked():
            twice_lost += int(above.sum()) + int(beside.sum())
            start, end = above / normal, beside / normal
            low, high = start.clip(max=self.limit), end.clip(max=self.limit)
            ramp = (high - low) ** 2 / (2 * (end - start).clip(min=0.5 / normal))  # as in metrics.pro
            area += float((weights * ((self.limit - high + ramp) / self.limit)).sum())
            total += float(weights.sum())
        twice_pairs = 2 * self._defective * normal
        return (twice_pairs - twice_lost) / twice_pairs, area / total

    def _ranked(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield what :meth:`_ranks` says of defective pixels, and their weights, a slice at a time."""
        for scores, weights in self._blocks():
            above, beside = self._ranks(scores)
            for start in range(0, len(scores), _SLICE):
                part = slice(start, start + _SLICE)
                yield above[part], beside[part], weights[part]

    def _ranks(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how many normal pixels lie above ascending scores, and at or above them."""
        above, beside = np.zeros(len(scores), np.int64), np.zeros(len(scores), np.int64)
        offset = 0
        for length, escapes in self._runs:
            size = length + 4 * escapes
            run = unpacked(self._read(0, np.uint8, offset, size), length)
            before = np.searchsorted(run, scores, side="right")
            above += length - before
            tied = np.flatnonzero(run[np.maximum(before - 1, 0)] == scores)  # few: the others need no second search
            before[tied] = np.searchsorted(run, scores[tied], side="left")
            beside += length - before
            offset += size
        return above, beside

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield scores of defective pixels, ascending, with their weights."""
        for start in range(0, self._defective, _BLOCK):
            count = min(_BLOCK, self._defective - start)
            scores, weights = self._read(1, np.float32, start, count), self._read(2, np.float64, start, count)
            order = scores.argsort()
            scores, weights = scores[order], weights[order]
            del order
            yield scores, weights

    def _flush(self) -> None:
        """Write the waiting scores as a sorted run."""
        if self._waiting:
            run = np.concatenate(self._waiting)
            self._waiting.clear()
            run.sort()
            steps, larger = packed(run)
            self._write(0, steps)
            self._write(0, larger)
            if len(run):
                self._runs.append((len(steps), len(larger)))

    def _write(self, number: int, values: np.ndarray) -> None:
        try:
            self._files[number].write(values.data)
        except OSError as error:
            where = tempfile.gettempdir()
            reason = error.strerror or error
            raise MlffnError(f"cannot write scores to {where}: {reason}; free space or set TMPDIR") from error

    def _read(self, number: int, kind: Any, start: int, count: int) -> np.ndarray:
        size = np.dtype(kind).itemsize
        self._files[number].seek(start * size)
        found = np.empty(count, kind)
        self._files[number].readinto(found.data.cast("B"))
        return found


def packed(run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending scores, float32, as steps of a byte between neighbours, and the steps that need four.

    A step counts the float32 numbers from one score to the next: of millions of scores most are near or equal.
    """
    small, large, before = np.empty(len(run), np.uint8), [np.zeros(0, np.uint32)], np.uint32(0)
    for start in range(0, len(run), _SLICE):
        bits = (run[start : start + _SLICE] + np.float32(0)).view(np.uint32)  # -0 becomes 0, which it equals
        places = np.where(bits >> 31, ~bits, bits | _TOP_BIT)  # ascending, as the numbers themselves
        steps = np.diff(places, prepend=before)
        small[start : start + _SLICE] = np.minimum(steps, _ESCAPE)
        large.append(steps[steps >= _ESCAPE])
        before = places[-1]
    return small, np.concatenate(large)


def unpacked(content: np.ndarray, length: int) -> np.ndarray:
    """Return the scores, float32, whose ``length`` steps and larger steps :func:`packed` gave as bytes (n,)."""
    small, large = content[:length], np.frombuffer(content[length:].tobytes(), np.uint32)
    places, taken, before = np.empty(length, np.uint32), 0, np.uint32(0)
    for start in range(0, length, _SLICE):
        steps = small[start : start + _SLICE].astype(np.uint32)
        escaped = np.flatnonzero(steps == _ESCAPE)
        steps[escaped] = large[taken : taken + len(escaped)]
        taken += len(escaped)
        steps[0] += before
        np.cumsum(steps, dtype=np.uint32, out=steps)
        before = steps[-1]
        places[start : start + _SLICE] = np.where(steps >> 31, steps ^ _TOP_BIT, ~steps)
    return places.view(np.float32)
