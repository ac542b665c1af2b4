"""Digests that a file carries of itself, so that a single bit that has changed is noticed when it is read.

A sealed file holds the words ``sha256:`` and 64 hexadecimal digits: the SHA-256 of all its bytes, with zeros in the
place of these digits. A seal tells damage, not forgery: whoever can write the file can seal it anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .errors import MlffnError

MARK = b"sha256:"
BLANK = f"sha256:{'0' * 64}"
"""What to write where :func:`seal` shall put the digest."""


def seal(content: bytes) -> bytes:
    """Return content with its one :data:`BLANK` replaced by its digest."""
    blank = BLANK.encode()
    if content.count(MARK) != 1 or blank not in content:
        raise MlffnError(f"cannot seal: the word {MARK.decode()!r} stands in what is written; choose other names")
    return content.replace(blank, MARK + hashlib.sha256(content).hexdigest().encode())


def sealed(content: bytes) -> bool:
    """Whether content carries its own digest."""
    place = content.find(MARK) + len(MARK)
    if place < len(MARK):
        return False
    view = memoryview(content)
    digest = hashlib.sha256(view[:place])
    digest.update(b"0" * 64)
    digest.update(view[place + 64 :])
    return content[place : place + 64] == digest.hexdigest().encode()


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file; an OSError says that it is none, instead of waiting for a pipe or device."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    return path.read_bytes()
