"""The shape of the house, kept by a test: which way imports run, and that a function fits a screen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [
    "bertillery.config", "bertillery.system", "bertillery.engine", "bertillery.models", "bertillery.run",
    "bertillery.data", "bertillery.report", "knowledge", "pretrain", "translation", "finetune", "prompting", "distill",
    "experiments", "deploy", "pages",
]  # fmt: skip
"""Each may import itself and those before it; fine-tuning and pretraining do not know each other."""
APART = {"finetune": {"pretrain"}, "translation": {"pretrain"}}
FILES = sorted(path for room in ROOMS for path in (ROOT / room.replace(".", "/")).rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "bertillery" else 1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way_and_functions_fit_a_screen(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {room_of(name) for name in imported} & {*ROOMS, "bertillery", "tests", "benchmarks"}
    assert ours <= {*ROOMS[: ROOMS.index(room) + 1]} - APART.get(room, set())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 62} == {}
