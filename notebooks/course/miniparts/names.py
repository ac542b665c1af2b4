"""The names of MiniParts' pictures: how many there are, and how hard a defect is to see."""

from __future__ import annotations

from collections.abc import Iterator

from mlffn_lite.datasets.miniparts import CATEGORIES
from mlffn_lite.errors import DataError

COUNTS = {"train": 60, "good": 20, "defect": 10}  # pictures: train/good, test/good, each test/<defect>

Name = tuple[str, str, str, int]  # category, split, defect, index

_LEVELS = ("hard", "medium", "medium", "obvious")


def difficulty(category: str, defect: str, index: int) -> str:
    """Level from which a defect's size and contrast are drawn: a quarter each hard and obvious, half medium.

    Parameters
    ----------
    category, defect : str
        Names as in `CATEGORIES`.
    index : int
        Number of the picture.

    Returns
    -------
    str
        ``"hard"``, ``"medium"`` or ``"obvious"``.
    """
    check_name(category, "test", defect, index)
    return _LEVELS[(index + CATEGORIES[category].index(defect)) % len(_LEVELS)]


def check_name(category: str, split: str, defect: str, index: int) -> None:
    """Raise DataError for a name that no picture has."""
    if category not in CATEGORIES:
        raise DataError(f"MiniParts has no category {category!r}; it has {', '.join(CATEGORIES)}")
    known = {"train": ("good",), "test": ("good", *CATEGORIES[category])}
    if split not in known:
        raise DataError(f"MiniParts has no split {split!r}; it has train and test")
    if defect not in known[split]:
        raise DataError(f"MiniParts has no {category}/{split}/{defect}; there are {', '.join(known[split])}")
    if index < 0:
        raise DataError(f"the number of a picture is {index}; it must be 0 or more")


def pictures(category: str) -> Iterator[Name]:
    """Name every picture of a category."""
    for index in range(COUNTS["train"]):
        yield category, "train", "good", index
    for index in range(COUNTS["good"]):
        yield category, "test", "good", index
    for defect in CATEGORIES[category]:
        for index in range(COUNTS["defect"]):
            yield category, "test", defect, index
