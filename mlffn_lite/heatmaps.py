"""Predictions on disk: a heatmap overlay per image, all on one colour scale, and a table of scores."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image
from torch.nn import functional
from tqdm.auto import tqdm

from .datasets.folder import few, list_images, map_threads, open_image, read_image, report_faults
from .detector import PREDICT_BATCH, AnomalyDetector, fitted
from .errors import DataError
from .figures import overlay
from .storage import write_atomic


def write_predictions(
    detector: AnomalyDetector, images: Sequence[Path], folder: Path, *, skip_bad: bool = False, progress: bool = True
) -> pd.DataFrame:
    """Score images and write ``<name>_heatmap.png`` for each, at its own size, and ``scores.csv``.

    Colours run from the detector's normal scores, which leave the picture as it is, to scores that good images hardly
    reach (:class:`~mlffn_lite.detector.Calibration`), so heatmaps of different images compare.

    Parameters
    ----------
    detector : AnomalyDetector
        A fitted detector.
    images : sequence of Path
        Image files, or folders of them.
    folder : Path
        Written to; older files of the same name are replaced.
    skip_bad : bool
        Leave out images that cannot be read, with a warning, instead of raising.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DataFrame
        The content of ``scores.csv``: ``image``, ``score``, ``anomalous`` (above the threshold), ``heatmap``.

    Raises
    ------
    DataError
        If an image cannot be read, or there is none. All are checked before anything is written.
    """
    scale = fitted(detector)
    paths = _readable(_collect(images), skip_bad)
    names = _unique_names(paths)
    rows = []
    bar = tqdm(total=len(paths), unit="image", disable=not progress, delay=2)
    for start in range(0, len(paths), PREDICT_BATCH):
        chunk = paths[start : start + PREDICT_BATCH]
        maps, scores = detector.predict(chunk)
        for path, name, heat, score in zip(chunk, names[start:], maps, scores.tolist(), strict=False):
            picture = read_image(path)
            full = functional.interpolate(heat[None, None], size=picture.shape[1:], mode="bilinear")[0, 0]
            png = io.BytesIO()
            Image.fromarray(overlay(picture, full, scale.low, scale.high)).save(png, format="PNG")
            write_atomic(folder / f"{name}_heatmap.png", png.getvalue())
            rows.append((str(path), score, score > scale.threshold, f"{name}_heatmap.png"))
            bar.update()
    bar.close()
    table = pd.DataFrame(rows, columns=["image", "score", "anomalous", "heatmap"])
    write_atomic(folder / "scores.csv", table.to_csv(index=False))
    return table


def _collect(images: Sequence[Path]) -> list[Path]:
    """Expand folders into the images directly below them; what was named is kept in its order, once."""
    paths: dict[Path, None] = {}
    for path in map(Path, images):
        if not path.exists():
            raise DataError(f"image {path} does not exist; check the path")
        found = list_images(path) if path.is_dir() else [path]
        if not found:
            raise DataError(f"folder {path} holds no image; give image files or a folder of them")
        paths |= dict.fromkeys(found)
    return list(paths)


def _readable(paths: list[Path], skip_bad: bool) -> list[Path]:
    def fault(path: Path) -> str | None:
        try:
            open_image(path)
        except DataError as error:
            return str(error)
        return None

    faults = dict(zip(paths, map_threads(fault, paths, "checking"), strict=True))
    bad = [text for text in faults.values() if text]
    if skip_bad and len(bad) == len(paths):
        raise DataError(f"{len(bad)} of {len(paths)} images cannot be read: {few(bad)}; repair or remove them")
    report_faults(bad, len(paths), skip_bad)
    return [p for p in paths if not faults[p]]


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Return a file name per image: its stem, with its folder and a number where that would collide."""
    names: dict[str, None] = {}
    stems = Counter(p.stem for p in paths)
    for path in paths:
        name = path.stem if stems[path.stem] == 1 else f"{path.parent.name}_{path.stem}"
        candidate, number = name, 2
        while candidate in names:
            candidate, number = f"{name}_{number}", number + 1
        names[candidate] = None
    return list(names)
