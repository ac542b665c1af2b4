"""What is installed without a checkout: the whole package with MiniParts, and a description whose links work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from commands import commands_in, faults

ROOT = Path(__file__).parents[1]
NEEDED = ("pyproject.toml", "setup.py", "MANIFEST.in", "DESCRIPTION.md", "LICENSE", "LICENSE-text", "data/LICENSE")
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"
FIND = """
import mlffn_lite
from mlffn_lite.datasets.miniparts import miniparts_path, verify_manifest
verify_manifest(miniparts_path())
print(mlffn_lite.__file__, miniparts_path(), sep="\\n")
"""


def build(what: str, source: Path, out: Path) -> Path:
    """Build from the folder `source`; the file that comes out."""
    built = subprocess.run([sys.executable, "-c", BUILD, what, out], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from the source archive, built from a copy: setuptools leaves folders behind."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("mlffn_lite", "data/miniparts"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in NEEDED:
        shutil.copy(ROOT / name, copy / name)
    with tarfile.open(build("build_sdist", copy, folder / "sdist")) as sources:
        sources.extractall(folder / "sources", filter="data")
    (unpacked,) = (folder / "sources").iterdir()
    with zipfile.ZipFile(build("build_wheel", unpacked, folder / "wheel")) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def relative_links(markdown: str) -> list[str]:
    """Links and pictures that only a checkout can follow."""
    found = re.findall(r"\]\(<?([^)\s>]+)|(?:href|src)=\"([^\"]+)|^\[[^\]]+\]:\s*(\S+)", markdown, re.MULTILINE)
    return [link for links in found for link in links if link and not re.match(r"https://|mailto:|#", link)]


def files_below(folder: Path) -> set[str]:
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {p.as_posix() for p in paths if not any(part == "__pycache__" or part[0] == "." for part in p.parts)}


def test_the_wheel_holds_every_file_of_the_package_the_pictures_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package, pictures = files_below(ROOT / "mlffn_lite"), files_below(ROOT / "data" / "miniparts")
    assert {"py.typed", "datasets/catalog.toml", "datasets/miniparts.py"} <= package
    assert len(pictures) == 481
    carried = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = package | {f"datasets/miniparts_data/{name}" for name in pictures}
    assert carried == {f"mlffn_lite/{name}" for name in wanted}


def test_links_of_the_description_work_without_a_checkout(metadata: Message) -> None:
    assert relative_links((ROOT / "README.md").read_text(encoding="utf-8"))  # or this test could not fail
    text = str(metadata.get_payload())
    assert text == (ROOT / "DESCRIPTION.md").read_text(encoding="utf-8")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert relative_links(text) == []
    assert all(re.search(r", https://\S+$", url) for url in metadata.get_all("Project-URL", []))


def test_commands_of_the_description_exist(metadata: Message) -> None:
    lines = commands_in(str(metadata.get_payload()))
    assert len(lines) >= 5
    assert [fault for line in lines for fault in faults(line)] == []


def test_an_installation_finds_miniparts_whole(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", FIND], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    package = tmp_path / "mlffn_lite"
    assert done.stdout.splitlines() == [str(package / "__init__.py"), str(package / "datasets" / "miniparts_data")]
