"""What every notebook must have and must not have, as it is committed."""

from __future__ import annotations

import base64
import itertools
import re
import struct
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import nbformat
import pytest
from lessons import FOLDER, broken_links, code_cells, present, printed, prose, read, tasks
from nbformat import NotebookNode
from series import FOLDED, IGNORED, METADATA, ROOT, WIDGET, Entry, load_series, nav, pngs

from course import checks
from mlffn_lite.storage import write_atomic

Rule = Callable[[NotebookNode, Entry], Iterable[str]]
RULES: dict[str, Rule] = {}
MAX_LINES, MAX_DRAWING, MAX_BYTES, MAX_PNG, MAX_WIDTH = 25, 15, 1_700_000, 700_000, 1400


def rule(function: Rule) -> Rule:
    """Add a rule: it yields what is wrong."""
    RULES[function.__name__] = function
    return function


@rule
def executed_in_order(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    counts = [c.execution_count for c in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}"
    for cell in code_cells(nb):
        if any(o.output_type == "error" for o in cell.outputs):
            yield f"cell {cell.id} ends with an error"


@rule
def quiet(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    noise = r"\b[A-Z]\w*Warning\b|Traceback \(most|\b0x[0-9a-f]{6,}|\x1b\[|\bit/s\b"
    for cell in code_cells(nb):
        if any(o.get("name") == "stderr" for o in cell.outputs):
            yield f"cell {cell.id} writes to stderr"
        if found := re.search(noise, printed(cell)):
            yield f"cell {cell.id} prints {found[0]!r}"
        if any(re.match(r"\[?<|Text\(", o.data.get("text/plain", "")) for o in cell.outputs if "execution_count" in o):
            yield f"cell {cell.id} ends with a value that only its class describes"


@rule
def portable(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    local = r"(?<![\w.:/])/(?:home|root|work|tmp|Users|mnt|opt|usr|var)/\w[\w/.-]*|\b[A-Z]:\\\\?\w+"
    for cell in nb.cells:
        text = cell.source + (printed(cell) if cell.cell_type == "code" else "")
        if found := re.search(local, text):
            yield f"cell {cell.id} names the path {found[0]!r}"


@rule
def normalised(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    if set(nb.metadata) != {"kernelspec", "language_info"} or set(nb.metadata.language_info) != {"name"}:
        yield f"metadata holds {sorted(nb.metadata)}"
    if len({c.id for c in nb.cells}) < len(nb.cells):
        yield "two cells have the same id"
    for cell in nb.cells:
        folded = {"jupyter": {"source_hidden": True}} if FOLDED in cell.metadata.get("tags", []) else {}
        if {key: value for key, value in cell.metadata.items() if key != "tags"} != folded:
            yield f"cell {cell.id} has the metadata {sorted(cell.metadata)}"
        if any(WIDGET in o.get("data", {}) for o in cell.get("outputs", [])):
            yield f"cell {cell.id} stores the number of a widget"


@rule
def short_cells(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    for cell in code_cells(nb):
        if (lines := sum(bool(line.strip()) for line in cell.source.splitlines())) > MAX_LINES:
            yield f"cell {cell.id} has {lines} lines that are not empty, more than {MAX_LINES}"


@rule
def drawing_is_folded(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    """Long cells that draw are folded, and nothing else is; a function to read stays open."""
    folded = {c.id for c in code_cells(nb) if FOLDED in c.metadata.get("tags", [])}
    for cell in code_cells(nb):
        called = re.search(r"\bshow(_\w+)?\(|\b(Figure|new_figure)\(", cell.source)
        draws = called and not re.search(r"^(def|class) ", cell.source, re.M)
        if (
            draws
            and sum(bool(line.strip()) for line in cell.source.splitlines()) > MAX_DRAWING
            and cell.id not in folded
        ):
            yield f"cell {cell.id} draws in more than {MAX_DRAWING} lines and is not folded"
        if cell.id in folded and not draws:
            yield f"cell {cell.id} is folded and does not draw"


@rule
def opens_with_set_up(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    first = nb.cells[1]
    if first.cell_type != "code":
        yield "the cell after the head is not code"
        return
    if not re.search(r"^(from|import) ", first.source, re.MULTILINE) or f'setup("{entry.number}"' not in first.source:
        yield f'the first code cell lacks imports or setup("{entry.number}")'
    elif IGNORED not in first.metadata.get("tags", []):
        yield f"the first code cell, which prints versions, lacks the tag {IGNORED}"


@rule
def pictures(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    number = itertools.count(1)
    for cell in code_cells(nb):
        for output, after in itertools.zip_longest(cell.outputs, cell.outputs[1:]):
            for png in pngs(output):
                where = f"the picture in cell {cell.id}"
                if len(output.metadata.get("image/png", {}).get("alt", "")) < 20:
                    yield f"{where} has no alt text that says what it shows"
                caption = (after or {}).get("data", {}).get("text/markdown", "")
                if not caption.startswith(wanted := f"*Figure {entry.number}.{next(number)}."):
                    yield f"{where} has the caption {caption[:20]!r}; it must start with {wanted!r}"
                if (width := struct.unpack(">I", png[16:20])[0]) > MAX_WIDTH or len(png) > MAX_PNG:
                    most = f"more than {MAX_WIDTH} px or {MAX_PNG // 1000} kB"
                    yield f"{where} is {width} px wide and has {len(png) // 1000} kB, {most}"
    if next(number) == 1:
        yield "there is no picture"
    if (size := len(nbformat.writes(nb))) > MAX_BYTES:
        yield f"the notebook has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6} MB"


@rule
def figures_as_shown(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    shown = {png for cell in code_cells(nb) for output in cell.outputs for png in pngs(output)}
    if shown != {path.read_bytes() for path in (ROOT / "figures").glob(f"{entry.number}_*.png")}:
        yield f"figures/{entry.number}_*.png are not the pictures of the notebook; run make notebooks"


@rule
def links_resolve(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    for text in prose(nb):
        yield from broken_links(text, FOLDER / entry.file)


@rule
def three_exercises(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    found = tasks(nb)
    if len(found) < 3 or [t.number for t in found] != [f"{entry.number}.{i + 1}" for i in range(len(found))]:
        yield f"exercises are {[t.number for t in found]}; three or more must be numbered from {entry.number}.1"
    for task in found:
        if not task.folded.get("Hint") or not task.solution:
            yield f"exercise {task.number} lacks a folded Hint, or a folded Solution with a python block"
        if task.stub is None or not task.answer:
            yield f"exercise {task.number} is not followed by a stub that ends in check({task.number!r}, answer)"
        elif f"Exercise {task.number}: not answered yet." not in printed(task.stub):
            yield f"the stub of exercise {task.number} does not print 'not answered yet'"
        if task.number not in registered(entry.number):
            yield f"exercise {task.number} has no check"
    if extra := registered(entry.number) - {t.number for t in found}:
        yield f"checks without an exercise: {sorted(extra)}"


def registered(number: str) -> set[str]:
    """Return the exercises of a notebook that have a check and wrong answers."""
    try:
        checks.find(f"{number}.1")
    except checks.ConfigError:
        return set()
    return {n for n, e in checks.EXERCISES.items() if n.startswith(f"{number}.") and e.wrong}


@rule
def predicts_first(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    text = "\n".join(prose(nb))
    prompt = re.search(r"before you run", text, re.IGNORECASE)
    if not prompt or "<summary>Answer" not in text[prompt.start() :]:
        yield "there is no 'Before you run …' with a folded Answer after it"


@rule
def well_formed(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    for cell in (c for c in nb.cells if c.cell_type == "markdown"):
        if (
            re.search(r"^# ", re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL), re.MULTILINE)
            and cell.id != "head"
        ):
            yield f"cell {cell.id} has a heading of the first level; only the head has"
        if len(re.findall(r"<details>\s*<summary>.*?</summary>\n\n.*?</details>", cell.source, re.DOTALL)) != (
            max(cell.source.count(tag) for tag in ("<details", "</details", "<summary", "</summary"))
        ):
            yield f"cell {cell.id}: write <details><summary>…</summary>, an empty line, the text, </details>"
    if not any(re.search(r"^## (?:\d+ )?Paper and here$", text, re.MULTILINE) for text in prose(nb)):
        yield "there is no section '## Paper and here'"


@rule
def few_decimals(nb: NotebookNode, entry: Entry) -> Iterable[str]:
    for cell in code_cells(nb) if entry.strict else []:
        if IGNORED not in cell.metadata.get("tags", []) and (found := re.search(r"\b\d*\.\d{4,}", printed(cell))):
            yield f"cell {cell.id} prints {found[0]}; strict notebooks print at most 3 decimals"


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("entry", present(), ids=lambda e: e.file)
def test_rule(entry: Entry, name: str) -> None:
    faults = list(RULES[name](read(FOLDER / entry.file), entry))
    assert not faults, f"{entry.file}: " + "; ".join(faults)


def test_series_lists_exactly_the_notebooks_that_exist_each_number_once_and_in_order() -> None:
    listed = [e.file for e in load_series()]
    numbers = [e.number for e in load_series()]
    assert all(re.fullmatch(r"\d\d_\w+\.ipynb", file) for file in listed)
    assert numbers == sorted(set(numbers)), "list notebooks by their numbers, each once; a number may be left out"
    missing, extra = set(listed) - (there := {p.name for p in FOLDER.glob("*.ipynb")}), there - set(listed)
    assert not missing, f"listed in series.toml but not written: {', '.join(sorted(missing))}"
    assert not extra, f"not listed in series.toml: {', '.join(sorted(extra))}"


def test_heads_feet_and_maps_are_as_generated() -> None:
    assert nav(write=False) == [], "run: python notebooks/series.py nav"


PAGES = ["README.md", "notebooks/glossary.md", "data/README.md", "data/results/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_links_of_pages_resolve(name: str) -> None:
    path = ROOT / name
    assert list(broken_links(path.read_text(encoding="utf-8"), path)) == []


def test_every_row_of_the_glossary_is_whole_and_names_a_notebook_of_the_series() -> None:
    numbers = {e.number for e in load_series()}
    terms, letters = glossary_rows()
    for row in terms:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5, row
        assert all(cells), row
        named = re.findall(r"\[(\d\d)\]\(\1_", cells[-1])
        assert named, row
        assert set(named) <= numbers, row
    for rows in (terms, letters):
        assert rows == sorted(rows, key=str.lower), "sort the rows"


def glossary_rows() -> tuple[list[str], list[str]]:
    """Return the rows of the terms, and those of the notation."""
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    terms, letters = (
        [line for line in part.splitlines() if line.startswith("| ")][1:] for part in text.split("## Notation")
    )
    return terms, letters


def notation() -> dict[str, set[str]]:
    """Return the notebooks of each letter of the notation."""
    rows = [row.strip("|").split(" | ") for row in glossary_rows()[1]]
    return {cells[0].strip(): set(re.findall(r"\[(\d\d)\]\(", cells[2])) for cells in rows}


def letters_in(nb: NotebookNode) -> set[str]:
    """Return the single capital letters in a notebook's formulas."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", "\n".join(prose(nb)), flags=re.DOTALL)
    formulas = " ".join(m[1] or m[2] for m in re.finditer(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL))
    words = r"\\(?:mathrm|text|operatorname|mathbf|mathbb|mathcal)\{[^{}]*\}|\\[a-zA-Z]+"
    return set(re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", re.sub(words, " ", formulas)))


def test_a_symbol_stands_for_one_term_and_a_letter_has_one_row() -> None:
    terms, letters = glossary_rows()
    symbols = [s for row in terms for s in row.strip("|").split(" | ")[2].strip().split(", ") if s != "–"]
    assert sorted(symbols) == sorted(set(symbols))
    assert len(notation()) == len(letters)
    assert set("ALMPRD") <= notation().keys()


@pytest.mark.parametrize("entry", present(), ids=lambda e: e.number)
def test_a_letter_of_the_notation_is_used_only_where_the_glossary_says(entry: Entry) -> None:
    used = {letter for letter in letters_in(read(FOLDER / entry.file)) if letter in notation()}
    meant = {letter for letter, numbers in notation().items() if entry.number in numbers}
    assert used == meant, "see the notation in glossary.md: one meaning for a letter"


OF_THE_BACKBONE = (
    r"backbone(?:'s)? levels?\b|\blevels? of (?:the|a) (?:\w+ )?backbone"
    r"|\b(?:first|second|third) (?:backbone )?levels?\b|\blevels?[ _][1-3]\b"
)
OTHER_LEVELS = r"(?<!grey )(?<!low )(?<!high )(?<!multi-)\blevels?\b"


def quantising() -> set[str]:
    """Return the notebooks in which the glossary lets a level be one of the quantisation."""
    (row,) = [row for row in glossary_rows()[0] if row.startswith("| quantisation level |")]
    return set(re.findall(r"\[(\d\d)\]\(", row))


def stray_levels(nb: NotebookNode, number: str) -> list[str]:
    """Return what a notebook calls a level and the glossary calls a stage, or nothing at all."""
    found = []
    for cell in nb.cells:
        texts = [cell.source, printed(cell) if cell.cell_type == "code" else ""]
        quantised = number in quantising() or cell.id == "map"  # the map says what they all do
        pattern = OF_THE_BACKBONE if quantised else f"{OF_THE_BACKBONE}|{OTHER_LEVELS}"
        for text in (re.sub(r'"\n\s*f?"', "", text) for text in texts):  # a string in two parts is one text
            found += [text[max(m.start() - 30, 0) : m.end() + 10] for m in re.finditer(pattern, text)]
    return found


@pytest.mark.parametrize("entry", [e for e in present() if e.number < "11"], ids=lambda e: e.number)
def test_a_level_is_one_of_the_quantisation_and_the_backbone_has_stages(entry: Entry) -> None:
    assert stray_levels(read(FOLDER / entry.file), entry.number) == []


@pytest.mark.parametrize(
    ("number", "text", "stray"),
    [
        ("04", "its levels, from the first stage", 0),
        ("04", "level 2 of three", 1),
        ("04", "the third level, of the backbone's levels", 2),
        ("08", "the low level, 4 grey levels, multi-level", 0),
        ("08", "a level at stride 8", 1),
        ("08", 'alt="fused to the low "\n    "level; stage 3"', 0),
    ],
)
def test_a_stray_level_is_found(sample: NotebookNode, number: str, text: str, stray: int) -> None:
    sample.cells[3].source = text
    assert len(stray_levels(sample, number)) == stray


def test_letters_of_formulas_are_found(sample: NotebookNode) -> None:
    sample.cells[3].source = r"$A_i = \mathrm{Cat}(M, x_R)$ and `L`, $$\mathbb{R} \ni P$$"
    assert letters_in(sample) == {"A", "M", "R", "P"}


# --- each rule refuses what it is for ---------------------------------------------------------------------------------


BREAK: dict[str, Callable[[NotebookNode], object]] = {
    "executed_in_order": lambda nb: nb.cells[2].update(execution_count=3),
    "quiet": lambda nb: nb.cells[2].outputs.append(stream("UserWarning: deprecated")),
    "portable": lambda nb: nb.cells[2].outputs.append(stream("read /home/me/parts")),
    "normalised": lambda nb: nb.metadata.update(widgets={}),
    "short_cells": lambda nb: nb.cells[2].update(source="x = 1\n" * 26),
    "drawing_is_folded": lambda nb: nb.cells[2].metadata.update(tags=[FOLDED]) or nb.cells[2].update(source="x = 1"),
    "opens_with_set_up": lambda nb: nb.cells[1].update(source="import torch"),
    "pictures": lambda nb: nb.cells[2].outputs.pop(1),
    "figures_as_shown": lambda nb: nb.cells[2].outputs.append(picture(1200)),
    "links_resolve": lambda nb: nb.cells[3].update(source="[there](series.toml), [nowhere](nowhere.md)"),
    "three_exercises": lambda nb: nb.cells.pop(),
    "predicts_first": lambda nb: nb.cells[4].update(source="Before you run this, think."),
    "well_formed": lambda nb: nb.cells[4].update(source="<details><summary>Answer</summary>\nNo empty line.</details>"),
    "few_decimals": lambda nb: nb.cells[2].outputs.append(stream("loss 0.12345")),
}
ENTRY = Entry("98_sample.ipynb", "Sample", "Show.", ["see"], "00", "§1", 0.5, strict=True)
TASK = """### Exercise 98.{0}: add one (easy, 1 minute)

<details><summary>Hint</summary>

One more.
</details>
<details><summary>Solution</summary>

```python
answer = 1
```
</details>"""


def stream(text: str) -> NotebookNode:
    return nbformat.v4.new_output("stream", text=text)


def picture(width: int = 1296) -> NotebookNode:
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, 400)
    alt = {"image/png": {"alt": "A curve that rises from left to right"}}
    data = {"image/png": base64.b64encode(png).decode()}
    return nbformat.v4.new_output("display_data", data=data, metadata=alt)


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NotebookNode:
    """A notebook that keeps all rules, and its figure."""
    monkeypatch.setitem(sys.modules, "course.nb98", types.ModuleType("nb98"))
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    write_atomic(tmp_path / "figures" / "98_curve.png", pngs(picture())[0])
    new = nbformat.v4
    caption = new.new_output("display_data", data={"text/markdown": "*Figure 98.1. It rises.*"})
    cells = [
        new.new_markdown_cell("# 98 · Sample", id="head"),
        new.new_code_cell('import torch\n\nsetup("98")', metadata={"tags": [IGNORED]}),
        new.new_code_cell("show(figure)", outputs=[picture(), caption]),
        new.new_markdown_cell("## Paper and here\n\nBefore you run the next cell: [this](series.toml)?"),
        new.new_markdown_cell("<details><summary>Answer</summary>\n\nYes.\n</details>"),
    ]
    for i in (1, 2, 3):
        monkeypatch.setitem(checks.EXERCISES, f"98.{i}", checks.Exercise(f"98.{i}", print, {"none": 0}))
        said = [stream(f"Exercise 98.{i}: not answered yet.\n")]
        cells += [new.new_markdown_cell(TASK.format(i)), new.new_code_cell(f'check("98.{i}", answer)', outputs=said)]
    nb: NotebookNode = new.new_notebook(cells=cells, metadata=METADATA)
    for count, cell in enumerate(code_cells(nb), 1):
        cell.execution_count = count
    return nb


@pytest.mark.parametrize("name", RULES)
def test_each_rule_finds_its_fault(sample: NotebookNode, name: str) -> None:
    assert list(RULES[name](sample, ENTRY)) == []
    BREAK[name](sample)
    assert list(RULES[name](sample, ENTRY)) != []


def test_a_picture_must_not_be_too_wide(sample: NotebookNode) -> None:
    sample.cells[2].outputs[0] = picture(2000)
    assert "2000 px wide" in next(iter(RULES["pictures"](sample, ENTRY)))
