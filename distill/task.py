"""Distillation of a task: a fine-tuning in which the teacher's answers count, and TinyBERT's stage before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel

from bertillery.config.section import ConfigError
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.objective import Objective
from bertillery.models.encoders import labels_of, longest_sequence
from bertillery.models.joint_spans import joint_head
from bertillery.models.load import load, load_carried, load_tokenizer, read_config
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.run.stage import Parts
from bertillery.run.trainer import Trainer
from bertillery.run.waiting import main_process_first
from distill.augment import augmented
from distill.candidates import fingerprint
from distill.config import TaskConfig, method_of
from distill.general import General
from distill.teacher import Teacher
from finetune.examples import Examples
from finetune.predictor import Predictor
from finetune.sources import glue_dir_from_environment
from finetune.splits import Split, Task, current_rows, documentation_input, read_task, report, row_inputs
from finetune.stage import Finetuning
from finetune.stock import head_kind
from finetune.task_types.base import task_type_of


def check_readers(config: TaskConfig, student: str) -> None:
    """``ConfigError`` unless student and teacher read the same tokens, and as many as a sequence has."""
    teacher, asked = config.teacher.from_, max(phase.sequence_length for phase in config.train.phases)
    for start in (student, teacher):
        longest = longest_sequence(read_config(start))
        if asked > longest:
            raise ConfigError(
                f"train.phases: {start} reads {longest} tokens at most, and sequence_length is {asked}; "
                "give a shorter one"
            )
    mine, theirs = load_tokenizer(student, "model.from"), load_tokenizer(teacher, "teacher.from")
    here, there = mine.get_vocab(), theirs.get_vocab()
    if here != there:
        differ = sorted(piece for piece in here.keys() | there.keys() if here.get(piece) != there.get(piece))
        raise ConfigError(
            f"the student {student} ({len(here):,} pieces) and the teacher {teacher} ({len(there):,}) read different "
            f"tokens, for example {', '.join(map(repr, differ[:3]))}; a student learns from a teacher with its own "
            "tokenizer: distil it from the encoder that the teacher was fine-tuned from"
        )


def open_answering(config: TaskConfig, student: str) -> PreTrainedModel:
    """The teacher of a task, whose answers a student learns.

    Raises ``ConfigError`` where the teacher has not learned this task with its labels in this order, or the two do not
    read alike (:func:`check_readers`).
    """
    check_readers(config, student)
    start, task, kind = config.teacher.from_, config.task, task_type_of(config.task)
    found = read_config(start)
    if joint_head(found):
        raise ConfigError(
            f"teacher.from: {start} has a joint head for answers, which no student learns from; fine-tune the teacher "
            f"with an independent one: make finetune TASK={task.name} ARGS=task.spans.head=independent"
        )
    if not kind.head_fits(found):
        raise ConfigError(
            f"teacher.from: {start} was not fine-tuned for {task.name} ({task.type}): its head is for "
            f"{head_kind(found)}, its labels are {[*labels_of(found).values()]}, the task's are "
            f"{task.labels or 'scores'}; give one that was: "
            f"make finetune TASK={task.name}"
        )
    model, loaded = load(kind.model_class, start, **kind.settings())
    if loaded.fresh:
        raise ConfigError(f"teacher.from: {start} has no head for the task ({loaded}); give a fine-tuned model")
    return model


class Answers(Finetuning):
    """A fine-tuning run with a teacher."""

    folder = "distill"
    config: TaskConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def prepare(self) -> Parts:
        """As in fine-tuning; the teacher must have learned this task, with labels in this order."""
        self.pin(self.models)
        teacher = open_answering(self.config, self.config.model.from_)
        parts = super().prepare()
        self.teacher: Teacher[Predictor] = Teacher(self.task_type.objective(teacher))
        return parts

    def models(self) -> dict[str, Fingerprint]:
        """Student, teacher, and what the training split is augmented with."""
        return task_models(self.config)

    def _examples(self, name: str, training: bool = False) -> Examples:
        if training:
            split = augmented_split(self, self.task)
            self.task = replace(self.task, splits={**self.task.splits, name: split})
        return super()._examples(name, training)

    def _objective(self) -> Any:
        return method_of(self.config).task(self.config.objective, super()._objective(), self.teacher)

    def banner(self, trainer: Trainer) -> str:
        """The teacher, whether variants were for the stage before alone, then as in fine-tuning."""
        config = self.config
        apart = config.augment is None and config.before is not None and config.before.augment is not None
        texts = "texts       the task's own; their variants were for the stage before alone\n" * apart
        return f"teacher     {config.teacher.from_}\n{texts}{super().banner(trainer)}"

    def about(self) -> str:
        """The same, and the teacher."""
        return f"{super().about()}, distilled from {self.config.teacher.from_}"

    def next_command(self, results: dict[str, Any]) -> str:
        """What was gained."""
        return f"make compare TEACHER={self.config.teacher.from_} STUDENTS={self.path / 'export'}"


class FirstStage(General):
    """The stage before: the layers of a student and of a fine-tuned teacher, on the task's texts."""

    config: TaskConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: TaskConfig, *, then: TaskConfig) -> None:
        """``then`` is the stage of the answers: what it would refuse, this one does."""
        super().__init__(config)
        self.then = then

    def prepare(self) -> Parts:
        """The task's texts, augmented, as both read them."""
        config, section = self.config, self.config.task
        self.pin(lambda: task_models(config))
        open_answering(self.then, config.model.from_)
        check_readers(config, config.model.from_)
        self.open_teacher()
        kind = task_type_of(section)
        with main_process_first(self.accelerator):
            task = read_task(section, data_dir=config.run.data_dir, glue_dir=glue_dir_from_environment())
        self.say(report(task))
        self.pin(lambda: row_inputs(task) | documentation_input(section))
        phase = config.train.phases[0]
        splits = augmented_split(self, task), task.split(section.validation[0])
        train, valid = (
            kind.examples(split, self.tokenizer, max_length=phase.sequence_length, seed=config.run.seed)
            for split in splits
        )
        self.facts = {"task": f"{section.name}, {train.num_examples:,} training examples"}
        return Parts(
            [train],
            epoch_size=Examples.epoch_size,
            objective=self._objective,
            held_out=HeldOut(valid, num_examples=config.train.evaluate_examples),
        )

    def current(self) -> dict[str, Fingerprint]:
        """The models, and the rows where they are in files."""
        config, glue_dir = self.config, glue_dir_from_environment()
        return task_models(config) | current_rows(config.task, data_dir=config.run.data_dir, glue_dir=glue_dir)

    def _objective(self) -> Objective:
        section = self.config.model
        student, _ = load(
            AutoModel,
            section.from_,
            hidden_dropout=section.hidden_dropout,
            attention_dropout=section.attention_dropout,
            random=section.weights == "random",
        )
        objective = self.method.build(self.config.objective, student, self.teacher)
        self.started = "freshly initialised"
        if section.weights == "pretrained":
            self.started = "; ".join([f"weights of {section.from_}", *load_carried(objective.carried(), section.from_)])
        return objective

    def next_command(self) -> str:
        """None: the next stage follows by itself."""
        return f"its answers come next, from {Path(self.path) / 'export'}"


def augmented_split(stage: Any, task: Task) -> Split:
    """The training split, with variants where the configuration asks for them."""
    split = task.split("train")
    if stage.config.augment is None:
        return split
    config = stage.config
    made = augmented(
        config.augment,
        config.task,
        split,
        data_dir=config.run.data_dir,
        seed=config.run.seed,
        accelerator=stage.accelerator,
    )
    stage.say(made.report)
    stage.pin(lambda: {"augmentation": made.split.fingerprint()})
    return made.split


def task_models(config: TaskConfig) -> dict[str, Fingerprint]:
    """Fingerprints of student and teacher, and of what the training split is augmented with."""
    section = config.augment
    found = model_inputs(
        student=config.model.from_, teacher=config.teacher.from_, augmenting_model=section.model if section else None
    )
    if section and section.vectors:
        found["augmenting vectors"] = Fingerprint(fingerprint(section.vectors), section.vectors.name)
    return found
