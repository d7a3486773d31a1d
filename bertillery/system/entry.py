"""The first thing that a command does, before its other imports, which take seconds.

From :func:`begin` on Ctrl-C is one line and status 130, whenever it comes, and a command that was started by another
one of ours ends with that. This module imports next to nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = "interrupted; the same command goes on from the last checkpoint, where there is one"
PARENT = "BERTILLERY_PARENT"
"""Environment variable: the process that started this command and that it ends with."""


def begin() -> None:
    """Called where a command's module begins, if it is run as a command."""
    signal.signal(signal.SIGINT, _leave)
    # A thread that waits for the others first looks again and again, by GNU's OpenMP for some ten milliseconds, and on
    # cores that are shared with other work takes from them the very time that it waits for: two threads took up to six
    # times as long as one. A thousand looks are enough where nothing else runs. It is read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        end_with(int(parent), signal.SIGTERM)  # which a training takes to save itself and leave


def end_with(parent: int, number: int) -> None:
    """Have the system send this process a signal when its parent, which has this id, ends in whatever way.

    Systems other than Linux know nothing like it, and nothing is done there.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before
            os.kill(os.getpid(), number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is Python's ``KeyboardInterrupt`` within, so that what is open is closed."""
    before = signal.getsignal(signal.SIGINT)
    if before is not _leave:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)
