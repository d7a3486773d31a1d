"""Distillation for a task: fine-tuning with a teacher, and TinyBERT's stage before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import AutoModel

from bertillery.engine.evaluate import HeldOut
from bertillery.engine.objective import Objective
from bertillery.models.heads import add_rows
from bertillery.models.load import load, load_carried, vocabulary_size
from bertillery.run.inputs import Fingerprint
from bertillery.run.stage import Parts
from bertillery.run.trainer import Trainer
from bertillery.run.waiting import main_process_first
from bertillery.system.invocation import command_line
from distill.answers import answered
from distill.augment import augmented
from distill.config import TaskConfig, method_of
from distill.stage import TaskAgnostic
from distill.task_models import check_readers, fingerprints, model_paths, open_task_teacher
from distill.teacher import Teacher
from finetune.data.splits import Split, Task, current_rows, documentation_input, open_task, report, row_inputs
from finetune.examples import Examples
from finetune.predict import Predictor
from finetune.stage import Finetuning
from finetune.task import task_type_of


class TaskSpecific(Finetuning):
    """A run of task-specific distillation: fine-tuning with a teacher."""

    folder = job = "distill"
    makes = "student"
    config: TaskConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def prepare(self) -> Parts:
        """As in fine-tuning; the teacher must have learned this task, with labels in this order."""
        self.model_paths |= model_paths(self.config)
        self.pin(self.models)
        teacher = open_task_teacher(self.config, self.config.model.from_)
        parts = super().prepare()
        self.teacher: Teacher[Predictor] = Teacher(self.task_type.objective(teacher))
        return replace(parts, sources=[self._answered(source) for source in parts.sources])

    def _answered(self, examples: Any) -> Any:
        """The examples, with the teacher's answers where they are read again: in epochs, without variants."""
        config = self.config
        again = config.train.steps.unit == "epochs" and config.train.steps.amount >= 2
        if config.augment is not None or not again:
            return examples
        self.say(f"answers     the teacher is asked once about {examples.num_examples:,} examples")
        length, both = config.train.phases[0].sequence_length, config.train.both_orders
        parts = self.models()["teacher"].sha256, self.task.split("train").fingerprint().sha256, length, both
        return answered(examples, self.teacher, parts, cache=config.run.data_dir, accelerator=self.accelerator)

    def models(self) -> dict[str, Fingerprint]:
        """Student, teacher, and what the training split is augmented with."""
        return fingerprints(self.config)

    def _examples(self, name: str, training: bool = False) -> Examples:
        if training:
            split = augmented_split(self, self.task)
            self.task = replace(self.task, splits={**self.task.splits, name: split})
        return super()._examples(name, training)

    def _objective(self) -> Any:
        return method_of(self.config).task(self.config.objective, super()._objective(), self.teacher)

    def banner(self, trainer: Trainer) -> str:
        """The teacher, whether only the stage before used variants, then as in fine-tuning."""
        config = self.config
        apart = config.augment is None and config.before is not None and config.before.augment is not None
        texts = "texts       the task's own; their variants were for the stage before alone\n" if apart else ""
        return f"teacher     {config.teacher.from_}\n{texts}{super().banner(trainer)}"

    def about(self) -> str:
        """As in fine-tuning, and the teacher."""
        return f"{super().about()}, distilled from {self.config.teacher.from_}"

    def next_command(self, results: dict[str, Any]) -> str:
        """The comparison with the teacher."""
        return command_line("compare", TEACHER=self.config.teacher.from_, STUDENTS=self.path / "export")


class FirstStage(TaskAgnostic):
    """The stage before task-specific distillation: the layers of a fine-tuned teacher, on the task's texts."""

    config: TaskConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: TaskConfig, *, then: TaskConfig) -> None:
        """``then`` is the stage that follows; this one already refuses what that one would."""
        super().__init__(config)
        self.then = then

    def prepare(self) -> Parts:
        """The task's texts, augmented, in the tokens that both read."""
        config, section = self.config, self.config.task
        self.model_paths |= model_paths(config)
        self.pin(lambda: fingerprints(config))
        open_task_teacher(self.then, config.model.from_)
        check_readers(config, config.model.from_)
        self.open_teacher()
        with main_process_first(self.accelerator):
            task = open_task(section, config.run.data_dir)
        self.say(report(task))
        self.pin(lambda: row_inputs(task) | documentation_input(section))
        kind, length = task_type_of(section), config.train.phases[0].sequence_length
        kind.data_dir = config.run.data_dir
        train, valid = (
            kind.examples(split, self.tokenizer, max_length=length, seed=config.run.seed)
            for split in (augmented_split(self, task), task.split(section.validation[0]))
        )
        self.baselines = {}
        self.facts = {"task": f"{section.name}, {train.num_examples:,} training examples"}
        return Parts(
            [train],
            epoch_size=Examples.epoch_size,
            objective=self._objective,
            held_out=HeldOut(valid, num_examples=config.train.evaluate_examples),
        )

    def current(self) -> dict[str, Fingerprint]:
        """The models, and the rows if they are in files."""
        return fingerprints(self.config) | current_rows(self.config.task, self.config.run.data_dir)

    def _objective(self) -> Objective:
        section = self.config.model
        student, _ = load(
            AutoModel,
            section.from_,
            hidden_dropout=section.hidden_dropout,
            attention_dropout=section.attention_dropout,
            random=section.weights == "random",
        )
        add_rows(student, vocabulary_size(self.tokenizer))
        objective = self.method.build(self.config.objective, student, self.teacher)
        self.started = "freshly initialised"
        if section.weights == "pretrained":
            self.started = "; ".join([f"weights of {section.from_}", *load_carried(objective.carried(), section.from_)])
        return objective

    def next_command(self) -> str:
        """None: the next stage follows."""
        return f"its answers come next, from {self.path / 'export'}"


def augmented_split(stage: TaskSpecific | FirstStage, task: Task) -> Split:
    """The training split, with variants if the configuration asks for them."""
    config, split, accelerator = stage.config, task.split("train"), stage.accelerator
    if config.augment is None:
        return split
    place, seed = config.run.data_dir, config.run.seed
    made = augmented(config.augment, config.task, split, data_dir=place, seed=seed, accelerator=accelerator)
    stage.say(made.report)
    stage.pin(lambda: {"augmentation": made.split.fingerprint()})
    return made.split
