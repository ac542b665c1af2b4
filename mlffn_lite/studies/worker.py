"""A process that runs cells; it ends with the one that started it, from its first moment on.

Only the standard library is imported before that is settled: the rest takes seconds, in which a parent may die.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from functools import cache

_PATIENCE = 0.5  # seconds between looks


@cache
def end_with(parent: int, *, at_once: bool = True) -> None:
    """End this process when its parent ends, however that does, within a second; ``at_once``, on Linux, immediately.

    That is when the thread ends that started it, so it must be one that waits for it.
    """
    if sys.platform == "linux" and at_once:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before that
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Tie this process to the parent that the command line names, and work."""
    end_with(int(sys.argv[1]))
    from .run import serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
