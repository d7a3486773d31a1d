"""File locks of the system, which end with the process that holds them.

A forked child would inherit the open file and keep the lock after its parent's end, so children close it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertillery.config.section import ConfigError, InputError

logger = logging.getLogger(__name__)

_held: set[int] = set()
"""Descriptors of the locks that this process holds or waits for."""


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(file: Path, *, doing: str, remedy: str | None = None) -> Iterator[None]:
    """Hold the lock of a file, which is created with its folder.

    If another process holds it, logs that process and waits; ``doing`` says what it does, such as "is preparing this
    corpus". With a ``remedy`` raises ``ConfigError`` that ends with it instead of waiting. The holder may delete the
    file. On a file system without locks logs a warning and continues.
    """
    descriptor = _acquire(file, doing, remedy)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a forked child
            os.ftruncate(descriptor, 0)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child that has not closed it yet
            _release(descriptor)


def _acquire(file: Path, doing: str, remedy: str | None) -> int:
    while True:
        descriptor = _open(file)
        try:
            _lock(descriptor, file, doing, remedy)
            if _is_still(descriptor, file):
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BaseException:
            _release(descriptor)
            raise
        _release(descriptor)  # its last holder has deleted the file


def _open(file: Path) -> int:
    while True:
        with suppress(FileNotFoundError):  # the folder was deleted concurrently
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                if not stat.S_ISDIR(file.parent.lstat().st_mode):  # else a file existed for a moment
                    raise
            try:
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise InputError(f"{file} is a symbolic link, which cannot be a lock; delete it") from None
                raise
            _held.add(descriptor)
            return descriptor


def _lock(descriptor: int, file: Path, doing: str, remedy: str | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        number = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        other = f"{file.parent}: another process {doing}" + (f" (process {number})" if number else "")
        if remedy is not None:
            raise ConfigError(f"{other}; {remedy}") from None
        logger.warning("%s; waiting for it", other)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        logger.warning("%s cannot be locked (%s): make sure that no other process %s", file, error, doing)


def _is_still(descriptor: int, file: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    return False


def _release(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)
