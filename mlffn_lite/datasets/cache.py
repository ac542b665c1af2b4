"""Decoded pixels that do not fit into memory, in a temporary file."""

from __future__ import annotations

import math
import shutil
import tempfile
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import MlffnError

SPARE_BYTES = 1 << 30
"""Disk space that is left to others."""


class DiskArray:
    """As many arrays of one shape, zeros at first, in a file that has no name and vanishes with the process.

    ``array[i] = tensor`` writes one, ``array[tensor of places]`` reads several as a tensor, ``array[slice]`` and
    :meth:`take` are views of the same file. Nothing is mapped into memory, so that it stays as it is however many there
    are; threads may read and write at once.

    Parameters
    ----------
    count : int
        How many.
    shape : tuple of int
        Of each.
    dtype : numpy dtype
        Of one byte.
    """

    def __init__(self, count: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype, self._size = shape, np.dtype(dtype), math.prod(shape) * np.dtype(dtype).itemsize
        self._file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it lives as long as the array
        self._lock, self._places = Lock(), np.arange(count)
        self._file.truncate(count * self._size)

    def __len__(self) -> int:
        return len(self._places)

    def __setitem__(self, index: int, values: Tensor) -> None:
        data = values.contiguous().numpy().astype(self.dtype, copy=False).data.cast("B")
        try:
            with self._lock:
                self._file.seek(int(self._places[index]) * self._size)
                while data:  # a file without a buffer may take less than it is given
                    data = data[self._file.write(data) :]
        except OSError as error:
            where, reason = tempfile.gettempdir(), error.strerror or error
            raise MlffnError(f"cannot write pixels to {where}: {reason}; free space or set TMPDIR") from error

    def __getitem__(self, index: Tensor | slice) -> Any:
        if isinstance(index, slice):
            return self._view(self._places[index])
        found = np.empty((len(index), *self.shape), self.dtype)
        for row, place in zip(found, self._places[index.numpy()], strict=True):
            left = row.data.cast("B")
            with self._lock:
                self._file.seek(int(place) * self._size)
                while left:
                    left = left[self._file.readinto(left) :]
        return torch.from_numpy(found)

    def take(self, index: Tensor) -> Self:
        """Return the chosen ones as a view."""
        return self._view(self._places[index.numpy()])

    def _view(self, places: np.ndarray) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _places=places)
        return other


def fits(size: int) -> bool:
    """Whether so many bytes fit on the disk of temporary files."""
    return shutil.disk_usage(tempfile.gettempdir()).free > size + SPARE_BYTES
