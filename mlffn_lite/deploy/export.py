"""Runs as files that other programs compute: ONNX, OpenVINO, and torch's own exported programs."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__
from ..detector import AnomalyDetector, fitted
from ..errors import ConfigError, MlffnError, extra, first_line
from ..storage import write_atomic
from .engine import KEY, SUFFIXES, digest, open_model

RUNNER = "run.py"
"""Written beside an ONNX file: judges images with it, without this library and without torch."""
TOLERANCE = 1e-4
"""Largest deviation of an exported map from the run's, as a share of the map's largest value."""
TIE = 1e-5
"""Raises an exported threshold, as a share: rounding makes no alarm of the image that the threshold was taken from."""
_ONNX = [("onnx", "export"), ("onnxscript", "export")]
_NEEDED = {"onnx": [*_ONNX, ("onnxruntime", "export")], "openvino": [*_ONNX, ("openvino", "openvino")], "torch": []}
"""Packages, and the extras that bring them."""


class Exported(NamedTuple):
    """What was written, and the largest deviation of its map from the run's, as a share, on an image of noise."""

    path: Path
    deviation: float


class ScoreGraph(nn.Module):
    """A detector as a module: images (1, H, W, 3) uint8 of its size, RGB, to score map (1, H, W) and score (1,)."""

    def __init__(self, detector: AnomalyDetector) -> None:
        super().__init__()
        self.detector = detector
        self.view = detector.view
        self.view.ignored(detector.shape)  # makes what is made at first use, as the next line does
        with torch.no_grad():
            detector._score(torch.zeros(1, 3, *detector.shape))
        self.modules_of_detector = nn.ModuleList(_modules(detector, set()))  # whose weights are weights, not constants
        self.requires_grad_(False)  # which weights that were first used in inference mode could not have

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score an image."""
        seen = self.view.fill(image.permute(0, 3, 1, 2))
        maps = self.view.quiet(self.detector._score(seen.float() / 255))
        return maps, maps.flatten(1).amax(1)


def _modules(part: Any, seen: set[int]) -> Iterator[nn.Module]:
    """Yield the modules that a detector has, those of its members and folded backbones too."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, nn.Module):
        yield part
        for module in part.modules():
            yield from getattr(module, "_folded", ())
    elif isinstance(part, dict | AnomalyDetector):
        for value in (part if isinstance(part, dict) else vars(part)).values():
            yield from _modules(value, seen)


def metadata(detector: AnomalyDetector, run: Path) -> dict[str, Any]:
    """Return what an exported file says of itself.

    Returns
    -------
    dict
        ``method``, ``version`` of this library, ``checkpoint`` (SHA-256 of the run's), ``shape`` (height and width that
        what is looked at is resized to, bilinear with antialiasing as Pillow does it), ``box`` (of the photograph, its
        left, top, right and bottom; null for all of it), ``ignore`` (PNG in hexadecimal digits, of the photograph's
        ``size``, white where pixels become grey before that; empty for none), ``threshold``, ``min_area`` and
        ``min_peak`` (a region counts whose pixels exceed the first, that has so many and reaches the last),
        ``calibration`` (colours from ``low`` to ``high``, and where the threshold is from), ``view`` and ``config``,
        the run's own.
    """
    calibration = fitted(detector)
    threshold = calibration.threshold + TIE * abs(calibration.threshold)
    box = detector.view.box
    peak = threshold if calibration.min_peak is None else max(threshold, calibration.min_peak)
    return {
        "method": detector.method,
        "version": __version__,
        "checkpoint": digest(run),
        "shape": list(detector.shape),
        "box": box and [box[0], box[1], box[0] + box[2], box[1] + box[3]],
        "size": list(detector.view.size) if detector.view.size else None,
        "ignore": detector.view.png.hex(),
        "threshold": threshold,
        "min_area": calibration.min_area,
        "min_peak": peak,
        "view": detector.view.to_dict(),
        "calibration": dataclasses.asdict(dataclasses.replace(calibration, threshold=threshold)),
        "config": detector.config.to_dict(),
    }


