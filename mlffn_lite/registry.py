"""Methods, kinds of pseudo-anomalies, backbones and data sources by name, so that one's own stand beside the built-in.

A name is one of :data:`BUILT_IN`, an entry point of the group ``mlffn_lite.<group>`` of an installed package, or an
import path ``"package.module:Name"``. Names travel as text in configurations,
and so reach checkpoints and other processes.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from .errors import ConfigError

BUILT_IN: dict[str, dict[str, str]] = {
    "methods": {
        "mlffn": "mlffn_lite.mlffn:MLFFNDetector",
        "density": "mlffn_lite.beyond.density:DensityDetector",
        "memory": "mlffn_lite.beyond.memory:MemoryDetector",
        "residual": "mlffn_lite.beyond.residual:ResidualDetector",
        "ensemble": "mlffn_lite.beyond.ensemble:EnsembleDetector",
        "ensemble_trained": "mlffn_lite.beyond.ensemble:TrainedEnsemble",
        "patchcore": "mlffn_lite.peers.patchcore:PatchCore",
        "patchcore_fine": "mlffn_lite.peers.patchcore:FinePatchCore",
        "padim": "mlffn_lite.peers.padim:PaDiM",
        "us": "mlffn_lite.peers.us:UninformedStudents",
        "psvdd": "mlffn_lite.peers.psvdd:PatchSVDD",
        "fcdd": "mlffn_lite.peers.fcdd:FCDD",
        "cutpaste": "mlffn_lite.peers.cutpaste:CutPaste",
        "rd": "mlffn_lite.peers.rd:ReverseDistillation",
        "efficientad": "mlffn_lite.peers.efficientad:EfficientAD",
    },
    "kinds": {
        "confetti": "mlffn_lite.pseudo:ConfettiNoise",
        "cutpaste": "mlffn_lite.pseudo:CutPaste",
        "scar": "mlffn_lite.pseudo:CutPasteScar",
        "blemish": "mlffn_lite.beyond.blemish:Blemish",
        "defects": "mlffn_lite.beyond.known_defects:KnownDefects",
    },
    "backbones": {},  # besides every name that build_backbone knows
    "sources": {"folder": "mlffn_lite.datasets.folder:AnomalyFolder"},
}
"""Import paths by group and name, in the order of tables."""


def names(group: str) -> list[str]:
    """Return the names of a group: built in, then those of installed packages."""
    return list(BUILT_IN[group] | _installed(group))


def known(group: str, name: str) -> bool:
    """Whether a name is one of a group's, or has the form of an import path; nothing is imported."""
    return name in BUILT_IN[group] or ":" in name or name in _installed(group)


def find(group: str, name: str) -> Any:
    """Return the class or function that a name stands for.

    Modules beside the script or in the current folder are found, also by the command ``mlffn``.

    Parameters
    ----------
    group : {"methods", "kinds", "backbones", "sources"}
        What it is.
    name : str
        A name of :func:`names`, or an import path.

    Raises
    ------
    ConfigError
        If there is nothing of that name, or importing it fails.
    """
    path = BUILT_IN[group].get(name) or _installed(group).get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon or not module or not attribute:
        known = ", ".join(names(group))
        raise ConfigError(f"unknown {group[:-1]} {name!r}; choose from {known}, or give one as package.module:Name")
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of one's own may raise anything
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(
            f"cannot import the {group[:-1]} {name!r} ({why}); check the path package.module:Name"
        ) from error
    return found


def name_of(group: str, found: type) -> str:
    """Return the name under which :func:`find` gives a class back: a known one, or its import path."""
    path = f"{found.__module__}:{found.__qualname__}"
    for table in (lambda: BUILT_IN[group], lambda: _installed(group)):  # packages are only searched where they must be
        if name := next((name for name, value in table().items() if value == path), None):
            return name
    return path


def _installed(group: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=f"mlffn_lite.{group}")}
