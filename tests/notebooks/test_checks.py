from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import course
from course import checks
from mlffn_lite.errors import ConfigError


@pytest.fixture(autouse=True)
def doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register exercise 97.1: a function that doubles."""
    monkeypatch.setattr(checks, "EXERCISES", {})
    monkeypatch.setitem(sys.modules, "course.nb97", types.ModuleType("nb97"))

    @checks.exercise("97.1", wrong={"adds": lambda x: x + 2})
    def doubles(answer: Any) -> None:
        assert answer(3) == 6, "three becomes six"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: 2 * x, "right."),
        (lambda x: x + 2, "not yet. three becomes six"),
        (lambda x: ..., "not answered yet."),
        (..., "not answered yet."),
        (None, "not answered yet."),
        (lambda x: x / 0, "not yet. It raised ZeroDivisionError: division by zero"),
        (lambda: 6, "not yet. It raised TypeError: "),
        (6, "not yet. It raised TypeError: "),
    ],
)
def test_check_says_how_an_answer_is(answer: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    checks.check("97.1", answer)
    out, err = capsys.readouterr()
    assert out.startswith(f"Exercise 97.1: {said}")
    assert err == ""


@pytest.mark.parametrize("number", ["97.2", "96.1", "97", ""])
def test_an_unknown_exercise_is_the_callers_mistake(number: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no exercise '{number}'"):
        checks.check(number, 1)


def test_a_check_that_cannot_be_imported_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nb95.py").write_text("from mlffn_lite.metrics import no_such_name")
    (tmp_path / "nb94.py").write_text("import no_such_package")
    monkeypatch.setattr(course, "__path__", [*course.__path__, str(tmp_path)])
    for number, lacks in (("95.1", "no_such_name"), ("94.1", "no_such_package")):
        with pytest.raises(ImportError, match=lacks):
            checks.find(number)


@pytest.mark.parametrize(("answer", "right"), [(lambda x: 2 * x, True), (lambda x: x + 2, False), (..., False)])
def test_a_notebook_goes_on_with_a_right_answer_or_the_solution(
    answer: Any, right: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "FOLDER", tmp_path)
    text = "### Exercise 97.1: twice\n\n<details><summary>Solution</summary>\n\n```python\ndef double(x):\n"
    (tmp_path / "97_twice.ipynb").write_text(json.dumps({"cells": [{"source": [text, "    return x + x\n```"]}]}))
    goes_on = checks.checked("97.1", answer)
    assert goes_on(5) == 10
    assert (goes_on is answer) == right
    assert ("goes on with the solution" in capsys.readouterr().out) != right
    with pytest.raises(ConfigError, match=r"no folded solution of exercise '97\.2'"):
        checks.solution("97.2")


def test_wrong_answers_are_kept_for_the_tests() -> None:
    assert list(checks.find("97.1").wrong) == ["adds"]


def test_a_class_or_module_reaches_its_check_as_it_is() -> None:
    seen: list[object] = []
    checks.exercise("97.2", wrong={})(seen.append)
    for answer in (torch.nn.ReLU, torch.nn.ReLU()):
        checks.check("97.2", answer)
        assert seen.pop() is answer
