"""The Makefile's and the README's commands: that they exist, and what they would run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bertillery.config.layers import read_values
from bertillery.config.section import InputError, validate
from bertillery.data.corpus import resolve
from bertillery.models.load import FIRST
from bertillery.system import gpus
from deploy.compare import main as compare
from deploy.evaluate import main as evaluate
from deploy.export import main as export
from deploy.onnx import main as onnx
from deploy.predict import main as predict
from deploy.push import main as push
from distill.__main__ import main as distill
from experiments.glue import main as submit
from experiments.glue import write_submission
from experiments.rates import main as rates
from experiments.search import main as search
from experiments.seeds import main as seeds
from finetune.__main__ import main as finetune
from finetune.task import TaskSection
from pretrain.__main__ import main as pretrain
from pretrain.prepare import main as prepare

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "ARGS"}
"""The environment as it was before the make that runs the tests."""


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-n", "--no-print-directory", "-o", ".venv/.installed", *arguments]
    return subprocess.run(command, cwd=ROOT, env=OUTSIDE, capture_output=True, text=True)


def would_run(*arguments: str) -> str:
    """What make would execute, installed or not."""
    done = dry_run(*arguments)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.replace("\\\n", " ").split())


PAGES = [
    "README.md",
    *(f"docs/{page}.md" for page in ("data", "pretraining", "finetuning", "distillation", "clusters")),
]


def readme_commands() -> list[list[str]]:
    blocks = [
        block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    ]
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines() if line.startswith("make ")]
    return [shlex.split(re.sub(r"<.*?>", "x", line)) for line in lines]


def test_readme_says_where_the_data_of_glue_is() -> None:
    """A command that needs it and does not say so would end with the Hub switched off."""
    for _, target, *variables in readme_commands():
        given = dict(variable.split("=", 1) for variable in variables)
        task = ROOT / f"configs/finetune/{given.get('TASK')}.yaml"
        if target == "glue" or (task.is_file() and "hub" in read_values([str(task)])[0]["task"]):
            assert given.keys() & {"HUB", "GLUE_DIR"}, (target, variables)


def test_readme_task_is_a_task() -> None:
    (text,) = re.findall(r"```yaml\n(task:.*?)```", (ROOT / "docs/finetuning.md").read_text(), flags=re.S)
    task = validate(TaskSection, yaml.safe_load(text)["task"])
    assert {"train", *task.validation} == task.files.keys()


def test_one_process_is_plain_python() -> None:
    assert would_run("pretrain") == ".venv/bin/python -m pretrain configs/pretrain/bert_docs.yaml"
    assert would_run("finetune").endswith(f" model.from={FIRST}")


def test_a_student_has_a_teacher_and_for_a_task_a_start() -> None:
    """The default student is of what make pretrain leaves; the default CONFIG and TASK are other targets'."""
    start = ".venv/bin/python -m distill configs/distill/"
    assert would_run("distill") == f"{start}distilbert_docs.yaml teacher.from=runs/pretrain/bert_docs/export"
    said = would_run("distill", "CONFIG=tinybert_general", "TEACHER=a/b", "DATA=c d", "ARGS=run.seed=1")
    assert said == f"""{start}tinybert_general.yaml teacher.from=a/b 'data.path=["c", "d"]' run.seed=1"""
    assert would_run("distill", "TASK=sst2", "STUDENT=b").startswith(f"{start}distilbert_task.yaml configs/finetune/")
    said = would_run("distill", "CONFIG=tinybert_task", "TASK=sst2", "TEACHER=a", "STUDENT=b", "PROCESSES=2")
    files = "configs/distill/tinybert_task.yaml configs/finetune/sst2.yaml"
    assert said.endswith(f"-m distill {files} model.from=b teacher.from=a run.device=cpu")
    said = would_run("distill", "CONFIG=tinybert_task", "TASK=sst2", "TEACHER=a", "STUDENT=b", "SEEDS=3")
    assert said.endswith(f"-m experiments.seeds {files} model.from=b seeds=3 teacher.from=a")


def test_data_becomes_a_list() -> None:
    """Of which YAML makes nothing else, whatever the names are."""
    said = would_run("pretrain", "CONFIG=bert_mini", "DATA=*.txt b/[0-9].jsonl yes hub:a/b")
    *_, config, given = shlex.split(said)
    assert config == "configs/pretrain/bert_mini.yaml"
    assert read_values([given])[0] == {"data": {"path": ["*.txt", "b/[0-9].jsonl", "yes", "hub:a/b"]}}
    *_, given = shlex.split(would_run("compare", "TEACHER=a", "STUDENTS=b *c"))
    assert read_values([given])[0] == {"students": ["b", "*c"]}


