"""A model together with the task that it was trained on, opened to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from bertillery.config.layers import Layer, merge_layers, names_file, read_layers
from bertillery.config.section import ConfigError, Section, validate
from bertillery.config.types import Count, Texts
from bertillery.models.encoders import ANY, longest_sequence
from bertillery.models.load import read_config
from bertillery.run.command import tool
from bertillery.run.device import RunSection, start_accelerator
from bertillery.system.invocation import settings
from finetune.config import beside_yaml, model_name
from finetune.data.splits import Split
from finetune.predict import predict
from finetune.record import Record, naming_task, read_record
from finetune.task import TaskSection, task_type_of
from finetune.task_types.base import Predicted, TaskType

ALONE: dict[str, Any] = {
    "folder": None, "hub": None, "embedded": None, "submission": {}, "files": {}, "validation": ["data"], "test": [],
}  # fmt: skip
"""A task without the places of its rows; whoever takes it adds ``files``."""


class UseSection(Section):
    """Keys of the commands that use a trained model."""

    model: str
    """Directory of a fine-tuned model, such as the ``export`` of a run, or its id on the Hub."""
    data: Texts = []  # noqa: RUF012 (frozen)
    """Files with the rows: csv, tsv, jsonl, parquet, SQuAD's json, CoNLL's columns, also .gz, .xz, .zst."""
    task: dict[str, Any] = {}  # noqa: RUF012 (frozen)
    """Keys of the task that differ from those the model was trained with, such as ``task.text=review``. A YAML of a
    task among the arguments is the task as a whole."""
    output: Path | None = None
    """Where the result goes; by default into a folder of ``run.dir``, named after the task and the model."""
    micro_batch_tokens: Count = 8192
    """Tokens that are computed at a time; affects memory and speed, and results only by rounding."""
    run: RunSection = RunSection()
    """Device, threads and precision."""

    @property
    def called(self) -> str:
        """What the model is called in the names of folders."""
        return model_name(self.model)


def use(arguments: Sequence[str], help: str | None, action: Callable[[UseSection, bool], int]) -> int:
    """Run the command line of one of these commands and return the exit status; ``action`` is also told whether a YAML
    among the arguments names the task."""
    named = any(map(names_file, arguments))
    return tool(arguments, help=help, schema=UseSection, action=lambda section: action(section, named), read=_read)


def _read(arguments: Sequence[str]) -> UseSection:
    """The section of a command; of a YAML only its section ``task`` counts."""
    layers = beside_yaml(read_layers(arguments))
    tasks = [layer for layer in layers if names_file(layer.argument)]
    if lacking := [layer.source for layer in tasks if not isinstance(layer.values.get("task"), dict)]:
        raise ConfigError(f"{lacking[0]}: no section task; give the YAML of a task, as for a fine-tuning")
    used = [Layer({"task": layer.values["task"]}, layer.source) if layer in tasks else layer for layer in layers]
    return validate(UseSection, *merge_layers(used))


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, and how it reads its task."""

    name: str
    section: TaskSection
    task_type: TaskType
    objective: nn.Module
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    record: Record
    """``sequence_length`` is no more than the model reads."""
    micro_batch_tokens: int

    @classmethod
    def open(cls, use: UseSection, named: bool, *, own: Mapping[str, Any] | None = None) -> Trained:
        """Open the model; ``named`` says whether ``use.task`` is a whole task, and ``own`` replaces the task's splits.

        Raises ``InputError`` for a model that was not trained on a task, and for one of another kind or other labels.
        """
        found = read_record(use.model)
        if found is None and not named:
            read_config(use.model, roles=ANY)  # a model that is not there is told so
            raise ConfigError(
                f"{use.model}: nothing there says which task it was trained on (task.yaml, or the run's config.yaml "
                f"beside export/); give a fine-tuned model, or {naming_task()}"
            )
        record = found or Record(task={})
        values, _ = merge_layers([Layer({} if named else deepcopy(record.task), ""), Layer(dict(use.task), "")])
        if own is None and not any(values.get(place) for place in ("files", "embedded", "folder", "hub")):
            raise ConfigError(
                f"{use.model}: it does not say where labelled rows of its task are; give "
                f"{settings('evaluate', DATA='<file with labels>')}, or {naming_task()}"
            )
        section = validate(_Task, {"task": values if own is None else {**values, **own}}).task
        task_type = task_type_of(section)
        if record.add_orders:
            task_type.add_orders()
        task_type.data_dir = use.run.data_dir
        task_type.restore(record.chosen)
        accelerator = start_accelerator(use.run)
        objective, tokenizer = task_type.reopen(use.model, record)
        length = min(record.sequence_length, longest_sequence(objective.model.config))
        record = record.model_copy(update={"sequence_length": length})
        objective = objective.to(accelerator.device).eval()
        return cls(use.called, section, task_type, objective, tokenizer, accelerator, record, use.micro_batch_tokens)

    def predict(self, split: Split) -> tuple[Predicted, dict[str, float]]:
        """Predictions of a split, and the means of the objective's terms if it has labels."""
        length, seed = self.record.sequence_length, 0
        examples = self.task_type.examples(split, self.tokenizer, max_length=length, seed=seed)
        rows = examples.examples(0, 0)
        outputs, means = predict(
            self.accelerator, self.objective, examples, rows, micro_batch_tokens=self.micro_batch_tokens
        )
        index = rows["index"]
        predictions = self.task_type.decide(outputs, examples, index)
        return Predicted(split, outputs, predictions, examples.num_outputs(index), examples.num_cut), means


class _Task(Section):
    task: TaskSection
