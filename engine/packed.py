"""Compressed files, opened by what their name ends with, and files of a JSON object a line."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from engine.config import InputError

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
