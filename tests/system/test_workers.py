from __future__ import annotations

import ast
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from bertillery.config.section import InputError
from bertillery.data import pydocs
from bertillery.data.encode import Document, encode_batches
from bertillery.engine.loader import load
from bertillery.run.command import guarded
from tests.corpora import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Iterator[Any]]:
    """Work by processes, of which the first results are there."""
    modules = [(f"0/{path.name}", path) for path in sorted((ROOT / "bertillery/engine").glob("*.py"))]
    monkeypatch.setattr(pydocs, "modules", lambda: modules * 3)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    batch: list[Document] = [(0, ["One sentence. Another one."])]
    return {
        "docstrings": pydocs.read_modules(),
        "encoding": encode_batches(iter([batch] * 40), tmp_path / "tokenizer", "en", 2),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="what ends a child with its parent is Linux's")
@pytest.mark.parametrize("work", ["docstrings", "encoding"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(working: dict[str, Iterator[Any]], work: str, number: signal.Signals) -> None:
    ended, holds = os.pipe()
    began, begins = os.pipe()
    parent = os.fork()
    if parent == 0:
        next(working[work])
        os.write(begins, " ".join(str(child.pid) for child in multiprocessing.active_children()).encode())
        signal.pause()
    os.close(holds)
    children = [int(each) for each in os.read(began, 1000).split()]
    os.kill(parent, number)
    os.waitpid(parent, 0)
    gone, _, _ = select.select([ended], [], [], 10)  # the pipe ends with the last process that has it open
    for child in children if not gone else []:
        os.kill(child, signal.SIGKILL)
    assert children
    assert gone


@pytest.mark.parametrize("work", ["encoding"])
def test_a_worker_that_is_killed_is_an_error_of_ours(working: dict[str, Iterator[Any]], work: str) -> None:
    next(working[work])
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(InputError, match=r"a worker process was killed, most often because memory ran out"):
        [*working[work]]


class Steps:
    """Whoever prepares the second step is killed."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, step: int) -> int:
        if step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step


def test_a_lost_process_that_prepares_batches_is_an_error_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> int:
        return len([*load(cast(Any, Steps()), start=0, num_workers=1, pin_memory=False)])

    assert guarded(action) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: a data loading process was killed (DataLoader worker (pid")
    assert "train.workers=0" in said

    def other() -> int:
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        guarded(other)


def test_there_is_no_other_way_to_have_workers() -> None:
    """Every pool is ours, and every loader begins its workers as ours."""
    for package in ("bertillery", "pretrain", "finetune", "distill", "experiments", "deploy"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    if node.func.id == "ProcessPoolExecutor":
                        assert path.name == "workers.py", path
                    if node.func.id == "DataLoader":
                        assert "worker_init_fn" in {keyword.arg for keyword in node.keywords}, path
