"""Methods to compare side by side (Tables 1 and 2), all behind :class:`~mlffn_lite.base.Detector`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ..base import Detector
from ..errors import ConfigError
from ..runs import CHECKPOINT, load_tensors

METHODS = {
    "mlffn": "mlffn_lite.detector:AnomalyDetector",
    "patchcore": "mlffn_lite.peers.patchcore:PatchCore",
    "patchcore_fine": "mlffn_lite.peers.patchcore:FinePatchCore",
    "padim": "mlffn_lite.peers.padim:PaDiM",
}
"""Where the class of every method is, in the order of tables; its constructor takes a ``Config`` alone."""


def load_method(name: str) -> type[Detector]:
    """Return the class of a method; ConfigError if there is none of that name."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    module, _, cls = METHODS[name].partition(":")
    found: type[Detector] = getattr(import_module(module), cls)
    return found


def load_run(folder: str | Path, *, device: str | None = None) -> Detector:
    """Read the run folder of any method; arguments and errors as in :meth:`~mlffn_lite.base.Detector.load`."""
    checkpoint = Path(folder) / CHECKPOINT
    state = load_tensors(checkpoint)[1] if checkpoint.is_file() else {}
    return load_method(state.get("method", "mlffn")).load(folder, device=device)
