"""Files on disk: those that a pattern or a folder names, and their bytes, decompressed."""

from __future__ import annotations

import fnmatch
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from bertillery.config.section import InputError

COMPRESSED = ("", ".gz", ".xz", ".zst")
"""What may follow the suffix of a file's format."""
MAX_ROW = 64_000_000
"""Bytes of one row. A longer one is a file without line breaks, or a file that decompresses without end."""
MAX_RATIO = 1000
"""Largest ratio of decompressed to compressed size; very repetitive text reaches a few hundred."""
DAMAGED = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
"""What reading a compressed file raises when it is damaged or cut short."""


def open_compressed(path: Path) -> IO[bytes]:
    """The decompressed bytes of a file; the plain bytes where its name has none of the suffixes in ``COMPRESSED``.

    Reading raises one of ``DAMAGED`` for a damaged file, and ``InputError`` beyond ``MAX_RATIO``.
    """
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED[1:]:
        return path.open("rb")
    chunks = _zstd_chunks(path) if suffix == ".zst" else _chunks({".gz": gzip.open, ".xz": lzma.open}[suffix](path))
    return io.BufferedReader(_Decompressed(path, chunks), 1 << 20)


class _Decompressed(io.RawIOBase):
    """Chunks of decompressed bytes as a stream, up to a size that no text reaches."""

    def __init__(self, path: Path, chunks: Generator[bytes]) -> None:
        self._path, self._chunks, self._chunk, self._size = path, chunks, memoryview(b""), 0
        self._limit = max(MAX_ROW, MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._chunk:
            self._chunk = memoryview(next(self._chunks, b""))
            self._size += len(self._chunk)
            if self._size > self._limit:
                raise InputError(
                    f"{self._path}: decompresses to more than {MAX_RATIO:,} times its size, as no text does; if it is "
                    "to be read, decompress it"
                )
        size = min(len(buffer), len(self._chunk))
        buffer[:size], self._chunk = self._chunk[:size], self._chunk[size:]
        return size

    def close(self) -> None:
        self._chunks.close()
        super().close()


def _chunks(stream: IO[bytes]) -> Generator[bytes]:
    with stream:
        yield from iter(lambda: stream.read(1 << 17), b"")


def _zstd_chunks(path: Path) -> Generator[bytes]:
    """The library's own stream takes the end of a file for the end of its last frame, even if that is cut short."""
    frame: zstandard.ZstdDecompressionObj | None = None
    with path.open("rb") as file:
        while data := file.read(1 << 8):  # a frame's block of four bytes may stand for 128 kB
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if chunk := frame.decompress(data):
                    yield chunk
                data = frame.unused_data
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the file ends within a frame")


def matching(pattern: Path) -> Iterator[Path]:
    """The files that a pattern matches; ``**`` stands for any number of folders. Links are followed."""
    fixed = next((i for i, part in enumerate(pattern.parts) if glob.has_magic(part)), len(pattern.parts) - 1)
    folder = Path(*pattern.parts[:fixed])
    if folder.is_dir():
        yield from expand(folder, [*pattern.parts[fixed:]], hidden=False)


def distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths without those that reach the same folder and name another way, through a link or as ``a/../a``."""
    found: dict[tuple[str, str], Path] = {}
    for path in paths:
        found.setdefault((os.path.realpath(path.parent), path.name), path)
    return list(found.values())


def expand(
    folder: Path, parts: list[str], *, hidden: bool, visited: set[tuple[str, int]] | None = None
) -> Iterator[Path]:
    """The files below a folder whose path matches the parts of a pattern.

    Each real folder is visited once for each part of the pattern, so links to a parent folder end and no name is lost.
    Without ``hidden``, names with a leading dot match only where the pattern has one. Raises ``InputError`` for a
    folder that cannot be read.
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
