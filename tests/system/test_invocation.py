"""The commands that messages name: in make's form and in the program's, which both understand."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bertillery.__main__ import main
from bertillery.system import invocation
from bertillery.system.invocation import PROGRAM, command_line, installing, settings

ROOT = Path(__file__).resolve().parents[2]
LINES = {
    "finetune": (
        command_line, ("finetune",), {"TASK": "docs_proofreading", "MODEL": "a/export"},
        "make finetune TASK=docs_proofreading MODEL=a/export",
        "bertillery finetune docs_proofreading model.from=a/export",
    ),
    "seeds": (
        command_line, ("finetune", "a.b=[1,2]", "recipe=none"), {"TASK": "rte", "MODEL": "my export", "SEEDS": "5"},
        "make finetune TASK=rte MODEL='my export' SEEDS=5 ARGS=\"'a.b=[1,2]' recipe=none\"",
        "bertillery seeds 'tasks=[rte]' 'model.from=my export' seeds=5 'a.b=[1,2]' recipe=none",
    ),
    "search": (
        command_line, ("search", "space=bert_grid"), {"TASK": "rte", "MODEL": "a"},
        'make search TASK=rte MODEL=a ARGS="space=bert_grid"', "bertillery search rte model.from=a space=bert_grid",
    ),
    "distill": (
        command_line, ("distill",), {"CONFIG": "distilbert_task", "TASK": "...", "TEACHER": "...", "STUDENT": "a"},
        "make distill CONFIG=distilbert_task TASK=... TEACHER=... STUDENT=a",
        "bertillery distill distilbert_task ... teacher.from=... model.from=a",
    ),
    "compare": (
        command_line, ("compare",), {"TEACHER": "a", "STUDENTS": "b c"},
        "make compare TEACHER=a STUDENTS='b c'", "bertillery compare teacher=a 'students=[b,c]'",
    ),
    "onnx": (command_line, ("onnx",), {"MODEL": Path("a")}, "make onnx MODEL=a", "bertillery onnx model=a"),
    "translate": (
        command_line, ("translate",), {"MODEL": "a", "TEXT": "It's <b> ..."},
        "make translate MODEL=a TEXT='It'\"'\"'s <b> ...'", "bertillery translate model=a 'text=It'\"'\"'s <b> ...'",
    ),
    "generate": (
        command_line, ("generate",), {"MODEL": "a", "PROMPT": "..."},
        "make generate MODEL=a PROMPT=...", "bertillery generate model=a prompt=...",
    ),
    "pretrain": (
        command_line, ("pretrain", "objective.entities=a"), {"CONFIG": "ernie_mini", "DATA": "<your text>"},
        'make pretrain CONFIG=ernie_mini DATA=<your text> ARGS="objective.entities=a"',
        "bertillery pretrain ernie_mini data.path=<your text> objective.entities=a",
    ),
    "fewshot": (
        command_line, ("fewshot",), {"TASK": "copa", "MODEL": "a"},
        "make fewshot TASK=copa MODEL=a", "bertillery fewshot copa model=a",
    ),
    "glue": (command_line, ("glue",), {"MODEL": "a"}, "make glue MODEL=a", "bertillery seeds model.from=a"),
    "submission": (
        command_line, ("submission", "fill=true"), {"MODEL": "a"},
        'make submission MODEL=a ARGS="fill=true"', "bertillery submission a fill=true",
    ),
    "evaluate": (
        command_line, ("evaluate",), {"MODEL": "a", "DATA": "b.csv"},
        "make evaluate MODEL=a DATA=b.csv", "bertillery evaluate model=a data=b.csv",
    ),
    "report": (command_line, ("report",), {"RUNS": "a b"}, "make report RUNS='a b'", "bertillery report 'runs=[a,b]'"),
    "embed": (command_line, ("embed",), {}, "make embed", "bertillery embed"),
    "data": (settings, ("predict",), {"DATA": "<file>"}, "DATA=<file>", "data=<file>"),
    "student": (
        settings, ("distill",), {"TASK": "<name>", "STUDENT": "a"},
        "TASK=<name> STUDENT=a", "<name> model.from=a",
    ),
    "task of the Hub": (settings, ("finetune",), {"TASK": "sst2", "HUB": "1"}, "TASK=sst2 HUB=1", "sst2"),
    "optional packages": (installing, ("onnx", "onnx"), {}, "`make onnx`", "`pip install 'bertillery[onnx]'`"),
}  # fmt: skip
"""What is called and given, and the command in both forms."""


@pytest.mark.parametrize("name", LINES)
def test_a_command_is_told_as_this_process_was_started(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, arguments, variables, make, program = LINES[name]
    assert function(*arguments, **variables) == make
    monkeypatch.setenv(PROGRAM, "1")
    assert function(*arguments, **variables) == program


def test_without_a_makefile_it_is_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    assert invocation.by_make()
    monkeypatch.setattr(invocation, "_MAKEFILE", ROOT / "nowhere")
    assert not invocation.by_make()


@pytest.mark.parametrize("name", [name for name, each in LINES.items() if each[0] is command_line])
def test_the_program_understands_its_form(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With a configuration for what is to be filled in."""
    line = LINES[name][-1]
    filled = {"distilbert_task ...": "distilbert_task rte", "=...": "=a", "a.b=[1,2]": "optim.betas=[0.9,0.98]"}
    for place, value in {**filled, "<your text>": "a.txt"}.items():
        line = line.replace(place, value)
    more = {"embed": ["transe_docs"], "glue": ["tasks=[rte]", "recipe=none"]}.get(name, [])
    more = ["recipe=none"] if name in ("finetune", "search") else more
    assert main([*shlex.split(line)[1:], *more, "--print-config"]) == 0, capsys.readouterr().err


def test_who_starts_the_program_is_told_its_commands() -> None:
    command = [sys.executable, "-m", "bertillery", "finetune"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    assert ": bertillery finetune <name in configs/finetune or a .yaml> model.from=<" in found.stderr
