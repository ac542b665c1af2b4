"""Interim: folders only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import DataConfig
from .folder import AnomalyFolder, list_images, map_threads, read_image

Parts = AnomalyFolder


def open_source(
    source: Any, data: DataConfig, *, shape: tuple[int, int] | None = None, skip_bad: bool = False
) -> Parts:
    """Open."""
    if isinstance(source, AnomalyFolder):
        return source
    return AnomalyFolder(source, size=data.size, aspect=data.aspect, shape=shape, skip_bad=skip_bad)


def iterate_batches(images: Any, shape: tuple[int, int], batch: int) -> Iterator[Tensor]:
    """Iterate."""
    if isinstance(images, Tensor):
        yield from images.split(batch) if len(images) else ()
        return
    paths = [images] if isinstance(images, str | Path) else list(images)
    paths = [q for p in paths for q in (list_images(Path(p)) if Path(p).is_dir() else [Path(p)])]
    for i in range(0, len(paths), batch):
        yield torch.stack(list(map_threads(lambda p: read_image(p, shape), paths[i : i + batch], None)))
