"""Compressed files: opened by what their name ends with."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, cast

import zstandard

PACKED = ("", ".gz", ".xz", ".zst")
"""What may follow the suffix of a file's format."""
DAMAGED = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
"""What reading a compressed file raises when it is damaged or cut short."""


def open_packed(path: Path) -> IO[bytes]:
    """The unpacked bytes of a file; a plain file where the name ends with none of ``PACKED``."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".xz":
        return lzma.open(path, "rb")
    if suffix == ".zst":
        raw = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)
    return path.open("rb")
