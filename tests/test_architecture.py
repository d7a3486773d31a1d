"""The shape of the house, kept by a test: which way imports run, and that a function fits a screen."""

from __future__ import annotations

import ast
import re
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


TYPED = re.compile(
    r"\bmake ([a-z]+ [A-Z]+=|("
    + "|".join(re.findall(r"^TAKES_([a-z]+) ", (ROOT / "Makefile").read_text(), re.M))
    + r")\b|$)"
    r"|\b(CONFIG|TASK|MODEL|TEACHER|STUDENTS?|SEEDS|DATA|PROMPT|TEXT|PAIR|RUNS|REPO|ARGS)="
)
"""A command or a setting in make's form."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_messages_are_told_in_the_form_of_the_user(path: Path) -> None:
    """One module knows whether that is make's or the program's; documentation of keys may name make's."""
    if path == ROOT / "bertillery/system/invocation.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = [
        (node.lineno, node.value) for node in texts if id(node) not in documentation and TYPED.search(str(node.value))
    ]
    assert [each for each in found if (path.name, each[1]) not in MAKE_ALONE] == []


MAKE_ALONE = {("corpus.py", "ARGS=\"data.path='"), ("onnx.py", "onnx MODEL=...")}
"""Where make's form is one of two that are written out, and what is given to the one module."""
