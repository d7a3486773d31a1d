"""Worker processes: they end with their parent, leave signals to it, and one that is lost is an error of ours."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from bertillery.config.section import InputError
from bertillery.system.entry import end_with

START = "fork" if sys.platform == "linux" else None
"""Forked, as Linux did by itself before Python 3.14: workers share what the parent holds and are sent no copy of it."""


@contextmanager
def pool(number: int, begin: Callable[..., object] | None = None, *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Workers, each of which begins with a call of ``begin``; ``InputError`` where one is ended from outside."""
    initial = (os.getpid(), begin, *arguments)
    try:
        with ProcessPoolExecutor(number, get_context(START), initializer=begin_worker, initargs=initial) as made:
            yield made
    except BrokenProcessPool:
        raise InputError(f"a worker process was ended from outside, {_REASON}") from None


def begin_worker(parent: int, begin: Callable[..., object] | None = None, *arguments: Any) -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    end_with(parent, signal.SIGKILL)
    if begin is not None:
        begin(*arguments)


def lost_worker(error: RuntimeError) -> str | None:
    """What to say of an error that is one of torch's workers being ended from outside; None of any other."""
    text = str(error)
    if not text.startswith("DataLoader worker (pid"):
        return None
    return (
        f"a process that prepares batches was ended ({text.rstrip('. ')}), {_REASON}; train.workers=0 needs the least"
    )


_REASON = "most often because memory ran out; the same command goes on where it was"
