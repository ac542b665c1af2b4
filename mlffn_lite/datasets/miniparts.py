"""MiniParts, the small synthetic set in MVTec AD's layout that comes with the library: its names and its place."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import DataError
from .folder import few

CATEGORIES: dict[str, tuple[str, ...]] = {
    "weave": ("broken_thread", "fibre", "hole", "stain"),
    "flange": ("dent", "rust", "scratch", "undrilled"),
    "pills": ("chip", "crack", "crumbs", "spot"),
}
MANIFEST = "MANIFEST.sha256"


def miniparts_path() -> Path:
    """Folder of the set: the repository's, or else the one that was installed with the library.

    Returns
    -------
    Path
        Folder that holds the categories.

    Raises
    ------
    DataError
        If the set is in neither place.
    """
    here = Path(__file__).resolve().parent
    places = (here.parents[1] / "data" / "miniparts", here / "miniparts_data")
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    raise DataError(f"the images of MiniParts are not in {places[0]} or {places[1]}; install mlffn-lite again")


def verify_manifest(root: Path) -> None:
    """Check every file of a set against its manifest.

    Parameters
    ----------
    root : Path
        Folder of the set, with the categories and the manifest.

    Raises
    ------
    DataError
        Naming the files that differ, are missing or are extra, or the manifest if it is absent or unreadable.
    """
    root = Path(root)
    manifest = root / MANIFEST
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise DataError(f"{manifest} is missing or unreadable; restore it") from error
    files = (path for path in root.rglob("*") if path.is_file() and path != manifest)
    present = {path.relative_to(root).as_posix(): path for path in files}
    faults = [f"{name} is missing" for name in sorted(listed.keys() - present.keys())]
    faults += [f"{name} is extra" for name in sorted(present.keys() - listed.keys())]
    both = sorted(listed.keys() & present.keys())
    faults += [f"{name} differs" for name in both if sha256(present[name]) != listed[name]]
    if faults:
        raise DataError(f"{root} does not match its manifest: {few(faults)}; restore it")


def sha256(path: Path) -> str:
    """Checksum of a file, as a manifest lists it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
