"""Names that stand for classes: built in, of an installed package, or an import path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mlffn_lite import registry
from mlffn_lite.config import PseudoConfig
from mlffn_lite.errors import ConfigError
from mlffn_lite.peers.padim import PaDiM
from mlffn_lite.pseudo import ConfettiNoise, PseudoAnomalies, PseudoAnomaly


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


def shade(images: Tensor, generator: torch.Generator, by: float = 0.5) -> tuple[Tensor, Tensor]:
    """Darken whole images."""
    return images * by, torch.ones_like(images[:, :1], dtype=torch.bool)


def test_what_is_registered_stands_beside_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "OWN", {group: {} for group in registry.BUILT_IN})
    with pytest.raises(ConfigError, match="names 'shade'; choose from confetti, "):
        PseudoConfig(kinds={"shade": 1.0})
    registry.register("kinds", "shade", shade)
    assert registry.known("kinds", "shade")
    assert registry.names("kinds")[-1] == "shade"
    assert registry.find("kinds", "shade") is shade
    assert registry.name_of("kinds", shade) == "shade"
    assert PseudoConfig(kinds={"shade": 1.0}).kinds == {"shade": 1.0}
    made = PseudoAnomalies(1.0, {"shade": 1.0}, {"shade": {"by": 0.25}})
    changed, masks = made(torch.full((2, 3, 4, 4), 0.8), generator=torch.Generator())
    assert masks.all()
    assert changed.allclose(torch.tensor(0.2))
    registry.register("kinds", "shade", ConfettiNoise)
    assert registry.find("kinds", "shade") is ConfettiNoise


def test_a_function_that_breaks_a_kinds_contract_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.OWN["kinds"], "shade", shade)
    with pytest.raises(ConfigError, match="shade must return images in"):
        PseudoAnomalies(1.0, {"shade": 1.0}, {"shade": {"by": 2.0}})(
            torch.ones(1, 3, 4, 4), generator=torch.Generator()
        )
    with pytest.raises(ConfigError, match=r"kind 'shade' cannot be made with the options .*to"):
        PseudoAnomalies(1.0, {"shade": 1.0}, {"shade": {"to": 2.0}})


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("scar", shade, "cannot register the kind 'scar'; choose a name without a colon that is not taken"),
        ("my:shade", shade, "cannot register the kind 'my:shade'"),
        ("shade", 3, "cannot register the kind 'shade': 3 is neither a class nor a function"),
        *(
            (name, shade, f"cannot register the kind {name!r}; choose a name of letters")
            for name in ("", " ", "a\nb", 3)
        ),
    ],
)
def test_what_cannot_be_registered_is_refused(name: str, found: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        registry.register("kinds", name, found)
    with pytest.raises(ConfigError, match="choose one of methods, kinds, terms"):
        registry.register("kind", name, found)
    assert not registry.OWN["kinds"]


def test_source_is_the_code_of_ones_own_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("confetti", "mlffn_lite.pseudo:ConfettiNoise", "nowhere:Kind", "unknown"):
        assert registry.source("kinds", name) == ""
    assert "A horizontal line" in registry.source("kinds", "own_kind:Stripe")
    monkeypatch.setitem(registry.OWN["kinds"], "shade", shade)
    assert "Darken whole images" in registry.source("kinds", "shade")


def test_source_tells_versions_apart_where_there_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "def kind(images, generator):\n    return [x * 2 for x in images]",
        "def kind(images, generator):\n    return [x * 3 for x in images]",
        "class kind:\n    by = 2\n    def apply(self, images, generator): return self.by * images",
        "class kind:\n    by = 3\n    def apply(self, images, generator): return self.by * images",
        "def helper(x): return x - 1\nclass kind:\n    apply = staticmethod(lambda images, generator: helper(images))",
        "def helper(x): return x - 2\nclass kind:\n    apply = staticmethod(lambda images, generator: helper(images))",
    ]
    found = []
    for text in [*texts, *texts]:
        names = {"__name__": "typed"}
        exec(compile(text, "<typed>", "exec"), names)
        monkeypatch.setitem(registry.OWN["kinds"], "kind", names["kind"])
        found.append(registry.source("kinds", "kind"))
    assert found[:6] == found[6:]
    assert len(set(found)) == 6


def test_a_class_without_a_name_is_called_by_its_import_path() -> None:
    class Local: ...

    assert registry.name_of("methods", PaDiM) == "padim"
    assert registry.name_of("methods", ConfettiNoise) == "mlffn_lite.pseudo:ConfettiNoise"
    assert registry.name_of("methods", Local).startswith(f"{__name__}:")


def test_a_script_that_ends_where_it_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends_itself.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot import the method 'ends_itself:Method' \(SystemExit: 0\)"):
        registry.find("methods", "ends_itself:Method")


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
