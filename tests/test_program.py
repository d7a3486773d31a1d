"""The program: its table of commands, configurations by name, help and printed configurations of every command."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from bertillery.__main__ import COMMANDS, main, resolve
from bertillery.config.layers import CONFIGS
from bertillery.config.section import ConfigError

LEAST = {
    "data": ["bert_docs"],
    "pretrain": ["bert_docs", "half_hour"],
    "embed": ["transe_docs"],
    "finetune": ["sst2", "model.from=a", "recipe=none"],
    "distill": ["minilm", "teacher.from=a"],
    "seeds": ["tasks=[sst2]", "model.from=a", "recipe=none"],
    "search": ["sst2", "model.from=a", "recipe=none"],
    "rates": ["bert_docs"],
    "fewshot": ["copa", "model=a"],
    "compare": ["teacher=a", "students=[b]"],
    "submission": ["a"],
    "push": ["model=a", "repo=a/b", "license=mit", "language=en"],
    "report": [],
    "watch": [],
    "dashboard": [],
    "schema": [],
}
"""What commands need; the others need a model."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_its_configuration_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, *LEAST.get(name, ["model=a"]), "--print-config"]) == 0
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(capsys.readouterr().out))
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    keys = re.findall(r"^([a-z_]\S*) \((.*)\)$", said, flags=re.M)
    assert keys
    assert all(", default " in about or about.endswith(", required") for _, about in keys)
    assert not re.search("Literal|Optional|NoneType|Annotated", said)


def test_the_list_has_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["--help"], ["help"]):
        assert main(given) == 0
        said = capsys.readouterr().out
        assert all(
            re.search(rf"^  {name} +{re.escape(command.about)}$", said, re.M) for name, command in COMMANDS.items()
        )
        assert max(map(len, said.splitlines())) <= 120
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bertillery ")


def test_every_folder_of_a_command_exists_and_every_module_has_a_main() -> None:
    for command in COMMANDS.values():
        assert all((CONFIGS / folder).is_dir() for folder in command.folders)
        assert callable(importlib.import_module(command.module).main)


def test_a_name_stands_for_the_files_of_all_folders_of_the_command() -> None:
    assert resolve("rte", COMMANDS["fewshot"]) == [f"{CONFIGS}/finetune/rte.yaml", f"{CONFIGS}/prompting/rte.yaml"]
    assert resolve("gru", COMMANDS["finetune"]) == [f"{CONFIGS}/translation/gru.yaml"]
    for other in ("train.steps=5", "mine.yaml", "--print-config"):
        assert resolve(other, COMMANDS["finetune"]) == [other]
    assert resolve("runs/a", COMMANDS["submission"]) == ["runs/a"]
    with pytest.raises(ConfigError, match="no configuration 'bert_mni'; did you mean bert_mini"):
        resolve("bert_mni", COMMANDS["pretrain"])


def test_help_of_a_section_has_that_section_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help", "run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("RUN: Where a run lives")
    assert "run.precision (auto | bf16 | fp32, default 'auto')" in said
    assert "run.compile (true | false, default false)" in said
    assert "run.name (str | null, default null)" in said
    assert "optim." not in said.split("\n\n", 1)[1].replace("optimizer", "")
    assert main(["pretrain", "--help", "objective"]) == 0
    assert "with objective.type=electra:" in capsys.readouterr().out
    assert main(["pretrain", "--help", "runn"]) == 2
    assert "--help runn: no such section; there are: run, optim, " in capsys.readouterr().err


def test_a_dry_run_is_for_trainings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "model=a", "--dry-run"]) == 2
    assert "--dry-run is for one training" in capsys.readouterr().err


def test_the_configurations_of_names_are_files(tmp_path: Path) -> None:
    """What a name gives is read like a path of the user's."""
    assert all(Path(file).is_file() for file in resolve("sst2", COMMANDS["finetune"]))
