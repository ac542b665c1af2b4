"""Words of others, such as names of files, where they could do something: in spreadsheets, Markdown and terminals."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What a spreadsheet would compute. A sign before a plain word or number is no formula that does anything.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_PLAIN = re.compile(r"[+\-][\w .,%]*")
_NO_TEXT = re.compile("[\ud800-\udfff]")
_MARKUP = str.maketrans({"<": "&lt;", ">": "&gt;", "[": "\\[", "]": "\\]", "`": "\\`", "|": "\\|"})


def cell(value: Any) -> Any:
    """Return a value for a CSV file; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    if isinstance(value, str) and _FORMULA.match(value) and not _PLAIN.fullmatch(value):
        return f"'{value}"
    return value


def uncell(text: str) -> str:
    """Return the text that :func:`cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def name(path: object) -> str:
    """Return a path as text that any file can hold: a byte of it that is no UTF-8 becomes ``%FF``."""
    return _NO_TEXT.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", str(path))


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with every text as :func:`cell` writes it."""
    return table.map(cell)


def markdown(text: str) -> str:
    """Return text for a cell of a Markdown table, without HTML, links or code."""
    return printable(text).translate(_MARKUP)


def printable(text: str) -> str:
    """Return text on one line, without characters that steer a terminal; they are shown as Python would write them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
