"""One owner for a folder that is written to: a lock that dies with its process, and a word about who holds it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import BusyError, MlffnError

LOCK, OWNER = ".lock", ".owner"
_ORPHAN = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as storage.write_atomic names them
_AGE = 600  # seconds after which a temporary file of a folder without a lock belongs to nobody


class _Held(NamedTuple):
    lock: object
    thread: int


_held: dict[Path, _Held] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def own(folder: str | Path) -> Iterator[None]:
    """Hold a folder as its only writer, and remove what an earlier one left half-written; the folder is made.

    A thread may hold a folder several times over. Of several processes that train together the first holds it for all.

    Raises
    ------
    BusyError
        If somebody else holds it; the message names the process.
    MlffnError
        If the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    place, thread = folder.resolve(), threading.get_ident()
    with _guard:
        mine = place in _held and _held[place].thread == thread
    if mine or any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "NODE_RANK", "RANK")):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / LOCK).is_symlink():  # what it leads to would be emptied
            raise OSError(f"{LOCK} is a link, which is not followed; remove it")
        lock = FileLock(folder / LOCK, thread_local=False)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BusyError(
            f"{folder} is in use by {_owner(folder)}; wait until it ends or choose another folder"
        ) from error
    except OSError as error:
        raise MlffnError(
            f"cannot write {folder}: {error.strerror or error}; free space or choose another folder"
        ) from error
    try:
        with _guard:
            _held[place] = _Held(lock, thread)
        with contextlib.suppress(OSError):  # only a help for people
            (folder / OWNER).unlink(missing_ok=True)  # it may be a link or a pipe that somebody has put there
            (folder / OWNER).write_text(json.dumps(_about()), "utf-8")
        remove_orphans(folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        with _guard:
            _held.pop(place, None)
        lock.release()


def remove_orphans(folder: Path, age: float = 0.0) -> None:
    """Remove temporary files that a writer which was killed has left, if they are as old as ``age`` in seconds."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _ORPHAN.fullmatch(path.name) and time.time() - path.stat().st_mtime >= age:
                path.unlink(missing_ok=True)


def remove_old_orphans(folder: Path) -> None:
    """As :func:`remove_orphans`, where several may write: only what no writer can still be at work on."""
    remove_orphans(folder, _AGE)


def _about() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
    return {"process": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.strftime("%H:%M")}


def _owner(folder: Path) -> str:
    """Name the process that holds a folder, as far as it has said who it is."""
    try:
        found = json.loads((folder / OWNER).read_text("utf-8"))
        return f"process {int(found['process'])} on {found['host']} ({found['command']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
