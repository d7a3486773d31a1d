"""What an export says of the task that it was trained on: ``task.yaml`` beside its weights.

It holds what a prediction needs to read rows as the training did, and no place of this machine: where the rows of the
training were is the run's own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import Tokens
from bertillery.models.folder import file_of
from bertillery.report.card import shortened
from bertillery.run.directory import FINISHED_REMEDY
from bertillery.system.invocation import settings
from bertillery.system.records import read_json, read_yaml

FILE = "task.yaml"
"""Its name in an export."""
_LOCAL = ("files", "root")
"""Keys of a task that are about one machine."""


class Record(Section):
    """How a model reads a task."""

    task: dict[str, Any]
    """The section ``task`` of its training."""
    sequence_length: Tokens = 128
    """Tokens of a sequence, at most; longer ones are cut, or read in windows, as in training."""
    add_orders: bool = False
    """Whether it reads a pair in both orders."""
    chosen: dict[str, float] = Field(default={})
    """What was chosen on the first validation split, such as a threshold."""

    @classmethod
    def of(cls, config: Mapping[str, Any], chosen: Mapping[str, float]) -> Record:
        """The record of a run with this configuration, as plain values."""
        model = config.get("model") or {}
        return cls(
            task=config["task"],
            sequence_length=config["train"]["phases"][0]["sequence_length"],
            add_orders=bool(model.get("add_orders", False)),
            chosen=dict(chosen),
        )

    def text(self) -> str:
        """The content of ``task.yaml``: without places of this machine, and keys that are not given."""
        task = {key: value for key, value in self.task.items() if key not in _LOCAL and value not in (None, [], {})}
        values = {**self.model_dump(exclude_defaults=True), "task": task, "sequence_length": self.sequence_length}
        return shortened(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def naming_task() -> str:
    """How a command is given the task of a model that does not know its own."""
    return settings("evaluate", TASK="<name in configs/finetune or a .yaml>")


def read_record(model: str) -> Record | None:
    """The record of a model: of the run whose export it is, or of the file beside its weights, in a folder or on the
    Hub; None where there is neither. ``InputError`` for a damaged one."""
    folder, remedy = Path(model), f"give {naming_task()}, or restore the file"
    run = folder.resolve().parent / "config.yaml"
    if folder.is_dir() and folder.resolve().name == "export" and run.is_file():
        values = read_yaml(run, dict[str, Any], remedy=remedy)
        if "task" not in values:
            return None
        finished = run.with_name("finished.json")
        results = read_json(finished, dict[str, Any], remedy=FINISHED_REMEDY) if finished.is_file() else {}
        try:
            return Record.of(values, results.get("chosen") or {})
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise InputError(f"{run}: not the configuration of a fine-tuning ({error}); {remedy}") from None
    on_the_hub = model.count("/") <= 1 and not model.startswith((".", "/", "~"))
    file = file_of(model, FILE) if folder.is_dir() or on_the_hub else None
    return None if file is None else read_yaml(file, Record, remedy=remedy)
