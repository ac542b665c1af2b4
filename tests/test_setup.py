"""pyproject.toml, requirements.lock and environment.yml must describe one environment."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import mlffn_lite

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(python: str, platform: str = "linux") -> dict[str, Version]:
    """Versions that the lock pins for a Python version."""
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": platform}
    pins: dict[str, Version] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            pins[canonicalize_name(requirement.name)] = Version(pin.version)
    return pins


def wanted() -> list[Requirement]:
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    requirements = [Requirement(r) for r in PROJECT["dependencies"] + extras]
    return [r for r in requirements if r.name != PROJECT["name"]]  # an extra may contain another


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_pins_everything_that_pyproject_wants(python: str) -> None:
    pins = locked(python)
    for requirement in wanted():
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


def test_torch_and_torchvision_are_a_pair() -> None:
    # torchvision 0.N belongs to torch 2.(N - 15): 0.23 to 2.8, 0.29 to 2.14.
    pins = locked("3.11")
    assert pins["torchvision"].minor == pins["torch"].minor + 15


def test_torch_range_covers_what_is_promised() -> None:
    (torch,) = (r for r in wanted() if r.name == "torch")
    assert all(torch.specifier.contains(v) for v in ("2.11.0", "2.12.0", "2.13.0", "2.14.1", "2.15.0"))


def test_the_core_is_what_training_and_predicting_need() -> None:
    core = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]}
    assert len(core) == len(PROJECT["dependencies"])
    assert not core & {"fastapi", "ipywidgets", "jupyterlab", "lightning-fabric", "ray", "scikit-learn", "seaborn"}
    used = {"distributed", "export", "heic", "lite2", "notebooks", "openvino", "serve", "studies"}
    assert set(PROJECT["optional-dependencies"]) == used | {"dev", "docs"}


def test_every_place_states_the_same_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert mlffn_lite.__version__ == PROJECT["version"] == cited


def test_environment_is_pyproject_constrained_by_the_lock() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (python,) = (d for d in dependencies if isinstance(d, str) and d.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    (pip,) = (d["pip"] for d in dependencies if isinstance(d, dict))
    assert pip[0] == "-c requirements.lock"
    match = re.fullmatch(r"-e \.\[(.*)\]", pip[1])
    assert match is not None
    assert set(match[1].split(",")) == set(PROJECT["optional-dependencies"])


@pytest.mark.skipif("MLFFN_UNLOCKED" in os.environ, reason="MLFFN_UNLOCKED is set: other versions are being tried")
def test_installed_versions_are_the_locked_ones() -> None:
    import sys
    from importlib.metadata import version

    pins = locked(f"{sys.version_info.major}.{sys.version_info.minor}", sys.platform)
    for requirement in wanted():
        installed = Version(Version(version(requirement.name)).public)
        assert installed == pins[canonicalize_name(requirement.name)], requirement.name
