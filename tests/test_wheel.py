"""What is installed without a checkout: the whole package, a description whose links work, and MiniParts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
import typer

from mlffn_lite.cli import app

ROOT = Path(__file__).parents[1]
NEEDED = ("pyproject.toml", "DESCRIPTION.md", "LICENSE", "LICENSE-text", "data/LICENSE")
BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
DRAW = """
import mlffn_lite
from mlffn_lite.datasets.miniparts import miniparts_path, names, verify_manifest
names.COUNTS.update(train=1, good=0, defect=0)
root = miniparts_path()
verify_manifest(root)
print(mlffn_lite.__file__, root, sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from a copy: setuptools leaves folders behind."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "mlffn_lite", copy / "mlffn_lite", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in NEEDED:
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    built = subprocess.run([sys.executable, "-c", BUILD, "dist"], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def relative_links(markdown: str) -> list[str]:
    """Links and pictures that only a checkout can follow."""
    found = re.findall(r"\]\(<?([^)\s>]+)|(?:href|src)=\"([^\"]+)|^\[[^\]]+\]:\s*(\S+)", markdown, re.MULTILINE)
    return [link for links in found for link in links if link and not re.match(r"https://|mailto:|#", link)]


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "mlffn_lite"
    files = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
    wanted = {f.as_posix() for f in files if not any(part == "__pycache__" or part[0] == "." for part in f.parts)}
    carried = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert carried == {f"mlffn_lite/{name}" for name in wanted}
    assert {"py.typed", "datasets/catalog.toml", "datasets/miniparts/__init__.py"} <= wanted


def test_links_of_the_description_work_without_a_checkout(metadata: Message) -> None:
    assert relative_links((ROOT / "README.md").read_text(encoding="utf-8"))  # or this test could not fail
    text = str(metadata.get_payload())
    assert text == (ROOT / "DESCRIPTION.md").read_text(encoding="utf-8")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert relative_links(text) == []
    assert all(re.search(r", https://\S+$", url) for url in metadata.get_all("Project-URL", []))


def test_commands_of_the_description_exist(metadata: Message) -> None:
    lines = re.findall(r"^mlffn (.+?)(?:\s+#.*)?$", str(metadata.get_payload()), re.MULTILINE)
    assert lines
    for line in lines:
        words = line.split()
        command = typer.main.get_command(app)
        while commands := getattr(command, "commands", None):
            assert words[0] in commands, line
            command = commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line


def test_an_installation_draws_miniparts_once_with_a_message_and_a_bar(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    wheel.extractall(site)
    homes = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LOCALAPPDATA": str(tmp_path)}

    def draw() -> tuple[list[str], str]:
        environment = os.environ | homes | {"PYTHONPATH": str(site)}
        done = subprocess.run([sys.executable, "-c", DRAW], cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines(), done.stderr.decode()

    (module, root), said = draw()
    assert Path(module).is_relative_to(site)
    assert Path(root).is_relative_to(tmp_path)
    assert root in said.splitlines()[0]
    assert "Drawing MiniParts: 100%" in said
    assert draw() == ([module, root], "")
