"""Value types of settings: durations, and names, which stay within their folder, on one line, and are plain text."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bertillery.config.section import ConfigError, validate
from bertillery.config.types import Duration
from finetune.task import TaskSection
from pretrain.config import load_config as pretraining
from tests.test_settings import SCHEMAS, TASK

OUTSIDE = ["../../x", "..", ".", "/tmp/x", "", "a/../b", "a//b", "a/", "/", "./a", "~/a", ".hidden"]
RAW = [
    "a\nb",
    "a\tb",
    "a\0b",
    "a\u2028b",
    "a\x1b[2Jb",
    "<img src=x>",
    '=HYPERLINK("x")',
    "-rf",
    "a\\b",
    "a ",
    "é" * 200,
]
GOOD = ["mood", "my run", "2026-01-02_a.b", "bert_mini+mnli", "größe", "感情", "हिन्दी", "a(1)", "x=1,y=2"]
ONE_PART = ["team/mood"]


def run_of(name: str) -> Any:
    return pretraining([f"run={{name: {TypeAdapter(str).dump_json(name).decode()}}}"]).run.name


def task_of(**given: Any) -> TaskSection:
    return validate(TaskSection, {**TASK, **given})


@pytest.mark.parametrize("name", [*OUTSIDE, *RAW])
def test_a_name_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name: given"):
        run_of(name)


@pytest.mark.parametrize("name", [*OUTSIDE, *RAW, *ONE_PART])
def test_tasks_splits_and_projects_are_one_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="name: given"):
        task_of(name=name)
    for key in ("validation", "test"):
        with pytest.raises(ConfigError, match=rf"{key}: given"):
            task_of(**{key: [name], "files": {"train": ["a"], name: ["b"]}})
    schema, least = SCHEMAS["pretrain bert"]
    with pytest.raises(ConfigError, match=r"tracking\.project: given"):
        validate(schema, {**least, "tracking": {"project": name}})


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_names_are_taken(name: str) -> None:
    assert run_of(name) == name
    assert run_of(f"{name}/{name}") == f"{name}/{name}"
    assert task_of(name=name).name == name


@pytest.mark.parametrize("name", [*OUTSIDE, *RAW])
def test_a_comparison_stays_in_its_folder(name: str) -> None:
    schema, least = SCHEMAS["compare"]
    with pytest.raises(ValidationError, match="name"):
        schema(**least, name=name)


def test_a_name_that_follows_from_a_file_is_checked_too(tmp_path: Any) -> None:
    (tmp_path / "=a.yaml").touch()
    with pytest.raises(ConfigError, match=r"run\.name: by default it is '=a', but a name begins .*; give run\.name="):
        pretraining([str(tmp_path / "=a.yaml")])


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ("3 epochs", 750),
        ("1 epoch", 250),
        ("0.5 epochs", 125),
        ("10_000 steps", 10000),
        (42, 42),
        ("5%", 50),
        ("2.5 %", 25),
        ("0.999 epochs", 249),
        ("29%", 290),
        ("0.29%", 2),
    ],
)
def test_durations_in_steps(given: str | int, steps: int):
    assert Duration.parse(given).to_steps(total_steps=1000, steps_per_epoch=250) == steps


@pytest.mark.parametrize("given", ["", "soon", "-1 steps", "3 weeks", "5 %%", True, None, 1.5, [1]])
def test_what_is_no_duration(given: object):
    with pytest.raises(ValueError, match="a duration is"):
        Duration.parse(given)


def test_durations_that_mean_nothing_here():
    with pytest.raises(ValueError, match="epochs cannot be used here"):
        Duration("3 epochs").to_steps(total_steps=10)
    with pytest.raises(ValueError, match="a percentage cannot be used here"):
        Duration("5%").to_steps(steps_per_epoch=10)
