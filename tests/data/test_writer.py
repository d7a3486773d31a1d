from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from bertillery.config.section import InputError
from bertillery.data.encode import HELD_OUT, Encoder
from bertillery.data.writer import CorpusWriter
from tests.corpora import tiny_tokenizer


def written(folder: Path) -> Path:
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    with CorpusWriter(folder) as writer:
        writer.append(Encoder(folder / "tokenizer", "en")([(0, ["w1 w2. w3."]), (HELD_OUT, ["w4 w5 w6."])]))
        writer.commit()
    return folder


def test_what_was_not_committed_is_gone_and_what_was_is_seen(tmp_path: Path) -> None:
    batch = Encoder(written(tmp_path) / "tokenizer", "en")([(0, ["w1 w2. w3."]), (0, ["w7 w8."])])
    sizes = {file: file.stat().st_size for file in tmp_path.rglob("*.bin")}
    with CorpusWriter(tmp_path) as writer:
        writer.append(batch)
    with CorpusWriter(tmp_path) as writer:
        assert {file: file.stat().st_size for file in tmp_path.rglob("*.bin")} == sizes
        writer.append(batch)
        writer.commit()
        assert writer.progress.consumed == 4
        assert writer.progress.duplicates.documents == 1
        assert (writer.progress.train.documents, writer.progress.valid.documents) == (2, 1)


@pytest.mark.parametrize("record", ["{", b"\xff", '{"state": {"consumed": -1}, "lengths": {}}'])
def test_a_damaged_record_is_named_with_the_remedy(tmp_path: Path, record: str | bytes) -> None:
    with sqlite3.connect(written(tmp_path) / "ledger.sqlite") as database:
        database.execute("UPDATE progress SET record = CAST(? AS TEXT)", (record,))
    with pytest.raises(InputError, match=r"ledger\.sqlite: .*delete .* and prepare again"):
        CorpusWriter(tmp_path)


def test_a_file_that_is_shorter_than_recorded_is_refused(tmp_path: Path) -> None:
    (written(tmp_path) / "corpus/train/ids.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"ids\.bin: shorter than recorded; delete .* and prepare again"):
        CorpusWriter(tmp_path)
