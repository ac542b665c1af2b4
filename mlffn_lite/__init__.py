"""Multi-level feature fusion network for image anomaly detection (Tang et al., 2025)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .datasets.folder import AnomalyFolder
    from .detector import AnomalyDetector, Prediction
    from .errors import MlffnError
    from .network import MLFFN, MLFFNOutput

__all__ = ["MLFFN", "AnomalyDetector", "AnomalyFolder", "Config", "MLFFNOutput", "MlffnError", "Prediction"]
__version__ = "0.1.0"

_HOMES = {
    "AnomalyDetector": "detector",
    "AnomalyFolder": "datasets.folder",
    "Config": "config",
    "MLFFN": "network",
    "MLFFNOutput": "network",
    "MlffnError": "errors",
    "Prediction": "detector",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, and ``mlffn --help`` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
