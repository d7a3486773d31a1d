"""Atomic writes: readers, also after a crash, see either the old or the new content.

Incomplete files and folders are called ``<name>.partial``. A kill may leave them; the next process that holds the
folder's lock removes them with :func:`tidy`.
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
from typing import Any, Literal

import xxhash

from bertillery.config.section import InputError
from bertillery.system.lock import locked


def write_text(path: Path, text: str) -> None:
    """Replace a file's content and flush it to disk.

    The temporary file has the process id in its name, so that two processes do not mix, and is never a link.
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
    """Add the path to errors of writing: the system does not name the file when a disk is full, and libraries raise
    their own errors."""
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
    """Raise ``OSError`` unless the folder, or its nearest existing parent, is writable; leaves no file."""
    place = next(each for each in [path, *path.absolute().parents] if each.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {os.strerror(error.errno or errno.EIO)}", str(path)) from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return fingerprint(path)["sha256"]


def fingerprint(path: Path, algorithm: Literal["sha256", "xxh3_128"] = "sha256") -> dict[str, Any]:
    """Size in bytes and checksum of a file, as JSON data. XXH3 is faster, against damage and not against forgery."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128 if algorithm == "xxh3_128" else algorithm)
    return {"size": path.stat().st_size, algorithm: digest.hexdigest()}


def publish(partial: Path, folder: Path) -> None:
    """Flush a complete folder and rename it, replacing an older one, which is ``<name>.old`` in between."""
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
    """Make a folder in one process, if it does not exist, while others wait.

    ``make`` gets the path ``<name>.partial``, which keeps its content after a kill, and returns the path in it that
    becomes the folder. ``doing`` is that of :func:`bertillery.system.lock.locked`.
    """
    partial, lefts = folder.with_name(f"{folder.name}.partial"), f"{escape(folder.name)}.*.partial"
    if folder.is_dir() and not partial.exists() and not any(folder.parent.glob(lefts)):
        return
    lock = partial / "lock"
    with locked(lock, doing=doing):
        for left in folder.parent.glob(lefts):
            shutil.rmtree(left, ignore_errors=True)  # its process may still be deleting it
        try:
            if not folder.is_dir():
                with writing(partial):
                    made = make(partial)
                publish(made, folder)
            _remove_held(partial)
        except BaseException:
            if partial.is_dir() and [*partial.iterdir()] == [lock]:  # nothing to continue from
                _remove_held(partial)
            raise


def _remove_held(folder: Path) -> None:
    """Delete a folder that contains a lock held by this process. It is renamed first, because processes that wait for
    the lock create files under its name."""
    doomed = folder.with_suffix(f".{os.getpid()}.partial")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder if it exists; a kill leaves it complete or as ``<name>.partial``."""
    doomed = folder if folder.suffix == ".partial" else folder.with_name(f"{folder.name}.partial")
    if folder != doomed and folder.exists():
        remove(doomed)
        folder.rename(doomed)
    if doomed.exists():
        shutil.rmtree(doomed)


def tidy(folder: Path, names: str = "*") -> None:
    """Finish or remove what a kill left in a folder whose lock this process holds; ``names`` is a pattern."""
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