@pytest.mark.parametrize(
    "target",
    [
        "finetune",
        "search",
        "rates",
        "glue",
        "submission",
        "predict",
        "evaluate",
        "export",
        "push",
        "onnx",
        "distill",
        "compare",
    ],
)
def test_a_folder_with_a_space_in_its_name_is_one_argument(target: str) -> None:
    given = {"distill": ["TEACHER", "STUDENT"], "compare": ["TEACHER"]}.get(target, ["MODEL"])
    more = {"distill": ["TASK=sst2"], "compare": ["STUDENTS=b"]}.get(target, [])
    for several in ([], ["SEEDS=3"]) if target in ("finetune", "distill") else ([],):
        folders = [f"{name}=my {name} folder" for name in given]
        words = shlex.split(would_run(target, "-o", ".venv/.onnx", *folders, *more, *several))
        assert sum(word.endswith(tuple(f"my {name} folder" for name in given)) for word in words) == len(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("glue TASK=rte", "make glue does not take TASK; it takes TASKS MODEL SEEDS"),
        ("finetune TASKS=rte", "make finetune does not take TASKS; it takes TASK MODEL SEEDS"),
        ("pretrain CONFG=bert_mini", "make pretrain does not take CONFG; it takes CONFIG DATA"),
        ("data CONFIG=bert_mini PROCESSES=2", "make data does not take PROCESSES"),
        ("finetune SEEDS=2 PROCESSES=2", "with SEEDS=2 a run is one process"),
        ("distill TASK=rte SEEDS=2 GPUS=8", "with SEEDS=2 a run is one process"),
        ("pretrain GPUS=2 PROCESSES=2", "PROCESSES=2 is for CPUs; with GPUS=2 each GPU has one process"),
        ("pretrain PROCESSES=0", "PROCESSES: given '0'; it is a number, 1 or more"),
        ("finetune MACHINES=two", "MACHINES: given 'two'; it is a number, 1 or more"),
        ("distill STUDENT=a", "STUDENT is for a task; give TASK="),
        ("distill CONFIG=tinybert_task", "tinybert_task is for a task; give TASK="),
    ],
)
def test_what_would_be_ignored_is_refused(given: str, said: str) -> None:
    done = dry_run(*given.split())
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(("given", "offline"), [("", "1"), ("HUB=0", "1"), ("HUB=1", "0"), ("DATA=hub:a/b", "0")])
def test_the_hub_is_asked_only_where_one_says_so(monkeypatch: pytest.MonkeyPatch, given: str, offline: str) -> None:
    monkeypatch.delitem(OUTSIDE, "HF_HUB_OFFLINE", raising=False)
    rule = "said: ; @echo offline $(HF_HUB_OFFLINE)"
    assert would_run("--eval", rule, "said", "data", *given.split()).startswith(f"echo offline {offline} ")


def test_variables_of_other_programs_are_left_to_them() -> None:
    given = ["GLUE_DIR=a", "WANDB_MODE=offline", "OMP_NUM_THREADS=1", "HUB=1", "PYTHON=python3.12"]
    assert would_run("pretrain", *given) == would_run("pretrain")
    assert would_run("data", "pretrain", "PROCESSES=2")
    assert would_run("demo", "HUB=1").count("-m finetune ") == 2


def test_variables_that_help_names_are_taken() -> None:
    makefile = (ROOT / "Makefile").read_text()
    said = dict(re.findall(r"^([a-z]+):.*## (.*)$", makefile, flags=re.M))
    takes = {target: re.findall(r"[A-Z]+", dry_run(target, "NONE=1").stderr.split("it takes")[1]) for target in said}
    every = {name for names in takes.values() for name in names}
    for target, text in said.items():
        assert every.intersection(re.findall(r"[A-Z]+", text)) <= {*takes[target]}, target
    spoken = dry_run("help").stdout
    assert all(f"{name}=" in spoken for name in every - {"PORT", "PYTHON"})


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


