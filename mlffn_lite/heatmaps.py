"""Predictions on disk: verdicts and regions as tables that grow image by image, and pictures on one colour scale."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from . import escaped
from .datasets.folder import (
    but_holds,
    few,
    image_tensor,
    list_images,
    open_image,
    pages_of,
    seen_tensor,
    several_pages,
)
from .datasets.view import Box, View
from .decision import Region
from .detector import PREDICT_BATCH, RULE, AnomalyDetector, Calibration, batch_size, fitted
from .errors import DataError, MlffnError
from .figures import encode_png, overlay
from .ownership import own
from .sealed import read_regular
from .storage import write_atomic, write_json

SCORES, REGIONS, COCO = "scores.csv", "regions.csv", "regions.json"
RULE_FILE = ".rule.json"
"""Beside the tables: by what they decide, for who goes on with them."""
OK, NOK, ERROR = "OK", "NOK", "ERROR"
"""Verdicts: good, anomalous, and not judged."""

SCORE_COLUMNS = ("image", "verdict", "score", "threshold", "regions", "picture", "error")
SCORE_NUMBERS = ("score", "threshold", "regions")
REGION_COLUMNS = ("image", "region", "x", "y", "width", "height", "area", "peak", "peak_x", "peak_y")
LONGEST_NAME = 200
"""Bytes that a file's name may have, less what is put behind it."""
WRITERS = 2
"""Threads that write pictures, and as many that read images ahead."""
NOT_FINITE = "its score is not finite; fit again"


@dataclass(frozen=True)
class Outputs:
    """What is written for every image beside its line in the tables.

    Attributes
    ----------
    pictures : {"jpeg", "png", "none"}
        The heatmap over the image, at the image's own size. A PNG loses nothing, and takes ten times as long.
    maps : {"none", "npy", "tiff16"}
        The scores of its pixels at the resolution that they were computed at: as float32, or as 16 bits between the two
        ends of the colours. They cover the whole photograph; where nothing was looked at is NaN, or 0.
    masks : bool
        PNG of the regions, 255 inside, at the image's own size.
    longest_side : int
        Pictures and masks of larger images are reduced to it.
    """

    pictures: Literal["jpeg", "png", "none"] = "jpeg"
    maps: Literal["none", "npy", "tiff16"] = "none"
    masks: bool = False
    longest_side: int = 4096


class _Loaded(NamedTuple):
    pixels: Tensor | None
    picture: np.ndarray | None
    size: tuple[int, int]
    fault: str
    pages: int = 1


class Judged(NamedTuple):
    """A judged image: its line of ``scores.csv``, those of its regions, and what its pictures are made of.

    ``readable`` is False where there was no image to score, which is one reason for the verdict ERROR.
    """

    row: dict[str, Any]
    regions: list[dict[str, Any]]
    readable: bool
    loaded: _Loaded
    heat: np.ndarray | None

    def write(self, folder: Path, name: str, detector: AnomalyDetector, outputs: Outputs) -> None:
        """Write what the image has beside the tables, under a name, and the picture's into its line."""
        assert self.heat is not None
        files = _files(name, outputs)
        self.row["picture"] = files.get("picture", "")
        _write(folder, files, self.loaded, self.heat, detector, outputs)

    def picture(self, detector: AnomalyDetector) -> bytes:
        """Return the heatmap over the image, as PNG."""
        assert self.heat is not None
        return encode_png(_drawn(self.loaded, self.heat, detector))


def judge(
    detector: AnomalyDetector, image: Path | Image.Image, outputs: Outputs, *, name: object = None, lock: Any = None
) -> Judged:
    """Judge one image, a file or one that is open and upright; its ``name`` stands in errors.

    ``lock`` is held while the detector works, where several threads share it.
    """
    name = name or image
    loaded = _load(image, detector.shape, detector.view, outputs, name)
    with lock or contextlib.nullcontext():
        (heat,) = _heats(detector, [loaded])
    row, regions = _judge(name, loaded, heat, fitted(detector), detector.view)
    return Judged(row, regions, loaded.pixels is not None, loaded, heat)


