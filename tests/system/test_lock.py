from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from bertillery.config.section import ConfigError
from bertillery.system.files import make_once, remove, tidy, write_text
from bertillery.system.lock import locked


class Heard(logging.Handler):
    """Sets an event when something is said."""

    def __init__(self) -> None:
        super().__init__()
        self.event, self.text = Event(), ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()
        self.event.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler, logger = Heard(), logging.getLogger("bertillery.system.lock")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_whoever_waits_says_for_whom_and_then_goes_on(tmp_path: Path, heard: Heard) -> None:
    """Also where the other one has deleted the folder of the lock, which is how a finished work ends."""
    file, order = tmp_path / "made.partial/lock", []

    def second() -> None:
        with locked(file, doing="is making this"):
            assert file.exists(), "not the lock of a file that is gone"
            order.append("second")

    with ThreadPoolExecutor(1) as thread:
        with locked(file, doing="is making this"):
            waiting = thread.submit(second)
            assert heard.event.wait(60)
            order.append("first")
            remove(file.parent)
        waiting.result(60)
    assert order == ["first", "second"]
    assert f"{file.parent}: another process is making this (process {os.getpid()}); waiting for it" in heard.text


def test_whoever_does_not_wait_is_told_what_to_do(tmp_path: Path) -> None:
    asked = locked(tmp_path / "lock", doing="is at it", remedy="call later")
    said = rf"process is at it \(process {os.getpid()}\); call later"
    with locked(tmp_path / "lock", doing="is at it"), pytest.raises(ConfigError, match=said), asked:
        pass
    with locked(tmp_path / "lock", doing="is at it", remedy="call later"):
        pass


def test_a_folder_is_made_once_and_a_failure_is_no_obstacle(tmp_path: Path) -> None:
    made = []

    def make(partial: Path) -> Path:
        made.append(1)
        if len(made) == 1:
            raise ValueError("no")
        (partial / "content").mkdir()
        return partial / "content"

    with pytest.raises(ValueError, match="no"):
        make_once(tmp_path / "folder", make, doing="is making this")
    assert not [*tmp_path.iterdir()]
    for _ in range(2):
        make_once(tmp_path / "folder", make, doing="is making this")
    assert len(made) == 2
    assert [entry.name for entry in tmp_path.rglob("*")] == ["folder"]


def test_who_comes_while_what_is_over_is_removed_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process opens the lock between the two steps of deleting its folder: that of its files and its own."""
    partial, rmdir = tmp_path / "folder.partial", os.rmdir

    def make(place: Path) -> Path:
        (place / "content").mkdir()
        return place / "content"

    def open_before(path: Path, **given: int) -> None:
        if partial.is_dir():
            (partial / "lock").touch()
        rmdir(path, **given)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", open_before)
        make_once(tmp_path / "folder", make, doing="is making this")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    (tmp_path / "folder.9.partial").mkdir()  # of a process that was killed meanwhile
    make_once(tmp_path / "folder", make, doing="is making this")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_is_there_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made and deleted by others while the lock's folder is made."""
    mkdir, asked = Path.mkdir, []

    def once(path: Path, **given: Any) -> None:
        asked.append(path)
        if len(asked) == 1:
            raise FileExistsError(path)
        mkdir(path, **given)

    monkeypatch.setattr(Path, "mkdir", once)
    with locked(tmp_path / "new/lock", doing="is at it"):
        assert (tmp_path / "new/lock").exists()
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), locked(tmp_path / "file/lock", doing="is at it"):
        pass


def test_tidy_finishes_or_removes_what_a_kill_left(tmp_path: Path) -> None:
    for name in ("a.partial/x", "b/x", "b.old/x", "only.old/x"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    (tmp_path / "c.txt.9.partial").write_text("half")
    (tmp_path / "notes.old").write_text("a file is no folder of ours")
    write_text(tmp_path / "c.txt", "whole")
    tidy(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["b", "c.txt", "notes.old", "only"]
    assert (tmp_path / "b/x").read_text() == "b/x"
    assert (tmp_path / "only/x").read_text() == "only.old/x"
