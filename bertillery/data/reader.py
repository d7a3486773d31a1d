"""The rows of a file and their places: lines, JSON objects, rows of csv and tsv, batches of parquet.

Files are streamed, so memory does not grow with their size. What cannot be read is an ``InputError`` with the file, the
line or row, and the remedy. :mod:`bertillery.data.corpus` makes documents of the rows, :mod:`bertillery.data.tables`
columns.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bertillery.config.section import InputError
from bertillery.data.files import COMPRESSED, DAMAGED, MAX_ROW, open_compressed

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

LIMITS = {"row": MAX_ROW, "document": 256_000_000, "paragraph": 4_000_000}
"""Bytes. SQuAD 2.0, a document of JSON, has 42 million."""
_REMEDIES = {
    "row": "check the file's line breaks, and write large documents as .jsonl, a row to a line",
    "document": "write it as .jsonl, a row to a line",
    "paragraph": "at most 1,000,000 characters are allowed in a paragraph: put one paragraph on a line",
}
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""Byte order marks of UTF-16 and UTF-32; that of UTF-32-LE begins with the first of these."""


def suffixes(*formats: str) -> tuple[str, ...]:
    """What the names of files of these formats may end with; parquet is among them, and has its own compression."""
    return (*(suffix + compressed for suffix in formats for compressed in COMPRESSED), ".parquet")


def format_of(path: Path) -> str:
    """The suffix of a file's format, in lower case."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED[1:] else path.name).suffix.lower()


def too_large(where: str, what: str) -> InputError:
    """The error for a row, document or paragraph over its limit."""
    return InputError(f"{where}: a {what} of more than {LIMITS[what]:,} bytes; {_REMEDIES[what]}")


@dataclass
class Decoder:
    """How bytes become text. Bytes that are not UTF-8 are an error, or are replaced and counted."""

    replace: bool = False
    alternative: str = ""
    """What an error message offers beside re-encoding the file."""
    nul: bool = True
    """Whether NUL is a character of a text; otherwise it tells UTF-16 without a byte order mark."""
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
    except DAMAGED as error:
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
    for batch in file.iter_batches(batch_size=64, columns=columns):
        if batch.nbytes > LIMITS["row"]:
            for number in range(batch.num_rows):
                if batch.slice(number, 1).nbytes > LIMITS["row"]:
                    raise too_large(f"{path}: row {first + number}", "row")
        yield first, batch
        first += batch.num_rows
