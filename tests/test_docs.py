"""README.md, the pages in docs, and the site: what they say runs, what they name exists, what they link is there."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from commands import commands_in, faults

import mlffn_lite
from mlffn_lite import cli, registry
from mlffn_lite.datasets.folder import AnomalyFolder

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "DESCRIPTION.md", *sorted((ROOT / "docs").rglob("*.md"))]
API = sorted((ROOT / "docs" / "api").glob("*.md"))
WRITTEN = re.compile(r'^```python(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- what pages say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_with_their_options_and_settings(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text("utf-8")
    assert [fault for line in commands_in(text) for fault in faults(line)] == []
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|= |full |explore )make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_the_commands_of_a_page_are_found_and_judged() -> None:
    assert commands_in("```sh\nmlffn train x --out y  # now\nmake demo\n```\nmlffn no\n") == ["train x --out y"]
    assert list(faults("train x --out y --set train.steps=4")) == []
    assert next(iter(faults("train x --ouch y"))).endswith("has no option --ouch")
    assert "there is no command" in next(faults("study nothing"))


@pytest.fixture
def shop(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder as the guides assume it: parts, new images, a table of photographs."""
    for folder in ("parts", "other_parts"):
        shutil.copytree(parts, tmp_path / folder)
    shutil.copytree(parts / "test" / "scratch", tmp_path / "new_images")
    rows = [f"parts/{p.relative_to(parts).as_posix()},passed" for p in sorted((parts / "train/good").iterdir())]
    (tmp_path / "bolts.csv").write_text("\n".join(["photo,verdict", *rows, ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_and_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a page's blocks that have a title into files of that name, and run the others, in order."""
    names: dict[str, object] = {}
    blocks = WRITTEN.findall(page.read_text("utf-8"))
    assert blocks
    for title, code in blocks:
        if title:
            (folder / title).write_text(code, encoding="utf-8")
            monkeypatch.delitem(sys.modules, title.removesuffix(".py"), raising=False)
    for title, code in blocks:
        if not title:
            exec(compile(code, f"{page.name}", "exec"), names)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/own_data.md", "docs/own_method.md", "docs/own_generator.md", "docs/studies.md"]
)
def test_python_of_a_guide_runs(page: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_and_run(ROOT / page, shop, monkeypatch)


@pytest.mark.slow
def test_commands_of_the_guide_to_ones_own_method_run(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "own_method.md"
    write_and_run(page, shop, monkeypatch)
    lines = [line for line in commands_in(page.read_text("utf-8")) if not line.startswith("study")]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line.replace("--preset small", "--preset tiny"))
        words += ["--set", "data.size=64"] if words[0] == "train" else []
        monkeypatch.setattr(sys, "argv", ["mlffn", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, (line, capfd.readouterr())
    assert (shop / "heatmaps" / "scores.csv").is_file()
    assert len(AnomalyFolder(shop / "parts", size=64).train) == 12
    assert {p.name for p in (shop / "runs").iterdir()} == {"mine", "flat", "net", "bolts"}


# --- the classes -----------------------------------------------------------------------------------------------------


def examples(page: Path) -> dict[str, str]:
    """Return a page's examples by what they stand at: the object that comes after, or the heading before."""
    text = page.read_text("utf-8")
    found = re.findall(r"^```pycon\n(.*?)^```\n+(?:::: (\S+)|)", text, re.MULTILINE | re.DOTALL)
    return {place or f"{page.stem} {i}": code for i, (code, place) in enumerate(found)}


@pytest.mark.parametrize("page", API, ids=name)
def test_examples_of_the_library_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(examples(page).values())
    test = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)
    assert test.examples or page.stem == "index"


def test_every_public_class_has_an_example_and_what_is_described_is_there() -> None:
    shown = {place.rpartition(".")[2] for page in API for place in examples(page)}
    text = "\n".join(page.read_text("utf-8") for page in API)
    for path in re.findall(r"^::: (\S+)", text, re.MULTILINE):
        assert pkgutil.resolve_name(path), path
    public = {n for n in dir(mlffn_lite) if inspect.isclass(getattr(mlffn_lite, n))}
    named = {path.rpartition(":")[2] for group in registry.BUILT_IN.values() for path in group.values()}
    documented = {p.rpartition(".")[2] for p in re.findall(r"^::: (\S+\.[A-Z]\w+)$", text, re.MULTILINE)}
    assert public | named | documented <= shown


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_that_leads_nowhere_or_needs_a_network_is_found(hooks: ModuleType, tmp_path: Path) -> None:
    good = (
        '<a href="b.html#here">b</a> <a href="https://example.org">out</a> <img src="data:,"> <a href="#top" id="top">'
    )
    (tmp_path / "a.html").write_text(good)
    (tmp_path / "b.html").write_text('<p id="here">')
    (tmp_path / "404.html").write_text('<a href="/a.html">a</a>')
    assert list(hooks.faults(tmp_path)) == []
    bad = '<a href="b.html#there"></a><a href="c.html"></a><script src="https://example.org/x.js"></script>'
    bad += "<img src='//e.org/i'><style>@import 'https://example.org/y.css'</style>"
    (tmp_path / "a.html").write_text(bad)
    (tmp_path / "s.css").write_text("p { background: url(https://example.org/p.png) }")
    found = list(hooks.faults(tmp_path))
    assert [fault.split(": ")[0] for fault in found] == ["a.html"] * 5 + ["s.css"]
    for part in ("no such place on b.html", "c.html leads nowhere", "loads https://example.org/x.js", "y.css", "p.png"):
        assert any(part in fault for fault in found), part


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_site_is_built_without_a_warning(hooks: ModuleType, tmp_path: Path) -> None:
    """mkdocs.yml is strict: a link that leads nowhere ends it, in pages, notebooks and the classes' descriptions."""
    order = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(order, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for entry in hooks.series():
        page = (tmp_path / "site" / "notebooks" / entry.file).with_suffix(".html").read_text("utf-8")
        assert entry.promise.split("`")[0] in page.replace("&#39;", "'").replace("&amp;", "&")
    assert (tmp_path / "site" / "docs" / "assets" / "vendor" / "katex" / "katex.min.js").is_file()
    assert ":class:" not in (tmp_path / "site" / "docs" / "api" / "detector.html").read_text("utf-8")
