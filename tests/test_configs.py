"""Every YAML that is shipped can be run, and says what it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bertillery.config.layers import dump
from bertillery.config.section import ConfigError, validate
from bertillery.engine.optim import learning_rate
from distill.__main__ import main as distill
from distill.config import load_config as distillation
from distill.config import method_of
from finetune.__main__ import main as finetune
from finetune.config import load_config as finetuning
from pretrain.__main__ import main as pretrain
from pretrain.config import load_config, objective_of
from tests.corpora import random_tokens, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))
TASKS = sorted((ROOT / "configs" / "finetune").glob("*.yaml"))
STUDENTS = sorted((ROOT / "configs" / "distill").glob("*.yaml"))
TRANSLATION = sorted((ROOT / "configs" / "translation").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_is_valid_and_round_trips(path: Path) -> None:
    config = load_config([str(path)])
    assert config.run.name == path.stem
    assert validate(type(config), yaml.safe_load(dump(config))) == config
    learning_rate(config.optim, config.train.steps.to_steps(steps_per_epoch=10_000))
    assert hasattr(objective_of(config), "build")


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: path.stem)
def test_students_are_valid_and_round_trip(path: Path, tmp_path: Path) -> None:
    """Those of a task, with one; each method does what its configuration asks of it."""
    of_task = path.stem.endswith("_task")
    task = [str(ROOT / "configs/finetune/sst2.yaml"), "model.from=a/student"] if of_task else []
    config = distillation([str(path), *task, "teacher.from=a/teacher"])
    assert config.run.name == (
        "sst2/student-" + path.stem.removesuffix("_task") + "/seed-12345" if of_task else path.stem
    )
    (tmp_path / "printed.yaml").write_text(dump(config))
    assert distillation([str(tmp_path / "printed.yaml")]).model_dump() == config.model_dump()
    total = config.train.steps.to_steps(steps_per_epoch=1000)
    learning_rate(config.optim, total)
    method = method_of(config)
    assert hasattr(method, "task" if of_task else "build")


@pytest.mark.parametrize("path", TRANSLATION, ids=lambda path: path.stem)
def test_translation_models_are_valid_and_round_trip(path: Path, tmp_path: Path) -> None:
    config = finetuning([str(ROOT / "configs/finetune/multi30k.yaml"), str(path)])
    assert config.run.name == f"multi30k/{path.stem}/seed-12345"
    (tmp_path / "printed.yaml").write_text(dump(config))
    assert finetuning([str(tmp_path / "printed.yaml")]).model_dump() == config.model_dump()
    learning_rate(config.optim, config.train.steps.to_steps(steps_per_epoch=1000))


def keys_of(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from keys_of(value, f"{prefix}{key}.")
        elif key == "phases":
            yield from keys_of(value[0], f"{prefix}{key}.0.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize(("main", "paths"), [(pretrain, CONFIGS), (distill, STUDENTS)], ids=["pretrain", "distill"])
def test_help_names_every_key(main: Any, paths: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = {line.split(" (")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")}
    given = {key for path in paths for key in keys_of(yaml.safe_load(path.read_text()))}
    given = {key for key in given if not key.startswith(("before.", "tasks."))}  # of a task's configuration, once more
    assert {"train.phases.0.batch_size", "objective.type"} <= given
    assert given <= said


def test_help_names_the_keys_of_translation(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(["--help"]) == 0
    part = capsys.readouterr().out.split("with task.type=translation, sections of the run:\n")[1]
    said = {line.split(" (")[0] for line in part.splitlines() if not line.startswith(" ")}
    given = {key for path in TRANSLATION for key in keys_of(yaml.safe_load(path.read_text()))}
    shared = {f"train.{name}_every" for name in ("save", "evaluate")} | {"train.evaluate_examples", "train.keep"}
    assert {"model.cell", "tokenizer.type", "decode.beam"} <= given
    assert given - shared <= said
    assert "optim.learning_rate (float, default 0.0007)" in part


def test_help_has_the_defaults_of_its_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert (finetune(["--help"]), "optim.learning_rate (float, default 5e-05)" in capsys.readouterr().out) == (0, True)
    assert distill(["--help"]) == 0
    general, for_task = capsys.readouterr().out.split("For a task:")
    assert "objective.kl (" in general
    assert "objective.soft (" in for_task


@pytest.mark.parametrize("path", [*CONFIGS, *STUDENTS, *TRANSLATION], ids=lambda path: path.stem)
def test_configuration_opens_with_paper_and_command(path: Path) -> None:
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"arXiv \d{4}\.\d{4,5}", head)
    command, variable = {
        "distill": ("make distill", "CONFIG"),
        "pretrain": ("make pretrain", "CONFIG"),
        "translation": ("make finetune", "MODEL"),
    }[path.parent.name]
    assert command in head
    stem = path.stem
    assert stem in ("bert_docs", "distilbert_docs") or f"{variable}={stem}" in head


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_task_opens_with_a_command_that_has_its_data(path: Path) -> None:
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    (command,) = re.findall(
        rf"make finetune TASK={path.stem} MODEL=<(?:export or Hub id|name in configs/translation)>(.*)", head
    )
    task = yaml.safe_load(path.read_text())["task"]
    assert ("task.root=" in command, "HUB=1" in command) == ("files" in task, "hub" in task and "files" not in task)


def test_a_configuration_holds_only_differences() -> None:
    for path in [*CONFIGS, *STUDENTS, *TRANSLATION]:
        assert len(path.read_text().splitlines()) <= 40, path


HALF_HOUR = str(ROOT / "configs/half_hour.yaml")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["bert_docs"], "26 of 64 tokens"),
        (["bert_base"], "19 of 128 tokens"),
        (["electra_base"], "77 of 512 tokens"),
        (["pairs_mini"], "51 of 128 tokens"),
        (["albert_docs", "objective.masking.max_predictions=null"], "26 of 64 tokens"),
        (["albert_docs"], "20 of 64 tokens: objective.masking.max_predictions=20 decides, not the rate of 0.4, which"),
        (["albert_mini", HALF_HOUR, "objective.masking.rate=0.4"], "20 of 128 tokens: "),
        (
            ["albert_mini", HALF_HOUR, "objective.masking.rate=0.4", "objective.masking.max_predictions=null"],
            "51 of 128",
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_how_much_is_predicted_is_said(given: list[str], said: str) -> None:
    """With what decides, if that is not the rate; and it is what is done."""
    name, *more = given
    config = load_config([str(ROOT / f"configs/pretrain/{name}.yaml"), *more])
    length = config.train.phases[0].sequence_length
    found = config.objective.predicted(length)
    assert found.startswith(said)
    assert ("decides" in found) == (":" in said)
    tokens = random_tokens(40, sentences=(40, 60), vocab_size=512)
    source = objective_of(config).source(config.objective, tokens, tiny_tokenizer(), sequence_length=length, seed=1)
    batch = source.collate(source.examples(0, 0)[:200])
    lengths = batch.input.offsets.diff()
    predicted = np.bincount(np.searchsorted(batch.input.offsets, batch.targets["masked_positions"], side="right") - 1)
    whole = predicted[: len(lengths)][lengths[: len(predicted)] == length]
    assert len(whole)
    assert whole.max() == int(found.split()[0])


TASK = [f"{ROOT}/configs/distill/tinybert_task.yaml", f"{ROOT}/configs/finetune/sst2.yaml"]
SECTIONS = [
    (load_config, ["objective=mlm"], "objective: given 'mlm' (from argument 'objective=mlm')", "objective.type=mlm?"),
    (load_config, ["model=a/b"], "model: given 'a/b' (from argument 'model=a/b')", "model.from=a/b?"),
    (load_config, ["train=5"], "train: given 5", "give its keys: train.steps, train.phases, "),
    (load_config, ["tokenizer=null"], "tokenizer: given None", "give its keys: tokenizer.type, tokenizer.path, "),
    (finetuning, ["model=a/b"], "model: given 'a/b'", "did you mean model.from=a/b?"),
    (finetuning, ["task=sst2", "model.from=a"], "task: given 'sst2'", "give its keys: task.name, "),
    (distillation, [str(STUDENTS[0]), "teacher=a/b"], "teacher: given 'a/b'", "did you mean teacher.from=a/b?"),
    (distillation, [*TASK, "task=sst2"], "task: given 'sst2'", "give its keys: task.name, "),
    (distillation, [*TASK, "model=a/b"], "model: given 'a/b'", "did you mean model.from=a/b?"),
    (distillation, [*TASK, "before=[]"], "before: given []", "give its keys: before.run, "),
    (distillation, [*TASK, "before.objective=x"], "before.objective: given 'x'", "mean before.objective.type=x?"),
]


@pytest.mark.parametrize(("load", "given", "what", "remedy"), SECTIONS, ids=[" ".join(row[1]) for row in SECTIONS])
def test_a_value_in_the_place_of_a_section(load: Callable[..., Any], given: list[str], what: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(given)
    message = str(caught.value)
    assert message.startswith(what)
    assert ", but it is a section; " in message
    assert remedy in message


def test_a_section_that_may_be_left_out() -> None:
    config = distillation([*TASK, "teacher.from=a", "model.from=b", "before=null", "augment=null"])
    assert config.model_dump()["before"] is None
