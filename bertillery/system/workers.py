"""Worker processes: they end with their parent and leave Ctrl-C to it; a killed worker is an ``InputError``."""

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
"""Forked workers share the parent's memory; Python 3.14 no longer forks by default."""


@contextmanager
def pool(number: int, begin: Callable[..., object] | None = None, *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Workers that each start with a call of ``begin``; ``InputError`` if one is killed."""
    initial = (os.getpid(), begin, *arguments)
    try:
        with ProcessPoolExecutor(number, get_context(START), initializer=begin_worker, initargs=initial) as made:
            yield made
    except BrokenProcessPool:
        raise InputError(f"a worker process was killed, {_REASON}") from None


def begin_worker(parent: int, begin: Callable[..., object] | None = None, *arguments: Any) -> None:
    """First call of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent decides
    end_with(parent, signal.SIGKILL)
    if begin is not None:
        begin(*arguments)


def lost_worker(error: RuntimeError) -> str | None:
    """Message for the error of a killed worker of torch's data loader; None for other errors."""
    text = str(error)
    if not text.startswith("DataLoader worker (pid"):
        return None
    return f"a data loading process was killed ({text.rstrip('. ')}), {_REASON}; train.workers=0 needs the least memory"


_REASON = "most often because memory ran out; the same command resumes"
