"""What the tests read out of notebooks: texts, pictures, links and exercises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from series import ROOT, Entry, load_series

FOLDER = ROOT / "notebooks"
_TASK = re.compile(r"^### Exercise (\d\d\.\d+): .+ \((?:easy|medium|hard), \d+ minutes?\)$", re.MULTILINE)
_FOLDED = re.compile(r"<details>\s*<summary>(\w+)</summary>\n\n(.*?)</details>", re.DOTALL)


@cache
def read(path: Path) -> NotebookNode:
    """Read a notebook once."""
    return nbformat.read(path, as_version=4)


def present() -> list[Entry]:
    """Return the notebooks of series.toml that exist."""
    return [e for e in load_series() if (FOLDER / e.file).is_file()]


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """Return the code cells."""
    return [c for c in nb.cells if c.cell_type == "code"]


def prose(nb: NotebookNode) -> list[str]:
    """Return the texts of the Markdown cells."""
    return [c.source for c in nb.cells if c.cell_type == "markdown"]


def printed(cell: NotebookNode) -> str:
    """Return everything that a cell's outputs say, pictures left out."""
    texts = []
    for output in cell.outputs:
        data = output.get("data", {})
        texts += [
            output.get("text", ""),
            *(data.get(kind, "") for kind in ("text/plain", "text/html", "text/markdown")),
        ]
    return "\n".join(texts)


def targets(markdown: str) -> Iterator[str]:
    """Yield what a Markdown text links to or shows; code and formulas are left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$", "", markdown, flags=re.DOTALL)
    for match in re.finditer(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:href|src)=\"([^\"]+)\"", text):
        yield match[1] or match[2]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a file's headings: JupyterLab's for a notebook, GitHub's for Markdown."""
    texts = prose(read(path)) if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")]
    lines = "\n".join(re.sub(r"```.*?```", "", t, flags=re.DOTALL) for t in texts)
    headings = [re.sub(r"[*`]", "", h).strip() for h in re.findall(r"^#{1,6} (.+)$", lines, re.MULTILINE)]
    if path.suffix == ".ipynb":
        return {h.replace(" ", "-") for h in headings}
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken_links(markdown: str, path: Path) -> Iterator[str]:
    """Yield the relative links of a text, which stands in the file ``path``, that lead nowhere."""
    planned = {FOLDER / e.file for e in load_series()}  # that they exist is a test of its own
    for target in targets(markdown):
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        if re.match(r"[a-z]+:", target) or (goal in planned and not goal.exists()):
            continue
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            yield target


@dataclass(frozen=True)
class Task:
    """An exercise as it stands in a notebook; ``answer`` is the name that its stub hands to the check."""

    number: str
    text: str
    folded: dict[str, str]
    stub: NotebookNode | None
    answer: str | None

    @property
    def solution(self) -> str | None:
        """The code of the folded solution."""
        match = re.search(r"```python\n(.*?)```", self.folded.get("Solution", ""), re.DOTALL)
        return match[1] if match else None


def tasks(nb: NotebookNode) -> list[Task]:
    """Return a notebook's exercises, in order."""
    found = []
    for i, cell in enumerate(nb.cells):
        heading = _TASK.search(cell.source) if cell.cell_type == "markdown" else None
        if heading:
            after = nb.cells[i + 1] if i + 1 < len(nb.cells) else None
            stub = after if after is not None and after.cell_type == "code" else None
            folded = {m[1]: m[2] for m in _FOLDED.finditer(cell.source)}
            found.append(
                Task(
                    heading[1],
                    cell.source[heading.start() :].partition("<details>")[0],
                    folded,
                    stub,
                    _checked(stub.source, heading[1]) if stub else None,
                )
            )
    return found


def _checked(source: str, number: str) -> str | None:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("check", "checked"):
            given, *answers = map(ast.unparse, node.args)
            if given == repr(number) and len(answers) == 1:
                return answers[0]
    return None