def write_predictions(
    detector: AnomalyDetector,
    images: Sequence[Path],
    folder: Path,
    *,
    outputs: Outputs | None = None,
    resume: bool = False,
    coco: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Judge images: ``scores.csv`` and ``regions.csv`` grow as it goes, and a picture for each.

    An image that cannot be read or scored is judged ERROR and never lost; the others are judged all the same. Colours
    run from the detector's normal scores, which leave the picture as it is, to scores that good images hardly reach
    (:class:`~mlffn_lite.detector.Calibration`), so pictures compare.

    Parameters
    ----------
    detector : AnomalyDetector
        A fitted detector.
    images : sequence of Path
        Image files, or folders of them.
    folder : Path
        Written to; older files of the same name are replaced.
    outputs : Outputs, optional
        What is written for every image.
    resume : bool
        Go on with the tables in ``folder``: images judged OK or NOK there are not judged again, but for the first, by
        which another detector is noticed.
    coco : bool
        Write the regions as ``regions.json`` in COCO's format too.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DataFrame
        The content of ``scores.csv``: ``image``, ``verdict`` (OK, NOK, ERROR), ``score``, ``threshold``, number of
        ``regions``, file of the ``picture``, ``error``. ``regions.csv`` has for each box, area and peak in the image's
        own pixels.

    Raises
    ------
    DataError
        If there is no image, the output would lie among the input, or tables to go on with are not this detector's.
    MlffnError
        If a file cannot be written.
    """
    scale, outputs = fitted(detector), outputs or Outputs()
    for path in images:
        if Path(path).is_dir() and Path(path).resolve() == folder.resolve():
            raise DataError(
                f"--out {folder} is a folder of images to judge; write elsewhere, or pictures get among them"
            )
    root = folder.resolve().parents[:2]
    if len(root) == 2 and root[0].name in ("train", "test", "ground_truth") and (root[1] / "train/good").is_dir():
        raise DataError(f"--out {folder} lies in the data {root[1]}; write elsewhere, or pictures become images of it")
    paths = collect_images(images)
    with own(folder):
        table, several = _write_all(detector, paths, folder, outputs, resume, coco, progress)
    if several:
        warnings.warn(several_pages(several, len(paths)), stacklevel=2)
    scale.warn()
    return table


def _write_all(
    detector: AnomalyDetector,
    paths: Sequence[Path],
    folder: Path,
    outputs: Outputs,
    resume: bool,
    coco: bool,
    progress: bool,
) -> tuple[pd.DataFrame, list[Path]]:
    """Do the work of :func:`write_predictions`; returns the files of several pages too."""
    several: list[Path] = []
    scale, names = fitted(detector), dict(zip(paths, _unique_names(paths), strict=True))
    rows, regions = _kept(folder, {escaped.name(p) for p in paths}) if resume else ([], [])
    done = {row["image"] for row in rows}
    if rows:
        _same_detector(folder, rows, {escaped.name(p): p for p in paths}, detector)
    left = [p for p in paths if escaped.name(p) not in done]
    if not rows:
        _clear(folder)
    write_json(folder / RULE_FILE, _rule(scale))
    tables = Tables(folder, rows, regions)
    bar = tqdm(total=len(paths), initial=len(done), unit="image", disable=not progress, delay=2)
    with tables, ThreadPoolExecutor(WRITERS) as readers, ThreadPoolExecutor(WRITERS) as writers, bar:
        waiting: deque[Future[None]] = deque()
        for chunk in _ahead(readers, left, detector, outputs):
            heats = _heats(detector, [loaded for _, loaded in chunk])
            for (path, loaded), heat in zip(chunk, heats, strict=True):
                row, found = _judge(path, loaded, heat, scale, detector.view)
                if heat is not None and row["verdict"] != ERROR:
                    files = _files(names[path], outputs)
                    row["picture"] = files.get("picture", "")
                    waiting.append(writers.submit(_write, folder, files, loaded, heat, detector, outputs))
                while len(waiting) > 2 * len(chunk):
                    waiting.popleft().result()
                if loaded.pages > 1:
                    several.append(path)
                tables.add(row, found)
                bar.update()
        for job in waiting:
            job.result()
    if coco:
        write_json(folder / COCO, _coco(tables.rows, tables.regions))
    return pd.DataFrame(tables.rows, columns=list(SCORE_COLUMNS)), several


def _ahead(
    pool: ThreadPoolExecutor, paths: Sequence[Path], detector: AnomalyDetector, outputs: Outputs
) -> Iterator[list[tuple[Path, _Loaded]]]:
    """Yield images in batches, of which the next is read while one is scored."""
    size = min(PREDICT_BATCH, batch_size(detector.shape))
    chunks = [paths[i : i + size] for i in range(0, len(paths), size)]
    jobs: deque[list[Future[_Loaded]]] = deque()
    for place in range(len(chunks)):
        for chunk in chunks[place + len(jobs) : place + 2]:
            jobs.append([pool.submit(_load, path, detector.shape, detector.view, outputs) for path in chunk])
        yield [(path, job.result()) for path, job in zip(chunks[place], jobs.popleft(), strict=True)]


def _load(
    path: Path | Image.Image, shape: tuple[int, int], view: View, outputs: Outputs, name: object = None
) -> _Loaded:
    """Read an image for scoring and, reduced if it is huge, for its picture; an open one has its ``name`` in errors."""
    name = name or path
    try:
        image = open_image(path) if isinstance(path, Path) else path
        picture = None
        if outputs.pictures != "none":
            picture = image_tensor(image, _reduced(image.size, outputs.longest_side)).numpy()
        return _Loaded(seen_tensor(image, name, shape, view), picture, image.size, "", pages_of(image))
    except (DataError, MemoryError) as error:
        return _Loaded(None, None, (0, 0), str(error) or "too large for the memory")


def _reduced(size: tuple[int, int], longest: int) -> tuple[int, int] | None:
    """Return height and width of the picture of an image, None where it keeps its size."""
    width, height = size
    if max(size) <= longest:
        return None
    factor = longest / max(size)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _heats(detector: AnomalyDetector, loaded: Sequence[_Loaded]) -> list[np.ndarray | None]:
    """Return the score maps of the images that could be read."""
    readable = [x.pixels for x in loaded if x.pixels is not None]
    maps = iter(detector.predict(torch.stack(readable)).maps.numpy() if readable else ())
    return [None if x.pixels is None else next(maps) for x in loaded]


def _judge(
    path: object, loaded: _Loaded, heat: np.ndarray | None, scale: Calibration, view: View
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an image's line of ``scores.csv`` and those of its regions."""
    row: dict[str, Any] = dict.fromkeys(SCORE_COLUMNS, "") | {"image": escaped.name(path), "threshold": scale.threshold}
    if heat is None or not np.isfinite(heat).all() or not math.isfinite(scale.threshold):
        return {**row, "verdict": ERROR, "error": loaded.fault or NOT_FINITE}, []
    found = scale.rule.regions(heat)
    row |= {"verdict": NOK if found else OK, "score": float(heat.max()), "regions": len(found)}
    box = view.box or (0, 0, *loaded.size)
    lines = [_line(path, i + 1, region, box, heat.shape) for i, region in enumerate(found)]
    return row, lines


def _line(path: object, number: int, region: Region, box: Box, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return a region of a map of the box in the pixels of the photograph."""
    left, top = box[:2]
    right, down = box[2] / shape[1], box[3] / shape[0]
    x, y = math.floor(region.left * right), math.floor(region.top * down)
    width = math.ceil((region.left + region.width) * right) - x
    height = math.ceil((region.top + region.height) * down) - y
    peak = (left + int((region.x + 0.5) * right), top + int((region.y + 0.5) * down))
    area = round(region.area * right * down)
    values = (escaped.name(path), number, left + x, top + y, width, height, area, region.peak, *peak)
    return dict(zip(REGION_COLUMNS, values, strict=True))


def _files(name: str, outputs: Outputs) -> dict[str, str]:
    """Return the file names for an image."""
    suffix = {"png": "png", "jpeg": "jpg"}.get(outputs.pictures)
    files = {"picture": f"{name}_heatmap.{suffix}"} if suffix else {}
    files |= {"map": f"{name}_map.{'npy' if outputs.maps == 'npy' else 'tiff'}"} if outputs.maps != "none" else {}
    return files | ({"mask": f"{name}_mask.png"} if outputs.masks else {})


def _write(
    folder: Path, files: dict[str, str], loaded: _Loaded, heat: np.ndarray, detector: AnomalyDetector, outputs: Outputs
) -> None:
    """Write what an image has beside the tables."""
    scale, view = fitted(detector), detector.view
    if "picture" in files and loaded.picture is not None:
        rgb = _drawn(loaded, heat, detector)
        png = outputs.pictures == "png"
        content = encode_png(rgb) if png else _encoded(Image.fromarray(rgb), "JPEG", quality=90)
        write_atomic(folder / files["picture"], content)
    if "map" in files and outputs.maps == "npy":
        stream = io.BytesIO()
        np.save(stream, view.placed(heat, loaded.size, math.nan))
        write_atomic(folder / files["map"], stream.getvalue())
    elif "map" in files:
        steps = (
            np.clip((view.placed(heat, loaded.size, scale.low) - scale.low) / (scale.high - scale.low), 0, 1) * 65535
        )
        write_atomic(folder / files["map"], _encoded(Image.fromarray(steps.round().astype(np.uint16)), "TIFF"))
    if "mask" in files:
        size = _reduced(loaded.size, outputs.longest_side) or loaded.size[::-1]
        place, whole = _place(view, loaded.size, size), np.zeros(size, np.uint8)
        mask = Image.fromarray(scale.rule.mask(heat) * np.uint8(255))
        whole[place] = np.asarray(mask.resize(whole[place].shape[::-1], Image.Resampling.NEAREST))
        write_atomic(folder / files["mask"], _encoded(Image.fromarray(whole), "PNG"))


def _drawn(loaded: _Loaded, heat: np.ndarray, detector: AnomalyDetector) -> np.ndarray:
    """Return the heatmap over the image, (H, W, 3) uint8."""
    scale, view = fitted(detector), detector.view
    assert loaded.picture is not None
    place = _place(view, loaded.size, loaded.picture.shape[1:])
    large = np.full(loaded.picture.shape[1:], scale.low, np.float32)
    large[place] = _enlarged(heat, large[place].shape)
    return overlay(loaded.picture, large, scale.low, scale.high)


def _place(view: View, size: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of the viewed box in a picture (height, width) of a photograph (width, height)."""
    left, top, width, height = view.box or (0, 0, *size)
    across, down = shape[1] / size[0], shape[0] / size[1]
    x, y = min(round(left * across), shape[1] - 1), min(round(top * down), shape[0] - 1)
    return slice(y, max(y + 1, round((top + height) * down))), slice(x, max(x + 1, round((left + width) * across)))


def _enlarged(heat: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    x = torch.from_numpy(heat)[None, None]
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return stream.getvalue()


class Tables:
    """The two tables on disk, each a line longer for every image; what is there stays if the work breaks off."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], regions: list[dict[str, Any]]) -> None:
        self.folder, self.rows, self.regions = folder, rows, regions

    def __enter__(self) -> Tables:
        for name, columns, lines in ((SCORES, SCORE_COLUMNS, self.rows), (REGIONS, REGION_COLUMNS, self.regions)):
            write_atomic(
                self.folder / name, escaped.cells(pd.DataFrame(lines, columns=list(columns))).to_csv(index=False)
            )
        self._open = [(self.folder / name).open("a", newline="", encoding="utf-8") for name in (SCORES, REGIONS)]
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._open:
            stream.close()

    def add(self, row: dict[str, Any], regions: list[dict[str, Any]]) -> None:
        """Add an image's lines: its regions first, so that an image that is in ``scores.csv`` is whole."""
        self.rows.append(row)
        self.regions += regions
        try:
            for stream, lines in zip(self._open[::-1], (regions, [row]), strict=True):
                csv.writer(stream, lineterminator="\n").writerows(
                    [[*map(escaped.cell, line.values())] for line in lines]
                )
                stream.flush()
        except OSError as error:
            raise MlffnError(
                f"cannot write to {self.folder}: {error.strerror or error}; free space and go on with --resume"
            ) from error


def kept_lines(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of the images that are OK or NOK in the tables of a folder, and those of their regions."""
    found: list[list[dict[str, Any]]] = []
    for name, columns in ((SCORES, SCORE_COLUMNS), (REGIONS, REGION_COLUMNS)):
        path = folder / name
        if not path.exists():
            return [], []
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                read = csv.DictReader(stream)
                lines = [{k: escaped.uncell(v) if isinstance(v, str) else v for k, v in row.items()} for row in read]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} cannot be read ({error}); remove it to begin anew") from error
        if lines and set(lines[0]) - {None} != set(columns):
            raise DataError(f"{path} has other columns than {', '.join(columns)}; write to another folder")
        # One that broke off is judged again.
        found.append([line for line in lines if None not in line and None not in line.values()])
    rows = [x for x in found[0] if x["verdict"] in (OK, NOK)]
    known = {x["image"] for x in rows}
    regions = [x for x in found[1] if x["image"] in known]
    for name, lines, numbers in ((SCORES, rows, SCORE_NUMBERS), (REGIONS, regions, REGION_COLUMNS[1:])):
        if any(not _number(line[column]) for line in lines for column in numbers):
            raise DataError(f"{folder / name} holds what is no number; remove it to begin anew")
    return rows, regions


def _number(text: str) -> bool:
    """Whether a text of a table is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _kept(folder: Path, wanted: set[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of the wanted images that an earlier call judged."""
    rows, regions = kept_lines(folder)
    drawn = [x for x in rows if not x["picture"] or (folder / x["picture"]).exists()]
    last = {x["image"]: x for x in drawn if x["image"] in wanted}
    return list(last.values()), [x for x in regions if x["image"] in last]


def _rule(scale: Calibration) -> dict[str, Any]:
    """Return what verdicts depend on beside the scores."""
    return {key: getattr(scale, key) for key in RULE}


def _clear(folder: Path) -> None:
    """Remove what an earlier call has drawn here, as its table says, and its regions as COCO."""
    try:
        with (folder / SCORES).open(newline="", encoding="utf-8") as stream:
            named = [escaped.uncell(row.get("picture") or "") for row in csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return
    (folder / COCO).unlink(missing_ok=True)
    for picture in named:
        stem, mark, _ = picture.rpartition("_heatmap.")
        if not mark or Path(picture).name != picture:  # none of ours
            continue
        for name in (picture, f"{stem}_map.npy", f"{stem}_map.tiff", f"{stem}_mask.png"):
            (folder / name).unlink(missing_ok=True)


def _same_detector(folder: Path, rows: list[dict[str, Any]], paths: dict[str, Path], detector: AnomalyDetector) -> None:
    """Refuse to go on with the verdicts of another detector, of another threshold, or about other images.

    The first image that was judged is judged again; an engine's rounding is allowed for.
    """
    scale, first, advice = fitted(detector), rows[0], "write to another folder, or judge all anew without --resume"
    if other := {row["threshold"] for row in rows if float(row["threshold"]) != scale.threshold}:
        raise DataError(
            f"{folder / SCORES} holds verdicts at the threshold {min(other)}, not {scale.threshold}; {advice}"
        )
    with contextlib.suppress(FileNotFoundError):  # an earlier version wrote none
        try:
            same = json.loads(read_regular(folder / RULE_FILE)) == _rule(scale)
        except (ValueError, RecursionError):
            same = False
        if not same:
            raise DataError(f"{folder / SCORES} holds verdicts by another smallest area or peak; {advice}")
    now = judge(detector, paths[first["image"]], Outputs("none")).row
    same = [first["verdict"], int(float(first["regions"]))] == [now["verdict"], now["regions"]]
    if not same or abs(float(first["score"]) - now["score"]) > 1e-3 * (scale.high - scale.low):
        raise DataError(f"{folder / SCORES} is of another detector, or {first['image']} has changed; {advice}")


def _coco(rows: list[dict[str, Any]], regions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return images and regions in COCO's format."""
    numbers = {row["image"]: i + 1 for i, row in enumerate(rows)}
    notes = [
        {
            "id": i + 1,
            "image_id": numbers[r["image"]],
            "category_id": 1,
            "bbox": [int(float(r[k])) for k in ("x", "y", "width", "height")],
            "area": int(float(r["area"])),
            "score": float(r["peak"]),
            "iscrowd": 0,
        }
        for i, r in enumerate(regions)
    ]
    return {
        "images": [{"id": numbers[r["image"]], "file_name": r["image"], "verdict": r["verdict"]} for r in rows],
        "annotations": notes,
        "categories": [{"id": 1, "name": "anomaly"}],
    }


def collect_images(images: Sequence[Path], recursive: bool = False) -> list[Path]:
    """Expand folders into the images directly below them, or anywhere in them; what is named keeps its order, once.

    A DataError says that a path does not exist, or a folder holds no image.
    """
    paths: dict[Path, None] = {}
    for path in map(Path, images):
        if not path.exists():
            raise DataError(f"image {path} does not exist; check the path")
        found = list_images(path, recursive) if path.is_dir() else [path]
        if not found:
            rest = but_holds(path, recursive)
            raise DataError(f"folder {path} holds no image{rest}; give image files or a folder of them")
        paths |= dict.fromkeys(found)
    return list(paths)


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Return a file name per image: its stem, with its folder and a number where that would collide."""
    names: dict[str, None] = {}
    stems = Counter(p.stem for p in paths)
    for path in paths:
        name = path.stem if stems[path.stem] == 1 else f"{path.parent.name}_{path.stem}"
        name = escaped.name(name).encode()[:LONGEST_NAME].decode(errors="ignore")
        candidate, number = name, 2
        while candidate in names:
            candidate, number = f"{name}_{number}", number + 1
        names[candidate] = None
    return list(names)


def not_judged(table: pd.DataFrame) -> str:
    """Say which images were not judged; empty if all were."""
    bad = table[table["verdict"] == ERROR]
    reasons = [str(error) for error in bad["error"]]
    return f"{len(bad)} of {len(table)} images could not be judged: {few(reasons)}" if len(bad) else ""
