"""Grids: the configurations that a table puts side by side, and the cells that it takes to fill it.

Tables 3 and 4, a comparison of methods (as Tables 1 and 2), and any other grid are the same thing: named columns, each
a configuration, over data sets and seeds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import escaped, registry
from ..config import Config
from ..datasets.miniparts import CATEGORIES, miniparts_path
from ..datasets.sources import open_source
from ..errors import ConfigError, DataError
from .cell import Cell, digest_of, own_code, with_train

ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "baseline": {
        "model": {"self_calibration": False, "texture": False, "score": "distance"},
        "loss": {"score": 0.0, "consistency": 0.0},
    },
    "+self_calibration": {"model": {"self_calibration": True}},
    "+stl": {"model": {"texture": True}},
    "+score_constraint": {"model": {"score": "learned"}, "loss": {"score": 1.0}},
    "+consistency": {"loss": {"consistency": 1.0}},
}
"""Table 4: what each arm adds to the one before. The last is the whole method, at the ratio 0.5."""

FULL_ARM = "+consistency"
RATIOS = (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)
"""Table 3: the share of pseudo-anomalous training images, with the whole method."""

FULL_RATIO = 0.5
METHODS = ("us", "psvdd", "fcdd", "padim", "cutpaste", "rd", "efficientad", "mlffn")
"""Tables 1 and 2: the compared methods in the paper's order, a later one that people ask for, and the paper's own."""

_TABLES_SMALL: dict[str, dict[str, Any]] = {"data": {"size": 128}, "train": {"steps": 160}}
_METHODS_SMALL: dict[str, dict[str, Any]] = {"data": {"size": 128}}
SMALL = {"table3": _TABLES_SMALL, "table4": _TABLES_SMALL, "methods": _METHODS_SMALL, "compare": _METHODS_SMALL}
"""What ``--small`` changes in a preset, by table: the budget of ``make tables`` and of the committed results."""


class Place(NamedTuple):
    """A data folder, its fingerprint, and the digest of each file."""

    path: Path
    fingerprint: str
    digests: dict[str, str]


@dataclass(frozen=True)
class Grid:
    """Configurations side by side."""

    name: str
    """``"methods"`` (Tables 1 and 2), ``"table3"``, ``"table4"``, ``"compare"``, or the keys that vary; names the
    files of its tables."""
    label: str
    """The configuration that they share, for people: preset and changed values."""
    base: dict[str, Any]
    """That configuration, ``Config.to_dict()``."""
    columns: dict[str, dict[str, Any]]
    """Each one's whole configuration by its label, in the order of tables."""
    steps: Sequence[tuple[str, str]]
    """Pairs of columns whose differences are of interest."""

    @property
    def setting(self) -> str:
        """Digest of what its columns share: numbers of two settings do not compare."""
        return identity(self.base)


def study_config(preset: str, name: str = "table4", *, small: bool = False) -> Config:
    """Return a preset for the named grid; Tables 3 and 4 are about the paper's method, whatever the preset's."""
    config = Config.preset(preset)
    if name in ("methods", "table3", "table4"):
        config = config.replace(method="mlffn")
    return config.replace(**SMALL.get(name, SMALL["compare"])) if small else config


def arm_config(base: Config, arm: str) -> Config:
    """Return the configuration of an arm of Table 4."""
    if arm not in ARMS:
        raise ConfigError(f"unknown arm {arm!r}; choose one of {', '.join(ARMS)}")
    config = base.replace(method="mlffn", pseudo={"ratio": FULL_RATIO})
    for name in list(ARMS)[: list(ARMS).index(arm) + 1]:
        config = config.replace(**ARMS[name])
    return config


def ratio_config(base: Config, ratio: float) -> Config:
    """Return the configuration of a column of Table 3."""
    return arm_config(base, FULL_ARM).replace(pseudo={"ratio": ratio})


