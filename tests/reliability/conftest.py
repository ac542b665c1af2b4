"""A small run, and how hard to try: a minute or two in all, or ``--torture`` for as long as it takes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.detector import AnomalyDetector

CONFIG = Config.preset(
    "tiny",
    method="density",
    density={"rank": 4},
    model={"width": 16},
    texture={"tem_levels": 8, "scales": [1, 2]},
    train={"steps": 2, "batch": 2, "device": "cpu"},
)


ROUND = int(os.environ.get("TORTURE", "0"))
"""Which round of `make torture` this is; each draws other cases. 0 is the few of `make test`, always the same."""


@pytest.fixture(scope="session")
def tries() -> int:
    """How many random cases a test draws."""
    return 1000 if ROUND else 40


@pytest.fixture
def draws() -> np.random.Generator:
    """What a test draws its random cases from."""
    return np.random.default_rng(ROUND)


if ROUND:
    settings.register_profile("torture", max_examples=2000, deadline=None)
    settings.load_profile("torture")


@pytest.fixture(scope="session")
def run(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that is measured; tests copy it before they harm it."""
    place = tmp_path_factory.mktemp("reliability") / "run"
    AnomalyDetector(CONFIG).fit(folder, out=place, progress=False).complete_run(place, folder)
    return place


@pytest.fixture(scope="session")
def trained(folder: AnomalyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with an optimiser's state, stopped before its end."""
    from mlffn_lite.network import MLFFN
    from mlffn_lite.training import Trainer

    place = tmp_path_factory.mktemp("reliability") / "trained"
    config = CONFIG.replace(method="mlffn")
    Trainer(MLFFN(config.model, config.texture), config, folder=place).fit(folder.train, progress=False)
    return place
