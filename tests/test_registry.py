"""Names that stand for classes: built in, of an installed package, or an import path."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlffn_lite import registry
from mlffn_lite.errors import ConfigError
from mlffn_lite.peers.padim import PaDiM
from mlffn_lite.pseudo import ConfettiNoise, PseudoAnomaly


@pytest.mark.parametrize("group", registry.BUILT_IN)
def test_every_built_in_name_is_there_and_known_by_its_class(group: str) -> None:
    for name in registry.BUILT_IN[group]:
        assert registry.known(group, name)
        assert registry.name_of(group, registry.find(group, name)) == name


def test_an_installed_package_gives_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point stands beside the built-in names, in the configuration too."""
    (tmp_path / "bolts.py").write_text("from mlffn_lite.pseudo import ConfettiNoise\nclass Rust(ConfettiNoise): ...\n")
    (tmp_path / "bolts-1.dist-info").mkdir()
    (tmp_path / "bolts-1.dist-info/METADATA").write_text("Name: bolts\nVersion: 1\n")
    (tmp_path / "bolts-1.dist-info/entry_points.txt").write_text("[mlffn_lite.kinds]\nrust = bolts:Rust\n")
    assert not registry.known("kinds", "rust")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.names("kinds") == ["confetti", "cutpaste", "scar", "blemish", "defects", "rust"]
    rust = registry.find("kinds", "rust")
    assert issubclass(rust, PseudoAnomaly)
    assert registry.name_of("kinds", rust) == "rust"
    from mlffn_lite.config import Config

    assert Config().replace(pseudo={"kinds": {"rust": 1.0}}).pseudo.kinds == {"rust": 1.0}


def test_a_class_without_a_name_is_called_by_its_import_path() -> None:
    class Local: ...

    assert registry.name_of("methods", PaDiM) == "padim"
    assert registry.name_of("methods", ConfettiNoise) == "mlffn_lite.pseudo:ConfettiNoise"
    assert registry.name_of("methods", Local).startswith(f"{__name__}:")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "padin",
            "unknown method 'padin'; choose from mlffn, density, memory, residual, ensemble, ensemble_trained",
        ),
        (":Name", "unknown method ':Name'"),
        ("nowhere.at.all:Name", "cannot import the method 'nowhere.at.all:Name' (ModuleNotFoundError"),
        ("mlffn_lite.pseudo:Nothing", "cannot import the method 'mlffn_lite.pseudo:Nothing' (AttributeError"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.find("methods", name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
