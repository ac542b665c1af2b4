from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import mlffn_lite
import mlffn_lite.datasets
from mlffn_lite.errors import MissingExtraError, extra, first_line


def python(code: str) -> None:
    """Run code in an interpreter of its own."""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", [mlffn_lite, mlffn_lite.datasets])
def test_every_public_name_is_offered_and_resolves(package: ModuleType) -> None:
    assert len(package.__all__) > 5
    assert set(dir(package)) == set(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_a_name_stays_what_it_is_when_its_file_is_imported() -> None:
    importlib.import_module("mlffn_lite.datasets.verify")
    assert callable(mlffn_lite.datasets.verify)


def test_the_command_line_starts_without_torch() -> None:
    python("import sys, mlffn_lite.cli; sys.exit('torch' in sys.modules)")


def test_reading_a_folder_needs_nothing_that_downloads() -> None:
    python("import sys, mlffn_lite.datasets.folder; sys.exit('pooch' in sys.modules or 'requests' in sys.modules)")


def test_an_absent_package_names_its_extra() -> None:
    absent = "nonesuch.inner"
    line = r"^the package nonesuch .* pip install 'mlffn-lite\[studies\]'$"
    with pytest.raises(MissingExtraError, match=line), extra("studies"):
        importlib.import_module(absent)
    with pytest.raises(ModuleNotFoundError, match="mlffn_lite"), extra("studies"):
        importlib.import_module("mlffn_lite.nonesuch")


ABSENT = """
import importlib, pkgutil, sys
names = ("IPython", "ipywidgets", "lightning_fabric", "onnx", "ray", "seaborn", "sklearn", "traitlets")
sys.modules.update(dict.fromkeys(names))
import mlffn_lite
from mlffn_lite.errors import MissingExtraError
"""
IMPORT_ALL = """
for module in pkgutil.walk_packages(mlffn_lite.__path__, "mlffn_lite."):
    try:
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    except MissingExtraError:
        if not module.name.startswith(("mlffn_lite.studies", "mlffn_lite.widgets")):
            raise
"""
IMPORT_ONE = """
try:
    importlib.import_module("mlffn_lite.{module}")
except MissingExtraError as error:
    sys.exit("pip install 'mlffn-lite[{name}]'" not in str(error))
sys.exit("imported")
"""


def test_the_core_needs_no_extra() -> None:
    python(ABSENT + IMPORT_ALL)


@pytest.mark.parametrize(("module", "name"), [("widgets", "notebooks"), ("studies.report", "studies")])
def test_modules_that_need_an_extra_name_it(module: str, name: str) -> None:
    python(ABSENT + IMPORT_ONE.format(module=module, name=name))


def test_first_line_of_an_error() -> None:
    assert first_line(ValueError("\none\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
