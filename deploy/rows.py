"""Rows written one part after the other: csv, tsv, jsonl and parquet files that appear once they are complete."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertillery.config.section import InputError
from bertillery.system.files import writing
from bertillery.system.printable import printable
from finetune.task_types.multilabel import join_names

if TYPE_CHECKING:
    import pyarrow

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of what can be written."""
Columns = Mapping[str, Sequence[Any]]
"""Cells by column, all columns of one length."""


@contextmanager
def row_writer(path: Path, schema: pyarrow.Schema | None) -> Iterator[Callable[[Columns], None]]:
    """A function that adds rows to the file of this name, which replaces an older one when the block ends without an
    error; otherwise nothing is left. ``schema`` is needed for parquet alone."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with ExitStack() as stack:
                yield _opened(partial, path.suffix, schema, stack)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _opened(partial: Path, suffix: str, schema: pyarrow.Schema | None, stack: ExitStack) -> Callable[[Columns], None]:
    if suffix == ".parquet":
        return _parquet(partial, schema, stack)
    stream = stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
    if suffix == ".jsonl":
        return lambda columns: stream.writelines(
            json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=str) + "\n"
            for row in zip(*columns.values(), strict=True)
        )
    begun = False
    table = csv.writer(stream, lineterminator="\n")

    def add(columns: Columns) -> None:
        nonlocal begun
        lines = ([_cell(cell) for cell in row] for row in zip(*columns.values(), strict=True))
        for line in lines if begun else [[*columns], *lines]:
            if suffix == ".csv":
                table.writerow(line)
            else:
                stream.write("\t".join(map(printable, line)) + "\n")
        begun = True

    return add


def _cell(cell: Any) -> str:
    """A cell of csv and tsv: names with commas between, numbers with spaces, other values as JSON."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, float):
        return f"{cell:.9g}"  # as much as a float32 holds
    if isinstance(cell, list) and all(isinstance(each, str) for each in cell):
        return join_names(cell)
    if isinstance(cell, list) and all(isinstance(each, float | None) for each in cell):
        return " ".join("-" if each is None else f"{each:.6g}" for each in cell)
    return json.dumps(cell, ensure_ascii=False, default=str)


def _parquet(partial: Path, schema: pyarrow.Schema | None, stack: ExitStack) -> Callable[[Columns], None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert schema is not None
    writer = stack.enter_context(pq.ParquetWriter(partial, schema))
    return lambda columns: writer.write_table(pa.table({name: [*cells] for name, cells in columns.items()}, schema))


def schema_of(columns: Columns, known: pyarrow.Schema | None, where: str) -> pyarrow.Schema:
    """The types of the columns in parquet, together with those ``known`` from other rows; ``InputError`` for a column
    whose cells have no common type."""
    import pyarrow as pa

    try:
        found = pa.table({name: [*cells] for name, cells in columns.items()}).schema
        return found if known is None else pa.unify_schemas([known, found], promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"{where}: a column has values of several types ({error}); give output=<name>.jsonl") from None


def settled(field: pyarrow.Field) -> pyarrow.Field:
    """The column with text for what no row so far has a type for, as where no list has an entry."""
    import pyarrow as pa

    kind = field.type
    empty = pa.types.is_list(kind) and pa.types.is_null(kind.value_type)
    return field.with_type(pa.list_(pa.string()) if empty else pa.string() if pa.types.is_null(kind) else kind)
