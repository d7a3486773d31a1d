"""Compressed files, opened by what their name ends with, and files of a JSON object a line.

Files that a folder holds or a pattern names, links followed: each real folder once.
"""

from __future__ import annotations

import fnmatch
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from bertillery.config.section import InputError

PACKED = ("", ".gz", ".xz", ".zst")
"""What may follow the suffix of a file's format."""
MAX_ROW = 64_000_000
"""Bytes of a row of a table; a longer one is no row, but a file without line breaks, or one that unpacks for ever."""
MOST_UNPACKED = 1000
"""Times the size of a compressed file; text that repeats itself a lot has some hundred."""
DAMAGED = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
"""What reading a compressed file raises when it is damaged or cut short."""


def open_packed(path: Path) -> IO[bytes]:
    """The unpacked bytes of a file; a plain file where the name ends with none of ``PACKED``."""
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _Frames}
    opener = openers.get(path.suffix.lower())
    return io.BufferedReader(_Bounded(path, opener(path)), 1 << 20) if opener else path.open("rb")


class _Bounded(io.RawIOBase):
    """What is unpacked, up to a size that no text has; ``InputError`` from there on."""

    def __init__(self, path: Path, unpacked: IO[bytes]) -> None:
        self._path, self._unpacked, self._bytes = path, unpacked, 0
        self._most = max(MAX_ROW, MOST_UNPACKED * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        number = self._unpacked.readinto(buffer)  # pyright: ignore[reportAttributeAccessIssue]
        self._bytes += number
        if self._bytes > self._most:
            raise InputError(
                f"{self._path}: unpacks to more than {MOST_UNPACKED:,} times its size, as no text does; if it is to be "
                "read, unpack it"
            )
        return number

    def close(self) -> None:
        self._unpacked.close()
        super().close()


class _Frames(io.RawIOBase):
    """The unpacked bytes of a .zst file, which is one frame or several; ``EOFError`` where the last one is cut short.

    The library's own reader takes the end of the file for the end of the text, wherever that is.
    """

    _BYTES = 1 << 8  # read at a time: four of them may stand for 128 kB, so that 8 MB are unpacked at most

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._packed, self._unpacked = b"", memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._unpacked:
            self._packed = self._packed or self._file.read(self._BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._unpacked, self._packed = memoryview(self._frame.decompress(self._packed)), self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        taken = min(len(buffer), len(self._unpacked))
        buffer[:taken], self._unpacked = self._unpacked[:taken], self._unpacked[taken:]
        return taken

    def close(self) -> None:
        self._file.close()
        super().close()


def json_objects(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line that is not blank, with the line's number from 1; ``InputError`` for anything else."""
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also an integer of too many digits
            raise InputError(f"{path}:{number}: not JSON ({error}); a line must hold one whole JSON object") from None
        if not isinstance(row, dict):
            remedy = "; turn an array into lines with: jq -c '.[]'" if isinstance(row, list) else ""
            raise InputError(f"{path}:{number}: a line must hold a JSON object, not a {type(row).__name__}{remedy}")
        yield number, row


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
