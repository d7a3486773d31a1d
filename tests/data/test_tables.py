"""A file that is read in parts has the rows, the lines and the messages of one that is read as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertillery.config.section import InputError
from bertillery.data import files
from bertillery.data.tables import Part, read_table, read_tables

ROWS = [{"text": f"row {n}", "label": n % 3} for n in range(23)]


def written(folder: Path, name: str) -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    elif path.suffix == ".conll":
        path.write_text("".join(f"# {n}\nrow\tO\n{n}\tB-a\n\n" for n in range(23)))
    elif path.suffix == ".json":
        asked = [{"id": f"q{n}", "question": f"row {n}", "answers": []} for n in range(23)]
        path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": asked}]}]}))
    else:
        comma = {".csv": ",", ".tsv": "\t"}[path.suffix]
        path.write_text(f"text{comma}label\n" + "".join(f"row {n}{comma}{n % 3}\n" for n in range(23)))
    return path


@pytest.mark.parametrize("most", [Part(rows=1), Part(rows=5), Part(rows=23), Part(rows=100), Part(characters=20)])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.conll", "a.json"])
def test_parts_are_the_whole(tmp_path: Path, name: str, most: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH", 4)
    path = written(tmp_path, name)
    whole, parts = read_table(path, header=(), needed=()), [*read_tables(path, header=(), needed=(), most=most)]
    size = max(len(part.lines) for part in parts)
    assert size <= (max(4, -(-most.rows // 4) * 4) if name.endswith("parquet") else most.rows)
    assert len(parts) > 1 or most.rows >= 23
    for column, cells in whole.columns.items():
        assert [cell for part in parts for cell in part.columns[column]] == cells
    places = [part.place(row) for part in parts for row in range(len(part.lines))]
    assert places == [whole.place(row) for row in range(23)]


def test_the_columns_of_lines_are_those_seen_so_far(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": 2}\n{"a": 3}\n')
    parts = [*read_tables(tmp_path / "a.jsonl", header=(), needed=(), most=Part(rows=1))]
    assert [part.columns for part in parts] == [{"a": [1]}, {"a": [None], "b": [2]}, {"a": [3], "b": [None]}]


def test_a_defect_in_a_later_part_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n5\n")
    parts = [*read_tables(tmp_path / "a.csv", header=(), needed=(), most=Part(rows=2))]
    assert parts[1].incomplete == {0: "1 fields where there are 2 columns"}
    assert parts[1].place(0).endswith("a.csv:4")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2"):
        list(read_tables(tmp_path / "a.jsonl", header=(), needed=(), most=Part(rows=1)))


@pytest.mark.parametrize("name", ["a.csv", "a.conll"])
def test_an_empty_file_is_told_as_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match="empty file"):
        list(read_tables(tmp_path / name, header=(), needed=(), most=Part()))


def test_a_file_with_a_head_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n")
    (table,) = read_tables(tmp_path / "a.csv", header=(), needed=(), most=Part())
    assert table.columns == {"a": [], "b": []}
