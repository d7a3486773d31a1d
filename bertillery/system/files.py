"""Writing so that a reader, and a later process after a crash, sees the old or the new content and nothing between.

What is half-written, or half-deleted, is called ``<name>.partial``; a kill may leave it. The next process that holds
the lock of the folder removes it with :func:`tidy`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from bertillery.config.section import InputError
from bertillery.system.lock import locked


def write_text(path: Path, text: str) -> None:
    """Replace a file's content; the text is on disk when this returns.

    It is written under a name of this process's own, so that two processes do not mix, and never through a link.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        with writing(path):
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(descriptor)
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let an ``OSError`` say what was being written: the system names no file where a disk is full, and libraries wrap
    it in errors of their own."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number is None or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise OSError(number, f"cannot be written: {os.strerror(number)}", str(path)) from error


def check_writable(path: Path) -> None:
    """Raise ``OSError`` unless a file can be made in ``path``, or where the folder would be made; leaves nothing."""
    place = next(each for each in [path, *path.absolute().parents] if each.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {os.strerror(error.errno or errno.EIO)}", str(path)) from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(partial: Path, folder: Path) -> None:
    """Rename a finished folder to its name; an older one there is replaced, and is called ``<name>.old`` meanwhile."""
    for file in partial.rglob("*"):
        _sync(file)
    _sync(partial)
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        remove(old)
        folder.rename(old)
    partial.rename(folder)
    _sync(folder.parent)
    remove(old)


def make_once(folder: Path, make: Callable[[Path], Path], *, doing: str) -> None:
    """Have a folder made by one process, where it is not there; others wait, and find it.

    ``make`` is given the place ``<name>.partial``, which a kill leaves as it is, fills it, and returns the path in it
    of what becomes the folder. ``doing`` is as in :func:`bertillery.system.lock.locked`.
    """
    partial, lefts = folder.with_name(f"{folder.name}.partial"), f"{escape(folder.name)}.*.partial"
    if folder.is_dir() and not partial.exists() and not any(folder.parent.glob(lefts)):
        return
    lock = partial / "lock"
    with locked(lock, doing=doing):
        for left in folder.parent.glob(lefts):
            shutil.rmtree(left, ignore_errors=True)  # the process that it is of may be at it
        try:
            if not folder.is_dir():
                with writing(partial):
                    made = make(partial)
                publish(made, folder)
            _remove_held(partial)
        except BaseException:
            if partial.is_dir() and [*partial.iterdir()] == [lock]:  # nothing to go on from
                _remove_held(partial)
            raise


def _remove_held(folder: Path) -> None:
    """Delete a folder whose lock in it this process holds, under a name of this process's own: others, which wait for
    the lock or just come, make files in a folder of that name."""
    doomed = folder.with_suffix(f".{os.getpid()}.partial")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder, if it is there; a kill leaves it as it was, or as ``<name>.partial``."""
    doomed = folder if folder.suffix == ".partial" else folder.with_name(f"{folder.name}.partial")
    if folder != doomed and folder.exists():
        remove(doomed)
        folder.rename(doomed)
    if doomed.exists():
        shutil.rmtree(doomed)


def tidy(folder: Path, names: str = "*") -> None:
    """Finish or remove what a kill left in a folder, of files and folders of such ``names`` (a pattern), while this
    process holds its lock."""
    for left in folder.glob(f"{names}.partial"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    for old in filter(Path.is_dir, folder.glob(f"{names}.old")):
        target = old.with_suffix("")
        remove(old) if target.exists() else old.rename(target)  # then it is the only copy


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
