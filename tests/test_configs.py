"""Every YAML that is shipped can be run, and says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from engine.config import dump, validate
from engine.optim import learning_rate
from pretrain.config import load_config, objective_of

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_is_valid_and_round_trips(path: Path) -> None:
    config = load_config([str(path)])
    assert config.run.name == path.stem
    assert validate(type(config), yaml.safe_load(dump(config))) == config
    learning_rate(config.optim, config.train.steps.to_steps())
    assert hasattr(objective_of(config), "build")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_opens_with_paper_and_command(path: Path) -> None:
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"arXiv \d{4}\.\d{5}", head)
    assert "make pretrain" in head
    stem = path.stem
    assert stem == "bert_docs" or f"CONFIG={stem}" in head


def test_a_configuration_holds_only_differences() -> None:
    for path in CONFIGS:
        assert len(path.read_text().splitlines()) <= 40, path
