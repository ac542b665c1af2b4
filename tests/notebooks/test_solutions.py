"""Every solution in a notebook passes its check, and every wrong answer that is registered is refused."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from lessons import FOLDER, Task, code_cells, present, read, tasks

from course.checks import check, find
from mlffn_lite.errors import ConfigError, MlffnError

TASKS = [task for entry in present() for task in tasks(read(FOLDER / entry.file))]


def wrong_answers() -> list[tuple[str, str]]:
    """Return number and fault of every wrong answer; exercises without a check fail elsewhere."""
    found = []
    for task in TASKS:
        try:
            found += [(task.number, fault) for fault in find(task.number).wrong]
        except ConfigError:
            continue
    return found


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.number)
def test_the_solution_is_right(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    assert task.solution
    assert task.answer
    names: dict[str, Any] = {"__name__": f"solution_{task.number}"}
    exec(compile(task.solution, f"<solution {task.number}>", "exec"), names)
    capsys.readouterr()
    check(task.number, eval(task.answer, names))
    assert capsys.readouterr().out == f"Exercise {task.number}: right.\n"


def models() -> list[tuple[str, Task, str]]:
    """Return file, exercise and name of every function that the exercise says to equal."""
    return [
        (entry.file, task, name)
        for entry in present()
        for task in tasks(read(FOLDER / entry.file))
        for name in re.findall(r"equals?\s+`(\w+)`", task.text)
    ]


@pytest.mark.parametrize(("file", "task", "name"), models(), ids=lambda x: x.number if isinstance(x, Task) else x)
def test_a_function_to_equal_is_right(file: str, task: Task, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": f"model_{task.number}"}
    for cell in code_cells(read(FOLDER / file)):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef):
                exec(compile(ast.Module([node], []), file, "exec"), names)
    check(task.number, names[name])
    assert capsys.readouterr().out == f"Exercise {task.number}: right.\n"


def test_there_are_functions_to_equal() -> None:
    assert "03.4" in {task.number for _, task, _ in models()}


@pytest.mark.parametrize(("number", "fault"), wrong_answers())
def test_a_wrong_answer_is_refused_with_a_sentence(number: str, fault: str) -> None:
    with pytest.raises((AssertionError, MlffnError)) as refused:
        find(number).verify(find(number).wrong[fault])
    assert len(str(refused.value).splitlines()[0].split()) > 2


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.number)
@pytest.mark.parametrize("answer", [..., lambda *_, **__: ...], ids=["value", "function"])
def test_no_answer_is_told_apart(task: Task, answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check(task.number, answer)
    said = capsys.readouterr().out
    assert said == f"Exercise {task.number}: not answered yet.\n" or (callable(answer) and "not yet." in said)
