"""Methods, kinds of pseudo-anomalies, terms of the loss, backbones and data sources by name, one's own among them.

A name is one of :data:`BUILT_IN`, an entry point of the group ``mlffn_lite.<group>`` of an installed package, an import
path ``"package.module:Name"``, or what :func:`register` was given in this process. Names travel as text in
configurations, and so reach checkpoints and other processes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, FunctionType
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
    "terms": {},  # besides those of equation (8)
    "backbones": {},  # besides every name that build_backbone knows
    "sources": {"folder": "mlffn_lite.datasets.folder:AnomalyFolder"},
}
"""Import paths by group and name, in the order of tables."""

OWN: dict[str, dict[str, Any]] = {group: {} for group in BUILT_IN}
"""What was registered in this process, by group and name."""


def register(group: str, name: str, found: Any) -> None:
    """Give a class or function of one's own a name, for as long as this process lives: in a notebook or a script.

    What other processes are to find needs an import path or an entry point. A name that is registered again stands for
    the new one.

    Parameters
    ----------
    group : {"methods", "kinds", "terms", "backbones", "sources"}
        What it is.
    name : str
        A new name, without a colon.
    found : class or function
        What :func:`find` is to return for it.

    Raises
    ------
    ConfigError
        If there is no such group, the name is taken or no word, or ``found`` cannot be called.
    """
    if group not in BUILT_IN:
        raise ConfigError(f"cannot register a name among {group!r}; choose one of {', '.join(BUILT_IN)}")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ConfigError(f"cannot register the {group[:-1]} {name!r}; choose a name of letters")
    if ":" in name or name in BUILT_IN[group] or name in _installed(group):
        raise ConfigError(f"cannot register the {group[:-1]} {name!r}; choose a name without a colon that is not taken")
    if not callable(found):
        raise ConfigError(f"cannot register the {group[:-1]} {name!r}: {found!r} is neither a class nor a function")
    OWN[group][name] = found


def names(group: str) -> list[str]:
    """Return the names of a group: built in, of installed packages, then those registered here."""
    return list(BUILT_IN[group] | _installed(group) | OWN[group])


def known(group: str, name: str) -> bool:
    """Whether a name is one of a group's, or has the form of an import path; nothing is imported."""
    return name in BUILT_IN[group] or ":" in name or name in OWN[group] or name in _installed(group)


def find(group: str, name: str) -> Any:
    """Return the class or function that a name stands for.

    Modules beside the script or in the current folder are found, also by the command ``mlffn``.

    Parameters
    ----------
    group : {"methods", "kinds", "terms", "backbones", "sources"}
        What it is.
    name : str
        A name of :func:`names`, or an import path.

    Raises
    ------
    ConfigError
        If there is nothing of that name, or importing it fails.
    """
    if name in OWN[group]:
        return OWN[group][name]
    path = BUILT_IN[group].get(name) or _installed(group).get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"unknown {group[:-1]} {name!r}; {choices(group)}")
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module of one's own may raise anything, or be a script that ends
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(
            f"cannot import the {group[:-1]} {name!r} ({why}); check the path package.module:Name"
        ) from error
    return found


def choices(group: str) -> str:
    """Say what may stand where a name is unknown."""
    known = ", ".join(names(group))
    return f"choose from {known}, or give one as package.module:Name" if known else "give one as package.module:Name"


def source(group: str, name: str) -> str:
    """Return the code of one's own that a name stands for, so that a result can be told from one of other code.

    That is the class or function that was registered, with what it names of the same notebook, or the module of an
    import path; what these call of other files is not part of it. Empty for what is built in or installed, and for what
    is not there.
    """
    if name in OWN[group]:
        return _code(OWN[group][name])
    if ":" not in name or name.startswith(f"{__package__}."):
        return ""
    try:
        return _code(sys.modules[find(group, name).__module__])
    except (ConfigError, AttributeError, KeyError):  # whoever uses it will say so
        return ""


def name_of(group: str, found: type) -> str:
    """Return the name under which :func:`find` gives a class back: a known one, or its import path."""
    if own := next((name for name, value in OWN[group].items() if value is found), None):
        return own
    path = f"{found.__module__}:{found.__qualname__}"
    for table in (lambda: BUILT_IN[group], lambda: _installed(group)):  # packages are only searched where they must be
        if name := next((name for name, value in table().items() if value == path), None):
            return name
    return path


def _installed(group: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=f"mlffn_lite.{group}")}


def _code(found: Any) -> str:
    """Return the text of a module, class or function, and of what it names that was typed in a notebook too."""
    known: dict[int, str] = {}

    def add(found: Any) -> None:
        known[id(found)] = _text(found)
        named: Iterable[Any] = ()
        if isinstance(found, FunctionType):
            named = (found.__globals__.get(name) for name in found.__code__.co_names)
        elif isinstance(found, type):
            named = (*found.__bases__, *(getattr(value, "__func__", value) for value in vars(found).values()))
        for value in named:
            if id(value) not in known and _typed(value):
                add(value)

    add(found)
    return "\n".join(known.values())


def _typed(found: Any) -> bool:
    """Whether this is a class or function of no file: of a notebook, or of code that was executed."""
    module = getattr(found, "__module__", None) if isinstance(found, FunctionType | type) else "builtins"
    return module != "builtins" and getattr(sys.modules.get(str(module)), "__file__", None) is None


def _text(found: Any) -> str:
    """Return the text of code of one's own; of what has none, such as a class of a notebook, what it computes with."""
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):
        if isinstance(found, FunctionType):
            return repr(_parts(found.__code__))
        plain = {k: v for k, v in vars(found).items() if k[:2] != "__" and isinstance(v, int | float | str | tuple)}
        return repr(sorted(plain.items()))


def _parts(code: CodeType) -> tuple[Any, ...]:
    """Return what a function computes, without addresses, which differ from process to process."""
    constants = [_parts(c) if isinstance(c, CodeType) else c for c in code.co_consts]
    return code.co_code.hex(), code.co_names, code.co_varnames, constants
