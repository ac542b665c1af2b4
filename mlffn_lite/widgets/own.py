"""Images of one's own in an explorer: a file, a folder or an upload, read as the detector sees them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ..datasets.folder import Entry, Split, but_holds, few, open_image, scan, seen_tensor
from ..detector import AnomalyDetector
from ..errors import DataError

OWN = "own"
"""Stands for the defect of an image of which nothing is known."""
MOST = 500
"""Images that are opened at once; an explorer keeps all of their maps."""


class Own(NamedTuple):
    """Images of one's own; ``labelled`` if their folders say which are good, ``faults`` of those left out."""

    split: Split
    labelled: bool
    faults: list[str]


def read_own(source: str | Path | Mapping[str, bytes], detector: AnomalyDetector) -> Own:
    """Read images at the size and through the view of a detector.

    Parameters
    ----------
    source : path, or mapping of str to bytes
        An image file; a folder of images; a data folder, whose ``test`` is taken; or contents of files by their names.
    detector : AnomalyDetector
        Fitted.

    Raises
    ------
    DataError
        If there is no image, if none can be read, or if there are more than :data:`MOST`.
    """
    if isinstance(source, Mapping):
        return _read_contents(source, detector)
    path = Path(source).expanduser()
    entries, labelled = [Entry(path, OWN)], False
    if path.is_dir():
        layout = scan(path)
        labelled = bool(layout.test)
        entries = layout.test if labelled else [Entry(e.path, OWN) for e in layout.train]
    elif not path.exists():
        raise DataError(f"{path} does not exist; give an image file, or a folder of images")
    if not entries:
        raise DataError(f"{path} holds no image{but_holds(path)}; give a folder with images in it")
    _check(len(entries), str(path))
    split, faults = Split.read(entries, detector.shape, "reading", view=detector.view)
    if not len(split):
        raise DataError(few(faults, 1))
    return Own(split, labelled, faults)


def _read_contents(files: Mapping[str, bytes], detector: AnomalyDetector) -> Own:
    _check(len(files), "the upload")
    entries, pixels, faults = [], [], []
    for name, content in files.items():
        try:
            pixels.append(seen_tensor(open_image(io.BytesIO(content), name), name, detector.shape, detector.view))
            entries.append(Entry(Path(name), OWN))
        except DataError as error:
            faults.append(str(error))
    if not entries:
        raise DataError(few(faults, 1) if faults else "the upload holds no file")
    masks = torch.zeros((len(entries), *detector.shape), dtype=torch.bool)
    return Own(Split(entries, detector.shape, (torch.stack(pixels), masks), detector.view), False, faults)


def _check(count: int, name: str) -> None:
    if count > MOST:
        raise DataError(f"{name} holds {count} images, more than {MOST}; give fewer, or use mlffn predict")
