"""Checks of the notebooks' exercises: each says what is wrong with an answer, and refuses plausible wrong ones.

A module per notebook, ``nb04.py`` for notebook 04, registers its checks::

    @exercise("04.1", wrong={"forgets the last level": lambda x: ...})
    def level_of(answer):
        assert answer(2) == 3, "the third level starts at 2"
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from mlffn_lite.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1]
_SOLUTION = re.compile(r"<summary>Solution</summary>\n\n.*?```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Exercise:
    """A check, and wrong answers that it must refuse, by what is wrong with them."""

    number: str
    verify: Callable[[Any], None]
    wrong: Mapping[str, Any] = field(default_factory=dict)


EXERCISES: dict[str, Exercise] = {}


def exercise(number: str, *, wrong: Mapping[str, Any]) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a check that raises AssertionError, with a helpful sentence, for a wrong answer.

    Parameters
    ----------
    number : str
        Notebook and number, such as ``"04.1"``.
    wrong : mapping
        At least one plausible wrong answer; the tests prove that each is refused.
    """

    def register(verify: Callable[[Any], None]) -> Callable[[Any], None]:
        EXERCISES[number] = Exercise(number, verify, wrong)
        return verify

    return register


def find(number: str) -> Exercise:
    """Return an exercise by number."""
    module = f"{__package__}.nb{number.partition('.')[0]}"
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # a check wants something that is not installed: not the number's fault
            raise
    if number not in EXERCISES:
        raise ConfigError(f"there is no exercise {number!r}")
    return EXERCISES[number]


def check(number: str, answer: Any) -> None:
    """Print whether an answer is right; ``...`` or a function that returns it counts as not answered yet.

    Never raises for a wrong answer: the notebook goes on.
    """
    _judge(number, answer)


def checked(number: str, answer: Any) -> Any:
    """Like :func:`check`, for what the next cells use: returns the answer if it is right, else the folded solution."""
    if _judge(number, answer):
        return answer
    print("The notebook goes on with the solution that is folded above.")
    return solution(number)


def solution(number: str) -> Any:
    """Return what the folded solution of an exercise defines last, as it stands in its notebook.

    Raises
    ------
    ConfigError
        If no notebook has such a solution.
    """
    for path in FOLDER.glob(f"{number.partition('.')[0]}_*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            if f"### Exercise {number}:" in text and (code := _SOLUTION.search(text)):
                names: dict[str, Any] = {"__name__": f"solution_{number}"}
                exec(compile(code[1], f"<solution {number}>", "exec"), names)
                return names[list(names)[-1]]
    raise ConfigError(f"there is no folded solution of exercise {number!r}")


def _judge(number: str, answer: Any) -> bool:
    wanted = find(number)
    try:
        if answer is ... or answer is None:
            raise _Unanswered
        wanted.verify(_watched(answer) if isinstance(answer, FunctionType) else answer)
    except _Unanswered:
        print(f"Exercise {number}: not answered yet.")
    except AssertionError as error:
        print(f"Exercise {number}: not yet. {error}")
    except Exception as error:  # a slip in the reader's code must not stop the notebook
        print(f"Exercise {number}: not yet. It raised {type(error).__name__}: {error}")
    else:
        print(f"Exercise {number}: right.")
        return True
    return False


class _Unanswered(Exception):  # noqa: N818 - an event
    """The reader has not written anything yet."""


def _watched(answer: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        result = answer(*arguments, **options)
        if result is ...:
            raise _Unanswered
        return result

    return call
