"""The grids of Tables 3 and 4: arms, ratios, and the cells that a study consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import Config
from ..datasets.folder import AnomalyFolder
from ..datasets.miniparts import CATEGORIES, miniparts_path
from ..errors import ConfigError, DataError
from .cell import Cell

ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "baseline": {},
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
STUDIES = ("table3", "table4")
SMALL: dict[str, dict[str, Any]] = {"data": {"size": 128}, "train": {"steps": 160}}
"""What `--small` changes in a preset."""

_BASELINE: dict[str, dict[str, Any]] = {
    "model": {"self_calibration": False, "texture": False, "score": "distance"},
    "loss": {"score": 0.0, "consistency": 0.0},
}


class Place(NamedTuple):
    """A data folder, its fingerprint, and the digest of each file."""

    path: Path
    fingerprint: str
    digests: dict[str, str]


def study_config(preset: str, *, small: bool = False) -> Config:
    """Return a preset as the studies use it: the paper's score and generators alone.

    The density of :mod:`~mlffn_lite.density` and blemishes, which the paper does not have, would hide what its own
    parts do; backbone, schedule and size are the preset's.
    """
    pseudo = {"confetti": 1.0, "cutpaste": 1.0, "scar": 0.0, "blemish": 0.0}
    config = Config.preset(preset, model={"density": 0.0}, pseudo=pseudo)
    return config.replace(**SMALL) if small else config


def arm_config(base: Config, arm: str) -> Config:
    """Return the configuration of an arm of Table 4."""
    if arm not in ARMS:
        raise ConfigError(f"unknown arm {arm!r}; choose one of {', '.join(ARMS)}")
    changes: dict[str, dict[str, Any]] = {section: dict(values) for section, values in _BASELINE.items()}
    for name, added in ARMS.items():
        for section, values in added.items():
            changes[section] |= values
        if name == arm:
            break
    return base.replace(**changes, pseudo={"ratio": FULL_RATIO})


def ratio_config(base: Config, ratio: float) -> Config:
    """Return the configuration of a column of Table 3."""
    return arm_config(base, FULL_ARM).replace(pseudo={"ratio": ratio})


def study_configs(study: str, base: Config) -> dict[str, Config]:
    """Return the configurations of a study by the name of their arm, or their ratio in percent."""
    if study not in STUDIES:
        raise ConfigError(f"unknown study {study!r}; choose one of {', '.join(STUDIES)}")
    if study == "table4":
        return {arm: arm_config(base, arm) for arm in ARMS}
    return {f"{100 * ratio:g}": ratio_config(base, ratio) for ratio in RATIOS}


def setting_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration without what varies inside a study: arm, ratio, seed and device."""
    base = Config().replace(**config).replace(train={"seed": 0, "device": "auto"})
    return arm_config(base, FULL_ARM).to_dict()


def columns_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return which column of which study a stored configuration is, empty if it belongs to none."""
    own = Config().replace(**config)
    return {s: name for s in STUDIES for name, arm in study_configs(s, own).items() if arm == own}


def find_data(data: Path | None, categories: Sequence[str] | None) -> list[Path]:
    """Return the folders of the chosen categories of a data set, all by default.

    Parameters
    ----------
    data : path, optional
        One category in MVTec layout, or a folder of them; by default the bundled MiniParts.
    categories : sequence of str, optional
        Names of folders in ``data``.
    """
    if data is not None and not data.is_dir():
        raise DataError(f"{data} does not exist or is not a folder; give --data a folder of categories")
    root = miniparts_path() if data is None else data
    if data is not None and (data / "train").is_dir():
        if categories is not None:
            raise ConfigError(f"{data} is one category; leave out --categories, or give the folder that it is in")
        return [data]
    present = list(CATEGORIES) if data is None else sorted(p.parent.name for p in root.glob("*/train") if p.is_dir())
    if not present:
        raise DataError(f"{root} holds no category: no folder with train/good in it")
    chosen = present if categories is None else list(dict.fromkeys(categories))
    if not chosen:
        raise ConfigError(f"--categories names none; there are {', '.join(present)}")
    for name in chosen:
        if name not in present:
            raise ConfigError(f"unknown category {name!r} in {root}; there are {', '.join(present)}")
    return [root / name for name in chosen]


def open_places(folders: Sequence[Path], config: Config) -> dict[str, Place]:
    """Decode every file of the data folders and return them by name.

    Raises
    ------
    DataError
        If a folder is missing, damaged, without good or without defective test images, or its name is taken.
    """
    places: dict[str, Place] = {}
    for path in (p.resolve() for p in folders):
        if path.name in places:
            raise DataError(f"{path} and {places[path.name].path} have the same name; rename one, tables go by it")
        parts = AnomalyFolder(path, **dataclasses.asdict(config.data), cache_bytes=0)  # decodes every file, keeps none
        if not len(parts.test):
            raise DataError(f"{path} has no test images; put some into test/good and test/<defect>")
        if len(set(parts.test.labels().tolist())) < 2:
            raise DataError(f"{path} needs good and defective test images; put some into test/good and test/<defect>")
        places[path.name] = Place(path, parts.fingerprint(), parts.digests())
    return places


def plan(
    studies: Sequence[str], places: Mapping[str, Place], base: Config, seeds: Sequence[int], label: str, threads: int
) -> list[Cell]:
    """List the cells of studies, seed by seed; what two studies share is there once.

    Raises
    ------
    ConfigError
        If a study is unknown, or ``base`` changes what the studies vary themselves.
    """
    if base != ratio_config(base, FULL_RATIO).replace(train={"seed": 0}):
        varied = {f"{section}.{key}" for added in ARMS.values() for section, keys in added.items() for key in keys}
        varied |= {"pseudo.ratio", "train.seed"}
        raise ConfigError(f"the studies vary {', '.join(sorted(varied))} themselves; take them out of --set")
    configs: dict[str, Config] = {}
    for study in studies:
        configs |= {cell.to_toml(): cell for cell in study_configs(study, base).values()}
    return [
        Cell("mlffn", str(place.path), place.fingerprint, c.replace(train={"seed": seed}).to_dict(), label, threads)
        for seed in seeds
        for place in places.values()
        for c in configs.values()
    ]


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