def table3(base: Config, label: str = "") -> Grid:
    """Return the grid of the paper's Table 3; a column is the share of pseudo-anomalies."""
    return _paper_table("table3", base, {f"{100 * r:g} %": ratio_config(base, r) for r in RATIOS}, label)


def table4(base: Config, label: str = "") -> Grid:
    """Return the grid of the paper's Table 4; a column is an arm of the ablation."""
    return _paper_table("table4", base, {arm: arm_config(base, arm) for arm in ARMS}, label)


def methods(base: Config, label: str = "") -> Grid:
    """Return the grid of the paper's Tables 1 and 2: the compared methods and the paper's, on the same images."""
    columns = {method: base.replace(method=method) for method in METHODS}
    return make_grid("methods", base, columns, [(other, METHODS[-1]) for other in METHODS[:-1]], label)


TABLES = {"methods": methods, "table3": table3, "table4": table4}


def _paper_table(name: str, base: Config, columns: Mapping[str, Config], label: str) -> Grid:
    if base != ratio_config(base, FULL_RATIO):
        varied = [f"{section}.{key}" for section, values in ARMS["baseline"].items() for key in values]
        words = ", ".join(sorted([*varied, "method", "pseudo.ratio"]))
        raise ConfigError(f"the studies vary {words} themselves; take them out of --set")
    names = list(columns)
    return make_grid(name, base, columns, [*itertools.pairwise(names), (names[0], names[-1])], label)


def compare(base: Config, methods: Sequence[str], label: str = "") -> Grid:
    """Return the grid of several methods with one configuration; the first one's differences from each of the others.

    A ConfigError says that a method is unknown, there is none, or one is named twice.
    """
    for method in methods:
        registry.find("methods", method)
    if not methods or len(set(methods)) < len(methods):
        known = ", ".join(registry.names("methods"))
        raise ConfigError(f"--methods {','.join(methods)} must name each method once; there are {known}")
    columns = {method: base.replace(method=method) for method in methods}
    return make_grid("compare", base, columns, [(other, methods[0]) for other in methods[1:]], label)


def vary(base: Config, methods: Sequence[str], axes: Sequence[str], label: str = "") -> Grid:
    """Return the grid of all combinations of methods and values; differences are those of neighbouring values.

    ``methods`` are names or import paths, ``axes`` such as ``"loss.gamma=1,2.5,5"``, values as in
    :meth:`Config.override`. A ConfigError says that one is unknown, or two columns are the same configuration.
    """
    levels = [_axis(text) for text in axes]
    keys = [key for key, _ in levels]
    if not keys or len(set(keys)) < len(keys):
        raise ConfigError("--vary must name each key once, with values: --vary loss.gamma=1,2.5,5")
    compare(base, methods)  # refuses what are no methods
    names: dict[tuple[int, ...], str] = {}
    columns: dict[str, Config] = {}
    for place in np.ndindex(len(methods), *(len(values) for _, values in levels)):
        words = [f"{key}={values[i]}" for (key, values), i in zip(levels, place[1:], strict=True)]
        method = methods[place[0]]
        names[place] = ", ".join([method] * (len(methods) > 1) + words)
        columns[names[place]] = base.replace(method=method).override(words)
    pairs = itertools.combinations(names, 2)
    neighbours = [(names[a], names[b]) for a, b in pairs if np.abs(np.subtract(a, b)).sum() == 1]
    return make_grid("+".join(keys), base, columns, neighbours, label)


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, rest = text.partition("=")
    values = [v.strip() for v in re.split(r",(?![^\[{]*[\]}])", rest)]  # commas inside brackets belong to values
    if (
        key.strip() in ("method", "train.seed", "train.device", "data.ignore")
        or not equals
        or len(set(values)) < len(values)
    ):
        raise ConfigError(
            f"cannot vary {text!r}; write section.key=1,2,3, each value once;"
            " methods, seeds and device are options, and so is the ignore mask"
        )
    return key.strip(), values


