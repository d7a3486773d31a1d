"""Every YAML that is shipped can be run, and says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from distill.config import load_config as distillation
from distill.config import method_of
from engine.config import dump, validate
from engine.optim import learning_rate
from pretrain.config import load_config, objective_of

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))
STUDENTS = sorted((ROOT / "configs" / "distill").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_is_valid_and_round_trips(path: Path) -> None:
    config = load_config([str(path)])
    assert config.run.name == path.stem
    assert validate(type(config), yaml.safe_load(dump(config))) == config
    learning_rate(config.optim, config.train.steps.to_steps())
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


@pytest.mark.parametrize("path", [*CONFIGS, *STUDENTS], ids=lambda path: path.stem)
def test_configuration_opens_with_paper_and_command(path: Path) -> None:
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"arXiv \d{4}\.\d{5}", head)
    assert {"distill": "make distill", "pretrain": "make pretrain"}[path.parent.name] in head
    stem = path.stem
    assert stem in ("bert_docs", "distilbert_docs") or f"CONFIG={stem}" in head


def test_a_configuration_holds_only_differences() -> None:
    for path in [*CONFIGS, *STUDENTS]:
        assert len(path.read_text().splitlines()) <= 40, path
