"""Growing files that survive a kill: what was written, and which texts were seen, is recorded in one transaction."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pydantic import BaseModel, NonNegativeInt

from bertillery.config.section import InputError
from bertillery.system.records import checked

_CACHE_KB = 64_000


class _Record(BaseModel):
    state: dict[str, Any]
    lengths: dict[str, NonNegativeInt]


class Ledger:
    """Files that are only appended to, a set of keys on disk, and a small state; all three advance at ``commit``.

    Opening it again after a kill cuts the files back to the last commit.
    """

    def __init__(self, path: Path, files: list[Path], state: dict[str, Any]) -> None:
        remedy = f"delete {path.parent} and prepare again"
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
            self._database.execute("CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
            self._database.execute("CREATE TABLE IF NOT EXISTS progress (id INTEGER PRIMARY KEY, record TEXT)")
            row = self._database.execute("SELECT record FROM progress").fetchone()
            values = json.loads(row[0]) if row else {"state": state, "lengths": {}}
        except sqlite3.OperationalError:  # such as a full disk
            raise
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); {remedy}") from None
        record = checked(path, values, _Record, remedy=remedy)
        self.state: dict[str, Any] = record.state
        """What the caller wants to remember; the value of the last commit, or as given."""
        self._files: dict[Path, BinaryIO] = {}
        for file in files:
            length = record.lengths.get(str(file.relative_to(path.parent)), 0)
            stream = file.open("r+b" if file.exists() else "w+b")
            if stream.seek(0, os.SEEK_END) < length:
                raise InputError(f"{file}: shorter than recorded; {remedy}")
            stream.truncate(length)
            stream.seek(length)
            self._files[file] = stream
        self._root = path.parent
        self._database.execute("BEGIN")

    def append(self, file: Path, data: bytes) -> None:
        """Add to the end of one of the files."""
        self._files[file].write(data)

    def is_new(self, key: bytes) -> bool:
        """Add the key to the set; whether it was not there."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1

    def commit(self) -> None:
        """Make everything up to here durable: first the files, then the record of them."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        lengths = {str(file.relative_to(self._root)): stream.tell() for file, stream in self._files.items()}
        record = json.dumps({"state": self.state, "lengths": lengths})
        self._database.execute("INSERT OR REPLACE INTO progress VALUES (0, ?)", (record,))
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._files.values():
            stream.close()
        self._database.close()
