"""Writes a prepared corpus: its files only grow, and after a kill only documents since the last commit are repeated."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

import numpy as np
from pydantic import BaseModel, NonNegativeInt

from bertillery.config.section import InputError
from bertillery.data.encode import HELD_OUT, Encoded
from bertillery.system.records import checked

_CACHE_KB = 64_000
_COMMIT_CHARACTERS = 16_000_000
_ARRAYS = ("ids", "sentences", "documents")


class Counts(BaseModel):
    """What one part of the corpus holds."""

    documents: NonNegativeInt = 0
    sentences: NonNegativeInt = 0
    tokens: NonNegativeInt = 0


class Duplicates(BaseModel):
    """Repetitions that were left out."""

    documents: NonNegativeInt = 0
    paragraphs: NonNegativeInt = 0


class Progress(BaseModel):
    """The part of the corpus that is written."""

    consumed: NonNegativeInt = 0
    """Documents read."""
    characters: NonNegativeInt = 0
    unknown: NonNegativeInt = 0
    """Characters that lie in unknown tokens."""
    duplicates: Duplicates = Duplicates()
    train: Counts = Counts()
    valid: Counts = Counts()
    corpora: list[NonNegativeInt] = []
    """Training documents of each corpus."""


class _Record(BaseModel):
    state: Progress
    lengths: dict[str, NonNegativeInt]


class CorpusWriter:
    """Appends encoded documents to the files in ``partial/corpus``, without repetitions.

    The files, the keys of the texts seen and the progress advance together at ``commit``. Opening again after a kill
    cuts the files back to the last commit. Raises ``InputError`` where the record in ``partial/ledger.sqlite`` is
    damaged.
    """

    def __init__(self, partial: Path) -> None:
        path, remedy = partial / "ledger.sqlite", f"delete {partial} and prepare again"
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
            self._database.execute("CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
            self._database.execute("CREATE TABLE IF NOT EXISTS progress (id INTEGER PRIMARY KEY, record TEXT)")
            # As bytes: damaged text would raise what a full disk does.
            row = self._database.execute("SELECT CAST(record AS BLOB) FROM progress").fetchone()
            values = json.loads(row[0]) if row else {"state": {}, "lengths": {}}
        except sqlite3.OperationalError:  # such as a full disk
            raise
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); {remedy}") from None
        record = checked(path, values, _Record, remedy=remedy)
        self.progress = record.state
        self._uncommitted = 0
        self._files: dict[str, BinaryIO] = {}
        for name in (f"corpus/{part}/{array}.bin" for part in ("train", "valid") for array in _ARRAYS):
            file, length = partial / name, record.lengths.get(name, 0)
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = self._files[name] = file.open("r+b" if file.exists() else "w+b")
            if stream.seek(0, os.SEEK_END) < length:
                raise InputError(f"{file}: shorter than recorded; {remedy}")
            stream.truncate(length)
            stream.seek(length)
            if not length and not name.endswith("ids.bin"):
                stream.write(np.zeros(1, np.int64).tobytes())  # boundaries begin at 0
        self._database.execute("BEGIN")

    def append(self, encoded: Encoded) -> None:
        """Write a batch without repetitions; commits every 16 million characters."""
        progress = self.progress
        progress.consumed += len(encoded.paragraphs)
        progress.characters += encoded.characters
        progress.unknown += encoded.unknown
        document_of = np.repeat(np.arange(len(encoded.paragraphs)), encoded.paragraphs)
        new_document = np.array([self._is_new(key) for key in encoded.document_keys])
        kept = new_document[document_of]
        for paragraph in np.flatnonzero(kept):
            key = encoded.paragraph_keys[paragraph]
            kept[paragraph] = key is None or self._is_new(key)
        progress.duplicates.documents += int((~new_document).sum())
        progress.duplicates.paragraphs += int((new_document[document_of] & ~kept).sum())
        held_out = (encoded.corpus == HELD_OUT)[document_of]
        self._append_part("valid", encoded, document_of, kept & held_out)
        written = encoded.corpus[self._append_part("train", encoded, document_of, kept & ~held_out)]
        before = np.array(progress.corpora, np.int64)
        counts = np.bincount(written, minlength=len(before))
        counts[: len(before)] += before
        progress.corpora = counts.tolist()
        self._uncommitted += encoded.characters
        if self._uncommitted >= _COMMIT_CHARACTERS:
            self.commit()

    def _append_part(
        self, part: Literal["train", "valid"], encoded: Encoded, document_of: np.ndarray, paragraphs: np.ndarray
    ) -> np.ndarray:
        """Write some paragraphs, (P,) bool, and return the documents that are not empty; ``document_of`` (P,) is the
        document of each paragraph."""
        sentences = np.repeat(paragraphs, encoded.sentences)
        lengths = encoded.lengths[sentences]
        documents = np.zeros(len(encoded.paragraphs), np.int64)
        np.add.at(documents, document_of[paragraphs], encoded.sentences[paragraphs])
        written = np.flatnonzero(documents)
        documents = documents[written]
        ids = encoded.ids[np.repeat(sentences, encoded.lengths)]
        counts: Counts = getattr(self.progress, part)
        bounds = (ids, counts.tokens + np.cumsum(lengths), counts.sentences + np.cumsum(documents))
        for array, values in zip(_ARRAYS, bounds, strict=True):
            self._files[f"corpus/{part}/{array}.bin"].write(values.tobytes())
        counts.tokens += len(ids)
        counts.sentences += len(lengths)
        counts.documents += len(documents)
        return written

    def _is_new(self, key: bytes) -> bool:
        """Add the key of a text; returns whether it is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1

    def commit(self) -> None:
        """Make the text so far durable: first the files, then the record of them."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        lengths = {name: stream.tell() for name, stream in self._files.items()}
        record = json.dumps({"state": self.progress.model_dump(), "lengths": lengths})
        self._database.execute("INSERT OR REPLACE INTO progress VALUES (0, ?)", (record,))
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")
        self._uncommitted = 0

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._files.values():
            stream.close()
        self._database.close()
