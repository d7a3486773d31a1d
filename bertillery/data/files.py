"""Files on disk: the paths that a pattern names, their decompressed bytes, and their rows.

Rows are lines, JSON objects, rows of csv and tsv, or batches of parquet. Files are streamed, so memory does not grow
with their size. Input that cannot be read is an ``InputError`` with the file, the line or row, and the remedy.
:mod:`bertillery.data.corpus` makes documents of the rows, :mod:`bertillery.data.tables` columns.
"""

from __future__ import annotations

import codecs
import csv
import fnmatch
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import zstandard

from bertillery.config.section import InputError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

COMPRESSED = ("", ".gz", ".xz", ".zst")
"""Suffixes of compression, which follow that of the format."""
MAX_ROW = 64_000_000
"""Bytes. A longer row means that the file has no line breaks, or decompresses without end."""
BATCH = 64
"""Rows of parquet that are read at a time."""
MAX_RATIO = 1000
"""Largest ratio of decompressed to compressed size; very repetitive text reaches a few hundred."""
_DAMAGED = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
"""What reading a compressed file raises when it is damaged or cut short."""
LIMITS = {"row": MAX_ROW, "document": 256_000_000, "paragraph": 4_000_000}
"""Bytes. SQuAD 2.0, a document of JSON, has 42 million."""
_REMEDIES = {
    "row": "check the file's line breaks, and write large documents as .jsonl, a row to a line",
    "document": "write it as .jsonl, a row to a line",
    "paragraph": "at most 1,000,000 characters are allowed in a paragraph: put one paragraph on a line",
}
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""Byte order marks of UTF-16 and UTF-32; that of UTF-32-LE begins with the first of these."""


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


def open_compressed(path: Path) -> IO[bytes]:
    """The decompressed bytes of a file; the plain bytes where its name has none of the suffixes in ``COMPRESSED``.

    Reading raises one of ``_DAMAGED`` for a damaged file, and ``InputError`` beyond ``MAX_RATIO``.
    """
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED[1:]:
        return path.open("rb")
    chunks = _zstd_chunks(path) if suffix == ".zst" else _chunks({".gz": gzip.open, ".xz": lzma.open}[suffix](path))
    return io.BufferedReader(_Decompressed(path, chunks), 1 << 20)


class _Decompressed(io.RawIOBase):
    """Chunks of decompressed bytes as a stream of limited size."""

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
                    f"{self._path}: decompresses to more than {MAX_RATIO:,} times its size, which text never does; to "
                    "read it anyway, decompress it"
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


def suffixes(*formats: str) -> tuple[str, ...]:
    """Suffixes of files of these formats, compressed or not, and of parquet files, which have their own compression."""
    return (*(suffix + compressed for suffix in formats for compressed in COMPRESSED), ".parquet")


def format_of(path: Path) -> str:
    """The suffix of a file's format, in lower case."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED[1:] else path.name).suffix.lower()


def too_large(where: str, what: str) -> InputError:
    """The error for a row, document or paragraph over its limit."""
    return InputError(f"{where}: a {what} of more than {LIMITS[what]:,} bytes; {_REMEDIES[what]}")


@dataclass
class Decoder:
    """Decodes UTF-8; other bytes are an error, or are replaced and counted."""

    replace: bool = False
    alternative: str = ""
    """Added to the remedy of an error message."""
    nul: bool = True
    """Whether text may contain NUL; otherwise NUL is taken as a sign of UTF-16."""
    replaced: int = 0
    """Lines, or rows, in which bytes were replaced."""

    def decode(self, where: str, raw: bytes, encoding: str = "utf-8", rest: Iterable[bytes] = ()) -> str:
        """The text; an error also counts the lines in ``rest``, which follow this one, that are not UTF-8."""
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            if not self.replace:
                more = sum(not _is_utf8(line) for line in rest)
                also = f", the first of {1 + more} such lines" if more else ""
                remedy = f"re-encode the file (iconv -t utf-8){self.alternative}"
                raise InputError(f"{where}: not UTF-8{also}; {remedy}") from None
        self.replaced += 1
        return raw.decode(encoding, errors="replace")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_lines(path: Path, decoder: Decoder, *, what: str = "row", cr: bool = True) -> Iterator[str]:
    """The lines of a file with their ends: LF, CR LF and, with ``cr``, CR alone."""
    try:
        with open_compressed(path) as stream:
            lines = split_lines(stream, LIMITS[what]) if cr else iter(lambda: stream.readline(LIMITS[what] + 1), b"")
            for number, raw in enumerate(lines, 1):
                if len(raw) > LIMITS[what]:
                    raise too_large(f"{path}:{number}", what)
                if (number == 1 and raw.startswith(_MARKS)) or (b"\0" in raw and not decoder.nul):
                    raise InputError(
                        f"{path}:{number}: NUL bytes, or the byte order mark of UTF-16 or UTF-32; re-encode the file "
                        "(iconv -f UTF-16 -t UTF-8; without a mark from UTF-16LE or UTF-16BE), or leave it out"
                    )
                yield decoder.decode(f"{path}:{number}", raw, "utf-8-sig" if number == 1 else "utf-8", lines)
    except _DAMAGED as error:
        raise InputError(f"{path}: damaged or cut short: {error}; fetch or compress the file again") from error


def split_lines(stream: IO[bytes], limit: int) -> Iterator[bytes]:
    """Lines that end with LF, CR LF or CR; of a longer one, no more than shows that it is over the limit."""
    rest = b""
    while piece := stream.readline(limit + 1):
        lines = (rest + piece).splitlines(keepends=True)
        rest = b"" if piece.endswith(b"\n") else lines.pop()
        yield from lines
        if len(rest) > limit:
            yield rest
            rest = b""
    if rest:
        yield rest


def json_objects(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number, from 1, and the object of each line that is not blank; ``InputError`` for anything else."""
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


def delimited_rows(path: Path, decoder: Decoder, *, cr: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row of a csv or tsv file that is not blank, and the line on which it begins.

    Quoting is csv's; in a tsv file a quotation mark is an ordinary character.
    """
    lines = read_lines(path, decoder, cr=cr)
    if format_of(path) == ".tsv":
        for number, line in enumerate(lines, 1):
            if text := line.rstrip("\r\n"):
                yield number, text.split("\t")
        return
    csv.field_size_limit(LIMITS["row"])
    first, size = 1, 0

    def counted() -> Iterator[str]:
        nonlocal size
        for line in lines:
            size += len(line)
            if size > LIMITS["row"]:
                raise too_large(f"{path}:{first}", "row")
            yield line

    reader = csv.reader(counted(), strict=True)
    try:
        for row in reader:
            if row:
                yield first, row
            first, size = reader.line_num + 1, 0
    except csv.Error as error:
        raise InputError(f"{path}:{first}: {error}; is a quotation mark left open?") from None


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetFile]:
    """A parquet file; what fails while it is open is an ``InputError`` with its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file: {error}; fetch or write the file again") from error


def parquet_batches(
    path: Path, file: ParquetFile, columns: list[str] | None = None
) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
    """Batches of rows, and the number of the first row of each, from 1."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    if any(group.total_byte_size > LIMITS["row"] * max(1, group.num_rows) for group in groups):
        raise too_large(str(path), "row")
    first = 1
    for batch in file.iter_batches(batch_size=BATCH, columns=columns):
        if batch.nbytes > LIMITS["row"]:
            for number in range(batch.num_rows):
                if batch.slice(number, 1).nbytes > LIMITS["row"]:
                    raise too_large(f"{path}: row {first + number}", "row")
        yield first, batch
        first += batch.num_rows
