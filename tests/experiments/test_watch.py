from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bertillery.config.section import InputError
from experiments.watch import WatchSection, main, newest_record, viewer


def record(run: Path, time: int, kind: str = "offline-run") -> Path:
    file = run / f"wandb/{kind}-2026_{time}-abc/run-abc.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    os.utime(file, (time, time))
    return file


def test_the_record_that_was_written_last_is_shown(tmp_path: Path) -> None:
    first, last = record(tmp_path / "pretrain/a", 30), record(tmp_path / "finetune/task/a/seed-1", 40, "run")
    record(tmp_path / "pretrain/b", 20)
    assert newest_record(tmp_path) == last
    assert newest_record(tmp_path / "pretrain/a") == first
    program = str(Path(sys.executable).with_name("wandb"))
    section = WatchSection(run=tmp_path)
    assert viewer(section, terminal=True) == [program, "leet", str(last.parent)]
    assert viewer(section, terminal=False) == [program, "leet", "inspect", "--summary", str(last)]


def test_without_a_record_nothing_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="has no W&B record"):
        newest_record(tmp_path)
    assert main([f"run={tmp_path}/none"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_page_of_trackio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    command = viewer(WatchSection(to="trackio", project="mine"), terminal=False)
    assert command[1:] == ["show", "--project", "mine"]
    assert Path(command[0]).name == "trackio"
