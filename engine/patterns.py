"""Files that a folder holds or a pattern names, links followed: each real folder once."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.config import InputError


def matching(pattern: Path) -> Iterator[Path]:
    """The files that a pattern matches, ``**`` standing for any number of folders; none where it names no folder."""
    fixed = next((i for i, part in enumerate(pattern.parts) if glob.has_magic(part)), len(pattern.parts) - 1)
    folder = Path(*pattern.parts[:fixed])
    if folder.is_dir():
        yield from expand(folder, [*pattern.parts[fixed:]], hidden=False)


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Without those whose folder and name were there before under another path, through a link or as ``a/../a``."""
    found: dict[tuple[str, str], Path] = {}
    for path in paths:
        found.setdefault((os.path.realpath(path.parent), path.name), path)
    return list(found.values())


def expand(
    folder: Path, parts: list[str], *, hidden: bool, visited: set[tuple[str, int]] | None = None
) -> Iterator[Path]:
    """The files below a folder whose path matches the pattern's parts, of which ``**`` is any number of folders.

    A real folder is visited once for each part of the pattern, so that links upwards end and no name is lost. Without
    ``hidden`` names with a leading dot match only where the pattern has one.
    """
    visited = set() if visited is None else visited
    parts = [*parts, "*"] if parts[-1] == "**" else parts
    state = os.path.realpath(folder), len(parts)
    if state in visited:
        return
    visited.add(state)
    first, *rest = parts
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); make it readable, or leave it out") from None
    shown = [entry for entry in entries if hidden or not entry.name.startswith(".")]
    if first == "**":
        yield from expand(folder, rest, hidden=hidden, visited=visited)
        named, rest = shown, parts
    elif glob.has_magic(first):
        among = entries if first.startswith(".") else shown
        named = [entry for entry in among if fnmatch.fnmatchcase(entry.name, first)]
    else:
        named = [folder / first]
    for entry in named:
        if entry.is_dir():
            if rest:
                yield from expand(entry, rest, hidden=hidden, visited=visited)
        elif first != "**" and not rest and os.path.lexists(entry):
            yield entry