@pytest.mark.parametrize("given", [["pretrain", "CONFIG=none"], ["finetune", "TASK=none", "SEEDS=2"]])
def test_gpus_that_are_not_there_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    """The configuration, which is not there either, is not looked at."""
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", "GPUS=1", *given]
    environment = {**OUTSIDE, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    said, make = done.stderr.splitlines()
    assert said.startswith("error: GPUS=1: given 1 GPUs, but this machine has none that torch")
    assert make.startswith("make: ***")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert [gpus.main([number]) for number in ("1", "4", "5", "yes", "")] == [0, 0, 2, 2, 2]
    said, other, empty = capsys.readouterr().err.splitlines()
    assert said == "error: GPUS=5: given 5 GPUs, but this machine has 4; give GPUS=4, or PROCESSES=<n> for CPUs"
    assert other == "error: GPUS: given 'yes'; it is a number, GPUs of each machine"
    assert "bertillery.system.gpus '' &&" in would_run("pretrain", "GPUS=")  # an empty one is an argument, too
    assert empty == "error: GPUS: given ''; it is a number, GPUs of each machine"


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (\S+)", makefile, flags=re.M))
    said = subprocess.run(["make", "help"], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in said.splitlines() if line.startswith("make ")} == targets


def test_help_of_an_extra_installs_nothing() -> None:
    for given in ("--help", "-h", "--print-config"):
        said = would_run("onnx", "MODEL=a", f"ARGS=lengths=[8] {given}")
        assert said == f".venv/bin/python -m deploy.onnx model=a lengths=[8] {given}"


TASK = f"{ROOT}/configs/finetune/sst2.yaml"
COMMANDS = {
    "make data": (prepare, [f"{ROOT}/configs/pretrain/bert_docs.yaml"], ["tokenizer"]),
    "make pretrain": (pretrain, [f"{ROOT}/configs/pretrain/bert_docs.yaml"], ["objective"]),
    "make finetune": (finetune, [TASK, "model.from=a", "recipe=none"], ["task"]),
    "make glue": (seeds, ["seeds=3", "tasks=[sst2,rte]", "model.from=a", "recipe=none"], ["seeds", "task", "task"]),
    "make search": (search, [TASK, "model.from=a", "recipe=none", "trials=2"], ["trials", "task"]),
    "make rates": (rates, [TASK, "model.from=a", "recipe=none"], ["lowest", "task"]),
    "rates of pretraining": (rates, [f"{ROOT}/configs/pretrain/bert_docs.yaml"], ["lowest", "objective"]),
    "make submission": (submit, ["a", "fill=true"], ["fill"]),
    "make distill": (distill, [f"{ROOT}/configs/distill/minilm.yaml", "teacher.from=a"], ["teacher"]),
    "make distill SEEDS": (
        seeds,
        [f"{ROOT}/configs/distill/distilbert_task.yaml", TASK, "teacher.from=a", "model.from=b", "seeds=2"],
        ["seeds", "teacher"],
    ),
    "make predict": (predict, ["model=a", "data=[b.csv]"], ["data"]),
    "make evaluate": (evaluate, ["model=a", "data=[b.csv]"], ["task"]),
    "make export": (export, ["model=a"], ["checkpoint"]),
    "make push": (push, ["model=a", "repo=b/c", "license=mit", "language=en"], ["license"]),
    "make compare": (compare, ["teacher=a", "students=[b]"], ["students"]),
    "make onnx": (onnx, ["model=a"], ["model"]),
}


@pytest.mark.parametrize(("main", "given", "keys"), COMMANDS.values(), ids=COMMANDS)
def test_every_command_prints_its_configuration_and_stops(
    main: Any, given: list[str], keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One document of its own keys, and one of each training that it would run."""
    assert main([*given, "--print-config"]) == 0
    documents = [*yaml.safe_load_all(capsys.readouterr().out)]
    assert len(documents) == len(keys)
    assert all(key in document for key, document in zip(keys, documents, strict=True))


@pytest.mark.parametrize(("main", "given", "keys"), COMMANDS.values(), ids=COMMANDS)
def test_every_command_has_help(
    main: Any, given: list[str], keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([given[0], "--help"]) == 0
    assert f"{keys[0]}" in capsys.readouterr().out


def test_a_task_without_its_section_is_told_where_to_write_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mood\ntype: classification\nlabels: [bad, good]\n")
    for main, more in ((finetune, []), (distill, ["teacher.from=b"])):
        assert main([str(file), "model.from=a", *more]) == 2
        said = capsys.readouterr().err
        assert f"{file}: name, type, labels describe a task and belong into the section task: write `task:`" in said


def test_a_task_section_without_its_name_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(["task={type: regression, metrics: [pearson]}", "model.from=a", "recipe=none"]) == 2
    assert "task.name: required, but not given" in capsys.readouterr().err


def test_filling_a_submission_is_told_as_make_takes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'make submission MODEL=\.\.\. ARGS="fill=true"'):
        write_submission(tmp_path / "a", {})


def test_a_path_with_spaces_is_told_how_to_give_it(tmp_path: Path) -> None:
    """make parts DATA at its spaces; what the message says is a path that is found."""
    (tmp_path / "my own corpus").mkdir()
    (tmp_path / "my own corpus/a.txt").write_text("Text.\n")
    for name in ("my own corpus", "my own corpus/*.txt"):
        *_, given = shlex.split(would_run("data", f"DATA={tmp_path}/{name}"))
        with pytest.raises(InputError, match="exists: quote") as caught:
            resolve(read_values([given])[0]["data"]["path"])
        (arguments,) = re.findall(r'ARGS="(.*)"$', str(caught.value))
        *_, given = shlex.split(would_run("data", f"ARGS={arguments}"))
        assert resolve([read_values([given])[0]["data"]["path"]]) == [tmp_path / "my own corpus/a.txt"]
