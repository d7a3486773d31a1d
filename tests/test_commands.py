"""The Makefile's and the README's commands: that they exist, and what they would run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "ARGS"}
"""The environment as it was before the make that runs the tests."""


def would_run(*arguments: str) -> str:
    """What make would execute, installed or not."""
    command = ["make", "-n", "--no-print-directory", "-o", ".venv/.installed", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=OUTSIDE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.replace("\\\n", " ").split())


def test_readme_commands_are_targets_and_configurations() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    commands = [line.split("#")[0].split() for block in blocks for line in block.splitlines() if line.strip()]
    assert ["make", "pretrain"] in commands
    assert ["make", "test"] in commands
    for _, target, *variables in commands:
        assert would_run(target, *(v for v in variables if v.startswith("CONFIG=")))
        for variable in variables:
            if variable.startswith("CONFIG="):
                folder = "distill" if target == "distill" else "pretrain"
                assert (ROOT / f"configs/{folder}/{variable.removeprefix('CONFIG=')}.yaml").is_file()


def test_one_process_is_plain_python() -> None:
    assert would_run("pretrain") == ".venv/bin/python -m pretrain configs/pretrain/bert_docs.yaml"


def test_a_student_has_a_teacher_and_for_a_task_a_start() -> None:
    """The default student is of what make pretrain leaves; the default CONFIG and TASK are other targets'."""
    start = ".venv/bin/python -m distill configs/distill/"
    assert would_run("distill") == f"{start}distilbert_docs.yaml teacher.from=runs/pretrain/bert_docs/export"
    said = would_run("distill", "CONFIG=tinybert_general", "TEACHER=a/b", "DATA=c d", "ARGS=run.seed=1")
    assert said == f"{start}tinybert_general.yaml teacher.from=a/b 'data.path=[c, d]' run.seed=1"
    said = would_run("distill", "CONFIG=tinybert_task", "TASK=sst2", "TEACHER=a", "STUDENT=b", "PROCESSES=2")
    files = "configs/distill/tinybert_task.yaml configs/finetune/sst2.yaml"
    assert said.endswith(f"-m distill {files} model.from=b teacher.from=a run.device=cpu")
    said = would_run("distill", "CONFIG=tinybert_task", "TASK=sst2", "TEACHER=a", "STUDENT=b", "SEEDS=3")
    assert said.endswith(f"-m distill.seeds {files} model.from=b seeds=3 teacher.from=a")


def test_data_becomes_a_list() -> None:
    said = would_run("pretrain", "CONFIG=bert_mini", "DATA=a.txt b/*.jsonl")
    assert said.endswith("configs/pretrain/bert_mini.yaml 'data.path=[a.txt, b/*.jsonl]'")


def test_cpu_processes_go_through_torchrun() -> None:
    """accelerate launch --cpu would start one process only."""
    said = would_run("pretrain", "PROCESSES=2")
    assert "torchrun --nproc-per-node 2 --nnodes 1" in said
    assert said.endswith("run.device=cpu")


@pytest.mark.parametrize("machines", [1, 4])
def test_gpus_go_through_accelerate_with_every_flag(machines: int) -> None:
    said = would_run("pretrain", "GPUS=8", f"MACHINES={machines}", "RANK=0", "HEAD=10.0.0.1")
    for flag in (
        f"--num_processes $(( 8 * {machines} ))", f"--num_machines {machines}", "--machine_rank 0",
        "--main_process_ip 10.0.0.1", "--mixed_precision no", "--dynamo_backend no", "--multi_gpu",
    ):  # fmt: skip
        assert flag in said, flag


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (\S+)", makefile, flags=re.M))
    said = subprocess.run(["make", "help"], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in said.splitlines() if line.startswith("make ")} == targets
