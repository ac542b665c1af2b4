"""Data as people have them: folders of any names, folders in folders, and lists in CSV files, as a :class:`Layout`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .folder import Entry, Layout, but_holds, few, folders_in, list_images, mask_of, masks_in, scan

HELD = 5
"""Where nothing says which good images are for testing, every fifth is, if there are defective ones."""
_GOOD, _BAD = {"good", "ok", "normal", "0"}, {"bad", "nok", "ng", "anomalous", "defective", "1"}


def find_layout(root: str | Path, good: str = "", bad: Sequence[str] = (), recursive: bool = False) -> Layout:
    """List the files of a data folder or of a CSV list, without opening the images.

    Parameters
    ----------
    root : path
        A folder, or a CSV file with the columns ``path`` and ``label``, and perhaps ``mask`` and ``split``.
    good : str
        Name of the folder of good images in ``root``; without it and ``bad``, the layout of MVTec AD or a plain folder.
    bad : sequence of str
        Names of the folders of defective images, each a kind of defect. Then every fifth good image, by name, is for
        testing and the others are for training.
    recursive : bool
        Read images in sub-folders too.

    Raises
    ------
    DataError
        If a folder or file is missing or empty, or a line of the list cannot be understood.
    """
    root = Path(root)
    if root.suffix.lower() == ".csv" and root.is_file():
        if good or bad:
            raise DataError(f"{root} says itself which images are good; leave out data.good and data.bad")
        return _from_list(root)
    if not good and not bad:
        return scan(root, recursive)
    if not good:
        raise DataError("data.bad needs data.good too: the folder of the good images")
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist; check the path")
    _check_names(root, [good, *bad], recursive)
    kept, held = _shared([Entry(p) for p in _images(root, good, recursive)], testing=bool(bad))
    test = held
    for name in bad:
        defect, masks = Path(name).name, masks_in(root / "ground_truth" / name, recursive)
        for path in _images(root, name, recursive):
            test.append(Entry(path, "bad" if defect == "good" else defect, mask_of(path, root / name, masks)))
    return Layout(root, kept, test, [])


def searched_folders(root: str | Path, good: str = "", bad: Sequence[str] = ()) -> list[Path]:
    """Return the folders that :func:`find_layout` finds images in, but for those of masks; none of a CSV list."""
    root = Path(root)
    if good or bad:
        found = [root / name for name in (good, *bad)]
    elif (root / "train").exists() or (root / "test").exists():
        found = [root / "train/good", root / "validation/good", *folders_in(root / "test")]
    else:
        found = [root]
    return [place for place in found if place.is_dir()]


def _check_names(root: Path, names: Sequence[str], recursive: bool) -> None:
    """Refuse names of folders by which an image would be good and bad, be its own mask, or lie elsewhere."""
    places = [(root / name).resolve() for name in names]
    for i, (name, place) in enumerate(zip(names, places, strict=True)):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{name} must be the name of a folder in {root}")
        for other, beside in zip(names[:i], places[:i], strict=True):
            if place == beside:
                raise DataError(f"{name} is named twice among good and bad folders; name each once")
            if recursive and (place in beside.parents or beside in place.parents):
                raise DataError(
                    f"of {other} and {name} one lies in the other; name folders apart, or leave --recursive"
                )


def unused_folders(root: str | Path, good: str, bad: Sequence[str]) -> list[str]:
    """Say which folders with images beside the named ones are not read; nothing where none are named."""
    root, named = Path(root), {*(Path(root, n) for n in (good, *bad)), Path(root, "ground_truth")}
    if not good or not root.is_dir():
        return []
    others = [p.name for p in sorted(root.iterdir()) if p.is_dir() and p not in named and list_images(p, True)]
    return [f"left out {len(others)} folders that are neither good nor bad: {few(others)}"] if others else []


def _images(root: Path, name: str, recursive: bool) -> list[Path]:
    folder = root / name
    if not folder.is_dir():
        there = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        raise DataError(f"{root} has no folder {name}; it holds {few(there) or 'none'}")
    found = list_images(folder, recursive)
    if not found:
        more = "" if recursive else ", or read its sub-folders with --recursive"
        raise DataError(f"{folder} holds no image{but_holds(folder, recursive)}; put some there{more}")
    return found


def _shared(good: list[Entry], *, testing: bool) -> tuple[list[Entry], list[Entry]]:
    """Return good images for training, and for testing where there are defective ones."""
    held = good[HELD - 1 :: HELD] if testing else []
    return [e for e in good if e not in held], held


def _from_list(path: Path) -> Layout:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
            rows = [{k: (row[name] or "").strip() for k, name in columns.items()} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error})") from error
    if missing := {"path", "label"} - columns.keys():
        raise DataError(f"{path} has no column {min(missing)}; it needs path and label, and may have mask and split")
    splits: dict[str, list[Entry]] = {"train": [], "test": [], "validation": [], "": []}
    for number, row in enumerate(rows, 2):
        split, entry = _entry(row, path, number)
        splits[split].append(entry)
    seen = [e.path for entries in splits.values() for e in entries]
    if len(set(seen)) < len(seen):
        raise DataError(f"{path} lists {next(p for p in seen if seen.count(p) > 1)} twice; list each image once")
    kept, held = _shared([e for e in splits[""] if not e.label], testing=any(e.label for e in splits[""]))
    train, test = [*splits["train"], *kept], [*splits["test"], *held, *(e for e in splits[""] if e.label)]
    if not train:
        raise DataError(f"{path} lists no good image to train on; label some good")
    return Layout(path.parent, train, sorted(test, key=lambda e: e.label), [], [e.path for e in splits["validation"]])


def _entry(row: dict[str, str], source: Path, number: int) -> tuple[str, Entry]:
    """Return the split and the entry that a line of a list means."""
    where, label, split = f"{source}, line {number}", row["label"].lower(), row.get("split", "").lower()
    if not row["path"] or not label:
        raise DataError(f"{where}: no {'label' if row['path'] else 'path'}; fill it in or remove the line")
    if split not in ("", "train", "test", "validation"):
        raise DataError(f"{where}: split {split!r} is unknown; choose train, test or validation")
    files = {k: source.parent / row[k] for k in ("path", "mask") if row.get(k)}
    for file in files.values():
        if not file.is_file():
            raise DataError(f"{where}: {file} does not exist")
    defect = "good" if label in _GOOD else "defect" if label in _BAD else row["label"]
    if defect != "good" and split in ("train", "validation"):
        raise DataError(f"{where}: a defective image in {split}; only good ones are learned from")
    if files.get("mask") == files["path"]:
        raise DataError(f"{where}: the image is named as its own mask; give the mask's file, or none")
    if defect == "good" and "mask" in files:
        raise DataError(f"{where}: a good image has no mask; remove it, or label the defect")
    return split, Entry(files["path"], defect, files.get("mask"))
