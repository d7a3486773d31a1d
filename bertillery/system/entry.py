"""Signals of a command, from its first import to its end.

After :func:`begin` Ctrl-C ends a command with one line and status 130, also during the imports, which take seconds.
This module imports next to nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = "interrupted; the same command resumes from the last checkpoint, if one was written"
PARENT = "BERTILLERY_PARENT"
"""Environment variable with the id of the process that started this command; the command ends with it."""


def begin() -> None:
    """Called on the first lines of a module that is run as a command."""
    signal.signal(signal.SIGINT, _leave)
    # A thread of GNU's OpenMP that waits for others spins for some ten milliseconds first. On cores shared with other
    # work it takes time from the threads that it waits for: two threads took up to six times as long as one. Waking one
    # that sleeps takes time as well, and a step has thousands of operations. The variable is read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        end_with(int(parent), signal.SIGTERM)  # on which a training saves a checkpoint and leaves


def end_with(parent: int, number: int) -> None:
    """Have the system send this process a signal when its parent, with this id, ends for any reason (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C raise ``KeyboardInterrupt`` in the block, so that files and processes are closed."""
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


class StoppedError(Exception):
    """A signal asked the command to stop, and the processes that it had started have ended."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name, self.status = name, 128 + signal.Signals[name]


class StopSignal:
    """Turns SIGTERM and SIGINT (Ctrl-C) into a flag for the training loop; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the first signal."""
        self._first_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._first_at = signal.Signals(number).name, now
        # torchrun passes the terminal's Ctrl-C on, so it arrives twice: two within a second are one.
        elif number == signal.SIGINT and now - self._first_at > 1:
            raise KeyboardInterrupt