def export(run: Path, form: str = "onnx", path: Path | None = None) -> Exported:
    """Write a run as a file that other programs compute, and check it against the run.

    Parameters
    ----------
    run : Path
        A finished run folder.
    form : {"onnx", "openvino", "torch"}
        ``.onnx`` with ``run.py`` beside it; ``.xml`` and ``.bin``; or ``.pt2`` for ``torch.export.load``.
    path : Path, optional
        The file; by default ``model`` with the format's suffix, in the run.

    Raises
    ------
    ConfigError
        If the format is unknown, the file's suffix is not its, or the method cannot be exported.
    CheckpointError
        If the run has not finished.
    MlffnError
        If a file cannot be written, or the exported model gives other scores than the run.
    """
    if form not in SUFFIXES:
        raise ConfigError(f"--format {form} is unknown; choose one of {', '.join(SUFFIXES)}")
    path = path or run / f"model{SUFFIXES[form]}"
    if path.suffix != SUFFIXES[form]:
        raise ConfigError(
            f"a file of the format {form} ends in {SUFFIXES[form]}, not {path.suffix or 'nothing'}: {path}"
        )
    code = (Path(__file__).parent / "runner.py").read_text("utf-8")
    if form == "onnx":
        _check_runner(path.parent / RUNNER, code)
    for package, name in _NEEDED[form]:
        with extra(name):
            import_module(package)
    detector = AnomalyDetector.load(run, device="cpu")
    if detector.tiles:
        raise ConfigError(f"{run} scores in tiles, which one graph does not; train with data.tile = 0, or use torch")
    program, image = _program(detector)
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / path.name
        _WRITERS[form](program, image, draft, json.dumps(metadata(detector, run)))
        deviation = _deviation(detector, program, draft)
        if not deviation <= TOLERANCE:
            raise MlffnError(
                f"the exported {form} model deviates from the run by {deviation:.1e} of its map; use torch"
            )
        for file in sorted(draft.parent.iterdir()):
            write_atomic(path.parent / file.name, file.read_bytes())
    if form == "onnx":
        write_atomic(path.parent / RUNNER, code)
    return Exported(path, deviation)


def _check_runner(place: Path, code: str) -> None:
    """Refuse to replace a file of another origin."""
    if place.exists() and place.read_bytes()[:60] != code.encode()[:60]:
        raise ConfigError(f"{place} is not from mlffn, and export would write its own there; choose another folder")


def _program(detector: AnomalyDetector) -> tuple[torch.export.ExportedProgram, Tensor]:
    """Trace a detector's scoring of one image."""
    image = torch.randint(256, (1, *detector.shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    graph = ScoreGraph(detector)
    try:
        with torch.no_grad(), _silent():
            return torch.export.export(graph, (image,), strict=False), image
    except Exception as error:  # of many kinds, by what the method does
        raise ConfigError(f"the method {detector.method} cannot be exported ({first_line(error)})") from error


def _write_onnx(program: torch.export.ExportedProgram, image: Tensor, path: Path, meta: str) -> None:
    try:
        with _silent():
            made = torch.onnx.export(
                program.run_decompositions(_PLAIN),
                (image,),
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=["map", "score"],
            )
            assert made is not None
            made.model.metadata_props[KEY] = meta
            made.save(path, external_data=False)
    except Exception as error:
        raise ConfigError(f"it cannot be written as ONNX ({first_line(error)})") from error


def _bags(table: Tensor, index: Tensor, offsets: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum rows of a table, weighted, in bags of one size, as :mod:`~mlffn_lite.texture` does."""
    weights: Tensor = others[3]
    rows = table[index].view(len(offsets), -1, table.shape[1]) * weights.view(len(offsets), -1, 1)
    return rows.sum(1), index, index, index


# Torch's own becomes a loop over pixels in ONNX, which OpenVINO does not read.
_PLAIN: dict[Any, Any] = {torch.ops.aten.embedding_bag.padding_idx: _bags}


def _write_openvino(program: torch.export.ExportedProgram, image: Tensor, path: Path, meta: str) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as place:
        onnx = Path(place) / "model.onnx"
        _write_onnx(program, image, onnx, meta)
        try:
            model = openvino.convert_model(onnx)
        except RuntimeError as error:
            raise ConfigError(f"OpenVINO does not read it ({first_line(error)}); export it as onnx") from error
    model.set_rt_info(meta, [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_torch(program: torch.export.ExportedProgram, image: Tensor, path: Path, meta: str) -> None:
    with _silent():
        torch.export.save(program, path, extra_files={f"{KEY}.json": meta})


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}


@torch.inference_mode()
def _deviation(detector: AnomalyDetector, program: torch.export.ExportedProgram, path: Path) -> float:
    """Return the largest difference from the run's map of an image of noise, as a share of its largest value."""
    noise = torch.randint(256, (1, *detector.shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = detector.predict(noise.permute(0, 3, 1, 2)).maps.numpy()
    if path.suffix == SUFFIXES["torch"]:
        found = program.module()(noise)[0].numpy()
    else:
        found = open_model(path)[0](noise.numpy())
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporters' notes on their own work from the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
