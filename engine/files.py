"""Writing so that a reader, and a later process after a crash, sees the old or the new content and nothing between."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace a file's content; the text is on disk when this returns."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


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


def remove(folder: Path) -> None:
    """Delete a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