def make_grid(
    name: str, base: Config, columns: Mapping[str, Config], steps: Sequence[tuple[str, str]], label: str = ""
) -> Grid:
    """Return a grid of any configurations; refuses two that are the same, and seeds, which every column has."""
    configs = {column: config.to_dict() for column, config in columns.items()}
    seen: dict[str, str] = {}
    for column, config in configs.items():
        if (twin := seen.setdefault(identity(config), column)) != column:
            raise ConfigError(f"{twin} and {column} are the same configuration; name it once")
    if base.train.seed:
        raise ConfigError("train.seed is every column's; give --seeds")
    return Grid(name, label, base.to_dict(), configs, list(steps))


def identity(config: Mapping[str, Any]) -> str:
    """Return the digest of a stored configuration without seed and device, which vary inside a column."""
    return digest_of(with_train(config, seed=0, device="auto"))


def merge(grids: Sequence[Grid]) -> list[Grid]:
    """Join grids of one name and setting into one, so that what was asked for bit by bit stands in one table."""
    found: dict[tuple[str, str], Grid] = {}
    for grid in sorted(grids, key=lambda g: -len(g.columns)):
        old = found.setdefault((grid.name, grid.setting), grid)
        steps = list(dict.fromkeys([*old.steps, *grid.steps]))
        found[grid.name, grid.setting] = replace(old, columns=old.columns | grid.columns, steps=steps)
    return list(found.values())


def find_data(data: Sequence[Path], categories: Sequence[str] | None = None, *, source: str = "folder") -> list[Path]:
    """Return the folders of the chosen categories, all by default.

    ``data`` are categories in MVTec layout, or folders of them; without any, the bundled MiniParts. What a ``source``
    of one's own (``data.source``) opens is taken as it is.
    """
    present = [path for root in data for path in ([root] if source != "folder" else _categories(root))]
    present = present or [miniparts_path() / name for name in CATEGORIES]
    if categories is None:
        return present
    by_name = {p.name: p for p in present}
    if not categories:
        raise ConfigError(f"--categories names none; there are {', '.join(by_name)}")
    if unknown := [name for name in categories if name not in by_name]:
        raise ConfigError(f"unknown category {unknown[0]!r}; there are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(categories)]


def _categories(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root} does not exist or is not a folder; give a category or a folder of categories")
    found = [root] if (root / "train").is_dir() else sorted(p.parent for p in root.glob("*/train") if p.is_dir())
    if not found:
        raise DataError(f"{root} holds no category: no folder with train/good in it")
    return found


def open_places(folders: Sequence[Path], config: Config) -> dict[str, Place]:
    """Decode every file of the data folders and return them by name.

    A DataError says that one is missing, damaged, without good or without defective test images, or its name is taken.
    """
    places: dict[str, Place] = {}
    for path in (p.resolve() for p in folders):
        name = escaped.name(path.name)
        if name in places:
            raise DataError(f"{path} and {places[name].path} have the same name; rename one, tables go by it")
        parts = open_source(path, config.data, cache_bytes=0)  # decodes every file, keeps none
        if len(set(parts.test.labels().tolist())) < 2:
            raise DataError(f"{path} needs good and defective test images; put some into test/good and test/<defect>")
        places[name] = Place(path, parts.fingerprint(), parts.digests())
    return places


def plan(grids: Sequence[Grid], places: Mapping[str, Place], seeds: Sequence[int], threads: int = 1) -> list[Cell]:
    """List the cells of grids, seed by seed; what two of them share is there once."""
    unique: dict[str, Cell] = {}
    for seed, place, grid in itertools.product(seeds, places.values(), grids):
        for label, column in grid.columns.items():
            config = Config().replace(**with_train(column, seed=seed)).to_dict()
            cell = Cell(str(place.path), place.fingerprint, config, label, threads, code=own_code(config))
            unique.setdefault(cell.name, cell)
    return list(unique.values())


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``"3"`` (0, 1, 2) or ``"0,4,7"``."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text} must be how many, or integers with commas between, such as 0,1,2") from None
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text} must name at least one seed, none twice and none below 0")
    return seeds
