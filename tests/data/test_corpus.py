from __future__ import annotations

import gzip
import io
import json
import lzma
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencex
import zstandard

from bertillery.config.section import ConfigError, InputError, validate
from bertillery.data import files
from bertillery.data.corpus import LANGUAGES, CorpusSection, ReadReport, read_documents, resolve

DOCUMENTS = [["One paragraph.", "Über “quotes” 東京."], ["Another document."]]


def read(path: Path | str, **settings: object) -> list[list[str]]:
    section = CorpusSection.model_validate(settings)
    return list(read_documents(section, [str(path)], ReadReport()))


def write(path: Path, text: str) -> Path:
    data = text.encode()
    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(packed[path.suffix](data) if path.suffix in packed else data)
    return path


AS_TEXT = "\n" + "\n\n \n".join("\n".join(document) for document in DOCUMENTS) + "\n"
AS_JSON = "".join(json.dumps({"id": 1, "text": "\n".join(document)}) + "\n" for document in DOCUMENTS)
AS_CSV = "id,text\n" + "".join(f'1,"{chr(10).join(document)}"\n' for document in DOCUMENTS)


@pytest.mark.parametrize("packed", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize(("kind", "text"), [("txt", AS_TEXT), ("jsonl", AS_JSON), ("json", AS_JSON), ("csv", AS_CSV)])
def test_every_format_gives_the_same_documents(tmp_path: Path, kind: str, text: str, packed: str) -> None:
    assert read(write(tmp_path / f"a.{kind}{packed}", text)) == DOCUMENTS


def test_parquet_and_tsv(tmp_path: Path) -> None:
    table = pa.table({"body": ["\n".join(document) for document in DOCUMENTS] + [None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text="body") == DOCUMENTS
    assert read(write(tmp_path / "a.tsv", 'text\tn\nsay "hi\t1\n')) == [['say "hi']]


def test_windows_lines_byte_order_mark_and_no_final_newline(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("﻿First.\r\nSecond.\r\n\r\nThird.".encode())
    assert read(tmp_path / "a.txt") == [["First.", "Second."], ["Third."]]
    assert read(tmp_path / "a.txt", documents="file") == [["First.", "Second.", "Third."]]


def test_folders_and_globs_are_sorted_and_files_come_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "deep/a.txt", "c.jsonl", "notes.md"):
        (tmp_path / name).write_text("{}")
    names = [Path(path).name for path in resolve([str(tmp_path), f"{tmp_path}/*.txt"])]
    assert names == ["b.txt", "c.jsonl", "a.txt"]


def test_linked_folders_are_followed_each_once_and_links_upwards_end(tmp_path: Path) -> None:
    for folder, number in (("corpus/a", 1), ("corpus/b/c", 2), ("elsewhere/deep", 3)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{number}.txt").write_text("text")
    corpus = tmp_path / "corpus"
    (corpus / "linked").symlink_to(tmp_path / "elsewhere")
    (corpus / "again").symlink_to(corpus / "a")
    for place in ("a/up", "a/top", "b/c/up", "b/c/top"):
        (corpus / place).symlink_to(corpus)
    for entry in (corpus, f"{corpus}/**/*.txt", f"{corpus}/**", f"{tmp_path}/**/corpus/**/?.txt"):
        names = [path.name for path in resolve([str(entry)]) if isinstance(path, Path)]
        assert sorted(names) == ["1.txt", "2.txt", "3.txt"], entry
    together = resolve([str(corpus), str(tmp_path / "elsewhere"), f"{corpus}/b/../a/*.txt"])
    assert sorted(Path(path).name for path in together) == ["1.txt", "2.txt", "3.txt"]
    assert [Path(path).name for path in resolve([f"{corpus}/*/deep/*.txt"])] == ["3.txt"]
    assert [Path(path).name for path in resolve([f"{corpus}/*/*.txt"])] == ["1.txt"]


def test_hidden_names_are_in_folders_but_not_in_globs(tmp_path: Path) -> None:
    for name in (".hidden/a.txt", ".b.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    count = lambda entry: len(resolve([f"{tmp_path}{entry}"]))  # noqa: E731
    assert [*map(count, ("", "/**/*.txt", "/.*", "/.h*/*", "/*"))] == [3, 1, 1, 1, 1]


def test_what_is_not_read_is_counted_by_its_kind(tmp_path: Path) -> None:
    for name in ("a.txt", "b.MD", "deep/c.md", "deep/d", "deep/e.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "f.txt").symlink_to(tmp_path / "nowhere")
    report = ReadReport()
    list(read_documents(CorpusSection(), [str(tmp_path)], report))
    assert report.files == 1
    assert report.passed_over == {".md": 2, "without a suffix": 1, ".pdf": 1, "broken links": 1}


@pytest.mark.parametrize(("kind", "text"), [("txt", AS_TEXT), ("jsonl", AS_JSON), ("csv", AS_CSV)])
@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_every_line_end_gives_the_same_documents(
    tmp_path: Path, kind: str, text: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text.replace("\n", end)
    assert read(write(tmp_path / f"a.{kind}", text)) == DOCUMENTS
    # However the file is cut into pieces, between CR and LF too.
    for limit in range(len(text.encode()) // 2, len(text.encode()) + 2) if kind == "txt" else ():
        lines = [*files.split_lines(io.BytesIO(text.encode()), limit)]
        assert b"".join(lines).decode() == text
        assert lines == text.encode().splitlines(keepends=True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("undecodable", ["fail", "replace"])
def test_text_of_two_or_four_bytes_a_character_is_refused(tmp_path: Path, encoding: str, undecodable: str) -> None:
    for text in ("One line.\nAnother.\n", "東京"):
        (tmp_path / "a.txt").write_bytes(text.encode(encoding))
        if text == "東京" and encoding.startswith("utf-16-"):
            continue  # without a mark, a line end or a letter of ASCII nothing tells
        with pytest.raises(InputError, match=r"a.txt:1: NUL bytes, or the byte order mark of UTF-16 .*iconv"):
            read(tmp_path / "a.txt", undecodable=undecodable)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_that_is_not_utf_8(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([b"good", None, b"na\xefve"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, values.buffers())
    column = broken.dictionary_encode() if pa.types.is_dictionary(kind) else broken.cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet: row 3: not UTF-8; re-encode .*data.undecodable=replace"):
        read(tmp_path / "a.parquet")
    report = ReadReport()
    section = CorpusSection(undecodable="replace")
    assert list(read_documents(section, [str(tmp_path / "a.parquet")], report)) == [["good"], ["na\ufffdve"]]
    assert report.undecodable == 1


def test_report_counts_what_was_read(tmp_path: Path) -> None:
    report = ReadReport()
    list(read_documents(CorpusSection(), [str(write(tmp_path / "a.txt", AS_TEXT))], report))
    assert report == ReadReport(1, 2, 3, sum(len(text) for document in DOCUMENTS for text in document), 0)


def test_undecodable_lines_fail_with_their_number_or_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\nna\xefve\ngood\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"a.txt:2: not UTF-8, the first of 2 such lines; .*undecodable=replace"):
        read(tmp_path / "a.txt")
    report = ReadReport()
    section = CorpusSection(undecodable="replace")
    assert list(read_documents(section, [str(tmp_path / "a.txt")], report)) == [["good", "na�ve", "good", "caf�"]]
    assert report.undecodable == 2


def test_half_a_surrogate_pair_in_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a \\ud800 b"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl:1: half a surrogate"):
        read(path)
    assert read(path, undecodable="replace") == [["a � b"]]


def test_overlong_lines_are_refused_without_being_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    opened = files.open_compressed

    class Watched:
        def __init__(self, path: Path) -> None:
            self.stream = opened(path)

        def readline(self, limit: int) -> bytes:
            line = self.stream.readline(limit)
            sizes.append(len(line))
            return line

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

    monkeypatch.setattr(files, "open_compressed", Watched)
    path = write(tmp_path / "a.txt", "fine\n" + "x" * 12_000_000)
    with pytest.raises(ValueError, match=r"a.txt:2: .*at most 1,000,000.*one paragraph on a line"):
        read(path)
    assert max(sizes) < 5_000_000
    with pytest.raises(ValueError, match=r"a.txt:1: a paragraph of 1,000,002"):
        read(write(tmp_path / "a.txt", "x" * 1_000_001 + "\n"))
    with pytest.raises(ValueError, match=r"a.jsonl: document 1: a paragraph of 1,000,001"):
        read(write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 1_000_001})))


def test_a_file_without_blank_lines_is_not_gathered_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROW", 100)
    with pytest.raises(ValueError, match=r"a.txt:11: a document of more than 100 characters; .*blank lines"):
        read(write(tmp_path / "a.txt", "nine char\n" * 20))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", '{"body": "a", "n": "b"}\n', r"a.jsonl:1: no column 'text'; there are: 'body', 'n'; set data.text"),
        ("a.jsonl", '{"text": ["a"]}\n', r"a.jsonl:1: 'text' holds a list"),
        ("a.json", '[{"text": "a"}]\n', r"a.json:1: .*not a list; turn an array into lines with: jq"),
        ("a.csv", "body,title\na,b\n", r"no column 'text'; there are: 'body', 'title'"),
        ("a.csv", "", r"no column 'text'; there are: none"),
        ("a.csv", "id,text\n1,a\n2\n", r"a.csv:3: 1 fields where the header has 2"),
        ("a.csv", 'id,text\n1,"open\n', r"quotation mark left open"),
        ("a.parquet", "PAR", r"not a readable parquet file"),
        ("a.pdf", "", r"unsupported file type; text files end with one of .txt"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_a_parquet_column_of_lists_that_are_not_utf_8(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(2, *pa.array([b"a", b"\xff"]).buffers()[1:])
    for column in (pa.ListArray.from_arrays([0, 1, 2], texts), pa.StructArray.from_arrays([texts], ["x"])):
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a.parquet: 'text' holds values of type (list|struct)<.*>, not text"):
            read(tmp_path / "a.parquet", undecodable="replace")
    pq.write_table(pa.table({"text": pa.array([None, None], pa.int64())}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == []


def test_wrong_parquet_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'text'; there are: 'n', 'body'"):
        read(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"'n' holds values of type int64, not text"):
        read(tmp_path / "a.parquet", text="n")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        read(tmp_path / "missing.txt")
    (tmp_path / "notes.md").write_text("a")
    with pytest.raises(ValueError, match="no text found in 1 files"):
        read(tmp_path)
    with pytest.raises(ValueError, match="hub:owner/name"):
        read("hub:wikipedia")


@pytest.mark.parametrize("lost", [1, 2000])
@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_archives_cut_short(tmp_path: Path, suffix: str, lost: int) -> None:
    path = write(tmp_path / f"a.txt{suffix}", "".join(f"line {i * i}\n" for i in range(5000)))
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(ValueError, match="damaged or cut short"):
        read(path)


def test_archives_of_several_parts(tmp_path: Path) -> None:
    rows = [f"line {i * i}" for i in range(50_000)]
    halves = ["".join(f"{row}\n" for row in half) for half in (rows[:25_000], rows[25_000:])]
    for suffix in (".gz", ".xz", ".zst"):
        first, second, nothing = (write(tmp_path / f"{i}.txt{suffix}", text) for i, text in enumerate([*halves, ""]))
        path = tmp_path / f"whole.txt{suffix}"
        path.write_bytes(first.read_bytes() + nothing.read_bytes() + second.read_bytes())
        assert read(path) == [rows]
        path.write_bytes(first.read_bytes() + second.read_bytes()[:-1])
        with pytest.raises(ValueError, match="damaged or cut short"):
            read(path)


def test_section_takes_one_path_or_several() -> None:
    assert validate(CorpusSection, {"path": "a.txt"}).path == ["a.txt"]
    assert CorpusSection().path == ["python-docs"]
    for wrong in ({"path": []}, {"holdout": 0}, {"holdout": 1.5}, {"documents": "page"}):
        with pytest.raises(ConfigError):
            validate(CorpusSection, wrong)


@pytest.mark.parametrize("code", ["de-DE", "de_DE", "DE", "german", "xx", "sv", "", "en "])
def test_a_language_without_rules_is_refused(code: str) -> None:
    """The splitter would take English's and say nothing."""
    with pytest.raises(ConfigError, match=r"There are rules for am, ar, bg, .* give the most similar one") as caught:
        validate(CorpusSection, {"language": code})
    assert ("did you mean 'de'?" in str(caught.value)) == (code.lower()[:2] == "de")


def test_the_languages_are_those_that_the_splitter_has_rules_for() -> None:
    """Its compiled module names them in its symbols."""
    (module,) = Path(sentencex.__file__).parent.glob("*.so")
    names = {*re.findall(rb"sentencex9languages2([a-z]{2})", module.read_bytes())}
    if not names:
        pytest.skip("built without symbols")
    assert [name.decode() for name in sorted(names)] == [*LANGUAGES]
