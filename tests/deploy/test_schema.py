"""The schemas for editors accept every file that the commands accept, and mark what they refuse."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from bertillery.config.layers import parse_yaml
from deploy.schema import main, schemas

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"finetune/recipes": "recipe", "finetune/spaces": "space", "translation": "finetune", ".": "pretrain"}
FILES = sorted((ROOT / "configs").glob("**/*.yaml"))


@cache
def validator(kind: str) -> Draft202012Validator:
    schema = schemas()[kind]
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def editors_view(text: str) -> Any:
    """What an editor reads, by YAML 1.2's core schema: a number with underscores is text, but 5e-5 is a number."""

    class Core(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    import re

    for tag, pattern, first in (
        ("bool", r"^(true|false)$", "tf"),
        ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
        ("float", r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ):
        Core.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))
    return yaml.load(text, Core)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_configuration_is_valid_to_us_and_to_an_editor(path: Path) -> None:
    folder = path.parent.relative_to(ROOT / "configs").as_posix()
    text = path.read_text()
    for values in (parse_yaml(text, path.name), editors_view(text)):
        errors = [
            f"{error.json_path}: {error.message}"
            for error in validator(FOLDERS.get(folder, folder)).iter_errors(values)
        ]
        assert errors == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("pretrain", "objective: {type: brt}"),
        ("pretrain", "objective: {type: electra, nsp: true}"),
        ("pretrain", "model: {hiden_size: 128}"),
        ("pretrain", "train: {steps: 5 epoch, phases: [{batch: 3}]}"),
        ("pretrain", "run: {precision: fp16}"),
        ("pretrain", "optim: {learning_rate: -1}"),
        ("finetune", "task: {type: classification, labls: [a, b]}"),
        ("finetune", "task: {type: sentiment}"),
        ("distill", "objective: {type: minilm, layerz: 3}"),
        ("distill", "before: {trian: {}}"),
        ("space", "optim.learning_rate: 3"),
        ("embed", "model: {norm: 3}"),
    ],
)
def test_what_a_command_refuses_is_marked(kind: str, text: str) -> None:
    assert [*validator(kind).iter_errors(yaml.safe_load(text))]


def test_the_command_writes_every_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"output={tmp_path}/schemas"]) == 0
    assert {file.name for file in (tmp_path / "schemas").iterdir()} == {f"{kind}.schema.json" for kind in schemas()}
    assert f"$schema={tmp_path}/schemas/pretrain.schema.json" in capsys.readouterr().out
