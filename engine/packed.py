"""Compressed files, opened by what their name ends with, and files of a JSON object a line."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from engine.config import InputError

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


def json_objects(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line that is not blank, with the line's number from 1; ``InputError`` for anything else."""
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON ({error}); a line must hold one whole JSON object") from None
        if not isinstance(row, dict):
            remedy = "; turn an array into lines with: jq -c '.[]'" if isinstance(row, list) else ""
            raise InputError(f"{path}:{number}: a line must hold a JSON object, not a {type(row).__name__}{remedy}")
        yield number, row
